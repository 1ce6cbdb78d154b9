//! Every public future dropped everywhere, on a real PostgreSQL behind a slow connection.
//!
//! sqlx 0.9.0 gives a connection back inside a transaction when `Pool::begin` is dropped at the
//! wrong moment; the next caller's write is then acknowledged and lost. The first test shows that
//! the fault is there and that this harness sees it; the others show that the library excludes it.

use std::sync::Arc;
use std::time::Duration;

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{
    Claim, Error, ErrorKind, Event, Fence, Filter, Outbox, Payload, Projector, ProjectorSettings,
    Relay, Settle, Settlement, Store, UnitOfWork, Verdict, raise,
};
use bento_outbox_conformance::cancel::{cancel_after_each, cancel_at_every_await};
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::{postgres::Database, shared_postgres};
use sqlx::postgres::PgPoolOptions;

/// A store whose one connection is 2 ms away each way, and a way to look at the database directly.
struct Slow {
    store: PostgresStore,
    direct: sqlx::PgPool,
    proxy: Proxy,
    _database: Database,
}

async fn slow() -> Slow {
    let database = shared_postgres().database().await;
    let direct = PgPoolOptions::new()
        .max_connections(2)
        .connect(database.url())
        .await
        .unwrap();
    PostgresStore::new(direct.clone()).migrate().await.unwrap();
    sqlx::query("create table orders (id bigint)")
        .execute(&direct)
        .await
        .unwrap();
    let proxy = Proxy::before(database.url()).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(20))
        .connect(&format!(
            "{}?application_name=slow",
            proxy.url_of(database.url())
        ))
        .await
        .unwrap();
    proxy.delay(Way::ToServer, Duration::from_millis(2));
    proxy.delay(Way::ToClient, Duration::from_millis(2));
    Slow {
        store: PostgresStore::with_tables(pool, Tables::default()),
        direct,
        proxy,
        _database: database,
    }
}

impl Slow {
    /// The next caller's autocommit write must be seen by others: its connection is in no
    /// transaction. Then nobody else's is either, since the pool has only this one.
    async fn next_write_is_committed(&self) -> bool {
        sqlx::query("insert into orders values (-1)")
            .execute(self.store.pool())
            .await
            .unwrap();
        let seen: i64 = sqlx::query_scalar("select count(*) from orders where id = -1")
            .fetch_one(&self.direct)
            .await
            .unwrap();
        sqlx::query("delete from orders where id = -1")
            .execute(&self.direct)
            .await
            .unwrap();
        seen == 1
    }

    /// Orders and events, which are written together.
    async fn counts(&self) -> (i64, i64) {
        sqlx::query_as("select (select count(*) from orders), (select count(*) from outbox)")
            .fetch_one(&self.direct)
            .await
            .unwrap()
    }

    async fn sound(&self) {
        assert!(
            self.next_write_is_committed().await,
            "a connection was given back inside a transaction"
        );
        let (orders, events) = self.counts().await;
        assert_eq!(orders, events, "a part of a unit of work is there");
    }
}

/// From before the first answer to after the last: a unit of work here takes about 25 ms.
fn delays() -> impl Iterator<Item = Duration> {
    (0..45)
        .map(Duration::from_millis)
        .chain([Duration::from_secs(20)])
}

