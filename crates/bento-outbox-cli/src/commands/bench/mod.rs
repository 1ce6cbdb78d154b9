//! `bench`: what the outbox costs and does on the user's own database and bus.
//!
//! Everything is a ratio to something plain that ran in the same round: absolute figures follow the
//! machine's mood, ratios do not.

mod drain;
mod ground;
mod latency;
mod load;
mod observed;
mod own;
mod relay;
mod report;
mod traps;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bento_outbox::{ErrorKind, ProjectorSettings, Publisher as _};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;

use self::drain::Cursor;
use self::ground::Ground;
use self::observed::Gate;
use self::own::{Own, OwnTables};
use self::report::{Machine, Report, whole};
use crate::connect::{self, with_store};
use crate::failure::{Failure, Result};
use crate::settings::{self, Settings};
use crate::stop::Stop;
use crate::terminal::{self, say};

/// Measure writing, draining and latency on your own database and bus
///
/// Works in tables of its own, named outbox_bench_…, and drops them at the end, also after Ctrl-C and
/// after an error. The table of the setting `table` is not touched. The events go to the bus and stay
/// there, except with file:, where they go to a file beside it that is removed again. What is compared runs
/// in turn, round after round, and each ratio is the median of the rounds' ratios. Goals are for
/// comparison: the exit code does not judge.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox bench --bus-url null:
  bento-outbox bench --database-url postgres://user@host/name \\
    --bus-url nats://host:4222 --json
  bento-outbox bench --bus-url null: --only traps --full")]
pub(crate) struct Bench {
    /// What to measure [default: everything]
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = Part::ALL, hide_default_value = true)]
    only: Vec<Part>,
    /// How often each thing is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Events that are drained each time
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    events: u64,
    /// Events claimed at once while draining
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Transactions that are written each time
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    transactions: u64,
    /// How many write at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=8))]
    writers: u64,
    /// Rows that a trap has at most; a tenth of it where they are made anew in every round
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(10..=10_000_000))]
    trap_rows: u64,
    /// The traps in their full sizes, up to ten million rows: takes long, and about 10 GB of disk
    #[arg(long, conflicts_with = "trap_rows")]
    full: bool,
    /// The type of the events, from which the topic is made
    #[arg(long, value_name = "TYPE", default_value = "bench.measured")]
    event_type: String,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// A part of what can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A small business transaction with and without an event
    Write,
    /// A backlog to the bus, against a plain cursor and raw publishing
    Drain,
    /// From the commit to the acknowledgement, against a round trip to the bus
    Latency,
    /// Draining beside what makes claims dear
    Traps,
}

impl Part {
    const ALL: [Self; 4] = [Self::Write, Self::Drain, Self::Latency, Self::Traps];
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// How much is measured.
#[derive(Clone, Debug, Default, Serialize)]
struct Sizes {
    rounds: u32,
    events: u64,
    batch: u32,
    transactions: u64,
    writers: u64,
    /// None for the full sizes.
    trap_rows: Option<u64>,
    event_type: String,
    payload_bytes: usize,
    keys: u64,
}

/// Where and how one measures.
struct Site<S> {
    sizes: Sizes,
    own: OwnTables<S>,
    /// What the settings say of relays, but for everybody's events, and without counting them.
    projector: ProjectorSettings,
    bus: Arc<Gate>,
    /// Whether the bus keeps nothing, so that there is nothing to compare with.
    bus_is_null: bool,
    progress: ProgressBar,
}

impl Bench {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        self.check_event_type()?;
        if settings::scheme(&settings.bus_url) == Some("stdout") {
            let what = "is stdout:, where the report goes: choose another, such as --bus-url null:";
            return Err(settings.refuse("bus_url", what));
        }
        let stop = Stop::on_signals()?;
        let database = connect::database(&settings).await?;
        with_store!(database, store => self.on(store, settings, &stop).await)
    }

