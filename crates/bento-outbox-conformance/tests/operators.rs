//! The operator's commands, as processes on a real PostgreSQL and a real NATS; and what a search reads.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use bento_outbox::stores::{MySqlStore, PostgresStore, Tables};
use bento_outbox::{Filter, Page, Status, Store};
use bento_outbox_conformance::servers::{NatsServer, shared_mariadb, shared_postgres};
use futures_util::TryStreamExt;
use serde_json::Value;
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use super::bus_nats::stream;

/// How long a command may take: far more than it needs.
const PATIENCE: Duration = Duration::from_secs(240);

fn program(database: &str, arguments: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap();
    let folder = this.parent().and_then(Path::parent).unwrap();
    let program: PathBuf = folder.join("bento-outbox");
    assert!(
        program.exists(),
        "{} is missing: cargo build -p bento-outbox-cli",
        program.display()
    );
    let mut command = Command::new(program);
    // The settings of whoever runs the tests are not ours.
    command
        .env_clear()
        .args(["--database-url", database])
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end: its code, and what it said on either side.
async fn ran(mut command: Command, input: &str) -> (Option<i32>, String, String) {
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
    let output = timeout(PATIENCE, child.wait_with_output());
    let output = output.await.expect("it ends").unwrap();
    let _ = writing.await;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

async fn succeeded(database: &str, arguments: &[&str], input: &str) -> String {
    let (code, stdout, stderr) = ran(program(database, arguments), input).await;
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout
}

/// What a message says: its id, whose it is, its place, and its body.
struct Arrived {
    id: String,
    subject: String,
    sequence: u64,
    body: String,
}

async fn arrived(nats: &NatsServer, expected: usize) -> Vec<Arrived> {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let stream = jetstream::new(client).get_stream("ORDERS").await.unwrap();
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let there = stream.get_info().await.unwrap().state.messages;
    assert_eq!(there, expected as u64);
    let messages = consumer.fetch().max_messages(expected).messages();
    let messages: Vec<_> = messages.await.unwrap().try_collect().await.unwrap();
    let read = |message: &jetstream::Message| {
        let headers = message.headers.as_ref().unwrap();
        let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
        Arrived {
            id: header("Nats-Msg-Id"),
            subject: header("ce-subject"),
            sequence: header("ce-sequence").parse().unwrap(),
            body: String::from_utf8(message.payload.to_vec()).unwrap(),
        }
    };
    messages.iter().map(read).collect()
}

#[tokio::test]
async fn a_replay_to_jetstream_keeps_ids_bytes_and_the_order_of_each_key() {
    let (database, nats) = (
        shared_postgres().database().await,
        NatsServer::start().await,
    );
    stream(&nats, "ORDERS", "order.>", |_| {}).await;
    let url = database.url();
    succeeded(url, &["migrate"], "").await;
    let line = |n: usize| {
        let key = n % 7;
        format!(
            "{{\"type\":\"order.paid\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{key}\",\"payload\":{{ \"n\": {n} }}}}\n"
        )
    };
    // More than a page.
    let events = 1_500;
    let lines: String = (0..events).map(line).collect();
    let appended = succeeded(url, &["append"], &lines).await;
    let ids: Vec<&str> = appended.lines().collect();
    succeeded(url, &["run", "--once", "--bus-url", "null:"], "").await;
    succeeded(url, &["append"], &line(events)).await;

    let bus = nats.url();
    let replay = [
        "--bus-url",
        &bus,
        "replay",
        "--type",
        "order.paid",
        "--yes",
        "--json",
    ];
    let report: Value = serde_json::from_str(&succeeded(url, &replay, "").await).unwrap();
    assert_eq!(
        (&report["published"], &report["end"]),
        (&events.into(), &"done".into())
    );
    let mut messages = arrived(&nats, events).await;
    for key in 0..7 {
        let key = key.to_string();
        let of_one = messages.iter().filter(|message| message.subject == key);
        assert!(
            of_one.is_sorted_by_key(|message| message.sequence),
            "order {key}"
        );
    }
    messages.sort_by_key(|message| message.sequence);
    for (n, (message, id)) in messages.iter().zip(&ids).enumerate() {
        assert_eq!(
            (message.id.as_str(), &message.body),
            (*id, &format!("{{ \"n\": {n} }}"))
        );
    }
    let state = "select count(*) from outbox_events where status = 'SENT' and retry_cnt = 0";
    let mut connection = PgConnection::connect(url).await.unwrap();
    let sent: i64 = sqlx::query_scalar(state)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(sent, 1_500, "nothing changes, and what was not sent is not");

    // No stream takes these: a person must look, and then it goes on.
    let lost = line(0).replace("order.paid", "lost.paid");
    succeeded(url, &["append"], &lost).await;
    succeeded(url, &["run", "--once", "--bus-url", "null:"], "").await;
    let lost = ["--bus-url", &bus, "replay", "--type", "lost.paid", "--yes"];
    let (code, stdout, stderr) = ran(program(url, &lost), "").await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(
        stderr.contains("error: the bus does not take event ")
            && stderr.contains(
                "0 of 1 were published; go on with `bento-outbox replay --type lost.paid --database-url "
            ),
        "{stderr}"
    );
}

#[tokio::test]
async fn what_commits_late_is_followed_as_well() {
    let database = shared_postgres().database().await;
    let url = database.url();
    succeeded(url, &["migrate"], "").await;
    let mut tail = program(url, &["tail", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let pool = PgPool::connect(url).await.unwrap();
    let insert = "insert into outbox (type, payload) values ('note', '1') returning id";
    let mut late = pool.begin().await.unwrap();
    let late_id: Uuid = sqlx::query_scalar(insert)
        .fetch_one(&mut *late)
        .await
        .unwrap();
    // It has begun when it tells of what comes after.
    let mut told = Vec::new();
    while told.is_empty() {
        sqlx::query(insert).execute(&pool).await.unwrap();
        if let Ok(line) = timeout(Duration::from_millis(700), lines.next_line()).await {
            told.push(line.unwrap().unwrap());
        }
    }
    assert!(!told[0].contains(&late_id.to_string()));
    late.commit().await.unwrap();
    let found = timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["id"] == late_id.to_string() {
                return line["change"] == "written";
            }
        }
        false
    });
    assert!(found.await.unwrap());
}

const MANY: i64 = 100_000;

/// What is looked for and how much of it there is, next to a hundred thousand sent ones.
fn searches(id: Uuid) -> [(Filter, usize); 5] {
    let with = |status| Filter {
        status: Some(status),
        ..Filter::default()
    };
    let of_a = Filter {
        aggregate_id: Some("a".into()),
        tenant: Some("default".parse().unwrap()),
        ..with(Status::New)
    };
    let by_id = Filter {
        ids: Some(vec![id]),
        ..Filter::default()
    };
    let recent = Filter {
        sent_since: Some("2013-02-01T00:00:00Z".parse().unwrap()),
        ..with(Status::Sent)
    };
    [
        (with(Status::New), 4),
        (with(Status::Err), 2),
        (of_a, 3),
        (by_id, 1),
        (recent, 1),
    ]
}

async fn search(store: &dyn Store, id: Uuid) {
    for (filter, expected) in searches(id) {
        for newest_first in [false, true] {
            let page = Page {
                newest_first,
                limit: 5,
                ..Page::default()
            };
            let found = store.events(&filter, &page).await.unwrap();
            assert_eq!(found.len(), expected, "{filter:?}");
        }
    }
    let standing = store.standing(id, true).await.unwrap().unwrap();
    assert!(standing.ahead.is_some());
}

/// The rows beside the many: two dead letters, and four new ones, of which one failed and one was
/// delayed; of one aggregate but for one. Answers the last one's id.
const FEW: &str = "insert into outbox (id, type, payload, aggregate_id, status, error_message, available_at) values
    ('00000000-0000-4000-8000-000000000001', 'a', '1', 'a', 'ERR', 'no', '2013-01-01 00:00:00'),
    ('00000000-0000-4000-8000-000000000002', 'a', '1', 'a', 'NEW', 'no', '2013-01-01 00:00:00'),
    ('00000000-0000-4000-8000-000000000003', 'a', '1', 'b', 'ERR', 'no', '2013-01-01 00:00:00'),
    ('00000000-0000-4000-8000-000000000004', 'a', '1', 'b', 'NEW', null, '2999-01-01 00:00:00'),
    ('00000000-0000-4000-8000-000000000005', 'a', '1', 'a', 'NEW', null, '2013-01-01 00:00:00'),
    ('00000000-0000-4000-8000-000000000006', 'a', '1', 'a', 'NEW', null, '2013-01-01 00:00:00')";
const LAST: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0006);

