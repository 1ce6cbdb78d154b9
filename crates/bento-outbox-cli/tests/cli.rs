//! The program as a process: what it does, what it says where, and how it exits.
#![cfg(all(unix, feature = "sqlite"))]
#![expect(
    clippy::unwrap_used,
    reason = "these are tests, with helpers outside of test functions"
)]

mod admin;
mod api;
mod bench;
mod checkup;
mod dead;
mod demo;
mod incident;
mod operate;
mod pausing;
mod place;
mod relays;
mod routes;
mod schemas;
mod screen;
mod telemetry;
mod trouble;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use serde_json::Value;

use place::{CANARY, Place, Ran, Relay, eventually, into_closed_pipe, signal};

fn event(number: u32) -> String {
    format!(
        r#"{{"type":"order.placed","aggregate_type":"order","aggregate_id":"7","payload":{{ "n" : {number}, "x":1e400 }}}}"#
    ) + "\n"
}

/// So many events that go out in one write for each batch, of which a pipe takes no hundred.
fn large(events: usize) -> String {
    let payload = "x".repeat(1_000);
    format!("{{\"type\":\"note\",\"payload\":\"{payload}\"}}\n").repeat(events)
}

#[test]
fn from_a_line_to_the_bus() {
    let place = Place::new();
    let migrated = place.run(&["migrate"]).succeeded();
    let is_said = migrated.stderr.contains("up to date");
    assert_eq!((migrated.stdout.as_str(), is_said), ("", true));
    assert!(
        place
            .run(&["status"])
            .succeeded()
            .stderr
            .contains("the outbox is empty")
    );

    let lines: String = (0..3).map(event).collect();
    let appended = place.append(&lines).succeeded();
    assert_eq!(appended.stdout.lines().count(), 3);
    assert!(appended.stdout.lines().all(|id| id.len() == 36));
    assert_eq!(appended.stderr, "3 events written\n");
    let status = place.status();
    assert_eq!(status["tenants"][0]["tenant_id"], "default");
    assert_eq!(
        (&status["total"]["new"], &status["total"]["sent"]),
        (&Value::from(3), &Value::from(0))
    );
    assert!(status["total"]["oldest_new_seconds"].is_number());

    let ran = place
        .run(&["run", "--once", "--bus-url", "file:bus.jsonl"])
        .succeeded();
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.starts_with("3 sent in "), "{ran:?}");
    let text = fs::read_to_string(place.path().join("bus.jsonl")).unwrap();
    for (line, (id, number)) in text.lines().zip(appended.stdout.lines().zip(0..)) {
        assert!(line.contains(id), "in order");
        assert!(
            line.contains(&format!(r#""data":{{ "n" : {number}, "x":1e400 }}"#)),
            "byte for byte: {line}"
        );
    }
    let status = place.status();
    assert_eq!(
        (&status["total"]["new"], &status["total"]["sent"]),
        (&Value::from(0), &Value::from(3))
    );
    assert_eq!(status["total"]["oldest_new_seconds"], Value::Null);

    let again = place
        .run(&["run", "--once", "--bus-url", "file:bus.jsonl"])
        .succeeded();
    assert_eq!(again.stderr, "nothing was due\n");
    assert_eq!(place.lines("bus.jsonl"), 3);
    assert_eq!(
        place.run(&["migrate"]).succeeded().stderr,
        "the tables are up to date\n"
    );
}

#[test]
fn what_waits_or_died_does_not_hold_a_run_up() {
    let place = Place::migrated();
    place
        .append(r#"{"type":"a","payload":1,"available_at":"2999-01-01T00:00:00Z"}"#)
        .succeeded();
    let ran = place.run(&["run", "--once"]).succeeded();
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("", "nothing was due, others wait for their time\n")
    );

    assert_eq!(place.run(&["status", "--check"]).code, Some(0));
    place.sql("update outbox set status = 'ERR'");
    assert_eq!(place.run(&["status"]).code, Some(0));
    assert_eq!(place.run(&["status", "--check", "--json"]).code, Some(3));
    assert_eq!(place.run(&["run", "--once"]).code, Some(0));
}

#[test]
fn events_that_are_there_already_are_skipped_and_reported() {
    let place = Place::migrated();
    let with_id = |n: u32| {
        format!(
            "{{\"id\":\"ce974dcd-cdcc-4219-b109-10e01ce65{n:03}\",\"type\":\"a\",\"payload\":1}}\n"
        )
    };
    let first = place
        .append(with_id(1) + &with_id(1) + &with_id(2))
        .succeeded();
    assert_eq!(first.stdout.lines().count(), 2);
    assert!(
        first.stderr.contains("1 event skipped") && first.stderr.contains("line 2: ce974dcd"),
        "{first:?}"
    );
    let many: String = (0..15).map(with_id).chain((0..15).map(with_id)).collect();
    let second = place.append(many).succeeded();
    assert_eq!(second.stdout.lines().count(), 13);
    assert!(
        second.stderr.contains("17 events skipped") && second.stderr.contains("and 7 more"),
        "{second:?}"
    );
    assert_eq!(place.status()["total"]["new"], 15);
    assert_eq!(
        place.append("\n  \n").succeeded().stderr,
        "0 events written\n"
    );
}

#[test]
fn a_bad_line_is_named_and_nothing_of_the_run_is_written() {
    let place = Place::migrated();
    let good = event(1).repeat(1_500);
    for (bad, said) in [
        (format!(r#"{{"payload":"{CANARY}"}}"#), "type is missing"),
        (r#"{"type":"a"}"#.into(), "neither payload nor data"),
        (
            format!(r#"{{"type":"a","payload":"{CANARY}","data":"AA=="}}"#),
            "both payload and data",
        ),
        (format!(r#"{{"type":"a","payload":{CANARY}}}"#), "not JSON"),
        (
            format!(r#"{{"type":"a","payload":{{"x":"{CANARY}""#),
            "does not end",
        ),
        (
            format!(r#"{{"type":"a","payload":1,"extra":"{CANARY}"}}"#),
            "\"extra\" is unknown",
        ),
        (
            format!(r#"{{"type":"a","payload":1,"tenant_id":"{CANARY}/.."}}"#),
            "tenant_id",
        ),
        (
            format!(r#"{{"type":"a","payload":1,"headers":{{"host":"{CANARY}"}}}}"#),
            "header \"host\"",
        ),
        (
            format!(r#"{{"type":"a","data":"{CANARY}"}}"#),
            "data is not base64",
        ),
        (format!(r#"["{CANARY}"]"#), "not a JSON object"),
    ] {
        place
            .append(format!("{good}\n{bad}\n{good}"))
            .failed(1, "line 1502: ")
            .failed(1, said);
    }
    let invalid = [good.as_bytes(), b"\xff\xfe\n"].concat();
    place
        .append(invalid)
        .failed(1, "line 1501: byte 1 is not UTF-8");
    assert_eq!(place.status()["total"]["new"], 0, "nothing is written");
}

#[test]
fn wrong_use_and_wrong_settings_exit_with_2() {
    let place = Place::migrated();
    let database = format!("postgres://bob:{CANARY}@host:port/x");
    let token_url = format!("gopher://{CANARY}@host");
    for (arguments, said) in [
        (
            vec!["status", "--database-url", CANARY],
            "database_url (--database-url) must be a URL",
        ),
        (
            vec!["status", "--database-url", ""],
            "database_url (--database-url) is empty",
        ),
        (
            vec!["status", "--database-url", "oracle://a@b/c"],
            "none of sqlite, postgres, mysql, mariadb",
        ),
        (
            vec!["status", "--database-url", "sqlite://:memory:"],
            "database_url (--database-url) cannot be used",
        ),
        (
            vec!["run", "--bus-url", &token_url],
            "none of stdout, file, null, nats",
        ),
        (
            vec!["run", "--bus-url", "kafka://bob:s3cret@a,b:1?acks=1"],
            match cfg!(feature = "kafka") {
                true => "unknown option \"acks\"",
                false => "`--features full`",
            },
        ),
        (
            vec!["run", "--bus-url", "http://localhost?concurrency=0"],
            "option concurrency",
        ),
        (
            vec!["run", "--bus-url", "memory:"],
            "which only the library has",
        ),
        (
            vec![
                "run",
                "--bus-url",
                "nats://h?strem=x",
                "--database-url",
                "sqlite://none",
            ],
            "strem",
        ),
        (vec!["run", "--bus-url", "file:"], "names no file"),
        (vec!["run", "--bus-url", "stdout:x"], "nothing after it"),
        (
            vec!["run", "--config", "none.toml"],
            "cannot read the settings file none.toml",
        ),
        (
            vec!["demo", "--bus-url", "null:"],
            "demo takes no --bus-url",
        ),
    ] {
        place.run(&arguments).failed(2, said);
    }
    for variable in [
        "OUTBOX_TYPO",
        "OUTBOX_BATCH_SIZE",
        "OUTBOX_DATABASE_URL",
        "OUTBOX_ADMIN_ADDR",
        "OUTBOX_LOG_LEVEL",
    ] {
        place
            .run_with(&["run", "--once"], &[(variable, "no\nvalue")])
            .failed(2, variable);
    }
    place
        .run_with(&["run"], &[("OUTBOX_DEAD_LETTER_TOPIC", "dead")])
        .failed(2, "needs topics, and the bus stdout: has none");
    for arguments in [
        vec!["--nonsense"],
        vec!["nonsense"],
        vec!["demo", "--orders", "-1"],
        vec!["completions", "dos"],
        vec![],
    ] {
        let ran = place.run(&arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    }
    let stray = place.run(&["run", &database]).without_secrets();
    assert_eq!(stray.code, Some(2), "{stray:?}");

    fs::write(
        place.path().join("outbox.toml"),
        format!("database_url = \"postgres://bob:{CANARY}@h/x"),
    )
    .unwrap();
    place
        .run(&["config"])
        .failed(2, "outbox.toml line 1 column");
    fs::write(place.path().join("outbox.toml"), "[[routes]]\ntype = \"a\"").unwrap();
    place
        .run(&["append"])
        .failed(2, "route 1 (outbox.toml line 1) names no topic and no bus");
    fs::write(
        place.path().join("outbox.toml"),
        "[tenants.acme]\nx = \"a\"",
    )
    .unwrap();
    place
        .run(&["append"])
        .failed(2, "[tenants.acme] (outbox.toml line 1) is not supported");
    let config = place.run(&["config"]);
    assert_eq!(config.code, Some(2), "{config:?}");
    assert!(config.stdout.contains("database_url\t"), "{config:?}");
    let said = "error: [tenants.acme] (outbox.toml line 1) is not supported";
    assert!(config.stderr.starts_with(said), "{config:?}");
    fs::remove_file(place.path().join("outbox.toml")).unwrap();
    place.run(&["config"]).succeeded();
    let keys = [("OUTBOX_ENCRYPTION_KEYS", CANARY)];
    let config = place.run_with(&["config"], &keys).without_secrets();
    assert!(
        config.code == Some(2) && config.stderr.starts_with("error: encryption_keys"),
        "{config:?}"
    );
    let odd = OsStr::from_bytes(b"OUTBOX_X\xff");
    let ran = place.command(&["config"]).env(odd, "1").output().unwrap();
    assert_eq!(ran.status.code(), Some(2), "{ran:?}");
    for (name, url) in [
        ("bus_url", "foo:"),
        ("bus_url", "memory:"),
        ("bus_url", "nats://h?nonsense=1"),
        ("database_url", "oracle://h"),
        ("database_url", "postgres://h/shop?sslmod=verify-full"),
        ("database_url", "mysql://h/shop?sslmod=verify_ca"),
        ("alert_url", "nats://h"),
    ] {
        let variable = format!("OUTBOX_{}", name.to_uppercase());
        for command in [&["config"][..], &["run", "--once"]] {
            let ran = place.run_with(command, &[(&variable, url)]);
            assert_eq!(ran.code, Some(2), "{ran:?}");
            assert!(ran.stderr.starts_with(&format!("error: {name}")), "{ran:?}");
        }
    }
    for (wrong, said) in [
        (
            &["replay", "--all", "--rate", "0"][..],
            "a rate is a whole number",
        ),
        (
            &["events", "list", "--status", "late"],
            "a status is NEW, SENT or ERR",
        ),
    ] {
        let ran = place.run(wrong);
        assert!(ran.code == Some(2) && ran.stderr.contains(said), "{ran:?}");
    }
    let nobody = [("OUTBOX_ADMIN_ADDR", "127.0.0.1:1")];
    let health = place.run_with(&["health"], &nobody);
    health.failed(1, "no relay answers at 127.0.0.1:1 (admin_addr)");
}

#[cfg(feature = "postgres")]
#[test]
fn a_broken_postgres_url_keeps_its_password() {
    let database = format!("postgres://bob:{CANARY}@host:port/x");
    Place::new()
        .run(&["status", "--database-url", &database])
        .failed(2, "database_url (--database-url) cannot be used");
}

#[cfg(all(feature = "nats", feature = "rabbitmq", feature = "redis"))]
#[test]
fn a_broken_url_of_a_broker_keeps_its_password() {
    let place = Place::migrated();
    for scheme in ["nats", "amqp", "redis"] {
        for (end, said) in [
            ("localhost?colour=1", "colour"),
            ("host:port", "bus_url (--bus-url)"),
        ] {
            let url = format!("{scheme}://bob:{CANARY}@{end}");
            let refused = place.run(&["run", "--bus-url", &url]).failed(2, said);
            assert_eq!(refused.stderr.matches("bus_url").count(), 1, "{refused:?}");
        }
        let nobody = format!("{scheme}://bob:{CANARY}@127.0.0.1:1");
        let said = format!("{scheme}://bob:***@127.0.0.1:1 takes no events");
        place
            .run(&["run", "--once", "--bus-url", &nobody])
            .failed(1, &said);
    }
}

#[test]
fn the_settings_in_force_are_shown_with_their_origin_and_without_secrets() {
    let place = Place::new();
    fs::write(
        place.path().join("outbox.toml"),
        "batch_size = 7\nmax_retry = 9\n",
    )
    .unwrap();
    let database = format!("postgres://bob:{CANARY}@host/x");
    let variables = [
        ("OUTBOX_MAX_RETRY", "8"),
        ("OUTBOX_ADMIN_TOKEN", CANARY),
        ("OUTBOX_DATABASE_URL", &database),
    ];
    let ran = place
        .run_with(&["config", "--json", "--bus-url", "null:"], &variables)
        .succeeded()
        .without_secrets();
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    for (name, value, origin) in [
        ("batch_size", "7", "file"),
        ("max_retry", "8", "environment"),
        ("bus_url", "null:", "flag"),
        ("table", "outbox", "default"),
        ("admin_token", "***", "environment"),
        ("database_url", "postgres://bob:***@host/x", "environment"),
    ] {
        assert_eq!(
            (&shown[name]["value"], &shown[name]["origin"]),
            (&value.into(), &origin.into()),
            "{name}"
        );
    }
    assert_eq!(shown["dead_letter_topic"]["value"], Value::Null);
    assert_eq!(shown["batch_size"]["from"], "outbox.toml line 1");
    let ran = place
        .run_with(&["config"], &variables)
        .succeeded()
        .without_secrets();
    assert!(
        ran.stdout
            .contains("max_retry\t8\tenvironment variable OUTBOX_MAX_RETRY\n"),
        "{ran:?}"
    );
}

#[test]
fn a_database_that_is_not_ready_is_a_failure_that_says_what_to_do() {
    let place = Place::new();
    for arguments in [
        vec!["status"],
        vec!["run"],
        vec!["run", "--once"],
        vec!["append"],
    ] {
        place
            .run(&arguments)
            .failed(1, "run `bento-outbox migrate`");
        assert!(!place.path().join("outbox.db").exists());
    }
    assert!(
        place
            .run(&["migrate", "--print"])
            .succeeded()
            .stdout
            .contains("create table")
    );
    assert!(
        !place.path().join("outbox.db").exists(),
        "--print changes nothing"
    );

    fs::write(place.path().join("outbox.db"), "").unwrap();
    for arguments in [vec!["status"], vec!["run"], vec!["append"]] {
        place
            .run(&arguments)
            .failed(1, "run `bento-outbox migrate`");
    }
    place.run(&["migrate"]).succeeded();
    place.sql("update outbox_migrations set version = version + 98");
    for arguments in [vec!["status"], vec!["run"], vec!["migrate"]] {
        place.run(&arguments).failed(1, "newer");
    }
    fs::write(
        place.path().join("text.db"),
        "this is no database, ".repeat(100),
    )
    .unwrap();
    place
        .run(&["status", "--database-url", "sqlite://text.db"])
        .failed(1, "not a database");
}

#[test]
fn a_database_that_takes_nothing_is_a_failure() {
    let place = Place::migrated();
    let mut command = place.command(&["append", "--database-url", "sqlite://outbox.db?mode=ro"]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(event(1).as_bytes()).unwrap();
    drop(writer);
    Ran::of(command.stdin(reader).output().unwrap()).failed(1, "readonly");
    place
        .run(&["migrate", "--database-url", "sqlite:///proc/none/outbox.db"])
        .failed(1, "unable to open");
}

#[test]
fn a_bus_that_is_not_there_costs_nothing() {
    let place = Place::migrated();
    place.append(event(1)).succeeded();
    place
        .run(&["run", "--once", "--bus-url", "file:no/such/folder/x"])
        .failed(1, "takes no events");
    let status = place.status();
    assert_eq!(
        (&status["total"]["new"], &status["total"]["retrying"]),
        (&Value::from(1), &Value::from(0))
    );
}

#[test]
fn ctrl_c_stops_the_relay() {
    let place = Place::migrated();
    let relay = Relay::start(&place, &["run", "--bus-url", "null:"]);
    place.append(event(1)).succeeded();
    eventually(|| place.status()["total"]["sent"] == 1);
    relay.told("-INT").succeeded();
}

#[test]
fn a_second_signal_ends_a_stuck_relay_at_once() {
    let place = Place::migrated();
    place.append(large(1_000)).succeeded();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let log = File::create(place.path().join("log")).unwrap();
    let mut relay = place
        .command(&["run"])
        .stdout(writer)
        .stderr(log)
        .spawn()
        .unwrap();
    // Nobody reads more than that it has begun to write: the rest of the batch does not fit into the pipe.
    reader.read_exact(&mut [0]).unwrap();
    signal(&relay, "-TERM");
    eventually(|| place.told("log", "a second signal ends it at once") == 1);
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        relay.try_wait().unwrap().is_none(),
        "it finishes its batch first"
    );
    signal(&relay, "-TERM");
    assert_eq!(relay.wait().unwrap().code(), Some(143));
    drop(reader);
    assert_eq!(
        place.status()["total"]["new"],
        1_000,
        "nothing counts as sent"
    );
}

#[test]
fn json_logs_are_json() {
    let place = Place::migrated();
    let variables = [("OUTBOX_LOG_FORMAT", "json"), ("OUTBOX_LOG_LEVEL", "info")];
    let ran = place.run_with(&["run", "--once"], &variables).succeeded();
    let line: Value = serde_json::from_str(ran.stderr.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["level"], &line["message"]),
        (&"INFO".into(), &"partitions leased".into()),
        "{ran:?}"
    );
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let place = Place::migrated();
    place.append(event(1)).succeeded();
    for arguments in [
        vec!["status", "--json"],
        vec!["config"],
        vec!["config", "--json"],
        vec!["completions", "bash"],
        vec!["migrate", "--print"],
        vec!["demo", "--orders", "200"],
        vec!["--help"],
    ] {
        let ran = into_closed_pipe(&place, &arguments);
        assert_eq!(
            (ran.code, ran.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
    // Standard output is the bus here: nothing was published, and that must not go unnoticed.
    for arguments in [vec!["run"], vec!["run", "--once"]] {
        let ran = into_closed_pipe(&place, &arguments);
        assert!(ran.stderr.contains("standard output was closed"), "{ran:?}");
        assert_eq!(ran.code, Some(1), "{ran:?}");
    }
    assert_eq!(place.status()["total"]["new"], 1);
}
