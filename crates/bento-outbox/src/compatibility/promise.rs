//! The promise: where nothing breaks, whatever is written by one schema is valid under the other.
//! Schemas are made and changed at random, documents are written by them, and another crate judges.

mod maker;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use self::maker::Maker;
use super::*;

/// The fields that schemas name.
const NAMES: [&str; 4] = ["a", "b", "c", "t"];

/// Pairs of schemas that are compared.
const PAIRS: u64 = 2_000;

/// Documents that are written for each pair that is said to be compatible.
const DOCUMENTS: u32 = 40;

#[test]
fn what_is_compatible_is_read_and_a_schema_is_compatible_with_itself() {
    let (mut compatible, mut judged, mut broken_by_a_document) = (0, 0, 0);
    for seed in 0..PAIRS {
        let mut random = StdRng::seed_from_u64(seed);
        let old = Maker {
            random: &mut random,
        }
        .document();
        let mut new = old.clone();
        for _ in 0..random.random_range(1..=3) {
            Maker {
                random: &mut random,
            }
            .change(&mut new);
        }
        let itself = schema_breaks(&old, &old, CompatibilityMode::Full);
        assert_eq!(itself, [], "seed {seed}: {old}");
        for (old, new) in [(&old, &new), (&new, &old)] {
            let (Ok(by_old), Ok(by_new)) = (
                jsonschema::validator_for(old),
                jsonschema::validator_for(new),
            ) else {
                continue;
            };
            let breaks = schema_breaks(old, new, CompatibilityMode::Backward);
            let mut writer = Writer {
                root: old,
                random: &mut random,
            };
            let documents = (0..DOCUMENTS).map(|_| writer.value(&[old], 0));
            let documents: Vec<Value> = documents
                .filter(|document| by_old.is_valid(document))
                .collect();
            let unread = documents.iter().find(|document| {
                !by_new.is_valid(document) && is_written_by(old, &[old], document)
            });
            if breaks.is_empty() {
                compatible += u32::from(old != new);
                judged += documents.len();
                assert_eq!(unread, None, "seed {seed}\nold {old}\nnew {new}");
            } else {
                broken_by_a_document += u32::from(unread.is_some());
            }
        }
    }
    // That the test looks at something: real changes of both sorts, and documents.
    assert!(compatible > 1_500 && judged > 30_000 && broken_by_a_document > 600);
}

/// Whether a document follows one alternative of the schemas, with no field that this one does not
/// name, and so do the values in it.
fn is_written_by(root: &Value, schemas: &[&Value], document: &Value) -> bool {
    let mut ways = vec![Way::default()];
    for schema in schemas {
        ways = ways
            .into_iter()
            .flat_map(|way| way.with(root, schema))
            .collect();
    }
    ways.iter().any(|way| way.is_that_of(root, document))
}

/// One way to follow a schema.
#[derive(Clone, Default)]
struct Way<'a> {
    parts: Vec<&'a Map<String, Value>>,
    /// The schemas with their choices made.
    made: Vec<Value>,
}

impl<'a> Way<'a> {
    fn with(self, root: &'a Value, schema: &'a Value) -> Vec<Self> {
        let Value::Object(keywords) = schema else {
            return vec![self.and(schema.clone())];
        };
        if self.parts.iter().any(|part| std::ptr::eq(*part, keywords)) {
            return vec![self];
        }
        let mut rest = keywords.clone();
        for choice in ["$ref", "allOf", "anyOf", "oneOf", "$defs"] {
            rest.remove(choice);
        }
        let outer = self.made.clone();
        let mut ways = vec![Self {
            made: Vec::new(),
            ..self
        }];
        ways[0].parts.push(keywords);
        let reference = keywords.get("$ref").and_then(Value::as_str);
        let list = |name| keywords.get(name).and_then(Value::as_array);
        let all = list("allOf").into_iter().flatten();
        for schema in all.chain(reference.and_then(|reference| root.pointer(&reference[1..]))) {
            ways = ways
                .into_iter()
                .flat_map(|way| way.with(root, schema))
                .collect();
        }
        for branches in ["anyOf", "oneOf"].into_iter().filter_map(list) {
            let each = |way: Self| {
                branches
                    .iter()
                    .flat_map(move |branch| way.clone().with(root, branch))
            };
            ways = ways.into_iter().flat_map(each).collect();
        }
        for way in &mut ways {
            let (mut made, inner) = (rest.clone(), std::mem::take(&mut way.made));
            if !inner.is_empty() {
                made.insert("allOf".into(), inner.into());
            }
            way.made = outer.iter().cloned().chain([made.into()]).collect();
        }
        ways
    }

    fn and(mut self, schema: Value) -> Self {
        self.made.push(schema);
        self
    }

