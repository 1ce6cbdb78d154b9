//! A version of an event type, as flags name it.

use std::fmt;

use bento_outbox::SchemaFiles;

use super::catalogue::last_part;

/// A version of an event type.
#[derive(Clone)]
pub(super) struct Version {
    event_type: String,
    version: u32,
    /// `order.placed.v1`, as files and AsyncAPI messages are named after it.
    key: String,
}

impl Version {
    /// Reads `order.placed@1`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (event_type, version) = text
            .rsplit_once('@')
            .filter(|(event_type, _)| !event_type.is_empty())
            .ok_or("it is not TYPE@VERSION, as order.placed@1")?;
        let version = version
            .parse()
            .map_err(|_| "what follows the @ is no version")?;
        Ok(Self {
            event_type: event_type.into(),
            version,
            key: SchemaFiles::key(event_type, version),
        })
    }

    /// Whether a schema is that version: `shop/order.placed.v1.schema.json` in a folder,
    /// `order.placed.v1` in an AsyncAPI document.
    pub(super) fn is(&self, schema: &str) -> bool {
        last_part(schema)
            .strip_prefix(&self.key)
            .is_some_and(|end| end.is_empty() || end.starts_with('.'))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.event_type, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_and_messages_are_told_apart() {
        let version = Version::parse("order/placed@1").unwrap();
        for name in [
            "order__2Fplaced.v1.schema.json",
            "shop/order__2Fplaced.v1.json",
            "asyncapi.json: order__2Fplaced.v1",
            "order__2Fplaced.v1",
        ] {
            assert!(version.is(name), "{name}");
        }
        for name in [
            "order__2Fplaced.v12.schema.json",
            "order__2Fplaced.v2",
            "re-order__2Fplaced.v1",
            "order__2Fplaced.v1/x.json",
        ] {
            assert!(!version.is(name), "{name}");
        }
        assert_eq!(version.to_string(), "order/placed@1");
        for wrong in ["order.placed", "@1", "order.placed@", "order.placed@v1"] {
            assert!(Version::parse(wrong).is_err(), "{wrong}");
        }
    }
}