    async fn on<S: Ground>(
        self,
        store: S,
        mut settings: Settings,
        stop: &Stop,
    ) -> Result<ExitCode> {
        // The database must be there and sound, the user's own tables need not.
        if let Err(error) = store.check().await
            && error.kind() != ErrorKind::Schema
        {
            return Err(error.into());
        }
        let own = OwnTables::named(store.clone(), settings.tables.schema()).await?;
        let urls = [&settings.database_url, &settings.bus_url].map(|url| settings::masked(url));
        // One bus is measured, whatever goes elsewhere.
        settings.routes.clear();
        let file = OwnFile::instead_of_the_users(&mut settings, own.prefix());
        let bus = Gate::before(connect::bus(&settings)?);
        bus.check().await.map_err(|rejection| {
            let (url, reason) = (&urls[1], rejection.reason);
            Failure::failed(format!("the bus {url} takes no events: {reason}"))
        })?;
        let [database, bus_url] = urls;
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION"),
            database,
            server: store.texts(S::SQL.server.into()).await?.pop(),
            bus: bus_url,
            machine: Machine::of_this_run(),
            sizes: self.sizes(),
            figures: Vec::new(),
            skipped: Vec::new(),
        };
        let bus_is_null = settings::scheme(&settings.bus_url) == Some("null");
        self.announce(&report, own.prefix(), file.as_ref(), bus_is_null);
        let site = Site {
            sizes: report.sizes.clone(),
            own,
            projector: ProjectorSettings {
                tenants: None,
                count_backlog_every: None,
                ..settings.projector.clone()
            },
            bus,
            bus_is_null,
            progress: terminal::steps(),
        };
        let measured = tokio::select! {
            measured = Box::pin(self.measure(&site, &mut report)) => measured,
            () = stop.requested() => Err(Failure::failed("stopped before the end")),
        };
        site.progress.finish_and_clear();
        site.bus.close().await;
        drop(file);
        let dropped = site.own.drop_all().await;
        let prefix = site.own.prefix();
        match dropped {
            Ok(tables) => say(format!("dropped: the {tables} tables {prefix}_*")),
            Err(failure) => {
                let left = format!("some of the tables {prefix}_* are left, drop them yourself");
                if let Err(first) = measured {
                    say(first.to_string());
                }
                return Err(failure.about(left));
            }
        }
        measured?;
        report.print(self.json)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn measure<S: Ground>(&self, site: &Site<S>, report: &mut Report) -> Result<()> {
        let asked = |part| self.only.contains(&part);
        let cursor = match asked(Part::Drain) || asked(Part::Traps) {
            true => Some(Cursor::loaded(site).await?),
            false => None,
        };
        if asked(Part::Write) {
            report.figures.extend(write::measure(site).await?);
        }
        if let Some(cursor) = cursor.as_ref().filter(|_| asked(Part::Drain)) {
            report.figures.extend(drain::measure(site, cursor).await?);
        }
        if asked(Part::Latency) {
            report.figures.extend(latency::measure(site).await?);
        }
        if let Some(cursor) = cursor.as_ref().filter(|_| asked(Part::Traps)) {
            let (figures, skipped) = traps::measure(site, cursor).await?;
            report.figures.extend(figures);
            report.skipped.extend(skipped);
        }
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            rounds: self.rounds,
            events: self.events,
            batch: self.batch,
            transactions: self.transactions,
            writers: self.writers,
            trap_rows: Some(self.trap_rows).filter(|_| !self.full),
            event_type: self.event_type.clone(),
            payload_bytes: load::PAYLOAD_BYTES,
            keys: load::KEYS,
        }
    }

    fn check_event_type(&self) -> Result<()> {
        let event = load::event(&self.event_type, "1")?;
        event
            .check()
            .map_err(|error| Failure::misuse(format!("--event-type: {error}")))
    }

    /// Says what is about to be done to the user's database and bus, and how much of it.
    fn announce(&self, report: &Report, prefix: &str, file: Option<&OwnFile>, bus_is_null: bool) {
        let Report {
            database,
            bus,
            machine,
            sizes,
            ..
        } = report;
        let server = report.server.as_deref().unwrap_or("the database");
        let number = |number: u64| whole(number as f64);
        say(format!(
            "measuring on {database} ({server}), in tables {prefix}_* that are dropped at the end"
        ));
        match file {
            Some(file) => say(format!(
                "the events go to {}, which is removed at the end",
                file.0.display()
            )),
            None if bus_is_null => {}
            None => say(format!(
                "about {} events of type {} go to {bus}, and stay there",
                number(self.events_for_the_bus()),
                self.event_type
            )),
        }
        say(format!(
            "{}: {} events of {} bytes on {} keys in batches of {}, {} transactions by {}",
            terminal::counted(sizes.rounds.into(), "round"),
            number(sizes.events),
            sizes.payload_bytes,
            number(sizes.keys),
            number(sizes.batch.into()),
            number(sizes.transactions),
            terminal::counted(sizes.writers, "writer"),
        ));
        if let Some(load) = machine
            .load_before
            .filter(|load| *load > machine.cpus as f64 / 2.0)
        {
            let cpus = terminal::counted(machine.cpus as u64, "processor");
            say(format!(
                "this machine is busy (a load of {load:.1} on {cpus}): trust the ratios, not the rates"
            ));
        }
        if self.full && self.only.contains(&Part::Traps) {
            say("the traps in full need about 10 GB of disk, and take an hour or more");
        }
    }

    fn events_for_the_bus(&self) -> u64 {
        let rounds = u64::from(self.rounds);
        let of = |part, events| if self.only.contains(&part) { events } else { 0 };
        of(Part::Write, rounds * self.transactions)
            + of(Part::Drain, (rounds * 3 + 1) * self.events)
            + of(Part::Latency, rounds * 3 * latency::SAMPLES)
    }
}

