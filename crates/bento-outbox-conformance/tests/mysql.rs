//! What is MySQL's own: deadlocks, and transactions that the server ends by itself.

mod dropped;
mod server;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::stores::{MySqlStore, Tables};
use bento_outbox::{
    Aggregate, Error, ErrorKind, Event, Fence, Isolation, Outbox, Payload, Projector,
    ProjectorSettings, Relay, Result, Settle, Settlement, Store, Verdict, raise,
};
use bento_outbox_conformance::faults::Proxy;
use bento_outbox_conformance::servers::{MariaDbDatabase, MariaDbServer, shared_mariadb};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::sync::Barrier;
use uuid::Uuid;

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(180);

fn event() -> Event {
    Event::new("order.placed", Payload::json("1").unwrap())
}

fn of(key: &str) -> Event {
    Event {
        aggregate: Aggregate::new("order", key),
        ..event()
    }
}

async fn mysql() -> (MariaDbDatabase, MySqlPool, Outbox<MySqlStore>) {
    let database = shared_mariadb().database().await;
    let pool = MySqlPool::connect(database.url()).await.unwrap();
    let store = MySqlStore::new(pool.clone());
    store.migrate().await.unwrap();
    (database, pool, Outbox::new(store))
}

async fn run(pool: &MySqlPool, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await;
    done.unwrap_or_else(|e| panic!("{sql}: {e}"));
}

async fn number(pool: &MySqlPool, sql: &str) -> i64 {
    let number = sqlx::query_scalar(AssertSqlSafe(sql));
    number.fetch_one(pool).await.unwrap()
}

async fn counts(pool: &MySqlPool) -> (i64, i64) {
    (
        number(pool, "select count(*) from orders").await,
        number(pool, "select count(*) from outbox").await,
    )
}

/// The kind of an error, for a result that is compared.
fn kind<T>(result: Result<T>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

#[tokio::test]
async fn the_isolation_is_read_committed_unless_chosen() {
    let (_database, pool, outbox) = mysql().await;
    run(&pool, "create table orders (id int)").await;
    let chosen = [
        Isolation::ReadCommitted,
        Isolation::RepeatableRead,
        Isolation::Serializable,
    ];
    let outboxes = chosen.map(|isolation| outbox.isolation(isolation));
    let names = [
        "READ COMMITTED",
        "READ COMMITTED",
        "REPEATABLE READ",
        "SERIALIZABLE",
    ];
    for (outbox, name) in [&outbox].into_iter().chain(&outboxes).zip(names) {
        let mut uow = outbox.begin().await.unwrap();
        sqlx::raw_sql("insert into orders values (1)")
            .execute(uow.tx())
            .await
            .unwrap();
        // The server looks at its transactions ten times a second.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let shown: String = sqlx::query_scalar(
            "select trx_isolation_level from information_schema.innodb_trx
             where trx_mysql_thread_id = connection_id()",
        )
        .fetch_one(uow.tx())
        .await
        .unwrap();
        uow.rollback().await.unwrap();
        assert_eq!(shown, name);
    }
    let shown: String = sqlx::query_scalar("select @@session.tx_isolation")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(shown, "REPEATABLE-READ", "the session keeps its own");
}

