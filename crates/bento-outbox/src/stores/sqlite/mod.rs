//! SQLite, in a file.

mod rows;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Sqlite, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use self::rows::{COLUMNS, Failed, NewRow, get, json, readable, record};
use super::Tables;
use super::sql::{Step, error, migrate_error};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::record::OutboxRecord;
use crate::store::{
    Appended, Claim, Claimed, Isolation, Savepoint, Settlement, Store, TenantStatus,
    TransactionalStore, Verdict,
};
use crate::tenant::Tenant;

/// An outbox in an SQLite file. Clones share the pool.
///
/// Units of work begin with `BEGIN IMMEDIATE`, so that none fails half-way because another writes.
/// The journal is WAL and every commit is synced: an event is published only if its commit
/// survives a loss of power.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    pool: SqlitePool,
    tables: Tables,
    hint: Arc<Notify>,
}

/// The migrations, in order; `{table}` is filled in.
const MIGRATIONS: [Step; 1] = [(1, "outbox", include_str!("migrations/0001_outbox.sql"))];

/// How often the file is looked at for a change by another process, while nothing is there.
const CHANGE_POLL: Duration = Duration::from_millis(25);

impl SqliteStore {
    /// The outbox in the pool's file, in the table `outbox`. [`Store::check`] tells whether the
    /// pool's options are sound.
    pub fn new(pool: SqlitePool) -> Self {
        Self::with_tables(pool, Tables::default())
    }

    /// The outbox in another table.
    pub fn with_tables(pool: SqlitePool, tables: Tables) -> Self {
        Self {
            pool,
            tables,
            hint: Arc::default(),
        }
    }

    /// Opens the file of `url` (`sqlite://outbox.db`), which must exist.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] for a URL that is none, [`ErrorKind::Schema`] without the file.
    pub async fn open(url: &str, tables: Tables) -> Result<Self> {
        let options = Self::options(url)?;
        let file = options.get_filename();
        if !file.exists() {
            return Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "{} is not there: run `bento-outbox migrate` to create it",
                    file.display()
                ),
            ));
        }
        Ok(Self::with_tables(Self::pool_of(options), tables))
    }

    /// Opens the file of `url`, and creates it if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] for a URL that is none.
    pub async fn open_or_create(url: &str, tables: Tables) -> Result<Self> {
        let options = Self::options(url)?.create_if_missing(true);
        Ok(Self::with_tables(Self::pool_of(options), tables))
    }

    /// The pool, for the caller's own statements.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    fn options(url: &str) -> Result<SqliteConnectOptions> {
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                "a database in memory is another one for each connection: use a file, or MemoryStore",
            ));
        }
        let options = SqliteConnectOptions::from_str(url).map_err(|_| {
            Error::new(
                ErrorKind::InvalidSetting,
                "the URL is not one of SQLite, as sqlite://outbox.db",
            )
        })?;
        Ok(options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10)))
    }

    fn pool_of(options: SqliteConnectOptions) -> SqlitePool {
        SqlitePoolOptions::new()
            .max_connections(4)
            .connect_lazy_with(options)
    }

    /// The table that keeps count of the migrations.
    fn versions(&self) -> String {
        self.tables.fill("{table}_migrations")
    }

    /// The newest migration that was applied; none without tables.
    async fn version(&self) -> Result<Option<i64>> {
        let name = self.versions();
        let there: bool =
            sqlx::query_scalar("select exists(select 1 from sqlite_schema where name = ?1)")
                .bind(&name)
                .fetch_one(&self.pool)
                .await
                .map_err(|e| error("reading the version of the tables", e))?;
        if !there {
            return Ok(None);
        }
        sqlx::query_scalar(AssertSqlSafe(format!(
            "select max(version) from {name} where success"
        )))
        .fetch_one(&self.pool)
        .await
        .map_err(|e| error("reading the version of the tables", e))
    }

    /// Refuses a file that can only be read: nothing could be settled, so everything would be
    /// published again and again.
    async fn check_writable(&self) -> Result<()> {
        let table = self.tables.table();
        let nothing = format!("update \"{table}\" set status = status where false");
        match sqlx::query(AssertSqlSafe(nothing))
            .execute(&self.pool)
            .await
        {
            Ok(_) => Ok(()),
            Err(e) => match error("writing to the database", e) {
                busy if busy.kind() == ErrorKind::Conflict => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Refuses what would lose events: a library with the WAL-reset fault, a journal that is not WAL.
    async fn check_engine(&self) -> Result<()> {
        let (version, journal): (String, String) =
            sqlx::query_as("select sqlite_version(), journal_mode from pragma_journal_mode")
                .fetch_one(&self.pool)
                .await
                .map_err(|e| {
                    let options = self.pool.connect_options();
                    let file = options.get_filename().display();
                    error(&format!("opening {file}"), e)
                })?;
        if !has_sound_wal(&version) {
            return Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "SQLite {version} can lose a commit at a checkpoint (its WAL-reset fault): \
                     use 3.51.3, 3.50.7, 3.44.6 or later, such as the one that is built in"
                ),
            ));
        }
        if journal != "wal" {
            return Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "the journal mode is {journal}: execute `pragma journal_mode = wal` on the database"
                ),
            ));
        }
        Ok(())
    }
}

