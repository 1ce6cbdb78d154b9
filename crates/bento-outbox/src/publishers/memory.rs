//! The bus inside the process.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::cloud_event::CloudEvents;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection};

/// `memory:`, which keeps what was published and hands it to subscribers in the same process.
///
/// For tests and demonstrations: what it holds is as durable as the process, and grows until
/// [`take_published`](Self::take_published) empties it. A clone is the same bus. It refuses what no
/// broker could carry, so that a test fails here and not in production.
///
/// ```
/// # use bento_outbox::{Publisher as _, publishers::MemoryPublisher};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let bus = MemoryPublisher::default();
/// let mut events = bus.subscribe();
/// bus.publish(&[]).await;
/// assert!(bus.published().is_empty());
/// drop(bus);
/// assert!(events.next().await.is_none());
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryPublisher {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    published: Vec<OutboxRecord>,
    subscribers: Vec<mpsc::UnboundedSender<OutboxRecord>>,
}

/// What was published since [`MemoryPublisher::subscribe`], in that order.
///
/// A slow subscriber loses nothing: what it has not read yet waits in memory.
pub struct Subscription(mpsc::UnboundedReceiver<OutboxRecord>);

impl MemoryPublisher {
    /// All that was published and not taken, in that order.
    pub fn published(&self) -> Vec<OutboxRecord> {
        self.state().published.clone()
    }

    /// All that was published and not taken, in that order, and forgets it.
    pub fn take_published(&self) -> Vec<OutboxRecord> {
        std::mem::take(&mut self.state().published)
    }

    /// Hands over what is published from now on.
    pub fn subscribe(&self) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state().subscribers.push(sender);
        Subscription(receiver)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut state = self.state();
        let publish = |record: &OutboxRecord| {
            if let Err(rejection) = events.message(record) {
                return rejection.into();
            }
            state.published.push(record.clone());
            state
                .subscribers
                .retain(|subscriber| subscriber.send(record.clone()).is_ok());
            Outcome::Acked
        };
        batch.iter().map(publish).collect()
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}
