//! Whether whatever is written at one place is read there.

use std::ptr;

use serde_json::{Map, Value};

use super::alternatives::{All, Alternative, Document, Types, is_told};
use super::{BrokenSide, SchemaBreak, disjoint, scalars};

/// The documents written by one schema, compared with those that another one takes.
pub(super) struct Comparison<'a> {
    pub(super) writer: &'a Document<'a>,
    pub(super) reader: &'a Document<'a>,
    side: BrokenSide,
    same_documents: bool,
    same_definitions: bool,
    /// The places that are being compared further out. Documents end somewhere, so what holds for
    /// whatever is inside may be taken as holding here.
    open: Vec<(Vec<*const Value>, Vec<*const Value>)>,
    /// Places that may still be compared.
    places_left: usize,
}

/// Places that are compared; each alternative of one has its own places inside.
const PLACES_MAX: usize = 100_000;

/// Nested places that are compared.
const DEPTH_MAX: usize = 64;

/// Values of a list that are named in a reason.
const VALUES_NAMED_MAX: usize = 5;

/// Where references are expected to lead.
const DEFINITIONS: [&str; 3] = ["#/$defs/", "#/definitions/", "#/components/"];

/// A reference whose end depends on the way to it.
const DYNAMIC: &str = "$dynamicRef";

/// Keywords that mean something together only.
const GROUPS: [&[&str]; 2] = [
    &["if", "then", "else"],
    &["contains", "minContains", "maxContains"],
];

/// Keywords of a writer that may name fields in a way that is not looked into.
pub(super) const OPAQUE: [&str; 5] = [
    "if",
    "dependentSchemas",
    "dependencies",
    "$dynamicRef",
    "$recursiveRef",
];

impl<'a> Comparison<'a> {
    pub(super) fn new(
        writer: &'a Document<'a>,
        reader: &'a Document<'a>,
        side: BrokenSide,
    ) -> Self {
        Self {
            writer,
            reader,
            side,
            same_documents: writer.is(reader),
            same_definitions: writer.has_definitions_of(reader),
            open: Vec::new(),
            places_left: PLACES_MAX,
        }
    }

    pub(super) fn breaks(mut self) -> Vec<SchemaBreak> {
        let mut found = match (self.writer.schema, self.reader.schema) {
            (Some(written), Some(read)) => self.place(&vec![written], &vec![read], ""),
            _ => vec![self.because(
                "",
                "has no schema at the given place in one of the documents",
            )],
        };
        let mut seen = std::collections::HashSet::new();
        found.retain(|each| seen.insert(each.clone()));
        found
    }