/// Whether this SQLite has the fix of the WAL-reset fault (sqlite.org/wal.html, "The WAL-reset bug").
fn has_sound_wal(version: &str) -> bool {
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (
        parts.next().unwrap_or(0),
        parts.next().unwrap_or(0),
        parts.next().unwrap_or(0),
    );
    version >= (3, 51, 3) || matches!(version, (3, 50, 7..) | (3, 44, 6..))
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<Vec<i64>> {
        self.check_engine().await?;
        // The migrator has no lock of its own on SQLite: two of them would both create the tables.
        let mut transaction = self.begin(None).await?;
        let before = self.version().await?.unwrap_or(0);
        self.tables
            .migrator(&MIGRATIONS, &self.versions())
            .run_direct(None, &mut *transaction, false)
            .await
            .map_err(migrate_error)?;
        self.commit(transaction, &Appended::default()).await?;
        Ok(MIGRATIONS
            .iter()
            .map(|(version, ..)| *version)
            .filter(|version| *version > before)
            .collect())
    }

    fn migrations(&self) -> String {
        let versions = format!(
            "create table if not exists {} (version bigint primary key, description text not null, \
             installed_on timestamp not null default current_timestamp, success boolean not null, \
             checksum blob not null, execution_time bigint not null);",
            self.versions()
        );
        let script = self
            .tables
            .script(&MIGRATIONS, &self.versions(), |hex| format!("x'{hex}'"));
        format!("{versions}\n\n{script}")
    }

    async fn check(&self) -> Result<()> {
        self.check_engine().await?;
        self.tables
            .check_version(self.version().await?, &MIGRATIONS)?;
        self.check_writable().await
    }

    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let table = self.tables.fill("\"{table}\"");
        let held = match (claim.ordered, claim.dead_letters_block) {
            (false, _) => String::new(),
            (true, block) => format!(
                "and not exists (select 1 from {table} p
                      where p.ordering_key = o.ordering_key and p.seq < o.seq and p.status <> 'SENT'
                        and ({} p.status = 'NEW' and (julianday(p.retry_at) > julianday('now')
                                                  or julianday(p.available_at) > julianday('now'))))",
                if block { "p.status = 'ERR' or" } else { "" }
            ),
        };
        let tenants = claim.tenants.as_ref().map(json).transpose()?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {COLUMNS} from {table} o
             where o.status = 'NEW' and julianday(o.available_at) <= julianday('now')
               and (o.retry_at is null or julianday(o.retry_at) <= julianday('now'))
               and (?1 is null or o.tenant_id in (select value from json_each(?1))) {held}
             order by o.seq limit ?2"
        )))
        .bind(&tenants)
        .bind(i64::from(claim.limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| error("claiming", e))?;
        let (records, unreadable) = readable(&rows)?;
        if !unreadable.is_empty() {
            // It would be claimed for ever and hold everything up.
            self.settle(&unreadable).await?;
            return self.claim(claim).await;
        }
        let waiting = records.is_empty()
            && sqlx::query_scalar(AssertSqlSafe(format!(
                "select exists(select 1 from {table} where status = 'NEW'
                               and (?1 is null or tenant_id in (select value from json_each(?1))))"
            )))
            .bind(&tenants)
            .fetch_one(&self.pool)
            .await
            .map_err(|e| error("claiming", e))?;
        Ok(Claimed { records, waiting })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let table = self.tables.fill("\"{table}\"");
        let mut sent = Vec::new();
        let mut failed = Vec::new();
        for Settlement { id, verdict } in settlements {
            match verdict {
                Verdict::Sent => sent.push(id),
                Verdict::Retry {
                    after,
                    counts,
                    reason,
                } => {
                    let after = format!("+{:.3} seconds", after.as_secs_f64());
                    failed.push(Failed::new(id, Some(after), *counts, reason));
                }
                Verdict::Dead { counts, reason } => {
                    failed.push(Failed::new(id, None, *counts, reason));
                }
            }
        }
        let mut changed = 0;
        if !sent.is_empty() {
            changed += sqlx::query(AssertSqlSafe(format!(
                "update {table} set status = 'SENT', retry_at = null,
                        sent_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
                 where id in (select value from json_each(?1)) and status = 'NEW'"
            )))
            .bind(json(&sent)?)
            .execute(&self.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
        }
        if !failed.is_empty() {
            changed += sqlx::query(AssertSqlSafe(format!(
                "update {table} as o
                 set status = case when f.value ->> 'after' is null then 'ERR' else 'NEW' end,
                     retry_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', f.value ->> 'after'),
                     retry_cnt = o.retry_cnt + (f.value ->> 'counts'), error_message = f.value ->> 'reason'
                 from json_each(?1) f
                 where o.id = f.value ->> 'id' and o.status = 'NEW'"
            )))
            .bind(json(&failed)?)
            .execute(&self.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
        }
        Ok(changed)
    }

    /// This process says so itself; for others the file's change counter is looked at, which costs
    /// a few microseconds.
    async fn hint(&self) {
        let changed = async {
            let Ok(mut connection) = self.pool.acquire().await else {
                return std::future::pending().await;
            };
            let mut before = None;
            loop {
                let now = sqlx::query_scalar::<_, i64>("pragma data_version")
                    .fetch_one(&mut *connection)
                    .await
                    .ok();
                if before.is_some() && before != now {
                    return;
                }
                before = now;
                tokio::time::sleep(CHANGE_POLL).await;
            }
        };
        tokio::select! {
            () = self.hint.notified() => {}
            () = changed => {}
        }
    }

    fn give_hint(&self) {
        self.hint.notify_one();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {COLUMNS} from \"{}\" where id in (select value from json_each(?1)) order by seq",
            self.tables.table()
        )))
        .bind(json(ids)?)
        .fetch_all(&self.pool)
        .await
        .map_err(|e| error("reading events", e))?;
        rows.iter().map(record).collect()
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select tenant_id,
                    count(*) filter (where status = 'NEW' and retry_at is null) as new,
                    count(*) filter (where status = 'NEW' and retry_at is not null) as retrying,
                    count(*) filter (where status = 'SENT') as sent,
                    count(*) filter (where status = 'ERR') as dead,
                    (julianday('now') - min(julianday(created_at)) filter (where status = 'NEW')) * 86400.0 as oldest,
                    count(*) filter (where julianday(sent_at) > julianday('now', '-1 minute')) / 60.0 as rate
             from \"{}\" group by tenant_id order by tenant_id",
            self.tables.table()
        )))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| error("reading the status", e))?;
        let count = |row: &SqliteRow, column| {
            get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0))
        };
        rows.iter()
            .map(|row| {
                Ok(TenantStatus {
                    tenant_id: get(row, "tenant_id")?,
                    new: count(row, "new")?,
                    retrying: count(row, "retrying")?,
                    sent: count(row, "sent")?,
                    dead: count(row, "dead")?,
                    oldest_new_seconds: get::<Option<f64>>(row, "oldest")?.map(|age| age.max(0.0)),
                    sent_per_second: get(row, "rate")?,
                })
            })
            .collect()
    }
}

