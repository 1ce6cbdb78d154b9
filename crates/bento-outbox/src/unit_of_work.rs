//! One transaction: the caller's rows and the events that were raised, together or not at all.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::causality;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::immediate::{Immediate, Reservation};
use crate::pending::Scope;
use crate::spans;
use crate::store::{Appended, FirstRun, Isolation, Savepoint, TransactionalStore};
use crate::tenant::Tenant;

/// An open transaction that collects the events raised in it and writes them when it commits.
///
/// [`Outbox::run`](crate::Outbox::run) opens one around a closure; [`Outbox::begin`](crate::Outbox::begin)
/// is the explicit form:
///
/// ```
/// # use bento_outbox::{AggregateRoot, DomainEvent, Outbox, Result, stores::MemoryStore};
/// # #[derive(serde::Serialize)] struct OrderPlaced;
/// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
/// # struct Order { id: u64 }
/// # impl AggregateRoot for Order {
/// #     const KIND: &'static str = "order";
/// #     fn aggregate_id(&self) -> String { self.id.to_string() }
/// # }
/// # impl Order { fn place(&mut self) -> Result<()> { self.raise(OrderPlaced) } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let outbox = Outbox::new(MemoryStore::default());
/// # let mut order = Order { id: 7 };
/// let mut uow = outbox.begin().await?;
/// // sqlx::query("insert into orders …").execute(uow.tx()).await?;
/// uow.track(|| order.place())?;
/// uow.commit().await?;
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// Begin, commit and rollback run in tasks of their own, so dropping a future of this type at any
/// await leaves no connection inside a transaction. Dropping the unit of work rolls it back.
/// Dropping [`commit`](Self::commit) does not: it may well be committed.
#[must_use = "a unit of work that is dropped is rolled back"]
pub struct UnitOfWork<S: TransactionalStore> {
    store: S,
    /// None only while a commit or rollback takes it.
    transaction: Option<S::Transaction>,
    scope: Scope,
    isolation: Option<Isolation>,
    immediate: Option<Immediate>,
    depth: u32,
    /// Why it can only be rolled back.
    broken: Option<&'static str>,
}

impl<S: TransactionalStore> UnitOfWork<S> {
    pub(crate) async fn begin(
        store: S,
        scope: Scope,
        isolation: Option<Isolation>,
        immediate: Option<Immediate>,
    ) -> Result<Self> {
        let opened = {
            let store = store.clone();
            undroppable(async move { store.begin(isolation).await })
        };
        let transaction = opened
            .await
            .map_err(|panic| ended_abruptly("begin", panic))??;
        Ok(Self {
            store,
            transaction: Some(transaction),
            scope,
            isolation,
            immediate,
            depth: 0,
            broken: None,
        })
    }

    /// The connection that the transaction runs on, for the caller's own statements.
    pub fn tx(&mut self) -> &mut S::Connection {
        // Present from `begin` until `commit` or `rollback`, which consume the unit of work.
        let transaction = self
            .transaction
            .as_mut()
            .expect("an open unit of work has a transaction");
        S::connection(transaction)
    }

    /// Runs domain code; the events that it raises belong to this unit of work.
    pub fn track<T>(&mut self, domain_code: impl FnOnce() -> T) -> T {
        self.scope.track(domain_code)
    }

    /// Raises an event with its envelope.
    ///
    /// # Errors
    /// As for [`raise`](crate::raise).
    pub fn raise(&mut self, event: Event) -> Result<()> {
        self.scope.raise(event)
    }

