//! Which events a command is about.

use std::fmt;

use bento_outbox::{Filter, Tenant, Timestamp, shell_word};
use clap::Args;
use uuid::Uuid;

use crate::failure::{Failure, Result};

/// Filters; an event must match all that are given.
#[derive(Args, Clone, Default)]
pub(crate) struct Choice {
    /// Of this tenant
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Of this event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Of the aggregate with this id
    #[arg(long, value_name = "ID")]
    aggregate: Option<String>,
    /// Written at or after this time (RFC 3339), or so long ago (2h, 7d) at most
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Written before this time, or longer ago than that
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<Timestamp>,
    /// The one with this id; may be given many times
    #[arg(long, value_name = "ID")]
    id: Vec<Uuid>,
    /// All of them
    #[arg(long, conflicts_with_all = ["tenant", "event_type", "aggregate", "since", "until", "id"])]
    all: bool,
}

impl Choice {
    /// # Errors
    /// Filters that no event can match; exit code 2.
    pub(crate) fn filter(&self) -> Result<Filter> {
        let filter = Filter {
            status: None,
            sent_since: None,
            tenant: self.tenant.clone(),
            event_type: self.event_type.clone(),
            aggregate_id: self.aggregate.clone(),
            since: self.since,
            until: self.until,
            ids: (!self.id.is_empty()).then(|| self.id.clone()),
        };
        filter.check()?;
        Ok(filter)
    }

    /// As what the command line said, with times that do not move on.
    pub(crate) fn as_arguments(&self) -> String {
        match self.all {
            true => " --all".into(),
            false => self.to_string(),
        }
    }

    /// Whether nothing was said but `--all`, or nothing at all.
    pub(crate) fn is_everything(&self) -> bool {
        self.to_string().is_empty()
    }

    /// # Errors
    /// Nothing was said about which `events` to deal with; exit code 2.
    pub(crate) fn must_be_made(&self, events: &str) -> Result<()> {
        if self.is_everything() && !self.all {
            return Err(Failure::misuse(format!(
                "which {events}? Give --id, --tenant, --type, --aggregate, --since or --until, or --all"
            )));
        }
        Ok(())
    }
}

/// The filters as they were given, ` --tenant acme --type order.placed`.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut filter = |name, value: Option<String>| match value {
            Some(value) => write!(f, " --{name} {}", shell_word(&value)),
            None => Ok(()),
        };
        filter("tenant", self.tenant.as_ref().map(ToString::to_string))?;
        filter("type", self.event_type.clone())?;
        filter("aggregate", self.aggregate.clone())?;
        filter("since", self.since.map(|time| time.to_string()))?;
        filter("until", self.until.map(|time| time.to_string()))?;
        self.id.iter().try_for_each(|id| write!(f, " --id {id}"))
    }
}

/// A time in RFC 3339, or a duration before now.
fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || {
        format!(
            "{text:?} is neither a time in RFC 3339, as 2013-01-01T05:17:00Z, nor a duration before now, as 2h or 7d"
        )
    };
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = humantime::parse_duration(text).map_err(|_| wrong())?;
    let ago = i64::try_from(ago.as_micros()).map_err(|_| wrong())?;
    Timestamp::from_unix_micros(Timestamp::now().unix_micros().saturating_sub(ago))
        .map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_a_while_ago() {
        let exact: Timestamp = "2013-01-01T05:17:00Z".parse().unwrap();
        assert_eq!(moment("2013-01-01T05:17:00Z"), Ok(exact));
        let ago = moment("2h").unwrap().until(Timestamp::now());
        assert!((7_200..7_210).contains(&ago.as_secs()), "{ago:?}");
        for wrong in ["", "yesterday", "2013-01-01", "-2h", "9000000y"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn to_change_events_one_must_say_which() {
        let nothing = Choice::default();
        assert_eq!(nothing.must_be_made("events").unwrap_err().code(), 2);
        let all = Choice {
            all: true,
            ..Choice::default()
        };
        all.must_be_made("events").unwrap();
        let some = Choice {
            aggregate: Some("7".into()),
            ..Choice::default()
        };
        some.must_be_made("events").unwrap();
        assert_eq!(some.to_string(), " --aggregate 7");
        assert_eq!(all.as_arguments(), " --all");
        assert_eq!(some.filter().unwrap().aggregate_id.as_deref(), Some("7"));
        let vain = Choice {
            event_type: Some("order.*".into()),
            ..Choice::default()
        };
        assert_eq!(vain.filter().unwrap_err().code(), 2);
    }
}
