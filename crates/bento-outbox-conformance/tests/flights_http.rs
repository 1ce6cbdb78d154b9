//! The flights of January 2013 from PostgreSQL to a webhook, by two relays at the same time.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bento_outbox_conformance::servers::{Database, ReceiverServer, shared_postgres};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::bus_http;
use super::flights::{Arrived, EVENTS, Flights, PATIENCE, all_sent, postgres_states, program};

/// The most that can be under way when the receiver is killed: each relay's requests.
const IN_FLIGHT: usize = 2 * 16;

#[tokio::test]
async fn january_goes_from_postgres_to_a_webhook_by_two_relays() {
    let (flights, receiver) = (Flights::unpacked(), ReceiverServer::start().await);
    let database = appended(&flights).await;
    let relays = Relays::start(&flights, &database, &receiver);
    relays.carry_all(&database).await;
    flights.check(&arrived(&receiver));
}

#[tokio::test]
async fn january_arrives_although_the_receiver_is_killed_in_the_middle() {
    const KILLS: usize = 3;
    let (flights, receiver) = (Flights::unpacked(), ReceiverServer::start().await);
    let database = appended(&flights).await;
    let relays = Relays::start(&flights, &database, &receiver);
    for kill in 1..=KILLS {
        let so_many = EVENTS * kill / (KILLS + 1);
        eventually(|| std::future::ready(receiver.received_count() >= so_many)).await;
        receiver.kill();
        sleep(Duration::from_millis(500)).await;
        receiver.restart().await;
    }
    relays.carry_all(&database).await;

    let mut arrived = arrived(&receiver);
    let all = arrived.len();
    let mut seen = HashSet::new();
    arrived.retain(|event| seen.insert(event.attributes["id"].clone()));
    let again = all - arrived.len();
    assert!(again <= KILLS * IN_FLIGHT, "{again} events came again");
    flights.check(&arrived);
}

/// A database with all flights in it.
async fn appended(flights: &Flights) -> Database {
    let database = shared_postgres().database().await;
    let run = async |arguments: &[&str], input: Stdio| {
        let mut command = command(flights.folder.path(), database.url());
        let ended = command.args(arguments).stdin(input).output().await.unwrap();
        assert!(ended.status.success(), "{arguments:?}: {}", said(&ended));
    };
    run(&["migrate"], Stdio::null()).await;
    let file = File::open(flights.folder.path().join("flights.jsonl")).unwrap();
    run(&["append"], file.into()).await;
    database
}

/// The program, without the settings of whoever runs the tests.
fn command(folder: &Path, database: &str) -> Command {
    let mut command = Command::new(program());
    command
        .env_clear()
        .current_dir(folder)
        .args(["--database-url", database])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn said(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// Two relays, as processes.
struct Relays([Child; 2]);

impl Relays {
    fn start(flights: &Flights, database: &Database, receiver: &ReceiverServer) -> Self {
        let relay = || {
            let mut command = command(flights.folder.path(), database.url());
            command.args(["--bus-url", &receiver.url(), "run"]);
            command.spawn().unwrap()
        };
        Self([relay(), relay()])
    }

    /// Waits until all is sent, and stops them.
    async fn carry_all(self, database: &Database) {
        eventually(async || postgres_states(database.url()).await == all_sent()).await;
        for relay in self.0 {
            let id = relay.id().and_then(|id| Pid::from_raw(id as i32)).unwrap();
            kill_process(id, Signal::TERM).unwrap();
            let ended = timeout(PATIENCE, relay.wait_with_output()).await;
            let ended = ended.expect("a relay does not stop").unwrap();
            assert!(ended.status.success(), "{}", said(&ended));
        }
    }
}

async fn eventually(is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "it does not become so");
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the receiver wrote down.
fn arrived(receiver: &ReceiverServer) -> Vec<Arrived> {
    let received = receiver.received();
    let arrived = received.iter().map(|request| {
        let event = bus_http::read(request);
        assert!(event.headers.is_empty(), "{:?}", event.headers);
        Arrived {
            attributes: event.attributes,
            body: event.body,
        }
    });
    arrived.collect()
}