#[tokio::test]
async fn a_search_on_postgres_reads_what_it_looks_for() {
    let database = shared_postgres().database().await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect(database.url())
        .await
        .unwrap();
    let store = PostgresStore::with_tables(pool.clone(), Tables::default());
    store.migrate().await.unwrap();
    sqlx::query(
        "insert into outbox (type, payload, aggregate_id, status, sent_at)
         select 'a', '1', 'k' || n, 'SENT', '2013-01-01 00:00:00Z' from generate_series(1, $1) n",
    )
    .bind(MANY)
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query(FEW).execute(&pool).await.unwrap();
    let recent = "update outbox set sent_at = now() where seq = 50000";
    sqlx::query(recent).execute(&pool).await.unwrap();
    sqlx::query("analyze outbox").execute(&pool).await.unwrap();
    let watching = PgPool::connect(database.url()).await.unwrap();
    // A session tells of what it has read when it has been idle for a while.
    let scanned = async || {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        sqlx::query("select 1").execute(&pool).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let read = "select seq_tup_read from pg_stat_user_tables where relname = 'outbox'";
        let read: i64 = sqlx::query_scalar(read).fetch_one(&watching).await.unwrap();
        read
    };
    let before = scanned().await;
    search(&store, LAST).await;
    assert_eq!(scanned().await, before, "nothing is read from end to end");
    let all = Filter {
        event_type: Some("none".into()),
        ..Filter::default()
    };
    store.events(&all, &Page::default()).await.unwrap();
    assert!(scanned().await > before, "it would have been noticed");
}

