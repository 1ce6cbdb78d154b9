//! What consumers have received, and what commands were answered.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::super::sql::{error, forgotten_meanwhile};
use super::PostgresStore;
use crate::error::Result;
use crate::store::FirstRun;
use crate::tenant::Tenant;

/// Waits for who is receiving the same message. At read committed it then sees what became of that;
/// above, the database answers that it cannot, which is a conflict.
pub(super) async fn receive(
    store: &PostgresStore,
    connection: &mut PgConnection,
    consumer: &str,
    tenant: &Tenant,
    message_id: &str,
) -> Result<bool> {
    let received = sqlx::query(AssertSqlSafe(format!(
        "insert into {} (consumer, tenant_id, message_id) values ($1, $2, $3) on conflict do nothing",
        store.helper("inbox")
    )))
    .bind(consumer)
    .bind(tenant.as_str())
    .bind(message_id)
    .execute(connection)
    .await
    .map_err(|e| error("receiving a message", e))?;
    Ok(received.rows_affected() == 1)
}

/// As [`receive`]. What the other one answered is asked for in a statement of its own: that of the
/// insert began before it was there.
pub(super) async fn begin_command(
    store: &PostgresStore,
    connection: &mut PgConnection,
    tenant: &Tenant,
    key: &str,
    fingerprint: &str,
) -> Result<Option<FirstRun>> {
    let beginning = |e| error("beginning a command", e);
    let commands = store.helper("commands");
    let begun = sqlx::query(AssertSqlSafe(format!(
        "insert into {commands} (tenant_id, command_key, fingerprint) values ($1, $2, $3) on conflict do nothing"
    )))
    .bind(tenant.as_str())
    .bind(key)
    .bind(fingerprint)
    .execute(&mut *connection)
    .await
    .map_err(beginning)?;
    if begun.rows_affected() == 1 {
        return Ok(None);
    }
    let first: Option<(String, Option<Vec<u8>>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select fingerprint, answer from {commands} where tenant_id = $1 and command_key = $2"
    )))
    .bind(tenant.as_str())
    .bind(key)
    .fetch_optional(connection)
    .await
    .map_err(beginning)?;
    let (fingerprint, answer) = first.ok_or_else(forgotten_meanwhile)?;
    Ok(Some(FirstRun {
        fingerprint,
        answer: answer.unwrap_or_default(),
    }))
}

pub(super) async fn end_command(
    store: &PostgresStore,
    connection: &mut PgConnection,
    tenant: &Tenant,
    key: &str,
    answer: &[u8],
) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "update {} set answer = $3 where tenant_id = $1 and command_key = $2",
        store.helper("commands")
    )))
    .bind(tenant.as_str())
    .bind(key)
    .bind(answer)
    .execute(connection)
    .await
    .map(drop)
    .map_err(|e| error("ending a command", e))
}

/// Deletes rows of the helper table `name`. Its key is long, so rows are known by their place.
pub(super) async fn purge(
    store: &PostgresStore,
    name: &str,
    age: Duration,
    limit: u32,
) -> Result<u64> {
    let table = store.helper(name);
    let gone = sqlx::query(AssertSqlSafe(format!(
        "delete from {table} where ctid = any(array(
             select ctid from {table} where received_at < clock_timestamp() - $1 * interval '1 second'
             order by received_at limit $2 for update skip locked))"
    )))
    .bind(age.as_secs_f64())
    .bind(i64::from(limit))
    .execute(&store.pool)
    .await
    .map_err(|e| error(&format!("purging {name}"), e))?;
    Ok(gone.rows_affected())
}
