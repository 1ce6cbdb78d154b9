//! Whether the relay goes round.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How a [`Projector`](crate::Projector) gets on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// For how long it should have been heard of and was not. Zero while it goes round, and in a pause
    /// that it meant to make; grows without an end where it hangs.
    pub overdue: Duration,
    /// Why nothing goes out at present, one line without a secret; none while nothing hinders it.
    pub stopped_by: Option<String>,
}

/// What the projector says while it goes round.
pub(super) struct Pulse(Mutex<State>);

struct State {
    /// When it is to be heard of again at the latest.
    due: Instant,
    bus_asked: Option<Instant>,
    stopped_by: Option<String>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(State {
            due: Instant::now(),
            bus_asked: None,
            stopped_by: None,
        }))
    }
}

impl Pulse {
    /// It goes round.
    pub(super) fn beat(&self) {
        self.silent_until(Duration::ZERO);
    }

    /// It is not to be heard of before so much time has passed.
    pub(super) fn silent_until(&self, pause: Duration) {
        self.state().due = Instant::now() + pause;
    }

    /// It asks the bus, which may take so long.
    pub(super) fn asks_the_bus(&self, patience: Duration) {
        let now = Instant::now();
        let mut state = self.state();
        state.due = now + patience;
        state.bus_asked = Some(now);
    }

    /// How long ago the bus was asked last; for ever if it never was.
    pub(super) fn bus_rests_for(&self) -> Duration {
        let asked = self.state().bus_asked;
        asked.map_or(Duration::MAX, |asked| asked.elapsed())
    }

    /// Nothing goes out, and why; none: it does.
    pub(super) fn stopped_by(&self, reason: Option<&str>) {
        let mut state = self.state();
        if state.stopped_by.as_deref() != reason {
            state.stopped_by = reason.map(Into::into);
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            overdue: Instant::now().saturating_duration_since(state.due),
            stopped_by: state.stopped_by.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_no_silence_and_a_hang_is_one() {
        let pulse = Pulse::default();
        pulse.silent_until(Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(pulse.progress().overdue, Duration::ZERO);
        pulse.beat();
        std::thread::sleep(Duration::from_millis(5));
        assert!(pulse.progress().overdue >= Duration::from_millis(5));
        pulse.stopped_by(Some("no route"));
        assert_eq!(pulse.progress().stopped_by.as_deref(), Some("no route"));
        pulse.stopped_by(None);
        assert_eq!(pulse.progress().stopped_by, None);
    }
}
