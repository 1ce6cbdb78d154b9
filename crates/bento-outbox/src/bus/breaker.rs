//! When a destination that was away is tried again. No I/O and no clock: it is told the time.

use std::time::{Duration, Instant};

use crate::record::{Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};

/// A circuit breaker: closed while the destination takes records, open for a growing pause when it
/// takes none, and then a single record is let through, the probe. See "Circuit Breaker", Nygard,
/// *Release It!*, 2007.
#[derive(Debug)]
pub(super) struct Breaker {
    /// How long the first pause is, and the longest.
    pauses: RetrySettings,
    state: State,
    /// Grows with each change of state: what was begun under an older one has nothing to say.
    epoch: u64,
}

#[derive(Debug)]
enum State {
    Closed,
    /// Away, after so many failures in a row.
    Open {
        until: Instant,
        failures: u32,
        why: Rejection,
    },
    /// As open, and the probe is on its way.
    Probing {
        failures: u32,
        why: Rejection,
    },
}

/// What may go to the destination now.
#[derive(Debug, PartialEq)]
pub(super) enum Leave {
    /// Everything.
    All(Ticket),
    /// One record, to see whether the destination is back.
    Probe(Ticket),
    /// Nothing.
    Nothing,
}

/// To be shown with the outcomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ticket(u64);

/// What outcomes say about the destination.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// It answered.
    Reached,
    /// It takes no records.
    Away(Rejection),
    /// Nothing: it was not asked.
    None,
}

/// That the destination changed.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// It takes records again.
    Back,
    /// It takes none any more.
    Gone(Rejection),
}

impl Breaker {
    pub(super) fn new(pauses: RetrySettings) -> Self {
        Self {
            pauses,
            state: State::Closed,
            epoch: 0,
        }
    }

    /// Asks what may go to the destination at `now`. Who gets a ticket must show it to
    /// [`tell`](Self::tell), or nobody ever gets another one.
    pub(super) fn ask(&mut self, now: Instant) -> Leave {
        match &self.state {
            State::Closed => Leave::All(Ticket(self.epoch)),
            State::Open {
                until,
                failures,
                why,
            } if *until <= now => {
                self.state = State::Probing {
                    failures: *failures,
                    why: why.clone(),
                };
                self.epoch += 1;
                Leave::Probe(Ticket(self.epoch))
            }
            State::Open { .. } | State::Probing { .. } => Leave::Nothing,
        }
    }

    /// Tells what became of what was let through, at `now`; `random` is in 0..1.
    pub(super) fn tell(
        &mut self,
        ticket: Ticket,
        news: News,
        now: Instant,
        random: f64,
    ) -> Option<Change> {
        if ticket.0 != self.epoch {
            return None;
        }
        let failures = match &self.state {
            State::Closed => 0,
            State::Open { failures, .. } | State::Probing { failures, .. } => *failures,
        };
        let was_closed = matches!(self.state, State::Closed);
        let (state, change) = match (news, &self.state) {
            (News::Reached, State::Closed) | (News::None, State::Closed | State::Open { .. }) => {
                return None;
            }
            (News::Reached, _) => (State::Closed, Some(Change::Back)),
            (News::Away(why), _) => {
                let failures = failures.saturating_add(1);
                let change = was_closed.then(|| Change::Gone(why.clone()));
                let until = now + retry::delay(failures, &self.pauses, random);
                let state = State::Open {
                    until,
                    failures,
                    why,
                };
                (state, change)
            }
            // The next record is the probe.
            (News::None, State::Probing { failures, why }) => (
                State::Open {
                    until: now,
                    failures: *failures,
                    why: why.clone(),
                },
                None,
            ),
        };
        self.state = state;
        self.epoch += 1;
        change
    }

    /// Whether something may go to the destination at `now`, were it asked.
    pub(super) fn takes(&self, now: Instant) -> bool {
        match &self.state {
            State::Closed => true,
            State::Open { until, .. } => *until <= now,
            State::Probing { .. } => false,
        }
    }

    /// Why nothing goes to the destination; none while it takes records.
    pub(super) fn why(&self) -> Option<&Rejection> {
        match &self.state {
            State::Closed => None,
            State::Open { why, .. } | State::Probing { why, .. } => Some(why),
        }
    }

    /// How long records for the destination wait. While a probe is on its way, as long as at first.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        match &self.state {
            State::Closed | State::Probing { .. } => self.pauses.multiplier,
            State::Open { until, .. } => until.saturating_duration_since(now),
        }
    }
}

