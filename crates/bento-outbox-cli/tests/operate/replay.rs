//! `replay`.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::{event, json};
use crate::place::{CANARY, Place, Ran, eventually, signal};

const BUS: [&str; 2] = ["--bus-url", "file:bus.jsonl"];

/// A place whose outbox has so many sent events of three orders, and one that is not sent.
fn sent(events: usize) -> (Place, Vec<String>) {
    let place = Place::migrated();
    let lines: String = (0..events)
        .map(|number| event(&(number % 3).to_string(), number))
        .collect();
    let appended = place.append(lines).succeeded();
    place
        .run(&["run", "--once", "--bus-url", "null:"])
        .succeeded();
    place
        .append(format!("{{\"type\":\"note\",\"payload\":\"{CANARY}\"}}\n"))
        .succeeded();
    let ids = appended.stdout.lines().map(Into::into).collect();
    (place, ids)
}

fn replay(place: &Place, arguments: &[&str]) -> Ran {
    place.run(&[&["replay"], arguments, &BUS].concat())
}

/// The events on the bus, whose last one may be under way.
fn published(place: &Place) -> Vec<Value> {
    let text = fs::read_to_string(place.path().join("bus.jsonl")).unwrap_or_default();
    let lines = text.split_inclusive('\n');
    let whole = lines.filter(|line| line.ends_with('\n'));
    whole.map(json).collect()
}

fn ids(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["id"].as_str().unwrap())
        .collect()
}

#[test]
fn what_was_sent_is_published_once_more_and_stays_as_it_is() {
    let (place, all) = sent(9);
    let state = "select group_concat(quote(id) || quote(status) || quote(sent_at) || retry_cnt) from outbox";
    let before = place.text(state);
    let ran = replay(&place, &["--all", "--yes", "--json"])
        .succeeded()
        .without_secrets();
    let report = json(&ran.stdout);
    for (key, value) in [
        ("matched", Value::from(9)),
        ("published", 9.into()),
        ("through", 9.into()),
        ("end", "done".into()),
        ("dry_run", false.into()),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    assert!(
        ran.stderr.contains("9 events published once more"),
        "{ran:?}"
    );
    assert!(
        !ran.stderr.contains(['\r', '\u{1b}']),
        "no bar in a pipe: {ran:?}"
    );
    let acts = place.run(&["audit", "--json"]).succeeded().stdout;
    let acts: Vec<Value> = acts.lines().map(json).collect();
    assert_eq!(acts.len(), 2, "{acts:?}");
    assert_eq!(
        (&acts[0]["verb"], &acts[0]["changed"]),
        (&"replay".into(), &9.into())
    );
    assert_eq!(
        (&acts[0]["note"], &acts[0]["what"]["all"]),
        (&"done".into(), &true.into())
    );
    assert_eq!(
        (&acts[1]["note"], &acts[1]["changed"]),
        (&"begun: 9 to publish".into(), &0.into())
    );
    let events = published(&place);
    let mut sorted = events.clone();
    sorted.sort_by_key(|event| event["sequence"].as_str().unwrap().parse::<u64>().unwrap());
    assert_eq!(ids(&sorted), all);
    for order in ["0", "1", "2"] {
        let of_one = events.iter().filter(|event| event["subject"] == order);
        assert!(of_one.is_sorted_by_key(|event| event["sequence"].as_str().unwrap()));
    }
    let text = fs::read_to_string(place.path().join("bus.jsonl")).unwrap();
    assert!(text.contains("\"data\":{ \"n\" : 8 }"), "byte for byte");
    assert_eq!(place.text(state), before, "nothing changes");

    // The filters are those of `dead`, and a place to go on from.
    for (arguments, number) in [
        (vec!["--aggregate", "1"], 3),
        (vec!["--aggregate", "1", "--after", "2"], 2),
        (vec!["--id", &all[0], "--id", &all[5]], 2),
        (vec!["--type", "order.placed", "--since", "1h"], 9),
        (vec!["--until", "1h"], 0),
        (vec!["--tenant", "nobody"], 0),
        (vec!["--type", "note"], 0),
        (vec!["--all", "--after", "9"], 0),
    ] {
        let dry = replay(&place, &[&arguments[..], &["--dry-run", "--json"]].concat()).succeeded();
        let report = json(&dry.stdout);
        assert_eq!(
            (&report["matched"], &report["published"], &report["dry_run"]),
            (&number.into(), &0.into(), &true.into()),
            "{arguments:?}"
        );
    }
    assert_eq!(published(&place).len(), 9, "a dry run publishes nothing");
}

#[test]
fn wrong_use_publishes_nothing() {
    let (place, _) = sent(1);
    replay(&place, &["--yes"]).failed(2, "which sent events? Give --id");
    replay(&place, &["--all"]).failed(2, "give --yes");
    place
        .run(&["replay", "--all", "--yes", "--json"])
        .failed(2, "both write to standard output");
    for wrong in [
        vec!["--all", "--rate", "0"],
        vec!["--all", "--rate", "-1"],
        vec!["--all", "--rate", "1e9"],
        vec!["--all", "--after", "here"],
        vec!["--all", "--tenant", "acme"],
        vec!["--id", "7"],
        vec!["--since", "yesterday"],
        vec!["--tenant", "a b"],
    ] {
        let ran = replay(&place, &[&wrong[..], &["--yes"]].concat());
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (Some(2), ""),
            "{wrong:?}: {ran:?}"
        );
    }
    replay(&Place::new(), &["--all", "--yes"]).failed(1, "run `bento-outbox migrate`");
    assert_eq!(published(&place).len(), 0);
}

