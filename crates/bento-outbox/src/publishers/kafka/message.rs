//! A record as Kafka carries it.

use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};

use crate::cloud_event::CloudEvents;
use crate::record::{OutboxRecord, Rejection, RejectionClass};
use crate::topic::Topic;

/// An event on its way.
pub(super) struct Message<'a> {
    pub(super) topic: String,
    pub(super) key: Option<&'a str>,
    pub(super) headers: OwnedHeaders,
    pub(super) body: Bytes,
    /// What a batch with it alone has, at least.
    pub(super) bytes: usize,
}

/// The bytes of a batch with one record that are in none of its parts, at least: 61 of the batch
/// and 7 of the record (<https://kafka.apache.org/documentation/#recordbatch>).
pub(super) const FRAME_BYTES: usize = 68;

impl<'a> Message<'a> {
    /// The message of `record`.
    ///
    /// # Errors
    /// A permanent rejection when no bus could carry it, or Kafka no such topic.
    pub(super) fn of(
        record: &'a OutboxRecord,
        topic: &Topic,
        events: &'a CloudEvents,
    ) -> Result<Self, Rejection> {
        let event = events.message(record)?;
        let topic = topic.of(record)?;
        check_topic(&topic)?;
        let mut headers =
            OwnedHeaders::new_with_capacity(event.attributes.len() + event.headers.len() + 1);
        let mut bytes = FRAME_BYTES + event.body.len();
        let mut add = |headers: OwnedHeaders, name: &str, value: &str| {
            bytes += name.len() + value.len();
            headers.insert(Header {
                key: name,
                value: Some(value),
            })
        };
        headers = add(headers, "content-type", event.content_type);
        for (name, value) in &event.attributes {
            // The binding has the content type in the header of that name alone.
            if *name != "datacontenttype" {
                headers = add(headers, &format!("ce_{name}"), value);
            }
        }
        for (name, value) in &event.headers {
            headers = add(headers, name, value);
        }
        let key = record.aggregate.id.as_deref();
        Ok(Self {
            topic,
            key,
            headers,
            body: event.body,
            bytes: bytes + key.map_or(0, str::len),
        })
    }
}

/// Refuses a topic that no broker would take.
pub(super) fn check_topic(topic: &str) -> Result<(), Rejection> {
    const BYTES_MAX: usize = 249;
    let refuse = |what| {
        Err(Rejection::new(
            RejectionClass::Permanent,
            format!("topic {topic:?} {what}"),
        ))
    };
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if topic.is_empty() || topic.len() > BYTES_MAX || [".", ".."].contains(&topic) {
        return refuse("is empty, a dot, or longer than the 249 characters of a Kafka topic");
    }
    if !topic.bytes().all(is_fine) {
        return refuse("has other characters than the letters, digits, . _ - of a Kafka topic");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_kafka_would_not_take_is_refused() {
        let long = "x".repeat(250);
        for topic in ["", ".", "..", "a b", "a/b", "a:b", "ä", "a\0", "a\n", &long] {
            let rejection = check_topic(topic).unwrap_err();
            assert_eq!(rejection.class, RejectionClass::Permanent, "{topic}");
        }
        for topic in ["a", "a.b", "...", "A_b-9", &long[1..]] {
            check_topic(topic).unwrap();
        }
    }
}
