//! For the tests of code that raises events: a unit of work without a database.
//!
//! ```
//! use bento_outbox::testing::Unit;
//! use bento_outbox::{AggregateRoot, DomainEvent, Result, assert_raised};
//! # #[derive(serde::Serialize)] struct OrderPlaced { total_cents: i64 }
//! # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
//! # #[derive(serde::Serialize)] struct OrderShipped;
//! # impl DomainEvent for OrderShipped { const TYPE: &'static str = "order.shipped"; }
//! # struct Order { id: u64 }
//! # impl AggregateRoot for Order {
//! #     const KIND: &'static str = "order";
//! #     fn aggregate_id(&self) -> String { self.id.to_string() }
//! # }
//! # impl Order {
//! #     fn place(&mut self) -> Result<()> { self.raise(OrderPlaced { total_cents: 4_200 }) }
//! #     fn ship(&mut self) -> Result<()> { self.raise(OrderShipped) }
//! # }
//!
//! let mut order = Order { id: 7 };
//! let unit = Unit::default();
//! unit.track(|| order.place())?;
//! unit.track(|| order.ship())?;
//! assert_raised!(unit.raised(), [OrderPlaced { total_cents: 4_200 }, OrderShipped]);
//! # Ok::<_, bento_outbox::Error>(())
//! ```
//!
//! For whatever needs an [`Outbox`](crate::Outbox) there is
//! [`MemoryStore`](crate::stores::MemoryStore), and
//! [`MemoryPublisher`](crate::publishers::MemoryPublisher) for the bus: the macro takes their records
//! as well.

use std::fmt::Write as _;
use std::future::Future;

use serde_json::Value;
use uuid::Uuid;

use crate::door::Door;
use crate::error::Result;
use crate::event::Event;
use crate::pending::Scope;
use crate::registry::{Encoded, EventRegistry};
use crate::tenant::Tenant;

/// An open unit of work that writes nowhere: it keeps what is raised in it, to be looked at.
///
/// It refuses what a real one refuses before its commit. The default one is of the tenant `default`.
pub struct Unit {
    scope: Scope,
}

impl Default for Unit {
    fn default() -> Self {
        Self::of(Tenant::default())
    }
}

impl Unit {
    /// The unit of work of a tenant.
    pub fn of(tenant: Tenant) -> Self {
        Self {
            scope: Scope::new(Uuid::now_v7(), tenant, Door::default()),
        }
    }

    /// One without events yet, which checks them as
    /// [`Outbox::check_with`](crate::Outbox::check_with) does.
    #[must_use]
    pub fn check_with(self, registry: &EventRegistry) -> Self {
        let tenant = self.scope.tenant().clone();
        let door = Door::default().knowing(registry, true);
        Self {
            scope: Scope::new(Uuid::now_v7(), tenant, door),
        }
    }

    /// Runs domain code; the events that it raises belong to this unit of work.
    pub fn track<T>(&self, domain_code: impl FnOnce() -> T) -> T {
        self.scope.track(domain_code)
    }

    /// As [`track`](Self::track), for code that waits.
    pub fn enter<F: Future>(&self, domain_code: F) -> impl Future<Output = F::Output> + use<F> {
        self.scope.enter(domain_code)
    }

    /// What was raised until now, in that order, with the envelopes.
    pub fn raised(&self) -> Vec<Event> {
        self.scope.raised()
    }
}

/// Asserts that events, in order, are of these types and versions with these payloads. The events
/// are [`Event`]s or [`OutboxRecord`](crate::OutboxRecord)s, what is expected are
/// [`DomainEvent`](crate::DomainEvent)s of any types.
///
/// ```
/// # use bento_outbox::{DomainEvent, Event, assert_raised};
/// # #[derive(serde::Serialize)] struct OrderShipped;
/// # impl DomainEvent for OrderShipped { const TYPE: &'static str = "order.shipped"; }
/// assert_raised!([Event::of(&OrderShipped)?], [OrderShipped]);
/// # Ok::<_, bento_outbox::Error>(())
/// ```
///
/// # Panics
/// When they are not. Then both are shown with their payloads: this is for tests.
#[macro_export]
macro_rules! assert_raised {
    ($events:expr, [$($expected:expr),* $(,)?] $(,)?) => {
        if let ::core::result::Result::Err(difference) =
            $crate::testing::compare(&$events, [$($crate::Event::of(&$expected)),*])
        {
            ::core::panic!("{difference}");
        }
    };
}

