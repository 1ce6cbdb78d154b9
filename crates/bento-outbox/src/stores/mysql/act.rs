//! What operators change, each change with its act in one transaction, and what they keep back.

use std::time::Duration;

use chrono::NaiveDateTime;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, MySql, QueryBuilder};
use uuid::Uuid;

use super::super::sql::{PUT_OFF, PUT_OFF_CHUNK, WAKE_CHUNK, error, parsed};
use super::claims::due_but_paused;
use super::rows::{get, literals, time, uuid};
use super::{CONFLICT_WAITS, MySqlStore};
use crate::act::{Act, Audited};
use crate::error::{ErrorKind, Result};
use crate::pause::{self, ASIDE, Pausable, Pause};
use crate::store::{Appended, TransactionalStore as _};

pub(super) async fn retry(store: MySqlStore, ids: Vec<Uuid>, by: String) -> Result<u64> {
    let again =
        "update {table} set status = 'NEW', retry_cnt = 0, retry_at = null, lost_attempts = 0
                 where status = 'ERR' and id in ({ids})";
    stubbornly(|| letters(&store, "retry", again, &ids, &by)).await
}

pub(super) async fn discard(store: MySqlStore, ids: Vec<Uuid>, by: String) -> Result<u64> {
    let gone = "delete from {table} where status = 'ERR' and id in ({ids})";
    stubbornly(|| letters(&store, "discard", gone, &ids, &by)).await
}

/// Tries again what gave way to another transaction: deadlocks are nobody's fault.
async fn stubbornly<F: Future<Output = Result<u64>>>(mut change: impl FnMut() -> F) -> Result<u64> {
    let mut waits = CONFLICT_WAITS.into_iter();
    loop {
        let done = change().await;
        let wait: Duration = match (&done, waits.next()) {
            (Err(e), Some(wait)) if e.kind() == ErrorKind::Conflict => wait,
            _ => return done,
        };
        tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>())).await;
    }
}

/// Changes dead letters, which are locked first: there is no `returning`.
async fn letters(
    store: &MySqlStore,
    verb: &str,
    statement: &str,
    ids: &[Uuid],
    by: &str,
) -> Result<u64> {
    if ids.is_empty() {
        return Ok(0);
    }
    let changing = |e| error("changing dead letters", e);
    let table = store.table();
    let mut transaction = store.begin(None).await?;
    let dead = sqlx::raw_sql(AssertSqlSafe(format!(
        "select id from {table} where status = 'ERR' and id in ({}) for update",
        literals(ids)
    )))
    .fetch_all(&mut *transaction.connection())
    .await
    .map_err(changing)?;
    let dead = dead.iter().map(|row| uuid(get(row, "id")?));
    let dead: Vec<Uuid> = dead.collect::<Result<_>>()?;
    if !dead.is_empty() {
        let statement = statement
            .replace("{table}", &table)
            .replace("{ids}", &literals(&dead));
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut *transaction.connection())
            .await
            .map_err(changing)?;
        let act = Act::on_events(by, verb, &dead);
        note(store, transaction.connection(), &act).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    Ok(dead.len() as u64)
}

pub(super) async fn pause(
    store: MySqlStore,
    kind: Pausable,
    names: Vec<String>,
    by: String,
    reason: Option<String>,
) -> Result<u64> {
    stubbornly(|| pause_once(&store, kind, &names, &by, reason.as_deref())).await
}

async fn pause_once(
    store: &MySqlStore,
    kind: Pausable,
    names: &[String],
    by: &str,
    reason: Option<&str>,
) -> Result<u64> {
    let pausing = |e| error("pausing", e);
    let pauses = store.helper("pauses");
    let act = Act::new(by, "pause", serde_json::Value::Null, 0, reason);
    let mut transaction = store.begin(None).await?;
    // Without `returning`, the number of rows tells which are new, so it is one at a time. Of a row whose
    // names are known to fit, `ignore` ignores nothing but that it is there.
    let mut paused = Vec::new();
    for name in names {
        let insert = format!(
            "insert ignore into {pauses} (kind, name, paused_by, reason) values (?, ?, ?, ?)"
        );
        let done = sqlx::query(AssertSqlSafe(insert))
            .bind(kind.as_str())
            .bind(name)
            .bind(&act.by)
            .bind(&act.note)
            .execute(&mut *transaction.connection())
            .await
            .map_err(pausing)?;
        if done.rows_affected() > 0 {
            paused.push(name.clone());
        }
    }
    if !paused.is_empty() {
        let all: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {pauses}")))
            .fetch_one(&mut *transaction.connection())
            .await
            .map_err(pausing)?;
        pause::check_number(usize::try_from(all).unwrap_or(0))?;
        let act = act.on_names(kind, &paused);
        note(store, transaction.connection(), &act).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    Ok(paused.len() as u64)
}

pub(super) async fn resume(
    store: MySqlStore,
    kind: Pausable,
    names: Vec<String>,
    by: String,
) -> Result<u64> {
    let resumed = stubbornly(|| resume_once(&store, kind, &names, &by)).await?;
    while wake(&store, WAKE_CHUNK).await? >= u64::from(WAKE_CHUNK) {}
    Ok(resumed)
}

async fn resume_once(
    store: &MySqlStore,
    kind: Pausable,
    names: &[String],
    by: &str,
) -> Result<u64> {
    let mut transaction = store.begin(None).await?;
    let there = locked(store, transaction.connection(), kind, names).await?;
    if !there.is_empty() {
        let mut delete = of_these(
            format!("delete from {}", store.helper("pauses")),
            kind,
            &there,
        );
        delete
            .build()
            .persistent(false)
            .execute(&mut *transaction.connection())
            .await
            .map_err(|e| error("resuming", e))?;
        let act = Act::new(by, "resume", serde_json::Value::Null, 0, None).on_names(kind, &there);
        note(store, transaction.connection(), &act).await?;
    }
    store.commit(transaction, &Appended::default()).await?;
    Ok(there.len() as u64)
}

/// Those of these that are paused, locked for whoever changes them.
async fn locked(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    kind: Pausable,
    names: &[String],
) -> Result<Vec<String>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let select = format!("select name from {}", store.helper("pauses"));
    let mut select = of_these(select, kind, names);
    select.push(" order by name for update");
    select
        .build_query_scalar()
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(|e| error("reading what is paused", e))
}

