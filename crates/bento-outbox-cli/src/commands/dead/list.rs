//! `dead list`: which dead letters there are.

use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{DeadLetters, OutboxRecord, Store};
use clap::{Args, value_parser};

use super::choice::Choice;
use super::column;
use super::listing::{self, Listing};
use crate::failure::Result;
use crate::terminal;

/// List dead letters, in the order in which they were written
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox dead list --type order.placed --since 7d
  bento-outbox dead list --json --payload > letters.jsonl
  bento-outbox dead list --check > /dev/null || echo 'somebody must look'")]
pub(super) struct List {
    #[command(flatten)]
    choice: Choice,
    /// At most so many [default: 100 on a terminal, otherwise all]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// One JSON object a line, with the columns of the view outbox_events
    #[arg(long)]
    json: bool,
    /// With the payloads
    #[arg(long, requires = "json")]
    payload: bool,
    /// Exit with 3 when there are any
    #[arg(long)]
    check: bool,
}

/// How many a person is shown unless more are asked for.
const SHOWN_MAX: usize = 100;

const HEADER: [&str; 7] = [
    "id",
    "tenant",
    "type",
    "aggregate",
    "written",
    "attempts",
    listing::ERROR,
];

impl List {
    pub(super) async fn run(self, store: &Arc<dyn Store>) -> Result<ExitCode> {
        let filter = self.choice.filter()?;
        let mut letters = DeadLetters::of(store.as_ref(), &filter).with_payloads(self.payload);
        let mut list = Listing::of_events(HEADER, self.json);
        let limit = match (self.limit, list.is_for_a_person()) {
            (Some(limit), _) => limit as usize,
            (None, true) => SHOWN_MAX,
            (None, false) => usize::MAX,
        };
        let next = async |limit| Ok(letters.next_page(limit).await?);
        let json = |letter: &OutboxRecord| column::json_line(letter, self.payload);
        let more = list.fill(limit, next, json, cells).await?;
        let listed = list.listed();
        if listed == 0 {
            terminal::say(match self.choice.is_everything() {
                true => "there are no dead letters",
                false => "no dead letter matches",
            });
        }
        list.end()?;
        if more.is_some() && self.limit.is_none() {
            terminal::say(
                "and more; filters (see --help) or --limit show others, `status` tells how many there are",
            );
        }
        Ok(match self.check && listed > 0 {
            true => ExitCode::from(3),
            false => ExitCode::SUCCESS,
        })
    }
}

fn cells(letter: &OutboxRecord) -> [String; 7] {
    [
        letter.id.to_string(),
        letter.tenant.to_string(),
        letter.event_type.clone(),
        column::aggregate(letter),
        terminal::moment(letter.created_at),
        letter.delivery.retry_cnt.to_string(),
        terminal::visible(letter.delivery.error_message.as_deref().unwrap_or("-")),
    ]
}
