//! `config`: the settings in force.

use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use serde::ser::{Serialize, SerializeMap as _, SerializeStruct as _, Serializer};

use crate::failure::Result;
use crate::settings::{Given, Setting, Settings};
use crate::terminal;

/// Show the settings in force, and where each came from
///
/// What a setting means stands beside it. Secrets, and passwords in URLs, are hidden.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox config
  bento-outbox config --json | jq -r .bus_url.origin")]
pub(crate) struct Config {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(crate) fn run(self, settings: &Settings) -> Result<ExitCode> {
        if self.json {
            let json = serde_json::to_string(&InForce(settings)).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        } else if terminal::stdout_is_terminal() {
            let table = table(settings);
            terminal::print(|out| writeln!(out, "{table}"))?;
        } else {
            terminal::print(|out| {
                settings.all().try_for_each(|(setting, given)| {
                    writeln!(out, "{}\t{}\t{}", setting.name, shown(given), origin(given))
                })
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(settings: &Settings) -> Table {
    let mut table = terminal::table(["setting", "value", "from", "meaning"]);
    for (setting, given) in settings.all() {
        table.add_row([setting.name, &shown(given), &origin(given), setting.meaning]);
    }
    table
}

/// The value as it may be shown; a dash where there is none.
fn shown(given: Option<&Given>) -> String {
    given.map_or_else(|| "-".into(), |given| given.setting.kind.shown(&given.text))
}

fn origin(given: Option<&Given>) -> String {
    given.map_or_else(|| "default".into(), |given| given.origin.to_string())
}

/// Every setting by its name, in the order of the table.
struct InForce<'a>(&'a Settings);

impl Serialize for InForce<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (setting, given) in self.0.all() {
            map.serialize_entry(setting.name, &One { setting, given })?;
        }
        map.end()
    }
}

/// `{"value":"sqlite://outbox.db","origin":"default","from":"default","meaning":"…"}`, the value as
/// it would be written in the file; null where the setting is unset.
struct One<'a> {
    setting: &'static Setting,
    given: Option<&'a Given>,
}

impl Serialize for One<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut one = serializer.serialize_struct("Setting", 4)?;
        one.serialize_field(
            "value",
            &self.given.map(|given| self.setting.kind.shown(&given.text)),
        )?;
        one.serialize_field(
            "origin",
            self.given.map_or("default", |given| given.origin.word()),
        )?;
        one.serialize_field("from", &origin(self.given))?;
        one.serialize_field("meaning", self.setting.meaning)?;
        one.end()
    }
}
