//! Those in the process who are told of events.

use std::any::Any;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::event::DomainEvent;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};

/// One of them, whatever type of event it is for.
#[derive(Clone)]
pub(super) struct Subscriber(Arc<dyn Fn(Arc<OutboxRecord>) -> Answer + Send + Sync>);

type Answer = Pin<Box<dyn Future<Output = Result<(), Rejection>> + Send>>;

/// How long a subscriber may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Subscriber {
    pub(super) fn new<E, X, F>(
        subscriber: impl Fn(E, Arc<OutboxRecord>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        E: DomainEvent + DeserializeOwned + Send + 'static,
        X: Display + 'static,
        F: Future<Output = Result<(), X>> + Send + 'static,
    {
        let subscriber = Arc::new(subscriber);
        Self(Arc::new(move |record| {
            let subscriber = Arc::clone(&subscriber);
            Box::pin(async move {
                let event = read::<E>(&record)?;
                subscriber(event, record).await.map_err(rejection)
            })
        }))
    }
}

/// Lets all of them have a record at the same time. The first in the order in which they subscribed
/// who did not take it has the word.
pub(super) async fn tell(subscribers: &[Subscriber], record: &Arc<OutboxRecord>) -> Outcome {
    let mut answers = JoinSet::new();
    for (number, Subscriber(subscriber)) in subscribers.iter().enumerate() {
        let (subscriber, record) = (Arc::clone(subscriber), Arc::clone(record));
        // In a task, so that its panic ends nothing else.
        answers.spawn(async move { (number, answer(subscriber(record)).await) });
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

/// The event in a payload.
///
/// # Errors
/// A permanent rejection that says where in the payload what was expected, and nothing of what was
/// found there.
fn read<E: DomainEvent + DeserializeOwned>(record: &OutboxRecord) -> Result<E, Rejection> {
    let mut reader = serde_json::Deserializer::from_slice(&record.payload);
    let event = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| (error.path().to_string(), error.into_inner()))
        .and_then(|event| match reader.end() {
            Ok(()) => Ok(event),
            Err(error) => Err((".".to_owned(), error)),
        });
    event.map_err(|(path, error)| {
        let place = match path.as_str() {
            "." => "its payload".to_owned(),
            path => format!("{path} in its payload"),
        };
        let reason = format!(
            "the event is no {} of version {}: {place} {}",
            E::TYPE,
            E::VERSION,
            wanting(&error)
        );
        Rejection::new(RejectionClass::Permanent, reason)
    })
}

/// What is wrong, in words of the type and not of the payload.
fn wanting(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(text, _)| text);
    let (line, column) = (error.line(), error.column());
    if text.starts_with("missing field `") {
        return format!("has a {text}");
    }
    match text.rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => format!("is not {expected}"),
        _ => format!("cannot be read, at line {line} column {column}"),
    }
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

    #[test]
    fn a_payload_that_does_not_fit_is_told_by_its_place_and_never_by_its_value() {
        let read = |json: &str| {
            let event = Event::new("order.placed", Payload::Data(json.to_owned().into()));
            let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
            read::<Placed>(&record)
        };
        let fits = read("{\"lines\":[{\"price\":7}]} ").unwrap();
        assert_eq!(fits.lines, [Line { price: 7 }]);
        let begins = "the event is no order.placed of version 2: ";
        for (json, said) in [
            (
                "{\"lines\":[{\"price\":1},{\"price\":\"s3cret, expected joy\"}]}",
                "lines[1].price in its payload is not u32",
            ),
            (
                "{\"lines\":[{\"price\":-4711}]}",
                "lines[0].price in its payload is not u32",
            ),
            (
                "{\"lines\":[{\"s3cret\":1}]}",
                "lines[0] in its payload has a missing field `price`",
            ),
            ("[\"s3cret\"]", "[0] in its payload is not a sequence"),
            ("s3cret", "its payload cannot be read, at line 1 column 1"),
            ("{\"lines\":[]} s3cret", "its payload cannot be read"),
        ] {
            let rejection = match read(json) {
                Err(rejection) => rejection,
                Ok(_) => panic!("{json} is taken"),
            };
            assert_eq!(rejection.class, RejectionClass::Permanent);
            let reason = rejection.reason.strip_prefix(begins);
            assert!(
                reason.is_some_and(|reason| reason.starts_with(said)),
                "{rejection}"
            );
            for found in ["s3cret", "4711"] {
                assert!(!rejection.reason.contains(found), "{rejection}");
            }
        }
    }
}
