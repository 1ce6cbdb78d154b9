//! Those in the process who are told of events.

use std::any::Any;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::causality::{Cause, handling};
use crate::error::ErrorKind;
use crate::event::DomainEvent;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::registry::{EventRegistry, EventType};

/// One of them, whatever type of event it is for.
#[derive(Clone)]
pub(super) struct Subscriber {
    call: Arc<dyn Fn(EventRegistry, Arc<OutboxRecord>) -> Answer + Send + Sync>,
    /// By which it reads where the bus has none: its own type at its own version.
    registry: EventRegistry,
}

type Answer = Pin<Box<dyn Future<Output = Result<(), Rejection>> + Send>>;

/// How long a subscriber may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Subscriber {
    pub(super) fn new<E, X, F>(
        subscriber: impl Fn(E, Arc<OutboxRecord>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        E: DomainEvent + DeserializeOwned + Send + Sync + 'static,
        X: Display + 'static,
        F: Future<Output = Result<(), X>> + Send + 'static,
    {
        let subscriber = Arc::new(subscriber);
        let call = move |registry: EventRegistry, record: Arc<OutboxRecord>| -> Answer {
            let subscriber = Arc::clone(&subscriber);
            Box::pin(async move {
                let event = read::<E>(&registry, &record)?;
                let cause = Cause::from(&*record);
                let work = async move { subscriber(event, record).await };
                handling(cause, work).await.map_err(rejection)
            })
        };
        Self {
            call: Arc::new(call),
            registry: registry_of_one::<E>(),
        }
    }
}

/// A type outside its grammar is in no record, and is not known here either.
fn registry_of_one<E>() -> EventRegistry
where
    E: DomainEvent + DeserializeOwned + Send + Sync + 'static,
{
    EventRegistry::new([EventType::of::<E>().oldest_version(E::VERSION)]).unwrap_or_default()
}

/// Lets all of them have a record at the same time. The first in the order in which they subscribed
/// who did not take it has the word.
pub(super) async fn tell(
    subscribers: &[Subscriber],
    registry: Option<&EventRegistry>,
    record: &Arc<OutboxRecord>,
) -> Outcome {
    let mut answers = JoinSet::new();
    for (number, subscriber) in subscribers.iter().enumerate() {
        let registry = registry.unwrap_or(&subscriber.registry).clone();
        let (call, record) = (Arc::clone(&subscriber.call), Arc::clone(record));
        // In a task, so that its panic ends nothing else.
        answers.spawn(async move { (number, answer(call(registry, record)).await) });
    }
    let mut first: Option<(usize, Outcome)> = None;
    while let Some(answered) = answers.join_next().await {
        let (number, outcome) = answered.unwrap_or_else(|_| {
            // What it panicked with may be anything, also what it was given. The log has it.
            let reason = format!("a subscriber to {} panicked", record.event_type);
            (
                subscribers.len(),
                Outcome::rejected(RejectionClass::Message, reason),
            )
        });
        let failed = outcome != Outcome::Acked;
        if failed && first.as_ref().is_none_or(|(other, _)| number < *other) {
            first = Some((number, outcome));
        }
    }
    first.map_or(Outcome::Acked, |(_, outcome)| outcome)
}

async fn answer(answer: Answer) -> Outcome {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(())) => Outcome::Acked,
        Ok(Err(rejection)) => rejection.into(),
        Err(_) => Outcome::unknown(format!("a subscriber took longer than {PATIENCE:?}")),
    }
}

fn rejection(error: impl Display + 'static) -> Rejection {
    match (&error as &dyn Any).downcast_ref::<Rejection>() {
        Some(rejection) => rejection.clone(),
        None => Rejection::new(RejectionClass::Message, error.to_string()),
    }
}

/// The event in a record.
///
/// # Errors
/// A rejection that says where in the payload what was expected, and nothing of what was found
/// there: for good where it is not what its version says, and for now where the version is unknown.
fn read<E>(registry: &EventRegistry, record: &OutboxRecord) -> Result<E, Rejection>
where
    E: DomainEvent + Send + Sync + 'static,
{
    registry.decode_as(record).map_err(|error| {
        let class = match error.kind() {
            ErrorKind::Undecodable => RejectionClass::Permanent,
            _ => RejectionClass::Blocked,
        };
        Rejection::new(class, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::event::{Event, Payload};
    use crate::timestamp::Timestamp;

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Placed {
        lines: Vec<Line>,
    }

    #[derive(Debug, Serialize, Deserialize, PartialEq)]
    struct Line {
        price: u32,
    }

    impl DomainEvent for Placed {
        const TYPE: &'static str = "order.placed";
        const VERSION: u32 = 2;
    }

    fn record(version: u32, json: &str) -> OutboxRecord {
        let event = Event {
            schema_version: version,
            ..Event::new("order.placed", Payload::Data(json.to_owned().into()))
        };
        OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now())
    }

    #[test]
    fn a_payload_that_does_not_fit_is_told_by_its_place_and_never_by_its_value() {
        let read = |json: &str| read::<Placed>(&registry_of_one::<Placed>(), &record(2, json));
        let fits = read("{\"lines\":[{\"price\":7}]} ").unwrap();
        assert_eq!(fits.lines, [Line { price: 7 }]);
        for (json, said) in [
            (
                "{\"lines\":[{\"price\":1},{\"price\":\"s3cret, expected joy\"}]}",
                "field \"lines[1].price\" is a string, expected u32",
            ),
            (
                "{\"lines\":[{\"price\":-4711}]}",
                "field \"lines[0].price\" is an integer outside of what is expected: u32",
            ),
            ("{\"lines\":[{}]}", "field \"lines[0].price\" is missing"),
            (
                "{\"lines\":[],\"more\":\"s3cret\"}",
                "field \"more\" is not known to the type, and would be lost",
            ),
            ("s3cret", "the payload is not JSON, at line 1 column 1"),
            ("{\"lines\":[]} s3cret", "the payload is not JSON"),
        ] {
            let rejection = read(json).unwrap_err();
            assert_eq!(rejection.class, RejectionClass::Permanent);
            assert!(rejection.reason.contains(said), "{rejection}");
            for found in ["s3cret", "4711"] {
                assert!(!rejection.reason.contains(found), "{rejection}");
            }
        }
    }

    #[test]
    fn a_version_that_is_not_known_waits_for_a_person_and_a_registry_knows_more() {
        let one = registry_of_one::<Placed>();
        for version in [1, 3] {
            let rejection = read::<Placed>(&one, &record(version, "[1]")).unwrap_err();
            assert_eq!(rejection.class, RejectionClass::Blocked, "{rejection}");
        }
        let upcasting = EventType::of::<Placed>().upcast_json(1, |prices| {
            Ok(serde_json::json!({"lines": [{"price": prices[0]}]}))
        });
        let registry = EventRegistry::new([upcasting]).unwrap();
        let placed = read::<Placed>(&registry, &record(1, "[1]")).unwrap();
        assert_eq!(placed.lines, [Line { price: 1 }]);
    }
}
