//! Wake-ups by PostgreSQL.

use std::time::Duration;

use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{Event, Outbox, Payload, Store as _, raise};
use bento_outbox_conformance::servers::{Database, shared_pgbouncer, shared_postgres};
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::time::{sleep, timeout};

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(url, Tables::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_process_commits_wakes_who_waits() {
    let database = shared_postgres().database().await;
    let (one, other) = (open(database.url()).await, open(database.url()).await);
    one.migrate().await.unwrap();
    let mut waiting = tokio::spawn(async move { one.hint().await });
    let outbox = Outbox::new(other);
    // It listens some time after it was asked to.
    let woken = async {
        while !waiting.is_finished() {
            let event = Event::new("a", Payload::json("1").unwrap());
            outbox.run(async |_| raise(event)).await.unwrap();
            sleep(Duration::from_millis(50)).await;
        }
        (&mut waiting).await.unwrap();
    };
    timeout(PATIENCE, woken).await.expect("a wake-up");
}

/// How many statements of a pool fail while others are woken in the same database.
async fn disturbed(pool: &PgPool, database: &Database) -> usize {
    let direct = PgPool::connect(database.url()).await.unwrap();
    let tell = async {
        for _ in 0..1_500 {
            let tell = sqlx::query("select pg_notify('outbox', '')");
            tell.execute(&direct).await.unwrap();
        }
    };
    let ask = async || {
        let mut failed = 0;
        for _ in 0..500 {
            let asked = sqlx::query("select 1").execute(pool).await;
            failed += usize::from(asked.is_err());
        }
        failed
    };
    let ((), one, two, three) = tokio::join!(tell, ask(), ask(), ask());
    one + two + three
}

/// Who listens through a pooler leaves a session behind that goes on listening for whoever has it next: and
/// sqlx 0.9.0 takes a notification in the midst of an answer for a broken one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_behind_a_pooler_is_disturbed_by_wake_ups() {
    let database = shared_postgres().database().await;
    let pool = PgPool::connect(&shared_pgbouncer().url_of(&database)).await;
    let pool = pool.unwrap();
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("outbox").await.unwrap();
    assert_ne!(
        disturbed(&pool, &database).await,
        0,
        "sqlx or the pooler bears it now: a relay may listen there"
    );

    let database = shared_postgres().database().await;
    let store = open(&shared_pgbouncer().url_of(&database)).await;
    store.migrate().await.unwrap();
    let listening = store.clone();
    let waiting = tokio::spawn(async move { listening.hint().await });
    assert_eq!(disturbed(store.pool(), &database).await, 0);
    waiting.abort();
}
