//! RabbitMQ: a durable queue, which the processes share. What a process has not acknowledged when its
//! connection ends goes back into the queue at once.

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};

use super::{AT_A_TIME, Answer, Bills, CONSUMER, PAUSE, Problem, TYPE};

/// The exchange that the outbox publishes to, by default.
const EXCHANGE: &str = "outbox";

/// Consumes until the connection ends.
pub(super) async fn consume(url: &str, bills: &Bills) -> Result<(), Problem> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let none = FieldTable::default;
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, durable, none())
        .await?;
    channel
        .queue_declare(CONSUMER.into(), QueueDeclareOptions::durable(), none())
        .await?;
    let key = QueueBindOptions::default();
    channel
        .queue_bind(CONSUMER.into(), EXCHANGE.into(), TYPE.into(), key, none())
        .await?;
    channel
        .basic_qos(AT_A_TIME, BasicQosOptions::default())
        .await?;
    let mut consumer = channel
        .basic_consume(
            CONSUMER.into(),
            "".into(),
            BasicConsumeOptions::default(),
            none(),
        )
        .await?;
    while let Some(delivered) = consumer.next().await {
        let delivered = delivered?;
        let headers = delivered.properties.headers().iter().flatten();
        let headers = headers.filter_map(|(name, value)| match value {
            AMQPValue::LongString(value) => Some((name.as_str(), value.as_bytes())),
            _ => None,
        });
        match bills.receive(headers, &delivered.data).await {
            Answer::Done => {
                delivered.ack(BasicAckOptions::default()).await?;
            }
            Answer::Later => {
                // RabbitMQ would deliver it again at once.
                tokio::time::sleep(PAUSE).await;
                let again = BasicNackOptions {
                    requeue: true,
                    ..BasicNackOptions::default()
                };
                delivered.nack(again).await?;
            }
        }
    }
    Ok(())
}
