//! Fields: which are written, and which are read.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::SchemaBreak;
use super::alternatives::{All, Alternative, Part};
use super::covers::{Comparison, OPAQUE};
use super::scalars::{fits_length, unproved};

/// What a reader says about fields that it does not name.
struct Rest<'a> {
    /// The schema that they follow.
    schema: &'a Value,
    /// The fields that it does name.
    named: BTreeSet<&'a str>,
    /// The patterns by which it names more.
    patterns: BTreeSet<&'a str>,
}

impl<'a> Comparison<'a> {
    /// What one keyword about objects breaks, in the part `at` of the reader.
    pub(super) fn object_breaks(
        &mut self,
        written: &Alternative<'a>,
        read: &Alternative<'a>,
        at: usize,
        keyword: &str,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let part = read.parts[at];
        let asked = &part.keywords[keyword];
        match (keyword, asked) {
            ("properties", Value::Object(fields)) => self.fields(written, fields, path),
            ("patternProperties", Value::Object(patterns)) => {
                self.patterns(written, patterns, path)
            }
            ("required", Value::Array(names)) => self.required(written, names, path),
            ("additionalProperties", schema) => {
                let named = part.properties().map(|(name, _)| name).collect();
                let patterns = part.patterns().map(|(pattern, _)| pattern).collect();
                self.rest(
                    written,
                    &Rest {
                        schema,
                        named,
                        patterns,
                    },
                    path,
                )
            }
            ("unevaluatedProperties", schema) => self.unevaluated(written, read, at, schema, path),
            _ => self.count(written, keyword, asked, path),
        }
    }

    fn fields(
        &mut self,
        written: &Alternative<'a>,
        fields: &'a Map<String, Value>,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let mut breaks = Vec::new();
        for (name, asked) in fields {
            let here = inside(path, name);
            if written.names(name) {
                if !written.never_has(name) {
                    breaks.extend(self.place(&written.field(name), &vec![asked], &here));
                }
                continue;
            }
            for unnamed in written.unnamed() {
                if !self.place(&unnamed, &vec![asked], &here).is_empty() {
                    breaks.push(self.because(
                        &here,
                        "may have any field there, and they know this one in another form",
                    ));
                }
            }
        }
        breaks
    }

    fn required(&self, written: &Alternative<'a>, names: &[Value], path: &str) -> Vec<SchemaBreak> {
        let names = names.iter().filter_map(Value::as_str);
        let lacking = names.filter(|name| !written.required().any(|other| other == *name));
        lacking
            .map(|name| self.because(&inside(path, name), "may lack it, and they require it"))
            .collect()
    }

    /// Fields that the reader does not name must be as it says about such.
    fn rest(&mut self, written: &Alternative<'a>, rest: &Rest<'a>, path: &str) -> Vec<SchemaBreak> {
        let mut breaks = Vec::new();
        for name in written.all_names() {
            let here = inside(path, name);
            if rest.named.contains(name) || written.never_has(name) {
                continue;
            }
            if rest.schema == &Value::Bool(false) {
                breaks.push(self.because(
                    &here,
                    "may have it, and they refuse fields that they do not know",
                ));
            } else {
                breaks.extend(self.place(&written.field(name), &vec![rest.schema], &here));
            }
        }
        let patterns = written
            .patterns()
            .filter(|(pattern, _)| !rest.patterns.contains(pattern));
        let patterns = patterns.map(|(_, schema)| vec![schema]);
        for unnamed in written.others().into_iter().chain(patterns) {
            let here = inside(path, "*");
            if rest.schema == &Value::Bool(false) {
                breaks.push(self.because(
                    &here,
                    "may have any field, and they refuse fields that they do not know",
                ));
            } else {
                breaks.extend(self.place(&unnamed, &vec![rest.schema], &here));
            }
        }
        breaks
    }

    fn unevaluated(
        &mut self,
        written: &Alternative<'a>,
        read: &Alternative<'a>,
        at: usize,
        schema: &'a Value,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let within = (0..read.parts.len()).filter(|part| read.is_within(*part, at));
        let within: Vec<Part<'a>> = within.map(|part| read.parts[part]).collect();
        let inner = &within[within.len().min(1)..];
        let all_evaluated = within
            .iter()
            .any(|part| part.keywords.contains_key("additionalProperties"))
            || inner
                .iter()
                .any(|part| part.keywords.contains_key("unevaluatedProperties"));
        if all_evaluated {
            return Vec::new(); // by what says so, which is compared itself
        }
        let named = within
            .iter()
            .flat_map(|part| part.properties())
            .map(|(name, _)| name)
            .collect();
        let patterns = within
            .iter()
            .flat_map(|part| part.patterns())
            .map(|(name, _)| name)
            .collect();
        self.rest(
            written,
            &Rest {
                schema,
                named,
                patterns,
            },
            path,
        )
    }

    /// Which names match a pattern is not looked into: whatever may match must fit.
    fn patterns(
        &mut self,
        written: &Alternative<'a>,
        patterns: &'a Map<String, Value>,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let mut breaks = Vec::new();
        for (pattern, asked) in patterns {
            let mut same = Vec::new();
            let mut others: Vec<All<'a>> = Vec::new();
            for (other, schema) in written.patterns() {
                if other == pattern {
                    same.push(schema);
                } else {
                    others.push(vec![schema]);
                }
            }
            let here = inside(path, &format!("<{pattern}>"));
            if same.is_empty() {
                others.extend(written.others());
                let names: Vec<&str> = written.all_names().into_iter().collect();
                others.extend(
                    names
                        .into_iter()
                        .filter(|name| !written.never_has(name))
                        .map(|name| written.field(name)),
                );
            } else {
                // What matches follows the writer's schemas of the pattern, whatever else it follows.
                others = vec![same];
            }
            for other in others {
                breaks.extend(self.place(&other, &vec![asked], &here));
            }
        }
        breaks
    }

