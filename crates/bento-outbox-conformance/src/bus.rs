//! What every bus must do: one list of cases, one line a bus.
//!
//! ```text
//! bus_suite!(nats, fresh_nats, Capabilities { … });
//! ```
//!
//! makes one test of every case in [`bus_cases!`](crate::bus_cases). `fresh_nats` is an
//! `async fn() -> impl Bus`: an empty bus of its own for each case, which also says what arrived,
//! read by something else than our code. What a bus cannot do is said once, in [`Capabilities`].

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::{
    Aggregate, Event, Headers, OutboxRecord, Outcome, Payload, Publisher, Tenant, Timestamp,
};
use tokio::time::timeout;

pub mod answering;
pub mod arriving;
pub mod failing;

/// An empty bus, for one case.
#[async_trait]
pub trait Bus: Send + Sync {
    /// A new publisher to the bus, as a relay makes one when it starts.
    fn publisher(&self) -> Box<dyn Publisher>;

    /// A publisher to a place where there is no bus. None where that cannot be.
    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>>;

    /// A publisher whom the bus turns away. None where it asks nobody who he is.
    fn publisher_of_a_stranger(&self) -> Option<Box<dyn Publisher>> {
        None
    }

    /// All that arrived since the bus was made, in its order, read without code of bento-outbox.
    async fn arrived(&self) -> Vec<Arrived>;

    /// The means to make the bus fail. None where it cannot.
    fn faults(&self) -> Option<&dyn Faults> {
        None
    }
}

/// The ways in which a bus that is somewhere else fails.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Kills the bus in the midst of what it does.
    async fn kill(&self);
    /// Starts the bus again with all that it had kept.
    async fn restart(&self);
    /// Lets the bus take what it is sent, but do and answer nothing.
    async fn pause(&self);
    /// Lets a paused bus go on.
    async fn resume(&self);
    /// Loses the answers to what is published next, on the connections there are.
    async fn lose_answers(&self);
    /// Holds back each answer for so long, on the connections there are and on new ones; zero ends
    /// it. Answers whether it can.
    async fn delay_answers(&self, _delay: Duration) -> bool {
        false
    }
}

/// A message as a consumer of the bus reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// The attributes of the CloudEvent, without their prefix and decoded.
    pub attributes: BTreeMap<String, String>,
    /// The other headers that the event was given.
    pub headers: BTreeMap<String, String>,
    /// The payload.
    pub body: Vec<u8>,
}

/// What sets one bus apart from others.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// It keeps what it acknowledges. All but `null:`.
    pub keeps: bool,
    /// The body travels apart from the attributes. Otherwise an event is one line of text, in which
    /// the line breaks of JSON become spaces.
    pub carries_bodies: bool,
    /// The records of a batch arrive in the order given. Otherwise they are sent side by side, and
    /// only whole batches arrive one after the other.
    pub keeps_batch_order: bool,
    /// The names of headers arrive in small letters, since the protocol takes them without case.
    pub lowers_header_names: bool,
    /// It drops an event that it has already, by its id.
    pub drops_repetitions: bool,
    /// It refuses an event whose topic nobody takes; events of the type `nowhere` have such a topic.
    pub refuses_unrouted: bool,
    /// The largest payload that the bus takes for sure; four times as much is refused for good.
    pub payload_bytes_max: Option<usize>,
}

/// Hands the list of cases, as `module::case`, to a macro.
#[macro_export]
macro_rules! bus_cases {
    ($run:path { $($arguments:tt)* }) => {
        $run! {
            { $($arguments)* }
            arriving::every_attribute_and_header_arrives,
            arriving::what_an_event_does_not_have_is_left_out,
            arriving::hostile_text_arrives_as_it_is,
            arriving::any_bytes_arrive_unchanged,
            arriving::json_arrives_as_written,
            arriving::an_empty_payload_arrives_empty,
            arriving::a_batch_arrives_in_its_order,
            arriving::batches_arrive_one_after_the_other,
            arriving::batches_at_the_same_time_lose_nothing,
            arriving::a_new_publisher_adds_to_what_is_there,
            answering::every_record_is_answered_in_its_place,
            answering::a_batch_of_none_has_no_answers,
            answering::a_bad_record_is_refused_for_good_and_its_neighbours_are_not,
            answering::a_payload_too_large_is_refused_for_good_and_its_neighbours_are_not,
            answering::a_topic_that_nobody_takes_is_refused,
            answering::a_repetition_is_acknowledged,
            answering::a_batch_waits_for_the_way_once_and_not_for_each_event,
            answering::a_check_of_a_working_bus_is_content,
            failing::a_bus_that_is_not_there_is_said_to_be_away,
            failing::a_bus_that_went_away_is_reached_again,
            failing::a_silent_bus_is_not_waited_for_and_nothing_is_acknowledged,
            failing::a_stranger_is_turned_away_and_costs_no_attempt,
            failing::a_late_answer_is_of_no_other_event,
            failing::a_lost_answer_is_unknown_and_the_repetition_is_acknowledged,
            failing::what_was_acknowledged_survives_a_crash_and_the_rest_can_be_repeated,
        }
    };
}

