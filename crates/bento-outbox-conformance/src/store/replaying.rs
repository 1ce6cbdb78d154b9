//! Sent events that are published once more.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bento_outbox::{
    ErrorKind, Filter, Outcome, Pausable, Publisher, Rejection, RejectionClass, ReplayEnd,
    ReplaySettings, Replayed, RetrySettings, replay, replayable,
};

use super::*;

/// A bus that answers by number of the call and record, and remembers what it took.
struct Bus {
    answer: fn(usize, &OutboxRecord) -> Outcome,
    calls: Mutex<Vec<Vec<OutboxRecord>>>,
}

impl Bus {
    fn new(answer: fn(usize, &OutboxRecord) -> Outcome) -> Arc<Self> {
        Arc::new(Self {
            answer,
            calls: Mutex::default(),
        })
    }

    /// What it took, in order.
    fn taken(&self) -> Vec<OutboxRecord> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.concat()
    }
}

#[async_trait]
impl Publisher for Bus {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let call = calls.len();
        let outcomes: Vec<Outcome> = batch
            .iter()
            .map(|record| (self.answer)(call, record))
            .collect();
        let taken = batch
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Acked);
        calls.push(taken.map(|(record, _)| record.clone()).collect());
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }

    fn destination(&self, record: &OutboxRecord) -> Option<&str> {
        Some(match record.aggregate.id.as_deref() {
            Some("1") => "one",
            _ => "others",
        })
    }
}

fn quick() -> ReplaySettings {
    ReplaySettings {
        retry: RetrySettings {
            max_retry: 3,
            multiplier: Duration::from_millis(5),
            max_delay: Duration::from_millis(20),
        },
        ..ReplaySettings::default()
    }
}

/// Twelve sent events of three keys, some without a key, and one of each other state.
async fn past<S: TransactionalStore>(store: &S) -> Vec<Uuid> {
    let events = (0..12).map(|n| match n % 4 {
        0 => unordered(n),
        key => event(&key.to_string(), n),
    });
    let ids = commit(store, events).await;
    for id in &ids {
        settle(store, *id, Verdict::Sent).await;
    }
    let others = commit(
        store,
        [event("1", 100), event("dead", 101), event("2", 102)],
    )
    .await;
    settle(store, others[1], dead()).await;
    settle(store, others[2], retry(Duration::from_secs(60))).await;
    ids
}

async fn replayed<S: TransactionalStore>(
    store: &S,
    bus: &Arc<Bus>,
    settings: ReplaySettings,
) -> Replayed {
    let store = Arc::new(store.clone());
    replay(store, bus.clone(), settings, |_| {}, std::future::pending()).await
}

fn acked(_: usize, _: &OutboxRecord) -> Outcome {
    Outcome::Acked
}

/// What was sent goes out once more, the same bytes under the same ids, in the order of each key,
/// and nothing else does; nothing about it changes.
pub async fn a_replay_publishes_what_was_sent_in_order<S: TransactionalStore>(store: S) {
    let ids = past(&store).await;
    let before = ok(store.find(&ids).await);
    let bus = Bus::new(acked);
    let ended = replayed(&store, &bus, quick()).await;
    let last = before.iter().map(|record| record.seq).max();
    assert_eq!(
        (ended.published, ended.through, ended.end),
        (12, last, ReplayEnd::Done)
    );
    let mut taken = bus.taken();
    let mut last: HashMap<String, i64> = HashMap::new();
    for record in &taken {
        if let Some(key) = record.ordering_key() {
            let before = last.insert(key.to_string(), record.seq);
            assert!(before < Some(record.seq), "{record:?} is out of order");
        }
    }
    taken.sort_by_key(|record| record.seq);
    assert_eq!(taken, before, "byte for byte");
    assert_eq!(ok(store.find(&ids).await), before, "nothing changes");

    let some = ReplaySettings {
        filter: Filter {
            aggregate_id: Some("1".into()),
            ..Filter::default()
        },
        after: Some(before[1].seq),
        up_to: Some(before[8].seq),
        ..quick()
    };
    let found = ok(replayable(&store, bus.as_ref(), &some).await);
    assert_eq!((found.events, found.last), (1, Some(before[5].seq)));
    let bus = Bus::new(acked);
    assert_eq!(replayed(&store, &bus, some).await.published, 1);
    assert_eq!(bus.taken(), before[5..6]);
}

