//! The table is a contract with writers in any language: here only plain SQL writes, and the
//! library reads. Each test runs on every database.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::stores::{PostgresStore, SqliteStore, Tables};
use bento_outbox::{
    Batch, Claim, OutboxRecord, Outcome, Projector, ProjectorSettings, Publisher, Rejection,
    RejectionClass, Relay, Store, Timestamp,
};
use bento_outbox_conformance::servers::shared_postgres;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool, Row, SqlitePool};

mod postgres;
mod sqlite;

/// A database as a program in another language sees it, and the library's store on it.
pub(crate) struct Database {
    pub(crate) name: &'static str,
    pub(crate) sql: Sql,
    pub(crate) store: Arc<dyn Store>,
    _keep: Box<dyn Any + Send>,
}

pub(crate) enum Sql {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// Both databases, empty.
pub(crate) async fn empty() -> [Database; 2] {
    let server = shared_postgres().database().await;
    let pool = PgPool::connect(server.url()).await.unwrap();
    let postgres = Database {
        name: "postgres",
        store: Arc::new(PostgresStore::new(pool.clone())),
        sql: Sql::Postgres(pool),
        _keep: Box::new(server),
    };

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outbox.db");
    let url = format!("sqlite://{}", file.display());
    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    // Makes the file.
    assert!(store.check().await.is_err());
    let foreign = SqliteConnectOptions::new()
        .filename(&file)
        .create_if_missing(true);
    let sqlite = Database {
        name: "sqlite",
        store: Arc::new(store),
        // A pool of the writer's own, with the driver's usual settings.
        sql: Sql::Sqlite(SqlitePool::connect_lazy_with(foreign)),
        _keep: Box::new(folder),
    };
    [postgres, sqlite]
}

/// Both databases with the tables.
pub(crate) async fn migrated() -> [Database; 2] {
    let databases = empty().await;
    for database in &databases {
        database.store.migrate().await.unwrap();
    }
    databases
}

impl Database {
    /// Runs statements; says how many rows they changed.
    pub(crate) async fn try_run(&self, sql: &str) -> Result<u64, sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        match &self.sql {
            Sql::Postgres(pool) => sql.execute(pool).await.map(|done| done.rows_affected()),
            Sql::Sqlite(pool) => sql.execute(pool).await.map(|done| done.rows_affected()),
        }
    }

    /// Runs statements that must succeed.
    pub(crate) async fn run(&self, sql: &str) -> u64 {
        let done = self.try_run(sql).await;
        done.unwrap_or_else(|refused| panic!("{}: {sql}: {refused}", self.name))
    }

    /// The rows of a query: a line each, its values as text, nothing for null.
    pub(crate) async fn lines(&self, sql: &str) -> Vec<String> {
        fn line<'r, R: Row>(row: &'r R) -> String
        where
            usize: sqlx::ColumnIndex<R>,
            Option<String>: sqlx::Decode<'r, R::Database>,
        {
            let value = |n| row.try_get_unchecked::<Option<String>, _>(n).unwrap();
            let values = (0..row.len()).map(|n| value(n).unwrap_or_default());
            values.collect::<Vec<_>>().join("|")
        }
        let sql = sqlx::raw_sql(AssertSqlSafe(sql));
        match &self.sql {
            Sql::Postgres(pool) => pool
                .fetch_all(sql)
                .await
                .unwrap()
                .iter()
                .map(line)
                .collect(),
            Sql::Sqlite(pool) => pool
                .fetch_all(sql)
                .await
                .unwrap()
                .iter()
                .map(line)
                .collect(),
        }
    }

    /// The library's store on other tables of this database.
    pub(crate) fn store_in(&self, tables: Tables) -> Arc<dyn Store> {
        match &self.sql {
            Sql::Postgres(pool) => Arc::new(PostgresStore::with_tables(pool.clone(), tables)),
            Sql::Sqlite(pool) => Arc::new(SqliteStore::with_tables(pool.clone(), tables)),
        }
    }

    /// A literal of bytes.
    pub(crate) fn bytes(&self, hex: &str) -> String {
        match self.sql {
            Sql::Postgres(_) => format!("'\\x{hex}'"),
            Sql::Sqlite(_) => format!("x'{hex}'"),
        }
    }

    /// What a relay reads.
    pub(crate) async fn claim(&self) -> Vec<OutboxRecord> {
        let relay = Relay::new(None);
        let term = Duration::from_secs(60);
        let leases = self.store.lease(&relay, term).await.unwrap();
        let claim = Claim {
            relay: &relay,
            leases: &leases,
            limit: 1_000,
            in_flight: &[],
            ordered: true,
            dead_letters_block: false,
        };
        let records = self.store.claim(&claim).await.unwrap().records;
        self.store.release(&relay).await.unwrap();
        records
    }

    /// Runs one round of a projector on `bus`.
    async fn round<B: Publisher>(&self, bus: B) -> Batch {
        let settings = ProjectorSettings::default();
        let projector = Projector::new(self.store.clone(), Arc::new(bus), settings);
        projector.run_once().await.unwrap()
    }
}