impl<S: Ground> Site<S> {
    /// Tells a person what is measured now.
    fn step(&self, round: u32, what: &str) {
        let rounds = self.sizes.rounds;
        self.progress
            .set_message(format!("round {} of {rounds}: {what}", round + 1));
    }

    /// Tells a person what is made ready now.
    fn preparing(&self, what: &str) {
        self.progress.set_message(format!("preparing {what}"));
    }

    /// A fresh backlog and nothing else.
    async fn fill(&self, own: &Own<S>) -> Result<()> {
        own.empty().await?;
        self.add_backlog(own).await
    }

    /// A backlog on top of what is there.
    async fn add_backlog(&self, own: &Own<S>) -> Result<()> {
        let backlog = |number| load::backlog_event(&self.sizes.event_type, number);
        load::write(&own.store, (0..self.sizes.events).map(backlog)).await?;
        own.tidy().await
    }

    /// How a relay works here that keeps sent events, or deletes them as they are sent.
    fn relay(&self, keep: bool) -> ProjectorSettings {
        ProjectorSettings {
            batch_size: self.sizes.batch,
            retention: if keep { None } else { Some(Duration::ZERO) },
            ..self.projector.clone()
        }
    }
}

/// What is compared, forwards in one round and backwards in the next, so that none always comes first.
fn in_turn<T: Copy>(ways: &[T], round: u32) -> Vec<T> {
    let mut ways = ways.to_vec();
    if round % 2 == 1 {
        ways.reverse();
    }
    ways
}

/// Events in so much time, by the second.
fn rate(events: u64, took: Duration) -> f64 {
    events as f64 / took.as_secs_f64().max(1e-9)
}

/// A file beside the user's, in which there are events of theirs. Removed when dropped.
struct OwnFile(PathBuf);

impl OwnFile {
    /// Where the bus is a file, points the settings to one of our own.
    fn instead_of_the_users(settings: &mut Settings, prefix: &str) -> Option<Self> {
        let path = settings.bus_url.strip_prefix("file:")?;
        let path = path.trim_start_matches("//");
        if path.is_empty() {
            return None;
        }
        let own = format!("{path}.{prefix}");
        settings.bus_url = format!("file:{own}");
        Some(Self(own.into()))
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // It is not there if nothing was published.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_alternate() {
        assert_eq!(in_turn(&[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(in_turn(&[1, 2, 3], 1), [3, 2, 1]);
    }
}
