//! The layers of the library, and who may name what.

use super::Finding;
use super::house::{House, LIBRARY};
use super::imports::{crate_paths, exports, resolve};
use super::source::{line_of, words};

/// The layers, from the bottom. The modules of the first three are files in `src`, or folders of that name.
const WORDS: &[&str] = &[
    "act",
    "aggregate",
    "asyncapi",
    "causality",
    "cloud_event",
    "compatibility",
    "dead_letter",
    "door",
    "error",
    "event",
    "filter",
    "inspection",
    "pause",
    "pending",
    "record",
    "registry",
    "schema",
    "selector",
    "standing",
    "tenant",
    "timestamp",
    "topic",
    "trace_context",
    "validation",
];
const SEAMS: &[&str] = &["publisher", "store"];
const PARTS: &[&str] = &[
    "alert",
    "bus",
    "commands",
    "dead_letter_topic",
    "decision",
    "held",
    "immediate",
    "inbox",
    "message",
    "outbox",
    "projector",
    "refusing",
    "replay",
    "retry",
    "schema_files",
    "spans",
    "sparing",
    "telemetry",
    "testing",
    "unit_of_work",
    "why",
];
/// Every file or folder in these is an adapter and knows no other one.
pub(super) const ADAPTERS: &[&str] = &["publishers", "stores"];
/// What the adapters of one folder have in common, besides its `mod.rs`.
const SHARED: &[&str] = &[
    "publishers/lines",
    "publishers/options",
    "stores/backlog",
    "publishers/socket",
    "stores/sql",
    "stores/tables",
    "stores/url_options",
];

/// The crates that talk to a database or a bus.
const DRIVERS: &[&str] = &[
    "amq_protocol",
    "async_nats",
    "hyper",
    "hyper_rustls",
    "hyper_util",
    "lapin",
    "libsqlite3_sys",
    "rdkafka",
    "redis",
    "reqwest",
    "sqlx",
    "sqlx_core",
];

const HERE: &str = "crates/xtask/src/tidy/layers.rs";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Words,
    Seams,
    Parts,
    Adapters,
}

impl Layer {
    /// The layer of a module at the top of the crate.
    fn of(module: &str) -> Option<Self> {
        let layers = [
            (WORDS, Self::Words),
            (SEAMS, Self::Seams),
            (PARTS, Self::Parts),
            (ADAPTERS, Self::Adapters),
        ];
        layers
            .into_iter()
            .find(|(modules, _)| modules.contains(&module))
            .map(|(_, layer)| layer)
    }

    fn may_import(self, other: Self) -> bool {
        match self {
            Self::Words => other == Self::Words,
            Self::Seams => other <= Self::Seams,
            Self::Parts => other <= Self::Parts,
            Self::Adapters => other <= Self::Seams, // its own folder is looked at more closely
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Words => "the words (L0)",
            Self::Seams => "the seams (L1)",
            Self::Parts => "the moving parts (L2)",
            Self::Adapters => "the adapters (L3)",
        }
    }
}

/// The adapter, say `stores/postgres`, that a module of the library belongs to; `None` outside adapters and in
/// what they share.
pub(super) fn adapter(module: &[&str]) -> Option<String> {
    let [folder, name, ..] = module else {
        return None;
    };
    let adapter = format!("{folder}/{name}");
    (ADAPTERS.contains(folder) && !SHARED.contains(&adapter.as_str())).then_some(adapter)
}

/// The module that a file of the library is: `stores/sqlite/mod.rs` is `stores`, `sqlite`.
pub(super) fn module_of(path: &str) -> Vec<&str> {
    let mut module: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    if matches!(module.last(), Some(&"mod" | &"lib")) {
        module.pop();
    }
    module
}

/// A file that is in no layer could import what it likes.
pub(super) fn every_file_has_a_layer(house: &House) -> Vec<Finding> {
    let files = house.library().filter(|(path, _)| *path != "lib.rs");
    let homeless = files.filter(|(path, _)| Layer::of(module_of(path)[0]).is_none());
    homeless
        .map(|(path, _)| {
            Finding::new(
                &format!("{LIBRARY}{path}"),
                0,
                format!("is in no layer; the layer table is in {HERE}"),
            )
        })
        .collect()
}

