//! What a bus that fails makes of the records.

use std::collections::HashSet;

use bento_outbox::RejectionClass;
use tokio::time::{Instant, sleep};

use super::*;

/// A bus that was never there: a sentence, soon, and no event loses an attempt.
pub async fn a_bus_that_is_not_there_is_said_to_be_away(bus: &dyn Bus, _can: &Capabilities) {
    let Some(publisher) = bus.publisher_to_nowhere() else {
        return;
    };
    for outcome in publish(&*publisher, &batch(0..3)).await {
        assert!(is_away(&outcome), "{outcome:?} of a bus that is not there");
    }
    let Ok(checked) = timeout(PATIENCE, publisher.check()).await else {
        panic!("check took longer than {PATIENCE:?}");
    };
    let Err(rejection) = checked else {
        panic!("check is content with a bus that is not there");
    };
    assert!(is_away(&rejection.clone().into()), "{rejection:?}");
    assert!(!rejection.reason.is_empty());
}

/// Whether the outcome says that nothing was sent, for a reason that is not the event's.
fn is_away(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Rejected(rejection)
        if matches!(rejection.class, RejectionClass::Unreachable | RejectionClass::Config))
}

/// Whether the outcome costs the event nothing, so that it is sent again.
fn is_sent_again(outcome: &Outcome) -> bool {
    is_away(outcome) || matches!(outcome, Outcome::Unknown { .. })
}

/// Publishes until all is acknowledged, as a relay does.
async fn publish_until_acked(publisher: &dyn Publisher, batch: &[OutboxRecord]) {
    let mut left = batch.to_vec();
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(20);
    while !left.is_empty() {
        assert!(
            Instant::now() < deadline,
            "{} records are never acked",
            left.len()
        );
        let mut outcomes = publish(publisher, &left).await.into_iter();
        left.retain(|_| {
            let outcome = outcomes.next();
            let Some(Outcome::Acked) = outcome else {
                assert!(outcome.is_some_and(|outcome| is_sent_again(&outcome)));
                return true;
            };
            false
        });
        sleep(pause).await;
        pause *= 2;
    }
}

/// What arrived, each id once and in the order of its first arrival.
async fn first_arrivals(bus: &dyn Bus) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut arrived = arrived_ids(bus).await;
    arrived.retain(|id| seen.insert(id.clone()));
    arrived
}

/// While it is away nothing is acknowledged and nothing waits; afterwards all goes on.
pub async fn a_bus_that_went_away_is_reached_again(bus: &dyn Bus, can: &Capabilities) {
    let Some(faults) = bus.faults() else { return };
    let publisher = bus.publisher();
    let batch = batch(0..6);
    publish_all(&*publisher, &batch[..2]).await;
    faults.kill().await;
    for _ in 0..3 {
        for outcome in publish(&*publisher, &batch[2..4]).await {
            assert!(is_sent_again(&outcome), "{outcome:?} of a dead bus");
        }
    }
    let checked = timeout(PATIENCE, publisher.check()).await;
    assert!(matches!(checked, Ok(Err(_))), "{checked:?} of a dead bus");
    faults.restart().await;
    // What waited in a client would arrive now, behind the later records.
    publish_until_acked(&*publisher, &batch[4..]).await;
    publish_until_acked(&*publisher, &batch[2..4]).await;
    let expected = [&batch[..2], &batch[4..], &batch[2..4]];
    assert_arrived(can, &first_arrivals(bus).await, &expected);
}

/// A bus that takes everything and says nothing: unknown by the deadline, never acknowledged.
pub async fn a_silent_bus_is_not_waited_for_and_nothing_is_acknowledged(
    bus: &dyn Bus,
    can: &Capabilities,
) {
    let Some(faults) = bus.faults() else { return };
    let publisher = bus.publisher();
    let batch = batch(0..3);
    publish_all(&*publisher, &batch[..1]).await;
    faults.pause().await;
    for outcome in publish(&*publisher, &batch[1..]).await {
        assert!(is_sent_again(&outcome), "{outcome:?} of a silent bus");
    }
    faults.resume().await;
    publish_until_acked(&*publisher, &batch[1..]).await;
    assert_arrived(can, &first_arrivals(bus).await, &[&batch[..1], &batch[1..]]);
    if can.drops_repetitions {
        assert_eq!(bus.arrived().await.len(), 3);
    }
}

