//! What a relay reads, and what it or the immediate path writes back.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite};
use uuid::Uuid;

use super::super::sql::{error, keep_taken};
use super::rows::{COLUMNS, Failed, get, json, readable};
use super::{NOW, SqliteStore};
use crate::error::Result;
use crate::store::{Claim, Claimed, Fence, PARTITIONS, Settle, Verdict};

/// The time of a claim. SQLite's own `'now'` moves on between the rows of one select: an earlier
/// record could be not yet due and a later one of its key no longer held.
const CLOCK: &str = "with clock as materialized (
    select strftime('%Y-%m-%dT%H:%M:%fZ', 'now') as now, julianday('now') as day)";

/// A record that is due and not leased to the unit of work that wrote it. Writers may give
/// `available_at` in any form that SQLite knows; the other times are the library's own and compare
/// as text.
const DUE: &str = "o.status = 'NEW' and julianday(o.available_at) <= (select day from clock)
    and (o.retry_at is null or o.retry_at <= (select now from clock))
    and (o.owner is null or o.lease_until <= (select now from clock))";

fn not_held(table: &str, claim: &Claim<'_>) -> String {
    if !claim.ordered {
        return String::new();
    }
    let dead = if claim.dead_letters_block {
        "p.status = 'ERR' or"
    } else {
        ""
    };
    format!(
        "and not exists (select 1 from {table} p
              where p.ordering_key = o.ordering_key and p.seq < o.seq and p.status <> 'SENT'
                and ({dead} p.status = 'NEW' and (p.retry_at > (select now from clock)
                        or julianday(p.available_at) > (select day from clock)
                        or p.owner is not null and p.lease_until > (select now from clock))))"
    )
}

pub(super) async fn claim(store: &SqliteStore, claim: &Claim<'_>) -> Result<Claimed> {
    let table = store.table();
    let held = not_held(&table, claim);
    let tenants = claim.relay.tenants.as_ref().map(json).transpose()?;
    let all = claim.leases.len() == usize::from(PARTITIONS);
    let partitions: Vec<u16> = claim.leases.iter().map(|lease| lease.partition).collect();
    let rows = if partitions.is_empty() {
        Vec::new()
    } else {
        sqlx::query(AssertSqlSafe(format!(
            "{CLOCK} select {COLUMNS}, owner from {table} o
             where {DUE} and (?1 or o.partition in (select value from json_each(?2)))
               and (?3 is null or o.tenant_id in (select value from json_each(?3))) {held}
             order by o.seq limit ?4"
        )))
        .bind(all)
        .bind(json(&partitions)?)
        .bind(&tenants)
        .bind(i64::from(claim.limit))
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("claiming", e))?
    };
    let (mut records, unreadable) = readable(&rows)?;
    if !unreadable.is_empty() {
        // It would be claimed for ever and hold everything up.
        let fence = Fence::Leases {
            relay: claim.relay,
            leases: claim.leases,
        };
        let bury = Settle {
            fence,
            keep_sent: true,
            settlements: &unreadable,
        };
        settle(store, &bury).await?;
        return Box::pin(self::claim(store, claim)).await;
    }
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
    if !records.is_empty() {
        return Ok(Claimed {
            records,
            ..Claimed::default()
        });
    }
    let (waiting, elsewhere) = sqlx::query_as(AssertSqlSafe(format!(
        "{CLOCK} select exists(select 1 from {table} where status = 'NEW'
                       and (?3 is null or tenant_id in (select value from json_each(?3)))),
                not ?1 and exists(select 1 from {table} o
                    where {DUE} and o.partition not in (select value from json_each(?2))
                      and (?3 is null or o.tenant_id in (select value from json_each(?3))) {held})"
    )))
    .bind(all)
    .bind(json(&partitions)?)
    .bind(&tenants)
    .fetch_one(&store.pool)
    .await
    .map_err(|e| error("claiming", e))?;
    Ok(Claimed {
        records,
        waiting,
        elsewhere,
    })
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
