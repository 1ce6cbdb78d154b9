//! One event type with its versions, and the ways from the old ones to the newest.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::closing;
use super::reading::{Misfit, read, read_value};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{DomainEvent, Event, Payload};

/// One event type, for an [`EventRegistry`](super::EventRegistry): the Rust type that stands for its
/// newest version, and how older ones become it.
///
/// ```
/// # use bento_outbox::{DomainEvent, EventType};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Old { cents: i64 }
/// # impl DomainEvent for Old { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 2; }
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { total_cents: i64 }
/// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 3; }
/// let order_placed = EventType::of::<OrderPlaced>()
///     .upcast(|old: Old| Ok(OrderPlaced { total_cents: old.cents }))
///     .upcast_json(1, |mut json| {
///         let fields = json.as_object_mut().ok_or("it is no object")?;
///         let euros = fields.remove("euros").and_then(|euros| euros.as_i64());
///         let cents = euros.and_then(|euros| euros.checked_mul(100));
///         fields.insert("cents".into(), cents.ok_or("euros is no amount")?.into());
///         Ok(json) // with every other field, so that none is dropped unseen
///     });
/// ```
#[derive(Clone)]
pub struct EventType {
    name: &'static str,
    rust_name: &'static str,
    /// The newest version: what the Rust type stands for.
    version: u32,
    oldest_version: u32,
    takes_unknown_fields: bool,
    read: Read,
    upcasters: BTreeMap<u32, Upcaster>,
    /// The schema and what is known of it, by version.
    schemas: BTreeMap<u32, Schema>,
    /// The first thing that is wrong, said when the registry is made.
    fault: Option<String>,
}

type Read = fn(&[u8], bool) -> Result<Box<dyn Any + Send + Sync>, Misfit>;
/// Why an upcaster does not take an event.
type Refusal = Box<dyn std::error::Error + Send + Sync>;
type Upcast = dyn Fn(&[u8], bool) -> Result<Vec<u8>, String> + Send + Sync;

/// Whether a payload follows a schema, and otherwise where and why not.
pub type SchemaValidator = Arc<dyn Fn(&Value) -> Result<(), String> + Send + Sync>;

/// A step from one version up.
#[derive(Clone)]
struct Upcaster {
    to: u32,
    upcast: Arc<Upcast>,
}

#[derive(Clone, Default)]
struct Schema {
    /// The id that the Rust type of this version says.
    id: Option<&'static str>,
    schema: Option<Value>,
    validate: Option<SchemaValidator>,
}

impl EventType {
    /// The type whose newest version is `E`. Every older version needs an upcaster.
    pub fn of<E>() -> Self
    where
        E: DomainEvent + DeserializeOwned + Send + Sync + 'static,
    {
        let mut this = Self {
            name: E::TYPE,
            rust_name: std::any::type_name::<E>(),
            version: E::VERSION,
            oldest_version: 1,
            takes_unknown_fields: false,
            read: |payload, takes_unknown_fields| {
                Ok(Box::new(read::<E>(payload, takes_unknown_fields)?))
            },
            upcasters: BTreeMap::new(),
            schemas: BTreeMap::new(),
            fault: None,
        };
        this.note_schema_id::<E>();
        this
    }

    /// Turns `Old`, an older version of the same type, into `New`, which is a later one. An error of
    /// `upcast` says what is wrong with the event, without a value from it; the event is then
    /// [`Undecodable`](ErrorKind::Undecodable).
    #[must_use]
    pub fn upcast<Old, New, F>(mut self, upcast: F) -> Self
    where
        Old: DomainEvent + DeserializeOwned,
        New: DomainEvent,
        F: Fn(Old) -> Result<New, Refusal> + Send + Sync + 'static,
    {
        self.must_be_same_type::<Old>();
        self.must_be_same_type::<New>();
        self.note_schema_id::<Old>();
        let step = move |payload: &[u8], takes_unknown_fields: bool| {
            let old =
                read::<Old>(payload, takes_unknown_fields).map_err(|misfit| misfit.to_string())?;
            let new = upcast(old).map_err(|error| error.to_string())?;
            serde_json::to_vec(&new)
                .map_err(|_| format!("version {} cannot be serialised", New::VERSION))
        };
        self.add_upcaster(Old::VERSION, New::VERSION, Arc::new(step));
        self
    }

    /// Turns the JSON of the version `from` into that of the next one; errors as for
    /// [`upcast`](Self::upcast). Change the value rather than make a new one: a field that `upcast`
    /// does not know is then still there, and refused by the type.
    #[must_use]
    pub fn upcast_json<F>(mut self, from: u32, upcast: F) -> Self
    where
        F: Fn(Value) -> Result<Value, Refusal> + Send + Sync + 'static,
    {
        let step = move |payload: &[u8], _: bool| {
            let old = read_value(payload).map_err(|misfit| misfit.to_string())?;
            let new = upcast(old).map_err(|error| error.to_string())?;
            serde_json::to_vec(&new).map_err(|_| "its JSON cannot be serialised".into())
        };
        self.add_upcaster(from, from.saturating_add(1), Arc::new(step));
        self
    }