fn event() -> Event {
    Event::new("order.placed", Payload::json("1").unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_harness_sees_the_fault_of_sqlx() {
    let slow = slow().await;
    let mut spoilt = false;
    let begin = async || drop(slow.store.pool().begin().await.unwrap());
    let look = async |_| spoilt |= !slow.next_write_is_committed().await;
    cancel_after_each(delays(), begin, look).await;
    assert!(
        spoilt,
        "sqlx has mended its begin: this test and the note in ARCHITECTURE.md can go"
    );
    assert!(slow.proxy.bites().delayed > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_begin_leaves_nothing_open() {
    let slow = slow().await;
    let outbox = Outbox::new(slow.store.clone());
    let begin = async || outbox.begin().await.unwrap();
    let drop_too = async |begun: Option<UnitOfWork<PostgresStore>>| {
        drop(begun);
        slow.sound().await;
    };
    cancel_after_each(delays(), begin, drop_too).await;
    cancel_at_every_await(begin, drop_too).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_unit_of_work_is_whole_or_nothing() {
    let slow = slow().await;
    let outbox = Outbox::new(slow.store.clone());
    let unit = async || {
        outbox
            .run(async |uow| {
                sqlx::query("insert into orders values (1)")
                    .execute(uow.tx())
                    .await?;
                uow.nested(async |uow| {
                    sqlx::query("insert into orders values (2)")
                        .execute(uow.tx())
                        .await?;
                    raise(event())
                })
                .await?;
                raise(event())
            })
            .await
    };
    let settled = async |result: Option<Result<(), Error>>| {
        if let Some(result) = result {
            result.unwrap();
        }
        slow.sound().await;
    };
    let dropped = cancel_after_each(delays(), unit, settled).await;
    assert!(dropped >= 10, "only {dropped} moments were tried");
    cancel_at_every_await(unit, settled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_commit_goes_on_and_a_dropped_rollback_too() {
    let slow = slow().await;
    let outbox = Outbox::new(slow.store.clone());
    for commits in [true, false] {
        let before = slow.counts().await.0;
        let mut ended = 0;
        let end = async || {
            let mut uow = outbox.begin().await.unwrap();
            sqlx::query("insert into orders values (1)")
                .execute(uow.tx())
                .await
                .unwrap();
            uow.raise(event()).unwrap();
            ended += 1;
            if commits {
                uow.commit().await.map(drop)
            } else {
                uow.rollback().await
            }
        };
        cancel_after_each(delays(), end, async |_| slow.sound().await).await;
        let there = slow.counts().await.0 - before;
        assert_eq!(there, if commits { ended } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_relays_futures_may_be_dropped_too() {
    let slow = slow().await;
    let outbox = Outbox::new(slow.store.clone());
    let bus = MemoryPublisher::default();
    let store: Arc<dyn Store> = Arc::new(slow.store.clone());
    let projector = Projector::new(
        store.clone(),
        Arc::new(bus.clone()),
        ProjectorSettings::default(),
    );
    let relay = Relay::new(None);
    let term = Duration::from_secs(60);
    let leases = store.lease(&relay, term).await.unwrap();
    let claim = Claim {
        relay: &relay,
        leases: &leases,
        limit: 10,
        in_flight: &[],
        ordered: true,
        dead_letters_block: false,
    };
    let fence = Fence::Leases {
        relay: &relay,
        leases: &leases,
    };
    let mut ids = Vec::new();
    let mut place = async || {
        let event = event();
        ids.push(event.id);
        let mut uow = outbox.begin().await.unwrap();
        sqlx::query("insert into orders values (1)")
            .execute(uow.tx())
            .await
            .unwrap();
        uow.raise(event).unwrap();
        uow.commit().await.unwrap();
    };
    for _ in 0..40 {
        place().await;
    }
    let few = || {
        (0..12)
            .map(|n| Duration::from_millis(n * 2))
            .chain([Duration::from_secs(20)])
    };
    let look = async |_| slow.sound().await;
    cancel_after_each(
        few(),
        async || drop(store.claim(&claim).await.unwrap()),
        look,
    )
    .await;
    cancel_after_each(few(), async || drop(store.status().await.unwrap()), look).await;
    cancel_after_each(few(), async || drop(store.find(&ids).await.unwrap()), look).await;
    cancel_after_each(few(), async || store.check().await.unwrap(), look).await;
    cancel_after_each(few(), async || drop(store.migrate().await.unwrap()), look).await;
    let bad = [Settlement {
        id: ids[0],
        verdict: Verdict::Dead {
            counts: true,
            reason: "no".into(),
        },
    }];
    let settle = Settle {
        fence,
        keep_sent: true,
        settlements: &bad,
    };
    cancel_after_each(
        few(),
        async || assert!(store.settle(&settle).await.unwrap() <= 1),
        look,
    )
    .await;
    cancel_after_each(
        few(),
        async || assert!(store.attempt(&fence, ids[1]).await.unwrap().is_some()),
        look,
    )
    .await;
    cancel_after_each(
        few(),
        async || drop(store.lease(&relay, term).await.unwrap()),
        look,
    )
    .await;
    cancel_after_each(
        few(),
        async || drop(store.dead_letters(&Filter::default(), 0, 9).await.unwrap()),
        look,
    )
    .await;
    cancel_after_each(
        few(),
        async || drop(store.held_keys(9).await.unwrap()),
        look,
    )
    .await;
    cancel_after_each(
        few(),
        async || assert!(store.purge(term, 9).await.unwrap() == 0),
        look,
    )
    .await;
    cancel_after_each(few(), async || store.release(&relay).await.unwrap(), look).await;
    cancel_after_each(
        few(),
        async || drop(projector.run_once().await.unwrap()),
        look,
    )
    .await;
    cancel_at_every_await(async || drop(projector.run_once().await.unwrap()), look).await;
    let run = async || {
        let soon = tokio::time::sleep(Duration::from_millis(30));
        projector.run(soon).await.unwrap();
    };
    cancel_after_each(few(), run, look).await;
    while projector.run_once().await.unwrap().claimed > 0 {}
    assert_eq!(
        bus.published().len(),
        39,
        "each event once, but for the dead letter"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let slow = slow().await;
    let outbox = Outbox::new(slow.store.clone());
    let mut uow = outbox.begin().await.unwrap();
    sqlx::query("insert into orders values (1)")
        .execute(uow.tx())
        .await
        .unwrap();
    uow.raise(event()).unwrap();
    slow.proxy.swallow_reply(b"COMMIT", 1);
    let commit = tokio::spawn(uow.commit());
    while slow.proxy.bites().unanswered == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    slow.proxy.cut();
    let answer = tokio::time::timeout(Duration::from_secs(30), commit)
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer
            .as_ref()
            .is_ok_and(|appended| appended.ids.len() == 1)
            || answer
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::CommitUnknown),
        "{answer:?}"
    );
    assert!(answer.is_ok(), "the events were there to be found");
    assert_eq!(slow.counts().await, (1, 1));
}
