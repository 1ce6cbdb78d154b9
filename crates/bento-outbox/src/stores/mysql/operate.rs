//! The operator's verbs.

use std::time::Duration;

use chrono::NaiveDateTime;
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlRow;
use uuid::Uuid;

use super::super::sql::error;
use super::claims::paused;
use super::rows::{COLUMNS, get, literals, micros, record, time, uuid};
use super::{MySqlStore, act};
use crate::error::Result;
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
                count(case when status = 'NEW' then 1 end) as unsent,
                count(case when status = 'NEW' and retry_at is not null and error_message not in ({asides})
                           then 1 end) as retrying,
                count(case when status = 'NEW' and error_message in ({asides}) then 1 end) as aside,
                count(case when status = 'SENT' then 1 end) as sent,
                count(case when status = 'ERR' then 1 end) as dead,
                timestampdiff(microsecond, min(case when status = 'NEW' then created_at end), utc_timestamp(6))
                    as oldest,
                count(case when sent_at > utc_timestamp(6) - interval 1 minute then 1 end) as minute
         from {table} group by tenant_id order by tenant_id",
        table = store.table(),
        asides = act::asides(store),
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
            new: count(row, "unsent")?.saturating_sub(count(row, "retrying")?),
            retrying: count(row, "retrying")?,
            paused_events: count(row, "aside")?,
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
            "select tenant_id, dead, created_at, available_at, ordering_key, seq
             from {} force index ({}) where {condition}",
            store.table(),
            store.index(index),
        )
    };
    let counted = format!(
        "select tenant_id, count(case when dead is null then 1 end) as pending, count(dead) as dead,
                timestampdiff(microsecond,
                    min(case when dead is null and available_at <= utc_timestamp(6)
                                  and aside.seq is null and tenant_id not in ({paused})
                             then greatest(created_at, available_at) end), utc_timestamp(6)) as oldest
         from ({ready} union all {waiting} union all {dead}) unsent left join (
             select ordering_key, min(seq) as seq from {table} force index ({index})
             where waiting_at is not null and error_message in ({asides})
             group by ordering_key) aside on aside.ordering_key = unsent.ordering_key and aside.seq <= unsent.seq
         group by tenant_id order by tenant_id",
        ready = of("ready", "ready_tenant is not null"),
        waiting = of("waiting", "waiting_at is not null"),
        dead = of("dead", "dead = 1"),
        table = store.table(),
        index = store.index("waiting"),
        paused = paused(store),
        asides = act::asides(store),
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
    let table = store.table();
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select o.tenant_id, o.aggregate_type, o.aggregate_id, o.id,
                case when o.status = 'ERR' then 'dead'
                     when o.tenant_id in ({paused}) then 'paused'
                     when o.retry_at > utc_timestamp(6) and o.error_message in ({asides}) then 'paused'
                     when o.retry_at > utc_timestamp(6) then 'retrying'
                     else 'delayed' end as because,
                o.waiting_at as until,
                (select count(*) from {table} p
                 where p.unsent_key = o.unsent_key and p.seq > o.seq and p.dead is null) as waiting
         from {table} o
         where o.holding_key is not null and (o.dead = 1 or o.waiting_at > utc_timestamp(6))
         having waiting > 0 order by o.seq limit ?",
        paused = paused(store),
        asides = act::asides(store),
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
