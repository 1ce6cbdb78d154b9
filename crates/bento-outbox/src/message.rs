//! A message as a consumer gets it from a bus.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::causality::Cause;
use crate::error::{Error, ErrorKind, Result};
use crate::inbox::{MESSAGE_ID_CHARS_MAX, check_name};
use crate::registry::Encoded;
use crate::tenant::Tenant;

/// A CloudEvent as a bus delivers it, read back: what the [inbox](crate::Inbox) knows it by, what an
/// [`EventRegistry`](crate::EventRegistry) reads, and what the events that it causes remember.
///
/// ```
/// # use bento_outbox::{DomainEvent, Error, EventRegistry, EventType, Inbox, Message, Outbox, Result};
/// # use bento_outbox::stores::MemoryStore;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { total_cents: i64 }
/// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let outbox = Outbox::new(MemoryStore::default());
/// # let registry = EventRegistry::new([EventType::of::<OrderPlaced>()])?;
/// // As the client of the bus has them, here that of Kafka.
/// let headers = [
///     ("ce_specversion", "1.0"), ("ce_id", "4711"), ("ce_type", "order.placed"),
///     ("ce_schemaversion", "1"), ("ce_tenantid", "acme"), ("ce_correlationid", "c7"),
/// ];
/// let message = Message::of(headers, r#"{"total_cents":4200}"#)?;
///
/// let order: OrderPlaced = registry.decode_as(&message)?;
/// let inbox = Inbox::new(&outbox.tenant(message.tenant()));
/// inbox.handle("bills", &message, async |_uow| {
///     // what is raised here was caused by the message, and belongs to the conversation c7
///     Ok::<_, Error>(())
/// }).await?;
/// # assert_eq!(order.total_cents, 4_200);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    attributes: BTreeMap<String, String>,
    version: u32,
    tenant: Tenant,
    body: Bytes,
}

/// How the names of attributes begin in headers: on HTTP and NATS, Kafka and Redis, and AMQP.
const PREFIXES: [&str; 4] = [ENCODED, "ce_", "cloudevents:", "cloudevents_"];

/// The beginning that says that values are percent-encoded.
const ENCODED: &str = "ce-";

impl Message {
    /// The message with these headers and this body, in whichever mode it was published. The headers
    /// are the bus's own, by their own names: `ce-id`, `ce_id`, `cloudEvents:id`. Others are left aside.
    ///
    /// # Errors
    /// [`Undecodable`](ErrorKind::Undecodable) when it is no CloudEvent, with the attribute that is
    /// missing, or is not what a consumer could go by. It is so however often it is delivered: put it
    /// where a person looks, and acknowledge it.
    pub fn of<N, V>(
        headers: impl IntoIterator<Item = (N, V)>,
        body: impl Into<Bytes>,
    ) -> Result<Self>
    where
        N: AsRef<str>,
        V: AsRef<[u8]>,
    {
        let (mut attributes, mut content_type) = (BTreeMap::new(), None);
        let body: Bytes = body.into();
        for (name, value) in headers {
            let (name, value) = (name.as_ref().to_ascii_lowercase(), value.as_ref());
            let prefix = PREFIXES.iter().find(|prefix| name.starts_with(**prefix));
            let Some(prefix) = prefix else {
                if name == "content-type" {
                    content_type = text(&name, value.into()).ok();
                }
                continue;
            };
            let attribute = &name[prefix.len()..];
            let value = match *prefix {
                ENCODED => percent_decode(value).into(),
                _ => Cow::from(value),
            };
            attributes.insert(attribute.to_owned(), text(attribute, value)?);
        }
        if attributes.is_empty() {
            return Self::structured(&body);
        }
        if let Some(content_type) = content_type {
            attributes
                .entry("datacontenttype".into())
                .or_insert(content_type);
        }
        Self::checked(attributes, body)
    }

    /// The message in a JSON envelope: a line of a file, or a message that was published in
    /// structured mode. [`of`](Self::of) knows these by itself.
    ///
    /// # Errors
    /// As for [`of`](Self::of).
    pub fn structured(envelope: &[u8]) -> Result<Self> {
        let members: BTreeMap<String, Box<RawValue>> =
            serde_json::from_slice(envelope).map_err(|_| {
                refused("is no CloudEvent: it has no attributes in its headers, and no envelope")
            })?;
        let (mut attributes, mut body) = (BTreeMap::new(), Bytes::new());
        for (name, value) in members {
            if name == "data" {
                body = String::from(Box::<str>::from(value)).into();
                continue;
            }
            let text = match serde_json::from_str(value.get()) {
                Ok(Value::Null) => continue,
                Ok(Value::String(text)) => text,
                Ok(Value::Number(_) | Value::Bool(_)) => value.get().to_owned(),
                _ => {
                    return Err(refused(&format!(
                        "has an attribute {name:?} that is no text"
                    )));
                }
            };
            if name == "data_base64" {
                let decoded = BASE64.decode(text);
                body = decoded
                    .map_err(|_| refused("has data_base64 that is no Base64"))?
                    .into();
            } else {
                attributes.insert(name, text);
            }
        }
        Self::checked(attributes, body)
    }

