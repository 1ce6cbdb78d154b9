//! Which ordering keys wait, and why.

use bento_outbox::{HeldKey, Store};

use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal::{self, counted};

/// The keys that wait, at most so many, and whether there are more.
pub(crate) struct Held {
    pub(crate) keys: Vec<HeldKey>,
    pub(crate) more: bool,
}

/// The most keys that are looked at in search of those that really wait.
const LOOKED_AT_MAX: u32 = 10_000;

/// The ordering keys whose later events wait for an earlier one, under these settings.
pub(crate) async fn held(settings: &Settings, store: &dyn Store, limit: usize) -> Result<Held> {
    let mut keys = Vec::new();
    if !settings.projector.ordered {
        return Ok(Held { keys, more: false });
    }
    let mut look_at = u32::try_from(limit + 1).unwrap_or(LOOKED_AT_MAX);
    loop {
        keys = store.held_keys(look_at).await?;
        let all = (keys.len() as u64) < u64::from(look_at);
        // A dead letter that is skipped holds nothing back, although it has events behind it.
        keys.retain(|key| key.because != "dead" || settings.projector.dead_letters_block);
        if all || keys.len() > limit || look_at >= LOOKED_AT_MAX {
            let more = keys.len() > limit || !all;
            keys.truncate(limit);
            return Ok(Held { keys, more });
        }
        look_at = look_at.saturating_mul(8).min(LOOKED_AT_MAX);
    }
}

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
