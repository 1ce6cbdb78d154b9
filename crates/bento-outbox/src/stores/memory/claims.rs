//! What a relay reads.

use std::collections::{HashMap, HashSet};

use super::{Rows, partition};
use crate::record::{OutboxRecord, Status};
use crate::store::{Claim, Claimed, Fence};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

pub(super) fn claim(rows: &mut Rows, claim: &Claim<'_>) -> Claimed {
    let now = Timestamp::now();
    let mut claimed = Claimed::default();
    let mut held: Vec<&OutboxRecord> = Vec::new();
    let mut free = Vec::new();
    let fence = Fence::Leases {
        relay: claim.relay,
        leases: claim.leases,
    };
    for record in &rows.records {
        let tenants = &claim.relay.tenants;
        let theirs = tenants
            .as_ref()
            .is_some_and(|ours| !ours.contains(&record.tenant));
        let status = record.delivery.status;
        if theirs
            || rows.is_paused(&record.tenant)
            || status == Status::Sent
            || (status == Status::Err && !claim.dead_letters_block)
            || claim.in_flight.contains(&record.seq)
        {
            continue;
        }
        let is_held = claim.ordered
            && record.ordering_key().is_some()
            && held
                .iter()
                .any(|earlier| earlier.ordering_key() == record.ordering_key());
        let born = rows
            .births
            .get(&record.id)
            .is_some_and(|(_, until)| *until > now);
        let due = status == Status::New
            && !born
            && record.available_at <= now
            && record.delivery.retry_at.is_none_or(|at| at <= now);
        let partition = partition(record);
        if !due || is_held {
            held.push(record);
        } else if claim
            .leases
            .iter()
            .all(|lease| lease.partition != partition)
        {
            claimed.elsewhere = true;
        } else if rows.births.contains_key(&record.id) && rows.writable(&fence, record.id).is_none()
        {
            // Nobody takes over who has lost the partition.
            held.push(record);
        } else {
            free.push(record);
            if has_waited(record) || rows.births.contains_key(&record.id) {
                held.push(record);
            }
        }
    }
    claimed.records = shared_out(&free, claim.limit as usize, claim.ordered);
    let waits = claimed.elsewhere
        || held
            .iter()
            .any(|record| record.delivery.status == Status::New);
    claimed.waiting = claimed.records.is_empty() && waits;
    claimed.elsewhere &= claimed.records.is_empty();
    for record in &mut claimed.records {
        if rows.births.remove(&record.id).is_some() {
            record.lost_attempts += 1;
            if let Some(kept) = rows.records.iter_mut().find(|kept| kept.id == record.id) {
                kept.lost_attempts += 1;
            }
        }
    }
    claimed
}

/// Whether it was delayed, or has failed before.
fn has_waited(record: &OutboxRecord) -> bool {
    record.delivery.error_message.is_some() || record.available_at > record.created_at
}

/// At most so many of the records: what has waited gets half of it, and of the rest each tenant as
/// much as any other.
fn shared_out(free: &[&OutboxRecord], limit: usize, ordered: bool) -> Vec<OutboxRecord> {
    let (mut chosen, ready): (Vec<&OutboxRecord>, Vec<&OutboxRecord>) =
        free.iter().partition(|record| has_waited(record));
    chosen.truncate(limit.div_ceil(2));
    let mut turns: HashMap<&Tenant, usize> = HashMap::new();
    let mut ready: Vec<(usize, &OutboxRecord)> = ready
        .into_iter()
        .map(|record| {
            let turn = turns.entry(&record.tenant).or_default();
            *turn += 1;
            (*turn, record)
        })
        .collect();
    ready.sort_by_key(|(turn, record)| (*turn, record.seq));
    chosen.extend(
        ready
            .iter()
            .map(|(_, record)| *record)
            .take(limit - chosen.len()),
    );
    let chosen: HashSet<i64> = chosen.iter().map(|record| record.seq).collect();
    // Nothing goes past an earlier one of its key that was not chosen.
    let mut left = HashSet::new();
    let mut records = Vec::with_capacity(chosen.len());
    for record in free {
        let key = record.ordering_key().filter(|_| ordered);
        if !chosen.contains(&record.seq) {
            left.extend(key);
        } else if key.is_none_or(|key| !left.contains(&key)) {
            records.push((*record).clone());
        }
    }
    records
}
