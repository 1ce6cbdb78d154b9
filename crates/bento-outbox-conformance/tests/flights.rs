//! The main job on real input: the flights of January 2013 go from a file through a database to a bus.
//!
//! The program is driven as a user drives it. What it did is checked against the file by plain JSON, plain SQL and a
//! plain NATS client, and by none of our code.

mod kafka;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, stream};
use bento_outbox_conformance::servers::{NatsServer, shared_postgres};
use flate2::read::GzDecoder;
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

const JANUARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/flights-2013-01.jsonl.gz");
pub(super) const EVENTS: usize = 53_402;
/// How long a command may take: far more than it needs.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

#[tokio::test]
async fn january_goes_from_sqlite_to_a_file() {
    let flights = Flights::unpacked();
    let (database, bus) = (flights.sqlite(), flights.file());
    flights.carry(&database, &bus).await;
    flights.check(&lines(&bus));
    assert_eq!(sqlite_states(&database).await, all_sent());
}

#[tokio::test]
async fn january_goes_from_sqlite_to_jetstream() {
    let flights = Flights::unpacked();
    let (database, nats) = (flights.sqlite(), nats().await);
    flights.carry(&database, &nats.url()).await;
    flights.check(&messages(&nats).await);
    assert_eq!(sqlite_states(&database).await, all_sent());
}

#[tokio::test]
async fn january_goes_from_postgres_to_a_file() {
    let flights = Flights::unpacked();
    let (database, bus) = (shared_postgres().database().await, flights.file());
    flights.carry(database.url(), &bus).await;
    flights.check(&lines(&bus));
    assert_eq!(postgres_states(database.url()).await, all_sent());
}

#[tokio::test]
async fn january_goes_from_postgres_to_jetstream() {
    let flights = Flights::unpacked();
    let (database, nats) = (shared_postgres().database().await, nats().await);
    flights.carry(database.url(), &nats.url()).await;
    flights.check(&messages(&nats).await);
    assert_eq!(postgres_states(database.url()).await, all_sent());
}

/// A line of the file.
#[derive(Deserialize)]
pub(super) struct Flight<'a> {
    id: &'a str,
    tenant_id: &'a str,
    aggregate_type: Option<&'a str>,
    aggregate_id: Option<&'a str>,
    r#type: &'a str,
    schema_ver: u32,
    occurred_at: &'a str,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// An event as it came out of a bus.
pub(super) struct Arrived {
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

/// The file, unpacked in a folder for all that a test makes of it.
pub(super) struct Flights {
    pub(super) folder: TempDir,
    lines: String,
}

impl Flights {
    pub(super) fn unpacked() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines = io::read_to_string(GzDecoder::new(File::open(JANUARY).unwrap())).unwrap();
        let mut file = File::create(folder.path().join("flights.jsonl")).unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        Self { folder, lines }
    }

    fn sqlite(&self) -> String {
        format!("sqlite://{}/outbox.db", self.folder.path().display())
    }

    fn file(&self) -> String {
        format!("file:{}/events.jsonl", self.folder.path().display())
    }

    /// Brings the flights into the database and from there to the bus.
    async fn carry(&self, database: &str, bus: &str) {
        let run = async |arguments: &[&str], input: Stdio| {
            let mut command = tokio::process::Command::new(program());
            let child = command
                .args(["--database-url", database, "--bus-url", bus])
                .args(arguments)
                // The settings of whoever runs the tests are not ours.
                .env_clear()
                .current_dir(&self.folder)
                .stdin(input)
                .kill_on_drop(true)
                .output();
            let ended = tokio::time::timeout(PATIENCE, child).await;
            let output = ended.expect("the program does not end").unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{arguments:?}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        };
        run(&["migrate"], Stdio::null()).await;
        let file = File::open(self.folder.path().join("flights.jsonl")).unwrap();
        let ids = run(&["append"], file.into()).await;
        assert!(ids.lines().eq(self.flights().map(|flight| flight.id)));
        run(&["run", "--once"], Stdio::null()).await;
    }

    pub(super) fn flights(&self) -> impl Iterator<Item = Flight<'_>> {
        let parse = |line| serde_json::from_str(line).unwrap();
        self.lines.lines().map(parse)
    }

    /// Every event is there once, as the file has it, and every aircraft's are in the file's order.
    pub(super) fn check(&self, arrived: &[Arrived]) {
        let flights: Vec<_> = self.flights().collect();
        let numbers: HashMap<_, _> = flights.iter().map(|f| f.id).zip(0..).collect();
        assert_eq!((flights.len(), numbers.len()), (EVENTS, EVENTS));
        assert_eq!(arrived.len(), EVENTS);

        let mut sequences = vec![None; EVENTS];
        let mut last_of_aircraft = HashMap::new();
        for event in arrived {
            let number: usize = numbers[event.attributes["id"].as_str()];
            let flight = &flights[number];
            let mut attributes = event.attributes.clone();
            let sequence: u64 = attributes.remove("sequence").unwrap().parse().unwrap();
            assert_eq!(
                sequences[number].replace(sequence),
                None,
                "{} twice",
                flight.id
            );
            assert_eq!(attributes, flight.attributes());
            assert!(
                event.body == flight.payload.get().as_bytes(),
                "{}",
                flight.id
            );
            if let Some(aircraft) = flight.aggregate_id {
                let last = last_of_aircraft.insert((flight.tenant_id, aircraft), number);
                assert!(last < Some(number), "{aircraft}: {number} after {last:?}");
            }
        }
        assert!(sequences.is_sorted(), "rows are not in the file's order");
    }
}

