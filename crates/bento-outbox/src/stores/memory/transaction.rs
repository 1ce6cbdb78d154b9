//! Transactions in memory: what is written in one is seen by nobody before its commit.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::once::{self, Key};
use super::{MemoryStore, Shared, ids};
use crate::error::Result;
use crate::event::Event;
use crate::record::{OutboxRecord, Status};
use crate::store::{Appended, Birth, FirstRun, Isolation, Savepoint, TransactionalStore};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// An open transaction on a [`MemoryStore`]: what it appended is seen by nobody before its commit.
#[derive(Debug)]
pub struct MemoryTransaction {
    connection: MemoryConnection,
}

/// The connection of a [`MemoryTransaction`].
#[derive(Debug)]
pub struct MemoryConnection {
    pub(super) shared: Arc<Shared>,
    staged: Vec<OutboxRecord>,
    births: HashMap<Uuid, (Uuid, Timestamp)>,
    pub(super) transaction: Uuid,
    pub(super) received: Vec<(Key, once::Row)>,
    /// How much was staged and received before each.
    savepoints: Vec<(usize, usize)>,
}

#[async_trait]
impl TransactionalStore for MemoryStore {
    type Connection = MemoryConnection;
    type Transaction = MemoryTransaction;

    async fn begin(&self, _isolation: Option<Isolation>) -> Result<MemoryTransaction> {
        let connection = MemoryConnection {
            shared: self.shared.clone(),
            staged: Vec::new(),
            births: HashMap::new(),
            transaction: Uuid::new_v4(),
            received: Vec::new(),
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
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        let mut rows = connection.shared.lock();
        let now = Timestamp::now();
        let mut there = ids(rows.records.iter().chain(&connection.staged));
        let mut appended = Appended::default();
        // What this transaction appended before is earlier too; what this append adds is not.
        let earlier = connection.staged.clone();
        for event in events {
            if !there.insert(event.id) {
                appended.duplicates.push(event.id);
                continue;
            }
            rows.seq += 1;
            appended.ids.push(event.id);
            let record = OutboxRecord::of(event, tenant, rows.seq, now);
            let waits = |earlier: &OutboxRecord| {
                earlier.delivery.status != Status::Sent
                    && earlier.ordering_key() == record.ordering_key()
            };
            let first =
                record.ordering_key().is_none() || !rows.records.iter().chain(&earlier).any(waits);
            let goes = first
                && record.available_at <= now
                && !rows.is_paused(&record.tenant)
                && !rows.pauses_a_destination();
            if let Some(birth) = birth.filter(|_| goes) {
                connection
                    .births
                    .insert(record.id, (birth.owner, now.after(birth.term)));
                appended.leased.push(record.clone());
            }
            connection.staged.push(record);
        }
        Ok(appended)
    }

    async fn receive(
        &self,
        connection: &mut MemoryConnection,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool> {
        let key = Key::Message(consumer.into(), tenant.clone(), message_id.into());
        Ok(connection.insert_once(key, "").await?.is_none())
    }

    async fn begin_command(
        &self,
        connection: &mut MemoryConnection,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        let key = Key::Command(tenant.clone(), key.into());
        connection.insert_once(key, fingerprint).await
    }

    async fn end_command(
        &self,
        connection: &mut MemoryConnection,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()> {
        connection.answer(&Key::Command(tenant.clone(), key.into()), answer);
        Ok(())
    }

    async fn savepoint(
        &self,
        connection: &mut MemoryConnection,
        _depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        match verb {
            Savepoint::Set => {
                let before = (connection.staged.len(), connection.received.len());
                connection.savepoints.push(before);
            }
            Savepoint::Release => drop(connection.savepoints.pop()),
            Savepoint::RollBack => {
                let (staged, received) = connection.savepoints.pop().unwrap_or_default();
                connection.staged.truncate(staged);
                connection.undo_once(received);
            }
        }
        Ok(())
    }

    async fn commit(&self, transaction: MemoryTransaction, _appended: &Appended) -> Result<()> {
        let mut connection = transaction.connection;
        let mut rows = self.rows();
        connection.commit_once(&mut rows);
        let mut births = std::mem::take(&mut connection.births);
        let mut there = ids(&rows.records);
        for record in std::mem::take(&mut connection.staged) {
            rows.births.extend(births.remove_entry(&record.id));
            if there.insert(record.id) {
                let at = rows.records.partition_point(|there| there.seq < record.seq);
                rows.records.insert(at, record);
            }
        }
        drop(rows);
        self.shared.ended.notify_waiters();
        Ok(())
    }

    async fn rollback(&self, _transaction: MemoryTransaction) -> Result<()> {
        Ok(())
    }
}
