//! Several buses as one: each event goes to the one that its type and tenant are routed to.

mod breaker;
mod place;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use self::place::Place;
use crate::event::Event;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::RetrySettings;
use crate::selector::Selector;
use crate::tenant::Tenant;

/// A publisher that routes: one destination an event, chosen by its type and tenant.
///
/// A destination that cannot be reached, or is set up so that it takes no events, delays its own
/// events and no others. They cost no attempt: they are answered
/// [`Throttled`](RejectionClass::Throttled), with a pause that grows to the longest delay, and one
/// of them is then the probe that finds out whether the destination is back. Only while no
/// destination can be tried is the bus as a whole [`Unreachable`](RejectionClass::Unreachable).
///
/// A destination that can be reached and yet has refused everything for a while is not well: the
/// [check](Publisher::check) says so until it takes an event.
///
/// With one destination it is otherwise that destination's publisher and nothing else.
///
/// ```
/// # use std::sync::Arc;
/// # use bento_outbox::{Destination, MessageBus, RetrySettings, Route, Selector, publishers::MemoryPublisher};
/// let (main, audit) = (MemoryPublisher::default(), MemoryPublisher::default());
/// let bus = MessageBus::new(
///     Destination { name: "main".into(), publisher: Arc::new(main) },
///     vec![Route {
///         events: Selector { event_type: "audit.*".parse()?, ..Selector::default() },
///         destination: Destination { name: "audit".into(), publisher: Arc::new(audit) },
///     }],
///     &RetrySettings::default(),
/// );
/// # Ok::<_, bento_outbox::Error>(())
/// ```
pub struct MessageBus {
    routes: Vec<(Selector, usize)>,
    /// The first is for what no route picks.
    places: Vec<Arc<Place>>,
}

/// A bus that events may be routed to.
#[derive(Clone)]
pub struct Destination {
    /// What log lines, reasons and [pauses](crate::Pause) call it, without a secret. Of one name,
    /// all are paused together.
    pub name: String,
    /// The bus. Routes to the same one share a circuit breaker.
    pub publisher: Arc<dyn Publisher>,
}

/// Events that have a destination of their own.
#[derive(Clone)]
pub struct Route {
    /// Which events.
    pub events: Selector,
    /// Where they go.
    pub destination: Destination,
}

/// The shortest time that a record is put aside for.
const PAUSE_MIN: Duration = Duration::from_millis(10);

impl MessageBus {
    /// A bus of `otherwise` and the destinations of `routes`, of which the first that picks an event
    /// decides. The delays of `pauses` are those before a destination that was away is tried again.
    pub fn new(otherwise: Destination, routes: Vec<Route>, pauses: &RetrySettings) -> Self {
        let mut bus = Self {
            routes: Vec::with_capacity(routes.len()),
            places: Vec::new(),
        };
        bus.place(otherwise, pauses);
        for Route {
            events,
            destination,
        } in routes
        {
            let place = bus.place(destination, pauses);
            bus.routes.push((events, place));
        }
        bus
    }

    /// The number of a destination, which is entered if it is new.
    fn place(&mut self, destination: Destination, pauses: &RetrySettings) -> usize {
        let same = |place: &Arc<Place>| {
            std::ptr::addr_eq(
                Arc::as_ptr(&place.destination.publisher),
                Arc::as_ptr(&destination.publisher),
            )
        };
        self.places.iter().position(same).unwrap_or_else(|| {
            self.places
                .push(Arc::new(Place::new(destination, pauses.clone())));
            self.places.len() - 1
        })
    }

    /// The number of the destination of such an event.
    fn route(&self, event_type: &str, tenant: &Tenant) -> usize {
        let picks = |(events, _): &&(Selector, usize)| events.matches(event_type, tenant);
        self.routes
            .iter()
            .find(picks)
            .map_or(0, |(_, place)| *place)
    }

    /// What the relay is told: it goes on with other records as long as there may be some that go
    /// out, and stops where there can be none.
    fn translated(&self, place: &Place, outcome: Outcome) -> Outcome {
        let Outcome::Rejected(Rejection { class, reason }) = outcome else {
            return outcome;
        };
        if !matches!(class, RejectionClass::Unreachable | RejectionClass::Config) {
            return Rejection { class, reason }.into();
        }
        let now = Instant::now().into_std();
        let class = match self.places.iter().any(|place| place.breaker().takes(now)) {
            true => RejectionClass::Throttled(Some(place.breaker().pause(now).max(PAUSE_MIN))),
            false => RejectionClass::Unreachable,
        };
        let reason = format!("{} takes no events: {reason}", place.destination.name);
        Outcome::rejected(class, reason)
    }
}

