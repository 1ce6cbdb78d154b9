//! PostgreSQL 13 and later.

mod reach;
mod rows;

use std::io::{self, ErrorKind::TimedOut};
use std::slice;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Postgres, Row, Transaction};
use tokio::sync::{Notify, OnceCell};
use tokio::time::timeout;
use uuid::Uuid;

use self::rows::{COLUMNS, Failed, get, record};
use super::Tables;
use super::sql::{Step, error, migrate_error};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Payload};
use crate::record::OutboxRecord;
use crate::store::{
    Appended, Claim, Claimed, Isolation, Savepoint, Settlement, Store, TenantStatus,
    TransactionalStore, Verdict,
};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// An outbox in PostgreSQL. Clones share the pool.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    pool: PgPool,
    tables: Tables,
    hints: Arc<Hints>,
}

/// The migrations, in order; `{schema}` and `{table}` are filled in.
const MIGRATIONS: [Step; 1] = [(1, "outbox", include_str!("migrations/0001_outbox.sql"))];

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
        }
    }

    /// Connects to `url` (`postgres://user:password@host/database`) with a pool of its own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSetting`] for a URL that is none; it is connected at the first use.
    pub async fn open(url: &str, tables: Tables) -> Result<Self> {
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
            .connect_lazy_with(options);
        Ok(Self::with_tables(pool, tables))
    }

    /// The pool, for the caller's own statements.
    pub fn pool(&self) -> &PgPool {
        &self.pool
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
        let mut connection = self.pool.acquire().await.map_err(failed)?;
        // The migrator keeps its lock when it fails. It is the session's, so that must end.
        connection.close_on_drop();
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

    /// The `limit 1` keeps the planner from joining: the sub-select looks up the first waiting
    /// record of one key, which an index answers at once.
    async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let table = self.table();
        let held = match (claim.ordered, claim.dead_letters_block) {
            (false, _) => String::new(),
            (true, block) => format!(
                "and (select true from {table} p
                      where p.ordering_key = o.ordering_key and p.seq < o.seq and p.status <> 'SENT'
                        and ({} p.status = 'NEW' and (p.retry_at > statement_timestamp()
                                                  or p.available_at > statement_timestamp()))
                      order by p.seq limit 1) is null",
                if block { "p.status = 'ERR' or" } else { "" }
            ),
        };
        let tenants: Option<Vec<&str>> = claim
            .tenants
            .as_ref()
            .map(|tenants| tenants.iter().map(Tenant::as_str).collect());
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {COLUMNS} from {table} o
             where o.status = 'NEW' and o.available_at <= statement_timestamp()
               and (o.retry_at is null or o.retry_at <= statement_timestamp())
               and ($1::text[] is null or o.tenant_id = any($1)) {held}
             order by o.seq limit $2"
        )))
        .bind(&tenants)
        .bind(i64::from(claim.limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| error("claiming", e))?;
        let records = rows.iter().map(record).collect::<Result<Vec<_>>>()?;
        let waiting = records.is_empty()
            && sqlx::query_scalar(AssertSqlSafe(format!(
                "select exists(select from {table} where status = 'NEW' and ($1::text[] is null or tenant_id = any($1)))"
            )))
            .bind(&tenants)
            .fetch_one(&self.pool)
            .await
            .map_err(|e| error("claiming", e))?;
        Ok(Claimed { records, waiting })
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<u64> {
        let table = self.table();
        let mut sent = Vec::new();
        let mut failed = Failed::default();
        for settlement in settlements {
            match &settlement.verdict {
                Verdict::Sent => sent.push(settlement.id),
                Verdict::Retry {
                    after,
                    counts,
                    reason,
                } => {
                    let after = i64::try_from(after.as_millis()).unwrap_or(i64::MAX);
                    failed.push(settlement.id, Some(after), *counts, reason);
                }
                Verdict::Dead { counts, reason } => {
                    failed.push(settlement.id, None, *counts, reason);
                }
            }
        }
        let mut changed = 0;
        if !sent.is_empty() {
            changed += sqlx::query(AssertSqlSafe(format!(
                "update {table} set status = 'SENT', retry_at = null, sent_at = clock_timestamp()
                 where id = any($1) and status = 'NEW'"
            )))
            .bind(&sent)
            .execute(&self.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
        }
        if !failed.ids.is_empty() {
            changed += sqlx::query(AssertSqlSafe(format!(
                "update {table} o
                 set status = case when f.after_ms is null then 'ERR' else 'NEW' end,
                     retry_at = clock_timestamp() + f.after_ms * interval '1 millisecond',
                     retry_cnt = o.retry_cnt + f.counts, error_message = f.reason
                 from unnest($1::uuid[], $2::bigint[], $3::integer[], $4::text[]) as f(id, after_ms, counts, reason)
                 where o.id = f.id and o.status = 'NEW'"
            )))
            .bind(&failed.ids)
            .bind(&failed.after_ms)
            .bind(&failed.counts)
            .bind(&failed.reasons)
            .execute(&self.pool)
            .await
            .map_err(|e| error("settling", e))?
            .rows_affected();
        }
        Ok(changed)
    }

    async fn hint(&self) {
        self.hints
            .listening
            .get_or_init(|| async { self.listen() })
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
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {COLUMNS} from {} where id = any($1) order by seq",
            self.table()
        )))
        .bind(ids)
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
                    extract(epoch from clock_timestamp() - min(created_at) filter (where status = 'NEW'))::float8
                        as oldest,
                    count(*) filter (where sent_at > clock_timestamp() - interval '1 minute') / 60.0::float8 as rate
             from {} group by tenant_id order by tenant_id collate \"C\"",
            self.table()
        )))
        .fetch_all(&self.pool)
        .await
        .map_err(|e| error("reading the status", e))?;
        let count = |row: &PgRow, column| {
            row.try_get::<i64, _>(column)
                .map(|n| u64::try_from(n).unwrap_or(0))
                .map_err(|e| error("reading the status", e))
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
    ) -> Result<Appended> {
        fn all<'a, T>(events: &'a [Event], column: impl Fn(&'a Event) -> T) -> Vec<T> {
            events.iter().map(column).collect()
        }
        let written: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(format!(
            "insert into {} (id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
                             content_type, key_id, headers, occurred_at, created_at, available_at)
             select id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload::json, data,
                    content_type, key_id, headers::json, occurred_at,
                    coalesce(created_at, now()), coalesce(available_at, now())
             from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[],
                         $8::text[], $9::bytea[], $10::text[], $11::text[], $12::text[], $13::timestamptz[],
                         $14::timestamptz[], $15::timestamptz[])
                  with ordinality as e(id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver,
                       payload, data, content_type, key_id, headers, occurred_at, created_at, available_at, n)
             order by n
             on conflict (id) do nothing
             returning id",
            self.table()
        )))
        .bind(all(events, |e| e.id))
        .bind(all(events, |e| e.tenant.as_ref().unwrap_or(tenant).as_str()))
        .bind(all(events, |e| e.aggregate.kind.as_deref()))
        .bind(all(events, |e| e.aggregate.id.as_deref()))
        .bind(all(events, |e| e.event_type.as_str()))
        .bind(all(events, |e| e.schema_id.as_deref()))
        .bind(all(events, |e| i32::try_from(e.schema_version).unwrap_or(i32::MAX)))
        .bind(all(events, |e| match &e.payload {
            Payload::Json(json) => Some(json.get()),
            Payload::Data(_) => None,
        }))
        .bind(all(events, |e| match &e.payload {
            Payload::Json(_) => None,
            Payload::Data(data) => Some(&data[..]),
        }))
        .bind(all(events, |e| e.content_type.as_str()))
        .bind(all(events, |e| e.key_id.as_deref()))
        .bind(all(events, |e| e.headers.to_json()))
        .bind(all(events, |e| e.occurred_at.to_chrono()))
        .bind(all(events, |e| e.created_at.map(Timestamp::to_chrono)))
        .bind(all(events, |e| e.available_at.map(Timestamp::to_chrono)))
        .fetch_all(connection)
        .await
        .map_err(|e| error("appending events", e))?;
        Ok(Appended::of(events, written))
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

    /// Passes NOTIFYs on until the pool is closed. The listener connects again by itself.
    fn listen(&self) {
        let (pool, hints, channel) = (
            self.pool.clone(),
            Arc::downgrade(&self.hints),
            self.tables.table().to_owned(),
        );
        tokio::spawn(async move {
            while !pool.is_closed() && hints.strong_count() > 0 {
                let Ok(mut listener) = PgListener::connect_with(&pool).await else {
                    tokio::time::sleep(LISTEN_AGAIN).await;
                    continue;
                };
                if listener.listen(&channel).await.is_err() {
                    tokio::time::sleep(LISTEN_AGAIN).await;
                    continue;
                }
                loop {
                    match timeout(LISTEN_AGAIN, listener.try_recv()).await {
                        Ok(Ok(_)) => match hints.upgrade() {
                            Some(hints) => hints.given.notify_one(),
                            None => return,
                        },
                        Ok(Err(_)) => break,
                        Err(_) if hints.strong_count() == 0 => return,
                        Err(_) => {}
                    }
                }
            }
        });
    }
}

/// How long hints are collected before others are told.
const NOTIFY_DEBOUNCE: Duration = Duration::from_millis(5);

/// The pause before listening is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

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

/// Hints on their way between those who append and those who relay.
#[derive(Debug, Default)]
struct Hints {
    given: Notify,
    telling: AtomicBool,
    listening: OnceCell<()>,
}
