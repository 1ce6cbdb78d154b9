//! The schemas in files and folders, and which of them are to be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind as Io;
use std::path::Path;

use bento_outbox::{BrokenSide, CompatibilityMode, SchemaBreak};
use serde_json::Value;

use super::version::Version;
use crate::failure::{Failure, Result};

/// The schemas of one side.
#[derive(Default)]
pub(super) struct Catalogue {
    kind: Kind,
    documents: Vec<Value>,
    schemas: BTreeMap<String, Place>,
    /// The topics of each AsyncAPI message.
    topics: BTreeMap<String, BTreeSet<String>>,
    /// AsyncAPI messages that have no schema.
    bare: BTreeSet<String>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Kind {
    /// One JSON Schema, whatever its name.
    Schema,
    AsyncApi,
    #[default]
    Folder,
}

/// Where a schema is: the number of the document, and the JSON Pointer in it.
struct Place {
    document: usize,
    pointer: String,
}

/// What is to be compared, and what can be said without comparing.
pub(super) struct Comparisons<'a> {
    pub(super) pairs: Vec<Pair<'a>>,
    pub(super) others: Vec<(String, Other)>,
    /// The versions that are gone on purpose.
    pub(super) retired: Vec<String>,
    /// For the person, of what is not compared.
    pub(super) notes: Vec<String>,
}

/// Two schemas, each as its document and the JSON Pointer in it.
pub(super) struct Pair<'a> {
    pub(super) name: String,
    /// Another name than `name` where that is a new version.
    pub(super) old_name: String,
    pub(super) old: (&'a Value, &'a str),
    pub(super) new: (&'a Value, &'a str),
}

/// A break that is in no schema.
pub(super) enum Other {
    /// The schema is there no more.
    Gone,
    /// The messages are on this topic no more.
    Left(String),
}

/// Files in a folder; with more it is the wrong one.
const FILES_MAX: usize = 10_000;

/// Levels of folders.
const LEVELS_MAX: u32 = 8;

