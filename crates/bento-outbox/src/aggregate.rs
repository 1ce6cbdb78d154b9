//! Where domain events come from.

use crate::error::Result;
use crate::event::{Aggregate, DomainEvent, Event};
use crate::pending;

/// An entity that raises events when it changes, and within which they are ordered.
///
/// It knows no unit of work: [`raise`](AggregateRoot::raise) finds the one that is open.
///
/// ```
/// use bento_outbox::{AggregateRoot, DomainEvent, Result};
///
/// #[derive(serde::Serialize)]
/// struct OrderShipped;
/// impl DomainEvent for OrderShipped { const TYPE: &'static str = "order.shipped"; }
///
/// struct Order { id: u64, shipped: bool }
/// impl AggregateRoot for Order {
///     const KIND: &'static str = "order";
///     fn aggregate_id(&self) -> String { self.id.to_string() }
/// }
///
/// impl Order {
///     fn ship(&mut self) -> Result<()> {
///         self.shipped = true;
///         self.raise(OrderShipped)
///     }
/// }
///
/// // No unit of work is open here, and the caller sees it:
/// assert!(Order { id: 7, shipped: false }.ship().is_err());
/// ```
pub trait AggregateRoot {
    /// The kind of aggregate, `order`: the column `aggregate_type`.
    const KIND: &'static str;

    /// The id within the kind: the column `aggregate_id`.
    fn aggregate_id(&self) -> String;

    /// Says that `event` happened to this aggregate. The open unit of work commits it.
    ///
    /// # Errors
    /// [`ErrorKind::NoUnitOfWork`](crate::ErrorKind::NoUnitOfWork) when none is open in this task
    /// (a spawned task does not inherit one), [`UnitOfWorkEnded`](crate::ErrorKind::UnitOfWorkEnded)
    /// when it has ended, [`InvalidEvent`](crate::ErrorKind::InvalidEvent) when the event cannot be
    /// carried. In each case nothing is kept.
    fn raise<E: DomainEvent>(&self, event: E) -> Result<()> {
        pending::raise(self.event(&event)?)
    }

    /// The event with this aggregate's envelope, for [`Outbox::append`](crate::Outbox::append) and
    /// for whoever wants to add to it before it is raised by [`raise`](crate::raise).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`](crate::ErrorKind::InvalidEvent) when it cannot be serialised.
    fn event<E: DomainEvent>(&self, event: &E) -> Result<Event> {
        Ok(Event {
            aggregate: Aggregate::new(Self::KIND, self.aggregate_id()),
            ..Event::of(event)?
        })
    }
}