    /// What is written at `path` by a schema, and does not fit the reader's.
    pub(super) fn place(
        &mut self,
        written: &All<'a>,
        read: &All<'a>,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let is_there = |read: &&Value| written.iter().any(|written| self.are_same(written, read));
        if read.iter().all(is_there) {
            return Vec::new();
        }
        let (written, read) = (&self.writer.plain(written), &self.reader.plain(read));
        let pointers = |schemas: &All<'a>| {
            schemas
                .iter()
                .map(|schema| ptr::from_ref(*schema))
                .collect()
        };
        let both = (pointers(written), pointers(read));
        if self.open.contains(&both) {
            return Vec::new();
        }
        if self.places_left == 0 || self.open.len() == DEPTH_MAX {
            return vec![self.because(path, "is described by schemas too large to be compared")];
        }
        self.places_left -= 1;
        let alternatives = (
            self.writer.alternatives(written),
            self.reader.alternatives(read),
        );
        let (Ok(written), Ok(read)) = alternatives else {
            return vec![self.because(path, "has too many alternatives to be compared")];
        };
        self.open.push(both);
        let breaks = written
            .iter()
            .flat_map(|written| self.alternative(written, &read, path))
            .collect();
        self.open.pop();
        breaks
    }

    /// What one alternative of the writer breaks: it, or each piece of it, needs one of the reader's.
    fn alternative(
        &mut self,
        written: &Alternative<'a>,
        read: &[Alternative<'a>],
        path: &str,
    ) -> Vec<SchemaBreak> {
        if let [only] = read
            && only.others.is_empty()
        {
            return self.pair(written, only, path);
        }
        let pieces = written.split();
        pieces
            .iter()
            .flat_map(|piece| self.piece(piece, read, path))
            .collect()
    }

    fn piece(
        &mut self,
        written: &Alternative<'a>,
        read: &[Alternative<'a>],
        path: &str,
    ) -> Vec<SchemaBreak> {
        let mut nearest: Option<Vec<SchemaBreak>> = None;
        let mut candidates: Vec<&Alternative<'a>> = read.iter().collect();
        candidates.retain(|read| !disjoint::are(self.writer, written, self.reader, read));
        if candidates.is_empty() {
            if disjoint::are(self.writer, written, self.writer, written) {
                return Vec::new(); // its own keywords contradict each other: nothing is written by it
            }
            // None takes any of it, and one may still be meant.
            candidates = read.iter().collect();
            candidates
                .retain(|read| !disjoint::are_by_tags(self.writer, written, self.reader, read));
        }
        for read in candidates {
            let mut breaks = self.pair(written, read, path);
            let never = |other: &&'a Value| {
                let other = self.reader.alternatives(&vec![*other]);
                other.is_ok_and(|other| {
                    other
                        .iter()
                        .all(|other| disjoint::are(self.writer, written, self.reader, other))
                })
            };
            if breaks.is_empty() && !read.others.iter().all(never) {
                let what = format!(
                    "may be {}, for which more than one of the reader's oneOf may hold",
                    described(written)
                );
                breaks.push(self.because(path, &what));
            }
            if breaks.is_empty() {
                return breaks;
            }
            if nearest
                .as_ref()
                .is_none_or(|nearest| breaks.len() < nearest.len())
            {
                nearest = Some(breaks);
            }
        }
        nearest.unwrap_or_else(|| {
            let what = format!(
                "may be {}, which is none of what they take",
                described(written)
            );
            vec![self.because(path, &what)]
        })
    }

    /// What one alternative of the writer breaks in one of the reader.
    fn pair(
        &mut self,
        written: &Alternative<'a>,
        read: &Alternative<'a>,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let mut breaks = Vec::new();
        for (at, part) in read.parts.iter().enumerate() {
            let mut same = written.parts.iter();
            let is_there = same.any(|written| self.are_same_parts(written.keywords, part.keywords));
            if !is_there && !part.keywords.keys().all(|name| is_told(name)) {
                self.part(written, read, at, path, &mut breaks);
            }
        }
        breaks
    }

    fn part(
        &mut self,
        written: &Alternative<'a>,
        read: &Alternative<'a>,
        at: usize,
        path: &str,
        breaks: &mut Vec<SchemaBreak>,
    ) {
        let keywords = read.parts[at].keywords;
        if let Some(what) = opaque(written, keywords) {
            breaks.push(self.because(path, &what));
            return;
        }
        let numbers = written.types.meet(Types::NUMBER);
        let strings = written.types.meet(Types::STRING);
        for (keyword, asked) in keywords {
            let found =
                match keyword.as_str() {
                    "allOf" | "anyOf" | "oneOf" => continue,
                    "$ref" if !read.lost.contains(&at) => continue,
                    name if is_told(name) => continue,
                    "type" => type_break(written, asked),
                    "const" => values_break(written, std::slice::from_ref(asked)),
                    "enum" => values_break(written, asked.as_array().map_or(&[], Vec::as_slice)),
                    "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum"
                    | "multipleOf" => numbers
                        .then(|| scalars::number_break(written, keyword, asked))
                        .flatten(),
                    "format" => match asked
                        .as_str()
                        .and_then(|format| scalars::range_break(written, format))
                    {
                        Some(found) => numbers.then_some(found).flatten(),
                        None => strings
                            .then(|| scalars::string_break(written, keyword, asked))
                            .flatten(),
                    },
                    "minLength" | "maxLength" | "pattern" | "contentEncoding"
                    | "contentMediaType" => strings
                        .then(|| scalars::string_break(written, keyword, asked))
                        .flatten(),
                    "properties"
                    | "required"
                    | "additionalProperties"
                    | "unevaluatedProperties"
                    | "patternProperties"
                    | "minProperties"
                    | "maxProperties" => {
                        if written.types.meet(Types::OBJECT) {
                            breaks.extend(self.object_breaks(written, read, at, keyword, path));
                        }
                        continue;
                    }
                    "items" | "prefixItems" | "additionalItems" | "minItems" | "maxItems"
                    | "uniqueItems" => {
                        if written.types.meet(Types::ARRAY) {
                            breaks.extend(self.array_breaks(written, keywords, keyword, path));
                        }
                        continue;
                    }
                    // What they say depends on what else is there.
                    other @ ("unevaluatedItems" | "$dynamicRef" | "$recursiveRef") => {
                        Some(scalars::unproved(other))
                    }
                    other => self.is_said_alike(written, keywords, other),
                };
            if let Some(what) = found {
                breaks.push(self.because(path, &what));
            }
        }
    }

    /// A keyword that is compatible only with itself, and with what belongs to it.
    fn is_said_alike(
        &self,
        written: &Alternative<'a>,
        keywords: &Map<String, Value>,
        keyword: &str,
    ) -> Option<String> {
        let alone = [keyword];
        let group = GROUPS
            .into_iter()
            .find(|group| group.contains(&keyword))
            .unwrap_or(&alone);
        let alike = |written: &Map<String, Value>| {
            group
                .iter()
                .all(|name| match (written.get(*name), keywords.get(*name)) {
                    (Some(written), Some(read)) => self.are_same(written, read),
                    (written, read) => written.is_none() && read.is_none(),
                })
        };
        let fits = written.parts.iter().any(|part| alike(part.keywords));
        if fits {
            None
        } else {
            Some(scalars::unproved(keyword))
        }
    }

    pub(super) fn because(&self, path: &str, what: &str) -> SchemaBreak {
        SchemaBreak {
            path: path.into(),
            breaks: self.side,
            reason: format!("{} {what}", self.side.data()),
        }
    }

    /// Whether two schemas say the same, word for word.
    pub(super) fn are_same(&self, written: &Value, read: &Value) -> bool {
        written == read && !any_reference(read, &|reference| !self.is_same_there(reference))
    }

    /// Whether what a reference leads to is the same in both documents.
    fn is_same_there(&self, reference: &str) -> bool {
        match reference.strip_prefix('#') {
            None => reference != DYNAMIC,
            Some(_) if DEFINITIONS.iter().any(|place| reference.starts_with(place)) => {
                self.same_definitions
            }
            Some(_) => self.same_documents,
        }
    }

    fn are_same_parts(&self, written: &Map<String, Value>, read: &Map<String, Value>) -> bool {
        // What is only told does not count.
        let count = |part: &Map<String, Value>| part.keys().filter(|name| !is_told(name)).count();
        let said = read
            .iter()
            .filter(|(name, _)| !is_told(name))
            .all(|(name, read)| {
                let is_list = ["type", "required", "enum"].contains(&name.as_str());
                written.get(name).is_some_and(|written| {
                    if is_list {
                        written == read
                    } else {
                        self.are_same(written, read)
                    }
                })
            });
        let reference = read.get("$ref").and_then(Value::as_str);
        let is_same_there = reference.is_none_or(|reference| self.is_same_there(reference));
        said && is_same_there && count(written) == count(read)
    }
}

