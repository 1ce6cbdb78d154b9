//! The seams to a database: the relay's and operator's side, and the application's side.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use crate::act::{Act, Audited};
use crate::error::Result;
use crate::event::Event;
use crate::filter::{Filter, Page};
use crate::inspection::Inspection;
use crate::pause::{Pausable, Pause};
use crate::record::OutboxRecord;
use crate::standing::Standing;
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

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

    /// Renews the partition leases that a relay holds, gives back what is more than its fair share
    /// of the live relays, and takes what is free or has run out. By the database's clock.
    ///
    /// Answers all that it holds now. Called at a third of the term.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when a live relay carries some of these
    /// tenants and others: both would publish the same events.
    async fn lease(&self, relay: &Relay, term: Duration) -> Result<Vec<Lease>>;

    /// Gives back everything that a relay holds, for others to take at once.
    async fn release(&self, relay: &Relay) -> Result<()>;

    /// Reads the records to publish next, in order of `seq`, in the partitions that are held.
    ///
    /// A record is read only if it is due and no earlier record of its ordering key waits: for a
    /// retry, for its time, or for the unit of work that it was born leased to. Nothing is found by
    /// a cursor: the unsent rows are read from the first one, so a row whose transaction commits
    /// late is not passed over. Tenants that have something take turns, each with an equal share of
    /// the limit; records that were delayed or have failed before take half of it at most while
    /// others are there, and hold what follows in their key until they are in flight themselves: a
    /// relay may have claimed some of that before the failure was written. Nothing of a paused
    /// tenant is read, and it takes no room. Nothing is written, except that a record whose birth
    /// lease has run out is taken from its owner first, which costs it a
    /// [lost attempt](OutboxRecord::lost_attempts), and that a store may put off what has come due
    /// of a paused tenant until [`wake`](Self::wake).
    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed>;

    /// Counts an attempt before it is made, because the last one left no result. Answers how many
    /// such attempts there were; none when the record is not the fence's to publish.
    async fn attempt(&self, fence: &Fence<'_>, id: Uuid) -> Result<Option<u32>>;

    /// Writes what became of records, in as few statements as the database allows, each fenced: a
    /// record that is not `NEW` any more, or of which the lease is lost, is left alone. Answers how
    /// many rows were changed.
    async fn settle(&self, settle: &Settle<'_>) -> Result<u64>;

    /// Returns when the database hints that something was appended. It may never: a hint can be
    /// lost, and nobody relies on it.
    async fn hint(&self);

    /// Hints to other processes that something was appended; cheap, debounced, outside of any
    /// transaction.
    fn give_hint(&self);

    /// The records with these ids, with the state of their delivery, in order of `seq`.
    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>>;

    /// What there is to know about the database beyond [`check`](Self::check), for an operator who
    /// looks for what is wrong. A store that does not look answers nothing.
    async fn inspect(&self) -> Result<Inspection> {
        Ok(Inspection::default())
    }

    /// How much of each tenant is new, retrying, sent and dead, in order of the tenants' names.
    /// Tenants that are paused are in it, with events or without.
    async fn status(&self) -> Result<Vec<TenantStatus>>;

    /// What waits and what is dead, of each tenant that has some of it, in order of the tenants'
    /// names. Reads what is not sent and nothing else, so it costs as much as that is long.
    async fn backlog(&self) -> Result<Vec<TenantBacklog>>;

    /// The ordering keys that have a record which holds later ones back, and why; at most `limit`.
    async fn held_keys(&self, limit: u32) -> Result<Vec<HeldKey>>;

    /// A page of the records that match, in order of `seq`, or against it.
    ///
    /// Searched for `NEW` or `ERR`, as much is read as there is in that state, however much was
    /// sent; ids are looked up, and so is what was sent since a given time.
    async fn events(&self, filter: &Filter, page: &Page) -> Result<Vec<OutboxRecord>>;

    /// Where a record stands: what [`why`](crate::why()) makes an answer of. None when it is not
    /// there.
    ///
    /// A dead letter stands ahead of later records of its key only if `dead_letters_block`.
    async fn standing(&self, id: Uuid, dead_letters_block: bool) -> Result<Option<Standing>>;

    /// Makes dead letters `NEW` again, with the same ids and bytes and no attempts counted. Those
    /// that are no dead letters any more are left alone; answers how many were changed.
    ///
    /// What an operator (`by`, as in [`Act::by`]) changes is audited in the same transaction, and
    /// where nothing was changed, no act is kept. Begun, it goes on to its end when this future is
    /// dropped. So do the next three.
    async fn retry(&self, ids: &[Uuid], by: &str) -> Result<u64>;

    /// Deletes dead letters for good. Answers how many.
    async fn discard(&self, ids: &[Uuid], by: &str) -> Result<u64>;

    /// Pauses tenants or destinations, which need not have had an event yet. Those that are paused
    /// already stay as they are; answers how many were not.
    ///
    /// No relay claims an event of a paused tenant, and none is born leased; nor is any event while
    /// a destination is paused, since only relays know where an event goes. They leave that alone
    /// within a second. What is in flight by then is still published. A name that nothing of the
    /// kind can have is an error, and so are more than [`PAUSES_MAX`](crate::PAUSES_MAX) pauses.
    async fn pause(
        &self,
        kind: Pausable,
        names: &[String],
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64>;

    /// Ends pauses. Answers how many there were. What was put aside is due at once, as after
    /// [`wake`](Self::wake).
    async fn resume(&self, kind: Pausable, names: &[String], by: &str) -> Result<u64>;

    /// What is paused: tenants, then destinations, in order of their names.
    async fn pauses(&self) -> Result<Vec<Pause>>;

    /// Ends the wait of at most so many records that were put aside for a destination which is not
    /// paused (any more), or that the store has put off itself, since they came due while their
    /// tenant was paused; answers how many.
    async fn wake(&self, limit: u32) -> Result<u64>;

    /// Keeps an act that changes no row, as a replay.
    async fn audit(&self, act: &Act) -> Result<()>;

    /// What operators did, newest first: at most `limit` acts, of those before the one that has the
    /// number `before`. They are kept for ever.
    async fn acts(&self, before: Option<i64>, limit: u32) -> Result<Vec<Audited>>;

    /// Deletes at most `limit` records that were `SENT` longer ago than `age`, by the database's
    /// clock, and nothing else. Answers how many.
    async fn purge(&self, age: Duration, limit: u32) -> Result<u64>;

    /// Forgets at most `limit` messages that were received longer ago than `age`, by the database's
    /// clock. Answers how many. One that comes again after that is new.
    async fn purge_inbox(&self, age: Duration, limit: u32) -> Result<u64>;

    /// Forgets at most `limit` commands that were run longer ago than `age`, by the database's
    /// clock. Answers how many. A key that comes again after that is new.
    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64>;
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
    ///
    /// With a `birth`, an event that is due and of whose key nothing earlier is unsent is born
    /// leased to it, in that same statement: nobody else publishes it before the lease runs out. But
    /// not where its tenant is paused, or any destination.
    async fn append(
        &self,
        connection: &mut Self::Connection,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended>;

    /// Notes, in one statement, that a consumer receives a message in this transaction; answers
    /// whether it is the first to. Waits for a transaction that is receiving the same message, and
    /// goes by how that ends. Names are the same only if they are so byte for byte.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) where it cannot wait any longer, or may not see how
    /// the other one has ended: a new transaction can.
    async fn receive(
        &self,
        connection: &mut Self::Connection,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool>;

    /// Begins a command in this transaction, in one statement: none if it is the first with this
    /// key, otherwise what the first one left. Waits as [`receive`](Self::receive) does, and has its
    /// errors.
    async fn begin_command(
        &self,
        connection: &mut Self::Connection,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>>;

    /// Keeps the answer of a command that was begun in this transaction, byte for byte.
    async fn end_command(
        &self,
        connection: &mut Self::Connection,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()>;

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

/// What is kept of a command that has run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstRun {
    /// Of its request.
    pub fingerprint: String,
    /// What it answered.
    pub answer: Vec<u8>,
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

/// Who may publish events before any relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The random id of this incarnation of the process.
    pub owner: Uuid,
    /// How long, by the database's clock.
    pub term: Duration,
}

/// What an append did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// Ids of the events written, in the order given.
    pub ids: Vec<Uuid>,
    /// Ids that were there already, or twice among those given; their events were skipped.
    pub duplicates: Vec<Uuid>,
    /// The records born leased, in order of `seq`.
    pub leased: Vec<OutboxRecord>,
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
        Self {
            ids,
            duplicates,
            leased: Vec::new(),
        }
    }
}

/// How many partitions the ordering keys hash into: the most relays that work at the same time.
pub const PARTITIONS: u16 = 64;

/// A relay, for as long as its process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// A random id, new at each start: a name that is used again would inherit leases.
    pub id: Uuid,
    /// Whose events it carries; none for everybody's.
    pub tenants: Option<Vec<Tenant>>,
}

impl Relay {
    /// A relay that starts now.
    pub fn new(tenants: Option<Vec<Tenant>>) -> Self {
        Self {
            id: Uuid::new_v4(),
            tenants,
        }
    }

    /// The tenants as one word, under which relays share the partitions: `*`, or the sorted names.
    pub fn scope(&self) -> String {
        match &self.tenants {
            None => "*".into(),
            Some(tenants) => {
                let mut names: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
                names.sort_unstable();
                names.dedup();
                names.join(",")
            }
        }
    }

    /// How many partitions each of so many live relays gets.
    pub fn fair_share(relays: usize) -> i64 {
        i64::try_from(usize::from(PARTITIONS).div_ceil(relays.max(1))).unwrap_or(1)
    }

    /// Whether a relay of that scope carries a tenant's events.
    pub fn scope_has(scope: &str, tenant: &Tenant) -> bool {
        scope == "*" || scope.split(',').any(|name| name == tenant.as_str())
    }

    /// Whether relays of two scopes would carry the same events without sharing partitions.
    pub fn scopes_collide(one: &str, other: &str) -> bool {
        let everybody = one == "*" || other == "*";
        one != other
            && (everybody
                || one
                    .split(',')
                    .any(|name| other.split(',').any(|also| also == name)))
    }
}

/// A partition that a relay holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The partition, below [`PARTITIONS`].
    pub partition: u16,
    /// Grows each time the partition changes hands; a write under an older one changes nothing.
    pub epoch: i64,
    /// Whether it was just taken from a relay that did not give it back, and so may have died of an
    /// event in it.
    pub from_the_dead: bool,
}

/// Under what right records are written.
#[derive(Clone, Copy, Debug)]
pub enum Fence<'a> {
    /// A relay's, for records of the partitions that it still holds.
    Leases {
        /// The relay.
        relay: &'a Relay,
        /// What it held when it claimed.
        leases: &'a [Lease],
    },
    /// A process's, for records that are still leased to it by birth.
    Birth(Uuid),
}

/// What a relay asks for.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Who asks, and whose events it carries.
    pub relay: &'a Relay,
    /// The partitions it holds.
    pub leases: &'a [Lease],
    /// How many records at most.
    pub limit: u32,
    /// The `seq` of records that were claimed before and are not settled yet: they are not read
    /// again and hold nothing back.
    pub in_flight: &'a [i64],
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
    /// Whether unsent records of tenants that are not paused are there, of which none is to be
    /// published now.
    pub waiting: bool,
    /// Whether some of those are due, and it is another relay that holds their partitions.
    pub elsewhere: bool,
}

