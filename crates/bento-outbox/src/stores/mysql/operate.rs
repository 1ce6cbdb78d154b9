//! The operator's verbs.

use std::time::Duration;

use chrono::NaiveDateTime;
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlRow;
use uuid::Uuid;

use super::super::sql::error;
use super::rows::{COLUMNS, get, literals, micros, record, time, uuid};
use super::{MySqlStore, act};
use crate::error::Result;
use crate::pause::ASIDE;
use crate::record::OutboxRecord;
use crate::store::{HeldKey, TenantBacklog, TenantStatus};

pub(super) async fn find(store: &MySqlStore, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::raw_sql(AssertSqlSafe(format!(
        "select {COLUMNS} from {} o where o.id in ({}) order by o.seq",
        store.table(),
        literals(ids)
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading events", e))?;
    rows.iter().map(record).collect()
}

pub(super) async fn status(store: &MySqlStore) -> Result<Vec<TenantStatus>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select tenant_id,
                count(case when status = 'NEW' and retry_at is null then 1 end) as new,
                count(case when status = 'NEW' and retry_at is not null then 1 end) as retrying,
                count(case when status = 'SENT' then 1 end) as sent,
                count(case when status = 'ERR' then 1 end) as dead,
                timestampdiff(microsecond, min(case when status = 'NEW' then created_at end), utc_timestamp(6))
                    as oldest,
                count(case when sent_at > utc_timestamp(6) - interval 1 minute then 1 end) as minute
         from {} group by tenant_id order by tenant_id",
        store.table()
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading the status", e))?;
    let count =
        |row: &MySqlRow, column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
    let tenants = rows.iter().map(|row| {
        let oldest: Option<i64> = get(row, "oldest")?;
        Ok(TenantStatus {
            tenant_id: get(row, "tenant_id")?,
            new: count(row, "new")?,
            retrying: count(row, "retrying")?,
            sent: count(row, "sent")?,
            dead: count(row, "dead")?,
            oldest_new_seconds: oldest.map(|micros| micros.max(0) as f64 / 1e6),
            sent_per_second: count(row, "minute")? as f64 / 60.0,
            paused: false,
        })
    });
    let mut tenants = tenants.collect::<Result<Vec<_>>>()?;
    TenantStatus::mark_paused(&mut tenants, &act::pauses(store).await?);
    Ok(tenants)
}

/// What is ready, what waits and what is dead is counted by the index of each, in which nothing is
/// that was sent.
pub(super) async fn backlog(store: &MySqlStore) -> Result<Vec<TenantBacklog>> {
    let of = |index: &str, condition: &str| {
        format!(
            "select tenant_id, dead, created_at, available_at from {} force index ({}) where {condition}",
            store.table(),
            store.index(index),
        )
    };
    let counted = format!(
        "select tenant_id, count(case when dead is null then 1 end) as pending, count(dead) as dead,
                timestampdiff(microsecond,
                    min(case when dead is null and available_at <= utc_timestamp(6)
                             then greatest(created_at, available_at) end), utc_timestamp(6)) as oldest
         from ({} union all {} union all {}) unsent group by tenant_id order by tenant_id",
        of("ready", "ready_tenant is not null"),
        of("waiting", "waiting_at is not null"),
        of("dead", "dead = 1"),
    );
    let rows = store.select("counting what waits", &counted).await?;
    rows.iter()
        .map(|row| {
            let count = |column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
            Ok(TenantBacklog {
                tenant_id: get(row, "tenant_id")?,
                pending: count("pending")?,
                dead: count("dead")?,
                oldest_due_seconds: get::<Option<i64>>(row, "oldest")?
                    .map(|micros| micros.max(0) as f64 / 1e6),
            })
        })
        .collect()
}

pub(super) async fn held_keys(store: &MySqlStore, limit: u32) -> Result<Vec<HeldKey>> {
    let (table, pauses, [before, after]) = (store.table(), store.helper("pauses"), ASIDE);
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select o.tenant_id, o.aggregate_type, o.aggregate_id, o.id,
                case when o.status = 'ERR' then 'dead'
                     when o.tenant_id in (select name from {pauses} where kind = 'tenant') then 'paused'
                     when o.retry_at > utc_timestamp(6) and o.error_message in (
                         select concat('{before}', name, '{after}') from {pauses} where kind = 'destination')
                     then 'paused'
                     when o.retry_at > utc_timestamp(6) then 'retrying'
                     else 'delayed' end as because,
                o.waiting_at as until,
                (select count(*) from {table} p
                 where p.unsent_key = o.unsent_key and p.seq > o.seq and p.dead is null) as waiting
         from {table} o
         where o.holding_key is not null and (o.dead = 1 or o.waiting_at > utc_timestamp(6))
         having waiting > 0 order by o.seq limit ?"
    )))
    .bind(limit)
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading what waits", e))?;
    rows.iter()
        .map(|row| {
            let because: String = get(row, "because")?;
            Ok(HeldKey {
                tenant_id: get(row, "tenant_id")?,
                aggregate_type: get(row, "aggregate_type")?,
                aggregate_id: get(row, "aggregate_id")?,
                id: uuid(get(row, "id")?)?,
                until: get::<Option<NaiveDateTime>>(row, "until")?
                    .filter(|_| because != "paused")
                    .map(time),
                because,
                waiting: u64::try_from(get::<i64>(row, "waiting")?).unwrap_or(0),
            })
        })
        .collect()
}

/// Only `SENT` records have a `sent_at`.
pub(super) async fn purge(store: &MySqlStore, age: Duration, limit: u32) -> Result<u64> {
    let gone = format!(
        "delete from {} where status = 'SENT' and sent_at < utc_timestamp(6) - interval {} microsecond
         order by sent_at limit {limit}",
        store.table(),
        micros(age)
    );
    Ok(store
        .execute("purging sent events", &gone, None)
        .await?
        .rows_affected())
}
