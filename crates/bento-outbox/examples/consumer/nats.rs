//! JetStream: a durable pull consumer, which the processes share.

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::{self, AckKind};
use futures_util::StreamExt as _;

use super::{AT_A_TIME, Answer, Bills, CONSUMER, PAUSE, Problem, TAKE_OVER, TYPE};

/// Consumes until the connection is lost for good.
pub(super) async fn consume(url: &str, bills: &Bills) -> Result<(), Problem> {
    let context = jetstream::new(async_nats::connect(url).await?);
    let stream = context.stream_by_subject(TYPE).await;
    let stream = stream.map_err(|problem| match problem.kind() {
        GetStreamByNameErrorKind::NotFound => Problem::from(format!(
            "no stream takes the subject {TYPE}; have the relay make one, by \
             ?stream=ORDERS&create=true&subjects=order.>"
        )),
        _ => problem.into(),
    })?;
    let settings = pull::Config {
        durable_name: Some(CONSUMER.into()),
        filter_subject: TYPE.into(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: TAKE_OVER,
        ..pull::Config::default()
    };
    let stream = context.get_stream(stream).await?;
    let consumer: PullConsumer = stream.get_or_create_consumer(CONSUMER, settings).await?;
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(AT_A_TIME.into())
        .messages()
        .await?;
    while let Some(delivered) = messages.next().await {
        let delivered = delivered?;
        let headers = delivered.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers.filter_map(|(name, values)| Some((name, values.first()?)));
        match bills.receive(headers, &delivered.payload).await {
            Answer::Done => delivered.ack().await?,
            Answer::Later => delivered.ack_with(AckKind::Nak(Some(PAUSE))).await?,
        }
    }
    Ok(())
}
