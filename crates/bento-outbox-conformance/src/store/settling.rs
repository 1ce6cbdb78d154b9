//! Claims and settlements: what a relay reads, and what it writes back.

use bento_outbox::ErrorKind;

use super::*;

/// Longer than any test runs.
const HOUR: Duration = Duration::from_secs(3_600);
/// So soon that a case can wait for it.
const SOON: Duration = Duration::from_millis(300);
/// What a database may round a time by.
pub(super) const CLOCK_GRAIN: Duration = Duration::from_millis(5);

/// A claim reads no more than asked, in order, of the asked tenants.
pub async fn a_claim_is_bounded_ordered_and_of_the_asked_tenants<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, n| Event {
        tenant: Some(ok(tenant.parse())),
        ..event("a", n)
    };
    let ids = commit(
        &store,
        [of("one", 1), of("two", 2), of("one", 3), of("three", 4)],
    )
    .await;
    let three = Ask {
        limit: 3,
        ..everything()
    };
    let read = claimed_ids(&store, &three).await;
    let places = |id: &Uuid| ids.iter().position(|other| other == id);
    assert!((1..=3).contains(&read.len()), "{} of at most 3", read.len());
    assert!(read.iter().map(places).is_sorted(), "not in order");
    let some = Ask {
        tenants: Some(vec![ok("one".parse()), ok("three".parse())]),
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &some).await, [ids[0], ids[2], ids[3]]);
    let nobody = claimed(
        &store,
        &Ask {
            tenants: Some(vec![ok("four".parse())]),
            ..everything()
        },
    )
    .await;
    assert_eq!(
        (nobody.records.len(), nobody.waiting),
        (0, false),
        "others' events are no backlog of ours"
    );
    assert_eq!(
        claimed_ids(&store, &everything()).await,
        ids,
        "claiming changes nothing"
    );
}

/// What was claimed before and is not settled is not read again, and holds nothing back.
pub async fn what_is_in_flight_is_not_read_again<S: TransactionalStore>(store: S) {
    let ids = commit(
        &store,
        [event("a", 1), event("a", 2), event("b", 3), unordered(4)],
    )
    .await;
    let one = Ask {
        limit: 1,
        ..everything()
    };
    let first = claimed(&store, &one).await.records;
    let rest = Ask {
        in_flight: first.iter().map(|record| record.seq).collect(),
        ..everything()
    };
    let second = claimed_ids(&store, &rest).await;
    assert_eq!((first.len(), second.len()), (1, 3));
    let first: Vec<Uuid> = first.iter().map(|record| record.id).collect();
    assert_eq!([first, second].concat(), ids, "each is read once, in order");
}

/// A record that has waited is read alone of its key, and holds what follows until it is in flight:
/// a relay may have claimed some of that before it knew, and not all of it may be there to be read.
pub async fn what_has_waited_goes_first<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("a", 2), event("b", 3)]).await;
    settle(&store, ids[0], retry(Duration::from_millis(1))).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let first = claimed(&store, &everything()).await.records;
    let seqs: Vec<i64> = first.iter().map(|record| record.seq).collect();
    let first: Vec<Uuid> = first.iter().map(|record| record.id).collect();
    assert_eq!(first, [ids[0], ids[2]]);
    let rest = Ask {
        in_flight: seqs,
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &rest).await, [ids[1]]);
}

/// A tenant with a long backlog leaves the others their share of each claim.
pub async fn tenants_take_turns<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, n| Event {
        tenant: Some(ok(tenant.parse())),
        ..unordered(n)
    };
    commit(&store, (0..40).map(|n| of("flood", n))).await;
    let quiet = commit(&store, [of("a", 1), of("z", 2), of("a", 3), of("z", 4)]).await;
    let twelve = Ask {
        limit: 12,
        ..everything()
    };
    let read = claimed_ids(&store, &twelve).await;
    assert!(
        quiet.iter().all(|id| read.contains(id)) && (8..=12).contains(&read.len()),
        "{} were read, of which {} are the quiet tenants'",
        read.len(),
        read.iter().filter(|id| quiet.contains(id)).count()
    );
    // Also where there are more tenants than room, everybody has a turn sooner or later.
    let one = Ask {
        limit: 1,
        ..everything()
    };
    let mut left: Vec<Uuid> = quiet;
    for _ in 0..60 {
        for record in claimed(&store, &one).await.records {
            left.retain(|id| *id != record.id);
            settle(&store, record.id, Verdict::Sent).await;
        }
    }
    assert!(left.is_empty(), "{} never had a turn", left.len());
}

