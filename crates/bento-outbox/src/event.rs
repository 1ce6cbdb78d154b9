//! A fact of the business, in the past tense.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// A typed domain event. What is serialised is the payload; the constants say how to read it.
///
/// ```
/// use bento_outbox::DomainEvent;
///
/// #[derive(serde::Serialize)]
/// struct OrderPlaced { total_cents: i64 }
///
/// impl DomainEvent for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
/// }
/// ```
pub trait DomainEvent: Serialize {
    /// The event's type, `order.placed`: 1 to 255 of the characters `A-Z a-z 0-9 . _ - : /`.
    const TYPE: &'static str;
    /// The version of the payload's schema. Defaults to 1.
    const VERSION: u32 = 1;
    /// The schema the payload follows, a URI. Defaults to none.
    const SCHEMA_ID: Option<&'static str> = None;
}

impl<E: DomainEvent> DomainEvent for &E {
    const TYPE: &'static str = E::TYPE;
    const VERSION: u32 = E::VERSION;
    const SCHEMA_ID: Option<&'static str> = E::SCHEMA_ID;
}

/// A domain event with its envelope, ready to be raised or appended.
///
/// Every field is public; [`Event::of`] fills them and `..` keeps the rest:
///
/// ```
/// # use bento_outbox::{DomainEvent, Event};
/// # #[derive(serde::Serialize)] struct OrderPlaced;
/// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
/// let event = Event { tenant: Some("acme".parse()?), ..Event::of(&OrderPlaced)? };
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Event {
    /// The event's id, a UUIDv7 unless given. A second event with it is skipped and reported.
    pub id: Uuid,
    /// Whose event it is. Defaults to none: the unit of work's tenant.
    pub tenant: Option<Tenant>,
    /// The aggregate that raised it: with the tenant its ordering key. Defaults to none.
    pub aggregate: Aggregate,
    /// The event's type, `order.placed`.
    pub event_type: String,
    /// The schema the payload follows, a URI.
    pub schema_id: Option<String>,
    /// The version of that schema.
    pub schema_version: u32,
    /// What is delivered, byte for byte.
    pub payload: Payload,
    /// What the payload is. Defaults to `application/json`.
    pub content_type: String,
    /// Not none: the payload is encrypted with this key.
    pub key_id: Option<String>,
    /// Trace, correlation and causation, and the user's own.
    pub headers: Headers,
    /// When the fact happened. Defaults to now.
    pub occurred_at: Timestamp,
    /// When the row was written. Defaults to none: the database's clock says.
    pub created_at: Option<Timestamp>,
    /// Not published before. Defaults to none: at once. A later time holds the events of its
    /// ordering key back that come after it.
    pub available_at: Option<Timestamp>,
}

/// Which aggregate an event is about: a kind and an id within it. Defaults to neither.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aggregate {
    /// The kind, `order`. At most 128 characters.
    pub kind: Option<String>,
    /// The id within tenant and kind; without one the event has no order, whatever its kind. At
    /// most 255 characters, compared byte by byte.
    pub id: Option<String>,
}

/// What an event carries.
#[derive(Clone)]
pub enum Payload {
    /// JSON text, delivered byte for byte as written.
    Json(Box<RawValue>),
    /// Any other bytes.
    Data(Bytes),
}

/// The most bytes a payload has.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// The most levels of arrays and objects in a JSON payload: SQLite takes no more.
const PAYLOAD_LEVELS_MAX: usize = 1_000;

impl Event {
    /// The event with a fresh id, raised now, by no aggregate.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when serde cannot serialise it.
    pub fn of<E: DomainEvent>(event: &E) -> Result<Self> {
        let payload = serde_json::value::to_raw_value(event).map_err(|error| {
            Error::new(
                ErrorKind::InvalidEvent,
                format!("event {} cannot be serialised", E::TYPE),
            )
            .because(error)
        })?;
        Ok(Self {
            schema_version: E::VERSION,
            schema_id: E::SCHEMA_ID.map(Into::into),
            ..Self::new(E::TYPE, Payload::Json(payload))
        })
    }

    /// An event of a type that is known only at run time.
    pub fn new(event_type: impl Into<String>, payload: Payload) -> Self {
        Self {
            id: Uuid::now_v7(),
            tenant: None,
            aggregate: Aggregate::default(),
            event_type: event_type.into(),
            schema_id: None,
            schema_version: 1,
            payload,
            content_type: "application/json".into(),
            key_id: None,
            headers: Headers::default(),
            occurred_at: Timestamp::now(),
            created_at: None,
            available_at: None,
        }
    }

