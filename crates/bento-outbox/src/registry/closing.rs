//! A schema says that there are no other fields, as the registry does.
//!
//! A type that leaves nothing aside refuses fields that it does not know. A schema that is made from
//! the type is silent about them, which means that it takes any. So it is closed wherever it names
//! fields and is silent about others. Parts of a larger object, which a tag or a flattened field
//! makes, stay open, and what they are put together to is closed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// Closes `schema` (draft 2020-12) and its definitions.
pub(super) fn close(schema: &mut Value) {
    let mut closer = Closer::default();
    // Until no further definition turns out to be a part of something.
    loop {
        let known = closer.parts.len();
        closer.document(schema);
        if closer.parts.len() == known {
            break;
        }
    }
    closer.closes = true;
    closer.document(schema);
}

#[derive(Default)]
struct Closer {
    /// References to what is a part of a larger object somewhere.
    parts: BTreeSet<String>,
    /// Whether the parts are known, and schemas are changed.
    closes: bool,
}

/// What a schema is to the value that it describes.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// All that describes it.
    Whole,
    /// One of several that do.
    Part,
}

impl Closer {
    fn document(&mut self, schema: &mut Value) {
        for place in ["$defs", "definitions"] {
            let definitions = schema.get_mut(place).and_then(Value::as_object_mut);
            for (name, definition) in definitions.into_iter().flatten() {
                let role = self.role_of(&format!("#/{place}/{name}"));
                self.schema(definition, role);
            }
        }
        let role = self.role_of("#");
        self.schema(schema, role);
    }

    fn role_of(&self, reference: &str) -> Role {
        if self.parts.contains(reference) {
            Role::Part
        } else {
            Role::Whole
        }
    }

    fn schema(&mut self, schema: &mut Value, role: Role) {
        let Value::Object(keywords) = schema else {
            return;
        };
        self.inside(keywords);
        let has = |name: &&str| keywords.contains_key(*name);
        let is_silent = !["additionalProperties", "unevaluatedProperties"]
            .iter()
            .any(has);
        let names = ["properties", "patternProperties"].iter().any(has);
        let all_of = keywords
            .get("allOf")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        let others = ["$ref", "anyOf", "oneOf", "then", "else", "dependentSchemas"];
        let applied = all_of + others.iter().filter(|name| has(name)).count();
        let is_one = applied == 1 && !names && is_silent;
        let inner = if is_one { role } else { Role::Part };
        self.applied(keywords, inner);
        if !self.closes || role == Role::Part || !is_silent {
            return;
        }
        let closed_by_part = |reference: &Value| {
            reference
                .as_str()
                .is_some_and(|reference| self.role_of(reference) == Role::Part)
        };
        if applied == 0 && names {
            keywords.insert("additionalProperties".into(), false.into());
        } else if (applied > 0 && !is_one) || keywords.get("$ref").is_some_and(closed_by_part) {
            keywords.insert("unevaluatedProperties".into(), false.into());
        }
    }

    /// Schemas of values inside of the value. Each describes one as a whole.
    fn inside(&mut self, keywords: &mut Map<String, Value>) {
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(fields)) => {
                    fields
                        .values_mut()
                        .for_each(|schema| self.schema(schema, Role::Whole));
                }
                ("prefixItems", Value::Array(elements)) => {
                    elements
                        .iter_mut()
                        .for_each(|schema| self.schema(schema, Role::Whole));
                }
                (
                    "items" | "contains" | "additionalProperties" | "unevaluatedProperties",
                    schema,
                ) => {
                    self.schema(schema, Role::Whole);
                }
                _ => {}
            }
        }
    }

    /// Schemas that describe the value itself. In `not` and `if` closing would turn the meaning round.
    fn applied(&mut self, keywords: &mut Map<String, Value>, role: Role) {
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(reference)) if role == Role::Part => {
                    self.parts.insert(reference.clone());
                }
                ("allOf" | "anyOf" | "oneOf", Value::Array(branches)) => {
                    branches
                        .iter_mut()
                        .for_each(|branch| self.schema(branch, role));
                }
                ("then" | "else", schema) => self.schema(schema, Role::Part),
                ("dependentSchemas", Value::Object(schemas)) => {
                    schemas
                        .values_mut()
                        .for_each(|schema| self.schema(schema, Role::Part));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn objects_that_name_fields_take_no_others_at_any_depth() {
        let object =
            |name: &str, schema: Value| json!({"type": "object", "properties": {name: schema}});
        let and_no_others = |mut schema: Value| {
            schema["additionalProperties"] = false.into();
            schema
        };
        let inner = object("a", json!({"type": "string"}));
        assert_eq!(
            closed(object("lines", json!({"type": "array", "items": inner}))),
            and_no_others(object(
                "lines",
                json!({"type": "array", "items": and_no_others(inner.clone())})
            ))
        );
        let optional = json!({"anyOf": [{"$ref": "#/$defs/Inner"}, {"type": "null"}], "$defs": {"Inner": inner}});
        assert_eq!(
            closed(optional),
            json!({
                "anyOf": [{"$ref": "#/$defs/Inner"}, {"type": "null"}],
                "$defs": {"Inner": and_no_others(inner.clone())}
            })
        );
        for open in [
            json!({"type": "object"}),
            json!({"type": "object", "additionalProperties": true, "properties": {}}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"not": inner, "if": inner}),
            json!(true),
        ] {
            assert_eq!(closed(open.clone()), open);
        }
    }

    #[test]
    fn what_is_put_together_is_closed_as_a_whole_and_its_parts_are_not() {
        let part = json!({"type": "object", "properties": {"by": {"type": "string"}}});
        let schema = json!({
            "$defs": {
                "Part": part,
                "Alias": {"$ref": "#/$defs/Part"},
                "Tagged": {
                    "oneOf": [{
                        "type": "object",
                        "properties": {"how": {"const": "wrapped"}},
                        "$ref": "#/$defs/Alias",
                    }],
                },
            },
            "properties": {
                "way": {"$ref": "#/$defs/Tagged"},
                "alone": {"$ref": "#/$defs/Part"},
                "both": {"allOf": [{"$ref": "#/$defs/Tagged"}, {"required": ["how"]}]},
            },
        });
        let closed = closed(schema.clone());
        assert_eq!(closed["$defs"], schema["$defs"], "each is a part somewhere");
        assert_eq!(closed["additionalProperties"], false);
        for place in ["way", "alone", "both"] {
            assert_eq!(
                closed["properties"][place]["unevaluatedProperties"], false,
                "{place}"
            );
        }
        let judge = jsonschema::validator_for(&closed).unwrap();
        for (document, valid) in [
            (
                json!({"way": {"how": "wrapped", "by": "x"}, "alone": {"by": "x"}}),
                true,
            ),
            (
                json!({"way": {"how": "wrapped", "by": "x", "at": 1}}),
                false,
            ),
            (json!({"alone": {"by": "x", "how": "wrapped"}}), false),
            (json!({"both": {"how": "wrapped", "by": "x"}}), true),
            (json!({"both": {"how": "wrapped", "to": "x"}}), false),
            (json!({"other": 1}), false),
        ] {
            assert_eq!(judge.is_valid(&document), valid, "{document}");
        }
    }
}
