//! What can happen next, and what it does.

use stateright::{Model, Property};

use super::bus::{Answer, FAULTY};
use super::database::{Birth, ROWS, Term, Transaction};
use super::promises;
use super::relay::Hand;
use super::rules::{Delivery, Mistake};
use super::world::World;
use super::writer::{Slot, Stage, Work};

/// One step of one process, of the database, of the bus or of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin {
        writer: usize,
    },
    Append {
        writer: usize,
    },
    Commit {
        writer: usize,
    },
    RollBack {
        writer: usize,
    },
    Look {
        writer: usize,
    },
    PublishAtOnce {
        writer: usize,
        answer: Answer,
    },
    SettleAtOnce {
        writer: usize,
    },
    HandOver {
        writer: usize,
    },

    Acquire {
        relay: usize,
    },
    Renew {
        relay: usize,
    },
    TakeOver {
        relay: usize,
    },
    Claim {
        relay: usize,
    },
    Take {
        relay: usize,
    },
    Publish {
        relay: usize,
        seq: usize,
        answer: Answer,
    },
    /// [`Mistake::FenceUnlocked`]: the first half of a settlement.
    ReadFence {
        relay: usize,
    },
    Settle {
        relay: usize,
    },
    /// Shutdown. The process comes back.
    Release {
        relay: usize,
    },

    /// 60 % of the term of a birth lease, by its holder's clock.
    HolderIsLate {
        writer: usize,
    },
    /// All of it, by the database's.
    BirthLeaseRunsOut {
        seq: usize,
    },
    LeaseRunsOut,
    RetryIsDue {
        seq: usize,
    },
    DoubtEnds {
        seq: usize,
        how: Transaction,
    },
    LateCopyArrives {
        seq: usize,
    },

    LoseCommitAnswer {
        writer: usize,
    },
    CrashWriter {
        writer: usize,
    },
    /// Between the look at the clock and the send: nothing can close this.
    PauseWriterBeforeSending {
        writer: usize,
    },
    PauseWriterBeforeSettling {
        writer: usize,
    },
    CrashRelay {
        relay: usize,
    },
    PauseRelay {
        relay: usize,
    },
    PauseRelayBeforeSending {
        relay: usize,
        seq: usize,
    },
}

impl Step {
    /// Whether it is a fault, of which there are only so many.
    fn is_fault(self) -> bool {
        match self {
            Self::PublishAtOnce { answer, .. } | Self::Publish { answer, .. } => {
                answer != Answer::Acked
            }
            Self::LoseCommitAnswer { .. }
            | Self::CrashWriter { .. }
            | Self::PauseWriterBeforeSending { .. }
            | Self::PauseWriterBeforeSettling { .. }
            | Self::CrashRelay { .. }
            | Self::PauseRelay { .. }
            | Self::PauseRelayBeforeSending { .. } => true,
            _ => false,
        }
    }

    /// Whether a run may end without it. Everything else happens sooner or later.
    pub(super) fn is_optional(self) -> bool {
        self.is_fault() || matches!(self, Self::Release { .. } | Self::LateCopyArrives { .. })
    }
}

impl Model for Delivery {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.start()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        for writer in 0..world.writers.len() {
            self.writer_steps(world, writer, steps);
        }
        for relay in 0..world.relays.len() {
            self.relay_steps(world, relay, steps);
        }
        self.other_steps(world, steps);
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = *before;
        world.faults_left -= u8::from(step.is_fault());
        self.take(&mut world, step);
        assert!(
            self.rules.mistake.is_some() || world.progress() > before.progress(),
            "a run could go on for ever: {step:?} from {before:?}"
        );
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promises::all()
    }
}

