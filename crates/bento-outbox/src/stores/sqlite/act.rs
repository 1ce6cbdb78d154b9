//! What operators change, each change with its act in one transaction, and what they keep back.

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::super::sql::{PUT_OFF, PUT_OFF_CHUNK, WAKE_CHUNK, error, parsed};
use super::claims::{DUE_AT, WAITING, due_but_paused};
use super::rows::{get, json, read_time, uuid};
use super::{NOW, SqliteStore};
use crate::act::{Act, Audited};
use crate::error::Result;
use crate::pause::{self, ASIDE, Pausable, Pause};
use crate::store::{Appended, TransactionalStore as _};

pub(super) async fn retry(store: SqliteStore, ids: Vec<Uuid>, by: String) -> Result<u64> {
    let again = format!(
        "update {} set status = 'NEW', retry_cnt = 0, retry_at = null, lost_attempts = 0
         where id in (select value from json_each(?1)) and status = 'ERR' returning id",
        store.table()
    );
    letters(&store, "retry", again, &ids, &by).await
}

pub(super) async fn discard(store: SqliteStore, ids: Vec<Uuid>, by: String) -> Result<u64> {
    let gone = format!(
        "delete from {} where id in (select value from json_each(?1)) and status = 'ERR' returning id",
        store.table()
    );
    letters(&store, "discard", gone, &ids, &by).await
}

/// Changes dead letters by a statement that returns the ids of those that it changed.
async fn letters(
    store: &SqliteStore,
    verb: &str,
    statement: String,
    ids: &[Uuid],
    by: &str,
) -> Result<u64> {
    let mut transaction = store.begin(None).await?;
    let rows = sqlx::query(AssertSqlSafe(statement))
        .bind(json(ids)?)
        .fetch_all(&mut *transaction)
        .await
        .map_err(|e| error("changing dead letters", e))?;
    let changed = rows.iter().map(|row| uuid(get(row, "id")?));
    let changed: Vec<Uuid> = changed.collect::<Result<_>>()?;
    if !changed.is_empty() {
        let act = Act::on_events(by, verb, &changed);
        note(store, &mut transaction, &act).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    Ok(changed.len() as u64)
}

pub(super) async fn pause(
    store: SqliteStore,
    kind: Pausable,
    names: Vec<String>,
    by: String,
    reason: Option<String>,
) -> Result<u64> {
    let pausing = |e| error("pausing", e);
    let pauses = store.helper("pauses");
    let mut transaction = store.begin(None).await?;
    let act = Act::new(&by, "pause", serde_json::Value::Null, 0, reason.as_deref());
    let paused: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "insert into {pauses} (kind, name, paused_by, reason)
         select ?1, value, ?3, ?4 from json_each(?2) where true
         on conflict do nothing returning name"
    )))
    .bind(kind.as_str())
    .bind(json(&names)?)
    .bind(&act.by)
    .bind(&act.note)
    .fetch_all(&mut *transaction)
    .await
    .map_err(pausing)?;
    if !paused.is_empty() {
        let all: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {pauses}")))
            .fetch_one(&mut *transaction)
            .await
            .map_err(pausing)?;
        pause::check_number(usize::try_from(all).unwrap_or(0))?;
        note(&store, &mut transaction, &act.on_names(kind, &paused)).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    Ok(paused.len() as u64)
}

pub(super) async fn resume(
    store: SqliteStore,
    kind: Pausable,
    names: Vec<String>,
    by: String,
) -> Result<u64> {
    let mut transaction = store.begin(None).await?;
    let resumed: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
        "delete from {} where kind = ?1 and name in (select value from json_each(?2)) returning name",
        store.helper("pauses")
    )))
    .bind(kind.as_str())
    .bind(json(&names)?)
    .fetch_all(&mut *transaction)
    .await
    .map_err(|e| error("resuming", e))?;
    if !resumed.is_empty() {
        let act = Act::new(&by, "resume", serde_json::Value::Null, 0, None);
        note(&store, &mut transaction, &act.on_names(kind, &resumed)).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    while wake(&store, WAKE_CHUNK).await? >= u64::from(WAKE_CHUNK) {}
    Ok(resumed.len() as u64)
}

