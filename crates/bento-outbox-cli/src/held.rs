//! Ordering keys that wait, in a sentence.

use bento_outbox::HeldKey;

use crate::terminal::{self, counted};

/// `acme order 7: 3 events wait for 0190b2f4-…, which is delayed until 2013-01-01T05:17:00Z`.
pub(crate) fn sentence(key: &HeldKey) -> String {
    let kind = key.aggregate_type.as_deref().unwrap_or("-");
    let until = key.until.map(terminal::moment);
    let why = match (key.because.as_str(), until) {
        ("dead", _) => "a dead letter".to_string(),
        ("retrying", Some(until)) => format!("which failed and is tried again at {until}"),
        (because, Some(until)) => format!("which is {because} until {until}"),
        (because, None) => format!("which is {because}"),
    };
    terminal::visible(&format!(
        "{} {kind} {}: {} {} for {}, {why}",
        key.tenant_id,
        key.aggregate_id,
        counted(key.waiting, "event"),
        if key.waiting == 1 { "waits" } else { "wait" },
        key.id
    ))
}