/// Imports go L3 → L1, L0; L2 → L1, L0; L1 → L0; and no adapter knows another.
pub(super) fn imports_go_down(house: &House) -> Vec<Finding> {
    let exports = exports(house);
    let mut findings = Vec::new();
    for (path, source) in house.library() {
        let module = module_of(path);
        let Some(layer) = module.first().and_then(|top| Layer::of(top)) else {
            continue;
        };
        for (offset, named) in crate_paths(&source.production, &module) {
            let target = resolve(&named, &exports);
            let target: Vec<&str> = target.iter().map(String::as_str).collect();
            if let Some(complaint) = complaint(layer, &module, &target, house) {
                let line = line_of(&source.production, offset);
                findings.push(Finding::new(&format!("{LIBRARY}{path}"), line, complaint));
            }
        }
    }
    findings
}

fn complaint(layer: Layer, module: &[&str], target: &[&str], house: &House) -> Option<String> {
    let target_layer = Layer::of(target.first()?)?;
    let named = target.join("::");
    let both_adapters = layer == Layer::Adapters && target_layer == Layer::Adapters;
    if both_adapters && module[0] == target[0] {
        let other = adapter(target).filter(|other| is_module(house, other))?;
        let own = adapter(module);
        // `mod.rs` gathers its folder; what is shared must not know who shares it.
        let may = own.as_ref() == Some(&other) || module.len() == 1;
        return (!may).then(|| format!("`{named}` is another adapter; what both need goes to a shared file, named in {HERE}"));
    }
    (!layer.may_import(target_layer)).then(|| {
        format!(
            "`{named}` is of {}; {} may not import it",
            target_layer.name(),
            layer.name()
        )
    })
}

/// Whether the library has a file or folder for this module, and it is not just an item of `mod.rs`.
fn is_module(house: &House, module: &str) -> bool {
    let (file, folder) = (format!("{module}.rs"), format!("{module}/"));
    house
        .library()
        .any(|(path, _)| path == file || path.starts_with(&folder))
}

