//! Whether a bus takes anything at all. No I/O and no clock: it is told the time.

use std::time::{Duration, Instant};

use crate::record::{Outcome, Rejection, RejectionClass};

/// For so long a bus may put everything off before it counts as one that takes nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What a bus has refused since it acknowledged an event last, where that was no event's own fault.
///
/// A bus that can be reached and is full, or that answers "not now", refuses one event like any other: a
/// check is content with it. That nothing is taken, only the events show, and only one that is taken shows
/// the contrary.
#[derive(Debug, Default)]
pub(crate) struct Refusing(Option<Refused>);

#[derive(Debug)]
struct Refused {
    since: Instant,
    last: Instant,
    why: Rejection,
}

impl Refusing {
    /// Takes note of what the bus said at `now` of events that it was asked to take.
    pub(crate) fn hear(&mut self, outcomes: &[Outcome], now: Instant) {
        if outcomes.contains(&Outcome::Acked) {
            self.0 = None;
            return;
        }
        let Some(why) = outcomes.iter().find_map(not_now) else {
            return;
        };
        let since = self.0.as_ref().map_or(now, |refused| refused.since);
        self.0 = Some(Refused {
            since,
            last: now,
            why: why.clone(),
        });
    }

    /// What it said last, where it has taken nothing for a while.
    pub(crate) fn why(&self) -> Option<&Rejection> {
        let refused = self.0.as_ref()?;
        let is_long = refused.last.duration_since(refused.since) >= PATIENCE;
        is_long.then_some(&refused.why)
    }
}

/// A refusal for which the event is not to blame, nor anything that only events like it need.
fn not_now(outcome: &Outcome) -> Option<&Rejection> {
    match outcome {
        Outcome::Rejected(rejection) => match rejection.class {
            RejectionClass::Unreachable | RejectionClass::Throttled(_) | RejectionClass::Config => {
                Some(rejection)
            }
            RejectionClass::Message | RejectionClass::Permanent | RejectionClass::Blocked => None,
        },
        Outcome::Acked | Outcome::Unknown { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(class: RejectionClass) -> Outcome {
        Outcome::rejected(class, "full")
    }

    #[test]
    fn only_who_has_put_everything_off_for_a_while_takes_nothing() {
        let later = [refused(RejectionClass::Throttled(None))];
        let (mut bus, begun) = (Refusing::default(), Instant::now());
        bus.hear(&later, begun);
        assert_eq!(bus.why(), None, "one refusal is no time");
        bus.hear(&later, begun + PATIENCE / 2);
        assert_eq!(bus.why(), None);
        bus.hear(&later, begun + PATIENCE);
        assert_eq!(bus.why().map(|why| why.reason.as_str()), Some("full"));
        // What is some event's own fault tells nothing of the others.
        for class in [
            RejectionClass::Message,
            RejectionClass::Permanent,
            RejectionClass::Blocked,
        ] {
            bus.hear(
                &[refused(class), Outcome::unknown("late")],
                begun + PATIENCE * 2,
            );
            assert!(bus.why().is_some(), "{class:?}");
        }
        bus.hear(&[later[0].clone(), Outcome::Acked], begun + PATIENCE * 3);
        assert_eq!(bus.why(), None, "it took one");
        bus.hear(&later, begun + PATIENCE * 3);
        bus.hear(&later, begun + PATIENCE * 4);
        assert!(bus.why().is_some(), "and no more since");
    }

    #[test]
    fn events_that_are_to_blame_themselves_accuse_no_bus() {
        let (mut bus, begun) = (Refusing::default(), Instant::now());
        for class in [
            RejectionClass::Message,
            RejectionClass::Permanent,
            RejectionClass::Blocked,
        ] {
            bus.hear(&[refused(class)], begun);
            bus.hear(&[refused(class)], begun + PATIENCE);
            assert_eq!(bus.why(), None, "{class:?}");
        }
        for class in [RejectionClass::Unreachable, RejectionClass::Config] {
            let mut bus = Refusing::default();
            bus.hear(&[refused(class)], begun);
            bus.hear(&[refused(class)], begun + PATIENCE);
            assert!(bus.why().is_some(), "{class:?}");
        }
    }
}
