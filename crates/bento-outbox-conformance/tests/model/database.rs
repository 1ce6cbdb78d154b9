//! The database: a few rows, the lease of their partition, and every statement of the protocol as one atomic step.
//!
//! A method is a statement, and the SQL above it is what it stands for. Each sees what is committed and nothing
//! else, and says how many rows it changed where its caller has to look.

use super::rules::{Mistake, Rules};

/// The most rows in one run; a row's index is its `seq`.
pub(super) const ROWS: usize = 3;

/// The second failed attempt makes a dead letter.
const ATTEMPTS_MAX: u8 = 2;

/// What is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Database {
    pub(super) rows: [Row; ROWS],
    pub(super) lease: Lease,
}

/// A row of `outbox`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    /// The ordering key.
    pub(super) key: u8,
    pub(super) transaction: Transaction,
    pub(super) status: Status,
    pub(super) birth: Birth,
    /// `retry_cnt`.
    pub(super) failed: u8,
    /// `retry_at` is still to come.
    pub(super) waiting: bool,
}

/// What became of the transaction that appended a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Transaction {
    /// There is no such row yet.
    #[default]
    None,
    Open,
    /// Nobody waits for it any more, and it may still commit: the answer was lost, or the writer died.
    InDoubt,
    Committed,
    RolledBack,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Status {
    #[default]
    New,
    Sent,
    Err,
}

/// The lease a row is born with. The columns are `owner` and `leased_until`; the states without an owner are told
/// apart for the reader, no statement can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Birth {
    /// No owner, and it never had one. Also what a settled row shows, where it no longer matters.
    #[default]
    Unleased,
    /// Its writer is the owner.
    Held,
    /// Its writer is the owner, and by the database's clock the term is over.
    RunOut,
    /// No owner: the writer gave it up.
    HandedOver,
    /// No owner: a relay ended it after its term.
    TakenOver,
    /// [`Mistake::TakeOverKeepsOwner`]: a relay has it, and the writer is still its owner.
    Shared,
}

impl Birth {
    /// `owner is not null`. An owner is one life of a process, so it is always the writer of the row.
    pub(super) fn has_owner(self) -> bool {
        matches!(self, Self::Held | Self::RunOut | Self::Shared)
    }
}

/// The row of `outbox_lease` for the one partition there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    /// Goes up with every new holder, so it also says who that is.
    pub(super) epoch: u8,
    pub(super) term: Term,
    /// [`Mistake::Cursor`]: rows below this were read.
    pub(super) cursor: usize,
}

/// The lease of a partition by the database's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Term {
    #[default]
    Free,
    Running,
    RunOut,
}

/// What a relay writes about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Sent,
    Failed,
}

/// The writer's statements.
impl Database {
    /// ```sql
    /// insert into outbox (key, owner, leased_until)
    /// select $key, case when first then $me end, case when first then clock_timestamp() + $term end
    /// from (select $slot_is_free and not exists (
    ///     select from outbox where key = $key and status = 'NEW') as first)
    /// ```
    /// Every row of the key that is visible has a lower `seq`: who writes the key holds its lock by now.
    pub(super) fn append(&mut self, key: u8, leased: bool) -> usize {
        let seq = self.length();
        self.rows[seq] = Row {
            key,
            transaction: Transaction::Open,
            birth: if leased { Birth::Held } else { Birth::Unleased },
            ..Row::default()
        };
        seq
    }

    /// The `not exists` of [`append`](Self::append).
    pub(super) fn nothing_unsent(&self, key: u8) -> bool {
        !(self.rows.iter())
            .any(|row| row.key == key && row.is_visible() && row.status == Status::New)
    }

    /// `commit`, `rollback`, and the end of a transaction in doubt. Gives the key's lock back.
    pub(super) fn end(&mut self, seq: usize, how: Transaction) {
        self.rows[seq].transaction = how;
        if how == Transaction::RolledBack {
            self.rows[seq].birth = Birth::Unleased;
        }
    }

    /// Whether nobody else writes this key: an aggregate's row lock, say, held until the transaction ends.
    pub(super) fn is_unlocked(&self, key: u8) -> bool {
        !(self.rows.iter()).any(|row| {
            row.key == key && matches!(row.transaction, Transaction::Open | Transaction::InDoubt)
        })
    }

    /// ```sql
    /// update outbox set status = 'SENT' where id = $id and owner = $me and status = 'NEW'
    /// ```
    pub(super) fn settle_at_once(&mut self, seq: usize, rules: Rules) -> bool {
        let row = &mut self.rows[seq];
        let fenced = !rules.make(Mistake::WriterUnfenced) && !rules.make(Mistake::NoBirthLease);
        let matches = row.status == Status::New && (row.birth.has_owner() || !fenced);
        if matches {
            row.settle(Status::Sent);
        }
        matches
    }

    /// ```sql
    /// update outbox set owner = null where id = $id and owner = $me and status = 'NEW'
    /// ```
    pub(super) fn hand_over(&mut self, seq: usize) -> bool {
        let row = &mut self.rows[seq];
        let matches = row.status == Status::New && row.birth.has_owner();
        if matches {
            row.birth = Birth::HandedOver;
        }
        matches
    }
}