/// Makes one test of every case for one bus: `bus_suite!(name, async_fn_that_makes_it_fresh, capabilities)`.
#[macro_export]
macro_rules! bus_suite {
    ($name:ident, $fresh:path, $capabilities:expr) => {
        mod $name {
            $crate::bus_cases!($crate::__bus_tests {
                $fresh,
                $capabilities
            });
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __bus_tests {
    ({ $fresh:path, $capabilities:expr } $($group:ident::$case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                #[allow(unused_imports)]
                use super::*;
                let bus = $fresh().await;
                $crate::bus::$group::$case(&bus, &$capabilities).await;
            }
        )*
    };
}

/// Longer than any answer may take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(120);

/// An event of the aggregate `order/KEY`, with a number by which cases tell it from others.
fn event(key: &str, number: usize) -> Event {
    Event {
        aggregate: Aggregate::new("order", key),
        ..Event::new("case.changed", json(&format!("{{\"n\":{number}}}")))
    }
}

fn json(text: &str) -> Payload {
    match Payload::json(text) {
        Ok(payload) => payload,
        Err(error) => panic!("{text} is a wrong example of JSON: {error}"),
    }
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in pairs {
        if let Err(error) = headers.insert(*name, *value) {
            panic!("a wrong example of a header: {error}");
        }
    }
    headers
}

/// The row of `event` with the number `seq`, of the default tenant.
fn row(event: &Event, seq: usize) -> OutboxRecord {
    OutboxRecord::of(event, &Tenant::default(), seq as i64, Timestamp::now())
}

fn record(event: &Event) -> OutboxRecord {
    row(event, 1)
}

/// So many records, each of an aggregate of its own, as a projector's batch has them.
fn batch(numbers: std::ops::Range<usize>) -> Vec<OutboxRecord> {
    numbers
        .map(|n| row(&event(&format!("k{n}"), n), n))
        .collect()
}

/// Publishes, and fails where that takes too long or a record has no answer.
async fn publish(publisher: &dyn Publisher, batch: &[OutboxRecord]) -> Vec<Outcome> {
    let Ok(outcomes) = timeout(PATIENCE, publisher.publish(batch)).await else {
        panic!("publish took longer than {PATIENCE:?}");
    };
    assert_eq!(outcomes.len(), batch.len(), "one answer for each record");
    outcomes
}

async fn publish_all(publisher: &dyn Publisher, batch: &[OutboxRecord]) {
    for (n, outcome) in publish(publisher, batch).await.iter().enumerate() {
        assert_eq!(*outcome, Outcome::Acked, "record {n} of {}", batch.len());
    }
}

/// Publishes one event and reads what arrived of it; none where the bus keeps nothing.
async fn passed(bus: &dyn Bus, can: &Capabilities, record: &OutboxRecord) -> Option<Arrived> {
    let before = bus.arrived().await.len();
    publish_all(&*bus.publisher(), std::slice::from_ref(record)).await;
    let mut arrived = bus.arrived().await;
    if !can.keeps {
        return None;
    }
    assert_eq!(arrived.len(), before + 1, "one event arrives once");
    arrived.pop()
}

fn ids(records: &[OutboxRecord]) -> Vec<String> {
    records.iter().map(|record| record.id.to_string()).collect()
}

/// Holds the ids that arrived against what was published, one batch after the other.
fn assert_arrived(can: &Capabilities, arrived: &[String], batches: &[&[OutboxRecord]]) {
    let expected = batches.iter().map(|batch| batch.len()).sum::<usize>();
    assert_eq!(arrived.len(), expected, "so many events arrive");
    let mut rest = arrived;
    for batch in batches {
        let (arrived, later) = rest.split_at(batch.len());
        rest = later;
        let (mut arrived, mut expected) = (arrived.to_vec(), ids(batch));
        if !can.keeps_batch_order {
            arrived.sort();
            expected.sort();
        }
        assert_eq!(arrived, expected);
    }
}

/// The ids that arrived, in order.
async fn arrived_ids(bus: &dyn Bus) -> Vec<String> {
    let arrived = bus.arrived().await;
    arrived.iter().map(|event| event.id().to_owned()).collect()
}

impl Arrived {
    /// The attribute `id`.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn id(&self) -> &str {
        let id = self.attributes.get("id");
        id.unwrap_or_else(|| panic!("an event without an id arrived: {self:?}"))
    }
}
