//! Each record has the answer that is true of it.

use bento_outbox::{Rejection, RejectionClass};

use super::*;

/// Good and bad records in turns: each answer stands where its record stood.
pub async fn every_record_is_answered_in_its_place(bus: &dyn Bus, can: &Capabilities) {
    if !can.keeps {
        return;
    }
    const BAD: [usize; 4] = [0, 2, 3, 7];
    let mut batch = batch(0..9);
    for n in BAD {
        batch[n].headers = "[]".into();
    }
    let outcomes = publish(&*bus.publisher(), &batch).await;
    for (n, outcome) in outcomes.iter().enumerate() {
        let acked = *outcome == Outcome::Acked;
        assert_eq!(acked, !BAD.contains(&n), "record {n}: {outcome:?}");
    }
    let good = [1, 4, 5, 6, 8].map(|n| batch[n].clone());
    assert_arrived(can, &arrived_ids(bus).await, &[&good]);
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
            record.headers = r#"{"a":{"b":"c"}}"#.into();
        }),
        ("headers", |record| record.headers = r#"{"a":1}"#.into()),
        ("header", |record| {
            record.headers = r#"{"a":"b\r\nc: d"}"#.into();
        }),
        ("header", |record| {
            record.headers = r#"{"ce-id":"x"}"#.into();
        }),
        ("content_type", |record| {
            record.content_type = "a/b\r\nc: d".into();
        }),
        ("type", |record| record.event_type = String::new()),
    ];
    for (column, change) in bad {
        let mut bad = record(&event("bad", 1));
        change(&mut bad);
        let rejection = refused_between(bus, can, &*bus.publisher(), bad).await;
        assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
        assert!(rejection.reason.contains(column), "{column}: {rejection}");
    }
}

/// Publishes a bad record between good ones, which alone arrive, and gives back why it is refused.
async fn refused_between(
    bus: &dyn Bus,
    can: &Capabilities,
    publisher: &dyn Publisher,
    bad: OutboxRecord,
) -> Rejection {
    let before = bus.arrived().await.len();
    let good = batch(0..3);
    let mut batch = good.clone();
    batch.insert(1, bad);
    let mut outcomes = publish(publisher, &batch).await;
    let outcome = outcomes.remove(1);
    assert_eq!(outcomes, [const { Outcome::Acked }; 3], "of its neighbours");
    assert_arrived(can, &arrived_ids(bus).await[before..], &[&good]);
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
    let rejection = refused_between(bus, can, &*publisher, record(&of(4 * most))).await;
    assert_eq!(rejection.class, RejectionClass::Permanent, "{rejection}");
}

/// An event that nobody would receive is not acknowledged.
pub async fn a_topic_that_nobody_takes_is_refused(bus: &dyn Bus, can: &Capabilities) {
    if !can.refuses_unrouted {
        return;
    }
    let mut record = record(&event("7", 1));
    record.event_type = "nowhere".into();
    let rejection = refused_between(bus, can, &*bus.publisher(), record).await;
    assert!(rejection.reason.contains("nowhere"), "{rejection}");
    assert_ne!(rejection.class, RejectionClass::Unreachable, "{rejection}");
}

/// The relay sends again what it is not sure of. The bus has it, so the answer is yes.
pub async fn a_repetition_is_acknowledged(bus: &dyn Bus, can: &Capabilities) {
    let publisher = bus.publisher();
    let batch = batch(0..3);
    publish_all(&*publisher, &batch).await;
    publish_all(&*publisher, &batch).await;
    drop(publisher);
    publish_all(&*bus.publisher(), &batch).await;
    if !can.keeps {
        return;
    }
    let arrived = bus.arrived().await;
    assert_eq!(arrived.len(), if can.drops_repetitions { 3 } else { 9 });
    for event in &arrived {
        let first = arrived.iter().find(|first| first.id() == event.id());
        assert_eq!(first, Some(event), "a repetition is the same event");
    }
    let mut sent = ids(&batch);
    let mut left: Vec<_> = arrived.iter().map(Arrived::id).collect();
    left.sort_unstable();
    left.dedup();
    sent.sort();
    assert_eq!(left, sent);
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
