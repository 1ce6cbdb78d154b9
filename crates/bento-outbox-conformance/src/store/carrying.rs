//! The store under a projector: events arrive once, in order, whatever the bus answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bento_outbox::{
    Outcome, Projector, ProjectorSettings, Publisher, Rejection, RejectionClass, RetrySettings,
    raise,
};

use super::*;

/// A bus whose answers are decided by a function of (record, how often it was tried).
struct Bus<F> {
    answer: F,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    tries: HashMap<Uuid, u32>,
    delivered: Vec<OutboxRecord>,
}

fn bus<F>(answer: F) -> Arc<Bus<F>>
where
    F: Fn(&OutboxRecord, u32) -> Outcome + Send + Sync + 'static,
{
    Arc::new(Bus {
        answer,
        seen: Mutex::default(),
    })
}

impl<F> Bus<F> {
    fn delivered(&self) -> Vec<OutboxRecord> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .delivered
            .clone()
    }
}

#[async_trait]
impl<F> Publisher for Bus<F>
where
    F: Fn(&OutboxRecord, u32) -> Outcome + Send + Sync + 'static,
{
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut keys = HashSet::new();
        let twice = batch
            .iter()
            .filter_map(OutboxRecord::ordering_key)
            .find(|key| !keys.insert(*key));
        assert!(twice.is_none(), "two records of {twice:?} in one batch");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        batch
            .iter()
            .map(|record| {
                let tries = seen.tries.entry(record.id).or_default();
                *tries += 1;
                let outcome = (self.answer)(record, *tries);
                if outcome == Outcome::Acked {
                    seen.delivered.push(record.clone());
                }
                outcome
            })
            .collect()
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

fn quick() -> ProjectorSettings {
    let retry = RetrySettings {
        max_retry: 3,
        multiplier: Duration::from_millis(20),
        max_delay: Duration::from_millis(50),
    };
    ProjectorSettings {
        batch_size: 50,
        retry,
        ..ProjectorSettings::default()
    }
}

/// Runs rounds until nothing is left to send.
async fn drain<S, F>(store: &S, bus: &Arc<Bus<F>>) -> Vec<bento_outbox::Batch>
where
    S: Store + Clone,
    F: Fn(&OutboxRecord, u32) -> Outcome + Send + Sync + 'static,
{
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), quick());
    let mut batches = Vec::new();
    let patience = Timestamp::now().after(PATIENCE);
    loop {
        let batch = ok(projector.run_once().await);
        let done = batch.claimed == 0 && !batch.waiting;
        batches.push(batch);
        if done {
            return batches;
        }
        assert!(Timestamp::now() < patience, "the backlog does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn refuse(class: RejectionClass) -> Outcome {
    Outcome::rejected(class, "refused by the test")
}

/// Without faults everything is delivered once, in the order of `seq` within a key, and is `SENT`.
pub async fn every_event_is_carried_once_in_order<S: TransactionalStore>(store: S) {
    let events: Vec<Event> = (0..300)
        .map(|n| {
            if n % 10 == 0 {
                unordered(n)
            } else {
                event(&format!("k{}", n % 7), n)
            }
        })
        .collect();
    let outbox = Outbox::new(store.clone());
    for chunk in events.chunks(30) {
        ok(outbox
            .run(async |_| chunk.iter().cloned().try_for_each(raise))
            .await);
    }
    let bus = bus(|_, _| Outcome::Acked);
    let batches = drain(&store, &bus).await;
    assert_eq!(batches.iter().map(|batch| batch.sent).sum::<usize>(), 300);
    let delivered = bus.delivered();
    in_order(&delivered);
    let ids: HashSet<Uuid> = delivered.iter().map(|record| record.id).collect();
    assert_eq!((delivered.len(), ids.len()), (300, 300));
    assert_eq!(
        ok(store.status().await)
            .iter()
            .map(|tenant| tenant.sent)
            .sum::<u64>(),
        300
    );
}

/// One bad event in a batch costs only itself: its key waits and then goes on, others do not wait.
pub async fn a_refused_event_delays_only_its_own_key<S: TransactionalStore>(store: S) {
    let ids = commit(&store, (0..40).map(|n| event(&format!("k{}", n % 4), n))).await;
    let bad = ids[0];
    let bus = bus(move |record, tries| match (record.id == bad, tries) {
        (true, 1) => refuse(RejectionClass::Message),
        (true, 2) => Outcome::unknown("the answer was lost by the test"),
        _ => Outcome::Acked,
    });
    let batches = drain(&store, &bus).await;
    assert_eq!(
        (batches[0].sent, batches[0].retried),
        (30, 1),
        "three keys go on, one waits"
    );
    in_order(&bus.delivered());
    assert_eq!(bus.delivered().len(), 40);
    let delivery = the(&store, bad).await.delivery;
    assert_eq!(
        (delivery.status, delivery.retry_cnt),
        (Status::Sent, 1),
        "an unknown answer is not its fault"
    );
}

/// After its attempts, or at once when it will never be taken, an event is a dead letter.
pub async fn an_event_ends_as_a_dead_letter_after_its_attempts<S: TransactionalStore>(store: S) {
    let ids = commit(
        &store,
        [event("a", 1), event("a", 2), event("b", 3), event("b", 4)],
    )
    .await;
    let (refused, hopeless) = (ids[0], ids[2]);
    let bus = bus(move |record, _| match record.id {
        id if id == refused => refuse(RejectionClass::Message),
        id if id == hopeless => refuse(RejectionClass::Permanent),
        _ => Outcome::Acked,
    });
    let batches = drain(&store, &bus).await;
    assert_eq!(batches.iter().map(|batch| batch.dead).sum::<usize>(), 2);
    for (id, attempts) in [(refused, 3), (hopeless, 1)] {
        let delivery = the(&store, id).await.delivery;
        assert_eq!(
            (delivery.status, delivery.retry_cnt),
            (Status::Err, attempts)
        );
        assert_eq!(
            delivery.error_message.as_deref(),
            Some("refused by the test")
        );
    }
    assert_eq!(bus.delivered().len(), 2);
}

/// While the bus is away, no event is touched.
pub async fn a_bus_that_is_away_costs_no_attempt<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("a", 2), event("b", 3)]).await;
    for class in [RejectionClass::Unreachable, RejectionClass::Config] {
        let bus = bus(move |_, _| refuse(class));
        let projector = Projector::new(Arc::new(store.clone()), bus.clone(), quick());
        for _ in 0..10 {
            let batch = ok(projector.run_once().await);
            assert_eq!(
                (batch.claimed, batch.sent, batch.retried, batch.dead),
                (3, 0, 0, 0)
            );
            assert!(batch.stopped_by.is_some());
        }
    }
    for id in ids {
        assert_eq!(
            the(&store, id).await.delivery,
            bento_outbox::Delivery::default()
        );
    }
}

