//! Dead letters: which there are, and what a person decides about them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bento_outbox::{DeadLetters, Decision, Filter, Status, Tenant, Timestamp};
use serde::{Deserialize, Serialize};

use crate::actor::Actor;
use crate::asked::{Asked, Chosen, EventId, Given, Text, matchable, present};
use crate::events::{Shown, absent};
use crate::page::{Cursor, Limit, cut};
use crate::{Admin, EventColumns, Problem};

/// Which dead letters are listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
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

/// A page of dead letters, in the order in which they were written.
#[derive(Serialize)]
pub(crate) struct Listed {
    dead_letters: Vec<EventColumns>,
    next: Option<String>,
}

pub(crate) async fn list(
    State(admin): State<Admin>,
    Asked(search): Asked<Search>,
) -> Result<Json<Listed>, Problem> {
    let filter = matchable(Filter {
        tenant: search.tenant,
        event_type: search.event_type.map(|text| text.0),
        aggregate_id: search.aggregate.map(|text| text.0),
        since: search.since,
        until: search.until,
        ..Filter::default()
    })?;
    let mut letters = DeadLetters::of(admin.store.as_ref(), &filter)
        .after(search.cursor.map(|cursor| cursor.0))
        .next_page(search.limit.and_one())
        .await?;
    let next = cut(&mut letters, search.limit);
    let dead_letters = letters.into_iter().map(EventColumns::of).collect();
    Ok(Json(Listed { dead_letters, next }))
}

pub(crate) async fn show(
    State(admin): State<Admin>,
    EventId(id): EventId,
    Asked(shown): Asked<Shown>,
) -> Result<Json<EventColumns>, Problem> {
    let found = admin.store.find(&[id]).await?.pop();
    let record = found.ok_or_else(|| absent(id))?;
    match record.delivery.status {
        Status::Err => Ok(Json(shown.columns(record))),
        status => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no dead letter",
            format!("event {id} is no dead letter: its status is {status}"),
        )),
    }
}

/// What is to be done to which dead letters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    filter: Chosen,
    #[serde(default)]
    dry_run: bool,
    #[serde(default, deserialize_with = "present")]
    cursor: Option<Cursor>,
}

/// How many matched, and how many of them are changed; there are more of them after `next`.
#[derive(Serialize)]
pub(crate) struct Changed {
    matched: u64,
    changed: u64,
    dry_run: bool,
    next: Option<String>,
}

/// The most dead letters that one request is about.
pub(crate) const LETTERS_MAX: u32 = 10_000;

pub(crate) async fn retry(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(change): Given<Change>,
) -> Result<Json<Changed>, Problem> {
    change.made(&admin, Decision::Retry, &actor).await
}

pub(crate) async fn discard(
    State(admin): State<Admin>,
    Actor(actor): Actor,
    Given(change): Given<Change>,
) -> Result<Json<Changed>, Problem> {
    change.made(&admin, Decision::Discard, &actor).await
}

impl Change {
    async fn made(
        self,
        admin: &Admin,
        decision: Decision,
        actor: &str,
    ) -> Result<Json<Changed>, Problem> {
        let filter = self.filter.filter("dead letters")?;
        let mut letters = DeadLetters::of(admin.store.as_ref(), &filter)
            .after(self.cursor.map(|cursor| cursor.0));
        let (mut matched, mut changed) = (0, 0);
        let mut next = None;
        while matched < u64::from(LETTERS_MAX) {
            let limit = LETTERS_MAX - u32::try_from(matched).unwrap_or(LETTERS_MAX);
            let page = match self.dry_run {
                true => letters.look(limit).await?,
                false => letters.decide(decision, limit, actor).await?,
            };
            let Some(page) = page else {
                next = None;
                break;
            };
            matched += page.letters;
            changed += page.changed;
            next = Some(Cursor(page.last).to_string());
        }
        Ok(Json(Changed {
            matched,
            changed,
            dry_run: self.dry_run,
            next,
        }))
    }
}
