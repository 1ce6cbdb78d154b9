//! What servers and their settings may be like.

use std::io::Write;
use std::process::{Command, Stdio};

use bento_outbox_conformance::servers::mariadb::FAST;
use bento_outbox_conformance::servers::{MariaDbServer, shared_mariadb};
use sqlx::mysql::MySqlPoolOptions;

use super::*;
use crate::chaos::program;
use crate::migrations::VERSIONS;

/// A unit of 20,000 events, one event that fills a packet, and one that does not fit into it.
#[tokio::test]
async fn an_append_is_as_large_as_packets_allow() {
    let server = MariaDbServer::start_with(&[FAST, &[("max_allowed_packet", "4M")]].concat()).await;
    let database = server.database().await;
    let store = MySqlStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let outbox = Outbox::new(store.clone());
    let with = |bytes: usize| Event::new("a", Payload::Data(vec![7; bytes].into()));
    let fits = with((4 << 20) - 2_000);
    outbox
        .run(async |_| {
            for n in 0..20_000 {
                raise(of(&n.to_string()))?;
            }
            raise(fits.clone())
        })
        .await
        .unwrap();
    let found = store.find(&[fits.id]).await.unwrap();
    assert!(found[0].payload == fits.payload.as_bytes());
    assert_eq!(
        number(store.pool(), "select count(*) from outbox").await,
        20_001
    );

    let too_large = outbox
        .run(async |_| {
            raise(event())?;
            raise(with((4 << 20) + 1))
        })
        .await;
    let error = too_large.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidEvent);
    assert!(
        error.report().contains("max_allowed_packet is 4194304"),
        "{error:?}"
    );
    assert_eq!(
        number(store.pool(), "select count(*) from outbox").await,
        20_001
    );
    outbox.run(async |_| raise(event())).await.unwrap();
}

/// Sessions of our own pool are strict, whatever the server's mode is; and who looks is told.
#[tokio::test]
async fn a_lax_server_is_told_of_and_our_sessions_are_strict() {
    let lax = [("sql_mode", ""), ("innodb_flush_log_at_trx_commit", "2")];
    let server = MariaDbServer::start_with(&[FAST, &lax].concat()).await;
    let database = server.database().await;
    let store = MySqlStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    store.check().await.unwrap();
    let mode: String = sqlx::query_scalar("select @@session.sql_mode")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert!(mode.contains("STRICT_TRANS_TABLES"), "{mode}");
    let inspection = store.inspect().await.unwrap();
    let found: Vec<&str> = inspection
        .cautions
        .iter()
        .map(|caution| &caution.found[..])
        .collect();
    for word in ["sql_mode is not strict", "innodb_flush_log_at_trx_commit"] {
        assert!(found.iter().any(|found| found.contains(word)), "{found:?}");
    }
    let server = inspection.server.unwrap();
    assert!(server.starts_with("MariaDB 10."), "{server}");
    assert_eq!(inspection.missing.len() + inspection.forbidden.len(), 0);

    let sound = shared_mariadb().database().await;
    let sound = MySqlStore::open(sound.url(), Tables::default())
        .await
        .unwrap();
    sound.migrate().await.unwrap();
    let found = sound.inspect().await.unwrap().cautions;
    assert!(
        !found.iter().any(|caution| caution.found.contains("strict")),
        "{found:?}"
    );
}

