//! A record as every bus carries it: a CloudEvent 1.0.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::event::Headers;
use crate::record::{OutboxRecord, Rejection, RejectionClass};

/// How records become CloudEvents: the one mapping that all buses share.
///
/// ```
/// use bento_outbox::CloudEvents;
/// let events = CloudEvents { source: "https://shop.example/orders".into(), ..Default::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudEvents {
    /// The attribute `source`, a URI reference. Defaults to `urn:bento-outbox`.
    pub source: String,
    /// Where the attributes stand on a bus that has headers. Defaults to [`ContentMode::Binary`].
    pub mode: ContentMode,
}

/// Where the attributes of a CloudEvent stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentMode {
    /// In the protocol's headers; the body is the payload byte for byte.
    #[default]
    Binary,
    /// In a JSON envelope around the payload, which is the body.
    Structured,
}

/// A record as it travels on a protocol that has headers.
#[derive(Clone, Debug)]
pub struct CloudEvent<'a> {
    /// In binary mode the attributes, which an adapter prefixes as its protocol's binding says.
    /// Empty in structured mode, where the body holds them.
    pub attributes: Vec<(&'static str, Cow<'a, str>)>,
    /// The entries of `headers` that are no attributes; they travel under their own names.
    pub headers: Vec<(String, String)>,
    /// What the body is: the payload's content type, or `application/cloudevents+json`.
    pub content_type: &'a str,
    /// The payload byte for byte, or the envelope.
    pub body: Bytes,
}

/// The content type of a structured CloudEvent.
const STRUCTURED: &str = "application/cloudevents+json";

/// An attribute, as a consumer meets it.
pub(crate) struct Attribute {
    pub(crate) name: &'static str,
    /// Whether every event has it.
    pub(crate) always: bool,
    /// Its `format` in a JSON Schema, if it has one.
    pub(crate) format: Option<&'static str>,
    pub(crate) meaning: &'static str,
}

/// All attributes that an event may have, in the order in which they are written.
pub(crate) const ATTRIBUTES: [Attribute; 17] = {
    const fn attribute(
        name: &'static str,
        always: bool,
        format: Option<&'static str>,
        meaning: &'static str,
    ) -> Attribute {
        Attribute {
            name,
            always,
            format,
            meaning,
        }
    }
    let (uri, time, uuid) = (Some("uri-reference"), Some("date-time"), Some("uuid"));
    [
        attribute("specversion", true, None, "The version of CloudEvents."),
        attribute(
            "id",
            true,
            uuid,
            "The event's id; the same when it is delivered again.",
        ),
        attribute("source", true, uri, "Who publishes it."),
        attribute("type", true, None, "The event's type."),
        attribute("time", true, time, "When the fact happened."),
        attribute(
            "datacontenttype",
            false,
            None,
            "What the payload is; some buses have a header of their own for it.",
        ),
        attribute("tenantid", true, None, "Whose event it is."),
        attribute(
            "schemaversion",
            true,
            None,
            "The version of the payload's schema.",
        ),
        attribute(
            "sequence",
            true,
            None,
            "The number of the event in its outbox, in decimal.",
        ),
        attribute(
            "dataschema",
            false,
            uri,
            "The schema that the payload follows.",
        ),
        attribute("subject", false, None, "The id of the aggregate."),
        attribute("aggregatetype", false, None, "The kind of the aggregate."),
        attribute(
            "partitionkey",
            false,
            None,
            "The ordering key: events that have the same are delivered in order.",
        ),
        attribute(
            "traceparent",
            false,
            None,
            "The trace that the event is part of, as W3C Trace Context says.",
        ),
        attribute(
            "tracestate",
            false,
            None,
            "The vendor's part of the trace context.",
        ),
        attribute(
            "correlationid",
            false,
            None,
            "The conversation that the event belongs to.",
        ),
        attribute(
            "causationid",
            false,
            None,
            "The id of the message that caused it.",
        ),
    ]
};

/// The headers that CloudEvents knows as attributes, which are written without underscores.
const HEADER_ATTRIBUTES: [(&str, &str); 4] = [
    (Headers::TRACEPARENT, "traceparent"),
    (Headers::TRACESTATE, "tracestate"),
    (Headers::CORRELATION_ID, "correlationid"),
    (Headers::CAUSATION_ID, "causationid"),
];

impl Default for CloudEvents {
    fn default() -> Self {
        Self {
            source: "urn:bento-outbox".into(),
            mode: ContentMode::default(),
        }
    }
}

