//! Tenants and destinations, and which of them are paused.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use bento_outbox::{Error, ErrorKind, Pausable, Pause, Timestamp};
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::asked::{Asked, Given, Text, present};
use crate::events::Nothing;
use crate::{Admin, Desk, Problem};

/// Since when, by whom and why something is paused.
#[derive(Serialize)]
struct Paused {
    since: Timestamp,
    by: String,
    reason: Option<String>,
}

#[derive(Serialize)]
struct TenantPause {
    tenant_id: String,
    paused: Option<Paused>,
}

/// The tenants that have events or are paused.
#[derive(Serialize)]
pub(crate) struct Tenants {
    tenants: Vec<TenantPause>,
}

#[derive(Serialize)]
struct DestinationPause {
    destination: String,
    paused: Option<Paused>,
}

/// The destinations of this process, and others that are paused.
#[derive(Serialize)]
pub(crate) struct Destinations {
    destinations: Vec<DestinationPause>,
}

pub(crate) async fn tenants(
    State(admin): State<Admin>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Tenants>, Problem> {
    let known = admin.store.status().await?;
    let known = known.into_iter().map(|tenant| tenant.tenant_id);
    let named = named(&admin, Pausable::Tenant, known.collect()).await?;
    let tenants = named
        .into_iter()
        .map(|(tenant_id, paused)| TenantPause { tenant_id, paused })
        .collect();
    Ok(Json(Tenants { tenants }))
}

pub(crate) async fn destinations(
    State(admin): State<Admin>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Destinations>, Problem> {
    let named = named(&admin, Pausable::Destination, admin.destinations.clone()).await?;
    let destinations = named
        .into_iter()
        .map(|(destination, paused)| DestinationPause {
            destination,
            paused,
        })
        .collect();
    Ok(Json(Destinations { destinations }))
}

/// What is known and what is paused, in order of the names.
async fn named(
    admin: &Admin,
    kind: Pausable,
    known: Vec<String>,
) -> Result<BTreeMap<String, Option<Paused>>, Error> {
    let mut named: BTreeMap<_, _> = known.into_iter().map(|name| (name, None)).collect();
    let pauses = admin.store.pauses().await?;
    for Pause {
        name,
        since,
        by,
        reason,
        ..
    } in pauses.into_iter().filter(|pause| pause.kind == kind)
    {
        named.insert(name, Some(Paused { since, by, reason }));
    }
    Ok(named)
}

/// What is to be paused, and why.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToPause {
    names: Vec<String>,
    #[serde(default, deserialize_with = "present")]
    reason: Option<Text>,
}

/// What is to go on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToResume {
    names: Vec<String>,
}

/// How many were not as they were to be, and are now.
#[derive(Serialize)]
pub(crate) struct Changed {
    changed: u64,
}

/// The most names in one request.
const NAMES_MAX: usize = 100;

/// Keeps the events of some back.
pub(crate) fn pause(kind: Pausable) -> MethodRouter<Desk> {
    post(
        move |State(admin): State<Admin>, Actor(by): Actor, Given(asked): Given<ToPause>| async move {
            bounded(&asked.names)?;
            let there = kind.must_be_there(&asked.names, &admin.destinations);
            there.map_err(|error| absent(&error))?;
            let reason = asked.reason.as_ref().map(|text| text.0.as_str());
            let changed = admin.store.pause(kind, &asked.names, &by, reason).await;
            changed
                .map(|changed| Json(Changed { changed }))
                .map_err(refused)
        },
    )
}

/// Lets them go again.
pub(crate) fn resume(kind: Pausable) -> MethodRouter<Desk> {
    post(
        move |State(admin): State<Admin>, Actor(by): Actor, Given(asked): Given<ToResume>| async move {
            bounded(&asked.names)?;
            let changed = admin.store.resume(kind, &asked.names, &by).await;
            let changed = changed.map_err(refused)?;
            admin.store.give_hint();
            Ok::<_, Problem>(Json(Changed { changed }))
        },
    )
}

fn bounded(names: &[String]) -> Result<(), Problem> {
    match names.len() {
        1..=NAMES_MAX => Ok(()),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the body is wrong",
            format!("`names` has 1 to {NAMES_MAX} names"),
        )),
    }
}

fn absent(error: &Error) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no such destination", error.report())
}

/// A name that nothing can have is the fault of whoever asks.
fn refused(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::InvalidSetting => {
            Problem::new(StatusCode::BAD_REQUEST, "no such name", error.report())
        }
        _ => error.into(),
    }
}
