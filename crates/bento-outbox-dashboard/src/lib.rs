//! What an operator asks a running relay over HTTP: is it well, what do its metrics say, what waits and
//! why, what is dead and what is to become of it. And the dashboard, a page that asks the same.
//!
//! [`router`] is an axum `Router` over any [`Store`] and [`Publisher`]: it knows no SQL and no driver.
//! The program serves it at `admin_addr`; a service can nest it in its own, as the example of
//! [`router`] does.
//!
//! It is closed by default: without a token it answers only requests that come by a loopback name,
//! so that no web page can reach it through the browser of somebody on the machine. [`OPENAPI`] says
//! what there is.

mod actor;
mod asked;
mod audit;
mod bounds;
mod dead_letters;
mod door;
mod events;
mod health;
mod page;
mod pauses;
mod problem;
mod record;
mod replays;
mod screen;
mod status;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRef, State};
use axum::http::header;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use bento_outbox::{Pausable, ProjectorSettings, Publisher, Store};

pub use problem::Problem;
pub use record::EventColumns;

use asked::Asked;
use bounds::Turns;
use events::Nothing;
use replays::Replays;

/// What the answers are made of. Clones share it.
#[derive(Clone)]
pub struct Admin {
    /// The database.
    pub store: Arc<dyn Store>,
    /// The bus.
    pub bus: Arc<dyn Publisher>,
    /// What that bus calls its destinations, for people who pause them; no others can be paused.
    pub destinations: Vec<String>,
    /// How the relays of this database work: what waits for what depends on it.
    pub settings: ProjectorSettings,
    /// What a request must show as `Authorization: Bearer …`. Without one, only requests to a
    /// loopback name are answered.
    pub token: Option<Arc<str>>,
    /// The metrics in the text format of Prometheus.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
}

/// The description of the API, in OpenAPI 3.1; also served at `/openapi.json`.
pub const OPENAPI: &str = include_str!("openapi.json");

/// Every path there is. `/health/…` is open to anybody who reaches the address, by whatever name, for a
/// probe has no token and asks by the address of a pod. The page at `/` wants no token, for it has nothing in
/// it before it has asked the others.
pub fn router(admin: Admin) -> Router {
    let desk = Desk {
        admin,
        replays: Arc::default(),
    };
    let admin = || desk.admin.clone();
    let closed = routed(paths())
        .route_layer(from_fn_with_state(Turns::default(), bounds::keep))
        .route_layer(from_fn_with_state(admin(), door::same_origin))
        .route_layer(from_fn_with_state(admin(), door::token));
    let named = closed
        .merge(routed(page_path()))
        .route_layer(from_fn_with_state(admin(), door::own_name));
    named
        .merge(routed(open_paths()))
        .fallback(problem::not_found)
        .layer(DefaultBodyLimit::max(asked::BODY_BYTES_MAX))
        .with_state(desk)
}

/// What answers at these paths. Which methods there are is told there as well, so behind the same door.
fn routed(paths: Vec<(&'static str, MethodRouter<Desk>)>) -> Router<Desk> {
    let mut router = Router::new();
    for (path, methods) in paths {
        router = router.route(path, methods);
    }
    router.method_not_allowed_fallback(problem::not_allowed)
}

/// The paths that anybody who reaches the address may ask.
fn open_paths() -> Vec<(&'static str, MethodRouter<Desk>)> {
    vec![
        ("/health/live", get(health::live)),
        ("/health/ready", get(health::ready)),
    ]
}

/// The path that wants no token.
fn page_path() -> Vec<(&'static str, MethodRouter<Desk>)> {
    vec![("/", get(screen::page))]
}

/// The paths behind the door.
fn paths() -> Vec<(&'static str, MethodRouter<Desk>)> {
    use Pausable::{Destination, Tenant};
    vec![
        ("/metrics", get(metrics)),
        ("/openapi.json", get(openapi)),
        ("/api/v1/status", get(status::status)),
        ("/api/v1/relays", get(status::relays)),
        ("/api/v1/held-keys", get(status::held_keys)),
        ("/api/v1/events", get(events::list)),
        ("/api/v1/events/{id}", get(events::show)),
        ("/api/v1/events/{id}/why", get(events::why)),
        ("/api/v1/dead-letters", get(dead_letters::list)),
        ("/api/v1/dead-letters/{id}", get(dead_letters::show)),
        ("/api/v1/dead-letters/retry", post(dead_letters::retry)),
        ("/api/v1/dead-letters/discard", post(dead_letters::discard)),
        ("/api/v1/replays", get(replays::list).post(replays::start)),
        ("/api/v1/replays/{id}", get(replays::show)),
        ("/api/v1/replays/{id}/cancel", post(replays::cancel)),
        ("/api/v1/tenants", get(pauses::tenants)),
        ("/api/v1/tenants/pause", pauses::pause(Tenant)),
        ("/api/v1/tenants/resume", pauses::resume(Tenant)),
        ("/api/v1/destinations", get(pauses::destinations)),
        ("/api/v1/destinations/pause", pauses::pause(Destination)),
        ("/api/v1/destinations/resume", pauses::resume(Destination)),
        ("/api/v1/audit", get(audit::list)),
    ]
}

/// What every request can use.
#[derive(Clone)]
struct Desk {
    admin: Admin,
    replays: Arc<Replays>,
}

impl FromRef<Desk> for Admin {
    fn from_ref(desk: &Desk) -> Self {
        desk.admin.clone()
    }
}

impl FromRef<Desk> for Arc<Replays> {
    fn from_ref(desk: &Desk) -> Self {
        Arc::clone(&desk.replays)
    }
}

async fn metrics(
    State(admin): State<Admin>,
    Asked(Nothing {}): Asked<Nothing>,
) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], (admin.metrics)())
}

async fn openapi(Asked(Nothing {}): Asked<Nothing>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

/// The page of the book, so that its code is tested.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/src/http-api.md")]
struct HttpApi;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::body::Body;
    use axum::http::Request;
    use bento_outbox::publishers::MemoryPublisher;
    use bento_outbox::stores::MemoryStore;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn the_document_has_every_path_and_method_and_the_router_no_other() {
        let router = router(Admin {
            store: Arc::new(MemoryStore::default()),
            bus: Arc::new(MemoryPublisher::default()),
            destinations: Vec::new(),
            settings: ProjectorSettings::default(),
            token: None,
            metrics: Arc::new(String::new),
        });
        let mut routed = BTreeSet::new();
        let all = paths().into_iter().chain(page_path()).chain(open_paths());
        for (path, _) in all {
            // Whoever asks with a method that there is not is told those that there are.
            let request = Request::builder().method("BREW").uri(path);
            let request = request.header("host", "localhost").body(Body::empty());
            let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
            let allowed = answer.headers()["allow"].to_str().unwrap();
            let methods = allowed.split(',').filter(|method| *method != "HEAD");
            routed.extend(methods.map(|method| (path.to_owned(), method.to_lowercase())));
        }
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let mut written = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let methods = methods.as_object().unwrap().keys();
            written.extend(methods.map(|method| (path.clone(), method.clone())));
        }
        assert_eq!(written, routed);
    }
}
