//! What waits, what is dead, and who carries.

use axum::Json;
use axum::extract::{Query, State};
use bento_outbox::{HeldKey, LiveRelay, TenantStatus};
use serde::{Deserialize, Serialize};

use crate::{Admin, Problem};

/// How much of each tenant is new, retrying, sent and dead.
#[derive(Serialize)]
pub(crate) struct Report {
    tenants: Vec<TenantStatus>,
    total: TenantStatus,
}

pub(crate) async fn status(State(admin): State<Admin>) -> Result<Json<Report>, Problem> {
    let tenants = admin.store.status().await?;
    let total = TenantStatus::total(&tenants);
    Ok(Json(Report { tenants, total }))
}

/// The relays that live.
#[derive(Serialize)]
pub(crate) struct Relays {
    relays: Vec<LiveRelay>,
}

pub(crate) async fn relays(State(admin): State<Admin>) -> Result<Json<Relays>, Problem> {
    let relays = admin.store.inspect().await?.relays;
    Ok(Json(Relays { relays }))
}

/// Ordering keys whose later events wait, and why.
#[derive(Serialize)]
pub(crate) struct Held {
    held: Vec<HeldKey>,
}

#[derive(Deserialize)]
pub(crate) struct Page {
    limit: Option<u32>,
}

/// The most keys in one answer, and how many without a word.
const KEYS_MAX: u32 = 1_000;
const KEYS: u32 = 100;

pub(crate) async fn held_keys(
    State(admin): State<Admin>,
    Query(page): Query<Page>,
) -> Result<Json<Held>, Problem> {
    let limit = page.limit.unwrap_or(KEYS).clamp(1, KEYS_MAX);
    let mut held = admin.store.held_keys(limit).await?;
    held.retain(|key| key.because != "dead" || admin.dead_letters_block);
    Ok(Json(Held { held }))
}