/// A bus that answers by a function of the record.
struct Bus<F>(F);

#[async_trait]
impl<F: Fn(&OutboxRecord) -> Outcome + Send + Sync + 'static> Publisher for Bus<F> {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        batch.iter().map(&self.0).collect()
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

/// The columns that a writer may name, in the order of the contract.
const WRITERS: &str = "id, seq, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, \
                       payload, data, content_type, key_id, headers, occurred_at, created_at, available_at";

/// The columns of the view that tell the state.
const STATE: &str = "status, retry_cnt, retry_at, error_message, sent_at";

const ID: &str = "0191d7f0-0000-7000-8000-00000000000b";

/// An expression that tells whether a column has a value.
fn is_there(column: &str) -> String {
    format!("case when {column} is null then 'no' else 'yes' end")
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[tokio::test]
async fn only_type_and_payload_or_data_must_be_given() {
    for db in migrated().await {
        let data = db.bytes("00ff");
        db.run("insert into outbox (type, payload) values ('order.created', '{\"n\": 1}')")
            .await;
        db.run(&format!(
            "insert into outbox (type, data) values ('blob.made', {data})"
        ))
        .await;
        let rows = format!(
            "select type, tenant_id, aggregate_type, aggregate_id, schema_id, schema_ver, payload, {},
                    content_type, key_id, headers, {STATE} from outbox_events order by seq",
            is_there("data")
        );
        let expected = [
            "order.created|default||||1|{\"n\": 1}|no|application/json||{}|NEW|0|||",
            "blob.made|default||||1||yes|application/json||{}|NEW|0|||",
        ];
        assert_eq!(db.lines(&rows).await, expected, "{}", db.name);

        let records = db.claim().await;
        assert_eq!(records[0].payload, &b"{\"n\": 1}"[..]);
        assert_eq!(records[1].payload, &[0, 255][..]);
        assert_eq!([records[0].is_json, records[1].is_json], [true, false]);
        assert_ne!(records[0].id, records[1].id);
        let now = Timestamp::now();
        for record in &records {
            assert_eq!(record.id.get_version_num(), 4, "{}", db.name);
            for time in [record.occurred_at, record.created_at, record.available_at] {
                assert!(
                    time <= now && time.until(now).as_secs() < 60,
                    "{}: {time}",
                    db.name
                );
            }
        }
    }
}

#[tokio::test]
async fn a_writer_may_set_every_column_but_the_number() {
    for db in migrated().await {
        let columns = WRITERS.replace(" seq,", "").replace(" payload,", "");
        db.run(&format!(
            "insert into outbox ({columns}) values ('{ID}', 'acme', 'order', 'A''7', 'order.paid', 'urn:s', 3,
                {}, 'application/x-own', 'key-1', '{{ \"traceparent\" : \"x\" }}',
                '1969-07-20T20:17:40.123456Z', '2013-01-01T05:17:00Z', '2013-01-02T00:00:00Z')",
            db.bytes("07")
        ))
        .await;
        let record = db.claim().await.remove(0);
        let texts = [
            record.id.to_string(),
            record.ordering_key().unwrap().to_string(),
            record.event_type,
            record.schema_id.unwrap(),
            record.schema_version.to_string(),
            record.content_type,
            record.key_id.unwrap(),
            record.headers,
            record.occurred_at.to_string(),
            record.created_at.to_string(),
            record.available_at.to_string(),
        ];
        let expected = [
            ID,
            "acme/order/A'7",
            "order.paid",
            "urn:s",
            "3",
            "application/x-own",
            "key-1",
            "{ \"traceparent\" : \"x\" }",
            "1969-07-20T20:17:40.123456Z",
            "2013-01-01T05:17:00.000000Z",
            "2013-01-02T00:00:00.000000Z",
        ];
        assert_eq!(texts, expected, "{}", db.name);
        assert_eq!((record.payload, record.is_json), (vec![7].into(), false));
    }
}