/// What to write about records.
#[derive(Clone, Copy, Debug)]
pub struct Settle<'a> {
    /// Under what right.
    pub fence: Fence<'a>,
    /// Whether sent records are kept, or deleted at once (`retention = 0`).
    pub keep_sent: bool,
    /// What became of each.
    pub settlements: &'a [Settlement],
}

/// What became of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The record.
    pub id: Uuid,
    /// What became of it.
    pub verdict: Verdict,
}

/// An ordering key whose later records wait for an earlier one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldKey {
    /// The tenant.
    pub tenant_id: String,
    /// The kind of aggregate.
    pub aggregate_type: Option<String>,
    /// The aggregate.
    pub aggregate_id: String,
    /// The record that holds the key.
    pub id: Uuid,
    /// Why it is not published: `delayed`, `retrying`, `dead`, or `paused` where it would be one of
    /// the first two and its tenant or its destination is paused.
    pub because: String,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
    /// How many records wait behind it.
    pub waiting: u64,
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
    /// It was not tried, or in vain through no fault of its own: `NEW` for any relay, as before. An
    /// attempt that was [counted before](Store::attempt) is counted no more.
    HandOver,
    /// It is a dead letter: `ERR`.
    Dead {
        /// Whether this last failure counts as an attempt.
        counts: bool,
        /// The failure.
        reason: String,
    },
}