    /// What a consumer goes by is there, and is what it should be.
    fn checked(attributes: BTreeMap<String, String>, body: Bytes) -> Result<Self> {
        for name in ["specversion", "id", "type"] {
            if attributes.get(name).is_none_or(String::is_empty) {
                return Err(refused(&format!("has no attribute {name}")));
            }
        }
        if let Some((name, _)) = attributes
            .iter()
            .find(|(_, value)| value.contains(char::is_control))
        {
            return Err(refused(&format!(
                "has control characters in its attribute {name}"
            )));
        }
        let of_its_own = |error: Error| Error::new(ErrorKind::Undecodable, error.to_string());
        check_name("the message's id", &attributes["id"], MESSAGE_ID_CHARS_MAX)
            .map_err(of_its_own)?;
        let tenant = attributes
            .get("tenantid")
            .map(|text| text.parse::<Tenant>());
        let version = attributes
            .get("schemaversion")
            .map(|text| text.parse::<u32>());
        Ok(Self {
            version: version
                .unwrap_or(Ok(1))
                .map_err(|_| refused("has an attribute schemaversion that is no version"))?,
            tenant: tenant
                .unwrap_or(Ok(Tenant::default()))
                .map_err(of_its_own)?,
            attributes,
            body,
        })
    }

    /// Its id, which is the event's: by it the inbox knows the message. It is unique among the
    /// messages of one `source`.
    pub fn id(&self) -> &str {
        &self.attributes["id"]
    }

    /// The event's type, `order.placed`.
    pub fn event_type(&self) -> &str {
        &self.attributes["type"]
    }

    /// The version of the payload's schema; 1 where the message does not say.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whose event it is; `default` where the message does not say.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// An attribute, by its name without a prefix: `subject`, `partitionkey`.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// The payload as it was written.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl From<&Message> for Cause {
    fn from(message: &Message) -> Self {
        let attribute = |name| message.attribute(name).map(Into::into);
        Self {
            message_id: message.id().into(),
            tenant: Some(message.tenant().clone()),
            correlation_id: attribute("correlationid"),
            traceparent: attribute("traceparent"),
            tracestate: attribute("tracestate"),
        }
    }
}

impl<'a> From<&'a Message> for Encoded<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            id: message.id().parse().ok(),
            event_type: message.event_type(),
            version: message.version,
            content_type: message
                .attribute("datacontenttype")
                .unwrap_or("application/json"),
            key_id: None,
            payload: &message.body,
        }
    }
}

/// Says which it is and how long, and never what is in it.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, bytes) = (self.id(), self.body.len());
        let (name, version) = (self.event_type(), self.version);
        write!(f, "{id} of type {name} version {version} <{bytes} bytes>")
    }
}

