//! The event types that a program knows: what is recorded becomes the concrete type again.

mod closing;
mod event_type;
mod fields;
mod reading;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::event::{DomainEvent, Event};
use crate::record::OutboxRecord;

pub use event_type::{EventType, SchemaValidator};

/// The concrete event types that a program knows, each with every version that may still be
/// somewhere: in the outbox, in a stream, in an archive. Cheap to clone; clones are the same
/// registry.
///
/// ```
/// use bento_outbox::{DomainEvent, Event, EventRegistry, EventType};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderPlaced { total_cents: i64, currency: String }
/// impl DomainEvent for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
///     const VERSION: u32 = 2;
/// }
///
/// let registry = EventRegistry::new([
///     EventType::of::<OrderPlaced>().upcast_json(1, |mut json| {
///         let fields = json.as_object_mut().ok_or("it is no object")?;
///         fields.insert("currency".into(), "EUR".into()); // what version 1 meant and did not say
///         Ok(json)
///     }),
/// ])?;
///
/// let old = registry.decode(("order.placed", 1, br#"{"total_cents":4200}"#.as_slice()))?;
/// assert_eq!(old.downcast::<OrderPlaced>()?.currency, "EUR");
/// # Ok::<_, bento_outbox::Error>(())
/// ```
///
/// No field is dropped silently: one that the type does not know is an error, wherever it stands,
/// unless the type is [registered](EventType::taking_unknown_fields) to leave it aside. The default
/// registry knows no type.
#[derive(Clone, Default)]
pub struct EventRegistry {
    types: Arc<BTreeMap<&'static str, EventType>>,
}

/// An event as it is recorded: type, version and payload, from wherever it was read.
#[derive(Clone, Copy)]
pub struct Encoded<'a> {
    /// The event's id, for the errors.
    pub id: Option<Uuid>,
    /// The event's type, `order.placed`.
    pub event_type: &'a str,
    /// The version of the payload's schema.
    pub version: u32,
    /// What the payload is.
    pub content_type: &'a str,
    /// Not none: the payload is encrypted with this key.
    pub key_id: Option<&'a str>,
    /// The payload as it was delivered.
    pub payload: &'a [u8],
}

/// An event that has become its concrete type again.
pub struct Decoded {
    event: Box<dyn Any + Send + Sync>,
    event_type: &'static str,
    rust_name: &'static str,
    version: u32,
}

impl EventRegistry {
    /// What the `$id` of schemas begins with, unless it is set.
    pub const SCHEMA_BASE: &'static str = "urn:bento-outbox:schema:";

    /// The registry of these types.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] when a type is there twice or outside its grammar, when a
    /// version has no upcaster or two, when an upcaster leads nowhere, when a schema's `$id` is not
    /// the event's or is another schema's too: everything that would be wrong at the first old event is wrong here.
    pub fn new(types: impl IntoIterator<Item = EventType>) -> Result<Self> {
        Self::with_schema_base(Self::SCHEMA_BASE, types)
    }

