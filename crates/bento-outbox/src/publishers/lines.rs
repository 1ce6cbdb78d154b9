//! A batch as lines of text, for a bus that is a stream of bytes.

use crate::cloud_event::CloudEvents;
use crate::record::{OutboxRecord, Outcome, Rejection};

/// One structured CloudEvent a line for each record of a batch that can have one.
pub(super) struct Lines {
    pub(super) text: Vec<u8>,
    pub(super) answers: Answers,
}

/// The records of a batch that cannot have a line, each in its place.
pub(super) struct Answers(Vec<Option<Rejection>>);

impl Lines {
    pub(super) fn of(batch: &[OutboxRecord], events: &CloudEvents) -> Self {
        let mut text = Vec::new();
        let refused = batch
            .iter()
            .map(|record| events.append_line(record, &mut text).err())
            .collect();
        Self {
            text,
            answers: Answers(refused),
        }
    }
}

impl Answers {
    /// `outcome` for every record that has a line, its own rejection for each other one.
    pub(super) fn with(self, outcome: &Outcome) -> Vec<Outcome> {
        self.0
            .into_iter()
            .map(|refused| refused.map_or_else(|| outcome.clone(), Into::into))
            .collect()
    }
}
