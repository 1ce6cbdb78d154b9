//! The judge: plain SQL on one side, a raw consumer on the other, none of our code between.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_nats::jetstream::{self, consumer};
use futures_util::StreamExt;
use sqlx::{Connection, MySqlConnection, PgConnection, SqliteConnection};

use super::Database;

/// What the ledger and the consumer say together.
pub(super) struct Verdict {
    pub(super) committed: usize,
    pub(super) lost: usize,
    pub(super) phantom: usize,
    pub(super) inverted: usize,
    pub(super) duplicates: usize,
    pub(super) dead: usize,
}

impl Verdict {
    pub(super) fn is_sound(&self) -> bool {
        (self.lost, self.phantom, self.inverted, self.dead) == (0, 0, 0, 0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events committed: {} lost, {} phantom, {} inverted, {} duplicated, {} dead",
            self.committed, self.lost, self.phantom, self.inverted, self.duplicates, self.dead
        )
    }
}

/// Runs `$work` with a connection of the kind of database, and again while the database is away.
macro_rules! on {
    ($kind:expr, $url:expr, |$connection:ident| $work:expr) => {{
        let mut tries = 0;
        loop {
            let result: Result<_, sqlx::Error> = async {
                match $kind {
                    Database::Mysql => {
                        let mut $connection = MySqlConnection::connect($url).await?;
                        $work.await
                    }
                    Database::Postgres => {
                        let mut $connection = PgConnection::connect($url).await?;
                        $work.await
                    }
                    Database::Sqlite => {
                        let mut $connection = SqliteConnection::connect($url).await?;
                        $work.await
                    }
                }
            }
            .await;
            match result {
                Ok(value) => break value,
                Err(error) if tries > 100 => panic!("the checker's own connection: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
            tries += 1;
        }
    }};
}

pub(super) async fn prepare(kind: Database, url: &str) {
    for statement in [
        "create table chaos_keys (thing varchar(36) primary key, n bigint not null)",
        "create table chaos_ledger (id varchar(36) primary key, thing varchar(36) not null, n bigint not null)",
    ] {
        on!(kind, url, |connection| async {
            sqlx::query(statement)
                .execute(&mut connection)
                .await
                .map(drop)
        });
    }
}

/// How many events are still to be sent.
pub(super) async fn unsent(kind: Database, url: &str) -> i64 {
    let statement = "select count(*) from outbox_events where status = 'NEW'";
    on!(kind, url, |connection| sqlx::query_scalar(statement)
        .fetch_one(&mut connection))
}

pub(super) async fn judge(kind: Database, url: &str, nats: &str) -> Verdict {
    let ledger: Vec<(String, String, i64)> = on!(kind, url, |connection| sqlx::query_as(
        "select id, thing, n from chaos_ledger"
    )
    .fetch_all(&mut connection));
    let dead: i64 = on!(kind, url, |connection| sqlx::query_scalar(
        "select count(*) from outbox_events where status = 'ERR'"
    )
    .fetch_one(&mut connection));
    let committed: HashMap<&str, (&str, i64)> = ledger
        .iter()
        .map(|(id, key, n)| (id.as_str(), (key.as_str(), *n)))
        .collect();

    let arrived = consume(nats).await;
    let mut seen = HashSet::new();
    let mut newest: HashMap<&str, i64> = HashMap::new();
    let (mut phantom, mut inverted, mut duplicates) = (0, 0, 0);
    for (id, key, n) in &arrived {
        match committed.get(id.as_str()) {
            None => phantom += 1,
            Some(written) => {
                assert_eq!(*written, (key.as_str(), *n), "event {id} arrived otherwise");
            }
        }
        if !seen.insert(id.as_str()) {
            duplicates += 1;
            continue;
        }
        let before = newest.insert(key, *n).unwrap_or(0);
        inverted += usize::from(before > *n);
    }
    Verdict {
        committed: committed.len(),
        lost: committed.keys().filter(|id| !seen.contains(**id)).count(),
        phantom,
        inverted,
        duplicates,
        dead: usize::try_from(dead).unwrap(),
    }
}

/// Everything in the stream, in its order: id, key and number.
async fn consume(nats: &str) -> Vec<(String, String, i64)> {
    let context = jetstream::new(async_nats::connect(nats).await.unwrap());
    let mut stream = context.get_stream("CHAOS").await.unwrap();
    let total = stream.info().await.unwrap().state.messages;
    let consumer = stream
        .create_consumer(consumer::pull::OrderedConfig::default())
        .await
        .unwrap();
    let mut messages = consumer
        .messages()
        .await
        .unwrap()
        .take(usize::try_from(total).unwrap());
    let mut arrived = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message.unwrap();
        let headers = message.headers.as_ref().unwrap();
        let header = |name: &str| headers.get(name).unwrap().as_str().to_owned();
        assert_eq!(header("Nats-Msg-Id"), header("ce-id"));
        let n = std::str::from_utf8(&message.payload)
            .unwrap()
            .parse()
            .unwrap();
        arrived.push((header("ce-id"), header("ce-subject"), n));
    }
    arrived
}
