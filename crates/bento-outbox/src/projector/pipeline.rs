//! The relay at work: one batch is claimed while the last one is published and the one before is
//! settled.
//!
//! What is in flight is left out of the claims made meanwhile, and a key of which a record failed is
//! held for the batches that were claimed before the database knew ([`HeldKeys`]). Leases are
//! renewed only while nothing is in flight: renewing may give some to another relay; and so is woken
//! what was put aside for a destination that was paused.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::holding::RENEW;
use super::publishing::{HeldKeys, Published};
use super::{Batch, Projector, finished};
use crate::error::{ErrorKind, Result};
use crate::telemetry;

/// Records of the past deleted in one statement, and how often old ones are looked for.
const PURGE_LIMIT: u32 = 1_000;
const PURGE_EVERY: Duration = Duration::from_secs(60);

/// How often a bus is asked whether it is there that was not asked anything else, and for how long.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const LOOK_MAX: Duration = Duration::from_secs(5);

/// The pause between two counts of the backlog is so many times as long as a count.
const COUNTING_PART: u32 = 20;

impl Projector {
    /// Carries until it is told to stop, or whoever would tell it is gone.
    pub(super) async fn carry(&self, stopping: watch::Receiver<bool>) -> Result<()> {
        tokio::select! {
            result = self.carry_on(stopping) => result,
            never = self.count_backlog() => match never {},
            never = self.look_at_the_bus() => match never {},
        }
    }

    /// Counts what waits for the metrics, for as long as somebody carries. A backlog so long that
    /// counting takes its time is counted less often.
    async fn count_backlog(&self) -> Infallible {
        let Some(every) = self.shared.settings.count_backlog_every else {
            return std::future::pending().await;
        };
        loop {
            let begun = Instant::now();
            match self.shared.store.backlog().await {
                Ok(backlog) => {
                    telemetry::database_up(true);
                    telemetry::backlog(&backlog);
                }
                Err(error) => tracing::debug!(error = error.report(), "the backlog is not counted"),
            }
            tokio::time::sleep(every.max(begun.elapsed() * COUNTING_PART)).await;
        }
    }

