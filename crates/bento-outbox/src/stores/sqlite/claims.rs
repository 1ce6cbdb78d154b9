//! What a relay reads, and what it or the immediate path writes back.

use std::collections::HashMap;
use std::time::Instant;

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::super::backlog::tenants_max;
use super::super::sql::{error, keep_taken};
use super::rows::{COLUMNS, Failed, get, json, record};
use super::{NOW, SqliteStore, act};
use crate::error::{Error, Result};
use crate::store::{Claim, Claimed, Fence, PARTITIONS, Settle, Verdict};

/// The time of a claim. SQLite's own `'now'` moves on between the rows of one select: an earlier
/// record could be not yet due and a later one of its key no longer held.
const CLOCK: &str = "with recursive clock as materialized (
    select strftime('%Y-%m-%dT%H:%M:%fZ', 'now') as now, julianday('now') as day)";

/// A record that can go at once but for a birth lease: neither delayed nor failed before. An index
/// has these words, and those of the next two. Writers may give `available_at` in any form that
/// SQLite knows; the other times are the library's own and compare as text.
const READY: &str = "o.status = 'NEW' and o.error_message is null
    and julianday(o.available_at) <= julianday(o.written_at)";

/// A record that was delayed or has failed before, and has not gone yet; and when it is due.
pub(super) const WAITING: &str = "o.status = 'NEW'
    and (o.error_message is not null or julianday(o.available_at) > julianday(o.written_at))";
pub(super) const DUE_AT: &str =
    "max(julianday(o.available_at), coalesce(julianday(o.retry_at), 0))";

/// Nobody but the unit of work that wrote it may publish it yet.
const BORN: &str = "(o.owner is not null and o.lease_until > (select now from clock))";

/// Whether nothing of its key goes before a ready record: nothing that was delayed, has failed or
/// is its writer's. Ready ones before it are read before it.
fn nothing_holds_ready(table: &str) -> String {
    format!(
        "(not ?1 or not exists (select 1 from {table} p
              where (p.status = 'ERR' or p.status = 'NEW' and (p.error_message is not null
                     or julianday(p.available_at) > julianday(p.written_at) or p.owner is not null))
                and p.ordering_key = o.ordering_key and p.seq < o.seq
                and (p.status = 'NEW' or ?2) and p.seq not in (select value from json_each(?3))))"
    )
}

/// Whether nothing of its key goes before a waiting record: they are found by their time, so what
/// goes first must be gone.
fn nothing_holds_waiting(table: &str) -> String {
    format!(
        "(not ?1 or not exists (select 1 from {table} p
              where p.status <> 'SENT' and p.ordering_key = o.ordering_key and p.seq < o.seq
                and (p.status = 'NEW' or ?2) and p.seq not in (select value from json_each(?3))))"
    )
}

/// Whether a record is in a partition that the relay holds, of a tenant that it carries.
const OURS: &str = "(?6 is null or o.tenant_id in (select value from json_each(?6)))";

/// Whether a tenant is paused.
pub(super) fn paused(store: &SqliteStore) -> String {
    let pauses = store.helper("pauses");
    format!("in (select name from {pauses} where kind = 'tenant')")
}
const HELD: &str = "(?4 or o.partition in (select value from json_each(?5)))";

/// Waiting records that have come due while their tenant is paused: each claim would step over them.
pub(super) fn due_but_paused(store: &SqliteStore) -> String {
    format!(
        "select o.seq from {table} o
         where {WAITING} and {DUE_AT} <= julianday('now') and o.tenant_id {paused}",
        table = store.table(),
        paused = paused(store),
    )
}

pub(super) async fn claim(store: &SqliteStore, claim: &Claim<'_>) -> Result<Claimed> {
    let mut rows = Vec::new();
    if !claim.leases.is_empty() {
        let is_fresh = store.backlog.is_fresh();
        if !is_fresh {
            list_tenants(store).await?;
        }
        rows = read(store, claim).await?;
        if rows.is_empty() && is_fresh {
            list_tenants(store).await?;
            rows = read(store, claim).await?;
        }
    }
    let mut records = rows.iter().map(record).collect::<Result<Vec<_>>>()?;
    let mut orphans = Vec::new();
    for (row, record) in rows.iter().zip(&records) {
        if get::<Option<&str>>(row, "owner")?.is_some() {
            orphans.push(record.id);
        }
    }
    if !orphans.is_empty() {
        let taken = take_over(store, &orphans, claim).await?;
        keep_taken(&mut records, &orphans, &taken);
    }
    if records.is_empty() {
        return what_is_left(store, claim).await;
    }
    Ok(Claimed {
        records,
        ..Claimed::default()
    })
}

