//! An event as JSON: the columns of the view `outbox_events`, under their names, in their order.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bento_outbox::{OutboxRecord, Status, Timestamp};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// A record with the names that the view `outbox_events` has. Payload and headers are the bytes that
/// stand in the row: no number loses a digit and no member its place.
#[derive(Debug, Serialize)]
pub struct EventColumns {
    id: Uuid,
    seq: i64,
    tenant_id: String,
    aggregate_type: Option<String>,
    aggregate_id: Option<String>,
    r#type: String,
    schema_id: Option<String>,
    schema_ver: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Option<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Option<String>>,
    content_type: String,
    key_id: Option<String>,
    headers: Option<Box<RawValue>>,
    occurred_at: Timestamp,
    created_at: Timestamp,
    available_at: Timestamp,
    status: Status,
    retry_cnt: u32,
    retry_at: Option<Timestamp>,
    error_message: Option<String>,
    sent_at: Option<Timestamp>,
}

impl EventColumns {
    /// The columns of a record, without `payload` and `data`.
    pub fn of(record: OutboxRecord) -> Self {
        let delivery = record.delivery;
        Self {
            id: record.id,
            seq: record.seq,
            tenant_id: record.tenant.into(),
            aggregate_type: record.aggregate.kind,
            aggregate_id: record.aggregate.id,
            r#type: record.event_type,
            schema_id: record.schema_id,
            schema_ver: record.schema_version,
            payload: None,
            data: None,
            content_type: record.content_type,
            key_id: record.key_id,
            headers: RawValue::from_string(record.headers).ok(),
            occurred_at: record.occurred_at,
            created_at: record.created_at,
            available_at: record.available_at,
            status: delivery.status,
            retry_cnt: delivery.retry_cnt,
            retry_at: delivery.retry_at,
            error_message: delivery.error_message,
            sent_at: delivery.sent_at,
        }
    }

    /// All the columns of a record; of `payload` and `data` one is null.
    pub fn with_payload(record: OutboxRecord) -> Self {
        let (payload, data) = match record.is_json {
            true => {
                let text = String::from_utf8_lossy(&record.payload).into_owned();
                (RawValue::from_string(text).ok(), None)
            }
            false => (None, Some(BASE64_STANDARD.encode(&record.payload))),
        };
        Self {
            payload: Some(payload),
            data: Some(data),
            ..Self::of(record)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bento_outbox::{Event, Payload, Tenant};

    fn record(payload: Payload) -> OutboxRecord {
        let event = Event::new("order.placed", payload);
        OutboxRecord::of(&event, &Tenant::default(), 7, Timestamp::now())
    }

    #[test]
    fn a_json_payload_stays_byte_for_byte_and_is_there_only_if_asked_for() {
        let record = record(Payload::json("{ \"n\":\n 1e400, \"a\":\"\\n\" }").unwrap());
        let with = serde_json::to_string(&EventColumns::with_payload(record.clone())).unwrap();
        assert!(
            with.contains("\"schema_ver\":1,\"payload\":{ \"n\":\n 1e400, \"a\":\"\\n\" },\"data\":null,\"content_type\":"),
            "{with}"
        );
        let without = serde_json::to_string(&EventColumns::of(record)).unwrap();
        assert!(
            !without.contains("payload") && !without.contains("\"data\""),
            "{without}"
        );
    }

    #[test]
    fn bytes_are_base64() {
        let with = EventColumns::with_payload(record(Payload::Data(vec![0, 255].into())));
        let with = serde_json::to_string(&with).unwrap();
        assert!(
            with.contains("\"payload\":null,\"data\":\"AP8=\""),
            "{with}"
        );
    }
}
