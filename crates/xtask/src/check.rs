//! `cargo x check`: everything that can be said about the code without running it.

use std::fs;

use crate::workspace::{Workspace, find_program};
use crate::{docs, pages, tidy};

/// The crate whose features must each stand alone.
const LIBRARY: &str = "crates/bento-outbox/Cargo.toml";

/// Runs every check, the quick ones first.
pub(crate) fn run(workspace: &mut Workspace) -> Result<(), String> {
    workspace.run(&mut workspace.cargo("fmt --all --check"))?;
    let root = workspace.root().to_owned();
    workspace.step("tidy", || tidy::run(&root))?;
    // Clippy checks its own packages with warnings denied and their dependencies as plain `check` does, so the
    // dependencies are checked once for clippy and for the docs.
    workspace.run(
        &mut workspace.cargo("clippy --workspace --all-targets --all-features -- -D warnings"),
    )?;
    docs::api(workspace)?;
    each_feature_alone(workspace)?;
    pages::check(workspace)?;
    licences(workspace)
}

/// No feature at all, then one at a time. By clippy and not by `check`: only clippy denies warnings in our own
/// crate without rebuilding every dependency, and what is dead without a feature is a warning.
fn each_feature_alone(workspace: &mut Workspace) -> Result<(), String> {
    let manifest = fs::read_to_string(workspace.root().join(LIBRARY))
        .map_err(|error| format!("{LIBRARY}: {error}"))?;
    let alone = "clippy -p bento-outbox --no-default-features";
    workspace.run(&mut workspace.cargo(&format!("{alone} -- -D warnings")))?;
    for feature in features(&manifest) {
        workspace
            .run(&mut workspace.cargo(&format!("{alone} --features {feature} -- -D warnings")))?;
    }
    Ok(())
}

fn licences(workspace: &mut Workspace) -> Result<(), String> {
    if find_program("cargo-deny", &[]).is_none() {
        eprintln!(
            "cargo deny: not installed, so licences are not checked here; `cargo install cargo-deny --locked` does it"
        );
        return Ok(());
    }
    workspace
        .run(&mut workspace.cargo("deny check --config .cargo/deny.toml bans licenses sources"))
}

/// The names in the manifest's `[features]`, but for `default`.
fn features(manifest: &str) -> Vec<&str> {
    let section = manifest
        .lines()
        .skip_while(|line| line.trim() != "[features]")
        .skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_alphanumeric()))
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name.trim())
        .filter(|name| *name != "default")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_their_section_alone() {
        let manifest = "[package]\nname = \"x\"\n\n[features]\ndefault = []\n# a note = here\npostgres = [\n    \"dep:sqlx\",\n]\n\
                        nats = [\"dep:async-nats\"]\n\n[dependencies]\nserde = \"1\"\n";
        assert_eq!(features(manifest), ["postgres", "nats"]);
    }
}