    /// Where metrics are collected, they also know of a bus that goes away while it has nothing to do.
    async fn look_at_the_bus(&self) -> Infallible {
        if self.shared.settings.count_backlog_every.is_none() {
            return std::future::pending().await;
        }
        loop {
            if self.shared.pulse.bus_rests_for() >= LOOK_EVERY {
                let look = self.shared.publisher.check();
                let is_there = tokio::time::timeout(LOOK_MAX, look).await;
                telemetry::bus_up(matches!(is_there, Ok(Ok(()))));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn carry_on(&self, mut stopping: watch::Receiver<bool>) -> Result<()> {
        let settings = &self.shared.settings;
        loop {
            self.shared.pulse.beat();
            let is_away = self.away().tries > 0;
            let pause = match self.stretch(&stopping, is_away).await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Schema | ErrorKind::InvalidSetting) =>
                {
                    return Err(error);
                }
                Err(error) => Some(self.away().database(&error)),
                Ok(Batch {
                    stopped_by: Some(rejection),
                    ..
                }) => Some(self.away().bus(&rejection)),
                Ok(batch) => {
                    self.away().back();
                    match batch {
                        Batch { claimed: 1.., .. } => None,
                        Batch { waiting: true, .. } => Some(settings.poll_interval_busy),
                        _ => Some(
                            settings
                                .poll_interval_idle
                                .min(settings.lease_term.mul_f64(RENEW)),
                        ),
                    }
                }
            };
            self.shared.pulse.stopped_by(self.away().reason());
            self.shared.notices.say_what_is_due();
            if has_stopped(&stopping) {
                return Ok(());
            }
            let Some(pause) = pause else { continue };
            self.shared.pulse.silent_until(pause);
            let hintable = self.away().tries == 0;
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Ok(()),
                () = self.shared.store.hint(), if hintable => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Carries batches until a claim finds nothing, something stops it, or leases are to be renewed.
    /// Answers what the last one came to.
    async fn stretch(&self, stopping: &watch::Receiver<bool>, probe: bool) -> Result<Batch> {
        let _alone = self.shared.one_at_a_time.lock().await;
        if probe {
            return self.round(&mut HeldKeys::default(), true).await;
        }
        self.renew_in_time().await?;
        self.wake_in_time().await?;
        let mut settling = None;
        let carried = self.overlapped(stopping, &mut settling).await;
        // Whatever happened, nobody claims before what was published is written.
        let settled = settled(&mut settling).await;
        let batch = carried?;
        settled.map(|()| batch)
    }

    async fn overlapped(
        &self,
        stopping: &watch::Receiver<bool>,
        settling: &mut Option<Settling>,
    ) -> Result<Batch> {
        let mut held = HeldKeys::default();
        let mut taken = self.take(&[], false).await?;
        loop {
            let mut in_flight: Vec<i64> = taken.records.iter().map(|record| record.seq).collect();
            let alone =
                in_flight.is_empty() || taken.careful || self.renewal_is_due() || self.wakes();
            let next = (!alone && !has_stopped(stopping)).then(|| {
                in_flight.extend(settling.iter().flat_map(|settling| &settling.in_flight));
                let projector = self.clone();
                tokio::spawn(async move { projector.take(&in_flight, false).await })
            });
            let (published, batch) = self.publish(taken, &mut held).await?;
            let before = settled(settling).await;
            let goes_on = batch.stopped_by.is_none() && !published.is_cut_short;
            *settling = Some(self.start_settling(published));
            before?;
            let Some(next) = next.filter(|_| goes_on) else {
                return Ok(batch);
            };
            taken = finished(next.await)?;
            // What is to be done with care is claimed again, when nothing else is in flight.
            if taken.records.is_empty() || taken.careful {
                return Ok(batch);
            }
        }
    }

    /// Settles in a task of its own, and purges a little where that is due.
    fn start_settling(&self, published: Published) -> Settling {
        let projector = self.clone();
        Settling {
            in_flight: published.in_flight.clone(),
            task: tokio::spawn(async move {
                projector.settle(published).await?;
                projector.purge_now_and_then().await
            }),
        }
    }

    /// Deletes what was sent, received or run long ago, a little of each, if this is the relay that
    /// holds the first partition.
    pub(super) async fn purge_now_and_then(&self) -> Result<()> {
        {
            let holding = self.holding();
            let elected = holding.leases.iter().any(|lease| lease.partition == 0);
            if !elected || Instant::now() < holding.purge_at {
                return Ok(());
            }
        }
        let (settings, store) = (&self.shared.settings, &self.shared.store);
        let mut most = 0;
        // Zero deletes records as they are sent.
        if let Some(age) = settings.retention.filter(|age| !age.is_zero()) {
            most = most.max(store.purge(age, PURGE_LIMIT).await?);
        }
        if let Some(age) = settings.inbox_retention {
            most = most.max(store.purge_inbox(age, PURGE_LIMIT).await?);
        }
        if let Some(age) = settings.command_retention {
            most = most.max(store.purge_commands(age, PURGE_LIMIT).await?);
        }
        let more = most >= u64::from(PURGE_LIMIT);
        self.holding().purge_at = Instant::now() + if more { Duration::ZERO } else { PURGE_EVERY };
        Ok(())
    }
}

/// A batch that is being settled.
struct Settling {
    in_flight: Vec<i64>,
    task: JoinHandle<Result<()>>,
}

/// Waits until the batch before is settled.
async fn settled(settling: &mut Option<Settling>) -> Result<()> {
    match settling.take() {
        Some(settling) => finished(settling.task.await),
        None => Ok(()),
    }
}

fn has_stopped(stopping: &watch::Receiver<bool>) -> bool {
    *stopping.borrow() || stopping.has_changed().is_err()
}
