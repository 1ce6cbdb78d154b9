//! The list of cases against real adapters on real servers that take one kind of bad news for an
//! acknowledgement: it notices each of them.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use bento_outbox::{OutboxRecord, Outcome, Publisher, Rejection, RejectionClass};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities, Faults, answering, failing};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::bus_rabbitmq::{RABBITMQ, fresh_rabbitmq};
use super::bus_redis::{REDIS, fresh_redis};

/// Whether an outcome is taken for an acknowledgement.
type Takes = fn(&Outcome) -> bool;

fn unknown(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unknown { .. })
}

fn is(outcome: &Outcome, class: RejectionClass) -> bool {
    matches!(outcome, Outcome::Rejected(rejection) if rejection.class == class)
}

/// A bus whose publishers are gullible.
struct Gullible<B> {
    bus: B,
    takes: Takes,
}

struct GulliblePublisher {
    publisher: Box<dyn Publisher>,
    takes: Takes,
}

#[async_trait]
impl Publisher for GulliblePublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut outcomes = self.publisher.publish(batch).await;
        for outcome in outcomes.iter_mut().filter(|outcome| (self.takes)(outcome)) {
            *outcome = Outcome::Acked;
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        self.publisher.check().await
    }
}

impl<B> Gullible<B> {
    fn gullible(&self, publisher: Box<dyn Publisher>) -> Box<dyn Publisher> {
        let takes = self.takes;
        Box::new(GulliblePublisher { publisher, takes })
    }
}

#[async_trait]
impl<B: Bus> Bus for Gullible<B> {
    fn publisher(&self) -> Box<dyn Publisher> {
        self.gullible(self.bus.publisher())
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let publisher = self.bus.publisher_to_nowhere()?;
        Some(self.gullible(publisher))
    }

    fn publisher_of_a_stranger(&self) -> Option<Box<dyn Publisher>> {
        let publisher = self.bus.publisher_of_a_stranger()?;
        Some(self.gullible(publisher))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        self.bus.arrived().await
    }

    fn faults(&self) -> Option<&dyn Faults> {
        self.bus.faults()
    }
}

type Case = for<'a> fn(&'a dyn Bus, &'a Capabilities) -> BoxFuture<'a, ()>;

/// A case that a bus with such publishers must not pass.
async fn fails(bus: impl Bus, can: &Capabilities, takes: Takes, case: Case) {
    let bus = Gullible { bus, takes };
    let run = AssertUnwindSafe(case(&bus, can)).catch_unwind();
    assert!(run.await.is_err(), "the case does not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_notices_an_answer_that_did_not_come() {
    let cases: [Case; 2] = [
        |bus, can| {
            let case = failing::a_lost_answer_is_unknown_and_the_repetition_is_acknowledged;
            Box::pin(case(bus, can))
        },
        |bus, can| {
            let case = failing::a_silent_bus_is_not_waited_for_and_nothing_is_acknowledged;
            Box::pin(case(bus, can))
        },
    ];
    for case in cases {
        fails(fresh_redis().await, &REDIS, unknown, case).await;
    }
    fails(fresh_rabbitmq().await, &RABBITMQ, unknown, cases[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_notices_a_message_that_came_back() {
    let takes: Takes = |outcome| is(outcome, RejectionClass::Blocked);
    fails(fresh_rabbitmq().await, &RABBITMQ, takes, |bus, can| {
        Box::pin(answering::a_topic_that_nobody_takes_is_refused(bus, can))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_notices_a_refusal_of_a_message_of_a_user_and_of_a_connection() {
    let takes: [(Takes, Case); 3] = [
        (
            |outcome| is(outcome, RejectionClass::Permanent),
            |bus, can| {
                let case =
                    answering::a_payload_too_large_is_refused_for_good_and_its_neighbours_are_not;
                Box::pin(case(bus, can))
            },
        ),
        (
            |outcome| is(outcome, RejectionClass::Config),
            |bus, can| {
                let case = failing::a_stranger_is_turned_away_and_costs_no_attempt;
                Box::pin(case(bus, can))
            },
        ),
        (
            |outcome| is(outcome, RejectionClass::Unreachable),
            |bus, can| {
                let case = failing::a_bus_that_is_not_there_is_said_to_be_away;
                Box::pin(case(bus, can))
            },
        ),
    ];
    for (takes, case) in takes {
        fails(fresh_redis().await, &REDIS, takes, case).await;
        fails(fresh_rabbitmq().await, &RABBITMQ, takes, case).await;
    }
}