    /// As [`new`](Self::new), with another beginning for the `$id` of schemas: `TYPE/VERSION`
    /// follows it. A schema that has an `$id` already, and an event with a
    /// [`SCHEMA_ID`](DomainEvent::SCHEMA_ID), keep theirs.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_schema_base(
        base: &str,
        types: impl IntoIterator<Item = EventType>,
    ) -> Result<Self> {
        let mut known = BTreeMap::new();
        for mut event_type in types {
            event_type.finish(base)?;
            let name = event_type.name();
            if known.insert(name, event_type).is_some() {
                return Err(Error::new(
                    ErrorKind::InvalidSetting,
                    format!("event type {name} is registered twice"),
                ));
            }
        }
        let this = Self {
            types: Arc::new(known),
        };
        this.check_schema_ids()?;
        Ok(this)
    }

    /// Whether each `$id` is one schema's.
    fn check_schema_ids(&self) -> Result<()> {
        let mut known: BTreeMap<&str, (&str, u32, &Value)> = BTreeMap::new();
        for event_type in self.types() {
            let name = event_type.name();
            for (version, id, schema) in event_type.schemas_with_id() {
                if let Some((other, other_version, other_schema)) =
                    known.insert(id, (name, version, schema))
                    && other_schema != schema
                {
                    return Err(Error::new(
                        ErrorKind::InvalidSetting,
                        format!(
                            "version {other_version} of {other} and version {version} of {name} have different \
                             schemas with one $id, {id:?}: give each its own"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The concrete event that was recorded, at the newest version of its type.
    ///
    /// Takes an [`OutboxRecord`], an [`Event`], a [`Message`](crate::Message) of a bus, or
    /// `(type, version, payload)` from wherever else.
    /// To tell the types apart:
    ///
    /// ```
    /// # use bento_outbox::{DomainEvent, Encoded, EventRegistry, Result};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced;
    /// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderShipped;
    /// # impl DomainEvent for OrderShipped { const TYPE: &'static str = "order.shipped"; }
    /// # fn bill(_: OrderPlaced) {}
    /// # fn track(_: OrderShipped) {}
    /// fn take(registry: &EventRegistry, record: Encoded<'_>) -> Result<()> {
    ///     let event = registry.decode(record)?;
    ///     match event.event_type() {
    ///         OrderPlaced::TYPE => bill(event.downcast()?),
    ///         OrderShipped::TYPE => track(event.downcast()?),
    ///         _ => {} // registered, and of no interest here
    ///     }
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// [`UnknownType`](ErrorKind::UnknownType) for a type that is not registered,
    /// [`UnknownVersion`](ErrorKind::UnknownVersion) for a version newer than the program's,
    /// [`RetiredVersion`](ErrorKind::RetiredVersion) for one older than the oldest it reads,
    /// [`Undecodable`](ErrorKind::Undecodable) for a payload that is encrypted,
    /// no JSON, or not what its version says, with the path of the field. The text never has a value
    /// of the payload in it.
    pub fn decode<'a>(&self, event: impl Into<Encoded<'a>>) -> Result<Decoded> {
        let event = event.into();
        let Some(event_type) = self.types.get(event.event_type) else {
            return Err(event.error(ErrorKind::UnknownType, "its type is not registered"));
        };
        let misfit = |kind| move |what: String| event.error(kind, &what);
        event_type
            .reads(event.version)
            .map_err(|(kind, what)| event.error(kind, &what))?;
        event
            .check_readable()
            .map_err(misfit(ErrorKind::Undecodable))?;
        let concrete = event_type
            .read(event.version, event.payload)
            .map_err(misfit(ErrorKind::Undecodable))?;
        Ok(Decoded {
            event: concrete,
            event_type: event_type.name(),
            rust_name: event_type.rust_name(),
            version: event.version,
        })
    }

    /// The event that was recorded, as an `E`.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode), and [`UnknownType`](ErrorKind::UnknownType) for an event of
    /// another type.
    pub fn decode_as<'a, E>(&self, event: impl Into<Encoded<'a>>) -> Result<E>
    where
        E: DomainEvent + Send + Sync + 'static,
    {
        let event = event.into();
        if event.event_type != E::TYPE {
            return Err(event.error(
                ErrorKind::UnknownType,
                &format!("{} was asked for", E::TYPE),
            ));
        }
        self.decode(event)?.downcast()
    }

    /// The types, in order of their names.
    pub fn types(&self) -> impl Iterator<Item = &EventType> {
        self.types.values()
    }

    /// The JSON Schema of a version, if it is known.
    pub fn schema(&self, event_type: &str, version: u32) -> Option<&Value> {
        self.types.get(event_type)?.schema(version)
    }

    /// The `$id` of that schema.
    pub fn schema_id(&self, event_type: &str, version: u32) -> Option<&str> {
        self.schema(event_type, version)?.get("$id")?.as_str()
    }

    /// The same registry, which also holds what is [checked](crate::Outbox::check_with) at the door to
    /// the schemas, by what `validator` makes of each. With the feature `validation`,
    /// `enforcing_schemas` does it; this is for a validator of your own.
    ///
    /// The validator's answer names the path, and has no value of the payload in it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] when `validator` cannot use a schema, with what it says, and when
    /// the newest version of a type has none.
    pub fn enforcing_schemas_with(
        mut self,
        validator: impl Fn(&Value) -> Result<SchemaValidator, String>,
    ) -> Result<Self> {
        let types = Arc::make_mut(&mut self.types);
        types
            .values_mut()
            .try_for_each(|event_type| event_type.enforce(&validator))?;
        Ok(self)
    }

    /// What this registry would say when it reads `event` back, and whether the payload follows its
    /// schema where schemas are enforced.
    pub(crate) fn check(&self, event: &Event) -> Result<()> {
        self.decode(event)?;
        let encoded = Encoded::from(event);
        self.types[encoded.event_type]
            .follows_schema(encoded.version, encoded.payload)
            .map_err(|what| encoded.error(ErrorKind::Undecodable, &what))
    }
}

impl Encoded<'_> {
    fn check_readable(&self) -> Result<(), String> {
        if let Some(key) = self.key_id {
            return Err(format!(
                "the payload is encrypted with key {key:?}; decrypt it first"
            ));
        }
        let media_type = self
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let subtype = media_type
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        if subtype != "json" && !subtype.ends_with("+json") {
            return Err(format!(
                "the payload is {media_type:?}, and a registry reads JSON"
            ));
        }
        Ok(())
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        let shown: String = self.event_type.chars().take(255).collect();
        let id = self.id.map_or_else(String::new, |id| format!(" {id}"));
        let version = self.version;
        Error::new(
            kind,
            format!("event{id} of type {shown} version {version}: {what}"),
        )
    }
}

impl<'a> From<&'a OutboxRecord> for Encoded<'a> {
    fn from(record: &'a OutboxRecord) -> Self {
        Self {
            id: Some(record.id),
            event_type: &record.event_type,
            version: record.schema_version,
            content_type: &record.content_type,
            key_id: record.key_id.as_deref(),
            payload: &record.payload,
        }
    }
}

impl<'a> From<&'a Event> for Encoded<'a> {
    fn from(event: &'a Event) -> Self {
        Self {
            id: Some(event.id),
            event_type: &event.event_type,
            version: event.schema_version,
            content_type: &event.content_type,
            key_id: event.key_id.as_deref(),
            payload: event.payload.as_bytes(),
        }
    }
}

/// Type, version and JSON.
impl<'a> From<(&'a str, u32, &'a [u8])> for Encoded<'a> {
    fn from((event_type, version, payload): (&'a str, u32, &'a [u8])) -> Self {
        Self {
            id: None,
            event_type,
            version,
            content_type: "application/json",
            key_id: None,
            payload,
        }
    }
}

impl Decoded {
    /// The event's type: a [`DomainEvent::TYPE`], to match on.
    pub fn event_type(&self) -> &'static str {
        self.event_type
    }

    /// The version at which it was recorded.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether it is an `E`.
    pub fn is<E: DomainEvent + 'static>(&self) -> bool {
        self.event.is::<E>()
    }

    /// The event, if it is an `E`.
    pub fn downcast_ref<E: DomainEvent + 'static>(&self) -> Option<&E> {
        self.event.downcast_ref()
    }

    /// The event as an `E`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownType`] when it is another.
    pub fn downcast<E: DomainEvent + 'static>(self) -> Result<E> {
        let (event_type, rust_name) = (self.event_type, self.rust_name);
        self.event.downcast().map(|event| *event).map_err(|_| {
            let asked = std::any::type_name::<E>();
            Error::new(
                ErrorKind::UnknownType,
                format!("event type {event_type} is registered as {rust_name}, and not as {asked}"),
            )
        })
    }
}

impl fmt::Debug for EventRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.types.values()).finish()
    }
}

/// Says how long the payload is and never what.
impl fmt::Debug for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, version, bytes) = (self.event_type, self.version, self.payload.len());
        write!(f, "{name} version {version} <{bytes} bytes>")
    }
}

/// Says what it is and never what is in it.
impl fmt::Debug for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} version {} <{}>",
            self.event_type, self.version, self.rust_name
        )
    }
}

#[cfg(test)]
mod tests;
