//! What a relay knows of its leases.

use std::time::Instant;

use crate::store::Lease;

/// What a relay holds, by its own clock.
pub(super) struct Holding {
    pub(super) leases: Vec<Lease>,
    pub(super) renew_at: Instant,
    /// When it stops publishing unless the leases are renewed.
    pub(super) deadline: Instant,
    /// Whether a relay died over some of these partitions.
    pub(super) careful: bool,
    pub(super) purge_at: Instant,
}

impl Default for Holding {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            leases: Vec::new(),
            renew_at: now,
            deadline: now,
            careful: false,
            purge_at: now,
        }
    }
}
