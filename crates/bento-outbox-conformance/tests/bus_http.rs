//! Webhooks against the list of cases, and what is their own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bento_outbox::publishers::{HttpPublisher, WebhookSecrets};
use bento_outbox::{
    Aggregate, CloudEvents, Event, OutboxRecord, Outcome, Payload, Publisher, RejectionClass,
    Tenant, Timestamp, Topic,
};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults};
use bento_outbox_conformance::bus_suite;
use bento_outbox_conformance::faults::Proxy;
use bento_outbox_conformance::mutants::webhook::{Mistake, MutantWebhook};
use bento_outbox_conformance::servers::free_port;
use bento_outbox_conformance::servers::receiver::{BODY_BYTES_MAX, Received, ReceiverServer};
use bento_outbox_conformance::webhook::{DEADLINE, FalseAnswer, TrueAnswer};
use cloudevents::AttributesReader;
use futures_util::FutureExt;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::time::{Instant, timeout};
use url::Url;

use super::bus::{TIMEOUT, envelope};

bus_suite!(http, fresh_http, HTTP);

const HTTP: Capabilities = Capabilities {
    keeps: true,
    carries_bodies: true,
    keeps_batch_order: false,
    lowers_header_names: true,
    drops_repetitions: false,
    refuses_unrouted: false,
    payload_bytes_max: Some(BODY_BYTES_MAX),
};

/// A receiver, and a proxy before it.
struct Http {
    receiver: ReceiverServer,
    proxy: Proxy,
}

async fn fresh_http() -> Http {
    let receiver = ReceiverServer::start().await;
    let proxy = Proxy::before(&receiver.url()).await;
    Http { receiver, proxy }
}

fn publisher(url: &str) -> HttpPublisher {
    signing(url, WebhookSecrets::default())
}

fn signing(url: &str, secrets: WebhookSecrets) -> HttpPublisher {
    let url = Url::parse(url).unwrap();
    HttpPublisher::new(&url, Topic::default(), CloudEvents::default(), secrets).unwrap()
}

#[async_trait]
impl Bus for Http {
    fn publisher(&self) -> Box<dyn Publisher> {
        let url = self.proxy.url_of(&self.receiver.url());
        Box::new(publisher(&format!("{url}?timeout={TIMEOUT}")))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let url = format!("http://127.0.0.1:{}", free_port());
        Some(Box::new(publisher(&url)))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        self.receiver.received().iter().map(read).collect()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        Some(self)
    }
}

#[async_trait]
impl Faults for Http {
    async fn kill(&self) {
        self.receiver.kill();
    }

    async fn restart(&self) {
        self.receiver.restart().await;
    }

    async fn pause(&self) {
        self.receiver.pause();
    }

    async fn resume(&self) {
        self.receiver.resume();
    }

    /// The three events of the case go out side by side, each on a connection of its own.
    async fn lose_answers(&self) {
        self.proxy.swallow_reply(b"POST /", 3);
    }
}

/// The headers by their names, each of which comes once.
fn headers(received: &Received) -> BTreeMap<String, String> {
    let headers: BTreeMap<_, _> = received.headers.iter().cloned().collect();
    assert_eq!(headers.len(), received.headers.len(), "a header came twice");
    headers
}

pub(super) fn read(received: &Received) -> Arrived {
    let mut headers = headers(received);
    let body = BASE64.decode(&received.body).unwrap();
    let mut attributes: BTreeMap<String, String> = headers
        .extract_if(.., |name, _| name.starts_with("ce-"))
        .map(|(name, value)| {
            assert!(value.bytes().all(|byte| byte.is_ascii_graphic()), "{value}");
            let value = percent_decode_str(&value).decode_utf8().unwrap();
            (name["ce-".len()..].to_owned(), value.into_owned())
        })
        .collect();
    let mut header = |name: &str| headers.remove(name).unwrap_or_else(|| panic!("no {name}"));
    assert!(!attributes.contains_key("datacontenttype"));
    attributes.insert("datacontenttype".into(), header("content-type"));
    assert_eq!(header("webhook-id"), attributes["id"]);
    assert_eq!(header("webhook-topic"), attributes["type"]);
    let sent: i64 = header("webhook-timestamp").parse().unwrap();
    assert!((Timestamp::now().unix_micros() / 1_000_000 - sent).abs() < 300);
    assert_eq!(header("content-length"), body.len().to_string());
    assert!(header("user-agent").starts_with("bento-outbox/"));
    header("host");
    Arrived {
        attributes,
        headers,
        body,
    }
}

