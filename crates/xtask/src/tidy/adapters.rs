//! Every store and every bus is held to the contract.

use std::collections::BTreeSet;

use super::Finding;
use super::house::{House, LIBRARY};
use super::layers::{ADAPTERS, adapter, module_of};
use super::source::{first_word, words};

const SUITES: &str = "crates/bento-outbox-conformance/tests/";

/// An adapter without its line in the conformance tests is one that nobody has tried.
pub(super) fn every_adapter_passes_its_suite(house: &House) -> Vec<Finding> {
    let tried = tried(house);
    let adapters: BTreeSet<String> = house
        .library()
        .filter_map(|(path, _)| adapter(&module_of(path)))
        .collect();
    let untried = adapters.into_iter().filter_map(|adapter| {
        let (folder, name) = adapter.split_once('/')?;
        let call = format!("{}!({name}", suite_of(folder)?);
        let says = format!("no `{call}, …)` in {SUITES}, so nothing holds it to the contract");
        (!tried.contains(&call)).then(|| Finding::new(&format!("{LIBRARY}{adapter}"), 0, says))
    });
    untried.collect()
}

fn suite_of(folder: &str) -> Option<&'static str> {
    ADAPTERS
        .iter()
        .zip(["bus_suite", "store_suite"])
        .find(|(name, _)| **name == folder)
        .map(|(_, suite)| suite)
}

/// The suites that are run, as `store_suite!(name`.
fn tried(house: &House) -> BTreeSet<String> {
    let tests = house
        .sources()
        .iter()
        .filter(|(path, _)| path.starts_with(SUITES));
    tests
        .flat_map(|(_, source)| {
            words(&source.code).filter_map(|(offset, word)| {
                let arguments = source.code[offset + word.len()..]
                    .strip_prefix('!')?
                    .trim_start()
                    .strip_prefix(['(', '{'])?;
                Some(format!("{word}!({}", first_word(arguments)?))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_without_its_suite_is_found() {
        let house = House::of(&[
            ("crates/bento-outbox/src/stores/mod.rs", ""),
            ("crates/bento-outbox/src/stores/sql.rs", ""),
            ("crates/bento-outbox/src/stores/memory.rs", ""),
            ("crates/bento-outbox/src/stores/sqlite/mod.rs", ""),
            ("crates/bento-outbox/src/stores/sqlite/migrate.rs", ""),
            ("crates/bento-outbox/src/publishers/nats.rs", ""),
            ("crates/bento-outbox/src/publishers/memory.rs", ""),
            (
                "crates/bento-outbox-conformance/tests/main.rs",
                "store_suite!(memory, servers::memory());\nbus_suite! {\n    nats, servers::nats() }\n// store_suite!(sqlite);",
            ),
        ]);
        let found: Vec<String> = every_adapter_passes_its_suite(&house)
            .into_iter()
            .map(|finding| finding.path)
            .collect();
        assert_eq!(
            found,
            [
                "crates/bento-outbox/src/publishers/memory",
                "crates/bento-outbox/src/stores/sqlite"
            ]
        );
    }
}
