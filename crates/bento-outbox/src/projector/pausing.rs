//! What operators have paused, as the relay knows it.
//!
//! The store itself claims nothing of a paused tenant. Which destination an event goes to only the
//! publisher knows, so what is for a paused one is put aside here: it gets a time after which it is
//! looked at again, which grows with the pause and which the end of the pause ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Projector;
use crate::act::Audited;
use crate::error::Result;
use crate::pause::{Pausable, Pause};
use crate::record::OutboxRecord;
use crate::store::Verdict;
use crate::timestamp::Timestamp;

/// How long what was read of pauses is believed.
const BELIEVED: Duration = Duration::from_millis(500);

/// How long an event is put aside at least, and at most.
const ASIDE_MIN: Duration = Duration::from_secs(20);
const ASIDE_MAX: Duration = Duration::from_secs(3_600);

/// Records that were put aside are woken so many at a time.
const WAKE_MAX: u32 = 1_000;

/// Of more changes than these at once only the number is logged.
const NAMED_MAX: usize = 5;

/// So many of the last acts are looked through for who resumed something.
const ACTS_READ: u32 = 50;

/// What is paused, as it was read last.
#[derive(Default)]
pub(super) struct Pauses {
    believed_until: Option<Instant>,
    all: BTreeMap<(Pausable, String), Pause>,
    destinations: Arc<BTreeMap<String, Pause>>,
    /// Whether records that were put aside may be there that are not paused any more.
    wakes: bool,
}

impl Pauses {
    /// Why a record that is for this destination does not go out now, and when it is looked at
    /// again; `random` is in 0..1.
    fn aside(pause: &Pause, now: Timestamp, random: f64) -> Verdict {
        let age = pause.since.until(now).clamp(ASIDE_MIN, ASIDE_MAX);
        Verdict::Retry {
            after: age.mul_f64(0.5 + 0.5 * random),
            counts: false,
            reason: Pause::aside(&pause.name),
        }
    }

    /// Takes in what is paused now, and says what was paused; answers what was resumed.
    fn learn(&mut self, now: Vec<Pause>, read_at: Instant) -> Vec<Pause> {
        let is_first = self.believed_until.is_none();
        self.believed_until = Some(read_at + BELIEVED);
        let now: BTreeMap<(Pausable, String), Pause> = now
            .into_iter()
            .map(|pause| ((pause.kind, pause.name.clone()), pause))
            .collect();
        let paused: Vec<&Pause> = now
            .iter()
            .filter(|(key, _)| !self.all.contains_key(key))
            .map(|(_, pause)| pause)
            .collect();
        let mut before = std::mem::take(&mut self.all);
        before.retain(|key, _| !now.contains_key(key));
        let resumed: Vec<Pause> = before.into_values().collect();
        say_paused(&paused);
        let is_destination = |pause: &&Pause| pause.kind == Pausable::Destination;
        // Who starts knows nothing of what was put aside before.
        self.wakes |= is_first || !resumed.is_empty();
        let destinations = now.values().filter(is_destination);
        self.destinations = Arc::new(
            destinations
                .map(|pause| (pause.name.clone(), pause.clone()))
                .collect(),
        );
        self.all = now;
        resumed
    }
}

fn say_paused(paused: &[&Pause]) {
    if paused.len() > NAMED_MAX {
        tracing::info!(number = paused.len(), "tenants and destinations paused");
        return;
    }
    for pause in paused {
        let Pause {
            kind,
            name,
            by,
            reason,
            ..
        } = pause;
        tracing::info!(name, by, reason, "{kind} paused: its events are kept");
    }
}

/// The audit has who resumed it; what is not among the last acts stays without a name.
fn say_resumed(resumed: &[Pause], acts: &[Audited]) {
    if resumed.len() > NAMED_MAX {
        tracing::info!(number = resumed.len(), "tenants and destinations resumed");
        return;
    }
    for Pause { kind, name, .. } in resumed {
        let act = acts.iter().find(|it| it.act.resumed(*kind, name));
        let by = act.map(|it| it.act.by.as_str());
        tracing::info!(name, by, "{kind} resumed");
    }
}