/// What failed before and is due again takes half of a claim at most while others are there.
pub async fn what_has_failed_leaves_room<S: TransactionalStore>(store: S) {
    let failed = commit(&store, (0..10).map(unordered)).await;
    for id in &failed {
        settle(&store, *id, retry(Duration::from_millis(1))).await;
    }
    let new = commit(&store, (10..20).map(unordered)).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let eight = Ask {
        limit: 8,
        ..everything()
    };
    let read = claimed_ids(&store, &eight).await;
    let count = |some: &[Uuid]| read.iter().filter(|id| some.contains(id)).count();
    assert_eq!((count(&failed), count(&new)), (4, 4));
}

/// A record that has waited for its time is not read before an earlier one of its key, although
/// there is room for what has waited and none for the earlier one.
pub async fn nothing_goes_past_what_found_no_room<S: TransactionalStore>(store: S) {
    let events = (0..4).map(unordered).chain([event("a", 8), event("a", 9)]);
    let id = commit(&store, events).await[5];
    settle(&store, id, retry(Duration::from_millis(1))).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let two = Ask {
        limit: 2,
        ..everything()
    };
    let mut rounds = 0;
    loop {
        let read = claimed(&store, &two).await.records;
        let last = read.iter().any(|record| record.id == id);
        let before = ok(store.status().await)[0].sent;
        assert!(!last || before + read.len() as u64 == 6, "it overtook");
        for record in read {
            settle(&store, record.id, Verdict::Sent).await;
        }
        if last {
            break;
        }
        rounds += 1;
        assert!(rounds < 10, "it was never read");
    }
}

/// A row that commits after one with a higher `seq` was read is not lost.
pub async fn a_late_commit_is_not_passed_over<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let mut slow = ok(outbox.begin().await);
    let late = event("late", 1);
    ok(outbox.append(slow.tx(), [late.clone()]).await);
    let mut quick = {
        let store = store.clone();
        tokio::spawn(async move { commit(&store, [event("quick", 1)]).await })
    };
    // Where the database has one writer, the quick one waits for the slow one.
    let is_quick = tokio::time::timeout(Duration::from_millis(300), &mut quick).await;
    if is_quick.is_ok() {
        let read = claim(&store).await;
        assert_eq!(read.len(), 1);
        settle(&store, read[0].id, Verdict::Sent).await;
    }
    ok(slow.commit().await);
    if is_quick.is_err() {
        ok(quick.await);
    }
    assert!(
        claimed_ids(&store, &everything()).await.contains(&late.id),
        "the late event was passed over"
    );
}

/// An event is not published before its time; what comes after it in its key waits, others do not.
pub async fn a_later_event_waits_for_its_time_and_holds_its_key<S: TransactionalStore>(store: S) {
    let at = |available_at, event| Event {
        available_at: Some(available_at),
        ..event
    };
    let hour = Timestamp::now().after(HOUR);
    let events = [
        at(hour, event("a", 1)),
        event("a", 2),
        event("a", 3),
        event("b", 4),
        at(hour, event("b", 5)),
        at(hour, unordered(6)),
        unordered(7),
    ];
    let ids = commit(&store, events).await;
    let free = [ids[3], ids[6]];
    let two = Ask {
        limit: 2,
        ..everything()
    };
    assert_eq!(
        claimed_ids(&store, &two).await,
        free,
        "what waits takes no room"
    );
    for id in free {
        settle(&store, id, Verdict::Sent).await;
    }
    let claimed = claimed(&store, &everything()).await;
    assert_eq!((claimed.records.len(), claimed.waiting), (0, true));

    let soon = Timestamp::now().after(SOON);
    let ids = commit(&store, [at(soon, event("c", 8)), event("c", 9)]).await;
    until(&store, &ids).await;
    assert!(soon <= Timestamp::now().after(CLOCK_GRAIN), "read too soon");
}

/// A failed event is tried again after its delay, counted, with its reason; its key waits with it.
pub async fn a_failed_event_waits_and_holds_its_key<S: TransactionalStore>(store: S) {
    let events = [
        event("a", 1),
        event("a", 2),
        event("b", 3),
        unordered(4),
        unordered(5),
    ];
    let ids = commit(&store, events).await;
    assert_eq!(settle(&store, ids[0], retry(HOUR)).await, 1);
    let uncounted = Verdict::Retry {
        after: HOUR,
        counts: false,
        reason: "late".into(),
    };
    settle(&store, ids[3], uncounted).await;
    assert_eq!(claimed_ids(&store, &everything()).await, [ids[2], ids[4]]);

    let failed = the(&store, ids[0]).await.delivery;
    assert_eq!(
        (failed.status, failed.retry_cnt, failed.sent_at),
        (Status::New, 1, None)
    );
    assert_eq!(failed.error_message.as_deref(), Some("refused"));
    let wait = failed.retry_at.map(|at| Timestamp::now().until(at));
    let minute = Duration::from_secs(60);
    assert!(
        wait.is_some_and(|wait| HOUR - minute < wait && wait < HOUR + minute),
        "{wait:?}"
    );
    assert_eq!(the(&store, ids[3]).await.delivery.retry_cnt, 0);

    settle(&store, ids[2], retry(SOON)).await;
    let failed = the(&store, ids[2]).await.delivery;
    until(&store, &[ids[2], ids[4]]).await;
    assert!(
        failed.retry_at <= Some(Timestamp::now().after(CLOCK_GRAIN)),
        "read too soon"
    );
    assert_eq!(
        the(&store, ids[2]).await.delivery,
        failed,
        "waiting changes nothing"
    );
    settle(&store, ids[2], Verdict::Sent).await;
    let sent = the(&store, ids[2]).await.delivery;
    assert_eq!(
        (sent.status, sent.retry_cnt, sent.retry_at),
        (Status::Sent, 1, None)
    );
}

