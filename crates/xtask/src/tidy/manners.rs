//! The small rules: length, names, panics, features, the root folder, the README.

use std::collections::BTreeSet;

use super::Finding;
use super::house::{House, LIBRARY};
use super::source::{closing, line_of, words};

const LINES_MAX: usize = 600;
const ROOT_ENTRIES_MAX: usize = 16;
/// Where the library may look at its features.
const FEATURE_FILES: &[&str] = &["error.rs", "lib.rs", "publishers/mod.rs", "stores/mod.rs"];
const VAGUE: &[&str] = &[
    "common", "helper", "helpers", "misc", "types", "util", "utils",
];
const MAP: &str = "ARCHITECTURE.md";
const README_COMMANDS: &[&str] = &["cargo run --release -- demo", "cargo x test"];

/// A file that one cannot hold in one's head is two files.
pub(super) fn no_file_is_too_long(house: &House) -> Vec<Finding> {
    let rust = house
        .texts()
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"));
    let long = rust
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX);
    long.map(|(path, lines)| {
        Finding::new(
            path,
            0,
            format!("has {lines} lines; {LINES_MAX} is the most"),
        )
    })
    .collect()
}

/// What must not fail says why it can't.
pub(super) fn nothing_is_unwrapped(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in house.sources() {
        let code = &source.production;
        for (offset, word) in words(code).filter(|(offset, _)| code[..*offset].ends_with('.')) {
            let call = &code[offset + word.len()..];
            let says = match word {
                "unwrap" if call.starts_with("()") => {
                    "`unwrap` outside tests; propagate it, or `expect` with the reason it cannot fail"
                }
                "expect" if call.starts_with("(\"\")") => {
                    "`expect` without a message; say why it cannot fail"
                }
                _ => continue,
            };
            findings.push(Finding::new(path, line_of(code, offset), says));
        }
    }
    findings
}

/// A feature adds a module and its driver; the rest of the library does not know of it.
pub(super) fn features_are_chosen_in_few_places(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in house
        .library()
        .filter(|(path, _)| !FEATURE_FILES.contains(path))
    {
        let code = &source.production;
        for (offset, word) in words(code).filter(|(_, word)| matches!(*word, "cfg" | "cfg_attr")) {
            let after = &code[offset + word.len()..];
            let open = offset + word.len() + usize::from(after.starts_with('!'));
            if !code[open..].starts_with('(') {
                continue;
            }
            let condition = &code[open..closing(code, open)];
            if words(condition).any(|(_, word)| word == "feature") {
                let says = format!("looks at a feature; only {} may", FEATURE_FILES.join(", "));
                findings.push(Finding::new(
                    &format!("{LIBRARY}{path}"),
                    line_of(code, offset),
                    says,
                ));
            }
        }
    }
    findings
}

/// `utils` is where things go that nobody has understood yet.
pub(super) fn modules_are_named_after_concepts(house: &House) -> Vec<Finding> {
    let mut findings = BTreeSet::new();
    for (path, source) in house.sources() {
        let parts = path
            .trim_end_matches(".rs")
            .split('/')
            .filter(|part| VAGUE.contains(part));
        findings.extend(parts.map(|part| {
            Finding::new(
                path,
                0,
                format!("`{part}` is no concept; name what is in it"),
            )
        }));

        let code = &source.code;
        for (offset, word) in words(code).filter(|(_, word)| VAGUE.contains(word)) {
            let (before, after) = (
                code[..offset].trim_end(),
                code[offset + word.len()..].trim_start(),
            );
            let is_module = words(before)
                .last()
                .is_some_and(|(start, last)| last == "mod" && start + 3 == before.len());
            if is_module && after.starts_with('{') {
                let says = format!("`{word}` is no concept; name what is in it");
                findings.insert(Finding::new(path, line_of(code, offset), says));
            }
        }
    }
    findings.into_iter().collect()
}

/// Whoever opens the repository sees the house at one glance.
pub(super) fn the_root_is_small(house: &House) -> Vec<Finding> {
    let entries: BTreeSet<&str> = house
        .paths()
        .filter_map(|path| path.split('/').next())
        .collect();
    let says = format!(
        "the root has {} entries; {ROOT_ENTRIES_MAX} is the most",
        entries.len()
    );
    (entries.len() > ROOT_ENTRIES_MAX)
        .then(|| Finding::new(".", 0, says))
        .into_iter()
        .collect()
}

/// CI runs what the README tells a newcomer to run, so the README must tell it.
pub(super) fn the_readme_names_the_two_commands(house: &House) -> Vec<Finding> {
    let Some(text) = house.text("README.md") else {
        return Vec::new();
    };
    let commands: Vec<&str> = text
        .lines()
        .map(|line| line.split_once(" #").map_or(line, |(command, _)| command))
        .map(|line| line.trim().trim_start_matches("$ "))
        .collect();
    let missing = README_COMMANDS
        .iter()
        .filter(|command| !commands.contains(command));
    missing
        .map(|command| {
            Finding::new(
                "README.md",
                0,
                format!("no line says `{command}` and nothing else"),
            )
        })
        .collect()
}

