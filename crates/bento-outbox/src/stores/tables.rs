//! What the tables are called.

use crate::error::{Error, ErrorKind, Result};

/// The schema and name of the outbox table; its helpers are named after it (`outbox_events`).
///
/// Both are 1 to 45 of the characters `a-z 0-9 _`, beginning with a letter or `_`: short enough
/// that no database cuts a derived name off, and nothing in them needs escaping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    schema: String,
    table: String,
}

impl Tables {
    /// The table `table` in the schema `schema` (which SQLite does not have).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] naming the one that is outside the grammar.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Result<Self> {
        let (schema, table) = (schema.into(), table.into());
        for (setting, name) in [("schema", &schema), ("table", &table)] {
            let grammatical = (1..=45).contains(&name.len())
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !grammatical {
                let shown: String = name.chars().take(60).collect();
                return Err(Error::new(
                    ErrorKind::InvalidSetting,
                    format!(
                        "{setting} {shown:?} is not 1 to 45 of the characters a-z 0-9 _ beginning with a letter or _"
                    ),
                ));
            }
        }
        Ok(Self { schema, table })
    }

    /// The schema's name.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            schema: "public".into(),
            table: "outbox".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_with_the_settings_name() {
        for name in [
            "",
            "a b",
            "a;drop",
            "a\"b",
            "1a",
            "A",
            "é",
            "a\0",
            &"x".repeat(46),
        ] {
            let refused = Tables::new("public", name).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidSetting);
            assert!(refused.to_string().starts_with("table "), "{refused}");
        }
        assert!(
            Tables::new("a-b", "outbox")
                .unwrap_err()
                .to_string()
                .starts_with("schema ")
        );
        assert_eq!(
            Tables::new("s", "t")
                .unwrap()
                .fill("{schema}.{table}_events"),
            "s.t_events"
        );
    }
}
