//! What is checked: how much happens in a run, and by which rules.

use super::bus::Bus;
use super::database::Database;
use super::relay::Relay;
use super::world::World;
use super::writer::Writer;

/// A run to check: who writes what, and how much goes wrong at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    /// The transactions of each writer, by the key of the one event that each appends.
    pub(super) plan: [&'static [u8]; 2],
    /// Whether the writers publish at once.
    pub(super) at_once: bool,
    /// How many crashes, pauses and lost messages there may be, in any places.
    pub(super) faults: u8,
    /// How many times a relay may shut down.
    pub(super) shutdowns: u8,
    pub(super) rules: Rules,
}

impl Delivery {
    /// Before anything happened.
    pub(super) fn start(&self) -> World {
        World {
            database: Database::default(),
            writers: [Writer::default(); 2],
            relays: [Relay::default(); 2],
            bus: Bus::default(),
            faults_left: self.faults,
            shutdowns_left: self.shutdowns,
            stale_write: false,
        }
    }
}

/// The protocol, or the protocol with one mistake in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    pub(super) mistake: Option<Mistake>,
}

impl Rules {
    pub(super) fn make(self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }
}

/// What one would write without much thought. The tests show which promise each one breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// A row is born leased although an earlier one of its key is unsent.
    OvertakesUnsent,
    /// A row is not leased to its writer, who publishes it at once all the same.
    NoBirthLease,
    /// The writer's deadline is counted from the commit and not from the append, where the term begins.
    CountsFromCommit,
    /// Nobody looks at the time before publishing.
    IgnoresDeadline,
    /// Whether something earlier is unsent is asked in a snapshot older than the lock on the key: `repeatable read`.
    OldSnapshot,
    /// A commit without an answer is taken for a commit.
    UnknownIsCommitted,
    /// The writer settles `where id = $id and status = 'NEW'`.
    WriterUnfenced,
    /// A relay settles `where id = $id and status = 'NEW'`.
    RelayUnfenced,
    /// The fence reads the lease and does not lock it, so that it is one step and the write another.
    FenceUnlocked,
    /// A relay ends birth leases without looking at its own lease in the same statement.
    TakeOverUnfenced,
    /// A relay publishes a row whose birth lease ran out, and leaves the writer its owner.
    TakeOverKeepsOwner,
    /// A relay claims `where seq > $highest`.
    Cursor,
    /// A relay takes whatever it sent for acknowledged.
    AcceptedIsSent,
    /// After a failure a relay goes on with the later rows of the key.
    LaterGoesFirst,
    /// A row that waits for its retry does not hold the later ones of its key.
    RetryHoldsNothing,
    /// A relay knows a claimed row again by what is in hand when the answer comes, not when the claim was sent.
    ForgetsSettled,
    /// After a failure a relay lets the later rows of the key in hand go, but not those in an answer under way.
    ForgetsFailed,
}
