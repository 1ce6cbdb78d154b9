//! What the moving parts tell of themselves: every metric's name, labels and meaning.
//!
//! The library emits through the facade of the crate `metrics` and installs no recorder; the program
//! has one and serves it as `/metrics`. Series are bounded: past [`TENANTS_MAX`] tenants the rest
//! share the label `other`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::{SharedString, Unit, counter, gauge, histogram};

use crate::record::{OutboxRecord, Outcome, RejectionClass};
use crate::store::{TenantBacklog, Verdict};
use crate::timestamp::Timestamp;

/// The most tenants that have series of their own.
pub const TENANTS_MAX: usize = 100;

/// The label of all tenants beyond those.
pub const OTHER: &str = "other";

/// What kind of series a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// How often a value was within each bound.
    Histogram,
}

/// A metric: what it is called, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What kind of series it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub meaning: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $meaning:literal;)+) => {
        $(#[doc = $meaning] pub const $constant: &str = $name;)+

        /// Every metric there is.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $constant,
            kind: Kind::$kind,
            labels: &[$($label),*],
            meaning: $meaning,
        }),+];
    };
}

metrics! {
    PROCESSED = "outbox_events_processed_total", Counter, ["tenant_id", "status"],
        "Attempts to deliver that ended, by what became of the event: success, retry or dead.";
    BATCH_SECONDS = "outbox_processing_duration_seconds", Histogram, [],
        "How long a batch took from its claim until it was settled.";
    LATENCY_SECONDS = "outbox_delivery_latency_seconds", Histogram, ["tenant_id"],
        "How long after it was written an event was acknowledged by the bus.";
    PENDING = "outbox_pending_events", Gauge, ["tenant_id"],
        "Events that are not sent and no dead letters.";
    OLDEST_SECONDS = "outbox_oldest_pending_age_seconds", Gauge, ["tenant_id"],
        "The age of the oldest of those that is due and not paused; 0 without one.";
    DEAD = "outbox_dead_letters", Gauge, ["tenant_id"],
        "Dead letters that wait for a person.";
    PUBLISH_ERRORS = "outbox_publish_errors_total", Counter, ["class"],
        "Attempts that the bus did not acknowledge, by whose fault it was.";
    FENCED = "outbox_fenced_writes_total", Counter, [],
        "Settlements that changed nothing because the lease had passed to another process.";
    LEASES = "outbox_leases_held", Gauge, [],
        "Partitions of the ordering keys that this relay holds.";
    BUS_UP = "outbox_bus_up", Gauge, [],
        "Whether the bus takes events, as the last ones or the last check showed: 1 or 0; of several buses, whether each does.";
    DATABASE_UP = "outbox_database_up", Gauge, [],
        "Whether the database answered last: 1 or 0.";
}

/// The words that the label `class` may be.
pub const CLASSES: &[&str] = &[
    "unreachable",
    "throttled",
    "message",
    "permanent",
    "blocked",
    "config",
    "unknown",
];

/// Tells a recorder, installed by now, what every metric means, and begins the counters that are not of
/// one tenant at zero: what has never happened is seen, and its first time is an increase.
pub fn describe() {
    counter!(FENCED).increment(0);
    for class in CLASSES {
        counter!(PUBLISH_ERRORS, "class" => *class).increment(0);
    }
    for Metric {
        name,
        kind,
        meaning,
        ..
    } in METRICS
    {
        let unit = match name.ends_with("_seconds") {
            true => Unit::Seconds,
            false => Unit::Count,
        };
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, unit, *meaning),
            Kind::Gauge => metrics::describe_gauge!(*name, unit, *meaning),
            Kind::Histogram => metrics::describe_histogram!(*name, unit, *meaning),
        }
    }
}

/// The tenants that have series of their own: the first ones met.
static TENANTS: Mutex<BTreeMap<String, SharedString>> = Mutex::new(BTreeMap::new());

/// The label of a tenant.
fn label(tenant: &str) -> SharedString {
    label_of(
        tenant,
        &mut TENANTS.lock().unwrap_or_else(PoisonError::into_inner),
    )
}

/// The label of a tenant, where these have one of their own.
fn label_of(tenant: &str, tenants: &mut BTreeMap<String, SharedString>) -> SharedString {
    if let Some(label) = tenants.get(tenant) {
        return label.clone();
    }
    if tenants.len() >= TENANTS_MAX {
        return SharedString::const_str(OTHER);
    }
    let label = SharedString::from_owned(tenant.to_owned());
    tenants.insert(tenant.to_owned(), label.clone());
    label
}

/// What became of records, told once for many of them.
#[derive(Default)]
pub(crate) struct Tally {
    tenants: HashMap<String, OfTenant>,
    errors: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct OfTenant {
    success: u64,
    retry: u64,
    dead: u64,
    latencies: Vec<f64>,
}

impl Tally {
    /// Counts what the bus said, where it did not acknowledge.
    pub(crate) fn outcome(&mut self, outcome: &Outcome) {
        if let Some(class) = class(outcome) {
            *self.errors.entry(class).or_default() += 1;
        }
    }

