//! Who carries which partitions. Each step is one statement, safe to repeat and to be cancelled:
//! there is no session state and no transaction over several round trips.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::super::sql::{colliding, error};
use super::PostgresStore;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Lease, PARTITIONS, Relay};

pub(super) async fn lease(
    store: &PostgresStore,
    relay: &Relay,
    term: Duration,
) -> Result<Vec<Lease>> {
    let (leases, scope) = (store.helper("leases"), relay.scope());
    let term = i64::try_from(term.as_millis()).unwrap_or(i64::MAX);
    let share = fair_share(store, relay.id, &scope, term).await?;

    // Renew what is mine, up to my share, and give the rest back. A lease that has run out and that
    // nobody took is still mine: its epoch is the one I had.
    sqlx::query(AssertSqlSafe(format!(
        "update {leases} l
         set owner = case when m.keep then l.owner end,
             until = case when m.keep then clock_timestamp() + $3 * interval '1 millisecond' end
         from (select partition, row_number() over (order by partition) <= $4 as keep
               from {leases} where scope = $1 and owner = $2) m
         where l.scope = $1 and l.owner = $2 and l.partition = m.partition"
    )))
    .bind(&scope)
    .bind(relay.id)
    .bind(term)
    .bind(share)
    .execute(&store.pool)
    .await
    .map_err(leasing)?;

    // Take what is free or has run out, up to my share.
    let taken: Vec<(i16, bool)> = sqlx::query_as(AssertSqlSafe(format!(
        "with free as (
             select partition, owner is not null as from_the_dead from {leases}
             where scope = $1 and (owner is null or until < clock_timestamp())
               and owner is distinct from $2
             order by random()
             limit greatest(0, $4 - (select count(*) from {leases} where scope = $1 and owner = $2))
             for update skip locked)
         update {leases} l
         set owner = $2, epoch = epoch + 1, until = clock_timestamp() + $3 * interval '1 millisecond'
         from free where l.scope = $1 and l.partition = free.partition
         returning l.partition, free.from_the_dead"
    )))
    .bind(&scope)
    .bind(relay.id)
    .bind(term)
    .bind(share)
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;

    let held: Vec<(i16, i64)> = sqlx::query_as(AssertSqlSafe(format!(
        "select partition, epoch from {leases}
         where scope = $1 and owner = $2 and until > clock_timestamp() order by partition"
    )))
    .bind(&scope)
    .bind(relay.id)
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    Ok(held
        .into_iter()
        .map(|(partition, epoch)| Lease {
            partition: u16::try_from(partition).unwrap_or(0),
            epoch,
            from_the_dead: taken.contains(&(partition, true)),
        })
        .collect())
}

/// Says that this relay lives, and how many partitions each of the live ones gets.
async fn fair_share(store: &PostgresStore, relay: Uuid, scope: &str, term: i64) -> Result<i64> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let (runs, hidden): (bool, Option<String>) = sqlx::query_as(AssertSqlSafe(format!(
        "select exists(select from {relays} where id = $1 and until > clock_timestamp()),
                (select min(name) from unnest($2::text[]) as name where row_security_active(name))"
    )))
    .bind(relay)
    .bind(seen_whole(store))
    .fetch_one(&store.pool)
    .await
    .map_err(leasing)?;
    if let Some(table) = hidden {
        return Err(Error::new(
            ErrorKind::InvalidSetting,
            format!(
                "database_url: row-level security hides rows of {table} from this user, so that a relay would \
                 silently carry nothing; run it as a user that bypasses it (`alter role … bypassrls`)"
            ),
        ));
    }
    sqlx::query(AssertSqlSafe(format!(
        "insert into {relays} (id, scope, until)
         values ($1, $2, clock_timestamp() + $3 * interval '1 millisecond')
         on conflict (id) do update set until = excluded.until"
    )))
    .bind(relay)
    .bind(scope)
    .bind(term)
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    sqlx::query(AssertSqlSafe(format!(
        "delete from {relays} where until < clock_timestamp() - interval '1 hour'"
    )))
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    let live: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "select scope from {relays} where until > clock_timestamp()"
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(leasing)?;
    // Who is refused leaves nothing behind, and whoever runs is not asked again.
    if let Some(other) = live
        .iter()
        .find(|other| !runs && Relay::scopes_collide(scope, other))
    {
        sqlx::query(AssertSqlSafe(format!("delete from {relays} where id = $1")))
            .bind(relay)
            .execute(&store.pool)
            .await
            .map_err(leasing)?;
        return Err(colliding(scope, other));
    }
    sqlx::query(AssertSqlSafe(format!(
        "insert into {leases} (scope, partition)
         select $1, generate_series(0, $2 - 1)
         where not exists (select from {leases} where scope = $1)
         on conflict do nothing"
    )))
    .bind(scope)
    .bind(i32::from(PARTITIONS))
    .execute(&store.pool)
    .await
    .map_err(leasing)?;
    let of_this_scope = live.iter().filter(|other| *other == scope).count();
    Ok(Relay::fair_share(of_this_scope))
}

/// The tables of which a relay must see every row.
pub(super) fn seen_whole(store: &PostgresStore) -> [String; 4] {
    let [leases, relays, pauses] = ["leases", "relays", "pauses"].map(|name| store.helper(name));
    [store.table().to_string(), leases, relays, pauses]
}

pub(super) async fn release(store: &PostgresStore, relay: &Relay) -> Result<()> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    for statement in [
        format!("update {leases} set owner = null, until = null where owner = $1"),
        format!("delete from {relays} where id = $1"),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .bind(relay.id)
            .execute(&store.pool)
            .await
            .map_err(leasing)?;
    }
    Ok(())
}

fn leasing(e: sqlx::Error) -> Error {
    error("leasing partitions", e)
}