impl Flight<'_> {
    /// The attributes that the contract promises, but for `sequence`, which the database gives.
    fn attributes(&self) -> BTreeMap<String, String> {
        let key = |id| [self.tenant_id, self.aggregate_type.unwrap_or(""), id].join("/");
        // The file has whole seconds, and a CloudEvent has microseconds.
        let time = self.occurred_at.replace('Z', ".000000Z");
        let attributes = [
            ("specversion", Some("1.0".into())),
            ("id", Some(self.id.into())),
            ("source", Some("urn:bento-outbox".into())),
            ("type", Some(self.r#type.into())),
            ("time", Some(time)),
            ("datacontenttype", Some("application/json".into())),
            ("tenantid", Some(self.tenant_id.into())),
            ("schemaversion", Some(self.schema_ver.to_string())),
            ("subject", self.aggregate_id.map(Into::into)),
            ("aggregatetype", self.aggregate_type.map(Into::into)),
            ("partitionkey", self.aggregate_id.map(key)),
        ];
        let set = attributes.into_iter();
        set.filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// The program that the same build made beside this test.
pub(crate) fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let program = this.parent().and_then(Path::parent).unwrap();
    let program = program.join("bento-outbox");
    assert!(
        program.exists(),
        "{} is missing: cargo build -p bento-outbox-cli",
        program.display()
    );
    program
}

/// The events of a `file:` bus.
fn lines(bus: &str) -> Vec<Arrived> {
    let lines = fs::read_to_string(bus.strip_prefix("file:").unwrap()).unwrap();
    let arrived = lines.lines().map(|line| {
        let mut event: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line).unwrap();
        let body = event.remove("data").unwrap().get().into();
        let text = |value: Box<RawValue>| match serde_json::from_str(value.get()).unwrap() {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let attributes = event.into_iter();
        Arrived {
            attributes: attributes
                .map(|(name, value)| (name, text(value)))
                .collect(),
            body,
        }
    });
    arrived.collect()
}

/// A server with a stream for flights.
pub(super) async fn nats() -> NatsServer {
    let server = NatsServer::start().await;
    let config = stream::Config {
        name: "FLIGHTS".into(),
        subjects: vec!["flight.>".into()],
        ..stream::Config::default()
    };
    jetstream(&server)
        .await
        .create_stream(config)
        .await
        .unwrap();
    server
}

async fn jetstream(server: &NatsServer) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// The events in the stream.
pub(super) async fn messages(server: &NatsServer) -> Vec<Arrived> {
    let context = jetstream(server).await;
    let mut stream = context.get_stream("FLIGHTS").await.unwrap();
    let there = stream.info().await.unwrap().state.messages as usize;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await.unwrap();
    let mut arrived = Vec::with_capacity(there);
    while arrived.len() < there {
        let batch = consumer
            .fetch()
            .max_messages(5_000)
            .messages()
            .await
            .unwrap();
        let messages: Vec<_> = batch.try_collect().await.unwrap();
        assert!(!messages.is_empty(), "{} of {there} come", arrived.len());
        arrived.extend(messages.iter().map(|message| {
            let headers = message.headers.as_ref().unwrap();
            let header = |name: &str| headers.get(name).unwrap().as_str();
            assert_eq!(message.subject.as_str(), header("ce-type"));
            assert_eq!(header("Nats-Msg-Id"), header("ce-id"));
            let attributes = headers.iter().filter_map(|(name, values)| {
                let name = name.to_string().strip_prefix("ce-")?.to_owned();
                Some((name, values[0].to_string()))
            });
            Arrived {
                attributes: attributes.collect(),
                body: message.payload.to_vec(),
            }
        }));
    }
    arrived
}

/// How many events are in which state.
pub(super) type States = Vec<(String, i64)>;

const STATES: &str = "select status, count(*) from outbox_events group by status";

pub(super) fn all_sent() -> States {
    vec![("SENT".into(), EVENTS as i64)]
}

async fn sqlite_states(url: &str) -> States {
    let mut database = SqliteConnection::connect(url).await.unwrap();
    let states = sqlx::query_as(STATES).fetch_all(&mut database).await;
    states.unwrap()
}

pub(super) async fn postgres_states(url: &str) -> States {
    let mut database = PgConnection::connect(url).await.unwrap();
    let states = sqlx::query_as(STATES).fetch_all(&mut database).await;
    states.unwrap()
}
