//! How rows of MySQL become records and settlements become columns.

use bytes::Bytes;
use chrono::NaiveDateTime;
use serde::Serialize;
use sqlx::mysql::MySqlRow;
use sqlx::{MySql, Row};
use uuid::Uuid;

use super::super::sql::error;
use crate::error::{ERROR_MESSAGE_CHARS_MAX, Error, ErrorKind, Result};
use crate::event::Aggregate;
use crate::record::{Delivery, OutboxRecord, Status};
use crate::store::Verdict;
use crate::timestamp::Timestamp;

/// The columns that make a record, as [`record`] reads them.
pub(super) const COLUMNS: &str = "o.id, o.seq, o.tenant_id, o.aggregate_type, o.aggregate_id, o.type, o.schema_id, \
     o.schema_ver, o.payload, o.data, o.content_type, o.key_id, o.headers, o.occurred_at, o.created_at, \
     o.available_at, o.lost_attempts, o.status, o.retry_cnt, o.retry_at, o.error_message, o.sent_at";

/// The same, with an empty payload: a large one is not even read.
pub(super) fn columns_without_payload() -> String {
    COLUMNS.replace(
        "o.payload, o.data,",
        "case when o.payload is not null then '' end as payload, null as data,",
    )
}

/// A record that is not sent, as the update statement reads it from its one parameter.
#[derive(Serialize)]
pub(super) struct Failed {
    id: Uuid,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<i64>,
    counts: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Failed {
    pub(super) fn new(id: Uuid, verdict: &Verdict) -> Self {
        let (status, after, counts, reason) = match verdict {
            Verdict::Sent => (Status::Sent, None, false, None),
            Verdict::HandOver => (Status::New, None, false, None),
            Verdict::Retry {
                after,
                counts,
                reason,
            } => (Status::New, Some(*after), *counts, Some(reason)),
            Verdict::Dead { counts, reason } => (Status::Err, None, *counts, Some(reason)),
        };
        Self {
            id,
            status: status.as_str(),
            after: after.map(micros),
            counts: u8::from(counts),
            reason: reason.map(|reason| reason.chars().take(ERROR_MESSAGE_CHARS_MAX).collect()),
        }
    }
}

/// A duration in microseconds, and no longer than the calendar of MySQL.
pub(super) fn micros(duration: std::time::Duration) -> i64 {
    const CENTURY: i64 = 100 * 366 * 86_400 * 1_000_000;
    i64::try_from(duration.as_micros()).map_or(CENTURY, |micros| micros.min(CENTURY))
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| {
        Error::new(
            ErrorKind::Database,
            "what became of events cannot be written as JSON",
        )
        .because(e)
    })
}

/// Ids as a list of literals: they have nothing in them that needs escaping.
pub(super) fn literals<'a>(ids: impl IntoIterator<Item = &'a Uuid>) -> String {
    let ids: Vec<String> = ids.into_iter().map(|id| format!("'{id}'")).collect();
    ids.join(", ")
}

pub(super) fn get<'r, T: sqlx::Decode<'r, MySql> + sqlx::Type<MySql>>(
    row: &'r MySqlRow,
    column: &str,
) -> Result<T> {
    row.try_get(column).map_err(|e| error("reading events", e))
}

/// The id that a text is.
pub(super) fn uuid(id: &str) -> Result<Uuid> {
    Uuid::parse_str(id)
        .map_err(|e| Error::new(ErrorKind::Database, format!("{id:?} is not an id")).because(e))
}

/// The time that a `datetime(6)` in UTC is.
pub(super) fn time(time: NaiveDateTime) -> Timestamp {
    Timestamp::clamped(time.and_utc().timestamp_micros())
}

pub(super) fn record(row: &MySqlRow) -> Result<OutboxRecord> {
    let at = |column| get::<NaiveDateTime>(row, column).map(time);
    let maybe_at = |column| get::<Option<NaiveDateTime>>(row, column).map(|at| at.map(time));
    let json: Option<String> = get(row, "payload")?;
    let is_json = json.is_some();
    let payload = match json {
        Some(json) => Bytes::from(json),
        None => get::<Option<Vec<u8>>>(row, "data")?
            .unwrap_or_default()
            .into(),
    };
    Ok(OutboxRecord {
        seq: get(row, "seq")?,
        id: uuid(get(row, "id")?)?,
        tenant: get::<&str>(row, "tenant_id")?.parse()?,
        aggregate: Aggregate {
            kind: get(row, "aggregate_type")?,
            id: get(row, "aggregate_id")?,
        },
        event_type: get(row, "type")?,
        schema_id: get(row, "schema_id")?,
        schema_version: u32::try_from(get::<i32>(row, "schema_ver")?).unwrap_or(0),
        payload,
        is_json,
        content_type: get(row, "content_type")?,
        key_id: get(row, "key_id")?,
        headers: get(row, "headers")?,
        occurred_at: at("occurred_at")?,
        created_at: at("created_at")?,
        available_at: at("available_at")?,
        lost_attempts: u32::try_from(get::<i32>(row, "lost_attempts")?).unwrap_or(0),
        unreadable: None,
        delivery: Delivery {
            status: get::<&str>(row, "status")?.parse()?,
            retry_cnt: u32::try_from(get::<i32>(row, "retry_cnt")?).unwrap_or(0),
            retry_at: maybe_at("retry_at")?,
            error_message: get(row, "error_message")?,
            sent_at: maybe_at("sent_at")?,
        },
    })
}
