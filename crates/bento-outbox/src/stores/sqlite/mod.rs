//! SQLite, in a file.

mod act;
mod claims;
mod leases;
mod operate;
mod receive;
mod rows;
mod search;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Sqlite, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use self::rows::{NewRow, get, json, read_time, uuid};
use super::Tables;
use super::backlog::Backlog;
use super::sql::{Step, error, migrate_error, to_its_end};
use crate::act::{Act, Audited};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::filter::{Filter, Page};
use crate::inspection::Inspection;
use crate::pause::{Pausable, Pause};
use crate::record::OutboxRecord;
use crate::standing::Standing;
use crate::store::{
    Appended, Birth, Claim, Claimed, Fence, FirstRun, HeldKey, Isolation, Lease, Relay, Savepoint,
    Settle, Store, TenantBacklog, TenantStatus, TransactionalStore,
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
    backlog: Arc<Backlog>,
}

/// The migrations, in order; `{table}` is filled in.
const MIGRATIONS: [Step; 3] = [
    (1, "outbox", include_str!("migrations/0001_outbox.sql")),
    (2, "inbox", include_str!("migrations/0002_inbox.sql")),
    (
        3,
        "operating",
        include_str!("migrations/0003_operating.sql"),
    ),
];

/// How often the file is looked at for a change by another process, while nothing is there.
const CHANGE_POLL: Duration = Duration::from_millis(25);

/// The time by the database's clock, in the form that the library writes.
const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";

