//! What a relay reads, and what it or the immediate path writes back.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Postgres, QueryBuilder};
use uuid::Uuid;

use super::super::sql::{error, keep_taken};
use super::PostgresStore;
use super::rows::{COLUMNS, Failed, get, record};
use crate::error::Result;
use crate::store::{Claim, Claimed, Fence, Lease, PARTITIONS, Relay, Settle, Verdict};
use crate::tenant::Tenant;

/// A record that is due and not leased to the unit of work that wrote it.
const DUE: &str = "o.status = 'NEW' and o.available_at <= statement_timestamp()
    and (o.retry_at is null or o.retry_at <= statement_timestamp())
    and (o.owner is null or o.lease_until <= statement_timestamp())";

/// `limit 1` keeps the planner from joining: the sub-select looks for the first record of one key
/// that holds it, which an index answers at once.
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
        "and (select true from {table} p
              where p.ordering_key = o.ordering_key and p.seq < o.seq and p.status <> 'SENT'
                and ({dead} p.status = 'NEW' and (p.retry_at > statement_timestamp()
                        or p.available_at > statement_timestamp()
                        or p.owner is not null and p.lease_until > statement_timestamp()))
              order by p.seq limit 1) is null"
    )
}

pub(super) async fn claim(store: &PostgresStore, claim: &Claim<'_>) -> Result<Claimed> {
    let (table, held) = (store.table(), not_held(&store.table(), claim));
    let tenants = tenants(claim.relay);
    let all = claim.leases.len() == usize::from(PARTITIONS);
    let partitions: Vec<i64> = claim
        .leases
        .iter()
        .map(|lease| i64::from(lease.partition))
        .collect();
    let rows = if partitions.is_empty() {
        Vec::new()
    } else {
        sqlx::query(AssertSqlSafe(format!(
            "select {COLUMNS}, o.owner from {table} o
             where {DUE} and ($1 or (o.ordering_key & {mask}) = any($2))
               and ($3::text[] is null or o.tenant_id = any($3)) {held}
             order by o.seq limit $4",
            mask = PARTITIONS - 1
        )))
        .bind(all)
        .bind(&partitions)
        .bind(&tenants)
        .bind(i64::from(claim.limit))
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("claiming", e))?
    };
    let mut records = Vec::with_capacity(rows.len());
    let mut orphans = Vec::new();
    for row in &rows {
        let record = record(row)?;
        if get::<Option<Uuid>>(row, "owner")?.is_some() {
            orphans.push(record.id);
        }
        records.push(record);
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
        "select exists(select from {table} where status = 'NEW' and ($3::text[] is null or tenant_id = any($3))),
                not $1 and exists(select from {table} o
                    where {DUE} and not (o.ordering_key & {mask}) = any($2)
                      and ($3::text[] is null or o.tenant_id = any($3)) {held})",
        mask = PARTITIONS - 1
    )))
    .bind(all)
    .bind(&partitions)
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
    store: &PostgresStore,
    ids: &[Uuid],
    claim: &Claim<'_>,
) -> Result<HashMap<Uuid, u32>> {
    let fence = Fence::Leases {
        relay: claim.relay,
        leases: claim.leases,
    };
    let mut statement = fenced(store, &fence);
    statement.push(" update ").push(store.table()).push(
        " o set owner = null, lease_until = null, lost_attempts = lost_attempts + 1
          where o.status = 'NEW' and o.lease_until <= clock_timestamp() and o.id = any(",
    );
    statement.push_bind(ids).push(")");
    hold(&mut statement, &fence);
    statement.push(" returning o.id, o.lost_attempts");
    let taken: Vec<(Uuid, i32)> = statement
        .build_query_as()
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("taking over events", e))?;
    Ok(taken
        .into_iter()
        .map(|(id, lost)| (id, u32::try_from(lost).unwrap_or(0)))
        .collect())
}

pub(super) async fn attempt(
    store: &PostgresStore,
    fence: &Fence<'_>,
    id: Uuid,
) -> Result<Option<u32>> {
    let mut statement = fenced(store, fence);
    statement.push(" update ").push(store.table());
    statement
        .push(" o set lost_attempts = lost_attempts + 1 where o.status = 'NEW' and o.id = ")
        .push_bind(id);
    hold(&mut statement, fence);
    statement.push(" returning o.lost_attempts");
    let lost: Option<i32> = statement
        .build_query_scalar()
        .fetch_optional(&store.pool)
        .await
        .map_err(|e| error("counting an attempt", e))?;
    Ok(lost.map(|lost| u32::try_from(lost).unwrap_or(0)))
}

