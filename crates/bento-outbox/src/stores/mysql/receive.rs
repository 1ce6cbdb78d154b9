//! What consumers have received, and what commands were answered.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use super::super::sql::{error, forgotten_meanwhile};
use super::rows::micros;
use super::{DUPLICATE, MySqlStore, number};
use crate::error::Result;
use crate::store::FirstRun;
use crate::tenant::Tenant;

/// Waits for who is receiving the same message, up to `innodb_lock_wait_timeout`; and where that one
/// fails while several wait, the server lets one of them go on and undoes the others: both are
/// conflicts. Not `insert ignore`, which would cut off or leave out what does not fit.
pub(super) async fn receive(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    consumer: &str,
    tenant: &Tenant,
    message_id: &str,
) -> Result<bool> {
    let hex = |name: &str| {
        name.bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    // In one packet: sqlx 0.9.0 loses its place in a connection where it was dropped while it prepared
    // a statement, and this unit of work is still to be rolled back on it.
    let received = sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into {} (consumer, tenant_id, message_id) values (_utf8mb4 x'{}', '{tenant}', _utf8mb4 x'{}')",
        store.helper("inbox"),
        hex(consumer),
        hex(message_id),
    )))
    .execute(connection)
    .await;
    match received {
        Ok(_) => Ok(true),
        Err(e) if number(&e) == Some(DUPLICATE) => Ok(false),
        Err(e) => Err(error("receiving a message", e)),
    }
}

/// As [`receive`]. It looks with a lock, which sees what others have committed, whatever the
/// isolation of the transaction.
pub(super) async fn begin_command(
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    tenant: &Tenant,
    key: &str,
    fingerprint: &str,
) -> Result<Option<FirstRun>> {
    let beginning = |e| error("beginning a command", e);
    let commands = store.helper("commands");
    let begun = sqlx::query(AssertSqlSafe(format!(
        "insert into {commands} (tenant_id, command_key, fingerprint) values (?, ?, ?)"
    )))
    .bind(tenant.as_str())
    .bind(key)
    .bind(fingerprint)
    .execute(&mut *connection)
    .await;
    match begun {
        Ok(_) => return Ok(None),
        Err(e) if number(&e) == Some(DUPLICATE) => {}
        Err(e) => return Err(beginning(e)),
    }
    let first: Option<(String, Option<Vec<u8>>)> = sqlx::query_as(AssertSqlSafe(format!(
        "select fingerprint, answer from {commands} where tenant_id = ? and command_key = ? lock in share mode"
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
    store: &MySqlStore,
    connection: &mut MySqlConnection,
    tenant: &Tenant,
    key: &str,
    answer: &[u8],
) -> Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "update {} set answer = ? where tenant_id = ? and command_key = ?",
        store.helper("commands")
    )))
    .bind(answer)
    .bind(tenant.as_str())
    .bind(key)
    .execute(connection)
    .await
    .map(drop)
    .map_err(|e| error("ending a command", e))
}

/// Deletes rows of the helper table `name`.
pub(super) async fn purge(
    store: &MySqlStore,
    name: &str,
    age: Duration,
    limit: u32,
) -> Result<u64> {
    let gone = format!(
        "delete from {} where received_at < utc_timestamp(6) - interval {} microsecond
         order by received_at limit {limit}",
        store.helper(name),
        micros(age)
    );
    Ok(store
        .execute(&format!("purging {name}"), &gone, None)
        .await?
        .rows_affected())
}
