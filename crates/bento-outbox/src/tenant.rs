//! Whose event it is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The party an event belongs to; the tenant `default` where nothing else is said.
///
/// 1 to 64 characters: letters and digits of ASCII, `.`, `_`, `-`, beginning with a letter or
/// digit. So a tenant can stand in a topic, a path or a metric's label without being escaped.
///
/// ```
/// use bento_outbox::Tenant;
/// assert_eq!("acme".parse::<Tenant>()?.as_str(), "acme");
/// assert!("acme/../other".parse::<Tenant>().is_err());
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

/// The most characters a tenant's name has.
pub const TENANT_CHARS_MAX: usize = 64;

impl Tenant {
    /// The tenant's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Tenant {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

impl FromStr for Tenant {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let grammatical = name.len() <= TENANT_CHARS_MAX
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if grammatical {
            Ok(Self(name.into()))
        } else {
            let shown: String = name.chars().take(TENANT_CHARS_MAX).collect();
            Err(Error::new(
                ErrorKind::InvalidEvent,
                format!(
                    "tenant {shown:?} is not 1 to 64 of the characters A-Z a-z 0-9 . _ - beginning with a letter or digit"
                ),
            ))
        }
    }
}

impl TryFrom<String> for Tenant {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "", "*", ">", "a b", "a/b", "..", ".a", "-a", "a\n", "a%", "ä", "a'b", "a>b", "#",
            "a\0",
        ] {
            let refused = name.parse::<Tenant>().map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidEvent), "{name:?}");
        }
        assert!("x".repeat(65).parse::<Tenant>().is_err());
        for name in ["ua", "9E", "acme.com", "a_b-c", &"x".repeat(64)] {
            assert!(name.parse::<Tenant>().is_ok(), "{name:?}");
        }
    }
}
