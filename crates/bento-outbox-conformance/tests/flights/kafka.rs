//! January to Kafka, by two relays, and with the broker killed in the middle.

use std::collections::HashSet;

use bento_outbox_conformance::servers::KafkaServer;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::*;
use crate::bus_kafka::{event, messages, topic};

/// All types in one topic, as the order of an aircraft's events wants it, and more keys than partitions.
const TOPIC: &str = "flights";
const PARTITIONS: i32 = 6;

#[tokio::test]
async fn january_goes_from_postgres_to_kafka_by_two_relays() {
    let flights = Flights::unpacked();
    let database = shared_postgres().database().await;
    let kafka = broker().await;
    flights.append_to(database.url()).await;
    let relays = [(); 2].map(|()| flights.relay(database.url(), &kafka.url()));
    sent(database.url(), EVENTS, relays).await;
    flights.check(&arrived(&kafka).await);
}

#[tokio::test]
async fn january_outlives_a_killed_broker() {
    let flights = Flights::unpacked();
    let database = shared_postgres().database().await;
    let kafka = broker().await;
    flights.append_to(database.url()).await;
    // Longer than the relays wait for an answer: they make new producers.
    let (timeout, down) = ("1s", Duration::from_secs(4));
    let bus = format!("{}?timeout={timeout}", kafka.url());
    let relays = [(); 2].map(|()| flights.relay(database.url(), &bus));
    // Soon, or a machine that is slow to tell would kill it when all is done.
    let relays = sent(database.url(), EVENTS / 50, relays).await;
    kafka.kill();
    sleep(down).await;
    assert_ne!(
        postgres_states(database.url()).await,
        all_sent(),
        "killed too late"
    );
    kafka.restart().await;
    sent(database.url(), EVENTS, relays).await;

    let all = arrived(&kafka).await;
    let mut seen = HashSet::new();
    let first = all
        .into_iter()
        .filter(|event| seen.insert(event.attributes["id"].clone()));
    flights.check(&first.collect::<Vec<_>>());
    assert_eq!(postgres_states(database.url()).await, all_sent());
}

async fn broker() -> KafkaServer {
    let server = KafkaServer::start().await;
    topic(&server.url(), TOPIC, PARTITIONS, &[]).await;
    server
}

impl Flights {
    async fn append_to(&self, database: &str) {
        for (arguments, input) in [(["migrate"], None), (["append"], Some("flights.jsonl"))] {
            let input = input.map(|name| File::open(self.folder.path().join(name)).unwrap());
            let mut command = self.program(database);
            command
                .args(arguments)
                .stdin(input.map_or_else(Stdio::null, Into::into));
            let ended = tokio::time::timeout(PATIENCE, command.output()).await;
            let output = ended.expect("the program does not end").unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
    }

    fn relay(&self, database: &str, bus: &str) -> Child {
        let mut command = self.program(database);
        let command = command.args(["--bus-url", bus, "run"]);
        command
            .env("OUTBOX_TOPIC", TOPIC)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn program(&self, database: &str) -> Command {
        let mut command = Command::new(program());
        command
            .args(["--database-url", database])
            // The settings of whoever runs the tests are not ours.
            .env_clear()
            .env("OUTBOX_LOG_LEVEL", "error")
            .current_dir(&self.folder)
            .kill_on_drop(true);
        command
    }
}

/// Waits until so many events are sent, while the relays run; gives them back.
async fn sent(database: &str, events: usize, mut relays: [Child; 2]) -> [Child; 2] {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = postgres_states(database).await;
        let sent = states.iter().find(|(status, _)| status == "SENT");
        if sent.is_some_and(|(_, count)| *count >= events as i64) {
            return relays;
        }
        assert!(Instant::now() < deadline, "{states:?}");
        for relay in &mut relays {
            assert_eq!(relay.try_wait().unwrap(), None, "a relay has ended");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn arrived(kafka: &KafkaServer) -> Vec<Arrived> {
    let messages = messages(&kafka.url(), TOPIC).await;
    let partitions: HashSet<_> = messages.iter().map(|message| message.partition).collect();
    assert_eq!(partitions.len(), PARTITIONS as usize);
    let events = messages.iter().map(event);
    let arrived = events.map(|event| {
        assert_eq!(event.headers.len(), 0);
        Arrived {
            attributes: event.attributes,
            body: event.body,
        }
    });
    arrived.collect()
}
