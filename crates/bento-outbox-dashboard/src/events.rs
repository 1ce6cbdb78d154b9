//! Events: search, show, and why one is where it is.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bento_outbox::{Filter, OutboxRecord, Page, Status, Tenant, Timestamp, Why, why as explained};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::asked::{Asked, EventId, Text, matchable};
use crate::page::{Cursor, Limit, cut};
use crate::{Admin, EventColumns, Problem};

/// Which events are looked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    status: Option<Status>,
    tenant: Option<Tenant>,
    #[serde(rename = "type")]
    event_type: Option<Text>,
    aggregate: Option<Text>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    cursor: Option<Cursor>,
    #[serde(default)]
    limit: Limit,
}

/// A page of events, newest first.
#[derive(Serialize)]
pub(crate) struct Found {
    events: Vec<EventColumns>,
    next: Option<String>,
}

pub(crate) async fn list(
    State(admin): State<Admin>,
    Asked(search): Asked<Search>,
) -> Result<Json<Found>, Problem> {
    let filter = matchable(Filter {
        status: search.status,
        tenant: search.tenant,
        event_type: search.event_type.map(|text| text.0),
        aggregate_id: search.aggregate.map(|text| text.0),
        since: search.since,
        until: search.until,
        ..Filter::default()
    })?;
    let page = Page {
        after: search.cursor.map(|cursor| cursor.0),
        limit: search.limit.and_one(),
        newest_first: true,
        payload: false,
    };
    let mut records = admin.store.events(&filter, &page).await?;
    let next = cut(&mut records, search.limit);
    let events = records.into_iter().map(EventColumns::of).collect();
    Ok(Json(Found { events, next }))
}

/// Whether the payload is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shown {
    #[serde(default)]
    payload: bool,
}

impl Shown {
    pub(crate) fn columns(&self, record: OutboxRecord) -> EventColumns {
        match self.payload {
            true => EventColumns::with_payload(record),
            false => EventColumns::of(record),
        }
    }
}

pub(crate) async fn show(
    State(admin): State<Admin>,
    EventId(id): EventId,
    Asked(shown): Asked<Shown>,
) -> Result<Json<EventColumns>, Problem> {
    let record = admin
        .store
        .find(&[id])
        .await?
        .pop()
        .ok_or_else(|| absent(id))?;
    Ok(Json(shown.columns(record)))
}

pub(crate) fn absent(id: Uuid) -> Problem {
    let detail = format!(
        "event {id} is not in the outbox: it never was, or it was sent or discarded and is no longer kept"
    );
    Problem::new(StatusCode::NOT_FOUND, "no such event", detail)
}

/// Nothing but the id is asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// An event that is not there is answered as well: that it is not there is why nobody received it.
pub(crate) async fn why(
    State(admin): State<Admin>,
    EventId(id): EventId,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Why>, Problem> {
    let why = explained(admin.store.as_ref(), id, &admin.settings).await?;
    Ok(Json(why))
}
