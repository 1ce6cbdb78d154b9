//! `audit`: who changed what, and when.

use std::process::ExitCode;

use bento_outbox::Audited;
use clap::{Args, value_parser};
use serde_json::Value;

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
    /// One JSON object a line, with all of the ids
    #[arg(long)]
    json: bool,
}

/// How many ids or names of an act are shown.
const NAMED_MAX: usize = 3;

const HEADER: [&str; 7] = ["number", "at", "by", "verb", "changed", "what", "note"];

impl Audit {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
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
        terminal::visible(&shortened(&act.what)),
        act.note
            .as_deref()
            .map_or_else(|| "-".into(), terminal::visible),
    ]
}

/// Of many ids or names the first few are enough for a person: `{"ids":["…","…","…"]} and 497 more`.
fn shortened(what: &Value) -> String {
    let mut shown = what.clone();
    let mut left_out = 0;
    for (_, list) in shown.as_object_mut().into_iter().flatten() {
        if let Value::Array(list) = list {
            left_out += list.len() - list.len().min(NAMED_MAX);
            list.truncate(NAMED_MAX);
        }
    }
    if left_out == 0 {
        return shown.to_string();
    }
    let uncounted = shown.as_object_mut().and_then(|it| it.remove("more"));
    let more = left_out as u64 + uncounted.and_then(|more| more.as_u64()).unwrap_or(0);
    format!("{shown} and {more} more")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_many_ids_a_few_are_named() {
        let few = json!({ "ids": ["a", "b", "c"] });
        assert_eq!(shortened(&few), few.to_string());
        let many = json!({ "ids": ["a", "b", "c", "d", "e"], "more": 7 });
        assert_eq!(shortened(&many), r#"{"ids":["a","b","c"]} and 9 more"#);
        let filter = json!({ "type": "order.placed", "ids": vec!["a"; 10] });
        assert!(shortened(&filter).ends_with(" and 7 more"));
    }
}
