//! What operators change, with its acts, and what they keep back.

use std::time::Duration;

use bento_outbox::{
    Act, Audited, OutboxRecord, Pausable, Pause, Result, Status, Tenant, Timestamp,
};
use uuid::Uuid;

use super::Fault::*;
use super::{MutantStore, State};

/// How long an act that comes late is late.
const LATE: Duration = Duration::from_millis(30);

impl MutantStore {
    /// The act of a change that is made already.
    async fn note(&self, act: Act) {
        if self.has(AuditsLater) {
            tokio::time::sleep(LATE).await;
        }
        if act.changed == 0 && !self.has(AuditsWhatChangedNothing) {
            return;
        }
        if !self.has(AuditsNoChanges) {
            self.noted(act);
        }
    }

    pub(super) async fn note_letters(
        &self,
        by: &str,
        verb: &str,
        asked: &[Uuid],
        changed: Vec<Uuid>,
    ) -> Result<u64> {
        let named = if self.has(AuditsWhatWasAsked) {
            asked
        } else {
            &changed[..]
        };
        self.note(Act::on_events(by, verb, named)).await;
        Ok(match self.fault {
            Some(SaysAllWereRetried) if verb == "retry" => asked.len() as u64,
            _ => changed.len() as u64,
        })
    }

    pub(super) fn noted(&self, mut act: Act) {
        match self.fault {
            Some(ForgetsWhoActed) => act.by = "somebody".into(),
            Some(ForgetsNotes) => act.note = None,
            Some(ForgetsWhatWasChanged) => act.what = serde_json::json!({}),
            Some(LosesHandedActs) if act.verb == "replay" => return,
            _ => {}
        }
        let mut state = self.state();
        let number = state.acts.len() as i64 + 1;
        state.acts.push(Audited {
            number,
            at: Timestamp::now(),
            act,
        });
    }

    pub(super) fn acts_told(&self, before: Option<i64>, limit: u32) -> Vec<Audited> {
        let before = before.filter(|_| !self.has(ActsFromTheNewest));
        let mut acts: Vec<Audited> = self.state().acts.clone();
        if !self.has(ActsOldestFirst) {
            acts.reverse();
        }
        acts.retain(|kept| before.is_none_or(|before| kept.number < before));
        if !self.has(ActsWithoutLimit) {
            acts.truncate(limit as usize);
        }
        acts
    }

    pub(super) async fn paused(
        &self,
        kind: Pausable,
        names: &[String],
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64> {
        let asked = match self.fault {
            Some(PausesAnyName) => names.to_vec(),
            _ => kind.names(names)?,
        };
        let mut new = Vec::new();
        {
            let mut state = self.state();
            for name in &asked {
                let key = (kind, name.clone());
                let is_new = !state.pauses.contains_key(&key);
                if is_new {
                    new.push(name.clone());
                }
                if is_new || self.has(PausesAgain) {
                    let pause = Pause {
                        kind,
                        name: name.clone(),
                        since: Timestamp::now(),
                        by: by.into(),
                        reason: reason
                            .filter(|_| !self.has(ForgetsWhyItIsPaused))
                            .map(Into::into),
                    };
                    state.pauses.insert(key, pause);
                }
            }
        }
        let act = Act::new(by, "pause", serde_json::Value::Null, 0, reason);
        self.note(act.on_names(kind, &new)).await;
        Ok(match self.fault {
            Some(SaysAllWerePaused) => asked.len() as u64,
            _ => new.len() as u64,
        })
    }

    pub(super) async fn resumed(&self, kind: Pausable, names: &[String], by: &str) -> Result<u64> {
        let names = kind.names(names)?;
        let mut gone = Vec::new();
        {
            let mut state = self.state();
            for name in &names {
                if state.pauses.contains_key(&(kind, name.clone())) {
                    gone.push(name.clone());
                }
            }
            let has = |fault| self.has(fault);
            state.pauses.retain(|(of, name), _| {
                let this = gone.contains(name) && (*of == kind || has(ResumesEveryKind));
                let all = has(ResumesEverything) && !gone.is_empty();
                has(ResumesNothing) || !(this || all)
            });
        }
        if !self.has(ResumesLeaveAsleep) {
            self.woken(usize::MAX);
        }
        let act = Act::new(by, "resume", serde_json::Value::Null, 0, None);
        self.note(act.on_names(kind, &gone)).await;
        Ok(gone.len() as u64)
    }

    pub(super) fn what_is_paused(&self) -> Vec<Pause> {
        let mut pauses: Vec<Pause> = self.state().pauses.values().cloned().collect();
        match self.fault {
            Some(HidesPauses) => pauses.clear(),
            Some(ReversesPauses) => pauses.reverse(),
            _ => {}
        }
        pauses
    }

    pub(super) fn woken(&self, limit: usize) -> u64 {
        let now = Timestamp::now();
        let State { rows, pauses, .. } = &mut *self.state();
        let limit = if self.has(WakesWithoutLimit) {
            usize::MAX
        } else {
            limit
        };
        let mut woken = 0;
        for row in rows {
            let delivery = &mut row.record.delivery;
            let sleeps =
                delivery.status == Status::New && delivery.retry_at.is_some_and(|at| at > now);
            let Some(said) = delivery.error_message.clone().filter(|_| sleeps) else {
                continue;
            };
            let aside = said.starts_with("its destination ") && said.ends_with(" is paused");
            let is_paused = pauses.values().any(|pause| {
                pause.kind == Pausable::Destination && said == Pause::aside(&pause.name)
            });
            let wakes = (aside || self.has(WakesWhatFailed))
                && (!is_paused || self.has(WakesThePaused))
                && !self.has(WakesNothing);
            if wakes && woken < limit {
                delivery.retry_at = None;
                woken += 1;
            }
        }
        woken as u64
    }
}

impl State {
    pub(super) fn is_paused(&self, tenant: &Tenant) -> bool {
        let key = (Pausable::Tenant, tenant.to_string());
        self.pauses.contains_key(&key)
    }

    pub(super) fn is_aside(&self, record: &OutboxRecord) -> bool {
        let said = record.delivery.error_message.as_deref();
        self.pauses.values().any(|pause| {
            pause.kind == Pausable::Destination && said == Some(Pause::aside(&pause.name).as_str())
        })
    }

    pub(super) fn pauses_a_destination(&self) -> bool {
        let mut kinds = self.pauses.keys().map(|(kind, _)| *kind);
        kinds.any(|kind| kind == Pausable::Destination)
    }
}
