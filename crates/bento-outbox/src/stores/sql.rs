//! What the stores on sqlx share: migrations, and what their errors mean.

use std::collections::{HashMap, HashSet};

use sqlx::AssertSqlSafe;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use uuid::Uuid;

use super::Tables;
use crate::error::{Error, ErrorKind, Result};
use crate::record::OutboxRecord;

/// A migration: version, name, and SQL in which `{schema}` and `{table}` are filled in.
pub(crate) type Step = (i64, &'static str, &'static str);

impl Tables {
    /// `sql` with `{schema}` and `{table}` filled in.
    pub(crate) fn fill(&self, sql: &str) -> String {
        sql.replace("{schema}", self.schema())
            .replace("{table}", self.table())
    }

    /// What applies `steps`, keeping count in the table that is called `versions`.
    pub(crate) fn migrator(&self, steps: &[Step], versions: &str) -> Migrator {
        let migration = |(version, name, sql): &Step| {
            let sql = sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(self.fill(sql)));
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
        };
        let mut migrator = Migrator::with_migrations(steps.iter().map(migration).collect());
        migrator.dangerous_set_table_name(versions.to_owned());
        migrator
    }

    /// The SQL of `steps`, for people who apply it by themselves, with what counts them in the table
    /// `versions`; `bytes` makes a literal of hexadecimal digits.
    pub(crate) fn script(
        &self,
        steps: &[Step],
        versions: &str,
        bytes: fn(&str) -> String,
    ) -> String {
        let step = |step: &Migration| {
            let Migration {
                version,
                description,
                sql,
                checksum,
                ..
            } = step;
            let digits: String = checksum.iter().map(|byte| format!("{byte:02x}")).collect();
            format!(
                "-- {version:04} {description}\n{}\n\
                 insert into {versions} (version, description, success, checksum, execution_time)\n    \
                 values ({version}, '{description}', true, {}, -1);\n",
                sql.as_str(),
                bytes(&digits)
            )
        };
        let migrator = self.migrator(steps, versions);
        migrator.iter().map(step).collect::<Vec<_>>().join("\n")
    }

    /// Refuses tables of another version than the last of `steps`.
    pub(crate) fn check_version(&self, there: Option<i64>, steps: &[Step]) -> Result<()> {
        let table = self.table();
        let known = steps.last().map_or(0, |(version, ..)| *version);
        let what = match there {
            None => format!("table {table:?} is not there: run `bento-outbox migrate`"),
            Some(there) if there < known => format!(
                "table {table:?} is of version {there}, older than this program's {known}: \
                 run `bento-outbox migrate`"
            ),
            Some(there) if there > known => format!(
                "table {table:?} is of version {there}, newer than this program's {known}: \
                 upgrade bento-outbox"
            ),
            Some(_) => return Ok(()),
        };
        Err(Error::new(ErrorKind::Schema, what))
    }
}

/// Keeps, of records that were to be taken from their owners, those that were, with the lost
/// attempts counted. Nothing of a key goes on past a record that is still its owner's.
pub(crate) fn keep_taken(
    records: &mut Vec<OutboxRecord>,
    orphans: &[Uuid],
    taken: &HashMap<Uuid, u32>,
) {
    let mut kept_back: HashSet<String> = HashSet::new();
    records.retain_mut(|record| {
        let key = record.ordering_key().map(|key| key.to_string());
        if key.as_ref().is_some_and(|key| kept_back.contains(key)) {
            return false;
        }
        match taken.get(&record.id) {
            Some(lost_attempts) => record.lost_attempts = *lost_attempts,
            None if orphans.contains(&record.id) => {
                kept_back.extend(key);
                return false;
            }
            None => {}
        }
        true
    });
}

/// Two relays whose tenants overlap would both publish the same events.
pub(crate) fn colliding(scope: &str, other: &str) -> Error {
    Error::new(
        ErrorKind::InvalidSetting,
        format!(
            "tenants: another relay is running for tenants {other:?}, this one is for {scope:?}; relays of one \
             outbox must carry the same tenants, or tenants that do not overlap"
        ),
    )
}

/// A command's row was there a statement ago, and has been purged since.
pub(crate) fn forgotten_meanwhile() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the command was forgotten at the same time; trying again runs it",
    )
}

