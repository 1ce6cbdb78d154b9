//! The relay: claim, publish, settle.

mod away;
mod holding;
mod notices;
mod pausing;
mod pipeline;
mod progress;
mod publishing;

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use self::away::Away;
use self::holding::Holding;
use self::notices::Notices;
use self::pausing::Pauses;
pub use self::progress::Progress;
use self::progress::Pulse;
use self::publishing::HeldKeys;
use crate::dead_letter::DeadLetterObserver;
use crate::error::{Error, ErrorKind, Result};
use crate::publisher::Publisher;
use crate::record::Rejection;
use crate::retry::RetrySettings;
use crate::store::{Relay, Store};
use crate::telemetry;
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
    observers: Vec<Arc<dyn DeadLetterObserver>>,
    holding: Mutex<Holding>,
    pulse: Pulse,
    notices: Notices,
    pauses: Mutex<Pauses>,
    away: Mutex<Away>,
    /// Held by who carries: its records are nobody else's until they are settled, and the caller of
    /// a dropped [`Projector::run_once`] may call it again meanwhile.
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Whether somebody asked it to stop: what was claimed and is not with the bus yet is left to others.
    stopping: AtomicBool,
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
    /// How often what waits is counted for the [metrics](crate::telemetry); none for never, as where
    /// nobody collects them. Defaults to none.
    pub count_backlog_every: Option<Duration>,
    /// How long sent events are kept: none for ever, zero to delete them as they are sent.
    /// Defaults to none.
    pub retention: Option<Duration>,
    /// How long messages that were [received](crate::Inbox) are remembered; none for ever. Longer than
    /// the bus can take to deliver one again. Defaults to none.
    pub inbox_retention: Option<Duration>,
    /// How long [commands](crate::Commands) that were run are remembered; none for ever. Defaults to
    /// none.
    pub command_retention: Option<Duration>,
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
            count_backlog_every: None,
            retention: None,
            inbox_retention: None,
            command_retention: None,
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
    /// Records that were put aside, since their destination is [paused](crate::Pause).
    pub paused: usize,
    /// Whether nothing was due while unsent records wait for their time.
    pub waiting: bool,
    /// Whether some of those are due, in partitions that another relay holds.
    pub elsewhere: bool,
    /// Why the bus takes nothing at present. It cost no record an attempt.
    pub stopped_by: Option<Rejection>,
    /// Why some of the records cannot go out before somebody changes something. Others could.
    pub blocked: Option<Rejection>,
}

impl Projector {
    /// A projector that carries from `store` to `publisher`. Many may carry from one store: they
    /// share the ordering keys among them.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Arc<dyn Publisher>,
        settings: ProjectorSettings,
    ) -> Self {
        Self::observed(store, publisher, settings, Vec::new())
    }

    /// A projector as [`new`](Self::new) makes it, with observers that are told of its dead letters.
    pub fn observed(
        store: Arc<dyn Store>,
        publisher: Arc<dyn Publisher>,
        settings: ProjectorSettings,
        observers: Vec<Arc<dyn DeadLetterObserver>>,
    ) -> Self {
        let relay = Relay::new(settings.tenants.clone());
        let holding = Mutex::new(Holding::default());
        Self {
            shared: Arc::new(Shared {
                store,
                publisher,
                settings,
                relay,
                observers,
                holding,
                pulse: Pulse::default(),
                notices: Notices::default(),
                pauses: Mutex::default(),
                away: Mutex::default(),
                one_at_a_time: tokio::sync::Mutex::default(),
                stopping: AtomicBool::new(false),
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
        let projector = self.clone();
        let round = tokio::spawn(async move {
            let _alone = projector.shared.one_at_a_time.lock().await;
            let batch = projector.round(&mut HeldKeys::default(), false).await?;
            if batch.stopped_by.is_some() {
                projector.away().in_vain();
            }
            projector.purge_now_and_then().await?;
            projector.shared.notices.say_what_is_left();
            Ok(batch)
        });
        finished(round.await)
    }

    /// Carries events until `shutdown` ends; then waits for what is with the bus, leaves the rest of the
    /// batch to others, gives its leases back and returns. One batch is claimed while the last one is published and the one before is
    /// settled.
    ///
    /// While the bus or the database is away it keeps trying, with a growing pause.
    ///
    /// # Errors
    /// What cannot heal by itself: tables that are missing or of another version, a relay that
    /// carries the same tenants in another combination.
    ///
    /// # Cancel safety
    /// Dropped, what is in flight goes on to its end and nothing follows.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<()> {
        // Dropped with this future, the sender tells the task to stop as well.
        let (stop, stopping) = watch::channel(false);
        let projector = self.clone();
        let mut carrying = tokio::spawn(async move { projector.carry(stopping).await });
        let result = tokio::select! {
            result = &mut carrying => result,
            () = pin!(shutdown) => {
                self.shared.stopping.store(true, Ordering::Relaxed);
                stop.send_replace(true);
                carrying.await
            }
        };
        self.shared.stopping.store(false, Ordering::Relaxed);
        self.shared.notices.say_what_is_left();
        if let Err(error) = self.release().await {
            tracing::debug!(error = error.report(), "the leases run out by themselves");
        }
        finished(result)
    }

    /// How it gets on: for a watchdog, and for who asks why nothing moves.
    pub fn progress(&self) -> Progress {
        self.shared.pulse.progress()
    }

    /// Gives the leases back, for other relays to take at once. A later round takes new ones.
    ///
    /// # Errors
    /// When the database cannot be told; the leases then run out.
    pub async fn release(&self) -> Result<()> {
        *self.holding() = Holding::default();
        telemetry::leases_held(0);
        self.shared.store.release(&self.shared.relay).await
    }

    fn away(&self) -> MutexGuard<'_, Away> {
        self.shared
            .away
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.shared
            .pauses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// The result of a task that the library owns, which nobody may drop between publish and settle.
fn finished<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|cause| {
        Err(Error::new(
            ErrorKind::Bus,
            "a batch ended abruptly; its events are tried again",
        )
        .because(cause))
    })
}