#[async_trait]
impl Publisher for MessageBus {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        if let [only] = &self.places[..] {
            return only.send(batch).await;
        }
        let mut parts: Vec<(Vec<usize>, Vec<OutboxRecord>)> = Vec::new();
        parts.resize_with(self.places.len(), Default::default);
        for (at, record) in batch.iter().enumerate() {
            let part = &mut parts[self.route(&record.event_type, &record.tenant)];
            part.0.push(at);
            part.1.push(record.clone());
        }
        // Each in a task of its own: what one of them does not survive, the others do.
        let parts: Vec<_> = std::iter::zip(&self.places, parts)
            .filter(|(_, (at, _))| !at.is_empty())
            .map(|(place, (at, records))| {
                let work = Arc::clone(place);
                (
                    place,
                    at,
                    tokio::spawn(async move { work.carry(records).await }),
                )
            })
            .collect();
        let mut answered = Vec::with_capacity(parts.len());
        for (place, at, outcomes) in parts {
            answered.push((place, at, outcomes.await.unwrap_or_default()));
        }
        // All have answered before any is translated: it depends on all of them.
        let mut outcomes = vec![Outcome::unknown("its destination gave no answer"); batch.len()];
        for (place, at, of_place) in answered {
            for (at, outcome) in std::iter::zip(at, of_place) {
                outcomes[at] = self.translated(place, outcome);
            }
        }
        outcomes
    }

    /// Whether every destination can be reached, and has not been refusing everything for a while;
    /// answers the first of which that is not so.
    async fn check(&self) -> Result<(), Rejection> {
        if let Some(rejection) = self.refuses() {
            return Err(rejection);
        }
        if let [only] = &self.places[..] {
            return only.destination.publisher.check().await;
        }
        let checks: Vec<_> = self
            .places
            .iter()
            .map(|place| {
                let Destination { name, publisher } = place.destination.clone();
                tokio::spawn(async move {
                    publisher.check().await.map_err(|rejection| {
                        Rejection::new(rejection.class, format!("{name}: {}", rejection.reason))
                    })
                })
            })
            .collect();
        for check in checks {
            check.await.unwrap_or_else(|panic| {
                let reason = format!("its check ended abruptly: {panic}");
                Err(Rejection::new(RejectionClass::Unreachable, reason))
            })?;
        }
        Ok(())
    }

    async fn caveats(&self) -> Vec<String> {
        let mut caveats = Vec::new();
        for place in &self.places {
            caveats.extend(place.destination.publisher.caveats().await);
        }
        caveats
    }

    fn refuses(&self) -> Option<Rejection> {
        let rejection = |place: &Arc<Place>| {
            let Rejection { class, reason } = place.refuses()?;
            let name = &place.destination.name;
            let reason = format!("{name} has taken no event for a while: {reason}");
            let class = match class {
                RejectionClass::Config => RejectionClass::Config,
                _ => RejectionClass::Unreachable,
            };
            Some(Rejection::new(class, reason))
        };
        self.places.iter().find_map(rejection)
    }

    fn destination(&self, record: &OutboxRecord) -> Option<&str> {
        let place = &self.places[self.route(&record.event_type, &record.tenant)];
        Some(&place.destination.name)
    }

    fn payload_bytes_max(&self, event: &Event) -> Option<usize> {
        let tenant = event.tenant.clone().unwrap_or_default();
        let place = &self.places[self.route(&event.event_type, &tenant)];
        place.destination.publisher.payload_bytes_max(event)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::cloud_event::CloudEvents;
    use crate::event::Payload;
    use crate::publishers::{FilePublisher, MemoryPublisher};
    use crate::timestamp::Timestamp;

    fn destination(name: &str, publisher: impl Publisher) -> Destination {
        Destination {
            name: name.into(),
            publisher: Arc::new(publisher),
        }
    }

    fn file(name: &str, folder: &Path) -> Destination {
        let path = folder.join(name).join("events.jsonl");
        destination(name, FilePublisher::new(path, CloudEvents::default()))
    }

    fn route(event_type: &str, destination: &Destination) -> Route {
        let event_type = event_type.parse().unwrap();
        Route {
            events: Selector {
                event_type,
                ..Selector::default()
            },
            destination: destination.clone(),
        }
    }

    /// The first pause after which a destination is tried again: at least half of it.
    const PAUSE: Duration = Duration::from_secs(1);

    fn bus(otherwise: &Destination, routes: &[(&str, &Destination)]) -> MessageBus {
        let routes = routes.iter().map(|(types, to)| route(types, to)).collect();
        let pauses = RetrySettings {
            multiplier: PAUSE,
            ..RetrySettings::default()
        };
        MessageBus::new(otherwise.clone(), routes, &pauses)
    }

    fn batch(types: &[&str]) -> Vec<OutboxRecord> {
        let record = |event_type: &&str| {
            let event = Event::new(*event_type, Payload::json("1").unwrap());
            OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
        };
        types.iter().map(record).collect()
    }

    fn types(bus: &MemoryPublisher) -> Vec<String> {
        let taken = bus.take_published();
        taken.into_iter().map(|record| record.event_type).collect()
    }

    fn put_aside(outcome: &Outcome, name: &str) -> Duration {
        let Outcome::Rejected(Rejection {
            class: RejectionClass::Throttled(Some(pause)),
            reason,
        }) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert!(
            reason.starts_with(&format!("{name} takes no events: ")),
            "{reason}"
        );
        *pause
    }

    #[tokio::test]
    async fn each_event_goes_where_the_first_route_that_picks_it_says() {
        let (main, audit, orders) =
            <(MemoryPublisher, MemoryPublisher, MemoryPublisher)>::default();
        let (to_main, to_audit, to_orders) = (
            destination("main", main.clone()),
            destination("audit", audit.clone()),
            destination("orders", orders.clone()),
        );
        let routes = [
            ("audit.*", &to_audit),
            ("order.*", &to_orders),
            ("order.placed", &to_audit),
            ("user.*", &to_main),
        ];
        let bus = bus(&to_main, &routes);
        assert_eq!(bus.places.len(), 3, "one circuit breaker a destination");
        let batch = batch(&[
            "order.placed",
            "x",
            "audit.a",
            "user.b",
            "order.c",
            "audit.d",
        ]);
        assert_eq!(bus.publish(&batch).await, vec![Outcome::Acked; 6]);
        assert_eq!(types(&main), ["x", "user.b"]);
        assert_eq!(types(&audit), ["audit.a", "audit.d"]);
        assert_eq!(types(&orders), ["order.placed", "order.c"]);
        assert_eq!(bus.publish(&[]).await, []);
    }

    #[tokio::test]
    async fn one_destination_is_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let only = file("only", folder.path());
        let bus = bus(&only, &[("order.*", &only)]);
        let outcome = bus.publish(&batch(&["order.a"])).await.remove(0);
        assert!(
            matches!(
                &outcome,
                Outcome::Rejected(Rejection {
                    class: RejectionClass::Config,
                    ..
                })
            ),
            "{outcome:?}"
        );
        assert_eq!(bus.check().await, only.publisher.check().await);
        std::fs::create_dir(folder.path().join("only")).unwrap();
        assert_eq!(bus.publish(&batch(&["order.a"])).await, [Outcome::Acked]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_destination_that_is_away_delays_only_its_own_and_is_probed_with_one_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let memory = MemoryPublisher::default();
        let (main, lost) = (
            destination("main", memory.clone()),
            file("lost", folder.path()),
        );
        let bus = bus(&main, &[("lost.*", &lost)]);
        let batch = batch(&["lost.1", "a", "lost.2", "b"]);
        let mut pause = Duration::ZERO;
        for tries in 0..2 {
            let outcomes = bus.publish(&batch).await;
            assert_eq!([&outcomes[1], &outcomes[3]], [&Outcome::Acked; 2]);
            let (one, other) = (
                put_aside(&outcomes[0], "lost"),
                put_aside(&outcomes[2], "lost"),
            );
            assert!(one.abs_diff(other) < Duration::from_millis(50));
            // Equal jitter: from half of it to all of it, and time has passed since.
            let least = PAUSE.mul_f64(0.4) * 2_u32.pow(tries);
            assert!(one >= least, "{one:?} after {tries} tries before");
            tokio::time::sleep(one).await;
            pause = one;
        }
        let check = bus.check().await.unwrap_err();
        assert_eq!(check.class, RejectionClass::Config);
        assert!(check.reason.starts_with("lost: "), "{check}");

        std::fs::create_dir(folder.path().join("lost")).unwrap();
        tokio::time::sleep(pause).await;
        // The probe is one of them, and the rest follows at once.
        assert_eq!(bus.publish(&batch).await, vec![Outcome::Acked; 4]);
        bus.check().await.unwrap();
        let arrived = std::fs::read_to_string(folder.path().join("lost/events.jsonl")).unwrap();
        assert_eq!(arrived.lines().count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn only_when_none_can_be_tried_the_bus_is_unreachable() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (file("one", folder.path()), file("two", folder.path()));
        let bus = bus(&one, &[("two.*", &two)]);
        let (of_one, of_two) = (batch(&["one.a"]), batch(&["two.a"]));
        // Nobody knows yet that the other is away as well.
        let pause = put_aside(&bus.publish(&of_one).await[0], "one");
        for batch in [&of_two, &of_one] {
            let outcome = bus.publish(batch).await.remove(0);
            assert!(
                matches!(
                    &outcome,
                    Outcome::Rejected(Rejection {
                        class: RejectionClass::Unreachable,
                        ..
                    })
                ),
                "{outcome:?}"
            );
        }
        // The one that comes first in the table is never all that is looked at: when the other may be
        // tried again, the first is put aside.
        tokio::time::sleep(pause.max(PAUSE)).await;
        put_aside(&bus.publish(&of_one).await[0], "one");
        std::fs::create_dir(folder.path().join("two")).unwrap();
        assert_eq!(bus.publish(&of_two).await, [Outcome::Acked]);
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Silent;

    impl crate::event::DomainEvent for Silent {
        const TYPE: &'static str = "silent";
    }

    /// A bus that is away at first and then takes everything, and says nothing for a long time.
    fn silent() -> MemoryPublisher {
        let bus = MemoryPublisher::default();
        let is_back = AtomicBool::new(false);
        bus.on(move |_: Silent, _| {
            let is_back = is_back.swap(true, Ordering::Relaxed);
            async move {
                if is_back {
                    tokio::time::sleep(Duration::from_secs(3_600)).await;
                }
                Err(Rejection::new(RejectionClass::Unreachable, "no route"))
            }
        });
        bus
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long_for_a_destination_that_was_away_and_is_silent_now() {
        let bus = bus(
            &destination("main", MemoryPublisher::default()),
            &[("silent", &destination("silent", silent()))],
        );
        let mut batch = batch(&["silent", "a", "silent"]);
        for record in &mut batch {
            record.payload = "null".into();
        }
        let outcomes = bus.publish(&batch[..2]).await;
        tokio::time::sleep(put_aside(&outcomes[0], "silent")).await;
        let begun = Instant::now();
        let outcomes = bus.publish(&batch).await;
        // A subscriber may take 30 seconds.
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert!(
            matches!(&outcomes[0], Outcome::Unknown { reason } if reason.starts_with("silent ")),
            "the probe: {outcomes:?}"
        );
        assert_eq!(outcomes[1], Outcome::Acked);
        put_aside(&outcomes[2], "silent");
        // Until its answer comes nothing more goes there.
        let outcomes = bus.publish(&batch).await;
        put_aside(&outcomes[0], "silent");
        assert_eq!(outcomes[1], Outcome::Acked);
    }

    /// A publisher that does not survive what it is given.
    struct Fatal;

    #[async_trait]
    impl Publisher for Fatal {
        async fn publish(&self, _: &[OutboxRecord]) -> Vec<Outcome> {
            panic!("a fault of its own");
        }

        async fn check(&self) -> Result<(), Rejection> {
            panic!("a fault of its own");
        }
    }

    #[tokio::test]
    async fn what_one_destination_does_not_survive_the_others_do() {
        let memory = MemoryPublisher::default();
        let bus = bus(
            &destination("main", memory.clone()),
            &[("fatal", &destination("fatal", Fatal))],
        );
        for _ in 0..2 {
            let outcomes = bus.publish(&batch(&["fatal", "a"])).await;
            assert!(
                matches!(outcomes[0], Outcome::Unknown { .. }),
                "{outcomes:?}"
            );
            assert_eq!(outcomes[1], Outcome::Acked);
        }
        let check = bus.check().await.unwrap_err();
        assert!(check.reason.contains("abruptly"), "{check}");
    }
}
