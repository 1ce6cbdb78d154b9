//! What a relay reads, and what it or the immediate path writes back.
//!
//! Statements are text without parameters: they hold ids, numbers and names of tenants, none of which
//! has anything in it that needs escaping, and in numbers that differ each time. What became of
//! failed records is one parameter.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use sqlx::mysql::MySqlRow;
use uuid::Uuid;

use super::super::backlog::tenants_max;
use super::super::sql::keep_taken;
use super::rows::{COLUMNS, Failed, get, json, literals, record, uuid};
use super::{MySqlStore, act};
use crate::error::Result;
use crate::record::OutboxRecord;
use crate::store::{Claim, Claimed, Fence, PARTITIONS, Settle, Verdict};
use crate::tenant::Tenant;

/// Nobody but the unit of work that wrote it may publish it yet.
const BORN: &str = "o.owner is not null and o.lease_until > utc_timestamp(6)";

const CLAIMING: &str = "claiming";
const TAKING_OVER: &str = "taking over events";
const SETTLING: &str = "settling";

/// Tenants asked for in one statement.
const TENANTS_MAX: usize = 200;

pub(super) async fn claim(store: &MySqlStore, claim: &Claim<'_>) -> Result<Claimed> {
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
    let mut records: Vec<OutboxRecord> = Vec::with_capacity(rows.len());
    let mut orphans = Vec::new();
    for row in &rows {
        let record = record(row)?;
        if get::<Option<&str>>(row, "owner")?.is_some() {
            orphans.push(record.id);
        }
        records.push(record);
    }
    records.sort_unstable_by_key(|record| record.seq);
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

/// First what has waited, then what is ready. Each statement sees what was committed before it, and
/// the second asks again what holds a key: a record passed over by the first still does.
async fn read(store: &MySqlStore, claim: &Claim<'_>) -> Result<Vec<MySqlRow>> {
    let narrow = Narrow::new(store, claim);
    let waiting = format!(
        "select {COLUMNS}, o.owner from {table} o force index ({index})
         where o.waiting_at <= utc_timestamp(6) and not ({BORN}) {ours} {tenants} {goes}
         order by o.waiting_at limit {limit}",
        table = store.table(),
        index = store.index("waiting"),
        ours = narrow.ours(),
        tenants = narrow.tenants(),
        goes = narrow.nothing_holds_waiting(),
        limit = claim.limit.div_ceil(2),
    );
    let mut rows = store.select(CLAIMING, &waiting).await?;
    let tenants = store
        .backlog
        .turn(claim.relay, tenants_max(claim.limit).min(TENANTS_MAX));
    let room = (claim.limit as usize).saturating_sub(rows.len());
    let share = room / tenants.len().max(1);
    if share == 0 || tenants.is_empty() {
        return Ok(rows);
    }
    let mut ready = read_ready(store, &narrow, &tenants, share).await?;
    let room = room - ready.len();
    let mut read: HashMap<String, usize> = HashMap::new();
    for row in &ready {
        *read.entry(get(row, "tenant_id")?).or_default() += 1;
    }
    // Where others have less than their share, the rest goes to those who have more. They are read
    // from their first record again: what was committed meanwhile may go before what comes next.
    let more: Vec<String> = tenants
        .into_iter()
        .filter(|tenant| read.get(tenant) == Some(&share))
        .collect();
    if room > 0 && !more.is_empty() && more.len() < read.len().max(2) {
        let larger = share + room / more.len();
        ready.retain(|row| {
            get::<&str>(row, "tenant_id").is_ok_and(|t| !more.iter().any(|m| m == t))
        });
        ready.extend(read_ready(store, &narrow, &more, larger).await?);
    }
    rows.append(&mut ready);
    Ok(rows)
}

/// The first ready records of each of these tenants.
async fn read_ready(
    store: &MySqlStore,
    narrow: &Narrow<'_>,
    tenants: &[String],
    share: usize,
) -> Result<Vec<MySqlRow>> {
    let (table, index) = (store.table(), store.index("ready"));
    let (ours, goes) = (narrow.ours(), narrow.nothing_holds_ready());
    let paused = paused(store);
    let of = |tenant: &String| {
        format!(
            "(select {COLUMNS}, o.owner from {table} o force index ({index})
              where o.ready_tenant = '{tenant}' and not exists({paused} and name = '{tenant}')
                and not ({BORN}) {ours} {goes}
              order by o.seq limit {share})"
        )
    };
    let each: Vec<String> = tenants.iter().map(of).collect();
    store.select(CLAIMING, &each.join(" union all ")).await
}

