//! The same small business transaction without an event, with one, and with one that is published at
//! once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bento_outbox::{ImmediateSettings, Outbox};
use tokio::task::JoinSet;

use super::ground::Ground;
use super::load::{self, Order};
use super::observed::Observed;
use super::own::Own;
use super::report::{Figure, Unit};
use super::{Site, in_turn, rate};
use crate::failure::{Failure, Result};

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// The driver's own transaction: no outbox at all.
    Plain,
    /// A unit of work that raises nothing.
    Without,
    /// A unit of work that raises one event.
    With,
    /// One that is published right after the commit.
    AtOnce,
}

const WAYS: [Way; 4] = [Way::Plain, Way::Without, Way::With, Way::AtOnce];

pub(super) async fn measure<S: Ground>(site: &Site<S>) -> Result<Vec<Figure>> {
    site.preparing("the writers");
    let desk = Desk::open(site).await?;
    let figure = |name, words| Figure::new(name, words, Unit::Transactions);
    let mut figures = [
        figure("write_plain", "transaction, no outbox"),
        figure("write_without_event", "unit of work, no event"),
        figure("write_one_event", "unit of work, one event"),
        figure("write_at_once", "one event, published at once"),
    ];
    for way in WAYS {
        desk.slice(way, desk.each.div_ceil(10)).await?;
    }
    let mut at_once = 0;
    for round in 0..site.sizes.rounds {
        desk.empty().await?;
        for way in in_turn(&WAYS, round) {
            site.step(round, "small transactions");
            let Slice { took, acked } = desk.slice(way, desk.each).await?;
            figures[way as usize].add(rate(desk.each * desk.writers, took));
            at_once += acked;
        }
    }
    let [plain, without, with, immediate] = &mut figures;
    without.compare(plain, None);
    with.compare(without, Some("≥ 0.85"));
    with.compare(plain, None);
    immediate.compare(without, None);
    immediate.compare(plain, None);
    let all = desk.each * desk.writers * u64::from(site.sizes.rounds);
    let share = 100.0 * at_once as f64 / all.max(1) as f64;
    immediate.note(format!("{share:.0} % went out at once"));
    plain.note(format!("{} at the same time", desk.writers));
    Ok(figures.into())
}

/// Where orders are written.
#[derive(Clone)]
struct Desk<S> {
    own: Own<S>,
    outbox: Outbox<S>,
    orders: String,
    insert: Arc<str>,
    event_type: Arc<str>,
    bus: Arc<dyn bento_outbox::Publisher>,
    writers: u64,
    /// Orders that each writer writes in a slice.
    each: u64,
}

/// What writing a number of orders gave.
struct Slice {
    took: Duration,
    /// Events that were acknowledged at once.
    acked: u64,
}

impl<S: Ground> Desk<S> {
    async fn open(site: &Site<S>) -> Result<Self> {
        let own = site.own.outbox("write").await?;
        let orders = site.own.orders().await?;
        Ok(Self {
            outbox: Outbox::new(own.store.clone()),
            own,
            insert: S::SQL.insert.replace("{orders}", &orders).into(),
            orders,
            event_type: (*site.sizes.event_type).into(),
            bus: site.bus.clone(),
            writers: site.sizes.writers,
            each: site.sizes.transactions.div_ceil(site.sizes.writers),
        })
    }

    async fn empty(&self) -> Result<()> {
        self.own.empty().await?;
        let orders = S::SQL.empty.replace("{table}", &self.orders);
        Ok(self.own.store.execute(orders).await?)
    }

    /// Has all writers write at the same time, `each` so many orders. What is published at once is
    /// waited for: it is part of the work.
    async fn slice(&self, way: Way, each: u64) -> Result<Slice> {
        let observed = Observed::counting(self.bus.clone());
        let settings = ImmediateSettings::default();
        let outbox = match way {
            Way::AtOnce => self
                .outbox
                .publish_with_settings(observed.clone(), settings),
            _ => self.outbox.clone(),
        };
        let begun = Instant::now();
        let mut writers = JoinSet::new();
        for _ in 0..self.writers {
            writers.spawn(self.clone().write(outbox.clone(), way, each));
        }
        while let Some(ended) = writers.join_next().await {
            ended.map_err(|error| Failure::failed(format!("a writer ended: {error}")))??;
        }
        outbox.flushed().await;
        let took = begun.elapsed();
        observed.sound()?;
        Ok(Slice {
            took,
            acked: observed.acked(),
        })
    }

    async fn write(self, outbox: Outbox<S>, way: Way, orders: u64) -> Result<()> {
        for _ in 0..orders {
            let order = Order::new();
            if way == Way::Plain {
                let insert = self.insert.clone();
                self.own.store.insert_alone(insert, &order).await?;
                continue;
            }
            let mut uow = outbox.begin().await?;
            S::insert(uow.tx(), self.insert.clone(), &order).await?;
            if way != Way::Without {
                uow.raise(load::event(&self.event_type, &order.id)?)?;
            }
            uow.commit().await?;
        }
        Ok(())
    }
}
