//! What an operator asks and decides, dropped everywhere.

use bento_outbox::{DeadLetters, Decision, held};

use super::*;

const LETTERS: usize = 24;

/// How many letters the audit says were changed so.
async fn audited(store: &dyn Store, verb: &str) -> u64 {
    let acts = store.acts(None, 500).await.unwrap();
    let of_it = acts.iter().filter(|audited| audited.act.verb == verb);
    of_it.map(|audited| audited.act.changed).sum()
}

async fn dead(store: &dyn Store) -> usize {
    let mut letters = DeadLetters::of(store, &Filter::default());
    letters.next_page(500).await.unwrap().len()
}

/// A decision that was dropped is made as a whole and audited, or it is not made.
async fn a_dropped_decision_is_whole_or_nothing<S: Orders>() {
    let slow = S::slow().await;
    let outbox = Outbox::new(slow.direct.clone());
    let (store, direct): (&dyn Store, &dyn Store) = (&slow.store, &slow.direct);
    let raising = outbox.run(async |_| (0..LETTERS).try_for_each(|_| raise(event())));
    raising.await.unwrap();
    let relay = Relay::new(None);
    let leases = direct.lease(&relay, Duration::from_secs(60)).await.unwrap();
    let claim = Claim {
        relay: &relay,
        leases: &leases,
        limit: 100,
        in_flight: &[],
        ordered: true,
        dead_letters_block: false,
    };
    let refused = |id| Settlement {
        id,
        verdict: Verdict::Dead {
            counts: true,
            reason: "no".into(),
        },
    };
    let records = direct.claim(&claim).await.unwrap().records;
    let settlements: Vec<_> = records.iter().map(|record| refused(record.id)).collect();
    let fence = Fence::Leases {
        relay: &relay,
        leases: &leases,
    };
    let settle = Settle {
        fence,
        keep_sent: true,
        settlements: &settlements,
    };
    assert_eq!(direct.settle(&settle).await.unwrap(), LETTERS as u64);

    let few = || {
        let short = (0..12).map(|n| Duration::from_millis(n * 2));
        short.chain([LONG])
    };
    let settings = ProjectorSettings::default();
    let same = async |_| assert_eq!(dead(direct).await, LETTERS, "to look changes nothing");
    let holds = async || drop(held(store, &settings, 9).await.unwrap());
    cancel_after_each(few(), holds, same).await;
    let look = async || {
        let mut letters = DeadLetters::of(store, &Filter::default());
        letters.look(500).await.unwrap();
    };
    cancel_after_each(few(), look, same).await;

    // One letter each time; what was dropped may go on for a moment.
    for (decision, verb) in [(Decision::Retry, "retry"), (Decision::Discard, "discard")] {
        let before = dead(direct).await;
        let decide = async || {
            let mut letters = DeadLetters::of(store, &Filter::default());
            letters.decide(decision, 1, "test").await.unwrap();
        };
        let whole = async |_| {
            let soon = std::time::Instant::now() + Duration::from_secs(60);
            while (before - dead(direct).await) as u64 != audited(direct, verb).await {
                assert!(std::time::Instant::now() < soon, "{verb} without its audit");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        cancel_after_each(few(), decide, whole).await;
        assert!(audited(direct, verb).await > 0);
    }
    let left = slow.direct.number("select count(*) from outbox").await;
    let discarded = audited(direct, "discard").await;
    assert_eq!(left as u64 + discarded, LETTERS as u64, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres() {
    a_dropped_decision_is_whole_or_nothing::<PostgresStore>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_mysql() {
    a_dropped_decision_is_whole_or_nothing::<MySqlStore>().await;
}