/// The names of the tenants that are paused.
pub(super) fn paused(store: &MySqlStore) -> String {
    let pauses = store.helper("pauses");
    format!("select name from {pauses} where kind = 'tenant'")
}

/// Waiting records that have come due while their tenant is paused: each claim would step over them.
pub(super) fn due_but_paused(store: &MySqlStore) -> String {
    format!(
        "waiting_at <= utc_timestamp(6) and tenant_id in ({})",
        paused(store)
    )
}

/// How many tenants are listed in one round trip.
const STEPS: usize = 32;

/// Lists the tenants that have ready records and are not paused, by jumping from one to the next in the index. Neither
/// MySQL nor MariaDB jumps within one statement. At the end a step finds nothing, and the variable
/// stays as it is.
async fn list_tenants(store: &MySqlStore) -> Result<()> {
    let begun = Instant::now();
    let step = format!(
        "select o.ready_tenant into @outbox_tenant from {} o
         where o.ready_tenant > @outbox_tenant order by o.ready_tenant limit 1; select @outbox_tenant as tenant; ",
        store.table()
    );
    let mut tenants = vec![String::new()];
    loop {
        let last = tenants.last().map_or("", String::as_str);
        let steps = format!("set @outbox_tenant = '{last}'; {}", step.repeat(STEPS));
        for row in store.select(CLAIMING, &steps).await? {
            let tenant: String = get(&row, "tenant")?;
            if tenants.last() == Some(&tenant) {
                tenants.remove(0);
                let paused = store.select(CLAIMING, &paused(store)).await?;
                let paused: HashSet<String> = paused
                    .iter()
                    .map(|row| get(row, "name"))
                    .collect::<Result<_>>()?;
                tenants.retain(|tenant| !paused.contains(tenant));
                store.backlog.list(tenants, begun);
                if !paused.is_empty() {
                    act::put_off(store).await?;
                }
                return Ok(());
            }
            tenants.push(tenant);
        }
    }
}

/// So many waiting records are looked at for one whose tenant is not paused. Where all of those are
/// paused, the relay looks again as late as where nothing waits.
const LOOKED_AT_MAX: u32 = 1_000;

/// What is to be known where nothing can be published now.
async fn what_is_left(store: &MySqlStore, claim: &Claim<'_>) -> Result<Claimed> {
    if !store.backlog.is_fresh() {
        list_tenants(store).await?;
    }
    let narrow = Narrow::new(store, claim);
    let table = store.table();
    let (tenants, elsewhere) = (narrow.tenants(), narrow.elsewhere());
    let listed: Vec<String> = store
        .backlog
        .carried(claim.relay)
        .iter()
        .map(|name| quoted(name))
        .collect();
    let of_these = match listed.len() {
        0 => "and false".into(),
        _ => format!("and o.ready_tenant in ({})", listed.join(", ")),
    };
    let ready = format!(
        "from {table} o force index ({index}) where o.ready_tenant is not null {of_these}",
        index = store.index("ready"),
    );
    let waiting = format!(
        "from {table} o force index ({index}) where o.waiting_at",
        index = store.index("waiting")
    );
    let rows = store.select(
        CLAIMING,
        &format!(
            "select exists(select 1 {ready})
                 or exists(select 1 from (select o.tenant_id {waiting} is not null
                                          order by o.waiting_at limit {LOOKED_AT_MAX}) o where true {tenants}) as waiting,
                    exists(select 1 {ready} {tenants} and not ({BORN}) {elsewhere} {ready_goes})
                 or exists(select 1 {waiting} <= utc_timestamp(6) and not ({BORN})
                                            {tenants} {elsewhere} {waiting_goes}) as elsewhere",
            ready_goes = narrow.nothing_holds_ready(),
            waiting_goes = narrow.nothing_holds_waiting(),
        ),
    )
    .await?;
    let is = |column| rows.first().map_or(Ok(0), |row| get::<i64>(row, column));
    Ok(Claimed {
        waiting: is("waiting")? == 1,
        elsewhere: is("elsewhere")? == 1,
        ..Claimed::default()
    })
}