fn event(number: usize) -> Event {
    Event {
        aggregate: Aggregate::new("order", number.to_string()),
        ..Event::new(
            "order.placed",
            Payload::json(format!("{{\"n\":{number}}}")).unwrap(),
        )
    }
}

fn record(number: usize) -> OutboxRecord {
    let now = Timestamp::now();
    OutboxRecord::of(&event(number), &Tenant::default(), number as i64, now)
}

fn records(numbers: std::ops::Range<usize>) -> Vec<OutboxRecord> {
    numbers.map(record).collect()
}

fn class(outcome: &Outcome) -> RejectionClass {
    match outcome {
        Outcome::Rejected(rejection) => rejection.class,
        _ => panic!("{outcome:?}"),
    }
}

fn in_time(url: &str) -> Box<dyn Publisher> {
    Box::new(publisher(&format!(
        "{url}?timeout={}ms",
        DEADLINE.as_millis()
    )))
}

#[tokio::test]
async fn nothing_but_a_complete_answer_of_success_in_time_is_an_acknowledgement() {
    let answers = FalseAnswer::ALL
        .iter()
        .map(|answer| answer.is_not_taken(in_time));
    futures_util::future::join_all(answers).await;
    let answers = TrueAnswer::ALL
        .iter()
        .map(|answer| answer.is_taken(in_time));
    futures_util::future::join_all(answers).await;
}

/// The names of the answers that a publisher with this mistake does not tell apart.
async fn mistaken(mistake: Option<Mistake>) -> BTreeSet<String> {
    let make = |url: &str| -> Box<dyn Publisher> { Box::new(MutantWebhook::new(url, mistake)) };
    let taken = FalseAnswer::ALL.iter().map(|answer| {
        let run = AssertUnwindSafe(answer.is_not_taken(make)).catch_unwind();
        async move { run.await.is_err().then(|| format!("{answer:?}")) }
    });
    let refused = TrueAnswer::ALL.iter().map(|answer| {
        let run = AssertUnwindSafe(answer.is_taken(make)).catch_unwind();
        async move { run.await.is_err().then(|| format!("{answer:?}")) }
    });
    let (taken, refused) = tokio::join!(
        futures_util::future::join_all(taken),
        futures_util::future::join_all(refused)
    );
    taken.into_iter().chain(refused).flatten().collect()
}

#[tokio::test]
async fn a_webhook_without_a_mistake_tells_all_answers_apart() {
    assert_eq!(mistaken(None).await, BTreeSet::new());
}

#[tokio::test]
async fn every_mistake_is_noticed_and_every_answer_notices_one() {
    let mut noticed = BTreeSet::new();
    for mistake in Mistake::ALL {
        let mistaken = mistaken(Some(*mistake)).await;
        assert!(
            !mistaken.is_empty(),
            "no answer notices that it {mistake:?}"
        );
        noticed.extend(mistaken);
    }
    let answers = FalseAnswer::ALL.iter().map(|answer| format!("{answer:?}"));
    let answers = answers.chain(TrueAnswer::ALL.iter().map(|answer| format!("{answer:?}")));
    let idle: Vec<_> = answers.filter(|answer| !noticed.contains(answer)).collect();
    assert!(idle.is_empty(), "no mistake fails {idle:?}");
}

const OLD: &str = "whsec_b2xkLXNlY3JldC1vZi0zMi1ieXRlcy1leGFjdGx5ISE=";
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_b3RoZXItc2VjcmV0LW9mLTMyLWJ5dGVzLWV4YWN0ISE=";

