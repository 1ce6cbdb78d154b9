//! What an operator looks for, and where a record stands.

use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite};
use uuid::Uuid;

use super::super::sql::error;
use super::rows::{COLUMNS, columns_without_payload, get, json, read_time, record, uuid};
use super::{NOW, SqliteStore};
use crate::error::Result;
use crate::filter::{Filter, Page};
use crate::record::{OutboxRecord, Status};
use crate::standing::Standing;
use crate::store::Relay;

/// What is not sent is found by the index of it, and the rest in the order of the table itself.
pub(super) async fn events(
    store: &SqliteStore,
    filter: &Filter,
    page: &Page,
) -> Result<Vec<OutboxRecord>> {
    let (table, order) = (
        store.table(),
        if page.newest_first { "desc" } else { "asc" },
    );
    let index = |name: &str| format!("indexed by \"{}_{name}\"", store.tables.table());
    let columns = match page.payload {
        true => COLUMNS.into(),
        false => columns_without_payload(),
    };
    let place = match (filter.status, &filter.ids, filter.sent_since) {
        (_, Some(_), _) => format!("{table} o where true"),
        // A cross join is done in the order in which it is written.
        (Some(Status::New), ..) => format!(
            "(select seq as place from {table} {} where status <> 'SENT') unsent
             cross join {table} o on o.seq = unsent.place where true",
            index("unsent")
        ),
        (Some(Status::Err), ..) => format!("{table} o {} where o.status = 'ERR'", index("dead")),
        (_, _, Some(_)) => format!("{table} o {} where o.status = 'SENT'", index("sent")),
        _ => format!("{table} o where true"),
    };
    let mut statement = QueryBuilder::<Sqlite>::new(format!("select {columns} from {place}"));
    if let Some(status) = filter.status {
        statement.push(format!(" and o.status = '{status}'"));
    }
    narrow(&mut statement, filter, page)?;
    statement
        .push(format!(" order by o.seq {order} limit "))
        .push_bind(i64::from(page.bounded()));
    let rows = statement
        .build()
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("searching events", e))?;
    rows.iter().map(record).collect()
}

/// The conditions but for the status.
fn narrow(statement: &mut QueryBuilder<Sqlite>, filter: &Filter, page: &Page) -> Result<()> {
    if let Some(after) = page.after {
        statement
            .push(match page.newest_first {
                true => " and o.seq < ",
                false => " and o.seq > ",
            })
            .push_bind(after);
    }
    if let Some(tenant) = &filter.tenant {
        statement
            .push(" and o.tenant_id = ")
            .push_bind(tenant.as_str());
    }
    if let Some(event_type) = &filter.event_type {
        statement.push(" and o.type = ").push_bind(event_type);
    }
    if let Some(aggregate_id) = &filter.aggregate_id {
        statement
            .push(" and o.aggregate_id = ")
            .push_bind(aggregate_id);
    }
    if let Some(since) = filter.since {
        statement
            .push(" and julianday(o.created_at) >= julianday(")
            .push_bind(since.to_string())
            .push(")");
    }
    if let Some(until) = filter.until {
        statement
            .push(" and julianday(o.created_at) < julianday(")
            .push_bind(until.to_string())
            .push(")");
    }
    if let Some(sent_since) = filter.sent_since {
        // The library writes it in this one form, so that texts may be compared.
        statement
            .push(" and o.sent_at >= strftime('%Y-%m-%dT%H:%M:%fZ', ")
            .push_bind(sent_since.to_string())
            .push(")");
    }
    if let Some(ids) = &filter.ids {
        statement
            .push(" and o.id in (select value from json_each(")
            .push_bind(json(ids)?)
            .push("))");
    }
    Ok(())
}

pub(super) async fn standing(
    store: &SqliteStore,
    id: Uuid,
    dead_letters_block: bool,
) -> Result<Option<Standing>> {
    let looking = |e| error("looking where an event stands", e);
    let table = store.table();
    let row = sqlx::query(AssertSqlSafe(format!(
        "select {columns}, owner, lease_until, {NOW} as now, partition,
                (select p.id from {table} p
                 where p.status <> 'SENT' and p.ordering_key = o.ordering_key and p.seq < o.seq
                   and (p.status = 'NEW' or ?2) and o.status = 'NEW'
                 order by p.seq limit 1) as ahead
         from {table} o where o.id = ?1",
        columns = columns_without_payload(),
    )))
    .bind(id.to_string())
    .bind(dead_letters_block)
    .fetch_optional(&store.pool)
    .await
    .map_err(looking)?;
    let Some(row) = row else { return Ok(None) };
    let partition: i64 = get(&row, "partition")?;
    let record = record(&row)?;
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let live = sqlx::query(AssertSqlSafe(format!(
        "select r.id, r.scope, l.until
         from {relays} r left join {leases} l on l.owner = r.id and l.partition = ?1 and l.until > {NOW}
         where r.until > {NOW} order by r.id"
    )))
    .bind(partition)
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let (mut held_by, mut carriers) = (None, 0);
    for relay in &live {
        if !Relay::scope_has(get(relay, "scope")?, &record.tenant) {
            continue;
        }
        carriers += 1;
        if get::<Option<&str>>(relay, "until")?.is_some() {
            held_by = Some((uuid(get(relay, "id")?)?, read_time(relay, "until")?));
        }
    }
    let owner = get::<Option<&str>>(&row, "owner")?.map(uuid).transpose()?;
    let born_to = match owner {
        Some(owner) => Some((owner, read_time(&row, "lease_until")?)),
        None => None,
    };
    Ok(Some(Standing {
        now: read_time(&row, "now")?,
        partition: u16::try_from(partition).unwrap_or(0),
        born_to,
        ahead: get::<Option<&str>>(&row, "ahead")?.map(uuid).transpose()?,
        held_by,
        relays: carriers,
        record,
    }))
}
