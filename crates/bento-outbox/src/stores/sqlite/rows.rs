//! How rows of SQLite become records, and events and settlements become its one JSON parameter.

use bytes::Bytes;
use chrono::{NaiveDate, NaiveTime, TimeDelta};
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::super::sql::error;
use super::later;
use crate::error::{ERROR_MESSAGE_CHARS_MAX, Error, ErrorKind, Result};
use crate::event::{Aggregate, Event, Payload};
use crate::record::{Delivery, OutboxRecord, Status};
use crate::store::{Settlement, Verdict};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// The columns that make a record, as [`record`] reads them.
pub(super) const COLUMNS: &str = "id, seq, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data, \
     content_type, key_id, headers, occurred_at, created_at, available_at, lost_attempts, status, retry_cnt, retry_at, \
     error_message, sent_at";

/// The same, with an empty payload: a large one is not even read.
pub(super) fn columns_without_payload() -> String {
    COLUMNS.replace(
        "payload, data,",
        "case when payload is not null then '' end as payload, null as data,",
    )
}

/// An event as the insert statement reads it from its one parameter.
#[derive(Serialize)]
pub(super) struct NewRow<'a> {
    id: Uuid,
    tenant_id: &'a str,
    aggregate_type: Option<&'a str>,
    aggregate_id: Option<&'a str>,
    r#type: &'a str,
    schema_id: Option<&'a str>,
    schema_ver: u32,
    payload: Option<&'a str>,
    data: Option<String>,
    content_type: &'a str,
    key_id: Option<&'a str>,
    headers: String,
    occurred_at: Timestamp,
    created_at: Option<Timestamp>,
    available_at: Option<Timestamp>,
}

impl<'a> NewRow<'a> {
    /// The names of the fields.
    pub(super) const COLUMNS: [&'static str; 15] = [
        "id",
        "tenant_id",
        "aggregate_type",
        "aggregate_id",
        "type",
        "schema_id",
        "schema_ver",
        "payload",
        "data",
        "content_type",
        "key_id",
        "headers",
        "occurred_at",
        "created_at",
        "available_at",
    ];

    pub(super) fn of(event: &'a Event, tenant: &'a Tenant) -> Self {
        let (payload, data) = match &event.payload {
            Payload::Json(json) => (Some(json.get()), None),
            Payload::Data(data) => (None, Some(hex(data))),
        };
        Self {
            id: event.id,
            tenant_id: event.tenant.as_ref().unwrap_or(tenant).as_str(),
            aggregate_type: event.aggregate.kind.as_deref(),
            aggregate_id: event.aggregate.id.as_deref(),
            r#type: &event.event_type,
            schema_id: event.schema_id.as_deref(),
            schema_ver: event.schema_version,
            payload,
            data,
            content_type: &event.content_type,
            key_id: event.key_id.as_deref(),
            headers: event.headers.to_json(),
            occurred_at: event.occurred_at,
            created_at: event.created_at,
            available_at: event.available_at,
        }
    }
}

/// A record that is not sent, as the update statement reads it from its one parameter.
#[derive(Serialize)]
pub(super) struct Failed {
    id: Uuid,
    status: &'static str,
    after: Option<String>,
    counts: u8,
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
            after: after.map(later),
            counts: u8::from(counts),
            reason: reason.map(|reason| reason.chars().take(ERROR_MESSAGE_CHARS_MAX).collect()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| {
        Error::new(ErrorKind::InvalidEvent, "events cannot be written as JSON").because(e)
    })
}

pub(super) fn get<'r, T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(
    row: &'r SqliteRow,
    column: &str,
) -> Result<T> {
    row.try_get(column).map_err(|e| error("reading events", e))
}

/// A time as SQLite's own functions read it: date, then `T` or blanks, then hours and minutes with
/// or without seconds and their fraction, with or without a zone (UTC). Only the ranges are not
/// checked: the table's constraints have asked SQLite.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    let (date, clock) = text.trim_ascii_end().split_at_checked(10)?;
    let (year, day) = date.split_at_checked(4)?;
    let (month, day) = day.strip_prefix('-')?.split_once('-')?;
    let first = NaiveDate::from_ymd_opt(year.parse().ok()?, month.parse().ok()?, 1)?;
    // To SQLite February has 31 days, of which the last are in March.
    let midnight = first.and_time(NaiveTime::MIN) + TimeDelta::days(day.parse::<i64>().ok()? - 1);

    let clock = clock.trim_start_matches(|c: char| c == 'T' || c.is_ascii_whitespace());
    let (clock, zone) = match clock.find(['Z', 'z', '+', '-']) {
        Some(at) => clock.split_at(at),
        None => (clock, ""),
    };
    let offset = match zone.split_at_checked(1) {
        Some(("+", zone)) => minutes(zone)?,
        Some(("-", zone)) => -minutes(zone)?,
        _ => 0,
    };
    let clock = clock.trim_ascii_end();
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (clock, seconds) = match clock.len() {
        8 => clock.split_at_checked(5)?,
        _ => (clock, ":0"),
    };
    let seconds = seconds.strip_prefix(':')?.parse::<i64>().ok()?;
    let minutes = if clock.is_empty() { 0 } else { minutes(clock)? } - offset;
    let micros = format!("{fraction:0<6.6}").parse::<i64>().ok()?;
    let since_midnight = (minutes * 60 + seconds) * 1_000_000 + micros;
    let moment = midnight.and_utc().timestamp_micros() + since_midnight;
    Some(Timestamp::clamped(moment))
}

