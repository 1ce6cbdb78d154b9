//! The operator's verbs.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::super::sql::error;
use super::claims::paused;
use super::rows::{COLUMNS, get, json, record, time};
use super::{NOW, SqliteStore, act};
use crate::error::Result;
use crate::inspection::{Inspection, LiveRelay};
use crate::record::OutboxRecord;
use crate::store::{HeldKey, TenantBacklog, TenantStatus};

pub(super) async fn find(store: &SqliteStore, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {COLUMNS} from {} where id in (select value from json_each(?1)) order by seq",
        store.table()
    )))
    .bind(json(ids)?)
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading events", e))?;
    rows.iter().map(record).collect()
}

/// The indexes of the tables, but for those of their keys.
const INDEXES: [&str; 8] = [
    "ready",
    "waiting",
    "holding",
    "unsent",
    "dead",
    "sent",
    "inbox_received",
    "commands_received",
];

/// A file has no rights of its own, and a clock that is this machine's.
pub(super) async fn inspect(store: &SqliteStore) -> Result<Inspection> {
    let looking = |e| error("looking at the database", e);
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let (server, clock): (String, String) = sqlx::query_as(AssertSqlSafe(format!(
        "select 'SQLite ' || sqlite_version(), {NOW}"
    )))
    .fetch_one(&store.pool)
    .await
    .map_err(looking)?;
    let mut missing = Vec::new();
    for index in INDEXES {
        let name = format!("{}_{index}", store.tables.table());
        let there: bool = sqlx::query_scalar(
            "select exists(select 1 from sqlite_schema where type = 'index' and name = ?1)",
        )
        .bind(&name)
        .fetch_one(&store.pool)
        .await
        .map_err(looking)?;
        missing.extend((!there).then_some(name));
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select r.id, r.scope, r.until,
                (select count(*) from {leases} l where l.owner = r.id and l.until > {NOW}) as partitions
         from {relays} r where r.until > {NOW} order by r.scope, r.id"
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let relay = |row: &SqliteRow| {
        Ok(LiveRelay {
            id: super::rows::uuid(get(row, "id")?)?,
            tenants: get(row, "scope")?,
            partitions: u32::try_from(count(row, "partitions")?).unwrap_or(0),
            until: super::rows::read_time(row, "until")?,
        })
    };
    Ok(Inspection {
        server: Some(server),
        clock: time(&clock),
        missing,
        relays: rows.iter().map(relay).collect::<Result<_>>()?,
        ..Inspection::default()
    })
}

pub(super) async fn status(store: &SqliteStore) -> Result<Vec<TenantStatus>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select tenant_id,
                count(*) filter (where status = 'NEW') as unsent,
                count(*) filter (where status = 'NEW' and retry_at is not null
                                   and error_message not in ({asides})) as retrying,
                count(*) filter (where status = 'NEW' and error_message in ({asides})) as aside,
                count(*) filter (where status = 'SENT') as sent,
                count(*) filter (where status = 'ERR') as dead,
                (julianday('now') - min(julianday(created_at)) filter (where status = 'NEW')) * 86400.0 as oldest,
                count(*) filter (where sent_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 minute')) / 60.0 as rate
         from {table} group by tenant_id order by tenant_id",
        table = store.table(),
        asides = act::asides(store),
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading the status", e))?;
    let tenants = rows.iter().map(|row| {
        Ok(TenantStatus {
            tenant_id: get(row, "tenant_id")?,
            new: count(row, "unsent")?.saturating_sub(count(row, "retrying")?),
            retrying: count(row, "retrying")?,
            paused_events: count(row, "aside")?,
            sent: count(row, "sent")?,
            dead: count(row, "dead")?,
            oldest_new_seconds: get::<Option<f64>>(row, "oldest")?.map(|age| age.max(0.0)),
            sent_per_second: get(row, "rate")?,
            paused: false,
        })
    });
    let mut tenants = tenants.collect::<Result<Vec<_>>>()?;
    TenantStatus::mark_paused(&mut tenants, &act::pauses(store).await?);
    Ok(tenants)
}

fn count(row: &SqliteRow, column: &str) -> Result<u64> {
    get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0))
}

