//! NATS JetStream against the list of cases, and what is its own.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_trait::async_trait;
use bento_outbox::publishers::NatsPublisher;
use bento_outbox::{
    CloudEvents, Event, OutboxRecord, Outcome, Payload, Publisher, Rejection, RejectionClass,
    Tenant, Timestamp, Topic,
};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults};
use bento_outbox_conformance::bus_suite;
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::{NatsServer, free_port, shared_nats};
use percent_encoding::percent_decode_str;
use url::Url;

use super::bus::{TIMEOUT, envelope};

bus_suite!(nats, fresh_nats, NATS);

const NATS: Capabilities = Capabilities {
    keeps: true,
    carries_bodies: true,
    keeps_batch_order: true,
    lowers_header_names: false,
    drops_repetitions: true,
    refuses_unrouted: true,
    payload_bytes_max: Some(1_000_000),
};

/// A server with a stream that takes the types `case.…`, and a proxy before it.
struct Nats {
    server: NatsServer,
    proxy: Proxy,
}

async fn fresh_nats() -> Nats {
    let server = NatsServer::start().await;
    let proxy = Proxy::before(&server.url()).await;
    stream(&server, "CASES", "case.>", |_| {}).await;
    Nats { server, proxy }
}

pub(crate) async fn stream(
    server: &NatsServer,
    name: &str,
    subject: &str,
    change: fn(&mut Config),
) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut config = Config {
        name: name.into(),
        subjects: vec![subject.into()],
        ..Config::default()
    };
    change(&mut config);
    jetstream::new(client).create_stream(config).await.unwrap();
}

fn publisher(url: &str) -> NatsPublisher {
    let url = Url::parse(url).unwrap();
    NatsPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap()
}

#[async_trait]
impl Bus for Nats {
    fn publisher(&self) -> Box<dyn Publisher> {
        let url = self.proxy.url_of(&self.server.url());
        Box::new(publisher(&format!("{url}?timeout={TIMEOUT}")))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let url = format!("nats://127.0.0.1:{}", free_port());
        Some(Box::new(publisher(&url)))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        let messages = messages(&self.server, "CASES").await;
        messages.iter().map(read).collect()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        Some(self)
    }
}

#[async_trait]
impl Faults for Nats {
    async fn kill(&self) {
        self.server.kill();
    }

    async fn restart(&self) {
        self.server.restart().await;
    }

    async fn pause(&self) {
        self.server.pause();
    }

    async fn resume(&self) {
        self.server.resume();
    }

    async fn lose_answers(&self) {
        self.proxy.swallow_reply(b"HPUB ", 1);
    }

    async fn delay_answers(&self, delay: Duration) -> bool {
        self.proxy.delay(Way::ToClient, delay);
        true
    }
}

pub(crate) type Message = async_nats::jetstream::message::StreamMessage;

pub(crate) async fn messages(server: &NatsServer, stream: &str) -> Vec<Message> {
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut stream = jetstream::new(client).get_stream(stream).await.unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    let mut messages = Vec::new();
    for sequence in 1..=last {
        messages.push(stream.get_raw_message(sequence).await.unwrap());
    }
    messages
}

pub(crate) fn headers(message: &Message) -> BTreeMap<String, String> {
    let headers = message.headers.iter();
    headers
        .map(|(name, values)| {
            let [value] = &values[..] else {
                panic!("{name} came {} times", values.len());
            };
            (name.to_string(), value.to_string())
        })
        .collect()
}

fn read(message: &Message) -> Arrived {
    let mut headers = headers(message);
    let attributes: BTreeMap<String, String> = headers
        .extract_if(.., |name, _| name.starts_with("ce-"))
        .map(|(name, value)| {
            assert!(value.bytes().all(|byte| byte.is_ascii_graphic()), "{value}");
            let value = percent_decode_str(&value).decode_utf8().unwrap();
            (name["ce-".len()..].to_owned(), value.into_owned())
        })
        .collect();
    assert_eq!(headers.remove("Nats-Msg-Id"), attributes.get("id").cloned());
    assert_eq!(
        headers.remove("Content-Type"),
        attributes.get("datacontenttype").cloned()
    );
    assert_eq!(message.subject.as_str(), attributes["type"]);
    Arrived {
        attributes,
        headers,
        body: message.payload.to_vec(),
    }
}

