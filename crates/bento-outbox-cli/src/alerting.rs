//! A store that tells people of the dead letters which are written to it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::{
    AlertSettings, Claim, Claimed, DeadLetterAlert, Fence, Filter, HeldKey, Inspection, Lease,
    OutboxRecord, Publisher, Relay, Result, Settle, Status, Store, TenantStatus, Verdict,
};
use uuid::Uuid;

/// The store, and who is told.
pub(crate) struct Alerting {
    store: Arc<dyn Store>,
    alert: DeadLetterAlert,
}

impl Alerting {
    /// Tells `webhook` of what dies in `store`.
    pub(crate) fn new(store: Arc<dyn Store>, webhook: Arc<dyn Publisher>) -> Self {
        Self {
            store,
            alert: DeadLetterAlert::start(webhook, AlertSettings::default()),
        }
    }

    /// Tells what was not told yet, within `patience`.
    pub(crate) async fn flush(&self, patience: Duration) {
        self.alert.flush(patience).await;
    }

    /// The table says which of them really are dead letters: not those whose lease was lost.
    async fn tell(&self, ids: &[Uuid]) -> Result<()> {
        for record in self.store.find(ids).await? {
            if record.delivery.status == Status::Err {
                let reason = record.delivery.error_message.as_deref().unwrap_or_default();
                self.alert
                    .tell(&record.tenant, &record.event_type, record.id, reason);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Alerting {
    async fn settle(&self, settle: &Settle<'_>) -> Result<u64> {
        let changed = self.store.settle(settle).await?;
        let dead = settle.settlements.iter();
        let dead = dead.filter(|settlement| matches!(settlement.verdict, Verdict::Dead { .. }));
        let ids: Vec<Uuid> = dead.map(|settlement| settlement.id).collect();
        if !ids.is_empty()
            && let Err(error) = self.tell(&ids).await
        {
            tracing::warn!(
                error = error.report(),
                "nobody is told of some new dead letters"
            );
        }
        Ok(changed)
    }

    async fn migrate(&self) -> Result<Vec<i64>> {
        self.store.migrate().await
    }

    fn migrations(&self) -> String {
        self.store.migrations()
    }

    async fn check(&self) -> Result<()> {
        self.store.check().await
    }

    async fn lease(&self, relay: &Relay, term: Duration) -> Result<Vec<Lease>> {
        self.store.lease(relay, term).await
    }

    async fn release(&self, relay: &Relay) -> Result<()> {
        self.store.release(relay).await
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed> {
        self.store.claim(claim).await
    }

    async fn attempt(&self, fence: &Fence<'_>, id: Uuid) -> Result<Option<u32>> {
        self.store.attempt(fence, id).await
    }

    async fn hint(&self) {
        self.store.hint().await;
    }

    fn give_hint(&self) {
        self.store.give_hint();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        self.store.find(ids).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.store.inspect().await
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        self.store.status().await
    }

    async fn held_keys(&self, limit: u32) -> Result<Vec<HeldKey>> {
        self.store.held_keys(limit).await
    }

    async fn dead_letters(
        &self,
        filter: &Filter,
        after: i64,
        limit: u32,
    ) -> Result<Vec<OutboxRecord>> {
        self.store.dead_letters(filter, after, limit).await
    }

    async fn retry(&self, ids: &[Uuid]) -> Result<u64> {
        self.store.retry(ids).await
    }

    async fn discard(&self, ids: &[Uuid]) -> Result<u64> {
        self.store.discard(ids).await
    }

    async fn purge(&self, age: Duration, limit: u32) -> Result<u64> {
        self.store.purge(age, limit).await
    }
}
