//! JSON Schemas from the Rust types of events, by schemars.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::event::DomainEvent;
use crate::registry::EventType;
use crate::timestamp::Timestamp;

impl EventType {
    /// As [`of`](Self::of), with the JSON Schema that schemars makes from `E`.
    ///
    /// ```
    /// # use bento_outbox::{DomainEvent, EventRegistry, EventType};
    /// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    /// struct OrderPlaced { total_cents: i64 }
    /// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
    ///
    /// let registry = EventRegistry::new([EventType::described::<OrderPlaced>()])?;
    /// let schema = registry.schema("order.placed", 1).unwrap();
    /// assert_eq!(schema["properties"]["total_cents"]["type"], "integer");
    /// # Ok::<_, bento_outbox::Error>(())
    /// ```
    #[must_use]
    pub fn described<E>() -> Self
    where
        E: DomainEvent + DeserializeOwned + JsonSchema + Send + Sync + 'static,
    {
        Self::of::<E>().describe::<E>()
    }

    /// Adds the JSON Schema of a version that has a Rust type: what is read as an `E`, in draft
    /// 2020-12. It takes no fields that it does not name, unless the event type is
    /// [`taking_unknown_fields`](Self::taking_unknown_fields).
    #[must_use]
    pub fn describe<E: DomainEvent + JsonSchema>(mut self) -> Self {
        self.must_be_same_type::<E>();
        self.note_schema_id::<E>();
        self.with_schema(E::VERSION, schema_of::<E>())
    }
}

fn schema_of<E: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_deserialize();
    settings
        .into_generator()
        .into_root_schema_for::<E>()
        .to_value()
}

/// A string in RFC 3339.
impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::registry::EventRegistry;

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Common {
        by: String,
        #[serde(default)]
        urgent: bool,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(tag = "how", rename_all = "snake_case")]
    enum Tagged {
        Card { last4: String },
        Cash,
        Wrapped(Common),
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum External {
        Unit,
        Newtype(Common),
        Struct { a: Option<u8> },
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(untagged)]
    enum Untagged {
        Long { first: String, last: String },
        Short(String),
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Everything {
        #[serde(flatten)]
        common: Common,
        ways: Vec<Tagged>,
        external: External,
        untagged: Untagged,
        note: Option<Common>,
        map: BTreeMap<String, Common>,
        numbered: HashMap<u32, u8>,
        pair: (u8, String),
        inner: Box<Option<Everything>>,
        any: Value,
        at: Timestamp,
    }
    impl DomainEvent for Everything {
        const TYPE: &'static str = "everything";
    }

    fn everything() -> Value {
        json!({
            "by": "x", "ways": [{"how": "card", "last4": "1"}, {"how": "cash"}, {"how": "wrapped", "by": "x"}],
            "external": {"newtype": {"by": "x"}}, "untagged": {"first": "a", "last": "b"},
            "note": {"by": "x"}, "map": {"k": {"by": "x"}}, "numbered": {"7": 1}, "pair": [1, "x"],
            "inner": null, "any": {"thing": 1}, "at": "2013-01-01T05:17:00Z",
        })
    }

    #[test]
    fn the_schema_takes_what_the_registry_reads_and_nothing_else() {
        let registry = EventRegistry::new([EventType::described::<Everything>()]).unwrap();
        let schema = registry.schema("everything", 1).unwrap();
        assert_eq!(
            schema["$schema"],
            "https://json-schema.org/draft/2020-12/schema"
        );
        assert_eq!(schema["$id"], "urn:bento-outbox:schema:everything/1");
        let judge = jsonschema::validator_for(schema).unwrap();
        let mut nested = everything();
        nested["inner"] = everything();
        let changes = [
            ("", json!(null), true),
            ("/ways/0/x", json!(1), false),
            ("/ways/1/x", json!(1), false),
            ("/ways/2/x", json!(1), false),
            ("/ways/2/urgent", json!(true), true),
            ("/x", json!(1), false),
            ("/urgent", json!(false), true),
            ("/external/newtype/x", json!(1), false),
            ("/external", json!({"struct": {"x": 1}}), false),
            ("/external", json!({"struct": {}}), true),
            ("/external", json!("unit"), true),
            ("/external", json!("other"), false),
            ("/untagged/x", json!(1), false),
            ("/untagged", json!("x"), true),
            ("/note/x", json!(1), false),
            ("/note", json!(null), true),
            ("/map/k/x", json!(1), false),
            ("/map/l", json!({"by": "x"}), true),
            ("/numbered/8", json!(2), true),
            ("/pair", json!([1]), false),
            ("/inner/x", json!(1), false),
            ("/inner/ways/0/x", json!(1), false),
            ("/any/x", json!(1), true),
            ("/at", json!(1), false),
        ];
        for (at, value, is_fine) in changes {
            let mut document = nested.clone();
            if let Some((parent, name)) = at.rsplit_once('/') {
                document.pointer_mut(parent).unwrap()[name] = value;
            }
            let text = document.to_string();
            let read = registry.decode(("everything", 1, text.as_bytes()));
            assert_eq!(
                judge.is_valid(&document),
                is_fine,
                "{at} {document}\n{schema:#}"
            );
            assert_eq!(read.is_ok(), is_fine, "{at} {document} {read:?}");
        }
    }

    #[test]
    fn a_type_that_takes_unknown_fields_says_so() {
        let open = EventType::described::<Everything>().taking_unknown_fields();
        let registry = EventRegistry::new([open]).unwrap();
        let judge = jsonschema::validator_for(registry.schema("everything", 1).unwrap()).unwrap();
        let mut document = everything();
        document["x"] = 1.into();
        document["note"]["x"] = 1.into();
        assert!(judge.is_valid(&document));
    }

    #[test]
    fn a_schema_of_another_type_is_refused() {
        #[derive(Serialize, Deserialize, JsonSchema)]
        struct Other;
        impl DomainEvent for Other {
            const TYPE: &'static str = "other";
        }
        let mixed = EventType::described::<Other>().describe::<Everything>();
        let error = EventRegistry::new([mixed]).unwrap_err();
        assert!(error.to_string().contains("of type everything"), "{error}");
    }
}
