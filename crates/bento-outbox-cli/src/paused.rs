//! What is paused, in a sentence each.

use std::collections::BTreeMap;

use bento_outbox::{Pausable, Pause};

use crate::settings::Settings;
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

/// The pauses of destinations that no event goes to under these settings, by the name of each: what to
/// do, in a sentence with a command. An option of a bus's URL was changed, say, and with it the name.
pub(crate) fn in_vain(pauses: &[Pause], settings: &Settings) -> BTreeMap<String, String> {
    let there = settings.destinations();
    let in_vain = pauses
        .iter()
        .filter(|pause| pause.kind == Pausable::Destination && !there.contains(&pause.name));
    in_vain
        .map(|pause| {
            let (name, resume) = (&pause.name, pause.resume_command());
            let advice = format!(
                "this pause keeps nothing: no route leads to {name}, resume it (`{resume}`) and pause {}",
                instead_of(name, &there)
            );
            (name.clone(), terminal::visible(&advice))
        })
        .collect()
}

/// Which of those that are there was meant: the same place with other options, if there is one.
fn instead_of(name: &str, there: &[String]) -> String {
    let place = |url: &str| url.split('?').next().unwrap_or_default().to_owned();
    let same: Vec<&str> = there
        .iter()
        .map(String::as_str)
        .filter(|other| place(other) == place(name))
        .collect();
    match same.is_empty() {
        true => there.join(" or "),
        false => same.join(" or "),
    }
}
