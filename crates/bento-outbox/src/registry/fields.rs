//! Which fields of a payload its type left aside.
//!
//! Serde skips what a type does not know, and in an enum with a tag or a flattened field nobody can
//! see it skip. So the event is written again: what comes back was not left aside. A field that did
//! not come back is put to the proof: if the event is read as the same one whatever stands in the
//! field, the type does not look at it.
//!
//! A proof reads the payload again. So that many of them take no more than a few readings of it all,
//! lists and maps with many such fields are cut into pieces, as long as the pieces are read alike.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::DateTime;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What stands in a field under proof, one after the other: no type takes them all, and takes them
/// for the same, unless it does not look.
const PROOFS: [&str; 4] = ["\"\\u0001proof\"", "{}", "[]", "-1"];

/// Levels that are looked into, as many as serde_json reads. What is deeper is compared as a whole.
const LEVELS_MAX: usize = 128;

/// With more fields to be proved, it pays to cut the payload first.
const FIELDS_AT_ONCE: usize = 4;

/// Into how many pieces at a time.
const PIECES: usize = 8;

/// From so many members on, an object may be a map.
const MAP_MEMBERS_MIN: usize = 16;

/// What is read again at most, in bytes: so much, and so many times the payload.
const PROOF_BYTES: usize = 32 << 20;
const PROOF_READINGS: usize = 256;

/// What is cut, the first that is read alike: lists may be of a fixed length, and what looks like
/// a map may be a type of many fields.
const CUTS: [Cut; 4] = [
    Cut {
        maps: true,
        everywhere: true,
    },
    Cut {
        maps: false,
        everywhere: true,
    },
    Cut {
        maps: true,
        everywhere: false,
    },
    Cut {
        maps: false,
        everywhere: false,
    },
];

/// Why it cannot be said which fields were left aside.
pub(super) enum Unclear {
    /// The object at this path has a field twice.
    Twice(String),
    /// More fields did not come back than can be put to the proof.
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
    let mut search = Search {
        reread,
        bytes_left: PROOF_BYTES + PROOF_READINGS.saturating_mul(json.len()),
        left_aside: BTreeSet::new(),
    };
    let whole = Part::new(source, written);
    search.search(&whole, whole.not_back.clone(), &CUTS)?;
    Ok(search.left_aside.iter().map(|path| shown(path)).collect())
}

/// The path of a number that a [`Value`](serde_json::Value) would round, if there is one.
pub(super) fn rounded_number(json: &str) -> Option<String> {
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
                .any(|(at, value)| inside(Step::Index(*at), value)),
            Tree::Leaf(text) => is_rounded(text),
        }
    }

    let mut path = Vec::new();
    let found = find(&Tree::parse(json, 0).ok()?, &mut path);
    found.then(|| shown(&path))
}

/// The digits that a 64-bit float can need at most, written out: those of 2^-1074.
const FLOAT_DIGITS_MAX: usize = 767;

/// Whether a [`Value`](serde_json::Value) of this JSON would be another number: an integer of more
/// than 64 bits, or a decimal of which a float gives other digits when it writes as many.
fn is_rounded(json: &str) -> bool {
    let number = json.strip_prefix('-').unwrap_or(json);
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return false;
    }
    if number.bytes().all(|b| b.is_ascii_digit()) {
        return json.parse::<u64>().is_err() && json.parse::<i64>().is_err();
    }
    let significant = |number: &str| {
        let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
        let digits = mantissa.replace('.', "");
        digits.trim_matches('0').to_owned()
    };
    let digits = significant(number);
    let Ok(float) = serde_json::from_str::<f64>(number) else {
        return false; // which is refused for itself
    };
    digits.len() > FLOAT_DIGITS_MAX
        || digits != significant(&format!("{float:.*e}", digits.len().saturating_sub(1)))
}

