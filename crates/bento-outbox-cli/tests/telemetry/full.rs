//! A bus that answers and takes nothing, and events that cannot go out: what an operator gets to see.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{Receiver, answered, free_port, get};
use crate::place::{Place, Relay, eventually};

fn events(number: usize) -> String {
    "{\"type\":\"a\",\"payload\":1}\n".repeat(number)
}

/// A webhook that answers so until it is told to take events, and how often it was asked.
fn refusing(status: &'static str) -> (Receiver, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (takes, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let (is_well, count) = (takes.clone(), asked.clone());
    let webhook = Receiver::start(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        match is_well.load(Ordering::Relaxed) {
            true => answered("204 No Content", ""),
            false => answered(status, ""),
        }
    });
    (webhook, takes, asked)
}

#[test]
fn a_webhook_without_room_is_not_up_until_it_takes_an_event() {
    let place = Place::migrated();
    let (webhook, takes, _) = refusing("507 Insufficient Storage");
    let (url, port) = (format!("http://127.0.0.1:{}/", webhook.port), free_port());
    let address = format!("127.0.0.1:{port}");
    let variables = [
        ("OUTBOX_BUS_URL", url.as_str()),
        ("OUTBOX_ADMIN_ADDR", &address),
    ];
    let relay = Relay::start_with(&place, &["run"], &variables);
    place.append(events(3)).succeeded();
    let ready = || get(port, "/health/ready").unwrap_or_default();
    let up = |page: String| {
        page.lines().find(|line| line.starts_with("outbox_bus_up ")) == Some("outbox_bus_up 1")
    };
    let is_up = || up(get(port, "/metrics").unwrap_or_default());
    eventually(|| ready().contains("507 Insufficient Storage") && !is_up());
    // Neither a probe nor a look at a webhook that can be reached says otherwise.
    for _ in 0..20 {
        assert!(ready().contains("has taken no event") && !is_up());
        std::thread::sleep(Duration::from_millis(100));
    }
    let doctor = place.run_with(&["doctor", "--json"], &variables);
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let bus = findings.iter().find(|it| it["about"] == "bus").unwrap();
    let found = bus["found"].as_str().unwrap();
    assert!(
        bus["state"] == "broken" && found.contains("507 Insufficient Storage"),
        "{bus}"
    );
    assert!(
        bus["advice"].as_str().unwrap().contains("make room"),
        "{bus}"
    );
    // A relay elsewhere cannot be asked, but the table tells.
    place.sql("update outbox set created_at = '2020-01-01T00:00:00Z'");
    let elsewhere = [variables[0], ("OUTBOX_ADMIN_ADDR", "off")];
    let doctor = place.run_with(&["doctor"], &elsewhere);
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(doctor.stdout.contains("broken   retrying"), "{doctor:?}");

    takes.store(true, Ordering::Relaxed);
    eventually(|| place.status()["total"]["sent"] == 3);
    eventually(|| ready() == r#"{"status":"ready"}"# && is_up());
    assert_eq!(place.text("select max(retry_cnt) || '' from outbox"), "0");
    let log = relay.told("-TERM").succeeded().stderr;
    for line in ["the bus takes no events", "the bus takes events again"] {
        assert_eq!(log.matches(line).count(), 1, "{log}");
    }
}

#[test]
fn a_webhook_that_refuses_everything_is_asked_a_few_times() {
    let place = Place::migrated();
    let (webhook, takes, asked) = refusing("503 Service Unavailable");
    place.append(events(500)).succeeded();
    let url = format!("http://127.0.0.1:{}/", webhook.port);
    let off = [("OUTBOX_ADMIN_ADDR", "off")];
    let relay = Relay::start_with(&place, &["run", "--bus-url", &url], &off);
    eventually(|| asked.load(Ordering::Relaxed) >= 10);
    std::thread::sleep(Duration::from_secs(2));
    // Ten different refusals accuse it, and by then so many more as are asked at the same time are on their
    // way. From then on one event at a time asks.
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked <= 10 + 16 + 6, "{asked}");
    takes.store(true, Ordering::Relaxed);
    eventually(|| place.status()["total"]["sent"] == 500);
    relay.told("-TERM").succeeded();
}

#[test]
fn what_cannot_go_out_is_told_of_once_and_at_once() {
    let place = Place::migrated();
    let log = place.path().join("log");
    let relay = Relay::logging(&place, &["run", "--bus-url", "file:bus.jsonl"], &[], &log);
    place.append(events(1)).succeeded();
    eventually(|| place.lines("bus.jsonl") == 1);
    // What no version can decrypt waits like what no stream takes.
    place.sql(
        "insert into outbox (type, tenant_id, key_id, payload) values
         ('order.placed', 'acme', 'k1', '{\"secret\":\"s3cr3t-canary\"}'),
         ('order.placed', 'acme', 'k1', '{}'), ('order.paid', 'acme', 'k2', '{}')",
    );
    let said = || fs::read_to_string(&log).unwrap();
    let told = || said().matches("some events cannot go out").count();
    eventually(|| told() == 2);
    // They are tried again within ten seconds.
    std::thread::sleep(Duration::from_secs(11));
    let said = said();
    assert_eq!(told(), 2, "{said}");
    let line = said.lines().find(|line| line.contains("k1")).unwrap();
    for part in [
        " WARN ",
        "destination=\"file:bus.jsonl\"",
        "type=\"order.placed\"",
        "tenant=\"acme\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!said.contains("s3cr3t-canary"), "{said}");
    relay.told("-TERM").succeeded();
}
