//! Kafka against the list of cases, and what is its own.

mod careless;
mod gate;
mod refusals;
mod sdk;

use std::collections::{BTreeMap, HashSet};
use std::slice::from_ref;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::publishers::KafkaPublisher;
use bento_outbox::{
    Aggregate, CloudEvents, Event, OutboxRecord, Outcome, Payload, Publisher, Rejection,
    RejectionClass, Tenant, Timestamp, Topic,
};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults};
use bento_outbox_conformance::bus_suite;
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::{KafkaServer, free_port, shared_kafka};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::spawn_blocking;

use self::gate::{Gate, Rules, certificate};
use super::bus::{TIMEOUT, envelope};

bus_suite!(kafka, fresh_kafka, KAFKA);

const KAFKA: Capabilities = Capabilities {
    keeps_batch_order: true,
    lowers_header_names: false,
    keeps: true,
    carries_bodies: true,
    drops_repetitions: false,
    refuses_unrouted: true,
    payload_bytes_max: Some(200_000),
};

/// A broker with the topic `case.changed`, and a proxy before it.
struct Kafka {
    server: KafkaServer,
    proxy: Proxy,
}

async fn fresh_kafka() -> Kafka {
    let (server, proxy) = KafkaServer::start_behind_proxy().await;
    topic(
        &server.url(),
        "case.changed",
        1,
        &[("max.message.bytes", "210000")],
    )
    .await;
    Kafka { server, proxy }
}

/// Makes a topic, without code of bento-outbox.
pub(crate) async fn topic(url: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(url).create().unwrap();
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings
        .iter()
        .fold(topic, |topic, (name, value)| topic.set(name, value));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await;
    assert_eq!(made, Ok(vec![Ok(name.to_owned())]));
}

fn client(url: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url.trim_start_matches("kafka://"));
    config
}

/// What a consumer sees of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) partition: i32,
    pub(crate) key: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(header, _)| header == name);
        let header = named.next().map(|(_, value)| value.as_str());
        assert_eq!(named.next(), None, "{name} came twice");
        header
    }
}

/// All messages of the topic, partition by partition, read by a plain client up to their ends.
pub(crate) async fn messages(url: &str, topic: &str) -> Vec<Message> {
    let (config, topic) = (client(url), topic.to_owned());
    spawn_blocking(move || read_all(config, &topic))
        .await
        .unwrap()
}

/// How long there is nothing to read before the reader takes it for the end.
const SILENCE: Duration = Duration::from_secs(30);

fn read_all(mut config: ClientConfig, topic: &str) -> Vec<Message> {
    config
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", "10");
    let consumer: BaseConsumer = config.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), SILENCE).unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let from = Offset::Beginning;
        partitions
            .add_partition_offset(topic, partition.id(), from)
            .unwrap();
    }
    let mut ended = HashSet::new();
    consumer.assign(&partitions).unwrap();
    let mut messages = Vec::new();
    while ended.len() < partitions.count() {
        // Killed between its steps, Tansu counts a record that it does not have: behind that one comes
        // neither a record nor an end.
        let Some(polled) = consumer.poll(SILENCE) else {
            break;
        };
        match polled {
            Err(KafkaError::PartitionEOF(partition)) => {
                ended.insert(partition);
            }
            Err(error) => panic!("reading {topic}: {error}"),
            Ok(message) => messages.push(Message {
                partition: message.partition(),
                key: message.key().map(text),
                headers: message.headers().map(headers).unwrap_or_default(),
                body: message
                    .payload()
                    .expect("a value, though it be empty")
                    .into(),
            }),
        }
    }
    messages
}

fn headers(headers: &impl Headers) -> Vec<(String, String)> {
    let text = |header: rdkafka::message::Header<'_, &[u8]>| {
        (
            header.key.to_owned(),
            text(header.value.expect("a header has a value")),
        )
    };
    headers.iter().map(text).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.into()).expect("keys and headers are UTF-8")
}

/// The CloudEvent in a message of binary mode, after the binding.
pub(crate) fn event(message: &Message) -> Arrived {
    let mut attributes = BTreeMap::new();
    let mut headers = BTreeMap::new();
    for (name, value) in message.headers.clone() {
        let before = match (name.as_str(), name.strip_prefix("ce_")) {
            ("content-type", _) => attributes.insert("datacontenttype".into(), value),
            (_, Some("datacontenttype")) => panic!("the content type has a header of its own"),
            (_, Some(attribute)) => attributes.insert(attribute.into(), value),
            (_, None) => headers.insert(name.clone(), value),
        };
        assert_eq!(before, None, "{name} came twice");
    }
    assert_eq!(message.key, attributes.get("subject").cloned());
    Arrived {
        attributes,
        headers,
        body: message.body.clone(),
    }
}

