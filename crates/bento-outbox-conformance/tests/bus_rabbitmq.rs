//! RabbitMQ against the list of cases, and what is its own. What arrived is read by another client.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::slice;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::publishers::RabbitMqPublisher;
use bento_outbox::{
    CloudEvents, Event, OutboxRecord, Outcome, Payload, Publisher, Rejection, RejectionClass,
    Tenant, Timestamp, Topic,
};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults};
use bento_outbox_conformance::bus_suite;
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::rabbitmq::{BOB, SMALL};
use bento_outbox_conformance::servers::{RabbitMqServer, free_port, shared_rabbitmq};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use tokio::sync::Mutex;
use url::Url;
use uuid::Uuid;

use super::bus::{TIMEOUT, envelope};

bus_suite!(rabbitmq, fresh_rabbitmq, RABBITMQ);

pub(crate) const RABBITMQ: Capabilities = Capabilities {
    keeps_batch_order: true,
    lowers_header_names: false,
    keeps: true,
    carries_bodies: true,
    drops_repetitions: false,
    refuses_unrouted: true,
    payload_bytes_max: Some(190_000),
};

/// An exchange of its own with a queue for the types `case.…`, on the server of all tests until it
/// is to fail: then on one of its own.
pub(crate) struct Rabbit {
    name: String,
    own: OnceLock<(RabbitMqServer, Proxy)>,
    /// What was taken out of the queue.
    taken: Mutex<Vec<Arrived>>,
}

pub(crate) async fn fresh_rabbitmq() -> Rabbit {
    let rabbit = Rabbit {
        name: format!("cases-{}", Uuid::now_v7()),
        own: OnceLock::new(),
        taken: Mutex::default(),
    };
    queue(shared(), &rabbit.name, "case.#", &[]).await;
    rabbit
}

/// The shared server, whose start is waited for off the runtime.
fn shared() -> &'static RabbitMqServer {
    tokio::task::block_in_place(shared_rabbitmq)
}

/// A consumer's connection, with which the library has nothing to do.
async fn consumer(server: &RabbitMqServer) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&server.url(), properties)
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Makes a durable exchange and a durable queue of this name for it.
pub(crate) async fn queue(
    server: &RabbitMqServer,
    name: &str,
    key: &str,
    arguments: &[(&str, AMQPValue)],
) {
    let (_connection, channel) = consumer(server).await;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let none = FieldTable::default;
    channel
        .exchange_declare(name.into(), ExchangeKind::Topic, durable, none())
        .await
        .unwrap();
    let mut table = none();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    channel
        .queue_declare(name.into(), QueueDeclareOptions::durable(), table)
        .await
        .unwrap();
    bind(&channel, name, key).await;
}

async fn bind(channel: &Channel, name: &str, key: &str) {
    let bound = channel.queue_bind(
        name.into(),
        name.into(),
        key.into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.unwrap();
}

/// Takes everything out of a queue.
pub(crate) async fn take(server: &RabbitMqServer, queue: &str) -> Vec<Arrived> {
    let mut taken = Vec::new();
    // A connection that broke may leave messages with the server that it still puts into the queue meanwhile.
    while take_some(server, queue, &mut taken).await > 0 {}
    taken
}

/// Takes as many out of a queue as there are at present; what comes meanwhile stays.
async fn take_some(server: &RabbitMqServer, queue: &str, taken: &mut Vec<Arrived>) -> usize {
    let (connection, channel) = consumer(server).await;
    let passive = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let none = FieldTable::default;
    let queued = channel.queue_declare(queue.into(), passive, none());
    let queued = queued.await.unwrap().message_count();
    let queued = u16::try_from(queued).unwrap_or(u16::MAX);
    if queued == 0 {
        return 0;
    }
    // The server hands out no more until these are acknowledged, and then nobody consumes any more.
    let no_more = channel.basic_qos(queued, BasicQosOptions::default());
    no_more.await.unwrap();
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, none());
    let consumer = consumer.await.unwrap();
    let tag = consumer.tag();
    let mut deliveries = consumer.take(queued.into());
    let mut last = None;
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery.unwrap();
        last = Some(delivery.acker.clone());
        taken.push(read(delivery));
    }
    let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
    cancelled.await.unwrap();
    if let Some(last) = last {
        let all = BasicAckOptions { multiple: true };
        last.ack(all).await.unwrap();
    }
    // One that is only dropped may stay for a while, and what is published next would go to it.
    connection.close(200, "done".into()).await.unwrap();
    queued.into()
}

