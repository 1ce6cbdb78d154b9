//! What operators keep back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::{
    Destination, ErrorKind, MessageBus, Pausable, Pause, Projector, ProjectorSettings,
    RetrySettings, Route, Selector, TenantStatus,
};
use tokio::time::{sleep, timeout};

use super::*;

const BY: &str = "cli:anna@relay-1";
const HOUR: Duration = Duration::from_secs(3_600);

fn of(tenant: &str, key: &str, number: u32) -> Event {
    Event {
        tenant: Some(ok(tenant.parse())),
        ..event(key, number)
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

async fn pause(store: &dyn Store, kind: Pausable, name: &str) -> u64 {
    ok(store.pause(kind, &names(&[name]), BY, None).await)
}

async fn resume(store: &dyn Store, kind: Pausable, name: &str) -> u64 {
    ok(store.resume(kind, &names(&[name]), BY).await)
}

/// Whoever claims gets nothing of a paused tenant, and what others have as if it was not there.
/// Resumed, it has all its events, in order.
pub async fn a_paused_tenant_is_left_alone_and_others_go_on<S: TransactionalStore>(store: S) {
    let tenants = ["acme", "globex", "acme", "default", "acme", "globex"];
    let events = (1..).zip(tenants).map(|(n, tenant)| of(tenant, "a", n));
    let ids = commit(&store, events).await;
    // So that the list of those who have something is there before the pause.
    assert_eq!(claim(&store).await.len(), 6);
    pause(&store, Pausable::Tenant, "acme").await;
    let others = [ids[1], ids[3], ids[5]];
    assert_eq!(claimed_ids(&store, &everything()).await, others);
    let only = Ask {
        tenants: Some(vec![ok("acme".parse())]),
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &only).await, [] as [Uuid; 0]);
    for id in others {
        settle(&store, id, Verdict::Sent).await;
    }
    let left = claimed(&store, &everything()).await;
    assert!(left.records.is_empty() && !left.waiting && !left.elsewhere);
    assert_eq!(
        the(&store, ids[0]).await.delivery,
        bento_outbox::Delivery::default()
    );
    resume(&store, Pausable::Tenant, "acme").await;
    assert_eq!(
        claimed_in_turn(&store).await,
        [ids[0], ids[2], ids[4]],
        "in order"
    );
}

/// Neither what is ready nor what has failed of paused tenants uses up a claim.
pub async fn paused_tenants_take_no_room<S: TransactionalStore>(store: S) {
    let mut paused = Vec::new();
    for tenant in ["a", "b", "c"] {
        let events = (0..8).map(|n| of(tenant, &n.to_string(), n));
        paused.extend(commit(&store, events).await);
    }
    for id in paused.iter().step_by(2) {
        settle(&store, *id, retry(Duration::from_millis(1))).await;
    }
    sleep(Duration::from_millis(20)).await;
    let ids = commit(&store, (0..4).map(|n| of("z", &n.to_string(), n))).await;
    for tenant in ["a", "b", "c"] {
        pause(&store, Pausable::Tenant, tenant).await;
    }
    let four = Ask {
        limit: 4,
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &four).await, ids);
}

/// What came due during a pause goes on after it, and what has not keeps its time.
pub async fn what_has_failed_of_a_paused_tenant_keeps_its_time<S: TransactionalStore>(store: S) {
    let events = (0..4).map(|n| of("acme", &n.to_string(), n));
    let ids = commit(&store, events).await;
    settle(&store, ids[0], retry(Duration::from_millis(1))).await;
    settle(&store, ids[1], retry(HOUR)).await;
    let delayed = Event {
        available_at: Some(Timestamp::now().after(Duration::from_millis(200))),
        ..of("acme", "d", 4)
    };
    let delayed = commit(&store, [delayed]).await[0];
    pause(&store, Pausable::Tenant, "acme").await;
    sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        assert!(claim(&store).await.is_empty());
    }
    let until = the(&store, ids[1]).await.delivery.retry_at;
    resume(&store, Pausable::Tenant, "acme").await;
    // What had to wait is found by its time, the rest when the tenants are listed again.
    let now = claimed_in_turn(&store).await;
    let of_them: HashSet<_> = now.iter().copied().collect();
    assert_eq!(
        (now.len(), of_them),
        (4, [ids[0], ids[2], ids[3], delayed].into())
    );
    assert_eq!(the(&store, ids[1]).await.delivery.retry_at, until);
}

