//! One batch: how it is claimed, what of it is published, and what is written about it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Batch, Projector, ProjectorSettings};
use crate::dead_letter::DeadLetter;
use crate::error::Result;
use crate::record::{OutboxRecord, Outcome, RejectionClass, Status};
use crate::retry;
use crate::spans::BatchSpan;
use crate::store::{Claim, Fence, Lease, Settle, Settlement, Verdict};
use crate::telemetry::{self, Tally};
use crate::timestamp::Timestamp;

/// The most records published one by one after a relay died.
const CAREFUL_MAX: u32 = 200;

/// How many batches that were claimed meanwhile may not know yet of a failure: the one claimed while
/// it happened, and the one claimed while it was written.
const UNAWARE: u64 = 2;

/// So long a bus may take over one call: every bus has a deadline for a record, and this is more than a
/// whole batch of records that each come to theirs.
const BUS_ANSWERS_WITHIN: Duration = Duration::from_secs(600);

/// A batch that is claimed and not published.
pub(super) struct Taken {
    pub(super) records: Vec<OutboxRecord>,
    pub(super) batch: Batch,
    /// What was held at the claim.
    leases: Vec<Lease>,
    begun: Instant,
    span: BatchSpan,
    /// Whether a relay died over some of these partitions.
    pub(super) careful: bool,
}

/// What became of the records of a batch, still to be written.
#[derive(Default)]
pub(super) struct Published {
    settlements: Vec<Settlement>,
    /// Those of them that die, for the observers.
    letters: Vec<DeadLetter>,
    leases: Vec<Lease>,
    /// When the batch was claimed.
    begun: Option<Instant>,
    span: BatchSpan,
    /// The `seq` of those records. What was not tried is in flight no more: the next claim must read
    /// it again before anything that comes after it in its key.
    pub(super) in_flight: Vec<i64>,
    /// Whether some were not tried because the leases were about to end: nothing may follow them.
    pub(super) is_cut_short: bool,
}

impl Published {
    fn add(&mut self, record: &OutboxRecord, verdict: Verdict) {
        self.in_flight.push(record.seq);
        if let Verdict::Dead { counts, reason } = &verdict {
            self.letters
                .push(DeadLetter::of(record.clone(), *counts, reason.clone()));
        }
        self.settlements.push(Settlement {
            id: record.id,
            verdict,
        });
    }
}

/// Keys of which a record failed, for as long as batches may hold later ones of them that were
/// claimed before that was written.
#[derive(Default)]
pub(super) struct HeldKeys {
    batch: u64,
    failed_in: HashMap<String, u64>,
}

impl HeldKeys {
    /// Begins the next batch.
    fn next(&mut self) {
        self.batch += 1;
        let oldest = self.batch.saturating_sub(UNAWARE);
        self.failed_in.retain(|_, batch| *batch >= oldest);
    }

    fn hold(&mut self, record: &OutboxRecord) {
        if let Some(key) = record.ordering_key() {
            self.failed_in.insert(key.to_string(), self.batch);
        }
    }

    fn holds(&self, record: &OutboxRecord) -> bool {
        !self.failed_in.is_empty()
            && record
                .ordering_key()
                .is_some_and(|key| self.failed_in.contains_key(&key.to_string()))
    }
}

impl Projector {
    /// Claims a batch, publishes it and settles it. While the bus is away a single record asks
    /// whether it is back.
    pub(super) async fn round(&self, held: &mut HeldKeys, probe: bool) -> Result<Batch> {
        self.renew_in_time().await?;
        self.wake_in_time().await?;
        let taken = self.take(&[], probe).await?;
        let (published, batch) = self.publish(taken, held).await?;
        self.settle(published).await?;
        Ok(batch)
    }

