//! What is wrong with the server, its sessions and the rights on the tables.

use chrono::NaiveDateTime;
use sqlx::{AssertSqlSafe, Executor, Row};

use super::super::sql::{DENIED, error};
use super::rows::{get, time, uuid};
use super::{MySqlStore, number};
use crate::error::{Error, ErrorKind, Result};
use crate::inspection::{Caution, Inspection, LiveRelay};

/// A server and its version, as `MariaDB 10.11.19`.
#[derive(Debug, PartialEq)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) version: [u32; 3],
}

impl Server {
    /// What `version()` says. MariaDB's name is in it, sometimes behind a version for old clients.
    fn of(version: &str) -> Self {
        let (name, version) = match version.to_ascii_lowercase().contains("mariadb") {
            true => ("MariaDB", version.trim_start_matches("5.5.5-")),
            false => ("MySQL", version),
        };
        let mut parts = version
            .split(|c: char| !c.is_ascii_digit())
            .map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self {
            name,
            version: [next(), next(), next()],
        }
    }

    /// Before these there are no check constraints, no `json_table` or no `skip locked`.
    fn is_too_old(&self) -> bool {
        match self.name {
            "MariaDB" => self.version < [10, 6, 0],
            _ => self.version < [8, 0, 16],
        }
    }

    fn shown(&self) -> String {
        let [major, minor, patch] = self.version;
        format!("{} {major}.{minor}.{patch}", self.name)
    }
}

/// What a session of the server is like.
struct Session {
    server: Server,
    autocommit: bool,
    /// Whether a statement that is not logged row by row could be refused, or replayed otherwise.
    logs_statements: bool,
    /// Whether a value that is too long is an error for writers who say nothing else.
    strict_by_default: bool,
    flushes_commits: bool,
    doublewrite: bool,
}

impl Session {
    async fn ask(store: &MySqlStore) -> Result<Self> {
        let row = sqlx::query(
            "select version() as version, cast(@@session.autocommit as signed) as autocommit,
                    cast(@@global.log_bin as signed) as log_bin, @@session.binlog_format as binlog_format,
                    @@global.sql_mode as sql_mode,
                    cast(@@global.innodb_flush_log_at_trx_commit as signed) as flushes,
                    cast(@@global.innodb_doublewrite as char) as doublewrite",
        )
        .fetch_one(&store.pool)
        .await
        .map_err(|e| error("asking the server for its settings", e))?;
        let mode: String = get(&row, "sql_mode")?;
        let format: String = get(&row, "binlog_format")?;
        let doublewrite: String = get(&row, "doublewrite")?;
        Ok(Self {
            server: Server::of(get(&row, "version")?),
            autocommit: get::<i64>(&row, "autocommit")? == 1,
            logs_statements: get::<i64>(&row, "log_bin")? == 1
                && format.eq_ignore_ascii_case("statement"),
            strict_by_default: mode.contains("STRICT_TRANS_TABLES")
                || mode.contains("STRICT_ALL_TABLES"),
            flushes_commits: get::<i64>(&row, "flushes")? == 1,
            doublewrite: !["0", "OFF"].contains(&doublewrite.to_ascii_uppercase().as_str()),
        })
    }

    fn cautions(&self) -> Vec<Caution> {
        let mut cautions = Vec::new();
        let mut add = |found: &str, advice| {
            cautions.push(Caution {
                found: found.into(),
                advice,
            });
        };
        if !self.strict_by_default {
            add(
                "the server's sql_mode is not strict: what other writers insert too long is cut and not refused",
                "add STRICT_TRANS_TABLES to the global sql_mode, or have each writer set it for its session",
            );
        }
        if !self.flushes_commits {
            add(
                "innodb_flush_log_at_trx_commit is not 1: a crash can undo a commit whose events were published",
                "set innodb_flush_log_at_trx_commit = 1",
            );
        }
        if !self.doublewrite {
            add(
                "innodb_doublewrite is off: a loss of power can leave half a page",
                "turn it on, unless the file system writes whole pages",
            );
        }
        cautions
    }
}

