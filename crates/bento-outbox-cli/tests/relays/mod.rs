//! Several relays on one database, as processes: who carries what, who takes over, how they stop.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::{Place, Ran, Relay, eventually, signal};
use crate::{event, large};

/// A place with two relays and a bus for each.
struct Two {
    place: Place,
    keys: usize,
}

const BUSES: [&str; 2] = ["a.jsonl", "b.jsonl"];

/// Longer than any test waits.
const LONG: &str = "15m";

/// Soon over, and still more than a relay needs on a busy machine between two looks at its leases: one that is
/// late loses them, and what it had in flight goes out twice.
const SHORT: &str = "10s";
const SHORT_TERM: Duration = Duration::from_secs(10);

impl Two {
    fn new() -> Self {
        Self {
            place: Place::migrated(),
            keys: 40,
        }
    }

    fn relay(&self, number: usize, lease: &str) -> Relay {
        let bus = format!("file:{}", BUSES[number]);
        Relay::start_with(
            &self.place,
            &["run", "--bus-url", &bus],
            &[("OUTBOX_LEASE_TTL", lease)],
        )
    }

    /// So many events of each key.
    fn append(&self, each: usize) {
        let event = |number: usize| {
            let key = number % self.keys;
            format!(r#"{{"type":"a","aggregate_type":"k","aggregate_id":"{key}","payload":1}}"#)
        };
        let lines: Vec<String> = (0..each * self.keys).map(event).collect();
        self.place.append(lines.join("\n")).succeeded();
    }

    fn lines(&self) -> usize {
        BUSES.iter().map(|bus| self.place.lines(bus)).sum()
    }

    fn everything_is_out(&self) -> bool {
        self.place.status()["total"]["new"] == 0
    }

    /// Every event is in exactly one of the files, and those of a key are in order in each.
    fn assert_once_and_in_order(&self, events: usize) {
        let mut ids = HashSet::new();
        for bus in BUSES {
            let mut last: HashMap<String, i64> = HashMap::new();
            let text = fs::read_to_string(self.place.path().join(bus)).unwrap_or_default();
            for line in text.lines() {
                let event: Value = serde_json::from_str(line).unwrap();
                assert!(ids.insert(event["id"].to_string()), "twice: {line}");
                let sequence = event["sequence"].as_str().unwrap().parse().unwrap();
                let before = last.insert(event["subject"].to_string(), sequence);
                assert!(before < Some(sequence), "{before:?} before {line}");
            }
        }
        assert_eq!(ids.len(), events);
    }
}

#[test]
fn two_relays_share_the_keys_and_one_that_stops_hands_over_at_once() {
    let two = Two::new();
    // Whoever waited for a lease to run out, or for a third of one, would wait for very long.
    let relays = [two.relay(0, LONG), two.relay(1, LONG)];
    let mut events = 0;
    eventually(|| {
        two.append(5);
        events += 5 * two.keys;
        two.lines() > 0
    });
    eventually(|| two.everything_is_out());
    two.assert_once_and_in_order(events);

    let [first, second] = relays;
    first.told("-TERM").succeeded();
    two.append(5);
    events += 5 * two.keys;
    eventually(|| two.everything_is_out());
    second.told("-TERM").succeeded();
    two.assert_once_and_in_order(events);
    assert_eq!(two.place.status()["total"]["sent"], events);
}

#[test]
fn both_relays_carry_and_the_other_takes_over_from_one_that_was_killed() {
    let two = Two::new();
    let (first, second) = (two.relay(0, SHORT), two.relay(1, SHORT));
    let mut events = 0;
    eventually(|| {
        two.append(1);
        events += two.keys;
        BUSES.iter().all(|bus| two.place.lines(bus) > 0)
    });
    eventually(|| two.everything_is_out());
    let killed = first.told("-KILL");
    assert_eq!(killed.code, None);
    let dead = Instant::now();
    // What a dead relay leaves is published one by one, each with two commits.
    two.append(2);
    events += 2 * two.keys;
    eventually(|| two.everything_is_out());
    // When the lease is over, and not when another one would be.
    assert!(dead.elapsed() < 2 * SHORT_TERM, "{:?}", dead.elapsed());
    second.told("-TERM").succeeded();
    two.assert_once_and_in_order(events);
}

#[test]
fn a_run_to_the_end_waits_for_the_share_of_a_dead_relay_and_leaves_none() {
    let two = Two::new();
    let relay = two.relay(0, SHORT);
    two.append(1);
    eventually(|| two.everything_is_out());
    // It has two thirds of its lease left at least, in which the next one comes.
    relay.told("-KILL");
    two.append(1);
    let variables = [("OUTBOX_LEASE_TTL", SHORT)];
    let arguments = ["run", "--once", "--bus-url", "file:b.jsonl"];
    let ran = two.place.run_with(&arguments, &variables).succeeded();
    assert!(
        ran.stderr
            .contains("waiting: another relay holds events that are due"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("40 sent in "), "{ran:?}");
    two.assert_once_and_in_order(2 * two.keys);

    two.append(1);
    let ran = two.place.run_with(&arguments, &variables).succeeded();
    assert!(
        ran.stderr.starts_with("40 sent in "),
        "it gave its leases back: {ran:?}"
    );
}

#[test]
fn what_is_stuck_is_left_to_others_after_the_shutdown_timeout() {
    let place = Place::migrated();
    place.append(large(400)).succeeded();
    for arguments in [vec!["run"], vec!["run", "--once"]] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = place.command(&arguments);
        command.env("OUTBOX_SHUTDOWN_TIMEOUT", "500ms");
        let relay = command.stdout(writer).stderr(Stdio::piped());
        let relay = relay.spawn().unwrap();
        drop(command);
        // Nobody reads more than that it has begun to write: the rest of the batch does not fit into the pipe.
        reader.read_exact(&mut [0]).unwrap();
        let told = Instant::now();
        signal(&relay, "-TERM");
        let ran = Ran::of(relay.wait_with_output().unwrap());
        drop(reader);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(told.elapsed() >= Duration::from_millis(450), "it waited");
        assert!(
            ran.stderr
                .contains("stopped after shutdown_timeout (500ms): the bus had not answered for ")
                && ran.stderr.contains("publishes them again at once"),
            "{ran:?}"
        );
    }
    assert_eq!(place.status()["total"]["new"], 400);
    let ran = place
        .run(&["run", "--once", "--bus-url", "file:a.jsonl"])
        .succeeded();
    assert!(
        ran.stderr.starts_with("400 sent in "),
        "the leases are free: {ran:?}"
    );
}

#[test]
fn the_relay_waits_for_its_bus_and_stops_when_told_to() {
    let place = Place::migrated();
    let log = place.path().join("log");
    let bus = ["run", "--bus-url", "file:later/bus.jsonl"];
    let relay = Relay::logging(&place, &bus, &[], &log);
    place.append(event(1)).succeeded();
    eventually(|| place.told("log", "the bus takes no events") == 1);
    std::thread::sleep(Duration::from_millis(1_500));
    fs::create_dir(place.path().join("later")).unwrap();
    eventually(|| place.lines("later/bus.jsonl") == 1);
    place.append(event(2)).succeeded();
    eventually(|| place.lines("later/bus.jsonl") == 2);
    let ran = relay.told("-TERM").succeeded();
    assert_eq!(ran.stdout, "");
    let log = fs::read_to_string(log).unwrap();
    for once in [
        "relay started",
        "the bus takes no events",
        "events again",
        "relay stopped",
    ] {
        assert_eq!(log.matches(once).count(), 1, "{log}");
    }
    assert_eq!(place.status()["total"]["sent"], 2);
}