impl Catalogue {
    /// As [`read`](Self::read); none where there is nothing or a folder without schemas, as before the
    /// first of them is committed.
    pub(super) fn read_if_there(path: &Path) -> Result<Option<Self>> {
        let is_there = match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                let mut names = BTreeSet::new();
                json_files(path, "", LEVELS_MAX, &mut names)?;
                !names.is_empty()
            }
            Err(error) if error.kind() == Io::NotFound => false,
            _ => true,
        };
        is_there.then(|| Self::read(path)).transpose()
    }

    pub(super) fn schemas(&self) -> usize {
        self.schemas.len()
    }

    /// Refuses schemas among which a version has none and an older one of its type has: nobody would
    /// see what it breaks.
    pub(super) fn must_be_described(&self) -> Result<()> {
        let schemas = || {
            self.schemas
                .keys()
                .filter_map(|name| versioned(last_part(name)))
        };
        for name in &self.bare {
            let Some((stem, version, _)) = versioned(last_part(name)) else {
                continue;
            };
            let others = || schemas().filter(|(other, _, _)| *other == stem);
            if others().all(|(_, other, _)| other != version)
                && others().any(|(_, other, _)| other < version)
            {
                return Err(Failure::misuse(format!(
                    "{name} has no schema in NEW, which an older version of its type has: add it, in Rust by \
                     EventType::described"
                )));
            }
        }
        Ok(())
    }

    /// Reads a file or a folder.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let about = |error| Failure::misuse(format!("cannot read {}: {error}", path.display()));
        if !fs::metadata(path).map_err(about)?.is_dir() {
            let mut this = Self::default();
            let document = json(path)?;
            this.kind = if is_asyncapi(&document) {
                Kind::AsyncApi
            } else {
                Kind::Schema
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match this.kind {
                Kind::AsyncApi => this.add_asyncapi("", document, true)?,
                _ => this.add_schema(&name, document),
            }
            return Ok(this);
        }
        let mut names = BTreeSet::new();
        json_files(path, "", LEVELS_MAX, &mut names)?;
        let documents = names
            .into_iter()
            .map(|name| Ok((json(&path.join(&name))?, name)));
        let documents: Vec<(Value, String)> = documents.collect::<Result<_>>()?;
        if documents.is_empty() {
            return Err(Failure::misuse(format!(
                "{} has no .json files",
                path.display()
            )));
        }
        let mut this = Self::default();
        let alone = documents.iter().all(|(document, _)| is_asyncapi(document));
        for (document, name) in documents {
            if is_asyncapi(&document) {
                this.add_asyncapi(&format!("{name}: "), document, alone)?;
            } else {
                this.add_schema(&name, document);
            }
        }
        Ok(this)
    }

    fn add_schema(&mut self, name: &str, document: Value) {
        let place = Place {
            document: self.documents.len(),
            pointer: String::new(),
        };
        self.schemas.insert(name.into(), place);
        self.documents.push(document);
    }

    fn add_asyncapi(&mut self, prefix: &str, document: Value, with_schemas: bool) -> Result<()> {
        let version = document["asyncapi"].as_str().unwrap_or_default();
        if !version.starts_with("3.") {
            return Err(Failure::misuse(format!(
                "an AsyncAPI document is of version {version:?}; only 3 is known"
            )));
        }
        let mut messages: BTreeMap<String, String> = BTreeMap::new();
        let in_components = document
            .pointer("/components/messages")
            .and_then(Value::as_object);
        for name in in_components.into_iter().flatten().map(|(name, _)| name) {
            messages.insert(
                name.clone(),
                format!("/components/messages/{}", escaped(name)),
            );
        }
        let channels = document.get("channels").and_then(Value::as_object);
        for (channel, described) in channels.into_iter().flatten() {
            let address = described
                .get("address")
                .and_then(Value::as_str)
                .unwrap_or(channel);
            let inside = described.get("messages").and_then(Value::as_object);
            for (name, message) in inside.into_iter().flatten() {
                let here = format!("/channels/{}/messages/{}", escaped(channel), escaped(name));
                let reference = message.get("$ref").and_then(Value::as_str);
                let name = match reference.and_then(|to| to.strip_prefix("#/components/messages/"))
                {
                    Some(name) => name.replace("~1", "/").replace("~0", "~"),
                    None => {
                        messages.insert(name.clone(), here);
                        name.clone()
                    }
                };
                let topics = self.topics.entry(format!("{prefix}{name}")).or_default();
                topics.insert(address.into());
            }
        }
        let number = self.documents.len();
        for (name, pointer) in &messages {
            let name = format!("{prefix}{name}");
            if !with_schemas {
                // The schemas lie beside the document, and it may refer to them in its own way.
                if let Ok(None) = payload(&document, pointer) {
                    self.bare.insert(name);
                }
                continue;
            }
            match payload(&document, pointer)
                .map_err(|what| Failure::misuse(format!("the payload of message {name} {what}")))?
            {
                Some(pointer) => {
                    self.schemas.insert(
                        name,
                        Place {
                            document: number,
                            pointer,
                        },
                    );
                }
                None => {
                    self.bare.insert(name);
                }
            }
        }
        self.documents.push(document);
        Ok(())
    }

    /// What is to be compared when these schemas become `new` ones and some are `retired`.
    pub(super) fn comparisons<'a>(
        &'a self,
        new: &'a Self,
        retired: &[Version],
    ) -> Result<Comparisons<'a>> {
        let mut comparisons = Comparisons {
            pairs: Vec::new(),
            others: Vec::new(),
            retired: Vec::new(),
            notes: Vec::new(),
        };
        if self.kind != new.kind {
            return Err(Failure::misuse(
                "OLD and NEW must be two JSON Schemas, two AsyncAPI documents or two folders",
            ));
        }
        if self.kind == Kind::Schema && !retired.is_empty() {
            return Err(Failure::misuse(
                "--retire is for folders and AsyncAPI documents: of two files nothing is gone",
            ));
        }
        for version in retired {
            if let Some(name) = new.describes(version) {
                return Err(Failure::misuse(format!(
                    "--retire {version}: NEW still describes that version, in {name}, so it is not gone: delete it \
                     there"
                )));
            }
            if self.describes(version).is_some() {
                comparisons.retired.push(version.to_string());
            } else {
                comparisons.notes.push(format!(
                    "--retire {version}: OLD does not describe that version, so the flag is not needed"
                ));
            }
        }
        let is_retired = |name: &str| retired.iter().any(|version| version.is(name));
        if let (Kind::Schema, Some((old_name, old)), Some((name, place))) = (
            self.kind,
            self.schemas.first_key_value(),
            new.schemas.first_key_value(),
        ) {
            let pair = Pair {
                name: name.clone(),
                old_name: old_name.clone(),
                old: self.at(old),
                new: new.at(place),
            };
            comparisons.pairs.push(pair);
            return Ok(comparisons);
        }
        for (name, place) in &new.schemas {
            let before = self.schemas.get_key_value(name);
            let before = before.map(|(name, old)| (name, self.at(old)));
            match before.or_else(|| self.predecessor(new, name, &is_retired)) {
                Some((old_name, old)) => {
                    comparisons.pairs.push(Pair {
                        name: name.clone(),
                        old_name: old_name.clone(),
                        old,
                        new: new.at(place),
                    });
                }
                None if self.bare.contains(name) => {
                    comparisons
                        .notes
                        .push(format!("{name} has no schema in OLD and is not compared"));
                }
                None => {}
            }
        }
        for name in self
            .schemas
            .keys()
            .filter(|name| !new.schemas.contains_key(*name) && !is_retired(name))
        {
            if new.bare.contains(name) {
                comparisons
                    .notes
                    .push(format!("{name} has no schema in NEW and is not compared"));
            } else {
                comparisons.others.push((name.clone(), Other::Gone));
            }
        }
        for (name, topics) in self.topics.iter().filter(|(name, _)| !is_retired(name)) {
            let there = new.topics.get(name);
            let left = topics
                .iter()
                .filter(|topic| !there.is_some_and(|there| there.contains(*topic)));
            comparisons
                .others
                .extend(left.map(|topic| (name.clone(), Other::Left(topic.clone()))));
        }
        Ok(comparisons)
    }

    /// The nearest earlier version of what is new in `new`, there or here, of which data is left.
    fn predecessor<'a>(
        &'a self,
        new: &'a Self,
        name: &str,
        is_retired: &impl Fn(&str) -> bool,
    ) -> Option<(&'a String, (&'a Value, &'a str))> {
        let (stem, version, end) = versioned(name)?;
        let earlier = [self, new].into_iter().flat_map(|side| {
            let places = side
                .schemas
                .iter()
                .map(move |(name, place)| (name, side.at(place)));
            let left = places.filter(|(name, _)| !is_retired(name));
            left.filter_map(|(name, schema)| {
                let (other, earlier, its_end) = versioned(name)?;
                ((other, its_end) == (stem, end) && earlier < version)
                    .then_some((earlier, (name, schema)))
            })
        });
        // Of two of one version the last is `new`'s, and that one was compared with the old one.
        earlier
            .max_by_key(|(version, _)| *version)
            .map(|(_, named)| named)
    }

    /// Where a version is here, with a schema or without.
    fn describes(&self, version: &Version) -> Option<&String> {
        let mut named = self
            .schemas
            .keys()
            .chain(&self.bare)
            .chain(self.topics.keys());
        named.find(|name| version.is(name))
    }

    fn at<'a>(&'a self, place: &'a Place) -> (&'a Value, &'a str) {
        (&self.documents[place.document], &place.pointer)
    }
}

