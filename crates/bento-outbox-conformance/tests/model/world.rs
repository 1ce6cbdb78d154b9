//! Everything there is at one moment.

use super::bus::Bus;
use super::database::{Database, Row, Status, Term, Transaction};
use super::relay::{Hand, Relay};
use super::writer::{Stage, Work, Writer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) database: Database,
    pub(super) writers: [Writer; 2],
    pub(super) relays: [Relay; 2],
    pub(super) bus: Bus,
    pub(super) faults_left: u8,
    pub(super) shutdowns_left: u8,
    /// A process changed a row that it had lost: its lease, or the row's, was another's by then.
    pub(super) stale_write: bool,
}

impl World {
    /// Which relay is which makes no difference.
    pub(super) fn with_relays_in_order(&self) -> Self {
        let mut world = *self;
        world.relays.sort_unstable();
        world
    }

    /// Nor does it which writer is which, where both do the same.
    pub(super) fn with_all_in_order(&self) -> Self {
        let mut world = self.with_relays_in_order();
        world.writers.sort_unstable();
        world
    }

    /// How far things have come, the most important first. Each step brings it forward, so no run goes on for ever,
    /// and each ends where nothing is left to do. That makes it enough to look at those ends to know that nothing is
    /// lost: no fairness has to be assumed, only that what can happen does.
    pub(super) fn progress(&self) -> [i32; 8] {
        [
            -i32::from(self.faults_left),
            -i32::from(self.shutdowns_left),
            -sum(&self.relays, |relay| i32::from(relay.late)),
            2 * i32::from(self.database.lease.epoch)
                + i32::from(self.database.lease.term != Term::Running),
            sum(&self.database.rows, progress_of_row),
            sum(&self.writers, progress_of_writer),
            sum(&self.relays, progress_of_relay),
            -sum(&self.bus.late, |late| i32::from(*late)),
        ]
    }
}

fn progress_of_row(row: &Row) -> i32 {
    let transaction = match row.transaction {
        Transaction::None => 0,
        Transaction::Open | Transaction::InDoubt => 1,
        Transaction::Committed | Transaction::RolledBack => 2,
    };
    let settled = i32::from(row.status != Status::New);
    let tried = 2 * i32::from(row.failed) - i32::from(row.waiting);
    1_000 * transaction + 100 * settled + 10 * tried + row.birth as i32
}

fn progress_of_writer(writer: &Writer) -> i32 {
    let work = match writer.work {
        Work::Begun { .. } => 1,
        Work::None | Work::Open { .. } => 0,
        Work::Unknown { .. } => -1,
    };
    let slot = writer.slot.map_or(20, |slot| {
        let stage = match slot.stage {
            Stage::Reserved => 0,
            Stage::Ready => 2,
            Stage::Tried => 4,
            Stage::Checked => 6,
            Stage::Acked => 8,
        };
        stage + i32::from(slot.late)
    });
    100 * i32::try_from(writer.begun).unwrap_or(i32::MAX) + slot + work
}

fn progress_of_relay(relay: &Relay) -> i32 {
    let in_hand = sum(&relay.hands, |hand| match hand {
        Hand::None => 0,
        Hand::Claimed => 2,
        Hand::Checked => 3,
        Hand::Acked | Hand::Failed => 4,
    });
    in_hand + i32::from(relay.answer.contains(&true))
}

fn sum<T>(items: &[T], of: impl Fn(&T) -> i32) -> i32 {
    items.iter().map(of).sum()
}
