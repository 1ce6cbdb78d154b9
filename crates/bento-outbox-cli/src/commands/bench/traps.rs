//! Draining beside what makes claims dear in other outboxes, against draining a fresh table in the
//! same rounds. They are about the database, so they drain to nowhere.

use std::sync::Arc;
use std::time::Duration;

use bento_outbox::publishers::NullPublisher;
use bento_outbox::{Event, Isolation, Outbox, Publisher, Tenant, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use super::drain::Cursor;
use super::ground::Ground;
use super::observed::Observed;
use super::own::Own;
use super::relay::{self, Beside};
use super::report::{Figure, Skipped, Unit, percentile, whole};
use super::{Site, in_turn, latency, load, rate};
use crate::failure::Result;

/// Rows that are written as an application would; the rest are copies of them.
const WRITTEN: u64 = 10_000;

/// How long from now a delayed event is due.
const DELAY: Duration = Duration::from_secs(365 * 86_400);

/// Events of each idle tenant, all of them sent.
const EVENTS_OF_AN_IDLE_TENANT: u64 = 2;

/// The events that meet new tables: a first burst, before the database has looked at them.
const NEW_TABLES_MAX: u64 = 10_000;

/// The tenants that have little to say, and how many events they have beside a flood.
const QUIET_TENANTS: u64 = 10;
const QUIET_EVENTS: u64 = 100;

/// How often one of them has an event.
const QUIET_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Cursor,
    Fresh,
    Delayed,
    Sent,
    IdleTenants,
    NewTables,
    OneTransaction,
    HeldBack,
    Quiet,
    Flooded,
}

const WAYS: [Way; 10] = [
    Way::Cursor,
    Way::Fresh,
    Way::Delayed,
    Way::Sent,
    Way::IdleTenants,
    Way::NewTables,
    Way::OneTransaction,
    Way::HeldBack,
    Way::Quiet,
    Way::Flooded,
];

impl Way {
    fn figure(self) -> Figure {
        let (name, words, unit) = match self {
            Self::Cursor => ("trap_cursor", "plain cursor", Unit::Events),
            Self::Fresh => ("trap_fresh", "drain, fresh table", Unit::Events),
            Self::Delayed => ("trap_delayed", "drain, delayed events", Unit::Events),
            Self::Sent => ("trap_sent", "drain, sent events", Unit::Events),
            Self::IdleTenants => ("trap_idle_tenants", "drain, idle tenants", Unit::Events),
            Self::NewTables => ("trap_new_tables", "drain, new tables", Unit::Events),
            Self::OneTransaction => (
                "trap_one_transaction",
                "drain, one transaction",
                Unit::Events,
            ),
            Self::HeldBack => (
                "trap_vacuum_held_back",
                "drain, vacuum held back",
                Unit::Events,
            ),
            Self::Quiet => ("trap_no_flood", "quiet tenants alone", Unit::Milliseconds),
            Self::Flooded => (
                "trap_flood",
                "quiet tenants, one floods",
                Unit::Milliseconds,
            ),
        };
        Figure::new(name, words, unit)
    }
}

/// How many rows each trap has.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rows {
    delayed: u64,
    sent: u64,
    idle_tenants: u64,
    in_new_tables: u64,
    one_transaction: u64,
    dead: u64,
    flood: u64,
}

impl Rows {
    /// The sizes of the design, or less: a tenth of the most where rows are made in every round. One
    /// transaction has as many as the fresh table that it is compared with, if it may.
    fn at_most(most: Option<u64>, events: u64) -> Self {
        let once = |full: u64| most.map_or(full, |most| full.min(most));
        let each_round = |full: u64| most.map_or(full, |most| full.min((most / 10).max(1)));
        Self {
            delayed: once(1_000_000),
            sent: once(10_000_000),
            idle_tenants: once(5_000),
            in_new_tables: events.min(NEW_TABLES_MAX),
            one_transaction: each_round(100_000).max(events.min(100_000)),
            dead: each_round(400_000),
            flood: each_round(100_000),
        }
    }

