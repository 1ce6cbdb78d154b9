//! How events are written: all of a unit of work in one statement, where it fits into a packet.

use std::collections::HashSet;

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::{AssertSqlSafe, MySql, QueryBuilder};
use uuid::Uuid;

use super::super::sql::error;
use super::rows::{get, literals, micros, time, uuid};
use super::{DUPLICATE, MySqlStore, number};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Payload};
use crate::record::OutboxRecord;
use crate::store::{Appended, Birth};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// The most rows of one statement: it may have 65,535 parameters, of which a row has up to 17.
const ROWS_MAX: usize = 2_000;

/// The most bytes of one statement with several rows. Every server takes packets of this size
/// unless it is told not to; what is longer is asked for.
const BYTES_MAX: usize = 1 << 20;

/// What a row needs besides its texts, at most.
const ROW_BYTES: usize = 512;

/// Statements of so few rows are kept prepared.
const PREPARED_MAX: usize = 8;

/// MySQL has no `returning`, and its `insert ignore` would also ignore what is wrong with an event.
/// So events are inserted as if none was there already. If one is, the database has undone that
/// statement alone, and the others are inserted without it.
pub(super) async fn append(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    tenant: &Tenant,
    events: &[Event],
    birth: Option<&Birth>,
) -> Result<Appended> {
    let mut given = HashSet::with_capacity(events.len());
    let once: Vec<&Event> = events
        .iter()
        .filter(|event| given.insert(event.id))
        .collect();
    let (mut written, mut leased) = (Vec::with_capacity(once.len()), Vec::new());
    let mut first = None;
    for mut rows in statements(&once) {
        refuse_oversized(connection, &rows).await?;
        let inserted = loop {
            if rows.is_empty() {
                break None;
            }
            match insert(store, connection, tenant, &rows, birth).await {
                Ok(seq) => break Some(seq),
                Err(e) if number(&e) == Some(DUPLICATE) => {
                    leave_out_what_is_there(store, connection, &mut rows, e).await?;
                }
                Err(e) => return Err(error("appending events", e)),
            }
        };
        first = first.or(inserted);
        if let (Some(birth), Some(first)) = (birth, first) {
            leased.extend(born(store, connection, tenant, &rows, birth, first).await?);
        }
        written.extend(rows.iter().map(|event| event.id));
    }
    leased.sort_unstable_by_key(|record: &OutboxRecord| record.seq);
    Ok(Appended {
        leased,
        ..Appended::of(events, written)
    })
}

/// Events in groups that each fit into one statement, in their order.
fn statements<'a>(events: &[&'a Event]) -> Vec<Vec<&'a Event>> {
    let mut statements: Vec<Vec<&Event>> = Vec::new();
    let mut bytes = 0;
    for event in events {
        match statements.last_mut() {
            Some(rows) if rows.len() < ROWS_MAX && bytes + size(event) <= BYTES_MAX => {
                rows.push(event);
                bytes += size(event);
            }
            _ => {
                statements.push(vec![event]);
                bytes = size(event);
            }
        }
    }
    statements
}

/// About how many bytes a row takes in a packet.
fn size(event: &Event) -> usize {
    let texts = [
        &event.aggregate.kind,
        &event.aggregate.id,
        &event.schema_id,
        &event.key_id,
    ];
    let texts: usize = texts.into_iter().flatten().map(String::len).sum();
    ROW_BYTES
        + texts
        + event.event_type.len()
        + event.content_type.len()
        + event.headers.to_json().len()
        + event.payload.as_bytes().len()
}

/// The server would cut the connection, and the transaction with it, before it said why.
async fn refuse_oversized(connection: &mut MySqlConnection, rows: &[&Event]) -> Result<()> {
    let needed: usize = rows.iter().map(|event| size(event)).sum();
    let (true, [event, ..]) = (needed > BYTES_MAX, rows) else {
        return Ok(());
    };
    let taken: u64 = sqlx::query_scalar("select cast(@@max_allowed_packet as unsigned)")
        .fetch_one(connection)
        .await
        .map_err(|e| error("asking for max_allowed_packet", e))?;
    if needed as u64 <= taken {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidEvent,
        format!(
            "event {} needs a packet of {needed} bytes, and the server's max_allowed_packet is {taken}: raise it, or \
             store the payload elsewhere and raise an event that refers to it",
            event.id
        ),
    ))
}

