//! The HTTP API of a running relay: held to its document by Schemathesis, and its door.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::admin::Asked;
use crate::event;
use crate::place::{Place, eventually};

const TOKEN: &str = "s3cret-enough-for-a-test";

/// The id that the document gives as its example.
const EXAMPLE: &str = "0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001";

/// What no event of a decent program has, and the table takes.
pub(crate) const HOSTILE: &str = "<script>document.title='taken'</script>";

/// A relay with events of each kind behind it: sent, dead and delayed, of three tenants.
pub(crate) fn full(more: &[(&str, &str)]) -> Asked {
    let place = Place::migrated();
    let letters: String = (0..8)
        .map(|number| {
            let id = match number {
                0 => EXAMPLE.into(),
                _ => format!("0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6b{number:03}"),
            };
            format!(
                r#"{{"id":"{id}","type":"order.placed","tenant_id":"acme","aggregate_type":"order","aggregate_id":"{number}","payload":{{"n":1e400,"text":"{HOSTILE}"}}}}"#
            ) + "\n"
        })
        .collect();
    place.append(letters).succeeded();
    place.sql(
        "update outbox set status = 'ERR', retry_cnt = 5, \
         error_message = 'refused: <script>document.title=''taken''</script>'",
    );
    // Another program writes what the table takes.
    place.sql(
        "insert into outbox (id, type, tenant_id, aggregate_type, aggregate_id, schema_id, headers, payload, status, \
         error_message) values ('0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6c000', 'order.placed', 'globex', \
         '<i>kind</i>', '\"><img src=x onerror=\"document.title=''taken''\">', '<b>schema</b>', \
         '{\"a\":\"</style><script>document.title=''taken''</script>\"}', '1', 'ERR', '<b>bold</b>')",
    );
    let sent: String = (0..20).map(event).collect();
    let later = r#"{"type":"stock.counted","tenant_id":"globex","data":"AP8=","content_type":"application/octet-stream","available_at":"2999-01-01T00:00:00Z"}"#;
    place.append(sent + later).succeeded();
    let asked = Asked::at(place, "null:", more);
    eventually(|| asked.place.status()["total"]["sent"] == 20);
    asked
}

#[test]
fn the_api_keeps_to_its_document_whatever_it_is_asked() {
    let asked = full(&[("OUTBOX_ADMIN_TOKEN", TOKEN)]);
    let folder = in_wheel("schemathesis-4.32.5");
    let report = asked.place.path().join("report");
    // It cannot know that a time that ends before it begins is in vain; that it is refused is no complaint.
    let config = "[checks]\npositive_data_acceptance.expected-statuses = [\"2xx\", \"401\", \"403\", \"404\", \
                  \"409\", \"422\", \"5xx\"]\n";
    fs::write(asked.place.path().join("schemathesis.toml"), config).unwrap();
    let ran = Command::new("python3")
        .env("PYTHONPATH", &folder)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(asked.place.path())
        .args(["-m", "schemathesis.cli", "run"])
        .arg(format!("http://127.0.0.1:{}/openapi.json", asked.port))
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", "all", "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "8", "--seed", "1", "--workers", "1"])
        .args(["--suppress-health-check", "all", "--request-timeout", "30"])
        .arg("--report-dir")
        .arg(&report)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let tested = said.lines().find(|line| line.contains("Tested:"));
    assert!(
        tested.is_some_and(|line| line.ends_with(" 26")),
        "every operation is tested: {said}"
    );
    // It is still well after all that.
    let answer = asked.ask("/api/v1/status", &bearer(&asked));
    assert_eq!(answer.status, 200);
}

fn bearer(asked: &Asked) -> String {
    format!(
        "Host: 127.0.0.1:{}\r\nAuthorization: Bearer {TOKEN}\r\n",
        asked.port
    )
}

/// Where `cargo x test` puts what is in wheels.
fn in_wheel(folder: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(set("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    let folder = cache.join("bento-outbox/servers").join(folder);
    assert!(
        folder.is_dir(),
        "this test needs {}; `cargo x test` installs it",
        folder.display()
    );
    folder
}

#[test]
fn what_the_api_does_is_what_the_commands_show() {
    let asked = full(&[]);
    let retry = json!({ "filter": { "ids": [EXAMPLE] } });
    let done = asked.post("/api/v1/dead-letters/retry", &retry);
    assert_eq!(done.status, 200, "{}", done.body);
    eventually(|| asked.place.status()["total"]["sent"] == 21);
    let discard = json!({ "filter": { "tenant": "acme" } });
    let done: Value =
        serde_json::from_str(&asked.post("/api/v1/dead-letters/discard", &discard).body).unwrap();
    assert_eq!(
        done,
        json!({ "matched": 7, "changed": 7, "dry_run": false, "next": null })
    );
    assert_eq!(asked.place.status()["total"]["dead"], 1);
    let audit: Value = serde_json::from_str(&asked.get("/api/v1/audit").body).unwrap();
    assert_eq!(audit["acts"][0]["by"], "api:127.0.0.1");
    assert_eq!(audit["acts"][0]["changed"], 7);
    let shown = asked.get(&format!("/api/v1/events/{EXAMPLE}?payload=true"));
    let of_command = asked
        .place
        .run(&["dead", "list", "--json", "--payload"])
        .succeeded();
    let keys = |json: &str| -> Vec<String> {
        let read: BTreeMap<String, Box<RawValue>> = serde_json::from_str(json).unwrap();
        read.into_keys().collect()
    };
    assert_eq!(keys(&shown.body), keys(of_command.stdout.trim_end()));

    let sent = json!({ "filter": { "type": "order.placed", "tenant": "default" } });
    let run = asked.post("/api/v1/replays", &sent);
    assert_eq!(run.status, 202, "{}", run.body);
    eventually(|| {
        let runs: Value = serde_json::from_str(&asked.get("/api/v1/replays").body).unwrap();
        runs["replays"][0]["state"] == "done" && runs["replays"][0]["published"] == 20
    });
}

#[test]
fn an_address_is_refused_or_had() {
    let place = Place::migrated();
    let with = |address: &str, more: &[(&str, &str)]| {
        let variables = [&[("OUTBOX_ADMIN_ADDR", address)], more].concat();
        place.run_with(&["run", "--once"], &variables)
    };
    for public in [
        "0.0.0.0:0",
        "[::]:0",
        "10.1.2.3:7077",
        "[::ffff:10.1.2.3]:0",
    ] {
        place
            .run_with(&["run"], &[("OUTBOX_ADMIN_ADDR", public)])
            .failed(2, "is not loopback, which needs an admin_token");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = place.run_with(&["run"], &[("OUTBOX_ADMIN_ADDR", &address)]);
    let said = format!("error: admin_addr: nothing can be served at {address}: ");
    assert!(ran.code == Some(1) && ran.stderr.contains(&said), "{ran:?}");
    let advice = "set OUTBOX_ADMIN_ADDR to another port, or to off";
    assert!(ran.stderr.contains(advice), "{ran:?}");
    with("off", &[]).succeeded();
}
