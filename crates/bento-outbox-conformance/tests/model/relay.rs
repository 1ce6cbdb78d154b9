//! A relay: it holds the lease of the partition, or believes that it does.

use super::bus::{Answer, Bus};
use super::database::{Birth, Database, ROWS, Status, Term, Verdict};
use super::rules::{Mistake, Rules};

/// What a relay has in memory. Without a lease, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Relay {
    /// The epoch of the lease it believes to hold; 0 for none.
    pub(super) epoch: u8,
    /// By its own clock 60 % of the term are over, counted from before the last renewal was sent. An awake relay
    /// renews at a third, so this takes a pause.
    pub(super) late: bool,
    /// The rows in its hands, all claimed under this epoch.
    pub(super) hands: [Hand; ROWS],
    /// The answer to a claim that was sent and has not been looked at: claiming overlaps publishing and settling.
    pub(super) answer: [bool; ROWS],
    /// [`Mistake::FenceUnlocked`]: a settlement has read its fence and not yet written.
    pub(super) fence_read: bool,
}

/// Where a row in a relay's hands is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Hand {
    #[default]
    None,
    /// To be published.
    Claimed,
    /// The deadline was looked at and found good; then the process was paused for longer than the term.
    Checked,
    /// The bus has it; to be settled.
    Acked,
    /// Refused or unknown; to be settled.
    Failed,
}

impl Relay {
    pub(super) fn acquire(&mut self, database: &mut Database) {
        self.epoch = database.acquire().unwrap_or_default();
    }

    /// Renews after a pause. A lease that is lost takes everything with it: whatever is in hand was claimed under it.
    pub(super) fn renew(&mut self, database: &mut Database) {
        if database.renew(self.epoch) {
            self.late = false;
        } else {
            *self = Self::default();
        }
    }

    /// Ends the birth leases whose term is over; says whether it did so without the lease.
    pub(super) fn take_over(&self, database: &mut Database, rules: Rules) -> bool {
        let holder = database.is_leased_by(self.epoch);
        database.take_over(self.epoch, rules) && !holder
    }

    /// What a claim sent now would find that is not in hand already.
    pub(super) fn claimable(&self, database: &Database, rules: Rules) -> [bool; ROWS] {
        let mut found = database.claim(rules);
        for (found, hand) in found.iter_mut().zip(self.hands) {
            *found &= hand == Hand::None;
        }
        found
    }

    /// Reads. What was in hand when the claim was sent is not new, even if it is settled before the answer comes.
    pub(super) fn claim(&mut self, database: &mut Database, rules: Rules) {
        self.answer = self.claimable(database, rules);
        if rules.make(Mistake::ForgetsSettled) {
            self.answer = database.claim(rules);
        }
        if let Some(last) = self.answer.iter().rposition(|found| *found) {
            database.lease.cursor = if rules.make(Mistake::Cursor) {
                last + 1
            } else {
                0
            };
        }
        for (row, _) in database
            .rows
            .iter_mut()
            .zip(self.answer)
            .filter(|(_, found)| *found)
        {
            if row.birth == Birth::RunOut {
                row.birth = Birth::Shared; // Mistake::TakeOverKeepsOwner alone reads such a row
            }
        }
    }

    /// Takes the answer of the last claim in hand.
    pub(super) fn take(&mut self) {
        for (hand, found) in self.hands.iter_mut().zip(self.answer) {
            if found && *hand == Hand::None {
                *hand = Hand::Claimed;
            }
        }
        self.answer = [false; ROWS];
    }

