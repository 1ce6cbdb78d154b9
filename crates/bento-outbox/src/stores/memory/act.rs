//! What operators change, each change with its act, and what they keep back.

use uuid::Uuid;

use super::Rows;
use crate::act::{Act, Audited};
use crate::error::Result;
use crate::pause::{self, Pausable, Pause};
use crate::record::{Delivery, OutboxRecord, Status};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

impl Rows {
    pub(super) fn retry(&mut self, ids: &[Uuid], by: &str) -> u64 {
        let dead = self
            .records
            .iter_mut()
            .filter(|record| record.delivery.status == Status::Err);
        let mut changed = Vec::new();
        for record in dead.filter(|record| ids.contains(&record.id)) {
            let error_message = record.delivery.error_message.take();
            record.delivery = Delivery {
                error_message,
                ..Delivery::default()
            };
            record.lost_attempts = 0;
            changed.push(record.id);
        }
        self.note_letters(by, "retry", &changed)
    }

    pub(super) fn discard(&mut self, ids: &[Uuid], by: &str) -> u64 {
        let goes = |record: &mut OutboxRecord| {
            record.delivery.status == Status::Err && ids.contains(&record.id)
        };
        let gone: Vec<Uuid> = self
            .records
            .extract_if(.., goes)
            .map(|record| record.id)
            .collect();
        self.note_letters(by, "discard", &gone)
    }

    fn note_letters(&mut self, by: &str, verb: &str, changed: &[Uuid]) -> u64 {
        if !changed.is_empty() {
            self.note(Act::on_events(by, verb, changed));
        }
        changed.len() as u64
    }

    pub(super) fn pause(
        &mut self,
        kind: Pausable,
        mut names: Vec<String>,
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64> {
        names.retain(|name| !self.pauses.contains_key(&(kind, name.clone())));
        pause::check_number(self.pauses.len() + names.len())?;
        let act = Act::new(by, "pause", serde_json::Value::Null, 0, reason);
        for name in &names {
            let pause = Pause {
                kind,
                name: name.clone(),
                since: Timestamp::now(),
                by: act.by.clone(),
                reason: act.note.clone(),
            };
            self.pauses.insert((kind, name.clone()), pause);
        }
        Ok(self.note_names(act, kind, &names))
    }

    pub(super) fn resume(&mut self, kind: Pausable, mut names: Vec<String>, by: &str) -> u64 {
        names.retain(|name| self.pauses.remove(&(kind, name.clone())).is_some());
        self.wake(usize::MAX);
        let act = Act::new(by, "resume", serde_json::Value::Null, 0, None);
        self.note_names(act, kind, &names)
    }

    fn note_names(&mut self, act: Act, kind: Pausable, changed: &[String]) -> u64 {
        if !changed.is_empty() {
            self.note(act.on_names(kind, changed));
        }
        changed.len() as u64
    }

    pub(super) fn wake(&mut self, most: usize) -> u64 {
        let now = Timestamp::now();
        let Self {
            records, pauses, ..
        } = self;
        let asleep = records.iter_mut().filter(|record| {
            record.delivery.status == Status::New
                && record.delivery.retry_at.is_some_and(|at| at > now)
                && record.delivery.error_message.as_ref().is_some_and(|said| {
                    Pause::is_aside(said) && !is_aside_for(said, pauses.values())
                })
        });
        asleep
            .take(most)
            .map(|record| record.delivery.retry_at = None)
            .count() as u64
    }

    pub(super) fn note(&mut self, act: Act) {
        let number = self.acts.len() as i64 + 1;
        self.acts.push(Audited {
            number,
            at: Timestamp::now(),
            act,
        });
    }

    pub(super) fn is_paused(&self, tenant: &Tenant) -> bool {
        !self.pauses.is_empty()
            && self
                .pauses
                .contains_key(&(Pausable::Tenant, tenant.to_string()))
    }

    /// Whether it is known only to relays which events may go out.
    pub(super) fn pauses_a_destination(&self) -> bool {
        let mut kinds = self.pauses.keys().map(|(kind, _)| *kind);
        kinds.any(|kind| kind == Pausable::Destination)
    }

    /// Whether a record waits because its tenant or its destination is paused.
    pub(super) fn waits_for_a_pause(&self, record: &OutboxRecord) -> bool {
        self.is_paused(&record.tenant) || self.is_aside(record)
    }

    /// Whether a record was put aside for a destination that is paused.
    pub(super) fn is_aside(&self, record: &OutboxRecord) -> bool {
        let said = record.delivery.error_message.as_deref();
        said.is_some_and(|said| is_aside_for(said, self.pauses.values()))
    }
}

/// Whether this was written about an event that was put aside for one of these.
fn is_aside_for<'a>(said: &str, mut pauses: impl Iterator<Item = &'a Pause>) -> bool {
    pauses.any(|pause| pause.kind == Pausable::Destination && said == Pause::aside(&pause.name))
}
