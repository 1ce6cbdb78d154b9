//! Records that nobody will publish any more before a person has looked.

use crate::record::{OutboxRecord, Status};

/// Is told of records that became dead letters.
pub trait DeadLetterObserver: Send + Sync {
    /// Told after the database was written and never before; of each once, but not at all if the
    /// process ends in between, and twice if a lease is lost there. Must not block: the relay waits
    /// for it.
    fn died(&self, letters: &[DeadLetter]);
}

/// A record that became a dead letter just now.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The record as it stands now: its status is `ERR`, and its attempts are counted.
    pub record: OutboxRecord,
    /// Why, without payload and secrets.
    pub reason: String,
}

impl DeadLetter {
    /// What becomes of `record`, as it was claimed, when it dies for `reason`. Whether that last
    /// failure counts as an attempt is said by `counts`.
    pub fn of(mut record: OutboxRecord, counts: bool, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let delivery = &mut record.delivery;
        delivery.status = Status::Err;
        delivery.retry_cnt += u32::from(counts);
        delivery.retry_at = None;
        delivery.error_message = Some(reason.clone());
        Self { record, reason }
    }
}
