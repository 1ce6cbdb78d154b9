//! The files that the rules look at.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::module_tree;
use super::source::Source;

/// Where the library's source is.
pub(super) const LIBRARY: &str = "crates/bento-outbox/src/";

/// Every file of the repository by its path from the root, with `/` between the parts.
pub(super) struct House {
    texts: BTreeMap<String, String>,
    sources: BTreeMap<String, Source>,
}

impl House {
    /// Reads what git tracks under `root`, and what it would if it were added.
    pub(super) fn read(root: &Path) -> Result<Self, String> {
        let list = [
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ];
        let git = Command::new("git").args(list).current_dir(root).output();
        let output =
            git.map_err(|error| format!("tidy asks git for the list of files: {error}"))?;
        if !output.status.success() {
            return Err(format!(
                "tidy asks git for the list of files: {}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        let paths = String::from_utf8_lossy(&output.stdout);
        let files = paths.split_terminator('\0').filter_map(|path| {
            let bytes = fs::read(root.join(path)).ok()?; // deleted, but git has not been told
            Some((
                path.to_owned(),
                String::from_utf8_lossy(&bytes).into_owned(),
            ))
        });
        Ok(Self::new(files.collect()))
    }

    /// A house of these files.
    pub(super) fn new(texts: BTreeMap<String, String>) -> Self {
        let rust = texts.iter().filter(|(path, _)| path.ends_with(".rs"));
        let mut sources: BTreeMap<String, Source> = rust
            .map(|(path, text)| (path.clone(), Source::parse(text)))
            .collect();
        for path in module_tree::test_files(&texts, &sources) {
            if let Some(source) = sources.get_mut(&path) {
                source.production.clear();
            }
        }
        Self { texts, sources }
    }

    /// A made-up house for a rule's own test.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        Self::new(
            files
                .iter()
                .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
                .collect(),
        )
    }

    /// Every path, in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// A file's text.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Every file with its text.
    pub(super) fn texts(&self) -> &BTreeMap<String, String> {
        &self.texts
    }

    /// Every Rust file, parsed as far as the rules need.
    pub(super) fn sources(&self) -> &BTreeMap<String, Source> {
        &self.sources
    }

    /// The library's Rust files, by their path inside its `src`.
    pub(super) fn library(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.sources
            .iter()
            .filter_map(|(path, source)| Some((path.strip_prefix(LIBRARY)?, source)))
    }
}
