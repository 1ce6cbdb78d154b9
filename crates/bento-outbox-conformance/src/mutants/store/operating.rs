//! The operator's verbs.

use std::collections::BTreeMap;
use std::time::Duration;

use bento_outbox::{
    Delivery, HeldKey, OutboxRecord, Pausable, Status, Tenant, TenantBacklog, TenantStatus,
    Timestamp,
};
use uuid::Uuid;

use super::Fault::*;
use super::{Key, MutantStore, key};

impl MutantStore {
    pub(super) fn found(&self, ids: &[Uuid]) -> Vec<OutboxRecord> {
        let mut found: Vec<OutboxRecord> = self
            .state()
            .rows
            .iter()
            .map(|row| &row.record)
            .filter(|record| {
                let hidden = record.delivery.status == Status::Sent && self.has(FindsOnlyUnsent);
                ids.contains(&record.id) && !hidden
            })
            .cloned()
            .collect();
        if self.has(ReversesFinds) {
            found.reverse();
        }
        found
    }

    pub(super) fn counted(&self) -> Vec<TenantStatus> {
        let now = Timestamp::now();
        let mut tenants: BTreeMap<String, TenantStatus> = BTreeMap::new();
        let state = self.state();
        for row in &state.rows {
            let record = &row.record;
            let is_aside = state.is_aside(record) && !self.has(CountsThePausedAsRetrying);
            let tenant = tenants.entry(record.tenant.to_string()).or_default();
            let Delivery {
                status,
                retry_at,
                sent_at,
                ..
            } = record.delivery;
            match status {
                Status::New if is_aside => {
                    tenant.new += 1;
                    tenant.paused_events += 1;
                }
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
        let named = |(tenant_id, status)| TenantStatus {
            tenant_id,
            ..status
        };
        let mut tenants: Vec<TenantStatus> = tenants.into_iter().map(named).collect();
        for pause in state.pauses.values() {
            let is_there = tenants.iter().any(|it| it.tenant_id == pause.name);
            if pause.kind != Pausable::Tenant || self.has(StatusHidesPauses) {
                continue;
            }
            if !is_there && !self.has(StatusHidesThePausedWithoutEvents) {
                tenants.push(TenantStatus {
                    tenant_id: pause.name.clone(),
                    ..TenantStatus::default()
                });
            }
            let paused = tenants.iter_mut().find(|it| it.tenant_id == pause.name);
            if let Some(tenant) = paused {
                tenant.paused = true;
            }
        }
        tenants.sort_by(|one, other| one.tenant_id.cmp(&other.tenant_id));
        if self.has(ReversesTenants) {
            tenants.reverse();
        }
        if self.has(HidesIdleTenants) {
            tenants.retain(|tenant| tenant.oldest_new_seconds.is_some());
        }
        tenants
    }

    pub(super) fn what_waits(&self) -> Vec<TenantBacklog> {
        let now = Timestamp::now();
        let mut tenants: BTreeMap<String, TenantBacklog> = BTreeMap::new();
        let state = self.state();
        let mut held = Vec::new();
        for row in &state.rows {
            let record = &row.record;
            let status = record.delivery.status;
            if status == Status::Sent && !self.has(BacklogCountsTheSent) {
                continue;
            }
            let name = record.tenant.to_string();
            let tenant = tenants.entry(name.clone()).or_default();
            tenant.tenant_id = name;
            if status == Status::Err {
                tenant.dead += u64::from(!self.has(BacklogForgetsTheDead));
                continue;
            }
            tenant.pending += 1;
            let key = record.ordering_key();
            let is_behind = key.is_some_and(|key| held.contains(&key));
            let is_paused = state.is_paused(&record.tenant) || state.is_aside(record);
            if is_paused {
                held.extend(key);
            }
            if is_paused && !self.has(BacklogAgesThePaused)
                || is_behind && !self.has(BacklogAgesWhatThePausedHold)
            {
                continue;
            }
            if record.available_at <= now || self.has(BacklogAgesTheDelayed) {
                let since = match self.fault {
                    Some(BacklogAgesTheDelayed) => record.created_at,
                    _ => record.created_at.max(record.available_at),
                };
                let age = since.until(now).as_secs_f64();
                tenant.oldest_due_seconds = Some(tenant.oldest_due_seconds.unwrap_or(0.0).max(age));
            }
        }
        tenants.into_values().collect()
    }

    pub(super) fn waiting_keys(&self, limit: u32) -> Vec<HeldKey> {
        let now = Timestamp::now();
        let state = self.state();
        let mut told = Vec::new();
        for (at, row) in state.rows.iter().enumerate() {
            let record = &row.record;
            let retry_at = record.delivery.retry_at;
            let (because, until, hidden) = match record.delivery.status {
                Status::Err => ("dead", None, self.has(HidesDeadKeys)),
                Status::New if retry_at.is_some_and(|until| until > now) => {
                    ("retrying", retry_at, self.has(HidesRetryingKeys))
                }
                Status::New if record.available_at > now => (
                    "delayed",
                    Some(record.available_at),
                    self.has(HidesDelayedKeys),
                ),
                Status::New if self.has(TellsOfWhatGoesOn) => ("delayed", None, false),
                _ => continue,
            };
            let Some((tenant, aggregate)) = self.held_key(record).filter(|_| !hidden) else {
                continue;
            };
            let is_aside = state.is_aside(record);
            let paused = (state.is_paused(&record.tenant) && !self.has(HeldKeysHidePausedTenants))
                || (is_aside && !self.has(HeldKeysHidePausedDestinations));
            let (because, until) = match because {
                "dead" if !self.has(HeldKeysCallTheDeadPaused) => (because, until),
                _ if paused => ("paused", None),
                _ => (because, until),
            };
            let behind = state.rows[at + 1..].iter().filter(|later| {
                let status = later.record.delivery.status;
                let waits = match status {
                    Status::New => true,
                    Status::Sent => self.has(CountsTheSentAsWaiting),
                    Status::Err => self.has(CountsTheDeadAsWaiting),
                };
                waits
                    && self
                        .held_key(&later.record)
                        .is_some_and(|(t, a)| (t, a) == (tenant.clone(), aggregate.clone()))
            });
            let waiting = behind.count() as u64;
            if waiting == 0 && !self.has(TellsOfWhatHoldsNothing) {
                continue;
            }
            if told.len() >= limit as usize && !self.has(TellsAllHeldKeys) {
                continue;
            }
            told.push(HeldKey {
                tenant_id: record.tenant.to_string(),
                aggregate_type: aggregate.kind.filter(|_| !self.has(HidesTheKindOfHeldKeys)),
                aggregate_id: aggregate.id.unwrap_or_default(),
                id: record.id,
                because: match self.fault {
                    Some(CallsEverythingDelayed) => "delayed".into(),
                    _ => because.into(),
                },
                until: until.filter(|_| !self.has(HidesUntilWhen)),
                waiting: waiting + u64::from(self.has(CountsTheHolderAsWaiting)),
            });
        }
        told
    }

    fn held_key(&self, record: &OutboxRecord) -> Option<Key> {
        let (tenant, aggregate) = key(record)?;
        match self.fault {
            Some(HeldKeysWithoutTenant) => Some((Tenant::default(), aggregate)),
            _ => Some((tenant, aggregate)),
        }
    }

    pub(super) fn retried(&self, ids: &[Uuid]) -> Vec<Uuid> {
        let mut changed = Vec::new();
        for row in &mut self.state().rows {
            let record = &mut row.record;
            let may = match record.delivery.status {
                Status::Err => true,
                Status::Sent => self.has(RetriesTheSent),
                Status::New => self.has(RetriesTheWaiting) && record.delivery.retry_at.is_some(),
            };
            if !may || !(ids.contains(&record.id) || self.has(RetriesAll)) {
                continue;
            }
            changed.push(record.id);
            let Delivery {
                retry_cnt,
                error_message,
                ..
            } = record.delivery.clone();
            record.delivery = Delivery {
                retry_cnt: if self.has(RetriesKeepTheCount) {
                    retry_cnt
                } else {
                    0
                },
                error_message,
                ..Delivery::default()
            };
            match self.fault {
                Some(RetriesUnderANewId) => record.id = Uuid::now_v7(),
                Some(RetriesNothing) => record.delivery.status = Status::Err,
                Some(RetriesLater) => {
                    let later = Timestamp::now().after(Duration::from_secs(60));
                    record.delivery.retry_at = Some(later);
                }
                _ => {}
            }
        }
        changed
    }

    pub(super) fn discarded(&self, ids: &[Uuid]) -> Vec<Uuid> {
        let rows = &mut self.state().rows;
        let mut gone = Vec::new();
        rows.retain(|row| {
            let goes = match row.record.delivery.status {
                Status::Err => !self.has(DiscardsNothing),
                Status::New => self.has(DiscardsTheNew),
                Status::Sent => self.has(DiscardsTheSent),
            };
            let goes = goes && (ids.contains(&row.record.id) || self.has(DiscardsAll));
            gone.extend(goes.then_some(row.record.id));
            !goes
        });
        gone
    }

    pub(super) fn purged(&self, age: Duration, limit: u32) -> u64 {
        let now = Timestamp::now();
        let limit = if self.has(PurgesWithoutLimit) {
            u32::MAX
        } else {
            limit
        };
        let mut left = limit;
        self.state().rows.retain(|row| {
            let Delivery {
                status, sent_at, ..
            } = row.record.delivery;
            let kind = match status {
                Status::Sent => !self.has(PurgesNothing),
                Status::New => self.has(PurgesTheNew),
                Status::Err => self.has(PurgesTheDead),
            };
            let since = match self.fault {
                Some(PurgesByCreation) => row.record.created_at,
                _ => sent_at.unwrap_or(row.record.created_at),
            };
            let old = since.until(now) > age || self.has(PurgesAtAnyAge);
            let goes = kind && old && left > 0;
            left -= u32::from(goes);
            !goes
        });
        u64::from(limit - left)
    }
}