/// Refuses a server that is too old, and sessions in which units of work or claims would not do
/// what they promise.
pub(super) async fn check_session(store: &MySqlStore) -> Result<()> {
    let session = Session::ask(store).await?;
    let refuse = |what: String| Err(Error::new(ErrorKind::Schema, what));
    if session.server.is_too_old() {
        return refuse(format!(
            "{} is too old: MySQL 8.0.16 or MariaDB 10.6 at least is needed",
            session.server.shown()
        ));
    }
    if !session.autocommit {
        return refuse(
            "autocommit is off in the sessions of this pool, so that no statement outside of a transaction would be \
             committed: set autocommit = 1"
                .into(),
        );
    }
    if session.logs_statements {
        return refuse(
            "binlog_format is STATEMENT, with which InnoDB refuses transactions that read committed data: set it to \
             ROW or MIXED"
                .into(),
        );
    }
    for caution in session.cautions() {
        tracing::warn!(advice = caution.advice, "{}", caution.found);
    }
    Ok(())
}

/// Refuses a server on which nothing could be settled: it can only be read, or this user may only
/// read.
pub(super) async fn check_writable(store: &MySqlStore) -> Result<()> {
    let nothing = format!("update {} set status = status where false", store.table());
    store
        .pool
        .execute(AssertSqlSafe(nothing))
        .await
        .map(drop)
        .map_err(|e| error("writing to the outbox", e))
}

pub(super) async fn inspect(store: &MySqlStore) -> Result<Inspection> {
    let looking = |e| error("looking at the database", e);
    let session = Session::ask(store).await?;
    let clock: NaiveDateTime = sqlx::query_scalar("select utc_timestamp(6)")
        .fetch_one(&store.pool)
        .await
        .map_err(looking)?;
    let forbidden = forbidden(store).await?;
    // Who may not see the relays is told so.
    let may_see = ["leases", "relays"].iter().all(|helper| {
        let right = format!("select on {}_{helper}", store.tables.table());
        !forbidden.contains(&right)
    });
    Ok(Inspection {
        server: Some(session.server.shown()),
        clock: Some(time(clock)),
        missing: missing(store).await?,
        forbidden,
        hidden: Vec::new(),
        oldest_transaction_seconds: oldest_transaction(store).await?,
        relays: if may_see {
            relays(store).await?
        } else {
            Vec::new()
        },
        cautions: session.cautions(),
    })
}

/// The indexes of the tables, but for those of their keys.
const INDEXES: [&str; 8] = [
    "ready",
    "waiting",
    "holding",
    "unsent",
    "dead",
    "sent",
    "inbox_received",
    "commands_received",
];

async fn missing(store: &MySqlStore) -> Result<Vec<String>> {
    let there: Vec<String> = sqlx::query_scalar(
        "select distinct cast(index_name as char) from information_schema.statistics
         where table_schema = coalesce(?, database()) and table_name in (?, ?, ?)",
    )
    .bind(store.database())
    .bind(store.tables.table())
    .bind(format!("{}_inbox", store.tables.table()))
    .bind(format!("{}_commands", store.tables.table()))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("looking at the indexes", e))?;
    let names = INDEXES.map(|name| format!("{}_{name}", store.tables.table()));
    Ok(names
        .into_iter()
        .filter(|name| !there.contains(name))
        .collect())
}

