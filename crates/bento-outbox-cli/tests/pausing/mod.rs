//! Keeping events back, and who did it: `tenants`, `destinations`, `audit`.

use std::fs;

use serde_json::{Value, json};

use crate::place::{CANARY, Place, Ran, Relay, eventually};

const ONCE: [&str; 4] = ["run", "--once", "--bus-url", "file:main.jsonl"];

fn line(tenant: &str, kind: &str, key: &str) -> String {
    format!(
        "{{\"tenant_id\":\"{tenant}\",\"type\":\"{kind}\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{key}\",\
         \"payload\":\"{CANARY}\"}}\n"
    )
}

fn object(ran: &Ran) -> Value {
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

fn acts(place: &Place, arguments: &[&str]) -> Vec<Value> {
    let ran = place.run(&[&["audit", "--json"], arguments].concat());
    let lines = ran.succeeded().stdout;
    let acts = lines.lines().map(serde_json::from_str);
    acts.collect::<Result<_, _>>().unwrap()
}

/// `audit.*` goes to a file of its own.
fn routed() -> Place {
    let place = Place::migrated();
    let settings = "bus_url = \"file:main.jsonl\"\n\
                    [[routes]]\ntype = \"audit.*\"\nbus = \"file:audit.jsonl\"\n";
    fs::write(place.path().join("outbox.toml"), settings).unwrap();
    place
}

#[test]
fn a_paused_tenant_keeps_its_events_until_it_is_resumed() {
    let place = Place::migrated();
    let nobody = place.run(&["tenants", "list"]).succeeded();
    assert!(
        nobody.stderr.starts_with("no tenant is paused"),
        "{nobody:?}"
    );
    place
        .append(line("acme", "a", "1") + &line("globex", "a", "2") + &line("acme", "a", "1"))
        .succeeded();
    let paused = place.run(&[
        "tenants",
        "pause",
        "acme",
        "later",
        "--reason",
        "they move\u{1b}[31m",
    ]);
    let paused = paused.succeeded();
    assert_eq!(paused.stdout, "");
    assert_eq!(
        paused.stderr,
        "tenant acme paused: its events are kept until it is resumed\n\
         tenant later paused: its events are kept until it is resumed\n"
    );
    let again = place
        .run(&["tenants", "pause", "acme", "--json"])
        .succeeded();
    assert_eq!(again.stderr, "tenant acme was paused already\n");
    assert_eq!(
        object(&again),
        json!({ "kind": "tenant", "names": ["acme"], "changed": 0 })
    );

    let ran = place.run(&ONCE).succeeded();
    assert!(ran.stderr.starts_with("1 sent in "), "{ran:?}");
    assert_eq!(place.lines("main.jsonl"), 1);
    let status = place.status();
    let told: Vec<_> = status["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["tenant_id"].clone(),
                it["paused"].clone(),
                it["new"].clone(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (json!("acme"), json!(true), json!(2)),
            (json!("globex"), json!(false), json!(0)),
            (json!("later"), json!(true), json!(0))
        ]
    );
    assert_eq!(status["total"]["paused"], true);
    assert_eq!(status["paused_destinations"], json!([]));
    let status = place.run(&["status"]).succeeded();
    assert!(
        status.stderr.contains("tenant acme is paused since 2")
            && status.stderr.contains(" by cli:")
            && status.stderr.contains("(they move [31m)\n"),
        "{status:?}"
    );
    assert!(status.stdout.contains("\tyes\n"), "{status:?}");
    let doctor = place.run(&["doctor"]).succeeded();
    assert!(
        doctor.stdout.contains("tenant acme is paused since")
            && doctor.stdout.contains("`bento-outbox tenants resume acme`"),
        "{doctor:?}"
    );
    let listed = object(&place.run(&["tenants", "list", "--json"]).succeeded());
    let listed = listed["tenants"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(
        (&listed[0]["pending"], &listed[0]["reason"]),
        (&json!(2), &json!("they move [31m"))
    );
    let lines = place.run(&["tenants", "list"]).succeeded().stdout;
    assert!(lines.starts_with("tenant\tnot sent\tdead\t"), "{lines}");

    let resumed = place
        .run(&["tenants", "resume", "acme", "nobody"])
        .succeeded();
    assert_eq!(
        resumed.stderr,
        "tenant acme resumed\ntenant nobody was not paused\n"
    );
    place.run(&ONCE).succeeded();
    assert_eq!(place.lines("main.jsonl"), 3);
    let verbs: Vec<Value> = acts(&place, &[])
        .iter()
        .map(|act| act["verb"].clone())
        .collect();
    assert_eq!(verbs, ["resume", "pause"], "newest first, and no more");
}

#[test]
fn a_paused_destination_stays_so_through_kills_and_goes_on_when_resumed() {
    let place = routed();
    let listed = object(&place.run(&["destinations", "list", "--json"]).succeeded());
    let names: Vec<_> = listed["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["name"].clone(),
                it["routed"].clone(),
                it["paused"].clone(),
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            (json!("file:main.jsonl"), json!(true), json!(false)),
            (json!("file:audit.jsonl"), json!(true), json!(false))
        ]
    );
    let unknown = place.run(&["destinations", "pause", "file:audit.json"]);
    unknown.failed(2, "these settings have file:main.jsonl, file:audit.jsonl");

    let log = place.path().join("relay.log");
    let relay = Relay::logging(&place, &["run"], &[], &log);
    place
        .append(line("acme", "audit.a", "1") + &line("acme", "b", "1"))
        .succeeded();
    eventually(|| place.lines("main.jsonl") == 1 && place.lines("audit.jsonl") == 1);
    let pause = [
        "destinations",
        "pause",
        "file:audit.jsonl",
        "--reason",
        "disk full",
    ];
    place.run(&pause).succeeded();
    let said = |what: &str| fs::read_to_string(&log).unwrap().contains(what);
    eventually(|| said("destination paused: its events are kept"));
    let lines = line("acme", "audit.a", "1") + &line("acme", "b", "1") + &line("acme", "b", "2");
    place.append(lines).succeeded();
    eventually(|| place.lines("main.jsonl") == 2);
    // One that is killed before it has noted what it published leaves it to be published again.
    eventually(|| place.status()["total"]["sent"] == 3);
    relay.told("-KILL");
    let relay = Relay::logging(&place, &["run"], &[], &log);
    place.append(line("acme", "b", "3")).succeeded();
    eventually(|| place.lines("main.jsonl") == 3);
    assert_eq!(place.lines("audit.jsonl"), 1);
    let status = place.status();
    assert_eq!(
        (
            &status["total"]["dead"],
            &status["paused_destinations"][0]["name"]
        ),
        (&json!(0), &json!("file:audit.jsonl"))
    );
    assert_eq!(status["held"][0]["because"], "paused", "{status}");
    let counted = &status["tenants"][0];
    assert_eq!(
        (&counted["retrying"], &counted["paused_events"]),
        (&json!(0), &json!(1)),
        "{status}"
    );
    assert_eq!(place.text("select max(retry_cnt) || '' from outbox"), "0");
    let doctor = place.run(&["doctor"]);
    assert!(
        doctor
            .stdout
            .contains("destination file:audit.jsonl is paused since")
            && doctor
                .stdout
                .contains("1 event kept because the destination is paused")
            && !doctor.stdout.contains("tried again"),
        "{doctor:?}"
    );

    // By itself what was put aside would come too late for this test.
    place.sql("update outbox set retry_at = '2099-01-01T00:00:00.000Z' where retry_at is not null");
    place
        .run(&["destinations", "resume", "file:audit.jsonl"])
        .succeeded();
    eventually(|| place.lines("audit.jsonl") == 2 && place.lines("main.jsonl") == 4);
    // Who did it is looked up meanwhile.
    eventually(|| said("destination resumed"));
    let log = fs::read_to_string(&log).unwrap();
    let resumed = log
        .lines()
        .find(|line| line.contains("destination resumed"));
    assert!(resumed.unwrap().contains("by=\"cli:"), "{log}");
    relay.told("-TERM");
}

#[test]
fn a_replay_says_where_it_goes_and_publishes_nothing_that_is_paused() {
    let place = routed();
    place
        .append(line("acme", "a", "1") + &line("acme", "audit.x", "2") + &line("globex", "a", "3"))
        .succeeded();
    place.run(&["run", "--once"]).succeeded();
    let replay = |arguments: &[&str]| place.run(&[&["replay"], arguments].concat());
    let dry = replay(&["--all", "--dry-run"]).succeeded();
    let said = "3 sent events: 1 to file:audit.jsonl and 2 to file:main.jsonl, under the same ids";
    assert!(dry.stderr.starts_with(said), "{dry:?}");
    let dry = replay(&["--type", "a", "--dry-run"]).succeeded();
    let said = "2 sent events: to file:main.jsonl, under the same ids";
    assert!(dry.stderr.starts_with(said), "{dry:?}");

    for (kind, name, free) in [
        ("destinations", "file:audit.jsonl", ["--type", "a"]),
        ("tenants", "acme", ["--tenant", "globex"]),
    ] {
        place.run(&[kind, "pause", name]).succeeded();
        let resume = format!("`bento-outbox {kind} resume {name}`");
        for how in ["--dry-run", "--yes"] {
            let refused = replay(&["--all", how]);
            assert_eq!(refused.code, Some(1), "{refused:?}");
            assert!(refused.stderr.contains(&resume), "{refused:?}");
        }
        replay(&[&free[..], &["--dry-run"]].concat()).succeeded();
        place.run(&[kind, "resume", name]).succeeded();
    }
    let acts = acts(&place, &[]);
    assert!(acts.iter().all(|act| act["verb"] != "replay"), "{acts:?}");
    assert_eq!(
        (place.lines("main.jsonl"), place.lines("audit.jsonl")),
        (2, 1)
    );
}

#[test]
fn a_pause_made_elsewhere_can_be_ended_here() {
    let place = routed();
    let pause = ["destinations", "pause", "file:audit.jsonl"];
    place.run(&pause).succeeded();
    place.append(line("acme", "audit.a", "1")).succeeded();
    let ran = place.run(&["run", "--once"]).succeeded();
    assert!(
        ran.stderr
            .contains("kept since their destination is paused: 1 (see"),
        "{ran:?}"
    );
    let id = place.text("select id from outbox");
    let why = object(&place.run(&["why", &id, "--json"]).succeeded());
    assert_eq!(
        (&why["because"], &why["kind"], &why["name"]),
        (
            &json!("paused"),
            &json!("destination"),
            &json!("file:audit.jsonl")
        )
    );
    let advice = "when that may end, `bento-outbox destinations resume file:audit.jsonl`";
    assert_eq!(why["advice"], advice);
    fs::remove_file(place.path().join("outbox.toml")).unwrap();
    let listed = object(&place.run(&["destinations", "list", "--json"]).succeeded());
    assert_eq!(
        (
            &listed["destinations"][1]["name"],
            &listed["destinations"][1]["routed"]
        ),
        (&json!("file:audit.jsonl"), &json!(false))
    );
    let said = "this pause keeps nothing: no route leads to file:audit.jsonl, resume it \
                (`bento-outbox destinations resume file:audit.jsonl`) and pause stdout:";
    for command in [
        &["status"][..],
        &["destinations", "list"],
        &["run", "--once"],
    ] {
        let ran = place.run(command).succeeded();
        assert!(ran.stderr.contains(said), "{ran:?}");
        place.append(line("acme", "audit.a", "1")).succeeded();
    }
    let doctor = place.run(&["doctor"]);
    assert!(doctor.stdout.contains(&format!("→ {said}\n")), "{doctor:?}");
    // It is named by its options too: of those that are there, the one at the same place was meant.
    let others = [("OUTBOX_BUS_URL", "file:audit.jsonl?a=1")];
    let status = place.run_with(&["status"], &others).succeeded();
    assert!(
        status.stderr.contains("and pause file:audit.jsonl?a=1\n"),
        "{status:?}"
    );
    place.run(&pause).failed(2, "no events are routed to");
    let resume = ["destinations", "resume", "file:audit.jsonl", "--json"];
    assert_eq!(object(&place.run(&resume).succeeded())["changed"], 1);
    assert_eq!(object(&place.run(&resume).succeeded())["changed"], 0);
    place.run(&ONCE).succeeded();
    assert_eq!(place.lines("main.jsonl"), 4, "all of the key waited");
}

#[test]
fn the_only_bus_can_be_paused() {
    let place = Place::migrated();
    let bus = [("OUTBOX_BUS_URL", "file:main.jsonl")];
    let pause = ["destinations", "pause", "file:main.jsonl"];
    place.run_with(&pause, &bus).succeeded();
    place.append(line("acme", "a", "1")).succeeded();
    let said = "kept since their destination is paused: 1 (see `bento-outbox destinations list`)";
    for _ in 0..2 {
        let ran = place.run(&ONCE).succeeded();
        assert!(
            ran.stderr.contains(said),
            "also what was put aside before: {ran:?}"
        );
    }
    assert_eq!(place.lines("main.jsonl"), 0);
    place
        .run(&["destinations", "resume", "file:main.jsonl"])
        .succeeded();
    place.run(&ONCE).succeeded();
    assert_eq!(place.lines("main.jsonl"), 1);
}

#[test]
fn wrong_names_are_refused_in_a_sentence() {
    let place = Place::migrated();
    place
        .run(&["tenants", "pause", "acme", "no name"])
        .failed(2, "tenant \"no name\" is not 1 to 64");
    let long = "x".repeat(600);
    place
        .run(&["destinations", "resume", &long])
        .failed(2, "is not 1 to 512 characters");
    let status = place.status();
    assert_eq!(status["tenants"], json!([]), "all or none");
    assert_eq!(place.run(&["tenants", "pause"]).code, Some(2));
    let older = Place::new();
    older
        .run(&["tenants", "list"])
        .failed(1, "bento-outbox migrate");
}

#[test]
fn the_audit_says_who_changed_what() {
    let place = Place::migrated();
    let nothing = place.run(&["audit"]).succeeded();
    assert_eq!(nothing.stderr, "no operator has changed anything\n");
    place.append(line("acme", "a", "1").repeat(3)).succeeded();
    place.sql("update outbox set status = 'ERR'");
    let id = place.text("select id from outbox where seq = 2");
    let user = [("USER", "anna")];
    place
        .run_with(&["dead", "retry", "--id", &id, "--yes"], &user)
        .succeeded();
    place
        .run_with(&["dead", "discard", "--all", "--yes"], &user)
        .succeeded();
    place
        .run_with(&["dead", "discard", "--all", "--yes"], &user)
        .succeeded();
    let all = acts(&place, &[]);
    let told: Vec<_> = all
        .iter()
        .map(|act| (act["verb"].clone(), act["changed"].clone()))
        .collect();
    assert_eq!(
        told,
        [(json!("discard"), json!(2)), (json!("retry"), json!(1))]
    );
    assert!(
        all[0]["by"].as_str().unwrap().starts_with("cli:anna@"),
        "{all:?}"
    );
    assert_eq!(all[1]["what"], json!({ "ids": [id] }));
    let keys: Vec<&String> = all[0].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 7, "{keys:?}");
    let number = all[0]["number"].to_string();
    assert_eq!(acts(&place, &["--before", &number]).len(), 1);
    assert_eq!(acts(&place, &["--limit", "1"]).len(), 1);
    let lines = place.run(&["audit"]).succeeded().without_secrets().stdout;
    assert!(lines.starts_with("number\tat\tby\tverb\t"), "{lines}");
    assert_eq!(lines.lines().count(), 3);
}