#[tokio::test]
async fn a_search_on_mariadb_reads_what_it_looks_for() {
    let database = shared_mariadb().database().await;
    let pool = MySqlPoolOptions::new()
        .max_connections(1)
        .connect(database.url())
        .await
        .unwrap();
    let store = MySqlStore::with_tables(pool.clone(), Tables::default());
    store.migrate().await.unwrap();
    sqlx::query(
        "insert into outbox (type, payload, aggregate_id, status, sent_at)
         select 'a', '1', concat('k', seq), 'SENT', '2013-01-01 00:00:00' from seq_1_to_100000",
    )
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query(FEW).execute(&pool).await.unwrap();
    let recent = "update outbox set sent_at = utc_timestamp(6) where seq = 50000";
    sqlx::query(recent).execute(&pool).await.unwrap();
    sqlx::query("analyze table outbox")
        .execute(&pool)
        .await
        .unwrap();
    let read = async || {
        let read =
            "select cast(sum(variable_value) as signed) from information_schema.session_status
                    where variable_name like 'HANDLER_READ%'";
        sqlx::query_scalar::<_, i64>(read)
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    let before = read().await;
    search(&store, LAST).await;
    // Reading the status reads some hundred rows itself.
    let rows = read().await - before;
    assert!(rows < 3_000, "{rows} rows were read");
    let all = Filter {
        event_type: Some("none".into()),
        ..Filter::default()
    };
    store.events(&all, &Page::default()).await.unwrap();
    assert!(read().await - before > MANY, "it would have been noticed");
}
