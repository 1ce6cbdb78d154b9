//! What is paused, in a sentence each.

use bento_outbox::Pause;

use crate::terminal;

/// `tenant acme is paused since 2013-01-01T05:17:00Z by cli:anna@relay-1 (schema change)`.
pub(crate) fn sentence(pause: &Pause) -> String {
    let reason = pause
        .reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(" ({reason})"));
    terminal::visible(&format!(
        "{} {} is paused since {} by {}{reason}",
        pause.kind,
        pause.name,
        terminal::moment(pause.since),
        pause.by
    ))
}
