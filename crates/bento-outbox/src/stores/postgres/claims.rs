//! What a relay reads, and what it or the immediate path writes back.

use std::collections::HashMap;
use std::time::Instant;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Postgres, QueryBuilder};
use uuid::Uuid;

use super::super::backlog::tenants_max;
use super::super::sql::{error, keep_taken};
use super::rows::{COLUMNS, Failed, get, record};
use super::{PostgresStore, act, floor};
use crate::error::{Error, Result};
use crate::store::{Claim, Claimed, Fence, Lease, PARTITIONS, Relay, Settle, Verdict};
use crate::tenant::Tenant;

/// A record that can go at once but for a birth lease: neither delayed nor failed before. An index
/// has these words.
pub(super) const READY: &str =
    "o.status = 'NEW' and o.error_message is null and o.available_at <= o.written_at";

/// A record that was delayed or has failed before, and has not gone yet; and when it is due. An
/// index has these words.
pub(super) const WAITING: &str =
    "o.status = 'NEW' and (o.error_message is not null or o.available_at > o.written_at)";
pub(super) const DUE_AT: &str = "greatest(o.available_at, o.retry_at)";

/// Records that one statement settles at most: a longer one is more than a record of TLS, and sqlx 0.9.0
/// then waits for the server to acknowledge the first, which takes the kernel 40 ms (sqlx issue 4335).
const SETTLED_MAX: usize = 500;

/// Nobody but the unit of work that wrote it may publish it yet.
const BORN: &str = "o.owner is not null and o.lease_until > statement_timestamp()";

/// The tenants that are paused. An array is read once a statement, and is a filter.
pub(super) fn paused(store: &PostgresStore) -> String {
    let pauses = store.helper("pauses");
    format!("all(array(select name from {pauses} where kind = 'tenant'))")
}

/// Waiting records that have come due while their tenant is paused: each claim would step over them.
pub(super) fn due_but_paused(store: &PostgresStore) -> String {
    format!(
        "select o.id from {table} o where {WAITING} and {DUE_AT} <= statement_timestamp()
           and o.tenant_id = any(array(select name from {pauses} where kind = 'tenant'))",
        table = store.table(),
        pauses = store.helper("pauses"),
    )
}

/// Whether a `seq` is in none of the [runs] that begin in `$3` and end in `ends`.
fn not_in_flight(seq: &str, ends: &str) -> String {
    format!("({seq} <= ({ends})[width_bucket({seq}, $3)]) is not true")
}

/// Consecutive numbers as runs: where each begins, and where it ends. What is in flight was claimed
/// in order, so thousands are a few runs, and the statement stays short.
fn runs(numbers: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    let (mut begins, mut ends) = (Vec::new(), Vec::<i64>::new());
    for number in numbers {
        match ends.last_mut() {
            Some(end) if number <= *end + 1 => *end = number,
            _ => {
                begins.push(number);
                ends.push(number);
            }
        }
    }
    (begins, ends)
}

/// Above the [floor](floor), on the server that it is of.
fn above(server: &str, seq: &str) -> String {
    format!("o.seq > case when pg_postmaster_start_time() = {server} then {seq} else 0 end")
}

/// Whether nothing of its key goes before a ready record: nothing that was delayed, has failed or
/// is its writer's. Ready ones before it are read before it. An index has the words of the middle
/// line. `limit 1` keeps the planner from joining: an index answers each question at once.
fn nothing_holds_ready(table: &str, ends: &str) -> String {
    let not_in_flight = not_in_flight("p.seq", ends);
    format!(
        "(not $1 or (select true from {table} p
              where (p.status = 'ERR' or p.status = 'NEW' and (p.error_message is not null or p.available_at > p.written_at or p.owner is not null))
                and p.ordering_key = o.ordering_key and p.seq < o.seq
                and (p.status = 'NEW' or $2) and {not_in_flight}
              limit 1) is null)"
    )
}

/// Whether nothing of its key goes before a waiting record: they are found by their time, so what
/// goes first must be gone.
fn nothing_holds_waiting(table: &str, ends: &str) -> String {
    let not_in_flight = not_in_flight("p.seq", ends);
    format!(
        "(not $1 or (select true from {table} p
              where p.status <> 'SENT' and p.ordering_key = o.ordering_key and p.seq < o.seq
                and (p.status = 'NEW' or $2) and {not_in_flight}
              limit 1) is null)"
    )
}

