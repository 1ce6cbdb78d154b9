//! The bus inside the process.

mod subscriber;

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc};

use self::subscriber::Subscriber;
use crate::cloud_event::CloudEvents;
use crate::event::DomainEvent;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection};
use crate::registry::EventRegistry;

/// `memory:`, which hands events to subscribers in the same process.
///
/// An event is acknowledged when every subscriber to its type is done with it, see [`on`](Self::on),
/// and at once where there is none. It is as durable as what they did. A clone is the same bus. It
/// refuses what no broker could carry, so that a test fails here and not in production.
///
/// For tests and demonstrations it keeps what it acknowledged, and grows until
/// [`take_published`](Self::take_published) empties it; one that is made by
/// [`forgetful`](Self::forgetful) keeps nothing.
///
/// ```
/// # use std::sync::Arc;
/// # use bento_outbox::{DomainEvent, Event, OutboxRecord, Outcome, Publisher as _, Timestamp, publishers::MemoryPublisher};
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderPlaced { total_cents: i64 }
/// impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> bento_outbox::Result<()> {
/// let bus = MemoryPublisher::forgetful();
/// bus.on(async |event: OrderPlaced, record: Arc<OutboxRecord>| {
///     println!("tenant {} sold for {} cents", record.tenant, event.total_cents);
///     Ok::<_, std::io::Error>(())
/// });
/// # let event = Event::of(&OrderPlaced { total_cents: 4_200 })?;
/// # let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
/// # assert_eq!(bus.publish(&[record]).await, [Outcome::Acked]);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryPublisher {
    shared: Arc<Shared>,
}

struct Shared {
    keeps: bool,
    state: Mutex<State>,
    /// A place for each event that subscribers are at.
    places: Semaphore,
}

#[derive(Default)]
struct State {
    published: Vec<OutboxRecord>,
    readers: Vec<mpsc::UnboundedSender<OutboxRecord>>,
    subscribers: HashMap<&'static str, Vec<Subscriber>>,
    registry: Option<EventRegistry>,
}

/// What was published since [`MemoryPublisher::subscribe`], in that order.
///
/// A slow subscriber loses nothing: what it has not read yet waits in memory.
pub struct Subscription(mpsc::UnboundedReceiver<OutboxRecord>);

/// Events that subscribers are at, at once, at most.
const AT_ONCE_MAX: usize = 64;

impl Default for MemoryPublisher {
    fn default() -> Self {
        Self::that_keeps(true)
    }
}

impl MemoryPublisher {
    /// A bus that keeps nothing of what it published: for a service that runs on and on.
    pub fn forgetful() -> Self {
        Self::that_keeps(false)
    }

