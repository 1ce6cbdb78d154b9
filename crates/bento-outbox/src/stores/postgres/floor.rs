//! The place in the table below which no ready record is, and none can appear any more.
//!
//! Without it a claim steps over the index entries of all that was sent since the database could
//! last clean up, which a transaction held open for hours prevents. It is no cursor: a transaction
//! that may still commit a lower `seq` keeps it down.
//!
//! Who inserts holds a lock on the table from before a `seq` is given out until the end of the
//! transaction. So once all who held one after a look at the sequence have gone, whatever was given
//! out before that look is committed or never will be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::AssertSqlSafe;

use super::super::sql::error;
use super::PostgresStore;
use super::claims::READY;
use crate::error::Result;

/// How often the floor is raised while there is something to carry.
const RAISE_EVERY: Duration = Duration::from_secs(1);

/// The pause after the server would not tell, for lack of a right to read the sequence.
const RAISE_AGAIN: Duration = Duration::from_secs(60);

/// What is known of the floor. Clones of a store share it.
#[derive(Debug, Default)]
pub(super) struct Floor {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Known,
    next: Option<Instant>,
    /// A `seq` up to which all were given out, and who may still commit one of those.
    asked: Option<Asked>,
}

/// A floor and the server that it is of: another one, or one that was set back, has other rows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) seq: i64,
    pub(super) server: DateTime<Utc>,
}

#[derive(Debug)]
struct Asked {
    given_out: i64,
    server: DateTime<Utc>,
    writers: Vec<String>,
}

impl Floor {
    pub(super) fn known(&self) -> Known {
        self.state().known
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time, and then whose business it is: the asking one's.
    fn is_due(&self) -> bool {
        let mut state = self.state();
        let due = state.next.is_none_or(|next| Instant::now() >= next);
        if due {
            state.next = Some(Instant::now() + RAISE_EVERY);
        }
        due
    }
}

/// Raises the floor now and then. Whatever goes wrong leaves it where it is.
pub(super) async fn raise_in_time(store: &PostgresStore) {
    if !store.floor.is_due() {
        return;
    }
    if let Err(error) = raise(store).await {
        tracing::debug!(error = error.report(), "claims begin at the first row");
        let mut state = store.floor.state();
        state.next = Some(Instant::now() + RAISE_AGAIN);
        state.asked = None;
        state.known = Known::default();
    }
}

async fn raise(store: &PostgresStore) -> Result<()> {
    let asked = store.floor.state().asked.take();
    let known = match asked {
        None => None,
        Some(asked)
            if !asked.writers.is_empty() && !writing(store, &asked.writers).await?.is_empty() =>
        {
            store.floor.state().asked = Some(asked);
            return Ok(());
        }
        Some(asked) => first_ready(store, &asked).await?,
    };
    // The sequence is read before the locks: who was given a `seq` holds one by then.
    let (given_out, server) = given_out(store).await?;
    let writers = writing(store, &[]).await?;
    let mut state = store.floor.state();
    state.known = known
        .filter(|known| known.server == server)
        .unwrap_or(state.known);
    if state.known.server != server || state.known.seq > given_out {
        state.known = Known::default();
    }
    state.asked = Some(Asked {
        given_out,
        server,
        writers,
    });
    Ok(())
}

/// The last `seq` that was given out, and since when the server runs.
async fn given_out(store: &PostgresStore) -> Result<(i64, DateTime<Utc>)> {
    let (last, cache, server): (Option<i64>, i64, DateTime<Utc>) = sqlx::query_as(
        "select pg_sequence_last_value(seqrelid), seqcache, pg_postmaster_start_time()
         from pg_sequence where seqrelid = pg_get_serial_sequence($1, 'seq')::regclass",
    )
    .bind(store.table())
    .fetch_one(&store.pool)
    .await
    .map_err(|e| error("reading the sequence of the outbox", e))?;
    // A session that is given several at once keeps some for its later transactions.
    let last = if cache == 1 { last.unwrap_or(0) } else { 0 };
    Ok((last, server))
}

/// The transactions that may be writing to the table: all, or those of them that still are.
async fn writing(store: &PostgresStore, of: &[String]) -> Result<Vec<String>> {
    sqlx::query_scalar(
        "select distinct virtualtransaction from pg_locks
         where locktype = 'relation' and granted and relation = $1::regclass
           and database = (select oid from pg_database where datname = current_database())
           and mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
           and (cardinality($2::text[]) = 0 or virtualtransaction = any($2))",
    )
    .bind(store.table())
    .bind(of)
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("looking who writes to the outbox", e))
}

/// The floor, now that nobody can commit anything up to what was given out.
async fn first_ready(store: &PostgresStore, asked: &Asked) -> Result<Option<Known>> {
    let table = store.table();
    let known = store.floor.known();
    let first: Option<i64> = sqlx::query_scalar(AssertSqlSafe(format!(
        "with recursive first(tenant_id, seq) as (
             (select o.tenant_id, o.seq from {table} o where {READY} and o.seq > $1
              order by o.tenant_id, o.seq limit 1)
             union all
             select next.tenant_id, next.seq from first cross join lateral (
                 select o.tenant_id, o.seq from {table} o
                 where {READY} and o.tenant_id > first.tenant_id and o.seq > $1
                 order by o.tenant_id, o.seq limit 1) next)
         select min(seq) from first"
    )))
    .bind(if known.server == asked.server {
        known.seq
    } else {
        0
    })
    .fetch_one(&store.pool)
    .await
    .map_err(|e| error("looking for the first event", e))?;
    let below = first.map_or(i64::MAX, |first| first - 1);
    Ok(Some(Known {
        seq: asked.given_out.min(below),
        server: asked.server,
    }))
}