pub(super) async fn backlog(store: &SqliteStore) -> Result<Vec<TenantBacklog>> {
    let rows: Vec<(String, i64, i64, Option<f64>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select o.tenant_id, sum(o.status = 'NEW'), sum(o.status = 'ERR'),
                86400.0 * (julianday('now') - min(case
                    when o.status = 'NEW' and julianday(o.available_at) <= julianday('now')
                         and aside.seq is null and not o.tenant_id {paused}
                    then max(julianday(o.created_at), julianday(o.available_at)) end))
         from {table} o left join (
             select ordering_key, min(seq) as seq from {table}
             where status = 'NEW' and error_message is not null and error_message in ({asides})
             group by ordering_key) aside on aside.ordering_key = o.ordering_key and aside.seq <= o.seq
         where o.status <> 'SENT' group by o.tenant_id order by o.tenant_id",
        table = store.table(),
        paused = paused(store),
        asides = act::asides(store),
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("counting what waits", e))?;
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    Ok(rows
        .into_iter()
        .map(|(tenant_id, pending, dead, oldest)| TenantBacklog {
            tenant_id,
            pending: count(pending),
            dead: count(dead),
            oldest_due_seconds: oldest.map(|age| age.max(0.0)),
        })
        .collect())
}

pub(super) async fn held_keys(store: &SqliteStore, limit: u32) -> Result<Vec<HeldKey>> {
    let table = store.table();
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select * from (
             select o.seq, o.tenant_id, o.aggregate_type, o.aggregate_id, o.id,
                    case when o.status = 'ERR' then 'dead'
                         when o.tenant_id {paused} then 'paused'
                         when o.retry_at > {NOW} and o.error_message in ({asides}) then 'paused'
                         when o.retry_at > {NOW} then 'retrying'
                         else 'delayed' end as because,
                    case when o.retry_at > {NOW} then o.retry_at else o.available_at end as until,
                    (select count(*) from {table} p
                     where p.ordering_key = o.ordering_key and p.seq > o.seq and p.status = 'NEW') as waiting
             from {table} o
             where o.aggregate_id is not null
               and (o.status = 'ERR' or o.status = 'NEW' and (o.retry_at > {NOW}
                                               or julianday(o.available_at) > julianday('now'))))
         where waiting > 0 order by seq limit ?1",
        paused = paused(store),
        asides = act::asides(store),
    )))
    .bind(i64::from(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading what waits", e))?;
    rows.iter()
        .map(|row| {
            let because: String = get(row, "because")?;
            let until = get::<Option<&str>>(row, "until")?
                .filter(|_| because != "dead" && because != "paused")
                .and_then(time);
            Ok(HeldKey {
                tenant_id: get(row, "tenant_id")?,
                aggregate_type: get(row, "aggregate_type")?,
                aggregate_id: get(row, "aggregate_id")?,
                id: super::rows::uuid(get(row, "id")?)?,
                because,
                until,
                waiting: count(row, "waiting")?,
            })
        })
        .collect()
}

pub(super) async fn purge(store: &SqliteStore, age: Duration, limit: u32) -> Result<u64> {
    let table = store.table();
    let gone = sqlx::query(AssertSqlSafe(format!(
        "delete from {table} where seq in (
             select seq from {table}
             where status = 'SENT' and sent_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?1)
             order by sent_at limit ?2)"
    )))
    .bind(format!("-{:.3} seconds", age.as_secs_f64()))
    .bind(i64::from(limit))
    .execute(&store.pool)
    .await
    .map_err(|e| error("purging sent events", e))?;
    Ok(gone.rows_affected())
}