pub(super) async fn claim(store: &PostgresStore, claim: &Claim<'_>) -> Result<Claimed> {
    floor::raise_in_time(store).await;
    let rows = if claim.leases.is_empty() {
        Vec::new()
    } else {
        let listed_before = store.backlog.is_fresh();
        if !listed_before {
            list_tenants(store).await?;
        }
        let rows = read(store, claim).await?;
        if rows.is_empty() && listed_before {
            list_tenants(store).await?;
            read(store, claim).await?
        } else {
            rows
        }
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
    if records.is_empty() {
        return what_is_left(store, claim).await;
    }
    Ok(Claimed {
        records,
        ..Claimed::default()
    })
}

async fn read(store: &PostgresStore, claim: &Claim<'_>) -> Result<Vec<PgRow>> {
    let table = store.table();
    let floor = store.floor.known();
    let tenants = store.backlog.turn(claim.relay, tenants_max(claim.limit));
    let (begins, ends) = runs(claim.in_flight);
    sqlx::query(AssertSqlSafe(format!(
        "with turn as materialized (
             select tenant from unnest($8::text[]) as tenant where tenant <> {paused}),
         waiting as materialized (
             select o.* from {table} o
             where {WAITING} and {DUE_AT} <= statement_timestamp() and not ({BORN}) and o.tenant_id <> {paused}
               and ($4 or (o.ordering_key & {mask}) = any($5)) and ($6::text[] is null or o.tenant_id = any($6))
               and {not_in_flight} and {waiting_goes}
             order by {DUE_AT} limit $7 / 2 + $7 % 2)
         select {COLUMNS}, owner from (
             select * from waiting
             union all
             select ready.* from turn t cross join lateral (
                 select o.* from {table} o
                 where {READY} and o.tenant_id = t.tenant and not ({BORN})
                   and {above}
                   and ($4 or (o.ordering_key & {mask}) = any($5)) and {not_in_flight} and {ready_goes}
                 order by o.seq
                 limit ($7 - (select count(*) from waiting)) / greatest((select count(*) from turn), 1)) ready) claimed
         order by seq",
        mask = PARTITIONS - 1,
        paused = paused(store),
        not_in_flight = not_in_flight("o.seq", "$11"),
        waiting_goes = nothing_holds_waiting(&table, "$11"),
        ready_goes = nothing_holds_ready(&table, "$11"),
        above = above("$9", "$10"),
    )))
    .bind(claim.ordered)
    .bind(claim.dead_letters_block)
    .bind(begins)
    .bind(holds_all(claim))
    .bind(partitions(claim))
    .bind(carried(claim.relay))
    .bind(i64::from(claim.limit))
    .bind(tenants)
    .bind(floor.server)
    .bind(floor.seq)
    .bind(ends)
    .fetch_all(&store.pool)
    .await
    .map_err(claiming)
}

