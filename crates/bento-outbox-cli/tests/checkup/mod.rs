//! What waits and what is wrong: `status` and `doctor`.

use serde_json::Value;

use crate::place::{CANARY, Place, Relay, eventually};

fn line(id: &str, more: &str) -> String {
    format!(
        "{{\"type\":\"a\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{id}\",\"payload\":\"{CANARY}\"{more}}}\n"
    )
}

/// The findings of a kind, `state: what was found`.
fn doctor(place: &Place, code: i32, variables: &[(&str, &str)], about: &str) -> Vec<String> {
    let ran = place
        .run_with(&["doctor", "--json"], variables)
        .without_secrets();
    assert_eq!(ran.code, Some(code), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let broken = findings
        .iter()
        .filter(|finding| finding["state"] == "broken");
    assert_eq!(report["broken"], broken.count());
    for finding in findings {
        let is_bad = finding["state"] == "broken" || finding["state"] == "warning";
        assert!(
            !is_bad || finding["advice"].is_string(),
            "what is to be done? {finding}"
        );
    }
    assert_eq!(report["broken"] == 0, code == 0);
    let of_it = findings.iter().filter(|finding| finding["about"] == about);
    of_it
        .map(|finding| {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_string();
            format!("{}: {} | {}", text("state"), text("found"), text("advice"))
        })
        .collect()
}

#[test]
fn status_says_which_keys_wait_and_why() {
    let place = Place::migrated();
    let later = ",\"available_at\":\"2999-01-01T00:00:00Z\"";
    let delayed: String = (0..21)
        .map(|n| line(&n.to_string(), later) + &line(&n.to_string(), ""))
        .collect();
    place.append(line("dead", "").repeat(3)).succeeded();
    place.sql("update outbox set status = 'ERR' where seq = 1");
    assert_eq!(
        place.status()["held"],
        Value::Array(Vec::new()),
        "a dead letter is skipped"
    );
    let blocking = [("OUTBOX_ON_DEAD_LETTER", "block")];
    let ran = place.run_with(&["status"], &blocking).succeeded();
    assert!(
        ran.stderr
            .contains("default order dead: 2 events wait for ")
            && ran.stderr.contains(", a dead letter\n"),
        "{ran:?}"
    );

    place.append(delayed).succeeded();
    let status = place.status();
    assert_eq!(status["held"].as_array().unwrap().len(), 20);
    assert_eq!(status["held_more"], true);
    let first = &status["held"][0];
    assert_eq!(
        (&first["because"], &first["waiting"], &first["aggregate_id"]),
        (&"delayed".into(), &1.into(), &"0".into())
    );
    let ran = place.run(&["status"]).succeeded().without_secrets();
    assert!(
        ran.stderr
            .contains("which is delayed until 2999-01-01T00:00:00Z\n")
            && ran.stderr.contains("and more keys wait\n"),
        "{ran:?}"
    );
    let unordered = [("OUTBOX_ORDERING", "none")];
    let ran = place.run_with(&["status", "--json"], &unordered);
    assert!(ran.stdout.contains("\"held\":[]"), "{ran:?}");
}

#[test]
fn the_doctor_finds_nothing_wrong_where_nothing_is() {
    let place = Place::migrated();
    let bus = [("OUTBOX_BUS_URL", "file:bus.jsonl")];
    // It lives by its leases, which it is not to lose on a busy machine.
    let long = [("OUTBOX_LEASE_TTL", "10m")];
    let arguments = ["run", "--bus-url", "file:bus.jsonl"];
    let relay = Relay::start_with(&place, &arguments, &long);
    place.append(line("1", "")).succeeded();
    eventually(|| place.lines("bus.jsonl") == 1);
    let database = doctor(&place, 0, &bus, "database");
    assert!(
        database.len() == 1 && database[0].starts_with("ok: sqlite://outbox.db: SQLite 3."),
        "{database:?}"
    );
    let relays = doctor(&place, 0, &bus, "relays");
    assert_eq!(
        relays,
        ["ok: 1 relay for tenants \"*\", with 64 of 64 partitions | "]
    );
    let locked = doctor(&place, 0, &bus, "bus");
    assert!(locked[0].starts_with("ok: "), "{locked:?}");
    let ran = place.run_with(&["doctor"], &bus).succeeded();
    assert!(ran.stderr.contains("nothing is wrong"), "{ran:?}");

    let other = [bus[0], ("OUTBOX_TENANTS", "acme")];
    let relays = doctor(&place, 1, &other, "relays");
    assert!(
        relays[0].starts_with("broken: a relay runs for tenants \"*\""),
        "{relays:?}"
    );
    relay.told("-TERM").succeeded();
}

#[test]
fn the_doctor_says_what_is_broken_and_what_to_do() {
    let place = Place::new();
    let bus = [("OUTBOX_BUS_URL", "file:no/such/folder")];
    let database = doctor(&place, 1, &bus, "database");
    assert!(
        database[0].contains("run `bento-outbox migrate`"),
        "{database:?}"
    );
    let broken = doctor(&place, 1, &bus, "bus");
    assert!(
        broken[0].starts_with("broken: file:no/such/folder takes no events: "),
        "{broken:?}"
    );

    place.run(&["migrate"]).succeeded();
    place.append(line("1", "").repeat(2)).succeeded();
    place
        .sql("update outbox set status = 'ERR', created_at = '2020-01-01T00:00:00Z' where seq = 1");
    place.sql("update outbox set created_at = '2020-01-01T00:00:00Z' where seq = 2");
    assert_eq!(
        doctor(&place, 1, &[], "dead letters"),
        [
            "warning: 1 dead letter | look at them: `bento-outbox dead list`; then `bento-outbox dead retry --all` or \
             `bento-outbox dead discard --all`, or some of them by a filter"
        ]
    );
    assert!(
        doctor(&place, 1, &[], "events")[0].starts_with("warning: 1 event not sent, the oldest")
    );
    let relays = doctor(&place, 1, &[], "relays");
    assert!(
        relays[0]
            .starts_with("broken: no relay is running for tenants \"*\", and events are due |"),
        "{relays:?}"
    );
    let others = [("OUTBOX_TENANTS", "acme")];
    let relays = doctor(&place, 0, &others, "relays");
    assert!(
        relays[0].starts_with("note: no relay is running"),
        "{relays:?}"
    );
    assert!(doctor(&place, 1, &[], "bus")[0].starts_with("note: "));
    assert!(doctor(&place, 1, &[], "order").is_empty());
    let blocking = [("OUTBOX_ON_DEAD_LETTER", "block")];
    let order = doctor(&place, 1, &blocking, "order");
    assert!(
        order[0].starts_with("warning: ") && order[0].contains("1 event waits for "),
        "{order:?}"
    );
    // What is written for later is not due.
    place.sql("update outbox set available_at = '2999-01-01T00:00:00Z' where seq = 2");
    let relays = doctor(&place, 0, &[], "relays");
    assert!(
        relays[0].starts_with("note: no relay is running"),
        "{relays:?}"
    );

    // A bus that takes nothing is named, and nobody is sent to the dead letters.
    place.sql(
        "update outbox set error_message = 'disk full', retry_at = available_at where seq = 2",
    );
    let put_off = doctor(&place, 0, &blocking, "retrying");
    assert!(
        put_off[0].starts_with("warning: 1 event that stdout: does not take now, the oldest ")
            && put_off[0].ends_with(
                ": disk full | make room there or bring it back; they go out by themselves"
            ),
        "{put_off:?}"
    );
    place.append(line("1", "")).succeeded();
    let order = doctor(&place, 1, &[], "order");
    assert!(
        order[0].ends_with(" | make room there or bring it back; they go out by themselves"),
        "{order:?}"
    );
    place.sql("update outbox set retry_cnt = 1 where seq = 2");
    let failed = doctor(&place, 1, &[], "retrying");
    assert!(
        failed[0].starts_with("warning: 1 event tried again, "),
        "{failed:?}"
    );
    let order = doctor(&place, 1, &[], "order");
    assert!(
        order[0].contains("`bento-outbox dead list` has it"),
        "{order:?}"
    );

    place.sql("drop index outbox_ready");
    let database = doctor(&place, 1, &[], "database");
    assert!(
        database[1].starts_with("broken: indexes that are missing: outbox_ready | create"),
        "{database:?}"
    );
    let refused = [("OUTBOX_ENCRYPTION_KEYS", "a=s3cr3t-canary")];
    let settings = doctor(&place, 1, &refused, "settings");
    assert!(
        settings[0].starts_with("broken: encryption_keys"),
        "{settings:?}"
    );
}
