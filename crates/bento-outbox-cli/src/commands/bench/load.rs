//! The rows that are measured with: orders, and the events about them.

use bento_outbox::{Aggregate, Event, Isolation, Outbox, OutboxRecord, Payload, Timestamp};
use uuid::Uuid;

use super::ground::Ground;
use crate::failure::{Failure, Result};

/// How many bytes an event's payload has, and about how many an order's row.
pub(super) const PAYLOAD_BYTES: usize = 300;

/// How many ordering keys a backlog has.
pub(super) const KEYS: u64 = 1_000;

/// Events written in one statement.
const CHUNK: usize = 1_000;

/// A row of the business.
pub(super) struct Order {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) total_cents: i64,
    pub(super) note: String,
}

impl Order {
    /// One that nobody has placed before.
    pub(super) fn new() -> Self {
        let id = Uuid::now_v7();
        Self {
            id: id.to_string(),
            customer: format!("customer-{:05}", id.as_u128() % 100_000),
            total_cents: 4_200,
            note: filler(PAYLOAD_BYTES - 60),
        }
    }
}

/// An event of `event_type` about the order `id`.
pub(super) fn event(event_type: &str, id: &str) -> Result<Event> {
    let head = format!(r#"{{"order_id":"{id}","total_cents":4200,"currency":"EUR","note":""#);
    let note = filler(PAYLOAD_BYTES.saturating_sub(head.len() + 2));
    Ok(Event {
        aggregate: Aggregate::new("order", id),
        ..Event::new(event_type, Payload::json(format!("{head}{note}\"}}"))?)
    })
}

/// Event `number` of a backlog, whose keys take turns.
pub(super) fn backlog_event(event_type: &str, number: u64) -> Result<Event> {
    event(event_type, &format!("{}", number % KEYS))
}

/// Records as they come out of a table, with ids of their own, numbered from `first`.
pub(super) fn records(event_type: &str, first: u64, count: u64) -> Result<Vec<OutboxRecord>> {
    let record = |number: u64| {
        let event = backlog_event(event_type, number)?;
        let seq = i64::try_from(number + 1).unwrap_or(i64::MAX);
        Ok(OutboxRecord::of(
            &event,
            &Default::default(),
            seq,
            Timestamp::now(),
        ))
    };
    (first..first + count).map(record).collect()
}

/// Begins to the end, even when nobody waits for it any more: sqlx 0.9.0 gives a connection whose `begin` was
/// dropped back inside of the transaction, and what is dropped after Ctrl-C would wait for that.
pub(super) async fn begin<S: Ground>(
    store: &S,
    isolation: Option<Isolation>,
) -> Result<S::Transaction> {
    let store = store.clone();
    let begun = tokio::spawn(async move { store.begin(isolation).await });
    let ended = |error| Failure::failed(format!("beginning a transaction ended: {error}"));
    Ok(begun.await.map_err(ended)??)
}

/// Writes events as many small services would have: in many transactions.
pub(super) async fn write<S: Ground>(
    store: &S,
    events: impl Iterator<Item = Result<Event>>,
) -> Result<()> {
    let mut chunks = Chunks(events);
    while let Some(chunk) = chunks.next()? {
        let mut transaction = begin(store, None).await?;
        let outbox = Outbox::new(store.clone());
        let connection = S::connection(&mut transaction);
        let appended = outbox.append(connection, chunk).await?;
        store.commit(transaction, &appended).await?;
    }
    Ok(())
}

/// Writes events in one transaction.
pub(super) async fn write_at_once<S: Ground>(
    store: &S,
    events: impl Iterator<Item = Result<Event>>,
) -> Result<()> {
    let mut chunks = Chunks(events);
    let mut transaction = begin(store, None).await?;
    let outbox = Outbox::new(store.clone());
    let mut last = Default::default();
    while let Some(chunk) = chunks.next()? {
        last = outbox
            .append(S::connection(&mut transaction), chunk)
            .await?;
    }
    Ok(store.commit(transaction, &last).await?)
}

/// Events, a statement's worth at a time.
struct Chunks<I>(I);

impl<I: Iterator<Item = Result<Event>>> Chunks<I> {
    fn next(&mut self) -> Result<Option<Vec<Event>>> {
        let chunk: Vec<Event> = self.0.by_ref().take(CHUNK).collect::<Result<_>>()?;
        Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
    }
}

/// So many characters that read like something.
fn filler(length: usize) -> String {
    const TEXT: &str = "two teapots, a lamp and a rug, to be left with the neighbour at number 7; ";
    TEXT.chars().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_size_that_the_report_says() {
        for id in ["0", "999", "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001"] {
            let event = event("bench.measured", id).unwrap();
            event.check().unwrap();
            assert_eq!(event.payload.as_bytes().len(), PAYLOAD_BYTES);
        }
        let records = records("a", 1_999, 2).unwrap();
        let keys: Vec<_> = records
            .iter()
            .map(|record| record.aggregate.id.clone())
            .collect();
        assert_eq!(keys, [Some("999".into()), Some("0".into())]);
        assert_ne!(records[0].id, records[1].id);
    }
}