impl CloudEvents {
    /// The message that carries `record` in the chosen mode.
    ///
    /// # Errors
    /// A permanent rejection that names the column which no bus could carry.
    pub fn message<'a>(&'a self, record: &'a OutboxRecord) -> Result<CloudEvent<'a>, Rejection> {
        let mut event = self.binary(record)?;
        if self.mode == ContentMode::Structured {
            event.body = envelope(record, &event.attributes).into();
            event.content_type = STRUCTURED;
            event.attributes.clear();
        }
        Ok(event)
    }

    /// Appends `record` to `lines` as one structured CloudEvent and a newline, for a medium that
    /// has no headers: there [`ContentMode`] means nothing.
    ///
    /// The entries of `headers` that are no attributes stand in one extension attribute `headers`,
    /// as a JSON object in a string. Attributes of their own they cannot be: those are named by
    /// small letters and digits only, and have no objects for values.
    ///
    /// # Errors
    /// A permanent rejection that names the column which no bus could carry; `lines` is unchanged.
    pub fn append_line(&self, record: &OutboxRecord, lines: &mut Vec<u8>) -> Result<(), Rejection> {
        let mut event = self.binary(record)?;
        if !event.headers.is_empty() {
            let object: Value = event.headers.into_iter().collect();
            event
                .attributes
                .push(("headers", object.to_string().into()));
        }
        lines.extend(envelope(record, &event.attributes));
        lines.push(b'\n');
        Ok(())
    }

    /// `value` as the bindings for HTTP and NATS want an attribute in a header: everything but
    /// printable ASCII is percent-encoded, and so are space, `"` and `%`.
    pub fn header_value(value: &str) -> Cow<'_, str> {
        const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');
        utf8_percent_encode(value, ENCODED).into()
    }

    fn binary<'a>(&'a self, record: &'a OutboxRecord) -> Result<CloudEvent<'a>, Rejection> {
        check(record)?;
        let mut headers = record
            .headers()
            .map_err(|error| permanent(error.to_string()))?
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect::<Vec<_>>();

        let mut attributes = vec![
            ("specversion", Cow::from("1.0")),
            ("id", record.id.to_string().into()),
            ("source", self.source.as_str().into()),
            ("type", record.event_type.as_str().into()),
            ("time", record.occurred_at.to_string().into()),
            ("datacontenttype", record.content_type.as_str().into()),
            ("tenantid", record.tenant.as_str().into()),
            ("schemaversion", record.schema_version.to_string().into()),
            ("sequence", record.seq.to_string().into()),
        ];
        if let Some(schema) = &record.schema_id {
            attributes.push(("dataschema", schema.as_str().into()));
        }
        if let Some(id) = &record.aggregate.id {
            attributes.push(("subject", id.as_str().into()));
        }
        if let Some(kind) = &record.aggregate.kind {
            attributes.push(("aggregatetype", kind.as_str().into()));
        }
        if let Some(key) = record.ordering_key() {
            attributes.push(("partitionkey", key.to_string().into()));
        }
        for (header, attribute) in HEADER_ATTRIBUTES {
            if let Some(at) = headers.iter().position(|(name, _)| name == header) {
                attributes.push((attribute, headers.remove(at).1.into()));
            }
        }
        // CloudEvents knows no empty attribute: what is empty is left out.
        attributes.retain(|(_, value)| !value.is_empty());
        Ok(CloudEvent {
            attributes,
            headers,
            content_type: &record.content_type,
            body: record.payload.clone(),
        })
    }
}

/// Refuses what a writer of SQL can put into the columns and no bus could carry.
fn check(record: &OutboxRecord) -> Result<(), Rejection> {
    if let Some(key) = &record.key_id {
        // To publish what nobody asked to be published as it stands would be worse than to wait.
        return Err(Rejection::new(
            RejectionClass::Blocked,
            format!("the payload is encrypted with key {key:?}, which this version cannot decrypt"),
        ));
    }
    let refuse = |column, what| Err(permanent(format!("column {column} {what}")));
    if record.event_type.is_empty() {
        return refuse("type", "is empty");
    }
    if !record.content_type.is_ascii() || record.content_type.is_empty() {
        return refuse("content_type", "is empty or not plain ASCII");
    }
    let columns = [
        ("type", Some(record.event_type.as_str())),
        ("content_type", Some(&record.content_type)),
        ("schema_id", record.schema_id.as_deref()),
        ("aggregate_type", record.aggregate.kind.as_deref()),
        ("aggregate_id", record.aggregate.id.as_deref()),
    ];
    for (column, value) in columns {
        if value.is_some_and(|value| value.contains(char::is_control)) {
            return refuse(column, "has control characters");
        }
    }
    Ok(())
}

