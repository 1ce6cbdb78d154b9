//! The store under a projector: events arrive once, in order, whatever the bus answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bento_outbox::{
    ImmediateSettings, Outcome, Projector, ProjectorSettings, Publisher, Rejection, RejectionClass,
    RetrySettings, raise,
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

impl<F> Bus<F>
where
    F: Fn(&OutboxRecord, u32) -> Outcome,
{
    fn answers(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
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
        let outcomes = self.answers(batch);
        // The answer takes a while, in which somebody else may publish the same.
        tokio::time::sleep(Duration::from_millis(1)).await;
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

/// Longer than a busy machine keeps a process from running: what is published twice then is published by a
/// fault of the relay's.
const LONG: Duration = Duration::from_secs(60);

pub(super) fn quick() -> ProjectorSettings {
    let retry = RetrySettings {
        max_retry: 3,
        multiplier: Duration::from_millis(20),
        max_delay: Duration::from_millis(50),
    };
    ProjectorSettings {
        batch_size: 50,
        lease_term: LONG,
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
    let deadline = Timestamp::now().after(patience());
    loop {
        let batch = ok(projector.run_once().await);
        let done = batch.claimed == 0 && !batch.waiting;
        batches.push(batch);
        if done {
            return batches;
        }
        assert!(Timestamp::now() < deadline, "the backlog does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn refuse(class: RejectionClass) -> Outcome {
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
        ok(projector.release().await);
    }
    for id in ids {
        assert_eq!(
            the(&store, id).await.delivery,
            bento_outbox::Delivery::default()
        );
    }
}

/// Batches are claimed while earlier ones are published and settled: nothing comes twice, and what
/// was claimed before a failure was known does not go past it.
pub async fn a_failure_holds_its_key_in_batches_claimed_meanwhile<S: TransactionalStore>(store: S) {
    let events: Vec<Event> = (0..240).map(|n| event(&format!("k{}", n % 4), n)).collect();
    let outbox = Outbox::new(store.clone());
    ok(outbox
        .run(async |_| events.iter().cloned().try_for_each(raise))
        .await);
    let bus = bus(|record, tries| match (record.seq % 9, tries) {
        (4, 1) => refuse(RejectionClass::Message),
        _ => Outcome::Acked,
    });
    let settings = ProjectorSettings {
        batch_size: 8,
        ..quick()
    };
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), settings);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = tokio::spawn(async move { projector.run(async { drop(stopped.await) }).await });
    sent(&store, 240).await;
    let _ = stop.send(());
    ok(ok(relay.await));
    in_order(&bus.delivered());
    assert_eq!(bus.delivered().len(), 240, "an event came twice");
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
    let deadline = Timestamp::now().after(patience());
    while bus.delivered().len() < 20 {
        assert!(
            Timestamp::now() < deadline,
            "only {} of 20 events were carried",
            bus.delivered().len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = stop.send(());
    ok(ok(ok(tokio::time::timeout(patience(), running).await)));
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
    let deadline = Timestamp::now().after(patience());
    while ok(store.status().await)[0].new > 0 {
        assert!(Timestamp::now() < deadline, "the round was not finished");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drain(&store, &bus).await;
    assert_eq!(
        bus.delivered().len(),
        20,
        "an event was published twice without a fault"
    );
}

pub(super) fn at_once() -> ImmediateSettings {
    ImmediateSettings {
        multiplier: Duration::from_millis(10),
        lease_term: LONG,
        ..ImmediateSettings::default()
    }
}

/// Immediate publishing and a relay at the same time: without faults nothing comes twice, and a
/// key is in order whichever of the two carried its events.
pub async fn at_once_and_by_a_relay_each_event_comes_once<S: TransactionalStore>(store: S) {
    let bus = bus(|_, _| Outcome::Acked);
    let outbox = Outbox::new(store.clone()).publish_with_settings(bus.clone(), at_once());
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), quick());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = tokio::spawn(async move { projector.run(async { drop(stopped.await) }).await });
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    let events = [
                        event(&format!("w{writer}"), n),
                        event(&format!("w{writer}-{}", n % 3), n),
                        unordered(n),
                    ];
                    ok(outbox
                        .run(async |_| events.into_iter().try_for_each(raise))
                        .await);
                }
            })
        })
        .collect();
    for writer in writers {
        ok(writer.await);
    }
    outbox.flushed().await;
    sent(&store, 300).await;
    let _ = stop.send(());
    ok(ok(relay.await));
    assert_eq!(
        bus.delivered().len(),
        300,
        "an event came twice without a fault"
    );
    in_order(&bus.delivered());
}