/// How much of a tenant's is not sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TenantBacklog {
    /// The tenant.
    pub tenant_id: String,
    /// Records that are `NEW`, due or not.
    pub pending: u64,
    /// Dead letters.
    pub dead: u64,
    /// For how long the oldest record that is due has been due, in seconds; none where none is. What
    /// is paused, and what comes after it in its key, is not due.
    pub oldest_due_seconds: Option<f64>,
}

impl TenantStatus {
    /// Marks the tenants that are paused, and adds those that have no events.
    pub(crate) fn mark_paused(tenants: &mut Vec<Self>, pauses: &[Pause]) {
        for pause in pauses.iter().filter(|it| it.kind == Pausable::Tenant) {
            let at = tenants.binary_search_by(|tenant| tenant.tenant_id.cmp(&pause.name));
            let at = at.unwrap_or_else(|at| {
                tenants.insert(at, Self::default());
                tenants[at].tenant_id = pause.name.clone();
                at
            });
            tenants[at].paused = true;
        }
    }

    /// All tenants together, under the name `*`.
    pub fn total(tenants: &[Self]) -> Self {
        let sum = |number: fn(&Self) -> u64| tenants.iter().map(number).sum();
        let oldest = tenants
            .iter()
            .filter_map(|tenant| tenant.oldest_new_seconds);
        Self {
            tenant_id: "*".into(),
            new: sum(|tenant| tenant.new),
            retrying: sum(|tenant| tenant.retrying),
            paused_events: sum(|tenant| tenant.paused_events),
            sent: sum(|tenant| tenant.sent),
            dead: sum(|tenant| tenant.dead),
            oldest_new_seconds: oldest.reduce(f64::max),
            paused: tenants.iter().any(|tenant| tenant.paused),
            // An empty sum of floats is -0.0.
            sent_per_second: tenants
                .iter()
                .fold(0.0, |sum, tenant| sum + tenant.sent_per_second),
        }
    }
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
    /// Of the new ones, those that were put aside because their destination is paused.
    pub paused_events: u64,
    /// Sent and still kept.
    pub sent: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long ago the oldest unsent event was written, in seconds; none when all are sent.
    pub oldest_new_seconds: Option<f64>,
    /// Events sent a second, over the last minute.
    pub sent_per_second: f64,
    /// Whether it is paused; of all tenants together, whether any is.
    pub paused: bool,
}
