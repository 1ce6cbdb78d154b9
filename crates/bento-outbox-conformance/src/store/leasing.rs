//! Partition leases: who carries what, and who may write.

use std::time::Instant;

use bento_outbox::{ErrorKind, PARTITIONS};

use super::settling::CLOCK_GRAIN;
use super::*;

async fn lease(store: &dyn Store, relay: &Relay, term: Duration) -> Vec<Lease> {
    ok(store.lease(relay, term).await)
}

fn partitions(leases: &[Lease]) -> Vec<u16> {
    leases.iter().map(|lease| lease.partition).collect()
}

const LONG: Duration = Duration::from_secs(60);

/// Each of the live relays gets its part; together they hold everything, nobody holds another's.
pub async fn partitions_are_shared_fairly<S: TransactionalStore>(store: S) {
    let (one, two) = (Relay::new(None), Relay::new(None));
    assert_eq!(
        lease(&store, &one, LONG).await.len(),
        usize::from(PARTITIONS)
    );
    assert_eq!(
        lease(&store, &two, LONG).await.len(),
        0,
        "nothing is free yet"
    );
    let kept = lease(&store, &one, LONG).await;
    let got = lease(&store, &two, LONG).await;
    assert_eq!((kept.len(), got.len()), (32, 32));
    let mut all = [partitions(&kept), partitions(&got)].concat();
    all.sort_unstable();
    assert_eq!(all, (0..PARTITIONS).collect::<Vec<_>>());
    assert_eq!(
        lease(&store, &one, LONG).await,
        kept,
        "renewing keeps the epochs"
    );
    ok(store.release(&two).await);
    assert_eq!(
        lease(&store, &one, LONG).await.len(),
        usize::from(PARTITIONS)
    );
    // Of what is free nobody takes more than its part.
    let (third, fourth) = (Relay::new(None), Relay::new(None));
    for relay in [&third, &fourth, &one, &third, &fourth] {
        lease(&store, relay, LONG).await;
    }
    let mut parts = Vec::new();
    for relay in [&one, &third, &fourth] {
        parts.push(lease(&store, relay, LONG).await.len());
    }
    assert_eq!(parts, [22, 22, 20]);
}

