//! What consumers have received, and what commands were answered. Transactions that write come one
//! after the other here, so nobody waits in these statements.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

use super::super::sql::{error, forgotten_meanwhile};
use super::SqliteStore;
use crate::error::Result;
use crate::store::FirstRun;
use crate::tenant::Tenant;

pub(super) async fn receive(
    store: &SqliteStore,
    connection: &mut SqliteConnection,
    consumer: &str,
    tenant: &Tenant,
    message_id: &str,
) -> Result<bool> {
    let received = sqlx::query(AssertSqlSafe(format!(
        "insert into {} (consumer, tenant_id, message_id) values (?1, ?2, ?3) on conflict do nothing",
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

pub(super) async fn begin_command(
    store: &SqliteStore,
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    key: &str,
    fingerprint: &str,
) -> Result<Option<FirstRun>> {
    let beginning = |e| error("beginning a command", e);
    let commands = store.helper("commands");
    let begun = sqlx::query(AssertSqlSafe(format!(
        "insert into {commands} (tenant_id, command_key, fingerprint) values (?1, ?2, ?3) on conflict do nothing"
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
        "select fingerprint, answer from {commands} where tenant_id = ?1 and command_key = ?2"
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
    store: &SqliteStore,
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    key: &str,
    answer: &[u8],
) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "update {} set answer = ?3 where tenant_id = ?1 and command_key = ?2",
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

/// Deletes rows of the helper table `name`, whose key is `key`.
pub(super) async fn purge(
    store: &SqliteStore,
    name: &str,
    key: &str,
    age: Duration,
    limit: u32,
) -> Result<u64> {
    let table = store.helper(name);
    let gone = sqlx::query(AssertSqlSafe(format!(
        "delete from {table} where ({key}) in (
             select {key} from {table}
             where received_at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?1)
             order by received_at limit ?2)"
    )))
    .bind(format!("-{:.3} seconds", age.as_secs_f64()))
    .bind(i64::from(limit))
    .execute(&store.pool)
    .await
    .map_err(|e| error(&format!("purging {name}"), e))?;
    Ok(gone.rows_affected())
}