#[tokio::test]
async fn the_database_refuses_an_id_twice_unless_told_to_skip_it() {
    for db in migrated().await {
        let row =
            format!("insert into outbox (id, type, payload) values ('{ID}', 'order.paid', '1')");
        let skipping = format!("{row} on conflict (id) do nothing");
        let returned = db.lines(&format!("{skipping} returning id, seq")).await;
        assert_eq!(returned, [format!("{ID}|1")], "{}", db.name);
        assert_eq!(db.run(&skipping).await, 0);
        let refused = db.try_run(&row).await.unwrap_err();
        assert!(
            refused.as_database_error().unwrap().is_unique_violation(),
            "{}",
            db.name
        );

        db.run("insert into outbox (type, payload) values ('a', '1'), ('b', '2'), ('c', '3')")
            .await;
        let records = db.claim().await;
        let types: Vec<&str> = records
            .iter()
            .map(|record| record.event_type.as_str())
            .collect();
        assert_eq!(types, ["order.paid", "a", "b", "c"]);
    }
}

#[tokio::test]
async fn what_a_writer_rolls_back_is_never_read() {
    for db in migrated().await {
        db.run("begin; insert into outbox (type, payload) values ('a', '1'); rollback")
            .await;
        assert_eq!(db.claim().await.len(), 0, "{}", db.name);
    }
}

#[tokio::test]
async fn the_view_has_the_writers_columns_and_the_state_and_is_read_only() {
    for db in migrated().await {
        db.run("insert into outbox (type, payload) values ('a', '1')")
            .await;
        let names = match db.sql {
            Sql::Postgres(_) => {
                "select column_name from information_schema.columns where table_name = 'outbox_events'
                 order by ordinal_position"
            }
            Sql::Sqlite(_) => "select name from pragma_table_info('outbox_events') order by cid",
        };
        let names = db.lines(names).await.join(", ");
        assert_eq!(names, format!("{WRITERS}, {STATE}"), "{}", db.name);
        for write in [
            "insert into outbox_events (type, payload) values ('b', '1')",
            "update outbox_events set status = 'SENT'",
            "delete from outbox_events",
        ] {
            assert!(db.try_run(write).await.is_err(), "{}: {write}", db.name);
        }
        assert_eq!(db.lines("select status from outbox_events").await, ["NEW"]);
    }
}

#[tokio::test]
async fn the_view_follows_the_delivery() {
    for db in migrated().await {
        db.run(
            "insert into outbox (type, payload, aggregate_id)
             values ('good', '1', 'a'), ('refused', '1', 'b'), ('hopeless', '1', 'c'), ('behind', '1', 'b')",
        )
        .await;
        let answer = |record: &OutboxRecord| match record.event_type.as_str() {
            "refused" => Outcome::rejected(RejectionClass::Message, "not today"),
            "hopeless" => Outcome::rejected(RejectionClass::Permanent, "never"),
            _ => Outcome::Acked,
        };
        let batch = db.round(Bus(answer)).await;
        assert_eq!(
            (batch.sent, batch.retried, batch.dead),
            (1, 1, 1),
            "{}",
            db.name
        );
        let rows = format!(
            "select type, status, retry_cnt, {}, error_message, {} from outbox_events order by seq",
            is_there("retry_at"),
            is_there("sent_at")
        );
        let expected = [
            "good|SENT|0|no||yes",
            "refused|NEW|1|yes|not today|no",
            "hopeless|ERR|1|no|never|no",
            "behind|NEW|0|no||no",
        ];
        assert_eq!(db.lines(&rows).await, expected, "{}", db.name);
    }
}

#[tokio::test]
async fn a_payload_is_read_byte_for_byte() {
    let payloads = [
        "{ \"b\" : 1e400, \"a\":\"\\u0000\", \"a\" : 2 }",
        "\n\t[1,\r\n 2]  ",
        "\"\\ud83d\\ude00 \u{1f600} \u{e9} ' \\\" \\\\ / \\/\"",
        "null",
        "-0.0",
        "123456789012345678901234567890.000000000000000000001",
    ];
    for db in migrated().await {
        for payload in payloads.map(quoted) {
            db.run(&format!(
                "insert into outbox (type, payload) values ('a', {payload})"
            ))
            .await;
        }
        for hex in ["", "00", "ff00fe", "7b7d"] {
            let data = db.bytes(hex);
            db.run(&format!(
                "insert into outbox (type, data) values ('a', {data})"
            ))
            .await;
        }
        let records = db.claim().await;
        let read: Vec<&[u8]> = records.iter().map(|record| &record.payload[..]).collect();
        let data: [&[u8]; 4] = [b"", b"\0", b"\xff\0\xfe", b"{}"];
        let written: Vec<&[u8]> = payloads
            .iter()
            .map(|text| text.as_bytes())
            .chain(data)
            .collect();
        assert_eq!(read, written, "{}", db.name);
        let shown = "select payload from outbox_events where payload is not null order by seq";
        assert_eq!(db.lines(shown).await, payloads, "{}", db.name);
    }
}