/// Two units that lock the same gap, and then each insert into it: the server undoes one of them.
#[tokio::test]
async fn a_deadlock_of_gap_locks_is_a_conflict() {
    let (_database, pool, outbox) = mysql().await;
    run(
        &pool,
        "create table orders (id int primary key); insert into orders values (10), (20)",
    )
    .await;
    let outbox = outbox.isolation(Isolation::RepeatableRead);
    let (mut one, mut two) = (outbox.begin().await.unwrap(), outbox.begin().await.unwrap());
    let gap = "select id from orders where id = 15 for update";
    for uow in [&mut one, &mut two] {
        sqlx::raw_sql(gap).execute(uow.tx()).await.unwrap();
        uow.raise(of("15")).unwrap();
    }
    let insert = "insert into orders values (15)";
    let first = tokio::spawn(async move {
        sqlx::raw_sql(insert).execute(one.tx()).await?;
        one.commit().await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = async move {
        sqlx::raw_sql(insert).execute(two.tx()).await?;
        two.commit().await
    };
    let answers = [second.await, first.await.unwrap()];
    let refused: Vec<&Error> = answers
        .iter()
        .filter_map(|answer| answer.as_ref().err())
        .collect();
    assert_eq!(refused.len(), 1, "{answers:?}");
    assert!(refused[0].is_retryable(), "{refused:?}");
    assert_eq!(counts(&pool).await, (3, 1));
}

/// The server rolled the whole unit back, not the statement alone. Who goes on all the same gets
/// nothing of it committed: neither what was before nor what came after.
#[tokio::test]
async fn a_unit_that_a_deadlock_ended_is_not_committed_in_part() {
    let (_database, pool, outbox) = mysql().await;
    run(
        &pool,
        "create table orders (id int primary key, n int); insert into orders values (1, 0), (2, 0)",
    )
    .await;
    let update = async |uow: &mut bento_outbox::UnitOfWork<MySqlStore>, id: i32| {
        let update = sqlx::query("update orders set n = n + 1 where id = ?").bind(id);
        update.execute(uow.tx()).await
    };
    for with_event in [true, false] {
        let (mut winner, mut loser) =
            (outbox.begin().await.unwrap(), outbox.begin().await.unwrap());
        // The one that has changed more rows wins.
        sqlx::raw_sql("insert into orders values (3, 0), (4, 0), (5, 0)")
            .execute(winner.tx())
            .await
            .unwrap();
        update(&mut winner, 1).await.unwrap();
        update(&mut loser, 2).await.unwrap();
        let (won, lost) = tokio::join!(update(&mut winner, 2), update(&mut loser, 1));
        assert!(won.is_ok() && lost.is_err(), "{won:?} {lost:?}");
        winner.rollback().await.unwrap();

        // The failure is ignored.
        sqlx::raw_sql("insert into orders values (6, 0)")
            .execute(loser.tx())
            .await
            .unwrap();
        if with_event {
            loser.raise(event()).unwrap();
        }
        assert_eq!(
            kind(loser.commit().await.map(drop)),
            Err(ErrorKind::Conflict)
        );
        assert_eq!(counts(&pool).await, (2, 0));
        assert_eq!(
            number(&pool, "select cast(sum(n) as signed) from orders").await,
            0
        );
    }
    for _ in 0..20 {
        outbox.run(async |_| raise(event())).await.unwrap();
    }
    assert_eq!(
        counts(&pool).await,
        (2, 20),
        "the pool's connections are sound"
    );
}

/// DDL commits what was before it. What comes after is rolled back, and the commit says so.
#[tokio::test]
async fn a_unit_that_ddl_ended_says_so() {
    let (_database, pool, outbox) = mysql().await;
    run(&pool, "create table orders (id int)").await;
    let answer = outbox
        .run(async |uow| {
            for sql in [
                "insert into orders values (1)",
                "create table other (id int)",
                "insert into orders values (2)",
            ] {
                sqlx::raw_sql(sql).execute(uow.tx()).await?;
            }
            raise(event())
        })
        .await;
    let error = answer.unwrap_err();
    assert!(error.report().contains("commits by itself"), "{error:?}");
    assert_eq!(counts(&pool).await, (1, 0));
}

#[tokio::test]
async fn a_wait_for_a_lock_that_takes_too_long_is_a_conflict() {
    let (_database, pool, outbox) = mysql().await;
    run(
        &pool,
        "create table orders (id int primary key, n int); insert into orders values (1, 0)",
    )
    .await;
    let mut holder = outbox.begin().await.unwrap();
    let update = "update orders set n = n + 1 where id = 1";
    sqlx::raw_sql(update).execute(holder.tx()).await.unwrap();
    let waits = outbox.run(async |uow| {
        raise(event())?;
        sqlx::raw_sql("set session innodb_lock_wait_timeout = 1")
            .execute(uow.tx())
            .await?;
        let locked = sqlx::raw_sql(update).execute(uow.tx()).await;
        sqlx::raw_sql("set session innodb_lock_wait_timeout = default")
            .execute(uow.tx())
            .await?;
        locked?;
        Ok::<_, Error>(())
    });
    assert_eq!(kind(waits.await), Err(ErrorKind::Conflict));
    holder.commit().await.unwrap();
    assert_eq!(counts(&pool).await, (1, 0));
}

/// Writers that lock gaps, a relay that settles and one that purges, all in each other's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_at_repeatable_read_and_relays_bear_each_others_deadlocks() {
    let (database, pool, _) = mysql().await;
    run(
        &pool,
        "create table orders (id bigint primary key auto_increment, customer int, key (customer))",
    )
    .await;
    let store = MySqlStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    let outbox = Outbox::new(store.clone()).isolation(Isolation::RepeatableRead);
    // All have locked the gap of the empty table before any of them writes into it.
    let met = Arc::new(Barrier::new(4));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (outbox, met) = (outbox.clone(), met.clone());
            tokio::spawn(async move {
                let mut conflicts = place_behind_a_gap(&outbox, writer * 10, Some(&met)).await;
                for n in 1..25 {
                    conflicts += place_behind_a_gap(&outbox, (writer + n) % 5 * 10, None).await;
                }
                conflicts
            })
        })
        .collect();
    let bus = MemoryPublisher::default();
    let projector = Projector::new(
        Arc::new(store.clone()),
        Arc::new(bus.clone()),
        ProjectorSettings::default(),
    );
    let purger = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut purged = 0;
            while purged < 100 {
                purged += store.purge(Duration::ZERO, 7).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    let mut conflicts = 0;
    let all = async {
        for writer in writers {
            conflicts += writer.await.unwrap();
        }
        purger.await.unwrap();
    };
    tokio::time::timeout(PATIENCE, projector.run(all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(counts(&pool).await, (100, 0));
    assert_eq!(bus.published().len(), 100);
    let seqs: Vec<i64> = bus.published().iter().map(|record| record.seq).collect();
    let mut once = seqs.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), 100, "an event was published twice");
    assert!(conflicts > 0, "nobody got in anybody's way");
}

