//! What an operator asks a running relay over HTTP: is it well, what do its metrics say, what waits.
//!
//! [`router`] is an axum `Router` over any [`Store`] and [`Publisher`]: it
//! knows no SQL and no driver. The program serves it at `admin_addr`; a service can nest it in its own.
//!
//! It is closed by default: without a token it answers only requests that come by a loopback name,
//! so that no web page can reach it through the browser of somebody on the machine.

mod door;
mod health;
mod problem;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use bento_outbox::{Publisher, Store};

pub use problem::Problem;

/// What the answers are made of. Clones share it.
#[derive(Clone)]
pub struct Admin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The bus.
    pub bus: Arc<dyn Publisher>,
    /// What a request must show as `Authorization: Bearer …`. Without one, only requests to a
    /// loopback name are answered.
    pub token: Option<Arc<str>>,
    /// Whether a dead letter holds back the later events of its aggregate.
    pub dead_letters_block: bool,
    /// The metrics in the text format of Prometheus.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// Every path there is. `/health/…` is open to anybody who reaches the address: a probe has no token.
pub fn router(admin: Admin) -> Router {
    let asked_for = Router::new()
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/relays", get(status::relays))
        .route("/api/v1/held-keys", get(status::held_keys))
        .route_layer(from_fn_with_state(admin.clone(), door::check));
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .merge(asked_for)
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::not_allowed)
        .with_state(admin)
}

async fn metrics(
    axum::extract::State(admin): axum::extract::State<Admin>,
) -> impl axum::response::IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([("content-type", kind)], (admin.metrics)())
}
