//! Rows that are there once, for the inbox and for commands. Who inserts one holds it until its
//! transaction ends; others wait for that, as for a unique row of a database.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use uuid::Uuid;

use super::{MemoryConnection, Rows, Shared};
use crate::error::{Error, ErrorKind, Result};
use crate::store::FirstRun;
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// What there is once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A message, for a consumer.
    Message(String, Tenant, String),
    /// A command, by its key.
    Command(Tenant, String),
}

#[derive(Debug, Default)]
pub(super) struct OnceRows {
    committed: HashMap<Key, Row>,
    /// What open transactions have inserted.
    held: HashMap<Key, Uuid>,
    /// Which transaction waits for which.
    waiting: HashMap<Uuid, Uuid>,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    received_at: Timestamp,
    /// Empty for a message.
    run: FirstRun,
}

impl OnceRows {
    /// Whether the wait of a transaction leads to another one.
    fn leads_to(&self, from: Uuid, to: Uuid) -> bool {
        let mut next = Some(from);
        // Nobody waits for itself, so a chain without `to` in it comes to an end.
        while let Some(transaction) = next {
            if transaction == to {
                return true;
            }
            next = self.waiting.get(&transaction).copied();
        }
        false
    }

    pub(super) fn purge(&mut self, age: Duration, limit: u32, which: fn(&Key) -> bool) -> u64 {
        let now = Timestamp::now();
        let mut left = limit;
        self.committed.retain(|key, row| {
            let goes = left > 0 && which(key) && row.received_at.until(now) > age;
            left -= u32::from(goes);
            !goes
        });
        u64::from(limit - left)
    }
}

impl MemoryConnection {
    /// Inserts a row that is there once, for as long as its transaction lasts; answers the one that
    /// is there already.
    pub(super) async fn insert_once(
        &mut self,
        key: Key,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        if let Some((_, own)) = self.received.iter().find(|(own, _)| *own == key) {
            return Ok(Some(own.run.clone()));
        }
        let shared = self.shared.clone();
        let waiting = Waiting {
            shared: &shared,
            transaction: self.transaction,
        };
        loop {
            let mut ended = pin!(shared.ended.notified());
            // From here on no end is missed.
            ended.as_mut().enable();
            {
                let once = &mut shared.lock().once;
                if let Some(row) = once.committed.get(&key) {
                    return Ok(Some(row.run.clone()));
                }
                match once.held.get(&key).copied() {
                    None => {
                        once.held.insert(key.clone(), self.transaction);
                        let run = FirstRun {
                            fingerprint: fingerprint.into(),
                            answer: Vec::new(),
                        };
                        let received_at = Timestamp::now();
                        self.received.push((key, Row { received_at, run }));
                        break;
                    }
                    Some(holder) if once.leads_to(holder, self.transaction) => {
                        return Err(Error::new(
                            ErrorKind::Conflict,
                            "two units of work wait for each other, this one gave way; trying again may succeed",
                        ));
                    }
                    Some(holder) => once.waiting.insert(self.transaction, holder),
                };
            }
            ended.await;
        }
        drop(waiting);
        Ok(None)
    }

    pub(super) fn answer(&mut self, key: &Key, answer: &[u8]) {
        if let Some((_, row)) = self.received.iter_mut().find(|(own, _)| own == key) {
            row.run.answer = answer.into();
        }
    }

    /// Gives back what was inserted after the first `keep` rows, as if it had never been.
    pub(super) fn undo_once(&mut self, keep: usize) {
        let undone = self.received.split_off(keep.min(self.received.len()));
        if undone.is_empty() {
            return;
        }
        let mut rows = self.shared.lock();
        for (key, _) in &undone {
            rows.once.held.remove(key);
        }
        drop(rows);
        self.shared.ended.notify_waiters();
    }

    /// Makes what was inserted everybody's. Who waits is told afterwards, by
    /// [`Shared::ended`](super::Shared).
    pub(super) fn commit_once(&mut self, rows: &mut Rows) {
        for (key, row) in self.received.drain(..) {
            rows.once.held.remove(&key);
            rows.once.committed.insert(key, row);
        }
    }
}

/// A transaction that is dropped, or rolled back, has inserted nothing.
impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.undo_once(0);
    }
}

/// Who waits, until it does no more, however that ends.
struct Waiting<'a> {
    shared: &'a Shared,
    transaction: Uuid,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().once.waiting.remove(&self.transaction);
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStore;
    use crate::error::{ErrorKind, Result};
    use crate::store::TransactionalStore;
    use crate::tenant::Tenant;

    #[tokio::test]
    async fn of_two_that_wait_for_each_other_one_gives_way() {
        type Open = <MemoryStore as TransactionalStore>::Transaction;
        async fn receive(store: &MemoryStore, open: &mut Open, id: &str) -> Result<bool> {
            let connection = MemoryStore::connection(open);
            let tenant = Tenant::default();
            store.receive(connection, "c", &tenant, id).await
        }
        let store = MemoryStore::default();
        let mut one = store.begin(None).await.unwrap();
        let mut two = store.begin(None).await.unwrap();
        assert!(receive(&store, &mut one, "1").await.unwrap());
        assert!(receive(&store, &mut two, "2").await.unwrap());
        let waiting = {
            let store = store.clone();
            tokio::spawn(async move { receive(&store, &mut one, "2").await })
        };
        tokio::task::yield_now().await;
        let refused = receive(&store, &mut two, "1").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        drop(two);
        assert!(waiting.await.unwrap().unwrap(), "the other one was undone");
    }
}