/// A lease ends when its term has passed by the database's clock, and not before.
pub async fn a_lease_runs_out_by_the_databases_clock<S: TransactionalStore>(store: S) {
    let (dead, heir) = (Relay::new(None), Relay::new(None));
    let (term, begun) = (Duration::from_millis(700), Instant::now());
    let had = lease(&store, &dead, term).await;
    let deadline = Timestamp::now().after(patience());
    let inherited = loop {
        let leases = lease(&store, &heir, LONG).await;
        assert!(
            leases.is_empty() || begun.elapsed() + CLOCK_GRAIN >= term,
            "{} were taken before their time",
            leases.len()
        );
        if leases.len() == usize::from(PARTITIONS) {
            break leases;
        }
        assert!(
            Timestamp::now() < deadline,
            "the leases of the dead do not run out"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        had.iter()
            .zip(&inherited)
            .all(|(old, new)| new.epoch > old.epoch),
        "a new holder, a new epoch"
    );
    let again = lease(&store, &heir, LONG).await;
    assert!(
        again.iter().all(|lease| !lease.from_the_dead),
        "it is taken from the dead once"
    );
}

/// Who lost its lease changes no row: not by settling, not by counting, not under an old epoch.
pub async fn a_stale_relay_changes_nothing<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1), unordered(2)]).await;
    let stale = Relay::new(None);
    // Long enough for what it does while it holds them.
    let term = Duration::from_secs(2);
    let old = lease(&store, &stale, term).await;
    assert_eq!(
        ask(&store, &stale, &old, &everything()).await.records.len(),
        2
    );
    tokio::time::sleep(term + CLOCK_GRAIN).await;
    let heir = Relay::new(None);
    let new = lease(&store, &heir, LONG).await;
    assert_eq!(new.len(), usize::from(PARTITIONS));
    assert!(new.iter().all(|lease| lease.from_the_dead));

    let fence = Fence::Leases {
        relay: &stale,
        leases: &old,
    };
    for verdict in [
        Verdict::Sent,
        dead(),
        retry(Duration::ZERO),
        Verdict::HandOver,
    ] {
        let settlements = ids
            .iter()
            .map(|id| Settlement {
                id: *id,
                verdict: verdict.clone(),
            })
            .collect::<Vec<_>>();
        for keep_sent in [true, false] {
            let settle = Settle {
                fence,
                keep_sent,
                settlements: &settlements,
            };
            assert_eq!(
                ok(store.settle(&settle).await),
                0,
                "{verdict:?} by a stale relay"
            );
        }
    }
    assert_eq!(ok(store.attempt(&fence, ids[0]).await), None);
    // Not even with the heir's epochs in hand, and the heir not with the old ones.
    let forged = Fence::Leases {
        relay: &stale,
        leases: &new,
    };
    let outdated = Fence::Leases {
        relay: &heir,
        leases: &old,
    };
    for fence in [forged, outdated] {
        let settlements = [Settlement {
            id: ids[0],
            verdict: Verdict::Sent,
        }];
        assert_eq!(
            ok(store
                .settle(&Settle {
                    fence,
                    keep_sent: true,
                    settlements: &settlements
                })
                .await),
            0
        );
    }
    for id in &ids {
        assert_eq!(
            the(&store, *id).await.delivery,
            bento_outbox::Delivery::default()
        );
    }
    let settlements = ids
        .iter()
        .map(|id| Settlement {
            id: *id,
            verdict: Verdict::Sent,
        })
        .collect::<Vec<_>>();
    let fence = Fence::Leases {
        relay: &heir,
        leases: &new,
    };
    assert_eq!(
        ok(store
            .settle(&Settle {
                fence,
                keep_sent: true,
                settlements: &settlements
            })
            .await),
        2
    );
}

/// A relay that stops gives its partitions back, and nobody takes it for dead.
pub async fn what_is_given_back_is_taken_at_once<S: TransactionalStore>(store: S) {
    let (one, two) = (Relay::new(None), Relay::new(None));
    let had = lease(&store, &one, LONG).await;
    ok(store.release(&one).await);
    let taken = lease(&store, &two, LONG).await;
    assert_eq!(taken.len(), usize::from(PARTITIONS));
    assert!(taken.iter().all(|lease| !lease.from_the_dead));
    let pairs = had.iter().zip(&taken);
    assert!(
        pairs.into_iter().all(|(old, new)| new.epoch > old.epoch),
        "a new holder, a new epoch"
    );
    // Who gives back what it does not hold takes nothing from those who do.
    ok(store.release(&one).await);
    assert_eq!(lease(&store, &two, LONG).await, taken);
}

/// Two relays for different but overlapping tenants would both publish the same events.
pub async fn relays_whose_tenants_overlap_are_refused<S: TransactionalStore>(store: S) {
    let of = |names: &[&str]| Relay::new(Some(names.iter().map(|name| ok(name.parse())).collect()));
    let ab = of(&["a", "b"]);
    assert_eq!(
        lease(&store, &ab, LONG).await.len(),
        usize::from(PARTITIONS)
    );
    for overlapping in [Relay::new(None), of(&["b", "c"])] {
        let refused = store.lease(&overlapping, LONG).await;
        assert_eq!(
            refused.map_err(|error| error.kind()),
            Err(ErrorKind::InvalidSetting)
        );
        assert_eq!(
            lease(&store, &ab, LONG).await.len(),
            usize::from(PARTITIONS),
            "who was refused must not stop who runs"
        );
    }
    assert_eq!(
        lease(&store, &of(&["c"]), LONG).await.len(),
        usize::from(PARTITIONS),
        "others share nothing"
    );
    assert_eq!(
        lease(&store, &of(&["b", "a"]), LONG).await.len(),
        0,
        "the same tenants share"
    );
}