pub(super) async fn pauses(store: &SqliteStore) -> Result<Vec<Pause>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select kind, name, since, paused_by, reason from {} order by kind desc, name",
        store.helper("pauses")
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading what is paused", e))?;
    rows.iter()
        .map(|row| {
            Ok(Pause {
                kind: get::<&str>(row, "kind")?.parse()?,
                name: get(row, "name")?,
                since: read_time(row, "since")?,
                by: get(row, "paused_by")?,
                reason: get(row, "reason")?,
            })
        })
        .collect()
}

/// What is written about events that are put aside for destinations that are paused.
pub(super) fn asides(store: &SqliteStore) -> String {
    let (pauses, [before, after]) = (store.helper("pauses"), ASIDE);
    format!("select '{before}' || name || '{after}' from {pauses} where kind = 'destination'")
}

/// Those are looked at that are not due, so that nothing is woken twice.
pub(super) async fn wake(store: &SqliteStore, limit: u32) -> Result<u64> {
    let (table, pauses, [before, after]) = (store.table(), store.helper("pauses"), ASIDE);
    let woken = sqlx::query(AssertSqlSafe(format!(
        "update {table} set retry_at = null where seq in (
             select o.seq from {table} o
             where {WAITING} and {DUE_AT} > julianday('now')
               and (o.error_message like '{before}%{after}' and o.error_message not in ({asides})
                    or o.retry_at = '{PUT_OFF}' and o.tenant_id not in (
                        select name from {pauses} where kind = 'tenant'))
             order by {DUE_AT} limit ?1)",
        asides = asides(store),
    )))
    .bind(i64::from(limit))
    .execute(&store.pool)
    .await
    .map_err(|e| error("waking what was put aside", e))?;
    Ok(woken.rows_affected())
}

/// Puts off what has come due of paused tenants, until they are resumed.
pub(super) async fn put_off(store: &SqliteStore) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "update {} set retry_at = '{PUT_OFF}' where status = 'NEW' and seq in ({} limit ?1)",
        store.table(),
        due_but_paused(store)
    )))
    .bind(i64::from(PUT_OFF_CHUNK))
    .execute(&store.pool)
    .await
    .map(drop)
    .map_err(|e| error("putting off what is paused", e))
}

pub(super) async fn audit(store: SqliteStore, act: Act) -> Result<()> {
    let mut connection = store.pool.acquire().await.map_err(noting)?;
    note(&store, &mut connection, &act).await
}

async fn note(store: &SqliteStore, connection: &mut SqliteConnection, act: &Act) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "insert into {} (done_at, done_by, verb, what, changed, note) values ({NOW}, ?1, ?2, ?3, ?4, ?5)",
        store.helper("audit")
    )))
    .bind(&act.by)
    .bind(&act.verb)
    .bind(act.what.to_string())
    .bind(i64::try_from(act.changed).unwrap_or(i64::MAX))
    .bind(&act.note)
    .execute(connection)
    .await
    .map(drop)
    .map_err(noting)
}

pub(super) async fn acts(
    store: &SqliteStore,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Audited>> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select number, done_at, done_by, verb, what, changed, note from {}
         where number < ?1 order by number desc limit ?2",
        store.helper("audit")
    )))
    .bind(before.unwrap_or(i64::MAX))
    .bind(i64::from(limit))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("reading the audit", e))?;
    rows.iter()
        .map(|row| {
            let (by, verb) = (get(row, "done_by")?, get(row, "verb")?);
            let changed = u64::try_from(get::<i64>(row, "changed")?).unwrap_or(0);
            let what = parsed(get(row, "what")?)?;
            Ok(Audited {
                number: get(row, "number")?,
                at: read_time(row, "done_at")?,
                act: Act::new(by, verb, what, changed, get(row, "note")?),
            })
        })
        .collect()
}

fn noting(e: sqlx::Error) -> crate::error::Error {
    error("writing the audit", e)
}
