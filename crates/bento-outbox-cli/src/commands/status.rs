//! `status`: how much of each tenant is new, retrying, sent and dead.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bento_outbox::{Held, Pausable, Pause, Store, TenantStatus, Timestamp};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::connect;
use crate::failure::Result;
use crate::held;
use crate::paused;
use crate::settings::Settings;
use crate::stop::Stop;
use crate::terminal;

/// Show how much of each tenant is new, retrying, sent and dead, and what waits
///
/// Also names the aggregates whose later events wait for an earlier one, and why: at most 20 of them,
/// in --json under `held`, with `held_more` where there are more. Of what is paused it says since when and
/// why, in --json by `paused` of each tenant and under `paused_destinations`; how many events of a tenant are
/// kept for those is under `paused`, in --json under `paused_events`, and they are among the new ones.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox status
  bento-outbox status --json | jq .total.new
  bento-outbox status --watch 5
  bento-outbox status --check || echo 'somebody must look at the dead letters'")]
pub(crate) struct Status {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Exit with 3 when there are dead letters
    #[arg(long)]
    check: bool,
    /// Again and again, every so many seconds [2 if none are given], until Ctrl-C
    ///
    /// A terminal is redrawn; elsewhere one block, or with --json one line, follows the other.
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3_600),
        conflicts_with = "check"
    )]
    watch: Option<u64>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    tenants: Vec<TenantStatus>,
    total: TenantStatus,
    #[serde(flatten)]
    held: Held,
    paused_destinations: Vec<Pause>,
    /// All of them, for people.
    #[serde(skip)]
    pauses: Vec<Pause>,
    /// What to do about those that keep nothing.
    #[serde(skip)]
    in_vain: Vec<String>,
}

/// Empties a terminal and begins at its top.
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// A database is left alone so many times as long as its answer took.
const LEFT_ALONE: u32 = 4;

/// How many waiting keys are named.
const HELD_MAX: u32 = 20;

/// Of how many pauses it is said since when and why.
const PAUSES_SAID_MAX: usize = 20;

