//! A payload becomes its type again, wholly, or it is said where it does not fit.

use std::fmt;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use serde_json::error::Category;

use super::fields::{self, Unclear};

/// Where and why a payload does not fit its type. Never says what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// `lines[2].price`; empty for the payload as a whole.
    path: String,
    what: String,
}

/// How many fields are named at most.
const FIELDS_NAMED_MAX: usize = 5;

/// Reads `json` as an `E`. Unless it `takes_unknown_fields`, what it would leave aside is an error.
pub(super) fn read<E>(json: &[u8], takes_unknown_fields: bool) -> Result<E, Misfit>
where
    E: DeserializeOwned + Serialize,
{
    let text = std::str::from_utf8(json).map_err(|_| Misfit::of_all("is not UTF-8"))?;
    let event: E = parse(text)?;
    if takes_unknown_fields {
        return Ok(event);
    }
    let written = serde_json::to_string(&event).map_err(|_| {
        Misfit::of_all("cannot be written again, so that nobody could tell what was left aside")
    })?;
    let reread = |json: &str| {
        let event: E = serde_json::from_str(json).ok()?;
        serde_json::to_string(&event).ok()
    };
    match fields::left_aside(text, &written, &reread) {
        Ok(unknown) if unknown.is_empty() => Ok(event),
        Ok(unknown) => Err(Misfit::unknown(&unknown)),
        Err(Unclear::Twice(path)) => Err(Misfit::of_part(path, "is there twice")),
        Err(Unclear::TooMany) => Err(Misfit::of_all(
            "has so many fields under other names than its type writes them, and is of a type that reads no \
             part of it alone, that it cannot be told whether every field was read; \
             EventType::taking_unknown_fields does without",
        )),
    }
}

/// Reads `json` as it is, for upcasters. What a [`Value`] could hold only by halves is an error.
pub(super) fn read_value(json: &[u8]) -> Result<Value, Misfit> {
    // Read as itself, JSON shows a field that is there twice.
    let value = read::<Value>(json, false)?;
    let text = std::str::from_utf8(json).unwrap_or_default();
    match fields::rounded_number(text) {
        Some(path) => Err(Misfit::of_part(
            path,
            "is a number that upcast_json would round; an upcaster of types can carry it",
        )),
        None => Ok(value),
    }
}

fn parse<E: DeserializeOwned>(json: &str) -> Result<E, Misfit> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let event = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        Misfit::explained(json, path.trim_matches('.'), error.inner())
    })?;
    reader
        .end()
        .map_err(|error| Misfit::explained(json, "", &error))?;
    Ok(event)
}

impl Misfit {
    /// Of the payload as a whole.
    pub(crate) fn of_all(what: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            what: what.into(),
        }
    }

    /// Of the part of the payload at `path`.
    pub(crate) fn of_part(path: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            what: what.into(),
        }
    }

    fn unknown(fields: &[String]) -> Self {
        if let [field] = fields {
            let what = "is not known to the type, and would be lost".into();
            return Self {
                path: field.clone(),
                what,
            };
        }
        let mut named = fields[..fields.len().min(FIELDS_NAMED_MAX)].join(", ");
        if fields.len() > FIELDS_NAMED_MAX {
            named.push_str(&format!(" and {} more", fields.len() - FIELDS_NAMED_MAX));
        }
        Self::of_all(format!(
            "has fields that the type does not know, and that would be lost: {named}"
        ))
    }

    /// What serde says of `json`, without the value that it says it about.
    fn explained(json: &str, path: &str, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let text = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(text, _)| text);
        let inside = |field: &str| match path {
            "" => field.to_owned(),
            path => format!("{path}.{field}"),
        };
        let (path, what) = match error.classify() {
            Category::Data => match text.split_once(' ').unwrap_or((text, "")) {
                ("missing", rest) => (inside(quoted(rest)), "is missing".into()),
                ("duplicate", rest) => (inside(quoted(rest)), "is there twice".into()),
                ("unknown", rest) if rest.starts_with("field ") => (
                    last_named(path, quoted(rest)),
                    "is not known to the type, and would be lost".into(),
                ),
                ("unknown", rest) if rest.starts_with("variant ") => {
                    let what = match rest.rsplit_once(", expected ") {
                        Some((_, known)) => format!("is none of the variants it may be, {known}"),
                        None => "is none of the variants it may be".into(),
                    };
                    (path.to_owned(), what)
                }
                ("invalid", rest) => (path.to_owned(), invalid(rest)),
                ("data", _)
                    if text.starts_with("data did not match any variant of untagged enum") =>
                {
                    (path.to_owned(), "fits none of the forms it may have".into())
                }
                // A text of the type's own making may have the value in it.
                _ => (path.to_owned(), "has a value that its type refuses".into()),
            },
            Category::Syntax if text.starts_with("number out of range") => {
                (path.to_owned(), "is a number out of range".into())
            }
            Category::Syntax if text.starts_with("recursion limit") => {
                (path.to_owned(), "is nested too deep".into())
            }
            // serde_json says of JSON in another shape that it were none.
            _ if serde_json::from_str::<IgnoredAny>(json).is_ok() => {
                let what = match text {
                    "trailing characters" => "has more elements than its type takes",
                    _ => "has a key that its type refuses, expected a number or a boolean",
                };
                // The path does not show keys.
                let path = path
                    .strip_suffix('?')
                    .map_or(path, |of| of.trim_end_matches('.'));
                (path.to_owned(), what.into())
            }
            Category::Syntax | Category::Io => (
                String::new(),
                format!(
                    "is not JSON, at line {} column {}",
                    error.line(),
                    error.column()
                ),
            ),
            Category::Eof => (String::new(), "is not JSON: it ends too early".into()),
        };
        Self { path, what }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "the payload {}", self.what),
            path => write!(f, "field {path:?} {}", self.what),
        }
    }
}

/// `type: string "secret", expected i64` without the secret.
fn invalid(complaint: &str) -> String {
    const KINDS: [(&str, &str); 16] = [
        ("boolean", "a boolean"),
        ("integer", "an integer"),
        ("floating point", "a number"),
        ("number", "a number"),
        ("character", "a character"),
        ("string", "a string"),
        ("byte array", "bytes"),
        ("null", "null"),
        ("unit value", "null"),
        ("Option value", "an optional value"),
        ("sequence", "an array"),
        ("map", "an object"),
        ("newtype variant", "an object"),
        ("tuple variant", "an array"),
        ("struct variant", "an object"),
        ("enum", "an enum"),
    ];
    let (about, complaint) = complaint.split_once([':', ' ']).unwrap_or((complaint, ""));
    let (found, expected) = complaint
        .rsplit_once(", expected ")
        .unwrap_or((complaint, ""));
    let kind = KINDS
        .iter()
        .find(|(kind, _)| found.trim_start().starts_with(kind))
        .map_or("a value", |(_, shown)| *shown);
    match (about, expected) {
        (_, "") => "has a value that its type refuses".into(),
        ("length", expected) => format!("has another length than expected: {expected}"),
        ("value", expected) => format!("is {kind} outside of what is expected: {expected}"),
        (_, expected) => format!("is {kind}, expected {expected}"),
    }
}

/// What stands between the first two backticks.
fn quoted(text: &str) -> &str {
    text.split('`').nth(1).unwrap_or("?")
}

/// The path to `field`, at which serde may have been already.
fn last_named(path: &str, field: &str) -> String {
    match path {
        "" => field.to_owned(),
        path if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
        path => format!("{path}.{field}"),
    }
}