#[async_trait]
impl TransactionalStore for SqliteStore {
    type Connection = SqliteConnection;
    type Transaction = Transaction<'static, Sqlite>;

    async fn begin(&self, _isolation: Option<Isolation>) -> Result<Self::Transaction> {
        self.pool
            .begin_with("begin immediate")
            .await
            .map_err(|e| error("beginning a transaction", e))
    }

    fn connection(transaction: &mut Self::Transaction) -> &mut SqliteConnection {
        &mut *transaction
    }

    async fn append(
        &self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        events: &[Event],
    ) -> Result<Appended> {
        let rows: Vec<NewRow<'_>> = events
            .iter()
            .map(|event| NewRow::of(event, tenant))
            .collect();
        let written: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "insert into \"{}\" (id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
                                 content_type, key_id, headers, occurred_at, created_at, available_at)
             select e.value ->> 'id', e.value ->> 'tenant_id', e.value ->> 'aggregate_type',
                    e.value ->> 'aggregate_id', e.value ->> 'type', e.value ->> 'schema_id', e.value ->> 'schema_ver',
                    e.value ->> 'payload', unhex(e.value ->> 'data'), e.value ->> 'content_type',
                    e.value ->> 'key_id', e.value ->> 'headers', e.value ->> 'occurred_at',
                    coalesce(e.value ->> 'created_at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
                    coalesce(e.value ->> 'available_at', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
             from json_each(?1) e where true order by e.key
             on conflict (id) do nothing
             returning id",
            self.tables.table()
        )))
        .bind(json(&rows)?)
        .fetch_all(connection)
        .await
        .map_err(|e| error("appending events", e))?;
        Ok(Appended::of(
            events,
            written.iter().filter_map(|id| Uuid::parse_str(id).ok()),
        ))
    }

    async fn savepoint(
        &self,
        connection: &mut SqliteConnection,
        depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        let statement = verb.statement(depth);
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(connection)
            .await
            .map_err(|e| error("setting a savepoint", e))?;
        Ok(())
    }

    /// SQLite commits in this process: an error means that nothing was committed.
    async fn commit(&self, transaction: Self::Transaction, _appended: &Appended) -> Result<()> {
        transaction
            .commit()
            .await
            .map_err(|e| error("committing", e))
    }

    async fn rollback(&self, transaction: Self::Transaction) -> Result<()> {
        transaction
            .rollback()
            .await
            .map_err(|e| error("rolling back", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_wal_reset_fault_are_known() {
        for version in ["3.40.1", "3.44.5", "3.45.0", "3.50.6", "3.51.2", "nonsense"] {
            assert!(!has_sound_wal(version), "{version}");
        }
        for version in ["3.44.6", "3.50.7", "3.51.3", "3.52.0", "4.0.0"] {
            assert!(has_sound_wal(version), "{version}");
        }
    }
}