impl Other {
    /// Whether it is looked for in that mode.
    pub(super) fn concerns(&self, mode: CompatibilityMode) -> bool {
        match self {
            Self::Gone => mode != CompatibilityMode::Forward,
            Self::Left(_) => mode != CompatibilityMode::Backward,
        }
    }

    pub(super) fn said(&self) -> SchemaBreak {
        let (breaks, reason) = match self {
            Self::Gone => (
                BrokenSide::NewReaders,
                "old data may be of this version, which is not described any more".into(),
            ),
            Self::Left(topic) => (
                BrokenSide::OldReaders,
                format!("new data is not on the topic {topic} any more, where they read"),
            ),
        };
        SchemaBreak {
            path: String::new(),
            breaks,
            reason,
        }
    }
}

fn json(path: &Path) -> Result<Value> {
    let refuse = |what: String| Failure::misuse(format!("{}: {what}", path.display()));
    let text = fs::read(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let document: Value = serde_json::from_slice(text).map_err(|error| {
        refuse(format!(
            "is not JSON, at line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    match document {
        Value::Object(_) | Value::Bool(_) => Ok(document),
        _ => Err(refuse("is no JSON Schema and no AsyncAPI document".into())),
    }
}

/// The `.json` files of a folder and its folders, but for hidden ones.
fn json_files(
    folder: &Path,
    prefix: &str,
    levels: u32,
    names: &mut BTreeSet<String>,
) -> Result<()> {
    let refuse = |what: String| Failure::misuse(format!("{}: {what}", folder.display()));
    let entries =
        fs::read_dir(folder).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    for entry in entries {
        let path = entry
            .map_err(|error| refuse(format!("cannot be read: {error}")))?
            .path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if levels == 0 {
                return Err(refuse(
                    "has more levels of folders than are looked into".into(),
                ));
            }
            json_files(&path, &format!("{prefix}{name}/"), levels - 1, names)?;
        } else if name.ends_with(".json") {
            names.insert(format!("{prefix}{name}"));
        }
        if names.len() > FILES_MAX {
            return Err(refuse(format!("has more than {FILES_MAX} .json files")));
        }
    }
    Ok(())
}

fn is_asyncapi(document: &Value) -> bool {
    document.get("asyncapi").is_some_and(Value::is_string)
}

/// Where the JSON Schema of a message's payload is; none where it has none.
fn payload(document: &Value, message: &str) -> Result<Option<String>, String> {
    let message = followed(document, message.into())?;
    if document
        .pointer(&message)
        .is_none_or(|message| message.get("payload").is_none())
    {
        return Ok(None);
    }
    let payload = followed(document, format!("{message}/payload"))?;
    let Some(format) = document.pointer(&format!("{payload}/schemaFormat")) else {
        return Ok(Some(payload));
    };
    let format = format.as_str().unwrap_or_default();
    let known = ["application/schema+json", "application/vnd.aai.asyncapi"];
    if !known.iter().any(|known| format.starts_with(known)) {
        return Err(format!(
            "has the schema format {format:?}; only JSON Schema is compared"
        ));
    }
    Ok(Some(format!("{payload}/schema")))
}

/// Where a chain of references within the document ends.
fn followed(document: &Value, mut pointer: String) -> Result<String, String> {
    for _ in 0..32 {
        let Some(there) = document.pointer(&pointer) else {
            return Err(format!("refers to {pointer}, which is not in the document"));
        };
        // A schema may have keywords beside its reference, and is compared with both.
        match there.get("$ref").and_then(Value::as_str) {
            Some(reference) if there.as_object().is_some_and(|all| all.len() == 1) => {
                let inside = reference.strip_prefix('#');
                pointer = inside
                    .ok_or_else(|| format!("refers to {reference}, out of the document"))?
                    .into();
            }
            _ => return Ok(pointer),
        }
    }
    Err("is a circle of references".into())
}

/// A part of a JSON Pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// What a schema is named in its folder or document: `order.placed.v3` of
/// `asyncapi.json: order.placed.v3`.
pub(super) fn last_part(name: &str) -> &str {
    let name = name.rsplit(": ").next().unwrap_or_default();
    name.rsplit('/').next().unwrap_or_default()
}

/// `order.placed`, 3 and `.schema.json` of `order.placed.v3.schema.json`.
fn versioned(name: &str) -> Option<(&str, u32, &str)> {
    let mut ends = name.rmatch_indices(".v").map(|(at, _)| at);
    ends.find_map(|at| {
        let rest = &name[at + 2..];
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let end = &rest[digits..];
        let is_part = end.is_empty() || end.starts_with('.');
        Some((&name[..at], rest[..digits].parse().ok()?, end)).filter(|_| is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names() {
        assert_eq!(
            versioned("order.placed.v3.schema.json"),
            Some(("order.placed", 3, ".schema.json"))
        );
        assert_eq!(versioned("a/b.v1.v12"), Some(("a/b.v1", 12, "")));
        assert_eq!(versioned("order.v2x.v1y.json"), None);
        assert_eq!(versioned("order.json"), None);
        assert_eq!(versioned("order.v99999999999.json"), None);
    }
}
