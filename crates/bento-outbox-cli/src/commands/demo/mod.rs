//! `demo`: the whole idea in a few seconds, on SQLite in a temporary folder.
//!
//! An order service commits orders with their events, and publishes them to the terminal right
//! after the commit; some payments are declined and roll both back. A projector beside it takes
//! what is left over.

mod screen;
mod shop;

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bento_outbox::stores::{SqliteStore, Tables};
use bento_outbox::{ImmediateSettings, Outbox, Projector, ProjectorSettings, Store as _};
use clap::Args;
use tokio::sync::oneshot;

use crate::failure::{Failure, Result};
use crate::settings::Flags;
use crate::stop::Stop;
use crate::terminal::{Paint, say};
use screen::{Door, Screen};
use shop::{Refused, Shop};

/// See it work: orders, events and a rollback or two, with nothing to set up
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox demo
  bento-outbox demo --orders 1000 | jq .type")]
pub(crate) struct Demo {
    /// How many customers want to order
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    orders: u32,
}

/// How long the orders of a demo that somebody watches take together, at most.
const SHOW: Duration = Duration::from_secs(3);

/// The longest pause between two orders.
const PAUSE_MAX: Duration = Duration::from_millis(120);

impl Demo {
    pub(crate) async fn run(self, flags: &Flags) -> Result<ExitCode> {
        takes_no_settings(flags)?;
        let stop = Stop::on_signals()?;
        let folder = tempfile::Builder::new()
            .prefix("bento-outbox-demo-")
            .tempdir()
            .map_err(|error| Failure::failed(format!("cannot make a temporary folder: {error}")))?;
        let url = format!("sqlite://{}", folder.path().join("shop.db").display());
        let store = SqliteStore::open_or_create(&url, Tables::default()).await?;
        store.migrate().await?;

        let screen = Arc::new(Screen::default());
        screen.title(
            "Orders are committed together with their events; what is committed is published.",
        );
        let (at_once, beside) = (Door::to(&screen), Door::to(&screen));
        let projector = Projector::new(Arc::new(store.clone()), beside, settings());
        let (close, closed) = oneshot::channel::<()>();
        let relay = tokio::spawn({
            let projector = projector.clone();
            async move { projector.run(async { drop(closed.await) }).await }
        });

        let outbox =
            Outbox::new(store).publish_with_settings(at_once.clone(), ImmediateSettings::default());
        let shop = Shop::open(outbox).await?;
        let orders = self.orders_placed(&shop, &screen, &stop).await?;
        shop.closed().await;

        // The relay stops as it does at SIGTERM; what it had not seen yet is carried now.
        drop(close);
        relay
            .await
            .map_err(|error| Failure::failed(format!("the relay ended: {error}")))??;
        while projector.run_once().await?.sent > 0 {}
        if screen.is_closed() {
            return screen.closed().map(|()| ExitCode::SUCCESS);
        }
        let in_database = shop.orders_in_database().await?;
        summarise(&orders, &screen, at_once.passed(), in_database)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Lets every customer order, unless somebody wants to stop or closed the terminal.
    async fn orders_placed(&self, shop: &Shop, screen: &Screen, stop: &Stop) -> Result<Orders> {
        let pause = (SHOW / self.orders.max(1)).min(PAUSE_MAX);
        let mut orders = Orders::default();
        for number in 1..=self.orders {
            if stop.is_requested() || screen.is_closed() {
                break;
            }
            match shop.order(number).await {
                Ok(id) => drop(orders.placed.insert(id)),
                Err(Refused::CardDeclined { order }) => {
                    screen.rolled_back(&order);
                    orders.rolled_back.insert(order);
                }
                Err(Refused::Failed(error)) => return Err(error.into()),
            }
            if screen.is_watched() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(orders)
    }
}

/// Says what happened, counted where it arrived and not where it was meant to.
fn summarise(orders: &Orders, screen: &Screen, at_once: u64, in_database: u64) -> Result<()> {
    let paint = Paint::stderr();
    let published = screen.published();
    let phantoms = published
        .of_orders
        .intersection(&orders.rolled_back)
        .count();
    let silent = orders.placed.difference(&published.of_orders).count();
    if phantoms > 0 || silent > 0 || in_database != orders.placed.len() as u64 {
        return Err(Failure::failed(format!(
            "the outbox broke its promise, please report it: {phantoms} rolled-back orders were published, \
             {silent} placed orders were not, {in_database} orders are in the database and {} were placed",
            orders.placed.len()
        )));
    }
    let (placed, rolled_back) = (orders.placed.len(), orders.rolled_back.len());
    say("");
    say(format!(
        "{} {}, {} {}, {} {}",
        paint.bold(&placed.to_string()),
        if placed == 1 {
            "order placed"
        } else {
            "orders placed"
        },
        paint.bold(&rolled_back.to_string()),
        "rolled back",
        paint.bold(&published.events.to_string()),
        if published.events == 1 {
            "event published"
        } else {
            "events published"
        },
    ));
    if published.events > 0 {
        say(path_taken(published.events, at_once));
    }
    if rolled_back > 0 {
        say(format!(
            "{} of the orders that were rolled back, though each had raised its event before its card was declined",
            paint.bold("None")
        ));
    }
    say(next_steps(paint));
    Ok(())
}

/// Which way the events went out.
fn path_taken(events: u64, at_once: u64) -> String {
    match events - at_once.min(events) {
        0 => "Each right after its commit; the projector beside the service takes what a crash or an absent bus leaves \
              over"
            .into(),
        left => format!(
            "{at_once} right after their commit, {left} by the projector beside the service"
        ),
    }
}

fn takes_no_settings(flags: &Flags) -> Result<()> {
    let given = [
        ("--config", flags.config.is_some()),
        ("--database-url", flags.database_url.is_some()),
        ("--bus-url", flags.bus_url.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::misuse(format!(
            "demo takes no {flag}: it has a database of its own in a temporary folder and publishes to the terminal"
        ))),
        None => Ok(()),
    }
}

fn settings() -> ProjectorSettings {
    ProjectorSettings {
        poll_interval_idle: Duration::from_millis(100),
        ..ProjectorSettings::default()
    }
}

/// What became of the customers' orders, by their ids.
#[derive(Default)]
struct Orders {
    placed: HashSet<String>,
    rolled_back: HashSet<String>,
}

fn next_steps(paint: Paint) -> String {
    // Whoever came by `cargo run` has no program of this name yet.
    let program = if std::env::var_os("CARGO").is_some() {
        "cargo run --release --"
    } else {
        "bento-outbox"
    };
    let event = r#"{"type":"order.placed","aggregate_type":"order","aggregate_id":"1","payload":{"total":42}}"#;
    let line = |command: &str, meaning: &str| {
        format!(
            "\n  {}  {}",
            paint.cyan(&format!("{program} {command}")),
            paint.dim(&format!("# {meaning}"))
        )
    };
    [
        format!(
            "\n{}",
            paint.bold("Try next, on a database of your own (./outbox.db unless set otherwise):")
        ),
        line("migrate", "creates the tables"),
        format!(
            "\n  {}",
            paint.cyan(&format!("echo '{event}' | {program} append"))
        ),
        line(
            "run --once",
            "publishes it here, or with --bus-url nats://… to JetStream",
        ),
        line("status", "what is new, sent and dead"),
        "\n\nThe README has the fifteen lines of Rust behind this.".to_string(),
    ]
    .concat()
}
