//! Each record has the answer that is true of it.

use bento_outbox::{Rejection, RejectionClass};

use super::*;

/// Good and bad records in turns: each answer stands where its record stood.
pub async fn every_record_is_answered_in_its_place(bus: &dyn Bus, can: &Capabilities) {
    if !can.keeps {
        return;
    }
    let mut batch = batch(0..100);
    for record in batch.iter_mut().step_by(3) {
        record.headers = "[]".into();
    }
    let outcomes = publish(&*bus.publisher(), &batch).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        assert_eq!(
            *outcome == Outcome::Acked,
            n % 3 != 0,
            "record {n}: {outcome:?}"
        );
    }
    let good: Vec<_> = ids(&batch)
        .into_iter()
        .enumerate()
        .filter(|(n, _)| n % 3 != 0)
        .map(|(_, id)| id)
        .collect();
    assert_eq!(arrived_ids(bus).await, good);
}

/// An empty batch is no error.
pub async fn a_batch_of_none_has_no_answers(bus: &dyn Bus, _can: &Capabilities) {
    publish_all(&*bus.publisher(), &[]).await;
    assert_eq!(bus.arrived().await, []);
}

/// What SQL can write and no bus can carry becomes a dead letter that says why, alone.
pub async fn a_bad_record_is_refused_for_good_and_its_neighbours_are_not(
    bus: &dyn Bus,
    can: &Capabilities,
) {
    if !can.keeps {
        return;
    }
    type Change = fn(&mut OutboxRecord);
    let bad: [(&str, Change); 6] = [
        ("headers", |record| {
            record.headers = r#"{"a":{"b":"c"}}"#.into()
        }),
        ("headers", |record| record.headers = r#"{"a":1}"#.into()),
        ("header", |record| {
            record.headers = r#"{"a":"b\r\nc: d"}"#.into()
        }),
        ("header", |record| {
            record.headers = r#"{"ce-id":"x"}"#.into()
        }),
        ("content_type", |record| {
            record.content_type = "a/b\r\nc: d".into()
        }),
        ("type", |record| record.event_type = String::new()),
    ];
    for (column, change) in bad {
        let before = bus.arrived().await.len();
        let mut batch = batch(0..3);
        change(&mut batch[1]);
        let outcomes = publish(&*bus.publisher(), &batch).await;
        let rejection = refused(&outcomes[1]);
        assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
        assert!(rejection.reason.contains(column), "{column}: {rejection}");
        assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2]);
        let ids = ids(&batch);
        assert_eq!(arrived_ids(bus).await[before..], [ids[0].as_str(), &ids[2]]);
    }
}

fn refused(outcome: &Outcome) -> &Rejection {
    match outcome {
        Outcome::Rejected(rejection) => rejection,
        _ => panic!("{outcome:?} of a record that the bus does not have"),
    }
}

/// A payload over the bus's limit becomes a dead letter and does not take the connection with it.
pub async fn a_payload_too_large_is_refused_for_good_and_its_neighbours_are_not(
    bus: &dyn Bus,
    can: &Capabilities,
) {
    let Some(most) = can.payload_bytes_max else {
        return;
    };
    let publisher = bus.publisher();
    let of = |bytes: usize| Event {
        payload: json(&format!("\"{}\"", "x".repeat(bytes - 2))),
        ..event("large", 1)
    };
    publish_all(&*publisher, &[record(&of(most))]).await;
    let mut batch = batch(0..3);
    batch[1] = record(&of(4 * most));
    let outcomes = publish(&*publisher, &batch).await;
    assert_eq!(refused(&outcomes[1]).class, RejectionClass::Permanent);
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2]);
    let ids = ids(&batch);
    assert_eq!(arrived_ids(bus).await[1..], [ids[0].as_str(), &ids[2]]);
}

/// An event that nobody would receive is not acknowledged.
pub async fn a_topic_that_nobody_takes_is_refused(bus: &dyn Bus, can: &Capabilities) {
    if !can.refuses_unrouted {
        return;
    }
    let mut batch = batch(0..3);
    batch[1].event_type = "nowhere".into();
    let outcomes = publish(&*bus.publisher(), &batch).await;
    let rejection = refused(&outcomes[1]);
    assert!(rejection.reason.contains("nowhere"), "{rejection}");
    assert_ne!(rejection.class, RejectionClass::Unreachable);
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2]);
}

/// The relay sends again what it is not sure of. The bus has it, so the answer is yes.
pub async fn a_repetition_is_acknowledged(bus: &dyn Bus, can: &Capabilities) {
    let publisher = bus.publisher();
    let batch = batch(0..3);
    publish_all(&*publisher, &batch).await;
    publish_all(&*publisher, &batch).await;
    publish_all(&*bus.publisher(), &batch).await;
    if !can.keeps {
        return;
    }
    let arrived = bus.arrived().await;
    assert_eq!(arrived.len(), if can.drops_repetitions { 3 } else { 9 });
    for (n, event) in arrived.iter().enumerate() {
        assert_eq!(*event, arrived[n % 3], "a repetition is the same event");
    }
}

/// A bus that works is not complained of.
pub async fn a_check_of_a_working_bus_is_content(bus: &dyn Bus, _can: &Capabilities) {
    let publisher = bus.publisher();
    for _ in 0..2 {
        match timeout(PATIENCE, publisher.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(rejection)) => panic!("check complains: {rejection}"),
            Err(_) => panic!("check took longer than {PATIENCE:?}"),
        }
        publish_all(&*publisher, &batch(0..1)).await;
    }
}
