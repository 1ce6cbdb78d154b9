//! What an operator looks for, and where a record stands.

use chrono::NaiveDateTime;
use sqlx::{AssertSqlSafe, MySql, QueryBuilder};
use uuid::Uuid;

use super::super::sql::error;
use super::MySqlStore;
use super::rows::{COLUMNS, columns_without_payload, get, literals, record, time, uuid};
use crate::error::Result;
use crate::filter::{Filter, Page};
use crate::record::{OutboxRecord, Status};
use crate::standing::Standing;
use crate::store::Relay;

/// What is not sent is found by the indexes of it, and the rest in the order of the table itself.
/// Numbers and names of tenants have nothing in them that needs escaping.
pub(super) async fn events(
    store: &MySqlStore,
    filter: &Filter,
    page: &Page,
) -> Result<Vec<OutboxRecord>> {
    if filter.ids.as_ref().is_some_and(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let order = if page.newest_first { "desc" } else { "asc" };
    let columns = match page.payload {
        true => COLUMNS.into(),
        false => columns_without_payload(),
    };
    let place = place(store, filter, page);
    let mut statement = QueryBuilder::<MySql>::new(format!("select {columns} from {place}"));
    narrow(&mut statement, filter, page);
    statement
        .push(format!(" order by o.seq {order} limit "))
        .push_bind(page.bounded());
    let rows = statement
        .build()
        .persistent(false)
        .fetch_all(&store.pool)
        .await
        .map_err(|e| error("searching events", e))?;
    rows.iter().map(record).collect()
}

/// Where to look, up to and with a `where`.
fn place(store: &MySqlStore, filter: &Filter, page: &Page) -> String {
    let table = store.table();
    let of = |index: &str| format!("{table} o force index ({})", store.index(index));
    match (filter.status, &filter.ids, filter.sent_since) {
        (status, Some(_), _) => match status {
            Some(status) => format!("{table} o where o.status = '{status}'"),
            None => format!("{table} o where true"),
        },
        (Some(Status::New), ..) => {
            let tenant = match &filter.tenant {
                Some(tenant) => format!("= '{tenant}'"),
                None => "is not null".into(),
            };
            let after = match page.after {
                Some(after) if page.newest_first => format!("and o.seq < {after}"),
                Some(after) => format!("and o.seq > {after}"),
                None => String::new(),
            };
            format!(
                "(select o.seq as place from {} where o.ready_tenant {tenant} {after}
                  union all select o.seq from {} where o.waiting_at is not null {after}) unsent
                 straight_join {table} o on o.seq = unsent.place where o.status = 'NEW'",
                of("ready"),
                of("waiting"),
            )
        }
        (Some(Status::Err), ..) => format!("{} where o.dead = 1", of("dead")),
        (status, _, Some(_)) => {
            let status = status.unwrap_or(Status::Sent);
            format!("{} where o.status = '{status}'", of("sent"))
        }
        (Some(Status::Sent), ..) => format!("{table} o where o.status = 'SENT'"),
        (None, ..) => format!("{table} o where true"),
    }
}

/// The conditions but for the status.
fn narrow(statement: &mut QueryBuilder<MySql>, filter: &Filter, page: &Page) {
    if let Some(after) = page.after {
        statement
            .push(match page.newest_first {
                true => " and o.seq < ",
                false => " and o.seq > ",
            })
            .push_bind(after);
    }
    if let Some(tenant) = &filter.tenant {
        statement
            .push(" and o.tenant_id = ")
            .push_bind(tenant.as_str());
    }
    if let Some(event_type) = &filter.event_type {
        statement.push(" and o.type = ").push_bind(event_type);
    }
    if let Some(aggregate_id) = &filter.aggregate_id {
        // Without regard to collations, to which trailing blanks are nothing.
        statement
            .push(" and cast(o.aggregate_id as binary) = cast(")
            .push_bind(aggregate_id)
            .push(" as binary)");
    }
    if let Some(since) = filter.since {
        statement
            .push(" and o.created_at >= ")
            .push_bind(since.to_chrono().naive_utc());
    }
    if let Some(until) = filter.until {
        statement
            .push(" and o.created_at < ")
            .push_bind(until.to_chrono().naive_utc());
    }
    if let Some(sent_since) = filter.sent_since {
        statement
            .push(" and o.sent_at >= ")
            .push_bind(sent_since.to_chrono().naive_utc());
    }
    if let Some(ids) = &filter.ids {
        statement
            .push(" and o.id in (")
            .push(literals(ids))
            .push(")");
    }
}

pub(super) async fn standing(
    store: &MySqlStore,
    id: Uuid,
    dead_letters_block: bool,
) -> Result<Option<Standing>> {
    let looking = |e| error("looking where an event stands", e);
    let table = store.table();
    let row = sqlx::raw_sql(AssertSqlSafe(format!(
        "select {columns}, o.owner, o.lease_until, utc_timestamp(6) as now, o.part,
                (select p.id from {table} p
                 where p.unsent_key = o.ordering_key and p.seq < o.seq and (p.dead is null or {dead_letters_block})
                   and o.status = 'NEW' and o.aggregate_id is not null
                 order by p.seq limit 1) as ahead
         from {table} o where o.id = '{id}'",
        columns = columns_without_payload(),
    )))
    .fetch_optional(&store.pool)
    .await
    .map_err(looking)?;
    let Some(row) = row else { return Ok(None) };
    let part: i8 = get(&row, "part")?;
    let record = record(&row)?;
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let live = format!(
        "select r.id, r.scope, l.until
         from {relays} r left join {leases} l
              on l.owner = r.id and l.part = {part} and l.until > utc_timestamp(6)
         where r.until > utc_timestamp(6) order by r.id"
    );
    let live = store.select("looking where an event stands", &live).await?;
    let (mut held_by, mut carriers) = (None, 0);
    for relay in &live {
        if !Relay::scope_has(get(relay, "scope")?, &record.tenant) {
            continue;
        }
        carriers += 1;
        if let Some(until) = get::<Option<NaiveDateTime>>(relay, "until")? {
            held_by = Some((uuid(get(relay, "id")?)?, time(until)));
        }
    }
    let owner = get::<Option<&str>>(&row, "owner")?.map(uuid).transpose()?;
    let lease_until = get::<Option<NaiveDateTime>>(&row, "lease_until")?;
    Ok(Some(Standing {
        now: time(get(&row, "now")?),
        partition: u16::try_from(part).unwrap_or(0),
        born_to: owner.zip(lease_until.map(time)),
        ahead: get::<Option<&str>>(&row, "ahead")?.map(uuid).transpose()?,
        held_by,
        relays: carriers,
        record,
    }))
}