/// Whether a schema has such a reference, anywhere.
fn any_reference(schema: &Value, is_wanted: &dyn Fn(&str) -> bool) -> bool {
    match schema {
        Value::Object(members) => members.iter().any(|(name, value)| match value.as_str() {
            Some(reference) if name == "$ref" => is_wanted(reference),
            Some(_) if name == "$dynamicRef" || name == "$recursiveRef" => is_wanted(DYNAMIC),
            _ => any_reference(value, is_wanted),
        }),
        Value::Array(elements) => elements.iter().any(|value| any_reference(value, is_wanted)),
        _ => false,
    }
}

/// What of the writer cannot be looked into for a part of the reader.
fn opaque(written: &Alternative<'_>, read: &Map<String, Value>) -> Option<String> {
    if !written.lost.is_empty() {
        return Some("is described by a reference that leads out of the document".into());
    }
    let looks_in = |keyword: &String| {
        let keyword = keyword.as_str();
        ["items", "prefixItems", "additionalItems"].contains(&keyword)
            || keyword.ends_with("roperties")
    };
    let is_inside = read
        .keys()
        .any(|keyword| looks_in(keyword) || keyword == "required");
    let mut listed = written.values.iter().flatten();
    if is_inside && listed.any(|value| value.is_object() || value.is_array()) {
        return Some("is a listed object or array, which cannot be compared".into());
    }
    let names = |keyword: &&&str| written.all(keyword).next().is_some();
    let keyword = OPAQUE
        .iter()
        .find(|keyword| names(keyword))
        .filter(|_| is_inside)?;
    Some(scalars::unproved(keyword))
}

