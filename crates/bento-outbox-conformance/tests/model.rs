//! The delivery protocol of `docs/src/protocol.md` as a model, and its promises checked in every order of its steps.
//!
//! Two writers, two relays, the database and a bus. [`database`] has the statements, [`writer`] and [`relay`] what a
//! process does between them, [`bus`] what becomes of a message, [`steps`] when each step is possible, and
//! [`promises`] what must hold. A statement is one step, because it is one statement; everything between two
//! statements may be interrupted for as long as one likes.
//!
//! *Time* is who thinks that a term is over. An awake process knows by its own clock before the database does, and
//! what it begins in time it ends in time. Only one that is paused finds out afterwards: a pause lasts longer than
//! the term, and shorter ones are no different from being slow, which every process may be.
//!
//! A test that fails prints the shortest way there. When the SQL changes, this changes first.

mod bus;
mod database;
mod promises;
mod relay;
mod rules;
mod steps;
mod world;
mod writer;

use std::collections::BTreeSet;

use stateright::{Checker, HasDiscoveries, Model};

use promises::{FENCED, IN_ORDER, NO_PHANTOM, NOTHING_LOST, ONCE, SENT_IS_SOUND};
use rules::{Delivery, Mistake, Rules};
use world::World;

/// Two writers of one key. Everything that must be seen to happen happens here.
const ONE_KEY: Delivery = Delivery {
    plan: [&[0], &[0]],
    at_once: true,
    faults: 2,
    shutdowns: 0,
    rules: Rules { mistake: None },
};

/// A writer goes on to its next event while the last one is under way.
const THREE_EVENTS: Delivery = Delivery {
    plan: [&[0, 0], &[0]],
    ..ONE_KEY
};

/// Transactions of two keys overlap, so one may commit late.
const TWO_KEYS: Delivery = Delivery {
    plan: [&[0], &[1]],
    ..ONE_KEY
};

/// Both at once.
const MIXED: Delivery = Delivery {
    plan: [&[0, 1], &[0]],
    ..ONE_KEY
};

#[test]
fn the_protocol_keeps_its_promises_for_one_key() {
    let seen = holds(Delivery {
        shutdowns: 1,
        ..ONE_KEY
    });
    for property in ONE_KEY.properties() {
        let must_be_seen = !property.expectation.discovery_is_failure();
        assert!(
            !must_be_seen || seen.contains(property.name),
            "never seen: {}",
            property.name
        );
    }
}

#[test]
fn the_protocol_keeps_its_promises_for_two_keys() {
    holds(Delivery {
        faults: 1,
        shutdowns: 1,
        ..TWO_KEYS
    });
}

#[test]
fn the_protocol_keeps_its_promises_for_a_writer_with_two_events() {
    holds(Delivery {
        faults: 1,
        shutdowns: 1,
        ..THREE_EVENTS
    });
    holds(Delivery { faults: 1, ..MIXED });
}

#[test]
fn the_protocol_keeps_its_promises_without_publishing_at_once() {
    holds(Delivery {
        at_once: false,
        faults: 3,
        ..ONE_KEY
    });
    holds(Delivery {
        at_once: false,
        faults: 2,
        ..THREE_EVENTS
    });
}

#[test]
fn without_faults_two_shutdowns_do_no_harm() {
    for delivery in [ONE_KEY, THREE_EVENTS, TWO_KEYS, MIXED] {
        holds(Delivery {
            faults: 0,
            shutdowns: 2,
            ..delivery
        });
    }
}

#[test]
#[ignore = "takes minutes; worth it whenever the protocol changes"]
fn the_protocol_keeps_its_promises_with_more_faults() {
    let wider = [
        Delivery {
            faults: 3,
            shutdowns: 1,
            ..ONE_KEY
        },
        Delivery {
            shutdowns: 1,
            ..TWO_KEYS
        },
        THREE_EVENTS,
        MIXED,
    ];
    for delivery in wider {
        holds(delivery);
    }
}

/// The first event waits, the second is published at once.
#[test]
fn publishing_at_once_past_an_unsent_event_reorders() {
    breaks(Mistake::OvertakesUnsent, 0, ONE_KEY, &[IN_ORDER]);
}

/// Writer and relay publish the same row.
#[test]
fn publishing_at_once_without_a_birth_lease_doubles() {
    breaks(Mistake::NoBirthLease, 0, ONE_KEY, &[ONCE]);
}

/// In a slow transaction the lease runs out before the commit: a relay takes the row over and publishes it, and so
/// does the writer, who has just begun to count.
#[test]
fn counting_the_term_from_the_commit_doubles() {
    breaks(Mistake::CountsFromCommit, 0, ONE_KEY, &[ONCE]);
}

/// Doubles are all that comes of it: order and fences do not rest on anybody's clock.
#[test]
fn ignoring_the_deadline_doubles_and_no_worse() {
    breaks(Mistake::IgnoresDeadline, 2, ONE_KEY, &[ONCE]);
}

/// The second writer's snapshot is from before the first one's commit. It waits for the lock, inserts, and does not
/// see that the event before its own is unsent.
#[test]
fn asking_in_an_old_snapshot_reorders() {
    breaks(Mistake::OldSnapshot, 0, ONE_KEY, &[IN_ORDER]);
}

/// The transaction is rolled back after all.
#[test]
fn taking_an_unknown_commit_for_a_commit_makes_a_phantom() {
    breaks(Mistake::UnknownIsCommitted, 1, ONE_KEY, &[NO_PHANTOM]);
}

