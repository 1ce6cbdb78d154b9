//! The servers start, crash, come back and freeze as tests need it, and none is ever left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bento_outbox_conformance::servers::postgres::FAST;
use bento_outbox_conformance::servers::{
    NatsServer, PostgresServer, RabbitMqServer, RedisServer, answers, find_program, free_port,
    shared_nats, shared_postgres,
};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// So long a test watches that nothing happens.
const SILENCE: Duration = Duration::from_millis(300);
/// So long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test]
async fn each_database_of_the_shared_postgres_is_its_own() {
    let (one, two) = tokio::join!(shared_postgres().database(), shared_postgres().database());
    assert_ne!(one.name(), two.name());
    for database in [one, two] {
        let mut connection = PgConnection::connect(database.url())
            .await
            .expect("a connection");
        sqlx::query("CREATE TABLE same_name (id int)")
            .execute(&mut connection)
            .await
            .expect("a table");
        let name: String = sqlx::query_scalar("SELECT current_database()::text")
            .fetch_one(&mut connection)
            .await
            .expect("a name");
        assert_eq!(name, database.name());
    }
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_before_a_crash_and_nothing_else() {
    let server = PostgresServer::start().await;
    let mut client = PgConnection::connect(&server.url())
        .await
        .expect("a connection");
    let fsync: String = sqlx::query_scalar("SHOW fsync")
        .fetch_one(&mut client)
        .await
        .expect("a setting");
    assert_eq!(fsync, "on");
    for sql in [
        "CREATE TABLE t (id int)",
        "INSERT INTO t VALUES (1)",
        "BEGIN",
        "INSERT INTO t VALUES (2)",
    ] {
        sqlx::raw_sql(sql).execute(&mut client).await.expect(sql);
    }

    let (url, port) = (server.url(), server.port());
    server.kill();
    assert!(!server.is_running());
    assert!(!answers(port, b"", b""), "nobody listens any more");
    assert!(sqlx::query("SELECT 1").execute(&mut client).await.is_err());

    server.restart().await;
    assert_eq!(server.url(), url);
    let mut client = PgConnection::connect(&url).await.expect("a connection");
    let ids: Vec<i32> = sqlx::query_scalar("SELECT id FROM t")
        .fetch_all(&mut client)
        .await
        .expect("rows");
    assert_eq!(ids, [1]);
}

#[tokio::test]
async fn postgres_stops_in_order_while_clients_are_there() {
    let server = PostgresServer::start_with(FAST).await;
    let _client = PgConnection::connect(&server.url())
        .await
        .expect("a connection");
    server.stop().await;
    assert!(!server.is_running());
    assert!(
        server.log_tail().contains("database system is shut down"),
        "{}",
        server.log_tail()
    );
    server.restart().await;
    assert!(server.is_running());
}

#[tokio::test]
async fn a_paused_postgres_answers_nobody_until_it_is_resumed() {
    let server = PostgresServer::start_with(FAST).await;
    let mut client = PgConnection::connect(&server.url())
        .await
        .expect("a connection");
    server.pause();
    assert!(server.is_running());
    let mut query = Box::pin(sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&mut client));
    assert!(
        timeout(SILENCE, &mut query).await.is_err(),
        "an open connection must not be answered"
    );
    let connect = timeout(SILENCE, PgConnection::connect(&server.url())).await;
    assert!(connect.is_err(), "a new connection must not be answered");

    server.resume();
    assert_eq!(
        timeout(PATIENCE, query)
            .await
            .expect("an answer in time")
            .expect("an answer"),
        1
    );
}

#[tokio::test]
async fn jetstream_keeps_its_stream_over_a_crash() {
    let server = NatsServer::start().await;
    let client = jetstream_with_a_stream(&server).await;
    client
        .publish("s.one", "hello".into())
        .await
        .expect("sent")
        .await
        .expect("stored");

    server.restart().await;
    let client = jetstream::new(
        async_nats::connect(server.url())
            .await
            .expect("a connection"),
    );
    let stream = client.get_stream("s").await.expect("the stream");
    let message = stream.get_raw_message(1).await.expect("the message");
    assert_eq!(&message.payload[..], b"hello");
}

#[tokio::test]
async fn a_paused_nats_answers_nobody_until_it_is_resumed() {
    let server = NatsServer::start().await;
    let client = jetstream_with_a_stream(&server).await;
    server.pause();
    let stream = client.get_stream("s");
    tokio::pin!(stream);
    let answer = timeout(SILENCE, &mut stream).await;
    assert!(answer.is_err(), "a request must not be answered");

    server.resume();
    let answer = timeout(PATIENCE, stream).await;
    answer.expect("an answer in time").expect("the stream");
}

async fn jetstream_with_a_stream(server: &NatsServer) -> jetstream::Context {
    let client = async_nats::connect(server.url())
        .await
        .expect("a connection");
    let client = jetstream::new(client);
    let config = jetstream::stream::Config {
        name: "s".into(),
        subjects: vec!["s.>".into()],
        ..Default::default()
    };
    client.create_stream(config).await.expect("a stream");
    client
}

