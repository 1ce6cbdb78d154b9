//! `config`: the settings in force.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use comfy_table::Table;
use serde::ser::{Serialize, SerializeMap as _, SerializeStruct as _, Serializer};

use crate::connect;
use crate::failure::Result;
use crate::settings::{self, Given, Origin, Route, Setting, Settings};
use crate::terminal;

/// Show the settings in force, and where each came from
///
/// What a setting means stands beside it. Secrets, and passwords in URLs, are hidden. Exits with 2 where
/// `run` would refuse to start with them.
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
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        if self.json {
            let json = serde_json::to_string(&InForce(&settings)).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        } else if terminal::stdout_is_terminal() {
            let table = table(&settings);
            terminal::print(|out| writeln!(out, "{table}"))?;
        } else {
            terminal::print(|out| {
                settings.all().try_for_each(|(setting, given)| {
                    writeln!(out, "{}\t{}\t{}", setting.name, shown(given), origin(given))
                })?;
                settings.routes.iter().try_for_each(|route| {
                    let (name, value) = (named(route), in_words(route));
                    writeln!(out, "{name}\t{value}\t{}", route.origin)
                })
            })?;
        }
        // They are shown all the same, to see where it comes from.
        settings.refuse_unsupported()?;
        connect::check(&settings).await?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(settings: &Settings) -> Table {
    let mut table = terminal::table(["setting", "value", "from", "meaning"]);
    for (setting, given) in settings.all() {
        table.add_row([setting.name, &shown(given), &origin(given), setting.meaning]);
    }
    for route in &settings.routes {
        let (name, origin) = (named(route), route.origin.to_string());
        table.add_row([&name, &in_words(route), &origin, ROUTES]);
    }
    table
}

/// What the routes mean.
const ROUTES: &str = "events that go to another topic or bus; the first that matches decides";

fn named(route: &Route) -> String {
    format!("routes {}", route.number)
}

/// `type order.*, tenant acme: topic orders, bus nats://host`.
fn in_words(route: &Route) -> String {
    let words = |keys: &[&str]| -> String {
        let of_route = written(route).into_iter();
        let words: Vec<String> = of_route
            .filter(|(key, _)| keys.contains(key))
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        words.join(", ")
    };
    format!(
        "{}: {}",
        words(&["type", "tenant"]),
        words(&["topic", "bus"])
    )
}

/// The keys of a route with their values as they may be shown.
fn written(route: &Route) -> Vec<(&'static str, String)> {
    let mut keys = vec![
        ("type", route.events.event_type.to_string()),
        ("tenant", route.events.tenant.to_string()),
    ];
    keys.extend(route.topic.iter().map(|topic| ("topic", topic.to_string())));
    keys.extend(route.bus().map(|url| ("bus", settings::masked(url))));
    keys
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
        map.serialize_entry("routes", &Routes(&self.0.routes))?;
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

/// As any setting; the value is a list of objects.
struct Routes<'a>(&'a [Route]);

impl Serialize for Routes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: Vec<BTreeMap<_, _>> = self
            .0
            .iter()
            .map(|route| written(route).into_iter().collect())
            .collect();
        let first = self
            .0
            .first()
            .map_or(&Origin::Default, |route| &route.origin);
        let mut routes = serializer.serialize_struct("Setting", 4)?;
        routes.serialize_field("value", &value)?;
        routes.serialize_field("origin", first.word())?;
        routes.serialize_field("from", &first.to_string())?;
        routes.serialize_field("meaning", ROUTES)?;
        routes.end()
    }
}
