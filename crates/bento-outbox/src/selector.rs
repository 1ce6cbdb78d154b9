//! Which events something is for: by type and tenant.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::tenant::Tenant;

/// Events of the types and tenants that match. Defaults to all of them.
///
/// ```
/// use bento_outbox::Selector;
/// let orders = Selector { event_type: "order.*".parse()?, ..Selector::default() };
/// assert!(orders.matches("order.line.added", &"acme".parse()?));
/// assert!(!orders.matches("orders", &"acme".parse()?));
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// The types. Defaults to `*`.
    pub event_type: Pattern,
    /// The tenants. Defaults to `*`.
    pub tenant: Pattern,
}

/// A text in which each `*` stands for any characters, or none; every other character is itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The most characters a pattern has: more than a type has.
const PATTERN_CHARS_MAX: usize = 512;

impl Selector {
    /// Whether it is for events of this type and tenant.
    pub fn matches(&self, event_type: &str, tenant: &Tenant) -> bool {
        self.event_type.matches(event_type) && self.tenant.matches(tenant.as_str())
    }
}

impl Pattern {
    /// Whether `text` is such a text, from its beginning to its end.
    pub fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty(); // no star: the whole text was asked for
        };
        // The first place that fits is as good as any: what follows a star may begin anywhere.
        for part in parts {
            let Some(at) = rest.find(part) else {
                return false;
            };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self("*".into())
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |what: &str| {
            let shown: String = text.chars().take(60).collect();
            let message = format!("pattern {shown:?} {what}");
            Err(Error::new(ErrorKind::InvalidSetting, message))
        };
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return refuse("is empty or has white space");
        }
        if text.chars().count() > PATTERN_CHARS_MAX {
            return refuse("has more than 512 characters");
        }
        // What other languages of patterns have would be taken for itself here, and match nothing.
        if text.contains(['?', '[', ']', '{', '}', '>', '#', '|', '!']) {
            return refuse("has one of ? [ ] { } > # | !: the only wildcard there is is *");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().matches(text)
    }

    #[test]
    fn a_star_stands_for_anything_and_all_else_for_itself() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "order.placed"),
            ("order.*", "order."),
            ("order.*", "order.line.added"),
            ("*.placed", "order.placed"),
            ("order.*.added", "order.line.added"),
            ("a*b*a", "aba"),
            ("a**b", "ab"),
            ("order", "order"),
            ("*a*", "bab"),
            ("*ab", "aab"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("order", "orders"),
            ("order.*", "order"),
            ("order.*", "Order.x"),
            ("a*a", "a"),
            ("a.b", "axb"),
            ("a*b*a", "ab"),
            ("*.placed", "placed"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_looks_like_another_wildcard_is_refused() {
        for (pattern, reason) in [
            ("", "empty"),
            ("a b", "white space"),
            ("order.?", "the only wildcard"),
            ("order.>", "the only wildcard"),
            ("order.#", "the only wildcard"),
            ("{a,b}", "the only wildcard"),
            (&"x".repeat(513), "512"),
        ] {
            let error = pattern.parse::<Pattern>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSetting);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    /// The definition, slow and obvious.
    fn by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| by_definition(rest, &text[at..])),
            Some((byte, rest)) => text.first() == Some(byte) && by_definition(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_definition_says(pattern in "[ab*]{1,7}", text in "[ab]{0,9}") {
            let expected = by_definition(pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(&pattern, &text), expected);
        }
    }
}
