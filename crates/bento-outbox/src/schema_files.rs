//! Schemas as files, for teams to commit.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as Io;
use std::path::Path;

use serde_json::{Map, Value};

use crate::asyncapi::{AsyncApi, message_key};
use crate::error::{Error, ErrorKind, Result};
use crate::registry::EventRegistry;

/// The JSON Schemas of a registry and its AsyncAPI document, each a file: `order.placed.v3.schema.json`
/// and `asyncapi.json`.
///
/// The same registry gives the same bytes. A test keeps what is committed up to date:
///
/// ```no_run
/// # use bento_outbox::{AsyncApi, EventRegistry, Result, SchemaFiles};
/// # fn registry() -> Result<EventRegistry> { EventRegistry::new([]) }
/// # fn main() -> Result<()> {
/// let files = SchemaFiles::of(&registry()?, &AsyncApi::default());
/// match std::env::var_os("BLESS") {
///     Some(_) => files.write("schemas")?,
///     None => files.check("schemas")?, // says which files differ
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaFiles {
    files: BTreeMap<String, String>,
    /// Versions without a schema, which an older version of their type has.
    bare: Vec<String>,
}

/// The end of the names of schema files.
const SCHEMA: &str = ".schema.json";

impl SchemaFiles {
    /// A file for each version that has a schema, and one for the AsyncAPI document.
    pub fn of(registry: &EventRegistry, about: &AsyncApi) -> Self {
        let (mut files, mut bare) = (BTreeMap::new(), Vec::new());
        for event_type in registry.types() {
            let mut is_described = false;
            for version in event_type.versions() {
                if let Some(schema) = event_type.schema(version) {
                    let name = Self::key(event_type.name(), version) + SCHEMA;
                    files.insert(name, text(schema));
                    is_described = true;
                } else if is_described {
                    bare.push(format!("version {version} of {}", event_type.name()));
                }
            }
        }
        files.insert("asyncapi.json".into(), text(&registry.asyncapi(about)));
        Self { files, bare }
    }

    /// What the file and the AsyncAPI message of a version are named after: `order.placed.v3`.
    pub fn key(event_type: &str, version: u32) -> String {
        message_key(event_type, version)
    }

    /// The names and the texts, in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Writes the files into a folder, which is made if it is not there. Other files stay.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] when one cannot be written, with its name, and when a version has
    /// no schema though an older one of its type has: nobody would see what it breaks.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.must_be_described()?;
        fs::create_dir_all(folder).map_err(|error| cannot("make", folder, error))?;
        for (name, text) in self.iter() {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| cannot("write", &path, error))?;
        }
        Ok(())
    }

    /// Whether a folder has these files, with these texts, and no other schema files.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] that names each file which is missing, differs, or is of no
    /// version in the registry; and as for [`write`](Self::write) when a version has no schema.
    pub fn check(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.must_be_described()?;
        let mut wrong = Vec::new();
        for (name, text) in self.iter() {
            match fs::read_to_string(folder.join(name)) {
                Ok(there) if there == text => {}
                Ok(_) => wrong.push(format!("{name} differs")),
                Err(error) if error.kind() == Io::NotFound => {
                    wrong.push(format!("{name} is missing"));
                }
                Err(error) => return Err(cannot("read", &folder.join(name), error)),
            }
        }
        let entries = fs::read_dir(folder).map(|entries| entries.collect::<Result<Vec<_>, _>>());
        let mut names: Vec<String> = match entries {
            Ok(Ok(entries)) => entries
                .iter()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            _ => Vec::new(), // not there, which was said of each file
        };
        names.sort();
        let is_left = |name: &String| name.ends_with(SCHEMA) && !self.files.contains_key(name);
        wrong.extend(
            names
                .iter()
                .filter(|name| is_left(name))
                .map(|name| format!("{name} is of no version: delete it")),
        );
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidSetting,
            format!(
                "the schemas in {} are not those of the registry: {}",
                folder.display(),
                wrong.join(", ")
            ),
        ))
    }

    fn must_be_described(&self) -> Result<()> {
        if self.bare.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidSetting,
            format!(
                "no schema has {}, which an older version of its type has: add it, by EventType::described for the \
                 newest version, by describe or with_schema for another",
                self.bare.join(" and ")
            ),
        ))
    }
}

