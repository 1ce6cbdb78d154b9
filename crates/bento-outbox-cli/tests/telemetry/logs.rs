//! Log lines: few, of one line each, and without what is nobody's business.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Receiver, answered, free_port, picky};
use crate::place::{CANARY, Place, Relay, eventually};

/// What moves a cursor, begins a line, reorders what is shown or ends a string.
const HOSTILE: &str = "x\u{1b}[2J\u{7}\r\n2026-01-01 forged \u{202e}\u{9b}31m\"}{\u{0}";

#[test]
fn nothing_that_an_event_or_a_bus_says_breaks_a_line_and_no_payload_is_in_one() {
    // The reason of a status line may have more in it than HTTP allows, and the body anything.
    let hostile = Receiver::start(|_| {
        let body = format!("{{\"error\":\"{HOSTILE}\"}}");
        answered("422 No \u{1b}[31m\u{7}thanks", &body)
    });
    for (format, level) in [
        ("text", "trace"),
        ("json", "trace"),
        ("text", "info"),
        ("json", "info"),
    ] {
        let place = Place::migrated();
        let bus = format!("http://bob:{CANARY}@127.0.0.1:{}/{CANARY}", hostile.port);
        let variables = [
            ("OUTBOX_LOG_FORMAT", format),
            ("OUTBOX_LOG_LEVEL", level),
            ("OUTBOX_MAX_RETRY", "1"),
        ];
        let relay = Relay::start_with(&place, &["run", "--bus-url", &bus], &variables);
        // By hand, as any program may write: `append` refuses such a name.
        place.sql(
            "insert into outbox (type, aggregate_type, aggregate_id, payload)
             values ('a', 'x' || char(27) || '[2J' || char(7, 13, 10) || '2026-01-01 forged ' || char(8238, 155),
                     'y' || char(27) || '[31m' || char(10) || '\"}{', '{\"secret\":\"s3cr3t-canary\"}')",
        );
        eventually(|| place.status()["total"]["dead"] == 1);
        let log = relay.told("-TERM").succeeded().without_secrets().stderr;
        assert!(log.contains("dead letter"), "{log}");
        assert!(
            !log.chars()
                .any(|c| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c)),
            "{log:?}"
        );
        for line in log.lines() {
            match format {
                "json" => {
                    let line: Value =
                        serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
                    assert!(
                        line["timestamp"].is_string() && line["level"].is_string(),
                        "{line}"
                    );
                }
                _ => {
                    let stamp = line.split('Z').next().unwrap();
                    assert!(
                        stamp.starts_with("20") && stamp.contains('T'),
                        "{line:?} in {log}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_busy_relay_writes_under_ten_lines_a_minute() {
    let place = Place::migrated();
    let bus = picky();
    let mut lines = String::new();
    for n in 0..3_000 {
        let event_type = if n % 10 == 0 { "bad" } else { "good" };
        lines += &format!(
            "{{\"type\":\"{event_type}\",\"aggregate_type\":\"a\",\"aggregate_id\":\"{}\",\"payload\":1}}\n",
            n % 700
        );
    }
    let url = format!("http://127.0.0.1:{}/?concurrency=64", bus.port);
    let variables = [
        ("OUTBOX_MAX_RETRY", "2"),
        ("OUTBOX_RETRY_MULTIPLIER", "0.01"),
    ];
    let relay = Relay::start_with(&place, &["run", "--bus-url", &url], &variables);
    place.append(lines).succeeded();
    let begun = Instant::now();
    loop {
        let total = place.status()["total"].clone();
        if (&total["sent"], &total["dead"]) == (&2_700.into(), &300.into()) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "{total}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let log = relay.told("-TERM").succeeded().stderr;
    let minutes = begun.elapsed().as_secs() / 60 + 1;
    assert!((log.lines().count() as u64) < 10 * minutes, "{log}");
    let letters: u64 = log
        .lines()
        .filter(|line| line.contains("dead letter"))
        .map(|line| match line.split_once("letters=") {
            Some((_, rest)) => rest.split(' ').next().unwrap().parse().unwrap(),
            None => 1,
        })
        .sum();
    assert_eq!(letters, 300, "each is spoken for: {log}");
}

/// How often each of these stands in a log.
fn told(log: &str, what: &str) -> usize {
    log.matches(what).count()
}

#[test]
fn a_webhook_that_is_away_is_lost_once_and_back_once() {
    let place = Place::migrated();
    let port = free_port();
    let lines: String = (0..30)
        .map(|n| format!("{{\"type\":\"a\",\"aggregate_type\":\"a\",\"aggregate_id\":\"{n}\",\"payload\":1}}\n"))
        .collect();
    let url = format!("http://127.0.0.1:{port}/");
    let log = place.path().join("log");
    let relay = Relay::logging(&place, &["run", "--bus-url", &url], &[], &log);
    place.append(lines).succeeded();
    eventually(|| place.told("log", "the bus takes no events") == 1);
    // It answers, but takes nothing: single events are put aside meanwhile, and then it counts as away again.
    let (is_back, asked) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (back, is_asked) = (is_back.clone(), asked.clone());
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let _bus = Receiver::on(listener, move |_| {
        is_asked.store(true, Ordering::Relaxed);
        match back.load(Ordering::Relaxed) {
            true => answered("204 No Content", ""),
            false => answered("503 Service Unavailable", ""),
        }
    });
    eventually(|| asked.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(3));
    is_back.store(true, Ordering::Relaxed);
    eventually(|| place.status()["total"]["sent"] == 30);
    relay.told("-TERM").succeeded();
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(told(&log, "the bus takes no events"), 1, "{log}");
    assert_eq!(told(&log, "the bus takes events again"), 1, "{log}");
}

#[test]
fn several_webhooks_that_are_away_are_each_lost_once_and_back_once() {
    let place = Place::migrated();
    let ports = [free_port(), free_port()];
    let routes = format!(
        "bus_url = \"http://127.0.0.1:{}/\"\nretry_multiplier = \"100ms\"\nretry_max_delay = \"500ms\"\n\
         poll_interval_busy = \"50ms\"\nadmin_addr = \"off\"\n\
         [[routes]]\ntype = \"b.*\"\nbus = \"http://127.0.0.1:{}/\"\n",
        ports[0], ports[1]
    );
    fs::write(place.path().join("outbox.toml"), routes).unwrap();
    let lines: String = (0..40)
        .map(|n| format!("{{\"type\":\"{}.x\",\"aggregate_type\":\"a\",\"aggregate_id\":\"{}\",\"payload\":1}}\n", ["a", "b"][n % 2], n % 5))
        .collect();
    place.append(lines).succeeded();
    let log = place.path().join("log");
    let relay = Relay::logging(&place, &["run"], &[], &log);
    eventually(|| place.told("log", "the destination takes no events") == 2);
    std::thread::sleep(Duration::from_secs(3));
    let _buses = ports.map(|port| {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        Receiver::on(listener, |_| answered("204 No Content", ""))
    });
    eventually(|| place.status()["total"]["sent"] == 40);
    relay.told("-TERM").succeeded();
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(told(&log, "the destination takes no events"), 2, "{log}");
    assert_eq!(told(&log, "the destination answers again"), 2, "{log}");
    let lost = told(&log, "the bus takes no events");
    assert!(lost <= 1, "{log}");
    assert_eq!(told(&log, "the bus takes events again"), lost, "{log}");
}
