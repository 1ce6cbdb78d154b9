//! Tidy: the rules of the house that a program can check, so that no reviewer has to.
//!
//! A rule is a pure function of the [`House`], that is of paths and texts. Each has a test on a small made-up
//! house that shows it bites.

mod adapters;
mod columns;
mod house;
mod imports;
mod layers;
mod manners;
mod migrations;
mod module_tree;
mod source;

use std::fmt;
use std::path::Path;

use house::House;

use crate::pages;
use crate::workspace::Workspace;

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    says: String,
}

impl Finding {
    fn new(path: &str, line: usize, says: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            says: says.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.says),
            line => write!(f, "{}:{line}: {}", self.path, self.says),
        }
    }
}

type Rule = fn(&House) -> Vec<Finding>;

const RULES: &[Rule] = &[
    layers::every_file_has_a_layer,
    layers::imports_go_down,
    layers::only_adapters_name_a_driver,
    adapters::every_adapter_passes_its_suite,
    migrations::released_migrations_never_change,
    columns::the_page_of_the_table_is_as_the_migrations,
    module_tree::every_file_is_reached,
    manners::no_file_is_too_long,
    manners::nothing_is_unwrapped,
    manners::features_are_chosen_in_few_places,
    manners::modules_are_named_after_concepts,
    manners::the_root_is_small,
    manners::the_readme_names_the_two_commands,
    manners::the_map_names_what_is_there,
];

/// Checks the files under `root` against every rule.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let house = House::read(root)?;
    let mut findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&house)).collect();
    findings.sort();
    if findings.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = findings
        .iter()
        .map(|finding| format!("\n  {finding}"))
        .collect();
    Err(format!(
        "tidy has {} to say:{}",
        findings.len(),
        lines.concat()
    ))
}

/// Checks the files, and then the pages for which the program must be built.
pub(crate) fn all(workspace: &mut Workspace) -> Result<(), String> {
    run(workspace.root())?;
    pages::check(workspace)
}

/// Records the migrations that are new since the last time, and writes anew what the book has from the code.
pub(crate) fn bless(workspace: &mut Workspace) -> Result<(), String> {
    let root = workspace.root().to_owned();
    let house = House::read(&root)?;
    migrations::bless(&house, &root)?;
    columns::bless(&house, &root)?;
    pages::bless(workspace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_house_is_tidy() {
        let workspace = Workspace::open().expect("cargo runs this test");
        run(workspace.root()).unwrap_or_else(|findings| panic!("{findings}"));
    }
}