/// Places an order of a customer, whose other orders are locked together with the gaps between them,
/// until that succeeds; answers how often it had to give way. With the gap locked it waits for those whom it
/// is to meet, the first time.
async fn place_behind_a_gap(
    outbox: &Outbox<MySqlStore>,
    customer: u32,
    met: Option<&Barrier>,
) -> u32 {
    for conflicts in 0.. {
        let placed = outbox.run(async |uow| {
            let orders = "select count(*) from orders where customer = ? for update";
            sqlx::query(orders).bind(customer).execute(uow.tx()).await?;
            if let (0, Some(met)) = (conflicts, met) {
                met.wait().await;
            }
            let order = "insert into orders (customer) values (?)";
            sqlx::query(order).bind(customer).execute(uow.tx()).await?;
            raise(of(&customer.to_string()))?;
            Ok::<_, Error>(())
        });
        match placed.await {
            Ok(()) => return conflicts,
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
    }
    unreachable!("it ends by success")
}

/// While a settlement is under way nobody takes its lease, so it never writes without one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_not_taken_while_somebody_settles_under_it() {
    let (_database, pool, outbox) = mysql().await;
    let store = outbox.store().clone();
    // Changed in this order.
    let [free, locked] = [1, 2].map(|n| Event {
        id: Uuid::from_u128(n),
        ..event()
    });
    for event in [&free, &locked] {
        outbox.run(async |_| raise(event.clone())).await.unwrap();
    }
    let (old, heir) = (Relay::new(None), Relay::new(None));
    let term = Duration::from_millis(300);
    let leases = store.lease(&old, term).await.unwrap();
    let settle = {
        let (store, old) = (store.clone(), old.clone());
        async move |ids: Vec<Uuid>| {
            let sent = |id| Settlement {
                id,
                verdict: Verdict::Sent,
            };
            let settlements: Vec<_> = ids.into_iter().map(sent).collect();
            let settle = Settle {
                fence: Fence::Leases {
                    relay: &old,
                    leases: &leases,
                },
                keep_sent: true,
                settlements: &settlements,
            };
            store.settle(&settle).await.unwrap()
        }
    };

    let mut reader = pool.begin().await.unwrap();
    sqlx::query("select seq from outbox where id = ? for update")
        .bind(locked.id.to_string())
        .execute(&mut *reader)
        .await
        .unwrap();
    let under_way = {
        let (settle, ids) = (settle.clone(), vec![free.id, locked.id]);
        tokio::spawn(async move { settle(ids).await })
    };
    // It has the leases before it waits for the row.
    let has_leases = async {
        let leases = "select `partition` from outbox_leases for update nowait";
        while sqlx::raw_sql(leases).execute(&pool).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, has_leases).await.unwrap();
    tokio::time::sleep(term + Duration::from_millis(200)).await;
    assert!(!under_way.is_finished());
    let taken = store.lease(&heir, PATIENCE).await.unwrap();
    assert_eq!(taken.len(), 0, "the leases have run out, and are in use");
    reader.rollback().await.unwrap();
    assert_eq!(under_way.await.unwrap(), 2);
    assert_eq!(store.lease(&heir, PATIENCE).await.unwrap().len(), 64);

    outbox
        .run(async |_| {
            raise(Event {
                id: Uuid::nil(),
                ..event()
            })
        })
        .await
        .unwrap();
    assert_eq!(
        settle(vec![Uuid::nil()]).await,
        0,
        "the old relay changes nothing any more"
    );
}