/// The JSON envelope, without a newline anywhere.
fn envelope(record: &OutboxRecord, attributes: &[(&str, Cow<'_, str>)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(record.payload.len() + 640);
    for (name, value) in attributes {
        out.push(if out.is_empty() { b'{' } else { b',' });
        out.extend(format!("\"{name}\":").bytes());
        match *name {
            "schemaversion" => out.extend(value.bytes()),
            _ => out.extend(Value::from(value.as_ref()).to_string().bytes()),
        }
    }
    if stands_as_json(record) {
        out.extend(br#","data":"#);
        // In valid JSON a line break can only be white space between tokens.
        out.extend(record.payload.iter().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            byte => *byte,
        }));
    } else {
        out.extend(br#","data_base64":""#);
        out.extend(BASE64.encode(&record.payload).bytes());
        out.push(b'"');
    }
    out.push(b'}');
    out
}

/// Whether the payload may stand in `data` as it is: JSON by its column, by its content type (the
/// reader goes by that one) and by its grammar, so that no payload can break out of its envelope.
fn stands_as_json(record: &OutboxRecord) -> bool {
    let media_type = record.content_type.split(';').next().unwrap_or_default();
    let subtype = media_type.trim().rsplit('/').next().unwrap_or_default();
    let subtype = subtype.to_ascii_lowercase();
    record.is_json
        && (subtype == "json" || subtype.ends_with("+json"))
        && serde_json::from_slice::<&RawValue>(&record.payload).is_ok()
}

fn permanent(reason: impl AsRef<str>) -> Rejection {
    Rejection::new(RejectionClass::Permanent, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::event::{Aggregate, Event, Payload};
    use crate::tenant::Tenant;
    use crate::timestamp::Timestamp;

    fn record() -> OutboxRecord {
        let mut headers = Headers::default();
        for (name, value) in [
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("correlation_id", "c 1"),
            ("causation_id", "c0"),
            ("x-shop", "Zürich"),
        ] {
            headers.insert(name, value).unwrap();
        }
        let event = Event {
            id: "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap(),
            aggregate: Aggregate::new("order", "n° 7"),
            schema_id: Some("https://shop.example/order.json".into()),
            schema_version: 3,
            headers,
            occurred_at: "2013-01-01T05:17:00Z".parse().unwrap(),
            ..Event::new(
                "order.placed",
                Payload::json("{ \"a\":1,\r\n\"a\":1e400}").unwrap(),
            )
        };
        OutboxRecord::of(&event, &"acme".parse().unwrap(), 42, Timestamp::now())
    }

    #[test]
    fn binary_mode_maps_every_column_and_leaves_the_payload_alone() {
        let (events, record) = (CloudEvents::default(), record());
        let message = events.message(&record).unwrap();
        let attributes: Vec<_> = message
            .attributes
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        assert_eq!(
            attributes,
            [
                ("specversion", "1.0"),
                ("id", "01890a5d-ac96-774b-bcce-b302099a8057"),
                ("source", "urn:bento-outbox"),
                ("type", "order.placed"),
                ("time", "2013-01-01T05:17:00.000000Z"),
                ("datacontenttype", "application/json"),
                ("tenantid", "acme"),
                ("schemaversion", "3"),
                ("sequence", "42"),
                ("dataschema", "https://shop.example/order.json"),
                ("subject", "n° 7"),
                ("aggregatetype", "order"),
                ("partitionkey", "acme/order/n%C2%B0 7"),
                (
                    "traceparent",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                ),
                ("correlationid", "c 1"),
                ("causationid", "c0"),
            ]
        );
        let known = ATTRIBUTES.map(|attribute| attribute.name);
        let known = known.iter().filter(|name| **name != "tracestate");
        assert!(known.eq(attributes.iter().map(|(name, _)| name)));
        assert_eq!(message.headers, [("x-shop".into(), "Zürich".into())]);
        assert_eq!(message.content_type, "application/json");
        assert_eq!(message.body, record.payload);
    }

    #[test]
    fn structured_mode_is_one_line_with_the_json_as_written() {
        let mut line = Vec::new();
        CloudEvents::default()
            .append_line(&record(), &mut line)
            .unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(
            line.starts_with(r#"{"specversion":"1.0","id":"01890a5d-ac96"#),
            "{line}"
        );
        assert!(
            line.ends_with(",\"data\":{ \"a\":1,  \"a\":1e400}}\n"),
            "{line}"
        );
        assert_eq!(line.matches(['\n', '\r']).count(), 1);
        for part in [
            r#""schemaversion":3,"sequence":"42""#,
            r#""headers":"{\"x-shop\":\"Zürich\"}""#,
        ] {
            assert!(line.contains(part), "{line}");
        }

        let events = CloudEvents {
            mode: ContentMode::Structured,
            ..CloudEvents::default()
        };
        let record = record();
        let message = events.message(&record).unwrap();
        assert_eq!(message.content_type, "application/cloudevents+json");
        assert!(message.attributes.is_empty() && message.headers.len() == 1);
        assert!(!message.body.ends_with(b"\n"));
    }

    #[test]
    fn what_a_reader_would_not_take_for_json_stands_in_base64() {
        let base64 = |change: fn(&mut OutboxRecord)| {
            let mut record = record();
            record.payload = Bytes::from_static(b"[1]");
            change(&mut record);
            let mut line = Vec::new();
            let events = CloudEvents::default();
            events.append_line(&record, &mut line).unwrap();
            let event: Value = serde_json::from_slice(&line).unwrap();
            assert_ne!(
                event.get("data").is_some(),
                event.get("data_base64").is_some()
            );
            event.get("data_base64").cloned()
        };
        assert_eq!(base64(|_| {}), None);
        assert_eq!(
            base64(|record| record.content_type = "application/cloudevents+JSON; a=b".into()),
            None
        );
        let encoded = Some(json!("WzFd"));
        assert_eq!(base64(|record| record.is_json = false), encoded);
        assert_eq!(
            base64(|record| record.content_type = "text/plain".into()),
            encoded
        );
        let broken = base64(|record| record.payload = Bytes::from_static(b"1,\"id\":2"));
        assert_eq!(broken, Some(json!("MSwiaWQiOjI=")));
    }

    #[test]
    fn a_column_that_no_bus_could_carry_is_named() {
        type Change = fn(&mut OutboxRecord);
        let changes: [(&str, Change); 8] = [
            ("headers", |record| {
                record.headers = r#"{"a":{"b":"c"}}"#.into();
            }),
            ("headers", |record| record.headers = "null".into()),
            ("content_type", |record| {
                record.content_type = "a\r\nb: c".into();
            }),
            ("content_type", |record| record.content_type = "é".into()),
            ("type", |record| record.event_type = String::new()),
            ("schema_id", |record| record.schema_id = Some("a\nb".into())),
            ("aggregate_type", |record| {
                record.aggregate = Aggregate::new("a\0b", "1");
            }),
            ("aggregate_id", |record| {
                record.aggregate = Aggregate::new("a", "\n");
            }),
        ];
        for (column, change) in changes {
            let mut record = record();
            change(&mut record);
            refused(&record, column);
        }
    }

    fn refused(record: &OutboxRecord, column: &str) {
        let events = CloudEvents::default();
        let rejection = events.message(record).unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Permanent);
        assert!(rejection.reason.contains(column), "{rejection}");
        let mut lines = Vec::new();
        assert_eq!(events.append_line(record, &mut lines), Err(rejection));
        assert!(lines.is_empty());
    }

    #[test]
    fn header_values_are_encoded_as_the_bindings_say() {
        assert_eq!(
            CloudEvents::header_value("Euro € 😀"),
            "Euro%20%E2%82%AC%20%F0%9F%98%80"
        );
        assert_eq!(
            CloudEvents::header_value("\"100%\"\u{7f}~!"),
            "%22100%25%22%7F~!"
        );
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_the_envelope(id in "\\PC{1,40}", value in "\\PC{0,40}") {
            let mut headers = Headers::default();
            headers.insert("x", value.as_str()).unwrap();
            let record = OutboxRecord {
                tenant: Tenant::default(),
                aggregate: Aggregate { kind: None, id: Some(id.clone()) },
                headers: headers.to_json(),
                payload: Bytes::from_static(b"1"),
                ..record()
            };
            let mut line = Vec::new();
            CloudEvents::default().append_line(&record, &mut line).unwrap();
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            let event: Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(event["subject"].as_str(), Some(id.as_str()));
            let headers: Value = serde_json::from_str(event["headers"].as_str().unwrap()).unwrap();
            prop_assert_eq!(headers["x"].as_str(), Some(value.as_str()));
        }
    }
}