    /// The oldest version that may still be somewhere, so that older ones need no upcaster: they are
    /// retired, and one that comes after all is a [`RetiredVersion`](ErrorKind::RetiredVersion).
    /// Defaults to 1.
    #[must_use]
    pub fn oldest_version(self, version: u32) -> Self {
        Self {
            oldest_version: version,
            ..self
        }
    }

    /// Leaves fields aside that the type does not know, in every version. Defaults to an error.
    #[must_use]
    pub fn taking_unknown_fields(self) -> Self {
        Self {
            takes_unknown_fields: true,
            ..self
        }
    }

    /// The JSON Schema (draft 2020-12) of a version, written by hand or kept from when that version
    /// was the newest. Where it names fields and is silent about others, it takes no others, unless the
    /// type is [`taking_unknown_fields`](Self::taking_unknown_fields).
    #[must_use]
    pub fn with_schema(mut self, version: u32, schema: Value) -> Self {
        if self
            .schemas
            .entry(version)
            .or_default()
            .schema
            .replace(schema)
            .is_some()
        {
            self.blame(format!("version {version} has two schemas"));
        }
        self
    }

    /// The event type's name, `order.placed`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The newest version, which others are upcast to.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The versions that are read, the newest last.
    pub fn versions(&self) -> impl Iterator<Item = u32> {
        self.oldest_version..=self.version
    }

    /// The JSON Schema of a version, if it is known.
    pub fn schema(&self, version: u32) -> Option<&Value> {
        self.schemas.get(&version)?.schema.as_ref()
    }

    /// Each schema with an `$id`: its version, that, and the schema.
    pub(super) fn schemas_with_id(&self) -> impl Iterator<Item = (u32, &str, &Value)> {
        self.schemas.iter().filter_map(|(version, schema)| {
            let schema = schema.schema.as_ref()?;
            Some((*version, schema.get("$id")?.as_str()?, schema))
        })
    }