/// The conditions of a claim, as SQL.
struct Narrow<'a> {
    store: &'a MySqlStore,
    claim: &'a Claim<'a>,
    in_flight: String,
}

impl<'a> Narrow<'a> {
    fn new(store: &'a MySqlStore, claim: &'a Claim<'a>) -> Self {
        let in_flight: Vec<String> = claim.in_flight.iter().map(i64::to_string).collect();
        Self {
            store,
            claim,
            in_flight: in_flight.join(", "),
        }
    }

    /// In the parts that are held, and not claimed before.
    fn ours(&self) -> String {
        self.parts("in") + &self.not_in_flight("o")
    }

    /// In the parts that are held by others.
    fn elsewhere(&self) -> String {
        match self.claim.leases.len() == usize::from(PARTITIONS) {
            true => "and false".into(),
            false => self.parts("not in"),
        }
    }

    fn parts(&self, among: &str) -> String {
        let leases = self.claim.leases;
        if leases.is_empty() || leases.len() == usize::from(PARTITIONS) {
            return String::new();
        }
        let parts: Vec<String> = leases.iter().map(|l| l.partition.to_string()).collect();
        format!(" and o.part {among} ({})", parts.join(", "))
    }

    /// Of tenants that the relay carries and that are not paused.
    fn tenants(&self) -> String {
        let paused = format!("and o.tenant_id not in ({})", paused(self.store));
        let Some(tenants) = &self.claim.relay.tenants else {
            return paused;
        };
        let names: Vec<String> = tenants.iter().map(Tenant::as_str).map(quoted).collect();
        format!("and o.tenant_id in ({}) {paused}", names.join(", "))
    }

    fn not_in_flight(&self, alias: &str) -> String {
        match self.in_flight.as_str() {
            "" => String::new(),
            seqs => format!(" and {alias}.seq not in ({seqs})"),
        }
    }

    /// Whether nothing of its key goes before a ready record: nothing that was delayed, has failed
    /// or is its writer's. Ready ones before it are read before it.
    fn nothing_holds_ready(&self) -> String {
        self.nothing_before("holding")
    }

    /// Whether nothing of its key goes before a waiting record: they are found by their time, so
    /// what goes first must be gone.
    fn nothing_holds_waiting(&self) -> String {
        self.nothing_before("unsent")
    }

    fn nothing_before(&self, which: &str) -> String {
        if !self.claim.ordered {
            return String::new();
        }
        let dead = match self.claim.dead_letters_block {
            true => "",
            false => "and p.dead is null",
        };
        format!(
            "and (select 1 from {table} p force index ({index})
                  where p.{which}_key = o.unsent_key and p.seq < o.seq {dead} {not_in_flight} limit 1) is null",
            table = self.store.table(),
            index = self.store.index(which),
            not_in_flight = self.not_in_flight("p"),
        )
    }
}

/// Takes records from owners whose birth lease has run out: theirs is fenced from now on.
async fn take_over(
    store: &MySqlStore,
    ids: &[Uuid],
    claim: &Claim<'_>,
) -> Result<HashMap<Uuid, u32>> {
    let fence = Fence::Leases {
        relay: claim.relay,
        leases: claim.leases,
    };
    let Some(Fenced { join, and }) = fenced(store, &fence) else {
        return Ok(HashMap::new());
    };
    let (table, ids) = (store.table(), literals(ids));
    let take = format!(
        "update {table} o {join}
         set o.owner = null, o.lease_until = null, o.lost_attempts = o.lost_attempts + 1
         where o.status = 'NEW' and o.lease_until <= utc_timestamp(6) and o.id in ({ids}) {and}"
    );
    if store
        .execute(TAKING_OVER, &take, None)
        .await?
        .rows_affected()
        == 0
    {
        return Ok(HashMap::new());
    }
    let taken = format!(
        "select id, lost_attempts from {table} where id in ({ids}) and status = 'NEW' and owner is null"
    );
    let taken = store.select(TAKING_OVER, &taken).await?;
    taken
        .iter()
        .map(|row| {
            let lost: i32 = get(row, "lost_attempts")?;
            Ok((uuid(get(row, "id")?)?, u32::try_from(lost).unwrap_or(0)))
        })
        .collect()
}