fn type_break(written: &Alternative<'_>, asked: &Value) -> Option<String> {
    let Some(asked) = Types::named(asked) else {
        return Some(scalars::unproved("type"));
    };
    let more = written.types.without(asked);
    (!more.is_empty()).then(|| format!("may be {more}, and they take {asked}"))
}

/// Why what is written may be none of the listed values.
fn values_break(written: &Alternative<'_>, asked: &[Value]) -> Option<String> {
    let few = [Value::Null, Value::Bool(false), Value::Bool(true)];
    let all_few = Types::FEW.contain(written.types);
    let few = few
        .iter()
        .filter(|value| all_few && written.types.contain(Types::of(value)));
    let values = match &written.values {
        Some(values) => values.clone(),
        None if all_few => few.collect(),
        None => return Some(format!("may be other than {}", listed(asked))),
    };
    let is_known = |value: &&Value| asked.iter().any(|asked| scalars::equal(asked, value));
    let unknown: Vec<Value> = values
        .into_iter()
        .filter(|value| !is_known(value))
        .cloned()
        .collect();
    (!unknown.is_empty()).then(|| {
        format!(
            "may be {}, and they take {}",
            listed(&unknown),
            listed(asked)
        )
    })
}

/// `"a", "b" or 3 more`.
fn listed(values: &[Value]) -> String {
    let shown = |value: &Value| value.to_string();
    let named: Vec<String> = values.iter().take(VALUES_NAMED_MAX).map(shown).collect();
    let more = values.len() - named.len();
    match named.as_slice() {
        [] => "no value at all".into(),
        named if more > 0 => format!("{} or {more} more", named.join(", ")),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// An alternative, as a person would name it.
fn described(alternative: &Alternative<'_>) -> String {
    if let Some(values) = &alternative.values {
        let values: Vec<Value> = values.iter().map(|value| (*value).clone()).collect();
        return listed(&values);
    }
    if alternative.types != Types::OBJECT {
        return alternative.types.to_string();
    }
    let properties = alternative
        .all("properties")
        .filter_map(Value::as_object)
        .flatten();
    let tag = properties.into_iter().find_map(|(name, schema)| {
        let only = schema
            .get("enum")
            .and_then(Value::as_array)
            .filter(|list| list.len() == 1);
        let value = schema.get("const").or_else(|| only?.first())?;
        Some(format!("an object with {name} {value}"))
    });
    let required: Vec<&str> = alternative.required().take(VALUES_NAMED_MAX).collect();
    tag.unwrap_or_else(|| match required.as_slice() {
        [] => "an object".into(),
        names => format!("an object with {}", names.join(", ")),
    })
}
