//! From the outcome of an attempt to what is written about it, and what may be attempted together.

use std::collections::HashMap;
use std::time::Duration;

use crate::error::Result;
use crate::record::{OrderingKey, OutboxRecord, Outcome, RejectionClass};
use crate::store::Verdict;

/// How often and how soon a failed event is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts before an event becomes a dead letter. Defaults to 5.
    pub max_retry: u32,
    /// The delay before the second attempt, doubled before each further one. Defaults to 0.5 s.
    pub multiplier: Duration,
    /// The longest delay. Defaults to 5 minutes.
    pub max_delay: Duration,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            max_retry: 5,
            multiplier: Duration::from_millis(500),
            max_delay: Duration::from_secs(300),
        }
    }
}

/// So long an event at most waits that cannot go out before somebody changes something.
const BLOCKED_PAUSE: Duration = Duration::from_secs(10);

/// What to write about a record that had failed `retry_cnt` times before this outcome; `random`
/// is in 0..1. None: nothing is written, the record stays as it was and costs no attempt.
pub(crate) fn verdict(
    outcome: Outcome,
    retry_cnt: u32,
    settings: &RetrySettings,
    random: f64,
) -> Option<Verdict> {
    let retry = |counts, reason| Verdict::Retry {
        after: delay(retry_cnt + 1, settings, random),
        counts,
        reason,
    };
    match outcome {
        Outcome::Acked => Some(Verdict::Sent),
        Outcome::Unknown { reason } => Some(retry(false, reason)),
        Outcome::Rejected(rejection) => match rejection.class {
            RejectionClass::Unreachable | RejectionClass::Config => None,
            RejectionClass::Blocked => Some(Verdict::Retry {
                after: BLOCKED_PAUSE.mul_f64(0.5 + 0.5 * random),
                counts: false,
                reason: rejection.reason,
            }),
            RejectionClass::Throttled(after) => Some(Verdict::Retry {
                after: after.unwrap_or(settings.multiplier).min(settings.max_delay),
                counts: false,
                reason: rejection.reason,
            }),
            RejectionClass::Permanent => Some(Verdict::Dead {
                counts: true,
                reason: rejection.reason,
            }),
            RejectionClass::Message if retry_cnt + 1 >= settings.max_retry => Some(Verdict::Dead {
                counts: true,
                reason: rejection.reason,
            }),
            RejectionClass::Message => Some(retry(true, rejection.reason)),
        },
    }
}

/// The delay before the attempt that follows failure number `failures`:
/// `multiplier × 2^(failures − 1)`, at most the longest delay, with equal jitter: half of it is
/// fixed and half random, so that events which failed together do not come back together and none
/// comes back at once ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015). With full
/// jitter one event in a hundred would have used up its five attempts within a second.
pub(crate) fn delay(failures: u32, settings: &RetrySettings, random: f64) -> Duration {
    let doubled = settings
        .multiplier
        .saturating_mul(1 << failures.saturating_sub(1).min(30));
    doubled
        .min(settings.max_delay)
        .mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

/// Splits records into waves: record number n of an ordering key is in wave n; order is kept.
pub(crate) fn waves(records: Vec<OutboxRecord>, ordered: bool) -> Vec<Vec<OutboxRecord>> {
    let mut seen: HashMap<OrderingKey<'_>, usize> = HashMap::new();
    let numbers: Vec<usize> = records
        .iter()
        .map(|record| match record.ordering_key().filter(|_| ordered) {
            None => 0,
            Some(key) => {
                let next = seen.entry(key).or_default();
                *next += 1;
                *next - 1
            }
        })
        .collect();
    let mut waves: Vec<Vec<OutboxRecord>> = Vec::new();
    for (number, record) in numbers.into_iter().zip(records) {
        if waves.len() == number {
            waves.push(Vec::new());
        }
        waves[number].push(record);
    }
    waves
}

/// How often a settlement that the database did not take is tried before it is given up.
const SETTLE_TRIES_MAX: u32 = 5;

/// Tries again, a few times, what the database did not take: an answer of a bus that is not written
/// down is a duplicate later.
pub(crate) async fn stubbornly<T, F>(mut settle: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut tries = 1;
    loop {
        match settle().await {
            Err(error) if tries < SETTLE_TRIES_MAX => {
                tracing::debug!(error = error.report(), tries, "settling again");
                tokio::time::sleep(Duration::from_millis(50) * 2_u32.pow(tries)).await;
                tries += 1;
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(class: RejectionClass) -> Outcome {
        Outcome::rejected(class, "no")
    }

    #[test]
    fn only_the_events_own_fault_costs_an_attempt() {
        let settings = RetrySettings::default();
        let dead = |outcome, cnt| {
            matches!(
                verdict(outcome, cnt, &settings, 0.5),
                Some(Verdict::Dead { .. })
            )
        };
        let counted = |outcome| {
            matches!(
                verdict(outcome, 1, &settings, 0.5),
                Some(Verdict::Retry { counts: true, .. })
            )
        };
        assert_eq!(
            verdict(Outcome::Acked, 4, &settings, 0.5),
            Some(Verdict::Sent)
        );
        assert_eq!(
            verdict(refused(RejectionClass::Unreachable), 99, &settings, 0.5),
            None
        );
        assert_eq!(
            verdict(refused(RejectionClass::Config), 99, &settings, 0.5),
            None
        );
        assert!(!dead(refused(RejectionClass::Throttled(None)), 99));
        assert!(!dead(Outcome::unknown("late"), 99));
        assert!(!counted(Outcome::unknown("late")));
        assert!(counted(refused(RejectionClass::Message)));
        assert!(dead(refused(RejectionClass::Permanent), 0));
        assert!(
            !dead(refused(RejectionClass::Message), 3),
            "the fourth failure of five"
        );
        assert!(
            dead(refused(RejectionClass::Message), 4),
            "the fifth failure of five"
        );
    }

    proptest! {
        #[test]
        fn the_delay_grows_to_its_limit_and_no_further(failures in 0_u32..200, random in 0.0..1.0) {
            let settings = RetrySettings::default();
            let now = delay(failures, &settings, random);
            prop_assert!(now <= settings.max_delay);
            prop_assert!(now >= delay(failures, &settings, 0.0));
            prop_assert!(delay(failures + 1, &settings, random) >= now);
            let full = Duration::from_millis(500 << failures.saturating_sub(1).min(10)).min(settings.max_delay);
            prop_assert_eq!(delay(failures, &settings, 1.0), full);
        }
    }
}