/// JSON as far as its fields go; whatever is no object and no array stays text, as it was written.
#[derive(Clone)]
enum Tree<'a> {
    Object(BTreeMap<String, Tree<'a>>),
    /// Each element with its index in the payload, of which this may be a piece.
    Array(Vec<(usize, Tree<'a>)>),
    Leaf(&'a str),
}

/// A step of a path, from an object or an array into it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Field(String),
    Index(usize),
}

/// What is cut: lists, and perhaps maps; everywhere, or only where fields are to be proved.
#[derive(Clone, Copy)]
struct Cut {
    maps: bool,
    everywhere: bool,
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
                let parse = |(at, element): (usize, &&'a RawValue)| match Self::parse(
                    element.get(),
                    level + 1,
                ) {
                    Ok(element) => Ok((at, element)),
                    Err(twice) => Err(twice.inside(Step::Index(at))),
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

    /// The value at the end of `path`, if it is in this part.
    fn at(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |tree, step| match (tree, step) {
            (Self::Object(members), Step::Field(name)) => members.get(name),
            (Self::Array(elements), Step::Index(at)) => {
                let found = elements.binary_search_by_key(at, |(at, _)| *at);
                found.ok().map(|found| &elements[found].1)
            }
            _ => None,
        })
    }

    /// Writes this JSON, with `proof` at the end of `path` if it is under proof.
    fn write(&self, proof: Option<(&[Step], &str)>, out: &mut String) {
        if let Some(([], proof)) = proof {
            return out.push_str(proof);
        }
        let inside = |is_at: &dyn Fn(&Step) -> bool| {
            let (path, proof) = proof?;
            let (step, rest) = path.split_first()?;
            is_at(step).then_some((rest, proof))
        };
        match self {
            Self::Object(members) => {
                out.push('{');
                for (number, (name, value)) in members.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                    out.push(':');
                    let is_at = |step: &Step| matches!(step, Step::Field(field) if field == name);
                    value.write(inside(&is_at), out);
                }
                out.push('}');
            }
            Self::Array(elements) => {
                out.push('[');
                for (number, (at, value)) in elements.iter().enumerate() {
                    if number > 0 {
                        out.push(',');
                    }
                    value.write(inside(&|step| *step == Step::Index(*at)), out);
                }
                out.push(']');
            }
            Self::Leaf(text) => out.push_str(text),
        }
    }

    /// The same text for what differs in order only: a hashed map or set has another one each time.
    fn in_order(&self) -> String {
        match self {
            Self::Object(members) => {
                let member =
                    |(name, value): (&String, &Self)| format!("{name:?}:{}", value.in_order());
                let members: Vec<String> = members.iter().map(member).collect();
                format!("{{{}}}", members.join(","))
            }
            Self::Array(elements) => {
                let mut elements: Vec<String> =
                    elements.iter().map(|(_, value)| value.in_order()).collect();
                elements.sort();
                format!("[{}]", elements.join(","))
            }
            Self::Leaf(text) => (*text).to_owned(),
        }
    }

    /// The piece of that number of each outermost list or map that `cut` says; `was_cut` is told
    /// whether there are any. `fields` are those to be proved.
    fn piece(&self, cut: Cut, number: usize, fields: &[&[Step]], was_cut: &mut bool) -> Self {
        let mut inside: BTreeMap<&Step, Vec<&[Step]>> = BTreeMap::new();
        for (step, rest) in fields.iter().filter_map(|field| field.split_first()) {
            inside.entry(step).or_default().push(rest);
        }
        let is_cut = cut.everywhere || !inside.is_empty();
        let mut range = |len: usize| {
            *was_cut = true;
            len * number / PIECES..len * (number + 1) / PIECES
        };
        match self {
            Self::Array(elements) if elements.len() > 1 && is_cut => {
                Self::Array(elements[range(elements.len())].to_vec())
            }
            Self::Object(members) if cut.maps && members.len() >= MAP_MEMBERS_MIN && is_cut => {
                let range = range(members.len());
                let members = members.iter().skip(range.start).take(range.len());
                Self::Object(
                    members
                        .map(|(name, value)| (name.clone(), value.clone()))
                        .collect(),
                )
            }
            Self::Leaf(text) => Self::Leaf(text),
            Self::Array(elements) => {
                let mut piece = |(at, value): &(usize, Self)| {
                    let fields = inside.remove(&Step::Index(*at)).unwrap_or_default();
                    (*at, value.piece(cut, number, &fields, was_cut))
                };
                Self::Array(elements.iter().map(&mut piece).collect())
            }
            Self::Object(members) => {
                let mut piece = |(name, value): (&String, &Self)| {
                    let step = Step::Field(name.clone());
                    let fields = inside.remove(&step).unwrap_or_default();
                    (name.clone(), value.piece(cut, number, &fields, was_cut))
                };
                Self::Object(members.iter().map(&mut piece).collect())
            }
        }
    }

    /// Adds the outermost fields that are not in what was `written` for this.
    fn not_back(&self, written: Option<&Self>, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        match self {
            Self::Leaf(_) => {}
            Self::Array(elements) => {
                for (number, (at, element)) in elements.iter().enumerate() {
                    let written = match written {
                        Some(Self::Array(written)) => written.get(number).map(|(_, value)| value),
                        _ => None,
                    };
                    path.push(Step::Index(*at));
                    element.not_back(written, path, found);
                    path.pop();
                }
            }
            Self::Object(members) => {
                for (name, value) in members {
                    let written = match written {
                        Some(Self::Object(written)) => written.get(name),
                        _ => None,
                    };
                    path.push(Step::Field(name.clone()));
                    match (value, written) {
                        (Self::Object(_), Some(Self::Object(_))) => {
                            value.not_back(written, path, found);
                        }
                        (Self::Array(one), Some(Self::Array(other)))
                            if one.len() == other.len() =>
                        {
                            value.not_back(written, path, found);
                        }
                        (Self::Leaf(one), Some(Self::Leaf(other))) if is_same(one, other) => {}
                        _ => found.push(path.clone()),
                    }
                    path.pop();
                }
            }
        }
    }
}

/// Whether two texts are the same value, `1.50` and `1.5`, two spellings of a string or of a time.
fn is_same(one: &str, other: &str) -> bool {
    if one == other {
        return true;
    }
    if let (Ok(one), Ok(other)) = (one.parse::<f64>(), other.parse::<f64>()) {
        return one == other;
    }
    let string = |text: &str| serde_json::from_str::<Cow<'_, str>>(text).map(Cow::into_owned);
    let (Ok(one), Ok(other)) = (string(one), string(other)) else {
        return false;
    };
    let time = |text: &str| DateTime::parse_from_rfc3339(text).ok();
    one == other || time(&one).is_some_and(|one| time(&other) == Some(one))
}

/// A payload or a part of it, and how it is read.
struct Part<'a> {
    source: Tree<'a>,
    written: String,
    /// The outermost fields that did not come back, in order.
    not_back: Vec<Vec<Step>>,
}