/// Inserts rows; answers the `seq` of the first. With a `birth` they are leased to it if they are
/// due, whatever their keys.
async fn insert(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    tenant: &Tenant,
    rows: &[&Event],
    birth: Option<&Birth>,
) -> Result<i64, sqlx::Error> {
    let owner = birth.map(|birth| birth.owner.to_string());
    let mut statement = QueryBuilder::<MySql>::new("insert into ");
    statement.push(store.table()).push(
        " (id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data, content_type,
           key_id, headers, json_checked, occurred_at, created_at, available_at, owner, lease_until) ",
    );
    statement.push_values(rows, |mut row, event| {
        let (json, data) = match &event.payload {
            Payload::Json(json) => (Some(json.get()), None),
            Payload::Data(data) => (None, Some(&data[..])),
        };
        let naive = |time: Timestamp| time.to_chrono().naive_utc();
        row.push_bind(event.id.to_string())
            .push_bind(event.tenant.as_ref().unwrap_or(tenant).as_str())
            .push_bind(event.aggregate.kind.as_deref())
            .push_bind(event.aggregate.id.as_deref())
            .push_bind(event.event_type.as_str())
            .push_bind(event.schema_id.as_deref())
            .push_bind(event.schema_version)
            .push_bind(json)
            .push_bind(data)
            .push_bind(event.content_type.as_str())
            .push_bind(event.key_id.as_deref())
            .push_bind(event.headers.to_json())
            .push("true")
            .push_bind(naive(event.occurred_at));
        for given in [event.created_at, event.available_at] {
            match given {
                Some(time) => row.push_bind(naive(time)),
                None => row.push("utc_timestamp(6)"),
            };
        }
        match (birth, event.available_at) {
            (Some(birth), None) => row
                .push_bind(owner.clone())
                .push("utc_timestamp(6) + interval ")
                .push_bind_unseparated(micros(birth.term))
                .push_unseparated(" microsecond"),
            _ => row.push("null").push("null"),
        };
    });
    let done = statement
        .build()
        .persistent(rows.len() <= PREPARED_MAX)
        .execute(connection)
        .await?;
    Ok(i64::try_from(done.last_insert_id()).unwrap_or(i64::MAX))
}

/// Takes the events out that the database has already. It looks with a lock, which sees what others
/// have committed, whatever the isolation of the transaction.
async fn leave_out_what_is_there(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    rows: &mut Vec<&Event>,
    refused: sqlx::Error,
) -> Result<()> {
    let there: Vec<MySqlRow> = sqlx::raw_sql(AssertSqlSafe(format!(
        "select id from {} where id in ({}) lock in share mode",
        store.table(),
        literals(rows.iter().map(|event| &event.id))
    )))
    .fetch_all(connection)
    .await
    .map_err(|e| error("looking for events that are there already", e))?;
    let there: HashSet<Uuid> = there
        .iter()
        .map(|row| uuid(get(row, "id")?))
        .collect::<Result<_>>()?;
    if there.is_empty() {
        // It was there, and its transaction has undone it since.
        return Err(Error::new(
            ErrorKind::Conflict,
            "an event with the same id was being written at the same time; trying again may succeed",
        )
        .because(refused));
    }
    rows.retain(|event| !there.contains(&event.id));
    Ok(())
}

/// The rows that stay leased, of those that were just inserted: those of whose key nothing before
/// `first` is unsent, where nothing is paused that they may belong to. The others become anybody's. All within the transaction that nobody sees into.
async fn born(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    tenant: &Tenant,
    rows: &[&Event],
    birth: &Birth,
    first: i64,
) -> Result<Vec<OutboxRecord>> {
    let table = store.table();
    let found = sqlx::raw_sql(AssertSqlSafe(format!(
        "select o.id, o.seq, o.created_at,
                (select 1 from {table} p where p.unsent_key = o.unsent_key and p.seq < {first} limit 1) is not null
                or exists(select 1 from {pauses} where kind = 'destination')
                or o.tenant_id in (select name from {pauses} where kind = 'tenant') as held
         from {table} o where o.id in ({}) and o.owner = '{}'",
        literals(rows.iter().map(|event| &event.id)),
        birth.owner,
        pauses = store.helper("pauses"),
    )))
    .fetch_all(&mut *connection)
    .await
    .map_err(|e| error("appending events", e))?;
    let (mut leased, mut held) = (Vec::new(), Vec::new());
    for row in &found {
        let id = uuid(get(row, "id")?)?;
        if get::<i64>(row, "held")? == 1 {
            held.push(id);
        } else if let Some(event) = rows.iter().find(|event| event.id == id) {
            let written_at = time(get(row, "created_at")?);
            leased.push(OutboxRecord::of(
                event,
                tenant,
                get(row, "seq")?,
                written_at,
            ));
        }
    }
    if !held.is_empty() {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "update {table} set owner = null, lease_until = null where id in ({})",
            literals(&held)
        )))
        .execute(connection)
        .await
        .map_err(|e| error("appending events", e))?;
    }
    Ok(leased)
}
