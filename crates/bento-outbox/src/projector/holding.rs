//! What a relay knows of its leases, and how it keeps them.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::Projector;
use crate::error::Result;
use crate::immediate::TERM_USED;
use crate::store::{Lease, PARTITIONS};
use crate::telemetry;

/// The part of a term after which leases are renewed.
pub(super) const RENEW: f64 = 1.0 / 3.0;

/// How soon leases are asked for while records are due in partitions of another relay.
const LOOK_AROUND: Duration = Duration::from_millis(300);

/// A database that stalls makes leases late once or twice.
const LATE_MAX: u32 = 3;

/// What a relay holds, by its own clock.
pub(super) struct Holding {
    pub(super) leases: Vec<Lease>,
    pub(super) renew_at: Instant,
    /// When it stops publishing unless the leases are renewed.
    pub(super) deadline: Instant,
    /// How often in a row they came too late to be used.
    late: u32,
    /// Whether a relay died over some of these partitions.
    pub(super) careful: bool,
    pub(super) purge_at: Instant,
}

impl Default for Holding {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            leases: Vec::new(),
            renew_at: now,
            deadline: now,
            late: 0,
            careful: false,
            purge_at: now,
        }
    }
}

impl Holding {
    /// Notes leases of that `term` that were asked for at `asked` and have come `now`.
    fn renewed(&mut self, leases: Vec<Lease>, term: Duration, asked: Instant, now: Instant) {
        self.careful |= leases.iter().any(|lease| lease.from_the_dead);
        self.leases = leases;
        self.renew_at = asked + term.mul_f64(RENEW);
        self.deadline = asked + term.mul_f64(TERM_USED);
        self.late = match now < self.deadline {
            true => 0,
            false => self.late + 1,
        };
    }

    /// Whether nothing is published, not for a moment but for as long as the database is so slow.
    fn stands_still(&self) -> bool {
        self.late >= LATE_MAX
    }
}

impl Projector {
    /// Whether a third of the term has passed.
    pub(super) fn renewal_is_due(&self) -> bool {
        Instant::now() >= self.holding().renew_at
    }

    /// Renews the leases when a third of the term has passed. What is more than a fair share goes
    /// to other relays, so nothing should be in flight.
    pub(super) async fn renew_in_time(&self) -> Result<()> {
        if !self.renewal_is_due() {
            return Ok(());
        }
        let term = self.shared.settings.lease_term;
        // The clock is read before the question is sent: the answer may take its time.
        let asked = Instant::now();
        let leases = self.shared.store.lease(&self.shared.relay, term).await?;
        let took = asked.elapsed();
        let mut holding = self.holding();
        if leases.len() != holding.leases.len() {
            tracing::info!(held = leases.len(), of = PARTITIONS, "partitions leased");
        }
        telemetry::leases_held(leases.len());
        holding.renewed(leases, term, asked, asked + took);
        if holding.stands_still()
            && let Some(times) = self.shared.notices.late.speak(1)
        {
            tracing::warn!(
                ?took,
                lease_ttl = ?term,
                times,
                "the database renews the leases so slowly that nothing can be published within them; \
                 a longer lease_ttl lets it"
            );
        }
        Ok(())
    }

    /// Asks for leases soon: who holds what is due may have stopped or died, and then that is to be
    /// taken up now and not a third of a term later.
    pub(super) fn look_around(&self) {
        let mut holding = self.holding();
        holding.renew_at = holding.renew_at.min(Instant::now() + LOOK_AROUND);
    }

    /// Keeps the leases while something slow is under way.
    pub(super) async fn while_renewing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let tick = self.shared.settings.lease_term.mul_f64(RENEW);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(tick) => {
                    if let Err(error) = self.renew_in_time().await {
                        tracing::debug!(error = error.report(), "the leases could not be renewed");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_that_come_too_late_again_and_again_are_told_of() {
        let (mut holding, asked) = (Holding::default(), Instant::now());
        let term = Duration::from_secs(10);
        let mut renewed = |seconds| {
            let now = asked + Duration::from_secs(seconds);
            holding.renewed(Vec::new(), term, asked, now);
            holding.stands_still()
        };
        assert!(!renewed(7) && !renewed(8));
        assert!(renewed(7) && renewed(7));
        assert!(!renewed(1) && !renewed(7));
    }
}
