//! Units of work: the caller's rows and the events, together or not at all.

use std::time::Duration;

use bento_outbox::{DomainEvent, Error, ErrorKind, InUnitOfWork, raise};

use super::*;
use crate::cancel::cancel_at_every_await;

/// Every field of an event reaches the row, and comes back from it, as it was.
pub async fn committed_events_are_there_with_all_their_fields<S: TransactionalStore>(store: S) {
    let mut headers = Headers::default();
    ok(headers.insert(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ));
    ok(headers.insert("X-Own", "ä \"quoted\" \\ 'single' %_"));
    let full = Event {
        tenant: Some(ok("acme".parse())),
        aggregate: Aggregate::new("or'der", "é\"\\ 7"),
        schema_id: Some("https://example.com/schema".into()),
        schema_version: 7,
        content_type: "application/x-other".into(),
        key_id: Some("key-1".into()),
        headers: headers.clone(),
        occurred_at: ok("1969-07-20T20:17:40.123456Z".parse()),
        created_at: Some(ok("2013-01-01T05:17:00.000001Z".parse())),
        available_at: Some(ok("2013-01-02T00:00:00Z".parse())),
        ..Event::new("order.changed", Payload::Data(vec![0, 1, 255].into()))
    };
    let kindless = Event {
        aggregate: Aggregate {
            kind: None,
            id: Some("7".into()),
        },
        ..event("", 1)
    };
    let kind_alone = Event {
        aggregate: Aggregate {
            kind: Some("order".into()),
            id: None,
        },
        ..event("", 3)
    };
    let before = Timestamp::now();
    let events = [&full, &kindless, &unordered(2), &kind_alone];
    commit(&store, events.map(Event::clone)).await;
    let after = Timestamp::now();

    let records = claim(&store).await;
    assert_eq!(records.len(), 4);
    let record = &records[0];
    assert_eq!(record.id, full.id);
    assert_eq!(record.tenant.as_str(), "acme");
    assert_eq!(record.aggregate, full.aggregate);
    assert_eq!(record.event_type, "order.changed");
    assert_eq!(record.schema_id, full.schema_id);
    assert_eq!(record.schema_version, 7);
    assert_eq!(
        (&record.payload[..], record.is_json),
        (&[0, 1, 255][..], false)
    );
    assert_eq!(record.content_type, full.content_type);
    assert_eq!(record.key_id, full.key_id);
    assert_eq!(ok(record.headers()), headers);
    assert_eq!(record.occurred_at, full.occurred_at);
    assert_eq!(Some(record.created_at), full.created_at);
    assert_eq!(Some(record.available_at), full.available_at);
    assert_eq!(record.delivery, bento_outbox::Delivery::default());

    let record = &records[1];
    assert_eq!(record.aggregate, kindless.aggregate);
    assert_eq!(record.tenant.as_str(), "default");
    assert_eq!(
        (&record.payload[..], record.is_json),
        (&b"{\"n\":1}"[..], true)
    );
    assert_eq!(record.occurred_at, kindless.occurred_at);
    // The database's clock and this machine's may differ a little, and SQLite's has milliseconds.
    let slack = Duration::from_secs(5);
    assert!(record.created_at.until(before) < slack && after.until(record.created_at) < slack);
    assert_eq!(records[2].aggregate, Aggregate::default());
    assert_eq!(records[3].aggregate, kind_alone.aggregate);
    assert!(records.is_sorted_by(|a, b| a.seq < b.seq));
}

/// What is rolled back, or ends in an error of the closure, is never seen.
pub async fn rolled_back_events_are_never_seen<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let mut uow = ok(outbox.begin().await);
    ok(uow.raise(event("a", 1)));
    ok(uow.rollback().await);
    let failed = outbox
        .run(async |uow| {
            ok(uow.raise(event("a", 2)));
            ok(raise(event("a", 3)));
            Err::<(), _>(Error::new(ErrorKind::RolledBack, "declined"))
        })
        .await;
    assert_eq!(
        failed.map_err(|error| error.to_string()),
        Err("declined".into())
    );
    let mut own = ok(store.begin(None).await);
    ok(outbox
        .append(S::connection(&mut own), [event("a", 4)])
        .await);
    ok(store.rollback(own).await);
    assert_eq!(claim(&store).await.len(), 0);
    assert_eq!(ok(store.status().await), []);
}

