//! How rows of PostgreSQL become records and settlements become columns.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use super::super::sql::error;
use crate::error::{ERROR_MESSAGE_CHARS_MAX, Result};
use crate::event::Aggregate;
use crate::record::{Delivery, OutboxRecord, Status};
use crate::store::Verdict;
use crate::timestamp::Timestamp;

/// The columns that make a record, as [`record`] reads them.
pub(super) const COLUMNS: &str = "id, seq, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, \
     payload::text as payload, data, content_type, key_id, headers::text as headers, \
     occurred_at, created_at, available_at, lost_attempts, status, retry_cnt, retry_at, error_message, sent_at";

/// The same, with an empty payload: a large one is not even read.
pub(super) fn columns_without_payload() -> String {
    COLUMNS.replace(
        "payload::text as payload, data,",
        "case when payload is not null then '' end as payload, null::bytea as data,",
    )
}

/// The columns of records that are not sent, for one statement.
#[derive(Default)]
pub(super) struct Failed {
    pub(super) ids: Vec<Uuid>,
    pub(super) statuses: Vec<&'static str>,
    pub(super) after_ms: Vec<Option<i64>>,
    pub(super) counts: Vec<i32>,
    pub(super) reasons: Vec<Option<String>>,
}

impl Failed {
    pub(super) fn push(&mut self, id: Uuid, verdict: &Verdict) {
        let (status, after, counts, reason) = match verdict {
            Verdict::Sent => (Status::Sent, None, false, None),
            Verdict::HandOver => (Status::New, None, false, None),
            Verdict::Retry {
                after,
                counts,
                reason,
            } => (Status::New, Some(after), *counts, Some(reason)),
            Verdict::Dead { counts, reason } => (Status::Err, None, *counts, Some(reason)),
        };
        self.ids.push(id);
        self.statuses.push(status.as_str());
        self.after_ms
            .push(after.map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX)));
        self.counts.push(i32::from(counts));
        self.reasons
            .push(reason.map(|reason| reason.chars().take(ERROR_MESSAGE_CHARS_MAX).collect()));
    }
}

pub(super) fn get<'r, T: sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>>(
    row: &'r PgRow,
    column: &str,
) -> Result<T> {
    row.try_get(column).map_err(|e| error("reading events", e))
}

pub(super) fn record(row: &PgRow) -> Result<OutboxRecord> {
    let time = |column| {
        get::<DateTime<Utc>>(row, column).map(|time| Timestamp::clamped(time.timestamp_micros()))
    };
    let maybe_time = |column| {
        get::<Option<DateTime<Utc>>>(row, column)
            .map(|time| time.map(|time| Timestamp::clamped(time.timestamp_micros())))
    };
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
        id: get(row, "id")?,
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
        occurred_at: time("occurred_at")?,
        created_at: time("created_at")?,
        available_at: time("available_at")?,
        lost_attempts: u32::try_from(get::<i32>(row, "lost_attempts")?).unwrap_or(0),
        unreadable: None,
        delivery: Delivery {
            status: get::<&str>(row, "status")?.parse()?,
            retry_cnt: u32::try_from(get::<i32>(row, "retry_cnt")?).unwrap_or(0),
            retry_at: maybe_time("retry_at")?,
            error_message: get(row, "error_message")?,
            sent_at: maybe_time("sent_at")?,
        },
    })
}