/// One server for all of it: its start takes many seconds.
#[tokio::test]
async fn rabbitmq_crashes_freezes_and_comes_back_with_its_messages_and_leaves_nothing() {
    let server = RabbitMqServer::start_with("", "").await;
    let folder = server.folder().to_owned();
    let url = server.url();
    let connect = || lapin::Connection::connect(&url, Default::default());
    let channel = connect()
        .await
        .expect("a connection")
        .create_channel()
        .await;
    let channel = channel.expect("a channel");
    let durable = lapin::options::QueueDeclareOptions::durable();
    let queue = channel.queue_declare("q".into(), durable, Default::default());
    queue.await.expect("a queue");
    let select = channel.confirm_select(Default::default());
    select.await.expect("confirmations");
    let persistent = lapin::BasicProperties::default().with_delivery_mode(2);
    let sent = channel.basic_publish(
        "".into(),
        "q".into(),
        Default::default(),
        b"hello",
        persistent,
    );
    let confirmed = sent.await.expect("sent").await.expect("an answer");
    assert!(confirmed.is_ack());

    server.kill();
    assert_eq!(processes_in(&folder), Vec::<String>::new());
    server.restart().await;
    let channel = connect()
        .await
        .expect("a connection")
        .create_channel()
        .await;
    let channel = channel.expect("a channel");
    let got = channel.basic_get("q".into(), Default::default()).await;
    let got = got.expect("an answer").expect("the message");
    assert_eq!(got.delivery.data, b"hello");

    server.pause();
    let silent = timeout(SILENCE, connect()).await;
    assert!(silent.is_err(), "a new connection must not be answered");
    server.resume();
    let connected = timeout(PATIENCE, connect()).await;
    connected.expect("an answer in time").expect("a connection");

    server.stop().await;
    assert!(!server.is_running());
    drop(server);
    assert_eq!(processes_in(&folder), Vec::<String>::new());
    assert!(!folder.exists());
}

#[tokio::test]
async fn redis_keeps_what_it_synced_over_a_crash() {
    let server = RedisServer::start().await;
    assert!(answers(server.port(), b"SET a 1\r\n", b"+OK"));
    server.kill();
    assert!(!answers(server.port(), b"", b""), "nobody listens any more");
    server.restart().await;
    assert!(answers(server.port(), b"GET a\r\n", b"$1\r\n1\r\n"));
}

#[tokio::test]
async fn a_dropped_server_leaves_neither_process_nor_folder() {
    let server = PostgresServer::start_with(FAST).await;
    let folder = server.folder().to_owned();
    assert!(!processes_in(&folder).is_empty());
    drop(server);
    assert_eq!(processes_in(&folder), Vec::<String>::new());
    assert!(!folder.exists());
}

#[tokio::test]
#[should_panic(expected = "no_such_setting")]
async fn a_server_that_dies_at_its_start_shows_its_log() {
    PostgresServer::start_with(&[("no_such_setting", "1")]).await;
}

#[test]
#[should_panic(
    expected = "needs the program `no-such-server`: run `cargo x test`, which installs it, or `apt-get install -y nss`"
)]
fn a_missing_program_fails_the_test_and_names_the_cure() {
    let _ = find_program("no-such-server", &[PathBuf::from("/usr/sbin")], "nss");
}

#[test]
fn a_free_port_is_none_that_linux_gives_to_clients() {
    assert!((0..1000).all(|_| free_port() < 32_768));
}

/// Tells [`holds_servers`] where to write the folder in which its servers are.
const REPORT: &str = "BENTO_OUTBOX_TEST_REPORT";

#[test]
fn no_process_is_left_when_the_test_process_is_killed() {
    let (mut child, folder) = another_test_process();
    assert!(processes_in(&folder).len() > 2, "PostgreSQL and NATS run");
    child.kill().expect("kill -9");
    child.wait().expect("its end");
    assert_nothing_left(&folder);
}

#[test]
fn no_process_is_left_when_the_test_process_ends() {
    let (mut child, folder) = another_test_process();
    drop(child.stdin.take());
    assert!(child.wait().expect("its end").success());
    assert_nothing_left(&folder);
}

/// Not a test: what the two above run in a process of its own. It ends when its input does.
#[test]
#[ignore = "a part of the tests that no process is left"]
fn holds_servers() {
    let Some(report) = std::env::var_os(REPORT) else {
        return;
    };
    let servers = shared_postgres()
        .folder()
        .parent()
        .expect("the folder of all servers");
    assert_eq!(shared_nats().folder().parent(), Some(servers));
    // One that hangs must go as well.
    shared_nats().pause();
    let unfinished = Path::new(&report).with_extension("unfinished");
    fs::write(&unfinished, servers.to_str().expect("a plain path")).expect("a report");
    fs::rename(unfinished, report).expect("a report");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("an end of the input");
}

/// Runs this test binary a second time, with servers in it; and says where they live.
fn another_test_process() -> (Child, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = folder.path().join("report");
    let child = Command::new(std::env::current_exe().expect("this test binary"))
        .args(["--exact", "servers::holds_servers", "--ignored"])
        .env(REPORT, &report)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("a second test process");
    eventually("the other process has its servers", || report.exists());
    (
        child,
        fs::read_to_string(report).expect("its report").into(),
    )
}

fn assert_nothing_left(folder: &Path) {
    eventually("no process is left", || processes_in(folder).is_empty());
    eventually("no folder is left", || !folder.exists());
}

/// The command lines of the processes that work in this folder: a look of the test's own.
fn processes_in(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("a Linux machine");
    processes
        .flatten()
        .filter(|process| {
            let works_in = fs::read_link(process.path().join("cwd")).unwrap_or_default();
            works_in
                .to_string_lossy()
                .contains(folder.to_str().expect("a plain path"))
        })
        .map(|process| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default())
        .collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
