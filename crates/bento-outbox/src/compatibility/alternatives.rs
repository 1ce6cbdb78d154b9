//! What a schema says at one place of a document, as alternatives without references.

use std::ptr;

use serde_json::{Map, Value};

use super::scalars;

/// A schema and the document in which its references are looked up.
pub(super) struct Document<'a> {
    root: &'a Value,
    pub(super) schema: Option<&'a Value>,
    /// Until draft 7 a `$ref` stands alone: what is beside it means nothing.
    ref_stands_alone: bool,
}

/// Schemas that all hold at one place.
pub(super) type All<'a> = Vec<&'a Value>;

/// One way to follow a schema: keywords that all hold, without a reference or a choice.
#[derive(Clone, Default)]
pub(super) struct Alternative<'a> {
    pub(super) parts: Vec<Part<'a>>,
    pub(super) types: Types,
    /// The only values it has, if there is a list.
    pub(super) values: Option<Vec<&'a Value>>,
    /// What must not hold besides: the branches of `oneOf` that were not taken.
    pub(super) others: Vec<&'a Value>,
    /// Parts whose reference leads nowhere in the document.
    pub(super) lost: Vec<usize>,
    /// Some part is there by more ways than one, of which only the first is known.
    pub(super) has_more_parents: bool,
    /// Nothing follows it.
    pub(super) is_impossible: bool,
}

/// The keywords of one subschema.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) keywords: &'a Map<String, Value>,
    /// The part that has this one by `$ref`, `allOf`, `anyOf` or `oneOf`.
    parent: Option<usize>,
}

/// More alternatives than are compared.
pub(super) struct TooMany;

/// Alternatives of one place; more are not compared.
const ALTERNATIVES_MAX: usize = 1_000;

/// References that are followed in a row.
const REFERENCES_MAX: usize = 32;

/// Keywords that say nothing about what is valid.
const ANNOTATIONS: [&str; 17] = [
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$id",
    "$schema",
    "$vocabulary",
    "contentSchema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "example",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// Whether a keyword only tells, and asks nothing.
pub(super) fn is_told(keyword: &str) -> bool {
    ANNOTATIONS.contains(&keyword) || keyword.starts_with("x-")
}

impl<'a> Document<'a> {
    pub(super) fn new(root: &'a Value, pointer: &str) -> Self {
        let dialect = root
            .get("$schema")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let old = ["draft-03", "draft-04", "draft-05", "draft-06", "draft-07"];
        Self {
            root,
            schema: root.pointer(pointer),
            ref_stands_alone: old.iter().any(|draft| dialect.contains(draft)),
        }
    }

    /// Whether both documents say the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.root == other.root
    }

    /// Whether what references mean is the same in both documents.
    pub(super) fn has_definitions_of(&self, other: &Self) -> bool {
        ["$defs", "definitions", "components", "$schema"]
            .iter()
            .all(|key| self.root.get(key) == other.root.get(key))
    }

    /// The same schemas, without those that only refer to another.
    pub(super) fn plain(&self, schemas: &All<'a>) -> All<'a> {
        let target = |schema: &'a Value| {
            let keywords = schema.as_object()?;
            let alone = keywords
                .keys()
                .all(|keyword| keyword == "$ref" || is_told(keyword));
            self.resolve(keywords.get("$ref")?.as_str()?)
                .filter(|_| alone)
        };
        let plain = |schema: &&'a Value| {
            // A circle of references ends where it is cut.
            let mut chain = std::iter::successors(Some(*schema), |schema| target(schema));
            chain.by_ref().take(REFERENCES_MAX).last().unwrap_or(schema)
        };
        schemas.iter().map(plain).collect()
    }

    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        match reference.strip_prefix('#')? {
            "" => Some(self.root),
            pointer if pointer.starts_with('/') && !pointer.contains('%') => {
                self.root.pointer(pointer)
            }
            _ => None,
        }
    }

    /// The ways to follow all of `schemas` at once.
    pub(super) fn alternatives(&self, schemas: &All<'a>) -> Result<Vec<Alternative<'a>>, TooMany> {
        let todo: Todo<'a> = schemas.iter().rev().map(|schema| (*schema, None)).collect();
        let mut open = vec![(Alternative::everything(), todo)];
        let mut done = Vec::new();
        while let Some((mut alternative, mut todo)) = open.pop() {
            let Some((schema, parent)) = todo.pop() else {
                alternative.finish();
                done.push(alternative);
                continue;
            };
            let choices = self.take(schema, parent, &mut alternative, &mut todo);
            let mut forks = vec![(alternative, todo)];
            for choice in choices {
                forks = choice.fork(&forks);
            }
            open.extend(forks.into_iter().rev());
            if open.len() + done.len() > ALTERNATIVES_MAX {
                return Err(TooMany);
            }
        }
        done.retain(|alternative| !alternative.is_impossible);
        Ok(done)
    }

    /// Adds the keywords of `schema`, puts what it refers to on the list and hands out its choices.
    fn take(
        &self,
        schema: &'a Value,
        parent: Option<usize>,
        alternative: &mut Alternative<'a>,
        todo: &mut Todo<'a>,
    ) -> Vec<Choice<'a>> {
        let keywords = match schema {
            Value::Object(keywords) => keywords,
            Value::Bool(true) => return Vec::new(),
            _ => {
                alternative.is_impossible = true;
                return Vec::new();
            }
        };
        // What holds twice says nothing more, and a reference in a circle ends here.
        if alternative
            .parts
            .iter()
            .any(|part| ptr::eq(part.keywords, keywords))
        {
            alternative.has_more_parents = true;
            return Vec::new();
        }
        let here = alternative.parts.len();
        let reference = keywords.get("$ref").and_then(Value::as_str);
        let target = reference.map(|reference| self.resolve(reference));
        if let (Some(Some(target)), true) = (target, self.ref_stands_alone) {
            todo.push((target, parent));
            return Vec::new();
        }
        alternative.parts.push(Part { keywords, parent });
        match target {
            Some(Some(target)) => todo.push((target, Some(here))),
            Some(None) => alternative.lost.push(here),
            None => {}
        }
        let here = Some(here);
        let list = |name| keywords.get(name).and_then(Value::as_array);
        for schema in list("allOf").into_iter().flatten() {
            todo.push((schema, here));
        }
        let choice = |name, exactly_one| {
            list(name).map(|branches| Choice {
                branches,
                exactly_one,
                parent: here,
            })
        };
        [choice("anyOf", false), choice("oneOf", true)]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// What is still to be looked at, with the part that has it.
type Todo<'a> = Vec<(&'a Value, Option<usize>)>;