/// The server commits and its answer is lost: silence, or a broken connection.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let (database, pool, _) = mysql().await;
    run(&pool, "create table orders (id int)").await;
    let proxy = Proxy::before(database.url()).await;
    let store = MySqlStore::open(&proxy.url_of(database.url()), Tables::default())
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
        proxy.swallow_reply(b"; commit;", 2);
        let cut = async {
            while broken && proxy.bites().unanswered < 2 * round {
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
        let round = i64::try_from(round).unwrap();
        assert_eq!(counts(&pool).await, (2 * round, round));
    }
}

/// Every unit of work is there as a whole or not at all, and as its commit answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_no_commit_and_keeps_no_half() {
    let server = MariaDbServer::start().await;
    let database = server.database().await;
    let options = MySqlPoolOptions::new().acquire_timeout(Duration::from_secs(5));
    let pool = options.connect(database.url()).await.unwrap();
    let store = MySqlStore::new(pool.clone());
    store.migrate().await.unwrap();
    run(&pool, "create table orders (id char(36) primary key)").await;
    let place = async |outbox: &Outbox<MySqlStore>, order: Uuid| {
        outbox
            .run(async |uow| {
                let insert = sqlx::query("insert into orders values (?)").bind(order.to_string());
                insert.execute(uow.tx()).await?;
                outbox.append(uow.tx(), [of(&order.to_string())]).await?;
                raise(of(&order.to_string()))
            })
            .await
    };
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
    let there: HashMap<String, i64> = sqlx::query_as(
        "select o.id, count(e.id) from orders o left join outbox e on e.aggregate_id = o.id group by o.id",
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
        number(&pool, "select count(*) from outbox").await,
        2 * i64::try_from(there.len()).unwrap()
    );
    for (order, answer) in &answers {
        let is_there = there.contains_key(&order.to_string());
        match answer {
            Ok(()) => assert!(is_there, "a commit was lost"),
            Err(ErrorKind::CommitUnknown) => {}
            Err(kind) => assert!(!is_there, "{kind:?}, and yet committed"),
        }
    }
    place(&Outbox::new(store), Uuid::now_v7())
        .await
        .expect("the pool recovers");
}
