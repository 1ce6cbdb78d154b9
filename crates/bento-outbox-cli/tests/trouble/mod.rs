//! What the machine around the program refuses it: room, a server, a reader.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::event;
use crate::place::{CANARY, Place, Ran, Relay, eventually};

/// Runs the program where no file may grow beyond so many KiB, as on a disk that is full then.
fn run_in_room(place: &Place, kib: usize, arguments: &[&str], input: Stdio) -> Ran {
    let program = place.command(arguments);
    // Ignored, the signal leaves the write with an error. The shell counts in blocks of 512 bytes.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
    let mut command = Command::new("sh");
    command
        .args(["-c", &limit])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(place.path())
        .stdin(input);
    for (name, _) in program.get_envs() {
        command.env_remove(name);
    }
    Ran::of(command.output().unwrap())
}

#[test]
fn a_disk_too_full_for_the_events_keeps_none_of_them() {
    let place = Place::migrated();
    let lines = place.path().join("lines");
    fs::write(&lines, event(1).repeat(5_000)).unwrap();
    let append = |kib| {
        let input = File::open(&lines).unwrap().into();
        run_in_room(&place, kib, &["append"], input)
    };
    append(256).failed(1, "nothing is written");
    assert_eq!(place.status()["total"]["new"], 0);
    append(64 << 10).succeeded();
    assert_eq!(place.status()["total"]["new"], 5_000);
}

#[test]
fn a_disk_too_full_for_the_bus_loses_nothing_and_tears_no_line() {
    let place = Place::migrated();
    place.append(event(1).repeat(1_000)).succeeded();
    let file = place.path().join("bus.jsonl");
    // The database writes in the same room: the file of the bus comes to its end first.
    fs::write(&file, "filled\n".repeat((8 << 20) / 7 - 20_000)).unwrap();
    let arguments = ["run", "--once", "--bus-url", "file:bus.jsonl"];
    let before = place.lines("bus.jsonl");
    run_in_room(&place, 8 << 10, &arguments, Stdio::null()).failed(1, "writing to bus.jsonl");
    let sent = place.lines("bus.jsonl") - before;
    assert!((1..1_000).contains(&sent), "{sent} sent");
    assert_eq!(place.status()["total"]["sent"], sent);
    assert!(fs::read_to_string(&file).unwrap().ends_with("}\n"));
    place.run(&arguments).succeeded();
    assert_eq!(place.lines("bus.jsonl") - before, 1_000);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_no_success() {
    let place = Place::migrated();
    let full = |arguments: &[&str]| {
        let (mut command, stdout) = (place.command(arguments), File::create("/dev/full"));
        command.stdin(File::open(place.path().join("line")).unwrap());
        Ran::of(command.stdout(stdout.unwrap()).output().unwrap())
    };
    fs::write(place.path().join("line"), event(1)).unwrap();
    full(&["append"]).failed(1, "1 event written, but the ids could not be shown");
    full(&["run", "--once"]).failed(1, "No space left on device");
    assert_eq!(place.status()["total"]["new"], 1, "nothing counts as sent");
    for arguments in [
        vec!["status"],
        vec!["config"],
        vec!["demo", "--orders", "1"],
    ] {
        full(&arguments).failed(1, "cannot write to standard output");
    }
}

#[test]
fn a_bus_that_is_away_is_told_of_once() {
    for events in [0, 3] {
        let place = Place::migrated();
        place.append(event(1).repeat(events)).succeeded();
        let log = place.path().join("log");
        let off = [("OUTBOX_ADMIN_ADDR", "off")];
        let relay = Relay::logging(
            &place,
            &["run", "--bus-url", "file:no/such/bus"],
            &off,
            &log,
        );
        let warnings = || fs::read_to_string(&log).unwrap().matches(" WARN ").count();
        eventually(|| warnings() > 0);
        relay.told("-TERM").succeeded();
        assert_eq!(warnings(), 1, "{}", fs::read_to_string(&log).unwrap());
    }
}

#[cfg(feature = "postgres")]
#[test]
fn a_postgres_that_is_down_is_named_soon() {
    is_named_soon("postgres", "PostgreSQL at 127.0.0.1:1");
}

#[cfg(feature = "mysql")]
#[test]
fn a_mysql_that_is_down_is_named_soon() {
    is_named_soon("mysql", "MySQL at 127.0.0.1:1");
}

#[cfg(feature = "mysql")]
#[test]
fn a_broken_mysql_url_keeps_its_password() {
    for (end, said) in [
        ("host:port/x", "database_url (--database-url)"),
        ("host", "names no database"),
    ] {
        let database = format!("mariadb://bob:{CANARY}@{end}");
        Place::new()
            .run(&["status", "--database-url", &database])
            .failed(2, said);
    }
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
fn is_named_soon(scheme: &str, name: &str) {
    let place = Place::new();
    let url = format!("{scheme}://bob:{CANARY}@127.0.0.1:1/shop");
    for command in ["migrate", "append", "run", "status"] {
        let begun = Instant::now();
        let ran = place.run(&["--database-url", &url, command]);
        // Not what a pool says that has tried for its ten seconds.
        ran.failed(1, name).failed(1, "Connection refused");
        assert!(begun.elapsed() < Duration::from_secs(30), "{command}");
    }
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let place = Place::migrated();
    let folder: PathBuf = place.path().join("folder.db");
    fs::create_dir(folder).unwrap();
    for command in ["migrate", "status"] {
        place
            .run(&[command, "--database-url", "sqlite://folder.db"])
            .failed(1, "opening folder.db failed");
    }
}