/// The relay's statements.
impl Database {
    /// ```sql
    /// update outbox_lease set owner = $me, epoch = epoch + 1, until = clock_timestamp() + $term
    /// where partition = $p and (owner is null or until < clock_timestamp()) returning epoch
    /// ```
    pub(super) fn acquire(&mut self) -> Option<u8> {
        (self.lease.term != Term::Running).then(|| {
            self.lease.epoch += 1;
            self.lease.term = Term::Running;
            self.lease.epoch
        })
    }

    /// ```sql
    /// update outbox_lease set until = clock_timestamp() + $term
    /// where partition = $p and owner = $me and epoch = $mine
    /// ```
    /// A lease that ran out and that nobody else wanted goes on.
    pub(super) fn renew(&mut self, epoch: u8) -> bool {
        let matches = self.is_leased_by(epoch);
        if matches {
            self.lease.term = Term::Running;
        }
        matches
    }

    /// ```sql
    /// update outbox_lease set owner = null where partition = $p and owner = $me and epoch = $mine
    /// ```
    pub(super) fn release(&mut self, epoch: u8) {
        if self.is_leased_by(epoch) {
            self.lease.term = Term::Free;
        }
    }

    /// ```sql
    /// exists (select from outbox_lease where partition = $p and owner = $me and epoch = $mine for share)
    /// ```
    /// The fence in every statement of a relay that writes. It does not ask for the time: until somebody else takes
    /// the lease, what its last holder writes does no harm. It *locks*: a statement reads a snapshot, and without the
    /// lock the lease could go to somebody else between that look and the commit ([`Mistake::FenceUnlocked`]).
    pub(super) fn is_leased_by(&self, epoch: u8) -> bool {
        self.lease.epoch == epoch && self.lease.term != Term::Free
    }

    /// ```sql
    /// update outbox set owner = null
    /// where partition = $p and status = 'NEW' and leased_until < clock_timestamp() and <fence>
    /// ```
    pub(super) fn take_over(&mut self, epoch: u8, rules: Rules) -> bool {
        let fence_holds = self.is_leased_by(epoch) || rules.make(Mistake::TakeOverUnfenced);
        let mut changed = false;
        for row in self.rows.iter_mut().filter(|_| fence_holds) {
            if row.is_visible() && row.birth == Birth::RunOut {
                row.birth = Birth::TakenOver;
                changed = true;
            }
        }
        changed
    }

    /// ```sql
    /// select * from outbox o
    /// where partition = $p and status = 'NEW' and owner is null and (retry_at is null or retry_at <= now)
    ///   and not exists (select from outbox e where e.key = o.key and e.seq < o.seq and e.status = 'NEW'
    ///                   and (e.owner is not null or e.retry_at > now))
    /// order by seq
    /// ```
    /// An earlier row of the key that is claimable itself does not stop a later one: they come in one answer, in
    /// order, or the earlier one is in the relay's hands already.
    pub(super) fn claim(&self, rules: Rules) -> [bool; ROWS] {
        let mut answer = [false; ROWS];
        for (seq, row) in self.rows.iter().enumerate() {
            let unsent = |row: &Row| row.is_visible() && row.status == Status::New;
            let held = |row: &Row| {
                let keeps_owner = rules.make(Mistake::TakeOverKeepsOwner);
                let free = !row.birth.has_owner()
                    || (keeps_owner && matches!(row.birth, Birth::RunOut | Birth::Shared));
                !free || (row.waiting && !rules.make(Mistake::RetryHoldsNothing))
            };
            let mut earlier = self.rows[..seq]
                .iter()
                .filter(|earlier| earlier.key == row.key);
            let read_before = rules.make(Mistake::Cursor) && seq < self.lease.cursor;
            answer[seq] = unsent(row)
                && !held(row)
                && !row.waiting
                && !earlier.any(|earlier| unsent(earlier) && held(earlier))
                && !read_before;
        }
        answer
    }

    /// ```sql
    /// update outbox set status = …, retry_cnt = …, retry_at = … where id = $id and status = 'NEW' and <fence>
    /// ```
    pub(super) fn settle(&mut self, seq: usize, verdict: Verdict, fence: bool) -> bool {
        let row = &mut self.rows[seq];
        let matches = row.status == Status::New && fence;
        if matches && verdict == Verdict::Sent {
            row.settle(Status::Sent);
        } else if matches {
            row.failed += 1;
            row.waiting = true;
            if row.failed == ATTEMPTS_MAX {
                row.settle(Status::Err);
            }
        }
        matches
    }
}

impl Database {
    /// How many rows were ever inserted.
    pub(super) fn length(&self) -> usize {
        (self.rows.iter())
            .take_while(|row| row.transaction != Transaction::None)
            .count()
    }
}

impl Row {
    /// Whether its transaction committed.
    pub(super) fn is_visible(&self) -> bool {
        self.transaction == Transaction::Committed
    }

    /// The end of it. What no statement looks at any more is forgotten, for the sake of fewer states.
    fn settle(&mut self, status: Status) {
        self.status = status;
        self.birth = Birth::Unleased;
        self.waiting = false;
    }
}
