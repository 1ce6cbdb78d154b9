//! `schema check`: which change of a schema breaks whom.

use std::path::PathBuf;
use std::process::ExitCode;

use bento_outbox::{CompatibilityMode, SchemaBreak, schema_breaks_at};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::catalogue::Catalogue;
use super::retired::Retired;
use crate::failure::Result;
use crate::terminal;

/// Tell which change of a schema breaks whom
///
/// OLD and NEW are two files or two folders: of JSON Schemas (draft 2020-12, and of the older drafts
/// what is alike), or of AsyncAPI 3 documents. In folders and AsyncAPI documents what has the same name
/// is compared, and what is new in NEW as NAME.v4… with the version before it; what is gone breaks new
/// readers of old data, and an AsyncAPI message that left its topic breaks old readers. Where AsyncAPI
/// documents lie beside schemas, only their topics are compared.
///
/// A version of which no data is left anywhere, in no outbox, stream or archive, may go: --retire says so.
///
/// A writer is taken to write the fields that its schema names, and others only where the schema says
/// which; so a new optional field breaks nobody but readers that refuse fields which they do not know.
/// What cannot be compared counts as a break. Each break is a line. Exits with 1 when there is one.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox schema check order.placed.v3.schema.json \\
    order.placed.v4.schema.json
  git worktree add --detach /tmp/main main
  bento-outbox schema check /tmp/main/schemas schemas --mode full
  bento-outbox schema check /tmp/main/schemas schemas --retire order.placed@1")]
pub(crate) struct Check {
    /// The schemas as they were: a file or a folder
    old: PathBuf,
    /// The schemas as they shall be: a file or a folder
    new: PathBuf,
    /// Which way the change must be compatible
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// This version is gone on purpose, as order.placed@1; may be given several times
    #[arg(long, value_name = "TYPE@VERSION", value_parser = Retired::parse)]
    retire: Vec<Retired>,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Mode {
    /// New readers read old data
    #[default]
    Backward,
    /// Old readers read new data
    Forward,
    /// Both
    Full,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    mode: CompatibilityMode,
    compatible: bool,
    compared: usize,
    /// The versions that are gone on purpose.
    retired: Vec<String>,
    breaks: Vec<Named>,
}

/// A break and the schema in which it is.
#[derive(Serialize)]
struct Named {
    schema: String,
    #[serde(flatten)]
    found: SchemaBreak,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mode = CompatibilityMode::from(self.mode);
        let (old, new) = (Catalogue::read(&self.old)?, Catalogue::read(&self.new)?);
        let comparisons = old.comparisons(&new, &self.retire)?;
        let mut breaks = Vec::new();
        for pair in &comparisons.pairs {
            let found = schema_breaks_at(pair.old, pair.new, mode);
            breaks.extend(found.into_iter().map(|found| Named {
                schema: pair.name.clone(),
                found,
            }));
        }
        let others = comparisons
            .others
            .into_iter()
            .filter(|(_, found)| found.concerns(mode));
        breaks.extend(others.map(|(schema, found)| Named {
            schema,
            found: found.said(),
        }));
        let report = Report {
            mode,
            compatible: breaks.is_empty(),
            compared: comparisons.pairs.len(),
            retired: comparisons.retired,
            breaks,
        };
        report.print(self.json)?;
        comparisons.notes.iter().for_each(terminal::say);
        Ok(if report.compatible {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Report {
    fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            let json = serde_json::to_string(self).unwrap_or_default();
            return terminal::print(|out| writeln!(out, "{json}"));
        }
        terminal::print(|out| {
            self.breaks.iter().try_for_each(|named| {
                let line = format!("{}: {}", named.schema, named.found);
                writeln!(out, "{}", terminal::visible(&line))
            })
        })?;
        for version in &self.retired {
            terminal::say(format!("{version} is gone on purpose"));
        }
        let compared = terminal::counted(self.compared as u64, "schema");
        let found = match self.breaks.len() as u64 {
            0 => "compatible".into(),
            breaks => terminal::counted(breaks, "break"),
        };
        terminal::say(format!("{compared} compared, {}: {found}", self.mode));
        Ok(())
    }
}

impl From<Mode> for CompatibilityMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Backward => Self::Backward,
            Mode::Forward => Self::Forward,
            Mode::Full => Self::Full,
        }
    }
}