async fn read(store: &SqliteStore, claim: &Claim<'_>) -> Result<Vec<SqliteRow>> {
    let table = store.table();
    let tenants = store.backlog.turn(claim.relay, tenants_max(claim.limit));
    let statement = format!(
        "{CLOCK}, waiting as materialized (
             select o.seq from {table} o
             where {WAITING} and {DUE_AT} <= (select day from clock) and not {BORN} and {HELD} and {OURS}
               and not o.tenant_id {paused} and o.seq not in (select value from json_each(?3)) and {waiting_goes}
             order by {DUE_AT} limit ?7 / 2 + ?7 % 2),
         turn as materialized (
             select value as tenant from json_each(?8) where not value {paused}),
         share as materialized (
             select (?7 - (select count(*) from waiting)) / max(1, (select count(*) from turn)) as most)
         select {COLUMNS}, owner from {table}
         where seq in (select seq from waiting)
         union all
         select {COLUMNS}, owner from turn cross join {table} r
         where r.seq in (
             select o.seq from {table} o
             where {READY} and o.tenant_id = turn.tenant and not {BORN} and {HELD}
               and o.seq not in (select value from json_each(?3)) and {ready_goes}
             order by o.seq limit (select most from share))
         order by seq",
        paused = paused(store),
        waiting_goes = nothing_holds_waiting(&table),
        ready_goes = nothing_holds_ready(&table),
    );
    of_claim(&statement, claim)?
        .bind(i64::from(claim.limit))
        .bind(json(&tenants)?)
        .fetch_all(&store.pool)
        .await
        .map_err(claiming)
}

/// Lists the tenants that have ready records and are not paused, by jumping from one to the next in the index.
async fn list_tenants(store: &SqliteStore) -> Result<()> {
    let begun = Instant::now();
    let table = store.table();
    let listed: Vec<(String, bool)> = sqlx::query_as(AssertSqlSafe(format!(
        "with recursive t(tenant) as (
             select min(o.tenant_id) from {table} o where {READY}
             union all
             select (select min(o.tenant_id) from {table} o where {READY} and o.tenant_id > t.tenant)
             from t where t.tenant is not null)
         select tenant, false from t where tenant is not null and not tenant {paused}
         union all
         select '', true where exists (select 1 from {pauses} where kind = 'tenant') and exists ({stale})",
        paused = paused(store),
        pauses = store.helper("pauses"),
        stale = due_but_paused(store),
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(claiming)?;
    let is_stale = listed.last().is_some_and(|(_, is_stale)| *is_stale);
    let tenants = listed.into_iter().filter(|(_, is_stale)| !is_stale);
    store
        .backlog
        .list(tenants.map(|(tenant, _)| tenant).collect(), begun);
    if is_stale {
        act::put_off(store).await?;
    }
    Ok(())
}

/// So many waiting records are looked at for one whose tenant is not paused. Where all of those are
/// paused, the relay looks again as late as where nothing waits.
const LOOKED_AT_MAX: u32 = 1_000;

/// What is to be known where nothing can be published now.
async fn what_is_left(store: &SqliteStore, claim: &Claim<'_>) -> Result<Claimed> {
    if !store.backlog.is_fresh() {
        list_tenants(store).await?;
    }
    let table = store.table();
    let statement = format!(
        "{CLOCK}, turn as materialized (
             select value as tenant from json_each(?7) where not value {paused})
         select exists(select 1 from turn cross join {table} o where {READY} and o.tenant_id = turn.tenant)
                     or exists(select 1 from (select o.tenant_id from {table} o where {WAITING} and {OURS}
                                              order by {DUE_AT} limit {LOOKED_AT_MAX}) where not tenant_id {paused}),
                exists(select 1 from turn cross join {table} o
                       where {READY} and o.tenant_id = turn.tenant and not {BORN} and not {HELD} and {ready_goes})
                     or exists(select 1 from {table} o where {WAITING} and {DUE_AT} <= (select day from clock)
                                   and not {BORN} and not {HELD} and {OURS} and not o.tenant_id {paused}
                                   and {waiting_goes})",
        paused = paused(store),
        ready_goes = nothing_holds_ready(&table),
        waiting_goes = nothing_holds_waiting(&table),
    );
    let row = of_claim(&statement, claim)?
        .bind(json(&store.backlog.carried(claim.relay))?)
        .fetch_one(&store.pool)
        .await
        .map_err(claiming)?;
    let flag = |at| row.try_get(at).map_err(claiming);
    Ok(Claimed {
        waiting: flag(0)?,
        elsewhere: flag(1)?,
        ..Claimed::default()
    })
}

/// A statement with what `?1` to `?6` stand for.
fn of_claim<'q>(statement: &str, claim: &Claim<'_>) -> Result<Query<'q, Sqlite, SqliteArguments>> {
    let partitions: Vec<u16> = claim.leases.iter().map(|lease| lease.partition).collect();
    Ok(sqlx::query(AssertSqlSafe(statement.to_owned()))
        .bind(claim.ordered)
        .bind(claim.dead_letters_block)
        .bind(json(claim.in_flight)?)
        .bind(claim.leases.len() == usize::from(PARTITIONS))
        .bind(json(&partitions)?)
        .bind(claim.relay.tenants.as_ref().map(json).transpose()?))
}

