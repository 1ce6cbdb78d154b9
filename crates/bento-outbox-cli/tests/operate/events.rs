//! `events`.

use serde_json::Value;

use super::{event, json};
use crate::place::{CANARY, Place};

/// Seven events: two sent, one dead, the rest new, one of them of another tenant and without an order.
fn full() -> (Place, Vec<String>) {
    let place = Place::migrated();
    let note = format!("{{\"type\":\"note\",\"tenant_id\":\"acme\",\"payload\":\"{CANARY}\"}}\n");
    let lines: String = (0..6).map(|n| event(&(n % 2).to_string(), n)).collect();
    let appended = place.append(lines + &note).succeeded();
    place.sql("update outbox set status = 'SENT' where seq <= 2");
    place.sql("update outbox set status = 'ERR', error_message = 'refused' where seq = 3");
    (place, appended.stdout.lines().map(Into::into).collect())
}

#[test]
fn events_are_found_by_each_filter_the_newest_first() {
    let (place, ids) = full();
    let list = |arguments: &[&str]| -> Vec<Value> {
        let all = [&["events", "list", "--json"], arguments].concat();
        let ran = place.run(&all).succeeded().without_secrets();
        ran.stdout.lines().map(json).collect()
    };
    let all = list(&[]);
    let newest_first: Vec<&str> = ids.iter().rev().map(String::as_str).collect();
    let found: Vec<&str> = all.iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(found, newest_first);
    let keys: Vec<&String> = all[0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 19, "the view's 21 columns but two: {keys:?}");
    for (arguments, number) in [
        (vec!["--status", "SENT"], 2),
        (vec!["--status", "sent"], 2),
        (vec!["--status", "ERR"], 1),
        (vec!["--status", "NEW"], 4),
        (vec!["--tenant", "acme"], 1),
        (vec!["--tenant", "acme", "--status", "SENT"], 0),
        (vec!["--type", "order.placed"], 6),
        (vec!["--aggregate", "1"], 3),
        (vec!["--since", "1h"], 7),
        (vec!["--until", "1h"], 0),
        (vec!["--id", &ids[0], "--id", &ids[6]], 2),
        (vec!["--before", "3"], 2),
        (vec!["--limit", "5"], 5),
    ] {
        assert_eq!(list(&arguments).len(), number, "{arguments:?}");
    }
    let with = ["events", "list", "--json", "--payload", "--tenant", "acme"];
    assert!(place.run(&with).succeeded().stdout.contains(CANARY));

    // Page by page, as each page says.
    let mut pasted = "bento-outbox events list --status NEW --limit 3".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = place.pasted(&pasted).succeeded().without_secrets();
        let rows = page.stdout.lines().skip(1);
        seen.extend(rows.map(|row| row.split('\t').next().unwrap().to_owned()));
        let Some((_, more)) = page.stderr.split_once("and more: `") else {
            assert_eq!(page.stderr, "");
            break;
        };
        pasted = format!("{} --limit 3", more.split('`').next().unwrap());
    }
    assert_eq!(seen, newest_first[..4]);

    let none = place
        .run(&["events", "list", "--tenant", "nobody"])
        .succeeded();
    assert_eq!(none.stdout, "");
    assert!(none.stderr.starts_with("no event matches"), "{none:?}");
    for wrong in [
        vec!["events"],
        vec!["events", "list", "--status", "late"],
        vec!["events", "list", "--payload"],
        vec!["events", "list", "--before", "x"],
        vec!["events", "show", "7"],
    ] {
        assert_eq!(place.run(&wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn an_event_is_shown_whatever_its_state_and_its_payload_only_if_asked_for() {
    let (place, ids) = full();
    for (id, status) in [(&ids[0], "SENT"), (&ids[2], "ERR"), (&ids[6], "NEW")] {
        let shown = place
            .run(&["events", "show", id])
            .succeeded()
            .without_secrets();
        assert!(
            shown.stdout.contains(&format!("status\t{status}\n")),
            "{shown:?}"
        );
        assert!(
            shown.stderr.contains("is shown with --payload"),
            "{shown:?}"
        );
        let object = place.run(&["events", "show", id, "--json"]).succeeded();
        assert_eq!(json(&object.without_secrets().stdout)["status"], status);
    }
    let with = place.run(&["events", "show", &ids[6], "--payload"]);
    assert!(with.succeeded().stdout.contains(CANARY));
    let nobody = "ce974dcd-cdcc-4219-b109-10e01ce65000";
    place
        .run(&["events", "show", nobody])
        .failed(1, "is not in the outbox");
}