/// `run` carries what comes, and ends when it is told to, with nothing half-done.
pub async fn run_carries_until_it_is_told_to_stop<S: TransactionalStore>(store: S) {
    let bus = bus(|_, _| Outcome::Acked);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), quick());
    let running = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        projector.run(stopped).await
    });
    for n in 0..20 {
        commit(&store, [event("a", n)]).await;
    }
    let patience = Timestamp::now().after(PATIENCE);
    while bus.delivered().len() < 20 {
        assert!(
            Timestamp::now() < patience,
            "only {} of 20 events were carried",
            bus.delivered().len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = stop.send(());
    ok(ok(ok(tokio::time::timeout(PATIENCE, running).await)));
    in_order(&bus.delivered());
    let status = ok(store.status().await);
    assert_eq!((status[0].sent, status[0].new), (20, 0));
}

/// A dropped `run_once` finishes its batch: what was published is settled, so nothing comes twice.
pub async fn a_cancelled_round_goes_on_to_its_end<S: TransactionalStore>(store: S) {
    commit(&store, (0..20).map(|n| event(&n.to_string(), n))).await;
    let bus = bus(|_, _| Outcome::Acked);
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), quick());
    let _ = tokio::time::timeout(Duration::from_micros(1), projector.run_once()).await;
    let patience = Timestamp::now().after(PATIENCE);
    while !claim(&store).await.is_empty() {
        assert!(Timestamp::now() < patience, "the round was not finished");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drain(&store, &bus).await;
    assert_eq!(
        bus.delivered().len(),
        20,
        "an event was published twice without a fault"
    );
}

/// Within a key the first deliveries are in the order of `seq`.
fn in_order(delivered: &[OutboxRecord]) {
    let mut last: HashMap<String, i64> = HashMap::new();
    for record in delivered {
        if let Some(key) = record.ordering_key() {
            let before = last.insert(key.to_string(), record.seq).unwrap_or(i64::MIN);
            assert!(before < record.seq, "{key}: {} after {before}", record.seq);
        }
    }
}
