//! A bus that can be reached and takes nothing: signals say so until it takes an event.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use bento_outbox::publishers::{MemoryPublisher, NatsPublisher};
use bento_outbox::stores::MemoryStore;
use bento_outbox::{
    CloudEvents, Destination, Event, MessageBus, Outbox, Payload, Projector, ProjectorSettings,
    Publisher, RetrySettings, Route, Selector, Store, Topic, raise,
};
use bento_outbox_conformance::servers::NatsServer;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use url::Url;

use super::bus_nats::{messages, stream};

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A stream that is full with its first message.
fn one(config: &mut Config) {
    config.max_messages = 1;
    config.discard = DiscardPolicy::New;
}

fn nats(server: &NatsServer) -> Arc<dyn Publisher> {
    let url = Url::parse(&server.url()).unwrap();
    Arc::new(NatsPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap())
}

async fn write(store: &MemoryStore, event_type: &str) {
    let event = Event::new(event_type, Payload::json("1").unwrap());
    let outbox = Outbox::new(store.clone());
    outbox.run(async |_| raise(event)).await.unwrap();
}

/// A relay in a task, and what ends it.
fn relay(store: &MemoryStore, bus: &Arc<MessageBus>) -> (Projector, oneshot::Sender<()>) {
    let (stop, stopped) = oneshot::channel();
    let (store, bus) = (Arc::new(store.clone()), bus.clone());
    let projector = Projector::new(store, bus, ProjectorSettings::default());
    let running = projector.clone();
    tokio::spawn(async move { running.run(async { drop(stopped.await) }).await });
    (projector, stop)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} does not come");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_not_well_until_it_takes_an_event() {
    let server = NatsServer::start().await;
    stream(&server, "FULL", "full.>", one).await;
    stream(&server, "OTHER", "other.>", |_| {}).await;
    let to = Destination {
        name: "main".into(),
        publisher: nats(&server),
    };
    let bus = Arc::new(MessageBus::new(to, Vec::new(), &RetrySettings::default()));
    let store = MemoryStore::default();
    for _ in 0..3 {
        write(&store, "full.a").await;
    }
    let (projector, _stop) = relay(&store, &bus);
    until("the first", async || {
        messages(&server, "FULL").await.len() == 1
    })
    .await;
    bus.check().await.unwrap();
    until("that nothing is taken", async || bus.check().await.is_err()).await;
    let why = bus.check().await.unwrap_err().reason;
    assert!(
        why.starts_with("main has taken no event for a while: ")
            && why.contains("maximum messages exceeded"),
        "{why}"
    );
    let stopped_by = || projector.progress().stopped_by.unwrap_or_default();
    until("the projector to know it", async || {
        stopped_by().contains("maximum messages exceeded")
    })
    .await;
    // It is not stopped: what can go out does, and then the bus is one that takes events.
    write(&store, "other.a").await;
    until("what there is room for", async || {
        messages(&server, "OTHER").await.len() == 1
    })
    .await;
    until("that it takes events", async || bus.check().await.is_ok()).await;
    until("the projector to know that too", async || {
        stopped_by().is_empty()
    })
    .await;
    until("that nothing is taken again", async || {
        bus.check().await.is_err()
    })
    .await;

    let client = async_nats::connect(server.url()).await.unwrap();
    let room = Config {
        name: "FULL".into(),
        subjects: vec!["full.>".into()],
        ..Config::default()
    };
    jetstream::new(client).update_stream(room).await.unwrap();
    until("the others", async || {
        messages(&server, "FULL").await.len() == 3
    })
    .await;
    until("that it takes events", async || bus.check().await.is_ok()).await;
    until("all to be settled", async || {
        store.status().await.unwrap()[0].sent == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_buses_the_full_one_is_named_while_the_other_goes_on() {
    let server = NatsServer::start().await;
    stream(&server, "FULL", "full.>", one).await;
    let memory = MemoryPublisher::default();
    let to = |name: &str, publisher: Arc<dyn Publisher>| Destination {
        name: name.into(),
        publisher,
    };
    let route = Route {
        events: Selector {
            event_type: "full.*".parse().unwrap(),
            ..Selector::default()
        },
        destination: to("small", nats(&server)),
    };
    let main = to("main", Arc::new(memory.clone()));
    let bus = Arc::new(MessageBus::new(
        main,
        vec![route],
        &RetrySettings::default(),
    ));
    let store = MemoryStore::default();
    for _ in 0..2 {
        write(&store, "full.a").await;
    }
    let (projector, _stop) = relay(&store, &bus);
    let mut written = 0;
    until("that nothing is taken", async || {
        write(&store, "b").await;
        written += 1;
        bus.refuses().is_some()
    })
    .await;
    let why = bus.check().await.unwrap_err().reason;
    assert!(
        why.starts_with("small has taken no event for a while: "),
        "{why}"
    );
    until("the others", async || memory.published().len() == written).await;
    assert_eq!(projector.progress().stopped_by, None, "others go on");
}