#[test]
fn whoever_changes_something_has_a_name() {
    let place = Place::migrated();
    let by = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        for name in ["USER", "LOGNAME", "USERNAME"] {
            command.env_remove(name);
        }
        Ran::of(command.output().unwrap()).succeeded();
        acts(&place, &["--limit", "1"])[0]["by"].clone()
    };
    let nobody = by(&["tenants", "pause", "acme"]);
    let uid = nobody.as_str().unwrap().strip_prefix("cli:uid-").unwrap();
    let (uid, _) = uid.split_once('@').unwrap();
    assert!(uid.parse::<u32>().is_ok(), "{nobody}");

    place.append(line("globex", "a", "1").repeat(3)).succeeded();
    place.run(&ONCE).succeeded();
    place.append(line("globex", "a", "1").repeat(2)).succeeded();
    place.sql("update outbox set status = 'ERR' where status = 'NEW'");
    let id = place.text("select id from outbox where status = 'ERR'");
    for command in [
        &["tenants", "resume", "acme"][..],
        &["destinations", "pause", "stdout:"],
        &["destinations", "resume", "stdout:"],
        &["dead", "retry", "--id", &id, "--yes"],
        &["dead", "discard", "--all", "--yes"],
        &["replay", "--all", "--yes", "--bus-url", "null:"],
    ] {
        let named = by(&[command, &["--actor", "anna+night@ops"]].concat());
        let named = named.as_str().unwrap();
        assert!(
            named.starts_with("cli:anna+night@ops@"),
            "{command:?}: {named}"
        );
        for wrong in ["", "a b", "anna\n", &"x".repeat(65)] {
            let refused = place.run(&[command, &["--actor", wrong]].concat());
            assert_eq!(refused.code, Some(2), "{refused:?}");
        }
    }
}

