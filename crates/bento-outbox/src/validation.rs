//! Payloads are held to their JSON Schemas by the crate jsonschema.

use std::sync::Arc;

use jsonschema::{Draft, ValidationError, Validator};
use serde_json::Value;

use crate::error::Result;
use crate::registry::EventRegistry;

impl EventRegistry {
    /// The same registry, which also holds what is [checked](crate::Outbox::check_with) at the door to
    /// its schemas: bounds, lengths, patterns and formats, beyond what the Rust types ask.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when something is no JSON Schema of draft
    /// 2020-12, or refers to a schema elsewhere: nothing is fetched; and when the newest version of a
    /// type has no schema, to which its payloads could be held.
    pub fn enforcing_schemas(self) -> Result<Self> {
        self.enforcing_schemas_with(|schema| {
            let validator = validator(schema)?;
            Ok(Arc::new(move |payload| match validator.validate(payload) {
                Ok(()) => Ok(()),
                Err(error) => Err(explained(&error)),
            }))
        })
    }
}

fn validator(schema: &Value) -> Result<Validator, String> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .build(schema)
        .map_err(|error| {
            format!(
                "cannot be used, at {:?}: {error}",
                error.instance_path().as_str()
            )
        })
}

/// Where and why, without what stands there.
fn explained(error: &ValidationError<'_>) -> String {
    let mut path = String::new();
    for step in error.instance_path().as_str().split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        if !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str(&format!("[{step}]"));
        } else {
            path.extend([if path.is_empty() { "" } else { "." }, &step]);
        }
    }
    let place = if path.is_empty() {
        "the payload".into()
    } else {
        format!("field {path:?}")
    };
    format!("{place} does not follow its schema: {}", error.masked())
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::event::{DomainEvent, Event};
    use crate::registry::EventType;
    use crate::testing::Unit;

    #[derive(Serialize, Deserialize)]
    struct Placed {
        lines: Vec<Line>,
        by: String,
    }
    impl DomainEvent for Placed {
        const TYPE: &'static str = "placed";
    }

    #[derive(Serialize, Deserialize)]
    struct Line {
        cents: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    }

    fn registry(schema: Value) -> Result<EventRegistry> {
        EventRegistry::new([EventType::of::<Placed>().with_schema(1, schema)])?.enforcing_schemas()
    }

    #[test]
    fn what_does_not_follow_its_schema_is_refused_with_the_path_and_without_the_value() {
        let line = json!({"required": ["note"], "properties": {
            "cents": {"minimum": 1},
            "note": {"maxLength": 7, "enum": ["a", "b", "canary!"]},
        }});
        let schema = json!({
            "maxProperties": 2,
            "properties": {"lines": {"items": line}, "by": {"format": "email", "pattern": "@"}},
        });
        let registry = registry(schema).unwrap();
        let raised = |cents, note: Option<&str>, by: &str| {
            let note = note.map(Into::into);
            let lines = vec![
                Line {
                    cents: 1,
                    note: Some("a".into()),
                },
                Line { cents, note },
            ];
            let event = Event::of(&Placed {
                lines,
                by: by.into(),
            })?;
            Unit::default()
                .check_with(&registry)
                .track(|| crate::raise(event))
        };
        raised(1, Some("b"), "a@shop.example").unwrap();
        for (cents, note, by, says) in [
            (
                -77_777,
                Some("a"),
                "a@shop.example",
                "field \"lines[1].cents\" does not follow its schema",
            ),
            (1, None, "a@shop.example", "\"note\" is a required property"),
            (
                1,
                Some("canary of a note"),
                "a@shop.example",
                "field \"lines[1].note\"",
            ),
            (
                1,
                Some("canary"),
                "a@shop.example",
                "field \"lines[1].note\"",
            ),
            (1, Some("a"), "canary", "field \"by\""),
            (1, Some("a"), "@canary", "field \"by\""),
        ] {
            let said = raised(cents, note, by).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
            assert!(
                !said.contains("77777") && !said.replace("canary!", "").contains("canary"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_no_schema_is_said_when_the_registry_is_made() {
        for (schema, says) in [
            (
                json!({"type": "nothing"}),
                "event type placed: the schema of version 1 cannot be used",
            ),
            (
                json!({"$ref": "https://shop.example/other.json"}),
                "shop.example",
            ),
        ] {
            let said = registry(schema).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
        let bare = EventRegistry::new([EventType::of::<Placed>()]).unwrap();
        let said = bare.enforcing_schemas().unwrap_err().to_string();
        assert!(
            said.contains("event type placed: version 1 has no schema"),
            "{said}"
        );
    }
}
