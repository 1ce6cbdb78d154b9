//! Who carries which parts. Each step is one statement, safe to repeat and to be cancelled: there is
//! no session state and no transaction over several round trips. Ids and scopes, which are names of
//! tenants, have nothing in them that needs escaping.

use std::time::Duration;

use super::super::sql::colliding;
use super::MySqlStore;
use super::rows::{get, micros};
use crate::error::Result;
use crate::store::{Lease, PARTITIONS, Relay};

const LEASING: &str = "leasing parts of the outbox";

pub(super) async fn lease(store: &MySqlStore, relay: &Relay, term: Duration) -> Result<Vec<Lease>> {
    let (leases, id) = (store.helper("leases"), relay.id);
    let later = format!("utc_timestamp(6) + interval {} microsecond", micros(term));
    let share = fair_share(store, relay, &later).await?;
    let of_scope = format!("scope = sha1('{}')", relay.scope());

    // Renew what is mine, up to my share, and give the rest back. A lease that has run out and that
    // nobody took is still mine: its epoch is the one I had. `straight_join` has only rows locked
    // that are changed: others settle under theirs.
    let renew = format!(
        "update (select part, row_number() over (order by part) <= {share} as keep
                 from {leases} where {of_scope} and owner = '{id}') m
         straight_join {leases} l on l.part = m.part
         set l.owner = case when m.keep then l.owner end, l.until = case when m.keep then {later} end,
             l.from_the_dead = false
         where l.{of_scope} and l.owner = '{id}'"
    );
    store.execute(LEASING, &renew, None).await?;

    // Take what is free or has run out, up to my share.
    let mine = format!("select count(*) as n from {leases} where {of_scope} and owner = '{id}'");
    let mine = count(store, &mine).await?;
    if mine < share {
        let take = format!(
            "update (select part, owner is not null as lapsed from {leases}
                     where {of_scope} and (owner is null or until < utc_timestamp(6)) and not owner <=> '{id}'
                     order by rand() limit {room} for update skip locked) free
             straight_join {leases} l on l.part = free.part
             set l.owner = '{id}', l.epoch = l.epoch + 1, l.until = {later}, l.from_the_dead = free.lapsed
             where l.{of_scope}",
            room = share - mine
        );
        store.execute(LEASING, &take, None).await?;
    }

    let held = format!(
        "select part, epoch, from_the_dead from {leases}
         where {of_scope} and owner = '{id}' and until > utc_timestamp(6) order by part"
    );
    let held = store.select(LEASING, &held).await?;
    held.iter()
        .map(|row| {
            Ok(Lease {
                partition: u16::try_from(get::<i8>(row, "part")?).unwrap_or(0),
                epoch: get(row, "epoch")?,
                from_the_dead: get(row, "from_the_dead")?,
            })
        })
        .collect()
}

/// Says that this relay lives, and how many parts each of the live ones gets.
async fn fair_share(store: &MySqlStore, relay: &Relay, later: &str) -> Result<i64> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let (scope, id) = (relay.scope(), relay.id);
    let runs = format!(
        "select count(*) as n from {relays} where id = '{id}' and until > utc_timestamp(6)"
    );
    let runs = count(store, &runs).await? > 0;
    let live = format!(
        "insert into {relays} (id, scope, until) values ('{id}', '{scope}', {later})
         on duplicate key update until = {later}"
    );
    store.execute(LEASING, &live, None).await?;
    let forget = format!("delete from {relays} where until < utc_timestamp(6) - interval 1 hour");
    store.execute(LEASING, &forget, None).await?;
    let live = format!("select scope from {relays} where until > utc_timestamp(6)");
    let live = store.select(LEASING, &live).await?;
    let live: Vec<String> = live
        .iter()
        .map(|row| get(row, "scope"))
        .collect::<Result<_>>()?;
    // Who is refused leaves nothing behind, and whoever runs is not asked again.
    if let Some(other) = live
        .iter()
        .find(|other| !runs && Relay::scopes_collide(&scope, other))
    {
        let leave = format!("delete from {relays} where id = '{id}'");
        store.execute(LEASING, &leave, None).await?;
        return Err(colliding(&scope, other));
    }
    let there = format!("select count(*) as n from {leases} where scope = sha1('{scope}')");
    if count(store, &there).await? < i64::from(PARTITIONS) {
        let row = |part| format!("(sha1('{scope}'), {part})");
        let rows: Vec<String> = (0..PARTITIONS).map(row).collect();
        let rows = rows.join(", ");
        let all = format!("insert ignore into {leases} (scope, part) values {rows}");
        store.execute(LEASING, &all, None).await?;
    }
    let of_this_scope = live.iter().filter(|other| **other == scope).count();
    Ok(Relay::fair_share(of_this_scope))
}

pub(super) async fn release(store: &MySqlStore, relay: &Relay) -> Result<()> {
    let (leases, relays, id) = (store.helper("leases"), store.helper("relays"), relay.id);
    let leave = format!("update {leases} set owner = null, until = null where owner = '{id}'");
    store.execute(LEASING, &leave, None).await?;
    let forget = format!("delete from {relays} where id = '{id}'");
    store.execute(LEASING, &forget, None).await?;
    Ok(())
}

/// The column `n` of the one row.
async fn count(store: &MySqlStore, sql: &str) -> Result<i64> {
    let rows = store.select(LEASING, sql).await?;
    rows.first().map_or(Ok(0), |row| get(row, "n"))
}
