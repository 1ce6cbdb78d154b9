//! `schema check`: which change of a schema breaks whom.

use std::path::PathBuf;
use std::process::ExitCode;

use bento_outbox::{BrokenSide, CompatibilityMode, SchemaBreak, schema_breaks_at};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::catalogue::{Catalogue, Pair};
use super::version::Version;
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
/// Where every reader has an upcaster from a version, a new one may break with it: --upcast says so; the
/// breaks are shown and do not count.
///
/// Where there is no OLD yet, or no schema in it, nothing is compared.
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
  bento-outbox schema check /tmp/main/schemas schemas --retire order.placed@1
  bento-outbox schema check /tmp/main/schemas schemas --upcast order.placed@3")]
pub(crate) struct Check {
    /// The schemas as they were: a file or a folder
    old: PathBuf,
    /// The schemas as they shall be: a file or a folder
    new: PathBuf,
    /// Which way the change must be compatible
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// This version is gone on purpose, as order.placed@1; may be given several times
    #[arg(long, value_name = "TYPE@VERSION", value_parser = Version::parse)]
    retire: Vec<Version>,
    /// Every reader has an upcaster from this version on, as order.placed@3: what reads its data
    /// otherwise may break; may be given several times
    #[arg(long, value_name = "TYPE@VERSION", value_parser = Version::parse)]
    upcast: Vec<Version>,
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
    /// Breaks that an upcaster covers.
    upcast: Vec<Named>,
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
        let new = Catalogue::read(&self.new)?;
        new.must_be_described()?;
        let Some(old) = Catalogue::read_if_there(&self.old)? else {
            Report::empty(mode).print(self.json)?;
            let schemas = terminal::counted(new.schemas() as u64, "schema");
            terminal::say(format!(
                "nothing to compare with: {} has no schemas, and NEW has {schemas}",
                self.old.display()
            ));
            return Ok(ExitCode::SUCCESS);
        };
        let mut comparisons = old.comparisons(&new, &self.retire)?;
        let (mut breaks, mut upcast) = (Vec::new(), Vec::new());
        for pair in &comparisons.pairs {
            // An upcaster goes from one version to another: it helps nobody where one version changed.
            let is_upcast = pair.name != pair.old_name
                && self.upcast.iter().any(|version| version.is(&pair.old_name));
            for found in schema_breaks_at(pair.old, pair.new, mode) {
                let is_covered = is_upcast && found.breaks == BrokenSide::NewReaders;
                let named = Named {
                    schema: pair.name.clone(),
                    found,
                };
                let list = if is_covered { &mut upcast } else { &mut breaks };
                list.push(named);
            }
        }
        for version in &self.upcast {
            let is_old = |pair: &Pair<'_>| pair.name != pair.old_name && version.is(&pair.old_name);
            if !comparisons.pairs.iter().any(is_old) {
                comparisons.notes.push(format!(
                    "--upcast {version}: no new version is compared with that one, so the flag is not needed"
                ));
            }
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
            upcast,
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
    /// Of a comparison with nothing.
    fn empty(mode: CompatibilityMode) -> Self {
        Self {
            mode,
            compatible: true,
            compared: 0,
            retired: Vec::new(),
            breaks: Vec::new(),
            upcast: Vec::new(),
        }
    }

    fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            let json = serde_json::to_string(self).unwrap_or_default();
            return terminal::print(|out| writeln!(out, "{json}"));
        }
        terminal::print(|out| {
            self.breaks.iter().try_for_each(|named| {
                let line = format!("{}: {}", named.schema, named.found);
                writeln!(out, "{}", terminal::visible(&line))
            })?;
            self.upcast.iter().try_for_each(|named| {
                let line = format!("{}: {} (upcast)", named.schema, named.found);
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
        let covered = match self.upcast.len() as u64 {
            0 => String::new(),
            upcast => format!(", {} upcast", terminal::counted(upcast, "break")),
        };
        terminal::say(format!(
            "{compared} compared, {}: {found}{covered}",
            self.mode
        ));
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
