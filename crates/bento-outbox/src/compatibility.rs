//! Whom a change of a schema breaks.

mod alternatives;
mod arrays;
mod covers;
mod disjoint;
mod objects;
mod scalars;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use self::alternatives::Document;
use self::covers::Comparison;

/// Which way a change of a schema must be compatible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CompatibilityMode {
    /// New readers read old data: what is in streams and archives. Readers are updated first.
    #[default]
    Backward,
    /// Old readers read new data. Writers are updated first.
    Forward,
    /// Both: writers and readers are updated in any order.
    Full,
}

/// Whom a [`SchemaBreak`] breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokenSide {
    /// Readers that go by the new schema, at data written by the old one.
    NewReaders,
    /// Readers that go by the old schema, at data written by the new one.
    OldReaders,
}

/// One change that breaks somebody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SchemaBreak {
    /// Where in the document: `lines[].price`; empty for the document as a whole.
    pub path: String,
    /// Who breaks.
    pub breaks: BrokenSide,
    /// Why.
    pub reason: String,
}

/// What the change from one JSON Schema to another breaks; nothing when it is compatible.
///
/// When nothing is found, every document that is written by the one schema is valid under the other.
/// A writer writes the fields that its schema names (in one of its alternatives, where it has some),
/// and others only where `additionalProperties`, `unevaluatedProperties` or `patternProperties` says
/// which; a reader takes what is valid. So a new optional field breaks nobody, unless old readers
/// refuse fields that they do not know. The other way round it is careful: a keyword that it does not
/// know, or cannot compare, is compatible only with itself.
///
/// Knows draft 2020-12, and of the drafts 6 to 2019-09 what is alike, within one document: a `$ref`
/// to another one is compatible only with itself. `format` is taken for a promise.
///
/// ```
/// use bento_outbox::{CompatibilityMode, schema_breaks};
/// use serde_json::json;
///
/// let old = json!({"type": "object", "properties": {"total": {"type": "integer"}}});
/// let new = json!({"type": "object", "properties": {"total": {"type": "string"}}});
/// let breaks = schema_breaks(&old, &new, CompatibilityMode::Backward);
/// assert_eq!(
///     breaks[0].to_string(),
///     "total: new readers break: old data may be an integer, and they take a string"
/// );
/// ```
pub fn schema_breaks(old: &Value, new: &Value, mode: CompatibilityMode) -> Vec<SchemaBreak> {
    schema_breaks_at((old, ""), (new, ""), mode)
}

/// As [`schema_breaks`], for schemas inside of larger documents, say of AsyncAPI: each is a document
/// and the JSON Pointer (RFC 6901) of the schema in it. A `$ref` refers to the document.
pub fn schema_breaks_at(
    (old, old_pointer): (&Value, &str),
    (new, new_pointer): (&Value, &str),
    mode: CompatibilityMode,
) -> Vec<SchemaBreak> {
    let (old, new) = (
        Document::new(old, old_pointer),
        Document::new(new, new_pointer),
    );
    let mut breaks = Vec::new();
    if mode != CompatibilityMode::Forward {
        breaks.extend(Comparison::new(&old, &new, BrokenSide::NewReaders).breaks());
    }
    if mode != CompatibilityMode::Backward {
        breaks.extend(Comparison::new(&new, &old, BrokenSide::OldReaders).breaks());
    }
    breaks
}

impl fmt::Display for SchemaBreak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() {
            "the document"
        } else {
            &self.path
        };
        write!(f, "{path}: {} break: {}", self.breaks, self.reason)
    }
}

impl fmt::Display for BrokenSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewReaders => "new readers",
            Self::OldReaders => "old readers",
        })
    }
}

impl BrokenSide {
    /// The data at which that side breaks.
    fn data(self) -> &'static str {
        match self {
            Self::NewReaders => "old data",
            Self::OldReaders => "new data",
        }
    }
}

impl fmt::Display for CompatibilityMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backward => "backward",
            Self::Forward => "forward",
            Self::Full => "full",
        })
    }
}

#[cfg(test)]
mod promise;
#[cfg(test)]
mod tests;