fn read(delivery: lapin::message::Delivery) -> Arrived {
    let properties = delivery.properties;
    assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
    let mut arrived = Arrived {
        body: delivery.data,
        ..Arrived::default()
    };
    for (name, value) in properties.headers().as_ref().unwrap() {
        let AMQPValue::LongString(value) = value else {
            panic!("{name} is no text: {value:?}");
        };
        let value = String::from_utf8(value.as_bytes().to_vec()).unwrap();
        match name.as_str().strip_prefix("cloudEvents:") {
            Some(name) => arrived.attributes.insert(name.into(), value),
            None => arrived.headers.insert(name.to_string(), value),
        };
    }
    let content_type = properties.content_type().as_ref().unwrap().to_string();
    if content_type == "application/cloudevents+json" {
        assert_eq!(arrived.attributes, BTreeMap::new());
        let text = std::str::from_utf8(&arrived.body).unwrap();
        let headers = arrived.headers;
        arrived = Arrived {
            headers,
            ..envelope(text)
        };
    } else {
        let was = arrived
            .attributes
            .insert("datacontenttype".into(), content_type);
        assert_eq!(was, None, "the content type is a property of AMQP's own");
    }
    assert_eq!(
        properties.message_id().as_ref().unwrap().as_str(),
        arrived.id()
    );
    assert_eq!(delivery.routing_key.as_str(), arrived.attributes["type"]);
    arrived
}

impl Rabbit {
    fn server(&self) -> &RabbitMqServer {
        match self.own.get() {
            Some((server, _)) => server,
            None => shared_rabbitmq(),
        }
    }
}

#[async_trait]
impl Bus for Rabbit {
    fn publisher(&self) -> Box<dyn Publisher> {
        let url = match self.own.get() {
            Some((server, proxy)) => proxy.url_of(&server.url()),
            None => shared_rabbitmq().url(),
        };
        Box::new(publisher(&format!(
            "{url}?exchange={}&timeout={TIMEOUT}",
            self.name
        )))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let url = format!("amqp://127.0.0.1:{}", free_port());
        Some(Box::new(publisher(&url)))
    }

    fn publisher_of_a_stranger(&self) -> Option<Box<dyn Publisher>> {
        let url = self.server().url().replace("://", "://nobody:wr0ng@");
        Some(Box::new(publisher(&url)))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        let mut taken = self.taken.lock().await;
        taken.extend(take(self.server(), &self.name).await);
        taken.clone()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        tokio::task::block_in_place(|| {
            self.own.get_or_init(|| {
                let server = RabbitMqServer::start_blocking(SMALL, "");
                tokio::runtime::Handle::current().block_on(async {
                    queue(&server, &self.name, "case.#", &[]).await;
                    let proxy = Proxy::before(&server.url()).await;
                    (server, proxy)
                })
            })
        });
        Some(self)
    }
}

#[async_trait]
impl Faults for Rabbit {
    async fn kill(&self) {
        self.server().kill();
    }

    async fn restart(&self) {
        self.server().restart().await;
    }

    async fn pause(&self) {
        self.server().pause();
    }

    async fn resume(&self) {
        self.server().resume();
    }

    async fn lose_answers(&self) {
        let (_, proxy) = self.own.get().unwrap();
        proxy.swallow_reply(PUBLISH, 1);
    }

    async fn delay_answers(&self, delay: Duration) -> bool {
        let (_, proxy) = self.own.get().unwrap();
        proxy.delay(Way::ToClient, delay);
        true
    }
}

/// The class and method of `basic.publish`.
const PUBLISH: &[u8] = &[0, 60, 0, 40];

fn publisher(url: &str) -> RabbitMqPublisher {
    let url = Url::parse(url).unwrap();
    RabbitMqPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap()
}

