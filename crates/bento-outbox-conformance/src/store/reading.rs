//! What an operator looks for: pages of events, and where one of them stands.

use std::collections::HashSet;

use bento_outbox::{Because, Filter, PAGE_MAX, Page, ProjectorSettings, Why, why};

use super::*;

async fn found(store: &dyn Store, filter: &Filter) -> Vec<Uuid> {
    ids(&ok(store.events(filter, &Page::default()).await))
}

fn ids(records: &[OutboxRecord]) -> Vec<Uuid> {
    records.iter().map(|record| record.id).collect()
}

/// Events of every state, tenant, type and aggregate, written then and now, in order of `seq`.
async fn assorted<S: TransactionalStore>(store: &S) -> Vec<OutboxRecord> {
    let acme = Some(ok("acme".parse::<Tenant>()));
    let mut events = Vec::new();
    for n in 0..4 {
        let more = [
            event("a", n),
            Event {
                tenant: acme.clone(),
                ..event("b", n)
            },
            Event {
                event_type: "other.type".into(),
                ..event("c", n)
            },
            Event {
                created_at: Some(ok("2013-01-01T00:00:00Z".parse())),
                ..unordered(n)
            },
        ];
        events.extend(more);
    }
    let ids = commit(store, events).await;
    let verdicts = [
        Some(Verdict::Sent),
        Some(dead()),
        Some(retry(Duration::from_secs(60))),
        None,
    ];
    let of_each_kind = verdicts.iter().flat_map(|verdict| [verdict; 4]);
    for (id, verdict) in ids.iter().zip(of_each_kind) {
        if let Some(verdict) = verdict {
            settle(store, *id, verdict.clone()).await;
        }
    }
    ok(store.find(&ids).await)
}

/// Every part of a filter narrows what is found, in every state.
pub async fn events_are_found_by_every_filter<S: TransactionalStore>(store: S) {
    let all = assorted(&store).await;
    let old = ok("2013-01-01T00:00:00Z".parse::<Timestamp>());
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let any = Filter::default;
    let sent_at: Vec<Timestamp> = all.iter().filter_map(|it| it.delivery.sent_at).collect();
    let parts = [
        any(),
        Filter {
            tenant: Some(ok("acme".parse())),
            ..any()
        },
        Filter {
            event_type: Some("other.type".into()),
            ..any()
        },
        Filter {
            aggregate_id: Some("a".into()),
            ..any()
        },
        Filter {
            aggregate_id: Some("' or 1=1 --".into()),
            ..any()
        },
        Filter {
            until: Some(old.after(second)),
            ..any()
        },
        Filter {
            since: Some(old.after(second)),
            ..any()
        },
        Filter {
            since: Some(old),
            until: Some(old),
            ..any()
        },
        Filter {
            since: Some(old),
            until: Some(old.after(second)),
            ..any()
        },
        Filter {
            sent_since: Some(old),
            ..any()
        },
        Filter {
            sent_since: Some(Timestamp::now().after(day)),
            ..any()
        },
        Filter {
            sent_since: sent_at.iter().max().copied(),
            ..any()
        },
        Filter {
            ids: Some(vec![all[2].id, all[5].id, all[15].id]),
            ..any()
        },
        Filter {
            ids: Some(vec![all[1].id, all[5].id]),
            tenant: Some(ok("acme".parse())),
            ..any()
        },
        Filter {
            ids: Some(Vec::new()),
            ..any()
        },
    ];
    let mut sizes = Vec::new();
    for part in parts {
        for status in [
            None,
            Some(Status::New),
            Some(Status::Sent),
            Some(Status::Err),
        ] {
            let filter = Filter {
                status,
                ..part.clone()
            };
            let expected = all.iter().filter(|record| filter.matches(record));
            let expected: Vec<Uuid> = expected.map(|record| record.id).collect();
            assert_eq!(found(&store, &filter).await, expected, "{filter:?}");
            sizes.push(expected.len());
        }
    }
    assert_eq!(sizes[..12], [16, 8, 4, 4, 4, 2, 1, 1, 4, 2, 1, 1]);
    assert!(sizes[44..48].contains(&0) && sizes[44] > 0, "{sizes:?}");
}

