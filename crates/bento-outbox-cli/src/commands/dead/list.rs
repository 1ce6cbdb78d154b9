//! `dead list`: which dead letters there are.

use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{DeadLetters, OutboxRecord, Store};
use clap::Args;

use super::PAGE;
use super::choice::Choice;
use super::column;
use crate::failure::Result;
use crate::terminal;

/// List dead letters, in the order in which they were written
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox dead list --type order.placed --since 7d
  bento-outbox dead list --json --payload > letters.jsonl
  bento-outbox dead list --check > /dev/null || echo 'somebody must look at them'")]
pub(super) struct List {
    #[command(flatten)]
    choice: Choice,
    /// At most so many [default: 100 on a terminal, otherwise all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
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
    "error",
];

impl List {
    pub(super) async fn run(self, store: &Arc<dyn Store>) -> Result<ExitCode> {
        let for_a_person = !self.json && terminal::stdout_is_terminal();
        let limit = match (self.limit, for_a_person) {
            (Some(limit), _) => limit,
            (None, true) => SHOWN_MAX,
            (None, false) => usize::MAX,
        };
        let filter = self.choice.filter()?;
        let mut letters = DeadLetters::of(store.as_ref(), &filter).with_payloads(self.payload);
        let (mut listed, mut more) = (0, false);
        let mut table = terminal::table(HEADER);
        loop {
            let mut page = letters.next_page(PAGE).await?;
            if page.is_empty() {
                break;
            }
            more = page.len() > limit - listed;
            page.truncate(limit - listed);
            if for_a_person {
                page.iter().for_each(|letter| {
                    table.add_row(cells(letter));
                });
            } else if !self.print(&page, listed == 0)? {
                break;
            }
            listed += page.len();
            // Whether there are more, the next page tells; of a whole page nobody is shown none.
            if more || page.len() < PAGE as usize {
                break;
            }
        }
        match (listed, for_a_person) {
            (0, _) if !more && self.choice.is_everything() => {
                terminal::say("there are no dead letters");
            }
            (0, _) if !more => terminal::say("no dead letter matches"),
            (_, true) => terminal::print(|out| writeln!(out, "{table}"))?,
            _ => {}
        }
        if more && self.limit.is_none() {
            terminal::say(
                "and more; filters (see --help) or --limit show others, `status` tells how many there are",
            );
        }
        Ok(match self.check && (listed > 0 || more) {
            true => ExitCode::from(3),
            false => ExitCode::SUCCESS,
        })
    }

    /// Lines for a script; false when nobody reads them any more.
    fn print(&self, page: &[OutboxRecord], first: bool) -> Result<bool> {
        terminal::printed(|out| {
            if first && !self.json {
                writeln!(out, "{}", HEADER.join("\t"))?;
            }
            page.iter().try_for_each(|letter| match self.json {
                true => writeln!(out, "{}", column::json_line(letter, self.payload)),
                false => writeln!(out, "{}", cells(letter).join("\t")),
            })
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
