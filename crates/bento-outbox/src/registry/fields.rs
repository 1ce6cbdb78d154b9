//! Which fields of a payload its type left aside.
//!
//! Serde skips what a type does not know, and in an enum with a tag or a flattened field nobody can
//! see it skip. So the event is written again: where that gives what was read, nothing was left
//! aside. A field that did not come back as it was is put to the proof: if the event is read as the
//! same one whatever stands in the field, the type does not look at it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What stands in a field under proof, one after the other: no type takes them all, and takes them
/// for the same, unless it does not look.
const PROOFS: [&str; 4] = ["\"\\u0001proof\"", "{}", "[]", "-1"];

/// Levels that are looked into, as many as serde_json reads. What is deeper is compared as a whole.
const LEVELS_MAX: usize = 128;

/// Of fields that differ by the indexes in their paths only, so many are put to the proof; the rest
/// is as they are.
const PROOFS_OF_A_KIND_MAX: u32 = 8;

/// What is read again for proofs, in bytes and all together.
const PROOF_BYTES_MAX: usize = 256 << 20;

/// Why it cannot be said which fields were left aside.
pub(super) enum Unclear {
    /// The object at this path has a field twice.
    Twice(String),
    /// More fields came back changed than can be put to the proof.
    TooMany,
}

/// The paths of the fields of `json` that were left aside when it was read as an event, which is
/// written again as `written`. `reread` reads other JSON as such an event and writes it again.
pub(super) fn left_aside(
    json: &str,
    written: &str,
    reread: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>, Unclear> {
    if json == written {
        return Ok(Vec::new());
    }
    let source = Tree::parse(json, 0).map_err(|twice| Unclear::Twice(twice.path()))?;
    // What a type writes twice it has read, and a reader of it will see only one.
    let written_tree = Tree::parse(written, 0).ok();
    let mut proof = Proof {
        source: &source,
        written,
        reread,
        kinds: HashMap::new(),
        bytes: 0,
        left_aside: Vec::new(),
    };
    proof.compare(&source, written_tree.as_ref(), &mut Vec::new())?;
    Ok(proof.left_aside)
}

/// The path of an integer that a [`Value`](serde_json::Value) would round, if there is one.
pub(super) fn rounded_integer(json: &str) -> Option<String> {
    fn find(tree: &Tree<'_>, path: &mut Vec<Step>) -> bool {
        let mut inside = |step: Step, value: &Tree<'_>| {
            path.push(step);
            find(value, path) || path.pop().is_none()
        };
        match tree {
            Tree::Object(members) => members
                .iter()
                .any(|(name, value)| inside(Step::Field(name.clone()), value)),
            Tree::Array(elements) => elements
                .iter()
                .enumerate()
                .any(|(at, value)| inside(Step::Index(at), value)),
            Tree::Leaf(text) => {
                let digits = text.strip_prefix('-').unwrap_or(text);
                let is_integer = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                is_integer && text.parse::<u64>().is_err() && text.parse::<i64>().is_err()
            }
        }
    }

    let mut path = Vec::new();
    let found = find(&Tree::parse(json, 0).ok()?, &mut path);
    found.then(|| shown(&path))
}

