//! `/metrics`, held to Prometheus' own parser and to the table.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use bento_outbox::telemetry::{Kind, METRICS, Metric};

use super::{free_port, get, picky};
use crate::place::{Place, Relay, eventually};

const SETTINGS: [(&str, &str); 3] = [
    ("OUTBOX_MAX_RETRY", "2"),
    ("OUTBOX_RETRY_MULTIPLIER", "0.02"),
    ("OUTBOX_POLL_INTERVAL_BUSY", "0.02"),
];

fn start(place: &Place, bus: u16, port: u16) -> Relay {
    let (bus, address) = (
        format!("http://127.0.0.1:{bus}/"),
        format!("127.0.0.1:{port}"),
    );
    let variables = [&SETTINGS[..], &[("OUTBOX_ADMIN_ADDR", address.as_str())]].concat();
    Relay::start_with(place, &["run", "--bus-url", &bus], &variables)
}

/// The samples of a page of metrics by name and labels, as they stand there.
fn samples(page: &str) -> HashMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect()
}

/// The sum over all tenants.
fn sum(page: &str, name: &str, label: &str) -> f64 {
    let of = |sample: &&str| sample.starts_with(&format!("{name}{{")) && sample.contains(label);
    let samples = samples(page);
    samples
        .iter()
        .filter(|(sample, _)| of(sample))
        .map(|(_, value)| value)
        .sum()
}

fn pending_and_dead(page: &str) -> (f64, f64) {
    (
        sum(page, "outbox_pending_events", ""),
        sum(page, "outbox_dead_letters", ""),
    )
}

#[test]
fn what_was_recorded_is_sent_pending_or_dead_and_so_right_after_a_restart() {
    let place = Place::migrated();
    let (bus, port) = (picky(), free_port());
    let relay = start(&place, bus.port, port);
    let mut lines = String::new();
    for n in 0..60 {
        let (tenant, event_type) = (["acme", "beta"][n % 2], ["good", "bad", "good"][n % 3]);
        lines += &format!(r#"{{"tenant_id":"{tenant}","type":"{event_type}","payload":{n}}}"#);
        lines.push('\n');
    }
    lines += "{\"type\":\"odd\",\"payload\":1}\n";
    let later = r#"{"type":"good","payload":1,"available_at":"2999-01-01T00:00:00Z"}"#;
    place.append(lines + later).succeeded();
    let (recorded, good, dead) = (62.0, 40.0, 21.0);
    let page = || get(port, "/metrics").unwrap_or_default();
    eventually(|| place.status()["total"]["dead"] == dead as u64);
    eventually(|| pending_and_dead(&page()) == (1.0, dead));
    let sent = |page: &str| sum(page, "outbox_events_processed_total", r#"status="success""#);
    let before = page();
    assert_eq!(sent(&before), good);
    assert_eq!(
        sent(&before) + pending_and_dead(&before).0 + pending_and_dead(&before).1,
        recorded
    );
    let count = |status| sum(&before, "outbox_events_processed_total", status);
    assert_eq!(count(r#"status="dead""#), dead);
    assert_eq!(
        count(r#"status="retry""#),
        1.0,
        "the odd one had two attempts"
    );
    let errors = |class| sum(&before, "outbox_publish_errors_total", class);
    assert_eq!(
        (errors(r#"class="permanent""#), errors(r#"class="message""#)),
        (dead - 1.0, 2.0)
    );

    relay.told("-KILL");
    let port = free_port();
    let _relay = start(&place, bus.port, port);
    let mut first = None;
    eventually(|| {
        first = get(port, "/metrics");
        first.is_some()
    });
    // The very first answer.
    let first = first.unwrap();
    assert_eq!(pending_and_dead(&first), (1.0, dead), "{first}");
    let sent = place.status()["total"]["sent"].as_f64().unwrap();
    assert_eq!(sent + 1.0 + dead, recorded);
    // A person discards one, and another is written.
    let id = place.text("select id from outbox where status = 'ERR' limit 1");
    place
        .run(&["dead", "discard", "--id", &id, "--yes"])
        .succeeded();
    place.append(later).succeeded();
    eventually(|| {
        get(port, "/metrics").is_some_and(|page| pending_and_dead(&page) == (2.0, dead - 1.0))
    });
}

#[test]
fn the_metrics_are_what_prometheus_reads_and_those_of_the_list() {
    let place = Place::migrated();
    let (bus, port) = (picky(), free_port());
    let _relay = start(&place, bus.port, port);
    let lines: String = ["good", "bad"]
        .map(|event_type| format!("{{\"type\":\"{event_type}\",\"payload\":1}}\n"))
        .concat();
    place.append(lines).succeeded();
    let page = || get(port, "/metrics").unwrap_or_default();
    // How long a batch took is the last that is known of it, a moment after it is settled.
    eventually(|| {
        let page = page();
        pending_and_dead(&page) == (0.0, 1.0) && page.contains("outbox_processing_duration_seconds")
    });
    let page = page();
    let read = |page: &str| {
        let mut promtool = Command::new("promtool");
        let mut promtool = promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`cargo x test` installs promtool");
        promtool
            .stdin
            .take()
            .unwrap()
            .write_all(page.as_bytes())
            .unwrap();
        promtool.wait_with_output().unwrap()
    };
    let said = read(&page);
    assert!(
        said.status.success() && said.stderr.is_empty(),
        "{said:?}\n{page}"
    );
    let broken = format!("{page}outbox_bus_up{{ 1\n");
    assert!(!read(&broken).status.success(), "it reads what it is given");

    // Every metric is there, under its name, of its kind and with its labels; and there is no other.
    let kinds: HashMap<&str, &str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    for Metric {
        name, kind, labels, ..
    } in METRICS
    {
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!(kinds.get(name), Some(&word), "{name}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name}");
        for (sample, _) in samples(&page) {
            let (of, given) = sample.split_once('{').unwrap_or((sample, ""));
            if of
                .trim_end_matches("_bucket")
                .trim_end_matches("_sum")
                .trim_end_matches("_count")
                != *name
            {
                continue;
            }
            let mut given: Vec<&str> = given
                .split(',')
                .filter_map(|label| Some(label.split_once('=')?.0))
                .filter(|label| *label != "le")
                .collect();
            given.sort_unstable();
            let mut expected = labels.to_vec();
            expected.sort_unstable();
            assert_eq!(given, expected, "{sample}");
        }
    }
    assert_eq!(kinds.len(), METRICS.len(), "{kinds:?}");
}
