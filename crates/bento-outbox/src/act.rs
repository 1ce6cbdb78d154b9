//! What operators did: the audit.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::sanitised;
use crate::pause::Pausable;
use crate::timestamp::Timestamp;

/// Something an operator did.
///
/// The stores write one themselves, in the same transaction, for each change that they make; who
/// does something that changes no row hands it to [`Store::audit`](crate::Store::audit).
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Act {
    /// Who did it, as `cli:anna@relay-1` or `api:10.0.0.7`; at most [`ACT_BY_CHARS_MAX`] characters.
    pub by: String,
    /// What was done: `retry`, `discard`, `pause`, `resume`, `replay`.
    pub verb: String,
    /// What it was done to: an object of ids, names or parts of a filter.
    pub what: Value,
    /// How many events, tenants or destinations it changed.
    pub changed: u64,
    /// What was said about it, as the reason of a pause.
    pub note: Option<String>,
}

/// An act as the database keeps it, for ever.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audited {
    /// Grows from one to the next.
    pub number: i64,
    /// When it was done, by the database's clock.
    pub at: Timestamp,
    /// What was done.
    #[serde(flatten)]
    pub act: Act,
}

/// The most characters that are kept of who did something.
pub const ACT_BY_CHARS_MAX: usize = 255;

/// The most characters of a name that somebody gives themselves.
const NAME_CHARS_MAX: usize = 64;

/// The most characters that are kept of a verb.
const VERB_CHARS_MAX: usize = 32;

/// The most ids that one act names.
const IDS_MAX: usize = 1_000;

/// The most names that one act names.
const NAMES_MAX: usize = 100;

/// The most bytes of JSON that are kept of what something was done to.
const WHAT_BYTES_MAX: usize = 60_000;

impl Act {
    /// An act, made fit to be stored and shown: without control characters and passwords of URLs,
    /// and of bounded length.
    pub fn new(by: &str, verb: &str, what: Value, changed: u64, note: Option<&str>) -> Self {
        let bytes = what.to_string().len();
        let what = match bytes {
            ..=WHAT_BYTES_MAX => what,
            _ => json!({ "left_out_bytes": bytes }),
        };
        Self {
            by: cut(by, ACT_BY_CHARS_MAX),
            verb: cut(verb, VERB_CHARS_MAX),
            what,
            changed,
            note: note.map(sanitised),
        }
    }

    /// Whether somebody may call themselves so in [`by`](Self::by): 1 to 64 of the characters
    /// `A-Z a-z 0-9 . _ @ + -`.
    pub fn is_name(name: &str) -> bool {
        (1..=NAME_CHARS_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._@+-".contains(&b))
    }

    /// An act that changed events, of which it names the first thousand.
    pub fn on_events(by: &str, verb: &str, changed: &[Uuid]) -> Self {
        let named = &changed[..changed.len().min(IDS_MAX)];
        let what = match changed.len() - named.len() {
            0 => json!({ "ids": named }),
            more => json!({ "ids": named, "more": more }),
        };
        Self::new(by, verb, what, changed.len() as u64, None)
    }

    /// Whether it ended this pause, and says so by name.
    pub(crate) fn resumed(&self, kind: Pausable, name: &str) -> bool {
        let names = self.what[names_of(kind)].as_array();
        let has_it = names.is_some_and(|names| names.iter().any(|it| it == name));
        self.verb == "resume" && has_it
    }

    /// The same act, which changed so many tenants or destinations.
    pub fn on_names(self, kind: Pausable, changed: &[String]) -> Self {
        let named = &changed[..changed.len().min(NAMES_MAX)];
        let kind = names_of(kind);
        let what = match changed.len() - named.len() {
            0 => json!({ kind: named }),
            more => json!({ kind: named, "more": more }),
        };
        let Self { by, verb, note, .. } = self;
        Self::new(&by, &verb, what, changed.len() as u64, note.as_deref())
    }
}

/// What names of that kind are called in an act.
fn names_of(kind: Pausable) -> &'static str {
    match kind {
        Pausable::Tenant => "tenants",
        Pausable::Destination => "destinations",
    }
}

fn cut(text: &str, chars: usize) -> String {
    sanitised(text).chars().take(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_is_kept_within_bounds_and_on_one_line() {
        let long = "x\n".repeat(5_000);
        let act = Act::new(&long, &long, json!({ "type": long }), 1, Some(&long));
        assert_eq!(act.by.chars().count(), ACT_BY_CHARS_MAX);
        assert_eq!(act.verb.chars().count(), VERB_CHARS_MAX);
        assert!(!format!("{}{}{:?}", act.by, act.verb, act.note).contains('\n'));
        assert!(act.note.is_some_and(|note| note.chars().count() <= 2_000));
        assert_eq!(act.what["type"], long.as_str(), "JSON escapes by itself");
        let huge = Act::new("a", "b", json!({ "type": "x".repeat(70_000) }), 0, None);
        assert!(huge.what.to_string().len() < 100, "{}", huge.what);
    }

    #[test]
    fn an_act_says_whose_pause_it_ended() {
        let act = |verb| Act::new("cli:a@b", verb, Value::Null, 0, None);
        let resumed = act("resume").on_names(Pausable::Tenant, &["acme".into()]);
        assert!(resumed.resumed(Pausable::Tenant, "acme"));
        assert!(!resumed.resumed(Pausable::Tenant, "globex"));
        assert!(!resumed.resumed(Pausable::Destination, "acme"));
        let paused = act("pause").on_names(Pausable::Tenant, &["acme".into()]);
        assert!(!paused.resumed(Pausable::Tenant, "acme"));
        assert!(!act("resume").resumed(Pausable::Tenant, "acme"));
    }

    #[test]
    fn an_act_names_a_thousand_events_and_counts_the_others() {
        let ids: Vec<Uuid> = (0..1_002).map(Uuid::from_u128).collect();
        let act = Act::on_events("cli:a@b", "retry", &ids);
        assert_eq!(act.what["ids"].as_array().map(Vec::len), Some(1_000));
        assert_eq!((&act.what["more"], act.changed), (&json!(2), 1_002));
        let few = Act::on_events("cli:a@b", "retry", &ids[..2]);
        assert_eq!(few.what.get("more"), None);
    }
}