/// Pages go on where they ended, in both directions, without a gap and without a double.
pub async fn pages_have_no_gaps_and_no_doubles<S: TransactionalStore>(store: S) {
    let all = assorted(&store).await;
    for status in [
        None,
        Some(Status::New),
        Some(Status::Sent),
        Some(Status::Err),
    ] {
        let filter = Filter {
            status,
            ..Filter::default()
        };
        let matching = all.iter().filter(|record| filter.matches(record));
        let mut expected: Vec<Uuid> = matching.map(|record| record.id).collect();
        for newest_first in [false, true] {
            let (mut read, mut after) = (Vec::new(), None);
            while read.len() <= expected.len() {
                let page = Page {
                    after,
                    limit: 3,
                    newest_first,
                    payload: false,
                };
                let records = ok(store.events(&filter, &page).await);
                assert!(records.len() <= 3);
                let Some(last) = records.last() else { break };
                after = Some(last.seq);
                read.extend(ids(&records));
            }
            assert_eq!(read, expected, "{status:?}, newest first: {newest_first}");
            expected.reverse();
        }
    }
}

/// A page has no more records than it may have, whatever is asked for.
pub async fn a_page_is_bounded<S: TransactionalStore>(store: S) {
    let mut transaction = ok(store.begin(None).await);
    let events: Vec<Event> = (0..=PAGE_MAX).map(unordered).collect();
    let connection = S::connection(&mut transaction);
    let tenant = Tenant::default();
    let appended = ok(store.append(connection, &tenant, &events, None).await);
    ok(store.commit(transaction, &appended).await);
    let asked = |limit| Page {
        limit,
        ..Page::default()
    };
    let read = async |limit| ok(store.events(&Filter::default(), &asked(limit)).await).len();
    assert_eq!(read(u32::MAX).await, PAGE_MAX as usize);
    assert_eq!((read(7).await, read(0).await), (7, 0));
}

/// A page has payloads only if they are asked for, and all else in any case.
pub async fn payloads_are_read_if_they_are_asked_for<S: TransactionalStore>(store: S) {
    let data = Event {
        payload: Payload::Data(vec![0, 255, 7].into()),
        ..event("b", 2)
    };
    let ids = commit(&store, [event("a", 1), data]).await;
    let kept = ok(store.find(&ids).await);
    let read = async |payload| {
        let page = Page {
            payload,
            ..Page::default()
        };
        ok(store.events(&Filter::default(), &page).await)
    };
    assert_eq!(read(true).await, kept);
    let without: Vec<OutboxRecord> = kept
        .into_iter()
        .map(|record| OutboxRecord {
            payload: Default::default(),
            ..record
        })
        .collect();
    assert_eq!(read(false).await, without);
}

async fn ahead_of(store: &dyn Store, id: Uuid, dead_letters_block: bool) -> Option<Uuid> {
    match ok(store.standing(id, dead_letters_block).await) {
        Some(standing) => {
            assert_eq!((standing.record.id, standing.record.payload.len()), (id, 0));
            standing.ahead
        }
        None => panic!("event {id} stands nowhere"),
    }
}

/// What is ahead of an event is the first of its key that is not sent, and nothing of another key.
pub async fn an_event_stands_behind_the_first_unsent_one<S: TransactionalStore>(store: S) {
    let of_acme = Event {
        tenant: Some(ok("acme".parse())),
        ..event("a", 5)
    };
    let invoice = Event {
        aggregate: Aggregate::new("invoice", "a"),
        ..event("a", 6)
    };
    let ids = commit(
        &store,
        [
            event("a", 0),
            event("a", 1),
            event("a", 2),
            event("a", 3),
            event("a", 4),
            of_acme,
            invoice,
            unordered(7),
            unordered(8),
        ],
    )
    .await;
    settle(&store, ids[0], Verdict::Sent).await;
    settle(&store, ids[1], dead()).await;
    settle(&store, ids[4], Verdict::Sent).await;
    for (event, skipping, blocking) in [
        (0, None, None),
        (1, None, None),
        (2, None, Some(1)),
        (3, Some(2), Some(1)),
        // What is sent stands behind nothing.
        (4, None, None),
        (5, None, None),
        (6, None, None),
        (8, None, None),
    ] {
        let of = |number: Option<usize>| number.map(|number| ids[number]);
        let ahead = ahead_of(&store, ids[event], false).await;
        assert_eq!(
            ahead,
            of(skipping),
            "of {event}, where dead letters are skipped"
        );
        let ahead = ahead_of(&store, ids[event], true).await;
        assert_eq!(ahead, of(blocking), "of {event}, where dead letters block");
    }
    let nowhere = ok(store.standing(Uuid::new_v4(), false).await);
    assert!(nowhere.is_none(), "{nowhere:?}");
}