fn record(event_type: &str) -> OutboxRecord {
    let event = Event::new(event_type, Payload::json("1").unwrap());
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

/// Publishes one record, which must be refused.
async fn rejection(bus: &RabbitMqPublisher, record: OutboxRecord) -> Rejection {
    match bus.publish(&[record]).await.remove(0) {
        Outcome::Rejected(rejection) => rejection,
        outcome => panic!("{outcome:?}"),
    }
}

/// A publisher to the shared server.
fn to_shared(query: &str) -> RabbitMqPublisher {
    publisher(&format!("{}?{query}", shared().url()))
}

/// A publisher to the shared server as a user who may do less.
fn as_bob(query: &str) -> RabbitMqPublisher {
    let url = shared().url().replace("://", &format!("://{BOB}@"));
    publisher(&format!("{url}?{query}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exchange_is_made_durable_or_must_be_there() {
    let missing = to_shared("exchange=made&declare=false").check().await;
    let rejection = missing.unwrap_err();
    assert_eq!(rejection.class, RejectionClass::Config);
    assert!(rejection.reason.contains("made") && rejection.reason.contains("declare=false"));

    to_shared("exchange=made").check().await.unwrap();
    to_shared("exchange=made&declare=false")
        .check()
        .await
        .unwrap();
    let (_connection, channel) = consumer(shared()).await;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let same = channel.exchange_declare(
        "made".into(),
        ExchangeKind::Topic,
        durable,
        FieldTable::default(),
    );
    same.await.expect("a durable topic exchange");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_would_lose_events_is_refused_unless_told() {
    let (_connection, channel) = consumer(shared()).await;
    for (name, kind, durable) in [
        ("forgetful", ExchangeKind::Topic, false),
        ("fanning", ExchangeKind::Fanout, true),
    ] {
        let options = ExchangeDeclareOptions {
            durable,
            ..ExchangeDeclareOptions::default()
        };
        let declared = channel.exchange_declare(name.into(), kind, options, FieldTable::default());
        declared.await.unwrap();
        let refused = to_shared(&format!("exchange={name}")).check().await;
        let rejection = refused.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config, "{rejection}");
        assert!(rejection.reason.contains("durable topic"), "{rejection}");
        let told = to_shared(&format!("exchange={name}&declare=false"));
        told.check().await.unwrap();
    }
}

/// Many confirmations come together, and what was given back is in the midst of them: a client that
/// goes by their order takes a few of those for sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_queue_takes_is_not_sent_in_whatever_company() {
    let name = "company";
    queue(shared(), name, "good", &[]).await;
    let bus = to_shared(&format!("exchange={name}"));
    let mut sent = Vec::new();
    for _ in 0..20 {
        let batch: Vec<_> = (0..350)
            .map(|n| record(if n % 7 == 3 { "bad" } else { "good" }))
            .collect();
        for (record, outcome) in batch.iter().zip(bus.publish(&batch).await) {
            if record.event_type == "good" {
                assert_eq!(outcome, Outcome::Acked);
                sent.push(record.id.to_string());
                continue;
            }
            let Outcome::Rejected(rejection) = outcome else {
                panic!("{outcome:?} of an event that no queue takes");
            };
            assert_eq!(rejection.class, RejectionClass::Blocked);
            assert!(rejection.reason.contains("bad") && rejection.reason.contains(name));
        }
    }
    let arrived = take(shared(), name).await;
    assert!(arrived.iter().map(Arrived::id).eq(&sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_waited_for() {
    let name = "full";
    let limits = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    queue(shared(), name, "a", &limits).await;
    let bus = to_shared(&format!("exchange={name}"));
    // The queue looks at its length now and then.
    for _ in 0..20 {
        bus.publish(&[record("a")]).await;
    }
    let full = rejection(&bus, record("a")).await;
    assert_eq!(full.class, RejectionClass::Throttled(None), "{full}");
    take(shared(), name).await;
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_amqp_has_no_room_for_is_refused_for_good_and_its_neighbours_are_not() {
    let name = "room";
    queue(shared(), name, "#", &[]).await;
    let bus = to_shared(&format!("exchange={name}"));
    let with = |headers: String| OutboxRecord {
        headers,
        ..record("a")
    };
    let wide: BTreeMap<String, String> = (0..50)
        .map(|n| (format!("x-{n}"), "x".repeat(4_000)))
        .collect();
    for (bad, said) in [
        (record(&"t".repeat(256)), "topic"),
        (with(r#"{"CC":"elsewhere"}"#.into()), "CC"),
        (with(r#"{"BCC":"elsewhere"}"#.into()), "BCC"),
        (with(serde_json::to_string(&wide).unwrap()), "one frame"),
        (
            OutboxRecord {
                content_type: "c".repeat(256),
                ..record("a")
            },
            "content_type",
        ),
    ] {
        let outcomes = bus.publish(&[record("a"), bad, record("a")]).await;
        assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2], "{said}");
        let Outcome::Rejected(rejection) = &outcomes[1] else {
            panic!("{said}: {outcomes:?}");
        };
        assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
        assert!(rejection.reason.contains(said), "{said}: {rejection}");
    }
    assert_eq!(take(shared(), name).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_structured_event_is_one_envelope() {
    let name = "structured";
    queue(shared(), name, "#", &[]).await;
    let bus = to_shared(&format!("exchange={name}&mode=structured"));
    let mut record = record("a");
    record.headers = r#"{"x-shop":"north"}"#.into();
    assert_eq!(bus.publish(&[record.clone()]).await, [Outcome::Acked]);
    let arrived = take(shared(), name).await;
    assert_eq!(arrived[0].id(), record.id.to_string());
    assert_eq!(arrived[0].headers["x-shop"], "north");
    assert_eq!(arrived[0].body, b"1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_virtual_host_is_said_and_not_shown() {
    let url = shared().url();
    for (user, vhost) in [("bob:wr0ng@", ""), ("wr0ng:wr0ng@", ""), ("", "/n0where")] {
        let bus = publisher(&format!(
            "{}{vhost}",
            url.replace("://", &format!("://{user}"))
        ));
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config, "{rejection}");
        assert!(!rejection.reason.contains("wr0ng"), "{rejection}");
        let outcomes = bus.publish(&[record("a")]).await;
        assert_eq!(outcomes, [Outcome::Rejected(rejection)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_is_told_what_to_grant() {
    queue(shared(), "bobs-own", "#", &[]).await;
    queue(shared(), "alices-own", "#", &[]).await;
    // He may not make it, but may write to it when it is there.
    let refused = as_bob("exchange=bobs-own").check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config);
    assert!(refused.reason.contains("declare=false"), "{refused}");
    let bus = as_bob("exchange=bobs-own&declare=false");
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);

    let bus = as_bob("exchange=alices-own&declare=false");
    bus.check().await.unwrap();
    for _ in 0..2 {
        let refused = rejection(&bus, record("a")).await;
        assert_eq!(refused.class, RejectionClass::Config, "{refused}");
        assert!(refused.reason.contains("alices-own"), "{refused}");
    }
    assert_eq!(take(shared(), "alices-own").await, []);
}

/// The server answers such a topic by closing the channel, with all confirmations to come.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_user_may_not_write_to_waits_and_the_others_go_on() {
    let name = "bobs-topics";
    queue(shared(), name, "#", &[]).await;
    let bus = as_bob(&format!("exchange={name}&declare=false"));
    let forbidden = record("not.this");
    let allowed: Vec<_> = (0..50).map(|_| record("may.be")).collect();
    let batch = [&allowed[..25], slice::from_ref(&forbidden), &allowed[25..]].concat();
    let mut outcomes = bus.publish(&batch).await;
    let Outcome::Rejected(rejection) = outcomes.remove(25) else {
        panic!("the forbidden one is not refused");
    };
    assert_eq!(rejection.class, RejectionClass::Blocked, "{rejection}");
    assert!(rejection.reason.contains("not.this"), "{rejection}");
    // Some have lost their confirmation with the channel, and are sent again.
    let again: Vec<_> = allowed
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| *outcome != Outcome::Acked)
        .map(|(record, outcome)| {
            assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
            record.clone()
        })
        .collect();
    let outcomes = bus.publish(&again).await;
    assert_eq!(outcomes, vec![Outcome::Acked; again.len()]);
    let arrived = take(shared(), name).await;
    let arrived: BTreeSet<_> = arrived.iter().map(Arrived::id).collect();
    let allowed: Vec<_> = allowed.iter().map(|record| record.id.to_string()).collect();
    assert_eq!(arrived, allowed.iter().map(String::as_str).collect());
}