impl<'a> Part<'a> {
    fn new(source: Tree<'a>, written: &str) -> Self {
        // What a type writes twice it has read, and a reader of it will see only one.
        let tree = Tree::parse(written, 0).ok();
        let mut not_back = Vec::new();
        source.not_back(tree.as_ref(), &mut Vec::new(), &mut not_back);
        Self {
            source,
            written: Self::text_in_order(tree.as_ref(), written),
            not_back,
        }
    }

    /// Whether this piece is read as the `whole` is: what did not come back did not there, and of
    /// `fields`, each or what it is in did not here.
    fn is_read_as(&self, whole: &Part<'_>, fields: &[Vec<Step>]) -> bool {
        let mut here = self.not_back.iter();
        here.all(|field| whole.not_back.binary_search(field).is_ok())
            && fields.iter().all(|field| {
                let before = self.not_back.partition_point(|other| other <= field);
                before > 0 && field.starts_with(&self.not_back[before - 1])
            })
    }

    /// Whether it is written so, in whatever order.
    fn is_written(&self, json: &str) -> bool {
        Self::text_in_order(Tree::parse(json, 0).ok().as_ref(), json) == self.written
    }

    fn text_in_order(tree: Option<&Tree<'_>>, json: &str) -> String {
        tree.map_or_else(|| json.to_owned(), Tree::in_order)
    }
}

