//! What operators keep back for a while.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, ErrorKind, Result, sanitised, shell_word};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// What can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pausable {
    /// All events of a tenant.
    Tenant,
    /// All events that are routed to a destination, by its [name](crate::Destination::name).
    Destination,
}

/// Something that is paused: its events stay `NEW` and cost no attempt until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// What.
    pub kind: Pausable,
    /// Which one.
    pub name: String,
    /// Since when, by the database's clock.
    pub since: Timestamp,
    /// Who paused it, as in [`Act::by`](crate::Act::by).
    pub by: String,
    /// Why, if somebody said so.
    pub reason: Option<String>,
}

/// The most characters a name has that is paused.
pub const PAUSE_NAME_CHARS_MAX: usize = 512;

/// The most tenants and destinations that are paused at the same time.
pub const PAUSES_MAX: usize = 10_000;

/// What is written about an event that is put aside because its destination is paused, before and
/// after the destination's name.
pub(crate) const ASIDE: [&str; 2] = ["its destination ", " is paused"];

impl Pausable {
    /// The word for it, in the table and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Destination => "destination",
        }
    }

    /// The names, each once, in order.
    ///
    /// # Errors
    /// [`InvalidSetting`](ErrorKind::InvalidSetting) for a name that nothing of the kind can have.
    pub fn names(self, names: &[String]) -> Result<Vec<String>> {
        let mut checked = names.to_vec();
        checked.sort_unstable();
        checked.dedup();
        for name in &checked {
            let refuse = |what: String| Err(Error::new(ErrorKind::InvalidSetting, what));
            match self {
                Self::Tenant => {
                    if let Err(error) = name.parse::<Tenant>() {
                        return refuse(error.to_string());
                    }
                }
                Self::Destination => {
                    let length = name.chars().count();
                    if !(1..=PAUSE_NAME_CHARS_MAX).contains(&length) || sanitised(name) != *name {
                        let shown = shown(name);
                        return refuse(format!(
                            "destination {shown:?} is not 1 to {PAUSE_NAME_CHARS_MAX} characters on one line, \
                             without a password"
                        ));
                    }
                }
            }
        }
        Ok(checked)
    }

    /// Whether these can be paused by somebody whose events go to `destinations`. A tenant can be
    /// before it has any events.
    ///
    /// # Errors
    /// [`InvalidSetting`](ErrorKind::InvalidSetting) for a destination that no events go to: its name
    /// is mistyped, and the pause would keep nothing back.
    pub fn must_be_there(self, names: &[String], destinations: &[String]) -> Result<()> {
        let unknown = names.iter().find(|name| !destinations.contains(name));
        match (self, unknown) {
            (Self::Tenant, _) | (_, None) => Ok(()),
            (Self::Destination, Some(unknown)) => Err(Error::new(
                ErrorKind::InvalidSetting,
                format!(
                    "no events are routed to {:?}; these settings have {}",
                    shown(unknown),
                    destinations.join(", ")
                ),
            )),
        }
    }
}

/// The beginning of a name that is refused.
fn shown(name: &str) -> String {
    sanitised(name).chars().take(60).collect()
}

impl Pause {
    /// The command that ends it, as a shell takes it: `bento-outbox tenants resume acme`.
    pub fn resume_command(&self) -> String {
        format!(
            "bento-outbox {}s resume {}",
            self.kind,
            shell_word(&self.name)
        )
    }

    /// What is written about an event that is put aside because this destination is paused: by it
    /// [`wake`](crate::Store::wake) finds the event.
    pub fn aside(destination: &str) -> String {
        ASIDE.join(destination)
    }

    /// Whether this was written about an event that was put aside, whatever its destination.
    pub(crate) fn is_aside(error_message: &str) -> bool {
        let [before, after] = ASIDE;
        error_message.starts_with(before) && error_message.ends_with(after)
    }
}

/// # Errors
/// When the pauses would be more than [`PAUSES_MAX`].
pub(crate) fn check_number(pauses: usize) -> Result<()> {
    if pauses <= PAUSES_MAX {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidSetting,
        format!("{pauses} tenants and destinations would be paused, and {PAUSES_MAX} is the most"),
    ))
}

impl fmt::Display for Pausable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Pausable {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "tenant" => Ok(Self::Tenant),
            "destination" => Ok(Self::Destination),
            other => Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "the table of pauses has a kind {other:?} that this program does not know: upgrade it"
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_once_each_and_checked() {
        let names = |kind: Pausable, names: &[&str]| {
            kind.names(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let sorted = names(Pausable::Tenant, &["b", "a", "b"]).unwrap();
        assert_eq!(sorted, ["a", "b"]);
        for bad in ["", "a b", "../x", &"x".repeat(65)] {
            let refused = names(Pausable::Tenant, &["a", bad]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidSetting);
        }
        let url = "https://user:***@hooks.example/in?x=1".to_string();
        for good in ["nats://host:4222", "main", &url] {
            assert!(names(Pausable::Destination, &[good]).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "nats://u:secret@host", &"x".repeat(513)] {
            let refused = names(Pausable::Destination, &[bad]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidSetting);
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }

    #[test]
    fn only_a_destination_that_events_go_to_can_be_paused() {
        let there = ["file:main.jsonl".to_string(), "nats://host:4222".into()];
        let check = |kind: Pausable, name: &str| kind.must_be_there(&[name.into()], &there);
        check(Pausable::Destination, "nats://host:4222").unwrap();
        check(Pausable::Tenant, "not-yet-seen").unwrap();
        let refused = check(Pausable::Destination, "nats://bob:secret@host").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no events are routed to \"nats://bob:***@host\"; these settings have file:main.jsonl, nats://host:4222"
        );
    }

    #[test]
    fn what_is_put_aside_is_known_by_its_reason() {
        let aside = Pause::aside("nats://host:4222");
        assert_eq!(aside, "its destination nats://host:4222 is paused");
        assert_eq!(sanitised(&aside), aside, "so it is found again");
        assert!(Pause::is_aside(&aside) && !Pause::is_aside("no route to host"));
    }
}
