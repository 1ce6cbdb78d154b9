//! The demo, which needs nothing.

use std::collections::HashSet;
use std::fs;

use serde_json::Value;

use crate::place::Place;

#[test]
fn the_demo_publishes_what_was_committed_and_nothing_else() {
    let place = Place::new();
    let ran = place.run(&["demo"]).succeeded();
    let events: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 36);
    assert!(events.iter().all(|event| event["specversion"] == "1.0"));
    assert!(
        !events
            .iter()
            .any(|event| event["subject"] == "1007" || event["subject"] == "1014")
    );
    assert!(
        ran.stderr
            .contains("18 orders placed, 2 rolled back, 36 events published"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("right after its commit")
            || ran.stderr.contains("right after their commit"),
        "{ran:?}"
    );
    let ids: HashSet<&str> = events
        .iter()
        .filter_map(|event| event["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 36, "each once, whichever way it took");
    assert!(ran.stderr.contains("run --once"), "says what to try next");
    let none = place.run(&["demo", "--orders", "0"]).succeeded();
    assert!(
        none.stdout.is_empty() && none.stderr.contains("0 orders placed"),
        "{none:?}"
    );
    assert_eq!(
        fs::read_dir(place.path()).unwrap().count(),
        0,
        "leaves nothing behind"
    );
}