/// What [`assert_raised!`](crate::assert_raised) asks.
#[doc(hidden)]
pub fn compare<'a, T: 'a>(
    events: impl IntoIterator<Item = &'a T>,
    expected: impl IntoIterator<Item = Result<Event>>,
) -> Result<(), String>
where
    Encoded<'a>: From<&'a T>,
{
    let raised: Vec<Seen> = events
        .into_iter()
        .map(|event| Seen::of(event.into()))
        .collect();
    let expected = expected
        .into_iter()
        .map(|event| event.map(|event| Seen::of((&event).into())))
        .collect::<Result<Vec<Seen>>>()
        .map_err(|error| format!("what is expected is no event: {}", error.report()))?;
    if raised == expected {
        return Ok(());
    }
    let mut text = String::from("the events are not those expected\n");
    for at in 0..raised.len().max(expected.len()) {
        let shown = |seen: Option<&Seen>| seen.map_or("nothing".into(), Seen::shown);
        let (raised, expected) = (raised.get(at), expected.get(at));
        let _ = write!(text, "\n{}. {}", at + 1, shown(raised));
        if raised != expected {
            let _ = write!(text, "\n   expected {}", shown(expected));
        }
    }
    Err(text)
}

/// An event as far as it is compared.
#[derive(PartialEq)]
struct Seen {
    event_type: String,
    version: u32,
    payload: Result<Value, Vec<u8>>,
}

impl Seen {
    fn of(event: Encoded<'_>) -> Self {
        Self {
            event_type: event.event_type.into(),
            version: event.version,
            payload: serde_json::from_slice(event.payload).map_err(|_| event.payload.into()),
        }
    }

    fn shown(&self) -> String {
        let payload = match &self.payload {
            Ok(json) => json.to_string(),
            Err(bytes) => format!("<{} bytes>", bytes.len()),
        };
        format!("{} version {}: {payload}", self.event_type, self.version)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde::Serialize;

    use super::*;
    use crate::event::{DomainEvent, Payload};
    use crate::outbox::Outbox;
    use crate::projector::Projector;
    use crate::publishers::MemoryPublisher;
    use crate::stores::MemoryStore;

    #[derive(Serialize)]
    struct Placed {
        cents: i64,
    }
    impl DomainEvent for Placed {
        const TYPE: &'static str = "placed";
        const VERSION: u32 = 2;
    }

    #[derive(Serialize)]
    struct Shipped;
    impl DomainEvent for Shipped {
        const TYPE: &'static str = "shipped";
    }

    fn raise<E: DomainEvent>(event: E) -> Result<()> {
        crate::raise(Event::of(&event)?)
    }

    #[tokio::test]
    async fn what_is_raised_in_a_unit_without_a_database_is_there_in_order() {
        let unit = Unit::of("acme".parse().unwrap());
        assert_raised!(unit.raised(), []);
        unit.track(|| raise(Placed { cents: 1 })).unwrap();
        unit.enter(async { raise(Shipped) }).await.unwrap();
        assert_raised!(unit.raised(), [Placed { cents: 1 }, Shipped]);
        assert_eq!(unit.raised()[0].tenant.as_ref().unwrap().as_str(), "acme");
        assert!(raise(Shipped).is_err(), "outside of it");
        let foreign = Event {
            tenant: Some(Tenant::default()),
            ..Event::of(&Shipped).unwrap()
        };
        assert!(unit.track(|| crate::raise(foreign)).is_err());
        let none = EventRegistry::new([]).unwrap();
        assert!(
            Unit::default()
                .check_with(&none)
                .track(|| raise(Shipped))
                .is_err()
        );
    }

    #[tokio::test]
    async fn what_a_store_and_a_bus_have_is_compared_as_well() {
        let (store, bus) = (MemoryStore::default(), MemoryPublisher::default());
        let outbox = Outbox::new(store.clone());
        outbox
            .run(async |_| raise(Placed { cents: 1 }))
            .await
            .unwrap();
        assert_raised!(store.records(), [Placed { cents: 1 }]);
        let projector = Projector::new(Arc::new(store), Arc::new(bus.clone()), Default::default());
        projector.run_once().await.unwrap();
        assert_raised!(bus.published(), [Placed { cents: 1 }]);
    }

    #[test]
    fn a_difference_shows_both_sides() {
        let events = || {
            [
                Event::of(&Placed { cents: 1 }).unwrap(),
                Event::of(&Shipped).unwrap(),
            ]
        };
        let said =
            |expected: Vec<Event>| compare(&events(), expected.into_iter().map(Ok)).unwrap_err();
        assert_eq!(
            said(vec![Event::of(&Placed { cents: 2 }).unwrap()]),
            "the events are not those expected\n\
             \n1. placed version 2: {\"cents\":1}\n   expected placed version 2: {\"cents\":2}\
             \n2. shipped version 1: null\n   expected nothing"
        );
        let [placed, shipped] = events();
        assert!(said(vec![shipped, placed]).contains("expected shipped"));
        let [placed, _] = events();
        let other = Event::new("shipped", Payload::Data(vec![1].into()));
        assert!(
            said(vec![placed.clone(), other]).ends_with("expected shipped version 1: <1 bytes>")
        );
        let newer = Event {
            schema_version: 3,
            ..placed
        };
        let newer = [newer];
        assert!(compare(&newer, newer.clone().map(Ok)).is_ok());
        let [newer] = newer;
        assert!(said(vec![newer]).contains("expected placed version 3"));
    }
}
