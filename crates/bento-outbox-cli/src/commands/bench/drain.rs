//! A backlog to the bus, against a plain cursor over the same rows and raw publishing of the same
//! records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bento_outbox::{Outcome, Publisher as _};

use super::ground::Ground;
use super::observed::refusal;
use super::own::Own;
use super::report::{Figure, Unit};
use super::{Site, in_turn, load, rate, relay};
use crate::failure::{Failure, Result};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Cursor,
    Raw,
    Deleting,
    Keeping,
}

pub(super) async fn measure<S: Ground>(site: &Site<S>, cursor: &Cursor<S>) -> Result<Vec<Figure>> {
    let own = site.own.outbox("drain").await?;
    let figure = |name, words| Figure::new(name, words, Unit::Events);
    let mut read = figure("drain_cursor", "plain cursor");
    let mut raw = figure("drain_raw", "raw publishing");
    let mut deleting = figure("drain_deleting", "drain, retention 0");
    let mut keeping = figure("drain_keeping", "drain, sent events kept");
    let ways = match site.bus_is_null {
        true => vec![Way::Cursor, Way::Deleting, Way::Keeping],
        false => vec![Way::Cursor, Way::Raw, Way::Deleting, Way::Keeping],
    };
    site.preparing("the first drain");
    drain(site, &own, false).await?;
    for round in 0..site.sizes.rounds {
        for way in in_turn(&ways, round) {
            match way {
                Way::Cursor => {
                    site.step(round, "plain cursor");
                    read.add(cursor.rate().await?);
                }
                Way::Raw => {
                    site.step(round, "raw publishing");
                    raw.add(publish(site).await?);
                }
                Way::Deleting => {
                    site.step(round, "drain, retention 0");
                    deleting.add(drain(site, &own, false).await?);
                }
                Way::Keeping => {
                    site.step(round, "drain, sent events kept");
                    keeping.add(drain(site, &own, true).await?);
                }
            }
        }
    }
    // The goals are for a bus that costs nothing, and for a bus as such.
    let to_null = site.bus_is_null.then_some("≥ 0.45, ledger ≥ 0.80");
    deleting.compare(&read, to_null);
    keeping.compare(&read, None);
    if site.bus_is_null {
        return Ok(vec![read, deleting, keeping]);
    }
    let to_bus = "≥ 0.70, RabbitMQ ≥ 0.90";
    deleting.compare(&raw, Some(to_bus));
    keeping.compare(&raw, Some(to_bus));
    Ok(vec![read, raw, deleting, keeping])
}

/// Events a second from a fresh backlog to the bus.
async fn drain<S: Ground>(site: &Site<S>, own: &Own<S>, keep: bool) -> Result<f64> {
    site.fill(own).await?;
    let events = site.sizes.events;
    let took = relay::carry(own, site.bus.clone(), site.relay(keep), events, 0).await?;
    Ok(rate(events, took))
}

/// Events a second from memory to the bus, in batches of the same size.
async fn publish<S: Ground>(site: &Site<S>) -> Result<f64> {
    let (events, event_type) = (site.sizes.events, &site.sizes.event_type);
    // No two records of a batch may have one key.
    let batch = u64::from(site.sizes.batch).min(load::KEYS);
    let (mut published, mut took) = (0, Duration::ZERO);
    while published < events {
        let records = load::records(event_type, published, batch.min(events - published))?;
        let begun = Instant::now();
        let outcomes = site.bus.publish(&records).await;
        took += begun.elapsed();
        if let Some(refused) = outcomes.iter().find(|outcome| **outcome != Outcome::Acked) {
            return Err(Failure::failed(refusal(refused)));
        }
        published += records.len() as u64;
    }
    Ok(rate(events, took))
}

/// What reading costs at least: all records of a table that nobody changes, in order, by key.
pub(super) struct Cursor<S> {
    own: Own<S>,
    page: Arc<str>,
    batch: u32,
    events: u64,
}

impl<S: Ground> Cursor<S> {
    /// One over a backlog as the relay has it.
    pub(super) async fn loaded(site: &Site<S>) -> Result<Self> {
        site.preparing("the rows for the plain cursor");
        let own = site.own.outbox("read").await?;
        if let Some(index) = S::SQL.page_index {
            own.store.execute(own.sql(index)).await?;
        }
        site.fill(&own).await?;
        let cursor = Self {
            page: own.sql(S::SQL.page).into(),
            own,
            batch: site.sizes.batch,
            events: site.sizes.events,
        };
        cursor.rate().await?;
        Ok(cursor)
    }

    /// Records a second.
    pub(super) async fn rate(&self) -> Result<f64> {
        let begun = Instant::now();
        let read = self.own.store.read(self.page.clone(), self.batch).await?;
        let took = begun.elapsed();
        if read != self.events {
            let events = self.events;
            return Err(Failure::failed(format!(
                "the plain cursor read {read} records of {events}: please report it"
            )));
        }
        Ok(rate(read, took))
    }
}