/// The fields that did not come back, put to the proof.
struct Search<'a> {
    reread: &'a dyn Fn(&str) -> Option<String>,
    bytes_left: usize,
    left_aside: BTreeSet<Vec<Step>>,
}

/// A piece with the fields in it that are to be proved, and what else may be cut.
type Piece<'a> = (Part<'a>, Vec<Vec<Step>>, &'static [Cut]);

impl Search<'_> {
    fn search(
        &mut self,
        part: &Part<'_>,
        mut fields: Vec<Vec<Step>>,
        cuts: &'static [Cut],
    ) -> Result<(), Unclear> {
        while !fields.is_empty() {
            if fields.len() > FIELDS_AT_ONCE
                && let Some(pieces) = self.pieces(part, &fields, cuts)?
            {
                return pieces
                    .into_iter()
                    .try_for_each(|(piece, fields, cuts)| self.search(&piece, fields, cuts));
            }
            let mut inside = Vec::new();
            for mut field in fields {
                if self.is_left_aside(part, &field)? {
                    self.left_aside.insert(field);
                } else if let Some(value) = part.source.at(&field) {
                    value.not_back(None, &mut field, &mut inside);
                }
            }
            fields = inside;
        }
        Ok(())
    }

    /// The pieces of `part` that have `fields` in them, if they are read as the whole is.
    fn pieces<'a>(
        &mut self,
        part: &Part<'a>,
        fields: &[Vec<Step>],
        cuts: &'static [Cut],
    ) -> Result<Option<Vec<Piece<'a>>>, Unclear> {
        let paths: Vec<&[Step]> = fields.iter().map(Vec::as_slice).collect();
        'cuts: for (at, cut) in cuts.iter().enumerate() {
            let mut pieces = Vec::new();
            for number in 0..PIECES {
                let mut was_cut = false;
                let source = part.source.piece(*cut, number, &paths, &mut was_cut);
                if !was_cut {
                    continue 'cuts;
                }
                // A list that is a field itself is in every piece, each time with other elements.
                let is_here = |field: &&Vec<Step>| source.at(field).is_some();
                let fields: Vec<_> = fields.iter().filter(is_here).cloned().collect();
                if fields.is_empty() {
                    continue;
                }
                let Some(written) = self.reread(&source, None)? else {
                    continue 'cuts;
                };
                let piece = Part::new(source, &written);
                if !piece.is_read_as(part, &fields) {
                    continue 'cuts;
                }
                pieces.push((piece, fields, &cuts[at..]));
            }
            return Ok(Some(pieces));
        }
        Ok(None)
    }

    fn is_left_aside(&mut self, part: &Part<'_>, field: &[Step]) -> Result<bool, Unclear> {
        for proof in PROOFS {
            let written = self.reread(&part.source, Some((field, proof)))?;
            if written.is_none_or(|written| !part.is_written(&written)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn reread(
        &mut self,
        source: &Tree<'_>,
        proof: Option<(&[Step], &str)>,
    ) -> Result<Option<String>, Unclear> {
        let mut json = String::new();
        source.write(proof, &mut json);
        let left = self.bytes_left.checked_sub(json.len());
        self.bytes_left = left.ok_or(Unclear::TooMany)?;
        Ok((self.reread)(&json))
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