fn publisher(url: &str) -> KafkaPublisher {
    KafkaPublisher::new(url, Topic::default(), CloudEvents::default()).unwrap()
}

#[async_trait]
impl Bus for Kafka {
    fn publisher(&self) -> Box<dyn Publisher> {
        let url = self.proxy.url_of(&self.server.url());
        Box::new(publisher(&format!("{url}?timeout={TIMEOUT}")))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let url = format!("kafka://127.0.0.1:{}", free_port());
        Some(Box::new(publisher(&url)))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        let messages = messages(&self.server.url(), "case.changed").await;
        messages.iter().map(event).collect()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        Some(self)
    }
}

#[async_trait]
impl Faults for Kafka {
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
        // In what is published, and in nothing else.
        self.proxy.swallow_reply(b"ce_id", 1);
    }
}

fn record(event_type: &str) -> OutboxRecord {
    let event = Event::new(event_type, Payload::json("1").unwrap());
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

/// Publishes an event of this type, which must be refused.
async fn rejection(publisher: &KafkaPublisher, event_type: &str) -> Rejection {
    match publisher.publish(&[record(event_type)]).await.remove(0) {
        Outcome::Rejected(rejection) => rejection,
        outcome => panic!("{outcome:?}"),
    }
}

fn shared(query: &str) -> KafkaPublisher {
    publisher(&format!("{}?{query}", shared_kafka().url()))
}

#[tokio::test]
async fn a_structured_event_is_one_envelope() {
    let url = shared_kafka().url();
    topic(&url, "structured", 1, &[]).await;
    let mut record = record("structured");
    record.headers = "{\"x-shop\":\"north\"}".into();
    let bus = shared("mode=structured");
    assert_eq!(bus.publish(from_ref(&record)).await, [ACKED]);
    let messages = messages(&url, "structured").await;
    let [message] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!(message.headers.len(), 2, "{message:?}");
    assert_eq!(
        message.header("content-type"),
        Some("application/cloudevents+json")
    );
    assert_eq!(message.header("x-shop"), Some("north"));
    let event = envelope(std::str::from_utf8(&message.body).unwrap());
    assert_eq!(event.id(), record.id.to_string());
    assert_eq!(event.body, b"1");
}

#[tokio::test]
async fn a_missing_topic_is_named_or_made() {
    let url = shared_kafka().url();
    let rejection = shared("topics=missing.a").check().await.unwrap_err();
    assert_eq!(rejection.class, RejectionClass::Config);
    assert!(rejection.reason.contains("missing.a") && rejection.reason.contains("create=true"));
    assert!(
        !is_there(&url, "missing.a").await,
        "asking must not make it"
    );

    // When the bus is checked, and when it is published to.
    let bus = shared("topics=made.a&create=true&partitions=3&replication=1");
    bus.check().await.unwrap();
    assert_eq!(
        bus.publish(&[record("made.b"), record("made.a")]).await,
        [ACKED; 2]
    );
    for topic in ["made.a", "made.b"] {
        assert_eq!(messages(&url, topic).await.len(), 1);
        assert_eq!(partitions(&url, topic).await, 3);
    }
    shared("topics=made.a,made.b").check().await.unwrap();
}

const ACKED: Outcome = Outcome::Acked;

async fn partitions(url: &str, topic: &str) -> usize {
    let (config, topic) = (client(url), topic.to_owned());
    let asked = spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(30));
        let metadata = metadata.unwrap();
        let topic = &metadata.topics()[0];
        topic.error().map_or(topic.partitions().len(), |_| 0)
    });
    asked.await.unwrap()
}

async fn is_there(url: &str, topic: &str) -> bool {
    partitions(url, topic).await > 0
}

#[tokio::test]
async fn a_topic_that_appears_takes_events_and_one_that_goes_does_not() {
    let url = shared_kafka().url();
    let bus = shared("timeout=5s");
    let blocked = rejection(&bus, "comes").await;
    assert_eq!(blocked.class, RejectionClass::Blocked, "{blocked}");
    topic(&url, "comes", 1, &[]).await;
    assert_eq!(bus.publish(&[record("comes")]).await, [ACKED]);
}

#[tokio::test]
async fn a_topic_that_could_acknowledge_nothing_is_refused() {
    let url = shared_kafka().url();
    topic(&url, "impossible", 1, &[("min.insync.replicas", "2")]).await;
    let bus = shared("topics=impossible");
    let rejection_of_check = bus.check().await.unwrap_err();
    assert_eq!(rejection_of_check.class, RejectionClass::Config);
    let rejection = rejection(&bus, "impossible").await;
    assert_eq!(rejection.class, RejectionClass::Blocked);
    for reason in [rejection_of_check.reason, rejection.reason] {
        assert!(
            reason.contains("set min.insync.replicas to at most 1"),
            "{reason}"
        );
    }
    assert_eq!(messages(&url, "impossible").await, []);
}

