//! The tables: made, counted and, where that was interrupted, made to the end.

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Executor};

use super::super::sql::{Step, error, migrate_error};
use super::{MySqlStore, inspect};
use crate::error::{Error, ErrorKind, Result};

/// The migrations, in order; `{table}` is filled in. DDL is not undone when a migration is
/// interrupted, so each of them can be applied again.
pub(super) const MIGRATIONS: [Step; 3] = [
    (1, "outbox", include_str!("migrations/0001_outbox.sql")),
    (2, "inbox", include_str!("migrations/0002_inbox.sql")),
    (
        3,
        "operating",
        include_str!("migrations/0003_operating.sql"),
    ),
];

/// How the names of what each of them makes end.
const MADE: [(i64, &[&str]); 3] = [
    (1, &["", "_events", "_leases", "_relays"]),
    (2, &["_inbox", "_commands"]),
    (3, &["_pauses", "_audit"]),
];

/// So long another migration may take, in seconds.
const LOCK_SECONDS_MAX: u32 = 60;

pub(super) async fn migrate(store: &MySqlStore) -> Result<Vec<i64>> {
    let failed = |e| error("applying a migration", e);
    let before = store.version().await?.unwrap_or(0);
    inspect::check_session(store).await?;
    let mut connection = store.pool.acquire().await.map_err(failed)?;
    // It goes to another database, and holds a lock that is the session's.
    connection.close_on_drop();
    if let Some(database) = store.database() {
        let there: i64 = sqlx::query_scalar(
            "select count(*) from information_schema.schemata where schema_name = ?",
        )
        .bind(database)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
        if there == 0 {
            // Only then: even "if not exists" asks for the right to create databases.
            let create = format!("create database if not exists `{database}`");
            connection
                .execute(AssertSqlSafe(create))
                .await
                .map_err(failed)?;
        }
        let go = format!("use `{database}`");
        connection
            .execute(AssertSqlSafe(go))
            .await
            .map_err(failed)?;
    }
    lock(store, &mut connection).await?;
    prepare(store, &mut connection).await?;
    let mut migrator = store.tables.migrator(&MIGRATIONS, &versions(store));
    migrator.set_locking(false);
    migrator
        .run_direct(None, &mut *connection, false)
        .await
        .map_err(migrate_error)?;
    Ok(MIGRATIONS
        .iter()
        .map(|(version, ..)| *version)
        .filter(|version| *version > before)
        .collect())
}

/// The table that keeps count of the migrations, in the database that is in use.
pub(super) fn versions(store: &MySqlStore) -> String {
    store.tables.fill("`{table}_migrations`")
}

/// The migrator's own lock asks for an endless wait, which MariaDB takes for none.
async fn lock(store: &MySqlStore, connection: &mut MySqlConnection) -> Result<()> {
    let locked: Option<i64> = sqlx::query_scalar(
        "select cast(get_lock(concat('outbox-', sha1(concat(database(), '.', ?))), ?) as signed)",
    )
    .bind(store.tables.table())
    .bind(LOCK_SECONDS_MAX)
    .fetch_one(connection)
    .await
    .map_err(|e| error("waiting for another migration", e))?;
    if locked == Some(1) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("another migration of the outbox has been running for {LOCK_SECONDS_MAX} s"),
    ))
}

/// Forgets that a migration was interrupted, so that it is applied again. Refuses tables that are
/// there although the migration that makes them was never begun: they are somebody else's.
async fn prepare(store: &MySqlStore, connection: &mut MySqlConnection) -> Result<()> {
    let failed = |e| error("looking at the tables", e);
    let table = store.tables.table();
    let there: Vec<String> = sqlx::query_scalar(
        "select cast(table_name as char) from information_schema.tables where table_schema = database()",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let is_there = |name: &str| there.contains(&format!("{table}{name}"));
    let mut begun: Vec<i64> = Vec::new();
    if is_there("_migrations") {
        let versions = versions(store);
        begun = sqlx::query_scalar(AssertSqlSafe(format!("select version from {versions}")))
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        let forget = format!("delete from {versions} where not success");
        connection
            .execute(AssertSqlSafe(forget))
            .await
            .map_err(failed)?;
    }
    let new = MADE.iter().filter(|(version, _)| !begun.contains(version));
    let Some(name) = new
        .flat_map(|(_, names)| *names)
        .find(|name| is_there(name))
    else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Schema,
        format!(
            "there is a table {:?} which bento-outbox did not make: choose another by the setting `table`",
            format!("{table}{name}")
        ),
    ))
}
