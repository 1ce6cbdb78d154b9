//! A store in memory: for tests and examples, and the model of the others.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::error::{ERROR_MESSAGE_CHARS_MAX, Result};
use crate::event::Event;
use crate::record::{OutboxRecord, Status};
use crate::store::{
    Appended, Claim, Claimed, Isolation, Savepoint, Settlement, Store, TenantStatus,
    TransactionalStore, Verdict,
};
use crate::tenant::Tenant;
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
}

#[derive(Debug, Default)]
struct Rows {
    seq: i64,
    records: Vec<OutboxRecord>,
}

/// An open transaction on a [`MemoryStore`]: what it appended is seen by nobody before its commit.
#[derive(Debug)]
pub struct MemoryTransaction {
    connection: MemoryConnection,
}

/// The connection of a [`MemoryTransaction`].
#[derive(Debug)]
pub struct MemoryConnection {
    shared: Arc<Shared>,
    staged: Vec<OutboxRecord>,
    savepoints: Vec<usize>,
}

impl MemoryStore {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.shared
            .rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let now = Timestamp::now();
        let rows = self.rows();
        let mut claimed = Claimed::default();
        let mut held: Vec<&OutboxRecord> = Vec::new();
        for record in &rows.records {
            let theirs = claim
                .tenants
                .as_ref()
                .is_some_and(|ours| !ours.contains(&record.tenant));
            let status = record.delivery.status;
            if theirs
                || status == Status::Sent
                || (status == Status::Err && !claim.dead_letters_block)
            {
                continue;
            }
            let is_held = claim.ordered
                && record.ordering_key().is_some()
                && held
                    .iter()
                    .any(|earlier| earlier.ordering_key() == record.ordering_key());
            let due = status == Status::New
                && record.available_at <= now
                && record.delivery.retry_at.is_none_or(|at| at <= now);
            if due && !is_held && claimed.records.len() < claim.limit as usize {
                claimed.records.push(record.clone());
            } else if !due || is_held {
                held.push(record);
            }
        }
        claimed.waiting = claimed.records.is_empty()
            && held
                .iter()
                .any(|record| record.delivery.status == Status::New);
        Ok(claimed)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let now = Timestamp::now();
        let mut rows = self.rows();
        let mut changed = 0;
        for settlement in settlements {
            let found = rows
                .records
                .iter_mut()
                .find(|record| record.id == settlement.id);
            let Some(delivery) = found
                .map(|record| &mut record.delivery)
                .filter(|d| d.status == Status::New)
            else {
                continue;
            };
            changed += 1;
            match &settlement.verdict {
                Verdict::Sent => {
                    delivery.status = Status::Sent;
                    delivery.retry_at = None;
                    delivery.sent_at = Some(now);
                }
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
                    delivery.retry_at = None;
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
        let mut tenants = std::collections::BTreeMap::<String, TenantStatus>::new();
        for record in &self.rows().records {
            let name = record.tenant.to_string();
            let tenant = tenants.entry(name.clone()).or_insert_with(|| TenantStatus {
                tenant_id: name,
                ..TenantStatus::default()
            });
            match record.delivery.status {
                Status::New => {
                    let waits = record.delivery.retry_at.is_some();
                    *(if waits {
                        &mut tenant.retrying
                    } else {
                        &mut tenant.new
                    }) += 1;
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
        Ok(tenants.into_values().collect())
    }
}

fn ids<'a>(records: impl IntoIterator<Item = &'a OutboxRecord>) -> HashSet<Uuid> {
    records.into_iter().map(|record| record.id).collect()
}

fn cut(reason: &str) -> String {
    reason.chars().take(ERROR_MESSAGE_CHARS_MAX).collect()
}

#[async_trait]
impl TransactionalStore for MemoryStore {
    type Connection = MemoryConnection;
    type Transaction = MemoryTransaction;

    async fn begin(&self, _isolation: Option<Isolation>) -> Result<MemoryTransaction> {
        let connection = MemoryConnection {
            shared: self.shared.clone(),
            staged: Vec::new(),
            savepoints: Vec::new(),
        };
        Ok(MemoryTransaction { connection })
    }

    fn connection(transaction: &mut MemoryTransaction) -> &mut MemoryConnection {
        &mut transaction.connection
    }

    async fn append(
        &self,
        connection: &mut MemoryConnection,
        tenant: &Tenant,
        events: &[Event],
    ) -> Result<Appended> {
        let mut rows = connection
            .shared
            .rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        let mut there = ids(rows.records.iter().chain(&connection.staged));
        let mut appended = Appended::default();
        for event in events {
            if !there.insert(event.id) {
                appended.duplicates.push(event.id);
                continue;
            }
            rows.seq += 1;
            connection
                .staged
                .push(OutboxRecord::of(event, tenant, rows.seq, now));
            appended.ids.push(event.id);
        }
        Ok(appended)
    }

    async fn savepoint(
        &self,
        connection: &mut MemoryConnection,
        _depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        match verb {
            Savepoint::Set => connection.savepoints.push(connection.staged.len()),
            Savepoint::Release => drop(connection.savepoints.pop()),
            Savepoint::RollBack => connection
                .staged
                .truncate(connection.savepoints.pop().unwrap_or(0)),
        }
        Ok(())
    }

    async fn commit(&self, transaction: MemoryTransaction, _appended: &Appended) -> Result<()> {
        let mut rows = self.rows();
        let mut there = ids(&rows.records);
        for record in transaction.connection.staged {
            if there.insert(record.id) {
                let at = rows.records.partition_point(|there| there.seq < record.seq);
                rows.records.insert(at, record);
            }
        }
        Ok(())
    }

    async fn rollback(&self, _transaction: MemoryTransaction) -> Result<()> {
        Ok(())
    }
}
