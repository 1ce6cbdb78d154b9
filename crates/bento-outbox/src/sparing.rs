//! Log lines of which there could be one for each event: a few are written, and speak for the rest.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A line of one kind is followed by the next one of it so much later at the earliest.
const PAUSE: Duration = Duration::from_secs(30);

/// Lets a line through now and then, and counts what it keeps back.
pub(crate) struct Sparing(Mutex<Kept>);

struct Kept {
    count: u64,
    next: Option<Instant>,
}

impl Default for Sparing {
    fn default() -> Self {
        Self::new()
    }
}

impl Sparing {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Kept {
            count: 0,
            next: None,
        }))
    }

    /// For how many a line may speak now, `more` among them; none where it is not its turn, or where
    /// there is nothing to say.
    pub(crate) fn speak(&self, more: u64) -> Option<u64> {
        self.at(Instant::now(), more)
    }

    fn at(&self, now: Instant, more: u64) -> Option<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.count += more;
        if kept.count == 0 || kept.next.is_some_and(|next| now < next) {
            return None;
        }
        kept.next = Some(now + PAUSE);
        Some(std::mem::take(&mut kept.count))
    }

    /// For how many nobody has spoken yet.
    pub(crate) fn left(&self) -> Option<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(std::mem::take(&mut kept.count)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_speaks_for_those_that_were_kept_back() {
        let (sparing, now) = (Sparing::default(), Instant::now());
        assert_eq!(sparing.at(now, 0), None);
        assert_eq!(sparing.at(now, 3), Some(3), "the first is said at once");
        assert_eq!(sparing.at(now, 4), None);
        assert_eq!(sparing.at(now + PAUSE, 0), Some(4));
        assert_eq!(sparing.at(now + PAUSE, 1), None);
        assert_eq!((sparing.left(), sparing.left()), (Some(1), None));
        assert_eq!(sparing.at(now + 2 * PAUSE, 0), None);
    }
}