/// Who waits for whom is decided by tenant, kind and id together, compared byte by byte.
pub async fn keys_differ_by_tenant_kind_and_id<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, kind: Option<&str>, id: &str| Event {
        tenant: Some(ok(tenant.parse())),
        aggregate: Aggregate {
            kind: kind.map(Into::into),
            id: Some(id.into()),
        },
        ..event("", 0)
    };
    let order = Some("order");
    let failed = of("one", order, "\u{e9}7");
    let others = [
        of("two", order, "\u{e9}7"),
        of("one", Some("invoice"), "\u{e9}7"),
        of("one", None, "\u{e9}7"),
        of("one", order, "e\u{301}7"),
        of("one", order, "\u{e9}7 "),
        of("one", order, "\u{c9}7"),
        of("one", Some("Order"), "\u{e9}7"),
    ];
    let same = commit(&store, [failed.clone()]).await;
    settle(&store, same[0], retry(HOUR)).await;
    let others = commit(&store, others).await;
    let again = Event {
        id: Uuid::now_v7(),
        ..failed
    };
    commit(&store, [again]).await;
    assert_eq!(claimed_ids(&store, &everything()).await, others);
}

/// A dead letter is claimed no more; with `skip` its key goes on.
pub async fn a_dead_letter_is_left_alone_and_its_key_goes_on<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("a", 2)]).await;
    settle(&store, ids[0], dead()).await;
    assert_eq!(claimed_ids(&store, &everything()).await, ids[1..]);
    let letter = the(&store, ids[0]).await;
    assert_eq!(
        (letter.delivery.status, letter.delivery.retry_cnt),
        (Status::Err, 1)
    );
    assert_eq!(
        letter.delivery.error_message.as_deref(),
        Some("refused for good")
    );
    settle(&store, ids[1], Verdict::Sent).await;
    let claimed = claimed(&store, &everything()).await;
    assert_eq!(
        (claimed.records.len(), claimed.waiting),
        (0, false),
        "a dead letter is no backlog"
    );
}

/// With `block` what comes after a dead letter in its key waits, and nothing else.
pub async fn a_dead_letter_can_hold_its_key<S: TransactionalStore>(store: S) {
    let ids = commit(
        &store,
        [
            event("a", 1),
            event("a", 2),
            event("b", 3),
            unordered(4),
            unordered(5),
        ],
    )
    .await;
    settle(&store, ids[0], dead()).await;
    settle(&store, ids[3], dead()).await;
    let blocking = Ask {
        dead_letters_block: true,
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &blocking).await, [ids[2], ids[4]]);
}

/// `ordering = none` does without the key.
pub async fn without_order_nothing_is_held<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("a", 2)]).await;
    settle(&store, ids[0], retry(Duration::from_secs(60))).await;
    let unordered = Ask {
        ordered: false,
        dead_letters_block: true,
        ..everything()
    };
    assert_eq!(claimed_ids(&store, &unordered).await, ids[1..]);
}

/// Only what is `NEW` is settled; the rest is left as it is.
pub async fn a_settled_record_is_not_changed_again<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("b", 2)]).await;
    let both = ids
        .iter()
        .map(|id| Settlement {
            id: *id,
            verdict: Verdict::Sent,
        })
        .collect::<Vec<_>>();
    assert_eq!(settle_all(&store, &both).await, 2);
    let sent = the(&store, ids[0]).await;
    assert_eq!(sent.delivery.status, Status::Sent);
    assert!(sent.delivery.sent_at.is_some() && sent.delivery.retry_at.is_none());
    for verdict in [Verdict::Sent, dead(), retry(Duration::ZERO)] {
        assert_eq!(settle(&store, ids[0], verdict).await, 0);
    }
    assert_eq!(settle(&store, Uuid::now_v7(), Verdict::Sent).await, 0);
    assert_eq!(the(&store, ids[0]).await.delivery, sent.delivery);
    assert_eq!(claim(&store).await.len(), 0);
    assert_eq!(settle_all(&store, &[]).await, 0);
}