/// Lists the tenants that have ready records and are not paused, by jumping from one to the next in
/// the index.
async fn list_tenants(store: &PostgresStore) -> Result<()> {
    let begun = Instant::now();
    let table = store.table();
    let floor = store.floor.known();
    let above = above("$1", "$2");
    let listed: Vec<(String, bool)> = sqlx::query_as(AssertSqlSafe(format!(
        "with recursive t(tenant) as (
             (select o.tenant_id from {table} o where {READY} and {above} order by o.tenant_id, o.seq limit 1)
             union all
             select (select o.tenant_id from {table} o where {READY} and o.tenant_id > t.tenant and {above}
                     order by o.tenant_id, o.seq limit 1)
             from t where t.tenant is not null)
         select tenant, false from t where tenant is not null and tenant <> {paused}
         union all
         select '', true where exists (select from {pauses} where kind = 'tenant') and exists ({stale})",
        paused = paused(store),
        pauses = store.helper("pauses"),
        stale = due_but_paused(store),
    )))
    .bind(floor.server)
    .bind(floor.seq)
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
async fn what_is_left(store: &PostgresStore, claim: &Claim<'_>) -> Result<Claimed> {
    if !store.backlog.is_fresh() {
        list_tenants(store).await?;
    }
    let table = store.table();
    let floor = store.floor.known();
    let (begins, ends) = runs(claim.in_flight);
    let ours = "($6::text[] is null or o.tenant_id = any($6))";
    let elsewhere = format!(
        "not ($4 or (o.ordering_key & {mask}) = any($5))",
        mask = PARTITIONS - 1
    );
    let (waiting, elsewhere) = sqlx::query_as(AssertSqlSafe(format!(
        "with turn as materialized (
             select tenant from unnest($10::text[]) as tenant where tenant <> {paused})
         select exists(select from turn cross join lateral (
                           select from {table} o where {READY} and o.tenant_id = turn.tenant and {above} limit 1) ready)
                    or exists(select from (select o.tenant_id from {table} o where {WAITING} and {ours}
                                           order by {DUE_AT} limit {LOOKED_AT_MAX}) o where o.tenant_id <> {paused}),
                exists(select from turn cross join lateral (
                           select from {table} o
                           where {READY} and o.tenant_id = turn.tenant and {above} and not ({BORN})
                             and {elsewhere} and {ready_goes} limit 1) ready)
                    or exists(select from {table} o where {WAITING} and {DUE_AT} <= statement_timestamp()
                                  and not ({BORN}) and {ours} and o.tenant_id <> {paused} and {elsewhere}
                                  and {waiting_goes})",
        paused = paused(store),
        ready_goes = nothing_holds_ready(&table, "$9"),
        waiting_goes = nothing_holds_waiting(&table, "$9"),
        above = above("$7", "$8"),
    )))
    .bind(claim.ordered)
    .bind(claim.dead_letters_block)
    .bind(begins)
    .bind(holds_all(claim))
    .bind(partitions(claim))
    .bind(carried(claim.relay))
    .bind(floor.server)
    .bind(floor.seq)
    .bind(ends)
    .bind(store.backlog.carried(claim.relay))
    .fetch_one(&store.pool)
    .await
    .map_err(claiming)?;
    Ok(Claimed {
        waiting,
        elsewhere,
        ..Claimed::default()
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
    for sent in sent.chunks(SETTLED_MAX) {
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
            .push_bind(sent)
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
        let mut epochs = vec![None; usize::from(PARTITIONS)];
        for lease in *leases {
            epochs[usize::from(lease.partition % PARTITIONS)] = Some(lease.epoch);
        }
        statement
            .push("with held as materialized (select l.partition from ")
            .push(store.helper("leases"))
            .push(" l where l.epoch = (")
            .push_bind(epochs)
            .push("::bigint[])[l.partition + 1]");
        statement
            .push(" and l.scope = ")
            .push_bind(relay.scope())
            .push(" and l.owner = ")
            .push_bind(relay.id);
        statement.push(" for share of l)");
    }
    statement
}

/// The end of a fenced statement's condition. An array is a filter: the planner would join a query,
/// and where it knows nothing of new tables it reads the outbox once for every partition.
fn hold(statement: &mut QueryBuilder<Postgres>, fence: &Fence<'_>) {
    match fence {
        Fence::Leases { .. } => statement.push(format!(
            " and (o.ordering_key & {}) = any(array(select partition from held))",
            PARTITIONS - 1
        )),
        Fence::Birth(owner) => statement.push(" and o.owner = ").push_bind(*owner),
    };
}

fn holds_all(claim: &Claim<'_>) -> bool {
    claim.leases.len() == usize::from(PARTITIONS)
}

fn partitions(claim: &Claim<'_>) -> Vec<i64> {
    let partition = |lease: &Lease| i64::from(lease.partition);
    claim.leases.iter().map(partition).collect()
}

/// The tenants that a relay carries, where it does not carry all.
fn carried(relay: &Relay) -> Option<Vec<&str>> {
    relay
        .tenants
        .as_ref()
        .map(|tenants| tenants.iter().map(Tenant::as_str).collect())
}

fn claiming(e: sqlx::Error) -> Error {
    error("claiming", e)
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn consecutive_numbers_are_one_run() {
        assert_eq!(runs(&[]), (vec![], vec![]));
        assert_eq!(runs(&[7]), (vec![7], vec![7]));
        assert_eq!(runs(&[5, 3, 4, 9, 9, 11]), (vec![3, 9, 11], vec![5, 9, 11]));
    }
}