/// What is paused is kept back from a replay as well: it refuses before it begins, and names the pause.
pub async fn a_replay_publishes_nothing_that_is_paused<S: TransactionalStore>(store: S) {
    past(&store).await;
    let bus = Bus::new(acked);
    let found = ok(replayable(&store, bus.as_ref(), &quick()).await);
    let to = |name: &str| found.destinations.get(name).copied();
    assert_eq!((to("one"), to("others")), (Some(3), Some(9)));
    let tenant = found.tenants.keys().next().cloned().unwrap_or_default();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let begin = async || {
        let (bus, stop) = (bus.clone(), std::future::pending());
        found
            .publish_by("anna", shared.clone(), bus, quick(), |_| {}, stop)
            .await
    };
    for (kind, name, events) in [
        (Pausable::Tenant, tenant.as_str(), 12),
        (Pausable::Destination, "one", 3),
    ] {
        let names = [name.to_string()];
        ok(store.pause(kind, &names, "anna", None).await);
        let acts = ok(store.acts(None, 100).await).len();
        let Err(refused) = begin().await else {
            panic!("{kind} {name} is paused");
        };
        assert_eq!(refused.kind(), ErrorKind::Paused);
        for said in [
            format!("{kind} {name} ({events} of the events; `bento-outbox {kind}s resume {name}`)"),
            "by a filter for a tenant or a type".into(),
        ] {
            assert!(refused.to_string().contains(&said), "{refused}");
        }
        assert_eq!(ok(store.acts(None, 100).await).len(), acts, "nothing begun");
        assert_eq!(bus.taken(), []);
        ok(store.resume(kind, &names, "anna").await);
    }
    let elsewhere = ["of nobody".to_string()];
    let pause = store.pause(Pausable::Destination, &elsewhere, "anna", None);
    ok(pause.await);
    assert_eq!(
        ok(begin().await).published,
        12,
        "another pause is no matter"
    );
}

/// An event that is refused ends a replay, and it goes on where it ended.
pub async fn a_replay_goes_on_where_it_ended<S: TransactionalStore>(store: S) {
    let ids = past(&store).await;
    let records = ok(store.find(&ids).await);
    let bus = Bus::new(|_, record| match record.payload.ends_with(b":6}") {
        true => Outcome::rejected(RejectionClass::Permanent, "too large"),
        false => Outcome::Acked,
    });
    let ended = replayed(&store, &bus, quick()).await;
    let refused = ReplayEnd::Refused {
        id: ids[6],
        reason: "too large".into(),
    };
    assert_eq!(ended.end, refused);
    let through = ended.through.unwrap_or(-1);
    assert!(through < records[6].seq, "{through} of {records:?}");
    let taken = bus.taken();
    assert_eq!(ended.published, taken.len() as u64);
    let all_up_to = records.iter().filter(|record| record.seq <= through);
    assert!(
        all_up_to.clone().all(|record| taken.contains(record)),
        "up to {through} all are published"
    );
    let rest = ReplaySettings {
        after: Some(through),
        ..quick()
    };
    let more = Bus::new(acked);
    assert_eq!(replayed(&store, &more, rest).await.end, ReplayEnd::Done);
    let mut all: Vec<Uuid> = taken
        .iter()
        .chain(&more.taken())
        .map(|record| record.id)
        .collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 12, "nothing is left out");

    // Who may be taken another time is tried as often as any event is.
    let stubborn = Bus::new(|_, _| Outcome::rejected(RejectionClass::Message, "no"));
    let ended = replayed(&store, &stubborn, quick()).await;
    assert!(matches!(ended.end, ReplayEnd::Refused { .. }), "{ended:?}");
    let calls = stubborn
        .calls
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .len();
    assert_eq!((calls, ended.published, ended.through), (3, 0, None));
}

/// A bus that is away, asks to wait or gives no answer is tried again, a rate is kept, and a replay
/// that is told to stop ends.
pub async fn a_replay_waits_for_its_bus_and_stops_when_told_to<S: TransactionalStore>(store: S) {
    past(&store).await;
    let bus = Bus::new(|call, _| match call {
        0 => Outcome::rejected(RejectionClass::Unreachable, "nobody listens"),
        1 => Outcome::rejected(RejectionClass::Throttled(None), "slowly"),
        2 => Outcome::unknown("no answer"),
        _ => Outcome::Acked,
    });
    let waited = Arc::new(Mutex::new(Vec::new()));
    let told = waited.clone();
    let tell = move |progress: &bento_outbox::ReplayProgress| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.extend(progress.waits_for.clone());
    };
    let shared = Arc::new(store.clone());
    let ended = replay(shared.clone(), bus, quick(), tell, std::future::pending()).await;
    assert_eq!((ended.published, ended.end), (12, ReplayEnd::Done));
    let waited = waited
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    assert_eq!(waited, ["nobody listens", "slowly", "no answer"]);

    let begun = Instant::now();
    let slow = ReplaySettings {
        per_second: std::num::NonZeroU32::new(40),
        ..quick()
    };
    let ended = replayed(&store, &Bus::new(acked), slow).await;
    assert_eq!(ended.published, 12);
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(190),
        "12 at 40 a second took {took:?}"
    );

    let away = Bus::new(|_, _| Outcome::rejected(RejectionClass::Unreachable, "away"));
    let soon = tokio::time::sleep(Duration::from_millis(30));
    let stopped = replay(shared, away, quick(), |_| {}, soon);
    let stopped = tokio::time::timeout(patience(), stopped).await;
    assert_eq!(ok(stopped).end, ReplayEnd::Stopped);
}
