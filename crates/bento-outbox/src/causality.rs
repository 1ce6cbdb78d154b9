//! What caused what: from a handled message into the events that it causes.
//!
//! A task-local holds what is known of the message; a unit of work remembers it from its beginning,
//! and so passes it on to the tasks it spawns.

use std::future::Future;

use tokio::task::futures::TaskLocalFuture;

use crate::error::Result;
use crate::event::{Event, Headers};
use crate::record::OutboxRecord;
use crate::tenant::Tenant;
use crate::trace_context::{self, TraceContext};

tokio::task_local! {
    static CAUSE: Cause;
}

/// The message that is being handled, as far as the events that it causes remember it.
///
/// From a [`Message`](crate::Message) of a bus, or an [`OutboxRecord`], by `into`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The message's id: the `causation_id` of what it causes.
    pub message_id: String,
    /// Whose message it is, where that is known.
    pub tenant: Option<Tenant>,
    /// The conversation that the message belongs to. Defaults to none: the message begins one, which
    /// is named by its id.
    pub correlation_id: Option<String>,
    /// The message's trace context, for where no span is active. What is not a
    /// [W3C traceparent](https://www.w3.org/TR/trace-context/#traceparent-header) is not passed on.
    pub traceparent: Option<String>,
    /// The vendor's part of it.
    pub tracestate: Option<String>,
}

/// Handles a message: events that are raised or appended in `work` say what caused them.
///
/// Each gets the message's `correlation_id` (or its id, where it has none), its id as
/// `causation_id`, and a `traceparent`, unless the event has its own. The trace context is that of
/// the current OpenTelemetry span (with the feature `opentelemetry`), or else the message's. Units
/// of work that are begun in `work` remember the message, in the tasks that they
/// [spawn](crate::UnitOfWork::spawn) too; a task spawned otherwise does not.
///
/// ```
/// # use bento_outbox::{DomainEvent, Error, Event, Outbox, Result, handling, stores::MemoryStore};
/// # use bento_outbox::OutboxRecord;
/// # #[derive(serde::Serialize)] struct InvoiceWritten;
/// # impl DomainEvent for InvoiceWritten { const TYPE: &'static str = "invoice.written"; }
/// async fn bill(outbox: &Outbox<MemoryStore>, message: &OutboxRecord) -> Result<()> {
///     handling(message, outbox.run(async |_uow| {
///         bento_outbox::raise(Event::of(&InvoiceWritten)?) // caused by `message`
///     })).await
/// }
/// ```
pub fn handling<F: Future>(message: impl Into<Cause>, work: F) -> TaskLocalFuture<Cause, F> {
    CAUSE.scope(message.into(), work)
}

impl From<&OutboxRecord> for Cause {
    fn from(record: &OutboxRecord) -> Self {
        // Headers that are none have no say in what the events after them are caused by.
        let headers = record.headers().unwrap_or_default();
        let header = |name| headers.get(name).map(Into::into);
        Self {
            message_id: record.id.to_string(),
            tenant: Some(record.tenant.clone()),
            correlation_id: header(Headers::CORRELATION_ID),
            traceparent: header(Headers::TRACEPARENT),
            tracestate: header(Headers::TRACESTATE),
        }
    }
}

impl Cause {
    /// The message that is handled in this task.
    pub(crate) fn current() -> Option<Self> {
        CAUSE.try_with(Clone::clone).ok()
    }

    /// The trace that the message is part of.
    pub(crate) fn trace_context(&self) -> Option<TraceContext> {
        Some(TraceContext {
            traceparent: self
                .traceparent
                .clone()
                .filter(|text| is_traceparent(text))?,
            tracestate: self.tracestate.clone(),
        })
    }
}

/// Writes into the headers of an event what caused it: the message that is handled here, or else
/// the one its unit of work remembers.
///
/// # Errors
/// [`ErrorKind::InvalidEvent`](crate::ErrorKind::InvalidEvent) when an id does not fit into a
/// header, or there is no room for one more.
pub(crate) fn tell(headers: &mut Headers, remembered: Option<&Cause>) -> Result<()> {
    let here = Cause::current();
    let cause = here.as_ref().or(remembered);
    if let Some(cause) = cause.filter(|cause| !cause.message_id.is_empty()) {
        let conversation = cause.correlation_id.as_ref().unwrap_or(&cause.message_id);
        insert_unless_there(headers, Headers::CORRELATION_ID, conversation)?;
        insert_unless_there(headers, Headers::CAUSATION_ID, &cause.message_id)?;
    }
    if headers.get(Headers::TRACEPARENT).is_none()
        && let Some(trace) =
            trace_context::current().or_else(|| cause.and_then(Cause::trace_context))
    {
        headers.insert(Headers::TRACEPARENT, trace.traceparent)?;
        if let Some(state) = trace.tracestate.filter(|state| !state.is_empty()) {
            // Only an aid: without it the trace still holds together.
            let _ = headers.insert(Headers::TRACESTATE, state);
        }
    }
    Ok(())
}

/// Gives events that are of no trace yet that of the span in which they are committed.
pub(crate) fn tell_of_span(events: &mut [Event], span: &tracing::Span) {
    let Some(trace) = trace_context::of(span) else {
        return;
    };
    for event in events {
        if event.headers.get(Headers::TRACEPARENT).is_none() {
            // Where there is no room for one more header, the event goes without.
            let _ = event
                .headers
                .insert(Headers::TRACEPARENT, trace.traceparent.as_str());
        }
    }
}