/// SQLite's modifier for a time that much later.
fn later(duration: Duration) -> String {
    format!("+{:.3} seconds", duration.as_secs_f64())
}

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
            backlog: Arc::default(),
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

    /// `"table"`.
    fn table(&self) -> String {
        self.tables.fill("\"{table}\"")
    }

    /// A table that helps, `"table_name"`.
    fn helper(&self, name: &str) -> String {
        format!("\"{}_{name}\"", self.tables.table())
    }

    fn options(url: &str) -> Result<SqliteConnectOptions> {
        if url.contains(":memory:") || url.contains("mode=memory") {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                "a database in memory is another one for each connection: use a file, or MemoryStore",
            ));
        }
        if url
            .trim_start_matches("sqlite:")
            .trim_matches('/')
            .is_empty()
        {
            return Err(Error::new(
                ErrorKind::InvalidSetting,
                "the URL names no file, as sqlite://outbox.db does",
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

    async fn lease(&self, relay: &Relay, term: Duration) -> Result<Vec<Lease>> {
        leases::lease(self, relay, term).await
    }

    async fn release(&self, relay: &Relay) -> Result<()> {
        leases::release(self, relay).await
    }

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed> {
        claims::claim(self, claim).await
    }

    async fn attempt(&self, fence: &Fence<'_>, id: Uuid) -> Result<Option<u32>> {
        claims::attempt(self, fence, id).await
    }

    async fn settle(&self, settle: &Settle<'_>) -> Result<u64> {
        claims::settle(self, settle).await
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
        operate::find(self, ids).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        operate::inspect(self).await
    }

    async fn status(&self) -> Result<Vec<TenantStatus>> {
        operate::status(self).await
    }

    async fn backlog(&self) -> Result<Vec<TenantBacklog>> {
        operate::backlog(self).await
    }

    async fn held_keys(&self, limit: u32) -> Result<Vec<HeldKey>> {
        operate::held_keys(self, limit).await
    }

    async fn events(&self, filter: &Filter, page: &Page) -> Result<Vec<OutboxRecord>> {
        search::events(self, filter, page).await
    }

    async fn standing(&self, id: Uuid, dead_letters_block: bool) -> Result<Option<Standing>> {
        search::standing(self, id, dead_letters_block).await
    }

    async fn retry(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        to_its_end(act::retry(self.clone(), ids.to_vec(), by.into())).await
    }

    async fn discard(&self, ids: &[Uuid], by: &str) -> Result<u64> {
        to_its_end(act::discard(self.clone(), ids.to_vec(), by.into())).await
    }

    async fn pause(
        &self,
        kind: Pausable,
        names: &[String],
        by: &str,
        reason: Option<&str>,
    ) -> Result<u64> {
        let (names, reason) = (kind.names(names)?, reason.map(Into::into));
        to_its_end(act::pause(self.clone(), kind, names, by.into(), reason)).await
    }

    async fn resume(&self, kind: Pausable, names: &[String], by: &str) -> Result<u64> {
        let names = kind.names(names)?;
        to_its_end(act::resume(self.clone(), kind, names, by.into())).await
    }

    async fn pauses(&self) -> Result<Vec<Pause>> {
        act::pauses(self).await
    }

    async fn wake(&self, limit: u32) -> Result<u64> {
        act::wake(self, limit).await
    }

    async fn audit(&self, act: &Act) -> Result<()> {
        to_its_end(act::audit(self.clone(), act.clone())).await
    }

    async fn acts(&self, before: Option<i64>, limit: u32) -> Result<Vec<Audited>> {
        act::acts(self, before, limit).await
    }

    async fn purge(&self, age: Duration, limit: u32) -> Result<u64> {
        operate::purge(self, age, limit).await
    }

    async fn purge_inbox(&self, age: Duration, limit: u32) -> Result<u64> {
        receive::purge(self, "inbox", "consumer, tenant_id, message_id", age, limit).await
    }

    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64> {
        receive::purge(self, "commands", "tenant_id, command_key", age, limit).await
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

    /// An event is born leased if it is due, nothing earlier of its key is unsent and nothing is
    /// paused that it may belong to.
    async fn append(
        &self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        let table = self.table();
        let rows: Vec<NewRow<'_>> = events
            .iter()
            .map(|event| NewRow::of(event, tenant))
            .collect();
        let rows = sqlx::query(AssertSqlSafe(format!(
            "insert into {table} (id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload,
                                  data, content_type, key_id, headers, occurred_at, created_at, available_at,
                                  owner, lease_until)
             select id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, unhex(data),
                    content_type, key_id, headers, occurred_at, coalesce(created_at, {NOW}),
                    coalesce(available_at, {NOW}),
                    case when born then ?2 end, case when born then strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ?3) end
             from (select e.*,
                          ?2 is not null and (available_at is null or julianday(available_at) <= julianday('now'))
                          and (aggregate_id is null or not exists (select 1 from {table} p
                               where p.status <> 'SENT' and p.ordering_key = e.tenant_id || char(31) ||
                                     coalesce(e.aggregate_type, '') || char(31) || e.aggregate_id))
                          and not exists (select 1 from {pauses} where kind = 'destination')
                          and e.tenant_id not in (select name from {pauses} where kind = 'tenant')
                          as born
                   from (select key, {columns} from json_each(?1)) e)
             where true order by key
             on conflict (id) do nothing
             returning id, seq, created_at, owner is not null as leased",
            pauses = self.helper("pauses"),
            columns = NewRow::COLUMNS
                .map(|column| format!("value ->> '{column}' as {column}"))
                .join(", ")
        )))
        .bind(json(&rows)?)
        .bind(birth.map(|birth| birth.owner.to_string()))
        .bind(birth.map(|birth| later(birth.term)))
        .fetch_all(connection)
        .await
        .map_err(|e| error("appending events", e))?;

        let mut written = Vec::with_capacity(rows.len());
        let mut leased = Vec::new();
        for row in &rows {
            let id = uuid(get(row, "id")?)?;
            written.push(id);
            if get(row, "leased")?
                && let Some(event) = events.iter().find(|event| event.id == id)
            {
                let written_at = read_time(row, "created_at")?;
                leased.push(OutboxRecord::of(
                    event,
                    tenant,
                    get(row, "seq")?,
                    written_at,
                ));
            }
        }
        leased.sort_unstable_by_key(|record: &OutboxRecord| record.seq);
        Ok(Appended {
            leased,
            ..Appended::of(events, written)
        })
    }

    async fn receive(
        &self,
        connection: &mut SqliteConnection,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool> {
        receive::receive(self, connection, consumer, tenant, message_id).await
    }

    async fn begin_command(
        &self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        receive::begin_command(self, connection, tenant, key, fingerprint).await
    }

    async fn end_command(
        &self,
        connection: &mut SqliteConnection,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()> {
        receive::end_command(self, connection, tenant, key, answer).await
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
