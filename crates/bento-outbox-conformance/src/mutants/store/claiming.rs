//! What a relay reads.

use std::collections::{HashMap, HashSet};

use bento_outbox::{Claim, Claimed, Delivery, Fence, OutboxRecord, Status, Tenant, Timestamp};

use super::Fault::*;
use super::{Key, MutantStore, State, key, partition};

impl MutantStore {
    pub(super) fn claimed(&self, claim: &Claim<'_>) -> Claimed {
        let now = Timestamp::now();
        let state = &mut *self.state();
        let mut claimed = Claimed::default();
        let mut held: HashSet<Option<Key>> = HashSet::new();
        let mut room = claim.limit as usize;
        let mut free: Vec<usize> = Vec::new();
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
            if state.is_paused(&record.tenant)
                && !self.has(ClaimsThePaused)
                && !(self.has(ClaimsTheFailedOfThePaused) && has_waited(record))
            {
                claimed.waiting |= self.has(ThePausedWait);
                if self.has(PutsThePausedOffForEver) && has_waited(record) {
                    let later = now.after(std::time::Duration::from_secs(3_600));
                    state.rows[at].record.delivery.retry_at = Some(later);
                }
                room = room.saturating_sub(usize::from(self.has(ThePausedTakeRoom)));
                continue;
            }
            let others_wait = self.has(WaitsForOthers) && status == Status::New;
            if lost || status == Status::Sent || !(ours || self.has(IgnoresTenants)) {
                claimed.waiting |= others_wait && !ours;
                continue;
            }
            if claim.in_flight.contains(&record.seq) && !self.has(ClaimsWhatIsInFlight) {
                if self.has(HoldsBehindWhatIsInFlight) {
                    held.insert(self.key(record));
                }
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
            let waited = has_waited(record);
            if alive && due && !is_held {
                if !in_reach {
                    claimed.elsewhere = true;
                } else if born.is_some()
                    && !leased
                    && self.writable(state, &fence, id).is_none()
                    && !self.has(TakesBirthsOverUnfenced)
                {
                    held.insert(key);
                } else {
                    free.push(at);
                    if (waited || born.is_some()) && !self.has(FollowsWhatHasWaited) {
                        held.insert(key);
                    }
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
        for at in self.shared_out(state, free, room, claim.ordered) {
            let row = &mut state.rows[at];
            if row.birth.is_some_and(|(_, until)| until <= now) && !row.taken {
                self.take_over(row);
            }
            claimed.records.push(OutboxRecord {
                lost_attempts: match self.fault {
                    Some(HidesLostAttempts) => 0,
                    _ => row.record.lost_attempts,
                },
                ..row.record.clone()
            });
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

    /// Which of the records there is room for.
    fn shared_out(
        &self,
        state: &State,
        free: Vec<usize>,
        room: usize,
        ordered: bool,
    ) -> Vec<usize> {
        if self.has(IgnoresLimit) {
            return free;
        }
        let record = |at: &usize| &state.rows[*at].record;
        let waited = |at: &&usize| has_waited(record(at));
        let half = if self.has(ServesTheFailedFirst) {
            room
        } else {
            room.div_ceil(2)
        };
        let mut chosen: Vec<usize> = free.iter().filter(waited).take(half).copied().collect();
        let mut turns: HashMap<Tenant, usize> = HashMap::new();
        let mut ready: Vec<(usize, usize)> = Vec::new();
        for at in free.iter().filter(|at| !waited(at)) {
            let turn = turns.entry(record(at).tenant.clone()).or_default();
            *turn += usize::from(!self.has(ServesTheFloodFirst));
            ready.push((*turn, *at));
        }
        ready.sort_by_key(|(turn, _)| *turn);
        let left = room - chosen.len();
        chosen.extend(ready.into_iter().take(left).map(|(_, at)| at));
        let mut passed_over: HashSet<Key> = HashSet::new();
        let goes = |at: &usize| {
            let key = self
                .key(record(at))
                .filter(|_| ordered || self.has(AlwaysOrders));
            let goes = chosen.contains(at);
            let overtakes = key.as_ref().is_some_and(|key| passed_over.contains(key));
            if !goes {
                passed_over.extend(key);
            }
            goes && (!overtakes || self.has(OvertakesWhatFindsNoRoom))
        };
        free.into_iter().filter(goes).collect()
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

/// Whether it was delayed, or has failed before.
fn has_waited(record: &OutboxRecord) -> bool {
    record.delivery.error_message.is_some() || record.available_at > record.created_at
}
