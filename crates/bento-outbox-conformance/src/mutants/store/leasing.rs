//! Who carries which partitions, and who may write.

use std::time::Duration;

use bento_outbox::{
    Error, ErrorKind, Fence, Lease, PARTITIONS, Relay, Result, Status, Tenant, Timestamp,
};
use uuid::Uuid;

use super::Fault::*;
use super::{Held, MutantStore, State, partition};

impl MutantStore {
    pub(super) fn leased(&self, relay: &Relay, term: Duration) -> Result<Vec<Lease>> {
        let now = Timestamp::now();
        let until = now.after(term);
        let lives = |until: Timestamp| until > now || self.has(LeasesForEver);
        let scope = self.scope(relay);
        let state = &mut *self.state();
        let before = state.relays.get(&relay.id);
        let is_new = !before.is_some_and(|(_, until)| lives(*until));
        let others: Vec<&String> = state
            .relays
            .iter()
            .filter(|(id, (_, until))| {
                **id != relay.id && (lives(*until) || self.has(SharesWithTheDead))
            })
            .map(|(_, (scope, _))| scope)
            .collect();
        let collides = others
            .iter()
            .any(|other| Relay::scopes_collide(&scope, other));
        let siblings = others
            .iter()
            .filter(|other| ***other == scope || self.has(SharesWithOtherScopes))
            .count();
        let share = Relay::fair_share(1 + siblings);
        let stays = self.has(RefusedRelaysStay);
        let refused = collides && (is_new || stays) && !self.has(IgnoresCollisions);
        if !refused || stays {
            state.relays.insert(relay.id, (scope.clone(), until));
        }
        if refused {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                "tenants: another relay runs",
            ));
        }
        let partitions = self.partitions(state, &scope);
        let mut mine = 0;
        for held in partitions.iter_mut() {
            if held.owner.is_some_and(|(owner, _)| owner == relay.id) {
                mine += 1;
                let keeps = mine <= share || self.has(FirstKeepsAll);
                held.owner = keeps.then_some((relay.id, until));
                held.epoch += i64::from(self.has(RaisesEpochsAtRenewal));
                held.from_the_dead &= self.has(TellsTheDeadAgain);
            }
        }
        let mut leases = Vec::new();
        for (partition, held) in (0..).zip(partitions.iter_mut()) {
            let theirs = held.owner.filter(|(owner, _)| *owner != relay.id);
            let is_free = match held.owner {
                None => true,
                Some((_, until)) => {
                    !lives(until) || (theirs.is_some() && self.has(TakesWhatIsHeld))
                }
            };
            if is_free && (mine < share || self.has(TakesAllThatIsFree)) {
                mine += 1;
                let keeps_epoch = match theirs {
                    None => self.has(KeepsEpochsOfTheReleased) && held.epoch > 0,
                    Some(_) => self.has(KeepsEpochsOfTheDead),
                };
                *held = Held {
                    epoch: held.epoch + i64::from(!keeps_epoch),
                    owner: Some((relay.id, until)),
                    from_the_dead: (theirs.is_some() && !self.has(NeverFromTheDead))
                        || self.has(AlwaysFromTheDead),
                };
            }
            if held.owner.is_some_and(|(owner, _)| owner == relay.id) {
                leases.push(Lease {
                    partition,
                    epoch: held.epoch,
                    from_the_dead: held.from_the_dead,
                });
            }
        }
        Ok(leases)
    }

    pub(super) fn released(&self, relay: &Relay) {
        let state = &mut *self.state();
        if !self.has(CountsTheReleased) {
            state.relays.remove(&relay.id);
        }
        for held in state.leases.values_mut().flatten() {
            let theirs = held.owner.is_some_and(|(owner, _)| owner != relay.id);
            if self.has(ReleasesEverybodys) || !(theirs || self.has(ReleasesNothing)) {
                held.owner = None;
            }
        }
    }

    fn scope(&self, relay: &Relay) -> String {
        match &relay.tenants {
            Some(tenants) if self.has(ScopesByTheOrderOfTenants) => {
                let names: Vec<&str> = tenants.iter().map(Tenant::as_str).collect();
                names.join(",")
            }
            _ => relay.scope(),
        }
    }

    fn partitions<'a>(&self, state: &'a mut State, scope: &str) -> &'a mut Vec<Held> {
        let scope = match self.fault {
            Some(ScopesShareLeases) => "*",
            _ => scope,
        };
        state
            .leases
            .entry(scope.to_owned())
            .or_insert_with(|| vec![Held::default(); usize::from(PARTITIONS)])
    }

    /// Where the record is that the fence may write; none when it is settled, or another's.
    pub(super) fn writable(&self, state: &mut State, fence: &Fence<'_>, id: Uuid) -> Option<usize> {
        let at = state.rows.iter().position(|row| row.record.id == id)?;
        let row = &state.rows[at];
        let is_new = row.record.delivery.status == Status::New;
        let may = match fence {
            Fence::Birth(owner) => row
                .birth
                .is_some_and(|(born_to, _)| born_to == *owner || self.has(SettlesForeignBirths)),
            Fence::Leases { relay, leases } => {
                let partition = partition(&row.record);
                let scope = self.scope(relay);
                let held = self.partitions(state, &scope);
                leases.iter().any(|lease| {
                    let held = &held[usize::from(lease.partition)];
                    let owned = held.owner.is_some_and(|(owner, _)| owner == relay.id);
                    (lease.partition == partition || self.has(SettlesBeyondItsPartitions))
                        && (held.epoch == lease.epoch || self.has(SettlesUnderAnyEpoch))
                        && (owned || self.has(SettlesForAnyRelay))
                })
            }
        };
        (may && is_new).then_some(at)
    }
}
