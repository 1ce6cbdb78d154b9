//! `replay`: sent events, published once more.

use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use bento_outbox::{ReplayEnd, ReplayProgress, ReplaySettings, Replayable, Replayed, replayable};
use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::choice::Choice;
use crate::connect;
use crate::failure::{Failure, Result};
use crate::logging;
use crate::operator::Actor;
use crate::settings::{self, Settings};
use crate::stop::Stop;
use crate::terminal::{self, counted};

/// Publish sent events once more, with the same ids and bytes
///
/// They go where events of their type and tenant go now, those of one aggregate in their order, and
/// nothing about them is changed. Nothing is published where some of them are of a tenant or for a
/// destination that is paused. Only what is still kept can be published again (`retention`). A bus
/// that is away is waited for. An event that the bus refuses ends it; Ctrl-C does after what is in
/// flight. Then it exits with 1 and says how to go on.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox replay --type order.placed --since 2h --dry-run
  bento-outbox replay --tenant acme --aggregate 7 --yes
  bento-outbox replay --all --rate 500 --bus-url nats://localhost:4222")]
pub(crate) struct Replay {
    #[command(flatten)]
    choice: Choice,
    /// Only those after this place in the outbox, where a replay ended before
    #[arg(long, value_name = "SEQ")]
    after: Option<i64>,
    /// At most so many events a second [default: as many as the bus takes]
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<NonZeroU32>,
    /// Say what would be published and publish nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Say at the end what was done, as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    actor: Actor,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    matched: u64,
    dry_run: bool,
    #[serde(flatten)]
    replayed: Replayed,
}

impl Replay {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        self.choice.must_be_made("sent events")?;
        let filter = self.choice.filter()?;
        if !self.dry_run {
            self.must_not_mix(&settings)?;
            if !self.yes {
                terminal::must_have_a_person()?;
            }
        }
        let stop = Stop::on_signals()?;
        let bus = connect::bus(&settings)?;
        let store = connect::database(&settings).await?.store();
        logging::begin(&settings, true);
        store.check().await?;

        let asked = ReplaySettings {
            filter,
            after: self.after,
            per_second: self.rate,
            ordered: settings.projector.ordered,
            retry: settings.projector.retry.clone(),
            ..ReplaySettings::default()
        };
        let counting = terminal::spinner("events: counting what was sent");
        let found = tokio::select! {
            found = replayable(store.as_ref(), bus.as_ref(), &asked) => found?,
            () = stop.requested() => {
                return Err(Failure::failed("stopped before anything was published"));
            }
        };
        counting.finish_and_clear();
        let events = counted(found.events, "sent event");
        if found.events == 0 {
            terminal::say(
                "no sent event matches: there is none, or it is kept no longer (retention)",
            );
            return self.report(&found, Replayed::default());
        }
        terminal::say(format!(
            "{events}: {}, under the same ids, after whatever consumers got since",
            destinations(&found)
        ));
        let free = found.must_not_be_paused(store.as_ref()).await;
        free.map_err(|error| Failure::failed(settings.advice(&error.report())))?;
        if self.dry_run {
            terminal::say("nothing is published (--dry-run)");
            return self.report(&found, Replayed::default());
        }
        if !self.yes && !terminal::agreed(&format!("Publish {events} once more?")) {
            terminal::say("nothing is published");
            return self.report(&found, Replayed::default());
        }
        let (begun, progress) = (Instant::now(), Progress::of(found.events));
        let told = progress.clone();
        let tell = move |done: &ReplayProgress| told.tell(done);
        let stopped = async {
            stop.requested().await;
            None
        };
        let by = self.actor.by();
        let replayed = found
            .publish_by(&by, store, bus, asked, tell, stopped)
            .await?;
        progress.bar.finish_and_clear();
        let failure = self.failure(&settings, &found, &replayed);
        if failure.is_none() {
            let seconds = begun.elapsed().as_secs_f64();
            terminal::say(format!(
                "{} published once more in {seconds:.1} s ({:.0} a second)",
                counted(replayed.published, "event"),
                replayed.published as f64 / seconds.max(0.001)
            ));
        }
        self.report(&found, replayed)?;
        failure.map_or(Ok(ExitCode::SUCCESS), Err)
    }

    /// # Errors
    /// Events and the summary would both go to standard output; exit code 2.
    fn must_not_mix(&self, settings: &Settings) -> Result<()> {
        let to_stdout = |bus: &settings::Bus<'_>| settings::scheme(bus.url) == Some("stdout");
        if self.json && settings.buses().iter().any(to_stdout) {
            return Err(Failure::misuse(
                "--json and the bus stdout: both write to standard output: give another --bus-url, or leave --json out",
            ));
        }
        Ok(())
    }

    /// Why not all were published, and how to go on.
    fn failure(
        &self,
        settings: &Settings,
        found: &Replayable,
        replayed: &Replayed,
    ) -> Option<Failure> {
        let ended = match &replayed.end {
            ReplayEnd::Done => return None,
            ReplayEnd::Stopped => "stopped".to_string(),
            ReplayEnd::Refused { id, reason } => {
                format!("the bus does not take event {id}: {reason}; it may be mended now")
            }
            ReplayEnd::Failed { reason } => reason.clone(),
        };
        let seq = replayed.through.or(self.after);
        let after = seq.map_or(String::new(), |seq| format!(" --after {seq}"));
        let rate = self.rate.map(|rate| format!(" --rate {rate}"));
        Some(Failure::failed(settings.advice(&format!(
            "{ended}; {} of {} were published; go on with `bento-outbox replay{}{after}{}`",
            replayed.published,
            found.events,
            self.choice.as_arguments(),
            rate.unwrap_or_default(),
        ))))
    }

    fn report(&self, found: &Replayable, replayed: Replayed) -> Result<ExitCode> {
        if self.json {
            let report = Report {
                matched: found.events,
                dry_run: self.dry_run,
                replayed,
            };
            let json = serde_json::to_string(&report).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Events a second.
fn rate(text: &str) -> Result<NonZeroU32, &'static str> {
    let wrong = "a rate is a whole number of events a second, from 1; without --rate it is as many as the bus takes";
    text.parse().map_err(|_| wrong)
}

/// Where they go: `to nats://host:4222`, or `7 to nats://host:4222 and 2 to file:audit.jsonl`.
fn destinations(found: &Replayable) -> String {
    let alone = found.destinations.len() == 1;
    let named = found.destinations.iter().map(|(name, events)| match alone {
        true => format!("to {name}"),
        false => format!("{events} to {name}"),
    });
    named.collect::<Vec<String>>().join(" and ")
}

/// A bar, and whether it was said that the bus is away.
#[derive(Clone)]
struct Progress {
    bar: ProgressBar,
    waits: std::sync::Arc<Mutex<bool>>,
}

impl Progress {
    fn of(events: u64) -> Self {
        Self {
            bar: terminal::bar(events),
            waits: std::sync::Arc::default(),
        }
    }

    fn tell(&self, done: &ReplayProgress) {
        self.bar.set_position(done.published);
        let mut waits = self
            .waits
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (false, Some(reason)) = (*waits, &done.waits_for) {
            let said = format!("waiting for the bus: {}", terminal::visible(reason));
            self.bar.suspend(|| terminal::say(said));
        }
        *waits = done.waits_for.is_some();
    }
}
