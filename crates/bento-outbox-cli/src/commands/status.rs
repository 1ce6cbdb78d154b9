//! `status`: how much of each tenant is new, retrying, sent and dead.

use std::process::ExitCode;

use bento_outbox::{HeldKey, Pausable, Pause, TenantStatus};
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::connect;
use crate::failure::Result;
use crate::held::{self, Held};
use crate::paused;
use crate::settings::Settings;
use crate::terminal;

/// Show how much of each tenant is new, retrying, sent and dead, and what waits
///
/// Also names the aggregates whose later events wait for an earlier one, and why: at most 20 of them,
/// in --json under `held`, with `held_more` where there are more. Of what is paused it says since when and
/// why, in --json by `paused` of each tenant and under `paused_destinations`.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox status
  bento-outbox status --json | jq .total.new
  bento-outbox status --check || echo 'somebody must look at the dead letters'")]
pub(crate) struct Status {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Exit with 3 when there are dead letters
    #[arg(long)]
    check: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    tenants: Vec<TenantStatus>,
    total: TenantStatus,
    held: Vec<HeldKey>,
    held_more: bool,
    paused_destinations: Vec<Pause>,
}

/// How many waiting keys are named.
const HELD_MAX: usize = 20;

/// Of how many pauses it is said since when and why.
const PAUSES_SAID_MAX: usize = 20;

impl Status {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let store = connect::database(&settings).await?.store();
        store.check().await?;
        let tenants = store.status().await?;
        let Held { keys, more } = held::held(&settings, store.as_ref(), HELD_MAX).await?;
        let pauses = store.pauses().await?;
        let is_destination = |pause: &&Pause| pause.kind == Pausable::Destination;
        let report = Report {
            total: TenantStatus::total(&tenants),
            tenants,
            held: keys,
            held_more: more,
            paused_destinations: pauses.iter().filter(is_destination).cloned().collect(),
        };
        if self.json {
            let json = serde_json::to_string(&report).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        } else if report.tenants.is_empty() {
            terminal::say(
                "the outbox is empty: no event was written yet, or all were sent and are no longer kept",
            );
        } else if terminal::stdout_is_terminal() {
            terminal::print(|out| writeln!(out, "{}", table(&report)))?;
        } else {
            terminal::print(|out| {
                writeln!(out, "{}", HEADER.join("\t"))?;
                let rows = report.tenants.iter().chain([&report.total]);
                rows.map(cells)
                    .try_for_each(|cells| writeln!(out, "{}", cells.join("\t")))
            })?;
        }
        if !self.json {
            let said = pauses.iter().take(PAUSES_SAID_MAX).map(paused::sentence);
            said.for_each(terminal::say);
            if pauses.len() > PAUSES_SAID_MAX {
                terminal::say("and more are paused: `tenants list`, `destinations list`");
            }
            report
                .held
                .iter()
                .for_each(|key| terminal::say(held::sentence(key)));
            if report.held_more {
                terminal::say("and more keys wait");
            }
        }
        let needs_a_person = self.check && report.total.dead > 0;
        Ok(if needs_a_person {
            ExitCode::from(3)
        } else {
            ExitCode::SUCCESS
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
        if status.paused { "yes" } else { "-" }.into(),
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
