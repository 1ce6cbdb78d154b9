//! `audit`: who changed what, and when.

use std::process::ExitCode;

use bento_outbox::Audited;
use clap::{Args, value_parser};

use super::listing::Listing;
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
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..))]
    limit: u32,
    /// Only those before the one with this number
    #[arg(long, value_name = "NUMBER")]
    before: Option<i64>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

const HEADER: [&str; 7] = ["number", "at", "by", "verb", "changed", "what", "note"];

impl Audit {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let store = connect::database(&settings).await?.store();
        store.check().await?;
        let mut list = Listing::of(HEADER, self.json);
        let mut before = self.before;
        let next = async |limit| {
            let page = store.acts(before, limit).await?;
            before = page.last().map(|act| act.number).or(before);
            Ok(page)
        };
        let json = |act: &Audited| serde_json::to_string(act).unwrap_or_default();
        list.fill(self.limit as usize, next, json, cells).await?;
        if list.listed() == 0 {
            terminal::say(match self.before {
                None => "no operator has changed anything",
                Some(_) => "no operator had changed anything before that",
            });
        }
        list.end()?;
        Ok(ExitCode::SUCCESS)
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
