//! Transactions, and what is written in them.

use std::collections::HashSet;

use bento_outbox::{
    Appended, Birth, Error, ErrorKind, Event, Headers, OutboxRecord, Payload, Result, Savepoint,
    Status, Tenant, Timestamp,
};
use uuid::Uuid;

use super::Fault::*;
use super::receiving::{self, Once};
use super::{Key, MutantStore, Row, State, key};

/// A transaction on a [`MutantStore`], and its connection as well.
pub struct MutantTransaction {
    store: MutantStore,
    number: u64,
    is_open: bool,
    staged: Vec<Row>,
    pub(super) received: Vec<(receiving::Key, Once)>,
    /// How much was staged and received before each.
    savepoints: Vec<(usize, usize)>,
}

impl MutantTransaction {
    pub(super) fn new(store: &MutantStore) -> Self {
        let mut state = store.state();
        state.begun += 1;
        Self {
            store: store.clone(),
            number: state.begun,
            is_open: true,
            staged: Vec::new(),
            received: Vec::new(),
            savepoints: Vec::new(),
        }
    }

    pub(super) fn savepoint(&mut self, verb: Savepoint) {
        let verb = match (self.store.fault, verb) {
            (Some(KeepsUndoneSavepoints), Savepoint::RollBack) => Savepoint::Release,
            (Some(DropsReleasedSavepoints), Savepoint::Release) => Savepoint::RollBack,
            _ => verb,
        };
        match verb {
            Savepoint::Set => {
                let before = (self.staged.len(), self.received.len());
                self.savepoints.push(before);
            }
            Savepoint::Release => drop(self.savepoints.pop()),
            Savepoint::RollBack => {
                let (staged, received) = self.savepoints.pop().unwrap_or_default();
                self.staged.truncate(staged);
                if !self.store.has(KeepsUndoneReceipts) {
                    self.undo_received(received);
                }
            }
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn store(&self) -> MutantStore {
        self.store.clone()
    }

    pub(super) fn commit(mut self) {
        let is_last = self.number == self.store.state().begun;
        let loses = self.store.has(ForgetsCommits)
            || (self.store.has(LosesToLaterTransactions) && !is_last);
        self.end(!loses);
    }

    pub(super) fn rollback(mut self) {
        let commits = self.store.has(CommitsRollbacks);
        self.end(commits);
    }

    fn end(&mut self, commits: bool) {
        self.is_open = false;
        let staged = std::mem::take(&mut self.staged);
        if commits || self.store.has(ReceivesThoughRolledBack) {
            let received = std::mem::take(&mut self.received);
            self.store.state().add_received(received);
        }
        if commits {
            self.store.state().add(staged);
        }
        self.undo_received(0);
    }
}

impl Drop for MutantTransaction {
    fn drop(&mut self) {
        if self.is_open {
            let commits = self.store.has(CommitsDropped);
            self.end(commits);
        }
    }
}

impl State {
    /// Adds rows, except those whose id has come to be there meanwhile.
    fn add(&mut self, rows: Vec<Row>) {
        let mut there: HashSet<Uuid> = self.rows.iter().map(|row| row.record.id).collect();
        for row in rows {
            if there.insert(row.record.id) {
                let at = self
                    .rows
                    .partition_point(|there| there.record.seq < row.record.seq);
                self.rows.insert(at, row);
            }
        }
    }
}

impl MutantStore {
    pub(super) fn appended(
        &self,
        connection: &mut MutantTransaction,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        let default = Tenant::default();
        let tenant = if self.has(ForgetsTheUnitsTenant) {
            &default
        } else {
            tenant
        };
        let now = Timestamp::now();
        let given: Vec<Uuid> = events.iter().map(|event| event.id).collect();
        let mut events: Vec<Event> = events
            .iter()
            .map(|event| self.written(event.clone()))
            .collect();
        let last = match self.fault {
            Some(ForgetsTheLastEvent) => events.len() - 1,
            Some(AppendsAThousand) => events.len().min(1_000),
            _ => events.len(),
        };
        events.truncate(last);
        if self.has(ReversesAppends) {
            events.reverse();
        }

        let state = &mut *self.state();
        let staged = &mut connection.staged;
        let mut there: HashSet<Uuid> = all(state, staged).map(|record| record.id).collect();
        let unsent: HashSet<Option<Key>> = match birth {
            Some(_) => self.unsent(state, staged),
            None => HashSet::new(),
        };
        let mut appended = Appended::default();
        let mut rows = Vec::new();
        for mut event in events {
            let is_there = !there.insert(event.id);
            if is_there {
                appended.duplicates.push(event.id);
                match self.fault {
                    Some(WritesDuplicatesAgain) => event.id = Uuid::now_v7(),
                    Some(ReplacesDuplicates) => {
                        replace(state, staged, &mut rows, &event);
                        continue;
                    }
                    Some(LeasesDuplicates) => {
                        let record = OutboxRecord::of(&event, tenant, state.seq, now);
                        appended.leased.extend(birth.map(|_| record));
                        continue;
                    }
                    _ => continue,
                }
            } else {
                appended.ids.push(event.id);
            }
            state.seq += 1;
            let record = OutboxRecord::of(&event, tenant, state.seq, now);
            let due = record.available_at <= now || self.has(BornThoughDelayed);
            let first = !unsent.contains(&self.birth_key(&record));
            let paused = (state.is_paused(&record.tenant)
                && !self.has(BornThoughItsTenantIsPaused))
                || (state.pauses_a_destination() && !self.has(BornThoughADestinationIsPaused))
                || (self.has(OnePauseLeavesNobodyBorn) && !state.pauses.is_empty());
            let birth = birth.filter(|_| first && due && !paused && !self.has(NeverBorn));
            if birth.is_some() {
                let tenant = if self.has(LeasesForTheUnitsTenant) {
                    tenant.clone()
                } else {
                    record.tenant.clone()
                };
                appended.leased.push(OutboxRecord {
                    tenant,
                    ..record.clone()
                });
            }
            rows.push(Row {
                record,
                birth: birth.map(|birth| (birth.owner, now.after(birth.term))),
                taken: false,
            });
        }
        if self.has(LeasesLastFirst) {
            appended.leased.reverse();
        }
        match self.fault {
            Some(RefusesDuplicates) if !appended.duplicates.is_empty() => {
                return Err(Error::new(ErrorKind::Database, "an id is there already"));
            }
            Some(HidesDuplicates) => appended.duplicates.clear(),
            Some(CountsDuplicates) => (appended.ids, appended.duplicates) = (given, Vec::new()),
            Some(ForgetsTheLastEvent | AppendsAThousand) => appended.ids.extend(&given[last..]),
            Some(ReversesAppends) => appended.ids.reverse(),
            _ => {}
        }
        match self.fault {
            Some(AppendsAtOnce) => state.add(rows),
            Some(CommitsAppends) => {
                state.add(std::mem::take(staged));
                state.add(rows);
            }
            _ => staged.extend(rows),
        }
        Ok(appended)
    }

    /// The keys of which nothing more is born leased.
    fn unsent(&self, state: &State, staged: &[Row]) -> HashSet<Option<Key>> {
        let staged = match self.fault {
            Some(BornThoughItsTransactionHasMore) => &[],
            _ => staged,
        };
        all(state, staged)
            .filter(|record| match record.delivery.status {
                Status::New => !self.has(BornThoughNewWaits),
                Status::Err => !self.has(BornThoughDeadWaits),
                Status::Sent => self.has(NotBornAfterTheSent),
            })
            .map(|record| self.birth_key(record))
            .filter(|key| key.is_some() || self.has(OrdersTheUnorderedBorn))
            .collect()
    }

    fn birth_key(&self, record: &OutboxRecord) -> Option<Key> {
        let mut key = key(record)?;
        match self.fault {
            Some(BirthKeyWithoutTenant) => key.0 = Tenant::default(),
            Some(BirthKeyWithoutKind) => key.1.kind = None,
            _ => {}
        }
        Some(key)
    }

    /// The event as it is written.
    fn written(&self, mut event: Event) -> Event {
        let seconds = |time: Timestamp| {
            let micros = time.unix_micros();
            Timestamp::from_unix_micros(micros - micros.rem_euclid(1_000_000)).unwrap_or(time)
        };
        match self.fault {
            Some(ForgetsTheEventsTenant) => event.tenant = None,
            Some(DropsAggregateKind) => event.aggregate.kind = None,
            Some(DropsKindWithoutId) if event.aggregate.id.is_none() => {
                event.aggregate.kind = None;
            }
            Some(InventsAggregateKind) => {
                event.aggregate.kind.get_or_insert_default();
            }
            Some(DropsSchema) => (event.schema_id, event.schema_version) = (None, 1),
            Some(DropsKeyId) => event.key_id = None,
            Some(DropsHeaders) => event.headers = Headers::default(),
            Some(CutsTimesToSeconds) => {
                event.occurred_at = seconds(event.occurred_at);
                event.created_at = event.created_at.map(seconds);
            }
            Some(OverwritesCreatedAt) => event.created_at = None,
            Some(ForgetsAvailableAt) => event.available_at = None,
            _ => event.payload = self.written_payload(event.payload),
        }
        event
    }

    fn written_payload(&self, payload: Payload) -> Payload {
        let text = || String::from_utf8_lossy(payload.as_bytes()).into_owned();
        let json = |text: String| Payload::json(text).unwrap_or(payload.clone());
        match (self.fault, &payload) {
            (Some(ReformatsJson), Payload::Json(_)) => {
                let value = serde_json::from_str::<serde_json::Value>(&text());
                value.map_or(payload.clone(), |value| json(value.to_string()))
            }
            (Some(DropsNul), Payload::Json(_)) => json(text().replace("\\u0000", "")),
            (Some(TakesDataForJson), Payload::Data(_)) => json(text()),
            (Some(TakesEmptyDataForJson), Payload::Data(data)) if data.is_empty() => {
                json("null".into())
            }
            (Some(TakesDataForText), Payload::Data(_)) => Payload::Data(text().into()),
            _ => payload,
        }
    }
}

/// What is committed, and what a transaction adds.
fn all<'a>(state: &'a State, staged: &'a [Row]) -> impl Iterator<Item = &'a OutboxRecord> {
    state.rows.iter().chain(staged).map(|row| &row.record)
}

/// Puts an event in the place of the one with its id.
fn replace(state: &mut State, staged: &mut [Row], rows: &mut [Row], event: &Event) {
    let all = state.rows.iter_mut().chain(staged).chain(rows);
    for row in all.filter(|row| row.record.id == event.id) {
        let before = &row.record;
        row.record = OutboxRecord::of(event, &before.tenant, before.seq, before.created_at);
    }
}
