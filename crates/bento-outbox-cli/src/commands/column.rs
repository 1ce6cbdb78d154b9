//! A record as the view `outbox_events` has it: the same names, in the same order.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bento_outbox::OutboxRecord;
use bento_outbox_dashboard::EventColumns;
use serde_json::value::RawValue;
use serde_json::{Value, to_value};

use crate::terminal;

/// What stands in a column.
pub(crate) enum Cell {
    Value(Value),
    /// JSON as it stands in the row, on one line.
    Json(Box<RawValue>),
}

impl Cell {
    fn of(value: impl serde::Serialize) -> Self {
        Self::Value(to_value(value).unwrap_or_default())
    }

    /// JSON text byte for byte, but for line breaks between its tokens, which are no part of it.
    fn json(text: &str) -> Self {
        let line = text.replace(['\n', '\r'], " ");
        RawValue::from_string(line).map_or(Self::Value(Value::Null), Self::Json)
    }

    /// What a script reads.
    fn written(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Json(json) => json.get().into(),
        }
    }

    /// What a person reads.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Value(Value::Null) => "-".into(),
            Self::Value(Value::String(text)) => terminal::visible(text),
            other => terminal::visible(&other.written()),
        }
    }
}

/// The columns with their names; `payload` and `data` only if they are asked for.
pub(crate) fn columns(record: &OutboxRecord, with_payload: bool) -> Vec<(&'static str, Cell)> {
    let mut columns = vec![
        ("id", Cell::of(record.id)),
        ("seq", Cell::of(record.seq)),
        ("tenant_id", Cell::of(record.tenant.as_str())),
        ("aggregate_type", Cell::of(&record.aggregate.kind)),
        ("aggregate_id", Cell::of(&record.aggregate.id)),
        ("type", Cell::of(&record.event_type)),
        ("schema_id", Cell::of(&record.schema_id)),
        ("schema_ver", Cell::of(record.schema_version)),
    ];
    if with_payload {
        let (payload, data) = match record.is_json {
            true => (
                Cell::json(&String::from_utf8_lossy(&record.payload)),
                Cell::of(()),
            ),
            false => (
                Cell::of(()),
                Cell::of(BASE64_STANDARD.encode(&record.payload)),
            ),
        };
        columns.extend([("payload", payload), ("data", data)]);
    }
    let delivery = &record.delivery;
    columns.extend([
        ("content_type", Cell::of(&record.content_type)),
        ("key_id", Cell::of(&record.key_id)),
        ("headers", Cell::json(&record.headers)),
        ("occurred_at", Cell::of(record.occurred_at)),
        ("created_at", Cell::of(record.created_at)),
        ("available_at", Cell::of(record.available_at)),
        ("status", Cell::of(delivery.status)),
        ("retry_cnt", Cell::of(delivery.retry_cnt)),
        ("retry_at", Cell::of(delivery.retry_at)),
        ("error_message", Cell::of(&delivery.error_message)),
        ("sent_at", Cell::of(delivery.sent_at)),
    ]);
    columns
}

/// One JSON object on one line.
pub(crate) fn json_line(record: &OutboxRecord, with_payload: bool) -> String {
    json_line_with(&[], record, with_payload)
}

/// One JSON object on one line, with other members before the columns. Line breaks between the tokens of
/// a payload are no part of it and become spaces.
pub(crate) fn json_line_with(
    others: &[(&'static str, Value)],
    record: &OutboxRecord,
    with_payload: bool,
) -> String {
    let columns = match with_payload {
        true => EventColumns::with_payload(record.clone()),
        false => EventColumns::of(record.clone()),
    };
    let columns = serde_json::to_string(&columns).unwrap_or_default();
    let members = columns.strip_prefix('{').unwrap_or_default();
    let others: String = others
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value},"))
        .collect();
    format!("{{{others}{members}").replace(['\n', '\r'], " ")
}

/// `order 7`, or a dash where an event has no aggregate.
pub(crate) fn aggregate(record: &OutboxRecord) -> String {
    let aggregate = match (&record.aggregate.kind, &record.aggregate.id) {
        (Some(kind), Some(id)) => format!("{kind} {id}"),
        (kind, id) => kind.clone().or(id.clone()).unwrap_or_else(|| "-".into()),
    };
    terminal::visible(&aggregate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bento_outbox::{Event, Payload, Tenant, Timestamp};

    fn record(payload: Payload) -> OutboxRecord {
        let event = Event::new("order.placed", payload);
        OutboxRecord::of(&event, &Tenant::default(), 7, Timestamp::now())
    }

    #[test]
    fn a_json_payload_stays_as_it_is_on_one_line_and_is_there_only_if_asked_for() {
        let record = record(Payload::json("{ \"n\":\n 1e400, \"a\":\"\\n\" }").unwrap());
        let line = json_line(&record, true);
        assert!(
            line.contains("\"payload\":{ \"n\":  1e400, \"a\":\"\\n\" },\"data\":null,"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
        let without = json_line(&record, false);
        assert!(
            !without.contains("payload") && !without.contains("\"data\""),
            "{without}"
        );
        let read: Value = serde_json::from_str(&without).unwrap();
        assert_eq!(
            (&read["seq"], &read["tenant_id"], &read["sent_at"]),
            (&7.into(), &"default".into(), &Value::Null)
        );
        assert_eq!(read["headers"], serde_json::json!({}));
    }

    #[test]
    fn bytes_are_base64() {
        let line = json_line(&record(Payload::Data(vec![0, 255].into())), true);
        assert!(
            line.contains("\"payload\":null,\"data\":\"AP8=\""),
            "{line}"
        );
    }

    #[test]
    fn people_and_programs_are_shown_the_same_columns() {
        for (payload, with_payload) in [("1", true), ("1", false)] {
            let record = record(Payload::json(payload).unwrap());
            let line = json_line(&record, with_payload);
            let mut at = 0;
            for (name, cell) in columns(&record, with_payload) {
                let member = format!("\"{name}\":{}", cell.written());
                at += line[at..]
                    .find(&member)
                    .unwrap_or_else(|| panic!("no {member} in {line}"));
            }
            assert_eq!(
                line.matches("\":").count(),
                columns(&record, with_payload).len()
            );
        }
    }
}