    /// Those of one trap.
    fn of(&self, way: Way) -> Option<u64> {
        match way {
            Way::Cursor | Way::Fresh | Way::Quiet => None,
            Way::Delayed => Some(self.delayed),
            Way::Sent => Some(self.sent),
            Way::IdleTenants => Some(self.idle_tenants),
            Way::NewTables => Some(self.in_new_tables),
            Way::OneTransaction => Some(self.one_transaction),
            Way::HeldBack => Some(self.dead),
            Way::Flooded => Some(self.flood),
        }
    }
}

pub(super) async fn measure<S: Ground>(
    site: &Site<S>,
    cursor: &Cursor<S>,
) -> Result<(Vec<Figure>, Vec<Skipped>)> {
    let traps = Traps::set(site).await?;
    let mut skipped = Vec::new();
    let mut ways = WAYS.to_vec();
    if !S::SQL.keeps_versions {
        ways.retain(|way| *way != Way::HeldBack);
        skipped.push(Skipped {
            name: "trap_vacuum_held_back",
            reason: "this database keeps no old row versions that something must clean up",
        });
    }
    let mut figures = WAYS.map(Way::figure);
    let mut latencies = [Vec::new(), Vec::new()];
    for round in 0..site.sizes.rounds {
        for way in in_turn(&ways, round) {
            site.step(round, &traps.described(way));
            let figure = &mut figures[way as usize];
            match way {
                Way::Cursor => figure.add(cursor.rate().await?),
                Way::Quiet | Way::Flooded => {
                    let taken = traps.latencies(way == Way::Flooded).await?;
                    figure.add(percentile(&taken, 0.5));
                    latencies[usize::from(way == Way::Flooded)].extend(taken);
                }
                _ => figure.add(traps.drained(way, round).await?),
            }
        }
    }
    compare(&mut figures, &latencies);
    for way in WAYS {
        if let Some(rows) = traps.rows.of(way) {
            figures[way as usize].beside(rows, traps.described(way));
        }
    }
    let mut figures = Vec::from(figures);
    if !skipped.is_empty() {
        figures.remove(Way::HeldBack as usize);
    }
    Ok((figures, skipped))
}

fn compare(figures: &mut [Figure; 10], latencies: &[Vec<f64>; 2]) {
    let [
        cursor,
        fresh,
        delayed,
        sent,
        idle,
        new,
        one,
        held,
        quiet,
        flooded,
    ] = figures;
    fresh.compare(cursor, None);
    for trap in [delayed, sent, idle, new, one, held] {
        trap.compare(fresh, Some("≥ 0.80"));
        trap.compare(cursor, None);
    }
    quiet.p99(percentile(&latencies[0], 0.99));
    flooded.p99(percentile(&latencies[1], 0.99));
    flooded.compare(quiet, None);
}

/// The tables of all traps; fresh rows come and go, what is a trap stays.
struct Traps<'a, S> {
    site: &'a Site<S>,
    rows: Rows,
    fresh: Own<S>,
    delayed: Own<S>,
    sent: Own<S>,
    idle: Own<S>,
    held: Own<S>,
    tenants: Own<S>,
}

impl<'a, S: Ground> Traps<'a, S> {
    async fn set(site: &'a Site<S>) -> Result<Self> {
        let traps = Self {
            site,
            rows: Rows::at_most(site.sizes.trap_rows, site.sizes.events),
            fresh: site.own.outbox("fresh").await?,
            delayed: site.own.outbox("delayed").await?,
            sent: site.own.outbox("sent").await?,
            idle: site.own.outbox("idle").await?,
            held: site.own.outbox("held").await?,
            tenants: site.own.outbox("tenants").await?,
        };
        site.preparing("delayed events");
        traps.set_delayed().await?;
        site.preparing("sent events");
        traps.set_sent().await?;
        site.preparing("idle tenants");
        traps.set_idle().await?;
        site.preparing("the first drain");
        traps.drained(Way::Fresh, 0).await?;
        Ok(traps)
    }

