//! What a file imports, as full paths from the root of its crate.

use std::collections::BTreeMap;

use super::house::House;
use super::layers::module_of;
use super::source::words;

/// A path and the name it is given.
type UsePath = (Vec<String>, Option<String>);

/// Every path in `code` that starts at the crate's root or climbs with `super`, as seen from the root.
/// (`super` inside an inline module is taken as one step too far; nobody has had one yet.)
pub(super) fn crate_paths(code: &str, module: &[&str]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for (offset, word) in words(code) {
        let starts_a_path = !code[..offset].trim_end().ends_with("::");
        if !matches!(word, "crate" | "super") || !starts_a_path {
            continue;
        }
        for (segments, _) in use_tree(&code[offset..]).0 {
            let climbs = segments
                .iter()
                .take_while(|segment| *segment == "super")
                .count();
            let base = if word == "crate" {
                &[][..]
            } else {
                &module[..module.len().saturating_sub(climbs)]
            };
            let rest = segments
                .iter()
                .filter(|segment| !matches!(segment.as_str(), "crate" | "super" | "self"));
            let path: Vec<String> = base
                .iter()
                .map(|part| (*part).to_owned())
                .chain(rest.cloned())
                .collect();
            // A `super` that stays inside the file's own folder is no import from elsewhere.
            if path.len() > base.len() || word == "crate" {
                found.push((offset, path));
            }
        }
    }
    found
}

/// Expands `a::{b, c::{d as e}}` at the start of `code`; also returns how much of it that was.
fn use_tree(code: &str) -> (Vec<UsePath>, usize) {
    let mut segments = Vec::new();
    let mut at = 0;
    loop {
        at += blank_width(&code[at..]);
        if code[at..].starts_with('{') {
            let (paths, width) = use_group(&code[at..]);
            let joined = paths
                .into_iter()
                .map(|(tail, alias)| ([&segments[..], &tail].concat(), alias));
            return (joined.collect(), at + width);
        }
        let Some((_, word)) = words(&code[at..]).next().filter(|(start, _)| *start == 0) else {
            break;
        };
        segments.push(word.to_owned());
        at += word.len();
        let after = at + blank_width(&code[at..]);
        if !code[after..].starts_with("::") {
            break;
        }
        at = after + 2;
    }
    let after = &code[at..];
    let alias = after
        .trim_start()
        .strip_prefix("as ")
        .and_then(|rest| words(rest).next());
    (vec![(segments, alias.map(|(_, name)| name.to_owned()))], at)
}

fn use_group(code: &str) -> (Vec<UsePath>, usize) {
    let (mut paths, mut at) = (Vec::new(), 1);
    while at < code.len() && !code[at..].starts_with('}') {
        let (more, width) = use_tree(&code[at..]);
        paths.extend(more);
        at += width;
        at += code[at..].find([',', '}']).unwrap_or(code.len() - at);
        at += usize::from(code[at..].starts_with(','));
        at += blank_width(&code[at..]);
    }
    (paths, (at + 1).min(code.len()))
}

fn blank_width(code: &str) -> usize {
    code.len() - code.trim_start().len()
}

/// What `pub use` in `lib.rs` and in the adapters' `mod.rs` gives a shorter name, and its full path, so that no
/// import goes by the back door.
pub(super) fn exports(house: &House) -> BTreeMap<Vec<String>, Vec<String>> {
    let mut exports = BTreeMap::new();
    for (path, source) in house.library() {
        let module = module_of(path);
        if path != "lib.rs" && !(module.len() == 1 && path.ends_with("mod.rs")) {
            continue;
        }
        let code = &source.production;
        let uses =
            words(code).filter(|(offset, word)| *word == "use" && is_public(&code[..*offset]));
        for (segments, alias) in
            uses.flat_map(|(offset, _)| use_tree(&code[offset + "use".len()..]).0)
        {
            let from_root = segments.first().is_some_and(|first| first == "crate");
            let base = module
                .iter()
                .map(|part| (*part).to_owned())
                .filter(|_| !from_root);
            let rest = segments
                .iter()
                .filter(|segment| !matches!(segment.as_str(), "crate" | "self"));
            let full: Vec<String> = base.chain(rest.cloned()).collect();
            let Some(name) = alias.or_else(|| full.last().cloned()) else {
                continue;
            };
            let short = module
                .iter()
                .map(|part| (*part).to_owned())
                .chain([name])
                .collect();
            if short != full {
                exports.insert(short, full);
            }
        }
    }
    exports
}

fn is_public(before: &str) -> bool {
    let before = before.trim_end();
    before.ends_with("pub")
        || (before.ends_with(')')
            && before
                .rsplit("pub")
                .next()
                .is_some_and(|rest| rest.trim_start().starts_with('(')))
}

pub(super) fn resolve(
    path: &[String],
    exports: &BTreeMap<Vec<String>, Vec<String>>,
) -> Vec<String> {
    let mut path = path.to_vec();
    // Two steps reach from lib.rs through an adapters' mod.rs to the item; a few more do no harm.
    for _ in 0..4 {
        let renamed = (1..=path.len())
            .rev()
            .find_map(|length| Some((length, exports.get(&path[..length])?)));
        let Some((length, full)) = renamed else { break };
        path = [full, &path[length..]].concat();
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(code: &str, module: &[&str]) -> Vec<String> {
        crate_paths(code, module)
            .into_iter()
            .map(|(_, path)| path.join("::"))
            .collect()
    }

    #[test]
    fn groups_are_taken_apart() {
        let code = "use crate::{a::B, c::{self, D as E, f::*}, g};\npub(crate) use crate::h;";
        assert_eq!(
            imported(code, &["x"]),
            ["a::B", "c", "c::D", "c::f", "g", "", "h"]
        );
    }

    #[test]
    fn inline_paths_count_and_super_climbs() {
        let code = "fn f(a: super::A) -> crate::b::C<D> { super::super::e::f::<G>() as u8 }";
        assert_eq!(
            imported(code, &["stores", "sqlite"]),
            ["stores::A", "b::C", "e::f"]
        );
    }

    #[test]
    fn what_follows_a_path_is_not_part_of_it() {
        assert_eq!(
            imported(
                "match x { crate::a::B { c } => c, _ => $crate::d!() }",
                &["x"]
            ),
            ["a::B", "d"]
        );
    }
}