#[tokio::test]
async fn a_topic_that_kafka_would_not_take_is_refused() {
    let bus = shared("");
    for event_type in ["a b", "a/b", "ä", "..", &"x".repeat(250)] {
        let rejection = rejection(&bus, event_type).await;
        assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
    }
}

fn of(aggregate: &str, event_type: &str) -> OutboxRecord {
    OutboxRecord {
        aggregate: Aggregate::new("order", aggregate),
        ..record(event_type)
    }
}

#[tokio::test]
async fn a_key_is_placed_as_kafkas_own_clients_place_it() {
    let url = shared_kafka().url();
    topic(&url, "placed", 7, &[]).await;
    // The hashes that Apache Kafka tests its own murmur2 with (UtilsTest.java).
    let hashes = [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        (
            "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
            -58_897_971,
        ),
        ("abc", 479_470_107),
    ];
    let batch = hashes.map(|(key, _)| of(key, "placed"));
    let bus = shared("");
    for _ in 0..3 {
        assert_eq!(bus.publish(&batch).await, [ACKED; 6]);
    }
    assert_eq!(bus.publish(&[record("placed")]).await, [ACKED]);
    let messages = messages(&url, "placed").await;
    assert_eq!(messages.len(), 19);
    for message in &messages {
        match &message.key {
            None => assert_eq!(event(message).attributes.get("partitionkey"), None),
            Some(key) => {
                let (_, hash) = hashes.iter().find(|(known, _)| known == key).unwrap();
                assert_eq!(message.partition, (hash & i32::MAX) % 7, "{key}");
            }
        }
    }
}

#[tokio::test]
async fn every_compression_carries_the_bytes() {
    let url = shared_kafka().url();
    topic(&url, "packed", 1, &[]).await;
    let mut expected = Vec::new();
    for compression in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let bus = shared(&format!("compression={compression}"));
        let mut record = record("packed");
        record.payload = format!("\"{}\"", compression.repeat(10_000)).into();
        assert_eq!(bus.publish(from_ref(&record)).await, [ACKED]);
        expected.push(record.payload.to_vec());
    }
    let bodies = messages(&url, "packed").await.into_iter();
    assert_eq!(
        bodies.map(|message| message.body).collect::<Vec<_>>(),
        expected
    );
}

#[tokio::test]
async fn a_small_topic_gets_small_batches() {
    let url = shared_kafka().url();
    topic(&url, "small", 1, &[("max.message.bytes", "5000")]).await;
    let bus = shared("");
    let mut batch: Vec<_> = (0..100).map(|n| of(&format!("k{n}"), "small")).collect();
    batch[50].payload = format!("\"{}\"", "x".repeat(5_000)).into();
    let outcomes = bus.publish(&batch).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Rejected(rejection) if n == 50 => {
                assert_eq!(rejection.class, RejectionClass::Permanent);
                assert!(
                    rejection.reason.contains("takes 5000 (max.message.bytes)"),
                    "{rejection}"
                );
            }
            outcome => assert_eq!((n == 50, outcome), (false, &ACKED)),
        }
    }
    assert_eq!(messages(&url, "small").await.len(), 99);
    // A service can know it before the commit: 68 bytes are the frame's.
    let event = |event_type| Event::new(event_type, Payload::json("1").unwrap());
    assert_eq!(bus.payload_bytes_max(&event("small")), Some(4_932));
    assert_eq!(bus.payload_bytes_max(&event("unheard.of")), None);
}

/// A broker with the topic `a` whose answer to the next publication is cut off or comes late, and
/// how often that has happened.
async fn doubtful(fault: impl FnOnce(&Proxy)) -> (KafkaServer, Proxy, KafkaPublisher) {
    let (server, proxy) = KafkaServer::start_behind_proxy().await;
    topic(&server.url(), "a", 1, &[]).await;
    let url = proxy.url_of(&server.url());
    let bus = publisher(&format!("{url}?timeout=5s"));
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    fault(&proxy);
    (server, proxy, bus)
}

#[tokio::test]
async fn an_event_whose_acknowledgement_was_cut_off_is_there_once() {
    let (server, proxy, bus) = doubtful(|proxy| proxy.cut_after(Way::ToClient, 0)).await;
    // The client sends it again by itself, and the broker knows its number.
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    assert_eq!(proxy.bites().cut_short, 1);
    assert_eq!(messages(&server.url(), "a").await.len(), 2);
}