fn of_these(statement: String, kind: Pausable, names: &[String]) -> QueryBuilder<MySql> {
    let mut statement = QueryBuilder::new(statement);
    statement
        .push(" where kind = ")
        .push_bind(kind.as_str())
        .push(" and name in (");
    let mut listed = statement.separated(", ");
    for name in names {
        listed.push_bind(name.clone());
    }
    statement.push(")");
    statement
}

pub(super) async fn pauses(store: &MySqlStore) -> Result<Vec<Pause>> {
    let all = format!(
        "select kind, name, since, paused_by, reason from {} order by kind desc, name",
        store.helper("pauses")
    );
    let rows = store.select("reading what is paused", &all).await?;
    rows.iter()
        .map(|row| {
            Ok(Pause {
                kind: get::<&str>(row, "kind")?.parse()?,
                name: get(row, "name")?,
                since: time(get(row, "since")?),
                by: get(row, "paused_by")?,
                reason: get(row, "reason")?,
            })
        })
        .collect()
}

/// What is written about events that are put aside for destinations that are paused.
pub(super) fn asides(store: &MySqlStore) -> String {
    let (pauses, [before, after]) = (store.helper("pauses"), ASIDE);
    format!("select concat('{before}', name, '{after}') from {pauses} where kind = 'destination'")
}

/// Those are looked at that are not due, so that nothing is woken twice.
pub(super) async fn wake(store: &MySqlStore, limit: u32) -> Result<u64> {
    let (pauses, [before, after]) = (store.helper("pauses"), ASIDE);
    let wake = format!(
        "update {table} set retry_at = null
         where waiting_at > utc_timestamp(6) and status = 'NEW'
           and (error_message like '{before}%{after}' and error_message not in ({asides})
                or retry_at = '{put_off}' and tenant_id not in (select name from {pauses} where kind = 'tenant'))
         order by waiting_at limit {limit}",
        table = store.table(),
        asides = asides(store),
        put_off = put_off_until(),
    );
    let done = store
        .execute("waking what was put aside", &wake, None)
        .await?;
    Ok(done.rows_affected())
}

/// Puts off what has come due of paused tenants, until they are resumed. It is looked for first,
/// since an update that finds nothing locks what it has read.
pub(super) async fn put_off(store: &MySqlStore) -> Result<()> {
    const PUTTING_OFF: &str = "putting off what is paused";
    let (table, stale) = (store.table(), due_but_paused(store));
    let first = format!(
        "select 1 from {table} force index ({}) where {stale} limit 1",
        store.index("waiting")
    );
    if store.select(PUTTING_OFF, &first).await?.is_empty() {
        return Ok(());
    }
    let put_off = format!(
        "update {table} set retry_at = '{}' where status = 'NEW' and {stale}
         order by waiting_at limit {PUT_OFF_CHUNK}",
        put_off_until()
    );
    let done = store.execute(PUTTING_OFF, &put_off, None).await;
    done.map(drop)
}

/// MySQL takes no zone in a literal.
fn put_off_until() -> String {
    PUT_OFF.trim_end_matches('Z').replace('T', " ")
}

pub(super) async fn audit(store: MySqlStore, act: Act) -> Result<()> {
    let mut connection = store.pool.acquire().await.map_err(noting)?;
    note(&store, &mut connection, &act).await
}

async fn note(store: &MySqlStore, connection: &mut MySqlConnection, act: &Act) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "insert into {} (done_by, verb, what, changed, note) values (?, ?, ?, ?, ?)",
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
    store: &MySqlStore,
    before: Option<i64>,
    limit: u32,
) -> Result<Vec<Audited>> {
    let acts = format!(
        "select number, done_at, done_by, verb, what, changed, note from {}
         where number < {} order by number desc limit {limit}",
        store.helper("audit"),
        before.unwrap_or(i64::MAX)
    );
    let rows = store.select("reading the audit", &acts).await?;
    rows.iter()
        .map(|row| {
            let (by, verb) = (get(row, "done_by")?, get(row, "verb")?);
            let changed = u64::try_from(get::<i64>(row, "changed")?).unwrap_or(0);
            Ok(Audited {
                number: get(row, "number")?,
                at: time(get::<NaiveDateTime>(row, "done_at")?),
                act: Act::new(
                    by,
                    verb,
                    parsed(get(row, "what")?)?,
                    changed,
                    get(row, "note")?,
                ),
            })
        })
        .collect()
}

fn noting(e: sqlx::Error) -> crate::error::Error {
    error("writing the audit", e)
}
