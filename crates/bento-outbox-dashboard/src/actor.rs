//! Who changes something, for the audit.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bento_outbox::Act;

use crate::Problem;

/// The header in which whoever asks may say who they are. Nobody checks it: it is a note, not a proof.
const HEADER: &str = "outbox-actor";

/// `api:anna@10.0.0.7`, without the name where none is said, and without the address where the server
/// does not know it.
pub(crate) struct Actor(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let from = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let from = from.map(|ConnectInfo(address)| address.ip().to_canonical());
        let name = match parts.headers.get(HEADER) {
            Some(name) => Some(
                name.to_str()
                    .ok()
                    .filter(|name| Act::is_name(name))
                    .ok_or_else(|| {
                        Problem::new(
                            StatusCode::BAD_REQUEST,
                            "no such name",
                            "Outbox-Actor is not 1 to 64 of the characters A-Z a-z 0-9 . _ @ + -",
                        )
                    })?,
            ),
            None => None,
        };
        Ok(Self(match (name, from) {
            (Some(name), Some(from)) => format!("api:{name}@{from}"),
            (Some(name), None) => format!("api:{name}"),
            (None, Some(from)) => format!("api:{from}"),
            (None, None) => "api".into(),
        }))
    }
}
