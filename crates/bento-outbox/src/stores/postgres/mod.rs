//! PostgreSQL 13 and later.

mod act;
mod append;
mod claims;
mod floor;
mod hints;
mod leases;
mod operate;
mod reach;
mod receive;
mod rows;
mod search;

use std::io::{self, ErrorKind::TimedOut};
use std::slice;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _, Postgres, Transaction};
use tokio::time::timeout;
use uuid::Uuid;

use self::floor::Floor;
use self::hints::Hints;
use super::backlog::Backlog;
use super::sql::{Step, error, migrate_error, to_its_end};
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

/// An outbox in PostgreSQL. Clones share the pool.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    tables: Tables,
    hints: Arc<Hints>,
    backlog: Arc<Backlog>,
    floor: Arc<Floor>,
}

/// The migrations, in order; `{schema}` and `{table}` are filled in.
const MIGRATIONS: [Step; 3] = [
    (1, "outbox", include_str!("migrations/0001_outbox.sql")),
    (2, "inbox", include_str!("migrations/0002_inbox.sql")),
    (
        3,
        "operating",
        include_str!("migrations/0003_operating.sql"),
    ),
];

impl PostgresStore {
    /// The outbox in the pool's database, in the table `public.outbox`.
    pub fn new(pool: PgPool) -> Self {
        Self::with_tables(pool, Tables::default())
    }

    /// The outbox in other tables.
    pub fn with_tables(pool: PgPool, tables: Tables) -> Self {
        Self {
            pool,
            tables,
            hints: Arc::default(),
            backlog: Arc::default(),
            floor: Arc::default(),
        }
    }

    /// Connects to `url` (`postgres://user:password@host/database`) with a pool of its own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] for a URL that is none, or has an unknown option; it is connected at the
    /// first use.
    pub async fn open(url: &str, tables: Tables) -> Result<Self> {
        url_options::check(url, &reach::OPTIONS)?;
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                Error::new(
                    ErrorKind::InvalidSetting,
                    "the URL is not one of PostgreSQL",
                )
            })?
            .application_name("bento-outbox");
        let pool = PgPoolOptions::new()
            .acquire_timeout(Duration::from_secs(10))
            // A claim looks dear to the planner and takes a few milliseconds: compiling it takes longer.
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute("set jit = off").await.map(drop) })
            })
            .connect_lazy_with(options);
        Ok(Self::with_tables(pool, tables))
    }

    /// The pool, for the caller's own statements.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A table that helps, `"schema"."table_name"`.
    fn helper(&self, name: &str) -> String {
        format!("{}_{name}\"", self.table().trim_end_matches('"'))
    }

    /// `"schema"."table"`.
    fn table(&self) -> String {
        self.tables.fill("\"{schema}\".\"{table}\"")
    }

    /// The table that keeps count of the migrations.
    fn versions(&self) -> String {
        self.tables.fill("\"{schema}\".\"{table}_migrations\"")
    }

    /// The newest migration that was applied; none without tables.
    async fn version(&self) -> Result<Option<i64>> {
        reach::check(&self.pool).await?;
        let name = self.versions();
        let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
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
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<Vec<i64>> {
        let before = self.version().await?.unwrap_or(0);
        let failed = |e| error("applying a migration", e);
        let mut migrator = self.tables.migrator(&MIGRATIONS, &self.versions());
        let schema = self.tables.fill("\"{schema}\"");
        let there: bool = sqlx::query_scalar("select to_regnamespace($1) is not null")
            .bind(&schema)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        if !there {
            // Only then: even "if not exists" asks for the right to create schemas.
            migrator.create_schema(schema);
        }
        // All of it is one transaction. Whoever else migrates waits for its end: the migrator's own lock
        // is the session's, which through a transaction pooler is nobody's, and is kept for ever.
        let mut transaction = self.begin(None).await?;
        sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(self.versions())
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        migrator
            .set_locking(false)
            .run_direct(None, &mut *transaction, false)
            .await
            .map_err(migrate_error)?;
        transaction.commit().await.map_err(failed)?;
        Ok(MIGRATIONS
            .iter()
            .map(|(version, ..)| *version)
            .filter(|version| *version > before)
            .collect())
    }

    fn migrations(&self) -> String {
        let versions = self.versions();
        let prologue = format!(
            "create schema if not exists {};\n\
             create table if not exists {versions} (version bigint primary key, description text not null, \
             installed_on timestamptz not null default now(), success boolean not null, \
             checksum bytea not null, execution_time bigint not null);",
            self.tables.fill("\"{schema}\"")
        );
        let script = self
            .tables
            .script(&MIGRATIONS, &versions, |hex| format!("'\\x{hex}'"));
        format!("{prologue}\n\n{script}")
    }

    async fn check(&self) -> Result<()> {
        self.tables
            .check_version(self.version().await?, &MIGRATIONS)
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
        self.hints
            .listening
            .get_or_init(|| async { self.hints.listen(&self.pool, self.tables.table()) })
            .await;
        self.hints.given.notified().await;
    }

    /// Tells this process at once and others by one NOTIFY for all that is given within a few
    /// milliseconds: a NOTIFY in every business transaction would serialise their commits.
    fn give_hint(&self) {
        self.hints.given.notify_one();
        if self.hints.telling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (pool, hints, channel) = (
            self.pool.clone(),
            self.hints.clone(),
            self.tables.table().to_owned(),
        );
        tokio::spawn(async move {
            tokio::time::sleep(NOTIFY_DEBOUNCE).await;
            hints.telling.store(false, Ordering::Release);
            if let Err(e) = sqlx::query("select pg_notify($1, '')")
                .bind(channel)
                .execute(&pool)
                .await
            {
                tracing::debug!(
                    error = error("hinting", e).report(),
                    "polling will find the events"
                );
            }
        });
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
        receive::purge(self, "inbox", age, limit).await
    }

    async fn purge_commands(&self, age: Duration, limit: u32) -> Result<u64> {
        receive::purge(self, "commands", age, limit).await
    }
}

