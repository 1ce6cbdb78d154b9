//! The flights of January 2013 from PostgreSQL to JetStream, to RabbitMQ and to Redis, by two relays at the same time,
//! with servers that stay and with servers that are killed on the way.

use std::collections::HashSet;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bento_outbox_conformance::bus;
use bento_outbox_conformance::servers::{Database, RabbitMqServer, RedisServer, shared_postgres};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::flights::{Arrived, EVENTS, Flights, PATIENCE, all_sent, postgres_states, program};
use super::{bus_rabbitmq, bus_redis, flights};

/// The most that two relays have under way: two batches each.
const IN_FLIGHT: usize = 2 * 2 * 200;

#[tokio::test]
async fn january_goes_from_postgres_to_jetstream_by_two_relays() {
    let (flights, server) = (Flights::unpacked(), flights::nats().await);
    let database = appended(&flights).await;
    Relays::start(&flights, &database, &server.url())
        .carry_all(&database)
        .await;
    flights.check(&flights::messages(&server).await);
}

#[tokio::test]
async fn january_arrives_although_nats_is_killed_in_the_middle() {
    const KILLS: usize = 3;
    let (flights, server) = (Flights::unpacked(), flights::nats().await);
    let database = appended(&flights).await;
    let relays = Relays::start(&flights, &database, &server.url());
    for kill in 1..=KILLS {
        sent(&database, EVENTS * kill / (KILLS + 1)).await;
        server.kill();
        sleep(Duration::from_millis(500)).await;
        server.restart().await;
    }
    relays.carry_all(&database).await;
    check_first_arrivals(&flights, flights::messages(&server).await, KILLS);
}

#[tokio::test]
async fn january_goes_from_postgres_to_rabbitmq_by_two_relays() {
    let (flights, server) = (Flights::unpacked(), rabbitmq().await);
    let database = appended(&flights).await;
    Relays::start(&flights, &database, &server.url())
        .carry_all(&database)
        .await;
    flights.check(&from_rabbitmq(&server).await);
}

#[tokio::test]
async fn january_arrives_although_rabbitmq_is_killed_in_the_middle() {
    const KILLS: usize = 2;
    let (flights, server) = (Flights::unpacked(), rabbitmq().await);
    let database = appended(&flights).await;
    let relays = Relays::start(&flights, &database, &server.url());
    for kill in 1..=KILLS {
        sent(&database, EVENTS * kill / (KILLS + 1)).await;
        server.kill();
        sleep(Duration::from_millis(500)).await;
        server.restart().await;
    }
    relays.carry_all(&database).await;
    check_first_arrivals(&flights, from_rabbitmq(&server).await, KILLS);
}

#[tokio::test]
async fn january_goes_from_postgres_to_redis_by_two_relays() {
    let (flights, server) = (Flights::unpacked(), RedisServer::start().await);
    let database = appended(&flights).await;
    Relays::start(&flights, &database, &server.url())
        .carry_all(&database)
        .await;
    flights.check(&from_redis(&server));
}

#[tokio::test]
async fn january_arrives_although_redis_is_killed_in_the_middle() {
    const KILLS: usize = 3;
    let (flights, server) = (Flights::unpacked(), RedisServer::start().await);
    let database = appended(&flights).await;
    let relays = Relays::start(&flights, &database, &server.url());
    for kill in 1..=KILLS {
        sent(&database, EVENTS * kill / (KILLS + 1)).await;
        server.kill();
        sleep(Duration::from_millis(500)).await;
        server.restart().await;
    }
    relays.carry_all(&database).await;
    check_first_arrivals(&flights, from_redis(&server), KILLS);
}

/// A server with one queue for all flights.
async fn rabbitmq() -> RabbitMqServer {
    let server = RabbitMqServer::start_with("", "").await;
    bus_rabbitmq::queue(&server, "outbox", "#", &[]).await;
    server
}

async fn from_rabbitmq(server: &RabbitMqServer) -> Vec<Arrived> {
    let taken = bus_rabbitmq::take(server, "outbox").await;
    taken.into_iter().map(flight).collect()
}

fn from_redis(server: &RedisServer) -> Vec<Arrived> {
    let entries = bus_redis::entries(server, "flights");
    entries.iter().map(bus_redis::read).map(flight).collect()
}

fn flight(arrived: bus::Arrived) -> Arrived {
    assert!(arrived.headers.is_empty(), "{:?}", arrived.headers);
    Arrived {
        attributes: arrived.attributes,
        body: arrived.body,
    }
}

/// Nothing is lost and nothing overtook, though what was under way at a kill may have come again.
fn check_first_arrivals(flights: &Flights, mut arrived: Vec<Arrived>, kills: usize) {
    let all = arrived.len();
    let mut seen = HashSet::new();
    arrived.retain(|event| seen.insert(event.attributes["id"].clone()));
    let again = all - arrived.len();
    assert!(again <= kills * IN_FLIGHT, "{again} events came again");
    flights.check(&arrived);
}

/// A database with all flights in it.
async fn appended(flights: &Flights) -> Database {
    let database = shared_postgres().database().await;
    for (arguments, input) in [
        ("migrate", Stdio::null()),
        (
            "append",
            File::open(flights.folder.path().join("flights.jsonl"))
                .unwrap()
                .into(),
        ),
    ] {
        let mut command = command(flights, &database);
        let output = command.arg(arguments).stdin(input).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {said}");
    }
    database
}

/// The program, without the settings of whoever runs the tests.
fn command(flights: &Flights, database: &Database) -> Command {
    let mut command = Command::new(program());
    command
        .env_clear()
        .current_dir(flights.folder.path())
        .args(["--database-url", database.url()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Waits until so many events are sent, by the database.
async fn sent(database: &Database, so_many: usize) {
    let begun = Instant::now();
    loop {
        let states = postgres_states(database.url()).await;
        let sent = states.iter().find(|(status, _)| status == "SENT");
        let sent = sent.map_or(0, |(_, n)| *n as usize);
        if sent >= so_many {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{sent} of {so_many} are sent");
        sleep(Duration::from_millis(300)).await;
    }
}

/// Two relays, and what they said.
struct Relays {
    children: Vec<Child>,
    said: std::path::PathBuf,
}

impl Relays {
    fn start(flights: &Flights, database: &Database, bus: &str) -> Self {
        let said = flights.folder.path().join("said");
        let log = File::create(&said).unwrap();
        let relay = || {
            let mut command = command(flights, database);
            command
                .args(["--bus-url", bus, "run"])
                .env("OUTBOX_ADMIN_ADDR", "off")
                .stderr(log.try_clone().unwrap());
            // In Redis one topic is one stream, and only within a stream there is an order to look at.
            if bus.starts_with("redis:") {
                command.env("OUTBOX_TOPIC", "flights");
            }
            command.spawn().unwrap()
        };
        Self {
            children: vec![relay(), relay()],
            said,
        }
    }

    /// Lets them carry all events, and asks them to stop.
    async fn carry_all(mut self, database: &Database) {
        sent(database, EVENTS).await;
        for child in &mut self.children {
            let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
            kill_process(pid.expect("a relay ended by itself"), Signal::TERM).unwrap();
            let ended = timeout(PATIENCE, child.wait()).await;
            let ended = ended.expect("a relay does not end").unwrap();
            let said = fs::read_to_string(&self.said).unwrap();
            assert!(ended.success(), "{said}");
        }
        assert_eq!(postgres_states(database.url()).await, all_sent());
    }
}