/// Who may publish an event is the process it is born leased to, and who holds its partition.
pub async fn an_event_says_who_may_publish_it<S: TransactionalStore>(store: S) {
    let birth = Birth {
        owner: Uuid::new_v4(),
        term: Duration::from_secs(60),
    };
    let [born, later] = [event("a", 1), event("a", 2)];
    let acme = Event {
        tenant: Some(ok("acme".parse())),
        ..event("a", 3)
    };
    let mut transaction = ok(store.begin(None).await);
    let tenant = Tenant::default();
    let events = [born.clone(), later.clone(), acme.clone()];
    let appended = {
        let connection = S::connection(&mut transaction);
        ok(store
            .append(connection, &tenant, &events[..1], Some(&birth))
            .await);
        ok(store.append(connection, &tenant, &events[1..], None).await)
    };
    ok(store.commit(transaction, &appended).await);
    let the = async |event: &Event| match ok(store.standing(event.id, false).await) {
        Some(standing) => standing,
        None => panic!("event {} stands nowhere", event.id),
    };

    let first = the(&born).await;
    let (owner, until) = somebody(first.born_to);
    assert_eq!(owner, birth.owner);
    let left = first.now.until(until);
    assert!(
        left > Duration::from_secs(50) && left <= birth.term,
        "{left:?}"
    );
    let second = the(&later).await;
    assert_eq!(second.born_to, None);
    assert_eq!(first.partition, second.partition, "they are of one key");
    assert_eq!((first.relays, first.held_by), (0, None));

    let (carrier, leases) = relay(&store, Some(vec![ok("default".parse())])).await;
    let claims = the(&later).await;
    assert_eq!(claims.relays, 1);
    let (holder, until) = somebody(claims.held_by);
    assert_eq!(holder, carrier.id);
    assert!(claims.now.until(until) > Duration::from_secs(50));
    let partitions: HashSet<u16> = leases.iter().map(|lease| lease.partition).collect();
    assert!(partitions.contains(&claims.partition));
    let others = the(&acme).await;
    assert_eq!(
        (others.relays, others.held_by),
        (0, None),
        "nobody carries it"
    );

    // A second relay holds nothing before the first gives something back, and the first one dies.
    relay(&store, Some(vec![ok("default".parse())])).await;
    let shared = the(&later).await;
    assert_eq!(
        (shared.relays, shared.held_by.map(|(id, _)| id)),
        (2, Some(carrier.id))
    );
    ok(store.lease(&carrier, Duration::from_millis(1)).await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let orphaned = the(&later).await;
    assert_eq!((orphaned.relays, orphaned.held_by), (1, None));
}

/// Who, and until when; nobody is somebody whom no case expects.
fn somebody(who: Option<(Uuid, Timestamp)>) -> (Uuid, Timestamp) {
    who.unwrap_or((Uuid::nil(), Timestamp::now()))
}

/// The answer to "where is this event, and what does it wait for?" in every state there is.
pub async fn an_event_says_what_it_waits_for<S: TransactionalStore>(store: S) {
    let later = Timestamp::now().after(Duration::from_secs(3_600));
    let delayed = Event {
        available_at: Some(later),
        ..event("delayed", 1)
    };
    let ids = commit(
        &store,
        [
            event("a", 0),
            event("b", 1),
            event("b", 2),
            event("c", 3),
            event("c", 4),
            delayed,
            event("delayed", 6),
            event("free", 7),
            event("free", 8),
        ],
    )
    .await;
    settle(&store, ids[0], Verdict::Sent).await;
    settle(&store, ids[1], dead()).await;
    settle(&store, ids[3], retry(Duration::from_secs(60))).await;
    let skipping = ProjectorSettings::default();
    let blocking = ProjectorSettings {
        dead_letters_block: true,
        ..ProjectorSettings::default()
    };
    let unordered = ProjectorSettings {
        ordered: false,
        ..ProjectorSettings::default()
    };
    let asked = async |number: usize, settings: &ProjectorSettings| {
        let why = ok(why(&store, ids[number], settings).await);
        assert_eq!(why.id, ids[number]);
        assert!(!why.explanation.is_empty() && !why.advice.is_empty());
        assert_eq!(
            why.event.as_ref().map(|event| event.event_type.as_str()),
            Some("order.changed")
        );
        why
    };
    let behind = |why: &Why| why.behind.as_ref().map(|ahead| ahead.id);

    let sent = asked(0, &skipping).await;
    assert!(
        matches!(sent.because, Because::Sent { sent_at: Some(_) }),
        "{sent:?}"
    );
    let letter = asked(1, &skipping).await;
    let Because::Dead {
        attempts: 1,
        reason: Some(reason),
    } = &letter.because
    else {
        panic!("{letter:?}")
    };
    assert!(reason == "refused for good" && letter.advice.contains("dead retry --id"));
    let failed = asked(3, &skipping).await;
    assert!(
        matches!(failed.because, Because::Retrying { attempts: 1, .. }),
        "{failed:?}"
    );
    let its_time = asked(5, &skipping).await;
    assert!(
        matches!(its_time.because, Because::Delayed { until } if until == later),
        "{its_time:?}"
    );

    assert_eq!(asked(2, &skipping).await.because, Because::NoRelay);
    let held = asked(2, &blocking).await;
    assert_eq!(
        (&held.because, behind(&held)),
        (&Because::Behind, Some(ids[1]))
    );
    assert!(held.explanation.contains("it is a dead letter") && held.advice.contains("dead retry"));
    for (number, ahead) in [(4, 3), (6, 5), (8, 7)] {
        let held = asked(number, &skipping).await;
        assert_eq!(
            (&held.because, behind(&held)),
            (&Because::Behind, Some(ids[ahead]))
        );
        let free = asked(number, &unordered).await;
        assert_eq!((&free.because, behind(&free)), (&Because::NoRelay, None));
    }

    let (carrier, _) = relay(&store, None).await;
    let due = asked(7, &skipping).await;
    assert!(
        matches!(due.because, Because::Due { relay, .. } if relay == carrier.id),
        "{due:?}"
    );
    let (idle, _) = relay(&store, None).await;
    ok(store.lease(&carrier, Duration::from_millis(1)).await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let orphan = asked(7, &skipping).await;
    // The first relay has given half of them back, and the idle one has not asked again.
    assert_eq!(orphan.because, Because::Unheld { relays: 1 });
    ok(store.release(&idle).await);

    let tenant = bento_outbox::Pausable::Tenant;
    let default = ["default".to_string()];
    ok(store
        .pause(
            tenant,
            &default,
            "cli:anna@relay-1",
            Some("a schema changes"),
        )
        .await);
    let paused = asked(7, &skipping).await;
    assert!(
        matches!(&paused.because, Because::Paused(pause) if pause.name == "default"),
        "{paused:?}"
    );
    assert!(
        paused.explanation.contains("a schema changes"),
        "{paused:?}"
    );
    assert!(matches!(
        asked(0, &skipping).await.because,
        Because::Sent { .. }
    ));
    ok(store.resume(tenant, &default, "cli:anna@relay-1").await);

    let unknown = ok(why(&store, Uuid::new_v4(), &skipping).await);
    assert_eq!((unknown.because, unknown.event), (Because::Unknown, None));

    let birth = Birth {
        owner: Uuid::new_v4(),
        term: Duration::from_secs(60),
    };
    let born = event("born", 9);
    let mut transaction = ok(store.begin(None).await);
    let connection = S::connection(&mut transaction);
    let events = std::slice::from_ref(&born);
    let tenant = Tenant::default();
    let append = store.append(connection, &tenant, events, Some(&birth));
    let appended = ok(append.await);
    ok(store.commit(transaction, &appended).await);
    let born = ok(why(&store, born.id, &skipping).await);
    assert!(
        matches!(born.because, Because::AtOnce { process, .. } if process == birth.owner),
        "{born:?}"
    );
}
