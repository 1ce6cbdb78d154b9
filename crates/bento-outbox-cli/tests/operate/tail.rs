//! `tail`.

use std::process::Stdio;

use serde_json::Value;

use super::{Watched, event, json};
use crate::place::{CANARY, Place, Ran, eventually};

/// The changes that were told of an event.
fn changes(watched: &Watched, id: &str) -> Vec<String> {
    let lines = watched.lines();
    let of_it = lines
        .iter()
        .map(|line| json(line))
        .filter(|line| line["id"] == id);
    of_it
        .map(|line| line["change"].as_str().unwrap().into())
        .collect()
}

#[test]
fn every_change_of_an_event_is_told_once() {
    let place = Place::migrated();
    let old = place.append(event("old", 0).repeat(3)).succeeded();
    let old: Vec<&str> = old.stdout.lines().collect();
    let watched = Watched::start(&place, &["tail", "--json"]);
    // It has begun when it tells of what comes after.
    let mut ids = Vec::new();
    eventually(|| {
        let appended = place.append(event("7", 1)).succeeded();
        ids.push(appended.stdout.trim().to_owned());
        !watched.lines().is_empty()
    });
    let id = ids.pop().unwrap();
    eventually(|| changes(&watched, &id) == ["written"]);
    place.sql(
        "update outbox set retry_cnt = 1, error_message = 'timed out', retry_at = '2999-01-01T00:00:00.000Z' \
         where aggregate_id = '7'",
    );
    eventually(|| changes(&watched, &id) == ["written", "retrying"]);
    place.sql("update outbox set status = 'ERR', retry_at = null where aggregate_id = '7'");
    eventually(|| changes(&watched, &id) == ["written", "retrying", "dead"]);
    place.run(&["dead", "retry", "--all", "--yes"]).succeeded();
    eventually(|| changes(&watched, &id).last().unwrap() == "retried");
    place
        .run(&["run", "--once", "--bus-url", "null:"])
        .succeeded();
    eventually(|| changes(&watched, &id).len() == 5);
    eventually(|| old.iter().all(|old| changes(&watched, old).len() == 1));
    let all = ["written", "retrying", "dead", "retried", "sent"];
    assert_eq!(changes(&watched, &id), all);
    assert_eq!(changes(&watched, old[0]), ["sent"], "it was written before");
    let ran = watched.told("-INT").succeeded().without_secrets();
    assert_eq!(ran.stderr, "");
    let last: Value = json(ran.stdout.lines().last().unwrap());
    assert!(last["seen_at"].is_string() && last["status"] == "SENT");
    assert!(last.get("payload").is_none(), "only if it is asked for");
}

#[test]
fn the_past_comes_first_and_filters_narrow() {
    let place = Place::migrated();
    let note = format!("{{\"type\":\"note\",\"payload\":\"{CANARY}\"}}\n");
    place
        .append(event("1", 1) + &note + &event("2", 2))
        .succeeded();
    place
        .run(&["run", "--once", "--bus-url", "null:"])
        .succeeded();
    place
        .append(event("1", 3) + &note.repeat(1_100))
        .succeeded();
    let of_one = [
        "tail",
        "--json",
        "--payload",
        "--since",
        "1h",
        "--aggregate",
        "1",
    ];
    let watched = Watched::start(&place, &of_one);
    eventually(|| watched.lines().len() == 3);
    place.append(event("2", 4) + &event("1", 5)).succeeded();
    eventually(|| watched.lines().len() == 4);
    let ran = watched.told("-TERM").succeeded().without_secrets();
    let told: Vec<(String, Value)> = ran
        .stdout
        .lines()
        .map(|line| {
            (
                json(line)["change"].to_string(),
                json(line)["payload"]["n"].clone(),
            )
        })
        .collect();
    let expected = [("written", 1), ("sent", 1), ("written", 3), ("written", 5)];
    let expected = expected.map(|(what, n)| (format!("\"{what}\""), Value::from(n)));
    assert_eq!(told, expected);

    // Pages of the past, as lines for people without a terminal.
    let watched = Watched::start(&place, &["tail", "--since", "1h", "--type", "note"]);
    eventually(|| watched.lines().len() == 1_102);
    let ran = watched.told("-INT").succeeded().without_secrets();
    assert!(ran.stdout.lines().all(|line| line.split('\t').count() == 7));
}

#[test]
fn who_reads_no_more_ends_it_quietly() {
    let place = Place::migrated();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = place
        .command(&["tail"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(reader);
    // Also while nothing is written.
    eventually(|| child.try_wait().unwrap().is_some());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    for wrong in [
        vec!["tail", "--payload"],
        vec!["tail", "--since", "soon"],
        vec!["tail", "--id", "7"],
        vec!["tail", "--type"],
    ] {
        assert_eq!(place.run(&wrong).code, Some(2), "{wrong:?}");
    }
    Place::new()
        .run(&["tail"])
        .failed(1, "run `bento-outbox migrate`");
}
