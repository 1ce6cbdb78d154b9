//! MySQL 8.0.16 and later, MariaDB 10.6 and later.

mod act;
mod append;
mod claims;
mod inspect;
mod leases;
mod migrate;
mod operate;
mod reach;
mod receive;
mod rows;
mod search;
mod transaction;

use std::slice;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::mysql::{
    MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlPool, MySqlPoolOptions,
    MySqlQueryResult, MySqlRow,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor};
use tokio::sync::Notify;
use tokio::time::timeout;
use uuid::Uuid;

pub use self::transaction::MySqlTransaction;

use self::migrate::MIGRATIONS;
use self::transaction::Uncommitted;
use super::backlog::Backlog;
use super::sql::{error, to_its_end};
use super::{Tables, url_options};
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

/// An outbox in MySQL or MariaDB, on InnoDB. Clones share the pool.
///
/// Units of work read committed data unless they ask for more: at the servers' own default,
/// repeatable read, those that write at the same time lock the gaps between rows, and more of them
/// give way to each other. A [`Conflict`](ErrorKind::Conflict) means that running the whole unit
/// again may succeed.
///
/// Nothing wakes a relay of another process: it finds what is committed at its next poll.
#[derive(Clone, Debug)]
pub struct MySqlStore {
    pool: MySqlPool,
    tables: Tables,
    hint: Arc<Notify>,
    backlog: Arc<Backlog>,
}

impl MySqlStore {
    /// The outbox in the pool's database, in the table `outbox`. [`Store::check`] tells whether the
    /// pool's sessions are sound.
    ///
    /// Make it of [`pool_options`](Self::pool_options).
    pub fn new(pool: MySqlPool) -> Self {
        Self::with_tables(pool, Tables::default())
    }

    /// The outbox in other tables. A schema is a database here: `public`, the default, stands for
    /// the pool's own.
    pub fn with_tables(pool: MySqlPool, tables: Tables) -> Self {
        Self {
            pool,
            tables,
            hint: Arc::default(),
            backlog: Arc::default(),
        }
    }

    /// Connects to `url` (`mysql://user:password@host/database`) with a pool of its own, whose
    /// sessions are strict and read committed data.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] for a URL that is none or has an unknown option, or that names no
    /// database where the tables do not either; it is connected at the first use.
    pub async fn open(url: &str, tables: Tables) -> Result<Self> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::InvalidSetting, what));
        url_options::check(url, &reach::OPTIONS)?;
        let Ok(options) = MySqlConnectOptions::from_str(url) else {
            return refuse("the URL is not one of MySQL");
        };
        let pool = Self::pool_options()
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SESSION).await.map(drop) })
            })
            .connect_lazy_with(options.clone());
        let store = Self::with_tables(pool, tables);
        if options.get_database().is_none() && store.database().is_none() {
            return refuse("the URL names no database, as mysql://user@host/shop does");
        }
        Ok(store)
    }

    /// Options for a pool of your own, to which you add yours.
    ///
    /// Where a future is dropped while sqlx 0.9.0 prepares its statement, the connection waits for an answer that
    /// never comes, and never returns to a pool with other options: these close it after a second.
    #[must_use]
    pub fn pool_options() -> MySqlPoolOptions {
        MySqlPoolOptions::new().after_release(|connection, _| {
            Box::pin(async {
                // Of no cost where nothing is waited for.
                let flushed = timeout(FLUSH_MAX, connection.flush()).await;
                Ok(matches!(flushed, Ok(Ok(()))))
            })
        })
    }

    /// The pool, for the caller's own statements.
    pub fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    /// The database of the tables; none for the pool's own.
    fn database(&self) -> Option<&str> {
        Some(self.tables.schema()).filter(|schema| *schema != Tables::default().schema())
    }

    /// `` `table` `` or `` `database`.`table` ``.
    fn table(&self) -> String {
        self.named(self.tables.table())
    }

    /// A table that helps, `` `table_name` ``.
    fn helper(&self, name: &str) -> String {
        self.named(&format!("{}_{name}", self.tables.table()))
    }

    /// An index of the table, `` `table_name` ``.
    fn index(&self, name: &str) -> String {
        format!("`{}_{name}`", self.tables.table())
    }

    fn named(&self, table: &str) -> String {
        match self.database() {
            Some(database) => format!("`{database}`.`{table}`"),
            None => format!("`{table}`"),
        }
    }

    /// The newest migration that was applied; none without tables.
    async fn version(&self) -> Result<Option<i64>> {
        let reading = |e| error("reading the version of the tables", e);
        reach::check(&self.pool).await?;
        let there: i64 = sqlx::query_scalar(
            "select count(*) from information_schema.tables
             where table_schema = coalesce(?, database()) and table_name = ?",
        )
        .bind(self.database())
        .bind(format!("{}_migrations", self.tables.table()))
        .fetch_one(&self.pool)
        .await
        .map_err(reading)?;
        if there == 0 {
            return Ok(None);
        }
        sqlx::query_scalar(AssertSqlSafe(format!(
            "select max(version) from {} where success",
            self.helper("migrations")
        )))
        .fetch_one(&self.pool)
        .await
        .map_err(reading)
    }
}