fn claiming(e: sqlx::Error) -> Error {
    error("claiming", e)
}

/// Takes records from owners whose birth lease has run out: theirs is fenced from now on.
async fn take_over(
    store: &SqliteStore,
    ids: &[Uuid],
    claim: &Claim<'_>,
) -> Result<HashMap<Uuid, u32>> {
    let fence = Fence::Leases {
        relay: claim.relay,
        leases: claim.leases,
    };
    let mut statement = QueryBuilder::<Sqlite>::new("update ");
    statement.push(store.table());
    statement.push(format!(
        " as o set owner = null, lease_until = null, lost_attempts = lost_attempts + 1
          where o.status = 'NEW' and o.lease_until <= {NOW} and o.id in (select value from json_each("
    ));
    statement.push_bind(json(ids)?).push("))");
    hold(&mut statement, store, &fence)?;
    statement.push(" returning id, lost_attempts");
    let taken: Vec<(String, i64)> = statement
        .build_query_as()
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("taking over events", e))?;
    Ok(taken
        .into_iter()
        .filter_map(|(id, lost)| Some((Uuid::parse_str(&id).ok()?, u32::try_from(lost).ok()?)))
        .collect())
}

pub(super) async fn attempt(
    store: &SqliteStore,
    fence: &Fence<'_>,
    id: Uuid,
) -> Result<Option<u32>> {
    let mut statement = QueryBuilder::<Sqlite>::new("update ");
    statement.push(store.table());
    statement
        .push(" as o set lost_attempts = lost_attempts + 1 where o.status = 'NEW' and o.id = ");
    statement.push_bind(id.to_string());
    hold(&mut statement, store, fence)?;
    statement.push(" returning lost_attempts");
    let lost: Option<i64> = statement
        .build_query_scalar()
        .fetch_optional(&store.pool)
        .await
        .map_err(|e| error("counting an attempt", e))?;
    Ok(lost.map(|lost| u32::try_from(lost).unwrap_or(0)))
}

pub(super) async fn settle(store: &SqliteStore, settle: &Settle<'_>) -> Result<u64> {
    let table = store.table();
    let mut sent = Vec::new();
    let mut failed = Vec::new();
    for settlement in settle.settlements {
        match &settlement.verdict {
            Verdict::Sent => sent.push(settlement.id),
            verdict => failed.push(Failed::new(settlement.id, verdict)),
        }
    }
    let mut changed = 0;
    if !sent.is_empty() {
        let mut statement = QueryBuilder::<Sqlite>::new("");
        if settle.keep_sent {
            statement.push(format!(
                "update {table} as o set status = 'SENT', retry_at = null, owner = null, lease_until = null,
                        sent_at = {NOW}"
            ));
        } else {
            statement.push(format!("delete from {table} as o"));
        }
        statement.push(" where o.status = 'NEW' and o.id in (select value from json_each(");
        statement.push_bind(json(&sent)?).push("))");
        hold(&mut statement, store, &settle.fence)?;
        changed += statement
            .build()
            .execute(&store.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
    }
    if !failed.is_empty() {
        let mut statement = QueryBuilder::<Sqlite>::new("update ");
        statement.push(table).push(
            " as o set status = f.value ->> 'status', owner = null, lease_until = null, 
                    lost_attempts = case when f.value ->> 'status' = 'NEW' and f.value ->> 'after' is null
                                         then max(o.lost_attempts - 1, 0) else 0 end,
                    retry_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', f.value ->> 'after'),
                    retry_cnt = o.retry_cnt + (f.value ->> 'counts'),
                    error_message = coalesce(f.value ->> 'reason', o.error_message)
             from json_each(",
        );
        statement
            .push_bind(json(&failed)?)
            .push(") f where o.status = 'NEW' and o.id = f.value ->> 'id'");
        hold(&mut statement, store, &settle.fence)?;
        changed += statement
            .build()
            .execute(&store.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
    }
    Ok(changed)
}

/// The end of a fenced statement's condition. One writer at a time: what it reads of the leases
/// cannot change before it has written.
fn hold(
    statement: &mut QueryBuilder<Sqlite>,
    store: &SqliteStore,
    fence: &Fence<'_>,
) -> Result<()> {
    match fence {
        Fence::Leases { relay, leases } => {
            let held: Vec<[i64; 2]> = leases
                .iter()
                .map(|lease| [i64::from(lease.partition), lease.epoch])
                .collect();
            statement
                .push(" and o.partition in (select l.partition from ")
                .push(store.helper("leases"));
            statement.push(" l join json_each(").push_bind(json(&held)?);
            statement.push(
                ") h on l.partition = h.value ->> 0 and l.epoch = h.value ->> 1 where l.scope = ",
            );
            statement
                .push_bind(relay.scope())
                .push(" and l.owner = ")
                .push_bind(relay.id.to_string())
                .push(")");
        }
        Fence::Birth(owner) => {
            statement
                .push(" and o.owner = ")
                .push_bind(owner.to_string());
        }
    }
    Ok(())
}
