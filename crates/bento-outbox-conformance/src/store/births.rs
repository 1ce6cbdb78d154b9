//! Birth leases: what a process commits it may publish first, and nobody else meanwhile.

use std::time::Instant;

use bento_outbox::Appended;

use super::settling::CLOCK_GRAIN;
use super::*;

fn birth(term: Duration) -> Birth {
    Birth {
        owner: Uuid::new_v4(),
        term,
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Commits events with a birth lease, in one transaction of several appends.
async fn appended<S: TransactionalStore>(
    store: &S,
    birth: &Birth,
    appends: &[&[Event]],
) -> Vec<Appended> {
    let mut transaction = ok(store.begin(None).await);
    let tenant = Tenant::default();
    let mut all = Vec::new();
    for events in appends {
        let connection = S::connection(&mut transaction);
        all.push(ok(store
            .append(connection, &tenant, events, Some(birth))
            .await));
    }
    ok(store.commit(transaction, &all[0]).await);
    all
}

/// Commits events with a birth lease; answers which were born leased.
async fn born<S: TransactionalStore>(store: &S, birth: &Birth, events: &[Event]) -> Vec<Uuid> {
    leased(&appended(store, birth, &[events]).await[0])
}

fn leased(appended: &Appended) -> Vec<Uuid> {
    appended.leased.iter().map(|record| record.id).collect()
}

async fn settle_born(store: &dyn Store, birth: &Birth, id: Uuid, verdict: Verdict) -> u64 {
    let settlements = [Settlement { id, verdict }];
    ok(store
        .settle(&Settle {
            fence: Fence::Birth(birth.owner),
            keep_sent: true,
            settlements: &settlements,
        })
        .await)
}

/// Leased are the events of which nothing earlier of the key is unsent, and that are due.
pub async fn an_event_is_born_leased_when_nothing_earlier_waits<S: TransactionalStore>(store: S) {
    let mine = birth(LONG);
    let later = Some(Timestamp::now().after(LONG));
    let first = [
        event("a", 1),
        event("a", 2),
        unordered(3),
        Event {
            available_at: later,
            ..event("b", 4)
        },
        Event {
            tenant: Some(ok("other".parse())),
            ..event("a", 5)
        },
        Event {
            aggregate: Aggregate::new("invoice", "c"),
            ..event("", 6)
        },
    ];
    let leased = born(&store, &mine, &first).await;
    assert_eq!(leased, [0, 1, 2, 4, 5].map(|n| first[n].id));
    let second = [event("a", 6), event("b", 7), unordered(8), event("c", 9)];
    assert_eq!(
        born(&store, &mine, &second).await,
        [second[2].id, second[3].id]
    );
    assert_eq!(settle_born(&store, &mine, first[4].id, dead()).await, 1);
    let third = [Event {
        tenant: Some(ok("other".parse())),
        ..event("a", 10)
    }];
    assert_eq!(
        born(&store, &mine, &third).await,
        [] as [Uuid; 0],
        "a dead letter is unsent as well"
    );
    assert_eq!(
        settle_born(&store, &mine, second[3].id, Verdict::Sent).await,
        1
    );
    let fourth = [event("c", 11)];
    assert_eq!(born(&store, &mine, &fourth).await, [fourth[0].id]);
}

/// What a transaction wrote before is earlier too, and what is there already is born no more.
pub async fn an_event_is_born_once_and_in_its_transaction<S: TransactionalStore>(store: S) {
    let mine = birth(LONG);
    let [first, second, third] = [event("a", 1), event("a", 2), event("b", 3)];
    let appends = [&[first.clone()][..], &[second, third.clone()]];
    let both = appended(&store, &mine, &appends).await;
    assert_eq!(leased(&both[0]), [first.id]);
    assert_eq!(leased(&both[1]), [third.id], "an earlier one is unsent");
    let fourth = Event {
        tenant: Some(ok("other".parse())),
        ..event("a", 4)
    };
    let again = appended(&store, &mine, &[&[third.clone(), fourth.clone()]]).await;
    assert_eq!(again[0].duplicates, [third.id]);
    // What the caller gets is what a relay would read.
    for (event, told) in [(&first, &both[0]), (&fourth, &again[0])] {
        assert_eq!(leased(told), [event.id]);
        let (told, kept) = (&told.leased[0], the(&store, event.id).await);
        assert_eq!(
            (told.seq, told.id, &told.tenant, told.occurred_at),
            (kept.seq, kept.id, &kept.tenant, kept.occurred_at)
        );
        assert_eq!(
            (&told.payload, &told.headers, &told.aggregate),
            (&kept.payload, &kept.headers, &kept.aggregate)
        );
    }
}

/// While it is leased no relay reads it, nor what comes after it in its key.
pub async fn a_birth_lease_holds_its_key_until_it_is_settled<S: TransactionalStore>(store: S) {
    let mine = birth(LONG);
    let [first, second, other] = [event("a", 1), event("a", 2), event("b", 3)];
    born(&store, &mine, std::slice::from_ref(&first)).await;
    commit(&store, [second.clone(), other.clone()]).await;
    let read = claimed(&store, &everything()).await;
    assert_eq!(
        read.records
            .iter()
            .map(|record| record.id)
            .collect::<Vec<_>>(),
        [other.id]
    );
    assert_eq!(settle_born(&store, &mine, first.id, Verdict::Sent).await, 1);
    assert_eq!(the(&store, first.id).await.delivery.status, Status::Sent);
    assert_eq!(
        claimed_ids(&store, &everything()).await,
        [second.id, other.id]
    );
}

/// When the lease has run out a relay takes it over; the owner changes nothing any more.
pub async fn a_birth_lease_that_runs_out_is_taken_over<S: TransactionalStore>(store: S) {
    let mine = birth(Duration::from_secs(1));
    let events = [event("a", 1), event("a", 2)];
    let begun = Instant::now();
    born(&store, &mine, &events).await;
    let deadline = Timestamp::now().after(patience());
    let taken = loop {
        let records = claim(&store).await;
        assert!(
            records.is_empty() || begun.elapsed() + CLOCK_GRAIN >= mine.term,
            "it was taken over before its time"
        );
        if !records.is_empty() {
            break records;
        }
        assert!(Timestamp::now() < deadline, "nobody takes over");
        tokio::time::sleep(Duration::from_millis(30)).await;
    };
    assert_eq!(taken[0].id, events[0].id);
    assert_eq!(taken[0].lost_attempts, 1, "an attempt left no result");
    assert_eq!(claimed_in_turn(&store).await, [events[0].id, events[1].id]);
    for verdict in [Verdict::Sent, dead(), Verdict::HandOver] {
        assert_eq!(settle_born(&store, &mine, events[0].id, verdict).await, 0);
    }
    assert_eq!(the(&store, events[0].id).await.delivery.status, Status::New);
    assert_eq!(claim(&store).await[0].lost_attempts, 1, "taken over once");
}

/// A relay that lost its partitions takes nothing over: the next one does, and counts it.
pub async fn a_stale_relay_takes_nothing_over<S: TransactionalStore>(store: S) {
    let brief = Duration::from_millis(300);
    let events = [event("a", 1)];
    born(&store, &birth(brief), &events).await;
    let later = commit(&store, [event("a", 2)]).await;
    let stale = Relay::new(None);
    let old = ok(store.lease(&stale, brief).await);
    tokio::time::sleep(brief + Duration::from_millis(50)).await;
    let (heir, leases) = relay(&store, None).await;
    let claimed = ask(&store, &stale, &old, &everything()).await;
    assert_eq!((claimed.records.len(), claimed.waiting), (0, true));
    assert_eq!(the(&store, events[0].id).await.lost_attempts, 0);
    let claimed = ask(&store, &heir, &leases, &everything()).await.records;
    assert_eq!((claimed[0].id, claimed[0].lost_attempts), (events[0].id, 1));
    ok(store.release(&heir).await);
    assert_eq!(claimed_in_turn(&store).await, [events[0].id, later[0]]);
}

/// Each verdict by the owner, none by another, none by a relay's fence that holds no partition.
pub async fn only_its_owner_settles_a_birth<S: TransactionalStore>(store: S) {
    let (mine, others) = (birth(LONG), birth(LONG));
    let events = [unordered(1), unordered(2), unordered(3), unordered(4)];
    born(&store, &mine, &events).await;
    for event in &events {
        assert_eq!(
            settle_born(&store, &others, event.id, Verdict::Sent).await,
            0
        );
    }
    let verdicts = [
        Verdict::Sent,
        Verdict::HandOver,
        retry(Duration::ZERO),
        dead(),
    ];
    for (event, verdict) in events.iter().zip(verdicts) {
        assert_eq!(settle_born(&store, &mine, event.id, verdict).await, 1);
        assert_eq!(
            settle_born(&store, &mine, event.id, Verdict::Sent).await,
            0,
            "it is settled once"
        );
    }
    assert_eq!(
        claimed_ids(&store, &everything()).await,
        [events[1].id, events[2].id],
        "what is handed over, or has failed, is a relay's"
    );
    let retried = the(&store, events[2].id).await.delivery;
    assert_eq!(
        (
            retried.status,
            retried.retry_cnt,
            retried.retry_at.is_some()
        ),
        (Status::New, 1, true)
    );
    assert_eq!(the(&store, events[3].id).await.delivery.status, Status::Err);
}

/// With `retention = 0` a sent row is gone; a dead one stays.
pub async fn what_is_sent_can_be_deleted_at_once<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), event("b", 2)]).await;
    let (relay, leases) = relay(&store, None).await;
    let fence = Fence::Leases {
        relay: &relay,
        leases: &leases,
    };
    let settlements = [
        Settlement {
            id: ids[0],
            verdict: Verdict::Sent,
        },
        Settlement {
            id: ids[1],
            verdict: dead(),
        },
    ];
    let settle = Settle {
        fence,
        keep_sent: false,
        settlements: &settlements,
    };
    assert_eq!(ok(store.settle(&settle).await), 2);
    let left = ok(store.find(&ids).await);
    assert_eq!(
        (left.len(), left[0].id, left[0].delivery.status),
        (1, ids[1], Status::Err)
    );
}
