//! How RabbitMQ fails in its own ways.

use tokio::time::{Instant, sleep};

use super::*;

/// A server of its own, set so, with an exchange and a queue `own` that takes everything.
async fn own(settings: &str) -> RabbitMqServer {
    let server = RabbitMqServer::start_with(settings, "").await;
    queue(&server, "own", "#", &[]).await;
    server
}

fn to(url: &str, query: &str) -> RabbitMqPublisher {
    publisher(&format!("{url}?exchange=own&{query}"))
}

/// `n` records in order.
fn batch(n: usize) -> Vec<OutboxRecord> {
    (0..n).map(|_| record("a")).collect()
}

/// Publishes until all is acknowledged, as a relay does; answers how often it had to.
async fn until_acked(bus: &RabbitMqPublisher, batch: &[OutboxRecord]) -> usize {
    let mut left = batch.to_vec();
    for round in 1..100 {
        let mut outcomes = bus.publish(&left).await.into_iter();
        left.retain(|_| outcomes.next() != Some(Outcome::Acked));
        if left.is_empty() {
            return round;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{} records are never acknowledged", left.len());
}

/// What arrived, each once, in the order of its first arrival.
fn first_arrivals(arrived: &[Arrived]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let ids = arrived.iter().map(|event| event.id().to_owned());
    ids.filter(|id| seen.insert(id.clone())).collect()
}

fn ids(batch: &[OutboxRecord]) -> Vec<String> {
    batch.iter().map(|record| record.id.to_string()).collect()
}

/// Little memory: the server takes nothing more, and says so. It is waited for as long as a batch
/// may take, nothing of it is taken for sent, and afterwards all goes on, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_nothing_at_present_is_waited_for_within_bounds() {
    let server = own("").await;
    let bus = to(&server.url(), "timeout=2s");
    let events = batch(300);
    assert_eq!(bus.publish(&events[..1]).await, [Outcome::Acked]);
    server
        .ctl(&["set_vm_memory_high_watermark", "0.0000001"])
        .await;

    let outcomes = bus.publish(&events[1..]).await;
    let acked = outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Acked)
        .count();
    assert!(acked < 299, "the server blocks nothing");
    for outcome in &outcomes {
        let fair = match outcome {
            Outcome::Acked | Outcome::Unknown { .. } => true,
            Outcome::Rejected(rejection) => rejection.class == RejectionClass::Unreachable,
        };
        assert!(fair, "{outcome:?}");
    }
    let started = Instant::now();
    let blocked = rejection(&bus, record("a")).await;
    assert_eq!(blocked.class, RejectionClass::Unreachable, "{blocked}");
    assert!(blocked.reason.contains("memory"), "{blocked}");
    assert!(started.elapsed() < Duration::from_secs(30), "for ever");

    let reopen = async {
        sleep(Duration::from_millis(300)).await;
        server.ctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    };
    let patient = to(&server.url(), "timeout=30s");
    let (_, rounds) = tokio::join!(reopen, until_acked(&bus, &events[1..]));
    assert!(rounds > 0);
    assert_eq!(until_acked(&patient, &batch(1)).await, 1);
    let arrived = take(&server, "own").await;
    assert_eq!(first_arrivals(&arrived)[..300], ids(&events));
}

/// A payload over the limit closes its channel. Where it could not be known to be too large, those
/// beside it lose their confirmations, and are sent again; the limit is known from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_few_bytes_is_learnt_from_the_first_message_over_it() {
    let server = own("max_message_size = 100").await;
    let bus = to(&server.url(), "");
    let large = |bytes: usize| {
        let payload = Payload::Data(vec![b'x'; bytes].into());
        let event = Event::new("a", payload);
        OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now())
    };
    let mut events = batch(40);
    events.insert(20, large(5_000));
    events.insert(30, large(101));
    let mut outcomes = bus.publish(&events).await;
    for place in [30, 20] {
        let Outcome::Rejected(rejection) = outcomes.remove(place) else {
            panic!("message {place} is too large");
        };
        assert_eq!(rejection.class, RejectionClass::Permanent);
        assert!(rejection.reason.contains("is 100"), "{rejection}");
        events.remove(place);
    }
    assert!(
        !outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Rejected(_)))
    );
    until_acked(&bus, &events).await;
    let before = take(&server, "own").await;
    assert_eq!(first_arrivals(&before).len(), 40);

    // Known by now: it does not reach the server, and costs nobody a confirmation.
    let mut events = batch(40);
    events.insert(20, large(101));
    let mut outcomes = bus.publish(&events).await;
    assert!(matches!(outcomes.remove(20), Outcome::Rejected(_)));
    assert_eq!(outcomes, vec![Outcome::Acked; 40]);
    assert_eq!(bus.publish(&[large(100)]).await, [Outcome::Acked]);
}