    /// Refuses what no database or bus could carry, so that it is known before the commit.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`], naming the field and the event.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| {
            Err(Error::new(
                ErrorKind::InvalidEvent,
                format!("event {}: {what}", self.id),
            ))
        };
        let typed = (1..=255).contains(&self.event_type.len())
            && self
                .event_type
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-:/".contains(&b));
        if !typed {
            return refuse("type is not 1 to 255 of the characters A-Z a-z 0-9 . _ - : /");
        }
        let unfit = |text: &Option<String>, chars_max| {
            text.as_deref().is_some_and(|text| !fits(text, chars_max))
        };
        if unfit(&self.aggregate.id, 255) {
            return refuse("aggregate_id is not 1 to 255 characters without control characters");
        }
        if unfit(&self.aggregate.kind, 128) {
            return refuse("aggregate_type is not 1 to 128 characters without control characters");
        }
        if unfit(&self.schema_id, 255) {
            return refuse("schema_id is not 1 to 255 characters without control characters");
        }
        if i32::try_from(self.schema_version).is_err() {
            return refuse("schema_ver is over 2147483647");
        }
        if !fits(&self.content_type, 128) || !self.content_type.is_ascii() {
            return refuse("content_type is not 1 to 128 printable characters of ASCII");
        }
        if unfit(&self.key_id, 128) {
            return refuse("key_id is not 1 to 128 characters without control characters");
        }
        if self.payload.as_bytes().len() > PAYLOAD_BYTES_MAX {
            return refuse(
                "payload is over 16 MiB; store it elsewhere and raise an event that refers to it",
            );
        }
        if let Payload::Json(json) = &self.payload
            && levels(json.get()) > PAYLOAD_LEVELS_MAX
        {
            return refuse("payload is nested more than 1000 levels deep");
        }
        Ok(())
    }
}

impl Aggregate {
    /// The aggregate `id` of a kind.
    pub fn new(kind: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            kind: Some(kind.into()),
            id: Some(id.into()),
        }
    }
}

fn fits(text: &str, chars_max: usize) -> bool {
    !text.is_empty() && text.chars().count() <= chars_max && !text.chars().any(char::is_control)
}

/// How many levels of arrays and objects valid JSON has.
fn levels(json: &str) -> usize {
    let (mut level, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                level += 1;
                deepest = deepest.max(level);
            }
            b']' | b'}' => level -= 1,
            _ => {}
        }
    }
    deepest
}

impl Payload {
    /// JSON text as it stands.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when `text` is not one JSON value.
    pub fn json(text: impl Into<String>) -> Result<Self> {
        RawValue::from_string(text.into())
            .map(Self::Json)
            .map_err(|error| {
                Error::new(ErrorKind::InvalidEvent, "payload is not one JSON value").because(error)
            })
    }

    /// The bytes that are delivered.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(json) => json.get().as_bytes(),
            Self::Data(data) => data,
        }
    }
}

/// Says how long the payload is and never what: payloads are not for logs.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if matches!(self, Self::Json(_)) {
            "JSON"
        } else {
            "data"
        };
        write!(f, "<{kind}, {} bytes>", self.as_bytes().len())
    }
}

/// A flat map of header names to values.
///
/// A name is an HTTP token of at most 128 characters that no protocol gives a meaning of its own;
/// a value has no control characters and at most 4,096 bytes; at most 64 headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(BTreeMap<String, String>);

/// Names (and beginnings of names, ending in `-` or `_`) that protocols or CloudEvents use.
const RESERVED: [&str; 15] = [
    "ce-",
    "ce_",
    "cloudevents:",
    "cloudevents_",
    "nats-",
    "webhook-",
    "content-type",
    "content-length",
    "host",
    "connection",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "expect",
];

impl Headers {
    /// The header that carries the W3C trace context.
    pub const TRACEPARENT: &'static str = "traceparent";
    /// The header that carries the vendor's part of the trace context.
    pub const TRACESTATE: &'static str = "tracestate";
    /// The header that names the conversation an event belongs to.
    pub const CORRELATION_ID: &'static str = "correlation_id";
    /// The header that names the message that caused an event.
    pub const CAUSATION_ID: &'static str = "causation_id";