/// A unit of work that nobody ends is rolled back, and its connection serves the next one.
pub async fn a_dropped_unit_of_work_is_rolled_back<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    for n in 0..30 {
        let mut uow = ok(outbox.begin().await);
        ok(uow.raise(event("a", n)));
        ok(outbox.append(uow.tx(), [event("b", n)]).await);
        drop(uow);
    }
    commit(&store, [event("a", 100)]).await;
    assert_eq!(claim(&store).await.len(), 1);
}

/// A panic inside a unit of work rolls it back and leaves nothing behind for the next.
pub async fn a_panic_rolls_back<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let panicking = {
        let outbox = outbox.clone();
        tokio::spawn(async move {
            let mut uow = ok(outbox.begin().await);
            ok(outbox.append(uow.tx(), [event("a", 1)]).await);
            uow.track(|| {
                ok(raise(event("a", 2)));
                panic!("a planned panic");
            });
        })
    };
    let result: Result<(), _> = panicking.await;
    assert!(result.is_err_and(|error| error.is_panic()));
    commit(&store, [event("b", 1)]).await;
    assert_eq!(claim(&store).await.len(), 1);
}

/// Nobody sees what is not committed yet.
pub async fn an_open_transaction_shows_nothing<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let (relay, leases) = relay(&store, None).await;
    let mut uow = ok(outbox.begin().await);
    ok(outbox.append(uow.tx(), [event("a", 1)]).await);
    let claimed = ask(&store, &relay, &leases, &everything()).await;
    assert_eq!((claimed.records.len(), claimed.waiting), (0, false));
    assert_eq!(ok(store.status().await), []);
    ok(uow.commit().await);
    assert_eq!(
        ask(&store, &relay, &leases, &everything())
            .await
            .records
            .len(),
        1
    );
}

/// A nested unit is a savepoint: undone, it takes its events along and nobody else's.
pub async fn a_nested_unit_takes_its_events_with_it<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let ids = [1, 2, 3, 4, 5, 6, 7].map(|n| event("a", n));
    let [
        first,
        undone,
        undone_inside,
        undone_written,
        kept_written,
        kept,
        last,
    ] = ids.clone();
    ok(outbox
        .run(async |uow| {
            raise(first)?;
            let refused = uow
                .nested(async |uow| {
                    raise(undone)?;
                    uow.nested(async |_| raise(undone_inside)).await?;
                    Outbox::new(store.clone())
                        .append(uow.tx(), [undone_written])
                        .await?;
                    Err::<(), _>(Error::new(ErrorKind::RolledBack, "declined"))
                })
                .await;
            assert!(refused.is_err());
            uow.nested(async |uow| {
                raise(kept)?;
                Outbox::new(store.clone())
                    .append(uow.tx(), [kept_written])
                    .await
            })
            .await?;
            raise(last)
        })
        .await);
    // What is appended is written there and then, what is raised at the end.
    let expected = [ids[4].id, ids[0].id, ids[5].id, ids[6].id];
    assert_eq!(claimed_ids(&store, &everything()).await, expected);
}

/// When it is not known how far a nested unit came, the whole cannot be committed.
pub async fn a_nested_unit_dropped_half_way_rolls_everything_back<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let mut uow = ok(outbox.begin().await);
    ok(outbox.append(uow.tx(), [event("a", 0)]).await);
    ok(uow.raise(event("a", 1)));
    let endless = uow.nested(async |uow| {
        ok(uow.raise(event("a", 2)));
        std::future::pending::<Result<(), Error>>().await
    });
    assert!(
        tokio::time::timeout(Duration::from_millis(50), endless)
            .await
            .is_err()
    );
    ok(uow.raise(event("a", 3)));
    let refused = uow.commit().await;
    assert_eq!(
        refused.map(drop).map_err(|error| error.kind()),
        Err(ErrorKind::RolledBack)
    );
    assert_eq!(claim(&store).await.len(), 0);
    commit(&store, [event("a", 4)]).await;
    assert_eq!(claim(&store).await.len(), 1);
}

/// A spawned task has a unit of work only when it is passed on, and only until it ends.
pub async fn an_event_raised_in_a_spawned_task_belongs_to_its_unit<S: TransactionalStore>(
    store: S,
) {
    let outbox = Outbox::new(store.clone());
    let (committed, told) = tokio::sync::oneshot::channel::<()>();
    let late = ok(outbox
        .run(async |uow| {
            let inherited =
                tokio::spawn(async { raise(event("a", 1)).map_err(|error| error.kind()) });
            assert_eq!(ok(inherited.await), Err(ErrorKind::NoUnitOfWork));
            ok(ok(tokio::spawn(
                async { raise(event("a", 2)) }.in_unit_of_work(),
            )
            .await));
            ok(ok(uow.spawn(async { raise(event("a", 3)) }).await));
            Ok::<_, Error>(uow.spawn(async {
                let _ = told.await;
                raise(event("a", 4)).map_err(|error| error.kind())
            }))
        })
        .await);
    let _ = committed.send(());
    assert_eq!(ok(late.await), Err(ErrorKind::UnitOfWorkEnded));
    assert_eq!(claim(&store).await.len(), 2);
}

