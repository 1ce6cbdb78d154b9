//! What waits, what is dead, and who carries.

use axum::Json;
use axum::extract::State;
use bento_outbox::{Held, LiveRelay, TenantStatus, held};
use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::events::Nothing;
use crate::page::Limit;
use crate::{Admin, Problem};

/// How much of each tenant is new, retrying, sent and dead.
#[derive(Serialize)]
pub(crate) struct Report {
    tenants: Vec<TenantStatus>,
    total: TenantStatus,
}

pub(crate) async fn status(
    State(admin): State<Admin>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Report>, Problem> {
    let tenants = admin.store.status().await?;
    let total = TenantStatus::total(&tenants);
    Ok(Json(Report { tenants, total }))
}

/// The relays that live.
#[derive(Serialize)]
pub(crate) struct Relays {
    relays: Vec<LiveRelay>,
}

pub(crate) async fn relays(
    State(admin): State<Admin>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Relays>, Problem> {
    let relays = admin.store.inspect().await?.relays;
    Ok(Json(Relays { relays }))
}

/// How many keys are named.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Few {
    #[serde(default)]
    limit: Limit,
}

/// There is no cursor: which keys wait changes from moment to moment.
pub(crate) async fn held_keys(
    State(admin): State<Admin>,
    Asked(few): Asked<Few>,
) -> Result<Json<Held>, Problem> {
    let held = held(admin.store.as_ref(), &admin.settings, few.limit.get()).await?;
    Ok(Json(held))
}