/// Each with the columns and values that are refused, besides a type and a payload that are fine.
const REFUSED: [(&str, &[&str]); 12] = [
    (
        "tenant_id",
        &[
            "''",
            "' '",
            "'a b'",
            "'a/../b'",
            "'*'",
            "'>'",
            "'%'",
            "'a''b'",
            "'.a'",
            "'-a'",
            "'\u{e4}'",
            "'a\nb'",
            "'x123456789012345678901234567890123456789012345678901234567890abcde'",
            "null",
        ],
    ),
    (
        "headers",
        &["'[]'", "'\"x\"'", "'1'", "'null'", "'{'", "''", "null"],
    ),
    ("occurred_at", TIMES),
    ("created_at", TIMES),
    ("available_at", TIMES),
    ("status", &["'sent'", "'SENT '", "'DONE'", "''", "null"]),
    ("schema_ver", &["-1", "null"]),
    ("retry_cnt", &["-1", "null"]),
    ("aggregate_type", &["''"]),
    ("aggregate_id", &["''"]),
    ("content_type", &["''", "'a\nb'", "null"]),
    ("id", &["'not-an-id'", "''", "null"]),
];

const TIMES: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'10000-01-01T00:00:00Z'",
    "'0000-12-31T00:00:00Z'",
    "'nonsense'",
    "''",
    "null",
];

/// The types that are refused, and the payloads.
const REFUSED_TYPES: [&str; 5] = ["null", "''", "'a b'", "'a\nb'", "'\u{e4}'"];
const REFUSED_PAYLOADS: [&str; 8] = [
    "null",
    "'{'",
    "''",
    "'{a:1}'",
    "'NaN'",
    "'[1,]'",
    "'1 2'",
    "'{''a'':1}'",
];

#[tokio::test]
async fn what_no_bus_could_carry_is_refused_in_the_writers_transaction() {
    for db in migrated().await {
        let fine = |(column, values): (&'static str, &'static [&'static str])| {
            let columns = format!("type, payload, {column}");
            values
                .iter()
                .map(move |value| (columns.clone(), format!("'a', '1', {value}")))
        };
        let refused = REFUSED
            .into_iter()
            .flat_map(fine)
            .chain(REFUSED_TYPES.map(|t| ("type, payload".into(), format!("{t}, '1'"))))
            .chain(REFUSED_PAYLOADS.map(|p| ("type, payload".into(), format!("'a', {p}"))))
            .chain([
                ("payload".into(), "'1'".into()),
                ("type".into(), "'a'".into()),
                (
                    "type, payload, data".into(),
                    format!("'a', '1', {}", db.bytes("00")),
                ),
            ]);
        for (columns, values) in refused {
            let row = format!("insert into outbox ({columns}) values ({values})");
            assert!(db.try_run(&row).await.is_err(), "{} took {row}", db.name);
        }
        assert_eq!(db.lines("select count(*) from outbox").await, ["0"]);
    }
}

/// What the table takes and a bus cannot is a dead letter that says why; its neighbours go out.
#[tokio::test]
async fn headers_that_are_not_flat_make_a_dead_letter_and_hold_nobody_up() {
    for db in migrated().await {
        for headers in [
            "{}",
            "{\"a\": {\"b\": 1}}",
            "{\"a\": \"b\"}",
            "{\"a\": 1}",
            "{\"a b\": \"c\"}",
        ] {
            db.run(&format!(
                "insert into outbox (type, payload, headers) values ('a', '1', '{headers}')"
            ))
            .await;
        }
        let answer = |record: &OutboxRecord| match record.headers() {
            Ok(_) => Outcome::Acked,
            Err(error) => Outcome::rejected(RejectionClass::Permanent, error.report()),
        };
        let batch = db.round(Bus(answer)).await;
        assert_eq!((batch.sent, batch.dead), (2, 3), "{}", db.name);
        let reasons = "select error_message from outbox_events where status = 'ERR'";
        for reason in db.lines(reasons).await {
            assert!(reason.contains("header"), "{}: {reason}", db.name);
        }
    }
}
