//! What operators did.

use axum::Json;
use axum::extract::State;
use bento_outbox::Audited;
use serde::{Deserialize, Serialize};

use crate::asked::Asked;
use crate::page::{Cursor, Limit};
use crate::{Admin, Problem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    cursor: Option<Cursor>,
    #[serde(default)]
    limit: Limit,
}

/// A page of what was done, newest first.
#[derive(Serialize)]
pub(crate) struct Listed {
    acts: Vec<Audited>,
    next: Option<String>,
}

pub(crate) async fn list(
    State(admin): State<Admin>,
    Asked(search): Asked<Search>,
) -> Result<Json<Listed>, Problem> {
    let before = search.cursor.map(|cursor| cursor.0);
    let mut acts = admin.store.acts(before, search.limit.and_one()).await?;
    let more = acts.len() > search.limit.get() as usize;
    acts.truncate(search.limit.get() as usize);
    let last = acts.last().filter(|_| more);
    let next = last.map(|act| Cursor(act.number).to_string());
    Ok(Json(Listed { acts, next }))
}
