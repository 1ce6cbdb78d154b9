//! The operator's verbs.

use super::*;

const BY: &str = "cli:anna@relay-1";

/// Retrying is idempotent under two operators at once, and changes nothing of the event, and
/// nothing that is no dead letter or was not meant.
pub async fn a_retried_letter_keeps_its_id_and_bytes<S: TransactionalStore>(store: S) {
    let keys = ["a", "a", "sent", "waiting", "dead"];
    let events = (1..).zip(keys).map(|(n, key)| event(key, n));
    let ids = commit(&store, events).await;
    let before = the(&store, ids[0]).await;
    let verdicts = [
        Verdict::Sent,
        retry(Duration::from_secs(60)),
        dead(),
        dead(),
    ];
    for (id, verdict) in [ids[2], ids[3], ids[4], ids[0]].into_iter().zip(verdicts) {
        settle(&store, id, verdict).await;
    }
    let others = ok(store.find(&ids[2..]).await);
    let asked = &ids[..4];
    let (one, two) = (
        ok(store.retry(asked, BY).await),
        ok(store.retry(asked, BY).await),
    );
    assert_eq!((one, two), (1, 0));
    for (before, after) in others.iter().zip(ok(store.find(&ids[2..]).await)) {
        assert_eq!(before.delivery, after.delivery);
    }
    let after = the(&store, ids[0]).await;
    assert_eq!(
        (after.seq, after.id, &after.payload),
        (before.seq, before.id, &before.payload)
    );
    let delivery = after.delivery;
    assert_eq!(
        (delivery.status, delivery.retry_cnt, delivery.retry_at),
        (Status::New, 0, None)
    );
    assert_eq!(claimed_in_turn(&store).await, ids[..2]);
}

/// What is not dead is not discarded, whatever ids are given, nor what is dead and not meant.
pub async fn only_dead_letters_are_discarded<S: TransactionalStore>(store: S) {
    let ids = commit(&store, (0..4).map(unordered)).await;
    settle(&store, ids[0], dead()).await;
    settle(&store, ids[1], Verdict::Sent).await;
    settle(&store, ids[3], dead()).await;
    assert_eq!(ok(store.discard(&ids[..3], BY).await), 1);
    let left = ok(store.find(&ids).await);
    assert_eq!(
        left.iter().map(|record| record.id).collect::<Vec<_>>(),
        ids[1..]
    );
    assert_eq!(ok(store.discard(&ids[..3], BY).await), 0);
}

/// Retention deletes what was sent long ago, a little at a time, and nothing else however old.
pub async fn only_old_sent_events_are_purged<S: TransactionalStore>(store: S) {
    let old = Some(ok("2013-01-01T00:00:00Z".parse::<Timestamp>()));
    let aged = |n: u32| Event {
        created_at: old,
        occurred_at: ok("2013-01-01T00:00:00Z".parse()),
        ..unordered(n)
    };
    let ids = commit(&store, (0..6).map(aged)).await;
    for id in &ids[..3] {
        settle(&store, *id, Verdict::Sent).await;
    }
    settle(&store, ids[3], dead()).await;
    settle(&store, ids[4], retry(Duration::from_secs(60))).await;
    assert_eq!(
        ok(store.purge(Duration::from_secs(60), 10).await),
        0,
        "age counts from when it was sent"
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        ok(store.purge(Duration::from_millis(5), 2).await),
        2,
        "no more than asked"
    );
    assert_eq!(ok(store.purge(Duration::from_millis(5), 10).await), 1);
    assert_eq!(ok(store.purge(Duration::ZERO, 10).await), 0);
    let left = ok(store.find(&ids).await);
    assert_eq!(
        left.iter().map(|record| record.id).collect::<Vec<_>>(),
        ids[3..]
    );
}

/// A key that waits is told with what holds it, why, until when, and how much waits.
pub async fn keys_that_wait_say_why<S: TransactionalStore>(store: S) {
    let later = Timestamp::now().after(Duration::from_secs(3_600));
    let delayed = Event {
        available_at: Some(later),
        ..event("a", 1)
    };
    let ids = commit(
        &store,
        [
            delayed,
            event("a", 2),
            event("a", 3),
            event("b", 4),
            event("b", 5),
            event("c", 6),
            event("c", 7),
            event("alone", 8),
            event("free", 9),
            event("free", 10),
            event("b", 11),
            event("b", 12),
            Event {
                tenant: Some(ok("other".parse())),
                ..event("a", 13)
            },
        ],
    )
    .await;
    settle(&store, ids[10], Verdict::Sent).await;
    settle(&store, ids[11], dead()).await;
    settle(&store, ids[3], retry(Duration::from_secs(60))).await;
    settle(&store, ids[5], dead()).await;
    settle(&store, ids[7], dead()).await;
    let held = ok(store.held_keys(10).await);
    let told: Vec<_> = held
        .iter()
        .map(|key| {
            (
                key.aggregate_id.as_str(),
                key.id,
                key.because.as_str(),
                key.waiting,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("a", ids[0], "delayed", 2),
            ("b", ids[3], "retrying", 1),
            ("c", ids[5], "dead", 1)
        ]
    );
    assert!(
        held[0].until.is_some_and(|until| until == later),
        "{:?}",
        held[0].until
    );
    assert!(held[1].until.is_some() && held[2].until.is_none());
    assert_eq!(
        (
            held[0].tenant_id.as_str(),
            held[0].aggregate_type.as_deref()
        ),
        ("default", Some("order"))
    );
    assert_eq!(ok(store.held_keys(1).await).len(), 1);
}

/// The backlog has what is not sent, of each tenant; what is delayed is not overdue.
pub async fn the_backlog_is_what_is_not_sent<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, n: u32| Event {
        tenant: Some(ok(tenant.parse())),
        ..unordered(n)
    };
    let old = Event {
        created_at: Some(ok("2013-01-01T00:00:00Z".parse())),
        available_at: Some(ok("2013-01-02T00:00:00Z".parse())),
        ..of("b", 4)
    };
    let delayed = Event {
        created_at: Some(ok("2012-01-01T00:00:00Z".parse())),
        available_at: Some(Timestamp::now().after(Duration::from_secs(3_600))),
        ..of("c", 5)
    };
    let events = [of("a", 1), of("b", 2), of("b", 3), old, delayed, of("b", 6)];
    let ids = commit(&store, events).await;
    settle(&store, ids[0], Verdict::Sent).await;
    settle(&store, ids[1], dead()).await;
    settle(&store, ids[2], retry(Duration::from_secs(60))).await;
    let backlog = ok(store.backlog().await);
    let numbers: Vec<_> = backlog
        .iter()
        .map(|tenant| (tenant.tenant_id.as_str(), tenant.pending, tenant.dead))
        .collect();
    assert_eq!(numbers, [("b", 3, 1), ("c", 1, 0)]);
    let since = ok("2013-01-02T00:00:00Z".parse::<Timestamp>()).until(Timestamp::now());
    let oldest = backlog[0].oldest_due_seconds.unwrap_or_default();
    assert!((oldest - since.as_secs_f64()).abs() < 60.0, "{oldest}");
    assert_eq!(backlog[1].oldest_due_seconds, None);
}