/// Only adapters name a driver, so that the library without features knows no database and no bus.
pub(super) fn only_adapters_name_a_driver(house: &House) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, source) in house.library() {
        if path == "lib.rs" || Layer::of(module_of(path)[0]) == Some(Layer::Adapters) {
            continue;
        }
        let code = &source.production;
        for (offset, word) in words(code).filter(|(_, word)| DRIVERS.contains(word)) {
            let (before, after) = (
                code[..offset].trim_end(),
                code[offset + word.len()..].trim_start(),
            );
            let is_crate = !before.ends_with("::") || before.ends_with(" ::");
            let is_used = after.starts_with("::")
                || before.ends_with("use")
                || before.ends_with("extern crate");
            if is_crate && is_used {
                let says = format!("names the driver `{word}`; only stores/ and publishers/ may");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(rule: fn(&House) -> Vec<Finding>, files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(String, &str)> = files
            .iter()
            .map(|(path, text)| (format!("{LIBRARY}{path}"), *text))
            .collect();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), *text))
            .collect();
        rule(&House::of(&files))
            .iter()
            .map(|finding| finding.to_string().replace(LIBRARY, ""))
            .collect()
    }

    #[test]
    fn a_file_in_no_layer_is_found() {
        let files = [
            ("lib.rs", ""),
            ("event.rs", ""),
            ("projector/claim.rs", ""),
            ("stores/new.rs", ""),
        ];
        assert!(findings(every_file_has_a_layer, &files).is_empty());
        let found = findings(every_file_has_a_layer, &[("scheduler.rs", "")]);
        assert_eq!(
            found,
            [format!(
                "scheduler.rs: is in no layer; the layer table is in {HERE}"
            )]
        );
    }

    #[test]
    fn imports_downwards_are_fine() {
        let fine = [
            (
                "event.rs",
                "use crate::error::Error; use crate::tenant::Tenant;",
            ),
            (
                "store.rs",
                "use crate::{record::{OutboxRecord, Status}, publisher::Publisher};",
            ),
            (
                "outbox.rs",
                "use crate::store::Store; use crate::unit_of_work::UnitOfWork; // crate::stores::sqlite",
            ),
            (
                "projector/claim.rs",
                "use super::Projector; use crate::retry::delay;",
            ),
            (
                "stores/mod.rs",
                "mod sqlite; pub use sqlite::SqliteStore; pub use self::memory::MemoryStore;",
            ),
            (
                "stores/sqlite/mod.rs",
                "use super::sql::quoted; use super::Shared; use crate::store::Store;",
            ),
            (
                "stores/sqlite/migrate.rs",
                "use super::SqliteStore; use crate::stores::sqlite::pool;",
            ),
            (
                "stores/memory.rs",
                "#[cfg(test)] mod tests { use crate::outbox::Outbox; }",
            ),
            ("stores/sql.rs", "pub(crate) fn quoted() {}"),
            (
                "lib.rs",
                "pub use stores::SqliteStore; pub use outbox::Outbox;",
            ),
        ];
        assert_eq!(findings(imports_go_down, &fine), Vec::<String>::new());
    }

    #[test]
    fn imports_upwards_are_found() {
        let bad = [
            ("event.rs", "\nuse crate::store::Store;"),
            ("store.rs", "use crate::{error::Error, outbox::Outbox};"),
            ("outbox.rs", "fn f() { crate::stores::sqlite::open() }"),
            ("bus.rs", "use super::publishers;"),
            (
                "stores/memory.rs",
                "use super::super::projector::Projector;",
            ),
        ];
        let found = findings(imports_go_down, &bad);
        assert_eq!(found.len(), bad.len(), "{found:#?}");
        assert!(found.contains(&"event.rs:2: `store::Store` is of the seams (L1); the words (L0) may not import it".into()));
    }

    #[test]
    fn adapters_that_know_one_another_are_found() {
        let bad = [
            (
                "stores/postgres/mod.rs",
                "use crate::stores::sqlite::quoted;",
            ),
            ("stores/memory.rs", "use super::sqlite;"),
            ("stores/sql.rs", "use super::sqlite::SqliteStore;"),
            ("publishers/nats.rs", "use crate::stores::Shared;"),
            ("stores/sqlite.rs", ""),
        ];
        let found = findings(imports_go_down, &bad);
        assert_eq!(found.len(), 4, "{found:#?}");
    }

    #[test]
    fn a_root_export_is_no_back_door() {
        let files = [
            (
                "lib.rs",
                "pub use event::{DomainEvent, Version as EventVersion}; pub use outbox::Outbox; pub use stores::SqliteStore;",
            ),
            (
                "stores/mod.rs",
                "mod sqlite;\n#[cfg(feature = \"sqlite\")]\npub use sqlite::SqliteStore;",
            ),
            (
                "stores/sqlite.rs",
                "use crate::{DomainEvent, EventVersion};",
            ),
            ("stores/memory.rs", "use crate::Outbox;"),
            ("stores/postgres.rs", "use crate::SqliteStore;"),
            ("store.rs", "use crate::SqliteStore;"),
        ];
        let found = findings(imports_go_down, &files);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found[2].starts_with(
                "stores/postgres.rs:1: `stores::sqlite::SqliteStore` is another adapter"
            ),
            "{found:#?}"
        );
    }

    #[test]
    fn a_driver_named_outside_the_adapters_is_found() {
        let fine = [
            (
                "error.rs",
                "/// From [`sqlx::Error`].\npub fn f() { crate::publishers::redis::g() }\n#[cfg(test)] use sqlx::A;",
            ),
            ("stores/sqlite.rs", "use sqlx::SqlitePool;"),
            ("publishers/mod.rs", "pub mod redis;"),
            ("lib.rs", "pub use sqlx;"),
        ];
        assert_eq!(
            findings(only_adapters_name_a_driver, &fine),
            Vec::<String>::new()
        );
        let bad = [
            ("error.rs", "\nfn f(e: sqlx::Error) {}"),
            ("bus.rs", "use async_nats as nats;"),
            ("inbox.rs", "use ::redis::Client;"),
        ];
        let found = findings(only_adapters_name_a_driver, &bad);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(
            found[1].starts_with("error.rs:2: names the driver `sqlx`"),
            "{found:#?}"
        );
    }
}