/// A pause is there once, whoever else asks for it, for a tenant that is not known yet as well.
pub async fn a_pause_is_there_once_until_it_ends<S: TransactionalStore>(store: S) {
    let before = Timestamp::now();
    let pause =
        async |kind, these: &[&str], reason| ok(store.pause(kind, &names(these), BY, reason).await);
    let tenant = Pausable::Tenant;
    assert_eq!(pause(tenant, &["zeta", "acme"], Some("moving")).await, 2);
    assert_eq!(pause(tenant, &["acme", "acme"], Some("again")).await, 0);
    assert_eq!(pause(tenant, &[], None).await, 0);
    let destination = Pausable::Destination;
    assert_eq!(pause(destination, &["acme"], None).await, 1);
    let there = ok(store.pauses().await);
    let told: Vec<_> = there
        .iter()
        .map(|it| (it.kind, it.name.as_str(), it.reason.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            (tenant, "acme", Some("moving")),
            (tenant, "zeta", Some("moving")),
            (destination, "acme", None)
        ]
    );
    for pause in &there {
        assert_eq!(pause.by, BY);
        let off = before.until(pause.since).max(pause.since.until(before));
        assert!(off < Duration::from_secs(60), "{pause:?}");
    }
    assert_eq!(commit(&store, [of("zeta", "a", 1)]).await.len(), 1);
    assert!(claim(&store).await.is_empty(), "paused in advance");

    let one_is_none = names(&["new", "no name"]);
    let refused = store.pause(tenant, &one_is_none, BY, None).await;
    let refused = refused.map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::InvalidSetting));
    assert_eq!(ok(store.pauses().await).len(), 3, "all or none of them");

    assert_eq!(resume(&store, tenant, "nobody").await, 0);
    assert_eq!(resume(&store, tenant, "acme").await, 1);
    assert_eq!(resume(&store, tenant, "acme").await, 0);
    let left: Vec<_> = ok(store.pauses().await)
        .into_iter()
        .map(|it| (it.kind, it.name))
        .collect();
    assert_eq!(
        left,
        [(tenant, "zeta".into()), (destination, "acme".into())]
    );
}

/// The immediate path would publish them: so nothing is born leased of a paused tenant, nor anything
/// while a destination is paused, since a store does not know where events go.
pub async fn nothing_that_is_paused_is_born_leased<S: TransactionalStore>(store: S) {
    let birth = Birth {
        owner: Uuid::new_v4(),
        term: Duration::from_secs(60),
    };
    let append = async |tenants: &[&str]| {
        let events: Vec<Event> = tenants
            .iter()
            .map(|tenant| of(tenant, &Uuid::new_v4().to_string(), 1))
            .collect();
        let mut transaction = ok(store.begin(None).await);
        let connection = S::connection(&mut transaction);
        let tenant = Tenant::default();
        let appended = ok(store
            .append(connection, &tenant, &events, Some(&birth))
            .await);
        ok(store.commit(transaction, &appended).await);
        let born = appended.leased.iter().map(|it| it.tenant.to_string());
        (appended.ids.len(), born.collect::<Vec<_>>())
    };
    pause(&store, Pausable::Tenant, "acme").await;
    let born = append(&["acme", "globex", "acme"]).await;
    assert_eq!(born, (3, names(&["globex"])));
    resume(&store, Pausable::Tenant, "acme").await;
    assert_eq!(append(&["acme"]).await, (1, names(&["acme"])));
    // A destination of the same name is no tenant, and yet it holds all.
    pause(&store, Pausable::Destination, "globex").await;
    assert_eq!(append(&["acme", "globex"]).await, (2, Vec::new()));
    resume(&store, Pausable::Destination, "globex").await;
    assert_eq!(append(&["globex"]).await, (1, names(&["globex"])));
}

