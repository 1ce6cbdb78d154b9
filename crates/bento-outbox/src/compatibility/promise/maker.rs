//! Schemas at random, and random changes of them.

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use serde_json::{Map, Value, json};

use super::NAMES;

const WORDS: [&str; 4] = ["x", "y", "zz", ""];

/// Makes schemas.
pub(super) struct Maker<'r> {
    pub(super) random: &'r mut StdRng,
}

impl Maker<'_> {
    fn one_in(&mut self, times: u32) -> bool {
        self.random.random_ratio(1, times)
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list.choose(self.random).unwrap().clone()
    }

    pub(super) fn document(&mut self) -> Value {
        let mut schema = self.schema(3);
        if let Value::Object(keywords) = &mut schema {
            keywords.insert(
                "$defs".into(),
                json!({"D": self.schema(2), "E": self.schema(1)}),
            );
        }
        schema
    }

    fn schema(&mut self, depth: u32) -> Value {
        let kind = self.random.random_range(0..if depth == 0 { 7 } else { 17 });
        match kind {
            0 => self.number(),
            1 => self.string(),
            2 => json!({"type": "boolean"}),
            3 => json!({"type": [self.pick(&["string", "integer", "object"]), "null"]}),
            4 => json!({"enum": [self.scalar(), self.scalar(), self.scalar()]}),
            5 => json!({"const": self.scalar()}),
            6 => {
                let odd = [
                    json!({}),
                    json!(true),
                    json!(false),
                    json!({"type": "null"}),
                    json!({"const": {"a": 1}}),
                ];
                self.pick(&odd)
            }
            7..=10 => self.object(depth),
            11 | 15 => self.array(depth),
            12 => {
                let branches = self.schemas(depth);
                let mut schema = if self.one_in(3) {
                    self.object(depth - 1)
                } else {
                    json!({})
                };
                schema[self.pick(&["anyOf", "oneOf"])] = branches;
                schema
            }
            13 => {
                let mut schema = if self.one_in(2) {
                    self.object(depth - 1)
                } else {
                    json!({})
                };
                schema["allOf"] = self.schemas(depth);
                schema
            }
            14 => {
                let mut schema = if self.one_in(3) {
                    self.object(depth - 1)
                } else {
                    json!({})
                };
                schema["$ref"] = self.pick(&["#/$defs/D", "#/$defs/E", "#"]).into();
                schema
            }
            _ => self.tagged(depth),
        }
    }

    fn schemas(&mut self, depth: u32) -> Value {
        let count = self.random.random_range(1..=3);
        (0..count).map(|_| self.schema(depth - 1)).collect()
    }

    /// As enums with a tag are described.
    fn tagged(&mut self, depth: u32) -> Value {
        let count = self.random.random_range(1..=3);
        let branch = |at: usize, maker: &mut Self| {
            let mut branch = maker.object(depth - 1);
            branch["properties"]["t"] = json!({"const": WORDS[at]});
            branch["required"] = json!(["t"]);
            branch
        };
        let branches: Vec<Value> = (0..count).map(|at| branch(at, self)).collect();
        json!({"oneOf": branches})
    }

    fn number(&mut self) -> Value {
        let mut schema = json!({"type": self.pick(&["integer", "number"])});
        for keyword in [
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
        ] {
            if self.one_in(4) {
                let limits = [
                    json!(-2),
                    json!(0),
                    json!(1),
                    json!(1.5),
                    json!(2),
                    json!(3.0),
                    json!(4),
                ];
                schema[keyword] = if keyword == "multipleOf" {
                    self.pick(&[json!(1), json!(2), json!(4)])
                } else {
                    self.pick(&limits)
                };
            }
        }
        schema
    }

    fn string(&mut self) -> Value {
        let mut schema = json!({"type": "string"});
        for keyword in ["minLength", "maxLength"] {
            if self.one_in(3) {
                schema[keyword] = self.random.random_range(0..4).into();
            }
        }
        if self.one_in(5) {
            schema["pattern"] = self.pick(&["^x", "y"]).into();
        }
        schema
    }

    fn scalar(&mut self) -> Value {
        let scalars = [
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(1),
            json!(1.0),
            json!(2.5),
            json!("x"),
            json!("y"),
            json!("zz"),
        ];
        self.pick(&scalars)
    }

    fn object(&mut self, depth: u32) -> Value {
        let below = depth.saturating_sub(1);
        let mut schema = json!({});
        if !self.one_in(6) {
            schema["type"] = "object".into();
        }
        let mut properties = Map::new();
        for name in NAMES {
            if self.one_in(2) {
                properties.insert(name.into(), self.schema(below));
            }
        }
        schema["properties"] = properties.into();
        let required: Vec<&str> = NAMES.into_iter().filter(|_| self.one_in(4)).collect();
        schema["required"] = required.into();
        match self.random.random_range(0..8) {
            0 | 1 => schema["additionalProperties"] = false.into(),
            2 => schema["additionalProperties"] = self.schema(below),
            3 => {
                schema["unevaluatedProperties"] =
                    self.pick(&[json!(false), json!(true), json!({"type": "string"})]);
            }
            _ => {}
        }
        match self.random.random_range(0..16) {
            0 | 6 | 7 => schema["patternProperties"] = json!({"^x": self.schema(0)}),
            1 => schema["minProperties"] = self.random.random_range(0..3).into(),
            2 => schema["maxProperties"] = self.random.random_range(1..4).into(),
            3 => schema["propertyNames"] = json!({"maxLength": self.random.random_range(0..3)}),
            4 => schema["not"] = self.schema(0),
            5 => {
                schema["if"] = json!({"properties": {"a": self.schema(0)}});
                schema["then"] = json!({"properties": {"b": self.schema(0)}});
            }
            _ => {}
        }
        schema
    }

    fn array(&mut self, depth: u32) -> Value {
        let mut schema = json!({"type": "array"});
        if !self.one_in(4) {
            schema["items"] = self.schema(depth - 1);
        }
        if self.one_in(3) {
            schema["prefixItems"] = self.schemas(depth);
        }
        for keyword in ["minItems", "maxItems"] {
            if self.one_in(4) {
                schema[keyword] = self.random.random_range(0..3).into();
            }
        }
        if self.one_in(2) {
            schema["uniqueItems"] = self.pick(&[true, false]).into();
        }
        schema
    }

    /// Changes one thing, somewhere.
    pub(super) fn change(&mut self, schema: &mut Value) {
        let keywords = match schema {
            Value::Object(keywords) if !keywords.is_empty() => keywords,
            _ => {
                *schema = self.schema(1);
                return;
            }
        };
        let names: Vec<String> = keywords.keys().cloned().collect();
        let name = self.pick(&names);
        match (&mut keywords[&name], self.random.random_range(0..10)) {
            (_, 0) => {
                let (with, other) = (self.schema(0), std::mem::take(schema));
                let defs = other.get("$defs").cloned();
                *schema = json!({self.pick(&["anyOf", "oneOf", "allOf"]): [other, with]});
                schema["$defs"] = defs.unwrap_or_else(|| json!({}));
            }
            (Value::Object(members), 1) if name == "properties" => {
                let name = self.pick(&NAMES);
                members.insert(name.into(), self.schema(1));
            }
            (Value::Object(members), 2) if name == "properties" && !members.is_empty() => {
                let names: Vec<String> = members.keys().cloned().collect();
                members.remove(&self.pick(&names));
            }
            (Value::Object(members), _)
                if ["properties", "$defs", "patternProperties"].contains(&name.as_str()) =>
            {
                let names: Vec<String> = members.keys().cloned().collect();
                if let Some(name) = names.choose(self.random) {
                    self.change(&mut members[name]);
                }
            }
            (Value::Array(list), _)
                if ["anyOf", "oneOf", "allOf", "prefixItems"].contains(&name.as_str()) =>
            {
                let at = self.random.random_range(0..list.len());
                match self.random.random_range(0..4) {
                    0 => list.push(self.schema(1)),
                    1 if list.len() > 1 => drop(list.remove(at)),
                    _ => self.change(&mut list[at]),
                }
            }
            (Value::Array(list), _) if name == "required" => {
                if list.is_empty() || self.one_in(2) {
                    list.push(self.pick(&NAMES).into());
                    list.dedup();
                } else {
                    list.pop();
                }
            }
            (Value::Array(list), _) if name == "enum" => {
                if list.len() > 1 && self.one_in(2) {
                    list.pop();
                } else {
                    list.push(self.scalar());
                }
            }
            (value, _) if ["items", "additionalProperties", "not"].contains(&name.as_str()) => {
                self.change(value);
            }
            (Value::Number(number), 1..=6) if number.is_u64() => {
                let up = number.as_u64().unwrap() + 1;
                keywords.insert(name, up.into());
            }
            (Value::String(name), 1..=6) if name == "integer" => {
                keywords.insert(
                    "type".into(),
                    self.pick(&[json!("number"), json!(["integer", "null"])]),
                );
            }
            (_, 7) if name != "$defs" => drop(keywords.remove(&name)),
            _ => {
                keywords.insert(
                    "additionalProperties".into(),
                    self.pick(&[json!(false), json!(true)]),
                );
            }
        }
    }
}