/// Branches of which one is taken.
struct Choice<'a> {
    branches: &'a [Value],
    exactly_one: bool,
    parent: Option<usize>,
}

impl<'a> Choice<'a> {
    /// Each of `open` once for each branch.
    fn fork(&self, open: &[(Alternative<'a>, Todo<'a>)]) -> Vec<(Alternative<'a>, Todo<'a>)> {
        let taken = |(alternative, todo): &(Alternative<'a>, Todo<'a>), at: usize| {
            let (mut alternative, mut todo) = (alternative.clone(), todo.clone());
            todo.push((&self.branches[at], self.parent));
            if self.exactly_one {
                let others = self
                    .branches
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != at);
                alternative.others.extend(others.map(|(_, branch)| branch));
            }
            (alternative, todo)
        };
        let every = |fork| (0..self.branches.len()).map(move |at| taken(fork, at));
        open.iter()
            .flat_map(every)
            .take(ALTERNATIVES_MAX + 1)
            .collect()
    }
}

impl<'a> Alternative<'a> {
    fn everything() -> Self {
        Self {
            types: Types::ALL,
            ..Self::default()
        }
    }

    /// The values of a keyword, in all parts that have it.
    pub(super) fn all(&self, keyword: &'a str) -> impl Iterator<Item = &'a Value> {
        self.parts
            .iter()
            .filter_map(move |part| part.keywords.get(keyword))
    }

    /// Whether the part at `part` is the one at `whole`, or is in it at the same place.
    pub(super) fn is_within(&self, mut part: usize, whole: usize) -> bool {
        loop {
            if part == whole {
                return true;
            }
            match self.parts[part].parent {
                Some(parent) => part = parent,
                None => return false,
            }
        }
    }

    /// One alternative for each type and each listed value, so that each may find a reader of its own.
    pub(super) fn split(&self) -> Vec<Self> {
        if let Some(values) = &self.values {
            let only = |value: &&'a Value| Self {
                values: Some(vec![value]),
                types: Types::of(value),
                ..self.clone()
            };
            return values.iter().map(only).collect();
        }
        let only = |types| Self {
            types,
            ..self.clone()
        };
        self.types.split().map(only).collect()
    }

