//! What an operator who looks for what is wrong gets to know of a database.

use serde::Serialize;
use uuid::Uuid;

use crate::timestamp::Timestamp;

/// What a look at the database found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// The server and its version.
    pub server: Option<String>,
    /// The time by the database's clock.
    pub clock: Option<Timestamp>,
    /// Indexes of the tables that are not there, or not valid.
    pub missing: Vec<String>,
    /// Rights on the tables that this user has not, as `update on outbox`.
    pub forbidden: Vec<String>,
    /// Tables of which row-level security hides rows from this user.
    pub hidden: Vec<String>,
    /// How long the oldest open transaction has been open, in seconds, where it keeps the database
    /// from cleaning up.
    pub oldest_transaction_seconds: Option<f64>,
    /// The relays that live.
    pub relays: Vec<LiveRelay>,
    /// What about the server's own settings could harm events.
    pub cautions: Vec<Caution>,
}

/// A setting of the database that could harm events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caution {
    /// What was found, and what it may lead to.
    pub found: String,
    /// What to do about it.
    pub advice: &'static str,
}

/// A relay that renewed its leases within their term.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LiveRelay {
    /// Its random id.
    pub id: Uuid,
    /// The tenants it carries, as [`Relay::scope`](crate::Relay::scope) writes them.
    pub tenants: String,
    /// How many partitions it holds.
    pub partitions: u32,
    /// Until when it counts as alive.
    pub until: Timestamp,
}