    fn count(
        &self,
        written: &Alternative<'a>,
        keyword: &str,
        asked: &Value,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let Some(asked) = asked.as_u64() else {
            return vec![self.because(path, &unproved(keyword))];
        };
        let at_least = keyword == "minProperties";
        let said = written
            .parts
            .iter()
            .filter_map(|part| part.keywords.get(keyword)?.as_u64());
        let required: BTreeSet<&str> = written.required().collect();
        let is_closed = written.unnamed().is_empty();
        let counted = match at_least {
            true => Some(required.len() as u64),
            false => is_closed.then(|| written.all_names().len() as u64),
        };
        if said
            .chain(counted)
            .any(|said| fits_length(keyword, said, asked))
        {
            return Vec::new();
        }
        let word = if at_least { "fewer" } else { "more" };
        vec![self.because(path, &format!("may have {word} fields than {asked}"))]
    }
}

impl<'a> Alternative<'a> {
    /// The fields that must be there.
    pub(super) fn required(&self) -> impl Iterator<Item = &'a str> {
        self.all("required")
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str)
    }

    /// Whether a field of that name can never be there.
    pub(super) fn never_has(&self, name: &str) -> bool {
        let refuses = |keyword: &str, part: &Part<'_>| {
            part.keywords.get(keyword) == Some(&Value::Bool(false))
        };
        self.parts
            .iter()
            .enumerate()
            .any(|(at, part)| match part.property(name) {
                Some(schema) => schema == &Value::Bool(false),
                None if refuses("additionalProperties", part) => part.patterns().next().is_none(),
                None => refuses("unevaluatedProperties", part) && !self.may_evaluate(at, name),
            })
    }

    /// Whether a part, or one within it, may look at a field of that name.
    fn may_evaluate(&self, whole: usize, name: &str) -> bool {
        let looks = |part: &Part<'_>| {
            part.property(name).is_some()
                || ["patternProperties", "additionalProperties"]
                    .iter()
                    .any(|key| part.keywords.contains_key(*key))
        };
        let mut within = (0..self.parts.len()).filter(|part| self.is_within(*part, whole));
        self.has_more_parents
            || OPAQUE
                .iter()
                .any(|keyword| self.all(keyword).next().is_some())
            || !self.lost.is_empty()
            || within.any(|part| looks(&self.parts[part]))
    }

    /// Whether a field that must be there has listed values, as the tag of an enum has.
    pub(super) fn has_listed_field(&self) -> bool {
        let is_listed =
            |schema: &&Value| schema.get("const").or_else(|| schema.get("enum")).is_some();
        self.required()
            .any(|name| self.field(name).iter().any(is_listed))
    }

    /// Whether some part names the field. What must be there is named by that.
    pub(super) fn names(&self, name: &str) -> bool {
        let named = self.parts.iter().any(|part| part.property(name).is_some());
        named || self.required().any(|required| required == name)
    }

    /// What a named field follows.
    pub(super) fn field(&self, name: &str) -> All<'a> {
        let said = |part: &Part<'a>| {
            part.property(name).or_else(|| {
                // A pattern may match the name, and then the rest is not asked.
                let asked = part.patterns().next().is_none();
                part.keywords.get("additionalProperties").filter(|_| asked)
            })
        };
        self.parts.iter().filter_map(said).collect()
    }

    fn all_names(&self) -> BTreeSet<&'a str> {
        let properties = self.parts.iter().flat_map(Part::properties);
        properties
            .map(|(name, _)| name)
            .chain(self.required())
            .collect()
    }

    fn patterns(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.parts.iter().flat_map(Part::patterns)
    }

    /// What fields follow that neither a name nor a pattern is for; none when no such are written.
    fn others(&self) -> Option<All<'a>> {
        let mut said: All<'a> = self.all("additionalProperties").collect();
        if said.is_empty() {
            said = self.all("unevaluatedProperties").collect();
        }
        let written = !said.is_empty() && !said.contains(&&Value::Bool(false));
        written.then_some(said)
    }

    /// What fields follow that no part names, by each way in which there may be such.
    pub(super) fn unnamed(&self) -> Vec<All<'a>> {
        let patterns = self.patterns().map(|(_, schema)| vec![schema]);
        self.others().into_iter().chain(patterns).collect()
    }
}

impl<'a> Part<'a> {
    fn property(&self, name: &str) -> Option<&'a Value> {
        self.keywords.get("properties")?.get(name)
    }

    fn properties(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        members(self.keywords, "properties")
    }

    fn patterns(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        members(self.keywords, "patternProperties")
    }
}

fn members<'a>(
    keywords: &'a Map<String, Value>,
    keyword: &str,
) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    let members = keywords
        .get(keyword)
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    members.map(|(name, schema)| (name.as_str(), schema))
}

/// `lines[].price`.
fn inside(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.into()
    } else {
        format!("{path}.{name}")
    }
}
