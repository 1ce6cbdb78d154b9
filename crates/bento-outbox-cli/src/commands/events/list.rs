//! `events list`: which events there are.

use std::process::ExitCode;

use bento_outbox::{Filter, OutboxRecord, Page, Status, Store};
use clap::{Args, value_parser};

use super::choice::Choice;
use super::column;
use super::listing::Listing;
use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal;

/// List events, the newest first
///
/// Those that are not sent are found quickly, and so is what was written lately; the search through a long
/// history of sent ones takes its time.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox events list --status NEW --tenant acme
  bento-outbox events list --aggregate 7 --since 7d --json --payload
  bento-outbox events list --type order.placed --before 4711")]
pub(super) struct List {
    #[command(flatten)]
    choice: Choice,
    /// In this state of delivery: NEW, SENT or ERR
    #[arg(long, value_name = "STATUS", value_parser = status)]
    status: Option<Status>,
    /// Only those before this place in the outbox, where a list ended before
    #[arg(long, value_name = "SEQ")]
    before: Option<i64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
    limit: u32,
    /// One JSON object a line, with the columns of the view outbox_events
    #[arg(long)]
    json: bool,
    /// With the payloads
    #[arg(long, requires = "json")]
    payload: bool,
}

const HEADER: [&str; 7] = [
    "id",
    "seq",
    "tenant",
    "type",
    "aggregate",
    "written",
    "status",
];

impl List {
    pub(super) async fn run(self, settings: &Settings, store: &dyn Store) -> Result<ExitCode> {
        let filter = Filter {
            status: self.status,
            ..self.choice.filter()?
        };
        let mut list = Listing::of_events(HEADER, self.json);
        let mut before = self.before;
        let next = async |limit| {
            let page = Page {
                after: before,
                limit,
                newest_first: true,
                payload: self.payload,
            };
            let page = store.events(&filter, &page).await?;
            before = page.last().map(|event| event.seq).or(before);
            Ok(page)
        };
        let json = |event: &OutboxRecord| column::json_line(event, self.payload);
        let more = list.fill(self.limit as usize, next, json, cells).await?;
        if list.listed() == 0 {
            terminal::say("no event matches: there is none, or it is kept no longer (retention)");
        }
        list.end()?;
        if let Some(last) = more {
            let status = self.status.map(|status| format!(" --status {status}"));
            terminal::say(settings.advice(&format!(
                "and more: `bento-outbox events list{}{} --before {}` goes on",
                self.choice,
                status.unwrap_or_default(),
                last.seq
            )));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// In capitals or not.
fn status(word: &str) -> Result<Status, String> {
    let status = word.to_ascii_uppercase().parse();
    status.map_err(|_| "a status is NEW, SENT or ERR".into())
}

fn cells(event: &OutboxRecord) -> [String; 7] {
    [
        event.id.to_string(),
        event.seq.to_string(),
        event.tenant.to_string(),
        terminal::visible(&event.event_type),
        column::aggregate(event),
        terminal::moment(event.created_at),
        event.delivery.status.to_string(),
    ]
}