    /// Draws from the parts what types and values are left.
    fn finish(&mut self) {
        for part in &self.parts {
            if let Some(types) = part.keywords.get("type").and_then(Types::named) {
                self.types = self.types.and(types);
            }
            let constant = part.keywords.get("const").map(std::slice::from_ref);
            let list = part
                .keywords
                .get("enum")
                .and_then(Value::as_array)
                .map(Vec::as_slice);
            for list in [constant, list].into_iter().flatten() {
                match &mut self.values {
                    None => self.values = Some(list.iter().collect()),
                    Some(values) => {
                        values
                            .retain(|value| list.iter().any(|other| scalars::equal(value, other)));
                    }
                }
            }
        }
        if let Some(values) = &mut self.values {
            values.retain(|value| self.types.contain(Types::of(value)));
            self.types = values
                .iter()
                .fold(Types::default(), |types, value| types.or(Types::of(value)));
        }
        self.is_impossible |= self.types.is_empty() || self.requires_the_impossible();
    }

    fn requires_the_impossible(&self) -> bool {
        self.types == Types::OBJECT
            && self.values.is_none()
            && self.required().any(|name| self.never_has(name))
    }
}

/// A set of types of JSON, in which integers and other numbers are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    const NAMES: [&'static str; 7] = [
        "null",
        "a boolean",
        "an integer",
        "a number with a fraction",
        "a string",
        "an array",
        "an object",
    ];
    pub(super) const ALL: Self = Self(0b111_1111);
    const NULL: Self = Self(1);
    const BOOLEAN: Self = Self(1 << 1);
    pub(super) const INTEGER: Self = Self(1 << 2);
    const FRACTION: Self = Self(1 << 3);
    pub(super) const NUMBER: Self = Self(0b1100);
    pub(super) const STRING: Self = Self(1 << 4);
    pub(super) const ARRAY: Self = Self(1 << 5);
    pub(super) const OBJECT: Self = Self(1 << 6);
    /// Types with so few values that they can be listed.
    pub(super) const FEW: Self = Self(0b11);

    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if scalars::is_integer(number) => Self::INTEGER,
            Value::Number(_) => Self::FRACTION,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// Those that the keyword `type` names; none when it names something else.
    pub(super) fn named(keyword: &Value) -> Option<Self> {
        let of = |name: &str| match name {
            "null" => Some(Self::NULL),
            "boolean" => Some(Self::BOOLEAN),
            "integer" => Some(Self::INTEGER),
            "number" => Some(Self::NUMBER),
            "string" => Some(Self::STRING),
            "array" => Some(Self::ARRAY),
            "object" => Some(Self::OBJECT),
            _ => None,
        };
        match keyword {
            Value::String(name) => of(name),
            Value::Array(names) => names
                .iter()
                .map(|name| of(name.as_str()?))
                .try_fold(Self::default(), |types, one| Some(types.or(one?))),
            _ => None,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are among these.
    pub(super) fn contain(self, other: Self) -> bool {
        self.and(other) == other
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn meet(self, other: Self) -> bool {
        !self.and(other).is_empty()
    }

    fn split(self) -> impl Iterator<Item = Self> {
        (0..7)
            .map(|bit| Self(1 << bit))
            .filter(move |one| self.contain(*one))
    }
}

/// `a string or null`.
impl std::fmt::Display for Types {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Self::ALL {
            return f.write_str("anything");
        }
        let mut names: Vec<&str> = (0..7)
            .rev()
            .filter(|bit| self.0 & (1 << bit) != 0)
            .map(|bit| Self::NAMES[bit])
            .collect();
        if self.contain(Self::NUMBER) {
            names.retain(|name| *name != Self::NAMES[3]);
            names
                .iter_mut()
                .filter(|name| **name == Self::NAMES[2])
                .for_each(|name| *name = "a number");
        }
        f.write_str(&names.join(" or "))
    }
}
