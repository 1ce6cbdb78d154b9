//! A night on call. The bus refuses one type, its disk fills, a tenant floods, a relay dies: each is noticed by
//! the alerts of `deploy/` in a real Prometheus, understood by `doctor`, `status` and `why`, and repaired by
//! what the page "When things go wrong" says.

mod jetstream;
mod prometheus;

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::jetstream::JetStream;
use self::prometheus::Prometheus;
use crate::place::{Place, Ran, Relay};
use crate::telemetry::free_port;

/// So long anything may take to be noticed or to be over: the slowest alert looks back fifteen seconds here, and
/// one answer that is missed on a busy machine makes all of them look anew.
const PATIENCE: Duration = Duration::from_secs(180);

/// More than the stream takes of one message, until somebody changes it.
const LARGE: usize = 4_000;

fn line(tenant: &str, event_type: &str, bytes: usize) -> String {
    let payload = "x".repeat(bytes);
    format!(r#"{{"tenant_id":"{tenant}","type":"{event_type}","payload":"{payload}"}}"#) + "\n"
}

struct Night {
    place: Place,
    bus: JetStream,
    prometheus: Prometheus,
    /// None while it is dead.
    relays: [Option<Relay>; 2],
    ports: [u16; 2],
    committed: u64,
}

impl Night {
    fn new() -> Self {
        let (place, bus) = (Place::migrated(), JetStream::start());
        let ports = [free_port(), free_port()];
        // The operator's shell is on the machine of the first relay. What is refused waits for a second, which is
        // long enough to be seen once it is written, on a slow disk as well.
        let settings = format!(
            "bus_url = \"{}\"\nadmin_addr = \"127.0.0.1:{}\"\nbatch_size = 50\nretry_multiplier = 1\n",
            bus.url(),
            ports[0]
        );
        fs::write(place.path().join("outbox.toml"), settings).unwrap();
        let mut night = Self {
            prometheus: Prometheus::start(&ports),
            place,
            bus,
            relays: [None, None],
            ports,
            committed: 0,
        };
        night.start(0);
        night.start(1);
        night
    }

    fn start(&mut self, number: usize) {
        let address = format!("127.0.0.1:{}", self.ports[number]);
        let log = self.place.path().join(format!("relay-{number}.log"));
        let variables = [("OUTBOX_ADMIN_ADDR", address.as_str())];
        let relay = Relay::logging(&self.place, &["run"], &variables, &log);
        self.relays[number] = Some(relay);
    }

    /// Commits events; says their ids.
    fn write(&mut self, tenant: &str, event_type: &str, bytes: usize, count: usize) -> Vec<String> {
        self.commit(&line(tenant, event_type, bytes).repeat(count))
    }

    /// Commits the events of these lines together.
    fn commit(&mut self, lines: &str) -> Vec<String> {
        let ids = self.place.append(lines).succeeded().stdout;
        let ids: Vec<String> = ids.lines().map(str::to_string).collect();
        self.committed += ids.len() as u64;
        ids
    }

    /// What a person at a shell does, by nothing but what the page tells.
    fn operator(&self, arguments: &[&str]) -> Ran {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/trouble.md");
        let page = fs::read_to_string(page).unwrap();
        let known = |command: &str| page.contains(&format!("bento-outbox {command}"));
        let words = arguments.iter().take(2).copied().collect::<Vec<_>>();
        let is_told = known(&words.join(" ")) || known(arguments[0]);
        assert!(is_told, "no page tells of {arguments:?}");
        for flag in arguments.iter().filter(|word| word.starts_with("--")) {
            assert!(page.contains(flag), "the page does not tell of {flag}");
        }
        self.place.run(arguments)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.operator(arguments).code;
        assert!(ran.is_some(), "{arguments:?}");
        let ran = self.place.run(&[arguments, &["--json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"))
    }

    #[track_caller]
    fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: not yet; firing: {:?}; {:?}",
                self.prometheus.firing(),
                self.place.run(&["status"]),
            );
            sleep(Duration::from_millis(200));
        }
    }

    #[track_caller]
    fn until_fires(&self, alert: &str) {
        self.until(alert, |night| night.prometheus.firing().contains(alert));
    }

    fn total(&self, what: &str) -> u64 {
        self.place.status()["total"][what].as_u64().unwrap()
    }

    fn is_out(&self) -> bool {
        self.total("new") + self.total("retrying") == 0
    }

    /// What the doctor finds broken or doubtful about the bus.
    fn diagnosis_of_the_bus(&self) -> String {
        let report = self.json(&["doctor"]);
        let findings = report["findings"].as_array().unwrap();
        let of_it = |finding: &&Value| finding["about"] == "bus" && finding["state"] != "ok";
        findings
            .iter()
            .filter(of_it)
            .map(Value::to_string)
            .collect()
    }
}

