//! Tenants and destinations, and which of them are paused.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bento_outbox::{Error, ErrorKind, Pausable, Pause, Timestamp};
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::asked::{Asked, Given, Text, present};
use crate::events::Nothing;
use crate::{Admin, Problem};

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

pub(crate) async fn pause_tenants(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(to_pause): Given<ToPause>,
) -> Result<Json<Changed>, Problem> {
    to_pause.pause(&admin, Pausable::Tenant, &actor).await
}

pub(crate) async fn pause_destinations(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(to_pause): Given<ToPause>,
) -> Result<Json<Changed>, Problem> {
    to_pause.pause(&admin, Pausable::Destination, &actor).await
}

pub(crate) async fn resume_tenants(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(to_resume): Given<ToResume>,
) -> Result<Json<Changed>, Problem> {
    to_resume.resume(&admin, Pausable::Tenant, &actor).await
}

pub(crate) async fn resume_destinations(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(to_resume): Given<ToResume>,
) -> Result<Json<Changed>, Problem> {
    to_resume
        .resume(&admin, Pausable::Destination, &actor)
        .await
}

impl ToPause {
    async fn pause(
        self,
        admin: &Admin,
        kind: Pausable,
        by: &str,
    ) -> Result<Json<Changed>, Problem> {
        bounded(&self.names)?;
        let reason = self.reason.as_ref().map(|text| text.0.as_str());
        let changed = admin.store.pause(kind, &self.names, by, reason).await;
        Ok(Json(Changed {
            changed: changed.map_err(refused)?,
        }))
    }
}

impl ToResume {
    async fn resume(
        self,
        admin: &Admin,
        kind: Pausable,
        by: &str,
    ) -> Result<Json<Changed>, Problem> {
        bounded(&self.names)?;
        let changed = admin.store.resume(kind, &self.names, by).await;
        let changed = changed.map_err(refused)?;
        admin.store.give_hint();
        Ok(Json(Changed { changed }))
    }
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

/// A name that nothing can have is the fault of whoever asks.
fn refused(error: Error) -> Problem {
    match error.kind() {
        ErrorKind::InvalidSetting => {
            Problem::new(StatusCode::BAD_REQUEST, "no such name", error.report())
        }
        _ => error.into(),
    }
}
