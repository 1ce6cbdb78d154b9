//! The relay: claim, publish, settle.

mod away;
mod holding;

use std::collections::HashSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use self::away::Away;
use self::holding::Holding;
use crate::error::{Error, ErrorKind, Result};
use crate::immediate::TERM_USED;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};
use crate::store::{Claim, Fence, Lease, PARTITIONS, Relay, Settle, Settlement, Store, Verdict};
use crate::tenant::Tenant;

/// Carries committed events from a store to a bus.
///
/// ```
/// # use std::sync::Arc;
/// # use bento_outbox::{Outbox, Projector, ProjectorSettings, Result, publishers::MemoryPublisher, stores::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// let (store, bus) = (MemoryStore::default(), MemoryPublisher::default());
/// let projector = Projector::new(Arc::new(store), Arc::new(bus), ProjectorSettings::default());
/// projector.run(async { /* until Ctrl-C */ }).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Projector {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    settings: ProjectorSettings,
    relay: Relay,
    holding: Mutex<Holding>,
    /// Held by the batch under way: its records are nobody else's until they are settled, and the
    /// caller of a dropped [`Projector::run_once`] may call it again meanwhile.
    one_batch: tokio::sync::Mutex<()>,
}

/// How a [`Projector`] works.
#[derive(Clone, Debug)]
pub struct ProjectorSettings {
    /// Events claimed at once. Defaults to 200.
    pub batch_size: u32,
    /// Whose events; none for everybody's. Defaults to none.
    pub tenants: Option<Vec<Tenant>>,
    /// How often and how soon a failed event is tried again.
    pub retry: RetrySettings,
    /// The pause while there is a backlog only of events not yet due. Defaults to 0.1 s.
    pub poll_interval_busy: Duration,
    /// The longest pause when nothing is there; a hint ends it. Defaults to 1 s.
    pub poll_interval_idle: Duration,
    /// Whether the events of one aggregate are published in order. Defaults to true.
    pub ordered: bool,
    /// Whether a dead letter holds back the later events of its aggregate. Defaults to false.
    pub dead_letters_block: bool,
    /// How long a partition is leased; renewed at a third of it. Defaults to 10 s.
    pub lease_term: Duration,
    /// How long sent events are kept: none for ever, zero to delete them as they are sent.
    /// Defaults to none.
    pub retention: Option<Duration>,
}

impl Default for ProjectorSettings {
    fn default() -> Self {
        Self {
            batch_size: 200,
            tenants: None,
            retry: RetrySettings::default(),
            poll_interval_busy: Duration::from_millis(100),
            poll_interval_idle: Duration::from_secs(1),
            ordered: true,
            dead_letters_block: false,
            lease_term: Duration::from_secs(10),
            retention: None,
        }
    }
}

/// What one round of claim, publish and settle did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Records read.
    pub claimed: usize,
    /// Records the bus has.
    pub sent: usize,
    /// Records that failed and will be tried again.
    pub retried: usize,
    /// Records that became dead letters.
    pub dead: usize,
    /// Whether nothing was due while unsent records wait for their time.
    pub waiting: bool,
    /// Whether some of those are due, in partitions that another relay holds.
    pub elsewhere: bool,
    /// Why the bus takes nothing at present. It cost no record an attempt.
    pub stopped_by: Option<Rejection>,
    /// Why some of the records cannot go out before somebody changes something. Others could.
    pub blocked: Option<Rejection>,
}

/// The part of a term after which leases are renewed.
const RENEW: f64 = 1.0 / 3.0;

/// How soon leases are asked for while records are due in partitions of another relay.
const LOOK_AROUND: Duration = Duration::from_millis(300);

/// The most records published one by one after a relay died.
const CAREFUL_MAX: u32 = 200;

/// Records of the past deleted in one statement, and how often old ones are looked for.
const PURGE_LIMIT: u32 = 1_000;
const PURGE_EVERY: Duration = Duration::from_secs(60);