#[test]
fn a_night_on_call() {
    let mut night = Night::new();
    night.until("both relays are scraped", |night| {
        night.prometheus.ask("count(up == 1)").contains("=> 2 ")
    });
    night.write("acme", "order.placed", 10, 20);
    night.until("all is out", Night::is_out);
    night.until("no alert fires", |night| {
        night.prometheus.firing().is_empty()
    });

    // The bus refuses one type.
    let refused = night.write("acme", "invoice.drawn", LARGE, 3);
    night.write("acme", "order.placed", 10, 20);
    night.until_fires("OutboxDeadLetters");
    night.until("the others go on", Night::is_out);
    let dead = night.operator(&["dead", "list"]).succeeded();
    assert_eq!(
        dead.stdout.matches("\tinvoice.drawn\t").count(),
        3,
        "{dead:?}"
    );
    let why = night.json(&["why", &refused[0]]);
    assert_eq!(why["because"], "dead", "{why}");
    let reason = why["reason"].as_str().unwrap();
    assert!(reason.contains("message size exceeds"), "{why}");

    // The disk of the bus fills.
    night.bus.fill();
    let waiting = night.write("acme", "order.placed", 10, 20);
    night.until_fires("OutboxBusDown");
    night.until("the relay of this machine is not ready", |night| {
        night.operator(&["health"]).code == Some(1)
    });
    night.until("the doctor says what is wrong with the bus", |night| {
        let said = night.diagnosis_of_the_bus();
        said.contains("maximum bytes exceeded")
    });
    // The relay tries some of them, to see whether the bus is back, and between two tries they wait.
    let mut tried = Value::Null;
    night.until("one of them waits to be tried again", |night| {
        let mut whys = waiting.iter().map(|id| night.json(&["why", id]));
        let found = whys.find(|why| why["because"] == "retrying");
        tried = found.unwrap_or_default();
        !tried.is_null()
    });
    let reason = tried["reason"].as_str().unwrap();
    assert!(reason.contains("maximum bytes exceeded"), "{tried}");
    assert_eq!(tried["attempts"], 0, "no attempt is lost: {tried}");

    // A tenant floods.
    let begun = Instant::now();
    let grows =
        "ALERTS{alertname=\"OutboxBacklogGrows\", alertstate=\"firing\", tenant_id=\"flood\"}";
    while !night.prometheus.ask(grows).contains("=> ") {
        assert!(begun.elapsed() < PATIENCE, "a flood is not noticed");
        night.write("flood", "order.placed", 10, 200);
        sleep(Duration::from_millis(500));
    }
    let status = night.json(&["status"]);
    let tenants = status["tenants"].as_array().unwrap();
    let most = tenants.iter().max_by_key(|tenant| tenant["new"].as_u64());
    assert_eq!(most.unwrap()["tenant_id"], "flood", "{status}");

    // A relay dies.
    night.relays[1].take().unwrap().told("-KILL");
    night.until_fires("OutboxRelayDown");
    night.until("the doctor knows of one relay", |night| {
        night.operator(&["doctor"]).stdout.contains("1 relay for")
    });

    // Its disk has room again, and it takes large messages: what waits goes out by itself.
    night.bus.make_room();
    night.until("what waited is out", Night::is_out);
    // Whoever is behind a flood has their turn. Both are there at once: the flood alone could be out before.
    night.commit(
        &(line("flood", "order.placed", 10).repeat(1_000) + &line("quiet", "order.quiet", 10)),
    );
    night.until("the flood is out", Night::is_out);
    let (quiet, last) = night.bus.place_of("order.quiet");
    assert!(quiet + 200 < last, "{quiet} of {last} behind the flood");
    let retry = ["dead", "retry", "--type", "invoice.drawn"];
    let dry = night.operator(&[&retry[..], &["--dry-run"]].concat());
    let dry = dry.succeeded();
    assert!(format!("{dry:?}").contains('3'), "{dry:?}");
    assert_eq!(night.total("dead"), 3);
    night
        .operator(&[&retry[..], &["--yes"]].concat())
        .succeeded();
    night.until("nothing waits or is dead", |night| {
        night.is_out() && night.total("dead") == 0
    });
    night.start(1);
    night.until("no alert is left", |night| {
        night.prometheus.firing().is_empty()
    });
    for command in ["doctor", "health"] {
        night.until(command, |night| night.operator(&[command]).code == Some(0));
    }
    assert_eq!(night.bus.messages(), night.committed, "each event once");
}