/// Two units in one task each get their own events.
pub async fn two_units_joined_in_one_task_never_mix<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let unit = async |tenant: &'static str, fails: bool| {
        let outbox = outbox.tenant(tenant);
        let mut uow = ok(outbox.begin().await);
        for n in 0..10 {
            ok(uow.track(|| raise(event("a", n))));
            tokio::task::yield_now().await;
        }
        if fails {
            ok(uow.rollback().await);
        } else {
            ok(uow.commit().await);
        }
    };
    // One after the other where the database has one writer: a unit waits for the other to end.
    tokio::join!(unit("one", false), unit("two", true), unit("three", false));
    let mut tenants: Vec<String> = claim(&store)
        .await
        .iter()
        .map(|record| record.tenant.to_string())
        .collect();
    tenants.dedup();
    tenants.sort();
    assert_eq!(tenants.iter().filter(|tenant| *tenant == "two").count(), 0);
    assert_eq!(claim(&store).await.len(), 20);
}

/// `run` inside `run` would be another transaction where a savepoint was meant.
pub async fn a_unit_inside_a_unit_is_refused<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let kind = ok(outbox
        .run(async |_| {
            let inner = outbox.run(async |_| Ok::<_, Error>(())).await;
            Ok::<_, Error>(inner.map_err(|error| error.kind()))
        })
        .await);
    assert_eq!(kind, Err(ErrorKind::UnitOfWorkOpen));
}

/// `append` writes in the caller's transaction and never ends it.
pub async fn the_callers_own_transaction_stays_the_callers<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone()).tenant("acme");
    let mut own = ok(store.begin(None).await);
    let appended = ok(outbox
        .append(S::connection(&mut own), [event("a", 1), event("a", 2)])
        .await);
    assert_eq!((appended.ids.len(), appended.duplicates.len()), (2, 0));
    assert_eq!(ok(store.status().await), [], "append must not commit");
    let foreign = Event {
        tenant: Some(ok("other".parse())),
        ..event("a", 3)
    };
    let refused = outbox
        .append(S::connection(&mut own), [event("a", 4), foreign])
        .await;
    assert_eq!(
        refused.map(drop).map_err(|error| error.kind()),
        Err(ErrorKind::WrongTenant)
    );
    let bad = Event {
        event_type: "a b".into(),
        ..event("a", 5)
    };
    let refused = outbox
        .append(S::connection(&mut own), [event("a", 6), bad])
        .await;
    assert_eq!(
        refused.map(drop).map_err(|error| error.kind()),
        Err(ErrorKind::InvalidEvent)
    );
    ok(store.commit(own, &appended).await);
    let ids: Vec<Uuid> = claim(&store).await.iter().map(|record| record.id).collect();
    assert_eq!(ids, appended.ids);
}

/// An event is its own tenant's, or without one its outbox's; a transaction may have several.
pub async fn each_event_belongs_to_its_tenant<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, n| Event {
        tenant: Some(ok(tenant.parse())),
        ..event("a", n)
    };
    let everybodys = Outbox::new(store.clone());
    let acme = ok("acme".parse());
    let mut own = ok(store.begin(None).await);
    let connection = S::connection(&mut own);
    let events = [of("one", 1), of("two", 2), event("a", 3)];
    let appended = ok(everybodys.append(connection, events).await);
    // The library names the tenant by itself; the store must not rely on that.
    ok(store
        .append(connection, &acme, &[event("a", 4)], None)
        .await);
    ok(store.commit(own, &appended).await);
    let records = claim(&store).await;
    let tenants: Vec<&str> = records
        .iter()
        .map(|record| record.tenant.as_str())
        .collect();
    assert_eq!(tenants, ["one", "two", "default", "acme"]);
}

