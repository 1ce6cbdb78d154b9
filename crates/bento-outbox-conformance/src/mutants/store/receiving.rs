//! What was received and run.

use std::collections::HashMap;
use std::time::Duration;

use bento_outbox::{FirstRun, Tenant, Timestamp};

use super::Fault::*;
use super::{MutantStore, MutantTransaction, State};

/// What there is once: a message of a consumer and a tenant, or a command of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    is_command: bool,
    consumer: String,
    tenant: Tenant,
    name: String,
}

#[derive(Clone)]
pub(super) struct Once {
    received_at: Timestamp,
    run: FirstRun,
}

/// What is committed, and what open transactions hold.
#[derive(Default)]
pub(super) struct AllOnce {
    pub(super) committed: HashMap<Key, Once>,
    pub(super) held: HashMap<Key, u64>,
}

impl MutantStore {
    pub(super) fn message(&self, consumer: &str, tenant: &Tenant, id: &str) -> Key {
        Key {
            is_command: false,
            consumer: match self.fault {
                Some(ReceivesForAllConsumers) => String::new(),
                _ => self.name(consumer),
            },
            tenant: match self.fault {
                Some(ReceivesForAllTenants) => Tenant::default(),
                _ => tenant.clone(),
            },
            name: self.name(id),
        }
    }

    pub(super) fn command(&self, tenant: &Tenant, key: &str) -> Key {
        Key {
            is_command: true,
            consumer: String::new(),
            tenant: match self.fault {
                Some(CommandsOfAllTenants) => Tenant::default(),
                _ => tenant.clone(),
            },
            name: self.name(key),
        }
    }

    fn name(&self, name: &str) -> String {
        match self.fault {
            Some(FoldsCase) => name.to_lowercase(),
            Some(CutsNames) => name.chars().take(254).collect(),
            Some(ComparesNamesAsNumbers) => match name.parse::<f64>() {
                Ok(number) => number.to_string(),
                Err(_) => name.into(),
            },
            _ => name.into(),
        }
    }

    /// Inserts a row that is there once; answers the one that is there already.
    pub(super) async fn inserted(
        &self,
        connection: &mut MutantTransaction,
        key: Key,
        fingerprint: &str,
    ) -> Option<FirstRun> {
        let received_at = Timestamp::now();
        let run = FirstRun {
            fingerprint: fingerprint.into(),
            answer: b"null".into(),
        };
        let once = Once { received_at, run };
        let forgets = match key.is_command {
            true => self.has(RunsEachTime),
            false => self.has(ReceivesEachTime),
        };
        if forgets {
            return None;
        }
        let own = connection.received.iter().find(|(own, _)| *own == key);
        if let Some((_, own)) = own.filter(|_| !self.has(ReceivesTwiceInOneUnit)) {
            return Some(own.run.clone());
        }
        loop {
            let ended = self.shared.ended.notified();
            {
                let state = &mut *self.state();
                if let Some(first) = state.once.committed.get(&key) {
                    return Some(self.told(&first.run, fingerprint));
                }
                let holder = state.once.held.get(&key).copied();
                let holder = holder.filter(|holder| *holder != connection.number());
                match (holder, self.fault) {
                    (Some(_), Some(WaitsForNobody)) | (None, _) => {
                        state.once.held.insert(key.clone(), connection.number());
                        if self.has(ReceivesAtOnce) {
                            state.once.committed.insert(key.clone(), once.clone());
                        }
                        connection.received.push((key, once));
                        return None;
                    }
                    (Some(_), Some(SecondAtOnce)) => return Some(once.run),
                    _ => {}
                }
            }
            ended.await;
        }
    }

    fn told(&self, first: &FirstRun, fingerprint: &str) -> FirstRun {
        let mut told = first.clone();
        match self.fault {
            Some(ForgetsFingerprints) => told.fingerprint = fingerprint.into(),
            Some(ComparesFingerprintsBriefly) if fingerprint.starts_with(&told.fingerprint) => {
                told.fingerprint = fingerprint.into();
            }
            _ => {}
        }
        told
    }

    pub(super) fn answered(&self, connection: &mut MutantTransaction, key: &Key, answer: &[u8]) {
        let answer = match self.fault {
            Some(ForgetsAnswers) => b"null".into(),
            Some(ReformatsAnswers) => match serde_json::from_slice::<serde_json::Value>(answer) {
                Ok(value) => value.to_string().into_bytes(),
                Err(_) => answer.into(),
            },
            Some(CutsAnswers) => answer.iter().copied().take(65_535).collect(),
            _ => answer.into(),
        };
        if let Some((_, once)) = connection.received.iter_mut().find(|(own, _)| own == key) {
            once.run.answer = answer;
        }
    }

    pub(super) fn forgotten(&self, commands: bool, age: Duration, limit: u32) -> u64 {
        let now = Timestamp::now();
        let (nothing, at_any_age) = match commands {
            false => (ForgetsNoMessages, ForgetsNewMessages),
            true => (ForgetsNoCommands, ForgetsNewCommands),
        };
        let limit = match self.has(ForgetsAllAtOnce) {
            true => u32::MAX,
            false => limit,
        };
        let mut left = limit;
        self.state().once.committed.retain(|key, once| {
            let meant = key.is_command == commands || self.has(ForgetsBoth);
            let old = once.received_at.until(now) > age || self.has(at_any_age);
            let goes = meant && old && left > 0 && !self.has(nothing);
            left -= u32::from(goes);
            !goes
        });
        u64::from(limit - left)
    }
}

impl MutantTransaction {
    /// Gives back what it inserted after the first `keep` rows.
    pub(super) fn undo_received(&mut self, keep: usize) {
        let undone = self.received.split_off(keep.min(self.received.len()));
        let store = self.store();
        for (key, _) in &undone {
            store.state().once.held.remove(key);
        }
        store.shared.ended.notify_waiters();
    }
}

impl State {
    /// Makes what a transaction inserted everybody's.
    pub(super) fn add_received(&mut self, received: Vec<(Key, Once)>) {
        for (key, once) in received {
            self.once.held.remove(&key);
            self.once.committed.insert(key, once);
        }
    }
}
