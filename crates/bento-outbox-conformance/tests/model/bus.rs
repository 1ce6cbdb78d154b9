//! The bus, and an observer who writes down what arrived.

use super::database::{Database, ROWS, Status};

/// What a message that is sent comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It arrived, and the sender hears it.
    Acked,
    /// It arrived, and the sender never hears it: unknown.
    AckLost,
    /// It did not arrive: refused, or lost and therefore unknown. The sender does the same in both cases.
    NotDelivered,
    /// The sender gave up waiting, unknown, and it may yet arrive at any time.
    Late,
}

/// The three that are faults.
pub(super) const FAULTY: [Answer; 3] = [Answer::AckLost, Answer::NotDelivered, Answer::Late];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bus {
    /// How often each event arrived; two stands for more.
    pub(super) delivered: [u8; ROWS],
    /// Copies under way that nobody waits for.
    pub(super) late: [u8; ROWS],
    /// An event arrived before an earlier one of its key had.
    pub(super) inverted: bool,
}

impl Bus {
    pub(super) fn send(&mut self, seq: usize, answer: Answer, database: &Database) {
        match answer {
            Answer::Acked | Answer::AckLost => self.deliver(seq, database),
            Answer::Late => self.late[seq] += 1,
            Answer::NotDelivered => {}
        }
    }

    pub(super) fn deliver_late(&mut self, seq: usize, database: &Database) {
        self.late[seq] -= 1;
        self.deliver(seq, database);
    }

    /// An event that ended in `ERR` has given its place up; one that was rolled back never had one.
    fn deliver(&mut self, seq: usize, database: &Database) {
        let key = database.rows[seq].key;
        let overtaken =
            (database.rows[..seq].iter().zip(self.delivered)).any(|(row, delivered)| {
                row.key == key && row.is_visible() && row.status != Status::Err && delivered == 0
            });
        self.inverted |= overtaken;
        self.delivered[seq] = (self.delivered[seq] + 1).min(2);
    }
}
