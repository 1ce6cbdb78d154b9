//! What differs from one database to the next, besides the store.

use std::sync::Arc;

use async_trait::async_trait;
use bento_outbox::stores::Tables;
use bento_outbox::{Result, TransactionalStore};

use super::load::Order;

/// A store on whose database one can measure: its driver, bare.
#[async_trait]
pub(super) trait Ground: TransactionalStore {
    /// The SQL that differs.
    const SQL: Sql;

    /// The outbox in other tables of the same database, on the same connections.
    fn beside(&self, tables: Tables) -> Self;

    /// Executes a statement.
    async fn execute(&self, statement: String) -> Result<()>;

    /// The number that a query answers.
    async fn number(&self, query: String) -> Result<i64>;

    /// The texts that a query answers.
    async fn texts(&self, query: String) -> Result<Vec<String>>;

    /// Executes a query on a connection and forgets what it answers.
    async fn look(connection: &mut Self::Connection, query: String) -> Result<()>;

    /// Writes an order on the connection of an open transaction.
    async fn insert(
        connection: &mut Self::Connection,
        statement: Arc<str>,
        order: &Order,
    ) -> Result<()>;

    /// Writes an order in a transaction of the driver's own, as if there were no outbox.
    async fn insert_alone(&self, statement: Arc<str>, order: &Order) -> Result<()>;

    /// The plain cursor: reads all records of a table by [`Sql::page`], `limit` at a time on one
    /// connection, and decodes each into values of its own. Answers how many there were.
    async fn read(&self, page: Arc<str>, limit: u32) -> Result<u64>;
}

/// The SQL in which databases differ. `{schema}`, `{name}`, `{prefix}`, `{table}` and `{orders}` are
/// filled in.
pub(super) struct Sql {
    /// The server's name and version.
    pub(super) server: &'static str,
    /// A table's full name.
    pub(super) full_name: &'static str,
    /// How many schemas there are of that name.
    pub(super) schemas: &'static str,
    /// What is made by a migration, in the order in which it can be dropped: each kind, and what finds the
    /// names that begin with `{prefix}`.
    pub(super) made: &'static [(&'static str, &'static str)],
    /// Writes an order.
    pub(super) insert: &'static str,
    /// Takes every row out of a table.
    pub(super) empty: &'static str,
    /// What the database does by itself sooner or later after many rows were written.
    pub(super) tidy: &'static str,
    /// Whole records after a `seq`, in order.
    pub(super) page: &'static str,
    /// What the pages are found by, where the outbox has no index of that kind.
    pub(super) page_index: Option<&'static str>,
    /// Whether row versions stay for as long as an older snapshot is open.
    pub(super) keeps_versions: bool,
}

#[cfg_attr(
    not(any(feature = "sqlite", feature = "postgres", feature = "mysql")),
    expect(unused_macros, reason = "there is no database")
)]
macro_rules! ground {
    ($store:ident, $connection:ty, begin: $begin:literal, record: $record:ty, sql: $sql:expr) => {
        #[async_trait]
        impl Ground for bento_outbox::stores::$store {
            const SQL: Sql = $sql;

            fn beside(&self, tables: Tables) -> Self {
                Self::with_tables(self.pool().clone(), tables)
            }

            async fn execute(&self, statement: String) -> Result<()> {
                let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
                statement.execute(self.pool()).await?;
                Ok(())
            }

            async fn number(&self, query: String) -> Result<i64> {
                let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query));
                Ok(query.fetch_one(self.pool()).await?)
            }

            async fn texts(&self, query: String) -> Result<Vec<String>> {
                let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query));
                Ok(query.fetch_all(self.pool()).await?)
            }

            async fn look(connection: &mut $connection, query: String) -> Result<()> {
                let query = sqlx::raw_sql(sqlx::AssertSqlSafe(query));
                query.fetch_all(connection).await?;
                Ok(())
            }

            async fn insert(
                connection: &mut $connection,
                statement: Arc<str>,
                order: &Order,
            ) -> Result<()> {
                sqlx::query(sqlx::AssertSqlSafe(statement))
                    .bind(&order.id)
                    .bind(&order.customer)
                    .bind(order.total_cents)
                    .bind(&order.note)
                    .execute(connection)
                    .await?;
                Ok(())
            }

            async fn insert_alone(&self, statement: Arc<str>, order: &Order) -> Result<()> {
                // As `load::begin`, which see.
                let pool = self.pool().clone();
                let begun = tokio::spawn(async move { pool.begin_with($begin).await });
                let mut transaction = begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
                Self::insert(&mut transaction, statement, order).await?;
                transaction.commit().await?;
                Ok(())
            }

            async fn read(&self, page: Arc<str>, limit: u32) -> Result<u64> {
                let mut connection = self.pool().acquire().await?;
                let (mut last, mut count) = (0, 0);
                loop {
                    let records: Vec<$record> = sqlx::query_as(sqlx::AssertSqlSafe(page.clone()))
                        .bind(last)
                        .bind(i64::from(limit))
                        .fetch_all(&mut *connection)
                        .await?;
                    let Some(record) = std::hint::black_box(&records).last() else {
                        return Ok(count);
                    };
                    last = record.0;
                    count += records.len() as u64;
                }
            }
        }
    };
}