/// It is seen where people look.
pub async fn what_is_paused_is_told_everywhere<S: TransactionalStore>(store: S) {
    let old = |event| Event {
        created_at: Some(ok("2013-01-01T00:00:00Z".parse())),
        available_at: Some(ok("2013-01-01T00:00:00Z".parse())),
        ..event
    };
    let mut events = vec![old(of("acme", "a", 1)), of("acme", "a", 2)];
    events.extend([old(of("globex", "b", 3)), old(of("globex", "b", 4))]);
    events.extend([of("globex", "c", 5), of("globex", "c", 6)]);
    events.extend([of("acme", "d", 7), of("acme", "d", 8)]);
    let ids = commit(&store, events).await;
    pause(&store, Pausable::Destination, "main").await;
    settle(&store, ids[0], retry(HOUR)).await;
    let aside = Verdict::Retry {
        after: HOUR,
        counts: false,
        reason: Pause::aside("main"),
    };
    settle(&store, ids[2], aside).await;
    settle(&store, ids[4], retry(HOUR)).await;
    settle(&store, ids[6], dead()).await;
    pause(&store, Pausable::Tenant, "acme").await;
    pause(&store, Pausable::Tenant, "idle").await;

    let status = ok(store.status().await);
    let told: Vec<_> = status
        .iter()
        .map(|it| {
            let numbers = (it.new, it.retrying, it.paused_events);
            (it.tenant_id.as_str(), it.paused, numbers)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("acme", true, (2, 1, 0)),
            ("globex", false, (3, 1, 1)),
            ("idle", true, (0, 0, 0))
        ]
    );
    assert_eq!(TenantStatus::total(&status).paused_events, 1);
    // Nobody is late for what is kept on purpose, nor for what comes after it in its key.
    let backlog = ok(store.backlog().await);
    let told: Vec<_> = backlog
        .iter()
        .map(|it| (it.tenant_id.as_str(), it.pending))
        .collect();
    assert_eq!(told, [("acme", 3), ("globex", 4)]);
    assert_eq!(backlog[0].oldest_due_seconds, None, "its tenant is paused");
    let oldest = backlog[1].oldest_due_seconds.unwrap_or(f64::MAX);
    assert!(oldest < 3_600.0, "{oldest}");
    assert!(TenantStatus::total(&status).paused);
    assert!(!TenantStatus::total(&status[1..2]).paused);
    let held: HashMap<Uuid, (String, bool)> = ok(store.held_keys(10).await)
        .into_iter()
        .map(|key| (key.id, (key.because, key.until.is_some())))
        .collect();
    let because = [ids[0], ids[2], ids[4], ids[6]].map(|id| held[&id].clone());
    let told = because
        .each_ref()
        .map(|(because, until)| (because.as_str(), *until));
    assert_eq!(
        told,
        [
            ("paused", false),
            ("paused", false),
            ("retrying", true),
            ("dead", false)
        ]
    );
}

/// What was put aside is due again when its destination goes on, and nothing else is: no failure
/// that waits for its time, nothing of a destination that is still paused.
pub async fn what_was_put_aside_is_due_when_its_destination_goes_on<S: TransactionalStore>(
    store: S,
) {
    let ids = commit(&store, (0..5).map(|n| event(&n.to_string(), n))).await;
    pause(&store, Pausable::Destination, "main").await;
    pause(&store, Pausable::Destination, "other").await;
    let aside = |name| Verdict::Retry {
        after: HOUR,
        counts: false,
        reason: Pause::aside(name),
    };
    let verdicts = [
        aside("main"),
        aside("main"),
        aside("other"),
        retry(HOUR),
        aside("gone"),
    ];
    for (id, verdict) in ids.iter().zip(verdicts) {
        settle(&store, *id, verdict).await;
    }
    let delivery = the(&store, ids[0]).await.delivery;
    assert_eq!((delivery.status, delivery.retry_cnt), (Status::New, 0));
    assert_eq!(
        ok(store.wake(10).await),
        1,
        "whose pause ended before it was put aside"
    );
    assert_eq!(ok(store.wake(10).await), 0);
    assert_eq!(claimed_ids(&store, &everything()).await, [ids[4]]);
    resume(&store, Pausable::Destination, "main").await;
    let due = [ids[0], ids[1], ids[4]];
    assert_eq!(claimed_ids(&store, &everything()).await, due);
    // So many at a time.
    for id in &due[..2] {
        settle(&store, *id, aside("main")).await;
    }
    assert_eq!(ok(store.wake(1).await), 1);
    assert_eq!(ok(store.wake(1).await), 1);
    assert_eq!(ok(store.wake(1).await), 0);
    assert_eq!(claimed_ids(&store, &everything()).await, due);
}

/// A bus of two destinations: `audit.*` goes to `audit`, all else to `main`.
struct Two {
    main: MemoryPublisher,
    audit: MemoryPublisher,
}

