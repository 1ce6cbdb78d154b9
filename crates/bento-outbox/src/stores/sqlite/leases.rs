//! Who carries which partitions. SQLite has one writer at a time, so each statement is alone.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::super::sql::{colliding, error};
use super::{NOW, SqliteStore, later};
use crate::error::{Error, Result};
use crate::store::{Lease, PARTITIONS, Relay};

pub(super) async fn lease(
    store: &SqliteStore,
    relay: &Relay,
    term: Duration,
) -> Result<Vec<Lease>> {
    let (leases, scope, id) = (store.helper("leases"), relay.scope(), relay.id.to_string());
    let until = later(term);
    let share = fair_share(store, &id, &scope, &until).await?;

    // Renew what is mine, up to my share, and give the rest back. A lease that has run out and that
    // nobody took is still mine: its epoch is the one I had.
    sqlx::query(AssertSqlSafe(format!(
        "update {leases} as l
         set owner = case when m.keep then l.owner end,
             until = case when m.keep then strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3) end
         from (select partition, row_number() over (order by partition) <= ?4 as keep
               from {leases} where scope = ?1 and owner = ?2) m
         where l.scope = ?1 and l.owner = ?2 and l.partition = m.partition"
    )))
    .bind(&scope)
    .bind(&id)
    .bind(&until)
    .bind(share)
    .execute(&store.pool)
    .await
    .map_err(leasing)?;

    // Take what is free or has run out, up to my share; an owner's lapse is seen before it goes.
    let mut dead = Vec::new();
    let lapsed: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(format!(
        "select partition, epoch from {leases}
         where scope = ?1 and owner is not null and owner <> ?2 and until < {NOW}"
    )))
    .bind(&scope)
    .bind(&id)
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    let taken: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(format!(
        "update {leases} set owner = ?2, epoch = epoch + 1, until = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3)
         where scope = ?1 and partition in (
             select partition from {leases}
             where scope = ?1 and (owner is null or until < {NOW}) and owner is not ?2
             order by random()
             limit max(0, ?4 - (select count(*) from {leases} where scope = ?1 and owner = ?2)))
         returning partition, epoch"
    )))
    .bind(&scope)
    .bind(&id)
    .bind(&until)
    .bind(share)
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    for (partition, epoch) in taken {
        if lapsed.contains(&(partition, epoch - 1)) {
            dead.push(partition);
        }
    }

    let held: Vec<(i64, i64)> = sqlx::query_as(AssertSqlSafe(format!(
        "select partition, epoch from {leases}
         where scope = ?1 and owner = ?2 and until > {NOW} order by partition"
    )))
    .bind(&scope)
    .bind(&id)
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    Ok(held
        .into_iter()
        .map(|(partition, epoch)| Lease {
            partition: u16::try_from(partition).unwrap_or(0),
            epoch,
            from_the_dead: dead.contains(&partition),
        })
        .collect())
}

/// Says that this relay lives, and how many partitions each of the live ones gets.
async fn fair_share(store: &SqliteStore, id: &str, scope: &str, until: &str) -> Result<i64> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let runs: bool = sqlx::query_scalar(AssertSqlSafe(format!(
        "select exists(select 1 from {relays} where id = ?1 and until > {NOW})"
    )))
    .bind(id)
    .fetch_one(&store.pool)
    .await
    .map_err(leasing)?;
    sqlx::query(AssertSqlSafe(format!(
        "insert into {relays} (id, scope, until) values (?1, ?2, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3))
         on conflict (id) do update set until = excluded.until"
    )))
    .bind(id)
    .bind(scope)
    .bind(until)
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    sqlx::query(AssertSqlSafe(format!(
        "delete from {relays} where until < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour')"
    )))
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    let live: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "select scope from {relays} where until > {NOW}"
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    // Who is refused leaves nothing behind, and whoever runs is not asked again.
    if let Some(other) = live
        .iter()
        .find(|other| !runs && Relay::scopes_collide(scope, other))
    {
        sqlx::query(AssertSqlSafe(format!("delete from {relays} where id = ?1")))
            .bind(id)
            .execute(&store.pool)
            .await
            .map_err(leasing)?;
        return Err(colliding(scope, other));
    }
    sqlx::query(AssertSqlSafe(format!(
        "with recursive p(n) as (select 0 union all select n + 1 from p where n < ?2)
         insert into {leases} (scope, partition)
         select ?1, n from p where not exists (select 1 from {leases} where scope = ?1)
         on conflict do nothing"
    )))
    .bind(scope)
    .bind(i64::from(PARTITIONS - 1))
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    Ok(Relay::fair_share(
        live.iter().filter(|other| *other == scope).count(),
    ))
}

pub(super) async fn release(store: &SqliteStore, relay: &Relay) -> Result<()> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    for statement in [
        format!("update {leases} set owner = null, until = null where owner = ?1"),
        format!("delete from {relays} where id = ?1"),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .bind(relay.id.to_string())
            .execute(&store.pool)
            .await
            .map_err(leasing)?;
    }
    Ok(())
}

fn leasing(e: sqlx::Error) -> Error {
    error("leasing partitions", e)
}
