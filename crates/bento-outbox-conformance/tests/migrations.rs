//! The tables come and stay in the version that the library knows, whoever makes them.

use std::time::Duration;

use bento_outbox::stores::{PostgresStore, SqliteStore, Tables};
use bento_outbox::{ErrorKind, Event, Outbox, Payload, Result, Store, raise};
use bento_outbox_conformance::servers::shared_postgres;
use bento_outbox_conformance::store::settling::missing_tables_are_named;
use sqlx::PgPool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool};
use tokio::time::timeout;

use crate::table::{Database, Sql, empty, migrated};

/// The migrations that there are.
pub(crate) const VERSIONS: [i64; 3] = [1, 2, 3];

/// So long a migration may wait for another one.
const PATIENCE: Duration = Duration::from_secs(120);

/// The error of a store whose tables do not fit, which says all of `words`.
fn refused<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema, "{error:?}");
    for word in words {
        assert!(
            error.report().contains(word),
            "{error:?} does not say {word:?}"
        );
    }
}

/// What the table of versions says of each version.
async fn versions(db: &Database) -> Vec<String> {
    let checksum = match db.sql {
        Sql::Postgres(_) => "encode(checksum, 'hex')",
        Sql::Sqlite(_) | Sql::MariaDb(_) => "lower(hex(checksum))",
    };
    let versions = format!(
        "select version, description, success, {checksum} from outbox_migrations order by version"
    );
    db.lines(&versions).await
}