#[async_trait]
impl Store for MySqlStore {
    /// In a task of its own: DDL that is interrupted is not undone.
    async fn migrate(&self) -> Result<Vec<i64>> {
        let store = self.clone();
        let migrated = tokio::spawn(async move { migrate::migrate(&store).await });
        migrated.await.unwrap_or_else(|panic| {
            Err(Error::new(
                ErrorKind::Database,
                "the migration ended abruptly: run it again",
            )
            .because(panic))
        })
    }

    fn migrations(&self) -> String {
        let database = self.database().map_or(String::new(), |database| {
            format!("create database if not exists `{database}`;\nuse `{database}`;\n")
        });
        let versions = migrate::versions(self);
        let prologue = format!(
            "{database}create table if not exists {versions} (version bigint primary key, \
             description text not null, installed_on timestamp not null default current_timestamp, \
             success boolean not null, checksum blob not null, execution_time bigint not null);"
        );
        let script = self
            .tables
            .script(&MIGRATIONS, &versions, |hex| format!("x'{hex}'"));
        format!("{prologue}\n\n{script}")
    }

    async fn check(&self) -> Result<()> {
        self.tables
            .check_version(self.version().await?, &MIGRATIONS)?;
        inspect::check_session(self).await?;
        inspect::check_writable(self).await
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

    async fn hint(&self) {
        self.hint.notified().await;
    }

    /// To this process alone: neither MySQL nor MariaDB tells others.
    fn give_hint(&self) {
        self.hint.notify_one();
    }

    async fn find(&self, ids: &[Uuid]) -> Result<Vec<OutboxRecord>> {
        operate::find(self, ids).await
    }

    async fn inspect(&self) -> Result<Inspection> {
        inspect::inspect(self).await
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
        receive::purge(self, "inbox", age, limit).await
    }

    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64> {
        receive::purge(self, "commands", age, limit).await
    }
}

#[async_trait]
impl TransactionalStore for MySqlStore {
    type Connection = MySqlConnection;
    type Transaction = MySqlTransaction;

    async fn begin(&self, isolation: Option<Isolation>) -> Result<MySqlTransaction> {
        MySqlTransaction::begin(&self.pool, isolation.unwrap_or(Isolation::ReadCommitted)).await
    }

    fn connection(transaction: &mut MySqlTransaction) -> &mut MySqlConnection {
        transaction.connection()
    }

    async fn append(
        &self,
        connection: &mut MySqlConnection,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        append::append(self, connection, tenant, events, birth).await
    }

