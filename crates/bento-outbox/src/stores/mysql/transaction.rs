//! A transaction that notices when the database has ended it.

use std::io::{self, ErrorKind::TimedOut};
use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlPool, MySqlTransactionManager};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor, MySql, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use super::super::sql::error;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Isolation;

/// An open transaction. Dropped, its connection is closed, and so the database rolls it back: a
/// statement whose future was dropped while sqlx prepared it leaves answers behind that the next
/// would take for its own.
///
/// The database may end a transaction in the middle: it rolls back one of two that wait for each
/// other, and DDL commits. Each statement that follows would then be committed by itself. So
/// autocommit is off as long as the transaction is open, and at its end a savepoint from its
/// beginning must still be there: what came after such an end is rolled back.
#[derive(Debug)]
pub struct MySqlTransaction {
    /// None only at its end. Not sqlx's own `Transaction`, which has no way to close its connection.
    open: Option<PoolConnection<MySql>>,
}

/// So long the answer to COMMIT is waited for before the events are looked for, and that to
/// ROLLBACK before the connection is closed.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The statements stop at the first that fails: nothing is committed without the savepoint.
const COMMIT: &str = "release savepoint outbox_begun; commit; set autocommit = 1";

const ROLLBACK: &str = "rollback; set autocommit = 1";

/// Why a transaction was not committed.
pub(super) enum Uncommitted {
    /// The database said so.
    Refused(Error),
    /// It may be committed: the answer was lost.
    Unknown(sqlx::Error),
}

impl MySqlTransaction {
    pub(super) async fn begin(pool: &MySqlPool, isolation: Isolation) -> Result<Self> {
        let isolation = match isolation {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        };
        let begin = format!(
            "set transaction isolation level {isolation}; set autocommit = 0; start transaction; \
             savepoint outbox_begun"
        );
        let begun = async {
            // It closes a connection that did not begin, or was dropped before it had.
            let mut transaction = Self {
                open: Some(pool.acquire().await?),
            };
            let begin = Some(AssertSqlSafe(begin).into_sql_str());
            MySqlTransactionManager::begin(transaction.connection(), begin).await?;
            Ok(transaction)
        };
        begun.await.map_err(|e| error("beginning a transaction", e))
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        // Present until `commit` or `rollback`, which consume the transaction.
        self.open
            .as_mut()
            .expect("an open transaction has a connection")
    }

    pub(super) async fn commit(self) -> Result<(), Uncommitted> {
        self.end(COMMIT).await.map_err(uncommitted)
    }

    pub(super) async fn rollback(self) -> Result<()> {
        let undone = self.end(ROLLBACK).await;
        undone.map_err(|e| error("rolling back", e))
    }

    /// Gives the connection back to its pool, but for one that has not said that it is done.
    async fn end(mut self, statements: &'static str) -> Result<(), sqlx::Error> {
        timeout(ANSWER_MAX, self.connection().execute(statements))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(TimedOut).into()))?;
        if let Some(mut connection) = self.open.take() {
            // sqlx takes it for open still, and sends a rollback of nothing along with its ping.
            MySqlTransactionManager::start_rollback(&mut connection);
        }
        Ok(())
    }
}

impl Drop for MySqlTransaction {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.open {
            connection.close_on_drop();
        }
    }
}

/// ER_SP_DOES_NOT_EXIST: the savepoint has gone with the transaction that had it.
const NO_SUCH_SAVEPOINT: u16 = 1305;

/// The server was on its way down, or somebody ended the connection: ER_SERVER_SHUTDOWN,
/// ER_ERROR_DURING_COMMIT, ER_QUERY_INTERRUPTED, ER_CONNECTION_KILLED of MariaDB and of MySQL.
const IN_DOUBT: [u16; 5] = [1053, 1180, 1317, 1927, 3169];

fn uncommitted(e: sqlx::Error) -> Uncommitted {
    match super::number(&e) {
        Some(NO_SUCH_SAVEPOINT) => Uncommitted::Refused(
            Error::new(
                ErrorKind::Conflict,
                "the database ended the transaction before its commit, because of a deadlock or of a statement \
                 that commits by itself; what came after that is rolled back, and trying again may succeed",
            )
            .because(e),
        ),
        Some(number) if !IN_DOUBT.contains(&number) => {
            Uncommitted::Refused(error("committing", e))
        }
        _ => Uncommitted::Unknown(e),
    }
}
