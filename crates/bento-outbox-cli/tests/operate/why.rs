//! `why`.

use serde_json::Value;

use super::{event, json};
use crate::place::{CANARY, Place, Relay, eventually};

fn why(place: &Place, id: &str) -> Value {
    json(&place.run(&["why", id, "--json"]).succeeded().stdout)
}

#[test]
fn an_event_says_where_it_is_and_what_to_do() {
    let place = Place::migrated();
    let delayed =
        r#"{"type":"note","available_at":"2999-01-01T00:00:00Z","payload":"s3cr3t-canary"}"#;
    let lines = [event("1", 1), event("1", 2), event("2", 3), event("3", 4)].concat() + delayed;
    let appended = place.append(lines).succeeded();
    let ids: Vec<&str> = appended.stdout.lines().collect();
    place.sql(
        "update outbox set status = 'ERR', retry_cnt = 5, error_message = 'refused' || char(9, 27) where seq = 1",
    );
    place.sql(
        "update outbox set status = 'SENT', sent_at = '2013-01-01T05:17:00.000Z' where seq = 3",
    );
    place.sql(
        "update outbox set retry_cnt = 2, error_message = 'timed out', retry_at = '2999-01-01T00:00:00.000Z' \
         where seq = 4",
    );
    for (id, because) in ids
        .iter()
        .zip(["dead", "no_relay", "sent", "retrying", "delayed"])
    {
        let answer = why(&place, id);
        assert_eq!(
            (&answer["id"], &answer["because"]),
            (&(*id).into(), &because.into())
        );
        assert!(
            answer["advice"]
                .as_str()
                .is_some_and(|advice| !advice.is_empty())
        );
        assert_eq!(answer["event"]["tenant_id"], "default");
    }
    let sent = why(&place, ids[2]);
    assert_eq!(sent["sent_at"], "2013-01-01T05:17:00.000000Z");
    let retrying = why(&place, ids[3]);
    assert_eq!(
        (
            &retrying["attempts"],
            &retrying["reason"],
            &retrying["until"]
        ),
        (
            &2.into(),
            &"timed out".into(),
            &"2999-01-01T00:00:00.000000Z".into()
        )
    );

    let blocking = [("OUTBOX_ON_DEAD_LETTER", "block")];
    let held = place
        .run_with(&["why", ids[1], "--json"], &blocking)
        .succeeded();
    let held = json(&held.stdout);
    assert_eq!(
        (&held["because"], &held["behind"]["id"]),
        (&"behind".into(), &ids[0].into())
    );
    assert_eq!(held["behind"]["because"], "dead");
    let shown = place.run_with(&["why", ids[1]], &blocking).succeeded();
    for said in [
        format!("why\tit waits for event {}", ids[0]),
        format!("dead retry --id {}", ids[0]),
        "aggregate\torder 1\n".into(),
    ] {
        assert!(shown.stdout.contains(&said), "{shown:?}");
    }
    assert!(!shown.stdout.contains('\u{1b}'), "{shown:?}");
    let delayed = place.run(&["why", ids[4]]).succeeded().without_secrets();
    assert!(delayed.stdout.contains("2999-01-01"), "{delayed:?}");

    let relay = Relay::start(
        &place,
        &["run", "--bus-url", "file:no/such/folder/bus.jsonl"],
    );
    eventually(|| why(&place, ids[1])["because"] == "due");
    relay.told("-TERM").succeeded();
}

#[test]
fn an_event_that_is_not_there_is_an_answer_and_a_failure() {
    let place = Place::migrated();
    let nobody = "ce974dcd-cdcc-4219-b109-10e01ce65000";
    let ran = place.run(&["why", nobody, "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let answer = json(&ran.stdout);
    assert_eq!(
        (&answer["because"], &answer["event"]),
        (&"unknown".into(), &Value::Null)
    );
    let ran = place.run(&["why", nobody]);
    assert!(
        ran.code == Some(1) && ran.stdout.contains("it is not in the outbox"),
        "{ran:?}"
    );
    for wrong in [
        vec!["why", "7"],
        vec!["why"],
        vec!["why", "' or 1=1", "--json"],
    ] {
        let ran = place.run(&wrong).without_secrets();
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    }
    let elsewhere = format!("postgres://bob:{CANARY}@127.0.0.1:1/x");
    if cfg!(feature = "postgres") {
        place
            .run(&["why", nobody, "--database-url", &elsewhere])
            .failed(1, "Connection refused");
    }
}
