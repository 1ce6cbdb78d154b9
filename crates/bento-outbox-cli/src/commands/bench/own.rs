//! Tables that nobody else uses, from the moment they are made until they are dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bento_outbox::stores::Tables;
use bento_outbox::{Error, ErrorKind};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::ground::Ground;
use crate::failure::{Failure, Result};

/// How long dropping waits for what is still being written.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows copied in one statement.
const COPIED: u64 = 50_000;

/// The columns that are copied from row to row: the writer's, without what is unique, and the state.
const COPIED_COLUMNS: &str = "tenant_id, aggregate_type, aggregate_id, type, schema_id, schema_ver, payload, data, \
     content_type, key_id, headers, occurred_at, created_at, available_at, status, sent_at";

/// What is made in the user's schema under one random name, to be dropped together.
pub(super) struct OwnTables<S> {
    store: S,
    schema: String,
    /// What every name begins with.
    prefix: String,
    /// Held while tables are made, so that none is made behind the back of who drops them.
    making: Arc<Mutex<()>>,
}

impl<S: Ground> OwnTables<S> {
    /// Names for tables in `schema` of the store's database. The store's own tables are not touched.
    ///
    /// # Errors
    /// There is no such schema.
    pub(super) async fn named(store: S, schema: &str) -> Result<Self> {
        let there = store
            .number(S::SQL.schemas.replace("{schema}", schema))
            .await?;
        if there == 0 {
            let what = format!("schema {schema:?} is not there: run `bento-outbox migrate`");
            return Err(Failure::failed(what));
        }
        Ok(Self {
            store,
            schema: schema.into(),
            prefix: format!("outbox_bench_{:08x}", Uuid::new_v4().as_fields().0),
            making: Arc::default(),
        })
    }

    /// What every table's name begins with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// An outbox in new tables.
    pub(super) async fn outbox(&self, name: &str) -> Result<Own<S>> {
        let tables = Tables::new(&*self.schema, format!("{}_{name}", self.prefix))?;
        let table = self.full_name(tables.table());
        let events = self.full_name(&format!("{}_events", tables.table()));
        let store = self.store.beside(tables);
        let made = store.clone();
        self.make(async move { made.migrate().await.map(drop) })
            .await?;
        Ok(Own {
            store,
            table,
            events,
        })
    }

    /// A new table for the rows of the business; answers its name.
    pub(super) async fn orders(&self) -> Result<String> {
        let orders = self.full_name(&format!("{}_orders", self.prefix));
        let create = format!(
            "create table {orders} (id varchar(36) not null primary key, customer varchar(64) not null, \
             total_cents bigint not null, note varchar(400) not null)"
        );
        let store = self.store.clone();
        self.make(async move { store.execute(create).await })
            .await?;
        Ok(orders)
    }

    /// Drops everything that was made, and answers how many tables that were.
    ///
    /// # Errors
    /// Something is left; what, says the name.
    pub(super) async fn drop_all(&self) -> Result<usize> {
        let _nothing_is_made = self.making.lock().await;
        let mut dropped = 0;
        for (kind, query) in S::SQL.made {
            for name in self.store.texts(self.filled(query)).await? {
                let statement = format!("drop {kind} if exists {}", self.full_name(&name));
                self.insist(statement).await?;
                dropped += usize::from(*kind == "table");
            }
        }
        Ok(dropped)
    }

    /// What was interrupted may still write for a moment, and SQLite has one writer.
    async fn insist(&self, statement: String) -> Result<()> {
        let patience = Instant::now() + PATIENCE;
        loop {
            match self.store.execute(statement.clone()).await {
                Err(error) if is_conflict(&error) && Instant::now() < patience => {}
                done => return Ok(done?),
            }
        }
    }

    /// Makes something to the end, even when nobody waits for it any more.
    async fn make(
        &self,
        making: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<()> {
        let guard = self.making.clone().lock_owned().await;
        let made = tokio::spawn(async move {
            let _guard = guard;
            making.await
        });
        let ended = made.await;
        Ok(ended.map_err(|error| Failure::failed(format!("making tables ended: {error}")))??)
    }

    fn full_name(&self, name: &str) -> String {
        self.filled(S::SQL.full_name).replace("{name}", name)
    }

    fn filled(&self, sql: &str) -> String {
        sql.replace("{schema}", &self.schema)
            .replace("{prefix}", &format!("{}_", self.prefix))
    }
}

fn is_conflict(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict
}

/// An outbox in tables of our own.
#[derive(Clone)]
pub(super) struct Own<S> {
    pub(super) store: S,
    table: String,
    events: String,
}

impl<S: Ground> Own<S> {
    /// `sql` with the name of the table filled in.
    pub(super) fn sql(&self, sql: &str) -> String {
        sql.replace("{table}", &self.table)
    }

    /// Takes every row out.
    pub(super) async fn empty(&self) -> Result<()> {
        Ok(self.store.execute(self.sql(S::SQL.empty)).await?)
    }

    /// Has the database do now what it does by itself sooner or later, lest it do it in the middle
    /// of one measurement and not of another.
    pub(super) async fn tidy(&self) -> Result<()> {
        Ok(self.store.execute(self.sql(S::SQL.tidy)).await?)
    }

    /// How many events are not sent.
    pub(super) async fn unsent(&self) -> Result<u64> {
        let query = format!("select count(*) from {} where status = 'NEW'", self.events);
        Ok(self.store.number(query).await?.unsigned_abs())
    }

    /// Copies the first rows, as they are, until there are `rows` instead of `from`.
    pub(super) async fn grow(&self, from: u64, rows: u64) -> Result<()> {
        let mut there = from;
        while there < rows {
            let more = COPIED.min(there).min(rows - there);
            let statement = format!(
                "insert into {table} ({COPIED_COLUMNS}) \
                 select {COPIED_COLUMNS} from {table} order by seq limit {more}",
                table = self.table
            );
            self.store.execute(statement).await?;
            there += more;
        }
        Ok(())
    }
}