    async fn set_delayed(&self) -> Result<()> {
        let due = Timestamp::now().after(DELAY);
        let event = |number: u64| {
            let event = self.event(&format!("delayed-{number}"))?;
            Ok(Event {
                available_at: Some(due),
                ..event
            })
        };
        let written = WRITTEN.min(self.rows.delayed);
        load::write(&self.delayed.store, (0..written).map(event)).await?;
        self.delayed.grow(written, self.rows.delayed).await
    }

    async fn set_sent(&self) -> Result<()> {
        let event = |number: u64| self.event(&format!("sent-{number}"));
        let written = WRITTEN.min(self.rows.sent);
        load::write(&self.sent.store, (0..written).map(event)).await?;
        self.sent.tidy().await?;
        self.carry(&self.sent, true, written, 0).await?;
        self.sent.grow(written, self.rows.sent).await
    }

    async fn set_idle(&self) -> Result<()> {
        let events = self.rows.idle_tenants * EVENTS_OF_AN_IDLE_TENANT;
        let event = |number: u64| {
            let tenant = format!("idle-{}", number % self.rows.idle_tenants);
            let event = self.event(&number.to_string())?;
            Ok(Event {
                tenant: Some(tenant.parse::<Tenant>()?),
                ..event
            })
        };
        load::write(&self.idle.store, (0..events).map(event)).await?;
        self.idle.tidy().await?;
        self.carry(&self.idle, true, events, 0).await?;
        Ok(())
    }

    /// What is drained, in words.
    fn described(&self, way: Way) -> String {
        let rows = whole(self.rows.of(way).unwrap_or(0) as f64);
        match way {
            Way::Cursor => "plain cursor".into(),
            Way::Fresh => "fresh table".into(),
            Way::Delayed => format!("{rows} delayed events"),
            Way::Sent => format!("{rows} sent events"),
            Way::IdleTenants => format!("{rows} idle tenants"),
            Way::NewTables => format!("{rows} events in tables made a moment ago"),
            Way::OneTransaction => format!("{rows} events in one transaction"),
            Way::HeldBack => format!("{rows} dead rows that vacuum may not remove"),
            Way::Quiet => format!("{QUIET_TENANTS} quiet tenants alone"),
            Way::Flooded => {
                format!("{QUIET_TENANTS} quiet tenants beside {rows} events of another")
            }
        }
    }

    /// Events a second.
    async fn drained(&self, way: Way, round: u32) -> Result<f64> {
        let Self { site, rows, .. } = self;
        let (own, left) = match way {
            Way::NewTables => return self.drained_from_new_tables(round).await,
            Way::OneTransaction => return self.drained_from_one_transaction().await,
            Way::HeldBack => return self.drained_while_held_back().await,
            Way::Delayed => (&self.delayed, rows.delayed),
            Way::Sent => (&self.sent, 0),
            Way::IdleTenants => (&self.idle, 0),
            Way::Cursor | Way::Fresh | Way::Quiet | Way::Flooded => {
                self.fresh.empty().await?;
                (&self.fresh, 0)
            }
        };
        site.add_backlog(own).await?;
        let events = site.sizes.events;
        Ok(rate(events, self.carry(own, false, events, left).await?))
    }

    /// The database has not looked at the tables yet, and plans by guesses.
    async fn drained_from_new_tables(&self, round: u32) -> Result<f64> {
        let new = self.site.own.outbox(&format!("new{round}")).await?;
        let events = self.rows.in_new_tables;
        load::write(&new.store, self.backlog(events)).await?;
        Ok(rate(events, self.carry(&new, false, events, 0).await?))
    }

    /// A relay comes upon it right after the commit, before the database has looked at it.
    async fn drained_from_one_transaction(&self) -> Result<f64> {
        let Self { fresh, rows, .. } = self;
        fresh.empty().await?;
        let events = rows.one_transaction;
        load::write_at_once(&fresh.store, self.backlog(events)).await?;
        Ok(rate(events, self.carry(fresh, false, events, 0).await?))
    }

