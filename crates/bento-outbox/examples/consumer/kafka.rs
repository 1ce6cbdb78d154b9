//! Kafka: a consumer group. Positions are committed by hand, after the commit in the database.

use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers as _, Message as _};

use super::{Answer, Bills, CONSUMER, PAUSE, Problem, TAKE_OVER, TYPE};

/// Consumes until the client gives up.
pub(super) async fn consume(url: &str, bills: &Bills) -> Result<(), Problem> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", url.trim_start_matches("kafka://"))
        .set("group.id", CONSUMER)
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        // The partitions of a process that died are given to others after this.
        .set("session.timeout.ms", TAKE_OVER.as_millis().to_string())
        .create()?;
    consumer.subscribe(&[TYPE])?;
    loop {
        let delivered = match consumer.recv().await {
            Ok(delivered) => delivered,
            // The client connects again by itself, as the same member of the group.
            Err(KafkaError::MessageConsumption(problem)) => {
                eprintln!("the bus is away: {problem}");
                continue;
            }
            Err(problem) => return Err(problem.into()),
        };
        let body = delivered.payload().unwrap_or_default();
        let headers = || {
            let headers = delivered.headers().into_iter();
            let headers = headers.flat_map(|headers| headers.iter());
            headers.map(|header| (header.key, header.value.unwrap_or_default()))
        };
        // A position says that everything before it is done, so nothing can be left for later.
        while bills.receive(headers(), body).await == Answer::Later {
            tokio::time::sleep(PAUSE).await;
        }
        consumer.commit_message(&delivered, CommitMode::Async)?;
    }
}