fn record(event_type: &str) -> OutboxRecord {
    let event = Event::new(event_type, Payload::json("1").unwrap());
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

/// Publishes an event of this type, which must be refused.
async fn rejection(publisher: &NatsPublisher, event_type: &str) -> Rejection {
    match publisher.publish(&[record(event_type)]).await.remove(0) {
        Outcome::Rejected(rejection) => rejection,
        outcome => panic!("{outcome:?}"),
    }
}

fn shared(query: &str) -> NatsPublisher {
    publisher(&format!("{}?{query}", shared_nats().url()))
}

#[tokio::test]
async fn an_event_that_another_stream_takes_is_not_sent() {
    let server = shared_nats();
    stream(server, "WRONG", "wrong.>", |_| {}).await;
    stream(server, "RIGHT", "right.>", |_| {}).await;
    let bus = shared("stream=RIGHT");
    bus.check().await.unwrap();
    assert_eq!(bus.publish(&[record("right.a")]).await, [Outcome::Acked]);
    let rejection = rejection(&bus, "wrong.a").await;
    assert_eq!(rejection.class, RejectionClass::Config, "{rejection}");
    assert_eq!(messages(server, "WRONG").await.len(), 0);
}

#[tokio::test]
async fn a_missing_stream_is_named_or_made() {
    let rejection = shared("stream=MISSING").check().await.unwrap_err();
    assert_eq!(rejection.class, RejectionClass::Config);
    assert!(rejection.reason.contains("MISSING") && rejection.reason.contains("create=true"));

    let bus = shared("stream=MADE&create=true&subjects=made.%3E");
    assert_eq!(bus.publish(&[record("made.a")]).await, [Outcome::Acked]);
    shared("stream=MADE").check().await.unwrap();
    let client = async_nats::connect(shared_nats().url()).await.unwrap();
    let made = jetstream::new(client).get_stream("MADE").await.unwrap();
    assert_eq!(made.cached_info().config.storage, StorageType::File);
}

#[tokio::test]
async fn a_stream_that_would_lose_events_is_refused() {
    let server = shared_nats();
    stream(server, "FORGETFUL", "forgetful", |config| {
        config.storage = StorageType::Memory;
    })
    .await;
    stream(server, "MUTE", "mute", |config| config.no_ack = true).await;
    for (name, reason) in [("FORGETFUL", "memory"), ("MUTE", "no_ack")] {
        let rejection = shared(&format!("stream={name}")).check().await.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config);
        assert!(rejection.reason.contains(reason), "{rejection}");
    }
    let outcome = shared("timeout=2s").publish(&[record("mute")]).await;
    assert!(
        matches!(outcome[..], [Outcome::Unknown { .. }]),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_full_stream_is_waited_for_and_a_small_one_is_not() {
    let server = shared_nats();
    stream(server, "FULL", "full", |config| {
        config.max_messages = 1;
        config.discard = DiscardPolicy::New;
    })
    .await;
    stream(server, "SMALL", "small", |config| {
        config.max_message_size = 10;
    })
    .await;
    let bus = shared("");
    assert_eq!(bus.publish(&[record("full")]).await, [Outcome::Acked]);
    let full = rejection(&bus, "full").await;
    assert_eq!(full.class, RejectionClass::Throttled(None), "{full}");
    let small = rejection(&bus, "small").await;
    assert_eq!(small.class, RejectionClass::Permanent, "{small}");
}

#[tokio::test]
async fn a_subject_that_nats_uses_itself_is_refused() {
    let bus = shared("");
    for event_type in ["$JS.API.STREAM.DELETE.CASES", "a..b", "a b", "a.>"] {
        let rejection = rejection(&bus, event_type).await;
        assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
    }
}

#[tokio::test]
async fn a_structured_event_is_one_envelope() {
    let server = shared_nats();
    stream(server, "STRUCTURED", "structured", |_| {}).await;
    let mut record = record("structured");
    record.headers = "{\"x-shop\":\"north\"}".into();
    let bus = shared("mode=structured");
    assert_eq!(bus.publish(&[record.clone()]).await, [Outcome::Acked]);
    let messages = messages(server, "STRUCTURED").await;
    let expected = [
        ("Content-Type", "application/cloudevents+json"),
        ("Nats-Msg-Id", &record.id.to_string()),
        ("x-shop", "north"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(headers(&messages[0]), BTreeMap::from(expected));
    let event = envelope(std::str::from_utf8(&messages[0].payload).unwrap());
    assert_eq!(event.id(), record.id.to_string());
    assert_eq!(event.body, b"1");
}

/// A server with a user who may publish to `may.>` only.
async fn guarded() -> (NatsServer, String) {
    let server = NatsServer::start_with(
        "jetstream: enabled\nauthorization { users = [ { user: bob, password: \"s3cr:et\", permissions: \
         { publish: [\"may.>\", \"$JS.API.>\"] } } ] }",
    )
    .await;
    let address = server.url().replace("nats://", "");
    (server, address)
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let (_server, address) = guarded().await;
    publisher(&format!("nats://bob:s3cr%3Aet@{address}"))
        .check()
        .await
        .unwrap();
    for user in ["bob:wr0ng@", "wr0ng@", ""] {
        let bus = publisher(&format!("nats://{user}{address}"));
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config, "{rejection}");
        assert!(!rejection.reason.contains("wr0ng"), "{rejection}");
    }
}

#[tokio::test]
async fn a_subject_without_permission_is_said_at_once() {
    let (_server, address) = guarded().await;
    let bus = publisher(&format!(
        "nats://bob:s3cr%3Aet@{address}?stream=MAY&create=true&subjects=may.%3E,not&timeout=120s"
    ));
    let batch = [record("may.a"), record("not"), record("may.b")];
    let started = tokio::time::Instant::now();
    let outcomes = bus.publish(&batch).await;
    assert!(started.elapsed() < Duration::from_secs(60));
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2]);
    let Outcome::Rejected(rejection) = &outcomes[1] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(rejection.class, RejectionClass::Blocked);
    assert!(rejection.reason.contains("permission"), "{rejection}");
    assert_eq!(bus.publish(&[record("may.c")]).await, [Outcome::Acked]);
}

#[tokio::test]
async fn a_server_without_jetstream_is_said_to_have_none() {
    let server = NatsServer::start_with("").await;
    let bus = publisher(&server.url());
    for query in ["", "?stream=S"] {
        let bus = publisher(&format!("{}{query}", server.url()));
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config);
        assert!(rejection.reason.contains("JetStream"), "{rejection}");
    }
    // Nobody answers for the subject: that is all a publication can know.
    let rejection = rejection(&bus, "a").await;
    assert_eq!(rejection.class, RejectionClass::Blocked, "{rejection}");
}