impl Projector {
    /// Reads what is paused, unless it was read just now.
    pub(super) async fn heed_pauses(&self) -> Result<()> {
        let begun = Instant::now();
        let believed = self.pauses().believed_until;
        if believed.is_some_and(|until| begun < until) {
            return Ok(());
        }
        let paused = self.shared.store.pauses().await?;
        let resumed = self.pauses().learn(paused, begun);
        if !resumed.is_empty() {
            // Only a line of the log has less in it where the audit cannot be read.
            let acts = self.shared.store.acts(None, ACTS_READ).await;
            say_resumed(&resumed, &acts.unwrap_or_default());
        }
        Ok(())
    }

    /// Whether something is to be woken, for which nothing may be in flight.
    pub(super) fn wakes(&self) -> bool {
        self.pauses().wakes
    }

    /// Wakes what was put aside and is not paused any more. Nothing is in flight:
    /// what is being put aside just now would be written after it, and sleep on.
    pub(super) async fn wake_in_time(&self) -> Result<()> {
        self.heed_pauses().await?;
        if !self.wakes() {
            return Ok(());
        }
        while self.shared.store.wake(WAKE_MAX).await? >= u64::from(WAKE_MAX) {}
        self.pauses().wakes = false;
        Ok(())
    }

    /// The destinations that are paused.
    pub(super) fn paused_destinations(&self) -> Arc<BTreeMap<String, Pause>> {
        self.pauses().destinations.clone()
    }

    /// What to write about a record whose destination is one of these that are paused; none where it
    /// may go out.
    pub(super) fn put_aside(
        &self,
        record: &OutboxRecord,
        paused: &BTreeMap<String, Pause>,
    ) -> Option<Verdict> {
        if paused.is_empty() {
            return None;
        }
        let pause = paused.get(self.shared.publisher.destination(record)?)?;
        Some(Pauses::aside(pause, Timestamp::now(), rand::random()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(kind: Pausable, name: &str) -> Pause {
        Pause {
            kind,
            name: name.into(),
            since: Timestamp::now(),
            by: "cli:a@b".into(),
            reason: None,
        }
    }

    #[test]
    fn the_end_of_a_pause_wakes_what_was_put_aside() {
        let mut pauses = Pauses::default();
        pauses.learn(Vec::new(), Instant::now());
        assert!(pauses.wakes, "somebody may have ended one before the start");
        pauses.wakes = false;
        let both = vec![
            pause(Pausable::Tenant, "acme"),
            pause(Pausable::Destination, "main"),
        ];
        pauses.learn(both.clone(), Instant::now());
        assert!(!pauses.wakes);
        assert_eq!(pauses.destinations.keys().collect::<Vec<_>>(), ["main"]);
        let resumed = pauses.learn(both[1..].to_vec(), Instant::now());
        assert_eq!(resumed, both[..1]);
        assert!(pauses.wakes, "what came due of a tenant may be put off");
        pauses.wakes = false;
        pauses.learn(both[1..].to_vec(), Instant::now());
        assert!(!pauses.wakes);
        pauses.learn(Vec::new(), Instant::now());
        assert!(pauses.wakes && pauses.destinations.is_empty());
    }

    #[test]
    fn an_event_is_put_aside_longer_the_longer_the_pause() {
        let mut young = pause(Pausable::Destination, "main");
        let now = young.since.after(Duration::from_secs(1));
        let after = |pause: &Pause, now, random| match Pauses::aside(pause, now, random) {
            Verdict::Retry {
                after,
                counts: false,
                reason,
            } => (after, reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(after(&young, now, 1.0).0, ASIDE_MIN);
        assert_eq!(after(&young, now, 0.0).0, ASIDE_MIN / 2);
        assert_eq!(after(&young, now, 0.0).1, "its destination main is paused");
        let minute = young.since.after(Duration::from_secs(60));
        assert_eq!(after(&young, minute, 1.0).0, Duration::from_secs(60));
        young.since = "2013-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(after(&young, now, 1.0).0, ASIDE_MAX);
    }
}