fn cannot(verb: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::InvalidSetting,
        format!("cannot {verb} {}", path.display()),
    )
    .because(error)
}

/// With the members of each object in order of their names, whatever the order is that serde_json was
/// built to keep.
fn text(json: &Value) -> String {
    format!("{:#}\n", sorted(json))
}

fn sorted(json: &Value) -> Value {
    match json {
        Value::Object(members) => {
            let members: BTreeMap<&String, &Value> = members.iter().collect();
            let sorted: Map<String, Value> = members
                .into_iter()
                .map(|(name, value)| (name.clone(), sorted(value)))
                .collect();
            sorted.into()
        }
        Value::Array(elements) => elements.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::event::DomainEvent;
    use crate::registry::EventType;

    #[derive(Serialize, Deserialize)]
    struct Placed {}
    impl DomainEvent for Placed {
        const TYPE: &'static str = "order/placed";
        const VERSION: u32 = 2;
    }

    fn files(of: &str) -> SchemaFiles {
        let placed = EventType::of::<Placed>()
            .upcast_json(1, Ok)
            .with_schema(
                2,
                json!({"type": "object", "$comment": of, "properties": {"b": {}, "a": {}}}),
            )
            .with_schema(1, json!({"$id": "urn:one"}));
        SchemaFiles::of(&EventRegistry::new([placed]).unwrap(), &AsyncApi::default())
    }

    #[test]
    fn the_same_registry_gives_the_same_bytes() {
        assert_eq!(files("x"), files("x"));
        let files = files("x");
        let names: Vec<&str> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "asyncapi.json",
                "order__2Fplaced.v1.schema.json",
                "order__2Fplaced.v2.schema.json"
            ]
        );
        let (_, text) = files.iter().last().unwrap();
        assert_eq!(
            text,
            r#"{
  "$comment": "x",
  "$id": "urn:bento-outbox:schema:order/placed/2",
  "additionalProperties": false,
  "properties": {
    "a": {},
    "b": {}
  },
  "type": "object"
}
"#
        );
    }

    #[test]
    fn what_is_committed_is_compared_file_by_file() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("schemas");
        let said = |files: &SchemaFiles| files.check(&folder).unwrap_err().to_string();
        assert!(said(&files("x")).contains("order__2Fplaced.v2.schema.json is missing"));
        files("x").write(&folder).unwrap();
        files("x").check(&folder).unwrap();
        assert!(
            said(&files("y"))
                .ends_with(": asyncapi.json differs, order__2Fplaced.v2.schema.json differs")
        );
        fs::write(folder.join("order__2Fplaced.v9.schema.json"), "{}").unwrap();
        fs::write(folder.join("README.md"), "").unwrap();
        assert!(
            said(&files("x"))
                .ends_with(": order__2Fplaced.v9.schema.json is of no version: delete it")
        );
        let error = files("x").write(folder.join("README.md")).unwrap_err();
        assert!(error.to_string().contains("README.md"), "{error}");
    }

    #[test]
    fn a_version_may_not_lose_the_schema_that_its_type_had() {
        let of = |placed: EventType| {
            SchemaFiles::of(&EventRegistry::new([placed]).unwrap(), &AsyncApi::default())
        };
        let place = tempfile::tempdir().unwrap();
        let placed = || EventType::of::<Placed>().upcast_json(1, Ok);
        let lost = of(placed().with_schema(1, json!({})));
        for refused in [lost.write(place.path()), lost.check(place.path())] {
            let said = refused.unwrap_err().to_string();
            assert!(
                said.contains("no schema has version 2 of order/placed"),
                "{said}"
            );
        }
        of(placed().with_schema(2, json!({})))
            .write(place.path())
            .unwrap();
        of(placed()).write(place.path()).unwrap();
    }
}