    /// Whether a row may be sent now: in time, and the earlier ones of its key in hand are acknowledged. The checker
    /// sends one row at a time, so nothing of its key is under way either.
    pub(super) fn may_publish(&self, seq: usize, database: &Database, rules: Rules) -> bool {
        let in_time = !self.late || rules.make(Mistake::IgnoresDeadline);
        match self.hands[seq] {
            Hand::Checked => true,
            Hand::Claimed => {
                let key = database.rows[seq].key;
                let mut earlier = (0..seq).filter(|earlier| database.rows[*earlier].key == key);
                in_time
                    && !self.hands.contains(&Hand::Checked)
                    && earlier.all(|earlier| match self.hands[earlier] {
                        Hand::None | Hand::Acked => true,
                        Hand::Claimed | Hand::Checked => false,
                        Hand::Failed => rules.make(Mistake::LaterGoesFirst),
                    })
            }
            Hand::None | Hand::Acked | Hand::Failed => false,
        }
    }

    /// Sends, and waits for the answer. Unless it is an acknowledgement, nothing later of the key goes first: a failure
    /// stays in hand, and in the way, until it is settled.
    pub(super) fn publish(
        &mut self,
        seq: usize,
        answer: Answer,
        database: &Database,
        bus: &mut Bus,
        rules: Rules,
    ) {
        bus.send(seq, answer, database);
        let acked = answer == Answer::Acked || rules.make(Mistake::AcceptedIsSent);
        self.hands[seq] = if acked { Hand::Acked } else { Hand::Failed };
    }

    /// Writes what became of every row that has an answer, in one statement; says whether a row was changed without
    /// the lease. If none was for want of it, everything in hand is dropped.
    ///
    /// Once a failure is written, all that is later in its key is let go, to be claimed again: what is in hand, and
    /// what is in the answer to a claim that was sent before the database knew of the failure.
    pub(super) fn settle(&mut self, database: &mut Database, rules: Rules) -> bool {
        let holder = database.is_leased_by(self.epoch);
        let fence = holder || self.fence_read || rules.make(Mistake::RelayUnfenced);
        self.fence_read = false;
        let mut changed = false;
        for seq in 0..ROWS {
            let verdict = match self.hands[seq] {
                Hand::Acked => Verdict::Sent,
                Hand::Failed => Verdict::Failed,
                Hand::None | Hand::Claimed | Hand::Checked => continue,
            };
            changed |= database.settle(seq, verdict, fence);
            self.hands[seq] = Hand::None;
            if verdict == Verdict::Failed && !rules.make(Mistake::LaterGoesFirst) {
                self.let_go_after(seq, database, rules);
            }
        }
        if !holder && !changed {
            *self = Self::default();
        }
        changed && !holder
    }

    fn let_go_after(&mut self, seq: usize, database: &Database, rules: Rules) {
        for later in seq + 1..ROWS {
            if database.rows[later].key == database.rows[seq].key {
                self.hands[later] = Hand::None;
                self.answer[later] &= rules.make(Mistake::ForgetsFailed);
            }
        }
    }

    /// Leaves at a shutdown, once everything sent is settled. What was only claimed is anybody's.
    pub(super) fn release(&mut self, database: &mut Database) {
        database.release(self.epoch);
        *self = Self::default();
    }

    pub(super) fn crash(&mut self) {
        *self = Self::default();
    }

    /// Asleep for longer than the term; if a row is given, after the look at the clock and before it is sent.
    pub(super) fn pause(&mut self, before_sending: Option<usize>, database: &mut Database) {
        self.late = true;
        if let Some(seq) = before_sending {
            self.hands[seq] = Hand::Checked;
        }
        if database.is_leased_by(self.epoch) {
            database.lease.term = Term::RunOut;
        }
    }

    /// Whether an answer waits to be settled.
    pub(super) fn may_settle(&self) -> bool {
        self.hands.contains(&Hand::Acked) || self.hands.contains(&Hand::Failed)
    }

    /// Whether a settlement would be refused, had it to be written now.
    pub(super) fn would_be_refused(&self, database: &Database) -> bool {
        (self.hands.iter().zip(&database.rows)).any(|(hand, row)| {
            matches!(hand, Hand::Acked | Hand::Failed)
                && row.status == Status::New
                && !database.is_leased_by(self.epoch)
        })
    }
}