/// A bus that does not let us in: a sentence, no event loses an attempt, and none is taken for sent.
pub async fn a_stranger_is_turned_away_and_costs_no_attempt(bus: &dyn Bus, _can: &Capabilities) {
    let Some(stranger) = bus.publisher_of_a_stranger() else {
        return;
    };
    for outcome in publish(&*stranger, &batch(0..3)).await {
        assert!(is_config(&outcome), "{outcome:?} of a stranger's event");
    }
    let checked = timeout(PATIENCE, stranger.check()).await;
    let Ok(Err(rejection)) = checked else {
        panic!("{checked:?} of a stranger");
    };
    assert!(is_config(&rejection.clone().into()), "{rejection:?}");
    assert!(!rejection.reason.is_empty());
    assert_eq!(bus.arrived().await, []);
}

fn is_config(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Rejected(rejection) if rejection.class == RejectionClass::Config)
}

/// An answer that comes when nobody waits for it any more is not taken for another event's.
pub async fn a_late_answer_is_of_no_other_event(bus: &dyn Bus, can: &Capabilities) {
    let Some(faults) = bus.faults() else { return };
    let publisher = bus.publisher();
    let mut batch = batch(0..8);
    publish_all(&*publisher, &batch[..1]).await;
    if !faults.delay_answers(LATE).await {
        return;
    }
    for outcome in publish(&*publisher, &batch[1..4]).await {
        assert!(is_sent_again(&outcome), "{outcome:?} before its answer");
    }
    faults.delay_answers(Duration::ZERO).await;
    // The first answers that come now are to what was sent before.
    if can.refuses_unrouted {
        batch[4].event_type = "nowhere".into();
        batch[5].event_type = "nowhere".into();
    }
    let outcomes = publish(&*publisher, &batch[4..]).await;
    let arrived: HashSet<_> = arrived_ids(bus).await.into_iter().collect();
    let mut left = batch[1..4].to_vec();
    for (record, outcome) in batch[4..].iter().zip(&outcomes) {
        let is_there = arrived.contains(&record.id.to_string());
        assert!(
            is_there || *outcome != Outcome::Acked,
            "{outcome:?} of an event that is not there"
        );
        if record.event_type != "nowhere" && *outcome != Outcome::Acked {
            left.push(record.clone());
        }
    }
    publish_until_acked(&*publisher, &left).await;
}

/// Later than the publishers of the list wait for an answer.
const LATE: Duration = Duration::from_secs(7);

/// The bus may have it: neither sent nor refused, and sent again under the same id.
pub async fn a_lost_answer_is_unknown_and_the_repetition_is_acknowledged(
    bus: &dyn Bus,
    can: &Capabilities,
) {
    let Some(faults) = bus.faults() else { return };
    let publisher = bus.publisher();
    let batch = batch(0..4);
    publish_all(&*publisher, &batch[..1]).await;
    faults.lose_answers().await;
    for outcome in publish(&*publisher, &batch[1..]).await {
        assert!(
            matches!(outcome, Outcome::Unknown { .. }),
            "{outcome:?} although no answer came"
        );
    }
    publish_until_acked(&*publisher, &batch[1..]).await;
    assert_arrived(can, &first_arrivals(bus).await, &[&batch[..1], &batch[1..]]);
    if can.drops_repetitions {
        assert_eq!(bus.arrived().await.len(), 4);
    }
}

/// Killed in the midst of large batches: the acknowledged ones are there, the others can be sent.
pub async fn what_was_acknowledged_survives_a_crash_and_the_rest_can_be_repeated(
    bus: &dyn Bus,
    _can: &Capabilities,
) {
    let Some(faults) = bus.faults() else { return };
    let publisher = bus.publisher();
    publish_all(&*publisher, &batch(0..1)).await;
    let batch = batch(1..801);
    let crash = async {
        sleep(Duration::from_millis(10)).await;
        faults.kill().await;
    };
    let (outcomes, ()) = tokio::join!(publish(&*publisher, &batch), crash);
    faults.restart().await;
    let arrived: HashSet<_> = arrived_ids(bus).await.into_iter().collect();
    let mut left = Vec::new();
    for (record, outcome) in batch.iter().zip(&outcomes) {
        if *outcome == Outcome::Acked {
            assert!(
                arrived.contains(&record.id.to_string()),
                "acknowledged and lost"
            );
        } else {
            assert!(is_sent_again(outcome), "{outcome:?} of a crashed bus");
            left.push(record.clone());
        }
    }
    publish_until_acked(&*publisher, &left).await;
    let arrived: HashSet<_> = arrived_ids(bus).await.into_iter().collect();
    assert!(ids(&batch).iter().all(|id| arrived.contains(id)));
}
