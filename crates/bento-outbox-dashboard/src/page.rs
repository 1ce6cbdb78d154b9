//! A page of a list, and where the next one begins.

use bento_outbox::OutboxRecord;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The most entries of a page.
pub(crate) const LIMIT_MAX: u32 = 500;

/// How many entries a page has at most: 1 to [`LIMIT_MAX`], 100 unless said.
#[derive(Clone, Copy)]
pub(crate) struct Limit(u32);

impl Limit {
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// One more, by which it is known whether there is another page.
    pub(crate) fn and_one(self) -> u32 {
        self.0 + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(100)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            limit @ 1..=LIMIT_MAX => Ok(Self(limit)),
            _ => Err(D::Error::custom(format!(
                "a page has 1 to {LIMIT_MAX} entries"
            ))),
        }
    }
}

/// Where a page begins, as the page before says in `next`: 16 hexadecimal digits that mean something
/// to nobody but this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor(pub(crate) i64);

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 16
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let position = i64::from_str_radix(text, 16).ok()?;
        hex.then_some(Self(position))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom("a cursor is the `next` of an answer, as it stands there")
        })
    }
}

/// Leaves of the records that were read for a page those that belong on it; says where the next one
/// begins, if there is one.
pub(crate) fn cut(records: &mut Vec<OutboxRecord>, limit: Limit) -> Option<String> {
    let more = records.len() > limit.get() as usize;
    records.truncate(limit.get() as usize);
    let last = records.last().filter(|_| more)?;
    Some(Cursor(last.seq).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_in_no_other_way() {
        for position in [0, 1, 255, i64::MAX] {
            let written = Cursor(position).to_string();
            assert_eq!(Cursor::parse(&written), Some(Cursor(position)), "{written}");
        }
        for wrong in [
            "",
            "1",
            "00000000000000ff0",
            "00000000000000FF",
            "+0000000000000ff",
            "8000000000000000",
            "-000000000000001",
        ] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong}");
        }
    }
}
