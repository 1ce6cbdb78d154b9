//! Stores that each break one promise of [`Store`] or [`TransactionalStore`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::stores::{MemoryStore, MemoryTransaction};
use bento_outbox::{
    Aggregate, Appended, Claim, Claimed, Delivery, Error, ErrorKind, Event, Headers, Isolation,
    OutboxRecord, Payload, Result, Savepoint, Settlement, Status, Store, Tenant, TenantStatus,
    Timestamp, TransactionalStore, Verdict,
};
use futures_util::FutureExt;
use uuid::Uuid;

mod fault;

use Fault::*;
pub use fault::Fault;

/// A [`MemoryStore`] with one fault. Clones share it.
///
/// Writing goes through the memory store; reading and settling are written out here once more,
/// because a fault must get in between.
#[derive(Clone)]
pub struct MutantStore {
    memory: MemoryStore,
    fault: Option<Fault>,
    state: Arc<Mutex<State>>,
}

/// What the memory store does not know.
#[derive(Default)]
struct State {
    /// The ids that were ever appended, committed or not.
    appended: Vec<Uuid>,
    /// How far the delivery of each record is.
    deliveries: HashMap<Uuid, Delivery>,
    /// Events that replace others.
    replaced: HashMap<Uuid, Event>,
    claimed: Vec<Uuid>,
    /// The highest `seq` that was sent.
    cursor: i64,
    /// How many transactions have begun.
    begun: u64,
}

/// A transaction on a [`MutantStore`], and its connection as well.
pub struct MutantTransaction {
    /// None once it has ended.
    open: Option<MemoryTransaction>,
    number: u64,
    store: MutantStore,
}

