//! `tenants list` and `destinations list`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{Pausable, Pause, Store, TenantBacklog, Timestamp};
use serde::Serialize;

use crate::failure::Result;
use crate::settings::Settings;
use crate::{paused, terminal};

/// The pause of one, where it is paused.
#[derive(Default, Serialize)]
struct State {
    paused: bool,
    since: Option<Timestamp>,
    by: Option<String>,
    reason: Option<String>,
}

#[derive(Default, Serialize)]
struct Tenant {
    tenant_id: String,
    pending: u64,
    dead: u64,
    #[serde(flatten)]
    state: State,
}

#[derive(Default, Serialize)]
struct Destination {
    name: String,
    /// Whether events are routed to it under these settings.
    routed: bool,
    #[serde(flatten)]
    state: State,
}

#[derive(Serialize)]
struct Tenants {
    tenants: Vec<Tenant>,
}

#[derive(Serialize)]
struct Destinations {
    destinations: Vec<Destination>,
}

pub(super) async fn tenants(store: &Arc<dyn Store>, json: bool) -> Result<ExitCode> {
    let mut tenants: BTreeMap<String, Tenant> = BTreeMap::new();
    for backlog in store.backlog().await? {
        let TenantBacklog {
            tenant_id,
            pending,
            dead,
            ..
        } = backlog;
        let tenant = tenants.entry(tenant_id).or_default();
        (tenant.pending, tenant.dead) = (pending, dead);
    }
    for (name, state) in of_kind(Pausable::Tenant, store.pauses().await?) {
        tenants.entry(name).or_default().state = state;
    }
    let named = |(tenant_id, tenant)| Tenant {
        tenant_id,
        ..tenant
    };
    let tenants: Vec<Tenant> = tenants.into_iter().map(named).collect();
    if json {
        return object(&Tenants { tenants });
    }
    let rows = tenants.into_iter().map(|tenant| {
        let [since, by, reason] = tenant.state.cells();
        let counts = [tenant.pending, tenant.dead].map(|count| count.to_string());
        let [pending, dead] = counts;
        [tenant.tenant_id, pending, dead, since, by, reason]
    });
    let header = ["tenant", "not sent", "dead", "paused since", "by", "reason"];
    rows_of(
        header,
        rows.collect(),
        "no tenant is paused, and none has events that are not sent",
    )
}

pub(super) async fn destinations(
    store: &Arc<dyn Store>,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode> {
    let pauses = store.pauses().await?;
    let in_vain = paused::in_vain(&pauses, settings);
    let mut paused = of_kind(Pausable::Destination, pauses);
    let here = |name: &String| Destination {
        name: name.clone(),
        routed: true,
        state: paused.remove(name).unwrap_or_default(),
    };
    let mut destinations: Vec<Destination> = settings.destinations().iter().map(here).collect();
    destinations.extend(paused.into_iter().map(|(name, state)| Destination {
        name,
        routed: false,
        state,
    }));
    if json {
        return object(&Destinations { destinations });
    }
    let rows = destinations.into_iter().map(|destination| {
        let [since, by, reason] = destination.state.cells();
        let routed = if destination.routed { "yes" } else { "no" };
        [destination.name, routed.into(), since, by, reason]
    });
    let header = ["destination", "routed to", "paused since", "by", "reason"];
    let listed = rows_of(header, rows.collect(), "")?;
    let in_vain = in_vain.values().map(|said| settings.advice(said));
    in_vain.for_each(terminal::say);
    Ok(listed)
}

/// What is paused of a kind, by its name.
fn of_kind(kind: Pausable, pauses: Vec<Pause>) -> BTreeMap<String, State> {
    let of_kind = pauses.into_iter().filter(|pause| pause.kind == kind);
    of_kind
        .map(|pause| {
            let state = State {
                paused: true,
                since: Some(pause.since),
                by: Some(pause.by),
                reason: pause.reason,
            };
            (pause.name, state)
        })
        .collect()
}

impl State {
    fn cells(self) -> [String; 3] {
        let dash = || "-".to_string();
        [
            self.since.map_or_else(dash, terminal::moment),
            self.by.unwrap_or_else(dash),
            self.reason.unwrap_or_else(dash),
        ]
    }
}

fn object(report: &impl Serialize) -> Result<ExitCode> {
    let json = serde_json::to_string(report).unwrap_or_default();
    terminal::print(|out| writeln!(out, "{json}"))?;
    Ok(ExitCode::SUCCESS)
}

/// A table for a person, lines with tabs for a program.
fn rows_of<const COLUMNS: usize>(
    header: [&str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
    if_none: &str,
) -> Result<ExitCode> {
    if rows.is_empty() {
        terminal::say(if_none);
        return Ok(ExitCode::SUCCESS);
    }
    let rows = rows
        .into_iter()
        .map(|cells| cells.map(|cell| terminal::visible(&cell)));
    if terminal::stdout_is_terminal() {
        let mut table = terminal::table(header);
        for cells in rows {
            table.add_row(cells);
        }
        terminal::print(|out| writeln!(out, "{table}"))?;
    } else {
        terminal::print(|out| {
            writeln!(out, "{}", header.join("\t"))?;
            let mut lines = rows.map(|cells| cells.join("\t"));
            lines.try_for_each(|line| writeln!(out, "{line}"))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}