/// The writer is paused before it settles, a relay takes the row over, and the writer settles it.
#[test]
fn a_writer_without_a_fence_changes_what_it_lost() {
    breaks(Mistake::WriterUnfenced, 1, ONE_KEY, &[FENCED]);
}

/// The relay is paused before it settles, another one takes the partition, and the first one settles.
#[test]
fn a_relay_without_a_fence_changes_what_it_lost() {
    breaks(Mistake::RelayUnfenced, 1, ONE_KEY, &[FENCED]);
}

/// The statement reads that the lease is there, the relay is paused, another one takes the partition, and the statement
/// writes.
#[test]
fn a_fence_without_a_lock_lets_a_relay_change_what_it_lost() {
    breaks(Mistake::FenceUnlocked, 1, ONE_KEY, &[FENCED]);
}

/// The same, by the relay's other statement that writes.
#[test]
fn a_take_over_without_a_fence_changes_what_it_lost() {
    breaks(Mistake::TakeOverUnfenced, 1, ONE_KEY, &[FENCED]);
}

/// No fault is needed: a relay has claimed the row, and the writer, late, hands it over.
#[test]
fn a_take_over_that_keeps_the_owner_lets_the_writer_in() {
    breaks(Mistake::TakeOverKeepsOwner, 0, ONE_KEY, &[FENCED]);
}

/// No fault is needed: the transaction with the lower `seq` commits after the relay has read the higher one.
#[test]
fn a_cursor_loses_what_commits_late() {
    breaks(Mistake::Cursor, 0, TWO_KEYS, &[NOTHING_LOST]);
    breaks(Mistake::Cursor, 1, ONE_KEY, &[NOTHING_LOST, IN_ORDER]);
}

/// What was lost on the way is `SENT`, and the next one of its key goes.
#[test]
fn taking_accepted_for_acknowledged_loses() {
    let broken = [SENT_IS_SOUND, NOTHING_LOST, IN_ORDER];
    breaks(Mistake::AcceptedIsSent, 1, ONE_KEY, &broken);
}

/// The first event's answer is unknown, and the second is sent.
#[test]
fn going_on_after_a_failure_reorders() {
    breaks(Mistake::LaterGoesFirst, 1, ONE_KEY, &[IN_ORDER]);
}

/// The first event waits for its retry, and the second is claimed.
#[test]
fn a_retry_that_holds_nothing_reorders() {
    breaks(Mistake::RetryHoldsNothing, 1, ONE_KEY, &[IN_ORDER]);
}

/// No fault is needed: a claim is sent while the first event is published, which is settled before the answer comes.
/// The answer still has it, and it is published again.
#[test]
fn a_claim_that_overlaps_a_settlement_doubles() {
    breaks(Mistake::ForgetsSettled, 0, ONE_KEY, &[ONCE]);
}

/// A claim is sent while the first event is published, which fails and is settled before the answer comes. The
/// answer has the second event, and nothing in hand says that it must wait.
#[test]
fn a_claim_that_overlaps_a_failure_reorders() {
    breaks(Mistake::ForgetsFailed, 1, ONE_KEY, &[IN_ORDER]);
}

/// Looks at every state there is, and says what was seen.
fn holds(delivery: Delivery) -> BTreeSet<&'static str> {
    let seen = all_seen(delivery);
    if let Some(promise) = failures(&seen).first() {
        panic!("not so, {promise}:{}", shortest(delivery, promise));
    }
    seen
}

/// Looks at every state there is: exactly these promises are broken by the mistake.
fn breaks(mistake: Mistake, faults: u8, delivery: Delivery, promises: &[&'static str]) {
    let rules = Rules {
        mistake: Some(mistake),
    };
    let wrong = Delivery {
        faults,
        rules,
        ..delivery
    };
    let broken = failures(&all_seen(wrong));
    let expected: BTreeSet<_> = promises.iter().copied().collect();
    assert_eq!(broken, expected, "{mistake:?}");
    for promise in broken {
        eprintln!(
            "{mistake:?}: not so, {promise}:{}",
            shortest(wrong, promise)
        );
    }
}

fn all_seen(delivery: Delivery) -> BTreeSet<&'static str> {
    let same = if delivery.plan[0] == delivery.plan[1] {
        World::with_all_in_order
    } else {
        World::with_relays_in_order
    };
    let checker = delivery.checker().symmetry_fn(same).spawn_dfs().join();
    eprintln!(
        "{} different states in {} steps, {delivery:?}",
        checker.unique_state_count(),
        checker.state_count()
    );
    checker.discoveries().into_keys().collect()
}

fn failures(seen: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let properties = promises::all().into_iter();
    properties
        .filter(|property| property.expectation.discovery_is_failure())
        .map(|property| property.name)
        .filter(|name| seen.contains(name))
        .collect()
}

/// The shortest run that breaks a promise, a step a line. (The checker reports the last one it saw, so the depth is
/// raised until there is one.)
fn shortest(delivery: Delivery, promise: &'static str) -> String {
    let ways = (1..100).find_map(|depth| {
        let checker = delivery.checker().target_max_depth(depth);
        let until = HasDiscoveries::AllOf(BTreeSet::from([promise]));
        let checker = checker.finish_when(until).spawn_bfs().join();
        checker.discovery(promise)
    });
    let steps = ways.map(|way| way.into_actions()).unwrap_or_default();
    steps.iter().map(|step| format!("\n  {step:?}")).collect()
}
