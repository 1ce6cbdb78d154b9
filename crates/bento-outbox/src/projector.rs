//! The relay: claim, publish, settle.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::publisher::Publisher;
use crate::record::{OrderingKey, OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};
use crate::store::{Claim, Settlement, Store, Verdict};
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
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    settings: Arc<ProjectorSettings>,
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
    /// Why the bus takes nothing at present. It cost no record an attempt.
    pub stopped_by: Option<Rejection>,
}

/// How often a settle that the database did not take is tried before the batch is given up.
const SETTLE_TRIES_MAX: u32 = 5;

/// The longest pause between tries while the bus or the database is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(10);

impl Projector {
    /// A projector that carries from `store` to `publisher`.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Arc<dyn Publisher>,
        settings: ProjectorSettings,
    ) -> Self {
        Self {
            store,
            publisher,
            settings: Arc::new(settings),
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
        finished(self.start_batch().await)
    }

    /// Carries events until `shutdown` ends; then finishes the batch in flight and returns.
    ///
    /// While the bus or the database is away it keeps trying, with a growing pause.
    ///
    /// # Errors
    /// What cannot heal by itself: tables that are missing or of another version.
    ///
    /// # Cancel safety
    /// Dropped, the batch in flight goes on to its end and nothing follows.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut shutdown = pin!(shutdown);
        let mut away = Away::default();
        loop {
            let mut batch = self.start_batch();
            let (result, stopping) = tokio::select! {
                result = &mut batch => (result, false),
                () = &mut shutdown => (batch.await, true),
            };
            let pause = match finished(result) {
                Err(error) if error.kind() == ErrorKind::Schema => return Err(error),
                Err(error) => Some(away.database(&error)),
                Ok(Batch {
                    stopped_by: Some(rejection),
                    ..
                }) => Some(away.bus(&rejection)),
                Ok(batch) => {
                    away.back();
                    match batch {
                        Batch { claimed: 1.., .. } => None,
                        Batch { waiting: true, .. } => Some(self.settings.poll_interval_busy),
                        _ => Some(self.settings.poll_interval_idle),
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
                () = self.store.hint(), if hintable => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// A batch in a task of its own: between publish and settle nobody may drop it.
    fn start_batch(&self) -> JoinHandle<Result<Batch>> {
        let projector = self.clone();
        tokio::spawn(async move { projector.batch().await })
    }

    async fn batch(&self) -> Result<Batch> {
        let claimed = self.store.claim(&self.claim()).await?;
        let mut batch = Batch {
            claimed: claimed.records.len(),
            waiting: claimed.waiting,
            ..Batch::default()
        };
        if claimed.records.is_empty() {
            return Ok(batch);
        }
        let settlements = self.publish(claimed.records, &mut batch).await;
        self.settle(&settlements).await?;
        Ok(batch)
    }

    fn claim(&self) -> Claim {
        Claim {
            limit: self.settings.batch_size,
            tenants: self.settings.tenants.clone(),
            ordered: self.settings.ordered,
            dead_letters_block: self.settings.dead_letters_block,
        }
    }

    /// Publishes records in waves: a wave has one record of each ordering key at most, and a key
    /// whose record failed has none in the waves that follow.
    async fn publish(&self, records: Vec<OutboxRecord>, batch: &mut Batch) -> Vec<Settlement> {
        let mut settlements = Vec::with_capacity(records.len());
        let mut held: HashSet<String> = HashSet::new();
        for mut wave in waves(records, self.settings.ordered) {
            if !held.is_empty() {
                wave.retain(|record| {
                    !record
                        .ordering_key()
                        .is_some_and(|key| held.contains(&key.to_string()))
                });
            }
            let mut outcomes = self.publisher.publish(&wave).await.into_iter();
            for record in &wave {
                let outcome = outcomes
                    .next()
                    .unwrap_or_else(|| Outcome::unknown("the publisher gave no answer for it"));
                let verdict = self.judge(record, outcome, batch);
                let goes_on = match &verdict {
                    Some(Verdict::Sent) => true,
                    Some(Verdict::Dead { .. }) => !self.settings.dead_letters_block,
                    Some(Verdict::Retry { .. }) | None => false,
                };
                if !goes_on {
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
        let verdict = retry::verdict(
            outcome,
            record.delivery.retry_cnt,
            &self.settings.retry,
            rand::random(),
        );
        match &verdict {
            Some(Verdict::Sent) => batch.sent += 1,
            Some(Verdict::Retry { .. }) => batch.retried += 1,
            Some(Verdict::Dead { reason, .. }) => {
                batch.dead += 1;
                tracing::info!(event = %record.id, r#type = record.event_type, reason, "dead letter");
            }
            None => {}
        }
        verdict
    }

    /// Writes what was published. An answer that is not written is a duplicate later, so it is
    /// tried a few times.
    async fn settle(&self, settlements: &[Settlement]) -> Result<()> {
        if settlements.is_empty() {
            return Ok(());
        }
        let mut tries = 1;
        loop {
            match self.store.settle(settlements).await {
                Ok(_) => return Ok(()),
                Err(error) if tries >= SETTLE_TRIES_MAX => return Err(error),
                Err(error) => {
                    tracing::debug!(error = error.report(), tries, "settling again");
                    tokio::time::sleep(Duration::from_millis(100) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
            }
        }
    }
}

/// Splits records into waves: record number n of an ordering key is in wave n; order is kept.
fn waves(records: Vec<OutboxRecord>, ordered: bool) -> Vec<Vec<OutboxRecord>> {
    let mut seen: HashMap<OrderingKey<'_>, usize> = HashMap::new();
    let numbers: Vec<usize> = records
        .iter()
        .map(|record| match record.ordering_key().filter(|_| ordered) {
            None => 0,
            Some(key) => {
                let next = seen.entry(key).or_default();
                *next += 1;
                *next - 1
            }
        })
        .collect();
    let mut waves: Vec<Vec<OutboxRecord>> = Vec::new();
    for (number, record) in numbers.into_iter().zip(records) {
        if waves.len() == number {
            waves.push(Vec::new());
        }
        waves[number].push(record);
    }
    waves
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

/// Keeps count while the bus or the database is away, and says so once.
#[derive(Default)]
struct Away {
    tries: u32,
}

impl Away {
    fn bus(&mut self, rejection: &Rejection) -> Duration {
        if self.tries == 0 {
            tracing::warn!(
                reason = rejection.reason,
                "the bus takes no events; they are kept and tried again"
            );
        }
        self.pause()
    }

    fn database(&mut self, error: &Error) -> Duration {
        if self.tries == 0 {
            tracing::warn!(
                error = error.report(),
                "the database does not answer; trying again"
            );
        }
        self.pause()
    }

    fn back(&mut self) {
        if std::mem::take(&mut self.tries) > 0 {
            tracing::info!("bus and database answer again");
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
