//! What the API refuses although it is well said: names that lead nowhere, filters that nothing can match,
//! and who asks by another name; and what it has not done then.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::desk::{Desk, LETTERS, SENT};

#[tokio::test]
async fn only_a_destination_that_events_go_to_is_paused() {
    let desk = Desk::full().await;
    let names = json!({ "names": ["memory", "nats://mistyped:4222"] });
    let said = "no events are routed to \"nats://mistyped:4222\"; these settings have memory";
    let pause = "/api/v1/destinations/pause";
    desk.post(pause, &names).await.problem(404, said);
    let paused = desk.get("/api/v1/destinations").await.json(200);
    let of_this_process = json!([{ "destination": "memory", "paused": null }]);
    assert_eq!(paused["destinations"], of_this_process, "all or none");
    // One that was paused elsewhere can be let go here.
    let resume = "/api/v1/destinations/resume";
    let changed = desk.post(resume, &names).await.json(200);
    assert_eq!(changed, json!({ "changed": 0 }));
    assert_eq!(desk.acts().await.len(), 0);
}

#[tokio::test]
async fn what_nothing_can_match_is_refused() {
    let desk = Desk::full().await;
    let noon = "2013-01-01T12:00:00Z";
    for list in ["/api/v1/events", "/api/v1/dead-letters"] {
        let empty = format!("{list}?since={noon}&until={noon}");
        desk.get(&empty).await.problem(422, "is not before until");
        let pattern = format!("{list}?type=order.*");
        desk.get(&pattern).await.problem(422, "\"order.*\" has a *");
    }
    for change in ["dead-letters/retry", "dead-letters/discard", "replays"] {
        let path = format!("/api/v1/{change}");
        for (filter, said) in [
            (json!({ "since": noon, "until": noon }), "until"),
            (json!({ "type": "*" }), "\"*\" has a *"),
        ] {
            let asked = json!({ "filter": filter });
            desk.post(&path, &asked).await.problem(422, said);
        }
    }
    assert_eq!(desk.dead().await, LETTERS);
    assert_eq!(desk.acts().await.len(), 0);
}

#[tokio::test]
async fn a_replay_of_what_is_paused_is_refused_before_it_begins() {
    let desk = Desk::full().await;
    let names = json!({ "names": ["default"] });
    desk.post("/api/v1/tenants/pause", &names).await.json(200);
    let replays = "/api/v1/replays";
    let said = "tenant default (1 of the events; `bento-outbox tenants resume default`)";
    let dry = json!({ "filter": { "ids": [SENT] }, "dry_run": true });
    desk.post(replays, &dry).await.problem(409, said);
    let order = json!({ "filter": { "ids": [SENT] } });
    let run = desk.post(replays, &order).await.json(202);
    let path = format!("{replays}/{}", run["id"].as_str().unwrap());
    let over = desk.until(&path, |run| run["ended_at"].is_string()).await;
    assert_eq!(
        (&over["state"], &over["published"]),
        (&json!("failed"), &json!(0))
    );
    let reason = over["reason"].as_str().unwrap();
    assert!(reason.contains(said), "{reason}");
    assert_eq!(desk.bus.published(), 0);
    assert_eq!(desk.acts().await.len(), 1, "only the pause");
    desk.post("/api/v1/tenants/resume", &names).await.json(200);
    let counted = desk.post(replays, &dry).await.json(200);
    assert_eq!(counted["matched"], 1);
}

#[tokio::test]
async fn by_a_name_of_others_only_health_is_told() {
    let desk = Desk::full().await;
    let with_token = Desk::full().await.with_token("s3cret-enough");
    for host in ["evil.example", "10.1.2.3:7077"] {
        let host = [("host", host)];
        for path in ["/", "/metrics", "/openapi.json", "/api/v1/status"] {
            let answer = desk.send(Method::GET, path, &host, "").await;
            answer.problem(403, "only requests to localhost");
        }
        let method = desk.send(Method::PUT, "/", &host, "").await;
        method.problem(403, "only requests to localhost");
        for path in ["/health/live", "/health/ready"] {
            let answer = desk.send(Method::GET, path, &host, "").await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
        }
        let page = with_token.send(Method::GET, "/", &host, "").await;
        assert_eq!(page.status, StatusCode::OK);
        let told = with_token.send(Method::GET, "/metrics", &host, "").await;
        told.problem(401, "admin_token");
    }
}

#[tokio::test]
async fn what_is_unknown_is_refused_of_the_metrics_as_well() {
    let desk = Desk::full().await;
    for path in ["/metrics", "/openapi.json"] {
        assert_eq!(desk.get(path).await.status, StatusCode::OK);
        let unknown = format!("{path}?colour=red");
        desk.get(&unknown).await.problem(400, "colour");
    }
    // A link to the page, or a probe, may have anything behind it.
    for path in ["/?colour=red", "/health/live?colour=red"] {
        assert_eq!(desk.get(path).await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_replay_that_is_cancelled_while_it_counts_has_not_begun() {
    let desk = Desk::full().await;
    let order = json!({ "filter": { "ids": [SENT] } });
    let run = desk.post("/api/v1/replays", &order).await.json(202);
    assert_eq!(run["state"], "counting");
    let path = format!("/api/v1/replays/{}", run["id"].as_str().unwrap());
    desk.post(&format!("{path}/cancel"), &json!({})).await;
    let over = desk.until(&path, |run| run["ended_at"].is_string()).await;
    assert_eq!(
        (&over["state"], &over["matched"], &over["published"]),
        (&json!("stopped"), &Value::Null, &json!(0))
    );
    assert_eq!(desk.bus.published(), 0);
    assert_eq!(desk.acts().await.len(), 0, "nothing was done");

    // Nor has one that finds nothing.
    let nobody = json!({ "filter": { "tenant": "nobody" } });
    let run = desk.post("/api/v1/replays", &nobody).await.json(202);
    let path = format!("/api/v1/replays/{}", run["id"].as_str().unwrap());
    let over = desk.until(&path, |run| run["ended_at"].is_string()).await;
    assert_eq!(
        (&over["state"], &over["matched"]),
        (&json!("done"), &json!(0))
    );
    assert_eq!(desk.acts().await.len(), 0);
}