pub(super) async fn attempt(
    store: &MySqlStore,
    fence: &Fence<'_>,
    id: Uuid,
) -> Result<Option<u32>> {
    let Some(Fenced { join, and }) = fenced(store, fence) else {
        return Ok(None);
    };
    // What `last_insert_id` is given comes back with the answer.
    let counted = format!(
        "update {table} o {join} set o.lost_attempts = last_insert_id(o.lost_attempts + 1)
         where o.status = 'NEW' and o.id = '{id}' {and}",
        table = store.table()
    );
    let done = store.execute("counting an attempt", &counted, None).await?;
    let lost = u32::try_from(done.last_insert_id()).unwrap_or(u32::MAX);
    Ok((done.rows_affected() > 0).then_some(lost))
}

pub(super) async fn settle(store: &MySqlStore, settle: &Settle<'_>) -> Result<u64> {
    let Some(Fenced { join, and }) = fenced(store, &settle.fence) else {
        return Ok(0);
    };
    let table = store.table();
    let (mut sent, mut failed) = (Vec::new(), Vec::new());
    for settlement in settle.settlements {
        match &settlement.verdict {
            Verdict::Sent => sent.push(settlement.id),
            verdict => failed.push(Failed::new(settlement.id, verdict)),
        }
    }
    let mut changed = 0;
    if !sent.is_empty() {
        let (verb, set) = match settle.keep_sent {
            true => (
                format!("update {table} o {join}"),
                "set o.status = 'SENT', o.retry_at = null, o.owner = null, o.lease_until = null,
                     o.sent_at = utc_timestamp(6)",
            ),
            false => (format!("delete o from {table} o {join}"), ""),
        };
        let ids = literals(&sent);
        let mark = format!("{verb} {set} where o.status = 'NEW' and o.id in ({ids}) {and}");
        changed += store.execute(SETTLING, &mark, None).await?.rows_affected();
    }
    if !failed.is_empty() {
        let failed = json(&failed)?;
        let mark = format!(
            "update {table} o {join}
             join json_table(?, '$[*]' columns (
                 id char(36) character set ascii path '$.id', status varchar(4) character set ascii path '$.status',
                 after bigint path '$.after', counts int path '$.counts',
                 reason text character set utf8mb4 path '$.reason')) f on f.id = o.id
             set o.status = f.status, o.owner = null, o.lease_until = null,
                 o.lost_attempts = case when f.status = 'NEW' and f.after is null
                                        then greatest(o.lost_attempts - 1, 0) else 0 end,
                 o.retry_at = utc_timestamp(6) + interval f.after microsecond,
                 o.retry_cnt = o.retry_cnt + f.counts, o.error_message = coalesce(f.reason, o.error_message)
             where o.status = 'NEW' {and}"
        );
        let done = store.execute(SETTLING, &mark, Some(&failed)).await?;
        changed += done.rows_affected();
    }
    Ok(changed)
}

/// What makes a statement a fenced one.
struct Fenced {
    /// After the table `o` that it changes.
    join: String,
    /// At the end of its condition.
    and: String,
}

/// None where nothing is held, and so nothing can be changed. The leases are locked in the same
/// statement that writes under them, so nobody takes one over in between. The limit keeps the
/// sub-select from being merged with the rest: the leases are locked together and in their order.
fn fenced(store: &MySqlStore, fence: &Fence<'_>) -> Option<Fenced> {
    match fence {
        Fence::Birth(owner) => Some(Fenced {
            join: String::new(),
            and: format!("and o.owner = '{owner}'"),
        }),
        Fence::Leases { leases: [], .. } => None,
        Fence::Leases { relay, leases } => {
            let held: Vec<String> = leases
                .iter()
                .map(|lease| format!("({}, {})", lease.partition, lease.epoch))
                .collect();
            let join = format!(
                "join (select part from {table} where scope = sha1('{scope}') and owner = '{id}'
                         and (part, epoch) in ({held}) order by part limit {PARTITIONS} lock in share mode) held
                 on held.part = o.part",
                table = store.helper("leases"),
                scope = relay.scope(),
                id = relay.id,
                held = held.join(", "),
            );
            Some(Fenced {
                join,
                and: String::new(),
            })
        }
    }
}

fn quoted(name: &str) -> String {
    format!("'{name}'")
}
