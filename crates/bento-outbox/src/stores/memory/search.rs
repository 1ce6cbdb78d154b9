//! What an operator looks for, and where a record stands.

use bytes::Bytes;
use uuid::Uuid;

use super::{Rows, partition};
use crate::filter::{Filter, Page};
use crate::record::{OutboxRecord, Status};
use crate::standing::Standing;
use crate::store::Relay;
use crate::timestamp::Timestamp;

pub(super) fn events(rows: &Rows, filter: &Filter, page: &Page) -> Vec<OutboxRecord> {
    let matching = rows
        .records
        .iter()
        .filter(|record| page.begins_before(record.seq) && filter.matches(record));
    let read = |record: &OutboxRecord| match page.payload {
        true => record.clone(),
        false => without_payload(record),
    };
    let limit = page.bounded() as usize;
    match page.newest_first {
        true => matching.rev().take(limit).map(read).collect(),
        false => matching.take(limit).map(read).collect(),
    }
}

pub(super) fn standing(rows: &Rows, id: Uuid, dead_letters_block: bool) -> Option<Standing> {
    let now = Timestamp::now();
    let record = rows.records.iter().find(|record| record.id == id)?;
    let partition = partition(record);
    let is_ahead = |other: &&OutboxRecord| {
        let waits = match other.delivery.status {
            Status::New => true,
            Status::Err => dead_letters_block,
            Status::Sent => false,
        };
        waits && other.seq < record.seq && other.ordering_key() == record.ordering_key()
    };
    let ahead = rows
        .records
        .iter()
        .find(is_ahead)
        .filter(|_| record.delivery.status == Status::New && record.ordering_key().is_some());
    let carriers = rows
        .relays
        .iter()
        .filter(|(_, (scope, until))| *until > now && Relay::scope_has(scope, &record.tenant));
    let held_by = carriers.clone().find_map(|(relay, (scope, _))| {
        let (owner, until) = rows.leases.get(scope)?.get(usize::from(partition))?.owner?;
        (owner == *relay && until > now).then_some((owner, until))
    });
    Some(Standing {
        record: without_payload(record),
        now,
        partition,
        born_to: rows.births.get(&id).copied(),
        ahead: ahead.map(|ahead| ahead.id),
        held_by,
        relays: u32::try_from(carriers.count()).unwrap_or(u32::MAX),
    })
}

fn without_payload(record: &OutboxRecord) -> OutboxRecord {
    OutboxRecord {
        payload: Bytes::new(),
        ..record.clone()
    }
}
