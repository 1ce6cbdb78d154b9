//! Which files the compiler sees, and which of them only when it builds tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::house::House;
use super::source::{Source, first_word, test_items, words};

/// A file that no `mod` reaches looks like code, but nothing compiles it.
pub(super) fn every_file_is_reached(house: &House) -> Vec<Finding> {
    let reached = reach(house.texts(), house.sources());
    let lost = house
        .sources()
        .keys()
        .filter(|path| !reached.contains_key(path.as_str()));
    lost.map(|path| {
        Finding::new(
            path,
            0,
            "no `mod` leads here from its crate's root, so it is never compiled",
        )
    })
    .collect()
}

/// The files that are only compiled for tests.
pub(super) fn test_files(
    texts: &BTreeMap<String, String>,
    sources: &BTreeMap<String, Source>,
) -> Vec<String> {
    let reached = reach(texts, sources);
    reached
        .into_iter()
        .filter(|(_, for_tests)| *for_tests)
        .map(|(path, _)| path)
        .collect()
}

/// Every file that is compiled, and whether it is so for tests only.
fn reach(
    texts: &BTreeMap<String, String>,
    sources: &BTreeMap<String, Source>,
) -> BTreeMap<String, bool> {
    let mut reached = BTreeMap::new();
    let mut waiting = roots(texts);
    while let Some((path, is_root, for_tests)) = waiting.pop() {
        let Some(source) = sources.get(&path) else {
            continue;
        };
        if reached.get(&path).is_some_and(|seen| !seen || for_tests) {
            continue; // seen already, and now with nothing new to say
        }
        for (name, is_test) in modules(&source.code) {
            let folder = folder_of_children(&path, is_root);
            let files = [
                format!("{folder}{name}.rs"),
                format!("{folder}{name}/mod.rs"),
            ];
            waiting.extend(
                files
                    .into_iter()
                    .map(|file| (file, false, for_tests || is_test)),
            );
        }
        reached.insert(path, for_tests);
    }
    reached
}

/// The files that cargo starts at, as `(path, is a root, is for tests)`.
fn roots(texts: &BTreeMap<String, String>) -> Vec<(String, bool, bool)> {
    let manifests = texts
        .iter()
        .filter_map(|(path, text)| Some((path.strip_suffix("Cargo.toml")?, text)));
    let crates: BTreeSet<&str> = manifests.clone().map(|(folder, _)| folder).collect();
    let mut roots = Vec::new();
    for (folder, manifest) in manifests {
        let named: Vec<&str> = manifest
            .lines()
            .filter_map(|line| {
                line.trim()
                    .strip_prefix("path")?
                    .trim_start()
                    .strip_prefix('=')?
                    .trim()
                    .strip_prefix('"')
            })
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let looks_for = |what: &str| {
            !manifest
                .lines()
                .any(|line| line.replace(' ', "") == format!("auto{what}=false"))
        };
        for path in texts.keys() {
            let Some(inside) = path.strip_prefix(folder) else {
                continue;
            };
            let of_inner_crate = crates
                .iter()
                .any(|other| other.len() > folder.len() && path.starts_with(other));
            let is_root = match inside.split('/').collect::<Vec<_>>()[..] {
                ["build.rs"] | ["src", "lib.rs" | "main.rs"] => true,
                ["src", "bin", _] | ["src", "bin", _, "main.rs"] => looks_for("bins"),
                [kind @ ("tests" | "examples" | "benches"), _]
                | [kind @ ("tests" | "examples" | "benches"), _, "main.rs"] => looks_for(kind),
                _ => false,
            };
            if !of_inner_crate && (is_root || named.contains(&inside)) {
                let for_tests = inside.starts_with("tests/") || inside.starts_with("benches/");
                roots.push((path.clone(), true, for_tests));
            }
        }
    }
    roots
}

fn folder_of_children(path: &str, is_root: bool) -> String {
    let own = path.trim_end_matches(".rs");
    match own.rsplit_once('/') {
        Some((folder, name)) if is_root || name == "mod" => format!("{folder}/"),
        None if is_root => String::new(),
        _ => format!("{own}/"),
    }
}

/// The modules that `code` has elsewhere, `mod name;`, and whether each is for tests only.
fn modules(code: &str) -> Vec<(&str, bool)> {
    let tests = test_items(code);
    let declared = words(code)
        .filter(|(_, word)| *word == "mod")
        .filter_map(|(offset, word)| {
            let rest = &code[offset + word.len()..];
            let name = first_word(rest)?;
            let after = rest.trim_start()[name.len()..].trim_start();
            let is_test = tests
                .iter()
                .any(|(start, end)| (start..end).contains(&&offset));
            after.starts_with(';').then_some((name, is_test))
        });
    declared.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = ("crates/a/Cargo.toml", "[package]\nname = \"a\"\n");

    fn lost(files: &[(&str, &str)]) -> Vec<String> {
        every_file_is_reached(&House::of(files))
            .into_iter()
            .map(|finding| finding.path)
            .collect()
    }

    #[test]
    fn a_file_that_no_mod_reaches_is_found() {
        let files = [
            MANIFEST,
            (
                "crates/a/src/lib.rs",
                "pub mod b; // mod e;\nmod c;\nmod inline { fn f() {} }",
            ),
            ("crates/a/src/b.rs", "mod d;"),
            ("crates/a/src/b/d.rs", ""),
            ("crates/a/src/c/mod.rs", "mod deep;"),
            ("crates/a/src/c/deep.rs", ""),
            ("crates/a/src/e.rs", ""),
            ("crates/a/src/inline.rs", ""),
            ("crates/a/src/bin/tool.rs", ""),
            ("crates/a/examples/show/main.rs", "mod other;"),
            ("crates/a/examples/show/other.rs", ""),
        ];
        assert_eq!(
            lost(&files),
            ["crates/a/src/e.rs", "crates/a/src/inline.rs"]
        );
    }

    #[test]
    fn targets_are_those_that_cargo_would_find() {
        let manifest =
            "[package]\nautotests = false\n[[test]]\nname = \"all\"\npath = \"tests/main.rs\"\n";
        let files = [
            ("crates/a/Cargo.toml", manifest),
            ("crates/a/tests/main.rs", "mod store;"),
            ("crates/a/tests/store.rs", ""),
            ("crates/a/tests/forgotten.rs", ""),
        ];
        assert_eq!(lost(&files), ["crates/a/tests/forgotten.rs"]);
    }

    #[test]
    fn test_only_files_are_known() {
        let files = [
            MANIFEST,
            ("crates/a/src/lib.rs", "#[cfg(test)]\nmod tests;\nmod real;"),
            ("crates/a/src/tests.rs", "mod more; fn f() { x() }"),
            ("crates/a/src/tests/more.rs", "fn f() { x() }"),
            ("crates/a/src/real.rs", "fn f() { x() }"),
            ("crates/a/tests/it.rs", "fn f() { x() }"),
        ];
        let house = House::of(&files);
        let production = house
            .sources()
            .iter()
            .filter(|(_, source)| source.production.contains("x()"));
        assert_eq!(
            production.map(|(path, _)| path).collect::<Vec<_>>(),
            ["crates/a/src/real.rs"]
        );
    }
}
