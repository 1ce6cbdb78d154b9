//! The seam to a message bus.

use async_trait::async_trait;

use crate::event::Event;
use crate::record::{OutboxRecord, Outcome, Rejection};

/// A message bus seen from the relay.
#[async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// Publishes a batch and answers for every record of it, in the order given.
    ///
    /// - [`Outcome::Acked`] means: the bus has this record durably. Nothing less is acked.
    /// - The batch is pipelined: an adapter sends all of it before it waits for answers, and sends
    ///   in the order given. No two records of a batch have one ordering key.
    /// - Every wait has a deadline; a record whose answer did not come is [`Outcome::Unknown`].
    ///
    /// # Cancel safety
    /// The relay never drops this future. One who does must take every record as unknown.
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome>;

    /// Whether the bus can be reached and is set up so that "acked" is durable.
    ///
    /// # Errors
    /// What is wrong and what to do, with class `Unreachable` or `Config`.
    async fn check(&self) -> Result<(), Rejection>;

    /// Why one of its destinations has taken nothing for a while, although it may be reached: as a
    /// publisher that keeps count of that knows from the last answers. Defaults to none.
    fn refuses(&self) -> Option<Rejection> {
        None
    }

    /// How many bytes the payload of `event` may have, where the bus has said so by now. What is
    /// larger is refused for good when it is published; a service that knows its bus refuses it
    /// before the commit. Defaults to none: not known.
    fn payload_bytes_max(&self, event: &Event) -> Option<usize> {
        let _ = event;
        None
    }

    /// The name of the destination that a record goes to, by which operators pause it. Defaults to
    /// none: it cannot be paused.
    fn destination(&self, record: &OutboxRecord) -> Option<&str> {
        let _ = record;
        None
    }

    /// What the way in which the bus is set up takes from "acked is durable", a sentence each with
    /// what to change; asked after a check that was content. None unless an adapter says so.
    async fn caveats(&self) -> Vec<String> {
        Vec::new()
    }
}
