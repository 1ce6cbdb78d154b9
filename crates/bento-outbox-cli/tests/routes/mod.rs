//! `[[routes]]`: events that go to several buses.

use std::fs;

use serde_json::Value;

use crate::place::{CANARY, Place, Relay, eventually};

fn events(types: &[&str]) -> String {
    let line = |(number, name): (usize, &&str)| {
        format!(
            "{{\"type\":\"{name}\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{name}{number}\",\"payload\":{number}}}\n"
        )
    };
    types.iter().enumerate().map(line).collect()
}

/// The types of the events in a file, in their order.
fn types(place: &Place, file: &str) -> Vec<String> {
    let text = fs::read_to_string(place.path().join(file)).unwrap_or_default();
    let lines = text.lines().map(|line| {
        let event: Value = serde_json::from_str(line).unwrap();
        event["type"].as_str().unwrap().to_owned()
    });
    lines.collect()
}

/// A place whose settings send audit events to a file in a folder that is not there.
fn split() -> Place {
    let place = Place::migrated();
    let settings = "bus_url = \"file:main.jsonl\"\nretry_max_delay = \"1s\"\n\n\
                    [[routes]]\ntype = \"audit.*\"\nbus = \"file:audit/events.jsonl\"\n\n\
                    [[routes]]\ntenant = \"acme\"\nbus = \"file:acme.jsonl\"\n";
    fs::write(place.path().join("outbox.toml"), settings).unwrap();
    place
}

#[test]
fn events_go_where_their_type_and_tenant_lead() {
    let place = split();
    fs::create_dir(place.path().join("audit")).unwrap();
    let acme = "{\"tenant_id\":\"acme\",\"type\":\"order.paid\",\"payload\":1}\n\
                {\"tenant_id\":\"acme\",\"type\":\"audit.paid\",\"payload\":1}\n";
    place
        .append(events(&["order.placed", "audit.in", "user.added"]) + acme)
        .succeeded();
    let ran = place.run(&["run", "--once"]).succeeded();
    assert!(ran.stderr.starts_with("5 sent in "), "{ran:?}");
    assert_eq!(types(&place, "main.jsonl"), ["order.placed", "user.added"]);
    assert_eq!(
        types(&place, "audit/events.jsonl"),
        ["audit.in", "audit.paid"]
    );
    assert_eq!(types(&place, "acme.jsonl"), ["order.paid"]);
}

#[test]
fn one_run_sends_what_it_can_and_says_which_bus_is_away() {
    let place = split();
    place
        .append(events(&[
            "audit.in",
            "order.placed",
            "audit.out",
            "user.added",
        ]))
        .succeeded();
    let ran = place.run(&["run", "--once"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("error: file:audit/events.jsonl: ")
            && ran.stderr.contains("(2 sent before)"),
        "{ran:?}"
    );
    assert_eq!(types(&place, "main.jsonl"), ["order.placed", "user.added"]);
    let doctor = place.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    for said in [
        "file:main.jsonl answers",
        "file:acme.jsonl answers",
        "file:audit/events.jsonl takes no events",
    ] {
        assert!(doctor.stdout.contains(said), "{doctor:?}");
    }
}

#[test]
fn a_relay_goes_on_without_a_bus_that_is_away_and_finds_it_again() {
    let place = split();
    place
        .append(events(&["audit.in", "order.placed", "audit.out"]))
        .succeeded();
    let log = place.path().join("log");
    let relay = Relay::logging(&place, &["run"], &[], &log);
    eventually(|| place.lines("main.jsonl") == 1);
    place
        .append(events(&["order.placed", "order.paid"]))
        .succeeded();
    eventually(|| place.lines("main.jsonl") == 3);
    assert_eq!(place.status()["total"]["dead"], 0);
    fs::create_dir(place.path().join("audit")).unwrap();
    eventually(|| place.lines("audit/events.jsonl") == 2);
    eventually(|| place.status()["total"]["sent"] == 5);
    relay.told("-TERM").succeeded();
    place.sql(
        "insert into outbox (type, payload) select 'x', '1' where exists \
               (select 1 from outbox_events where retry_cnt > 0)",
    );
    assert_eq!(
        place.status()["total"]["new"],
        0,
        "no event lost an attempt"
    );
    let log = fs::read_to_string(log).unwrap();
    let told = |said: &str| log.lines().filter(|line| line.contains(said)).count();
    assert_eq!(told("the destination takes no events"), 1, "{log}");
    assert_eq!(told("the destination answers again"), 1, "{log}");
}

#[test]
fn config_shows_routes_and_no_password() {
    let place = Place::new();
    let settings = format!(
        "[[routes]]\ntype = \"order.*\"\ntenant = \"acme\"\ntopic = \"orders\"\n\
         [[routes]]\ntenant = \"eu-*\"\nbus = \"nats://bob:{CANARY}@host\"\n"
    );
    fs::write(place.path().join("outbox.toml"), settings).unwrap();
    let ran = place.run(&["config"]).succeeded().without_secrets();
    for line in [
        "routes 1\ttype order.*, tenant acme: topic orders\toutbox.toml line 1",
        "routes 2\ttype *, tenant eu-*: bus nats://bob:***@host\toutbox.toml line 5",
    ] {
        assert!(ran.stdout.lines().any(|shown| shown == line), "{ran:?}");
    }
    let ran = place
        .run(&["config", "--json"])
        .succeeded()
        .without_secrets();
    let config: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(config["routes"]["origin"], "file");
    assert_eq!(config["routes"]["value"][0]["topic"], "orders");
    assert_eq!(config["routes"]["value"][1]["bus"], "nats://bob:***@host");
    let none = Place::new().run(&["config", "--json"]).succeeded();
    let none: Value = serde_json::from_str(&none.stdout).unwrap();
    assert_eq!(
        (&none["routes"]["value"], &none["routes"]["origin"]),
        (&Value::Array(Vec::new()), &Value::from("default"))
    );
}

#[test]
fn a_bus_that_nobody_knows_is_refused_with_its_route() {
    let place = Place::migrated();
    let settings = format!("[[routes]]\ntype = \"a\"\nbus = \"carrier://bob:{CANARY}@host\"\n");
    fs::write(place.path().join("outbox.toml"), settings).unwrap();
    place.run(&["run", "--once"]).failed(
        2,
        "route 1 (outbox.toml line 1) has a bus that begins with \"carrier\"",
    );
}