impl Delivery {
    fn writer_steps(&self, world: &World, id: usize, steps: &mut Vec<Step>) {
        let World {
            database,
            writers,
            faults_left,
            ..
        } = world;
        let (rules, faulty, writer) = (self.rules, *faults_left > 0, writers[id]);

        match (writer.work, self.plan[id].get(writer.begun)) {
            (Work::None, Some(_)) if rules.make(Mistake::OldSnapshot) => {
                steps.push(Step::Begin { writer: id });
            }
            (Work::None | Work::Begun { .. }, Some(key)) => {
                if database.is_unlocked(*key) {
                    steps.push(Step::Append { writer: id });
                }
            }
            (Work::Open { .. }, _) => {
                steps.extend([Step::Commit { writer: id }, Step::RollBack { writer: id }]);
                if faulty {
                    steps.push(Step::LoseCommitAnswer { writer: id });
                }
            }
            (Work::Unknown { .. }, _) => steps.push(Step::Look { writer: id }),
            (Work::None | Work::Begun { .. }, None) => {}
        }

        if let Some(slot) = writer.may_publish(rules) {
            steps.push(Step::PublishAtOnce {
                writer: id,
                answer: Answer::Acked,
            });
            if faulty {
                steps.extend(FAULTY.map(|answer| Step::PublishAtOnce { writer: id, answer }));
                if slot.stage != Stage::Checked && database.rows[slot.seq].birth == Birth::Held {
                    steps.push(Step::PauseWriterBeforeSending { writer: id });
                }
            }
        }
        if writer.may_hand_over(rules).is_some() {
            steps.push(Step::HandOver { writer: id });
        }
        if let Some(slot) = writer.slot {
            let held = database.rows[slot.seq].birth == Birth::Held;
            let counting = match slot.stage {
                Stage::Reserved => !rules.make(Mistake::CountsFromCommit),
                Stage::Ready | Stage::Tried => true,
                Stage::Checked | Stage::Acked => false,
            };
            if counting && held && !slot.late {
                steps.push(Step::HolderIsLate { writer: id });
            }
            if slot.stage == Stage::Acked {
                steps.push(Step::SettleAtOnce { writer: id });
                if faulty && held {
                    steps.push(Step::PauseWriterBeforeSettling { writer: id });
                }
            }
        }
        if faulty && (writer.work != Work::None || writer.slot.is_some()) {
            steps.push(Step::CrashWriter { writer: id });
        }
    }

    fn relay_steps(&self, world: &World, id: usize, steps: &mut Vec<Step>) {
        let World {
            database,
            relays,
            faults_left,
            shutdowns_left,
            ..
        } = world;
        let (rules, faulty, relay) = (self.rules, *faults_left > 0, relays[id]);
        if relay.epoch == 0 {
            if database.lease.term != Term::Running {
                steps.push(Step::Acquire { relay: id });
            }
            return;
        }

        let some = |found: [bool; ROWS]| found.contains(&true);
        if relay.late {
            steps.push(Step::Renew { relay: id });
        }
        let run_out = database
            .rows
            .iter()
            .any(|row| row.is_visible() && row.birth == Birth::RunOut);
        let may_write = database.is_leased_by(relay.epoch) || rules.make(Mistake::TakeOverUnfenced);
        if run_out && may_write && !rules.make(Mistake::TakeOverKeepsOwner) {
            steps.push(Step::TakeOver { relay: id });
        }
        if some(relay.answer) {
            steps.push(Step::Take { relay: id });
        } else if !relay.late && some(relay.claimable(database, rules)) {
            steps.push(Step::Claim { relay: id });
        }
        for seq in (0..ROWS).filter(|seq| relay.may_publish(*seq, database, rules)) {
            steps.push(Step::Publish {
                relay: id,
                seq,
                answer: Answer::Acked,
            });
            if faulty {
                steps.extend(FAULTY.map(|answer| Step::Publish {
                    relay: id,
                    seq,
                    answer,
                }));
                if !relay.late {
                    steps.push(Step::PauseRelayBeforeSending { relay: id, seq });
                }
            }
        }
        let reads_fence = rules.make(Mistake::FenceUnlocked) && database.is_leased_by(relay.epoch);
        if relay.may_settle() && reads_fence && !relay.fence_read {
            steps.push(Step::ReadFence { relay: id });
        } else if relay.may_settle() {
            steps.push(Step::Settle { relay: id });
        } else if *shutdowns_left > 0 && !relay.hands.contains(&Hand::Checked) {
            steps.push(Step::Release { relay: id });
        }
        if faulty {
            steps.push(Step::CrashRelay { relay: id });
            if !relay.late {
                steps.push(Step::PauseRelay { relay: id });
            }
        }
    }