#[test]
fn a_replay_that_is_stopped_says_how_to_go_on() {
    let (place, all) = sent(60);
    // All of them would take a minute.
    let arguments = ["replay", "--type", "order.placed", "--rate", "1", "--yes"];
    let child = place
        .command(&[&arguments[..], &BUS].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually(|| published(&place).len() >= 2);
    signal(&child, "-INT");
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let first = published(&place);
    assert!(first.len() < 60, "it was stopped");
    let hint = format!("{} of 60 were published; go on with `", first.len());
    let (_, rest) = ran
        .stderr
        .split_once(&hint)
        .unwrap_or_else(|| panic!("{ran:?}"));
    let how = rest.split('`').next().unwrap();
    assert!(
        how.starts_with("bento-outbox replay --type order.placed --after ")
            && how.ends_with(" --rate 1 --bus-url file:bus.jsonl"),
        "{how}"
    );
    place.pasted(&format!("{how} --dry-run")).succeeded();
    let quickly = how.replace(" --rate 1 ", " ");
    place.pasted(&format!("{quickly} --yes")).succeeded();
    let acts = place.run(&["audit", "--json"]).succeeded().stdout;
    let what = json(acts.lines().next().unwrap())["what"].clone();
    assert_eq!(what["type"], "order.placed");
    assert!(what["after"].as_i64() > Some(0), "where it went on: {what}");
    let events = published(&place);
    let mut got = ids(&events);
    got.sort_unstable();
    got.dedup();
    let mut expected: Vec<&str> = all.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(got, expected, "nothing is left out");
}

#[cfg(feature = "nats")]
#[test]
fn a_bus_that_is_away_is_waited_for() {
    let (place, _) = sent(3);
    let nobody = format!("nats://bob:{CANARY}@127.0.0.1:1");
    let away = ["replay", "--all", "--yes", "--bus-url", &nobody];
    let said = File::create(place.path().join("said")).unwrap();
    let mut child = place
        .command(&away)
        .stdout(Stdio::piped())
        .stderr(said)
        .spawn()
        .unwrap();
    eventually(|| place.told("said", "waiting for the bus: ") == 1);
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    signal(&child, "-TERM");
    let mut ran = Ran::of(child.wait_with_output().unwrap());
    ran.stderr = fs::read_to_string(place.path().join("said")).unwrap();
    let ran = ran.without_secrets();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(
        ran.stderr.matches("waiting for the bus: ").count(),
        1,
        "{ran:?}"
    );
    let how = "0 of 3 were published; go on with `bento-outbox replay --all --bus-url 'nats://bob:***@127.0.0.1:1'`";
    assert!(ran.stderr.contains(how), "{ran:?}");
}

#[test]
fn a_bus_that_takes_nothing_before_a_person_acts_ends_it() {
    let (place, _) = sent(3);
    let wrong = [
        "replay",
        "--all",
        "--yes",
        "--bus-url",
        "file:no/such/folder",
    ];
    let ran = place.run(&wrong).without_secrets();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("error: the bus does not take event "),
        "{ran:?}"
    );
}