impl News {
    /// A destination is away that says so of one record, or has an answer to none.
    pub(super) fn of(outcomes: &[Outcome]) -> Self {
        let mut news = Self::None;
        for outcome in outcomes {
            match outcome {
                Outcome::Rejected(rejection) => match rejection.class {
                    RejectionClass::Unreachable | RejectionClass::Config => {
                        return Self::Away(rejection.clone());
                    }
                    // An adapter says so without asking the bus.
                    RejectionClass::Permanent => {}
                    _ => news = Self::Reached,
                },
                Outcome::Acked => news = Self::Reached,
                Outcome::Unknown { reason } if news == Self::None => {
                    let why = Rejection::new(RejectionClass::Unreachable, reason);
                    news = Self::Away(why);
                }
                Outcome::Unknown { .. } => {}
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn away() -> Rejection {
        Rejection::new(RejectionClass::Unreachable, "no route")
    }

    #[test]
    fn outcomes_tell_whether_the_destination_is_there() {
        let refused = |class| Outcome::rejected(class, "no");
        let unknown = || Outcome::unknown("late");
        let is_away = |outcomes: &[Outcome]| matches!(News::of(outcomes), News::Away(_));
        assert_eq!(News::of(&[]), News::None);
        assert_eq!(News::of(&[refused(RejectionClass::Permanent)]), News::None);
        assert_eq!(News::of(&[unknown(), Outcome::Acked]), News::Reached);
        assert_eq!(News::of(&[Outcome::Acked, unknown()]), News::Reached);
        for class in [
            RejectionClass::Message,
            RejectionClass::Blocked,
            RejectionClass::Throttled(None),
        ] {
            assert_eq!(News::of(&[refused(class), unknown()]), News::Reached);
        }
        assert!(is_away(&[unknown(), unknown()]));
        assert!(is_away(&[unknown(), refused(RejectionClass::Permanent)]));
        assert!(is_away(&[
            Outcome::Acked,
            refused(RejectionClass::Unreachable)
        ]));
        assert!(is_away(&[refused(RejectionClass::Config)]));
    }

    #[test]
    fn a_destination_is_away_and_comes_back() {
        let mut breaker = Breaker::new(RetrySettings::default());
        let mut now = Instant::now();
        let Leave::All(ticket) = breaker.ask(now) else {
            panic!("{breaker:?}");
        };
        let change = breaker.tell(ticket, News::Away(away()), now, 1.0);
        assert_eq!(change, Some(Change::Gone(away())));
        assert_eq!(breaker.pause(now), Duration::from_millis(500));
        assert_eq!(breaker.ask(now), Leave::Nothing);
        // What was under way when it broke does not lengthen the pause.
        assert_eq!(breaker.tell(ticket, News::Away(away()), now, 1.0), None);
        assert_eq!(breaker.pause(now), Duration::from_millis(500));

        now += breaker.pause(now);
        let Leave::Probe(ticket) = breaker.ask(now) else {
            panic!("{breaker:?}");
        };
        assert_eq!(breaker.ask(now), Leave::Nothing, "one probe at a time");
        assert_eq!(breaker.tell(ticket, News::Away(away()), now, 1.0), None);
        assert_eq!(breaker.pause(now), Duration::from_secs(1));

        now += breaker.pause(now);
        let Leave::Probe(ticket) = breaker.ask(now) else {
            panic!("{breaker:?}");
        };
        assert_eq!(breaker.tell(ticket, News::None, now, 1.0), None);
        let Leave::Probe(ticket) = breaker.ask(now) else {
            panic!("the next record is the probe: {breaker:?}");
        };
        let change = breaker.tell(ticket, News::Reached, now, 1.0);
        assert_eq!(change, Some(Change::Back));
        assert!(matches!(breaker.ask(now), Leave::All(_)));
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Said {
        Reached,
        Away,
        Nothing,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask,
        /// Of the ticket that was given so many asks ago.
        Tell(usize, Said),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let said = prop_oneof![
            Just(Said::Reached),
            Just(Said::Away),
            Just(Said::Away),
            Just(Said::Nothing)
        ];
        prop_oneof![
            Just(Step::Ask),
            (0..3_usize, said).prop_map(|(ticket, said)| Step::Tell(ticket, said)),
            (0..400_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn one_probe_at_a_time_after_pauses_that_grow_and_end(
            steps in prop::collection::vec(step(), 0..60),
            random in 0.0..1.0_f64,
        ) {
            let pauses = RetrySettings::default();
            let mut breaker = Breaker::new(pauses.clone());
            let mut now = Instant::now();
            // Each ticket with the number of changes there had been when it was given.
            let mut given: Vec<(Ticket, u32)> = Vec::new();
            let (mut changes, mut failed, mut probing) = (0, 0_u32, false);
            for step in steps {
                match step {
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Ask => {
                        let takes = breaker.takes(now);
                        match breaker.ask(now) {
                            Leave::All(ticket) => {
                                prop_assert!(takes && failed == 0);
                                given.push((ticket, changes));
                            }
                            Leave::Probe(ticket) => {
                                prop_assert!(takes && failed > 0 && !probing);
                                (probing, changes) = (true, changes + 1);
                                given.push((ticket, changes));
                            }
                            Leave::Nothing => prop_assert!(!takes && failed > 0),
                        }
                    }
                    Step::Tell(back, said) => {
                        let Some(at) = given.len().checked_sub(back + 1) else {
                            continue;
                        };
                        let (ticket, at_changes) = given.remove(at);
                        let news = match said {
                            Said::Reached => News::Reached,
                            Said::Away => News::Away(away()),
                            Said::Nothing => News::None,
                        };
                        let before = breaker.pause(now);
                        let change = breaker.tell(ticket, news, now, random);
                        if at_changes != changes {
                            prop_assert_eq!(change, None, "what is old has no say");
                            prop_assert_eq!(breaker.pause(now), before);
                            continue;
                        }
                        match said {
                            Said::Reached => {
                                prop_assert_eq!(change == Some(Change::Back), failed > 0);
                                changes += u32::from(failed > 0);
                                failed = 0;
                            }
                            Said::Away => {
                                prop_assert_eq!(change.is_some(), failed == 0);
                                (changes, failed) = (changes + 1, failed + 1);
                                let pause = breaker.pause(now);
                                prop_assert!(pause <= pauses.max_delay);
                                prop_assert!(pause >= retry::delay(failed, &pauses, 0.0));
                                prop_assert!(!breaker.takes(now));
                            }
                            Said::Nothing => {
                                prop_assert_eq!(change, None);
                                prop_assert!(breaker.takes(now));
                                changes += u32::from(probing);
                            }
                        }
                        probing = false;
                    }
                }
                prop_assert_eq!(breaker.why().is_some(), failed > 0);
            }
            // No state is for ever: with every ticket shown and the longest pause over, it takes.
            for (ticket, _) in given {
                breaker.tell(ticket, News::None, now, random);
            }
            prop_assert!(breaker.takes(now + pauses.max_delay));
        }
    }
}
