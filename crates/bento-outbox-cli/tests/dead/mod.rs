//! Dead letters, as a person and a script deal with them.

use serde_json::Value;

use crate::place::{CANARY, Place, Ran};

/// Six letters of two tenants and two aggregates, an event behind some of them, one without order.
fn graveyard() -> Place {
    let place = Place::migrated();
    let line = |tenant: &str, kind: &str, id: &str, number: u32| {
        format!(
            "{{\"tenant_id\":\"{tenant}\",\"type\":\"{kind}\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{id}\",\
             \"payload\":{{ \"n\":{number}, \"secret\":\"{CANARY}\" }}}}\n"
        )
    };
    let dead = [
        line("acme", "order.placed", "1", 1),
        line("acme", "order.paid", "1", 2),
        line("acme", "order.placed", "2", 3),
        line("globex", "order.placed", "1", 4),
        line("globex", "order.placed", "1", 5),
    ];
    place.append(dead.concat()).succeeded();
    place.append(r#"{"type":"note","data":"AP8="}"#).succeeded();
    place.sql("update outbox set status = 'ERR', retry_cnt = 5, error_message = 'refused' || char(9, 27) || '[31m'");
    place
        .append(line("acme", "order.shipped", "1", 6).repeat(2))
        .succeeded();
    place
}

fn json_lines(ran: &Ran) -> Vec<Value> {
    let parsed = ran.stdout.lines().map(serde_json::from_str);
    parsed.collect::<Result<_, _>>().unwrap()
}

fn dead(place: &Place) -> u64 {
    place.status()["total"]["dead"].as_u64().unwrap()
}

#[test]
fn letters_are_listed_by_filters_and_without_their_payloads() {
    let place = graveyard();
    let list = |arguments: &[&str]| {
        let all = [&["dead", "list", "--json"], arguments].concat();
        json_lines(&place.run(&all).succeeded())
    };
    let all = list(&[]);
    assert_eq!(all.len(), 6);
    let keys: Vec<&String> = all[0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 19, "the view's 21 columns but two: {keys:?}");
    assert_eq!(
        (&all[0]["status"], &all[0]["retry_cnt"], &all[0]["seq"]),
        (&"ERR".into(), &5.into(), &1.into())
    );
    let id = all[3]["id"].as_str().unwrap();
    for (arguments, number) in [
        (vec!["--tenant", "acme"], 3),
        (vec!["--type", "order.placed"], 4),
        (vec!["--tenant", "acme", "--type", "order.placed"], 2),
        (vec!["--aggregate", "1"], 4),
        (vec!["--aggregate", "1", "--tenant", "globex"], 2),
        (vec!["--since", "1h"], 6),
        (vec!["--until", "1h"], 0),
        (vec!["--until", "2999-01-01T00:00:00Z"], 6),
        (vec!["--id", id], 1),
        (vec!["--id", id, "--id", all[5]["id"].as_str().unwrap()], 2),
        (vec!["--id", id, "--tenant", "acme"], 0),
        (vec!["--limit", "4"], 4),
        (vec!["--all"], 6),
    ] {
        assert_eq!(list(&arguments).len(), number, "{arguments:?}");
    }
    let with = place
        .run(&["dead", "list", "--json", "--payload"])
        .succeeded();
    assert!(
        with.stdout.contains("\"payload\":{ \"n\":1, \"secret\":"),
        "byte for byte"
    );
    assert!(with.stdout.contains("\"data\":\"AP8=\""));

    let lines = place.run(&["dead", "list"]).succeeded().without_secrets();
    assert_eq!(lines.stdout.lines().count(), 7, "with a header");
    assert!(!lines.stdout.contains('\u{1b}'), "nothing moves the cursor");
    assert!(
        lines
            .stdout
            .lines()
            .all(|line| line.split('\t').count() == 7),
        "{lines:?}"
    );
    assert_eq!(place.run(&["dead", "list", "--check"]).code, Some(3));
    let none = place.run(&["dead", "list", "--check", "--tenant", "nobody"]);
    assert_eq!(
        (none.code, none.stderr.as_str()),
        (Some(0), "no dead letter matches\n")
    );
    let none = Place::migrated()
        .run(&["dead", "list", "--json"])
        .succeeded();
    assert_eq!(
        (none.stdout.as_str(), none.stderr.as_str()),
        ("", "there are no dead letters\n")
    );
    for wrong in [
        vec!["dead", "list", "--since", "yesterday"],
        vec!["dead", "list", "--id", "7"],
        vec!["dead", "list", "--tenant", "a b"],
        vec!["dead", "list", "--all", "--tenant", "acme"],
        vec!["dead", "list", "--payload"],
        vec!["dead", "list", "--limit", "0"],
        vec!["events", "list", "--limit", "0"],
        vec!["audit", "--limit", "0"],
        vec!["dead"],
    ] {
        assert_eq!(place.run(&wrong).code, Some(2), "{wrong:?}");
    }
    for command in [
        &["dead", "list"][..],
        &["dead", "retry", "--dry-run"],
        &["dead", "discard", "--dry-run"],
        &["replay", "--dry-run"],
        &["events", "list"],
        &["tail"],
    ] {
        let with = |filter: &[&str]| place.run(&[command, filter].concat());
        with(&["--type", "order.*"]).failed(2, "type \"order.*\" has a *");
        with(&["--type", ""]).failed(2, "type is empty");
        with(&["--since", "1h", "--until", "2h"]).failed(2, "is not before until");
    }
}

#[test]
fn one_letter_is_shown() {
    let place = graveyard();
    let letters = json_lines(&place.run(&["dead", "list", "--json"]).succeeded());
    let id = letters[0]["id"].as_str().unwrap();
    let shown = place
        .run(&["dead", "show", id])
        .succeeded()
        .without_secrets();
    assert!(
        shown.stdout.contains("type\torder.placed\n") && shown.stdout.contains("retry_cnt\t5\n"),
        "{shown:?}"
    );
    assert!(
        shown.stderr.contains("is shown with --payload"),
        "{shown:?}"
    );
    let json = place.run(&["dead", "show", id, "--json"]).succeeded();
    assert_eq!(json_lines(&json), letters[..1]);
    let with = place.run(&["dead", "show", id, "--payload"]).succeeded();
    assert!(with.stdout.contains(CANARY));

    let nobody = "ce974dcd-cdcc-4219-b109-10e01ce65000";
    place
        .run(&["dead", "show", nobody])
        .failed(1, "is not in the outbox");
    place
        .run(&["dead", "retry", "--id", id, "--yes"])
        .succeeded();
    place
        .run(&["dead", "show", id])
        .failed(1, "is no dead letter: it is not sent yet");
    assert_eq!(place.run(&["dead", "show", "7"]).code, Some(2));
}

#[test]
fn letters_are_retried_with_the_same_ids_and_bytes() {
    let place = graveyard();
    let before = place
        .run(&["dead", "list", "--json", "--payload"])
        .succeeded();
    for verb in ["retry", "discard"] {
        place
            .run(&["dead", verb, "--yes"])
            .failed(2, "which dead letters?");
        place.run(&["dead", verb, "--all"]).failed(2, "give --yes");
    }
    let dry = ["dead", "retry", "--tenant", "acme", "--dry-run"];
    let dry = place.run(&dry).succeeded();
    assert!(
        dry.stderr.contains("3 dead letters: acme 3\n")
            && dry
                .stderr
                .contains("of their 2 aggregates did not wait (on_dead_letter = skip)")
            && dry.stderr.contains("not sent yet: 2 at present\n"),
        "{dry:?}"
    );
    assert_eq!(dead(&place), 6);
    let blocking = [("OUTBOX_ON_DEAD_LETTER", "block")];
    let dry = ["dead", "retry", "--all", "--dry-run", "--json"];
    let dry = place.run_with(&dry, &blocking).succeeded();
    assert!(dry.stderr.contains("order: kept."), "{dry:?}");
    assert_eq!(
        dry.stdout,
        "{\"matched\":6,\"changed\":0,\"dry_run\":true}\n"
    );

    let one = ["dead", "retry", "--type", "order.paid", "--yes", "--json"];
    let ran = place.run(&one).succeeded();
    assert_eq!(
        ran.stdout,
        "{\"matched\":1,\"changed\":1,\"dry_run\":false}\n"
    );
    let again = place.run(&one).succeeded();
    assert!(again.stderr.contains("dealt with it already"), "{again:?}");
    let ran = place.run(&["dead", "retry", "--all", "--yes"]).succeeded();
    assert!(ran.stderr.contains("5 dead letters retried"), "{ran:?}");
    assert_eq!(dead(&place), 0);

    let bus = ["run", "--once", "--bus-url", "file:bus.jsonl"];
    place.run(&bus).succeeded();
    let text = std::fs::read_to_string(place.path().join("bus.jsonl")).unwrap();
    for letter in json_lines(&before) {
        assert!(text.contains(letter["id"].as_str().unwrap()));
    }
    assert!(text.contains(&format!("{{ \"n\":4, \"secret\":\"{CANARY}\" }}")));
}

#[test]
fn letters_are_discarded_in_pages_and_nothing_else_is() {
    let place = graveyard();
    let note = "{\"tenant_id\":\"many\",\"type\":\"note\",\"payload\":1}\n";
    place.append(note.repeat(1_203)).succeeded();
    place.sql("update outbox set status = 'ERR' where tenant_id = 'many' and seq % 400 <> 0");
    let many = ["dead", "list", "--tenant", "many", "--json"];
    let letters = place.run(&many).succeeded().stdout.lines().count();
    assert_eq!(letters, 1_200);
    let discard = ["dead", "discard", "--tenant", "many", "--yes"];
    // Two operators at once: each letter is one's.
    let other = std::thread::scope(|scope| {
        let other = scope.spawn(|| place.run(&[&discard[..], &["--json"]].concat()));
        let ran = place.run(&[&discard[..], &["--json"]].concat());
        [ran, other.join().unwrap()]
    });
    let changed = |ran: Ran| json_lines(&ran.succeeded())[0]["changed"].as_u64().unwrap();
    assert_eq!(other.map(changed).iter().sum::<u64>(), 1_200);
    assert_eq!(dead(&place), 6);
    assert_eq!(place.status()["total"]["new"], 5);
    assert!(
        place
            .run(&discard)
            .succeeded()
            .stderr
            .contains("no dead letter matches")
    );
}

/// SQLite takes any bytes for text. Whoever must look at such a letter can, and the others are not lost behind it.
#[test]
fn a_letter_that_cannot_be_read_as_it_stands_is_told_of_and_can_be_discarded() {
    let place = Place::migrated();
    place.sql(
        "insert into outbox (type, payload, headers) values ('poison', '1', cast(x'7b2261223a22ff227d' as text));
         insert into outbox (type, payload, aggregate_id) values ('poison', '1', cast(x'ff' as text));
         insert into outbox (type, payload, headers) values ('refused', '1', '{\"a\":1}')",
    );
    let once = ["run", "--once", "--bus-url", "file:bus.jsonl"];
    let ran = place.run(&once);
    assert!(ran.stderr.contains("new dead letters: 3"), "{ran:?}");
    let letters = json_lines(&place.run(&["dead", "list", "--json"]).succeeded());
    assert_eq!(letters.len(), 3, "{letters:?}");
    let reason = letters[0]["error_message"].as_str().unwrap();
    assert!(
        reason.starts_with("column headers is not UTF-8"),
        "{reason}"
    );
    assert_eq!(
        (&letters[0]["retry_cnt"], &letters[1]["retry_cnt"]),
        (&1.into(), &1.into())
    );
    assert_eq!(letters[1]["aggregate_id"], "\u{fffd}");
    let id = letters[0]["id"].as_str().unwrap();
    place.run(&["dead", "show", id]).succeeded();
    place.run(&["why", id]).succeeded();
    place.run(&["events", "list"]).succeeded();
    place.run(&["dead", "retry", "--all", "--yes"]).succeeded();
    place.run(&once);
    assert_eq!(dead(&place), 3, "it cannot go out");
    place
        .run(&["dead", "discard", "--id", id, "--yes"])
        .succeeded();
    assert_eq!(dead(&place), 2);
    place
        .run(&["dead", "discard", "--all", "--yes"])
        .succeeded();
    assert_eq!(dead(&place), 0);
}
