//! How rows of SQLite become records, and events and settlements become its one JSON parameter.

use std::cell::RefCell;

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
use crate::store::Verdict;
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

/// The record of a row, or what is nearest to it: SQLite takes any bytes for text.
pub(super) fn record(row: &SqliteRow) -> Result<OutboxRecord> {
    let read = Reader {
        row,
        fault: RefCell::new(None),
    };
    // As bytes: the payload goes out as it is.
    let json: Option<Vec<u8>> = read.get("payload");
    let is_json = json.is_some();
    let payload = match json {
        Some(json) => json,
        None => read.get::<Option<Vec<u8>>>("data").unwrap_or_default(),
    };
    let moment = |column| read.time(column).unwrap_or(Timestamp::clamped(0));
    let number = |column| u32::try_from(read.get::<i64>(column)).unwrap_or(0);
    let record = OutboxRecord {
        seq: get(row, "seq")?,
        id: id(row)?,
        tenant: get::<&str>(row, "tenant_id")?.parse()?,
        aggregate: Aggregate {
            kind: read.text_if_any("aggregate_type"),
            id: read.text_if_any("aggregate_id"),
        },
        event_type: read.text("type"),
        schema_id: read.text_if_any("schema_id"),
        schema_version: number("schema_ver"),
        payload: payload.into(),
        is_json,
        content_type: read.text("content_type"),
        key_id: read.text_if_any("key_id"),
        headers: read.text("headers"),
        occurred_at: moment("occurred_at"),
        created_at: moment("created_at"),
        available_at: moment("available_at"),
        lost_attempts: number("lost_attempts"),
        delivery: Delivery {
            status: get::<&str>(row, "status")?.parse()?,
            retry_cnt: number("retry_cnt"),
            retry_at: read.time("retry_at"),
            error_message: read.text_if_any("error_message"),
            sent_at: read.time("sent_at"),
        },
        unreadable: None,
    };
    let unreadable = read.fault.into_inner();
    Ok(OutboxRecord {
        unreadable,
        ..record
    })
}

/// Reads what can be read of a row, and keeps the first thing that cannot.
struct Reader<'r> {
    row: &'r SqliteRow,
    fault: RefCell<Option<String>>,
}

impl<'r> Reader<'r> {
    fn get<T>(&self, column: &str) -> T
    where
        T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite> + Default,
    {
        get(self.row, column).unwrap_or_else(|_| {
            self.blame(column, "holds a value of another kind");
            T::default()
        })
    }

    fn text_if_any(&self, column: &str) -> Option<String> {
        let text = String::from_utf8(self.get::<Option<Vec<u8>>>(column)?);
        Some(text.unwrap_or_else(|bytes| {
            self.blame(column, "is not UTF-8");
            String::from_utf8_lossy(bytes.as_bytes()).into_owned()
        }))
    }

    fn text(&self, column: &str) -> String {
        self.text_if_any(column).unwrap_or_default()
    }

    fn time(&self, column: &str) -> Option<Timestamp> {
        let time = time(&self.text_if_any(column)?);
        if time.is_none() {
            self.blame(column, "is not a time");
        }
        time
    }

    fn blame(&self, column: &str, what: &str) {
        let fault =
            || format!("column {column} {what}: write the event anew, and discard this one");
        self.fault.borrow_mut().get_or_insert_with(fault);
    }
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
