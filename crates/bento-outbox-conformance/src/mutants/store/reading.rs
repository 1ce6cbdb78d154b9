//! What an operator looks for.

use std::time::Duration;

use bento_outbox::{
    Filter, OutboxRecord, PAGE_MAX, PARTITIONS, Page, Relay, Standing, Status, Timestamp,
};
use uuid::Uuid;

use super::Fault::*;
use super::{MutantStore, key, partition};

impl MutantStore {
    pub(super) fn searched(&self, filter: &Filter, page: &Page) -> Vec<OutboxRecord> {
        let (filter, page) = (self.filter(filter), self.page(page));
        let state = self.state();
        let records = state.rows.iter().map(|row| &row.record);
        let matching = records
            .filter(|record| page.begins_before(record.seq) && filter.matches(record))
            .map(|record| self.read(record, page.payload));
        let mut records: Vec<OutboxRecord> = matching.collect();
        if page.newest_first != self.has(ReversesPages) && !self.has(IgnoresTheDirection) {
            records.reverse();
        }
        if self.has(PagesSkipOne) && page.after.is_some() && !records.is_empty() {
            records.remove(0);
        }
        let limit = match self.fault {
            Some(ForgetsThePageMax) => page.limit,
            Some(IgnoresThePageLimit) => PAGE_MAX,
            _ => page.bounded(),
        };
        records.truncate(limit as usize);
        records
    }

    fn filter(&self, filter: &Filter) -> Filter {
        let mut filter = filter.clone();
        let micro = Duration::from_micros(1);
        match self.fault {
            Some(FiltersByNoTenant) => filter.tenant = None,
            Some(FiltersByNoType) => filter.event_type = None,
            Some(FiltersByNoAggregate) => filter.aggregate_id = None,
            Some(FiltersByNoSince) => filter.since = None,
            Some(FiltersByNoUntil) => filter.until = None,
            Some(FiltersByNoSentSince) => filter.sent_since = None,
            Some(FiltersByNoIds) => filter.ids = None,
            Some(FiltersByNoStatus) => filter.status = None,
            Some(TakesNoIdsForAny) => filter.ids = filter.ids.filter(|ids| !ids.is_empty()),
            Some(SinceIsExclusive) => filter.since = filter.since.map(|at| at.after(micro)),
            Some(UntilIsInclusive) => filter.until = filter.until.map(|at| at.after(micro)),
            _ => {}
        }
        filter
    }

    fn page(&self, page: &Page) -> Page {
        let mut page = *page;
        match self.fault {
            Some(PagesFromTheFirst) => page.after = None,
            Some(PagesRepeatTheLast) => {
                let back = if page.newest_first { 1 } else { -1 };
                page.after = page.after.map(|after| after + back);
            }
            Some(PagesGoOnUpwards) if page.newest_first => {
                page.after = page.after.map(|after| i64::MAX - after);
            }
            _ => {}
        }
        page
    }

    fn read(&self, record: &OutboxRecord, payload: bool) -> OutboxRecord {
        let mut record = record.clone();
        let reads = match self.fault {
            Some(ReadsPayloadsUnasked) => true,
            Some(KeepsPayloadsBack) => false,
            _ => payload,
        };
        if !reads {
            record.payload = Default::default();
            record.is_json &= !self.has(TakesUnreadJsonForData);
        }
        record
    }

    pub(super) fn stands(&self, id: Uuid, dead_letters_block: bool) -> Option<Standing> {
        let now = Timestamp::now();
        let state = self.state();
        let there = state.rows.iter().find(|row| row.record.id == id);
        let somewhere = state
            .rows
            .first()
            .filter(|_| self.has(UnknownStandsSomewhere));
        let row = there.or(somewhere)?;
        let record = &row.record;
        let partition = match self.fault {
            Some(StandsElsewhere) => {
                (partition(record) + u16::try_from(record.seq).unwrap_or(0)) % PARTITIONS
            }
            _ => partition(record),
        };
        let mut ahead = state.rows.iter().map(|row| &row.record).filter(|other| {
            let waits = match other.delivery.status {
                Status::New => true,
                Status::Sent => self.has(StandsBehindTheSent),
                Status::Err if dead_letters_block => !self.has(StandsBehindNoneThatBlocks),
                Status::Err => self.has(StandsBehindTheSkipped),
            };
            let is_before = match self.fault {
                Some(StandsBehindTheLater) => other.seq != record.seq,
                _ => other.seq < record.seq,
            };
            waits && is_before && self.are_of_one_key(record, other)
        });
        let ahead = match self.fault {
            Some(StandsBehindTheLast) => ahead.last(),
            _ => ahead.next(),
        };
        let is_new = record.delivery.status == Status::New;
        let carriers = state.relays.iter().filter(|(_, (scope, until))| {
            let lives = *until > now || self.has(TheDeadCarry);
            let carries = Relay::scope_has(scope, &record.tenant) || self.has(AllCarryAll);
            lives && carries
        });
        let held_by = state.leases.iter().find_map(|(scope, partitions)| {
            let carries = Relay::scope_has(scope, &record.tenant) || self.has(AllCarryAll);
            let (owner, until) = partitions.get(usize::from(partition))?.owner?;
            let lives = until > now || self.has(TheDeadHold);
            (carries && lives).then_some((owner, until))
        });
        Some(Standing {
            record: OutboxRecord {
                payload: Default::default(),
                ..record.clone()
            },
            now,
            partition,
            born_to: row.birth.filter(|_| !self.has(HidesBirths)),
            ahead: ahead
                .filter(|_| is_new || self.has(SettledStandsBehind))
                .map(|ahead| ahead.id),
            held_by: held_by.filter(|_| !self.has(HidesTheHolder)),
            relays: u32::try_from(carriers.count()).unwrap_or(u32::MAX),
        })
    }

    fn are_of_one_key(&self, one: &OutboxRecord, other: &OutboxRecord) -> bool {
        match (key(one), key(other)) {
            (None, None) => self.has(StandsBehindTheUnordered),
            (Some((tenant, aggregate)), Some((others, theirs))) => {
                (tenant == others || self.has(StandsBehindOtherTenants))
                    && (aggregate == theirs
                        || aggregate.id == theirs.id && self.has(StandsBehindOtherKinds))
            }
            _ => false,
        }
    }
}