    /// Claims what comes next.
    pub(super) async fn take(&self, in_flight: &[i64], probe: bool) -> Result<Taken> {
        self.heed_pauses().await?;
        let begun = Instant::now();
        let (leases, careful) = {
            let holding = self.holding();
            (holding.leases.clone(), holding.careful)
        };
        let settings = &self.shared.settings;
        let limit = match (probe, careful) {
            (true, _) => 1,
            (_, true) => settings.batch_size.min(CAREFUL_MAX),
            _ => settings.batch_size,
        };
        let claim = Claim {
            relay: &self.shared.relay,
            leases: &leases,
            limit,
            in_flight,
            ordered: settings.ordered,
            dead_letters_block: settings.dead_letters_block,
        };
        let claimed = self.shared.store.claim(&claim).await?;
        if claimed.elsewhere {
            self.look_around();
        }
        self.shared.pulse.beat();
        let batch = Batch {
            claimed: claimed.records.len(),
            waiting: claimed.waiting,
            elsewhere: claimed.elsewhere,
            ..Batch::default()
        };
        Ok(Taken {
            span: BatchSpan::begin(batch.claimed),
            records: claimed.records,
            batch,
            leases,
            begun,
            careful,
        })
    }

    /// Publishes a batch; what is to be written about it is the answer.
    pub(super) async fn publish(
        &self,
        taken: Taken,
        held: &mut HeldKeys,
    ) -> Result<(Published, Batch)> {
        let Taken {
            records,
            mut batch,
            leases,
            begun,
            span,
            careful,
        } = taken;
        // It may have waited for the batch before.
        self.heed_pauses().await?;
        held.next();
        let mut published = Published {
            settlements: Vec::with_capacity(records.len()),
            letters: Vec::new(),
            leases,
            begun: (!records.is_empty()).then_some(begun),
            span,
            in_flight: Vec::with_capacity(records.len()),
            is_cut_short: false,
        };
        if careful {
            let (leases, span) = (&published.leases, &published.span);
            self.one_by_one(records, leases, span, held, &mut batch)
                .await?;
            self.holding().careful = false;
        } else {
            let waves = self.in_waves(records, held, &mut batch, &mut published);
            self.while_renewing(waves).await;
        }
        let span = &published.span;
        span.came_to(batch.sent, batch.retried, batch.dead);
        Ok((published, batch))
    }

