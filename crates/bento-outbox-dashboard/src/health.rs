//! Whether the process lives, and whether it can make progress.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::time::timeout;

use crate::Admin;

/// How long the database or the bus may take to answer a probe.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is answered.
#[derive(Serialize)]
struct Health {
    status: &'static str,
    /// What is wrong with it; none where it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bus: Option<String>,
}

/// The process answers.
pub(crate) async fn live() -> impl IntoResponse {
    Json(Health {
        status: "live",
        database: None,
        bus: None,
    })
}

/// Events can be carried: the database and the bus answer. Otherwise 503, and what is wrong.
pub(crate) async fn ready(State(admin): State<Admin>) -> Response {
    let late = |what| format!("{what} does not answer within {PATIENCE:?}");
    let (database, bus) = tokio::join!(
        timeout(PATIENCE, admin.store.check()),
        timeout(PATIENCE, admin.bus.check())
    );
    let database = match database {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.report()),
        Err(_) => Some(late("the database")),
    };
    let bus = match bus {
        Ok(Ok(())) => None,
        Ok(Err(rejection)) => Some(rejection.reason),
        Err(_) => Some(late("the bus")),
    };
    let (code, status) = match (&database, &bus) {
        (None, None) => (StatusCode::OK, "ready"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let health = Health {
        status,
        database,
        bus,
    };
    (code, Json(health)).into_response()
}
