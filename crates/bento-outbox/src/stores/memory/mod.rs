//! A store in memory: for tests and examples, and the model of the others.

mod act;
mod claims;
mod once;
mod search;
mod transaction;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::transaction::{MemoryConnection, MemoryTransaction};

use self::once::{Key, OnceRows};
use crate::act::{Act, Audited};
use crate::error::{ERROR_MESSAGE_CHARS_MAX, Error, ErrorKind, Result};
use crate::filter::{Filter, Page};
use crate::pause::{Pausable, Pause};
use crate::record::{OutboxRecord, Status};
use crate::standing::Standing;
use crate::store::{
    Claim, Claimed, Fence, HeldKey, Lease, PARTITIONS, Relay, Settle, Store, TenantBacklog,
    TenantStatus, Verdict,
};
use crate::timestamp::Timestamp;

/// An outbox in this process's memory. Clones share it.
///
/// ```
/// use bento_outbox::{Outbox, stores::MemoryStore};
/// let outbox = Outbox::new(MemoryStore::default());
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    rows: Mutex<Rows>,
    hint: Notify,
    /// Tells who waits that a transaction has ended, or undone something.
    ended: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Rows {
    seq: i64,
    records: Vec<OutboxRecord>,
    /// Records born leased: to whom, and until when.
    births: HashMap<Uuid, (Uuid, Timestamp)>,
    relays: HashMap<Uuid, (String, Timestamp)>,
    leases: HashMap<String, Vec<Held>>,
    once: OnceRows,
    pauses: BTreeMap<(Pausable, String), Pause>,
    acts: Vec<Audited>,
}

/// A partition: its epoch, and who holds it until when.
#[derive(Clone, Debug, Default)]
struct Held {
    epoch: i64,
    owner: Option<(Uuid, Timestamp)>,
}

impl MemoryStore {
    /// All that was committed and is not deleted, in order of `seq`: for tests to look at.
    pub fn records(&self) -> Vec<OutboxRecord> {
        self.rows().records.clone()
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.shared.lock()
    }
}

