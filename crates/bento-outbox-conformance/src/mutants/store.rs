//! Stores that each break one promise of [`Store`] or [`TransactionalStore`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::{
    Act, Aggregate, Appended, Audited, Birth, Claim, Claimed, Event, Fence, Filter, FirstRun,
    HeldKey, Isolation, Lease, OutboxRecord, PARTITIONS, Page, Pausable, Pause, Relay, Result,
    Savepoint, Settle, Standing, Store, Tenant, TenantBacklog, TenantStatus, Timestamp,
    TransactionalStore,
};
use tokio::sync::Notify;
use uuid::Uuid;

mod acting;
mod claiming;
mod fault;
mod leasing;
mod operating;
mod reading;
mod receiving;
mod settling;
mod writing;

use Fault::*;
pub use fault::Fault;
pub use writing::MutantTransaction;

/// A store in memory with one fault. Clones share it.
///
/// It is the memory store written out once more, because a fault must get in everywhere.
#[derive(Clone)]
pub struct MutantStore {
    fault: Option<Fault>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    hint: Notify,
    /// Tells that a transaction has ended, or undone something.
    ended: Notify,
}

#[derive(Default)]
struct State {
    seq: i64,
    /// What is committed, in order of `seq`.
    rows: Vec<Row>,
    relays: HashMap<Uuid, (String, Timestamp)>,
    leases: HashMap<String, Vec<Held>>,
    /// The ids that were ever claimed.
    claimed: HashSet<Uuid>,
    /// The highest `seq` that was sent.
    cursor: i64,
    /// How many transactions have begun.
    begun: u64,
    once: receiving::AllOnce,
    pauses: BTreeMap<(Pausable, String), Pause>,
    acts: Vec<Audited>,
}

#[derive(Clone)]
struct Row {
    record: OutboxRecord,
    /// To whom it was born leased, and until when.
    birth: Option<(Uuid, Timestamp)>,
    /// Whether it was taken from that owner, who was not told.
    taken: bool,
}

/// A partition: its epoch, and who holds it until when.
#[derive(Clone, Default)]
struct Held {
    epoch: i64,
    owner: Option<(Uuid, Timestamp)>,
    from_the_dead: bool,
}

/// What a record is ordered by.
type Key = (Tenant, Aggregate);

impl MutantStore {
    /// An empty store with this fault; with none it keeps every promise.
    pub fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            shared: Arc::default(),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ordering key of a record that has one.
fn key(record: &OutboxRecord) -> Option<Key> {
    record.aggregate.id.as_ref()?;
    Some((record.tenant.clone(), record.aggregate.clone()))
}

fn partition(record: &OutboxRecord) -> u16 {
    let mut hasher = std::hash::DefaultHasher::new();
    match key(record) {
        Some(key) => key.hash(&mut hasher),
        None => record.id.hash(&mut hasher),
    }
    u16::try_from(hasher.finish() % u64::from(PARTITIONS)).unwrap_or(0)
}

#[async_trait]
impl Store for MutantStore {
    async fn migrate(&self) -> Result<Vec<i64>> {
        Ok(Vec::new())
    }

    fn migrations(&self) -> String {
        String::new()
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }

    async fn lease(&self, relay: &Relay, term: Duration) -> Result<Vec<Lease>> {
        self.leased(relay, term)
    }

    async fn release(&self, relay: &Relay) -> Result<()> {
        self.released(relay);
        Ok(())
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed> {
        Ok(self.claimed(claim))
    }

    async fn attempt(&self, fence: &Fence<'_>, id: Uuid) -> Result<Option<u32>> {
        Ok(self.attempted(fence, id))
    }

    async fn settle(&self, settle: &Settle<'_>) -> Result<u64> {
        self.settled(settle)
    }

    async fn hint(&self) {
        match self.fault {
            Some(NeverHints) => std::future::pending().await,
            Some(AlwaysHints) => {}
            _ => self.shared.hint.notified().await,
        }
    }

    fn give_hint(&self) {
        self.shared.hint.notify_one();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        Ok(self.found(ids))
    }

    async fn backlog(&self) -> Result<Vec<TenantBacklog>> {
        Ok(self.what_waits())
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        Ok(self.counted())
    }

    async fn held_keys(&self, limit: u32) -> Result<Vec<HeldKey>> {
        Ok(self.waiting_keys(limit))
    }

    async fn events(&self, filter: &Filter, page: &Page) -> Result<Vec<OutboxRecord>> {
        Ok(self.searched(filter, page))
    }

    async fn standing(&self, id: Uuid, dead_letters_block: bool) -> Result<Option<Standing>> {
        Ok(self.stands(id, dead_letters_block))
    }

    async fn retry(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        let changed = self.retried(ids);
        self.note_letters(by, "retry", ids, changed).await
    }

    async fn discard(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        let changed = self.discarded(ids);
        self.note_letters(by, "discard", ids, changed).await
    }

    async fn pause(
        &self,
        kind: Pausable,
        names: &[String],
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64> {
        self.paused(kind, names, by, reason).await
    }

    async fn resume(&self, kind: Pausable, names: &[String], by: &str) -> Result<u64> {
        self.resumed(kind, names, by).await
    }

    async fn pauses(&self) -> Result<Vec<Pause>> {
        Ok(self.what_is_paused())
    }

    async fn wake(&self, limit: u32) -> Result<u64> {
        Ok(self.woken(limit as usize))
    }

    async fn audit(&self, act: &Act) -> Result<()> {
        self.noted(act.clone());
        Ok(())
    }

    async fn acts(&self, before: Option<i64>, limit: u32) -> Result<Vec<Audited>> {
        Ok(self.acts_told(before, limit))
    }

    async fn purge(&self, age: Duration, limit: u32) -> Result<u64> {
        Ok(self.purged(age, limit))
    }

    async fn purge_inbox(&self, age: Duration, limit: u32) -> Result<u64> {
        Ok(self.forgotten(false, age, limit))
    }

    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64> {
        Ok(self.forgotten(true, age, limit))
    }
}

#[async_trait]
impl TransactionalStore for MutantStore {
    type Connection = MutantTransaction;
    type Transaction = MutantTransaction;

    async fn begin(&self, _isolation: Option<Isolation>) -> Result<MutantTransaction> {
        Ok(MutantTransaction::new(self))
    }

    fn connection(transaction: &mut MutantTransaction) -> &mut MutantTransaction {
        transaction
    }

    async fn append(
        &self,
        connection: &mut MutantTransaction,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        self.appended(connection, tenant, events, birth)
    }

    async fn receive(
        &self,
        connection: &mut MutantTransaction,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool> {
        if self.has(NeverReceives) {
            return Ok(false);
        }
        let key = self.message(consumer, tenant, message_id);
        Ok(self.inserted(connection, key, "").await.is_none())
    }

    async fn begin_command(
        &self,
        connection: &mut MutantTransaction,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        let key = self.command(tenant, key);
        Ok(self.inserted(connection, key, fingerprint).await)
    }

    async fn end_command(
        &self,
        connection: &mut MutantTransaction,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()> {
        let key = self.command(tenant, key);
        self.answered(connection, &key, answer);
        Ok(())
    }

    async fn savepoint(
        &self,
        connection: &mut MutantTransaction,
        _depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        connection.savepoint(verb);
        Ok(())
    }

    async fn commit(&self, transaction: MutantTransaction, _appended: &Appended) -> Result<()> {
        transaction.commit();
        Ok(())
    }

    async fn rollback(&self, transaction: MutantTransaction) -> Result<()> {
        transaction.rollback();
        Ok(())
    }
}