/// An id is an event: a second one with it is skipped in the same statement, and reported; the
/// first one stays as it is.
pub async fn ids_already_there_are_skipped_and_reported<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let [a, b, c] = [1, 2, 3].map(|n| event("a", n));
    commit(&store, [a.clone()]).await;
    let mut uow = ok(outbox.begin().await);
    let other = |first: &Event| Event {
        payload: ok(Payload::json("\"another\"")),
        ..first.clone()
    };
    for event in [b.clone(), other(&a), c.clone(), other(&b)] {
        ok(uow.raise(event));
    }
    let appended = ok(uow.commit().await);
    assert_eq!(appended.ids, [b.id, c.id]);
    assert_eq!(appended.duplicates, [a.id, b.id]);
    let records = claim(&store).await;
    let there: Vec<_> = records.iter().map(|r| (r.id, &r.payload[..])).collect();
    assert_eq!(there, [&a, &b, &c].map(|e| (e.id, e.payload.as_bytes())));
}

/// Events of one unit of work are in the order in which they were raised.
pub async fn events_keep_the_order_in_which_they_were_raised<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let mut ids = Vec::new();
    for round in 0..3 {
        let mut uow = ok(outbox.begin().await);
        for n in 0..50_u32 {
            // Ids in no order of their own: only `seq` may decide.
            let event = Event {
                id: Uuid::from_u128(u128::from(n * 7919 % 50) + round * 1000),
                ..event("a", 0)
            };
            ids.push(event.id);
            ok(uow.raise(event));
        }
        ok(uow.commit().await);
    }
    assert_eq!(claimed_ids(&store, &everything()).await, ids);
}

/// One unit of work may raise many events.
pub async fn an_append_may_be_large<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let mut uow = ok(outbox.begin().await);
    for n in 0..5_000 {
        ok(uow.raise(event(&format!("k{}", n % 100), n)));
    }
    assert_eq!(ok(uow.commit().await).ids.len(), 5_000);
    assert_eq!(claim(&store).await.len(), 5_000);
}

/// Units of work at the same time are each there once.
pub async fn concurrent_units_lose_nothing<S: TransactionalStore>(store: S) {
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let outbox = Outbox::new(store.clone());
            tokio::spawn(async move {
                for n in 0..20 {
                    ok(outbox
                        .run(async |_| raise(event(&format!("k{task}"), n)))
                        .await);
                }
            })
        })
        .collect();
    for task in tasks {
        ok(task.await);
    }
    let mut ids = claimed_ids(&store, &everything()).await;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 160);
}

/// JSON is not reformatted, other bytes are not touched.
pub async fn hostile_payloads_come_back_byte_for_byte<S: TransactionalStore>(store: S) {
    #[derive(serde::Serialize)]
    struct Empty {}
    impl DomainEvent for Empty {
        const TYPE: &'static str = "empty";
    }
    let json = [
        "{ \"b\" : 1e400, \"a\":\"\\u0000\", \"a\" : 2 }",
        "\n\t[1,\r\n 2]  ",
        "\"\\ud83d\\ude00 \u{1f600} é ' \\\" \\\\ / \\/\"",
        "null",
        "-0.0",
        "123456789012345678901234567890.000000000000000000001",
    ];
    let mut events: Vec<Event> = json
        .iter()
        .map(|text| Event::new("x", ok(Payload::json(*text))))
        .collect();
    let deepest = "[".repeat(1_000) + &"]".repeat(1_000);
    events.push(Event::new("x", ok(Payload::json(deepest))));
    events.push(ok(Event::of(&Empty {})));
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    for data in [bytes, vec![], vec![0], b"{}".to_vec()] {
        events.push(Event::new("x", Payload::Data(data.into())));
    }
    commit(&store, events.clone()).await;
    let records = claim(&store).await;
    assert_eq!(records.len(), events.len());
    for (record, event) in records.iter().zip(&events) {
        let json = matches!(event.payload, Payload::Json(_));
        assert_eq!(record.is_json, json, "{:?}", event.payload);
        assert!(
            record.payload == event.payload.as_bytes(),
            "payload {:?} came back otherwise",
            event.payload
        );
    }
}

/// However a unit of work is cancelled, all of it is there or nothing, and no connection is spoilt.
pub async fn a_cancelled_unit_is_there_as_a_whole_or_not_at_all<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let unit = async || {
        outbox
            .run(async |uow| {
                outbox.append(uow.tx(), [event("a", 1)]).await?;
                uow.nested(async |_| raise(event("a", 2))).await?;
                raise(event("a", 3))
            })
            .await
    };
    let whole = async |_| {
        // The connection that was cancelled may be the one that this asks on.
        let events = claim(&store).await.len();
        assert_eq!(events % 3, 0, "{events} events: a part of a unit of work");
    };
    cancel_at_every_await(unit, whole).await;
    let before = claim(&store).await.len();
    ok(unit().await);
    assert_eq!(claim(&store).await.len(), before + 3);
}