/// Tries statements that change nothing: what the grants of roles and patterns come to, the server
/// knows best.
async fn forbidden(store: &MySqlStore) -> Result<Vec<String>> {
    let mut forbidden = Vec::new();
    let all = ["select", "insert", "update", "delete"];
    for (name, columns, verbs) in [
        ("", &["type"][..], &all[..]),
        ("leases", &["scope", "part"], &all),
        ("relays", &["id", "scope", "until"], &all),
        ("inbox", &["consumer", "message_id"], &all),
        ("commands", &["command_key", "fingerprint"], &all),
        (
            "pauses",
            &["kind", "name", "paused_by"],
            &["select", "insert", "delete"],
        ),
        (
            "audit",
            &["done_by", "verb", "what", "changed"],
            &["select", "insert"],
        ),
        ("migrations", &["version"], &["select"]),
    ] {
        let (column, values) = (columns[0], vec!["null"; columns.len()].join(", "));
        let (table, shown) = match name {
            "" => (store.table(), store.tables.table().to_owned()),
            name => (
                store.helper(name),
                format!("{}_{name}", store.tables.table()),
            ),
        };
        let trials = [
            (
                "select",
                format!("select {column} from {table} where false"),
            ),
            (
                "insert",
                format!(
                    "insert into {table} ({}) select {values} from dual where false",
                    columns.join(", ")
                ),
            ),
            (
                "update",
                format!("update {table} set {column} = {column} where false"),
            ),
            ("delete", format!("delete from {table} where false")),
        ];
        for (verb, trial) in trials.into_iter().filter(|(verb, _)| verbs.contains(verb)) {
            match store.pool.execute(AssertSqlSafe(trial)).await {
                Ok(_) => {}
                Err(e) if number(&e).is_some_and(|number| DENIED.contains(&number)) => {
                    forbidden.push(format!("{verb} on {shown}"));
                }
                Err(e) => return Err(error("looking at the rights", e)),
            }
        }
    }
    Ok(forbidden)
}

/// None without one, and without the right to look (PROCESS). The server tells its local time, so the session
/// takes that as its own and ends with this question.
async fn oldest_transaction(store: &MySqlStore) -> Result<Option<f64>> {
    let acquired = store.pool.acquire().await;
    let mut connection = acquired.map_err(|e| error("looking for open transactions", e))?;
    connection.close_on_drop();
    let rows = sqlx::raw_sql(
        "set time_zone = 'SYSTEM';
         select timestampdiff(microsecond, min(trx_started), now(6)) as age from information_schema.innodb_trx",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap_or_default();
    let age = rows
        .first()
        .and_then(|row| row.try_get::<Option<i64>, _>("age").ok()?);
    Ok(age.map(|micros| micros.max(0) as f64 / 1e6))
}

async fn relays(store: &MySqlStore) -> Result<Vec<LiveRelay>> {
    let (leases, relays) = (store.helper("leases"), store.helper("relays"));
    let live = sqlx::query(AssertSqlSafe(format!(
        "select r.id, r.scope, r.until,
                (select count(*) from {leases} l where l.owner = r.id and l.until > utc_timestamp(6)) as parts
         from {relays} r where r.until > utc_timestamp(6) order by r.scope, r.id"
    )))
    .fetch_all(&store.pool)
    .await
    .map_err(|e| error("looking for relays", e))?;
    live.iter()
        .map(|row| {
            Ok(LiveRelay {
                id: uuid(get(row, "id")?)?,
                tenants: get(row, "scope")?,
                partitions: u32::try_from(get::<i64>(row, "parts")?).unwrap_or(0),
                until: time(get(row, "until")?),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_told_apart_and_old_ones_known() {
        for (said, shown, old) in [
            ("10.11.19-MariaDB-0+deb12u1", "MariaDB 10.11.19", false),
            ("5.5.5-10.5.9-MariaDB-log", "MariaDB 10.5.9", true),
            ("11.4.2-MariaDB", "MariaDB 11.4.2", false),
            ("8.0.36-0ubuntu0.22.04.1", "MySQL 8.0.36", false),
            ("8.0.15", "MySQL 8.0.15", true),
            ("8.4.0", "MySQL 8.4.0", false),
            ("5.7.44-log", "MySQL 5.7.44", true),
        ] {
            let server = Server::of(said);
            assert_eq!(server.shown(), shown);
            assert_eq!(server.is_too_old(), old, "{said}");
        }
    }
}
