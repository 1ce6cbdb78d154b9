//! Several buses as one: routes, the order over them, and what becomes of an event that is too
//! large or died.

use std::sync::Arc;
use std::time::Duration;

use bento_outbox::publishers::{MemoryPublisher, NatsPublisher};
use bento_outbox::stores::{MemoryStore, PostgresStore, SqliteStore, Tables};
use bento_outbox::{
    Aggregate, CloudEvents, DeadLetter, DeadLetterObserver, DeadLetterTopic, Destination,
    ErrorKind, Event, ImmediateSettings, MessageBus, Outbox, OutboxRecord, Outcome, Payload,
    Projector, ProjectorSettings, Publisher, RetrySettings, Route, Selector, Status, Store, Tenant,
    Timestamp, Topic, TopicRule, TransactionalStore, raise,
};
use bento_outbox_conformance::servers::{NatsServer, shared_nats, shared_postgres};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use url::Url;
use uuid::Uuid;

use super::bus_nats::{headers, messages, stream};
use super::flights::program;

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(180);

/// Two servers: one that is always there, and one that goes and comes.
struct Two {
    here: NatsServer,
    gone: NatsServer,
}

impl Two {
    async fn start() -> Self {
        let (here, gone) = tokio::join!(NatsServer::start(), NatsServer::start());
        stream(&here, "HERE", "here.>", |_| {}).await;
        stream(&gone, "GONE", "gone.>", |_| {}).await;
        Self { here, gone }
    }

    /// Types that begin with `gone.` go to the server that goes, all others to the other one.
    fn bus(&self) -> Arc<MessageBus> {
        let route = Route {
            events: of_type("gone.*"),
            destination: destination("gone", nats(&self.gone.url(), Topic::default())),
        };
        let here = destination("here", nats(&self.here.url(), Topic::default()));
        Arc::new(MessageBus::new(here, vec![route], &retry()))
    }
}

fn of_type(pattern: &str) -> Selector {
    Selector {
        event_type: pattern.parse().unwrap(),
        ..Selector::default()
    }
}

fn destination(name: &str, publisher: impl Publisher) -> Destination {
    Destination {
        name: name.into(),
        publisher: Arc::new(publisher),
    }
}

fn nats(url: &str, topic: Topic) -> NatsPublisher {
    NatsPublisher::new(&Url::parse(url).unwrap(), topic, CloudEvents::default()).unwrap()
}

fn retry() -> RetrySettings {
    RetrySettings {
        multiplier: Duration::from_millis(100),
        max_delay: Duration::from_secs(1),
        ..RetrySettings::default()
    }
}

fn settings() -> ProjectorSettings {
    ProjectorSettings {
        retry: retry(),
        poll_interval_idle: Duration::from_millis(50),
        poll_interval_busy: Duration::from_millis(50),
        ..ProjectorSettings::default()
    }
}

fn event(event_type: &str, key: &str) -> Event {
    Event {
        aggregate: Aggregate::new("order", key),
        ..Event::new(event_type, Payload::json("1").unwrap())
    }
}

fn record(event_type: &str) -> OutboxRecord {
    let event = event(event_type, "7");
    OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} does not come");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The ids of the events in a stream, each with the time at which the server stored it, in order.
async fn stored(server: &NatsServer, stream: &str) -> Vec<(i128, Uuid)> {
    let messages = messages(server, stream).await;
    let of = |message| {
        let id = headers(message)["ce-id"].parse().unwrap();
        (message.time.unix_timestamp_nanos(), id)
    };
    messages.iter().map(of).collect()
}

/// A relay in a task, and what ends it.
fn relay(store: impl Store, bus: Arc<MessageBus>) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel();
    let projector = Projector::new(Arc::new(store), bus, settings());
    tokio::spawn(async move {
        let _ = projector.run(async { drop(stopped.await) }).await;
    });
    stop
}