#[async_trait]
impl Store for MemoryStore {
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
        let now = Timestamp::now();
        let until = now.after(term);
        let scope = relay.scope();
        let mut rows = self.rows();
        // Who is refused leaves nothing behind, and whoever runs is not asked again.
        rows.relays.retain(|_, (_, until)| *until > now);
        let mut live = rows.relays.values().map(|(scope, _)| scope);
        if !rows.relays.contains_key(&relay.id)
            && let Some(other) = live.find(|other| Relay::scopes_collide(&scope, other))
        {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                format!(
                    "tenants: another relay is running for tenants {other:?}, this one is for {scope:?}"
                ),
            ));
        }
        rows.relays.insert(relay.id, (scope.clone(), until));
        let live = rows.relays.values();
        let share = Relay::fair_share(live.filter(|(other, _)| *other == scope).count());
        let partitions = rows
            .leases
            .entry(scope)
            .or_insert_with(|| vec![Held::default(); usize::from(PARTITIONS)]);
        let mut mine = 0;
        for held in partitions
            .iter_mut()
            .filter(|held| held.owner.is_some_and(|(owner, _)| owner == relay.id))
        {
            mine += 1;
            held.owner = (mine <= share).then_some((relay.id, until));
        }
        let mut leases = Vec::new();
        for (partition, held) in (0..).zip(partitions.iter_mut()) {
            let mut from_the_dead = false;
            if mine < share && held.owner.is_none_or(|(_, until)| until < now) {
                mine += 1;
                from_the_dead = held.owner.is_some();
                *held = Held {
                    epoch: held.epoch + 1,
                    owner: Some((relay.id, until)),
                };
            }
            if held.owner.is_some_and(|(owner, _)| owner == relay.id) {
                leases.push(Lease {
                    partition,
                    epoch: held.epoch,
                    from_the_dead,
                });
            }
        }
        Ok(leases)
    }

    async fn release(&self, relay: &Relay) -> Result<()> {
        let mut rows = self.rows();
        rows.relays.remove(&relay.id);
        for held in rows.leases.values_mut().flatten() {
            held.owner = held.owner.filter(|(owner, _)| *owner != relay.id);
        }
        Ok(())
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed> {
        Ok(claims::claim(&mut self.rows(), claim))
    }

    async fn attempt(&self, fence: &Fence<'_>, id: Uuid) -> Result<Option<u32>> {
        let mut rows = self.rows();
        let Some(at) = rows.writable(fence, id) else {
            return Ok(None);
        };
        rows.records[at].lost_attempts += 1;
        Ok(Some(rows.records[at].lost_attempts))
    }

    async fn settle(&self, settle: &Settle<'_>) -> Result<u64> {
        let now = Timestamp::now();
        let mut rows = self.rows();
        let mut changed = 0;
        for settlement in settle.settlements {
            let Some(at) = rows.writable(&settle.fence, settlement.id) else {
                continue;
            };
            changed += 1;
            rows.births.remove(&settlement.id);
            let record = &mut rows.records[at];
            record.lost_attempts = match settlement.verdict {
                Verdict::HandOver => record.lost_attempts.saturating_sub(1),
                _ => 0,
            };
            let delivery = &mut record.delivery;
            delivery.retry_at = None;
            match &settlement.verdict {
                Verdict::Sent if !settle.keep_sent => drop(rows.records.remove(at)),
                Verdict::Sent => {
                    delivery.status = Status::Sent;
                    delivery.sent_at = Some(now);
                }
                Verdict::HandOver => {}
                Verdict::Retry {
                    after,
                    counts,
                    reason,
                } => {
                    delivery.retry_cnt += u32::from(*counts);
                    delivery.retry_at = Some(now.after(*after));
                    delivery.error_message = Some(cut(reason));
                }
                Verdict::Dead { counts, reason } => {
                    delivery.status = Status::Err;
                    delivery.retry_cnt += u32::from(*counts);
                    delivery.error_message = Some(cut(reason));
                }
            }
        }
        Ok(changed)
    }

    async fn hint(&self) {
        self.shared.hint.notified().await;
    }

    fn give_hint(&self) {
        self.shared.hint.notify_one();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        let wanted: HashSet<&Uuid> = ids.iter().collect();
        let rows = self.rows();
        let found = rows
            .records
            .iter()
            .filter(|record| wanted.contains(&record.id));
        Ok(found.cloned().collect())
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        let now = Timestamp::now();
        let mut tenants = BTreeMap::<String, TenantStatus>::new();
        let rows = self.rows();
        for record in &rows.records {
            let name = record.tenant.to_string();
            let tenant = tenants.entry(name.clone()).or_insert_with(|| TenantStatus {
                tenant_id: name,
                ..TenantStatus::default()
            });
            match record.delivery.status {
                Status::New => {
                    let is_aside = rows.is_aside(record);
                    let failed = record.delivery.error_message.is_some() && !is_aside;
                    *(if failed && record.delivery.retry_at.is_some() {
                        &mut tenant.retrying
                    } else {
                        &mut tenant.new
                    }) += 1;
                    tenant.paused_events += u64::from(is_aside);
                    let age = record.created_at.until(now).as_secs_f64();
                    tenant.oldest_new_seconds =
                        Some(tenant.oldest_new_seconds.unwrap_or(0.0).max(age));
                }
                Status::Sent => {
                    tenant.sent += 1;
                    let recent = record
                        .delivery
                        .sent_at
                        .is_some_and(|at| at.until(now).as_secs() < 60);
                    tenant.sent_per_second += if recent { 1.0 / 60.0 } else { 0.0 };
                }
                Status::Err => tenant.dead += 1,
            }
        }
        let mut tenants = tenants.into_values().collect();
        let pauses: Vec<Pause> = rows.pauses.values().cloned().collect();
        TenantStatus::mark_paused(&mut tenants, &pauses);
        Ok(tenants)
    }

    async fn backlog(&self) -> Result<Vec<TenantBacklog>> {
        let now = Timestamp::now();
        let mut tenants = BTreeMap::<&str, TenantBacklog>::new();
        let rows = self.rows();
        let mut aside = HashSet::new();
        let unsent = rows
            .records
            .iter()
            .filter(|record| record.delivery.status != Status::Sent);
        for record in unsent {
            let name = record.tenant.as_str();
            let tenant = tenants.entry(name).or_insert_with(|| TenantBacklog {
                tenant_id: name.into(),
                ..TenantBacklog::default()
            });
            if record.delivery.status == Status::Err {
                tenant.dead += 1;
                continue;
            }
            tenant.pending += 1;
            // What comes after it in its key waits with it.
            let key = record.ordering_key();
            if rows.is_aside(record) {
                aside.extend(key);
            }
            let is_kept =
                rows.waits_for_a_pause(record) || key.is_some_and(|key| aside.contains(&key));
            if record.available_at <= now && !is_kept {
                let age = record.created_at.max(record.available_at).until(now);
                let oldest = tenant.oldest_due_seconds.unwrap_or(0.0);
                tenant.oldest_due_seconds = Some(oldest.max(age.as_secs_f64()));
            }
        }
        Ok(tenants.into_values().collect())
    }

    async fn held_keys(&self, limit: u32) -> Result<Vec<HeldKey>> {
        let now = Timestamp::now();
        let rows = self.rows();
        let mut held = Vec::new();
        for (at, record) in rows.records.iter().enumerate() {
            let delivery = &record.delivery;
            let because = match delivery.status {
                Status::Err => "dead",
                Status::New if delivery.retry_at.is_some_and(|until| until > now) => "retrying",
                Status::New if record.available_at > now => "delayed",
                _ => continue,
            };
            let because = match because {
                "dead" => because,
                _ if rows.waits_for_a_pause(record) => "paused",
                _ => because,
            };
            let Some(key) = record.ordering_key() else {
                continue;
            };
            let behind = rows.records[at + 1..].iter().filter(|later| {
                later.delivery.status == Status::New && later.ordering_key() == Some(key)
            });
            let waiting = behind.count() as u64;
            if waiting > 0 && held.len() < limit as usize {
                held.push(HeldKey {
                    tenant_id: record.tenant.to_string(),
                    aggregate_type: key.kind.map(Into::into),
                    aggregate_id: key.id.into(),
                    id: record.id,
                    because: because.into(),
                    until: match because {
                        "retrying" => delivery.retry_at,
                        "delayed" => Some(record.available_at),
                        _ => None,
                    },
                    waiting,
                });
            }
        }
        Ok(held)
    }

    async fn events(&self, filter: &Filter, page: &Page) -> Result<Vec<OutboxRecord>> {
        Ok(search::events(&self.rows(), filter, page))
    }

    async fn standing(&self, id: Uuid, dead_letters_block: bool) -> Result<Option<Standing>> {
        Ok(search::standing(&self.rows(), id, dead_letters_block))
    }

    async fn retry(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        Ok(self.rows().retry(ids, by))
    }

    async fn discard(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        Ok(self.rows().discard(ids, by))
    }

    async fn pause(
        &self,
        kind: Pausable,
        names: &[String],
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64> {
        self.rows().pause(kind, kind.names(names)?, by, reason)
    }

    async fn resume(&self, kind: Pausable, names: &[String], by: &str) -> Result<u64> {
        Ok(self.rows().resume(kind, kind.names(names)?, by))
    }

    async fn pauses(&self) -> Result<Vec<Pause>> {
        Ok(self.rows().pauses.values().cloned().collect())
    }

    async fn wake(&self, limit: u32) -> Result<u64> {
        Ok(self.rows().wake(limit as usize))
    }

    async fn audit(&self, act: &Act) -> Result<()> {
        self.rows().note(act.clone());
        Ok(())
    }

    async fn acts(&self, before: Option<i64>, limit: u32) -> Result<Vec<Audited>> {
        let rows = self.rows();
        let asked = |kept: &&Audited| before.is_none_or(|before| kept.number < before);
        let newest_first = rows.acts.iter().rev().filter(asked);
        Ok(newest_first.take(limit as usize).cloned().collect())
    }

    async fn purge(&self, age: Duration, limit: u32) -> Result<u64> {
        let now = Timestamp::now();
        let mut left = limit;
        let mut rows = self.rows();
        rows.records.retain(|record| {
            let old = record
                .delivery
                .sent_at
                .is_some_and(|at| at.until(now) > age);
            let goes = record.delivery.status == Status::Sent && old && left > 0;
            left -= u32::from(goes);
            !goes
        });
        Ok(u64::from(limit - left))
    }

    async fn purge_inbox(&self, age: Duration, limit: u32) -> Result<u64> {
        let is_message = |key: &Key| matches!(key, Key::Message(..));
        Ok(self.rows().once.purge(age, limit, is_message))
    }

    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64> {
        let is_command = |key: &Key| matches!(key, Key::Command(..));
        Ok(self.rows().once.purge(age, limit, is_command))
    }
}

impl Rows {
    /// Where the record is that the fence may write; none when it is settled, or another's.
    fn writable(&self, fence: &Fence<'_>, id: Uuid) -> Option<usize> {
        let at = self.records.iter().position(|record| record.id == id)?;
        let record = &self.records[at];
        let held = match fence {
            Fence::Birth(owner) => self
                .births
                .get(&id)
                .is_some_and(|(born_to, _)| born_to == owner),
            Fence::Leases { relay, leases } => leases.iter().any(|lease| {
                let held = self
                    .leases
                    .get(&relay.scope())
                    .and_then(|all| all.get(usize::from(lease.partition)));
                lease.partition == partition(record)
                    && held.is_some_and(|held| {
                        held.epoch == lease.epoch
                            && held.owner.is_some_and(|(owner, _)| owner == relay.id)
                    })
            }),
        };
        (held && record.delivery.status == Status::New).then_some(at)
    }
}

/// The partition of a record: of its ordering key, or of its id where it has none.
fn partition(record: &OutboxRecord) -> u16 {
    let mut hasher = std::hash::DefaultHasher::new();
    match record.ordering_key() {
        Some(key) => key.hash(&mut hasher),
        None => record.id.hash(&mut hasher),
    }
    u16::try_from(hasher.finish() % u64::from(PARTITIONS)).unwrap_or(0)
}

fn ids<'a>(records: impl IntoIterator<Item = &'a OutboxRecord>) -> HashSet<Uuid> {
    records.into_iter().map(|record| record.id).collect()
}

fn cut(reason: &str) -> String {
    reason.chars().take(ERROR_MESSAGE_CHARS_MAX).collect()
}