    /// Publishes records one by one, each attempt counted before it is made: one of them may have
    /// killed the relay that held them before, and must not take its neighbours along.
    async fn one_by_one(
        &self,
        records: Vec<OutboxRecord>,
        leases: &[Lease],
        span: &BatchSpan,
        held: &mut HeldKeys,
        batch: &mut Batch,
    ) -> Result<()> {
        let fence = Fence::Leases {
            relay: &self.shared.relay,
            leases,
        };
        for mut record in records {
            if self.shared.stopping.load(Ordering::Relaxed) {
                break;
            }
            if held.holds(&record) {
                continue;
            }
            self.renew_in_time().await?;
            let paused = self.paused_destinations();
            if self.put_aside(&record, &paused).is_none() {
                match self.shared.store.attempt(&fence, record.id).await? {
                    Some(lost_attempts) => record.lost_attempts = lost_attempts - 1,
                    None => {
                        held.hold(&record);
                        continue;
                    }
                }
            }
            let mut published = Published {
                span: span.clone(),
                ..Published::default()
            };
            let alone = vec![record.clone()];
            self.while_renewing(self.in_waves(alone, held, batch, &mut published))
                .await;
            if published.settlements.is_empty() {
                // The bus is away, or the lease is about to end: the attempt was none.
                held.hold(&record);
                published.add(&record, Verdict::HandOver);
            }
            self.write(&published, &fence).await?;
            if batch.stopped_by.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Publishes records in waves: a wave has one record of each ordering key at most, and a key
    /// whose record failed has none in the waves that follow.
    async fn in_waves(
        &self,
        records: Vec<OutboxRecord>,
        held: &mut HeldKeys,
        batch: &mut Batch,
        published: &mut Published,
    ) {
        let settings = &self.shared.settings;
        let mut tally = Tally::default();
        for mut wave in retry::waves(records, settings.ordered) {
            if settings.ordered {
                wave.retain(|record| !held.holds(record));
            }
            // By its own clock, before the lease can have passed to another relay by the database's.
            let is_over = Instant::now() >= self.holding().deadline;
            if is_over || self.shared.stopping.load(Ordering::Relaxed) {
                published.is_cut_short = true;
                break;
            }
            let paused = self.paused_destinations();
            let aside = |record: &OutboxRecord| self.put_aside(record, &paused);
            for record in wave.extract_if(.., |record| aside(record).is_some()) {
                held.hold(&record);
                batch.paused += 1;
                if let Some(verdict) = aside(&record) {
                    published.add(&record, verdict);
                }
            }
            let is_for_nobody = |record: &mut OutboxRecord| for_nobody(record, settings).is_some();
            let mut judged: Vec<(OutboxRecord, Option<Verdict>)> = wave
                .extract_if(.., is_for_nobody)
                .map(|record| {
                    let verdict = for_nobody(&record, settings);
                    (record, verdict)
                })
                .collect();
            let outcomes = match wave.is_empty() {
                true => Vec::new(),
                false => self.ask_the_bus(&wave, &published.span).await,
            };
            let mut outcomes = outcomes.into_iter();
            judged.extend(wave.into_iter().map(|record| {
                let outcome = outcomes
                    .next()
                    .unwrap_or_else(|| Outcome::unknown("the publisher gave no answer for it"));
                tally.outcome(&outcome);
                let verdict = self.judge(&record, outcome, batch);
                (record, verdict)
            }));
            let now = Timestamp::now();
            for (record, verdict) in judged {
                batch.count(verdict.as_ref());
                if !verdict
                    .as_ref()
                    .is_some_and(|verdict| self.goes_on(verdict))
                {
                    held.hold(&record);
                }
                if let Some(verdict) = verdict {
                    tally.verdict(&record, &verdict, now);
                    tell_of_one(&record, &verdict);
                    published.add(&record, verdict);
                }
            }
            if batch.stopped_by.is_some() {
                break;
            }
        }
        tally.tell();
    }

    /// One call to the bus. It has a deadline of its own, which is not the round's.
    async fn ask_the_bus(&self, wave: &[OutboxRecord], batch: &BatchSpan) -> Vec<Outcome> {
        self.shared.pulse.asks_the_bus(BUS_ANSWERS_WITHIN);
        let spans = batch.publish(wave);
        let outcomes = self.shared.publisher.publish(wave).await;
        spans.ended(&outcomes);
        let takes = self.away().hear(&outcomes, Instant::now());
        // Of several destinations each must take events.
        let refuses = self.shared.publisher.refuses().is_some();
        if let Some(up) = if refuses { Some(false) } else { takes } {
            telemetry::bus_up(up);
        }
        self.shared.pulse.beat();
        outcomes
    }

    /// Whether later records of the key may follow.
    fn goes_on(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Sent => true,
            Verdict::Dead { .. } => !self.shared.settings.dead_letters_block,
            Verdict::Retry { .. } | Verdict::HandOver => false,
        }
    }

    /// What to write about a record.
    fn judge(&self, record: &OutboxRecord, outcome: Outcome, batch: &mut Batch) -> Option<Verdict> {
        if let Outcome::Rejected(rejection) = &outcome {
            match rejection.class {
                RejectionClass::Unreachable | RejectionClass::Config => {
                    batch.stopped_by.get_or_insert_with(|| rejection.clone());
                }
                RejectionClass::Blocked => {
                    let destination = self.shared.publisher.destination(record);
                    self.shared.notices.blocked(record, destination, rejection);
                    batch.blocked.get_or_insert_with(|| rejection.clone());
                }
                _ => {}
            }
        }
        let retry = &self.shared.settings.retry;
        retry::verdict(outcome, record.delivery.retry_cnt, retry, rand::random())
    }

    /// Writes what became of a batch.
    pub(super) async fn settle(&self, published: Published) -> Result<()> {
        let fence = Fence::Leases {
            relay: &self.shared.relay,
            leases: &published.leases,
        };
        self.write(&published, &fence).await?;
        if let Some(begun) = published.begun {
            telemetry::batch_took(begun.elapsed());
        }
        Ok(())
    }

    async fn write(&self, published: &Published, fence: &Fence<'_>) -> Result<()> {
        let settlements = &published.settlements;
        if settlements.is_empty() {
            return Ok(());
        }
        let keep_sent = !self
            .shared
            .settings
            .retention
            .is_some_and(|age| age.is_zero());
        let settle = Settle {
            fence: *fence,
            keep_sent,
            settlements,
        };
        let changed = retry::stubbornly(|| self.shared.store.settle(&settle)).await?;
        let fenced = (settlements.len() as u64).saturating_sub(changed);
        if fenced > 0 {
            telemetry::fenced(fenced);
            if let Some(fenced) = self.shared.notices.fenced.speak(fenced) {
                tracing::info!(
                    fenced,
                    "a lease was lost before what it published was settled; another relay goes on"
                );
            }
        }
        self.tell_of_the_dead(&published.letters, fenced > 0).await;
        Ok(())
    }

    /// Tells the observers of dead letters, now that they are written. Where some settlements were
    /// refused, the table says which letters are ours.
    async fn tell_of_the_dead(&self, letters: &[DeadLetter], some_refused: bool) {
        if letters.is_empty() {
            return;
        }
        let observers = &self.shared.observers;
        let mut letters = letters.to_vec();
        if some_refused {
            let ids: Vec<Uuid> = letters.iter().map(|letter| letter.record.id).collect();
            let found = self.shared.store.find(&ids).await.unwrap_or_default();
            letters.retain(|letter| {
                let is_dead = |record: &OutboxRecord| record.delivery.status == Status::Err;
                found
                    .iter()
                    .any(|record| record.id == letter.record.id && is_dead(record))
            });
        }
        self.shared.notices.died(&letters);
        observers
            .iter()
            .for_each(|observer| observer.died(&letters));
    }
}

impl Batch {
    fn count(&mut self, verdict: Option<&Verdict>) {
        match verdict {
            Some(Verdict::Sent) => self.sent += 1,
            Some(Verdict::Retry { .. }) => self.retried += 1,
            Some(Verdict::Dead { .. }) => self.dead += 1,
            Some(Verdict::HandOver) | None => {}
        }
    }
}

/// What happens to each event is for those who look closely.
fn tell_of_one(record: &OutboxRecord, verdict: &Verdict) {
    let (event, r#type) = (record.id, record.event_type.as_str());
    match verdict {
        Verdict::Sent => tracing::debug!(%event, r#type, "sent"),
        Verdict::Retry { after, reason, .. } => {
            tracing::debug!(%event, r#type, reason, ?after, "not sent; tried again");
        }
        Verdict::Dead { reason, .. } => tracing::debug!(%event, r#type, reason, "refused for good"),
        Verdict::HandOver => tracing::debug!(%event, r#type, "left to another relay"),
    }
}

/// The end of an event that nobody is sent: its row cannot be read, or the process died over it again and
/// again.
fn for_nobody(record: &OutboxRecord, settings: &ProjectorSettings) -> Option<Verdict> {
    if let Some(why) = &record.unreadable {
        let (counts, reason) = (true, why.clone());
        return Some(Verdict::Dead { counts, reason });
    }
    (record.lost_attempts >= settings.retry.max_retry).then(|| Verdict::Dead {
        counts: false,
        reason: format!(
            "{} attempts left no result: the process died, or lost its lease, while publishing it",
            record.lost_attempts
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Aggregate, Event, Payload};
    use crate::timestamp::Timestamp;

    fn record(key: &str) -> OutboxRecord {
        let event = Event {
            aggregate: Aggregate::new("order", key),
            ..Event::new("a", Payload::json("1").unwrap())
        };
        OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now())
    }

    #[test]
    fn a_failure_is_known_to_the_batches_that_were_claimed_before_it_was_written() {
        let mut held = HeldKeys::default();
        held.next();
        held.hold(&record("a"));
        assert!(held.holds(&record("a")) && !held.holds(&record("b")));
        for _ in 0..UNAWARE {
            held.next();
            assert!(held.holds(&record("a")));
        }
        held.next();
        assert!(!held.holds(&record("a")), "the database holds it now");
    }
}
