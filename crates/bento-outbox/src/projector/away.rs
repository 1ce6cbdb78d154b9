//! While the bus or the database is away.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::record::{Outcome, Rejection};
use crate::refusing::Refusing;
use crate::retry::{self, RetrySettings};
use crate::telemetry;

/// The longest pause between tries while the bus or the database is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Keeps count while the bus or the database is away, and says so once.
///
/// How it is tried again and what is said are two things. The tries begin anew after each round in which
/// nothing was stopped, for then more than a probe may go out. But such a round may have had nothing for
/// the bus, so only an event that it took says that it is back. And one that refuses everything for a while
/// takes nothing, although nothing is stopped: there may be events that it would take.
#[derive(Default)]
pub(super) struct Away {
    pub(super) tries: u32,
    refusing: Refusing,
    /// Why the bus takes nothing, as it was said.
    bus: Option<String>,
    /// Why the database does not do what it is asked, as it was said.
    database: Option<String>,
}

impl Away {
    /// What the bus said at `now` of events that it was asked to take; answers whether it takes any,
    /// where that is known.
    pub(super) fn hear(&mut self, outcomes: &[Outcome], now: Instant) -> Option<bool> {
        self.refusing.hear(outcomes, now);
        if outcomes.contains(&Outcome::Acked) {
            if self.bus.take().is_some() {
                tracing::info!("the bus takes events again");
            }
            return Some(true);
        }
        let refusal = self.refusing.why()?.clone();
        self.bus_is_lost(&refusal);
        Some(false)
    }

    /// The bus takes no events; answers how long to wait. The database has just answered.
    pub(super) fn bus(&mut self, rejection: &Rejection) -> Duration {
        self.database_answers();
        self.bus_is_lost(rejection);
        self.pause()
    }

    fn bus_is_lost(&mut self, rejection: &Rejection) {
        telemetry::bus_up(false);
        if self.bus.is_none() {
            tracing::warn!(
                reason = rejection.reason,
                "the bus takes no events; they are kept and tried again"
            );
        }
        self.bus = Some(rejection.reason.clone());
    }

    /// The database does not answer, or with an error; answers how long to wait.
    pub(super) fn database(&mut self, error: &Error) -> Duration {
        telemetry::database_up(false);
        if self.database.is_none() {
            let error_text = error.report();
            match error.kind() {
                ErrorKind::Unavailable => {
                    tracing::warn!(
                        error = error_text,
                        "the database does not answer; trying again"
                    );
                }
                _ => tracing::warn!(
                    error = error_text,
                    "the database refuses what the relay asks of it; trying again"
                ),
            }
        }
        self.database = Some(error.report());
        self.pause()
    }

    /// Nothing stopped the last round.
    pub(super) fn back(&mut self) {
        self.tries = 0;
        self.database_answers();
    }

    /// Somebody's round, which was not to be followed by a pause, was stopped: the next one is a probe.
    pub(super) fn in_vain(&mut self) {
        self.tries += 1;
    }

    /// Why nothing goes out at present.
    pub(super) fn reason(&self) -> Option<&str> {
        self.database.as_deref().or(self.bus.as_deref())
    }

    fn database_answers(&mut self) {
        telemetry::database_up(true);
        if self.database.take().is_some() {
            tracing::info!("the database answers again");
        }
    }

    fn pause(&mut self) -> Duration {
        self.tries += 1;
        let settings = RetrySettings {
            max_delay: AWAY_PAUSE_MAX,
            ..RetrySettings::default()
        };
        retry::delay(self.tries, &settings, rand::random())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RejectionClass;
    use crate::refusing::PATIENCE;

    #[test]
    fn only_an_event_that_it_took_says_that_the_bus_is_back() {
        let (mut away, now) = (Away::default(), Instant::now());
        let rejection = Rejection::new(RejectionClass::Unreachable, "no route");
        away.bus(&rejection);
        away.bus(&rejection);
        assert_eq!((away.tries, away.reason()), (2, Some("no route")));
        away.back();
        assert_eq!(
            (away.tries, away.reason()),
            (0, Some("no route")),
            "a round without an event tells nothing of the bus"
        );
        away.database(&Error::new(ErrorKind::Unavailable, "gone"));
        assert_eq!(away.reason(), Some("gone"));
        away.bus(&rejection);
        assert_eq!(
            away.reason(),
            Some("no route"),
            "who was claimed from answers"
        );
        assert_eq!(away.hear(&[Outcome::Acked], now), Some(true));
        away.back();
        assert_eq!((away.tries, away.reason()), (0, None));
    }

    #[test]
    fn a_bus_that_puts_everything_off_is_lost_without_a_pause() {
        let (mut away, now) = (Away::default(), Instant::now());
        let full = [Outcome::rejected(RejectionClass::Throttled(None), "full")];
        assert_eq!(away.hear(&full, now), None);
        assert_eq!(away.hear(&full, now + PATIENCE), Some(false));
        away.back();
        assert_eq!((away.tries, away.reason()), (0, Some("full")));
        let blocked = [Outcome::rejected(RejectionClass::Blocked, "no stream")];
        assert_eq!(away.hear(&blocked, now + PATIENCE), Some(false));
        assert_eq!(away.hear(&[Outcome::Acked], now + PATIENCE), Some(true));
        assert_eq!(away.reason(), None);
    }
}
