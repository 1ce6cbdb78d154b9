//! Where PostgreSQL's claims begin: above all that is sent, below all that may still be committed.

use std::time::Duration;

use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{
    Claim, Event, Fence, Lease, Outbox, Payload, Relay, Settle, Settlement, Store, Verdict,
};
use bento_outbox_conformance::servers::shared_postgres;
use sqlx::Executor;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// Longer than the floor takes to rise: it asks once a second, and once more.
const LONG: Duration = Duration::from_secs(4);

/// A relay that holds everything and sends what it reads.
struct Reader {
    store: PostgresStore,
    relay: Relay,
    leases: Vec<Lease>,
}

impl Reader {
    async fn of(store: &PostgresStore) -> Self {
        let relay = Relay::new(None);
        let leases = store.lease(&relay, 100 * LONG).await.unwrap();
        let store = store.clone();
        Self {
            store,
            relay,
            leases,
        }
    }

    async fn round(&self) -> Vec<Uuid> {
        let claim = Claim {
            relay: &self.relay,
            leases: &self.leases,
            limit: 1_000,
            in_flight: &[],
            ordered: true,
            dead_letters_block: false,
        };
        let records = self.store.claim(&claim).await.unwrap().records;
        let ids: Vec<Uuid> = records.iter().map(|record| record.id).collect();
        let sent = |id: &Uuid| Settlement {
            id: *id,
            verdict: Verdict::Sent,
        };
        let settlements: Vec<Settlement> = ids.iter().map(sent).collect();
        let settle = Settle {
            fence: Fence::Leases {
                relay: &self.relay,
                leases: &self.leases,
            },
            keep_sent: true,
            settlements: &settlements,
        };
        self.store.settle(&settle).await.unwrap();
        ids
    }

    /// Rounds for so long, a few a second.
    async fn rounds(&self, long: Duration) -> Vec<Uuid> {
        let (end, mut ids) = (Instant::now() + long, Vec::new());
        while Instant::now() < end {
            ids.extend(self.round().await);
            sleep(Duration::from_millis(100)).await;
        }
        ids
    }
}

fn event(n: usize) -> Event {
    Event::new("floor.tested", Payload::json(n.to_string()).unwrap())
}

async fn commit(store: &PostgresStore, numbers: std::ops::Range<usize>) {
    let mut uow = Outbox::new(store.clone()).begin().await.unwrap();
    numbers.for_each(|n| uow.raise(event(n)).unwrap());
    uow.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_still_be_committed_keeps_the_floor_down() {
    let database = shared_postgres().database().await;
    let store = PostgresStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let mut late = store.pool().begin().await.unwrap();
    let id: Uuid =
        sqlx::query_scalar("insert into outbox (type, payload) values ('late', '1') returning id")
            .fetch_one(&mut *late)
            .await
            .unwrap();
    commit(&store, 0..50).await;
    let reader = Reader::of(&store).await;
    assert_eq!(reader.rounds(LONG).await.len(), 50);
    late.commit().await.unwrap();
    assert_eq!(reader.round().await, [id], "it was passed over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_is_not_stepped_over_again_and_again() {
    const SENT: usize = 3_000;
    let database = shared_postgres().database().await;
    let store = PostgresStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    // A transaction that looks at an old state keeps the database from cleaning up behind it.
    let mut old = store.pool().begin().await.unwrap();
    old.execute("set transaction isolation level repeatable read")
        .await
        .unwrap();
    old.execute("select from outbox").await.unwrap();
    commit(&store, 0..SENT).await;
    let reader = Reader::of(&store).await;
    let mut sent = 0;
    while sent < SENT {
        let read = reader.round().await.len();
        assert!(read > 0, "only {sent} are there");
        sent += read;
    }
    assert_eq!(reader.rounds(LONG).await.len(), 0);
    let before = stepped_over(&store).await;
    reader.rounds(LONG).await;
    let after = stepped_over(&store).await;
    assert!(
        before >= SENT as i64,
        "the statistics count nothing: {before}"
    );
    assert!(
        after - before < SENT as i64,
        "{} in some 40 claims",
        after - before
    );
    // Who failed before is found by its time, however far below the floor it is.
    let failed: Uuid = sqlx::query_scalar(
        "update outbox set status = 'ERR', error_message = 'failed' where seq = 1 returning id",
    )
    .fetch_one(store.pool())
    .await
    .unwrap();
    assert_eq!(store.retry(&[failed], "test").await.unwrap(), 1);
    assert_eq!(reader.round().await, [failed]);
}

/// Entries that were read in the index of ready records, by all sessions.
async fn stepped_over(store: &PostgresStore) -> i64 {
    // A session tells what it did at most once a second, and at its end.
    sleep(Duration::from_millis(1_500)).await;
    sqlx::query_scalar(
        "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'outbox_ready'",
    )
    .fetch_one(store.pool())
    .await
    .unwrap()
}