/// `HH:MM` in minutes.
fn minutes(clock: &str) -> Option<i64> {
    let (hours, minutes) = clock.split_once(':')?;
    Some(hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?)
}

/// The records of rows. A row that is none becomes a dead letter: SQLite takes any bytes for text.
pub(super) fn readable(rows: &[SqliteRow]) -> Result<(Vec<OutboxRecord>, Vec<Settlement>)> {
    let (mut records, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match record(row) {
            Ok(record) => records.push(record),
            Err(why) => unreadable.push(Settlement {
                id: id(row)?,
                verdict: Verdict::Dead {
                    counts: false,
                    reason: why.report(),
                },
            }),
        }
    }
    Ok((records, unreadable))
}

/// The id of a row, whatever else is in it.
pub(super) fn id(row: &SqliteRow) -> Result<Uuid> {
    uuid(get(row, "id")?)
}

/// The id that a text is.
pub(super) fn uuid(id: &str) -> Result<Uuid> {
    Uuid::parse_str(id)
        .map_err(|e| Error::new(ErrorKind::Database, format!("{id:?} is not an id")).because(e))
}

/// A column that holds a time.
pub(super) fn read_time(row: &SqliteRow, column: &str) -> Result<Timestamp> {
    let text: &str = get(row, column)?;
    time(text).ok_or_else(|| {
        Error::new(
            ErrorKind::Database,
            format!("{column} {text:?} is not a time"),
        )
    })
}

pub(super) fn record(row: &SqliteRow) -> Result<OutboxRecord> {
    let id: String = get(row, "id")?;
    let of_this = |e: Error| Error::new(e.kind(), format!("reading event {id}")).because(e);
    let read = |column, text: &str| {
        time(text).ok_or_else(|| {
            of_this(Error::new(
                ErrorKind::Database,
                format!("{column} {text:?} is not a time"),
            ))
        })
    };
    let at = |column| read(column, get(row, column)?);
    let maybe_at = |column| {
        get::<Option<&str>>(row, column)?
            .map(|text| read(column, text))
            .transpose()
    };
    // As bytes: SQLite takes any for text.
    let json: Option<Vec<u8>> = get(row, "payload")?;
    let is_json = json.is_some();
    let payload = match json {
        Some(json) => Bytes::from(json),
        None => get::<Option<Vec<u8>>>(row, "data")?
            .unwrap_or_default()
            .into(),
    };
    Ok(OutboxRecord {
        seq: get(row, "seq")?,
        id: self::id(row)?,
        tenant: get::<&str>(row, "tenant_id")?.parse()?,
        aggregate: Aggregate {
            kind: get(row, "aggregate_type")?,
            id: get(row, "aggregate_id")?,
        },
        event_type: get(row, "type")?,
        schema_id: get(row, "schema_id")?,
        schema_version: u32::try_from(get::<i64>(row, "schema_ver")?).unwrap_or(0),
        payload,
        is_json,
        content_type: get(row, "content_type")?,
        key_id: get(row, "key_id")?,
        headers: get(row, "headers")?,
        occurred_at: at("occurred_at")?,
        created_at: at("created_at")?,
        available_at: at("available_at")?,
        lost_attempts: u32::try_from(get::<i64>(row, "lost_attempts")?).unwrap_or(0),
        delivery: Delivery {
            status: get::<&str>(row, "status")?.parse()?,
            retry_cnt: u32::try_from(get::<i64>(row, "retry_cnt")?).unwrap_or(0),
            retry_at: maybe_at("retry_at")?,
            error_message: get(row, "error_message")?,
            sent_at: maybe_at("sent_at")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_time_that_sqlite_reads_is_read() {
        let noon = time("2013-01-01T12:00:00Z").unwrap();
        assert_eq!(noon.to_string(), "2013-01-01T12:00:00.000000Z");
        for text in [
            "2013-01-01 12:00:00",
            "2013-01-01T12:00",
            "2013-01-01 12:00:00.000",
            "2013-01-01T14:00:00+02:00",
            "2013-01-01T12:00:00.000000Z",
            "2013-01-01 12:00Z",
            "2013-01-01  12:00:00 z ",
            "2013-01-01 13:30 +01:30",
            "2013-01-01T10:00:00.0-02:00",
            "2012-12-32T12:00",
        ] {
            assert_eq!(time(text).unwrap(), noon, "{text}");
        }
        assert_eq!(
            time("2013-01-01").unwrap().to_string(),
            "2013-01-01T00:00:00.000000Z"
        );
        assert_eq!(
            time("2013-02-30 24:00:59.1234567").unwrap().to_string(),
            "2013-03-03T00:00:59.123456Z"
        );
        for text in ["", "nonsense", "2013", "2013-01", "2013-01-01 12"] {
            assert_eq!(time(text), None, "{text:?}");
        }
    }
}
