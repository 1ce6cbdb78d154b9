//! What operators change, where a list of cases for every store does not reach.

use std::sync::Arc;
use std::time::Duration;

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::stores::MemoryStore;
use bento_outbox::{
    Destination, Event, Filter, ImmediateSettings, MessageBus, Outbox, Page, Pausable, Payload,
    Projector, ProjectorSettings, RetrySettings, Status, Store, raise,
};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::table::{Database, migrated};

const BY: &str = "cli:anna@relay-1";

/// So long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

async fn letters(db: &Database) -> Vec<Uuid> {
    let found = db.store.events(&Filter::default(), &Page::default()).await;
    found.unwrap().iter().map(|record| record.id).collect()
}

/// Change and act are one transaction: where the one cannot be kept, the other is not made.
#[tokio::test]
async fn a_change_whose_act_cannot_be_kept_is_not_made() {
    for db in migrated().await {
        db.run("insert into outbox (type, payload, status) values ('a', '1', 'ERR'), ('b', '2', 'ERR')")
            .await;
        let ids = letters(&db).await;
        let (tenant, acme) = (Pausable::Tenant, ["acme".to_string()]);
        let globex = ["globex".to_string()];
        assert_eq!(db.store.pause(tenant, &acme, BY, None).await.unwrap(), 1);
        db.run("alter table outbox_audit rename to elsewhere").await;
        let changes = [
            db.store.retry(&ids[..1], BY).await,
            db.store.discard(&ids[1..], BY).await,
            db.store.pause(tenant, &globex, BY, None).await,
            db.store.resume(tenant, &acme, BY).await,
        ];
        for change in changes {
            let refused = change.unwrap_err().report();
            assert!(refused.contains("writing the audit"), "{refused}");
        }
        assert_eq!(letters(&db).await, ids, "{}", db.name);
        let paused = db.store.pauses().await.unwrap();
        let names: Vec<&str> = paused.iter().map(|pause| pause.name.as_str()).collect();
        assert_eq!(names, ["acme"], "{}", db.name);

        db.run("alter table elsewhere rename to outbox_audit").await;
        assert_eq!(db.store.retry(&ids[..1], BY).await.unwrap(), 1);
        assert_eq!(db.store.resume(tenant, &acme, BY).await.unwrap(), 1);
        let acts = db.store.acts(None, 10).await.unwrap();
        assert_eq!(acts.len(), 3, "{}: {acts:?}", db.name);
    }
}

/// Two operators at once: each change is made once and has one act.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_at_the_same_time_change_each_thing_once() {
    for db in migrated().await {
        let rows = vec!["('a', '1', 'ERR')"; 40].join(", ");
        db.run(&format!(
            "insert into outbox (type, payload, status) values {rows}"
        ))
        .await;
        let ids: Vec<Uuid> = db
            .store
            .events(&Filter::default(), &Page::default())
            .await
            .unwrap()
            .iter()
            .map(|record| record.id)
            .collect();
        let names: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
        let act = |n: usize| {
            let (store, ids, names) = (db.store.clone(), ids.clone(), names.clone());
            tokio::spawn(async move {
                let changed = match n % 2 {
                    0 => store.retry(&ids, BY).await.unwrap(),
                    _ => store.discard(&ids, BY).await.unwrap(),
                };
                let pause = store.pause(Pausable::Tenant, &names, BY, None);
                (changed, pause.await.unwrap())
            })
        };
        let done = futures_util::future::try_join_all((0..6).map(act)).await;
        let (letters, pauses): (Vec<u64>, Vec<u64>) = done.unwrap().into_iter().unzip();
        assert_eq!(letters.iter().sum::<u64>(), 40, "{}", db.name);
        assert_eq!(pauses.iter().sum::<u64>(), 20, "{}", db.name);
        let acts = db.store.acts(None, 100).await.unwrap();
        let changed = |verbs: &[&str]| {
            let of_it = acts
                .iter()
                .filter(|it| verbs.contains(&it.act.verb.as_str()));
            of_it.map(|it| it.act.changed).sum::<u64>()
        };
        assert_eq!(changed(&["retry", "discard"]), 40, "{}", db.name);
        assert_eq!(changed(&["pause"]), 20, "{}", db.name);
    }
}

/// A bus of one destination has a name as well.
#[tokio::test]
async fn the_only_destination_can_be_paused() {
    let (store, bus) = (MemoryStore::default(), MemoryPublisher::default());
    let main = Destination {
        name: "main".into(),
        publisher: Arc::new(bus.clone()),
    };
    let routed = MessageBus::new(main, Vec::new(), &RetrySettings::default());
    let settings = ProjectorSettings::default();
    let projector = Projector::new(Arc::new(store.clone()), Arc::new(routed), settings);
    let main = ["main".to_string()];
    let destination = Pausable::Destination;
    store.pause(destination, &main, BY, None).await.unwrap();
    let outbox = Outbox::new(store.clone());
    let event = || Event::new("a", Payload::json("1").unwrap());
    outbox.run(async |_| raise(event())).await.unwrap();
    let batch = projector.run_once().await.unwrap();
    assert_eq!((batch.paused, batch.sent), (1, 0));
    assert!(batch.stopped_by.is_none(), "the bus is not away");
    assert_eq!(projector.run_once().await.unwrap().claimed, 0);
    store.resume(destination, &main, BY).await.unwrap();
    let sent = async {
        while projector.run_once().await.unwrap().sent == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, sent).await.unwrap();
    assert_eq!(bus.published().len(), 1);
}

/// A service publishes nothing right after its commit that is paused.
#[tokio::test]
async fn what_is_paused_is_not_published_at_once() {
    let (store, bus) = (MemoryStore::default(), MemoryPublisher::default());
    let outbox = Outbox::new(store.clone())
        .publish_with_settings(Arc::new(bus.clone()), ImmediateSettings::default());
    let commit = async |tenant: &str| {
        let outbox = outbox.tenant(tenant);
        let event = Event::new("a", Payload::json("1").unwrap());
        outbox.run(async |_| raise(event)).await.unwrap();
        outbox.flushed().await;
        bus.take_published().len()
    };
    assert_eq!(commit("acme").await, 1);
    let acme = ["acme".to_string()];
    store
        .pause(Pausable::Tenant, &acme, BY, None)
        .await
        .unwrap();
    assert_eq!(commit("acme").await, 0);
    assert_eq!(commit("globex").await, 1);
    store.resume(Pausable::Tenant, &acme, BY).await.unwrap();
    let main = ["main".to_string()];
    let destination = Pausable::Destination;
    store.pause(destination, &main, BY, None).await.unwrap();
    assert_eq!(commit("globex").await, 0);
    let new = |record: &&bento_outbox::OutboxRecord| record.delivery.status == Status::New;
    assert_eq!(store.records().iter().filter(new).count(), 2);
}
