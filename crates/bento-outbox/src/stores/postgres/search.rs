//! What an operator looks for, and where a record stands.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, Postgres, QueryBuilder};
use uuid::Uuid;

use super::super::sql::error;
use super::PostgresStore;
use super::rows::{COLUMNS, columns_without_payload, get, record};
use crate::error::Result;
use crate::filter::{Filter, Page};
use crate::record::{OutboxRecord, Status};
use crate::standing::Standing;
use crate::store::{PARTITIONS, Relay};
use crate::timestamp::Timestamp;

/// Each state is searched by itself, because each has its own indexes, and the best of each make
/// the page.
pub(super) async fn events(
    store: &PostgresStore,
    filter: &Filter,
    page: &Page,
) -> Result<Vec<OutboxRecord>> {
    let (order, limit) = (
        if page.newest_first { "desc" } else { "asc" },
        i64::from(page.bounded()),
    );
    let statuses = match filter.status {
        Some(status) => &[status][..],
        None if filter.sent_since.is_some() => &[Status::Sent],
        None => &[Status::New, Status::Sent, Status::Err],
    };
    let columns = match page.payload {
        true => COLUMNS.into(),
        false => columns_without_payload(),
    };
    let mut statement = QueryBuilder::<Postgres>::new(format!("select {columns} from ("));
    for (at, status) in statuses.iter().enumerate() {
        statement.push(if at > 0 { " union all " } else { "" });
        statement.push(format!(
            "(select o.* from {} o where o.status = '{status}'",
            store.table()
        ));
        narrow(&mut statement, filter, page);
        statement
            .push(format!(" order by o.seq {order} limit "))
            .push_bind(limit)
            .push(")");
    }
    statement
        .push(format!(") found order by seq {order} limit "))
        .push_bind(limit);
    let rows = statement
        .build()
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("searching events", e))?;
    rows.iter().map(record).collect()
}

/// The conditions but for the status.
fn narrow(statement: &mut QueryBuilder<Postgres>, filter: &Filter, page: &Page) {
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
            .push(" and o.created_at >= ")
            .push_bind(since.to_chrono());
    }
    if let Some(until) = filter.until {
        statement
            .push(" and o.created_at < ")
            .push_bind(until.to_chrono());
    }
    if let Some(sent_since) = filter.sent_since {
        statement
            .push(" and o.sent_at >= ")
            .push_bind(sent_since.to_chrono());
    }
    if let Some(ids) = &filter.ids {
        statement.push(" and o.id = any(").push_bind(ids).push(")");
    }
}

pub(super) async fn standing(
    store: &PostgresStore,
    id: Uuid,
    dead_letters_block: bool,
) -> Result<Option<Standing>> {
    let looking = |e| error("looking where an event stands", e);
    let table = store.table();
    let row = sqlx::query(AssertSqlSafe(format!(
        "select {columns}, owner, lease_until, statement_timestamp() as now, ordering_key & {mask} as part,
                (select p.id from {table} p
                 where p.status <> 'SENT' and p.ordering_key = o.ordering_key and p.seq < o.seq
                   and (p.status = 'NEW' or $2) and o.status = 'NEW'
                 order by p.seq limit 1) as ahead
         from {table} o where id = $1",
        columns = columns_without_payload(),
        mask = PARTITIONS - 1,
    )))
    .bind(id)
    .bind(dead_letters_block)
    .fetch_optional(&store.pool)
    .await
    .map_err(looking)?;
    let Some(row) = row else { return Ok(None) };
    let time = |time: DateTime<Utc>| Timestamp::clamped(time.timestamp_micros());
    let part: i64 = get(&row, "part")?;
    let record = record(&row)?;
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let live: Vec<(Uuid, String, Option<DateTime<Utc>>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select r.id, r.scope, l.until
         from {relays} r left join {leases} l
              on l.owner = r.id and l.partition = $1 and l.until > clock_timestamp()
         where r.until > clock_timestamp() order by r.id"
    )))
    .bind(i16::try_from(part).unwrap_or(0))
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let carriers: Vec<_> = live
        .iter()
        .filter(|(_, scope, _)| Relay::scope_has(scope, &record.tenant))
        .collect();
    let owner: Option<Uuid> = get(&row, "owner")?;
    let lease_until: Option<DateTime<Utc>> = get(&row, "lease_until")?;
    Ok(Some(Standing {
        now: time(get(&row, "now")?),
        partition: u16::try_from(part).unwrap_or(0),
        born_to: owner.zip(lease_until.map(time)),
        ahead: get(&row, "ahead")?,
        held_by: carriers
            .iter()
            .find_map(|(id, _, until)| Some((*id, time((*until)?)))),
        relays: u32::try_from(carriers.len()).unwrap_or(u32::MAX),
        record,
    }))
}