/// A map that names what has been renamed or removed leads nowhere. Looked at are the `code spans` that are a
/// file's name or have an `_`, as columns, modules and tests do.
pub(super) fn the_map_names_what_is_there(house: &House) -> Vec<Finding> {
    let Some(map) = house.text(MAP) else {
        return Vec::new();
    };
    let known: BTreeSet<&str> = house
        .texts()
        .iter()
        .filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".sql"))
        .flat_map(|(_, text)| words(text).map(|(_, word)| word))
        .collect();
    let is_there = |span: &str| match span.rsplit(['/', ':']).next().unwrap_or(span) {
        file if file.ends_with(".rs") => house.paths().any(|path| {
            path.strip_suffix(span)
                .is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
        }),
        word if word.contains('_') => known.contains(word),
        _ => true,
    };
    let mut findings = Vec::new();
    for (number, line) in map.lines().enumerate() {
        let spans = line.split('`').skip(1).step_by(2);
        let plain = spans.filter(|span| {
            span.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_/.:".contains(&b))
        });
        let lost = plain.filter(|span| !is_there(span));
        findings.extend(
            lost.map(|span| {
                Finding::new(MAP, number + 1, format!("`{span}` is not there any more"))
            }),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_too_long_is_found() {
        let (fits, too_long) = ("\n".repeat(LINES_MAX), "\n".repeat(LINES_MAX + 1));
        let found = no_file_is_too_long(&House::of(&[
            ("a.rs", &fits),
            ("b.rs", &too_long),
            ("c.md", &too_long),
        ]));
        assert_eq!(
            found,
            [Finding::new("b.rs", 0, "has 601 lines; 600 is the most")]
        );
    }

    #[test]
    fn unwrap_outside_tests_is_found() {
        let text = "fn f() { a.unwrap_or(1); b.expect(\"it was checked\"); parser.expect('{'); // c.unwrap()\n}\n\
                    fn g() { a\n.unwrap(); b.expect(\"\") }\n#[test]\nfn t() { a.unwrap(); }\n";
        let found = nothing_is_unwrapped(&House::of(&[("crates/a/src/lib.rs", text)]));
        assert_eq!(
            found.iter().map(|finding| finding.line).collect::<Vec<_>>(),
            [4, 4]
        );
    }

    #[test]
    fn a_feature_looked_at_elsewhere_is_found() {
        let any = "\n#[cfg(any(\n    feature = \"postgres\",\n    unix))]\nfn f() {}";
        let files = [
            ("crates/bento-outbox/src/outbox.rs", any),
            (
                "crates/bento-outbox/src/bus.rs",
                "fn f() { if cfg!(feature = \"nats\") {} }",
            ),
            (
                "crates/bento-outbox/src/inbox.rs",
                "#[cfg(all(test, feature = \"sqlite\"))] mod tests {} #[cfg(unix)] fn feature() {}",
            ),
            ("crates/bento-outbox/src/stores/mod.rs", any),
            ("crates/bento-outbox-cli/src/main.rs", any),
        ];
        let found = features_are_chosen_in_few_places(&House::of(&files));
        let found: Vec<(&str, usize)> = found
            .iter()
            .map(|finding| (finding.path.as_str(), finding.line))
            .collect();
        assert_eq!(
            found,
            [
                ("crates/bento-outbox/src/bus.rs", 1),
                ("crates/bento-outbox/src/outbox.rs", 2)
            ]
        );
    }

    #[test]
    fn a_vague_module_is_found() {
        let files = [
            ("crates/a/src/utils.rs", ""),
            ("crates/a/src/common/clock.rs", ""),
            (
                "crates/a/src/lib.rs",
                "mod helpers { }\nfn types() {}\nuse other::types;",
            ),
        ];
        assert_eq!(
            modules_are_named_after_concepts(&House::of(&files)).len(),
            3
        );
    }

    #[test]
    fn a_crowded_root_is_found() {
        let names: Vec<String> = (0..=ROOT_ENTRIES_MAX)
            .map(|number| format!("{number}/file"))
            .collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert!(the_root_is_small(&House::of(&files[1..])).is_empty());
        assert_eq!(the_root_is_small(&House::of(&files)).len(), 1);
    }

    #[test]
    fn a_readme_without_its_commands_is_found() {
        assert!(the_readme_names_the_two_commands(&House::of(&[])).is_empty());
        let good = "```sh\n$ cargo run --release -- demo   # no server needed\ncargo x test\n```";
        assert!(the_readme_names_the_two_commands(&House::of(&[("README.md", good)])).is_empty());
        let found =
            the_readme_names_the_two_commands(&House::of(&[("README.md", "cargo x testing")]));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_map_that_names_what_is_gone_is_found() {
        let map = "`a_test` and `case::gone_test`\n`src/lib.rs`, `gone.rs`, `ib.rs`, `Word`, `gone x_y`\n";
        let files = [
            (MAP, map),
            ("crates/a/src/lib.rs", "#[test]\nfn a_test() {}"),
        ];
        let found = the_map_names_what_is_there(&House::of(&files));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let says =
            |line: usize, span: &str| format!("{MAP}:{line}: `{span}` is not there any more");
        assert_eq!(
            found,
            [
                says(1, "case::gone_test"),
                says(2, "gone.rs"),
                says(2, "ib.rs")
            ]
        );
    }
}