/// Sessions and servers in which nothing would be committed, settled or replicated soundly.
#[tokio::test]
async fn what_could_not_keep_the_promises_is_refused() {
    let log = [("log_bin", "log"), ("binlog_format", "ROW")];
    let server = MariaDbServer::start_with(&[FAST, &log].concat()).await;
    let database = server.database().await;
    let open = async |url: &str| MySqlStore::open(url, Tables::default()).await.unwrap();
    let refused = async |store: &MySqlStore, words: &str| {
        let error = store.check().await.unwrap_err();
        assert!(error.report().contains(words), "{error:?}");
        error.kind()
    };
    let store = open(database.url()).await;
    store.migrate().await.unwrap();
    store.check().await.unwrap();

    run(store.pool(), "set global binlog_format = STATEMENT").await;
    let says = "binlog_format is STATEMENT";
    let by_statements = open(database.url()).await;
    assert_eq!(refused(&by_statements, says).await, ErrorKind::Schema);
    let error = by_statements.migrate().await.unwrap_err();
    assert!(error.report().contains(says), "{error:?}");
    run(store.pool(), "set global binlog_format = MIXED").await;
    open(database.url()).await.check().await.unwrap();

    let options = MySqlPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            sqlx::raw_sql("set autocommit = 0")
                .execute(connection)
                .await
                .map(drop)
        })
    });
    let pool = options.connect(database.url()).await.unwrap();
    assert_eq!(
        refused(&MySqlStore::new(pool), "autocommit is off").await,
        ErrorKind::Schema
    );

    let name = database.name();
    run(
        store.pool(),
        &format!(
            "create user reader; grant select on {name}.* to reader; create user writer; grant all on {name}.* to writer"
        ),
    )
    .await;
    let as_user = |user: &str| database.url().replace("root@", &format!("{user}@"));
    let reader = open(&as_user("reader")).await;
    assert_eq!(
        refused(&reader, "UPDATE command denied").await,
        ErrorKind::Database
    );
    let forbidden = reader.inspect().await.unwrap().forbidden;
    assert_eq!(forbidden.len(), 18, "{forbidden:?}");
    assert!(
        forbidden.contains(&"update on outbox_leases".into()),
        "{forbidden:?}"
    );

    let writer = open(&as_user("writer")).await;
    writer.check().await.unwrap();
    assert_eq!(writer.inspect().await.unwrap().forbidden.len(), 0);
    run(store.pool(), "set global read_only = 1").await;
    assert_eq!(refused(&writer, "read-only").await, ErrorKind::Unavailable);
}

#[tokio::test]
async fn tables_that_are_not_ours_or_half_made_are_known() {
    let database = shared_mariadb().database().await;
    let store = MySqlStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    run(store.pool(), "create table outbox_leases (id int)").await;
    let error = store.migrate().await.unwrap_err();
    assert!(
        error
            .report()
            .contains("\"outbox_leases\" which bento-outbox did not make"),
        "{error:?}"
    );
    run(store.pool(), "drop table outbox_leases").await;
    assert_eq!(store.migrate().await.unwrap(), VERSIONS);

    // A server that died in the middle of a migration.
    run(store.pool(), "update outbox_migrations set success = false; drop table outbox_relays; drop view outbox_events").await;
    assert_eq!(kind(store.check().await), Err(ErrorKind::Schema));
    assert_eq!(store.migrate().await.unwrap(), VERSIONS);
    store.check().await.unwrap();
    assert_eq!(
        number(store.pool(), "select count(*) from outbox_events").await,
        0
    );

    let url = database.url().replace(database.name(), "");
    let nowhere = MySqlStore::open(&url, Tables::default()).await.map(drop);
    assert_eq!(kind(nowhere), Err(ErrorKind::InvalidSetting));
    let elsewhere = MySqlStore::open(&url, Tables::new(database.name(), "outbox").unwrap())
        .await
        .unwrap();
    elsewhere.check().await.unwrap();
}

/// The program, from an empty database to events in a file; and by SQL that another tool applies.
#[tokio::test]
async fn the_program_carries_from_it() {
    let database = shared_mariadb().database().await;
    let folder = tempfile::tempdir().unwrap();
    let url = database.url().replace("mysql:", "mariadb:");
    let run = |arguments: &[&str], input: &str| {
        let mut child = Command::new(program())
            .args(arguments)
            .current_dir(folder.path())
            .env("OUTBOX_DATABASE_URL", &url)
            .env("OUTBOX_BUS_URL", "file:events.jsonl")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let script = run(&["migrate", "--print"], "");
    let pool = MySqlPool::connect(database.url()).await.unwrap();
    super::run(&pool, &script).await;
    run(&["migrate"], "");
    run(
        &["append"],
        "{\"type\":\"a\",\"payload\":{ \"n\" : 1e400 }}\n{\"type\":\"a\",\"data\":\"AP8=\"}\n",
    );
    run(&["run", "--once"], "");
    let events = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
    assert_eq!(events.lines().count(), 2);
    assert!(events.contains("{ \"n\" : 1e400 }"), "{events}");
    let status = run(&["status", "--json"], "");
    assert!(status.contains("\"sent\":2"), "{status}");
    let doctor = run(&["doctor", "--json"], "");
    assert!(doctor.contains("MariaDB 10."), "{doctor}");
    assert_eq!(run(&["dead", "list"], ""), "");
}