impl Status {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        if let Some(seconds) = self.watch {
            return self.keep_watching(&settings, store.as_ref(), seconds).await;
        }
        let report = Report::read(&settings, store.as_ref()).await?;
        self.show(&report)?;
        let needs_a_person = self.check && report.total.dead > 0;
        Ok(if needs_a_person {
            ExitCode::from(3)
        } else {
            ExitCode::SUCCESS
        })
    }

    /// Shows it again and again, until Ctrl-C or until nobody reads it.
    async fn keep_watching(
        &self,
        settings: &Settings,
        store: &dyn Store,
        seconds: u64,
    ) -> Result<ExitCode> {
        let stop = Stop::on_signals()?;
        let redraws = !self.json && terminal::can_redraw();
        let mut first = true;
        loop {
            let begun = Instant::now();
            let report = tokio::select! {
                report = Report::read(settings, store) => report,
                () = stop.requested() => return Ok(ExitCode::SUCCESS),
            };
            let is_read = terminal::printed(|out| match (redraws, self.json || first) {
                (true, _) => write!(out, "{CLEAR}"),
                (false, true) => Ok(()),
                (false, false) => writeln!(out),
            })?;
            let is_read = match report {
                Ok(report) => is_read && self.show(&report)?,
                // Who watches wants to see when the database is back.
                Err(error) => {
                    terminal::say(format!("{error}"));
                    is_read
                }
            };
            if !is_read {
                return Ok(ExitCode::SUCCESS);
            }
            if redraws {
                let now = terminal::moment(Timestamp::now());
                terminal::say(format!("{now}, every {seconds} s; Ctrl-C ends it"));
            }
            first = false;
            let pause = Duration::from_secs(seconds).max(begun.elapsed() * LEFT_ALONE);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.requested() => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    /// Prints it; false when nobody reads it any more.
    fn show(&self, report: &Report) -> Result<bool> {
        if self.json {
            let json = serde_json::to_string(report).unwrap_or_default();
            return terminal::printed(|out| writeln!(out, "{json}"));
        }
        let is_read = if report.tenants.is_empty() {
            terminal::say(
                "the outbox is empty: no event was written yet, or all were sent and are no longer kept",
            );
            true
        } else if terminal::stdout_is_terminal() {
            terminal::printed(|out| writeln!(out, "{}", table(report)))?
        } else {
            terminal::printed(|out| {
                writeln!(out, "{}", HEADER.join("\t"))?;
                let rows = report.tenants.iter().chain([&report.total]);
                rows.map(cells)
                    .try_for_each(|cells| writeln!(out, "{}", cells.join("\t")))
            })?
        };
        let said = report.pauses.iter().take(PAUSES_SAID_MAX);
        said.map(paused::sentence).for_each(terminal::say);
        if report.pauses.len() > PAUSES_SAID_MAX {
            terminal::say("and more are paused: `tenants list`, `destinations list`");
        }
        let in_vain = report.in_vain.iter().take(PAUSES_SAID_MAX);
        in_vain.for_each(terminal::say);
        report
            .held
            .keys
            .iter()
            .for_each(|key| terminal::say(held::sentence(key)));
        if report.held.more {
            terminal::say("and more keys wait");
        }
        Ok(is_read)
    }
}

impl Report {
    async fn read(settings: &Settings, store: &dyn Store) -> Result<Self> {
        let tenants = store.status().await?;
        let held = bento_outbox::held(store, &settings.projector, HELD_MAX).await?;
        let pauses = store.pauses().await?;
        let in_vain = paused::in_vain(&pauses, settings);
        let is_destination = |pause: &&Pause| pause.kind == Pausable::Destination;
        Ok(Self {
            total: TenantStatus::total(&tenants),
            tenants,
            held,
            paused_destinations: pauses.iter().filter(is_destination).cloned().collect(),
            pauses,
            in_vain: in_vain.values().map(|said| settings.advice(said)).collect(),
        })
    }
}

const HEADER: [&str; 8] = [
    "tenant",
    "new",
    "retrying",
    "sent",
    "dead",
    "oldest unsent",
    "sent a second",
    "paused",
];

fn table(report: &Report) -> Table {
    let mut table = terminal::table(HEADER);
    for tenant in &report.tenants {
        table.add_row(cells(tenant));
    }
    if report.tenants.len() > 1 {
        table.add_row(cells(&report.total));
    }
    table
        .column_iter_mut()
        .skip(1)
        .for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

fn cells(status: &TenantStatus) -> [String; 8] {
    [
        status.tenant_id.clone(),
        status.new.to_string(),
        status.retrying.to_string(),
        status.sent.to_string(),
        status.dead.to_string(),
        status
            .oldest_new_seconds
            .map_or_else(|| "-".into(), terminal::age),
        format!("{:.1}", status.sent_per_second),
        match (status.paused, status.paused_events) {
            (true, _) => "yes".into(),
            (false, 0) => "-".into(),
            (false, events) => terminal::counted(events, "event"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_of_all_tenants_and_the_oldest_is_nobodys_when_all_are_sent() {
        let tenant = |new, oldest_new_seconds| TenantStatus {
            new,
            oldest_new_seconds,
            dead: 1,
            ..Default::default()
        };
        let all =
            TenantStatus::total(&[tenant(1, Some(3.0)), tenant(2, Some(75.5)), tenant(0, None)]);
        assert_eq!(
            (all.new, all.dead, all.oldest_new_seconds),
            (3, 3, Some(75.5))
        );
        assert!(
            TenantStatus::total(&[]).sent_per_second.is_sign_positive(),
            "printed as 0.0"
        );
        assert_eq!(
            TenantStatus::total(&[tenant(0, None)]).oldest_new_seconds,
            None
        );
        assert_eq!(terminal::age(75.5), "1m 15s");
    }
}