    pub(super) fn rust_name(&self) -> &'static str {
        self.rust_name
    }

    /// Ends the collecting: checks everything and gives each schema its `$id`.
    pub(super) fn finish(&mut self, schema_base: &str) -> Result<()> {
        self.check().map_err(|what| self.refused(&what))?;
        for (version, schema) in &mut self.schemas {
            if let Some(schema) = schema
                .schema
                .as_mut()
                .filter(|_| !self.takes_unknown_fields)
            {
                closing::close(schema);
            }
            let Some(Value::Object(members)) = &mut schema.schema else {
                continue;
            };
            if !members.contains_key("$id") {
                let made = || format!("{schema_base}{}/{version}", self.name);
                let id = schema.id.map_or_else(made, Into::into);
                members.insert("$id".into(), id.into());
            }
        }
        let ids: Vec<String> = self
            .schemas
            .values()
            .filter_map(Schema::dollar_id)
            .collect();
        let as_column = |id: &String| Event {
            schema_id: Some(id.clone()),
            ..Event::new(self.name, Payload::Data(Default::default()))
        };
        ids.iter()
            .map(as_column)
            .try_for_each(|event| event.check())
            .map_err(|_| {
                self.refused(
                    "the $id of its schema is not 1 to 255 characters without control characters",
                )
            })
    }

    fn check(&self) -> Result<(), String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        Event::new(self.name, Payload::Data(Default::default()))
            .check()
            .map_err(|_| "its type is not 1 to 255 of the characters A-Z a-z 0-9 . _ - : /")?;
        let (oldest, newest) = (self.oldest_version, self.version);
        if newest == 0 || i32::try_from(newest).is_err() {
            return Err(format!(
                "its VERSION is {newest}, and versions go from 1 to 2147483647"
            ));
        }
        if !(1..=newest).contains(&oldest) {
            return Err(format!(
                "oldest_version({oldest}) is not within 1 to {newest}, its newest version"
            ));
        }
        for (from, upcaster) in &self.upcasters {
            if !(oldest..newest).contains(from) || upcaster.to <= *from || upcaster.to > newest {
                let to = upcaster.to;
                return Err(format!(
                    "its upcaster from version {from} to {to} is not upwards within its versions, {oldest} \
                     (oldest_version) to {newest}"
                ));
            }
        }
        if let Some(hole) = (oldest..newest).find(|version| !self.upcasters.contains_key(version)) {
            return Err(format!(
                "version {hole} has no upcaster, so that its events could not become version {newest}; add \
                 one, or say by oldest_version that there are no such events"
            ));
        }
        for (version, schema) in &self.schemas {
            match &schema.schema {
                Some(_) if !(oldest..=newest).contains(version) => {
                    return Err(format!(
                        "it has a schema for version {version}, and reads {oldest} (oldest_version) to {newest}"
                    ));
                }
                Some(Value::Object(_)) | None => {}
                Some(_) => return Err(format!("its schema of version {version} is no object")),
            }
            if let (Some(said), Some(id)) = (schema.id, schema.dollar_id())
                && said != id
            {
                return Err(format!(
                    "the schema of version {version} has the $id {id:?}, and the event says SCHEMA_ID {said:?}"
                ));
            }
        }
        Ok(())
    }

    /// Whether a version is read, and otherwise why not.
    pub(super) fn reads(&self, version: u32) -> Result<(), (ErrorKind, String)> {
        let (oldest, newest) = (self.oldest_version, self.version);
        if version == 0 {
            let what =
                format!("versions begin with 1, and this program reads {oldest} to {newest}");
            return Err((ErrorKind::UnknownVersion, what));
        }
        if version > newest {
            let what = format!(
                "this program knows versions up to {newest} and turns no newer one back; update the program"
            );
            return Err((ErrorKind::UnknownVersion, what));
        }
        if version < oldest {
            let what = format!(
                "this program reads versions {oldest} to {newest} and no older ones; to have it read, register \
                 the upcasters from version {version} on, with oldest_version({version})"
            );
            return Err((ErrorKind::RetiredVersion, what));
        }
        Ok(())
    }

    /// The concrete event that a payload of `version` is, after all upcasters.
    pub(super) fn read(
        &self,
        version: u32,
        payload: &[u8],
    ) -> Result<Box<dyn Any + Send + Sync>, String> {
        if version == self.version {
            return (self.read)(payload, self.takes_unknown_fields)
                .map_err(|misfit| misfit.to_string());
        }
        let (mut at, mut payload) = (version, payload.to_vec());
        while let Some(upcaster) = self.upcasters.get(&at) {
            payload = (upcaster.upcast)(&payload, self.takes_unknown_fields)
                .map_err(|what| upcasting(version, at, &what))?;
            at = upcaster.to;
        }
        (self.read)(&payload, self.takes_unknown_fields)
            .map_err(|misfit| upcasting(version, at, &misfit.to_string()))
    }

    /// Whether a payload follows the schema of its version, where that is enforced.
    pub(super) fn follows_schema(&self, version: u32, payload: &[u8]) -> Result<(), String> {
        let Some(validate) = self
            .schemas
            .get(&version)
            .and_then(|schema| schema.validate.as_ref())
        else {
            return Ok(());
        };
        // Read already; what serde_json cannot hold as a value is a number out of its range.
        let json = read(payload, true).map_err(|misfit| misfit.to_string())?;
        validate(&json)
    }

    /// Holds payloads to their schemas by what `validator` makes of each.
    pub(super) fn enforce(
        &mut self,
        validator: &impl Fn(&Value) -> Result<SchemaValidator, String>,
    ) -> Result<()> {
        if self.schema(self.version).is_none() {
            let version = self.version;
            return Err(self.refused(&format!(
                "version {version} has no schema that its payloads could be held to: add it, by described or \
                 with_schema; with_schema({version}, json!({{}})) says that anything will do"
            )));
        }
        for (version, schema) in &mut self.schemas {
            if let Some(json) = &schema.schema {
                let made = validator(json);
                schema.validate = Some(made.map_err(|what| {
                    Error::new(
                        ErrorKind::InvalidSetting,
                        format!(
                            "event type {}: the schema of version {version} {what}",
                            self.name
                        ),
                    )
                })?);
            }
        }
        Ok(())
    }

    /// Keeps the first thing that is wrong, to be said when the registry is made.
    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    pub(crate) fn must_be_same_type<E: DomainEvent>(&mut self) {
        if E::TYPE != self.name {
            self.blame(format!("it has an upcaster of type {}", E::TYPE));
        }
    }

    /// Remembers what id a version's Rust type says that its schema has.
    pub(crate) fn note_schema_id<E: DomainEvent>(&mut self) {
        if let Some(id) = E::SCHEMA_ID {
            self.schemas.entry(E::VERSION).or_default().id = Some(id);
        }
    }

    fn add_upcaster(&mut self, from: u32, to: u32, upcast: Arc<Upcast>) {
        if self
            .upcasters
            .insert(from, Upcaster { to, upcast })
            .is_some()
        {
            self.blame(format!("version {from} has two upcasters"));
        }
    }

    fn refused(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::InvalidSetting,
            format!("event type {}: {what}", self.name),
        )
    }
}

impl Schema {
    fn dollar_id(&self) -> Option<String> {
        Some(self.schema.as_ref()?.get("$id")?.as_str()?.to_owned())
    }
}

fn upcasting(from: u32, at: u32, what: &str) -> String {
    if from == at {
        return what.to_owned();
    }
    format!("upcast to version {at}: {what}")
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} versions {}..={}",
            self.name, self.oldest_version, self.version
        )
    }
}