/// Put aside records are woken so many in one statement.
pub(crate) const WAKE_CHUNK: u32 = 10_000;

/// The `retry_at` of events that came due while their tenant was paused: they
/// are put off until it is resumed, out of the way of the claims.
pub(crate) const PUT_OFF: &str = "9999-12-31T00:00:00.000Z";

/// So many records that came due while their tenant is paused are put off in one statement.
pub(crate) const PUT_OFF_CHUNK: u32 = 1_000;

/// Runs what changes several rows in one transaction, to its end although the caller may go: a
/// transaction is not dropped half-way.
pub(crate) async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|panic| {
        Err(Error::new(
            ErrorKind::Database,
            "a change ended abruptly: nothing was changed, or all of it",
        )
        .because(panic))
    })
}

/// JSON that the database holds.
pub(crate) fn parsed(json: &str) -> Result<serde_json::Value> {
    serde_json::from_str(json)
        .map_err(|e| Error::new(ErrorKind::Database, "the audit holds no JSON").because(e))
}

/// A database error met inside a unit of work, so that `?` works on the caller's own statements.
impl From<sqlx::Error> for Error {
    fn from(cause: sqlx::Error) -> Self {
        error("running a statement", cause)
    }
}

/// What a database error met while `doing` something means.
pub(crate) fn error(doing: &str, error: sqlx::Error) -> Error {
    use sqlx::Error as E;
    let (kind, is_denied) = match &error {
        E::Database(answer) => {
            let code = answer.code().unwrap_or_default();
            match mysql_number(&code, &answer.to_string()) {
                Some(number) => (numbered(number), DENIED.contains(&number)),
                None => (
                    answered(&code, answer.message()),
                    code == INSUFFICIENT_PRIVILEGE,
                ),
            }
        }
        E::Io(_)
        | E::Tls(_)
        | E::Protocol(_)
        | E::PoolTimedOut
        | E::PoolClosed
        | E::WorkerCrashed => (ErrorKind::Unavailable, false),
        E::Configuration(_) => (ErrorKind::InvalidSetting, false),
        _ => (ErrorKind::Database, false),
    };
    let what = match kind {
        ErrorKind::Conflict => "gave way to another transaction; trying again may succeed",
        ErrorKind::Schema => {
            "the outbox tables are missing or of another version: run `bento-outbox migrate`"
        }
        _ if is_denied => {
            "is not granted to the user of the database URL: `bento-outbox doctor` names the rights that are missing"
        }
        _ => "failed",
    };
    Error::new(kind, format!("{doing} {what}")).because(error)
}

/// The number of an answer of MySQL, which is written before the SQLSTATE and says more than that:
/// `1205 (HY000): Lock wait timeout exceeded`.
fn mysql_number(code: &str, shown: &str) -> Option<u16> {
    let (number, rest) = shown.split_once(' ')?;
    let rest = rest.strip_prefix('(')?.strip_prefix(code)?;
    rest.starts_with("): ").then(|| number.parse().ok())?
}

/// The SQLSTATE of PostgreSQL for a missing right.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// What MySQL answers for a missing right: ER_DBACCESS_DENIED_ERROR, ER_TABLEACCESS_DENIED_ERROR,
/// ER_COLUMNACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR, ER_PROCACCESS_DENIED_ERROR.
pub(crate) const DENIED: [u16; 5] = [1044, 1142, 1143, 1227, 1370];

/// What an answer of MySQL or MariaDB means.
fn numbered(number: u16) -> ErrorKind {
    match number {
        // ER_LOCK_WAIT_TIMEOUT, ER_LOCK_DEADLOCK, ER_LOCK_NOWAIT, ER_CHECKREAD (snapshot isolation)
        1205 | 1213 | 3572 | 1020 => ErrorKind::Conflict,
        // ER_BAD_FIELD_ERROR, ER_NO_SUCH_TABLE, ER_KEY_DOES_NOT_EXITS
        1054 | 1146 | 1176 => ErrorKind::Schema,
        // ER_NO_DB_ERROR
        1046 => ErrorKind::InvalidSetting,
        // ER_DISK_FULL, ER_CON_COUNT_ERROR, ER_HOST_IS_BLOCKED, ER_SERVER_SHUTDOWN, ER_RECORD_FILE_FULL,
        // ER_NET_ERROR_ON_WRITE, ER_TOO_MANY_USER_CONNECTIONS, ER_USER_LIMIT_REACHED,
        // ER_OPTION_PREVENTS_STATEMENT (read-only), ER_QUERY_INTERRUPTED, ER_READ_ONLY_MODE,
        // ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER_CONNECTION_KILLED
        1021 | 1040 | 1129 | 1053 | 1114 | 1160 | 1203 | 1226 | 1290 | 1317 | 1792 | 1836
        | 1927 | 3169 => ErrorKind::Unavailable,
        _ => ErrorKind::Database,
    }
}

