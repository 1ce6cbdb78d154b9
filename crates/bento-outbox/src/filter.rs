//! Which records an operator means, and how many of them at once.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{OutboxRecord, Status};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// Which records an operator means. Every part that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Filter {
    /// In this state of delivery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Of this tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Of this event type.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Of this aggregate id.
    #[serde(rename = "aggregate", skip_serializing_if = "Option::is_none")]
    pub aggregate_id: Option<String>,
    /// Written at or after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Written before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Sent at or after this, by the database's clock, which may know no less than milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_since: Option<Timestamp>,
    /// With one of these ids; none for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<Uuid>>,
}

/// Which of the records that match are read: a page goes on where the one before ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The `seq` of the last record of the page before; it is not read again. Defaults to none.
    pub after: Option<i64>,
    /// How many records at most; more than [`PAGE_MAX`] are never read. Defaults to 100.
    pub limit: u32,
    /// From the highest `seq` down instead of from the lowest up. Defaults to false.
    pub newest_first: bool,
    /// Whether payloads are read. Without, [`OutboxRecord::payload`] is empty, and such a record is
    /// not fit to be published. Defaults to false.
    pub payload: bool,
}

/// The most records of a page.
pub const PAGE_MAX: u32 = 1_000;

impl Default for Page {
    fn default() -> Self {
        Self {
            after: None,
            limit: 100,
            newest_first: false,
            payload: false,
        }
    }
}

impl Page {
    /// How many records the page has at most, whatever was asked for.
    pub fn bounded(&self) -> u32 {
        self.limit.min(PAGE_MAX)
    }

    /// Whether a record comes after the page before.
    pub fn begins_before(&self, seq: i64) -> bool {
        self.after.is_none_or(|after| match self.newest_first {
            true => seq < after,
            false => seq > after,
        })
    }
}

impl Filter {
    /// Refuses what was hardly meant, since nothing can match it.
    ///
    /// # Errors
    /// [`InvalidSetting`](ErrorKind::InvalidSetting) for a time that ends before it begins, for a type
    /// that is empty or was meant as a pattern, and for ids of which there are none.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::InvalidSetting, what));
        if let (Some(since), Some(until)) = (self.since, self.until)
            && since >= until
        {
            return refuse(format!(
                "since {since} is not before until {until}, so no event can match"
            ));
        }
        match self.event_type.as_deref() {
            Some("") => return refuse("type is empty, so no event can match".into()),
            Some(pattern) if pattern.contains('*') => {
                return refuse(format!(
                    "type {pattern:?} has a *, and patterns are not taken here: give a whole type, as \
                     order.placed"
                ));
            }
            _ => {}
        }
        match self.ids.as_deref() {
            Some([]) => refuse("ids has none, so no event can match".into()),
            _ => Ok(()),
        }
    }

    /// The parts that are given, as JSON that people read: `{"tenant":"acme","type":"order.placed"}`, and
    /// `{"all":true}` where none is.
    pub fn shown(&self) -> Value {
        match *self == Self::default() {
            true => json!({ "all": true }),
            false => serde_json::to_value(self).unwrap_or_default(),
        }
    }

    /// Whether a record matches.
    pub fn matches(&self, record: &OutboxRecord) -> bool {
        fn any<T>(asked: &Option<T>, matches: impl FnOnce(&T) -> bool) -> bool {
            asked.as_ref().is_none_or(matches)
        }
        let delivery = &record.delivery;
        any(&self.status, |status| *status == delivery.status)
            && any(&self.tenant, |tenant| *tenant == record.tenant)
            && any(&self.event_type, |name| *name == record.event_type)
            && any(&self.aggregate_id, |id| {
                record.aggregate.id.as_ref() == Some(id)
            })
            && any(&self.since, |since| record.created_at >= *since)
            && any(&self.until, |until| record.created_at < *until)
            && any(&self.sent_since, |since| {
                delivery.sent_at.is_some_and(|at| at >= *since)
            })
            && any(&self.ids, |ids| ids.contains(&record.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_can_match_is_refused_by_name() {
        let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
        let (noon, one) = (at("2013-01-01T12:00:00Z"), at("2013-01-01T13:00:00Z"));
        let between = |since, until| Filter {
            since,
            until,
            ..Filter::default()
        };
        let typed = |name: &str| Filter {
            event_type: Some(name.into()),
            ..Filter::default()
        };
        let ids = |ids: Vec<Uuid>| Filter {
            ids: Some(ids),
            ..Filter::default()
        };
        for (vain, said) in [
            (between(one, noon), "since 2013-01-01T13:00:00"),
            (between(noon, noon), "is not before until"),
            (typed(""), "type is empty"),
            (typed("order.*"), "\"order.*\" has a *"),
            (ids(vec![]), "ids has none"),
        ] {
            let refused = vain.check().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidSetting);
            assert!(refused.to_string().contains(said), "{refused}");
        }
        for meant in [
            Filter::default(),
            between(noon, one),
            between(one, None),
            typed("order.placed"),
            ids(vec![Uuid::nil()]),
        ] {
            meant.check().unwrap();
        }
    }
}
