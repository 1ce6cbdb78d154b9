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
use crate::event::{DomainEvent, Event};
use crate::pending::Scope;
use crate::registry::{Encoded, EventRegistry};
use crate::tenant::Tenant;

/// An open unit of work that writes nowhere: it keeps what is raised in it, to be looked at.
///
/// It refuses what a real one refuses before its commit. The default one is of the tenant `default`,
/// and knows no bus: how large a payload may be is what [`payload_bytes_max`](Self::payload_bytes_max)
/// says, up to [`PAYLOAD_BYTES_MAX`](crate::PAYLOAD_BYTES_MAX).
pub struct Unit {
    door: Door,
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
        Self::behind(Door::default(), tenant)
    }

    /// One without events yet, which checks them as
    /// [`Outbox::check_with`](crate::Outbox::check_with) does.
    #[must_use]
    pub fn check_with(self, registry: &EventRegistry) -> Self {
        Self::behind(
            self.door.knowing(registry, true),
            self.scope.tenant().clone(),
        )
    }

    /// One without events yet, which refuses payloads of more bytes, as an outbox does that
    /// [publishes](crate::Outbox::publish_with) to a bus which takes so many.
    #[must_use]
    pub fn payload_bytes_max(self, most: usize) -> Self {
        Self::behind(
            self.door.refusing_over(move |_| Some(most)),
            self.scope.tenant().clone(),
        )
    }

    fn behind(door: Door, tenant: Tenant) -> Self {
        Self {
            scope: Scope::new(Uuid::now_v7(), tenant, door.clone()),
            door,
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
/// are [`Event`]s or [`OutboxRecord`](crate::OutboxRecord)s. What is expected is
///
/// - a list in brackets, of [`DomainEvent`]s of any types, of references to some, and of [`Event`]s;
/// - or any expression that is many of one of these: a variable, a `Vec`, an iterator.
///
/// ```
/// # use bento_outbox::{DomainEvent, Event, assert_raised};
/// # #[derive(serde::Serialize)] struct OrderPlaced { total_cents: i64 }
/// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
/// # #[derive(serde::Serialize)] struct OrderShipped;
/// # impl DomainEvent for OrderShipped { const TYPE: &'static str = "order.shipped"; }
/// let placed = OrderPlaced { total_cents: 4_200 };
/// let raised = [Event::of(&placed)?, Event::of(&OrderShipped)?];
/// assert_raised!(raised, [placed, OrderShipped]);
///
/// let expected = vec![OrderPlaced { total_cents: 1 }, OrderPlaced { total_cents: 2 }];
/// let raised = [Event::of(&expected[0])?, Event::of(&expected[1])?];
/// assert_raised!(raised, &expected);
/// assert_raised!(raised, (1..=2).map(|total_cents| OrderPlaced { total_cents }));
/// # Ok::<_, bento_outbox::Error>(())
/// ```
///
/// A pattern it does not take: what a payload is not known to be in full, look at in `raised()`.
///
/// # Panics
/// When they are not. Then both are shown with their payloads: this is for tests.
#[macro_export]
macro_rules! assert_raised {
    ($events:expr, [$($expected:expr),* $(,)?] $(,)?) => {
        $crate::testing::assert_same(
            $crate::testing::compare(
                &$events,
                [$($crate::testing::Expected::event(&$expected)),*],
            )
        )
    };
    ($events:expr, $expected:expr $(,)?) => {
        $crate::testing::assert_same(
            $crate::testing::compare(&$events, $crate::testing::events($expected))
        )
    };
}

/// What [`assert_raised!`](crate::assert_raised) expects.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is nothing that can be raised",
    label = "expected a `DomainEvent` or an `Event`",
    note = "what is expected is a list in brackets, or many of one type"
)]
pub trait Expected {
    /// The event with its envelope.
    fn event(&self) -> Result<Event>;
}

impl<E: DomainEvent> Expected for E {
    fn event(&self) -> Result<Event> {
        Event::of(self)
    }
}

impl Expected for Event {
    fn event(&self) -> Result<Event> {
        Ok(self.clone())
    }
}