impl Two {
    fn bus(&self) -> Arc<MessageBus> {
        let to = |name: &str, bus: &MemoryPublisher| Destination {
            name: name.into(),
            publisher: Arc::new(bus.clone()),
        };
        let route = Route {
            events: Selector {
                event_type: ok("audit.*".parse()),
                ..Selector::default()
            },
            destination: to("audit", &self.audit),
        };
        let pauses = RetrySettings::default();
        Arc::new(MessageBus::new(
            to("main", &self.main),
            vec![route],
            &pauses,
        ))
    }

    fn arrived(bus: &MemoryPublisher) -> Vec<Uuid> {
        bus.published().iter().map(|record| record.id).collect()
    }
}

fn settings() -> ProjectorSettings {
    ProjectorSettings {
        poll_interval_idle: Duration::from_millis(100),
        ..ProjectorSettings::default()
    }
}

/// Relays publish nothing to a paused destination, also those that start meanwhile, and everything
/// else as before. What comes after it in its key waits. It costs no attempt, and resumed all of it
/// comes in order, long before it would have been looked at again.
pub async fn a_paused_destination_is_left_alone_and_others_go_on<S: TransactionalStore>(store: S) {
    let to_audit = |key, n| Event {
        event_type: "audit.noted".into(),
        ..event(key, n)
    };
    let two = Two {
        main: MemoryPublisher::default(),
        audit: MemoryPublisher::default(),
    };
    pause(&store, Pausable::Destination, "audit").await;
    let events = [
        event("mixed", 1),
        to_audit("mixed", 2),
        event("mixed", 3),
        to_audit("audit", 4),
        event("main", 5),
        to_audit("audit", 6),
    ];
    let ids = commit(&store, events).await;
    for _ in 0..2 {
        let shared = Arc::new(store.clone());
        let projector = Projector::new(shared, two.bus(), settings());
        let (mut rounds, mut aside) = (0, 0);
        loop {
            let batch = ok(projector.run_once().await);
            assert_eq!((batch.retried, batch.dead), (0, 0));
            aside += batch.paused;
            rounds += 1;
            if batch.claimed == 0 {
                break;
            }
            assert!(rounds < 50, "what is put aside is claimed again and again");
        }
        assert!(aside <= 4, "{aside} put aside");
        // Another relay, that knows nothing.
        ok(projector.release().await);
    }
    let of_main: HashSet<Uuid> = Two::arrived(&two.main).into_iter().collect();
    assert_eq!(of_main, [ids[0], ids[4]].into());
    assert_eq!(two.main.published().len(), 2);
    assert_eq!(Two::arrived(&two.audit), [] as [Uuid; 0]);
    for id in [1, 3, 5, 2].map(|at| ids[at]) {
        let delivery = the(&store, id).await.delivery;
        assert_eq!((delivery.status, delivery.retry_cnt), (Status::New, 0));
    }

    let projector = Projector::new(Arc::new(store.clone()), two.bus(), settings());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let relay = tokio::spawn(async move { projector.run(async { drop(stopped.await) }).await });
    let late = commit(&store, [to_audit("late", 7), event("late", 8)]).await;
    let aside = [ids[1], ids[3], late[0]];
    let put_aside = async {
        loop {
            let found = ok(store.find(&aside).await);
            let again: Option<Vec<_>> = found.iter().map(|it| it.delivery.retry_at).collect();
            match again {
                Some(again) => break again,
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let again = ok(timeout(patience(), put_aside).await);
    resume(&store, Pausable::Destination, "audit").await;
    let all = async {
        while two.main.published().len() + two.audit.published().len() < 8 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    ok(timeout(patience(), all).await);
    drop(stop);
    ok(ok(relay.await));
    let found = ok(store.find(&aside).await);
    let mut pairs = found.iter().zip(again);
    assert!(
        pairs.any(|(record, again)| record.delivery.sent_at.is_some_and(|sent| sent < again)),
        "nothing came before it would have been looked at again"
    );
    let main = Two::arrived(&two.main);
    assert!(main.contains(&ids[2]) && main.contains(&late[1]));
    let audit = Two::arrived(&two.audit);
    let at = |id: Uuid| audit.iter().position(|it| *it == id);
    assert!(at(ids[3]) < at(ids[5]), "in order");
    assert_eq!(audit.len(), 4);
}
