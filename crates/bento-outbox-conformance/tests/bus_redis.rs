//! Redis Streams against the list of cases, and what is its own. What arrived is read by hand.

mod refusals;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::publishers::RedisPublisher;
use bento_outbox::{
    CloudEvents, Event, OutboxRecord, Outcome, Payload, Publisher, Rejection, RejectionClass,
    Tenant, Timestamp, Topic,
};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults};
use bento_outbox_conformance::bus_suite;
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::{RedisServer, free_port, shared_redis};
use url::Url;

use super::bus::{TIMEOUT, envelope};

bus_suite!(redis, fresh_redis, REDIS);

pub(crate) const REDIS: Capabilities = Capabilities {
    keeps_batch_order: true,
    lowers_header_names: false,
    keeps: true,
    carries_bodies: true,
    drops_repetitions: false,
    refuses_unrouted: false,
    payload_bytes_max: Some(1_000_000),
};

/// A server, and a proxy before it.
pub(crate) struct Redis {
    server: RedisServer,
    proxy: Proxy,
}

pub(crate) async fn fresh_redis() -> Redis {
    let server = RedisServer::start_with(&[("proto-max-bulk-len", "1mb")]).await;
    let proxy = Proxy::before(&server.url()).await;
    Redis { server, proxy }
}

fn publisher(url: &str) -> RedisPublisher {
    let url = Url::parse(url).unwrap();
    RedisPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap()
}

#[async_trait]
impl Bus for Redis {
    fn publisher(&self) -> Box<dyn Publisher> {
        let url = self.proxy.url_of(&self.server.url());
        Box::new(publisher(&format!("{url}?timeout={TIMEOUT}")))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let url = format!("redis://127.0.0.1:{}", free_port());
        Some(Box::new(publisher(&url)))
    }

    fn publisher_of_a_stranger(&self) -> Option<Box<dyn Publisher>> {
        let url = self.server.url().replace("://", "://nobody:wr0ng@");
        Some(Box::new(publisher(&url)))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        entries(&self.server, "case.changed")
            .iter()
            .map(read)
            .collect()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        Some(self)
    }
}

#[async_trait]
impl Faults for Redis {
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
        self.proxy.swallow_reply(b"XADD", 1);
    }

    async fn delay_answers(&self, delay: Duration) -> bool {
        self.proxy.delay(Way::ToClient, delay);
        true
    }
}

/// What a server answers, read by hand: another client than the library's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    Text(String),
    Refusal(String),
    Number(i64),
    Bytes(Vec<u8>),
    List(Vec<Reply>),
    Nothing,
}

/// Sends a command on a connection of its own.
pub(crate) fn ask(server: &RedisServer, words: &[&str]) -> Reply {
    let mut connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    write!(connection, "*{}\r\n", words.len()).unwrap();
    for word in words {
        write!(connection, "${}\r\n{word}\r\n", word.len()).unwrap();
    }
    reply(&mut BufReader::new(connection))
}

fn reply(from: &mut BufReader<TcpStream>) -> Reply {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let (kind, rest) = line.trim_end().split_at(1);
    match (kind, rest) {
        ("+", text) => Reply::Text(text.into()),
        ("-", text) => Reply::Refusal(text.into()),
        (":", number) => Reply::Number(number.parse().unwrap()),
        ("$" | "*", "-1") => Reply::Nothing,
        ("$", bytes) => {
            let mut bytes = vec![0; bytes.parse::<usize>().unwrap() + 2];
            from.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes.split_off(bytes.len() - 2), b"\r\n");
            Reply::Bytes(bytes)
        }
        ("*", n) => Reply::List((0..n.parse().unwrap()).map(|_| reply(from)).collect()),
        _ => panic!("{line:?} is no reply"),
    }
}

impl Reply {
    fn list(self) -> Vec<Self> {
        match self {
            Self::List(list) => list,
            other => panic!("{other:?} is no list"),
        }
    }

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("{other:?} are no bytes"),
        }
    }
}

pub(crate) type Entry = Vec<(String, Vec<u8>)>;

/// The entries of a stream.
pub(crate) fn entries(server: &RedisServer, stream: &str) -> Vec<Entry> {
    let all = ask(server, &["XRANGE", stream, "-", "+"])
        .list()
        .into_iter();
    all.map(|entry| {
        let fields = entry.list().remove(1).list();
        let mut fields = fields.into_iter().map(Reply::bytes);
        let mut entry = Vec::new();
        while let Some(name) = fields.next() {
            entry.push((String::from_utf8(name).unwrap(), fields.next().unwrap()));
        }
        entry
    })
    .collect()
}