/// Whoever deletes the exchange takes its queues' bindings with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_deleted_is_said_to_be_missing_and_made_again() {
    let server = own("").await;
    let (bus, strict) = (to(&server.url(), ""), to(&server.url(), "declare=false"));
    for bus in [&bus, &strict] {
        assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
    }
    let (_connection, channel) = consumer(&server).await;
    channel
        .exchange_delete("own".into(), Default::default())
        .await
        .unwrap();
    for _ in 0..2 {
        let missing = rejection(&strict, record("a")).await;
        assert_eq!(missing.class, RejectionClass::Config, "{missing}");
        assert!(missing.reason.contains("own"), "{missing}");
    }
    let missing = rejection(&bus, record("a")).await;
    assert_eq!(missing.class, RejectionClass::Config, "{missing}");
    let unbound = rejection(&bus, record("a")).await;
    assert_eq!(unbound.class, RejectionClass::Blocked, "{unbound}");
    bind(&channel, "own", "#").await;
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}

/// The confirmations come when nobody waits for them any more: they are not taken for those of
/// other messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_confirmation_is_of_no_other_message() {
    let name = "late";
    queue(shared(), name, "good", &[]).await;
    let proxy = Proxy::before(&shared().url()).await;
    let bus = publisher(&format!(
        "{}?exchange={name}&timeout=3s",
        proxy.url_of(&shared().url())
    ));
    assert_eq!(bus.publish(&[record("good")]).await, [Outcome::Acked]);
    for _ in 0..3 {
        proxy.delay(Way::ToClient, Duration::from_secs(4));
        for outcome in bus.publish(&[record("good"), record("good")]).await {
            assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
        }
        proxy.delay(Way::ToClient, Duration::ZERO);
        let outcomes = bus.publish(&[record("bad"), record("good")]).await;
        assert!(matches!(outcomes[0], Outcome::Rejected(_)), "{outcomes:?}");
        assert_eq!(outcomes[1], Outcome::Acked);
    }
}

/// Cut after so many bytes of what the server says: what was confirmed until then is sent, and
/// nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_the_midst_of_its_confirmations_keeps_those_that_came() {
    let name = "cut";
    queue(shared(), name, "#", &[]).await;
    let proxy = Proxy::before(&shared().url()).await;
    let bus = publisher(&format!(
        "{}?exchange={name}",
        proxy.url_of(&shared().url())
    ));
    let mut sent = 0;
    let mut published = Vec::new();
    for bytes in [0, 1, 20, 21, 22, 100, 400, 1_000] {
        assert_eq!(until_acked(&bus, &batch(1)).await, 1);
        proxy.cut_after(Way::ToClient, bytes);
        let events = batch(200);
        let outcomes = bus.publish(&events).await;
        proxy.heal();
        let left: Vec<_> = events
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome != Outcome::Acked)
            .map(|(record, outcome)| {
                assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
                record.clone()
            })
            .collect();
        sent += events.len() - left.len();
        let arrived = first_arrivals(&take(shared(), name).await);
        for (record, outcome) in events.iter().zip(&outcomes) {
            let is_there = arrived.contains(&record.id.to_string());
            assert!(
                is_there || *outcome != Outcome::Acked,
                "acknowledged and lost"
            );
        }
        until_acked(&bus, &left).await;
        published.extend(left);
    }
    assert!(sent > 0, "no confirmation came before a cut");
    assert!(!published.is_empty(), "no cut came before a confirmation");
}

/// Both sides say now and then that they are there, or the server would hang up.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_kept_and_one_that_an_operator_closed_is_made_again() {
    let server = own("heartbeat = 2").await;
    let proxy = Proxy::before(&server.url()).await;
    let bus = to(&proxy.url_of(&server.url()), "");
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
    proxy.refuse(true);
    sleep(Duration::from_secs(8)).await;
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
    assert_eq!(proxy.bites().refused, 0, "the connection was not kept");

    server.ctl(&["close_all_connections", "maintenance"]).await;
    let away = rejection(&bus, record("a")).await;
    assert_eq!(away.class, RejectionClass::Unreachable, "{away}");
    proxy.refuse(false);
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}

/// A server that is silent for long is given up before anybody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_is_heard_ends_by_itself() {
    let server = own("heartbeat = 2").await;
    let proxy = Proxy::before(&server.url()).await;
    let bus = to(&proxy.url_of(&server.url()), "");
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
    proxy.blackhole(true);
    sleep(Duration::from_secs(8)).await;
    assert_eq!(proxy.bites().blackholed, 2);
    proxy.heal();
    // By the connection that was silent it would have no answer.
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}
