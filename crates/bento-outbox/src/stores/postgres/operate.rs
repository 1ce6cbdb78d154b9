//! The operator's verbs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::super::sql::error;
use super::claims::paused;
use super::rows::{COLUMNS, get, record};
use super::{PostgresStore, act, leases};
use crate::error::Result;
use crate::inspection::{Inspection, LiveRelay};
use crate::record::OutboxRecord;
use crate::store::{HeldKey, TenantBacklog, TenantStatus};
use crate::timestamp::Timestamp;

pub(super) async fn find(store: &PostgresStore, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {COLUMNS} from {} where id = any($1) order by seq",
        store.table()
    )))
    .bind(ids)
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading events", e))?;
    rows.iter().map(record).collect()
}

/// The indexes of the tables, but for those of their keys.
const INDEXES: [&str; 9] = [
    "ready",
    "waiting",
    "holding",
    "unsent",
    "dead",
    "sent",
    "history",
    "inbox_received",
    "commands_received",
];

pub(super) async fn inspect(store: &PostgresStore) -> Result<Inspection> {
    let looking = |e| error("looking at the database", e);
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let all = ["SELECT", "INSERT", "UPDATE", "DELETE"];
    let rights = [
        (store.table(), &all[..]),
        (leases.clone(), &all),
        (relays.clone(), &all),
        (store.helper("inbox"), &all),
        (store.helper("commands"), &all),
        (store.helper("pauses"), &["SELECT", "INSERT", "DELETE"]),
        (store.helper("audit"), &["SELECT", "INSERT"]),
        (store.helper("migrations"), &["SELECT"]),
    ];
    let (tables, verbs): (Vec<&str>, Vec<&str>) = rights
        .iter()
        .flat_map(|(table, verbs)| verbs.iter().map(move |verb| (table.as_str(), *verb)))
        .unzip();
    let (server, clock, oldest): (String, DateTime<Utc>, Option<f64>) = sqlx::query_as(
        "select split_part(version(), ' on ', 1), clock_timestamp(),
                (select extract(epoch from clock_timestamp() - min(xact_start))::float8 from pg_stat_activity
                 where backend_xmin is not null and pid <> pg_backend_pid() and datname = current_database())",
    )
    .fetch_one(&store.pool)
    .await
    .map_err(looking)?;
    let missing = sqlx::query_scalar(
        "select name from unnest($2::text[]) as name
         where not exists (select from pg_index join pg_class on pg_class.oid = indexrelid
                           where indrelid = any($1::regclass[]) and relname = name and indisvalid)",
    )
    .bind([
        store.table(),
        store.helper("inbox"),
        store.helper("commands"),
    ])
    .bind(INDEXES.map(|name| format!("{}_{name}", store.tables.table())))
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let forbidden: Vec<String> = sqlx::query_scalar(
        "select lower(verb) || ' on ' || name from unnest($1::text[], $2::text[]) as rights(name, verb)
         where not has_table_privilege(name, verb)",
    )
    .bind(tables)
    .bind(verbs)
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let hidden = sqlx::query_scalar(
        "select name from unnest($1::text[]) as name where row_security_active(name)",
    )
    .bind(leases::seen_whole(store))
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let mut inspection = Inspection {
        server: Some(server),
        clock: Some(Timestamp::clamped(clock.timestamp_micros())),
        missing,
        forbidden,
        hidden,
        oldest_transaction_seconds: oldest,
        ..Inspection::default()
    };
    // Who may not see the relays is told so.
    let may_see = |table: &str| !inspection.forbidden.contains(&format!("select on {table}"));
    if !may_see(&leases) || !may_see(&relays) {
        return Ok(inspection);
    }
    let live: Vec<(Uuid, String, i64, DateTime<Utc>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select r.id, r.scope, count(l.partition), r.until
         from {relays} r left join {leases} l on l.owner = r.id and l.until > clock_timestamp()
         where r.until > clock_timestamp() group by r.id order by r.scope, r.id"
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(looking)?;
    let relays = live
        .into_iter()
        .map(|(id, tenants, partitions, until)| LiveRelay {
            id,
            tenants,
            partitions: u32::try_from(partitions).unwrap_or(0),
            until: Timestamp::clamped(until.timestamp_micros()),
        });
    inspection.relays = relays.collect();
    Ok(inspection)
}

pub(super) async fn status(store: &PostgresStore) -> Result<Vec<TenantStatus>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select tenant_id,
                count(*) filter (where status = 'NEW') as unsent,
                count(*) filter (where status = 'NEW' and retry_at is not null
                                   and error_message <> all({asides})) as retrying,
                count(*) filter (where status = 'NEW' and error_message = any({asides})) as aside,
                count(*) filter (where status = 'SENT') as sent,
                count(*) filter (where status = 'ERR') as dead,
                extract(epoch from clock_timestamp() - min(created_at) filter (where status = 'NEW'))::float8
                    as oldest,
                count(*) filter (where sent_at > clock_timestamp() - interval '1 minute') / 60.0::float8 as rate
         from {table} group by tenant_id order by tenant_id collate \"C\"",
        table = store.table(),
        asides = act::asides(store),
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading the status", e))?;
    let count =
        |row: &PgRow, column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
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

pub(super) async fn backlog(store: &PostgresStore) -> Result<Vec<TenantBacklog>> {
    let rows: Vec<(String, i64, i64, Option<f64>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select o.tenant_id, count(*) filter (where o.status = 'NEW'), count(*) filter (where o.status = 'ERR'),
                extract(epoch from clock_timestamp() - min(greatest(o.created_at, o.available_at))
                    filter (where o.status = 'NEW' and o.available_at <= clock_timestamp()
                              and aside.seq is null and o.tenant_id <> {paused}))::float8
         from {table} o left join (
             select ordering_key, min(seq) as seq from {table}
             where status = 'NEW' and error_message is not null and error_message = any({asides})
             group by ordering_key) aside on aside.ordering_key = o.ordering_key and aside.seq <= o.seq
         where o.status <> 'SENT' group by o.tenant_id order by o.tenant_id collate \"C\"",
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

pub(super) async fn held_keys(store: &PostgresStore, limit: u32) -> Result<Vec<HeldKey>> {
    let table = store.table();
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select o.tenant_id, o.aggregate_type, o.aggregate_id, o.id,
                case when o.status = 'ERR' then 'dead'
                     when not o.tenant_id <> {paused} then 'paused'
                     when o.retry_at > statement_timestamp() and o.error_message = any({asides}) then 'paused'
                     when o.retry_at > statement_timestamp() then 'retrying'
                     else 'delayed' end as because,
                greatest(o.retry_at, o.available_at) as until, behind.waiting
         from {table} o,
              lateral (select count(*) as waiting from {table} p
                       where p.ordering_key = o.ordering_key and p.seq > o.seq and p.status = 'NEW') behind
         where o.aggregate_id is not null and behind.waiting > 0
           and (o.status = 'ERR' or o.status = 'NEW' and (o.retry_at > statement_timestamp()
                                                       or o.available_at > statement_timestamp()))
         order by o.seq limit $1",
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
            let until = get::<Option<DateTime<Utc>>>(row, "until")?
                .filter(|_| because != "dead" && because != "paused")
                .map(|time| Timestamp::clamped(time.timestamp_micros()));
            Ok(HeldKey {
                tenant_id: get(row, "tenant_id")?,
                aggregate_type: get(row, "aggregate_type")?,
                aggregate_id: get(row, "aggregate_id")?,
                id: get(row, "id")?,
                because,
                until,
                waiting: u64::try_from(get::<i64>(row, "waiting")?).unwrap_or(0),
            })
        })
        .collect()
}

pub(super) async fn purge(store: &PostgresStore, age: Duration, limit: u32) -> Result<u64> {
    let table = store.table();
    let gone = sqlx::query(AssertSqlSafe(format!(
        "delete from {table} where status = 'SENT' and id = any(array(
             select id from {table}
             where status = 'SENT' and sent_at < clock_timestamp() - $1 * interval '1 second'
             order by sent_at limit $2 for update skip locked))"
    )))
    .bind(age.as_secs_f64())
    .bind(i64::from(limit))
    .execute(&store.pool)
    .await
    .map_err(|e| error("purging sent events", e))?;
    Ok(gone.rows_affected())
}