#[test]
fn what_is_advised_can_be_pasted_into_a_shell() {
    let place = Place::migrated();
    let settings = "bus_url = \"file:this & that.jsonl\"\n";
    fs::write(place.path().join("my outbox.toml"), settings).unwrap();
    let config = ["--config", "my outbox.toml"];
    let with = |arguments: &[&str]| place.run(&[arguments, &config].concat());
    with(&["destinations", "pause", "file:this & that.jsonl"]).succeeded();
    let id = place.append(line("acme", "a", "1")).succeeded().stdout;
    with(&["run", "--once"]).succeeded();
    let command = |advice: &Value| {
        advice
            .as_str()
            .unwrap()
            .split('`')
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let why = object(&with(&["why", id.trim(), "--json"]).succeeded());
    let advised = command(&why["advice"]);
    let resume =
        "bento-outbox destinations resume 'file:this & that.jsonl' --config 'my outbox.toml'";
    assert_eq!(advised, resume);
    let doctor = object(&with(&["doctor", "--json"]).succeeded());
    let findings = doctor["findings"].as_array().unwrap();
    let of_pauses = findings.iter().find(|finding| finding["about"] == "pauses");
    assert_eq!(command(&of_pauses.unwrap()["advice"]), resume);
    let resumed = place.pasted(&advised).succeeded();
    assert!(resumed.stderr.ends_with(" resumed\n"), "{resumed:?}");
    for finding in findings
        .iter()
        .filter(|finding| finding["advice"].is_string())
    {
        let advice = finding["advice"].as_str().unwrap();
        let commands = advice.split('`').skip(1).step_by(2);
        for command in commands.filter(|text| text.starts_with("bento-outbox ")) {
            assert!(command.ends_with(" --config 'my outbox.toml'"), "{advice}");
        }
    }
}