fn insert_unless_there(headers: &mut Headers, name: &str, value: &str) -> Result<()> {
    if headers.get(name).is_none() {
        headers.insert(name, value)?;
    }
    Ok(())
}

/// `00-TRACE-SPAN-FLAGS` in small hexadecimal digits, with trace and span that are not zero.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return false;
    };
    let hex = |part: &str, digits| {
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        part.len() == digits && part.bytes().all(is_digit)
    };
    let not_zero = |part: &str| part.bytes().any(|b| b != b'0');
    hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && not_zero(trace)
        && hex(span, 16)
        && not_zero(span)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;
    use crate::pending::{InUnitOfWork as _, Scope, raise};
    use crate::timestamp::Timestamp;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn event() -> Event {
        Event::new("caused", Payload::json("1").unwrap())
    }

    fn message(headers: &[(&str, &str)]) -> OutboxRecord {
        let mut event = event();
        for (name, value) in headers {
            event.headers.insert(*name, *value).unwrap();
        }
        OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
    }

    fn scope() -> Scope {
        Scope::new(uuid::Uuid::now_v7(), Tenant::default(), Default::default())
    }

    fn told(scope: &Scope) -> Vec<Vec<(String, String)>> {
        let events = scope.end().into_iter();
        let headers = |event: Event| {
            let headers = event.headers.iter();
            headers
                .map(|(name, value)| (name.into(), value.into()))
                .collect()
        };
        events.map(headers).collect()
    }

    #[tokio::test]
    async fn events_say_what_caused_them_unless_they_say_it_themselves() {
        let first = message(&[]);
        let later = message(&[
            ("correlation_id", "c1"),
            ("traceparent", PARENT),
            ("tracestate", "a=b"),
            ("x", "is not passed on"),
        ]);
        let scope = scope();
        let work = || async {
            raise(event()).unwrap();
            let mut own = event();
            for (name, value) in [("correlation_id", "own"), ("traceparent", "mine")] {
                own.headers.insert(name, value).unwrap();
            }
            raise(own).unwrap();
        };
        scope.enter(handling(&first, work())).await;
        scope.enter(handling(&later, work())).await;
        scope.enter(work()).await;

        let (first, later) = (first.id.to_string(), later.id.to_string());
        let expected = [
            vec![("causation_id", first.as_str()), ("correlation_id", &first)],
            vec![
                ("causation_id", &first),
                ("correlation_id", "own"),
                ("traceparent", "mine"),
            ],
            vec![
                ("causation_id", &later),
                ("correlation_id", "c1"),
                ("traceparent", PARENT),
                ("tracestate", "a=b"),
            ],
            vec![
                ("causation_id", &later),
                ("correlation_id", "own"),
                ("traceparent", "mine"),
            ],
            vec![],
            vec![("correlation_id", "own"), ("traceparent", "mine")],
        ]
        .map(|headers| {
            let owned = |(name, value): (&str, &str)| (name.into(), value.into());
            headers
                .into_iter()
                .map(owned)
                .collect::<Vec<(String, String)>>()
        });
        assert_eq!(told(&scope), expected);
    }

    #[tokio::test]
    async fn a_unit_of_work_remembers_and_the_innermost_message_counts() {
        let (outer, inner) = (message(&[]), message(&[]));
        let scope = handling(&outer, async { scope() }).await;
        scope
            .enter(async {
                raise(event()).unwrap();
                tokio::spawn(async { raise(event()) }.in_unit_of_work())
                    .await
                    .unwrap()
                    .unwrap();
                // The future holds what is known of the message, and not the message.
                let work = handling(&inner.clone(), async { raise(event()) }.in_unit_of_work());
                tokio::spawn(work).await.unwrap().unwrap();
            })
            .await;
        let causes: Vec<String> = told(&scope)
            .into_iter()
            .map(|headers| headers[0].1.clone())
            .collect();
        let (outer, inner) = (outer.id.to_string(), inner.id.to_string());
        assert_eq!(causes, [outer.clone(), outer, inner]);
    }

    #[tokio::test]
    async fn what_is_no_trace_context_is_not_passed_on_and_an_id_that_does_not_fit_is_an_error() {
        let scope = scope();
        let trace = "0af7651916cd43dd8448eb211c80319c";
        for bad in [
            "",
            "x\ny",
            &PARENT.to_uppercase(),
            &PARENT[1..],
            &format!("{PARENT}-x"),
            &PARENT.replace(trace, &"0".repeat(32)),
            &PARENT.replacen("00", "ff", 1),
        ] {
            let cause = Cause {
                traceparent: Some(bad.into()),
                ..Cause::default()
            };
            scope
                .enter(handling(cause, async { raise(event()) }))
                .await
                .unwrap();
        }
        assert!(told(&scope).iter().all(Vec::is_empty));
        let cause = Cause {
            message_id: "a\nb".into(),
            ..Cause::default()
        };
        let error = self::scope()
            .enter(handling(cause, async { raise(event()) }))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("correlation_id"), "{error}");
    }
}
