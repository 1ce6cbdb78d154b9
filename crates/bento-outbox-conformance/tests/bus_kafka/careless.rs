//! Kafka clients as they are easily misused, each of which takes something for an acknowledgement that is
//! none. They speak to the real broker, and the list of cases must notice every one.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use bento_outbox_conformance::bus::failing;
use futures_util::FutureExt;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tokio::time::{Instant, timeout_at};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Care {
    /// As it should be, so that it is the fault that is noticed and not the rest.
    Enough,
    /// Taken by the client is taken for sent.
    AcksWhatIsQueued,
    /// A client with an empty queue is taken for one that has delivered.
    AcksAFlush,
    /// The leader is not even asked to answer.
    AcksWhatIsWritten,
    /// The answer is given up, the record is not: the client sends it when it can.
    OutlivesTheAnswer,
}

/// The broker, and a careless way to it.
struct Careless {
    kafka: Kafka,
    care: Care,
}

struct CarelessPublisher {
    config: ClientConfig,
    producer: Mutex<FutureProducer>,
    care: Care,
}

const TIMEOUT: Duration = Duration::from_secs(5);

#[async_trait]
impl Publisher for CarelessPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let events = CloudEvents::default();
        let producer = self.producer.lock().unwrap().clone();
        let answers = batch.iter().map(|record| {
            let event = events.message(record).unwrap();
            let headers = event
                .attributes
                .iter()
                .filter(|(name, _)| *name != "datacontenttype");
            let headers = headers.fold(
                rdkafka::message::OwnedHeaders::new(),
                |headers, (name, value)| {
                    let (key, value) = (&*format!("ce_{name}"), Some(&**value));
                    headers.insert(rdkafka::message::Header { key, value })
                },
            );
            let message = FutureRecord::to(&record.event_type)
                .key(record.aggregate.id.as_deref().unwrap())
                .payload(&record.payload[..])
                .headers(headers);
            producer.send_result(message).map_err(|(error, _)| error)
        });
        let answers: Vec<_> = answers.collect();
        if self.care == Care::AcksWhatIsQueued {
            return answers
                .iter()
                .map(|answer| outcome(answer.is_ok()))
                .collect();
        }
        if self.care == Care::AcksAFlush {
            let flushed = spawn_blocking(move || producer.flush(4 * TIMEOUT))
                .await
                .unwrap();
            return vec![outcome(flushed.is_ok()); batch.len()];
        }
        let deadline = Instant::now() + TIMEOUT + TIMEOUT;
        let mut outcomes = Vec::new();
        for answer in answers {
            let report = timeout_at(deadline, answer.unwrap()).await;
            outcomes.push(outcome(matches!(report, Ok(Ok(Ok(_))))));
        }
        if outcomes.contains(&outcome(false)) && self.care != Care::OutlivesTheAnswer {
            // A client in which records ran out of time does not always come round by itself.
            *self.producer.lock().unwrap() = self.config.create().unwrap();
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        let producer = self.producer.lock().unwrap().clone();
        let asked =
            spawn_blocking(move || producer.client().fetch_metadata(Some("a"), TIMEOUT).is_ok());
        match asked.await.unwrap() {
            true => Ok(()),
            false => Err(Rejection::new(RejectionClass::Unreachable, "no answer")),
        }
    }
}

fn outcome(is_sent: bool) -> Outcome {
    match is_sent {
        true => Outcome::Acked,
        false => Outcome::unknown("no report"),
    }
}

#[async_trait]
impl Bus for Careless {
    fn publisher(&self) -> Box<dyn Publisher> {
        let mut config = client(&self.kafka.proxy.url_of(&self.kafka.server.url()));
        let patience = match self.care {
            Care::OutlivesTheAnswer => 30 * TIMEOUT,
            _ => TIMEOUT,
        };
        config
            .set("message.timeout.ms", patience.as_millis().to_string())
            .set("allow.auto.create.topics", "false");
        match self.care {
            Care::AcksWhatIsWritten => config.set("acks", "0"),
            _ => config.set("enable.idempotence", "true"),
        };
        Box::new(CarelessPublisher {
            producer: Mutex::new(config.create().unwrap()),
            config,
            care: self.care,
        })
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        None
    }

    async fn arrived(&self) -> Vec<Arrived> {
        self.kafka.arrived().await
    }

    fn faults(&self) -> Option<&dyn Faults> {
        self.kafka.faults()
    }
}

/// Which of the cases of failing buses such a client does not pass.
async fn noticed(care: Care) -> Vec<&'static str> {
    macro_rules! run {
        ($($case:ident)*) => {{
            let mut noticed = Vec::new();
            $({
                let bus = Careless { kafka: fresh_kafka().await, care };
                let case = AssertUnwindSafe(failing::$case(&bus, &KAFKA)).catch_unwind();
                noticed.extend(case.await.is_err().then_some(stringify!($case)));
            })*
            noticed
        }};
    }
    run! {
        a_bus_that_went_away_is_reached_again
        a_silent_bus_is_not_waited_for_and_nothing_is_acknowledged
    }
}

#[tokio::test]
async fn a_client_used_with_care_is_not_complained_of() {
    assert_eq!(noticed(Care::Enough).await, [""; 0]);
}

#[tokio::test]
async fn what_is_only_queued_is_not_acknowledged() {
    assert_ne!(noticed(Care::AcksWhatIsQueued).await, [""; 0]);
}

#[tokio::test]
async fn a_flush_is_no_acknowledgement() {
    assert_ne!(noticed(Care::AcksAFlush).await, [""; 0]);
}

#[tokio::test]
async fn what_is_only_written_is_not_acknowledged() {
    assert_ne!(noticed(Care::AcksWhatIsWritten).await, [""; 0]);
}

#[tokio::test]
async fn a_record_that_outlives_its_answer_is_noticed() {
    assert_ne!(noticed(Care::OutlivesTheAnswer).await, [""; 0]);
}
