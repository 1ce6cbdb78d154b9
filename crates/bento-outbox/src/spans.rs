//! What the moving parts tell of their time: a span for each commit, each batch and each publication.
//!
//! They are spans of `tracing` at the level DEBUG. Who collects them makes a trace of them; with the
//! feature `opentelemetry` a publication goes on with the trace that its event carries from before the
//! commit, and is linked to its batch.

use tracing::field::Empty;
use tracing::{Level, Span, debug_span};

use crate::causality::Cause;
use crate::error::Error;
use crate::record::{OutboxRecord, Outcome, Rejection};
use crate::store::Appended;
use crate::telemetry;
use crate::tenant::Tenant;
use crate::trace_context;

/// The commit of a unit of work.
pub(crate) fn commit(tenant: &Tenant) -> Span {
    debug_span!(
        "outbox.commit",
        otel.kind = "producer",
        otel.status_code = Empty,
        "messaging.operation.type" = "create",
        messaging.batch.message_count = Empty,
        outbox.tenant_id = tenant.as_str(),
        "error.type" = Empty,
    )
}

/// Tells the current span, a commit, how it ended.
pub(crate) fn committed(result: Result<&Appended, &Error>) {
    let span = Span::current();
    match result {
        Ok(appended) => {
            span.record("messaging.batch.message_count", appended.ids.len());
        }
        Err(error) => {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", tracing::field::debug(error.kind()));
        }
    }
}

/// A batch, from its claim until it is settled.
#[derive(Clone)]
pub(crate) struct BatchSpan(Span);

impl Default for BatchSpan {
    fn default() -> Self {
        Self(Span::none())
    }
}

impl BatchSpan {
    /// Begins one for so many records; without any there is no batch.
    pub(crate) fn begin(claimed: usize) -> Self {
        if claimed == 0 {
            return Self::default();
        }
        Self(debug_span!(
            parent: None,
            "outbox.batch",
            messaging.batch.message_count = claimed,
            outbox.sent = Empty,
            outbox.retried = Empty,
            outbox.dead = Empty,
        ))
    }

    /// Tells what became of its records.
    pub(crate) fn came_to(&self, sent: usize, retried: usize, dead: usize) {
        self.0.record("outbox.sent", sent);
        self.0.record("outbox.retried", retried);
        self.0.record("outbox.dead", dead);
    }

    /// Begins the publication of some of its records.
    pub(crate) fn publish(&self, records: &[OutboxRecord]) -> Publications {
        if !tracing::span_enabled!(Level::DEBUG) {
            return Publications(Vec::new());
        }
        Publications(
            records
                .iter()
                .map(|record| self.publication(record))
                .collect(),
        )
    }

    fn publication(&self, record: &OutboxRecord) -> Span {
        let span = debug_span!(
            parent: &self.0,
            "outbox.publish",
            otel.kind = "producer",
            otel.status_code = Empty,
            otel.status_description = Empty,
            "messaging.operation.type" = "send",
            messaging.message.id = %record.id,
            outbox.event_type = record.event_type.as_str(),
            outbox.tenant_id = record.tenant.as_str(),
            "error.type" = Empty,
        );
        if let Some(trace) = Cause::from(record).trace_context()
            && trace_context::go_on(&span, &trace)
        {
            span.follows_from(&self.0);
        }
        span
    }
}

/// Records that are being published, each with a span of its own. They end when this is dropped.
pub(crate) struct Publications(Vec<Span>);

impl Publications {
    /// Tells what the bus said of each.
    pub(crate) fn ended(self, outcomes: &[Outcome]) {
        for (span, outcome) in std::iter::zip(self.0, outcomes) {
            let Some(class) = telemetry::class(outcome) else {
                continue;
            };
            span.record("otel.status_code", "ERROR");
            span.record("error.type", class);
            if let Outcome::Unknown { reason } | Outcome::Rejected(Rejection { reason, .. }) =
                outcome
            {
                span.record("otel.status_description", reason.as_str());
            }
        }
    }
}