    /// Spawns a task that may raise events in this unit of work until it ends; an event raised
    /// later is an error in that task.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(self.scope.enter(future))
    }

    /// Runs a nested unit of work: a savepoint. If `work` fails, what it did in the database and
    /// the events that it raised are undone, and this unit of work goes on without them.
    ///
    /// # Errors
    /// What `work` answers, or a database error.
    ///
    /// # Cancel safety
    /// If the future is dropped before it ends, it is not known what of it was done, so the whole
    /// unit of work can only be rolled back; [`commit`](Self::commit) then says so.
    pub async fn nested<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Self) -> Result<T, E>,
        E: From<Error>,
    {
        let level = self.scope.nest();
        let outer = std::mem::replace(&mut self.scope, level.scope.clone());
        self.depth += 1;
        let nested = Nesting {
            uow: self,
            outer,
            ended: false,
        };
        nested.uow.savepoint(Savepoint::Set).await?;
        let scope = level.scope.clone();
        match scope.enter(work(nested.uow)).await {
            Ok(value) => {
                nested.uow.savepoint(Savepoint::Release).await?;
                level.keep();
                nested.end();
                Ok(value)
            }
            Err(error) => {
                nested.uow.savepoint(Savepoint::RollBack).await?;
                nested.end();
                Err(error)
            }
        }
    }

    /// Writes the events and commits; the caller's rows and the events become visible together.
    ///
    /// # Errors
    /// [`ErrorKind::CommitUnknown`] when the answer of the database was lost. Every other kind
    /// means that nothing was committed; [`ErrorKind::Conflict`] that trying again may succeed.
    ///
    /// # Cancel safety
    /// The commit goes on when this future is dropped: it may well be committed.
    pub async fn commit(mut self) -> Result<Appended> {
        let (store, scope, broken) = (self.store.clone(), self.scope.clone(), self.broken);
        let (transaction, immediate) = (self.transaction.take(), self.immediate.take());
        let isolation = self.isolation;
        let span = spans::commit(self.scope.tenant());
        let own_span = span.clone();
        let work = async move {
            let mut transaction = transaction.expect("an open unit of work has a transaction");
            let mut events = scope.end();
            causality::tell_of_span(&mut events, &own_span);
            if let Some(why) = broken {
                store.rollback(transaction).await?;
                return Err(Error::new(ErrorKind::RolledBack, why));
            }
            let immediate = immediate.filter(|_| may_be_born_leased(isolation, &events));
            let reservation = immediate
                .as_ref()
                .and_then(|immediate| immediate.reserve(events.len()));
            let birth = reservation.as_ref().map(Reservation::birth);
            let connection = S::connection(&mut transaction);
            let mut appended = match events.is_empty() {
                true => Appended::default(),
                false => match store
                    .append(connection, scope.tenant(), &events, birth)
                    .await
                {
                    Ok(appended) => appended,
                    Err(refused) => {
                        // The first error explains; a rollback that fails as well ends the connection.
                        let _ = store.rollback(transaction).await;
                        return Err(refused);
                    }
                },
            };
            store.commit(transaction, &appended).await?;
            let leased = std::mem::take(&mut appended.leased);
            if leased.len() < appended.ids.len() {
                store.give_hint();
            }
            if let (Some(immediate), Some(reservation)) = (immediate, reservation) {
                immediate.publish(reservation, leased);
            }
            Ok(appended)
        };
        let committed = undroppable(
            async move {
                let committed = work.await;
                spans::committed(committed.as_ref());
                committed
            }
            .instrument(span),
        );
        committed
            .await
            .unwrap_or_else(|panic| Err(ended_abruptly("commit", panic)))
    }

    /// Undoes everything; no event of this unit of work is ever seen.
    ///
    /// # Errors
    /// When the database cannot be told; it rolls back by itself when the connection is gone.
    ///
    /// # Cancel safety
    /// The rollback goes on when this future is dropped.
    pub async fn rollback(mut self) -> Result<()> {
        let (store, transaction) = (self.store.clone(), self.transaction.take());
        self.scope.end();
        let undone = undroppable(async move {
            store
                .rollback(transaction.expect("an open unit of work has a transaction"))
                .await
        });
        undone
            .await
            .unwrap_or_else(|panic| Err(ended_abruptly("rollback", panic)))
    }

    /// Runs `work` in it and commits; if `work` fails, everything is rolled back.
    pub(crate) async fn complete<T, E, F>(mut self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut Self) -> Result<T, E>,
        E: From<Error>,
    {
        let scope = self.scope.clone();
        match scope.enter(work(&mut self)).await {
            Ok(value) => {
                self.commit().await?;
                Ok(value)
            }
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    /// Rolls back where something else is to be told than how that went.
    pub(crate) async fn abandon(self) {
        if let Err(error) = self.rollback().await {
            tracing::debug!(error = error.report(), "the rollback could not be sent");
        }
    }

    pub(crate) fn tenant(&self) -> &Tenant {
        self.scope.tenant()
    }

    /// Whether this is the first unit of work in which a consumer receives a message.
    pub(crate) async fn receive(&mut self, consumer: &str, message_id: &str) -> Result<bool> {
        const UNENDED: &str = "a message may be received or not: everything is rolled back";
        let (store, tenant) = (self.store.clone(), self.scope.tenant().clone());
        // Stays if this future is dropped, or the database refuses.
        let before = self.broken.replace(UNENDED);
        let first = store
            .receive(self.tx(), consumer, &tenant, message_id)
            .await?;
        self.broken = before;
        Ok(first)
    }

    /// Begins a command; answers what is kept of it if it has run before.
    pub(crate) async fn begin_command(
        &mut self,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        let (store, tenant) = (self.store.clone(), self.scope.tenant().clone());
        store
            .begin_command(self.tx(), &tenant, key, fingerprint)
            .await
    }

    /// Keeps the answer of a command that was begun in it.
    pub(crate) async fn end_command(&mut self, key: &str, answer: &[u8]) -> Result<()> {
        let (store, tenant) = (self.store.clone(), self.scope.tenant().clone());
        store.end_command(self.tx(), &tenant, key, answer).await
    }

    async fn savepoint(&mut self, verb: Savepoint) -> Result<()> {
        let (store, depth) = (self.store.clone(), self.depth);
        store.savepoint(self.tx(), depth, verb).await
    }
}

/// Takes no more events and lets the transaction roll itself back.
impl<S: TransactionalStore> Drop for UnitOfWork<S> {
    fn drop(&mut self) {
        if self.transaction.is_some() {
            let dropped = self.scope.end().len();
            tracing::debug!(
                events = dropped,
                "unit of work dropped before its end: rolled back"
            );
        }
    }
}

/// A nested unit of work under way. Dropped before its end, it leaves a savepoint about which
/// nothing is known, and so a unit of work that can only be rolled back.
struct Nesting<'a, S: TransactionalStore> {
    uow: &'a mut UnitOfWork<S>,
    outer: Scope,
    ended: bool,
}

