//! A writing service: business data, a ledger by plain SQL, and an event, in one transaction; the
//! event is published right after the commit.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bento_outbox::publishers::NatsPublisher;
use bento_outbox::stores::{MySqlStore, PostgresStore, SqliteStore, Tables};
use bento_outbox::{Aggregate, CloudEvents, Event, ImmediateSettings, Outbox, Payload, Topic};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::IN_FLIGHT;

/// Few enough that units of work meet on them.
const KEYS: u32 = 20;

/// Writes until standard input ends.
pub(super) fn serve() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        stopping.store(true, Ordering::Relaxed);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let env = |name| std::env::var(name).unwrap();
        let url = env("CHAOS_DATABASE_URL");
        let random = StdRng::seed_from_u64(env("CHAOS_SEED").parse().unwrap());
        let bus = env("CHAOS_BUS_URL").parse().unwrap();
        let topic: Topic = "{type}".parse().unwrap();
        let bus = Arc::new(NatsPublisher::new(&bus, topic, CloudEvents::default()).unwrap());
        let immediate = ImmediateSettings {
            lease_term: Duration::from_secs(env("CHAOS_LEASE_SECONDS").parse().unwrap()),
            slots: u32::try_from(IN_FLIGHT).unwrap(),
            multiplier: Duration::from_millis(50),
            ..ImmediateSettings::default()
        };
        if url.starts_with("mysql:") {
            let store = MySqlStore::open(&url, Tables::default()).await.unwrap();
            let outbox = Outbox::new(store).publish_with_settings(bus, immediate);
            write!(outbox, random, stop, |connection, thing| {
                let count = "insert into chaos_keys (thing, n) values (?, 1) on duplicate key update n = n + 1";
                sqlx::query(count).bind(thing).execute(&mut *connection).await?;
                let n = "select n from chaos_keys where thing = ?";
                sqlx::query_scalar(n).bind(thing).fetch_one(connection).await?
            }, "insert into chaos_ledger (id, thing, n) values (?, ?, ?)");
        } else if url.starts_with("sqlite:") {
            let store = SqliteStore::open(&url, Tables::default()).await.unwrap();
            let outbox = Outbox::new(store).publish_with_settings(bus, immediate);
            write!(outbox, random, stop, |connection, thing| {
                sqlx::query_scalar(COUNT).bind(thing).fetch_one(connection).await?
            }, LEDGER);
        } else {
            let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
            let outbox = Outbox::new(store).publish_with_settings(bus, immediate);
            write!(outbox, random, stop, |connection, thing| {
                sqlx::query_scalar(COUNT).bind(thing).fetch_one(connection).await?
            }, LEDGER);
        }
    });
}

const COUNT: &str = "insert into chaos_keys (thing, n) values ($1, 1)
     on conflict (thing) do update set n = chaos_keys.n + 1 returning n";
const LEDGER: &str = "insert into chaos_ledger (id, thing, n) values ($1, $2, $3)";

/// The same on each database, but for how a key is counted. A key's row is locked before its event gets its number, so
/// units of work of one key follow each other.
macro_rules! write {
    ($outbox:expr, $random:expr, $stop:expr, |$connection:ident, $thing:ident| $count:block, $ledger:expr) => {
        let (outbox, mut random) = ($outbox, $random);
        while !$stop.load(Ordering::Relaxed) {
            let key = format!("k{}", random.random_range(0..KEYS));
            let undone = random.random_bool(0.1);
            let written = outbox
                .run(async |uow| {
                    let n: i64 = {
                        let ($connection, $thing) = (uow.tx(), &key);
                        $count
                    };
                    let event = Event {
                        aggregate: Aggregate {
                            kind: Some("thing".into()),
                            id: Some(key.clone()),
                        },
                        ..Event::new("chaos.happened", Payload::json(n.to_string())?)
                    };
                    sqlx::query($ledger)
                        .bind(event.id.to_string())
                        .bind(&key)
                        .bind(n)
                        .execute(uow.tx())
                        .await?;
                    uow.raise(event)?;
                    match undone {
                        true => Err(bento_outbox::Error::new(
                            bento_outbox::ErrorKind::RolledBack,
                            "undone",
                        )),
                        false => Ok(()),
                    }
                })
                .await;
            let pause = if written.is_err() && !undone {
                50
            } else {
                random.random_range(1..6)
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(5), outbox.flushed()).await;
    };
}
use write;