impl Projector {
    /// A projector that carries from `store` to `publisher`. Many may carry from one store: they
    /// share the ordering keys among them.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Arc<dyn Publisher>,
        settings: ProjectorSettings,
    ) -> Self {
        let relay = Relay::new(settings.tenants.clone());
        let holding = Mutex::new(Holding::default());
        Self {
            shared: Arc::new(Shared {
                store,
                publisher,
                settings,
                relay,
                holding,
                one_batch: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Claims one batch, publishes it and settles it: what tests, `run --once` and cron use.
    ///
    /// # Errors
    /// When the database cannot be read, or cannot be told what was published (then those events
    /// will be published again). What the bus says is no error but in the [`Batch`].
    ///
    /// # Cancel safety
    /// The batch goes on to its end when this future is dropped.
    pub async fn run_once(&self) -> Result<Batch> {
        finished(self.start_batch(false).await)
    }

    /// Carries events until `shutdown` ends; then finishes the batch in flight, gives its leases
    /// back and returns.
    ///
    /// While the bus or the database is away it keeps trying, with a growing pause.
    ///
    /// # Errors
    /// What cannot heal by itself: tables that are missing or of another version, a relay that
    /// carries the same tenants in another combination.
    ///
    /// # Cancel safety
    /// Dropped, the batch in flight goes on to its end and nothing follows.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let result = self.carry(pin!(shutdown)).await;
        if let Err(error) = self.release().await {
            tracing::debug!(error = error.report(), "the leases run out by themselves");
        }
        result
    }

    /// Gives the leases back, for other relays to take at once. A later round takes new ones.
    ///
    /// # Errors
    /// When the database cannot be told; the leases then run out.
    pub async fn release(&self) -> Result<()> {
        *self.holding() = Holding::default();
        self.shared.store.release(&self.shared.relay).await
    }

    async fn carry(&self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<()> {
        let settings = &self.shared.settings;
        let mut away = Away::default();
        loop {
            let mut batch = self.start_batch(away.tries > 0);
            let (result, stopping) = tokio::select! {
                result = &mut batch => (result, false),
                () = &mut shutdown => (batch.await, true),
            };
            let pause = match finished(result) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Schema | ErrorKind::InvalidSetting) =>
                {
                    return Err(error);
                }
                Err(error) => Some(away.database(&error)),
                Ok(Batch {
                    stopped_by: Some(rejection),
                    ..
                }) => Some(away.bus(&rejection)),
                Ok(batch) => {
                    away.back();
                    away.blocked(batch.blocked.as_ref());
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
            if stopping {
                return Ok(());
            }
            let Some(pause) = pause else { continue };
            let hintable = away.tries == 0;
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = self.shared.store.hint(), if hintable => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A batch in a task of its own: between publish and settle nobody may drop it.
    fn start_batch(&self, probe: bool) -> JoinHandle<Result<Batch>> {
        let projector = self.clone();
        tokio::spawn(async move { projector.batch(probe).await })
    }

    /// While the bus is away a single record asks whether it is back.
    async fn batch(&self, probe: bool) -> Result<Batch> {
        let Shared {
            store,
            settings,
            relay,
            one_batch,
            ..
        } = &*self.shared;
        let _alone = one_batch.lock().await;
        self.renew_in_time().await?;
        let (leases, careful) = {
            let holding = self.holding();
            (holding.leases.clone(), holding.careful)
        };
        let limit = match (probe, careful) {
            (true, _) => 1,
            (_, true) => settings.batch_size.min(CAREFUL_MAX),
            _ => settings.batch_size,
        };
        let claimed = store
            .claim(&Claim {
                relay,
                leases: &leases,
                limit,
                in_flight: &[],
                ordered: settings.ordered,
                dead_letters_block: settings.dead_letters_block,
            })
            .await?;
        let mut batch = Batch {
            claimed: claimed.records.len(),
            waiting: claimed.waiting,
            elsewhere: claimed.elsewhere,
            ..Batch::default()
        };
        if claimed.elsewhere {
            // Their holder may have stopped or died: they are to be taken up soon, not a third of
            // a term later.
            let mut holding = self.holding();
            holding.renew_at = holding.renew_at.min(Instant::now() + LOOK_AROUND);
        }
        let fence = Fence::Leases {
            relay,
            leases: &leases,
        };
        if careful {
            self.one_by_one(claimed.records, &fence, &mut batch).await?;
            self.holding().careful = false;
        } else if !claimed.records.is_empty() {
            let settlements = self
                .while_renewing(self.publish(claimed.records, &mut batch))
                .await;
            self.settle(&settlements, &fence).await?;
        }
        self.purge_now_and_then(&leases).await?;
        Ok(batch)
    }

    /// Publishes records one by one, each attempt counted before it is made: one of them may have
    /// killed the relay that held them before, and must not take its neighbours along.
    async fn one_by_one(
        &self,
        records: Vec<OutboxRecord>,
        fence: &Fence<'_>,
        batch: &mut Batch,
    ) -> Result<()> {
        let mut held: HashSet<String> = HashSet::new();
        for mut record in records {
            let key = record.ordering_key().map(|key| key.to_string());
            if key.as_ref().is_some_and(|key| held.contains(key)) {
                continue;
            }
            self.renew_in_time().await?;
            match self.shared.store.attempt(fence, record.id).await? {
                Some(lost_attempts) => record.lost_attempts = lost_attempts - 1,
                None => {
                    held.extend(key);
                    continue;
                }
            }
            let id = record.id;
            let mut settlements = self.while_renewing(self.publish(vec![record], batch)).await;
            if settlements.is_empty() {
                // The bus is away, or the lease is about to end: the attempt was none.
                settlements.push(Settlement {
                    id,
                    verdict: Verdict::HandOver,
                });
            }
            if !settlements
                .iter()
                .all(|settlement| self.goes_on(&settlement.verdict))
            {
                held.extend(key);
            }
            self.settle(&settlements, fence).await?;
            if batch.stopped_by.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Publishes records in waves: a wave has one record of each ordering key at most, and a key
    /// whose record failed has none in the waves that follow.
    async fn publish(&self, records: Vec<OutboxRecord>, batch: &mut Batch) -> Vec<Settlement> {
        let mut settlements = Vec::with_capacity(records.len());
        let mut held: HashSet<String> = HashSet::new();
        for mut wave in retry::waves(records, self.shared.settings.ordered) {
            if !held.is_empty() {
                wave.retain(|record| {
                    !record
                        .ordering_key()
                        .is_some_and(|key| held.contains(&key.to_string()))
                });
            }
            // By its own clock, before the lease can have passed to another relay by the database's.
            if Instant::now() >= self.holding().deadline {
                break;
            }
            let killers = wave.extract_if(.., |record| {
                record.lost_attempts >= self.shared.settings.retry.max_retry
            });
            for record in killers.collect::<Vec<_>>() {
                let reason = format!(
                    "{} attempts left no result: the process died, or lost its lease, while publishing it",
                    record.lost_attempts
                );
                let verdict = self.count(
                    &record,
                    Some(Verdict::Dead {
                        counts: false,
                        reason,
                    }),
                    batch,
                );
                settlements.extend(verdict.map(|verdict| Settlement {
                    id: record.id,
                    verdict,
                }));
            }
            let mut outcomes = self.shared.publisher.publish(&wave).await.into_iter();
            for record in &wave {
                let outcome = outcomes
                    .next()
                    .unwrap_or_else(|| Outcome::unknown("the publisher gave no answer for it"));
                let verdict = self.judge(record, outcome, batch);
                if !verdict
                    .as_ref()
                    .is_some_and(|verdict| self.goes_on(verdict))
                {
                    held.extend(record.ordering_key().map(|key| key.to_string()));
                }
                settlements.extend(verdict.map(|verdict| Settlement {
                    id: record.id,
                    verdict,
                }));
            }
            if batch.stopped_by.is_some() {
                break;
            }
        }
        settlements
    }

    /// Whether later records of the key may follow.
    fn goes_on(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Sent => true,
            Verdict::Dead { .. } => !self.shared.settings.dead_letters_block,
            Verdict::Retry { .. } | Verdict::HandOver => false,
        }
    }

    /// What to write about a record, counted in `batch`.
    fn judge(&self, record: &OutboxRecord, outcome: Outcome, batch: &mut Batch) -> Option<Verdict> {
        if let Outcome::Rejected(rejection) = &outcome
            && matches!(
                rejection.class,
                RejectionClass::Unreachable | RejectionClass::Config
            )
        {
            batch.stopped_by.get_or_insert_with(|| rejection.clone());
        }
        if let Outcome::Rejected(rejection) = &outcome
            && rejection.class == RejectionClass::Blocked
        {
            batch.blocked.get_or_insert_with(|| rejection.clone());
        }
        let retry = &self.shared.settings.retry;
        let verdict = retry::verdict(outcome, record.delivery.retry_cnt, retry, rand::random());
        self.count(record, verdict, batch)
    }

    fn count(
        &self,
        record: &OutboxRecord,
        verdict: Option<Verdict>,
        batch: &mut Batch,
    ) -> Option<Verdict> {
        match &verdict {
            Some(Verdict::Sent) => batch.sent += 1,
            Some(Verdict::Retry { .. }) => batch.retried += 1,
            Some(Verdict::Dead { reason, .. }) => {
                batch.dead += 1;
                tracing::info!(event = %record.id, r#type = record.event_type, reason, "dead letter");
            }
            Some(Verdict::HandOver) | None => {}
        }
        verdict
    }

    async fn settle(&self, settlements: &[Settlement], fence: &Fence<'_>) -> Result<()> {
        if settlements.is_empty() {
            return Ok(());
        }
        let keep_sent = self.shared.settings.retention != Some(Duration::ZERO);
        let settle = Settle {
            fence: *fence,
            keep_sent,
            settlements,
        };
        let changed = retry::stubbornly(|| self.shared.store.settle(&settle)).await?;
        if (changed as usize) < settlements.len() {
            tracing::info!(
                fenced = settlements.len() as u64 - changed,
                "a lease was lost before what it published was settled; another relay goes on"
            );
        }
        Ok(())
    }

    /// Renews the leases when a third of the term has passed.
    async fn renew_in_time(&self) -> Result<()> {
        let Shared {
            store,
            settings,
            relay,
            ..
        } = &*self.shared;
        if Instant::now() < self.holding().renew_at {
            return Ok(());
        }
        // The clock is read before the question is sent: the answer may take its time.
        let asked = Instant::now();
        let leases = store.lease(relay, settings.lease_term).await?;
        let mut holding = self.holding();
        if leases.len() != holding.leases.len() {
            tracing::info!(held = leases.len(), of = PARTITIONS, "partitions leased");
        }
        holding.careful |= leases.iter().any(|lease| lease.from_the_dead);
        holding.leases = leases;
        holding.renew_at = asked + settings.lease_term.mul_f64(RENEW);
        holding.deadline = asked + settings.lease_term.mul_f64(TERM_USED);
        Ok(())
    }

    /// Keeps the leases while something slow is under way.
    async fn while_renewing<T>(&self, work: impl Future<Output = T>) -> T {
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

    /// Deletes what was sent long ago, if this is the relay that holds the first partition.
    async fn purge_now_and_then(&self, leases: &[Lease]) -> Result<()> {
        let Shared {
            store, settings, ..
        } = &*self.shared;
        let elected = leases.iter().any(|lease| lease.partition == 0);
        let Some(age) = settings.retention.filter(|age| elected && !age.is_zero()) else {
            return Ok(());
        };
        if Instant::now() < self.holding().purge_at {
            return Ok(());
        }
        let purged = store.purge(age, PURGE_LIMIT).await?;
        let more = purged >= u64::from(PURGE_LIMIT);
        self.holding().purge_at = Instant::now() + if more { Duration::ZERO } else { PURGE_EVERY };
        Ok(())
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        self.shared
            .holding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the leases back when the last clone goes without [`Projector::release`].
impl Drop for Shared {
    fn drop(&mut self) {
        let holding = self
            .holding
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let (false, Ok(runtime)) = (
            holding.leases.is_empty(),
            tokio::runtime::Handle::try_current(),
        ) {
            let (store, relay) = (self.store.clone(), self.relay.clone());
            runtime.spawn(async move { store.release(&relay).await });
        }
    }
}

fn finished(result: Result<Result<Batch>, tokio::task::JoinError>) -> Result<Batch> {
    result.unwrap_or_else(|cause| {
        Err(Error::new(
            ErrorKind::Bus,
            "a batch ended abruptly; its events are tried again",
        )
        .because(cause))
    })
}