    fn other_steps(&self, world: &World, steps: &mut Vec<Step>) {
        let World {
            database,
            writers,
            relays,
            bus,
            ..
        } = world;
        for (seq, row) in database.rows.iter().enumerate() {
            if row.transaction == Transaction::InDoubt {
                let both = [Transaction::Committed, Transaction::RolledBack];
                steps.extend(both.map(|how| Step::DoubtEnds { seq, how }));
            }
            // An awake holder is late by its own clock before the database calls the term over, and what it began in
            // time it ends in time. A dead one is not asked.
            let mut holders = writers.iter().filter_map(|writer| writer.slot);
            let in_time = holders.any(|slot| {
                let counting =
                    slot.stage != Stage::Reserved || !self.rules.make(Mistake::CountsFromCommit);
                slot.seq == seq && !slot.late && counting
            });
            if row.birth == Birth::Held && !in_time {
                steps.push(Step::BirthLeaseRunsOut { seq });
            }
            if row.waiting {
                steps.push(Step::RetryIsDue { seq });
            }
            if bus.late[seq] > 0 {
                steps.push(Step::LateCopyArrives { seq });
            }
        }
        // An awake holder renews in time, so only a dead one's lease runs out; a paused one's does in its pause.
        let renewed = relays
            .iter()
            .any(|relay| relay.epoch == database.lease.epoch);
        if database.lease.term == Term::Running && !renewed {
            steps.push(Step::LeaseRunsOut);
        }
    }

    fn take(&self, world: &mut World, step: Step) {
        let rules = self.rules;
        let World {
            database,
            writers,
            relays,
            bus,
            ..
        } = world;
        match step {
            Step::Begin { writer } => {
                let key = self.plan[writer][writers[writer].begun];
                writers[writer].work = Work::Begun {
                    first: database.nothing_unsent(key),
                };
            }
            Step::Append { writer } => {
                let key = self.plan[writer][writers[writer].begun];
                writers[writer].append(key, self.at_once, database, rules);
            }
            Step::Commit { writer } => writers[writer].commit(open(writers[writer].work), database),
            Step::RollBack { writer } => {
                writers[writer].roll_back(open(writers[writer].work), database);
            }
            Step::LoseCommitAnswer { writer } => {
                writers[writer].lose_commit_answer(open(writers[writer].work), database);
            }
            Step::Look { writer } => {
                writers[writer].look(open(writers[writer].work), database, rules);
            }
            Step::PublishAtOnce { writer, answer } => {
                writers[writer].publish(answer, database, bus);
            }
            Step::SettleAtOnce { writer } => {
                world.stale_write |=
                    writers[writer].settle(held(writers[writer].slot), database, rules);
            }
            Step::HandOver { writer } => {
                world.stale_write |=
                    writers[writer].hand_over(held(writers[writer].slot), database);
            }
            Step::CrashWriter { writer } => writers[writer].crash(database),
            Step::PauseWriterBeforeSending { writer } => {
                writers[writer].pause(Stage::Checked, database);
            }
            Step::PauseWriterBeforeSettling { writer } => {
                writers[writer].pause(Stage::Acked, database);
            }

            Step::Acquire { relay } => relays[relay].acquire(database),
            Step::Renew { relay } => relays[relay].renew(database),
            Step::TakeOver { relay } => {
                world.stale_write |= relays[relay].take_over(database, rules);
            }
            Step::Claim { relay } => relays[relay].claim(database, rules),
            Step::Take { relay } => relays[relay].take(),
            Step::Publish { relay, seq, answer } => {
                relays[relay].publish(seq, answer, database, bus, rules);
            }
            Step::ReadFence { relay } => relays[relay].fence_read = true,
            Step::Settle { relay } => world.stale_write |= relays[relay].settle(database, rules),
            Step::Release { relay } => {
                relays[relay].release(database);
                world.shutdowns_left -= 1;
            }
            Step::CrashRelay { relay } => relays[relay].crash(),
            Step::PauseRelay { relay } => relays[relay].pause(None, database),
            Step::PauseRelayBeforeSending { relay, seq } => {
                relays[relay].pause(Some(seq), database);
            }

            Step::HolderIsLate { writer } => {
                if let Some(slot) = &mut writers[writer].slot {
                    slot.late = true;
                }
            }
            Step::BirthLeaseRunsOut { seq } => database.rows[seq].birth = Birth::RunOut,
            Step::LeaseRunsOut => database.lease.term = Term::RunOut,
            Step::RetryIsDue { seq } => database.rows[seq].waiting = false,
            Step::DoubtEnds { seq, how } => database.end(seq, how),
            Step::LateCopyArrives { seq } => bus.deliver_late(seq, database),
        }
    }
}

fn open(work: Work) -> usize {
    match work {
        Work::Open { seq } | Work::Unknown { seq } => seq,
        Work::None | Work::Begun { .. } => {
            unreachable!("the step is offered inside a transaction alone");
        }
    }
}

fn held(slot: Option<Slot>) -> usize {
    slot.expect("the step is offered with a full slot alone")
        .seq
}
