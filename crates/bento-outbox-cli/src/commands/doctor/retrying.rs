//! Why events are tried again and again: what no other command says before they are dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use bento_outbox::{Filter, PAGE_MAX, Page, Status, Store};

use super::finding::{Findings, State};
use crate::terminal;

/// Reasons that are named, of the oldest events that are not sent.
const REASONS_NAMED_MAX: usize = 5;

pub(super) async fn check(store: &Arc<dyn Store>, findings: &mut Findings<'_>) {
    let filter = Filter {
        status: Some(Status::New),
        ..Filter::default()
    };
    let page = Page {
        after: None,
        limit: PAGE_MAX,
        newest_first: false,
        payload: false,
    };
    let events = match store.events(&filter, &page).await {
        Ok(events) => events,
        Err(error) => return findings.add("retrying", State::Broken, error.report(), ""),
    };
    let mut reasons: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for event in &events {
        if let Some(reason) = &event.delivery.error_message {
            let (count, _) = reasons
                .entry(terminal::visible(reason))
                .or_insert_with(|| (0, event.id.to_string()));
            *count += 1;
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for (reason, (count, first)) in reasons.iter().take(REASONS_NAMED_MAX) {
        let events = super::counted(*count as u64, "event");
        let found = format!("{events} tried again, the oldest {first}: {reason}");
        let advice = format!("`bento-outbox why {first}` says more of it");
        findings.add("retrying", State::Warning, found, &advice);
    }
    if reasons.len() > REASONS_NAMED_MAX {
        let found = "and more reasons".to_string();
        let advice =
            "`bento-outbox events list --status NEW` has the events, and `why` says it of each";
        findings.add("retrying", State::Note, found, advice);
    }
}
