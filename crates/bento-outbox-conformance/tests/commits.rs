//! What a commit answers is what happened, whatever befalls it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bento_outbox::stores::{PostgresStore, SqliteStore, Tables};
use bento_outbox::{Error, ErrorKind, Event, Isolation, Outbox, Payload, Result, Store, raise};
use bento_outbox_conformance::faults::Proxy;
use bento_outbox_conformance::servers::{Database, PostgresServer, shared_postgres};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(180);

fn event() -> Event {
    Event::new("order.placed", Payload::json("1").unwrap())
}

async fn postgres() -> (Database, PgPool, Outbox<PostgresStore>) {
    let database = shared_postgres().database().await;
    let pool = PgPool::connect(database.url()).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.unwrap();
    (database, pool, Outbox::new(store))
}

async fn run(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

async fn count(pool: &PgPool, table: &str) -> i64 {
    let count = format!("select count(*) from {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count))
        .fetch_one(pool)
        .await
        .unwrap()
}

/// The kind of an error, for a result that is compared.
fn kind<T>(result: Result<T>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

#[tokio::test]
async fn the_callers_pool_outlives_the_outbox() {
    let (_database, pool, outbox) = postgres().await;
    outbox.run(async |_| raise(event())).await.unwrap();
    drop(outbox);
    assert!(!pool.is_closed());
    assert_eq!(count(&pool, "outbox").await, 1);
}

#[tokio::test]
async fn the_isolation_is_read_committed_unless_chosen() {
    let (_database, _pool, outbox) = postgres().await;
    let chosen = [
        Isolation::ReadCommitted,
        Isolation::RepeatableRead,
        Isolation::Serializable,
    ];
    let outboxes = chosen.map(|isolation| outbox.isolation(isolation));
    let names = [
        "read committed",
        "read committed",
        "repeatable read",
        "serializable",
    ];
    for (outbox, name) in [&outbox].into_iter().chain(&outboxes).zip(names) {
        let mut uow = outbox.begin().await.unwrap();
        let shown: String = sqlx::query_scalar("show transaction_isolation")
            .fetch_one(uow.tx())
            .await
            .unwrap();
        uow.rollback().await.unwrap();
        assert_eq!(shown, name);
    }
}

/// Two units that each read what the other writes: one of them gives way and can be run again.
#[tokio::test]
async fn a_serialization_failure_is_a_conflict() {
    let (_database, pool, outbox) = postgres().await;
    run(&pool, "create table doctors (name text, on_call boolean); insert into doctors values ('a', true), ('b', true)").await;
    let outbox = outbox.isolation(Isolation::Serializable);
    let (mut one, mut two) = (outbox.begin().await.unwrap(), outbox.begin().await.unwrap());
    let read = "select count(*) from doctors where on_call";
    for uow in [&mut one, &mut two] {
        let there: i64 = sqlx::query_scalar(read).fetch_one(uow.tx()).await.unwrap();
        assert_eq!(there, 2);
        uow.raise(event()).unwrap();
    }
    let leave = "update doctors set on_call = false where name = ";
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{leave}'a'")))
        .execute(one.tx())
        .await
        .unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{leave}'b'")))
        .execute(two.tx())
        .await
        .unwrap();
    one.commit().await.unwrap();
    let refused = two.commit().await.unwrap_err();
    assert!(refused.is_retryable(), "{refused:?}");
    assert_eq!(count(&pool, "outbox").await, 1);
}

/// PostgreSQL rolls such a transaction back, and COMMIT itself is no error there.
#[tokio::test]
async fn a_unit_with_an_ignored_failure_is_not_committed() {
    let (_database, pool, outbox) = postgres().await;
    run(&pool, "create table orders (id integer primary key)").await;
    outbox
        .run(async |_| {
            raise(Event {
                id: Uuid::nil(),
                ..event()
            })
        })
        .await
        .unwrap();
    let duplicate = Event {
        id: Uuid::nil(),
        ..event()
    };
    for events in [vec![], vec![event()], vec![duplicate]] {
        let mut uow = outbox.begin().await.unwrap();
        sqlx::raw_sql("insert into orders values (1)")
            .execute(uow.tx())
            .await
            .unwrap();
        let ignored = sqlx::raw_sql("select 1 / 0").execute(uow.tx()).await;
        assert!(ignored.is_err());
        for event in events {
            uow.raise(event).unwrap();
        }
        assert_eq!(kind(uow.commit().await.map(drop)), Err(ErrorKind::Database));
        assert_eq!(count(&pool, "orders").await, 0);
    }
    outbox
        .run(async |uow| {
            let failed = uow.nested(async |uow| -> Result<()> {
                sqlx::raw_sql("select 1 / 0").execute(uow.tx()).await?;
                Ok(())
            });
            assert!(failed.await.is_err());
            sqlx::raw_sql("insert into orders values (2)")
                .execute(uow.tx())
                .await?;
            raise(event())
        })
        .await
        .unwrap();
    assert_eq!(
        (count(&pool, "orders").await, count(&pool, "outbox").await),
        (1, 2)
    );
}

#[tokio::test]
async fn what_the_database_refuses_at_the_commit_is_not_in_doubt() {
    let (_database, pool, outbox) = postgres().await;
    run(
        &pool,
        "create table orders (id integer primary key);
         create table lines (id integer references orders deferrable initially deferred)",
    )
    .await;
    for with_event in [false, true] {
        let refused = outbox
            .run(async |uow| {
                sqlx::raw_sql("insert into lines values (7)")
                    .execute(uow.tx())
                    .await?;
                if with_event { raise(event()) } else { Ok(()) }
            })
            .await;
        assert_eq!(kind(refused), Err(ErrorKind::Database));
        assert_eq!(
            (count(&pool, "lines").await, count(&pool, "outbox").await),
            (0, 0)
        );
    }
}

/// The server commits and its answer is lost: silence, or a broken connection.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let (database, pool, _) = postgres().await;
    run(&pool, "create table orders (id integer)").await;
    let proxy = Proxy::before(database.url()).await;
    let store = PostgresStore::open(&proxy.url_of(database.url()), Tables::default())
        .await
        .unwrap();
    let outbox = Outbox::new(store);
    let unit = async |with_event: bool| {
        outbox
            .run(async |uow| {
                sqlx::raw_sql("insert into orders values (1)")
                    .execute(uow.tx())
                    .await?;
                if with_event { raise(event()) } else { Ok(()) }
            })
            .await
    };
    for (round, broken) in [(1, true), (2, false)] {
        proxy.swallow_reply(b"COMMIT", 2);
        let begun = Instant::now();
        let cut = async {
            while broken && proxy.bites().unanswered < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if broken {
                proxy.cut();
            }
        };
        let ((), resolved, unknown) = tokio::join!(cut, unit(true), unit(false));
        assert_eq!(proxy.bites().unanswered, 2 * round);
        assert_eq!(
            kind(resolved),
            Ok(()),
            "the event tells that it is committed"
        );
        assert_eq!(
            kind(unknown),
            Err(ErrorKind::CommitUnknown),
            "nothing tells"
        );
        assert!(begun.elapsed() < PATIENCE);
        let round = i64::try_from(round).unwrap();
        assert_eq!(
            (count(&pool, "orders").await, count(&pool, "outbox").await),
            (2 * round, round)
        );
    }
}

/// Every unit of work is there as a whole or not at all, and as its commit answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_no_commit_and_keeps_no_half() {
    let server = PostgresServer::start().await;
    let options = PgPoolOptions::new().acquire_timeout(Duration::from_secs(5));
    let pool = options.connect(&server.url()).await.unwrap();
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.unwrap();
    run(&pool, "create table orders (id uuid primary key)").await;

    let commits = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..6)
        .map(|_| {
            let (outbox, commits) = (Outbox::new(store.clone()), commits.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                loop {
                    let order = Uuid::now_v7();
                    let answer = place(&outbox, order).await;
                    commits.fetch_add(1, Ordering::Relaxed);
                    let lost = answer.is_err();
                    answers.push((order, kind(answer)));
                    if lost {
                        return answers;
                    }
                }
            })
        })
        .collect();
    let begun = Instant::now();
    while commits.load(Ordering::Relaxed) < 100 {
        assert!(
            begun.elapsed() < PATIENCE,
            "100 units of work take for ever"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    let mut answers = Vec::new();
    for writer in writers {
        answers.extend(
            tokio::time::timeout(PATIENCE, writer)
                .await
                .unwrap()
                .unwrap(),
        );
    }
    server.restart().await;

    let there: HashMap<Uuid, i64> = sqlx::query_as(
        "select o.id, count(e.id) from orders o left join outbox e on e.aggregate_id = o.id::text group by o.id",
    )
    .fetch_all(&pool)
    .await
    .unwrap()
    .into_iter()
    .collect();
    assert!(
        there.values().all(|events| *events == 2),
        "a half was committed: {there:?}"
    );
    assert_eq!(
        count(&pool, "outbox").await,
        2 * i64::try_from(there.len()).unwrap()
    );
    for (order, answer) in &answers {
        match answer {
            Ok(()) => assert!(there.contains_key(order), "a commit was lost"),
            Err(ErrorKind::CommitUnknown) => {}
            Err(kind) => assert!(!there.contains_key(order), "{kind:?}, and yet committed"),
        }
    }
    place(&Outbox::new(store), Uuid::now_v7())
        .await
        .expect("the pool recovers");
}

/// An order with two events, one appended and one raised.
async fn place(outbox: &Outbox<PostgresStore>, order: Uuid) -> Result<()> {
    let of_this = || Event {
        aggregate: bento_outbox::Aggregate::new("order", order.to_string()),
        ..event()
    };
    outbox
        .run(async |uow| {
            sqlx::query("insert into orders values ($1)")
                .bind(order)
                .execute(uow.tx())
                .await?;
            outbox.append(uow.tx(), [of_this()]).await?;
            raise(of_this())
        })
        .await
}

/// Without BEGIN IMMEDIATE both would read, and the second could not write any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_at_once_on_sqlite_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/outbox.db", folder.path().display());
    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    sqlx::raw_sql("create table counter (n integer); insert into counter values (0)")
        .execute(store.pool())
        .await
        .unwrap();
    let units: Vec<_> = (0..4)
        .map(|_| {
            let outbox = Outbox::new(store.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    outbox
                        .run(async |uow| {
                            let n: i64 = sqlx::query_scalar("select n from counter")
                                .fetch_one(uow.tx())
                                .await?;
                            tokio::task::yield_now().await;
                            sqlx::query("update counter set n = ?1")
                                .bind(n + 1)
                                .execute(uow.tx())
                                .await?;
                            raise(event())?;
                            Ok::<_, Error>(())
                        })
                        .await?;
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    for unit in units {
        unit.await.unwrap().unwrap();
    }
    let n: i64 = sqlx::query_scalar("select n from counter")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(n, 40);
    assert_eq!(store.status().await.unwrap()[0].new, 40);
}