#[async_trait]
impl TransactionalStore for PostgresStore {
    type Connection = PgConnection;
    type Transaction = Transaction<'static, Postgres>;

    async fn begin(&self, isolation: Option<Isolation>) -> Result<Self::Transaction> {
        let statement = match isolation.unwrap_or(Isolation::ReadCommitted) {
            Isolation::ReadCommitted => "begin isolation level read committed",
            Isolation::RepeatableRead => "begin isolation level repeatable read",
            Isolation::Serializable => "begin isolation level serializable",
        };
        self.pool
            .begin_with(statement)
            .await
            .map_err(|e| error("beginning a transaction", e))
    }

    fn connection(transaction: &mut Self::Transaction) -> &mut PgConnection {
        &mut *transaction
    }

    async fn append(
        &self,
        connection: &mut PgConnection,
        tenant: &Tenant,
        events: &[Event],
        birth: Option<&Birth>,
    ) -> Result<Appended> {
        append::append(self, connection, tenant, events, birth).await
    }

    async fn receive(
        &self,
        connection: &mut PgConnection,
        consumer: &str,
        tenant: &Tenant,
        message_id: &str,
    ) -> Result<bool> {
        receive::receive(self, connection, consumer, tenant, message_id).await
    }

    async fn begin_command(
        &self,
        connection: &mut PgConnection,
        tenant: &Tenant,
        key: &str,
        fingerprint: &str,
    ) -> Result<Option<FirstRun>> {
        receive::begin_command(self, connection, tenant, key, fingerprint).await
    }

    async fn end_command(
        &self,
        connection: &mut PgConnection,
        tenant: &Tenant,
        key: &str,
        answer: &[u8],
    ) -> Result<()> {
        receive::end_command(self, connection, tenant, key, answer).await
    }

    async fn savepoint(
        &self,
        connection: &mut PgConnection,
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

    async fn commit(&self, mut transaction: Self::Transaction, appended: &Appended) -> Result<()> {
        // COMMIT of a transaction in which a statement failed rolls back and says so only in a tag
        // that sqlx does not show. An append would have met the failure; without one, ask.
        if appended.ids.is_empty()
            && let Err(e) = sqlx::query("select 1").execute(&mut *transaction).await
        {
            return Err(error("committing", e));
        }
        let answer = timeout(COMMIT_ANSWER_MAX, transaction.commit());
        match answer
            .await
            .unwrap_or_else(|_| Err(io::Error::from(TimedOut).into()))
        {
            Ok(()) => Ok(()),
            Err(e) => self.after_failed_commit(e, appended).await,
        }
    }

    async fn rollback(&self, transaction: Self::Transaction) -> Result<()> {
        transaction
            .rollback()
            .await
            .map_err(|e| error("rolling back", e))
    }
}

impl PostgresStore {
    /// A refusal by the server is one; a lost answer is resolved by looking for the events.
    async fn after_failed_commit(&self, e: sqlx::Error, appended: &Appended) -> Result<()> {
        let refused = matches!(&e, sqlx::Error::Database(answer)
            if answer.code().is_some_and(|code| !code.starts_with("57P") && !code.starts_with("08")));
        if refused {
            return Err(error("committing", e));
        }
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

/// How long hints are collected before others are told.
const NOTIFY_DEBOUNCE: Duration = Duration::from_millis(5);

/// So long the answer to COMMIT is waited for before the events are looked for.
const COMMIT_ANSWER_MAX: Duration = Duration::from_secs(10);

/// So long one look for them takes at most.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// The pauses before each look for the events of a commit whose answer was lost.
const UNKNOWN_COMMIT_WAITS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];