fn header_map(received: &Received) -> HeaderMap {
    let header = |(name, value): &(String, String)| {
        let name = HeaderName::try_from(name).unwrap();
        (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    received.headers.iter().map(header).collect()
}

#[tokio::test]
async fn a_receiver_that_knows_any_of_the_secrets_is_content_and_no_other() {
    let receiver = ReceiverServer::start().await;
    let bus = signing(&receiver.url(), format!("{OLD} {NEW}").parse().unwrap());
    assert_eq!(
        bus.publish(&records(0..3)).await,
        [const { Outcome::Acked }; 3]
    );
    let received = receiver.received();
    assert_eq!(received.len(), 3);
    for request in &received {
        let (body, headers) = (BASE64.decode(&request.body).unwrap(), header_map(request));
        let verify = |secret| Webhook::new(secret).unwrap().verify(&body, &headers);
        verify(OLD).unwrap();
        verify(NEW).unwrap();
        assert!(verify(OTHER).is_err());
        let changed = [&body[..], b" "].concat();
        assert!(
            Webhook::new(NEW)
                .unwrap()
                .verify(&changed, &headers)
                .is_err()
        );
    }
}

#[tokio::test]
async fn a_repetition_has_the_same_id_and_a_signature_of_its_own_time() {
    let receiver = ReceiverServer::start().await;
    let bus = signing(&receiver.url(), NEW.parse().unwrap());
    let record = [record(1)];
    bus.publish(&record).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    bus.publish(&record).await;
    let [first, second] = &receiver.received()[..] else {
        panic!("not two requests");
    };
    let (first, second) = (headers(first), headers(second));
    assert_eq!(first["webhook-id"], second["webhook-id"]);
    assert_ne!(first["webhook-timestamp"], second["webhook-timestamp"]);
    assert_ne!(first["webhook-signature"], second["webhook-signature"]);
}

#[tokio::test]
async fn the_sdk_of_cloudevents_reads_both_modes() {
    let receiver = ReceiverServer::start().await;
    let mut record = record(7);
    record.headers = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","x-shop":"north"}"#.into();
    for mode in ["binary", "structured"] {
        let bus = publisher(&format!("{}/hook?mode={mode}&a=1", receiver.url()));
        assert_eq!(bus.publish(&[record.clone()]).await, [Outcome::Acked]);
    }
    let received = receiver.received();
    for request in &received {
        assert_eq!(request.target, "/hook?a=1");
        assert_eq!(headers(request)["x-shop"], "north");
        let body = BASE64.decode(&request.body).unwrap();
        let event = cloudevents::binding::http::to_event(&header_map(request), body).unwrap();
        assert_eq!(event.id(), record.id.to_string());
        assert_eq!(event.ty(), "order.placed");
        assert_eq!(event.source().as_str(), "urn:bento-outbox");
        assert_eq!(event.subject(), Some("7"));
        assert_eq!(event.datacontenttype(), Some("application/json"));
        let time = event.time().unwrap().timestamp_micros();
        assert_eq!(time, record.occurred_at.unix_micros());
        let extension = |name: &str| event.extension(name).map(ToString::to_string);
        for (name, value) in [
            ("tenantid", "default"),
            ("sequence", "7"),
            ("schemaversion", "1"),
            ("partitionkey", "default/order/7"),
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
        ] {
            assert_eq!(extension(name).as_deref(), Some(value), "{name}");
        }
        let data: Vec<u8> = event.data().unwrap().clone().try_into().unwrap();
        assert_eq!(data, b"{\"n\":7}");
    }
    let structured = BASE64.decode(&received[1].body).unwrap();
    let structured = envelope(std::str::from_utf8(&structured).unwrap());
    assert_eq!(
        (structured.id(), &structured.body[..]),
        (&*record.id.to_string(), &b"{\"n\":7}"[..])
    );
    assert_eq!(
        headers(&received[1])["content-type"],
        "application/cloudevents+json"
    );
}

/// A server in this process: each request's head (in small letters) becomes the answer that `answer`
/// makes of it.
struct Script {
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Script {
    async fn start<F>(answer: impl Fn(String) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = String> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    while stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        let Some((head, body)) = text.split_once("\r\n\r\n") else {
                            continue;
                        };
                        let head = head.to_ascii_lowercase();
                        let length = head.split_once("content-length: ").unwrap().1;
                        let length: usize = length.lines().next().unwrap().parse().unwrap();
                        if body.len() >= length {
                            bytes.clear();
                            let answer = answer(head).await;
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { url, server }
    }

    async fn always(answer: &'static str) -> Self {
        Self::start(move |_| async move { answer.to_owned() }).await
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.server.abort();
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

/// The answers come only when sixteen requests are there at the same time, and never a seventeenth.
#[tokio::test]
async fn as_many_requests_are_under_way_as_may_be_and_no_more() {
    for (query, width) in [("", 16), ("?concurrency=3", 3)] {
        let (barrier, active) = (Arc::new(Barrier::new(width)), Arc::new(()));
        let script = Script::start(move |_| {
            let (barrier, active) = (barrier.clone(), active.clone());
            async move {
                barrier.wait().await;
                let under_way = Arc::strong_count(&active);
                // Each connection has one beside the one of the request.
                assert!(under_way <= 2 * width + 1, "{under_way}");
                OK.to_owned()
            }
        })
        .await;
        let bus = publisher(&format!("{}{query}", script.url));
        let (one, two) = (records(0..width * 2), records(100..100 + width));
        let all = async { tokio::join!(bus.publish(&one), bus.publish(&two)) };
        let (one, two) = timeout(Duration::from_secs(60), all).await.unwrap();
        assert!(
            one.iter()
                .chain(&two)
                .all(|outcome| *outcome == Outcome::Acked)
        );
    }
}

#[tokio::test]
async fn what_is_asked_to_wait_waits_and_nothing_is_sent_meanwhile() {
    let script = Script::always(
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let bus = publisher(&format!("{}?concurrency=1", script.url));
    let outcomes = bus.publish(&records(0..4)).await;
    let pause = Some(Duration::from_secs(5));
    assert_eq!(class(&outcomes[0]), RejectionClass::Throttled(pause));
    for outcome in &outcomes[1..] {
        assert_eq!(class(outcome), RejectionClass::Unreachable);
    }
    assert_eq!(
        bus.check().await.unwrap_err().class,
        RejectionClass::Unreachable
    );
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    bus.check().await.unwrap();
    let outcomes = bus.publish(&records(4..5)).await;
    assert_eq!(class(&outcomes[0]), RejectionClass::Throttled(pause));
}

#[tokio::test]
async fn a_refused_password_is_said_and_not_shown() {
    let script = Script::start(|head| async move {
        match head.contains("authorization: basic ym9iomnhbmfyeq==") {
            true => OK.to_owned(),
            false => "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_owned(),
        }
    })
    .await;
    let with = |user: &str| publisher(&script.url.replace("http://", &format!("http://{user}")));
    assert_eq!(
        with("bob:canary@").publish(&records(0..1)).await,
        [Outcome::Acked]
    );
    let outcomes = with("bob:wr0ng@").publish(&records(0..20)).await;
    for outcome in &outcomes {
        let Outcome::Rejected(rejection) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(rejection.class, RejectionClass::Config);
        assert!(rejection.reason.contains("401"), "{rejection}");
        assert!(!rejection.reason.contains("wr0ng"), "{rejection}");
    }
}

#[tokio::test]
async fn a_redirect_is_said_and_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/s3cr3t", elsewhere.local_addr().unwrap());
    for status in [
        "301 Moved",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let answer =
            format!("HTTP/1.1 {status}\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let script = Script::start(move |_| std::future::ready(answer.clone())).await;
        let outcomes = publisher(&script.url).publish(&records(0..3)).await;
        for outcome in &outcomes {
            assert_eq!(class(outcome), RejectionClass::Config);
            assert!(!format!("{outcome:?}").contains("s3cr3t"), "{outcome:?}");
        }
    }
    let nobody = timeout(Duration::from_millis(100), elsewhere.accept()).await;
    assert!(nobody.is_err(), "somebody followed");
}

#[tokio::test]
async fn a_silent_endpoint_costs_one_deadline_and_not_one_for_each_event() {
    let script = Script::start(|_| std::future::pending()).await;
    let bus = publisher(&format!("{}?timeout=1s&concurrency=2", script.url));
    let begun = Instant::now();
    let outcomes = bus.publish(&records(0..100)).await;
    // One for each of them would be 50.
    assert!(
        begun.elapsed() < Duration::from_secs(25),
        "{:?}",
        begun.elapsed()
    );
    let unknown = |outcome: &&Outcome| matches!(outcome, Outcome::Unknown { .. });
    assert_eq!(outcomes.iter().filter(unknown).count(), 2);
    let unsent = outcomes.iter().filter(|outcome| !unknown(outcome));
    unsent.for_each(|outcome| assert_eq!(class(outcome), RejectionClass::Unreachable));
}

#[tokio::test]
async fn one_event_that_is_never_answered_does_not_keep_the_others() {
    let script = Script::start(|head| async move {
        if head.contains("ce-subject: 3\r\n") {
            std::future::pending::<()>().await;
        }
        OK.to_owned()
    })
    .await;
    let bus = publisher(&format!("{}?timeout=5s&concurrency=2", script.url));
    let outcomes = bus.publish(&records(0..200)).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        match number {
            3 => assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}"),
            _ => assert_eq!(*outcome, Outcome::Acked, "{number}"),
        }
    }
}

/// An endpoint that failed for all events has cost none of them an attempt, and one event that it
/// cannot take ends as a dead letter beside all others.
#[tokio::test]
async fn an_endpoint_that_fails_is_told_from_an_event_that_it_cannot_take() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use bento_outbox::stores::MemoryStore;
    use bento_outbox::{Outbox, Projector, ProjectorSettings, RetrySettings, Status, Store as _};

    let fails = Arc::new(AtomicBool::new(true));
    let script = {
        let fails = fails.clone();
        Script::start(move |head| {
            let failed = fails.load(Ordering::Relaxed) || head.contains("ce-subject: 13\r\n");
            std::future::ready(if failed { FAILED } else { OK }.to_owned())
        })
        .await
    };
    let store = MemoryStore::default();
    let ids: HashMap<_, _> = {
        let events: Vec<_> = (0..50).map(event).collect();
        let outbox = Outbox::new(store.clone());
        let mut unit = outbox.begin().await.unwrap();
        for event in &events {
            unit.raise(event.clone()).unwrap();
        }
        unit.commit().await.unwrap();
        events.iter().map(|event| event.id).zip(0..).collect()
    };
    let settings = ProjectorSettings {
        retry: RetrySettings {
            multiplier: Duration::from_millis(1),
            ..RetrySettings::default()
        },
        ..ProjectorSettings::default()
    };
    let bus = Arc::new(publisher(&script.url));
    let projector = Projector::new(Arc::new(store.clone()), bus, settings);
    for _ in 0..20 {
        let batch = projector.run_once().await.unwrap();
        let stopped_by = batch.stopped_by.map(|rejection| rejection.class);
        assert_eq!(stopped_by, Some(RejectionClass::Unreachable));
        assert_eq!((batch.sent, batch.retried, batch.dead), (0, 0, 0));
    }
    fails.store(false, Ordering::Relaxed);
    let all: Vec<_> = ids.keys().copied().collect();
    let begun = Instant::now();
    let records = loop {
        projector.run_once().await.unwrap();
        let records = store.find(&all).await.unwrap();
        if records
            .iter()
            .all(|record| record.delivery.status != Status::New)
        {
            break records;
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    for record in records {
        let expected = match ids[&record.id] {
            13 => (Status::Err, 5),
            _ => (Status::Sent, 0),
        };
        let delivery = &record.delivery;
        assert_eq!(
            (delivery.status, delivery.retry_cnt),
            expected,
            "{:?}",
            ids[&record.id]
        );
    }
}