#[tokio::test]
async fn a_second_migration_has_nothing_to_do() {
    for db in empty().await {
        missing_tables_are_named(&*db.store).await;
        assert_eq!(db.store.migrate().await.unwrap(), VERSIONS, "{}", db.name);
        db.store.check().await.unwrap();
        db.run("insert into outbox (type, payload) values ('a', '1')")
            .await;
        assert_eq!(db.store.migrate().await.unwrap(), [0; 0], "{}", db.name);
        assert_eq!(db.claim().await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_at_the_same_time_take_turns() {
    for _ in 0..5 {
        for db in empty().await {
            let migrate = |_| {
                let store = db.store_in(Tables::default());
                tokio::spawn(async move { store.migrate().await })
            };
            let all = futures_util::future::try_join_all((0..6).map(migrate));
            let done = timeout(PATIENCE, all)
                .await
                .expect("no migration waits for ever");
            let applied: Result<Vec<_>> = done.unwrap().into_iter().collect();
            let applied = applied.unwrap().concat();
            assert!(
                VERSIONS.iter().all(|version| applied.contains(version)),
                "{}",
                db.name
            );
            assert_eq!(versions(&db).await.len(), VERSIONS.len(), "{}", db.name);
            db.store.check().await.unwrap();
        }
    }
}

#[tokio::test]
async fn tables_of_other_names_live_side_by_side() {
    for db in migrated().await {
        let other = db.store_in(Tables::new("crm", "letters").unwrap());
        assert_eq!(other.migrate().await.unwrap(), VERSIONS, "{}", db.name);
        let table = match db.sql {
            Sql::Postgres(_) | Sql::MariaDb(_) => "crm.letters",
            Sql::Sqlite(_) => "letters",
        };
        db.run(&format!(
            "insert into {table} (type, payload) values ('a', '1')"
        ))
        .await;
        let states = [
            other.status().await.unwrap(),
            db.store.status().await.unwrap(),
        ];
        assert_eq!(states.map(|tenants| tenants.len()), [1, 0], "{}", db.name);
        other.check().await.unwrap();
        db.store.check().await.unwrap();
    }
}

/// Tables of an earlier version go on with all that is in them.
#[tokio::test]
async fn an_older_outbox_is_upgraded_in_place() {
    for db in migrated().await {
        db.run("insert into outbox (type, payload) values ('a', '1')")
            .await;
        // As the versions before left it.
        db.run(
            "drop table outbox_pauses; drop table outbox_audit;
             delete from outbox_migrations where version > 2",
        )
        .await;
        refused(db.store.check().await, &["older", "bento-outbox migrate"]);
        assert_eq!(db.store.migrate().await.unwrap(), [3], "{}", db.name);
        db.store.check().await.unwrap();
        assert_eq!(db.claim().await.len(), 1, "{}", db.name);
    }
}

/// For people with a migration tool of their own.
#[tokio::test]
async fn the_printed_script_leaves_what_a_migration_leaves() {
    for (db, other) in empty().await.into_iter().zip(migrated().await) {
        db.run(&db.store.migrations()).await;
        db.store.check().await.unwrap();
        assert_eq!(versions(&db).await, versions(&other).await, "{}", db.name);
        assert_eq!(db.store.migrate().await.unwrap(), [0; 0], "{}", db.name);
        db.run("insert into outbox (type, payload) values ('a', '1')")
            .await;
        assert_eq!(db.claim().await.len(), 1);
    }
}

/// A migration that is refused must not leave its lock behind.
#[tokio::test]
async fn tables_of_another_version_are_refused() {
    let migrate = async |db: &Database| {
        let done = timeout(PATIENCE, db.store.migrate()).await;
        done.expect("no migration waits for ever")
    };
    for db in migrated().await {
        db.run(
            "insert into outbox_migrations (version, description, success, checksum, execution_time)
             select 99, 'later', success, checksum, 0 from outbox_migrations where version = 1",
        )
        .await;
        for _ in 0..4 {
            refused(migrate(&db).await, &["version 99", "newer", "upgrade"]);
        }
        refused(db.store.check().await, &["version 99", "newer", "upgrade"]);

        db.run("delete from outbox_migrations where version = 99")
            .await;
        db.run(&format!(
            "update outbox_migrations set checksum = {} where version = 1",
            db.bytes("00")
        ))
        .await;
        for _ in 0..4 {
            refused(migrate(&db).await, &["migration 1", "another text"]);
        }

        db.run("delete from outbox_migrations where version > 1")
            .await;
        refused(
            db.store.check().await,
            &["version 1", "older", "bento-outbox migrate"],
        );
    }
}

/// What was there before stays, and each step's tables must be nobody else's.
#[tokio::test]
async fn tables_of_the_first_version_are_upgraded() {
    for db in migrated().await {
        db.run("insert into outbox (type, payload) values ('a', '1')")
            .await;
        // As the first version left them, but for a table of the user's own that is in the way.
        db.run("delete from outbox_migrations where version > 1")
            .await;
        db.run("drop table outbox_commands; drop table outbox_pauses; drop table outbox_audit")
            .await;
        refused(
            db.store.migrate().await,
            &["which bento-outbox did not make"],
        );
        db.run("drop table outbox_inbox").await;
        assert_eq!(
            db.store.migrate().await.unwrap(),
            VERSIONS[1..],
            "{}",
            db.name
        );
        db.store.check().await.unwrap();
        assert_eq!(db.claim().await.len(), 1);
        db.run("insert into outbox_inbox (consumer, message_id) values ('bills', '1')")
            .await;
        let lines = "select consumer, tenant_id, message_id from outbox_inbox where received_at is not null";
        assert_eq!(db.lines(lines).await.len(), 1, "{}", db.name);
        for (consumer, message) in [("bills", "1"), ("", "1"), ("bills", "")] {
            let row = format!(
                "insert into outbox_inbox (consumer, message_id) values ('{consumer}', '{message}')"
            );
            assert!(db.try_run(&row).await.is_err(), "{}: {row}", db.name);
        }
    }
}

/// A role with rights in the schema and none on the database is the usual one.
#[tokio::test]
async fn a_role_that_may_not_create_schemas_migrates_the_one_there_is() {
    let database = shared_postgres().database().await;
    let owner = PgPool::connect(database.url()).await.unwrap();
    let role = database.name();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "create role {role} login; create schema app; grant all on schema app to {role}"
    )))
    .execute(&owner)
    .await
    .unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let store = PostgresStore::open(&url, Tables::new("app", "outbox").unwrap())
        .await
        .unwrap();
    assert_eq!(store.migrate().await.unwrap(), VERSIONS);
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_journal_that_is_not_wal_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("outbox.db"))
        .journal_mode(SqliteJournalMode::Delete)
        .create_if_missing(true);
    let store = SqliteStore::new(SqlitePool::connect_with(options).await.unwrap());
    refused(
        store.migrate().await,
        &["journal mode is delete", "pragma journal_mode = wal"],
    );
    refused(
        store.check().await,
        &["journal mode is delete", "pragma journal_mode = wal"],
    );
}

#[tokio::test]
async fn a_file_that_is_missing_or_read_only_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/outbox.db", folder.path().display());
    let missing = SqliteStore::open(&url, Tables::default()).await;
    refused(
        missing.map(drop),
        &["outbox.db is not there", "bento-outbox migrate"],
    );

    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let read_only = SqliteStore::open(&format!("{url}?mode=ro"), Tables::default())
        .await
        .unwrap();
    let outbox = Outbox::new(read_only.clone());
    let unit = outbox.run(async |_| raise(Event::new("a", Payload::json("1")?)));
    for error in [read_only.check().await, unit.await] {
        let error = error.expect_err("the file can only be read");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        assert!(error.report().contains("readonly"), "{error:?}");
    }

    let nowhere = format!("sqlite://{}/no/outbox.db", folder.path().display());
    let store = SqliteStore::open_or_create(&nowhere, Tables::default())
        .await
        .unwrap();
    let error = store.migrate().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}