/// The columns of the contract, in its order.
#[cfg(feature = "postgres")]
type PostgresRecord = (
    i64,
    uuid::Uuid,
    String,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    i32,
    Option<String>,
    Option<Vec<u8>>,
    String,
    Option<String>,
    String,
    sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>,
    sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>,
    sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>,
);

#[cfg(feature = "postgres")]
ground!(PostgresStore, sqlx::PgConnection, begin: "begin", record: PostgresRecord, sql: Sql {
    server: "select split_part(version(), ' on ', 1)",
    full_name: "\"{schema}\".\"{name}\"",
    schemas: "select count(*) from pg_namespace where nspname = '{schema}'",
    made: &[
        (
            "view",
            "select relname::text from pg_class where relnamespace = '\"{schema}\"'::regnamespace
             and relkind = 'v' and starts_with(relname::text, '{prefix}')",
        ),
        (
            "table",
            "select relname::text from pg_class where relnamespace = '\"{schema}\"'::regnamespace
             and relkind in ('r', 'p') and starts_with(relname::text, '{prefix}')",
        ),
        (
            "function",
            "select proname::text from pg_proc where pronamespace = '\"{schema}\"'::regnamespace
             and starts_with(proname::text, '{prefix}')",
        ),
    ],
    insert: "insert into {orders} (id, customer, total_cents, note) values ($1, $2, $3, $4)",
    empty: "truncate {table}",
    tidy: "vacuum (analyze) {table}",
    page: "select seq, id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload::text, data,
                  content_type, key_id, headers::text, occurred_at, created_at, available_at
           from {table} where seq > $1 order by seq limit $2",
    page_index: Some("create unique index on {table} (seq)"),
    keeps_versions: true,
});

/// The columns of the contract, in its order.
#[cfg(feature = "sqlite")]
type SqliteRecord = (
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    i64,
    Option<String>,
    Option<Vec<u8>>,
    String,
    Option<String>,
    String,
    String,
    String,
    String,
);

#[cfg(feature = "sqlite")]
ground!(SqliteStore, sqlx::SqliteConnection, begin: "begin immediate", record: SqliteRecord, sql: Sql {
    server: "select 'SQLite ' || sqlite_version()",
    full_name: "\"{name}\"",
    schemas: "select 1",
    made: &[
        (
            "view",
            "select name from sqlite_schema where type = 'view' and substr(name, 1, length('{prefix}')) = '{prefix}'",
        ),
        (
            "table",
            "select name from sqlite_schema where type = 'table' and substr(name, 1, length('{prefix}')) = '{prefix}'",
        ),
    ],
    insert: "insert into {orders} (id, customer, total_cents, note) values (?1, ?2, ?3, ?4)",
    empty: "delete from {table}",
    tidy: "pragma wal_checkpoint(passive)",
    page: "select seq, id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
                  content_type, key_id, headers, occurred_at, created_at, available_at
           from {table} where seq > ?1 order by seq limit ?2",
    page_index: None,
    keeps_versions: false,
});

/// The columns of the contract, in its order.
#[cfg(feature = "mysql")]
type MySqlRecord = (
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    i32,
    Option<String>,
    Option<Vec<u8>>,
    String,
    Option<String>,
    String,
    sqlx::types::chrono::NaiveDateTime,
    sqlx::types::chrono::NaiveDateTime,
    sqlx::types::chrono::NaiveDateTime,
);

// A schema is a database here, and `public` stands for the connection's own: it alone is measured on.
#[cfg(feature = "mysql")]
ground!(MySqlStore, sqlx::MySqlConnection, begin: "start transaction", record: MySqlRecord, sql: Sql {
    server: "select concat('MySQL ', version())",
    full_name: "`{name}`",
    schemas: "select count(*) from (select 1 as one) own where '{schema}' in ('public', database())",
    made: &[
        (
            "view",
            "select cast(table_name as char) from information_schema.views
             where table_schema = database() and left(table_name, char_length('{prefix}')) = '{prefix}'",
        ),
        (
            "table",
            "select cast(table_name as char) from information_schema.tables
             where table_schema = database() and table_type = 'BASE TABLE'
               and left(table_name, char_length('{prefix}')) = '{prefix}'",
        ),
    ],
    insert: "insert into {orders} (id, customer, total_cents, note) values (?, ?, ?, ?)",
    empty: "truncate table {table}",
    tidy: "analyze table {table}",
    page: "select seq, id, tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data,
                  content_type, key_id, headers, occurred_at, created_at, available_at
           from {table} where seq > ? order by seq limit ?",
    page_index: None,
    keeps_versions: true,
});
