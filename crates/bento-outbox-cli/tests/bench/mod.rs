//! The benchmark as a process: what it reports, and that it leaves nothing behind however it ends.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::place::{Place, Ran, eventually, signal};

/// As little as can be measured.
const SMALL: [&str; 11] = [
    "bench",
    "--rounds",
    "2",
    "--events",
    "40",
    "--transactions",
    "8",
    "--trap-rows",
    "20",
    "--batch",
    "15",
];

/// So much that it does not end before it is interrupted.
const LONG: [&str; 7] = [
    "bench", "--rounds", "100", "--only", "drain", "--events", "5000",
];

/// A place with tables and one event that nobody has sent.
fn place() -> Place {
    let place = Place::migrated();
    place
        .append(r#"{"type":"order.placed","payload":1}"#)
        .succeeded();
    place
}

/// The names of everything in the database, and how many events wait in the user's own table.
fn everything(place: &Place) -> (Vec<String>, Value) {
    let names =
        "select group_concat(name, ' ') from (select name from sqlite_schema order by name)";
    let names = place.text(names);
    let names = names.split(' ').map(str::to_string).collect();
    (names, place.status()["total"]["new"].clone())
}

fn has_own_tables(place: &Place) -> bool {
    let count = "select cast(count(*) as text) from sqlite_schema where name like 'outbox_bench%'";
    place.text(count) != "0"
}

fn arguments<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

/// The names of the figures, each of which has a value and as many rounds as were asked for.
fn figures(report: &Value) -> Vec<&str> {
    let figures = report["figures"].as_array().unwrap();
    let name = |figure: &'_ Value| -> bool {
        assert_eq!(figure["rounds"].as_array().unwrap().len(), 2, "{figure}");
        assert!(figure["value"].is_number(), "{figure}");
        let is_rate = figure["unit"] != "ms";
        assert!(!is_rate || figure["value"].as_f64() > Some(0.0), "{figure}");
        for ratio in figure["ratios"].as_array().unwrap() {
            let part = |name: &str| ratio[name].as_f64().unwrap();
            assert!(ratio["against"].is_string());
            assert!(part("min") <= part("median") && part("median") <= part("max"));
            assert!(ratio["goal"].is_string() || ratio["goal"].is_null());
        }
        true
    };
    assert!(figures.iter().all(name));
    figures
        .iter()
        .map(|figure| figure["name"].as_str().unwrap())
        .collect()
}

#[test]
fn it_measures_everything_and_leaves_nothing_behind() {
    let place = place();
    let before = everything(&place);
    let ran = place
        .run(&arguments(
            &SMALL,
            &["--json", "--bus-url", "file:bus.jsonl"],
        ))
        .succeeded();
    assert_eq!(ran.stdout.lines().count(), 1, "one object");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        figures(&report),
        [
            "write_plain",
            "write_without_event",
            "write_one_event",
            "write_at_once",
            "drain_cursor",
            "drain_raw",
            "drain_deleting",
            "drain_keeping",
            "latency_bus",
            "latency_at_once",
            "latency_projector",
            "trap_cursor",
            "trap_fresh",
            "trap_delayed",
            "trap_sent",
            "trap_idle_tenants",
            "trap_new_tables",
            "trap_one_transaction",
            "trap_no_flood",
            "trap_flood",
        ]
    );
    assert_eq!(report["skipped"][0]["name"], "trap_vacuum_held_back");
    assert_eq!(report["bus"], "file:bus.jsonl");
    assert_eq!(report["database"], "sqlite://outbox.db");
    assert!(report["server"].as_str().unwrap().starts_with("SQLite 3."));
    assert!(report["machine"]["cpus"].is_number());
    let sizes = &report["sizes"];
    assert_eq!(
        (&sizes["events"], &sizes["batch"], &sizes["trap_rows"]),
        (&40.into(), &15.into(), &20.into())
    );
    let figure = |name: &str| {
        let figures = report["figures"].as_array().unwrap();
        figures
            .iter()
            .find(|figure| figure["name"] == name)
            .unwrap()
    };
    let against = |name: &str| -> Vec<(&str, Option<&str>)> {
        let ratios = figure(name)["ratios"].as_array().unwrap();
        ratios
            .iter()
            .map(|ratio| (ratio["against"].as_str().unwrap(), ratio["goal"].as_str()))
            .collect()
    };
    assert_eq!(
        against("write_one_event"),
        [
            ("write_without_event", Some("≥ 0.85")),
            ("write_plain", None)
        ]
    );
    assert_eq!(
        against("drain_deleting"),
        [
            ("drain_cursor", None),
            ("drain_raw", Some("≥ 0.70, RabbitMQ ≥ 0.90"))
        ]
    );
    assert_eq!(against("latency_at_once"), [("latency_bus", Some("≤ 1.5"))]);
    assert_eq!(
        against("trap_sent"),
        [("trap_fresh", Some("≥ 0.80")), ("trap_cursor", None)]
    );
    assert_eq!(figure("latency_projector")["goal"], "≤ 10 ms");
    assert_eq!(
        (&figure("trap_sent")["rows"], &figure("trap_flood")["rows"]),
        (&20.into(), &2.into())
    );
    assert!(figure("trap_flood")["p99"].as_f64() > Some(0.0));

    assert_eq!(everything(&place), before);
    assert!(ran.stderr.contains(" tables outbox_bench_"), "{ran:?}");
    let files = fs::read_dir(place.path()).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let strange: Vec<String> = files
        .filter(|name| !name.starts_with("outbox.db"))
        .collect();
    assert_eq!(
        strange, [""; 0],
        "the events are gone, and the user's file was never there"
    );
}

