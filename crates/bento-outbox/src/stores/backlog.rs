//! Which tenants have something ready, and whose turn it is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::store::Relay;
use crate::tenant::Tenant;

/// Tenants with ready records, as they were listed last. Clones of a store share it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    listed: Mutex<Listed>,
}

#[derive(Debug, Default)]
struct Listed {
    tenants: Vec<String>,
    /// Until when the list counts as new.
    fresh_until: Option<Instant>,
    /// Whose turn it is, where not all can have one in the same claim.
    next: usize,
}

/// A list stays new for so many times as long as it took to make: listing takes at most this part
/// of a relay's time, however many dead rows the database has to step over.
const FRESH_FOR: u32 = 20;

impl Backlog {
    /// Whether the tenants were listed just now.
    pub(crate) fn is_fresh(&self) -> bool {
        let until = self.listed().fresh_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Remembers the tenants that were just listed, which began at `begun`.
    pub(crate) fn list(&self, tenants: Vec<String>, begun: Instant) {
        let took = begun.elapsed();
        let mut listed = self.listed();
        listed.tenants = tenants;
        listed.fresh_until = Some(Instant::now() + took * FRESH_FOR);
    }

    /// The tenants that were listed last, of those that the relay carries.
    pub(crate) fn carried(&self, relay: &Relay) -> Vec<String> {
        self.turn(relay, usize::MAX)
    }

    /// The tenants to claim for now: at most so many, of those that the relay carries.
    pub(crate) fn turn(&self, relay: &Relay, most: usize) -> Vec<String> {
        let mut listed = self.listed();
        let carried = |tenant: &&String| {
            let ours = relay.tenants.as_ref();
            ours.is_none_or(|ours| ours.iter().map(Tenant::as_str).any(|our| our == *tenant))
        };
        let all: Vec<String> = listed.tenants.iter().filter(carried).cloned().collect();
        if all.len() <= most {
            return all;
        }
        let first = listed.next % all.len();
        listed.next = first + most;
        all.iter().cycle().skip(first).take(most).cloned().collect()
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many tenants share a claim of `limit` records at most, so that each gets some of what the
/// waiting records leave, which take half of it at most.
pub(crate) fn tenants_max(limit: u32) -> usize {
    (limit / 2).max(1) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn backlog(tenants: &[&str]) -> Backlog {
        let backlog = Backlog::default();
        backlog.list(
            tenants.iter().map(ToString::to_string).collect(),
            Instant::now(),
        );
        backlog
    }

    #[test]
    fn everybody_has_a_turn() {
        let (all, relay) = (["a", "b", "c", "d", "e"], Relay::new(None));
        let backlog = backlog(&all);
        assert_eq!(backlog.turn(&relay, 5), all);
        let turns: Vec<String> = (0..5).flat_map(|_| backlog.turn(&relay, 2)).collect();
        for tenant in all {
            let served = turns.iter().filter(|served| *served == tenant).count();
            assert_eq!(served, 2, "{tenant} in {turns:?}");
        }
    }

    #[test]
    fn a_relay_serves_its_own_tenants() {
        let relay = Relay::new(Some(vec!["b".parse().unwrap(), "x".parse().unwrap()]));
        assert_eq!(backlog(&["a", "b", "c"]).turn(&relay, 2), ["b"]);
    }

    #[test]
    fn a_list_ages_by_what_it_cost() {
        let backlog = backlog(&["a"]);
        // Begun later than now, so that it took nothing however long the machine thinks about it.
        backlog.list(Vec::new(), Instant::now() + Duration::from_secs(3_600));
        std::thread::sleep(Duration::from_millis(1));
        assert!(
            !backlog.is_fresh(),
            "a list that cost nothing is old at once"
        );
        backlog.list(Vec::new(), Instant::now() - Duration::from_secs(1));
        assert!(backlog.is_fresh());
    }
}
