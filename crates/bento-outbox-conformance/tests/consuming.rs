//! Two processes of the example `consumer` compete for the messages of one bus while they are ended by
//! `kill -9`, so that the bus delivers again: each order is billed once, by a plain SQL count. What
//! cannot be read is kept in a table, and nothing else waits for it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bento_outbox::publishers::{KafkaPublisher, NatsPublisher, RabbitMqPublisher, RedisPublisher};
use bento_outbox::stores::MemoryStore;
use bento_outbox::{
    Aggregate, CloudEvents, Event, Outbox, Payload, Projector, ProjectorSettings, Publisher, Topic,
    raise,
};
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::{
    Database, KafkaServer, NatsServer, RabbitMqServer, RedisServer, shared_postgres,
};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;
use tokio::time::sleep;
use url::Url;

use crate::{bus_kafka, bus_redis};

/// How many orders are placed, and how many at once, how often.
const ORDERS: u32 = 900;
const AT_ONCE: u32 = 30;
const EVERY: Duration = Duration::from_millis(150);

/// What no consumer can read, by version and body: of a version to come, without a field, with one too
/// many, and no JSON.
const UNREADABLE: [(u32, &str); 4] = [
    (2, r#"{"order_id":"x","total_cents":1}"#),
    (1, r#"{"order_id":"x"}"#),
    (1, r#"{"order_id":"x","total_cents":1,"tip":1}"#),
    (1, "an order"),
];

/// A message that is no event at all.
const FOREIGN: &str = "not of the outbox";

/// How often a consumer is killed.
const KILLS: usize = 6;

/// So long an acknowledgement is on its way: whoever is killed meanwhile has committed in vain, as far as the bus knows.
const ON_THE_WAY: Duration = Duration::from_millis(40);

/// So long everything may take: messages of the dead come again after some seconds.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_of_one_jetstream_are_killed_and_bill_each_order_once() {
    let server = NatsServer::start().await;
    let context = jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let stream = jetstream::stream::Config {
        name: "ORDERS".into(),
        subjects: vec!["order.*".into()],
        ..Default::default()
    };
    context.create_stream(stream).await.unwrap();
    let stored = context.publish("order.placed", FOREIGN.into()).await;
    stored.unwrap().await.unwrap();
    let bus = NatsPublisher::new(
        &url(&server.url()),
        Topic::default(),
        CloudEvents::default(),
    );
    let ways = ways(&server.url()).await;
    compete(Arc::new(bus.unwrap()), ways, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_of_one_kafka_topic_are_killed_and_bill_each_order_once() {
    let (server, proxy) = KafkaServer::start_behind_proxy().await;
    bus_kafka::topic(&server.url(), "order.placed", 4, &[]).await;
    let through = proxy.url_of(&server.url());
    let bus = KafkaPublisher::new(&server.url(), Topic::default(), CloudEvents::default());
    // The broker sends all its clients to the one proxy.
    let ways = [(proxy.clone(), through.clone()), (proxy, through)];
    compete(Arc::new(bus.unwrap()), ways, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_of_one_rabbitmq_queue_are_killed_and_bill_each_order_once() {
    let server = RabbitMqServer::start_with("", "").await;
    let bus = RabbitMqPublisher::new(
        &url(&server.url()),
        Topic::default(),
        CloudEvents::default(),
    );
    let ways = ways(&server.url()).await;
    compete(Arc::new(bus.unwrap()), ways, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_of_one_redis_stream_are_killed_and_bill_each_order_once() {
    let server = RedisServer::start().await;
    bus_redis::ask(&server, &["XADD", "order.placed", "*", "data", FOREIGN]);
    let bus = RedisPublisher::new(
        &url(&server.url()),
        Topic::default(),
        CloudEvents::default(),
    );
    let ways = ways(&server.url()).await;
    compete(Arc::new(bus.unwrap()), ways, true).await;
}

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

/// A way to the bus for each consumer.
async fn ways(server: &str) -> [(Proxy, String); 2] {
    let way = async || {
        let proxy = Proxy::before(server).await;
        let url = proxy.url_of(server);
        (proxy, url)
    };
    [way().await, way().await]
}

/// Kills the one and the other while orders are placed, and counts the bills. Before them there may be
/// a message that is no event.
async fn compete(bus: Arc<dyn Publisher>, ways: [(Proxy, String); 2], has_foreign: bool) {
    let billing = Billing::new().await;
    let first = billing.start(0, &ways[0].1);
    billing
        .until("its table is there", async || {
            let there = sqlx::query_scalar("select to_regclass('refused') is not null");
            there.fetch_one(&billing.pool).await.unwrap()
        })
        .await;
    let mut consumers = [first, billing.start(1, &ways[1].1)];
    for (proxy, _) in &ways {
        proxy.delay(Way::ToServer, ON_THE_WAY);
    }
    // Each has made what it needs on the bus.
    sleep(Duration::from_secs(1)).await;
    let placing = tokio::spawn(place_orders(bus));
    for kill in 0..KILLS {
        let before = billing.bills().await.0;
        billing
            .until("bills are written", async || {
                billing.bills().await.0 >= before + 40
            })
            .await;
        let slot = kill % 2;
        consumers[slot].kill();
        // What it had sent on its way is lost with it.
        ways[slot].0.cut();
        consumers[slot] = billing.start(slot, &ways[slot].1);
    }
    placing.await.unwrap();
    let all = i64::from(ORDERS);
    billing
        .until("every order is billed", async || {
            billing.bills().await.1 == all
        })
        .await;
    billing
        .until("the bus delivers again", async || {
            billing.said("again ") > 0
        })
        .await;
    for consumer in &mut consumers {
        assert!(
            consumer.lives(),
            "a consumer ended by itself: {}",
            billing.logs()
        );
    }
    // Nothing is on its way any more when the bus has been silent for longer than it leaves messages with a process.
    let mut silent = Instant::now();
    let mut so_far = billing.said("");
    billing
        .until("the bus is silent", async || {
            let said = billing.said("");
            if said != so_far {
                (so_far, silent) = (said, Instant::now());
            }
            silent.elapsed() > Duration::from_secs(8)
        })
        .await;

    assert_eq!(billing.bills().await, (all, all), "{}", billing.logs());
    let foreign = billing.refused("message_id is null").await;
    assert_eq!(foreign, vec![FOREIGN; usize::from(has_foreign)]);
    let unreadable = "reason like 'event % of type order.placed version _: %'";
    let mut unreadable = billing.refused(unreadable).await;
    unreadable.sort_unstable();
    let mut expected = UNREADABLE.map(|(_, body)| body);
    expected.sort_unstable();
    assert_eq!(unreadable, expected, "{}", billing.logs());
    for (what, sql) in [
        (
            "messages",
            "select count(*) from outbox_inbox where consumer = 'bills' and tenant_id = 'shop'",
        ),
        ("cents", "select sum(total_cents)::bigint from bills"),
        (
            "events",
            "select count(*) from outbox where type = 'bill.written' and tenant_id = 'shop'",
        ),
        (
            "causes",
            "select count(distinct headers ->> 'causation_id') from outbox",
        ),
    ] {
        let number: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&billing.pool)
            .await
            .unwrap();
        let expected = if what == "cents" {
            (1..=all).sum()
        } else {
            all
        };
        assert_eq!(number, expected, "{what}");
    }
    let (again, share) = (
        billing.said("again "),
        [0, 1].map(|slot| billing.said_by(slot, "billed ")),
    );
    eprintln!(
        "{KILLS} kills: {again} messages came again; the consumers billed {share:?} of {ORDERS}"
    );
    assert!(
        share.iter().all(|billed| *billed > 0),
        "{share:?}: they do not compete"
    );
}

/// Places orders as a service does, and relays them to the bus.
async fn place_orders(bus: Arc<dyn Publisher>) {
    let store = MemoryStore::default();
    let outbox = Outbox::new(store.clone()).tenant("shop");
    let projector = Projector::new(Arc::new(store), bus, ProjectorSettings::default());
    let unreadable = outbox.run(async |_| {
        for (version, body) in UNREADABLE {
            raise(Event {
                schema_version: version,
                ..Event::new("order.placed", Payload::Data(body.into()))
            })?;
        }
        Ok::<_, bento_outbox::Error>(())
    });
    unreadable.await.unwrap();
    let all = ORDERS as usize + UNREADABLE.len();
    let mut sent = 0;
    for first in (1..=ORDERS).step_by(AT_ONCE as usize) {
        let placed = outbox.run(async |_| {
            for n in first..first + AT_ONCE {
                let body = format!("{{\"order_id\":\"{n}\",\"total_cents\":{n}}}");
                raise(Event {
                    aggregate: Aggregate::new("order", n.to_string()),
                    ..Event::new("order.placed", Payload::json(body)?)
                })?;
            }
            Ok::<_, bento_outbox::Error>(())
        });
        placed.await.unwrap();
        sent += projector.run_once().await.unwrap().sent;
        sleep(EVERY).await;
    }
    let end = Instant::now() + PATIENCE;
    while sent < all {
        assert!(Instant::now() < end, "{sent} events are on the bus");
        sent += projector.run_once().await.unwrap().sent;
        sleep(EVERY).await;
    }
}

/// The consumers' database, and what they say.
struct Billing {
    database: Database,
    pool: PgPool,
    folder: TempDir,
}

impl Billing {
    async fn new() -> Self {
        let database = shared_postgres().database().await;
        let pool = PgPool::connect(database.url()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self {
            database,
            pool,
            folder,
        }
    }

    /// Starts a consumer, whose predecessors' lines stay.
    fn start(&self, slot: usize, bus: &str) -> Consumer {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(slot))
            .unwrap();
        let child = Command::new(example())
            .args([self.database.url(), bus])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Consumer { child }
    }

    fn log(&self, slot: usize) -> PathBuf {
        self.folder.path().join(format!("consumer-{slot}"))
    }

    /// How many bills there are, and of how many orders.
    async fn bills(&self) -> (i64, i64) {
        let counts = sqlx::query_as("select count(*), count(distinct order_id) from bills");
        counts.fetch_one(&self.pool).await.unwrap()
    }

    /// The bodies of messages that could not be read. Each may have been kept more than once.
    async fn refused(&self, which: &str) -> Vec<String> {
        let bodies = format!(
            "select distinct on (message_id) convert_from(body, 'utf8') from refused where {which}"
        );
        let bodies = sqlx::query_scalar(AssertSqlSafe(bodies));
        bodies.fetch_all(&self.pool).await.unwrap()
    }

    /// How many lines of a consumer begin so.
    fn said_by(&self, slot: usize, word: &str) -> usize {
        let log = fs::read_to_string(self.log(slot)).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(word)).count()
    }

    fn said(&self, word: &str) -> usize {
        self.said_by(0, word) + self.said_by(1, word)
    }

    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(
                Instant::now() < end,
                "it is not so that {what}: {}",
                self.logs()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last lines of each.
    fn logs(&self) -> String {
        let tail = |slot| {
            let log = fs::read_to_string(self.log(slot)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(6).collect();
            format!("\n--- {slot}, last line first\n{}", lines.join("\n"))
        };
        [0, 1].map(tail).concat()
    }
}

/// A process of the example. Killed when dropped.
struct Consumer {
    child: Child,
}

impl Consumer {
    /// `kill -9`, and back when it is gone.
    fn kill(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }

    fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if self.lives() {
            self.kill();
        }
    }
}

/// The example that the same build made beside this test.
fn example() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folder = this.parent().and_then(Path::parent).unwrap();
    let example = folder.join("examples/consumer");
    assert!(
        example.exists(),
        "{} is missing: cargo build --workspace --all-features --examples",
        example.display()
    );
    example
}