/// What is due on one server waits for nothing on the other, keys that span both keep their order,
/// and a server that is away costs nothing but time.
async fn a_bus_that_is_away_delays_its_own_events_and_those_behind_them<S: TransactionalStore>(
    store: S,
    at_once: bool,
) {
    let two = Two::start().await;
    let bus = two.bus();
    let mut outbox = Outbox::new(store.clone());
    if at_once {
        outbox = outbox.publish_with_settings(bus.clone(), ImmediateSettings::default());
    }
    let send = async |event_type: &str, key: &str| {
        let event = event(event_type, key);
        let id = event.id;
        outbox.run(async |_| raise(event)).await.unwrap();
        id
    };
    two.gone.kill();
    let stop = relay(store.clone(), bus);
    let mut mixed = Vec::new();
    for n in 0..6 {
        let event_type = if n % 2 == 0 {
            "gone.mixed"
        } else {
            "here.mixed"
        };
        mixed.push(send(event_type, "mixed").await);
    }
    let mut lone = vec![send("gone.lone", "lone").await];
    for n in 0..20 {
        send("here.other", &format!("other-{}", n % 3)).await;
    }
    until("what is for the server that is there", async || {
        stored(&two.here, "HERE").await.len() == 20
    })
    .await;
    // Several rounds of pauses and probes, and each key goes no further.
    sleep(Duration::from_secs(3)).await;
    lone.push(send("gone.lone", "lone").await);
    let here = stored(&two.here, "HERE").await;
    assert!(here.len() == 20 && here.iter().all(|(_, id)| !mixed.contains(id)));
    let waiting = async || store.find(&mixed[..1]).await.unwrap().remove(0).delivery;
    until("the word of the one that is away", async || {
        let reason = waiting().await.error_message.unwrap_or_default();
        reason.starts_with("gone takes no events: ")
    })
    .await;
    let waiting = waiting().await;
    assert_eq!((waiting.status, waiting.retry_cnt), (Status::New, 0));

    two.gone.restart().await;
    let all: Vec<Uuid> = mixed.iter().chain(&lone).copied().collect();
    until("what waited for the server that was away", async || {
        let records = store.find(&all).await.unwrap();
        records
            .iter()
            .all(|record| record.delivery.status == Status::Sent)
    })
    .await;
    let _ = stop.send(());
    for record in store.find(&all).await.unwrap() {
        assert_eq!(record.delivery.retry_cnt, 0, "no event lost an attempt");
    }
    let (here, gone) = (
        stored(&two.here, "HERE").await,
        stored(&two.gone, "GONE").await,
    );
    assert_eq!((here.len(), gone.len()), (23, 5), "each once");
    let mut arrived: Vec<_> = here.into_iter().chain(gone).collect();
    arrived.sort_unstable();
    let of_key = |key: &[Uuid]| -> Vec<Uuid> {
        let ids = arrived.iter().map(|(_, id)| *id);
        ids.filter(|id| key.contains(id)).collect()
    };
    assert_eq!(of_key(&mixed), mixed, "in order, over both servers");
    assert_eq!(of_key(&lone), lone);
}