/// A reason of any length is stored, cut to 2,000 characters, and never jams the failure path.
pub async fn a_stored_reason_is_bounded<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("b", 2)]).await;
    let long = "é'\"\\ %s $1 ".repeat(1_000);
    settle(
        &store,
        ids[0],
        Verdict::Dead {
            counts: false,
            reason: long.clone(),
        },
    )
    .await;
    let again = Verdict::Retry {
        after: Duration::from_millis(1),
        counts: true,
        reason: long.clone(),
    };
    settle(&store, ids[1], again).await;
    for id in ids {
        let kept = the(&store, id)
            .await
            .delivery
            .error_message
            .unwrap_or_default();
        assert_eq!(kept.chars().count(), bento_outbox::ERROR_MESSAGE_CHARS_MAX);
        assert!(long.starts_with(kept.trim_end_matches('…')));
    }
}

/// The status has every tenant once, in order, and every event in one of its four numbers.
pub async fn the_status_counts_each_event_once<S: TransactionalStore>(store: S) {
    let of = |tenant: &str, n: u32| Event {
        tenant: Some(ok(tenant.parse())),
        ..event(&n.to_string(), n)
    };
    let old = Event {
        created_at: Some(ok("2013-01-01T00:00:00Z".parse())),
        ..of("b", 9)
    };
    let ids = commit(
        &store,
        [
            of("b", 1),
            of("b", 2),
            of("b", 3),
            of("b", 4),
            of("a", 5),
            old,
        ],
    )
    .await;
    settle(&store, ids[0], Verdict::Sent).await;
    settle(&store, ids[1], retry(Duration::from_secs(60))).await;
    settle(&store, ids[2], dead()).await;
    settle(&store, ids[4], Verdict::Sent).await;
    let status = ok(store.status().await);
    let numbers: Vec<_> = status
        .iter()
        .map(|t| (t.tenant_id.as_str(), t.new, t.retrying, t.sent, t.dead))
        .collect();
    assert_eq!(numbers, [("a", 0, 0, 1, 0), ("b", 2, 1, 1, 1)]);
    assert_eq!(status[0].oldest_new_seconds, None);
    let since_2013 = ok("2013-01-01T00:00:00Z".parse::<Timestamp>())
        .until(Timestamp::now())
        .as_secs_f64();
    let oldest = status[1].oldest_new_seconds.unwrap_or_default();
    assert!((oldest - since_2013).abs() < 60.0, "{oldest}");
    assert!((status[0].sent_per_second - 1.0 / 60.0).abs() < 1e-6);
}

/// Records are found by their ids, sent or not, in order of `seq`; other ids are none.
pub async fn records_are_found_in_order<S: TransactionalStore>(store: S) {
    let ids = commit(&store, (0..5).map(|n| event("a", n))).await;
    settle(&store, ids[0], Verdict::Sent).await;
    let asked = [ids[3], Uuid::now_v7(), ids[0], ids[2], ids[3]];
    let found: Vec<Uuid> = ok(store.find(&asked).await)
        .iter()
        .map(|record| record.id)
        .collect();
    assert_eq!(found, [ids[0], ids[2], ids[3]]);
    assert!(ok(store.find(&[]).await).is_empty());
}

/// A commit ends the wait of who asked for a hint, and nothing else does.
pub async fn a_hint_wakes_who_waits<S: TransactionalStore>(store: S) {
    let mut waiting = {
        let store = store.clone();
        tokio::spawn(async move { store.hint().await })
    };
    let early = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(early.is_err(), "woken for nothing");
    commit(&store, [event("a", 1)]).await;
    ok(ok(tokio::time::timeout(patience(), waiting).await));
}

/// Waits until all of these are read, and nothing else, in this order.
async fn until(store: &dyn Store, ids: &[Uuid]) {
    let deadline = Timestamp::now().after(patience());
    loop {
        let claimed: Vec<Uuid> = claimed_in_turn(store).await;
        if claimed == ids {
            return;
        }
        assert!(
            Timestamp::now() < deadline,
            "claimed {claimed:?}, expected {ids:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A store whose tables are missing says so; used by the suites of SQL stores.
pub async fn missing_tables_are_named(store: &dyn Store) {
    for refused in [
        store.check().await,
        store
            .lease(&Relay::new(None), Duration::from_secs(1))
            .await
            .map(drop),
    ] {
        match refused {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Schema, "{error:?}");
                assert!(error.to_string().contains("migrate"), "{error}");
            }
            Ok(()) => panic!("a store without tables found nothing wrong"),
        }
    }
}
