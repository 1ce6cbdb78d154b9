//! Which ordering keys wait.

use serde::Serialize;

use crate::error::Result;
use crate::projector::ProjectorSettings;
use crate::store::{HeldKey, Store};

/// The ordering keys that wait, in JSON `held`, and in `held_more` whether there are more of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Held {
    /// The keys.
    #[serde(rename = "held")]
    pub keys: Vec<HeldKey>,
    /// Whether there are more than those.
    #[serde(rename = "held_more")]
    pub more: bool,
}

/// The most keys that are looked at in search of those that really wait.
const LOOKED_AT_MAX: u32 = 10_000;

/// The ordering keys whose later events wait for an earlier one, at most so many, under the order that
/// the relays' settings say.
///
/// # Errors
/// When the database cannot be read.
pub async fn held(store: &dyn Store, settings: &ProjectorSettings, limit: u32) -> Result<Held> {
    if !settings.ordered {
        return Ok(Held::default());
    }
    let mut look_at = limit.saturating_add(1).min(LOOKED_AT_MAX);
    loop {
        let mut keys = store.held_keys(look_at).await?;
        let all = (keys.len() as u64) < u64::from(look_at);
        // A dead letter that is skipped holds nothing back, although it has events behind it.
        keys.retain(|key| key.because != "dead" || settings.dead_letters_block);
        if all || keys.len() > limit as usize || look_at >= LOOKED_AT_MAX {
            let more = keys.len() > limit as usize || !all;
            keys.truncate(limit as usize);
            return Ok(Held { keys, more });
        }
        look_at = look_at.saturating_mul(8).min(LOOKED_AT_MAX);
    }
}