impl MutantStore {
    /// An empty store with this fault; with none it keeps every promise.
    pub fn new(fault: Option<Fault>) -> Self {
        Self {
            memory: MemoryStore::default(),
            fault,
            state: Arc::default(),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every committed record, in order of `seq`.
    async fn records(&self) -> Result<Vec<OutboxRecord>> {
        let ids = self.state().appended.clone();
        let mut records = self.memory.find(&ids).await?;
        let state = self.state();
        for record in &mut records {
            if let Some(event) = state.replaced.get(&record.id) {
                *record = OutboxRecord::of(event, &record.tenant, record.seq, record.created_at);
            }
            if let Some(delivery) = state.deliveries.get(&record.id) {
                record.delivery = delivery.clone();
            }
        }
        Ok(records)
    }

    /// The event as it is written.
    fn written(&self, mut event: Event) -> Event {
        let seconds = |time: Timestamp| {
            let micros = time.unix_micros();
            Timestamp::from_unix_micros(micros - micros.rem_euclid(1_000_000)).unwrap_or(time)
        };
        match self.fault {
            Some(ForgetsTheEventsTenant) => event.tenant = None,
            Some(DropsAggregateKind) => event.aggregate.kind = None,
            Some(InventsAggregateKind) => {
                event.aggregate.kind.get_or_insert_default();
            }
            Some(DropsSchema) => (event.schema_id, event.schema_version) = (None, 1),
            Some(DropsKeyId) => event.key_id = None,
            Some(DropsHeaders) => event.headers = Headers::default(),
            Some(CutsTimesToSeconds) => {
                event.occurred_at = seconds(event.occurred_at);
                event.created_at = event.created_at.map(seconds);
            }
            Some(OverwritesCreatedAt) => event.created_at = None,
            Some(ForgetsAvailableAt) => event.available_at = None,
            _ => event.payload = self.written_payload(event.payload),
        }
        event
    }

    fn written_payload(&self, payload: Payload) -> Payload {
        let text = || String::from_utf8_lossy(payload.as_bytes()).into_owned();
        let json = |text: String| Payload::json(text).unwrap_or(payload.clone());
        match (self.fault, &payload) {
            (Some(ReformatsJson), Payload::Json(_)) => {
                let value = serde_json::from_str::<serde_json::Value>(&text());
                value.map_or(payload.clone(), |value| json(value.to_string()))
            }
            (Some(DropsNul), Payload::Json(_)) => json(text().replace("\\u0000", "")),
            (Some(TakesDataForJson), Payload::Data(_)) => json(text()),
            (Some(TakesEmptyDataForJson), Payload::Data(data)) if data.is_empty() => {
                json("null".into())
            }
            (Some(TakesDataForText), Payload::Data(_)) => Payload::Data(text().into()),
            _ => payload,
        }
    }

    /// What the record is ordered by.
    fn key(&self, record: &OutboxRecord) -> Option<(Tenant, Aggregate)> {
        let tenant = record.tenant.clone();
        let Aggregate { kind, id } = record.aggregate.clone();
        match (self.fault, id) {
            (Some(OrdersTheUnordered), None) => Some((tenant, Aggregate::default())),
            (_, None) => None,
            (Some(KeyWithoutTenant), id) => Some((Tenant::default(), Aggregate { kind, id })),
            (Some(KeyWithoutKind), id) => Some((tenant, Aggregate { kind: None, id })),
            (_, id) => Some((tenant, Aggregate { kind, id })),
        }
    }

    /// What becomes of a delivery.
    fn settled(&self, before: &Delivery, verdict: &Verdict) -> Delivery {
        let now = Timestamp::now();
        let reason = |reason: &str| match self.fault {
            Some(LosesReasons) => None,
            Some(KeepsLongReasons) => Some(reason.to_owned()),
            _ => Some(
                reason
                    .chars()
                    .take(bento_outbox::ERROR_MESSAGE_CHARS_MAX)
                    .collect(),
            ),
        };
        let counted = |counts: bool| {
            let counts = (counts || self.has(AlwaysCounts)) && !self.has(NeverCounts);
            before.retry_cnt + u32::from(counts)
        };
        match verdict {
            Verdict::Sent => Delivery {
                status: Status::Sent,
                retry_at: before.retry_at.filter(|_| self.has(KeepsRetryAt)),
                sent_at: (!self.has(ForgetsSentAt)).then_some(now),
                ..before.clone()
            },
            Verdict::Retry {
                after,
                counts,
                reason: why,
            } if !self.has(BuriesTheFailed) => Delivery {
                retry_cnt: counted(*counts),
                retry_at: Some(now.after(if self.has(ForgetsRetryAt) {
                    Duration::ZERO
                } else {
                    *after
                })),
                error_message: reason(why),
                ..before.clone()
            },
            Verdict::Retry {
                counts,
                reason: why,
                ..
            }
            | Verdict::Dead {
                counts,
                reason: why,
            } => Delivery {
                status: if self.has(MarksTheDeadSent) {
                    Status::Sent
                } else {
                    Status::Err
                },
                retry_cnt: counted(*counts),
                retry_at: None,
                error_message: reason(why),
                ..before.clone()
            },
        }
    }
}

#[async_trait]
impl Store for MutantStore {
    async fn migrate(&self) -> Result<Vec<i64>> {
        self.memory.migrate().await
    }

    fn migrations(&self) -> String {
        self.memory.migrations()
    }

    async fn check(&self) -> Result<()> {
        self.memory.check().await
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let now = Timestamp::now();
        let mut claimed = Claimed::default();
        let mut held = Vec::new();
        let mut records = self.records().await?;
        if self.has(WaitsForLaterOnes) {
            records.reverse();
        }
        let cursor = self.state().cursor;
        let seen = self.state().claimed.clone();
        let mut room = claim.limit as usize;
        for record in records {
            let Delivery {
                status, retry_at, ..
            } = record.delivery;
            let ours = claim
                .tenants
                .as_ref()
                .is_none_or(|ours| ours.contains(&record.tenant));
            let lost = (self.has(ClaimsByCursor) && record.seq < cursor && retry_at.is_none())
                || (self.has(ClaimsOnce) && seen.contains(&record.id));
            let others_wait = self.has(WaitsForOthers) && status == Status::New;
            if lost || status == Status::Sent || !(ours || self.has(IgnoresTenants)) {
                claimed.waiting |= others_wait && !ours;
                continue;
            }
            let available = record.available_at <= now || self.has(IgnoresAvailableAt);
            let due =
                available && (self.has(IgnoresRetryAt) || retry_at.is_none_or(|at| at <= now));
            let alive = status == Status::New || self.has(ClaimsDeadLetters);
            let key = self.key(&record);
            let is_held = (claim.ordered || self.has(AlwaysOrders))
                && key.is_some()
                && held.contains(&key)
                && !self.has(Overtakes);
            if is_held && self.has(HoldsOnlyTheNext) {
                held.retain(|other| *other != key);
            }
            let blocks =
                (claim.dead_letters_block && !self.has(NeverBlocks)) || self.has(AlwaysBlocks);
            if alive && due && !is_held {
                if room > 0 || self.has(IgnoresLimit) {
                    room = room.saturating_sub(1);
                    claimed.records.push(record);
                }
                continue;
            }
            if self.has(CountsWaitingAgainstLimit) {
                room = room.saturating_sub(1);
            }
            claimed.waiting |= alive || self.has(WaitsForTheDead);
            let holds = if alive {
                available || !self.has(OvertakesDelayed)
            } else {
                blocks
            };
            if holds && !(is_held && self.has(HoldsOnlyTheNext)) {
                held.push(key);
            }
        }
        if self.has(WaitsForLaterOnes) || self.has(ReversesClaims) {
            claimed.records.reverse();
        }
        claimed.waiting &= claimed.records.is_empty() && !self.has(NeverWaits);
        claimed.waiting |= self.has(AlwaysWaits);
        self.state()
            .claimed
            .extend(claimed.records.iter().map(|record| record.id));
        Ok(claimed)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let records: HashMap<Uuid, OutboxRecord> = self
            .records()
            .await?
            .into_iter()
            .map(|record| (record.id, record))
            .collect();
        let mut state = self.state();
        let mut changed = 0;
        for Settlement { id, verdict } in settlements {
            let Some(record) = records.get(id) else {
                if self.has(RefusesUnknownIds) {
                    return Err(Error::new(ErrorKind::Database, "an unknown record"));
                }
                continue;
            };
            if record.delivery.status != Status::New && !self.has(SettlesTwice) {
                continue;
            }
            if changed > 0 && self.has(SettlesTheFirst) {
                continue;
            }
            changed += 1;
            let delivery = self.settled(&record.delivery, verdict);
            if delivery.status == Status::Sent {
                state.cursor = state.cursor.max(record.seq);
            }
            state.deliveries.insert(*id, delivery);
        }
        Ok(if self.has(SaysAllWereSettled) {
            settlements.len() as u64
        } else {
            changed
        })
    }

    async fn hint(&self) {
        match self.fault {
            Some(NeverHints) => std::future::pending().await,
            Some(AlwaysHints) => {}
            _ => self.memory.hint().await,
        }
    }

    fn give_hint(&self) {
        self.memory.give_hint();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        let mut found = self.records().await?;
        let hidden = |record: &OutboxRecord| {
            self.has(FindsOnlyUnsent) && record.delivery.status == Status::Sent
        };
        found.retain(|record| ids.contains(&record.id) && !hidden(record));
        if self.has(ReversesFinds) {
            found.reverse();
        }
        Ok(found)
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        let now = Timestamp::now();
        let mut tenants: Vec<TenantStatus> = Vec::new();
        for record in self.records().await? {
            let name = record.tenant.as_str();
            let at = tenants.partition_point(|tenant| *tenant.tenant_id < *name);
            if tenants
                .get(at)
                .is_none_or(|tenant| tenant.tenant_id != name)
            {
                let tenant_id = name.to_owned();
                tenants.insert(
                    at,
                    TenantStatus {
                        tenant_id,
                        ..TenantStatus::default()
                    },
                );
            }
            let tenant = &mut tenants[at];
            let Delivery {
                status,
                retry_at,
                sent_at,
                ..
            } = record.delivery;
            match status {
                Status::New if retry_at.is_some() && !self.has(CountsRetryingAsNew) => {
                    tenant.retrying += 1;
                }
                Status::New => tenant.new += 1,
                Status::Sent => tenant.sent += 1,
                Status::Err => tenant.dead += 1,
            }
            if status == Status::New || (status == Status::Sent && self.has(AgesTheSent)) {
                let age = record.created_at.until(now).as_secs_f64();
                let other = tenant.oldest_new_seconds.unwrap_or(age);
                let oldest = if self.has(AgesTheNewest) {
                    age.min(other)
                } else {
                    age.max(other)
                };
                tenant.oldest_new_seconds = Some(oldest);
            }
            let recent = sent_at.is_some_and(|at| at.until(now).as_secs() < 60);
            if recent || (status == Status::Sent && self.has(OverstatesTheRate)) {
                tenant.sent_per_second += if self.has(OverstatesTheRate) {
                    1.0
                } else {
                    1.0 / 60.0
                };
            }
        }
        if self.has(ReversesTenants) {
            tenants.reverse();
        }
        if self.has(HidesIdleTenants) {
            tenants.retain(|tenant| tenant.oldest_new_seconds.is_some());
        }
        Ok(tenants)
    }
}

#[async_trait]
impl TransactionalStore for MutantStore {
    type Connection = MutantTransaction;
    type Transaction = MutantTransaction;

    async fn begin(&self, isolation: Option<Isolation>) -> Result<MutantTransaction> {
        let open = Some(self.memory.begin(isolation).await?);
        let mut state = self.state();
        state.begun += 1;
        Ok(MutantTransaction {
            open,
            number: state.begun,
            store: self.clone(),
        })
    }

    fn connection(transaction: &mut MutantTransaction) -> &mut MutantTransaction {
        transaction
    }

    async fn append(
        &self,
        connection: &mut MutantTransaction,
        tenant: &Tenant,
        events: &[Event],
    ) -> Result<Appended> {
        let default = Tenant::default();
        let tenant = if self.has(ForgetsTheUnitsTenant) {
            &default
        } else {
            tenant
        };
        let mut events: Vec<Event> = events
            .iter()
            .cloned()
            .map(|event| self.written(event))
            .collect();
        let last = match self.fault {
            Some(ForgetsTheLastEvent) => events.len() - 1,
            Some(AppendsAThousand) => events.len().min(1_000),
            _ => events.len(),
        };
        let given: Vec<Uuid> = events.iter().map(|event| event.id).collect();
        events.truncate(last);
        if self.has(ReversesAppends) {
            events.reverse();
        }
        self.state().appended.extend(&given);

        let mut own = self.memory.begin(None).await?;
        let open = if self.has(AppendsAtOnce) {
            &mut own
        } else {
            connection.open()
        };
        let memory = MemoryStore::connection(open);
        let mut appended = self.memory.append(memory, tenant, &events).await?;
        let skipped = |event: &&Event| appended.duplicates.contains(&event.id);
        match self.fault {
            Some(WritesDuplicatesAgain) => {
                let again: Vec<Event> = events.iter().filter(skipped).map(renamed).collect();
                self.state()
                    .appended
                    .extend(again.iter().map(|event| event.id));
                self.memory.append(memory, tenant, &again).await?;
            }
            Some(ReplacesDuplicates) => {
                let replaced = events
                    .iter()
                    .filter(skipped)
                    .map(|event| (event.id, event.clone()));
                self.state().replaced.extend(replaced);
            }
            Some(RefusesDuplicates) if !appended.duplicates.is_empty() => {
                return Err(Error::new(ErrorKind::Database, "an id is there already"));
            }
            Some(HidesDuplicates) => appended.duplicates.clear(),
            Some(CountsDuplicates) => (appended.ids, appended.duplicates) = (given, Vec::new()),
            Some(ForgetsTheLastEvent | AppendsAThousand) => {
                appended.ids.extend(&given[last..]);
            }
            Some(ReversesAppends) => appended.ids.reverse(),
            Some(AppendsAtOnce) => self.memory.commit(own, &appended).await?,
            Some(CommitsAppends) => {
                let next = self.memory.begin(None).await?;
                let done = std::mem::replace(connection.open(), next);
                self.memory.commit(done, &appended).await?;
            }
            _ => {}
        }
        Ok(appended)
    }

    async fn savepoint(
        &self,
        connection: &mut MutantTransaction,
        depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        let verb = match (self.fault, verb) {
            (Some(KeepsUndoneSavepoints), Savepoint::RollBack) => Savepoint::Release,
            (Some(DropsReleasedSavepoints), Savepoint::Release) => Savepoint::RollBack,
            _ => verb,
        };
        let memory = MemoryStore::connection(connection.open());
        self.memory.savepoint(memory, depth, verb).await
    }

    async fn commit(&self, mut transaction: MutantTransaction, appended: &Appended) -> Result<()> {
        let is_last = transaction.number == self.state().begun;
        let loses = self.has(ForgetsCommits) || (self.has(LosesToLaterTransactions) && !is_last);
        match transaction.open.take() {
            Some(open) if !loses => self.memory.commit(open, appended).await,
            _ => Ok(()),
        }
    }

    async fn rollback(&self, mut transaction: MutantTransaction) -> Result<()> {
        match transaction.open.take() {
            Some(open) if self.has(CommitsRollbacks) => {
                self.memory.commit(open, &Appended::default()).await
            }
            _ => Ok(()),
        }
    }
}

/// The event under another id.
fn renamed(event: &Event) -> Event {
    Event {
        id: Uuid::now_v7(),
        ..event.clone()
    }
}

impl MutantTransaction {
    fn open(&mut self) -> &mut MemoryTransaction {
        // Taken only by what ends the transaction, and by its drop.
        self.open.as_mut().expect("a transaction in use is open")
    }
}

impl Drop for MutantTransaction {
    fn drop(&mut self) {
        if let Some(open) = self.open.take().filter(|_| self.store.has(CommitsDropped)) {
            // In memory a commit waits for nothing.
            drop(
                self.store
                    .memory
                    .commit(open, &Appended::default())
                    .now_or_never(),
            );
        }
    }
}
