//! The router, over the store in memory: what it answers, refuses and writes down.
#![expect(
    clippy::unwrap_used,
    reason = "these are tests, with helpers outside of test functions"
)]

mod desk;
mod document;
mod refused;

use std::collections::HashSet;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use desk::{Desk, LETTER, LETTERS, SENT};

const HOSTILE: &str = "<script>alert(1)</script>\"'&";

#[tokio::test]
async fn a_page_ends_where_the_next_one_begins() {
    let desk = Desk::full().await;
    for (path, member, newest_first) in [
        ("/api/v1/events", "events", true),
        ("/api/v1/dead-letters", "dead_letters", false),
    ] {
        let whole = desk.get(path).await.json(200);
        let ids = |page: &Value| -> Vec<String> {
            let rows = page[member].as_array().unwrap();
            rows.iter()
                .map(|row| row["id"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(whole["next"], Value::Null);
        let (mut paged, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = desk.get(&format!("{path}?limit=2{cursor}")).await.json(200);
            assert!(ids(&page).len() <= 2);
            paged.extend(ids(&page));
            let Some(next) = page["next"].as_str() else {
                break;
            };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(paged, ids(&whole), "{path}");
        let seqs = whole[member].as_array().unwrap();
        let seqs: Vec<i64> = seqs
            .iter()
            .map(|row| row["seq"].as_i64().unwrap())
            .collect();
        assert!(seqs.is_sorted_by(|one, other| (one > other) == newest_first));
    }
}

#[tokio::test]
async fn events_are_found_by_each_filter_and_shown_without_their_payload() {
    let desk = Desk::full().await;
    for (query, found) in [
        ("", LETTERS + 3),
        ("?status=ERR", LETTERS),
        ("?status=SENT", 1),
        ("?status=NEW", 2),
        ("?tenant=acme", 1),
        ("?tenant=acme&status=ERR", 0),
        ("?type=order.placed", LETTERS),
        ("?aggregate=7", 2),
        ("?since=2999-01-01T00:00:00Z", 0),
        ("?until=2999-01-01T00:00:00%2B01:00", LETTERS + 3),
    ] {
        let answer = desk.get(&format!("/api/v1/events{query}")).await;
        assert!(
            !answer.body.contains("s3cr3t"),
            "no payload unless asked for"
        );
        assert_eq!(
            answer.json(200)["events"].as_array().unwrap().len(),
            found,
            "{query}"
        );
    }
    let path = format!("/api/v1/events/{SENT}");
    let without = desk.get(&path).await;
    assert!(!without.body.contains("s3cr3t") && !without.body.contains("\"payload\""));
    assert_eq!(without.json(200)["status"], "SENT");
    let with = desk.get(&format!("{path}?payload=true")).await;
    assert!(
        with.body
            .contains(r#""payload":{ "n" : 1e400, "canary": "s3cr3t" },"data":null"#),
        "{}",
        with.body
    );
    let why = desk.get(&format!("{path}/why")).await.json(200);
    assert_eq!(why["because"], "sent");
    let unknown = "/api/v1/events/00000000-0000-4000-8000-000000000000";
    desk.get(unknown).await.problem(404, "is not in the outbox");
    let why = desk.get(&format!("{unknown}/why")).await.json(200);
    assert_eq!(
        (&why["because"], &why["event"]),
        (&json!("unknown"), &Value::Null)
    );
}

#[tokio::test]
async fn a_dead_letter_is_shown_retried_and_discarded_once() {
    let desk = Desk::full().await;
    let letter = format!("/api/v1/dead-letters/{LETTER}");
    assert_eq!(desk.get(&letter).await.json(200)["error_message"], HOSTILE);
    desk.get(&format!("/api/v1/dead-letters/{SENT}"))
        .await
        .problem(404, "its status is SENT");

    let retry = "/api/v1/dead-letters/retry";
    let one = json!({ "filter": { "ids": [LETTER, SENT] } });
    let dry = json!({ "filter": { "ids": [LETTER] }, "dry_run": true });
    let said = |matched: usize, changed: usize, dry_run: bool| json!({ "matched": matched, "changed": changed, "dry_run": dry_run, "next": null });
    assert_eq!(desk.post(retry, &dry).await.json(200), said(1, 0, true));
    assert_eq!(
        desk.acts().await.len(),
        0,
        "nothing was changed, and nothing audited"
    );
    assert_eq!(desk.post(retry, &one).await.json(200), said(1, 1, false));
    assert_eq!(desk.post(retry, &one).await.json(200), said(0, 0, false));
    let discard = "/api/v1/dead-letters/discard";
    let typed = json!({ "filter": { "type": "order.placed" } });
    let left = LETTERS - 1;
    assert_eq!(
        desk.post(discard, &typed).await.json(200),
        said(left, left, false)
    );
    let all = json!({ "filter": { "all": true } });
    assert_eq!(desk.post(discard, &all).await.json(200), said(0, 0, false));
    desk.get(&letter).await.problem(404, "its status is NEW");

    let acts = desk.acts().await;
    let verbs: Vec<&Value> = acts.iter().map(|act| &act["verb"]).collect();
    assert_eq!(verbs, ["discard", "retry"]);
    assert_eq!(acts[1]["what"], json!({ "ids": [LETTER] }));
    assert_eq!(
        (&acts[0]["by"], &acts[0]["changed"]),
        (&json!("api:anna"), &json!(left))
    );
}

#[tokio::test]
async fn tenants_and_destinations_are_paused_and_resumed() {
    let desk = Desk::full().await;
    for (kind, member, name, title) in [
        ("tenants", "tenants", "acme", "tenant_id"),
        ("tenants", "tenants", "not-yet-seen", "tenant_id"),
        ("destinations", "destinations", "memory", "destination"),
    ] {
        let path = format!("/api/v1/{kind}");
        let paused = async || {
            let answer = desk.get(&path).await.json(200);
            let rows = answer[member].as_array().unwrap().clone();
            rows.into_iter()
                .find(|row| row[title] == name)
                .map(|row| row["paused"].clone())
        };
        let known = paused().await;
        assert!(known.is_none_or(|paused| paused.is_null()));
        let why = json!({ "names": [name], "reason": HOSTILE });
        let pause = format!("{path}/pause");
        assert_eq!(
            desk.post(&pause, &why).await.json(200),
            json!({ "changed": 1 })
        );
        assert_eq!(
            desk.post(&pause, &why).await.json(200),
            json!({ "changed": 0 })
        );
        let row = paused().await.unwrap();
        assert_eq!(
            (&row["by"], &row["reason"]),
            (&json!("api:anna"), &json!(HOSTILE))
        );
        let names = json!({ "names": [name] });
        let resume = format!("{path}/resume");
        assert_eq!(
            desk.post(&resume, &names).await.json(200),
            json!({ "changed": 1 })
        );
        assert_eq!(
            desk.post(&resume, &names).await.json(200),
            json!({ "changed": 0 })
        );
    }
    let refused = json!({ "names": ["../x"] });
    desk.post("/api/v1/tenants/pause", &refused)
        .await
        .problem(400, "../x");
    assert_eq!(desk.acts().await.len(), 6);
}

#[tokio::test]
async fn a_replay_runs_in_the_background_one_at_a_time() {
    let desk = Desk::full().await;
    let replays = "/api/v1/replays";
    let sent = json!({ "filter": { "tenant": "default" }, "dry_run": true });
    let counted = desk.post(replays, &sent).await.json(200);
    assert_eq!(counted, json!({ "matched": 1, "dry_run": true }));
    assert_eq!(desk.get(replays).await.json(200), json!({ "replays": [] }));

    desk.bus.refuse_all(true);
    let order = json!({ "filter": { "ids": [SENT] }, "rate": 10 });
    let run = desk.post(replays, &order).await.json(202);
    let path = format!("{replays}/{}", run["id"].as_str().unwrap());
    let waits = desk.until(&path, |run| run["waits_for"].is_string()).await;
    assert_eq!(
        (&waits["matched"], &waits["published"]),
        (&json!(1), &json!(0))
    );
    desk.post(replays, &order)
        .await
        .problem(409, "one at a time");
    // What says nothing need not be sent.
    let cancel = format!("{path}/cancel");
    let stopping = desk.send(Method::POST, &cancel, &[], "").await.json(200);
    assert_eq!(stopping["state"], "stopping");
    let not_json = desk.send(Method::POST, &cancel, &[], "stop").await;
    not_json.problem(415, "application/json");
    let elsewhere = [("origin", "http://evil.example")];
    let elsewhere = desk.send(Method::POST, &cancel, &elsewhere, "").await;
    assert_eq!(elsewhere.status, 403);
    let over = desk.until(&path, |run| run["ended_at"].is_string()).await;
    assert_eq!(
        (&over["state"], &over["published"]),
        (&json!("stopped"), &json!(0))
    );

    desk.bus.refuse_all(false);
    let second = desk.post(replays, &order).await.json(202);
    let path = format!("{replays}/{}", second["id"].as_str().unwrap());
    let over = desk.until(&path, |run| run["ended_at"].is_string()).await;
    assert_eq!(
        (&over["state"], &over["published"]),
        (&json!("done"), &json!(1))
    );
    assert_eq!(over["filter"], json!({ "ids": [SENT] }));
    let again = desk
        .post(&format!("{path}/cancel"), &json!({}))
        .await
        .json(200);
    assert_eq!(again["state"], "done", "what is over stays as it is");
    assert_eq!(desk.bus.published(), 1);
    let runs = desk.get(replays).await.json(200);
    assert_eq!(runs["replays"][0]["id"], second["id"]);

    let acts = desk.acts().await;
    let told: Vec<_> = acts
        .iter()
        .map(|act| (act["verb"].as_str(), act["changed"].as_u64(), &act["note"]))
        .collect();
    let act = |changed, note: &'static str| (Some("replay"), Some(changed), json!(note));
    let expected = [
        act(1, "done"),
        act(0, "begun: 1 to publish"),
        act(0, "stopped"),
        act(0, "begun: 1 to publish"),
    ];
    let expected: Vec<_> = expected.iter().map(|(a, b, c)| (*a, *b, c)).collect();
    assert_eq!(told, expected, "each run's begin and end");
    let unknown = format!("{replays}/00000000-0000-4000-8000-000000000000");
    desk.get(&unknown).await.problem(404, "knows no replay");
}

#[tokio::test]
async fn what_is_not_meant_or_not_known_is_refused_by_name() {
    let desk = Desk::full().await;
    for (path, said) in [
        ("/api/v1/status?colour=red", "colour"),
        ("/api/v1/events?limit=0", "limit"),
        ("/api/v1/events?limit=501", "limit"),
        ("/api/v1/events?limit=1&limit=2", "limit"),
        ("/api/v1/events?limit=x", "limit"),
        ("/api/v1/events?status=new", "status"),
        ("/api/v1/events?tenant=", "tenant"),
        ("/api/v1/events?tenant=a/b", "tenant"),
        ("/api/v1/events?type=", "type"),
        ("/api/v1/events?type=a%00b", "type"),
        ("/api/v1/events?since=yesterday", "since"),
        ("/api/v1/events?cursor=1", "cursor"),
        ("/api/v1/events?payload=true", "payload"),
        ("/api/v1/events/nonsense", "UUID"),
        ("/api/v1/events/00000000000040008000000000000000", "UUID"),
        (
            "/api/v1/events/00000000-0000-4000-8000-000000000000?payload=1",
            "payload",
        ),
        ("/api/v1/dead-letters?status=ERR", "status"),
        ("/api/v1/held-keys?cursor=0000000000000001", "cursor"),
        ("/api/v1/audit?tenant=acme", "tenant"),
        ("/api/v1/replays?x=1", "x"),
    ] {
        desk.get(path).await.problem(400, said);
    }
    let retry = "/api/v1/dead-letters/retry";
    for (body, said) in [
        ("{", "EOF"),
        ("[]", "the body is wrong"),
        ("null", "the body is wrong"),
        ("{}", "filter"),
        (r#"{"filter":{}}"#, "which dead letters?"),
        (r#"{"filter":{"all":false}}"#, "which dead letters?"),
        (
            r#"{"filter":{"all":true,"tenant":"acme"}}"#,
            "no other filter",
        ),
        (r#"{"filter":{"tenant":null}}"#, "null"),
        (r#"{"filter":{"ids":[]}}"#, "1 to 1000 ids"),
        (r#"{"filter":{"ids":["x"]}}"#, "UUID"),
        (r#"{"filter":{"all":true},"dry_run":"yes"}"#, "boolean"),
        (r#"{"filter":{"all":true},"force":true}"#, "force"),
        (
            r#"{"filter":{"all":true},"filter":{"all":true}}"#,
            "duplicate",
        ),
        (r#"{"filter":{"all":true}} x"#, "trailing"),
    ] {
        desk.send(
            Method::POST,
            retry,
            &[("content-type", "application/json")],
            body,
        )
        .await
        .problem(400, said);
    }
    for (body, said) in [
        (r#"{"filter":{"all":true},"rate":0}"#, "rate"),
        (r#"{"filter":{"all":true},"rate":1.5}"#, "rate"),
        (r#"{"filter":{"all":true},"rate":100001}"#, "rate"),
        (r#"{"filter":{}}"#, "which sent events?"),
    ] {
        desk.send(
            Method::POST,
            "/api/v1/replays",
            &[("content-type", "application/json")],
            body,
        )
        .await
        .problem(400, said);
    }
    for names in [json!([]), json!(vec!["a"; 101])] {
        desk.post("/api/v1/tenants/pause", &json!({ "names": names }))
            .await
            .problem(400, "1 to 100 names");
    }
    let long = format!(r#"{{"filter":{{"type":"{}"}}}}"#, "x".repeat(300_000));
    desk.send(
        Method::POST,
        retry,
        &[("content-type", "application/json")],
        &long,
    )
    .await
    .problem(413, "262144 bytes");
    desk.get("/nowhere")
        .await
        .problem(404, "nothing at /nowhere");
    let put = desk.send(Method::PUT, "/api/v1/replays", &[], "").await;
    assert_eq!(put.header("allow"), Some("GET,HEAD,POST"));
    put.problem(405, "method");
    assert_eq!(
        desk.dead().await,
        LETTERS,
        "nothing of all this did anything"
    );
}

#[tokio::test]
async fn a_page_of_another_origin_changes_nothing() {
    let desk = Desk::full().await;
    let retry = "/api/v1/dead-letters/retry";
    let body = r#"{"filter":{"all":true}}"#;
    let json = ("content-type", "application/json");
    // What a form or a script without a preflight can send.
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
    ] {
        desk.send(Method::POST, retry, &[("content-type", kind)], body)
            .await
            .problem(415, "application/json");
    }
    for body in [body, ""] {
        desk.send(Method::POST, retry, &[], body)
            .await
            .problem(415, "application/json");
    }
    for origin in [
        "http://evil.example",
        "null",
        "http://127.0.0.1:3000",
        "https://127.0.0.1:7077",
        "http://127.0.0.1",
    ] {
        desk.send(Method::POST, retry, &[json, ("origin", origin)], body)
            .await
            .problem(403, "another origin");
    }
    let preflight = desk
        .send(
            Method::OPTIONS,
            retry,
            &[("origin", "http://evil.example")],
            "",
        )
        .await;
    assert!(
        preflight
            .headers
            .keys()
            .all(|name| !name.as_str().starts_with("access-control"))
    );
    assert_eq!(preflight.status, 405);
    assert_eq!(desk.dead().await, LETTERS);
    let own = [json, ("origin", "http://127.0.0.1:7077")];
    let retried = desk.send(Method::POST, retry, &own, body).await.json(200);
    assert_eq!(retried["changed"], LETTERS);
}

#[tokio::test]
async fn without_the_token_nothing_is_told_and_nothing_done() {
    let desk = Desk::full().await.with_token("s3cret-enough");
    let text = json!({ "filter": { "all": true } }).to_string();
    for path in document::behind_the_door() {
        for method in [Method::GET, Method::POST] {
            let concrete = path.replace("{id}", LETTER);
            let answer = desk.send(
                method,
                &concrete,
                &[("content-type", "application/json")],
                &text,
            );
            let answer = answer.await;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
            answer.problem(401, "admin_token");
        }
    }
    assert_eq!(desk.dead().await, LETTERS);
    let let_in = [
        ("authorization", "Bearer s3cret-enough"),
        ("host", "relay.example"),
        ("origin", "https://relay.example"),
        ("content-type", "application/json"),
    ];
    let retried = desk.send(Method::POST, "/api/v1/dead-letters/retry", &let_in, &text);
    assert_eq!(
        retried.await.json(200)["changed"],
        LETTERS,
        "behind a proxy as well"
    );
}

#[tokio::test]
async fn who_asks_may_say_so_for_the_audit() {
    let desk = Desk::full().await;
    let body = r#"{"names":["acme"]}"#;
    let json = ("content-type", "application/json");
    for bad in ["", "a b", "a/b", &"x".repeat(65)] {
        desk.send(
            Method::POST,
            "/api/v1/tenants/pause",
            &[json, ("outbox-actor", bad)],
            body,
        )
        .await
        .problem(400, "Outbox-Actor");
    }
    desk.send(Method::POST, "/api/v1/tenants/pause", &[json], body)
        .await
        .json(200);
    assert_eq!(
        desk.acts().await[0]["by"],
        "api",
        "where the server does not know the address"
    );
}

#[tokio::test]
async fn the_page_runs_its_own_script_only_and_asks_nobody_else() {
    let desk = Desk::full().await;
    let (one, other) = (desk.get("/").await, desk.get("/").await);
    let policy = one.header("content-security-policy").unwrap();
    let nonce = policy
        .split("script-src 'nonce-")
        .nth(1)
        .unwrap()
        .split('\'')
        .next()
        .unwrap();
    assert!(
        policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert_eq!(one.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!other.body.contains(nonce), "each answer has its own");
    assert_eq!(one.body.matches("<script").count(), 1);
    assert!(!one.body.contains("{{"), "every part is filled in");
    for outside in [
        "http://",
        "https://",
        "src=",
        "@import",
        "url(",
        "innerHTML =",
        "eval(",
        " style=",
        "onclick=\"",
    ] {
        assert!(!one.body.contains(outside), "{outside}");
    }
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(one.header(name), Some(value));
    }
    let closed = Desk::full().await.with_token("s3cret-enough");
    let page = closed
        .send(Method::GET, "/", &[("host", "relay.example")], "")
        .await;
    assert_eq!(
        page.status,
        StatusCode::OK,
        "the page itself has no secret in it"
    );
    assert!(!page.body.contains("s3cret"));
}

#[tokio::test]
async fn a_service_may_nest_all_of_it() {
    let desk = Desk::full().await.nested("/ops/outbox");
    assert_eq!(desk.get("/ops/outbox").await.status, 200);
    let status = desk.get("/ops/outbox/api/v1/status").await.json(200);
    assert_eq!(status["total"]["dead"], LETTERS);
    desk.get("/ops/outbox/nowhere")
        .await
        .problem(404, "/nowhere");
}

#[tokio::test]
async fn the_document_is_served_and_says_what_the_code_says() {
    let desk = Desk::full().await;
    let served = desk.get("/openapi.json").await.json(200);
    assert_eq!(served, document::document());
    let limit = &served["components"]["parameters"]["limit"]["schema"];
    let most = limit["maximum"].as_u64().unwrap();
    for (limit, status) in [(most, 200), (most + 1, 400)] {
        let answer = desk.get(&format!("/api/v1/events?limit={limit}")).await;
        assert_eq!(answer.status, status);
    }
    let mut names = HashSet::new();
    for (path, method) in document::operations() {
        let operation = &served["paths"][&path][&method];
        assert!(
            operation["summary"]
                .as_str()
                .is_some_and(|text| !text.ends_with('.'))
        );
        assert!(names.insert(operation["operationId"].to_string()), "{path}");
        let refusals = operation["responses"].as_object().unwrap().keys();
        let wanted = path.starts_with("/api/");
        assert!(
            !wanted || refusals.filter(|code| code.starts_with('4')).count() >= 4,
            "{path}"
        );
    }
}
