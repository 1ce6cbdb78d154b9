//! Whether no document can follow two alternatives.

use super::alternatives::{All, Alternative, Document, Types};
use super::scalars;

/// Levels of fields that are looked into: the tags that tell alternatives apart are on top.
const LEVELS_MAX: u32 = 4;

/// Whether what is written by one alternative never follows the other one, as far as types, listed
/// values and fields tell.
pub(super) fn are<'a>(
    writer: &Document<'a>,
    written: &Alternative<'a>,
    reader: &Document<'a>,
    read: &Alternative<'a>,
) -> bool {
    alternatives((writer, written), (reader, read), LEVELS_MAX, false)
}

/// As [`are`], going by types and by what is there to tell alternatives apart: names and listed values.
pub(super) fn are_by_tags<'a>(
    writer: &Document<'a>,
    written: &Alternative<'a>,
    reader: &Document<'a>,
    read: &Alternative<'a>,
) -> bool {
    alternatives((writer, written), (reader, read), 1, true)
}

fn alternatives<'a>(
    (writer, written): (&Document<'a>, &Alternative<'a>),
    (reader, read): (&Document<'a>, &Alternative<'a>),
    levels: u32,
    only_tags: bool,
) -> bool {
    match (&written.values, &read.values) {
        (Some(one), Some(other)) => {
            return one
                .iter()
                .all(|one| other.iter().all(|other| !scalars::equal(one, other)));
        }
        _ if levels == 0 && only_tags => return false,
        _ if !written.types.meet(read.types) => return true,
        // Whether a listed value follows keywords is not looked into.
        (Some(_), None) | (None, Some(_)) => return false,
        (None, None) => {}
    }
    if written.types != Types::OBJECT || levels == 0 {
        return false;
    }
    let never_written = |name: &str| {
        written.never_has(name) || (!written.names(name) && written.unnamed().is_empty())
    };
    if read.required().any(never_written) && !(only_tags && written.has_listed_field()) {
        return true;
    }
    written.required().any(|name| {
        let never_read = read.never_has(name) && !(only_tags && written.has_listed_field());
        never_read || {
            let (one, other) = (written.field(name), read.field(name));
            places((writer, &one), (reader, &other), levels - 1, only_tags)
        }
    })
}

fn places<'a>(
    (writer, written): (&Document<'a>, &All<'a>),
    (reader, read): (&Document<'a>, &All<'a>),
    levels: u32,
    only_tags: bool,
) -> bool {
    let (Ok(written), Ok(read)) = (writer.alternatives(written), reader.alternatives(read)) else {
        return false;
    };
    written.iter().all(|one| {
        read.iter()
            .all(|other| alternatives((writer, one), (reader, other), levels, only_tags))
    })
}