/// What the bus refuses at once is tried a few times, then handed over with its key in order.
pub async fn what_fails_at_once_is_the_relays<S: TransactionalStore>(store: S) {
    let bus = bus(|record, tries| match record.payload.ends_with(b":0}") {
        true if tries <= 5 => refuse(RejectionClass::Message),
        _ => Outcome::Acked,
    });
    let immediate = ImmediateSettings {
        tries: 2,
        ..at_once()
    };
    let outbox = Outbox::new(store.clone()).publish_with_settings(bus.clone(), immediate);
    let ids = [0, 1, 2].map(|n| event("a", n));
    let hopeless = unordered(3);
    ok(outbox
        .run(async |_| ids.clone().into_iter().try_for_each(raise))
        .await);
    ok(outbox.run(async |_| raise(hopeless.clone())).await);
    outbox.flushed().await;
    // `flushed` returns when all is settled: the failed one and those behind it are a relay's now.
    assert_eq!(bus.delivered().len(), 1);
    let failed = the(&store, ids[0].id).await.delivery;
    assert_eq!(
        (failed.status, failed.retry_cnt),
        (Status::New, 1),
        "all tries at once are one attempt"
    );
    let patient = ProjectorSettings {
        retry: RetrySettings {
            max_retry: 9,
            ..quick().retry
        },
        ..quick()
    };
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), patient);
    let deadline = Timestamp::now().after(patience());
    while bus.delivered().len() < 4 {
        assert!(
            Timestamp::now() < deadline,
            "only {} of 4 events were carried",
            bus.delivered().len()
        );
        ok(projector.run_once().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    in_order(&bus.delivered());
    sent(&store, 4).await;
}

/// An event that makes the process die whenever it is published does not do so for ever, and its
/// neighbours are carried.
pub async fn an_event_that_kills_the_relay_ends_as_a_dead_letter<S: TransactionalStore>(store: S) {
    let ids = commit(&store, (0..5).map(unordered)).await;
    let killer = ids[2];
    let lethal = bus(move |record, _| {
        assert!(record.id != killer, "a planned death of the relay");
        Outcome::Acked
    });
    // A relay that is kept from running for most of it publishes nothing, and so does not die either.
    let term = Duration::from_secs(1);
    let short = ProjectorSettings {
        lease_term: term,
        ..quick()
    };
    let deadline = Timestamp::now().after(2 * patience());
    let mut deaths = 0;
    while the(&store, killer).await.delivery.status != Status::Err {
        assert!(
            Timestamp::now() < deadline,
            "the killer kills for ever: {deaths} deaths"
        );
        let projector = Projector::new(Arc::new(store.clone()), lethal.clone(), short.clone());
        if projector.run_once().await.is_err() {
            deaths += 1;
            // A dead process gives no lease back.
            std::mem::forget(projector);
        }
        tokio::time::sleep(term / 4).await;
    }
    assert!((2..=6).contains(&deaths), "{deaths} deaths");
    let reason = the(&store, killer)
        .await
        .delivery
        .error_message
        .unwrap_or_default();
    assert!(reason.contains("died"), "{reason}");
    drain(&store, &lethal).await;
    let carried: HashSet<Uuid> = lethal.delivered().iter().map(|record| record.id).collect();
    assert_eq!(
        carried,
        ids.into_iter().filter(|id| *id != killer).collect()
    );
}

/// Waits until so many events are sent and nothing is left to send.
pub(super) async fn sent<S: Store>(store: &S, expected: u64) {
    let deadline = Timestamp::now().after(3 * patience());
    loop {
        let status = ok(store.status().await);
        let (sent, left) = status.iter().fold((0, 0), |(sent, left), t| {
            (sent + t.sent, left + t.new + t.retrying)
        });
        if sent == expected && left == 0 {
            return;
        }
        assert!(
            Timestamp::now() < deadline,
            "{sent} of {expected} sent, {left} left"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Within a key the first deliveries are in the order of `seq`.
pub(super) fn in_order(delivered: &[OutboxRecord]) {
    let mut last: HashMap<String, i64> = HashMap::new();
    for record in delivered {
        if let Some(key) = record.ordering_key() {
            let before = last.insert(key.to_string(), record.seq).unwrap_or(i64::MIN);
            assert!(before < record.seq, "{key}: {} after {before}", record.seq);
        }
    }
}