    fn that_keeps(keeps: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                keeps,
                state: Mutex::default(),
                places: Semaphore::new(AT_ONCE_MAX),
            }),
        }
    }

    /// Calls `subscriber` with each event of type `E` that is published from now on, and with the
    /// record that carried it.
    ///
    /// Its error, and its panic, is a failed attempt of the event, as with any bus: later the event
    /// is given to all subscribers of its type again, also to those who were done with it. So let a
    /// subscriber remember the ids it has seen, or do what may be done twice. An error that is a
    /// [`Rejection`] says by its class whose fault it was; all others cost an attempt. What an error
    /// says is stored beside the event, so let there be no secret in it. A payload that is no `E`, or has
    /// a field that `E` does not know, makes a dead letter, whose reason names the place in it. An
    /// event of another version than `E`'s waits until somebody has looked, unless the bus
    /// [reads with](Self::read_with) a registry that knows it.
    ///
    /// What the subscriber raises says that this event caused it: see [`handling`](crate::handling).
    ///
    /// Events of one aggregate come one after the other, those of others at the same time, at most
    /// 64. A subscriber that needs longer than 30 seconds is dropped, and called again later.
    pub fn on<E, X, F>(
        &self,
        subscriber: impl Fn(E, Arc<OutboxRecord>) -> F + Send + Sync + 'static,
    ) where
        E: DomainEvent + DeserializeOwned + Send + Sync + 'static,
        X: Display + 'static,
        F: Future<Output = Result<(), X>> + Send + 'static,
    {
        let mut state = self.state();
        let of_type = state.subscribers.entry(E::TYPE).or_default();
        of_type.push(Subscriber::new(subscriber));
    }

    /// Lets subscribers read by `registry`: events of old versions come to them as the newest.
    pub fn read_with(&self, registry: &EventRegistry) {
        self.state().registry = Some(registry.clone());
    }

    /// All that was published and not taken, in that order.
    pub fn published(&self) -> Vec<OutboxRecord> {
        self.state().published.clone()
    }

    /// All that was published and not taken, in that order, and forgets it.
    pub fn take_published(&self) -> Vec<OutboxRecord> {
        std::mem::take(&mut self.state().published)
    }

    /// Hands over what is published from now on, without a say in whether it is acknowledged.
    pub fn subscribe(&self) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().readers.push(sender);
        Subscription(receiver)
    }

    /// Lets every subscriber to the record's type have it. Their answers come later.
    fn tell_subscribers(&self, record: &OutboxRecord) -> Telling {
        let state = self.state();
        let Some(subscribers) = state.subscribers.get(record.event_type.as_str()) else {
            return Telling::Done(Outcome::Acked);
        };
        let (subscribers, record) = (subscribers.clone(), Arc::new(record.clone()));
        let registry = state.registry.clone();
        let shared = Arc::clone(&self.shared);
        Telling::Began(tokio::spawn(async move {
            // Never closed, so there is always a place in the end.
            let _place = shared.places.acquire().await;
            subscriber::tell(&subscribers, registry.as_ref(), &record).await
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What subscribers say to a record, now or later.
enum Telling {
    Done(Outcome),
    Began(tokio::task::JoinHandle<Outcome>),
}

impl Telling {
    async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            Self::Began(task) => task
                .await
                .unwrap_or_else(|error| Outcome::unknown(format!("its task ended: {error}"))),
        }
    }
}

impl State {
    fn keep(&mut self, record: &OutboxRecord, keeps: bool) {
        if keeps {
            self.published.push(record.clone());
        }
        self.readers
            .retain(|reader| reader.send(record.clone()).is_ok());
    }
}

impl Subscription {
    /// The next record; none when the bus is gone.
    ///
    /// # Cancel safety
    /// A dropped future has taken no record.
    pub async fn next(&mut self) -> Option<OutboxRecord> {
        self.0.recv().await
    }
}

#[async_trait]
impl Publisher for MemoryPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let events = CloudEvents::default();
        let tellings: Vec<Telling> = batch
            .iter()
            .map(|record| match events.message(record) {
                Ok(_) => self.tell_subscribers(record),
                Err(rejection) => Telling::Done(rejection.into()),
            })
            .collect();
        let mut outcomes = Vec::with_capacity(batch.len());
        for telling in tellings {
            outcomes.push(telling.outcome().await);
        }
        let mut state = self.state();
        for (record, _) in
            std::iter::zip(batch, &outcomes).filter(|(_, outcome)| **outcome == Outcome::Acked)
        {
            state.keep(record, self.shared.keeps);
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use serde::{Deserialize, Serialize};
    use tokio::sync::Barrier;

    use super::*;
    use crate::event::{Aggregate, Event, Payload};
    use crate::record::RejectionClass;
    use crate::timestamp::Timestamp;

    #[derive(Serialize, Deserialize)]
    struct Placed {
        total: i64,
    }

    impl DomainEvent for Placed {
        const TYPE: &'static str = "order.placed";
    }

    fn placed(total: i64) -> OutboxRecord {
        let event = Event {
            aggregate: Aggregate::new("order", total.to_string()),
            ..Event::of(&Placed { total }).unwrap()
        };
        OutboxRecord::of(&event, &Default::default(), total, Timestamp::now())
    }

    #[tokio::test]
    async fn what_a_subscriber_raises_says_what_caused_it() {
        #[derive(Serialize, Deserialize)]
        struct Paid;
        impl DomainEvent for Paid {
            const TYPE: &'static str = "paid";
        }

        let outbox = crate::outbox::Outbox::new(crate::stores::MemoryStore::default());
        let bus = MemoryPublisher::default();
        bus.on({
            let outbox = outbox.clone();
            move |_: Paid, _| {
                let outbox = outbox.clone();
                async move { outbox.run(async |_| crate::raise(Event::of(&Paid)?)).await }
            }
        });
        let mut cause = Event::of(&Paid).unwrap();
        cause.headers.insert("correlation_id", "c1").unwrap();
        let record = OutboxRecord::of(&cause, &Default::default(), 1, Timestamp::now());
        assert_eq!(bus.publish(&[record]).await, [Outcome::Acked]);
        let caused = &outbox.store().records()[0];
        let headers = caused.headers().unwrap();
        assert_eq!(
            headers.get("causation_id"),
            Some(cause.id.to_string().as_str())
        );
        assert_eq!(headers.get("correlation_id"), Some("c1"));
    }

    #[tokio::test]
    async fn an_event_is_acknowledged_when_all_who_asked_for_it_are_done() {
        let bus = MemoryPublisher::default();
        let (total, also) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (adds, counts) = (total.clone(), also.clone());
        bus.on(move |event: Placed, record: Arc<OutboxRecord>| {
            assert_eq!(record.seq, event.total);
            adds.fetch_add(usize::try_from(event.total).unwrap(), Ordering::Relaxed);
            async { Ok::<_, &str>(()) }
        });
        bus.on(move |event: Placed, _| {
            let counts = counts.clone();
            async move {
                if event.total == 2 {
                    return Err("not two\nof them");
                }
                counts.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        });
        let nobodys = Event::new("order.lost", Payload::json("1").unwrap());
        let nobodys = OutboxRecord::of(&nobodys, &Default::default(), 4, Timestamp::now());
        let batch = [placed(1), placed(2), placed(3), nobodys];
        let outcomes = bus.publish(&batch).await;
        let refused = Outcome::rejected(RejectionClass::Message, "not two of them");
        let acked = Outcome::Acked;
        assert_eq!(outcomes, [acked.clone(), refused, acked.clone(), acked]);
        let counted = [&total, &also].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(
            counted,
            [6, 2],
            "one's failure keeps nothing from the other"
        );
        let kept: Vec<i64> = bus.published().iter().map(|record| record.seq).collect();
        assert_eq!(kept, [1, 3, 4], "only what is acknowledged, in its order");
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_attempt_and_takes_nothing_along() {
        let bus = MemoryPublisher::forgetful();
        bus.on(|event: Placed, _| {
            assert_ne!(event.total, 1, "at once, with a s3cret");
            async move {
                assert_ne!(event.total, 2, "later, with a s3cret");
                Ok::<_, &str>(())
            }
        });
        let outcomes = bus.publish(&[placed(1), placed(2), placed(3)]).await;
        for outcome in &outcomes[..2] {
            let reason = "a subscriber to order.placed panicked";
            assert_eq!(*outcome, Outcome::rejected(RejectionClass::Message, reason));
        }
        assert_eq!(outcomes[2], Outcome::Acked);
        assert!(bus.published().is_empty());
    }

    #[tokio::test]
    async fn an_error_may_say_whose_fault_it_was() {
        let bus = MemoryPublisher::default();
        bus.on(async |event: Placed, _| match event.total {
            1 => Err(Rejection::new(RejectionClass::Permanent, "never")),
            2 => Err(Rejection::new(RejectionClass::Throttled(None), "later")),
            _ => Ok(()),
        });
        let outcomes = bus.publish(&[placed(1), placed(2), placed(3)]).await;
        let never = Outcome::rejected(RejectionClass::Permanent, "never");
        let later = Outcome::rejected(RejectionClass::Throttled(None), "later");
        assert_eq!(outcomes, [never, later, Outcome::Acked]);
    }

    #[tokio::test]
    async fn events_of_others_come_at_the_same_time_and_not_all_at_once() {
        let bus = MemoryPublisher::default();
        // It opens when so many are at it together: with fewer nobody would ever be done.
        let together = Arc::new(Barrier::new(AT_ONCE_MAX));
        let (now, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (at_it, at_most) = (now, most.clone());
        bus.on(move |_: Placed, _| {
            let (together, now, most) = (together.clone(), at_it.clone(), at_most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                together.wait().await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, &str>(())
            }
        });
        let batch: Vec<OutboxRecord> = (0..2 * AT_ONCE_MAX as i64).map(placed).collect();
        let outcomes = bus.publish(&batch).await;
        assert_eq!(outcomes, vec![Outcome::Acked; 2 * AT_ONCE_MAX]);
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_takes_for_ever_is_not_waited_for() {
        let bus = MemoryPublisher::default();
        bus.on(async |event: Placed, _| {
            let seconds = if event.total == 1 { 3_600 } else { 29 };
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok::<_, &str>(())
        });
        let outcomes = bus.publish(&[placed(1), placed(2)]).await;
        assert!(matches!(&outcomes[0], Outcome::Unknown { reason } if reason.contains("30s")));
        assert_eq!(outcomes[1], Outcome::Acked);
    }

    #[tokio::test]
    async fn a_dropped_wait_for_the_next_takes_no_record() {
        let bus = MemoryPublisher::default();
        let mut subscription = bus.subscribe();
        for total in 0..20 {
            let waited = tokio::time::timeout(Duration::ZERO, subscription.next()).await;
            assert!(waited.is_err(), "nothing is there");
            bus.publish(&[placed(total)]).await;
            assert_eq!(subscription.next().await.unwrap().seq, total);
        }
    }
}
