//! `audit`: who changed what, and when.

use std::process::ExitCode;

use bento_outbox::Audited;
use clap::Args;

use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal;

/// Show what operators did, newest first
///
/// Every change by an operator (dead letters retried or discarded, a pause, its end, a replay) is
/// written down in the same transaction, and kept for ever. Who did it is what the program or the API
/// knew of them: a note for colleagues, and no proof.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox audit
  bento-outbox audit --json --limit 1000 | jq 'select(.verb == \"discard\")'
  bento-outbox audit --before 4711")]
pub(crate) struct Audit {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    /// Only those before the one with this number
    #[arg(long, value_name = "NUMBER")]
    before: Option<i64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Acts read at once.
const PAGE: u32 = 500;

const HEADER: [&str; 7] = ["number", "at", "by", "verb", "changed", "what", "note"];

impl Audit {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let store = connect::database(&settings).await?.store();
        store.check().await?;
        let for_a_person = !self.json && terminal::stdout_is_terminal();
        let mut table = terminal::table(HEADER);
        let (mut before, mut left) = (self.before, self.limit);
        let mut is_first = true;
        while left > 0 {
            let page = store.acts(before, left.min(PAGE)).await?;
            let Some(last) = page.last() else { break };
            before = Some(last.number);
            left -= u32::try_from(page.len()).unwrap_or(left).min(left);
            if for_a_person {
                page.iter().for_each(|act| {
                    table.add_row(cells(act));
                });
            } else if !self.print(&page, is_first)? {
                return Ok(ExitCode::SUCCESS);
            }
            is_first = false;
        }
        match (is_first, for_a_person) {
            (true, _) => terminal::say("no operator has changed anything"),
            (false, true) => terminal::print(|out| writeln!(out, "{table}"))?,
            (false, false) => {}
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Prints lines; false when nobody reads them any more.
    fn print(&self, page: &[Audited], is_first: bool) -> Result<bool> {
        terminal::printed(|out| {
            if !self.json && is_first {
                writeln!(out, "{}", HEADER.join("\t"))?;
            }
            page.iter().try_for_each(|act| match self.json {
                true => writeln!(out, "{}", serde_json::to_string(act).unwrap_or_default()),
                false => writeln!(out, "{}", cells(act).join("\t")),
            })
        })
    }
}

fn cells(kept: &Audited) -> [String; 7] {
    let Audited { number, at, act } = kept;
    [
        number.to_string(),
        terminal::moment(*at),
        terminal::visible(&act.by),
        terminal::visible(&act.verb),
        act.changed.to_string(),
        terminal::visible(&act.what.to_string()),
        act.note
            .as_deref()
            .map_or_else(|| "-".into(), terminal::visible),
    ]
}