    /// Reads the JSON object that the column `headers` holds.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when it is not a flat object of strings, or a name or value is
    /// outside its grammar.
    pub fn from_json(text: &str) -> Result<Self> {
        if text == "{}" {
            return Ok(Self::default());
        }
        let map: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| {
            Error::new(
                ErrorKind::InvalidEvent,
                "headers is not a flat JSON object of strings",
            )
        })?;
        let mut headers = Self::default();
        for (name, value) in map {
            headers.insert(name, value)?;
        }
        Ok(headers)
    }

    /// Adds a header, replacing one of the same name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when name or value is outside its grammar.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let (name, value) = (name.into(), value.into());
        let refuse = |what: &str| {
            let shown: String = name.chars().take(40).collect();
            Err(Error::new(
                ErrorKind::InvalidEvent,
                format!("header {shown:?} {what}"),
            ))
        };
        let token = (1..=128).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
        if !token {
            return refuse("is not 1 to 128 of the characters that HTTP allows in a header's name");
        }
        let lower = name.to_ascii_lowercase();
        let reserved = RESERVED.iter().any(|word| {
            if word.ends_with(['-', '_', ':']) {
                lower.starts_with(word)
            } else {
                lower == *word
            }
        });
        if reserved {
            return refuse("is a name that the protocol itself uses");
        }
        if value.len() > 4_096 || value.chars().any(char::is_control) {
            return refuse("has a value with control characters or over 4096 bytes");
        }
        if self.0.len() >= 64 && !self.0.contains_key(&name) {
            return refuse("is one more than the 64 an event may have");
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// The value of the header `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The headers, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The JSON object that the column `headers` holds.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_else(|_| "{}".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Placed {
        total: i64,
    }
    impl DomainEvent for Placed {
        const TYPE: &'static str = "order.placed";
        const VERSION: u32 = 3;
    }

    #[test]
    fn an_event_carries_its_type_version_and_payload() {
        let event = Event::of(&Placed { total: 7 }).unwrap();
        assert_eq!(
            (event.event_type.as_str(), event.schema_version),
            ("order.placed", 3)
        );
        assert_eq!(event.payload.as_bytes(), br#"{"total":7}"#);
        assert_eq!(event.id.get_version_num(), 7);
        assert!(format!("{event:?}").contains("<JSON, 11 bytes>"));
        event.check().unwrap();
    }

    #[test]
    fn what_no_bus_could_carry_is_refused_by_name() {
        let event = Event::of(&Placed { total: 7 }).unwrap();
        let bad = [
            (
                Event {
                    event_type: String::new(),
                    ..event.clone()
                },
                "type",
            ),
            (
                Event {
                    event_type: "order placed".into(),
                    ..event.clone()
                },
                "type",
            ),
            (
                Event {
                    event_type: "x".repeat(256),
                    ..event.clone()
                },
                "type",
            ),
            (
                Event {
                    aggregate: Aggregate::new("order", ""),
                    ..event.clone()
                },
                "aggregate_id",
            ),
            (
                Event {
                    aggregate: Aggregate::new("order", "a\r\nb"),
                    ..event.clone()
                },
                "aggregate_id",
            ),
            (
                Event {
                    aggregate: Aggregate::new("order", "é".repeat(256)),
                    ..event.clone()
                },
                "aggregate_id",
            ),
            (
                Event {
                    aggregate: Aggregate {
                        kind: Some(String::new()),
                        id: None,
                    },
                    ..event.clone()
                },
                "aggregate_type",
            ),
            (
                Event {
                    schema_version: u32::MAX,
                    ..event.clone()
                },
                "schema_ver",
            ),
            (
                Event {
                    content_type: "a\nb".into(),
                    ..event.clone()
                },
                "content_type",
            ),
            (
                Event {
                    payload: Payload::Data(vec![0; PAYLOAD_BYTES_MAX + 1].into()),
                    ..event.clone()
                },
                "payload",
            ),
        ];
        for (event, field) in bad {
            let message = event.check().unwrap_err().to_string();
            assert!(
                message.contains(field) && message.contains(&event.id.to_string()),
                "{message}"
            );
        }
        Event {
            aggregate: Aggregate::new("é".repeat(128), "é".repeat(255)),
            ..event
        }
        .check()
        .unwrap();
    }

    #[test]
    fn a_payload_is_nested_only_so_deep() {
        let nested = |levels: usize| {
            let json = "{\"[\\\"[\":[".repeat(levels / 2) + &"]}".repeat(levels / 2);
            Event::new("x", Payload::json(json).unwrap()).check()
        };
        nested(PAYLOAD_LEVELS_MAX).unwrap();
        let error = nested(PAYLOAD_LEVELS_MAX + 2).unwrap_err();
        assert!(error.to_string().contains("1000 levels"), "{error}");
        nested(200_000).unwrap_err();
    }

    #[test]
    fn headers_outside_their_grammar_are_refused() {
        let mut headers = Headers::default();
        for (name, value) in [
            ("", "x"),
            ("a b", "x"),
            ("a:b", "x"),
            ("ä", "x"),
            ("Nats-Msg-Id", "x"),
            ("ce-id", "x"),
            ("Content-Type", "x"),
            ("ok", "a\r\nb"),
            ("ok", &"x".repeat(4_097)),
        ] {
            assert!(headers.insert(name, value).is_err(), "{name:?}");
        }
        for n in 0..64 {
            headers.insert(format!("h{n}"), "v").unwrap();
        }
        assert!(headers.insert("one-more", "v").is_err());
        assert_eq!(Headers::from_json(&headers.to_json()).unwrap(), headers);
        for json in [
            "[]",
            "{\"a\":1}",
            "{\"a\":{}}",
            "null",
            "{\"a\":\"b\"",
            "{\"a\\nb\":\"c\"}",
        ] {
            assert!(Headers::from_json(json).is_err(), "{json}");
        }
    }

    #[test]
    fn json_is_kept_byte_for_byte() {
        let text = "{ \"b\":1e400, \"a\" : \"\\u0000\", \"a\":2 }";
        assert_eq!(Payload::json(text).unwrap().as_bytes(), text.as_bytes());
        for text in ["", "{", "1 2", "nope", "\"\u{1}\""] {
            assert!(Payload::json(text).is_err(), "{text}");
        }
    }
}
