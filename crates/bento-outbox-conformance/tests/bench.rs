//! The program's benchmark on real servers: it leaves nothing behind in the database.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream;
use bento_outbox_conformance::servers::{NatsServer, shared_postgres};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long a benchmark of the smallest size may take, on a machine that stalls.
const PATIENCE: Duration = Duration::from_secs(900);

const SMALL: &[&str] = &[
    "--rounds",
    "2",
    "--events",
    "40",
    "--transactions",
    "8",
    "--trap-rows",
    "20",
];

/// A database with an outbox in which one event waits.
struct Shop {
    url: String,
    pool: PgPool,
}

impl Shop {
    async fn open() -> Self {
        let url = shared_postgres().database().await.url().to_owned();
        let migrated = program(&url).arg("migrate").output().await.unwrap();
        assert!(migrated.status.success(), "{migrated:?}");
        let pool = PgPool::connect(&url).await.unwrap();
        let shop = Self { url, pool };
        let event = "insert into outbox (type, payload) values ('order.placed', '1')";
        sqlx::query(event).execute(&shop.pool).await.unwrap();
        shop
    }

    /// Everything that is there, and how many events wait.
    async fn everything(&self) -> (Vec<String>, i64) {
        let names = "select relname::text from pg_class where relnamespace = 'public'::regnamespace
                     union all select proname::text from pg_proc where pronamespace = 'public'::regnamespace
                     order by 1";
        let names = sqlx::query_scalar(names)
            .fetch_all(&self.pool)
            .await
            .unwrap();
        let unsent = "select count(*) from outbox_events where status = 'NEW'";
        (names, self.number(unsent).await)
    }

    async fn number(&self, query: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(query));
        query.fetch_one(&self.pool).await.unwrap()
    }

    fn bench(&self, bus: &str, arguments: &[&str]) -> Child {
        let mut command = program(&self.url);
        command.args(["bench", "--bus-url", bus]).args(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

fn program(database: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let folder = this.parent().and_then(|deps| deps.parent()).unwrap();
    let program: PathBuf = folder.join("bento-outbox");
    assert!(
        program.exists(),
        "{} is missing: cargo build -p bento-outbox-cli",
        program.display()
    );
    let mut command = Command::new(program);
    // The settings of whoever runs the tests are not ours.
    command.env_clear().args(["--database-url", database]);
    command.kill_on_drop(true);
    command
}

/// How a benchmark ended: its code, and what it said on either side.
async fn ended(bench: Child) -> (Option<i32>, String, String) {
    let output = timeout(PATIENCE, bench.wait_with_output());
    let output = output.await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn postgres_and_jetstream_are_measured_and_left_as_they_were() {
    let (shop, nats) = (Shop::open().await, NatsServer::start().await);
    let before = shop.everything().await;
    let bus = format!("{}?stream=BENCH&subjects=bench.>&create=true", nats.url());
    let bench = shop.bench(&bus, &[SMALL, &["--json"]].concat());
    let (code, stdout, stderr) = ended(bench).await;
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    let names: Vec<&str> = figures
        .iter()
        .map(|figure| figure["name"].as_str().unwrap())
        .collect();
    for name in [
        "write_at_once",
        "drain_raw",
        "latency_bus",
        "trap_vacuum_held_back",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    for figure in figures {
        assert_eq!(figure["rounds"].as_array().unwrap().len(), 2, "{figure}");
        assert!(figure["value"].as_f64() > Some(0.0), "{figure}");
    }
    assert_eq!(report["skipped"], Value::Array(Vec::new()));
    let server = report["server"].as_str().unwrap();
    assert!(server.starts_with("PostgreSQL "), "{server}");
    assert_eq!(shop.everything().await, before);

    // Raw publishing, both ways of draining and each latency, at least.
    let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let mut stream = context.get_stream("BENCH").await.unwrap();
    let messages = stream.info().await.unwrap().state.messages;
    assert!(messages >= 2 * (3 * 40 + 3 * 40), "{messages}");
    assert!(
        stderr.contains("events of type bench.measured go to nats://"),
        "{stderr}"
    );
}

#[tokio::test]
async fn ctrl_c_ends_a_held_snapshot_too_and_drops_the_tables() {
    let shop = Shop::open().await;
    let before = shop.everything().await;
    let long = ["--rounds", "100", "--only", "traps", "--events", "200"];
    let bench = shop.bench("null:", &[&long[..], &["--trap-rows", "200"]].concat());
    let held = "select count(*) from pg_stat_activity where datname = current_database()
                and state = 'idle in transaction' and query like 'select 1 from%outbox_bench%'";
    let comes = async {
        while shop.number(held).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, comes).await.expect("the trap is set");
    let id = bench
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).unwrap()));
    kill_process(id.unwrap(), Signal::INT).unwrap();
    let (code, stdout, stderr) = ended(bench).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    assert!(
        stderr.contains("dropped: the ") && stderr.contains("stopped before"),
        "{stderr}"
    );
    assert_eq!(shop.everything().await, before);
}

#[tokio::test]
async fn a_database_without_an_outbox_will_do() {
    let database = shared_postgres().database().await;
    let mut command = program(database.url());
    command
        .args(["bench", "--bus-url", "null:", "--only", "latency"])
        .args(SMALL);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let pool = PgPool::connect(database.url()).await.unwrap();
    let left = "select (select count(*) from pg_class where relnamespace = 'public'::regnamespace)
                     + (select count(*) from pg_proc where pronamespace = 'public'::regnamespace)";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_schema_that_is_not_there_is_not_made() {
    let shop = Shop::open().await;
    let mut command = program(&shop.url);
    command
        .env("OUTBOX_SCHEMA", "nowhere")
        .args(["bench", "--bus-url", "null:"]);
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("schema \"nowhere\" is not there"), "{said}");
    let schemas = "select count(*) from pg_namespace where nspname = 'nowhere'";
    assert_eq!(shop.number(schemas).await, 0);
}
