//! Where a record stands in its queue.

use uuid::Uuid;

use crate::record::OutboxRecord;
use crate::timestamp::Timestamp;

/// Where a record stands, all by the database's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// The record, without its payload.
    pub record: OutboxRecord,
    /// The time by the database's clock.
    pub now: Timestamp,
    /// Its partition, below [`PARTITIONS`](crate::PARTITIONS).
    pub partition: u16,
    /// The incarnation of the process that may publish it first, and until when; that may be over.
    pub born_to: Option<(Uuid, Timestamp)>,
    /// The first earlier record of its ordering key that is not sent.
    pub ahead: Option<Uuid>,
    /// The live relay that holds its partition and carries its tenant, and until when.
    pub held_by: Option<(Uuid, Timestamp)>,
    /// How many live relays carry its tenant.
    pub relays: u32,
}
