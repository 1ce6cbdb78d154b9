//! Why events are tried again and again: what no other command says before they are dead letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use bento_outbox::{Filter, OutboxRecord, PAGE_MAX, Page, Pause, Status, Store, Timestamp};

use super::finding::{Findings, State};
use crate::settings::Settings;
use crate::{connect, terminal};

/// Reasons that are named, of the oldest events that are not sent.
const REASONS_NAMED_MAX: usize = 5;

/// An event that is not to blame may be tried again for so long before something is broken.
const STUCK_SECONDS_MIN: u64 = 60;

/// What to do about events that are put off, through no fault of their own.
pub(super) const BRING_IT_BACK: &str =
    "make room there or bring it back; they go out by themselves";

/// `stands_still`: nothing was sent of late, although a relay runs.
pub(super) async fn check(
    settings: &Settings,
    store: &Arc<dyn Store>,
    stands_still: bool,
    findings: &mut Findings<'_>,
) {
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
    let (mut events, pauses) = match (store.events(&filter, &page).await, store.pauses().await) {
        (Ok(events), Ok(pauses)) => (events, pauses),
        (Err(error), _) | (_, Err(error)) => {
            return findings.add("retrying", State::Broken, error.report(), super::SEE_TO_IT);
        }
    };
    // Nobody has tried those that were put aside.
    let asides: Vec<String> = pauses
        .iter()
        .map(|pause| Pause::aside(&pause.name))
        .collect();
    let is_aside = |said: &String| asides.contains(said);
    events.retain(|event| !event.delivery.error_message.as_ref().is_some_and(is_aside));
    let state = match stands_still && are_stuck(&events) {
        true => State::Broken,
        false => State::Warning,
    };
    // Only it knows which event goes where; a bus that cannot be used is a finding of its own.
    let bus = connect::bus(settings).ok();
    let put_off_by = |event: &OutboxRecord| match (event.delivery.retry_cnt, &bus) {
        (0, Some(bus)) => Some(bus.destination(event).unwrap_or("the bus").to_owned()),
        (0, None) => Some("the bus".to_owned()),
        _ => None,
    };
    let mut reasons: BTreeMap<(String, Option<String>), (usize, String)> = BTreeMap::new();
    for event in &events {
        if let Some(reason) = &event.delivery.error_message {
            let (count, _) = reasons
                .entry((terminal::visible(reason), put_off_by(event)))
                .or_insert_with(|| (0, event.id.to_string()));
            *count += 1;
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for ((reason, put_off_by), (count, first)) in reasons.iter().take(REASONS_NAMED_MAX) {
        let events = super::counted(*count as u64, "event");
        let (found, advice) = match put_off_by {
            Some(bus) => (
                format!("{events} that {bus} does not take now, the oldest {first}: {reason}"),
                BRING_IT_BACK.to_owned(),
            ),
            None => (
                format!("{events} tried again, the oldest {first}: {reason}"),
                format!("`bento-outbox why {first}` says more of it"),
            ),
        };
        let advice = match state {
            State::Broken => format!("nothing goes out: {advice}"),
            _ => advice,
        };
        findings.add("retrying", state, found, &advice);
    }
    if reasons.len() > REASONS_NAMED_MAX {
        let found = "and more reasons".to_string();
        let advice =
            "`bento-outbox events list --status NEW` has the events, and `why` says it of each";
        findings.add("retrying", State::Note, found, advice);
    }
}

/// Whether each of the oldest events that are due was refused through no fault of its own, and for long.
fn are_stuck(events: &[OutboxRecord]) -> bool {
    let now = Timestamp::now();
    let due: Vec<_> = events
        .iter()
        .filter(|event| event.available_at <= now)
        .collect();
    let refused = |event: &&OutboxRecord| {
        event.delivery.error_message.is_some() && event.delivery.retry_cnt == 0
    };
    let waited = due.iter().map(|event| event.created_at.until(now));
    due.iter().all(refused)
        && waited
            .max()
            .is_some_and(|longest| longest.as_secs() >= STUCK_SECONDS_MIN)
}
