//! What a relay answers at its `admin_addr`.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::event;
use crate::place::{Place, Relay, eventually};
use crate::telemetry::free_port;

/// A relay that answers at a port of its own.
pub(crate) struct Asked {
    pub(crate) place: Place,
    pub(crate) port: u16,
    _relay: Relay,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Asked {
    fn start(bus: &str, more: &[(&str, &str)]) -> Self {
        Self::at(Place::migrated(), bus, more)
    }

    pub(crate) fn at(place: Place, bus: &str, more: &[(&str, &str)]) -> Self {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let variables = [&[("OUTBOX_ADMIN_ADDR", address.as_str())], more].concat();
        let relay = Relay::start_with(&place, &["run", "--bus-url", bus], &variables);
        let asked = Self {
            place,
            port,
            _relay: relay,
        };
        eventually(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        asked
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(path, &format!("Host: 127.0.0.1:{}\r\n", self.port))
    }

    pub(crate) fn ask(&self, path: &str, headers: &str) -> Answer {
        sent(self.port, &format!("GET {path}"), headers, "")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        let port = self.port;
        let headers = format!("Host: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n");
        sent(port, &format!("POST {path}"), &headers, &body.to_string())
    }

    /// The samples of `/metrics`, by name and labels as they stand there.
    fn metrics(&self) -> HashMap<String, f64> {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let samples = answer
            .body
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        samples
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }
}

/// What a server on this machine answers to `GET /path`.
pub(crate) fn sent(port: u16, what: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(180)))
        .unwrap();
    let length = body.len();
    let request = format!(
        "{what} HTTP/1.1\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(
            stream.read_line(&mut head).unwrap() > 0,
            "no whole head: {head:?}"
        );
    }
    // Not everybody closes the connection when asked to.
    let length = head.lines().find_map(|line| {
        let (name, length) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| length.trim().parse().unwrap())
    });
    let mut body = String::new();
    let mut rest = stream.take(length.unwrap_or(u64::MAX));
    rest.read_to_string(&mut body).unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body,
    }
}

#[test]
fn the_metrics_say_what_was_carried_and_what_waits() {
    let asked = Asked::start("file:out.jsonl", &[]);
    let later = r#"{"type":"a","payload":1,"available_at":"2999-01-01T00:00:00Z"}"#;
    let lines: Vec<String> = (1..=20).map(event).chain([later.into()]).collect();
    asked.place.append(lines.join("\n")).succeeded();
    let success = r#"outbox_events_processed_total{tenant_id="default",status="success"}"#;
    let pending = r#"outbox_pending_events{tenant_id="default"}"#;
    // How long a batch took is known when it is settled; how old what waits is, after how much it is.
    let batches = "outbox_processing_duration_seconds_count";
    let oldest = r#"outbox_oldest_pending_age_seconds{tenant_id="default"}"#;
    eventually(|| {
        let metrics = asked.metrics();
        let is = |name: &str, value: f64| metrics.get(name) == Some(&value);
        is(success, 20.0) && is(pending, 1.0) && is(oldest, 0.0) && metrics.contains_key(batches)
    });
    let metrics = asked.metrics();
    let count = |name: &str| metrics.get(name).copied();
    assert_eq!(
        count(r#"outbox_delivery_latency_seconds_count{tenant_id="default"}"#),
        Some(20.0)
    );
    assert!(count(batches) >= Some(1.0));
    assert_eq!(
        count(r#"outbox_dead_letters{tenant_id="default"}"#),
        Some(0.0)
    );
    assert_eq!(count(oldest), Some(0.0));
    assert_eq!(count("outbox_leases_held"), Some(64.0));
    assert_eq!(
        (count("outbox_bus_up"), count("outbox_database_up")),
        (Some(1.0), Some(1.0))
    );
    let total = &asked.place.status()["total"];
    let recorded = 21.0;
    assert_eq!(recorded, count(success).unwrap() + count(pending).unwrap());
    assert_eq!((&total["sent"], &total["new"]), (&20.into(), &1.into()));
}

#[test]
fn health_says_whether_events_can_be_carried() {
    let asked = Asked::start("file:out.jsonl", &[]);
    assert_eq!(asked.get("/health/live").status, 200);
    // Who has too much else to do for an answer within three seconds says that, and is asked again.
    eventually(|| {
        let ready = asked.get("/health/ready");
        (ready.status, ready.body.as_str()) == (200, r#"{"status":"ready"}"#)
    });

    let away = Asked::start("nats://127.0.0.1:1", &[]);
    eventually(|| {
        let ready = away.get("/health/ready");
        assert_eq!(ready.status, 503, "{}", ready.body);
        let said: Value = serde_json::from_str(&ready.body).unwrap();
        said["bus"].as_str().unwrap().contains("127.0.0.1:1")
    });
    assert_eq!(away.get("/health/live").status, 200);
}

#[test]
fn a_shell_without_the_token_can_ask_how_the_relay_is() {
    let asked = Asked::start("file:out.jsonl", &[("OUTBOX_ADMIN_TOKEN", "s3cret-enough")]);
    let address = format!("0.0.0.0:{}", asked.port);
    let public = [("OUTBOX_ADMIN_ADDR", address.as_str())];
    eventually(|| {
        let ran = asked.place.run_with(&["health"], &public);
        (ran.code, ran.stderr.as_str()) == (Some(0), "ready\n")
    });
    let run = asked.place.run_with(&["run"], &public);
    run.failed(2, "is not loopback, which needs an admin_token");
}

#[test]
fn only_who_may_is_let_in() {
    let open = Asked::start("file:out.jsonl", &[]);
    for path in ["/metrics", "/api/v1/status"] {
        let answer = open.ask(path, "Host: evil.example\r\n");
        assert_eq!(answer.status, 403, "{path}");
        assert!(
            answer.head.contains("application/problem+json"),
            "{}",
            answer.head
        );
        assert!(!answer.head.contains("access-control"), "{}", answer.head);
        assert_eq!(open.get(path).status, 200, "{path}");
    }
    let closed = Asked::start("file:out.jsonl", &[("OUTBOX_ADMIN_TOKEN", "s3cret-enough")]);
    let host = "Host: relay.example\r\n";
    let with = |token: &str| format!("{host}Authorization: Bearer {token}\r\n");
    assert_eq!(closed.ask("/api/v1/status", host).status, 401);
    assert_eq!(
        closed.ask("/api/v1/status", &with("s3cret-enougH")).status,
        401
    );
    assert_eq!(
        closed.ask("/api/v1/status", &with("s3cret-enough")).status,
        200
    );
    assert_eq!(
        closed.ask("/health/live", host).status,
        200,
        "a probe has no token"
    );
}

#[test]
fn the_status_is_that_of_the_command() {
    let asked = Asked::start("null:", &[]);
    asked.place.append(event(1)).succeeded();
    eventually(|| asked.place.status()["total"]["sent"] == 1);
    let answer: Value = serde_json::from_str(&asked.get("/api/v1/status").body).unwrap();
    let command = asked.place.status();
    assert_eq!(answer["total"]["sent"], command["total"]["sent"]);
    // A relay that stood still for its lease_ttl has none until it goes on.
    eventually(|| {
        let relays: Value = serde_json::from_str(&asked.get("/api/v1/relays").body).unwrap();
        relays["relays"][0]["partitions"] == 64
    });
    assert_eq!(
        asked.get("/api/v1/held-keys").body,
        r#"{"held":[],"held_more":false}"#
    );
    assert_eq!(asked.get("/nowhere").status, 404);
}