fn text(attribute: &str, value: Cow<'_, [u8]>) -> Result<String> {
    String::from_utf8(value.into_owned())
        .map_err(|_| refused(&format!("has an attribute {attribute} that is no UTF-8")))
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Undecodable, format!("the message {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud_event::{CloudEvents, ContentMode};
    use crate::event::{Aggregate, Event, Headers, Payload};
    use crate::record::OutboxRecord;
    use crate::timestamp::Timestamp;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn record() -> OutboxRecord {
        let mut headers = Headers::default();
        for (name, value) in [
            (Headers::CORRELATION_ID, "ü 100%"),
            (Headers::CAUSATION_ID, "c0"),
            (Headers::TRACEPARENT, PARENT),
            (Headers::TRACESTATE, "a=b"),
            ("x-shop", "Zürich"),
        ] {
            headers.insert(name, value).unwrap();
        }
        let event = Event {
            aggregate: Aggregate::new("order", "n° \"7\""),
            schema_version: 3,
            headers,
            ..Event::new("order.placed", Payload::json(r#"{ "a":1e400}"#).unwrap())
        };
        OutboxRecord::of(&event, &"acme".parse().unwrap(), 42, Timestamp::now())
    }

    #[track_caller]
    fn is_the_records(message: &Message, record: &OutboxRecord) {
        assert_eq!(message.id(), record.id.to_string());
        assert_eq!(message.event_type(), "order.placed");
        assert_eq!((message.version(), message.tenant()), (3, &record.tenant));
        assert_eq!(message.attribute("subject"), Some("n° \"7\""));
        assert_eq!(message.attribute("x-shop"), None);
        assert_eq!(message.body(), &record.payload);
        assert_eq!(Cause::from(message), Cause::from(record));
        let encoded = Encoded::from(message);
        assert_eq!(encoded.content_type, "application/json");
        assert_eq!(encoded.id, Some(record.id));
    }

    #[test]
    fn what_every_bus_carries_is_read_back() {
        let (events, record) = (CloudEvents::default(), record());
        let published = events.message(&record).unwrap();
        for (prefix, encodes) in [
            ("ce-", true),
            ("Ce-", true),
            ("ce_", false),
            ("cloudEvents:", false),
            ("cloudEvents_", false),
        ] {
            let attributes = published.attributes.iter();
            let headers = attributes.map(|(name, value)| {
                let value = match encodes {
                    true => CloudEvents::header_value(value),
                    false => value.as_ref().into(),
                };
                (format!("{prefix}{name}"), value.into_owned())
            });
            let own = published.headers.iter().cloned();
            let message = Message::of(headers.chain(own), published.body.clone()).unwrap();
            is_the_records(&message, &record);
        }

        let events = CloudEvents {
            mode: ContentMode::Structured,
            ..events
        };
        let published = events.message(&record).unwrap();
        let headers = [("content-type", published.content_type)];
        let message = Message::of(headers, published.body).unwrap();
        is_the_records(&message, &record);
        let mut line = Vec::new();
        events.append_line(&record, &mut line).unwrap();
        is_the_records(&Message::structured(&line).unwrap(), &record);
    }

    #[test]
    fn a_body_is_what_its_content_type_says() {
        let mut record = record();
        record.content_type = "application/protobuf".into();
        record.payload = Bytes::from_static(b"\xff");
        let mut line = Vec::new();
        let events = CloudEvents::default();
        events.append_line(&record, &mut line).unwrap();
        let published = events.message(&record).unwrap();
        // As the bindings for HTTP and Kafka have it.
        let attributes = published.attributes.iter();
        let headers = attributes
            .filter(|(name, _)| *name != "datacontenttype")
            .map(|(name, value)| (format!("ce_{name}"), value.to_string()))
            .chain([("Content-Type".into(), published.content_type.into())]);
        for message in [
            Message::structured(&line),
            Message::of(headers, published.body.clone()),
        ] {
            let message = message.unwrap();
            assert_eq!(message.body(), &record.payload);
            assert_eq!(Encoded::from(&message).content_type, "application/protobuf");
            let said = format!("{message:?}");
            assert!(
                said.ends_with("of type order.placed version 3 <1 bytes>"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_no_event_or_nobody_could_go_by_is_named() {
        let with = |change: (&'static str, &'static [u8])| {
            let mut headers = BTreeMap::from([
                ("ce_specversion", b"1.0".as_slice()),
                ("ce_id", b"7"),
                ("ce_type", b"t"),
            ]);
            headers.insert(change.0, change.1);
            Message::of(headers, "")
        };
        let plain = with(("other", b"\xff")).unwrap();
        assert_eq!((plain.version(), plain.tenant()), (1, &Tenant::default()));
        for (name, value, says) in [
            ("ce_id", b"".as_slice(), "has no attribute id"),
            ("ce_type", b"", "has no attribute type"),
            ("ce_id", b" 7", "begins or ends with a blank"),
            ("ce_id", &[b'7'; 256], "has 256 characters"),
            ("ce_id", b"7\n", "control characters in its attribute id"),
            ("ce_subject", b"\xff", "attribute subject that is no UTF-8"),
            ("ce-subject", b"%FF", "attribute subject that is no UTF-8"),
            ("ce_schemaversion", b"-1", "schemaversion"),
            ("ce_tenantid", b"a/b", "tenant \"a/b\""),
        ] {
            let error = with((name, value)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Undecodable);
            assert!(error.to_string().contains(says), "{name}: {error}");
        }
        for (envelope, says) in [
            ("", "no attributes in its headers, and no envelope"),
            ("s3cret", "no envelope"),
            ("[]", "no envelope"),
            (r#"{"id":"7","type":"t"}"#, "has no attribute specversion"),
            (
                r#"{"specversion":"1.0","type":"t","id":null}"#,
                "has no attribute id",
            ),
            (
                r#"{"specversion":"1.0","type":"t","id":{}}"#,
                "\"id\" that is no text",
            ),
            (r#"{"data_base64":"s3cret?"}"#, "no Base64"),
        ] {
            let said = Message::structured(envelope.as_bytes()).unwrap_err();
            assert!(said.to_string().contains(says), "{said}");
            assert!(!said.to_string().contains("s3cret"), "{said}");
        }
    }
}