    /// Somebody has a snapshot open, so that the rows that are drained first cannot be removed.
    async fn drained_while_held_back(&self) -> Result<f64> {
        let Self { site, held, .. } = self;
        held.empty().await?;
        let mut snapshot = load::begin(&held.store, Some(Isolation::RepeatableRead)).await?;
        let look = held.sql("select 1 from {table} limit 1");
        S::look(S::connection(&mut snapshot), look).await?;
        load::write(&held.store, self.backlog(self.rows.dead)).await?;
        held.tidy().await?;
        self.carry(held, false, self.rows.dead, 0).await?;
        site.add_backlog(held).await?;
        let took = self.carry(held, false, site.sizes.events, 0).await?;
        held.store.rollback(snapshot).await?;
        Ok(rate(site.sizes.events, took))
    }

    /// Milliseconds from the commit of each event of the quiet tenants until it is acknowledged, as
    /// long as another one floods the relay, or without that one.
    async fn latencies(&self, flooded: bool) -> Result<Vec<f64>> {
        let Self { site, tenants, .. } = self;
        tenants.empty().await?;
        let mut flood = 0;
        if flooded {
            flood = self.rows.flood;
            let event = |number| {
                let event = load::backlog_event(&site.sizes.event_type, number)?;
                Ok(Event {
                    tenant: Some("flood".parse::<Tenant>()?),
                    ..event
                })
            };
            load::write(&tenants.store, (0..flood).map(event)).await?;
            tenants.tidy().await?;
        }
        let observed = Observed::timing(nowhere());
        let relay = Beside::start(tenants, observed.clone(), site.projector.clone());
        let outbox = Outbox::new(tenants.store.clone());
        let mut pause = interval(QUIET_PAUSE);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut committed = Vec::new();
        for number in 0..QUIET_EVENTS.min(site.sizes.events) {
            pause.tick().await;
            if flooded && observed.acked() >= flood + number && number > 0 {
                break;
            }
            let quiet = outbox.tenant(format!("quiet-{}", number % QUIET_TENANTS));
            committed.push(latency::commit(&quiet, &site.sizes.event_type).await?);
        }
        let mut taken = Vec::new();
        for (id, committed) in committed {
            let arrived = observed.arrival(id).await?;
            let took = arrived.saturating_duration_since(committed);
            taken.push(latency::milliseconds(took));
        }
        observed.reached(flood + taken.len() as u64).await;
        observed.sound()?;
        relay.end().await?;
        Ok(taken)
    }

    async fn carry(&self, own: &Own<S>, keep: bool, events: u64, left: u64) -> Result<Duration> {
        relay::carry(own, nowhere(), self.site.relay(keep), events, left).await
    }

    fn backlog(&self, events: u64) -> impl Iterator<Item = Result<Event>> + '_ {
        (0..events).map(|number| load::backlog_event(&self.site.sizes.event_type, number))
    }

    fn event(&self, id: &str) -> Result<Event> {
        load::event(&self.site.sizes.event_type, id)
    }
}

fn nowhere() -> Arc<dyn Publisher> {
    Arc::new(NullPublisher)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_traps_are_as_large_as_the_design_says_or_as_is_asked() {
        let full = Rows {
            delayed: 1_000_000,
            sent: 10_000_000,
            idle_tenants: 5_000,
            in_new_tables: 10_000,
            one_transaction: 100_000,
            dead: 400_000,
            flood: 100_000,
        };
        assert_eq!(Rows::at_most(None, 20_000), full);
        let small = Rows {
            delayed: 50,
            sent: 50,
            idle_tenants: 50,
            in_new_tables: 70,
            one_transaction: 70,
            dead: 5,
            flood: 5,
        };
        assert_eq!(Rows::at_most(Some(50), 70), small);
    }
}