impl Expected for &Event {
    fn event(&self) -> Result<Event> {
        Ok((*self).clone())
    }
}

/// Those that [`assert_raised!`](crate::assert_raised) is given as one expression.
#[doc(hidden)]
pub fn events<T: ManyExpected>(expected: T) -> Vec<Result<Event>> {
    expected.events()
}

/// What [`assert_raised!`](crate::assert_raised) expects, as one expression.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not many events",
    label = "expected a list in brackets, or many of one type",
    note = "write a single event as `[event]`"
)]
pub trait ManyExpected {
    /// Each with its envelope.
    fn events(self) -> Vec<Result<Event>>;
}

impl<I: IntoIterator<Item: Expected>> ManyExpected for I {
    fn events(self) -> Vec<Result<Event>> {
        self.into_iter().map(|expected| expected.event()).collect()
    }
}

/// Ends [`assert_raised!`](crate::assert_raised).
#[doc(hidden)]
#[track_caller]
pub fn assert_same(compared: Result<(), String>) {
    if let Err(difference) = compared {
        panic!("{difference}");
    }
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

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::error::ErrorKind;
    use crate::event::Payload;
    use crate::outbox::Outbox;
    use crate::projector::Projector;
    use crate::publishers::MemoryPublisher;
    use crate::registry::EventType;
    use crate::stores::MemoryStore;

    #[derive(Serialize, Deserialize)]
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

    #[test]
    fn what_is_expected_may_be_any_expression() {
        let placed = || Placed { cents: 1 };
        let events = [Event::of(&placed()).unwrap(), Event::of(&Shipped).unwrap()];
        let (variable, copy) = (placed(), events[1].clone());
        assert_raised!(events, [variable, Shipped]);
        assert_raised!(events, [&variable, copy]);
        assert_raised!(events, &events);
        assert_raised!(events, events.clone());
        assert_raised!(events[..1], vec![placed()]);
        let many = vec![placed()];
        assert_raised!(events[..1], &many);
        assert_raised!(events[..1], many.iter().take(1));
        let difference = std::panic::catch_unwind(|| assert_raised!(events, vec![placed()]));
        let said = difference.unwrap_err().downcast::<String>().unwrap();
        assert!(
            said.ends_with("2. shipped version 1: null\n   expected nothing"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_limit_refuses_as_an_outbox_with_such_a_bus_does() {
        struct Small;
        #[async_trait::async_trait]
        impl crate::publisher::Publisher for Small {
            async fn publish(&self, _: &[crate::OutboxRecord]) -> Vec<crate::Outcome> {
                Vec::new()
            }
            async fn check(&self) -> Result<(), crate::Rejection> {
                Ok(())
            }
            fn payload_bytes_max(&self, _: &Event) -> Option<usize> {
                Some(11)
            }
        }
        let unit = Unit::default().payload_bytes_max(11);
        let event = |cents| Event::of(&Placed { cents }).unwrap();
        unit.track(|| crate::raise(event(1))).unwrap();
        let large = event(10);
        let refused = unit.track(|| crate::raise(large.clone())).unwrap_err();
        let outbox = Outbox::new(MemoryStore::default()).publish_with(Small);
        let in_production = outbox.run(async |_| crate::raise(large.clone())).await;
        let in_production = in_production.unwrap_err();
        assert_eq!(
            (refused.kind(), refused.to_string()),
            (in_production.kind(), in_production.to_string())
        );
        assert_eq!(refused.kind(), ErrorKind::InvalidEvent);
        // Neither undoes the other.
        let registry = EventRegistry::new([EventType::of::<Placed>().oldest_version(2)]).unwrap();
        for unit in [
            Unit::default().check_with(&registry).payload_bytes_max(11),
            Unit::default().payload_bytes_max(11).check_with(&registry),
        ] {
            unit.track(|| crate::raise(event(1))).unwrap();
            assert!(unit.track(|| crate::raise(event(10))).is_err());
            assert!(unit.track(|| raise(Shipped)).is_err());
        }
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