#[tokio::test]
async fn a_late_acknowledgement_is_none() {
    let late = |proxy: &Proxy| proxy.delay(Way::ToClient, Duration::from_secs(15));
    let (server, proxy, bus) = doubtful(late).await;
    let batch = [record("a"), record("a")];
    for outcome in bus.publish(&batch).await {
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    }
    assert!(proxy.bites().delayed > 0);
    proxy.heal();
    assert_eq!(bus.publish(&batch).await, [ACKED; 2]);
    let messages = messages(&server.url(), "a").await;
    let ids: Vec<_> = messages[1..]
        .iter()
        .map(|message| message.header("ce_id").unwrap())
        .collect();
    let batch = batch.map(|record| record.id.to_string());
    assert_eq!(ids, [&batch[..], &batch[..]].concat());
}

#[tokio::test]
async fn a_broker_that_lets_nobody_in_is_said_to() {
    let server = KafkaServer::start_closed().await;
    for (user, query) in [
        ("", ""),
        ("bob:s3cret@", "sasl=plain"),
        ("bob:s3cret@", "sasl=scram-sha-256"),
        ("bob:s3cret@", "sasl=scram-sha-512"),
    ] {
        let url = server.url().replace("://", &format!("://{user}"));
        let bus = publisher(&format!("{url}?{query}&timeout=6s"));
        let rejection = bus.check().await.unwrap_err();
        // Whoever says nothing is hung up on without a word.
        if !user.is_empty() {
            assert_eq!(
                rejection.class,
                RejectionClass::Config,
                "{query}: {rejection}"
            );
            assert!(rejection.reason.contains("SASL"), "{rejection}");
        }
        assert!(!rejection.reason.contains("s3cret"), "{rejection}");
        assert_eq!(bus.publish(&[record("a")]).await.len(), 1);
    }
}

#[tokio::test]
async fn a_password_goes_in_as_it_is_and_a_wrong_one_does_not() {
    let server = KafkaServer::start().await;
    topic(&server.url(), "a", 1, &[]).await;
    let login = Some(("bob", "s3cr:et/ä"));
    let gate = Gate::before(&server, Rules { login, tls: None }).await;
    let url = |user: &str| format!("kafka://{user}@127.0.0.1:{}?timeout=6s", gate.port);
    let bus = publisher(&url("bob:s3cr%3Aet%2F%C3%A4"));
    bus.check().await.unwrap();
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    assert_eq!(messages_behind(&gate, &server).await, 1);

    for user in ["bob:wr0ng", "eve:s3cr%3Aet%2F%C3%A4"] {
        let bus = publisher(&url(user));
        let refused = bus.check().await.unwrap_err();
        assert_eq!(refused.class, RejectionClass::Config, "{refused}");
        assert!(!refused.reason.contains("wr0ng"), "{refused}");
        assert_eq!(rejection(&bus, "a").await.class, RejectionClass::Config);
    }
}

/// How many events are in the topic `a` of a broker, when its own clients may come again.
async fn messages_behind(gate: &Gate, server: &KafkaServer) -> usize {
    server.send_clients_to(server.port()).await;
    let messages = messages(&server.url(), "a").await;
    server.send_clients_to(gate.port).await;
    messages.len()
}

#[tokio::test]
async fn tls_is_verified_by_name_and_authority() {
    let server = KafkaServer::start().await;
    topic(&server.url(), "a", 1, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, certificate: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, certificate).unwrap();
        path.display().to_string()
    };
    let (right, acceptor) = certificate(&["localhost", "127.0.0.1"]);
    let (other, _) = certificate(&["localhost", "127.0.0.1"]);
    let (right, other) = (file("right.pem", &right), file("other.pem", &other));
    let rules = Rules {
        login: Some(("bob", "s3cret")),
        tls: Some(acceptor),
    };
    let gate = Gate::before(&server, rules).await;
    let at = format!("bob:s3cret@127.0.0.1:{}?timeout=6s", gate.port);
    let bus = publisher(&format!("kafkas://{at}&ca={right}"));
    bus.check().await.unwrap();
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    assert_eq!(messages_behind(&gate, &server).await, 1);

    let (misnamed, acceptor) = certificate(&["elsewhere"]);
    let misnamed = file("misnamed.pem", &misnamed);
    let rules = Rules {
        login: None,
        tls: Some(acceptor),
    };
    let elsewhere = Gate::before(&server, rules).await;
    let there = format!("127.0.0.1:{}?timeout=6s", elsewhere.port);
    for (url, class) in [
        (format!("kafkas://{at}&ca={other}"), RejectionClass::Config),
        (format!("kafkas://{at}"), RejectionClass::Config),
        (
            format!("kafkas://{there}&ca={misnamed}"),
            RejectionClass::Config,
        ),
        (
            format!("kafkas://{at}&ca=/none.pem"),
            RejectionClass::Config,
        ),
        (format!("kafka://{at}"), RejectionClass::Unreachable),
    ] {
        let rejection = publisher(&url).check().await.unwrap_err();
        assert_eq!(rejection.class, class, "{url}: {rejection}");
        assert!(!rejection.reason.contains("s3cret"), "{rejection}");
    }
}