/// A claim stays inside the partitions that are held, and says what is due elsewhere.
pub async fn a_claim_reads_only_what_is_held<S: TransactionalStore>(store: S) {
    let ids = commit(
        &store,
        (0..200).map(|n| {
            if n % 2 == 0 {
                event(&n.to_string(), n)
            } else {
                unordered(n)
            }
        }),
    )
    .await;
    let (one, two) = (Relay::new(None), Relay::new(None));
    lease(&store, &one, LONG).await;
    lease(&store, &two, LONG).await;
    let (first, second) = (
        lease(&store, &one, LONG).await,
        lease(&store, &two, LONG).await,
    );
    let mut read = Vec::new();
    for (relay, leases) in [(&one, &first), (&two, &second)] {
        let claimed = ask(&store, relay, leases, &everything()).await;
        assert!(
            claimed.records.len() > 20,
            "the keys are not spread: {}",
            claimed.records.len()
        );
        read.extend(claimed.records.iter().map(|record| record.id));
        let fence = Fence::Leases { relay, leases };
        let settlements = ids
            .iter()
            .map(|id| Settlement {
                id: *id,
                verdict: Verdict::Sent,
            })
            .collect::<Vec<_>>();
        let settle = Settle {
            fence,
            keep_sent: true,
            settlements: &settlements,
        };
        assert_eq!(
            ok(store.settle(&settle).await),
            claimed.records.len() as u64,
            "more than is held was settled"
        );
        let left = ask(&store, relay, leases, &everything()).await;
        assert_eq!((left.records.len(), left.elsewhere), (0, read.len() < 200));
    }
    read.sort();
    let mut all = ids;
    all.sort();
    assert_eq!(read, all);
    let hour = Timestamp::now().after(Duration::from_secs(3_600));
    let delayed = (0..30).map(|n| Event {
        available_at: Some(hour),
        ..unordered(n)
    });
    commit(&store, delayed).await;
    let later = ask(&store, &one, &first, &everything()).await;
    assert_eq!(
        (later.records.len(), later.waiting, later.elsewhere),
        (0, true, false),
        "what is not due is due nowhere"
    );
    let nothing = ask(&store, &one, &[], &everything()).await;
    assert_eq!(nothing.records.len(), 0);
}

/// An attempt that may kill the process leaves its mark before it is made, and only then.
pub async fn an_attempt_is_counted_before_it_is_made<S: TransactionalStore>(store: S) {
    let ids = commit(&store, [event("a", 1)]).await;
    let (relay, leases) = relay(&store, None).await;
    let fence = Fence::Leases {
        relay: &relay,
        leases: &leases,
    };
    assert_eq!(ok(store.attempt(&fence, ids[0]).await), Some(1));
    assert_eq!(ok(store.attempt(&fence, ids[0]).await), Some(2));
    assert_eq!(
        ask(&store, &relay, &leases, &everything()).await.records[0].lost_attempts,
        2
    );
    let settled = async |verdict| {
        let settlements = [Settlement {
            id: ids[0],
            verdict,
        }];
        let settle = Settle {
            fence,
            keep_sent: true,
            settlements: &settlements,
        };
        assert_eq!(ok(store.settle(&settle).await), 1);
        the(&store, ids[0]).await
    };
    let handed_over = settled(Verdict::HandOver).await;
    assert_eq!(
        (handed_over.lost_attempts, handed_over.delivery),
        (1, bento_outbox::Delivery::default()),
        "the last attempt was none, the one before is still lost"
    );
    assert_eq!(
        settled(retry(Duration::ZERO)).await.lost_attempts,
        0,
        "a result is known: nothing was lost"
    );
    assert_eq!(ok(store.attempt(&fence, Uuid::now_v7()).await), None);
    settled(Verdict::Sent).await;
    assert_eq!(
        ok(store.attempt(&fence, ids[0]).await),
        None,
        "what is sent is attempted no more"
    );
}
