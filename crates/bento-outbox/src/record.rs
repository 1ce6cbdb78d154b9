//! One row of the outbox, and what became of an attempt to publish it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result, sanitised};
use crate::event::{Aggregate, Event, Headers, Payload};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// One row of the outbox as a relay reads it. After the commit its payload is opaque bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRecord {
    /// Order of insertion, given by the database.
    pub seq: i64,
    /// The event's id.
    pub id: Uuid,
    /// Whose event it is.
    pub tenant: Tenant,
    /// The aggregate that raised it; without its id the record has no order.
    pub aggregate: Aggregate,
    /// The event's type.
    pub event_type: String,
    /// The schema the payload follows.
    pub schema_id: Option<String>,
    /// The version of that schema.
    pub schema_version: u32,
    /// What is delivered, byte for byte.
    pub payload: Bytes,
    /// Whether the payload is JSON text (column `payload`) and not other bytes (column `data`).
    pub is_json: bool,
    /// What the payload is.
    pub content_type: String,
    /// The key the payload is encrypted with.
    pub key_id: Option<String>,
    /// The JSON object of headers as it stands in the row; see [`OutboxRecord::headers`].
    pub headers: String,
    /// When the fact happened.
    pub occurred_at: Timestamp,
    /// When the row was written.
    pub created_at: Timestamp,
    /// Not published before.
    pub available_at: Timestamp,
    /// Attempts that left no result, because the process died or lost its lease in the middle.
    pub lost_attempts: u32,
    /// How far the delivery is.
    pub delivery: Delivery,
    /// Why the row cannot be read as it stands, if it cannot: SQLite takes any bytes for text. The rest
    /// is then as near to it as can be shown, and it is not published but becomes a dead letter.
    pub unreadable: Option<String>,
}

/// How far the delivery of a record is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Waiting, sent or dead.
    pub status: Status,
    /// Failed attempts that were the event's own fault.
    pub retry_cnt: u32,
    /// Not tried again before.
    pub retry_at: Option<Timestamp>,
    /// The last failure, sanitised.
    pub error_message: Option<String>,
    /// When the bus had it durably.
    pub sent_at: Option<Timestamp>,
}

/// Where a record stands. `NEW → SENT`, `NEW → ERR`, and `ERR → NEW` by an operator's retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Not delivered yet; with a `retry_at` it waits for its next attempt.
    #[default]
    New,
    /// The bus acknowledged it durably.
    Sent,
    /// A dead letter: a person must look.
    Err,
}

/// The key within which events are delivered in order: tenant, aggregate type and aggregate id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrderingKey<'a> {
    /// The tenant.
    pub tenant: &'a Tenant,
    /// The kind of aggregate; none is a kind by itself.
    pub kind: Option<&'a str>,
    /// The id of the aggregate.
    pub id: &'a str,
}

/// What a publisher says about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The bus has it durably.
    Acked,
    /// The bus does not have it.
    Rejected(Rejection),
    /// The bus may have it: the answer was lost or late. It is sent again under the same id.
    Unknown {
        /// What happened to the answer.
        reason: String,
    },
}

/// Why the bus does not have a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Whose fault it was, which decides what happens next.
    pub class: RejectionClass,
    /// One sentence, without payload and secrets.
    pub reason: String,
}

/// Whose fault a rejection was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectionClass {
    /// The bus cannot be reached. Costs the event no attempt; the destination is tried again later.
    Unreachable,
    /// The bus asks to wait, for this long if it says so. Costs no attempt.
    Throttled(Option<Duration>),
    /// This event was refused and may be taken another time. Costs an attempt.
    Message,
    /// This event will never be taken. It becomes a dead letter now.
    Permanent,
    /// This event cannot go out before a person has changed something, others can: nothing takes its
    /// topic, or the key to its payload is missing. Costs no attempt; it is tried again after a while.
    Blocked,
    /// The destination is set up so that it can take no event. Costs no attempt; a person must act.
    Config,
}

impl OutboxRecord {
    /// The key within which this record is ordered; none when its aggregate has no id.
    pub fn ordering_key(&self) -> Option<OrderingKey<'_>> {
        Some(OrderingKey {
            tenant: &self.tenant,
            kind: self.aggregate.kind.as_deref(),
            id: self.aggregate.id.as_deref()?,
        })
    }

    /// The record's headers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when a writer put something else than a flat object of strings.
    pub fn headers(&self) -> Result<Headers> {
        Headers::from_json(&self.headers)
    }

    /// The row that `event` becomes, written by `tenant` at `now` as number `seq`.
    pub fn of(event: &Event, tenant: &Tenant, seq: i64, now: Timestamp) -> Self {
        let (payload, is_json) = match &event.payload {
            Payload::Json(json) => (Bytes::copy_from_slice(json.get().as_bytes()), true),
            Payload::Data(data) => (data.clone(), false),
        };
        Self {
            seq,
            id: event.id,
            tenant: event.tenant.as_ref().unwrap_or(tenant).clone(),
            aggregate: event.aggregate.clone(),
            event_type: event.event_type.clone(),
            schema_id: event.schema_id.clone(),
            schema_version: event.schema_version,
            payload,
            is_json,
            content_type: event.content_type.clone(),
            key_id: event.key_id.clone(),
            headers: event.headers.to_json(),
            occurred_at: event.occurred_at,
            created_at: event.created_at.unwrap_or(now),
            available_at: event.available_at.unwrap_or(now),
            lost_attempts: 0,
            delivery: Delivery::default(),
            unreadable: None,
        }
    }
}

/// What has a meaning in the written form of an ordering key.
const KEY_DELIMITERS: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

/// `tenant/kind/id`, each part percent-encoded where it holds a `/`, so that no two keys are
/// written alike.
impl fmt::Display for OrderingKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text| utf8_percent_encode(text, KEY_DELIMITERS);
        let (tenant, kind) = (self.tenant.as_str(), self.kind.unwrap_or_default());
        write!(f, "{}/{}/{}", part(tenant), part(kind), part(self.id))
    }
}

impl Status {
    /// The word in the column `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Sent => "SENT",
            Self::Err => "ERR",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "NEW" => Ok(Self::New),
            "SENT" => Ok(Self::Sent),
            "ERR" => Ok(Self::Err),
            _ => Err(Error::new(
                ErrorKind::Schema,
                format!("status {word:?} is none of NEW, SENT, ERR"),
            )),
        }
    }
}

impl Rejection {
    /// A rejection whose reason is fit to be stored.
    pub fn new(class: RejectionClass, reason: impl AsRef<str>) -> Self {
        Self {
            class,
            reason: sanitised(reason.as_ref()),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Rejection {}

impl From<Rejection> for Outcome {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Outcome {
    /// An outcome that is not known, with a reason fit to be stored.
    pub fn unknown(reason: impl AsRef<str>) -> Self {
        Self::Unknown {
            reason: sanitised(reason.as_ref()),
        }
    }

    /// A rejection of the given class, with a reason fit to be stored.
    pub fn rejected(class: RejectionClass, reason: impl AsRef<str>) -> Self {
        Self::Rejected(Rejection::new(class, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ordering_keys_are_never_written_alike() {
        let key = |kind: Option<&str>, id: &str| {
            let tenant = &Tenant::default();
            OrderingKey { tenant, kind, id }.to_string()
        };
        assert_eq!(key(Some("order"), "7"), "default/order/7");
        assert_ne!(key(Some("a"), "b/c"), key(Some("a/b"), "c"));
        assert_ne!(key(Some("a"), "%2F"), key(Some("a"), "/"));
        assert_eq!(key(None, "ä b"), "default//%C3%A4 b");
    }
}
