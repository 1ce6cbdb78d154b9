//! What a relay reads.

use std::collections::HashSet;

use bento_outbox::{Claim, Claimed, Delivery, Fence, OutboxRecord, Status, Tenant, Timestamp};

use super::Fault::*;
use super::{Key, MutantStore, key, partition};

impl MutantStore {
    pub(super) fn claimed(&self, claim: &Claim<'_>) -> Claimed {
        let now = Timestamp::now();
        let state = &mut *self.state();
        let mut claimed = Claimed::default();
        let mut held: HashSet<Option<Key>> = HashSet::new();
        let mut room = claim.limit as usize;
        let backwards = self.has(WaitsForLaterOnes);
        let count = state.rows.len();
        for n in 0..count {
            let at = if backwards { count - 1 - n } else { n };
            let row = &state.rows[at];
            let record = &row.record;
            let id = record.id;
            let Delivery {
                status, retry_at, ..
            } = record.delivery;
            let tenants = claim.relay.tenants.as_ref();
            let ours = tenants.is_none_or(|ours| ours.contains(&record.tenant));
            let lost =
                (self.has(ClaimsByCursor) && record.seq < state.cursor && retry_at.is_none())
                    || (self.has(ClaimsOnce) && state.claimed.contains(&id));
            let others_wait = self.has(WaitsForOthers) && status == Status::New;
            if lost || status == Status::Sent || !(ours || self.has(IgnoresTenants)) {
                claimed.waiting |= others_wait && !ours;
                continue;
            }
            let born = row.birth.filter(|_| !row.taken);
            let leased =
                born.is_some_and(|(_, until)| until > now || self.has(NeverTakesBirthsOver));
            let available = record.available_at <= now || self.has(IgnoresAvailableAt);
            let due = available
                && (self.has(IgnoresRetryAt) || retry_at.is_none_or(|at| at <= now))
                && (!leased || self.has(ClaimsTheBorn));
            let alive = status == Status::New || self.has(ClaimsDeadLetters);
            let key = self.key(record);
            let is_held = (claim.ordered || self.has(AlwaysOrders))
                && key.is_some()
                && held.contains(&key)
                && !self.has(Overtakes);
            let partition = partition(record);
            let mut leases = claim.leases.iter();
            let in_reach = leases.any(|lease| lease.partition == partition)
                || self.has(ClaimsBeyondItsPartitions);
            if is_held && self.has(HoldsOnlyTheNext) {
                held.remove(&key);
            }
            let blocks =
                (claim.dead_letters_block && !self.has(NeverBlocks)) || self.has(AlwaysBlocks);
            let fence = Fence::Leases {
                relay: claim.relay,
                leases: claim.leases,
            };
            let record = record.clone();
            if alive && due && !is_held {
                if !in_reach {
                    claimed.elsewhere = true;
                } else if room > 0 || self.has(IgnoresLimit) {
                    if born.is_some() && !leased {
                        let ours = self.writable(state, &fence, id).is_some();
                        if !ours && !self.has(TakesBirthsOverUnfenced) {
                            held.insert(key);
                            continue;
                        }
                        self.take_over(&mut state.rows[at]);
                    }
                    room = room.saturating_sub(1);
                    claimed.records.push(OutboxRecord {
                        lost_attempts: match self.fault {
                            Some(HidesLostAttempts) => 0,
                            _ => state.rows[at].record.lost_attempts,
                        },
                        ..record
                    });
                }
                continue;
            }
            if self.has(CountsWaitingAgainstLimit) {
                room = room.saturating_sub(1);
            }
            claimed.waiting |= alive || self.has(WaitsForTheDead);
            claimed.elsewhere |= alive && !in_reach && self.has(WhatWaitsIsElsewhere);
            let holds = if alive {
                (available || !self.has(OvertakesDelayed))
                    && !(leased && self.has(OvertakesTheBorn))
            } else {
                blocks
            };
            if holds && !(is_held && self.has(HoldsOnlyTheNext)) {
                held.insert(key);
            }
        }
        if self.has(WaitsForLaterOnes) || self.has(ReversesClaims) {
            claimed.records.reverse();
        }
        let nothing = claimed.records.is_empty();
        claimed.elsewhere &= nothing;
        claimed.waiting |= claimed.elsewhere;
        claimed.waiting &= nothing && !self.has(NeverWaits);
        claimed.waiting |= self.has(AlwaysWaits);
        claimed.elsewhere &= !self.has(NeverElsewhere);
        claimed.elsewhere |= nothing && self.has(AlwaysElsewhere);
        state
            .claimed
            .extend(claimed.records.iter().map(|record| record.id));
        claimed
    }

    /// Takes a record from the owner to whom it was born leased.
    fn take_over(&self, row: &mut super::Row) {
        match self.fault {
            Some(KeepsTheOwnerAtTakeOver) => row.taken = true,
            Some(TakesOverAgainAndAgain) => {}
            _ => row.birth = None,
        }
        row.record.lost_attempts += u32::from(!self.has(CountsNoTakeOver));
    }

    /// What the record is ordered by.
    fn key(&self, record: &OutboxRecord) -> Option<Key> {
        let key = key(record);
        match (self.fault, key) {
            (Some(OrdersTheUnordered), None) => Some(Key::default()),
            (_, None) => None,
            (Some(KeyWithoutTenant), Some((_, aggregate))) => Some((Tenant::default(), aggregate)),
            (Some(KeyWithoutKind), Some((tenant, mut aggregate))) => {
                aggregate.kind = None;
                Some((tenant, aggregate))
            }
            (_, key) => key,
        }
    }
}
