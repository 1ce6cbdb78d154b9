//! `reference`: the parts of the book that are made from the code. Hidden: `cargo x tidy` asks for them.

use std::fmt::Write as _;
use std::process::ExitCode;

use bento_outbox::telemetry::{self, Kind, Metric};
use clap::{Args, Command, ValueEnum};

use crate::failure::Result;
use crate::settings::{SETTINGS, Setting, Support};
use crate::terminal;

/// Print a part of the book that is made from the code
#[derive(Args)]
#[command(
    hide = true,
    after_help = "Example:
  bento-outbox reference settings"
)]
pub(crate) struct Reference {
    /// Which part
    part: Part,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Settings,
    Commands,
    Metrics,
}

impl Reference {
    pub(crate) fn run(self, cli: &Command) -> Result<ExitCode> {
        let part = match self.part {
            Part::Settings => settings(),
            Part::Commands => commands(cli),
            Part::Metrics => metrics(),
        };
        terminal::print(|out| out.write_all(part.as_bytes()))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn settings() -> String {
    let mut page = String::from("| name | default | meaning |\n| --- | --- | --- |\n");
    for Setting {
        name,
        default,
        meaning,
        support,
        ..
    } in SETTINGS
    {
        let default = default.map_or("–".to_string(), |value| format!("`{value}`"));
        let remark = match support {
            Support::Full => "",
            Support::Refused => "; not built yet, and so refused rather than ignored",
        };
        page += &format!("| `{name}` | {default} | {}{remark} |\n", in_cell(meaning));
    }
    page
}

fn metrics() -> String {
    let mut page =
        String::from("| metric | kind | labels | what it says |\n| --- | --- | --- | --- |\n");
    for Metric {
        name,
        kind,
        labels,
        meaning,
    } in telemetry::METRICS
    {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = match labels.is_empty() {
            true => "–".to_string(),
            false => labels.join(", "),
        };
        page += &format!("| `{name}` | {kind} | {labels} | {} |\n", in_cell(meaning));
    }
    page
}

/// Every command with its help, as `--help` shows it.
fn commands(cli: &Command) -> String {
    // As wide as the page, and not as the terminal of who asks.
    let mut cli = cli.clone().term_width(100);
    cli.build();
    let mut page = String::new();
    write_command(&mut page, &mut cli, 2);
    page.trim_end().to_string() + "\n"
}

fn write_command(page: &mut String, command: &mut Command, level: usize) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let name = command.get_bin_name().unwrap_or("bento-outbox").to_string();
    let heading = "#".repeat(level.min(4));
    let _ = write!(
        page,
        "{heading} `{name}`\n\n```text\n{}\n```\n\n",
        lines.join("\n").trim()
    );
    let below = command
        .get_subcommands_mut()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help");
    below.for_each(|command| write_command(page, command, level + 1));
}

/// What would end a cell of a table.
fn in_cell(text: &str) -> String {
    text.replace('|', "\\|")
}