impl<S: TransactionalStore> Nesting<'_, S> {
    fn end(mut self) {
        self.ended = true;
    }
}

impl<S: TransactionalStore> Drop for Nesting<'_, S> {
    fn drop(&mut self) {
        self.uow.scope = self.outer.clone();
        self.uow.depth -= 1;
        if !self.ended {
            self.uow.broken = Some("a nested unit of work did not end: everything is rolled back");
        }
    }
}

/// How often a unit of work gave way to another before it had done anything, so that it can begin
/// again by itself.
pub(crate) struct Conflicts {
    so_many: u32,
    since: Instant,
}

/// So often a unit of work begins again at most.
const CONFLICTS_MAX: u32 = 8;

/// So long after its first beginning it does not begin again: some databases wait for a while before
/// they give way.
const CONFLICTS_TIME_MAX: Duration = Duration::from_secs(60);

impl Default for Conflicts {
    fn default() -> Self {
        Self {
            so_many: 0,
            since: Instant::now(),
        }
    }
}

impl Conflicts {
    /// Returns when the unit of work may begin again; hands back what is no conflict, or one too many.
    pub(crate) async fn begin_again(&mut self, error: Error) -> Result<()> {
        self.so_many += 1;
        let patient = self.so_many <= CONFLICTS_MAX && self.since.elapsed() < CONFLICTS_TIME_MAX;
        if !error.is_retryable() || !patient {
            return Err(error);
        }
        let wait = Duration::from_millis(1 << self.so_many);
        tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>())).await;
        Ok(())
    }
}

/// Whether what the database knows of a key's earlier events can be relied on.
///
/// Above read committed the transaction may see less than is committed, and what is to come later
/// is not seen by the events appended with it: then a relay, which sees all, decides the order.
fn may_be_born_leased(isolation: Option<Isolation>, events: &[Event]) -> bool {
    !events.is_empty()
        && isolation.is_none_or(|level| level == Isolation::ReadCommitted)
        && events.iter().all(|event| event.available_at.is_none())
}

/// Runs a future to its end even when its caller loses interest.
fn undroppable<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(future)
}

/// The task that ran a step panicked, or the runtime was shut down under it.
fn ended_abruptly(step: &str, cause: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::CommitUnknown, format!("{step} ended abruptly")).because(cause)
}