pub(super) async fn settle(store: &PostgresStore, settle: &Settle<'_>) -> Result<u64> {
    let mut sent = Vec::new();
    let mut failed = Failed::default();
    for settlement in settle.settlements {
        match &settlement.verdict {
            Verdict::Sent => sent.push(settlement.id),
            verdict => failed.push(settlement.id, verdict),
        }
    }
    let settling = |e| error("settling", e);
    let mut changed = 0;
    if !sent.is_empty() {
        let mut statement = fenced(store, &settle.fence);
        if settle.keep_sent {
            statement.push(" update ").push(store.table()).push(
                " o set status = 'SENT', retry_at = null, owner = null, lease_until = null,
                        sent_at = clock_timestamp()",
            );
        } else {
            statement
                .push(" delete from ")
                .push(store.table())
                .push(" o");
        }
        statement
            .push(" where o.status = 'NEW' and o.id = any(")
            .push_bind(&sent)
            .push(")");
        hold(&mut statement, &settle.fence);
        changed += statement
            .build()
            .execute(&store.pool)
            .await
            .map_err(settling)?
            .rows_affected();
    }
    if !failed.ids.is_empty() {
        let mut statement = fenced(store, &settle.fence);
        statement.push(" update ").push(store.table()).push(
            " o set status = f.status, owner = null, lease_until = null, 
                    lost_attempts = case when f.status = 'NEW' and f.after_ms is null
                                         then greatest(o.lost_attempts - 1, 0) else 0 end,
                    retry_at = clock_timestamp() + f.after_ms * interval '1 millisecond',
                    retry_cnt = o.retry_cnt + f.counts, error_message = coalesce(f.reason, o.error_message)
             from unnest(",
        );
        statement
            .push_bind(&failed.ids)
            .push("::uuid[], ")
            .push_bind(&failed.statuses)
            .push("::text[], ");
        statement
            .push_bind(&failed.after_ms)
            .push("::bigint[], ")
            .push_bind(&failed.counts)
            .push("::integer[], ");
        statement.push_bind(&failed.reasons);
        statement.push("::text[]) as f(id, status, after_ms, counts, reason) where o.status = 'NEW' and o.id = f.id");
        hold(&mut statement, &settle.fence);
        changed += statement
            .build()
            .execute(&store.pool)
            .await
            .map_err(settling)?
            .rows_affected();
    }
    Ok(changed)
}

/// The beginning of a fenced statement. The leases are locked in the same statement that writes
/// under them, so nobody takes one over in between; a taker skips what is locked.
fn fenced(store: &PostgresStore, fence: &Fence<'_>) -> QueryBuilder<Postgres> {
    let mut statement = QueryBuilder::new("");
    if let Fence::Leases { relay, leases } = fence {
        let column = |of: fn(&Lease) -> i64| leases.iter().map(of).collect::<Vec<_>>();
        statement
            .push("with held as materialized (select l.partition from ")
            .push(store.helper("leases"));
        statement
            .push(" l join unnest(")
            .push_bind(column(|lease| i64::from(lease.partition)));
        statement
            .push("::bigint[], ")
            .push_bind(column(|lease| lease.epoch));
        statement.push(
            "::bigint[]) as h(partition, epoch) on l.partition = h.partition and l.epoch = h.epoch",
        );
        statement
            .push(" where l.scope = ")
            .push_bind(relay.scope())
            .push(" and l.owner = ")
            .push_bind(relay.id);
        statement.push(" for share of l)");
    }
    statement
}

/// The end of a fenced statement's condition.
fn hold(statement: &mut QueryBuilder<Postgres>, fence: &Fence<'_>) {
    match fence {
        Fence::Leases { .. } => statement.push(format!(
            " and (o.ordering_key & {}) in (select partition from held)",
            PARTITIONS - 1
        )),
        Fence::Birth(owner) => statement.push(" and o.owner = ").push_bind(*owner),
    };
}

fn tenants(relay: &Relay) -> Option<Vec<&str>> {
    relay
        .tenants
        .as_ref()
        .map(|tenants| tenants.iter().map(Tenant::as_str).collect())
}