    async fn receive(
        &self,
        connection: &mut MySqlConnection,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool> {
        receive::receive(self, connection, consumer, tenant, message_id).await
    }

    async fn begin_command(
        &self,
        connection: &mut MySqlConnection,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        receive::begin_command(self, connection, tenant, key, fingerprint).await
    }

    async fn end_command(
        &self,
        connection: &mut MySqlConnection,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()> {
        receive::end_command(self, connection, tenant, key, answer).await
    }

    async fn savepoint(
        &self,
        connection: &mut MySqlConnection,
        depth: u32,
        verb: Savepoint,
    ) -> Result<()> {
        connection
            .execute(AssertSqlSafe(verb.statement(depth)))
            .await
            .map(drop)
            .map_err(|e| error("setting a savepoint", e))
    }

    async fn commit(&self, transaction: MySqlTransaction, appended: &Appended) -> Result<()> {
        match transaction.commit().await {
            Ok(()) => Ok(()),
            Err(Uncommitted::Refused(refused)) => Err(refused),
            Err(Uncommitted::Unknown(e)) => self.look_for(appended, e).await,
        }
    }

    async fn rollback(&self, transaction: MySqlTransaction) -> Result<()> {
        transaction.rollback().await
    }
}

impl MySqlStore {
    /// Executes a statement that is a transaction by itself, with at most one parameter; and again
    /// where it gave way to another: deadlocks are nobody's fault.
    async fn execute(
        &self,
        doing: &str,
        sql: &str,
        parameter: Option<&str>,
    ) -> Result<MySqlQueryResult> {
        let (begun, mut waits) = (Instant::now(), CONFLICT_WAITS.into_iter());
        loop {
            let done = match parameter {
                Some(parameter) => {
                    let query = sqlx::query(AssertSqlSafe(sql)).bind(parameter);
                    query.persistent(false).execute(&self.pool).await
                }
                None => sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await,
            };
            let error = match done {
                Ok(done) => return Ok(done),
                Err(e) => error(doing, e),
            };
            match waits.next() {
                Some(wait)
                    if error.kind() == ErrorKind::Conflict && begun.elapsed() < CONFLICTS_MAX =>
                {
                    tokio::time::sleep(wait.mul_f64(0.5 + rand::random::<f64>())).await;
                }
                _ => return Err(error),
            }
        }
    }

    /// The rows of a statement without parameters.
    async fn select(&self, doing: &str, sql: &str) -> Result<Vec<MySqlRow>> {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .fetch_all(&self.pool)
            .await
            .map_err(|e| error(doing, e))
    }

    /// A commit whose answer was lost is resolved by looking for the events.
    async fn look_for(&self, appended: &Appended, e: sqlx::Error) -> Result<()> {
        let unknown = || {
            Error::new(
                ErrorKind::CommitUnknown,
                "the answer to COMMIT was lost: the unit of work may be committed, or not",
            )
        };
        let Some(first) = appended.ids.first() else {
            return Err(unknown().because(e));
        };
        // All or none of the events are there, so one is asked for. One that is not there yet may
        // still come: the server can be at work on the commit.
        for wait in UNKNOWN_COMMIT_WAITS {
            tokio::time::sleep(wait).await;
            let look = timeout(LOOK_MAX, self.find(slice::from_ref(first)));
            if matches!(look.await, Ok(Ok(found)) if !found.is_empty()) {
                return Ok(());
            }
        }
        Err(unknown().because(e))
    }
}

/// What is set for each session of a pool of our own. The driver sees to UTC and to UTF-8.
const SESSION: &str = "set session transaction isolation level read committed;
     set session sql_mode = concat(@@session.sql_mode, ',STRICT_TRANS_TABLES')";

/// So long a connection that was given back has for the answers to what was dropped.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// So long one look for the events of a commit whose answer was lost takes at most.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// The pauses before each look for them.
const UNKNOWN_COMMIT_WAITS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];

/// The pauses after which a statement of our own that gave way to another is tried again.
const CONFLICT_WAITS: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(160),
];

/// So long such a statement is tried again at most: one that waited for a lock has waited enough.
const CONFLICTS_MAX: Duration = Duration::from_secs(5);

/// ER_DUP_ENTRY.
const DUPLICATE: u16 = 1062;

/// The number of what the server answered, which says more than its SQLSTATE.
fn number(e: &sqlx::Error) -> Option<u16> {
    let answer = e.as_database_error()?;
    answer
        .try_downcast_ref::<MySqlDatabaseError>()
        .map(MySqlDatabaseError::number)
}