/// JSON as far as its fields go; whatever is no object and no array stays text, as it was written.
enum Tree<'a> {
    Object(BTreeMap<String, Tree<'a>>),
    Array(Vec<Tree<'a>>),
    Leaf(&'a str),
}

/// A step of a path, from an object or an array into it.
#[derive(Clone)]
enum Step {
    Field(String),
    Index(usize),
}

/// A field that stands twice in its object, with the way to it from the inside out.
struct Twice(Vec<Step>);

impl Twice {
    fn inside(mut self, step: Step) -> Self {
        self.0.push(step);
        self
    }

    fn path(mut self) -> String {
        self.0.reverse();
        shown(&self.0)
    }
}

impl<'a> Tree<'a> {
    fn parse(json: &'a str, level: usize) -> Result<Self, Twice> {
        let json = json.trim_ascii();
        if level == LEVELS_MAX {
            return Ok(Self::Leaf(json));
        }
        match json.as_bytes().first() {
            Some(b'{') => {
                let mut object = BTreeMap::new();
                let Ok(members) = serde_json::from_str::<Members<'a>>(json) else {
                    return Ok(Self::Leaf(json));
                };
                for (name, value) in members.0 {
                    let step = || Step::Field(name.clone());
                    let value = Self::parse(value.get(), level + 1)
                        .map_err(|twice| twice.inside(step()))?;
                    if object.contains_key(&name) {
                        return Err(Twice(vec![Step::Field(name)]));
                    }
                    object.insert(name, value);
                }
                Ok(Self::Object(object))
            }
            Some(b'[') => {
                let Ok(elements) = serde_json::from_str::<Vec<&'a RawValue>>(json) else {
                    return Ok(Self::Leaf(json));
                };
                let parse = |(at, element): (usize, &&'a RawValue)| {
                    Self::parse(element.get(), level + 1)
                        .map_err(|twice| twice.inside(Step::Index(at)))
                };
                elements
                    .iter()
                    .enumerate()
                    .map(parse)
                    .collect::<Result<_, _>>()
                    .map(Self::Array)
            }
            _ => Ok(Self::Leaf(json)),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(one), Self::Object(other)) => {
                let same =
                    |((a, x), (b, y)): ((&String, &Self), (&String, &Self))| a == b && x.is_same(y);
                one.len() == other.len() && one.iter().zip(other).all(same)
            }
            (Self::Array(one), Self::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(x, y)| x.is_same(y))
            }
            (Self::Leaf(one), Self::Leaf(other)) => one == other,
            _ => false,
        }
    }

    /// Writes this JSON with `proof` at the end of `path`.
    fn write_with(&self, proof: &str, path: &[Step], out: &mut String) {
        let here = |step: &dyn Fn(&Step) -> bool| path.first().is_some_and(step);
        match self {
            Self::Object(members) => {
                out.push('{');
                for (number, (name, value)) in members.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                    out.push(':');
                    let on_path = here(&|step| matches!(step, Step::Field(field) if field == name));
                    value.write_part(proof, path, on_path, out);
                }
                out.push('}');
            }
            Self::Array(elements) => {
                out.push('[');
                for (at, value) in elements.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    let on_path = here(&|step| matches!(step, Step::Index(index) if *index == at));
                    value.write_part(proof, path, on_path, out);
                }
                out.push(']');
            }
            Self::Leaf(text) => out.push_str(text),
        }
    }

    fn write_part(&self, proof: &str, path: &[Step], on_path: bool, out: &mut String) {
        match path {
            [_] if on_path => out.push_str(proof),
            [_, rest @ ..] if on_path => self.write_with(proof, rest, out),
            _ => self.write_with(proof, &[], out),
        }
    }
}

/// The fields that did not come back as they were, put to the proof.
struct Proof<'a> {
    source: &'a Tree<'a>,
    written: &'a str,
    reread: &'a dyn Fn(&str) -> Option<String>,
    /// How many fields of each kind were put to the proof.
    kinds: HashMap<String, u32>,
    bytes: usize,
    left_aside: Vec<String>,
}

impl Proof<'_> {
    fn compare(
        &mut self,
        source: &Tree<'_>,
        written: Option<&Tree<'_>>,
        path: &mut Vec<Step>,
    ) -> Result<(), Unclear> {
        match source {
            Tree::Leaf(_) => {}
            Tree::Array(elements) => {
                for (at, element) in elements.iter().enumerate() {
                    let written = match written {
                        Some(Tree::Array(written)) => written.get(at),
                        _ => None,
                    };
                    if written.is_none_or(|written| !element.is_same(written)) {
                        path.push(Step::Index(at));
                        self.compare(element, written, path)?;
                        path.pop();
                    }
                }
            }
            Tree::Object(members) => {
                for (name, value) in members {
                    let written = match written {
                        Some(Tree::Object(written)) => written.get(name),
                        _ => None,
                    };
                    if written.is_some_and(|written| value.is_same(written)) {
                        continue;
                    }
                    path.push(Step::Field(name.clone()));
                    let came_back = matches!(
                        (value, written),
                        (Tree::Object(_), Some(Tree::Object(_)))
                            | (Tree::Array(_), Some(Tree::Array(_)))
                    );
                    if !came_back && self.is_left_aside(path)? {
                        self.left_aside.push(shown(path));
                    } else {
                        self.compare(value, written, path)?;
                    }
                    path.pop();
                }
            }
        }
        Ok(())
    }

    fn is_left_aside(&mut self, path: &[Step]) -> Result<bool, Unclear> {
        let proofs = self.kinds.entry(kind(path)).or_default();
        if *proofs == PROOFS_OF_A_KIND_MAX {
            return Ok(false);
        }
        for proof in PROOFS {
            let mut json = String::new();
            self.source.write_with(proof, path, &mut json);
            self.bytes += json.len();
            if self.bytes > PROOF_BYTES_MAX {
                return Err(Unclear::TooMany);
            }
            if (self.reread)(&json).is_none_or(|written| written != self.written) {
                *proofs += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// `lines[2].price`.
fn shown(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) if text.is_empty() => text.push_str(name),
            Step::Field(name) => text.extend([".", name]),
            Step::Index(at) => text.push_str(&format!("[{at}]")),
        }
    }
    text
}

/// `lines[].price`.
fn kind(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field(name) => text.extend([".", name]),
            Step::Index(_) => text.push_str("[]"),
        }
    }
    text
}

/// The members of an object as they stand, those with the same name too.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry().map_err(A::Error::custom)? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}