/// What an answer of PostgreSQL (SQLSTATE) or SQLite (extended result code) means.
fn answered(code: &str, message: &str) -> ErrorKind {
    match code {
        // serialization_failure, deadlock_detected, lock_not_available; SQLITE_BUSY, _LOCKED
        "40001" | "40P01" | "55P03" | "5" | "6" | "261" | "262" | "517" | "518" => {
            ErrorKind::Conflict
        }
        // undefined_table, undefined_column, invalid_schema_name
        "42P01" | "42703" | "3F000" => ErrorKind::Schema,
        "1" if message.starts_with("no such ") => ErrorKind::Schema,
        // read_only_sql_transaction; SQLITE_READONLY, _IOERR, _FULL, _CANTOPEN and their extensions
        "25006" | "8" | "10" | "13" | "14" => ErrorKind::Unavailable,
        _ if code.len() == 5 && ["08", "53", "57", "58"].contains(&&code[..2]) => {
            ErrorKind::Unavailable
        }
        _ if code.len() < 5
            && code
                .parse::<u32>()
                .is_ok_and(|code| [8, 10, 13, 14].contains(&(code & 0xff))) =>
        {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Database,
    }
}

/// What an error of the migrations means.
pub(crate) fn migrate_error(error: MigrateError) -> Error {
    match error {
        MigrateError::Execute(sqlx::Error::Database(answer))
        | MigrateError::ExecuteMigration(sqlx::Error::Database(answer), _)
            if answer.message().contains("already exists") =>
        {
            Error::new(
                ErrorKind::Schema,
                "there is a table of that name which bento-outbox did not make: choose another by the setting `table`",
            )
            .because(sqlx::Error::Database(answer))
        }
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
            self::error("applying a migration", cause)
        }
        MigrateError::VersionMissing(version) => Error::new(
            ErrorKind::Schema,
            format!(
                "the outbox tables are of version {version}, which is newer than this program: upgrade it"
            ),
        ),
        MigrateError::VersionMismatch(version) => Error::new(
            ErrorKind::Schema,
            format!(
                "migration {version} was applied with another text than this program's: restore that version"
            ),
        ),
        other => {
            Error::new(ErrorKind::Schema, "the outbox tables cannot be upgraded").because(other)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_mysql_tell_what_to_do() {
        let shown = "1205 (HY000): Lock wait timeout exceeded; try restarting transaction";
        assert_eq!(mysql_number("HY000", shown), Some(1205));
        assert_eq!(mysql_number("40001", "could not serialize access"), None);
        assert_eq!(mysql_number("1", "no such table: outbox"), None);
        for (number, kind) in [
            (1205, ErrorKind::Conflict),
            (1213, ErrorKind::Conflict),
            (1146, ErrorKind::Schema),
            (1290, ErrorKind::Unavailable),
            (1062, ErrorKind::Database),
        ] {
            assert_eq!(numbered(number), kind, "{number}");
        }
    }

    #[test]
    fn codes_tell_what_to_do() {
        for (code, kind) in [
            ("40001", ErrorKind::Conflict),
            ("517", ErrorKind::Conflict),
            ("42P01", ErrorKind::Schema),
            ("53100", ErrorKind::Unavailable),
            ("57P01", ErrorKind::Unavailable),
            ("1032", ErrorKind::Unavailable),
            ("13", ErrorKind::Unavailable),
            ("22P02", ErrorKind::Database),
            ("275", ErrorKind::Database),
        ] {
            assert_eq!(answered(code, ""), kind, "{code}");
        }
        assert_eq!(answered("1", "no such table: outbox"), ErrorKind::Schema);
        assert_eq!(
            answered("1", "near \"x\": syntax error"),
            ErrorKind::Database
        );
    }
}
