//! Errors, as RFC 9457 has them.

use axum::Json;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bento_outbox::{Error, ErrorKind};
use serde::Serialize;

/// An answer that says what is wrong: `application/problem+json`, RFC 9457.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// What kind of thing is wrong, in a few words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, and what to do.
    pub detail: String,
}

impl Problem {
    /// A problem with that status.
    pub fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            title,
            status: status.as_u16(),
            detail: detail.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(self).into_response().into_body()).into_response()
    }
}

/// What the database could not do.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, title) = match error.kind() {
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "the database is away"),
            ErrorKind::Paused => (StatusCode::CONFLICT, "some of it is paused"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "somebody else was at it"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "the database refused"),
        };
        Self::new(status, title, error.report())
    }
}

pub(crate) async fn not_found(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "no such path", detail)
}

pub(crate) async fn not_allowed() -> Problem {
    let detail = "this path does not answer that method";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no such method", detail)
}
