//! Many relays and writers on one store, under faults.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bento_outbox::{
    ImmediateSettings, Outcome, Projector, ProjectorSettings, Publisher, Rejection, RejectionClass,
    RetrySettings,
};

use super::carrying::{at_once, in_order, quick, refuse, sent};
use super::*;

/// The scenario that naive outboxes fail: writers that serialise on their keys and sometimes roll
/// back, immediate publishing, several relays, a bus that refuses, loses answers and stalls beyond
/// the leases. Nothing is lost, nothing invented, no first delivery comes before an earlier one.
pub async fn many_relays_and_writers_under_faults_lose_and_invert_nothing<S: TransactionalStore>(
    store: S,
) {
    const KEYS: usize = 12;
    let bus = Arc::new(FaultyBus::default());
    let term = Duration::from_millis(600);
    let settings = ProjectorSettings {
        retry: RetrySettings {
            max_retry: 1_000,
            ..quick().retry
        },
        poll_interval_busy: Duration::from_millis(10),
        poll_interval_idle: Duration::from_millis(50),
        lease_term: term,
        ..quick()
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let relays: Vec<_> = (0..3)
        .map(|_| {
            let projector = Projector::new(Arc::new(store.clone()), bus.clone(), settings.clone());
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                projector
                    .run(async { drop(stopped.wait_for(|stop| *stop).await) })
                    .await
            })
        })
        .collect();
    let keys: Arc<Vec<tokio::sync::Mutex<u32>>> =
        Arc::new((0..KEYS).map(|_| tokio::sync::Mutex::new(0)).collect());
    let writers: Vec<_> = (0..3_usize)
        .map(|writer| {
            let immediate = ImmediateSettings {
                lease_term: term,
                ..at_once()
            };
            let outbox = Outbox::new(store.clone()).publish_with_settings(bus.clone(), immediate);
            let keys = keys.clone();
            tokio::spawn(async move {
                let mut committed = Vec::new();
                for n in 0..60_usize {
                    // A writer holds its key's lock until its transaction has ended.
                    let key = (n * 7 + writer * 5) % KEYS;
                    let mut last = keys[key].lock().await;
                    let event = event(&format!("k{key}"), *last + 1);
                    let id = event.id;
                    let mut uow = ok(outbox.begin().await);
                    ok(uow.raise(event));
                    if n % 20 == 13 {
                        ok(uow.rollback().await);
                    } else {
                        ok(uow.commit().await);
                        *last += 1;
                        committed.push(id);
                    }
                }
                committed
            })
        })
        .collect();
    let mut committed = HashSet::new();
    for writer in writers {
        committed.extend(ok(writer.await));
    }
    sent(&store, committed.len() as u64).await;
    let _ = stop.send(true);
    for relay in relays {
        ok(ok(relay.await));
    }
    let delivered = bus.delivered();
    let mut first = HashSet::new();
    let firsts: Vec<OutboxRecord> = delivered
        .iter()
        .filter(|record| first.insert(record.id))
        .cloned()
        .collect();
    assert_eq!(committed.difference(&first).count(), 0, "lost");
    assert_eq!(first.difference(&committed).count(), 0, "phantom");
    in_order(&firsts);
    assert!(
        delivered.len() > committed.len(),
        "no answer was lost: the faults did not bite"
    );
}

/// A bus that refuses one publication in 12, loses one answer in 20, and stalls now and then for
/// longer than a lease, before or after it has the record.
#[derive(Default)]
struct FaultyBus {
    calls: std::sync::atomic::AtomicU64,
    delivered: Mutex<Vec<OutboxRecord>>,
}

impl FaultyBus {
    fn delivered(&self) -> Vec<OutboxRecord> {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[async_trait]
impl Publisher for FaultyBus {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for record in batch {
            let call = self
                .calls
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if call % 61 == 37 {
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
            if call % 12 == 5 {
                outcomes.push(refuse(RejectionClass::Message));
                continue;
            }
            self.delivered
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(record.clone());
            if call % 20 == 11 {
                outcomes.push(Outcome::unknown("the answer was lost by the test"));
            } else {
                outcomes.push(Outcome::Acked);
            }
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}