pub(crate) fn read(entry: &Entry) -> Arrived {
    let mut arrived = Arrived::default();
    for (name, value) in entry {
        if name == "data" {
            arrived.body = value.clone();
            continue;
        }
        let value = String::from_utf8(value.clone()).unwrap();
        let was = match name.strip_prefix("ce_") {
            Some(name) => arrived.attributes.insert(name.into(), value),
            None => arrived.headers.insert(name.clone(), value),
        };
        assert_eq!(was, None, "{name} came twice");
    }
    arrived
}

fn record(event_type: &str) -> OutboxRecord {
    let event = Event::new(event_type, Payload::json("1").unwrap());
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

/// A record with a payload of so many bytes.
fn large(event_type: &str, bytes: usize) -> OutboxRecord {
    let event = Event::new(event_type, Payload::Data(vec![b'x'; bytes].into()));
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

/// Publishes one record, which must be refused.
async fn rejection(bus: &RedisPublisher, record: OutboxRecord) -> Rejection {
    match bus.publish(&[record]).await.remove(0) {
        Outcome::Rejected(rejection) => rejection,
        outcome => panic!("{outcome:?}"),
    }
}

/// A publisher to the shared server.
fn to_shared(query: &str) -> RedisPublisher {
    publisher(&format!("{}?{query}", shared_redis().url()))
}

#[tokio::test]
async fn a_structured_event_is_one_envelope() {
    let mut record = record("structured");
    record.headers = r#"{"x-shop":"north"}"#.into();
    let bus = to_shared("mode=structured");
    assert_eq!(bus.publish(&[record.clone()]).await, [Outcome::Acked]);
    let entry = entries(shared_redis(), "structured").remove(0);
    let [content_type, shop, data] = &entry[..] else {
        panic!("{entry:?}");
    };
    let owned = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    assert_eq!(
        *content_type,
        owned("content-type", "application/cloudevents+json")
    );
    assert_eq!(*shop, owned("x-shop", "north"));
    let event = envelope(std::str::from_utf8(&data.1).unwrap());
    assert_eq!(
        (data.0.as_str(), event.id()),
        ("data", &*record.id.to_string())
    );
    assert_eq!(event.body, b"1");
}

#[tokio::test]
async fn a_stream_has_whatever_name_the_topic_is() {
    for name in [
        "with a space",
        "{braces}:*?[a]",
        "ä€😀",
        "-",
        "+",
        "$",
        "*",
        "MAXLEN",
    ] {
        let outcomes = to_shared("").publish(&[record(name)]).await;
        assert_eq!(outcomes, [Outcome::Acked], "{name}");
        assert_eq!(entries(shared_redis(), name).len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_stream_is_cut_only_when_told() {
    let events: Vec<_> = (0..1_000).map(|_| record("cut")).collect();
    for outcome in to_shared("").publish(&events).await {
        assert_eq!(outcome, Outcome::Acked);
    }
    assert_eq!(entries(shared_redis(), "cut").len(), 1_000);
    let bus = to_shared("maxlen=100");
    assert_eq!(bus.publish(&[record("cut")]).await, [Outcome::Acked]);
    let left = entries(shared_redis(), "cut").len();
    assert!((100..=300).contains(&left), "{left} entries are left");
}

#[tokio::test]
async fn a_stream_that_must_be_there_is_waited_for() {
    let bus = to_shared("create=false");
    let missing = rejection(&bus, record("later")).await;
    assert_eq!(missing.class, RejectionClass::Blocked, "{missing}");
    assert!(missing.reason.contains("later") && missing.reason.contains("create=false"));
    assert_eq!(ask(shared_redis(), &["EXISTS", "later"]), Reply::Number(0));
    ask(
        shared_redis(),
        &["XGROUP", "CREATE", "later", "group", "$", "MKSTREAM"],
    );
    assert_eq!(bus.publish(&[record("later")]).await, [Outcome::Acked]);
    assert_eq!(entries(shared_redis(), "later").len(), 1);
}

#[tokio::test]
async fn a_database_has_streams_of_its_own() {
    let bus = publisher(&format!("{}/7", shared_redis().url()));
    assert_eq!(bus.publish(&[record("seventh")]).await, [Outcome::Acked]);
    assert_eq!(
        ask(shared_redis(), &["EXISTS", "seventh"]),
        Reply::Number(0)
    );
    let bus = publisher(&format!("{}/7000", shared_redis().url()));
    let rejection = bus.check().await.unwrap_err();
    assert_eq!(rejection.class, RejectionClass::Config, "{rejection}");
}
