//! A writing service: its transactions one after the other, and beside them the immediate path with one slot.

use super::bus::{Answer, Bus};
use super::database::{Birth, Database, Transaction};
use super::rules::{Mistake, Rules};

/// What a writer has in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Writer {
    /// How many of its transactions it has begun.
    pub(super) begun: usize,
    pub(super) work: Work,
    /// The queue of the immediate path, one place long. It is taken before the commit.
    pub(super) slot: Option<Slot>,
}

/// The transaction a writer is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Work {
    #[default]
    None,
    /// [`Mistake::OldSnapshot`]: the snapshot is taken, and says whether nothing of the key was unsent then.
    Begun { first: bool },
    /// The row is appended.
    Open { seq: usize },
    /// Commit was sent, and no answer came.
    Unknown { seq: usize },
}

/// A row on the immediate path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    pub(super) seq: usize,
    pub(super) stage: Stage,
    /// By the writer's own clock 60 % of the term are over, counted from *before the append was sent*.
    pub(super) late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    /// The transaction has not committed, as far as the writer knows.
    Reserved,
    /// To be published.
    Ready,
    /// Tried, without an acknowledgement.
    Tried,
    /// The deadline was looked at and found good; then the process was paused for longer than the term.
    Checked,
    /// The bus has it.
    Acked,
}

impl Writer {
    /// Inserts a row in a transaction. It is born leased if the slot is free and nothing of its key is unsent: were
    /// it published now, it would overtake what is.
    pub(super) fn append(&mut self, key: u8, at_once: bool, database: &mut Database, rules: Rules) {
        let first = match self.work {
            Work::Begun { first } => first,
            _ => database.nothing_unsent(key) || rules.make(Mistake::OvertakesUnsent),
        };
        let leased = at_once && self.slot.is_none() && first;
        let seq = database.append(key, leased && !rules.make(Mistake::NoBirthLease));
        if leased {
            self.slot = Some(Slot {
                seq,
                stage: Stage::Reserved,
                late: false,
            });
        }
        self.begun += 1;
        self.work = Work::Open { seq };
    }

    pub(super) fn commit(&mut self, seq: usize, database: &mut Database) {
        database.end(seq, Transaction::Committed);
        self.go_on(seq);
    }

    pub(super) fn roll_back(&mut self, seq: usize, database: &mut Database) {
        database.end(seq, Transaction::RolledBack);
        self.give_up(seq);
    }

    /// The commit was sent, and the connection broke. Without a place in the slot there is nothing to find out.
    pub(super) fn lose_commit_answer(&mut self, seq: usize, database: &mut Database) {
        database.end(seq, Transaction::InDoubt);
        self.work = if self.holds(seq) {
            Work::Unknown { seq }
        } else {
            Work::None
        };
    }

    /// An unknown commit is resolved by looking for the row. Not there means *not yet* as well; then the relay has
    /// it, if it ever comes.
    pub(super) fn look(&mut self, seq: usize, database: &Database, rules: Rules) {
        if database.rows[seq].is_visible() || rules.make(Mistake::UnknownIsCommitted) {
            self.go_on(seq);
        } else {
            self.give_up(seq);
        }
    }

    /// Whether the row in the slot may be sent now: only in time, by the writer's own clock.
    pub(super) fn may_publish(&self, rules: Rules) -> Option<Slot> {
        let in_time = |slot: &Slot| !slot.late || rules.make(Mistake::IgnoresDeadline);
        self.slot.filter(|slot| match slot.stage {
            Stage::Ready | Stage::Tried => in_time(slot),
            Stage::Checked => true,
            Stage::Reserved | Stage::Acked => false,
        })
    }

    pub(super) fn publish(&mut self, answer: Answer, database: &Database, bus: &mut Bus) {
        if let Some(slot) = &mut self.slot {
            bus.send(slot.seq, answer, database);
            slot.stage = if answer == Answer::Acked {
                Stage::Acked
            } else {
                Stage::Tried
            };
        }
    }

    /// Writes `SENT` and says whether that was a row which somebody else had taken.
    pub(super) fn settle(&mut self, seq: usize, database: &mut Database, rules: Rules) -> bool {
        let mine = matches!(database.rows[seq].birth, Birth::Held | Birth::RunOut);
        self.slot = None;
        database.settle_at_once(seq, rules) && !mine && !rules.make(Mistake::NoBirthLease)
    }

    /// Whether the slot's row is better left to the relay: it was tried, or there is no time left to try.
    pub(super) fn may_hand_over(&self, rules: Rules) -> Option<Slot> {
        self.slot.filter(|slot| match slot.stage {
            Stage::Tried => true,
            Stage::Ready => slot.late && !rules.make(Mistake::IgnoresDeadline),
            Stage::Reserved | Stage::Checked | Stage::Acked => false,
        })
    }

    /// Gives the row to the relay and says whether that was a row which somebody else had taken.
    pub(super) fn hand_over(&mut self, seq: usize, database: &mut Database) -> bool {
        let mine = matches!(database.rows[seq].birth, Birth::Held | Birth::RunOut);
        self.slot = None;
        database.hand_over(seq) && !mine
    }

    /// The process dies, and is started again with another name. What it was doing may still commit.
    pub(super) fn crash(&mut self, database: &mut Database) {
        if let Work::Open { seq } = self.work {
            database.end(seq, Transaction::InDoubt);
        }
        *self = Self {
            begun: self.begun,
            ..Self::default()
        };
    }

    /// Asleep for longer than the term, after its look at the clock and before the act that follows.
    pub(super) fn pause(&mut self, stage: Stage, database: &mut Database) {
        if let Some(slot) = &mut self.slot {
            (slot.stage, slot.late) = (stage, true);
            let birth = &mut database.rows[slot.seq].birth;
            if *birth == Birth::Held {
                *birth = Birth::RunOut;
            }
        }
    }

    pub(super) fn holds(&self, seq: usize) -> bool {
        self.slot.is_some_and(|slot| slot.seq == seq)
    }

    fn go_on(&mut self, seq: usize) {
        self.work = Work::None;
        if let Some(slot) = self.slot.as_mut().filter(|slot| slot.seq == seq) {
            slot.stage = Stage::Ready;
        }
    }

    fn give_up(&mut self, seq: usize) {
        self.work = Work::None;
        self.slot = self.slot.filter(|slot| slot.seq != seq);
    }
}
