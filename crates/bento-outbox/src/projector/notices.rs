//! Log lines of which there could be one for each event: a few are written, and speak for the rest.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::dead_letter::DeadLetter;
use crate::record::{OutboxRecord, Rejection};
use crate::sparing::Sparing;

/// Reasons that are remembered as said.
const REASONS_MAX: usize = 32;

/// What a projector says now and then.
#[derive(Default)]
pub(super) struct Notices {
    /// Settlements that changed nothing.
    pub(super) fenced: Sparing,
    /// Leases that were as good as over when they came.
    pub(super) late: Sparing,
    dead: Sparing,
    /// The last of those, as the next line shows it.
    last: Mutex<Option<DeadLetter>>,
    /// Why events could not go out, as it was said, with the destination.
    blocked: Mutex<BTreeSet<(Option<String>, String)>>,
    /// Events that could not go out for further reasons.
    more_blocked: Sparing,
}

impl Notices {
    /// Says that these died, now or with those that follow.
    pub(super) fn died(&self, letters: &[DeadLetter]) {
        let Some(letter) = letters.last() else { return };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(letter.clone());
        let count = self.dead.speak(letters.len() as u64);
        self.say_of_the_dead(count);
    }

    /// Says what waited for its turn, if that has come.
    pub(super) fn say_what_is_due(&self) {
        let count = self.dead.speak(0);
        self.say_of_the_dead(count);
    }

    /// Says what waits for its turn.
    pub(super) fn say_what_is_left(&self) {
        let count = self.dead.left();
        self.say_of_the_dead(count);
    }

    fn say_of_the_dead(&self, count: Option<u64>) {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(count), Some(DeadLetter { record, reason, .. })) = (count, last.as_ref()) else {
            return;
        };
        let (tenant, r#type) = (record.tenant.as_str(), record.event_type.as_str());
        match count {
            1 => tracing::info!(event = %record.id, tenant, r#type, reason, "dead letter"),
            _ => tracing::info!(
                letters = count,
                event = %record.id,
                tenant,
                r#type,
                reason,
                "dead letters, the last of which is shown"
            ),
        }
    }

    /// Says once for each destination what keeps events like this one from going out until somebody
    /// changes something.
    pub(super) fn blocked(
        &self,
        record: &OutboxRecord,
        destination: Option<&str>,
        rejection: &Rejection,
    ) {
        let reason = rejection.reason.as_str();
        let (tenant, r#type) = (record.tenant.as_str(), record.event_type.as_str());
        let key = (destination.map(Into::into), reason.into());
        let mut said = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        if said.contains(&key) {
            return;
        }
        if said.len() < REASONS_MAX {
            said.insert(key);
            tracing::warn!(
                destination,
                tenant,
                r#type,
                reason,
                "some events cannot go out; they are kept and tried again"
            );
        } else if let Some(attempts) = self.more_blocked.speak(1) {
            tracing::warn!(
                attempts,
                destination,
                tenant,
                r#type,
                reason,
                "some events cannot go out for further reasons, the last of which is shown"
            );
        }
    }
}