    fn is_that_of(&self, root: &Value, document: &Value) -> bool {
        let defs = root.get("$defs").cloned().unwrap_or_else(|| json!({}));
        let mut schema = json!({"$defs": defs});
        if !self.made.is_empty() {
            schema["allOf"] = self.made.clone().into();
        }
        if !jsonschema::is_valid(&schema, document) {
            return false;
        }
        let open = |part: &&Map<String, Value>| {
            let open = [
                "additionalProperties",
                "unevaluatedProperties",
                "patternProperties",
            ];
            open.iter()
                .any(|keyword| part.get(*keyword).is_some_and(|schema| schema != false))
                || part.contains_key("then")
        };
        let is_open = self.parts.iter().any(open);
        let fields = document
            .as_object()
            .into_iter()
            .flatten()
            .all(|(name, value)| {
                let own = |part: &&'a Map<String, Value>| part.get("properties")?.get(name);
                let rest = |part: &&'a Map<String, Value>| part.get("additionalProperties");
                let schemas: Vec<&Value> = self
                    .parts
                    .iter()
                    .filter_map(|part| own(part).or_else(|| rest(part)))
                    .collect();
                let is_required = |part: &&Map<String, Value>| {
                    part.get("required")
                        .and_then(Value::as_array)
                        .is_some_and(|list| list.contains(&name.as_str().into()))
                };
                let is_named = self
                    .parts
                    .iter()
                    .any(|part| own(part).is_some() || is_required(part));
                (is_named || is_open) && is_written_by(root, &schemas, value)
            });
        let elements = document
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .all(|(at, value)| {
                let said = |part: &&'a Map<String, Value>| {
                    part.get("prefixItems")
                        .and_then(|list| list.get(at))
                        .or_else(|| part.get("items"))
                };
                let schemas: Vec<&Value> = self.parts.iter().filter_map(said).collect();
                is_written_by(root, &schemas, value)
            });
        fields && elements
    }
}

/// Writes documents as a writer would: by one alternative, and with no field that it does not name.
struct Writer<'a, 'r> {
    root: &'a Value,
    random: &'r mut StdRng,
}

impl<'a> Writer<'a, '_> {
    fn value(&mut self, schemas: &[&'a Value], depth: u32) -> Value {
        let mut parts = Vec::new();
        for schema in schemas {
            self.collect(schema, &mut parts);
        }
        let mut listed = Vec::new();
        for part in &parts {
            listed.extend(part.get("const"));
            listed.extend(
                part.get("enum")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten(),
            );
        }
        if let Some(value) = listed.choose(self.random) {
            return (*value).clone();
        }
        let said = parts.iter().find_map(|part| part.get("type"));
        let types = match said {
            Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(one)) => vec![one.as_str()],
            _ => vec![
                "null", "boolean", "integer", "number", "string", "array", "object", "object",
            ],
        };
        match *types.choose(self.random).unwrap() {
            "boolean" => self.random.random::<bool>().into(),
            "integer" => self.random.random_range(-4..7).into(),
            "number" => (f64::from(self.random.random_range(-8..14)) / 2.0).into(),
            "string" => "xyzz"
                .chars()
                .take(self.random.random_range(0..5))
                .collect::<String>()
                .into(),
            "array" => {
                let count = if depth > 4 {
                    0
                } else {
                    self.random.random_range(0..4)
                };
                (0..count)
                    .map(|at| self.element(&parts, at, depth))
                    .collect()
            }
            "object" => self.object(&parts, depth),
            _ => Value::Null,
        }
    }

    fn collect(&mut self, schema: &'a Value, parts: &mut Vec<&'a Map<String, Value>>) {
        let Value::Object(keywords) = schema else {
            return;
        };
        if parts.iter().any(|part| std::ptr::eq(*part, keywords)) {
            return;
        }
        parts.push(keywords);
        let reference = keywords.get("$ref").and_then(Value::as_str);
        if let Some(target) = reference.and_then(|reference| self.root.pointer(&reference[1..])) {
            self.collect(target, parts);
        }
        for schema in keywords
            .get("allOf")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            self.collect(schema, parts);
        }
        for choice in ["anyOf", "oneOf"] {
            let branches = keywords.get(choice).and_then(Value::as_array);
            if let Some(branch) = branches.and_then(|branches| branches.choose(self.random)) {
                self.collect(branch, parts);
            }
        }
        if let Some(then) = keywords.get("then") {
            self.collect(then, parts);
        }
    }

    fn element(&mut self, parts: &[&'a Map<String, Value>], at: usize, depth: u32) -> Value {
        let said = |part: &&'a Map<String, Value>| {
            let first = part.get("prefixItems").and_then(|list| list.get(at));
            first.or_else(|| part.get("items"))
        };
        let schemas: Vec<&Value> = parts.iter().filter_map(said).collect();
        self.value(&schemas, depth + 1)
    }

    fn object(&mut self, parts: &[&'a Map<String, Value>], depth: u32) -> Value {
        let mut object = Map::new();
        let open = ["additionalProperties", "unevaluatedProperties"].map(|keyword| {
            parts
                .iter()
                .any(|part| part.get(keyword).is_some_and(|schema| schema != false))
        });
        let patterns = parts
            .iter()
            .any(|part| part.contains_key("patternProperties"));
        let mut names: Vec<&str> = NAMES.to_vec();
        names.extend(["x1", "z"]);
        for name in names {
            let named = parts.iter().any(|part| {
                part.get("properties")
                    .is_some_and(|properties| properties.get(name).is_some())
            });
            let required = parts.iter().any(|part| {
                part.get("required")
                    .and_then(Value::as_array)
                    .is_some_and(|list| list.contains(&name.into()))
            });
            let may = named || required || open[0] || open[1] || (patterns && name == "x1");
            let times = if named || required { 2 } else { 4 };
            let wanted = depth < 4
                && (self.random.random_ratio(1, times)
                    || (required && self.random.random_ratio(5, 6)));
            if may && wanted {
                let said = |part: &&'a Map<String, Value>| {
                    let own = part
                        .get("properties")
                        .and_then(|properties| properties.get(name));
                    let pattern = part
                        .get("patternProperties")
                        .and_then(|patterns| patterns.get("^x"));
                    own.or(pattern.filter(|_| name == "x1"))
                        .or_else(|| part.get("additionalProperties"))
                };
                let schemas: Vec<&Value> = parts.iter().filter_map(said).collect();
                object.insert(name.into(), self.value(&schemas, depth + 1));
            }
        }
        object.into()
    }
}
