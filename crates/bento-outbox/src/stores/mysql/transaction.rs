//! A transaction that notices when the database has ended it.

use std::io::{self, ErrorKind::TimedOut};
use std::time::Duration;

use sqlx::mysql::{MySqlConnection, MySqlPool};
use sqlx::{AssertSqlSafe, Executor, MySql, Transaction};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::super::sql::error;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Isolation;

/// An open transaction. Dropped, it is rolled back before anybody else gets its connection.
///
/// The database may end a transaction in the middle: it rolls back one of two that wait for each
/// other, and DDL commits. Each statement that follows would then be committed by itself. So
/// autocommit is off as long as the transaction is open, and at its end a savepoint from its
/// beginning must still be there: what came after such an end is rolled back.
#[derive(Debug)]
pub struct MySqlTransaction {
    /// None only at its end.
    open: Option<Transaction<'static, MySql>>,
}

/// So long the answer to COMMIT is waited for before the events are looked for.
const COMMIT_ANSWER_MAX: Duration = Duration::from_secs(10);

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
        let open = pool
            .begin_with(AssertSqlSafe(begin))
            .await
            .map_err(|e| error("beginning a transaction", e))?;
        Ok(Self { open: Some(open) })
    }

    pub(super) fn connection(&mut self) -> &mut MySqlConnection {
        // Present until `commit` or `rollback`, which consume the transaction.
        self.open
            .as_mut()
            .expect("an open transaction has a connection")
    }

    pub(super) async fn commit(mut self) -> Result<(), Uncommitted> {
        let answer = timeout(COMMIT_ANSWER_MAX, self.connection().execute(COMMIT));
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(io::Error::from(TimedOut).into()));
        match answer {
            Ok(_) => {
                // sqlx takes it for open still, and sends a rollback of nothing along with its ping.
                self.open = None;
                Ok(())
            }
            Err(e) => Err(uncommitted(e)),
        }
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        let undone = self.connection().execute(ROLLBACK).await;
        self.open = None;
        undone.map(drop).map_err(|e| error("rolling back", e))
    }
}

/// In a task of its own: the connection is given back when it has been rolled back. Without a
/// runtime there is no pool to give it back to.
impl Drop for MySqlTransaction {
    fn drop(&mut self) {
        if let (Some(mut open), Ok(runtime)) = (self.open.take(), Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(e) = open.execute(ROLLBACK).await {
                    tracing::debug!(
                        error = error("rolling back", e).report(),
                        "the connection is closed instead"
                    );
                }
            });
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
