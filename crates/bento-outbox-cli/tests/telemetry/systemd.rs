//! What systemd is told: a real socket in the place of its own.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::event;
use crate::place::{Place, Relay, eventually};

/// systemd's end of `NOTIFY_SOCKET`.
struct Systemd {
    socket: UnixDatagram,
    path: String,
}

impl Systemd {
    fn at(place: &Place) -> Self {
        let path = place.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        Self {
            socket,
            path: path.display().to_string(),
        }
    }

    /// What was told within so much time.
    fn told_within(&self, time: Duration) -> Vec<String> {
        let (end, mut told) = (Instant::now() + time, Vec::new());
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            if let Ok(length) = self.socket.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                told.extend(text.lines().map(str::to_string));
            }
        }
        told
    }

    /// Waits for a line that begins so; answers all that was told until then.
    fn until(&self, beginning: &str) -> Vec<String> {
        self.until_so(|told| told.iter().any(|line| line.starts_with(beginning)))
    }

    /// Waits for two pings; answers all that was told in that time, which is so long at least.
    fn goes_round_for(&self, time: Duration) -> Vec<String> {
        let before = self.told_within(time);
        let after = self.until_so(|told| pings(&before) + pings(told) >= 2);
        [before, after].concat()
    }

    fn until_so(&self, is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut told = Vec::new();
        eventually(|| {
            told.extend(self.told_within(Duration::from_millis(50)));
            is_so(&told)
        });
        told
    }
}

fn pings(told: &[String]) -> usize {
    told.iter().filter(|line| *line == "WATCHDOG=1").count()
}

#[test]
fn ready_is_said_when_events_can_be_carried_and_the_end_is_announced() {
    let place = Place::migrated();
    let systemd = Systemd::at(&place);
    let variables = [
        ("NOTIFY_SOCKET", systemd.path.as_str()),
        ("WATCHDOG_USEC", "2000000"),
        ("OUTBOX_ADMIN_ADDR", "off"),
    ];
    let relay = Relay::start_with(
        &place,
        &["run", "--bus-url", "file:later/bus.jsonl"],
        &variables,
    );
    let is_ready = |told: &[String]| told.iter().any(|line| line == "READY=1");
    let told = systemd.until("STATUS=nothing goes out: opening later/bus.jsonl");
    assert!(!is_ready(&told), "{told:?}");
    // It goes round all the same.
    let told = systemd.goes_round_for(Duration::from_secs(2));
    assert!(!is_ready(&told), "{told:?}");

    fs::create_dir(place.path().join("later")).unwrap();
    systemd.until("READY=1");
    place.append(event(1)).succeeded();
    eventually(|| place.lines("later/bus.jsonl") == 1);
    let told = systemd.goes_round_for(Duration::from_secs(2));
    assert!(!is_ready(&told), "said once: {told:?}");

    // The bus goes away: the status says so, and the relay is no less alive.
    fs::rename(place.path().join("later"), place.path().join("gone")).unwrap();
    fs::write(place.path().join("later"), "").unwrap();
    place.append(event(2)).succeeded();
    let told = systemd.until("STATUS=nothing goes out");
    assert!(
        !told.iter().any(|line| line.contains("STOPPING")),
        "{told:?}"
    );
    fs::remove_file(place.path().join("later")).unwrap();
    fs::rename(place.path().join("gone"), place.path().join("later")).unwrap();
    systemd.until("STATUS=carrying events");

    relay.told("-TERM").succeeded();
    let told = systemd.told_within(Duration::from_millis(300));
    assert!(told.iter().any(|line| line == "STOPPING=1"), "{told:?}");
}

#[test]
fn a_relay_that_stands_still_is_silent() {
    let place = Place::migrated();
    let systemd = Systemd::at(&place);
    let variables = [
        ("NOTIFY_SOCKET", systemd.path.as_str()),
        ("WATCHDOG_USEC", "1000000"),
        ("OUTBOX_ADMIN_ADDR", "off"),
        ("OUTBOX_LEASE_TTL", "1s"),
        ("OUTBOX_POLL_INTERVAL_IDLE", "0.1"),
    ];
    let _relay = Relay::start_with(&place, &["run", "--bus-url", "null:"], &variables);
    systemd.until("READY=1");
    systemd.goes_round_for(Duration::from_secs(1));
    // Somebody holds the database for longer than the watchdog has patience: the round hangs in it.
    place.locked(|| {
        std::thread::sleep(Duration::from_secs(3));
        systemd.told_within(Duration::from_millis(50));
        let told = systemd.told_within(Duration::from_millis(1_500));
        assert_eq!(pings(&told), 0, "{told:?}");
    });
    systemd.until("WATCHDOG=1");
}

#[test]
fn a_socket_that_nobody_reads_is_no_reason_to_stop() {
    let place = Place::migrated();
    let variables = [
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("OUTBOX_ADMIN_ADDR", "off"),
    ];
    let relay = Relay::start_with(&place, &["run", "--bus-url", "null:"], &variables);
    place.append(event(1)).succeeded();
    eventually(|| place.status()["total"]["sent"] == 1);
    let log = relay.told("-TERM").succeeded().stderr;
    assert_eq!(log.matches("systemd cannot be told").count(), 1, "{log}");
}