#[test]
fn a_part_of_it_is_measured_where_only_that_is_asked_for() {
    let place = place();
    let arguments = arguments(&SMALL, &["--bus-url", "null:", "--only", "drain,latency"]);
    let ran = place.run(&arguments).succeeded();
    let lines: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(
        lines[0],
        ["measured", "median", "against", "ratio", "goal", "note"]
    );
    assert!(lines.iter().all(|line| line.len() == 6), "{ran:?}");
    let measured: Vec<&str> = lines[1..].iter().map(|line| line[0]).collect();
    assert_eq!(
        measured,
        [
            "plain cursor",
            "drain, retention 0",
            "drain, sent events kept",
            "round trip to the bus",
            "commit to acknowledged, at once",
            "commit to acknowledged, projector"
        ]
    );
    assert_eq!(lines[2][4], "≥ 0.45");
    assert!(!has_own_tables(&place));
}

#[test]
fn a_database_without_an_outbox_will_do() {
    let place = Place::new();
    fs::write(place.path().join("empty.db"), "").unwrap();
    let more = [
        "--only",
        "latency",
        "--bus-url",
        "null:",
        "--database-url",
        "sqlite://empty.db",
    ];
    let ran = place.run(&arguments(&SMALL, &more)).succeeded();
    assert!(ran.stdout.contains("commit to acknowledged"), "{ran:?}");
    place
        .run(&["status", "--database-url", "sqlite://empty.db"])
        .failed(1, "run `bento-outbox migrate`");
}

#[test]
fn ctrl_c_ends_it_and_drops_its_tables() {
    let place = place();
    let before = everything(&place);
    for name in ["-INT", "-TERM"] {
        let mut command = place.command(&arguments(&LONG, &["--bus-url", "file:bus.jsonl"]));
        let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let bench = bench.spawn().unwrap();
        eventually(|| is_under_way(place.path(), "bus.jsonl.outbox_bench"));
        assert!(has_own_tables(&place));
        signal(&bench, name);
        let ran = Ran::of(bench.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        let said: Vec<&str> = ran.stderr.lines().rev().take(2).collect();
        assert_eq!(said[0], "error: stopped before the end", "{ran:?}");
        assert!(said[1].starts_with("dropped: the "), "{ran:?}");
        assert_eq!(everything(&place), before);
        assert_eq!(
            fs::read_dir(place.path()).unwrap().count(),
            files_of_sqlite(&place)
        );
    }
}

/// Whether events were published to the benchmark's own file in a folder.
fn is_under_way(folder: &Path, file: &str) -> bool {
    let files = fs::read_dir(folder).unwrap().flatten();
    let mut own = files.filter(|own| own.file_name().to_string_lossy().starts_with(file));
    own.any(|own| own.metadata().is_ok_and(|own| own.len() > 10_000))
}

/// How many files the database itself has.
fn files_of_sqlite(place: &Place) -> usize {
    let files = fs::read_dir(place.path()).unwrap();
    let names = files.map(|file| file.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("outbox.db"))
        .count()
}

#[test]
fn a_bus_that_fails_half_way_ends_it_and_its_tables_are_dropped() {
    let place = place();
    let before = everything(&place);
    fs::create_dir(place.path().join("bus")).unwrap();
    let mut command = place.command(&arguments(&LONG, &["--bus-url", "file:bus/events"]));
    let bench = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let bench = bench.spawn().unwrap();
    eventually(|| is_under_way(&place.path().join("bus"), "events.outbox_bench"));
    // In one step: the benchmark would put its file back into a folder that is being emptied.
    fs::rename(place.path().join("bus"), place.path().join("gone")).unwrap();
    let ran = Ran::of(bench.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(
        ran.stderr.contains("dropped: the ")
            && ran.stderr.contains("error: the bus did not take an event"),
        "{ran:?}"
    );
    assert_eq!(everything(&place), before);
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_made() {
    let place = place();
    for (more, said) in [
        (
            vec![],
            "bus_url (default) is stdout:, where the report goes",
        ),
        (vec!["--bus-url", "stdout:"], "is stdout:"),
        (vec!["--bus-url", "file:"], "names no file"),
        (
            vec!["--bus-url", "null:", "--event-type", "a b"],
            "--event-type: ",
        ),
        (vec!["--bus-url", "gopher://x"], "none of stdout"),
    ] {
        place.run(&arguments(&["bench"], &more)).failed(2, said);
    }
    for flags in [
        ["--only", "everything"],
        ["--only", ""],
        ["--rounds", "0"],
        ["--events", "0"],
        ["--batch", "10001"],
        ["--transactions", "-1"],
        ["--writers", "9"],
        ["--trap-rows", "5"],
        ["--full", "--trap-rows=50"],
        ["--nonsense", "1"],
    ] {
        let ran = place.run(&arguments(&["bench", "--bus-url", "null:"], &flags));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    }
    place
        .run(&["bench", "--bus-url", "file:no/such/folder/x"])
        .failed(1, "takes no events");
    place
        .run(&[
            "bench",
            "--bus-url",
            "null:",
            "--database-url",
            "sqlite://none.db",
        ])
        .failed(1, "run `bento-outbox migrate`");
    assert!(!has_own_tables(&place));
    assert!(!place.path().join("none.db").exists());
}
