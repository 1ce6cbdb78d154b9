//! The router with events behind it, and how a test asks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use bento_outbox::stores::MemoryStore;
use bento_outbox::{
    Aggregate, Event, OutboxRecord, Outcome, Payload, Projector, ProjectorSettings, Publisher,
    Rejection, RejectionClass, Tenant, TransactionalStore as _,
};
use bento_outbox_dashboard::{Admin, router};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::HOSTILE;

/// A dead letter.
pub(crate) const LETTER: &str = "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001";
/// How many dead letters there are.
pub(crate) const LETTERS: usize = 5;
/// An event that was sent.
pub(crate) const SENT: &str = "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a100";

/// The router over a store that has dead letters, an event that was sent, and two that wait.
pub(crate) struct Desk {
    pub(crate) bus: Bus,
    admin: Admin,
    router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Desk {
    pub(crate) async fn full() -> Self {
        let (store, bus) = (MemoryStore::default(), Bus::default());
        let mut events: Vec<Event> = (0..LETTERS).map(|_| event("order.placed", None)).collect();
        events[0].id = LETTER.parse().unwrap();
        events[0].aggregate = Aggregate::new("order", "7");
        let mut sent = event("order.paid", None);
        sent.id = SENT.parse().unwrap();
        sent.aggregate = Aggregate::new("order", "7");
        events.push(sent);
        append(&store, &events).await;
        let settings = ProjectorSettings::default();
        let (shared, carried_by) = (Arc::new(store.clone()), Arc::new(bus.clone()));
        let projector = Projector::new(shared.clone(), carried_by.clone(), settings.clone());
        projector.run_once().await.unwrap();
        bus.published.store(0, Ordering::SeqCst);
        bus.takes_letters.store(true, Ordering::SeqCst);
        let later = "2999-01-01T00:00:00Z".parse().unwrap();
        let mut waiting = [
            event("stock.counted", None),
            event("stock.counted", Some("acme")),
        ];
        for event in &mut waiting {
            event.available_at = Some(later);
        }
        append(&store, &waiting).await;
        let admin = Admin {
            store: shared,
            bus: carried_by,
            destinations: vec!["memory".into()],
            settings,
            token: None,
            metrics: Arc::new(|| "outbox_bus_up 1\n".into()),
        };
        Self {
            bus,
            router: router(admin.clone()),
            admin,
        }
    }

    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.admin.token = Some(token.into());
        self.router = router(self.admin.clone());
        self
    }

    pub(crate) fn nested(mut self, path: &str) -> Self {
        self.router = Router::new().nest(path, self.router);
        self
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    /// A change that somebody called anna asks for.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = [
            ("content-type", "application/json"),
            ("outbox-actor", "anna"),
        ];
        self.send(Method::POST, path, &headers, &body.to_string())
            .await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if headers.iter().all(|(name, _)| *name != "host") {
            request = request.header("host", "127.0.0.1:7077");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// What `path` answers once it is so.
    pub(crate) async fn until(&self, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.get(path).await.json(200);
            if is_so(&answer) {
                return answer;
            }
            let is_early = begun.elapsed() < Duration::from_secs(60);
            assert!(is_early, "it did not become so: {answer}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn acts(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/audit").await.json(200);
        answer["acts"].as_array().unwrap().clone()
    }

    /// How many dead letters there are by now.
    pub(crate) async fn dead(&self) -> usize {
        let status = self.admin.store.status().await.unwrap();
        let dead: u64 = status.iter().map(|tenant| tenant.dead).sum();
        usize::try_from(dead).unwrap()
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_str(&self.body).unwrap()
    }

    /// It is refused as a problem whose detail says `said`.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, said: &str) {
        assert_eq!(self.status, status, "no {said:?}: {}", self.body);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem["status"], status);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(said), "no {said:?} in {detail:?}");
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn event(event_type: &str, tenant: Option<&str>) -> Event {
    let payload = Payload::json(r#"{ "n" : 1e400, "canary": "s3cr3t" }"#).unwrap();
    Event {
        tenant: tenant.map(|name| name.parse().unwrap()),
        ..Event::new(event_type, payload)
    }
}

async fn append(store: &MemoryStore, events: &[Event]) {
    let mut transaction = store.begin(None).await.unwrap();
    let connection = MemoryStore::connection(&mut transaction);
    let appended = store
        .append(connection, &Tenant::default(), events, None)
        .await
        .unwrap();
    store.commit(transaction, &appended).await.unwrap();
}

/// A bus that refuses orders at first, and everything while it is told to.
#[derive(Clone, Default)]
pub(crate) struct Bus {
    takes_letters: Arc<AtomicBool>,
    is_away: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
}

impl Bus {
    pub(crate) fn refuse_all(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::SeqCst);
    }

    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::SeqCst)
    }

    fn outcome(&self, record: &OutboxRecord) -> Outcome {
        if self.is_away.load(Ordering::SeqCst) {
            return Outcome::rejected(RejectionClass::Unreachable, "it is away");
        }
        if record.event_type == "order.placed" && !self.takes_letters.load(Ordering::SeqCst) {
            return Outcome::rejected(RejectionClass::Permanent, HOSTILE);
        }
        self.published.fetch_add(1, Ordering::SeqCst);
        Outcome::Acked
    }
}

#[async_trait]
impl Publisher for Bus {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        batch.iter().map(|record| self.outcome(record)).collect()
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}