    /// Counts what is written about a record.
    pub(crate) fn verdict(&mut self, record: &OutboxRecord, verdict: &Verdict, now: Timestamp) {
        // Most records of a batch are of few tenants: their names are not copied for each.
        let tenant = record.tenant.as_str();
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.to_owned(), OfTenant::default());
        }
        let Some(of) = self.tenants.get_mut(tenant) else {
            return;
        };
        match verdict {
            Verdict::Sent => {
                of.success += 1;
                of.latencies
                    .push(record.created_at.until(now).as_secs_f64());
            }
            Verdict::Retry { .. } => of.retry += 1,
            Verdict::Dead { .. } => of.dead += 1,
            Verdict::HandOver => {}
        }
    }

    /// Tells it all.
    pub(crate) fn tell(self) {
        for (tenant, of) in self.tenants {
            let tenant = label(&tenant);
            for (status, count) in [
                ("success", of.success),
                ("retry", of.retry),
                ("dead", of.dead),
            ] {
                if count > 0 {
                    counter!(PROCESSED, "tenant_id" => tenant.clone(), "status" => status)
                        .increment(count);
                }
            }
            let latency = histogram!(LATENCY_SECONDS, "tenant_id" => tenant);
            for seconds in of.latencies {
                latency.record(seconds);
            }
        }
        for (class, count) in self.errors {
            counter!(PUBLISH_ERRORS, "class" => class).increment(count);
        }
    }
}

/// The word for whose fault it was; none for an acknowledgement.
pub(crate) fn class(outcome: &Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::Acked => return None,
        Outcome::Unknown { .. } => "unknown",
        Outcome::Rejected(rejection) => match rejection.class {
            RejectionClass::Unreachable => "unreachable",
            RejectionClass::Throttled(_) => "throttled",
            RejectionClass::Message => "message",
            RejectionClass::Permanent => "permanent",
            RejectionClass::Blocked => "blocked",
            RejectionClass::Config => "config",
        },
    })
}

pub(crate) fn batch_took(duration: Duration) {
    histogram!(BATCH_SECONDS).record(duration.as_secs_f64());
}

pub(crate) fn fenced(writes: u64) {
    counter!(FENCED).increment(writes);
}

pub(crate) fn leases_held(leases: usize) {
    gauge!(LEASES).set(u32::try_from(leases).unwrap_or(u32::MAX));
}

/// Whether the bus takes events.
pub(crate) fn bus_up(up: bool) {
    gauge!(BUS_UP).set(u8::from(up));
}

/// Whether the database answers.
pub fn database_up(up: bool) {
    gauge!(DATABASE_UP).set(u8::from(up));
}

/// What waits and what is dead, of every tenant that has some; the others have none.
pub fn backlog(tenants: &[TenantBacklog]) {
    let mut labels: BTreeMap<SharedString, (f64, f64, f64)> = {
        let known = TENANTS.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .values()
            .map(|label| (label.clone(), (0.0, 0.0, 0.0)))
            .collect()
    };
    for tenant in tenants {
        let (pending, dead, oldest) = labels.entry(label(&tenant.tenant_id)).or_default();
        *pending += tenant.pending as f64;
        *dead += tenant.dead as f64;
        *oldest = oldest.max(tenant.oldest_due_seconds.unwrap_or(0.0));
    }
    for (tenant, (pending, dead, oldest)) in labels {
        gauge!(PENDING, "tenant_id" => tenant.clone()).set(pending);
        gauge!(DEAD, "tenant_id" => tenant.clone()).set(dead);
        gauge!(OLDEST_SECONDS, "tenant_id" => tenant).set(oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded() {
        let mut known = BTreeMap::new();
        let mut label = |tenant: &str| label_of(tenant, &mut known);
        let labels: std::collections::BTreeSet<String> = (0..3 * TENANTS_MAX)
            .map(|n| label(&format!("tenant-{n}")).to_string())
            .collect();
        assert_eq!(labels.len(), TENANTS_MAX + 1);
        assert!(labels.contains(OTHER));
        assert_eq!(
            label("tenant-0").to_string(),
            "tenant-0",
            "who was first keeps it"
        );
    }

    #[test]
    fn every_class_has_its_word() {
        let classes = [
            RejectionClass::Unreachable,
            RejectionClass::Throttled(None),
            RejectionClass::Message,
            RejectionClass::Permanent,
            RejectionClass::Blocked,
            RejectionClass::Config,
        ];
        let refusals = classes.map(|class| Outcome::rejected(class, "no"));
        let words: Vec<&str> = refusals
            .iter()
            .chain([&Outcome::unknown("late")])
            .filter_map(class)
            .collect();
        assert_eq!(words, CLASSES);
        assert_eq!(class(&Outcome::Acked), None);
    }

    #[test]
    fn every_metric_is_named_once_and_says_what_it_is() {
        for (at, metric) in METRICS.iter().enumerate() {
            assert!(METRICS[..at].iter().all(|other| other.name != metric.name));
            assert!(metric.meaning.ends_with('.'), "{}", metric.name);
            let counts = metric.name.ends_with("_total");
            assert_eq!(counts, metric.kind == Kind::Counter, "{}", metric.name);
        }
    }
}
