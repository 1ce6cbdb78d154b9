//! The seams to a database: the relay's and operator's side, and the application's side.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use crate::error::Result;
use crate::event::Event;
use crate::record::OutboxRecord;
use crate::tenant::Tenant;

/// The relay's and the operator's side of a database. Object-safe: a program chooses at run time.
///
/// Every future may be dropped at any await: a statement that was sent is executed or not, as a
/// whole, and no connection stays inside a transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Creates or upgrades the tables; says which versions it applied.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema) when the tables are of a newer version, or a migration
    /// was changed after it was applied.
    async fn migrate(&self) -> Result<Vec<i64>>;

    /// The SQL of every migration, in order, for people who apply it by themselves: it leaves what
    /// [`migrate`](Self::migrate) would, the count of versions included.
    fn migrations(&self) -> String;

    /// Whether the tables are there in the version this library knows, and the database can keep
    /// its promises.
    ///
    /// # Errors
    /// [`Schema`](crate::ErrorKind::Schema) and what to do, otherwise
    /// [`Unavailable`](crate::ErrorKind::Unavailable).
    async fn check(&self) -> Result<()>;

    /// Reads the records to publish next, in order of `seq`.
    ///
    /// A record is read only if it is due and no earlier record of its ordering key waits (for a
    /// retry or for its time). Nothing is found by a cursor: the unsent rows are read from the
    /// first one, so a row whose transaction commits late is not passed over.
    async fn claim(&self, claim: &Claim) -> Result<Claimed>;

    /// Writes what became of claimed records, in as few statements as the database allows.
    /// Records that are not `NEW` any more are left alone; says how many rows were changed.
    async fn settle(&self, settlements: &[Settlement]) -> Result<u64>;

    /// Returns when the database hints that something was appended. It may never: a hint can be
    /// lost, and nobody relies on it.
    async fn hint(&self);

    /// Hints to other processes that something was appended; cheap, debounced, outside of any
    /// transaction.
    fn give_hint(&self);

    /// The records with these ids, with the state of their delivery, in order of `seq`.
    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>>;

    /// How much of each tenant is new, retrying, sent and dead, in order of the tenants' names.
    async fn status(&self) -> Result<Vec<TenantStatus>>;
}

/// The application's side: inside the caller's own transaction. Static: the types are the user's.
#[async_trait]
pub trait TransactionalStore: Store + Clone {
    /// The driver's connection, on which the caller's statements run.
    type Connection: Send;
    /// An open transaction. Dropped, it is rolled back before anybody else gets its connection.
    type Transaction: Send + 'static;

    /// Begins a transaction. Called only from a task that nobody drops.
    async fn begin(&self, isolation: Option<Isolation>) -> Result<Self::Transaction>;

    /// The connection that a transaction runs on.
    fn connection(transaction: &mut Self::Transaction) -> &mut Self::Connection;

    /// Writes events, in one statement however many; ids already there are skipped in that
    /// statement. Events without a tenant become `tenant`'s. Never begins or commits.
    async fn append(
        &self,
        connection: &mut Self::Connection,
        tenant: &Tenant,
        events: &[Event],
    ) -> Result<Appended>;

    /// Sets, keeps or undoes a savepoint of the given depth.
    async fn savepoint(
        &self,
        connection: &mut Self::Connection,
        depth: u32,
        verb: Savepoint,
    ) -> Result<()>;

    /// Commits. Called only from a task that nobody drops.
    ///
    /// # Errors
    /// [`CommitUnknown`](crate::ErrorKind::CommitUnknown) when the answer was lost and the database
    /// could not be asked; any other kind means that nothing was committed.
    async fn commit(&self, transaction: Self::Transaction, appended: &Appended) -> Result<()>;

    /// Rolls back. Called only from a task that nobody drops.
    async fn rollback(&self, transaction: Self::Transaction) -> Result<()>;
}

/// How isolated a unit of work is from others. SQLite is always serializable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see one snapshot.
    RepeatableRead,
    /// As if units of work ran one after the other; a conflict is an error to try again.
    Serializable,
}

/// What to do about a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Savepoint {
    /// Begin it.
    Set,
    /// Keep what happened since.
    Release,
    /// Undo what happened since.
    RollBack,
}

impl Savepoint {
    /// The statement, the same in every SQL, for a savepoint of the given depth.
    pub fn statement(self, depth: u32) -> String {
        match self {
            Self::Set => format!("savepoint outbox_{depth}"),
            Self::Release => format!("release savepoint outbox_{depth}"),
            Self::RollBack => format!("rollback to savepoint outbox_{depth}"),
        }
    }
}

/// What an append did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Ids of the events written, in the order given.
    pub ids: Vec<Uuid>,
    /// Ids that were there already, or twice among those given; their events were skipped.
    pub duplicates: Vec<Uuid>,
}

impl Appended {
    /// Sorts what was to be appended by what the database says was written. An id that was given
    /// twice was written once, and so is in both lists.
    pub fn of(events: &[Event], written: impl IntoIterator<Item = Uuid>) -> Self {
        let mut written: HashSet<Uuid> = written.into_iter().collect();
        let (ids, duplicates) = events
            .iter()
            .map(|event| event.id)
            .partition(|id| written.remove(id));
        Self { ids, duplicates }
    }
}

/// What a relay asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// How many records at most.
    pub limit: u32,
    /// Whose records; none for everybody's.
    pub tenants: Option<Vec<Tenant>>,
    /// Whether records of one ordering key wait for each other.
    pub ordered: bool,
    /// Whether a dead letter holds the later records of its ordering key back.
    pub dead_letters_block: bool,
}

/// What a relay got.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// The records to publish, in order of `seq`.
    pub records: Vec<OutboxRecord>,
    /// Whether unsent records are there that are not to be published yet.
    pub waiting: bool,
}

/// What to write about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The record.
    pub id: Uuid,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The bus has it: `SENT`.
    Sent,
    /// It failed and is tried again: `NEW` with a `retry_at`.
    Retry {
        /// How long from now, by the database's clock.
        after: Duration,
        /// Whether the failure was the event's own fault and counts.
        counts: bool,
        /// The failure.
        reason: String,
    },
    /// It is a dead letter: `ERR`.
    Dead {
        /// Whether this last failure counts as an attempt.
        counts: bool,
        /// The failure.
        reason: String,
    },
}

/// How much a tenant has in the outbox. The four numbers are of disjoint sets.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TenantStatus {
    /// The tenant.
    pub tenant_id: String,
    /// Not sent and not waiting for another attempt.
    pub new: u64,
    /// Failed before, waiting for another attempt.
    pub retrying: u64,
    /// Sent and still kept.
    pub sent: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long ago the oldest unsent event was written, in seconds; none when all are sent.
    pub oldest_new_seconds: Option<f64>,
    /// Events sent a second, over the last minute.
    pub sent_per_second: f64,
}