async fn sqlite() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/outbox.db", folder.path().display());
    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    (folder, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_is_away_from_a_relay_on_sqlite() {
    let (_folder, store) = sqlite().await;
    a_bus_that_is_away_delays_its_own_events_and_those_behind_them(store, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_is_away_from_a_service_that_publishes_at_once() {
    let (_folder, store) = sqlite().await;
    a_bus_that_is_away_delays_its_own_events_and_those_behind_them(store, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_servers_is_away_from_a_relay_on_postgres() {
    let database = shared_postgres().database().await;
    let store = PostgresStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    a_bus_that_is_away_delays_its_own_events_and_those_behind_them(store, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_all_are_away_the_relay_stops_and_each_is_found_again() {
    let two = Two::start().await;
    let store = MemoryStore::default();
    let outbox = Outbox::new(store.clone());
    let bus = two.bus();
    two.here.kill();
    two.gone.kill();
    for n in 0..10 {
        let event_type = if n < 5 { "here.a" } else { "gone.a" };
        outbox
            .run(async |_| raise(event(event_type, &n.to_string())))
            .await
            .unwrap();
    }
    let projector = Projector::new(Arc::new(store.clone()), bus.clone(), settings());
    let mut stopped = false;
    for _ in 0..20 {
        let batch = projector.run_once().await.unwrap();
        assert_eq!((batch.sent, batch.dead), (0, 0));
        stopped |= batch.stopped_by.is_some();
        sleep(Duration::from_millis(100)).await;
    }
    assert!(stopped, "with no bus at all there is nothing to go on with");
    projector.release().await.unwrap();
    // The one whose events come second is found although the first stays away.
    two.gone.restart().await;
    let stop = relay(store.clone(), bus);
    until("what is for the second", async || {
        stored(&two.gone, "GONE").await.len() == 5
    })
    .await;
    two.here.restart().await;
    until("what is for the first", async || {
        stored(&two.here, "HERE").await.len() == 5
    })
    .await;
    let _ = stop.send(());
}

/// A server with a limit of its own, with a stream for `large.>` and a bus that has said so.
async fn small() -> (NatsServer, NatsPublisher) {
    let server = NatsServer::start_with("jetstream: enabled\nmax_payload: 65536").await;
    stream(&server, "LARGE", "large.>", |_| {}).await;
    let bus = nats(&server.url(), Topic::default());
    (server, bus)
}

fn large(event_type: &str) -> Event {
    Event {
        payload: Payload::Data(vec![b'x'; 70_000].into()),
        ..event(event_type, "7")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_for_its_bus_is_refused_before_the_commit() {
    let (_server, bus) = small().await;
    assert_eq!(
        bus.payload_bytes_max(&large("large.a")),
        None,
        "nobody said so yet"
    );
    bus.check().await.unwrap();
    assert_eq!(bus.payload_bytes_max(&large("large.a")), Some(65_536));
    let memory = MemoryPublisher::default();
    let route = Route {
        events: of_type("memory.*"),
        destination: destination("memory", memory.clone()),
    };
    let bus = MessageBus::new(destination("nats", bus), vec![route], &retry());
    let store = MemoryStore::default();
    let outbox = Outbox::new(store.clone()).publish_with(bus);
    let refused = outbox
        .run(async |_| {
            raise(event("large.fits", "1"))?;
            raise(large("large.a"))
        })
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidEvent);
    for said in ["large.a", "70000", "65536"] {
        assert!(refused.to_string().contains(said), "{refused}");
    }
    let mut transaction = store.begin(None).await.unwrap();
    let connection = MemoryStore::connection(&mut transaction);
    let refused = outbox
        .append(connection, [large("large.b")])
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("large.b"), "{refused}");
    store.rollback(transaction).await.unwrap();
    assert!(
        store.status().await.unwrap().is_empty(),
        "nothing was committed"
    );
    // What goes to another bus goes by that one's limit.
    outbox
        .run(async |_| raise(large("memory.a")))
        .await
        .unwrap();
    outbox.flushed().await;
    assert_eq!(memory.published().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_a_dead_letter_does_not_keep_the_event_itself_from_arriving() {
    let server = shared_nats();
    stream(server, "LETTERS", "letters.>", |_| {}).await;
    let topic = Topic {
        dead_letters: Some("letters.dead.{tenant_id}".parse().unwrap()),
        ..Topic::default()
    };
    let bus = Arc::new(nats(&server.url(), topic.clone()));
    let copies = DeadLetterTopic::new(bus.clone(), topic, retry()).unwrap();
    let record = record("letters.placed");
    let letter = DeadLetter::of(record.clone(), true, "no such customer");
    copies.died(std::slice::from_ref(&letter));
    copies.flushed().await;
    // An operator retries it at once, within the stream's duplicate window; and it dies again.
    assert_eq!(
        bus.publish(std::slice::from_ref(&record)).await,
        [Outcome::Acked]
    );
    copies.died(&[letter]);
    copies.flushed().await;
    let messages = messages(server, "LETTERS").await;
    let subjects: Vec<&str> = messages
        .iter()
        .map(|message| message.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        [
            "letters.dead.default",
            "letters.placed",
            "letters.dead.default"
        ]
    );
    let (copy, event) = (headers(&messages[0]), headers(&messages[1]));
    assert_eq!(copy["ce-id"], record.id.to_string());
    assert_eq!(copy["outbox-dead-reason"], "no such customer");
    assert_eq!(copy["outbox-dead-attempts"], "1");
    assert_eq!(copy["outbox-dead-topic"], "letters.placed");
    assert!(copy["outbox-dead-at"].parse::<Timestamp>().is_ok());
    assert!(event.keys().all(|name| !name.starts_with("outbox-dead")));
    assert_eq!(messages[0].payload, messages[1].payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_choose_the_subject_and_keep_tenants_apart() {
    let server = shared_nats();
    stream(server, "TENANTS", "tenants.>", |_| {}).await;
    let rule = |event_type: &str, tenant: &str, template: &str| TopicRule {
        events: Selector {
            event_type: event_type.parse().unwrap(),
            tenant: tenant.parse().unwrap(),
        },
        template: template.parse().unwrap(),
    };
    let topic = Topic {
        template: "tenants.{type}".parse().unwrap(),
        rules: vec![
            rule("audit.*", "*", "tenants.audit"),
            rule("*", "a*", "tenants.{tenant_id}.{type}"),
        ],
        dead_letters: None,
    };
    let bus = nats(&server.url(), topic);
    let of = |tenant: &str, event_type: &str| OutboxRecord {
        tenant: tenant.parse().unwrap(),
        ..record(event_type)
    };
    let batch = [
        of("acme.com", "order.placed"),
        of("evil", "acme__2Ecom.order.placed"),
        of("evil", "audit.in"),
        of("evil", "order.placed"),
    ];
    let outcomes = bus.publish(&batch).await;
    let Outcome::Rejected(trick) = &outcomes[1] else {
        panic!("{outcomes:?}");
    };
    assert!(trick.reason.contains("another tenant's"), "{trick}");
    let messages = messages(server, "TENANTS").await;
    let subjects: Vec<&str> = messages
        .iter()
        .map(|message| message.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        [
            "tenants.acme__2Ecom.order.placed",
            "tenants.audit",
            "tenants.order.placed"
        ]
    );
}

/// The program, with two buses: each gets the copies of the events that were for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_publishes_a_copy_of_each_dead_letter_on_its_own_bus() {
    let (one, other) = tokio::join!(NatsServer::start(), NatsServer::start());
    for (server, name) in [(&one, "ONE"), (&other, "OTHER")] {
        stream(server, name, ">", |config| {
            config.subjects = vec!["one.>".into(), "other.>".into(), "dead.>".into()];
        })
        .await;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = format!(
        "bus_url = {:?}\ndead_letter_topic = \"dead.{{tenant_id}}\"\n\n[[routes]]\ntype = \"other.*\"\nbus = {:?}\n",
        one.url(),
        other.url()
    );
    std::fs::write(folder.path().join("outbox.toml"), settings).unwrap();
    let types = ["one.good", "one..bad", "other..bad", "other.good"];
    let lines: String = types
        .iter()
        .map(|name| format!("{{\"type\":\"{name}\",\"payload\":1}}\n"))
        .collect();
    std::fs::write(folder.path().join("lines"), lines).unwrap();
    let run = async |arguments: &[&str]| {
        let output = tokio::process::Command::new(program())
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .stdin(std::fs::File::open(folder.path().join("lines")).unwrap())
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&["migrate"]).await;
    run(&["append"]).await;
    run(&["run", "--once"]).await;
    for (server, name, good, bad) in [
        (&one, "ONE", "one.good", "one..bad"),
        (&other, "OTHER", "other.good", "other..bad"),
    ] {
        let messages = messages(server, name).await;
        let mut subjects: Vec<&str> = messages
            .iter()
            .map(|message| message.subject.as_str())
            .collect();
        subjects.sort_unstable();
        assert_eq!(subjects, ["dead.default", good]);
        let is_copy = |message: &&super::bus_nats::Message| message.subject.as_str() != good;
        let copy = headers(messages.iter().find(is_copy).unwrap());
        assert_eq!(copy["outbox-dead-topic"], bad);
        assert_eq!(copy["outbox-dead-attempts"], "1");
        assert!(
            copy["outbox-dead-reason"].contains("empty part"),
            "{copy:?}"
        );
    }
}
