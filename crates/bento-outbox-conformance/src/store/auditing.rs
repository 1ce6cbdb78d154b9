//! What operators did is written down with it.

use bento_outbox::{Act, Pausable};
use serde_json::json;

use super::*;

const BY: &str = "cli:anna@relay-1";

/// Whatever an operator changes leaves one act, and what changes nothing leaves none.
pub async fn each_change_leaves_one_act<S: TransactionalStore>(store: S) {
    let ids = commit(&store, (0..5).map(|n| event(&n.to_string(), n))).await;
    for id in &ids[..4] {
        settle(&store, *id, dead()).await;
    }
    let acts = async || ok(store.acts(None, 100).await);
    assert_eq!(acts().await, []);
    let before = Timestamp::now();
    ok(store.retry(&[ids[1], ids[0], ids[4]], BY).await);
    ok(store.retry(&[ids[0], ids[4]], BY).await);
    ok(store.discard(&[ids[2]], "api:10.0.0.7").await);
    ok(store.discard(&[ids[2], ids[4]], BY).await);
    let acme = ["acme".to_string(), "globex".into()];
    let tenant = Pausable::Tenant;
    ok(store.pause(tenant, &acme, BY, Some("moving")).await);
    ok(store.pause(tenant, &acme, BY, None).await);
    ok(store.resume(tenant, &acme[..1], BY).await);
    ok(store.resume(tenant, &acme[..1], BY).await);
    let main = ["main".to_string()];
    ok(store.pause(Pausable::Destination, &main, BY, None).await);
    let replay = Act::new(BY, "replay", json!({ "type": "a" }), 7, Some("for Bob"));
    ok(store.audit(&replay).await);

    let told = acts().await;
    assert!(
        told.windows(2).all(|pair| pair[0].number > pair[1].number),
        "newest first"
    );
    for kept in &told {
        let off = before.until(kept.at).max(kept.at.until(before));
        assert!(off < Duration::from_secs(60), "{kept:?}");
    }
    let acts: Vec<Act> = told.into_iter().rev().map(|kept| kept.act).collect();
    let verbs: Vec<_> = acts
        .iter()
        .map(|act| (act.verb.as_str(), act.by.as_str(), act.changed))
        .collect();
    assert_eq!(
        verbs,
        [
            ("retry", BY, 2),
            ("discard", "api:10.0.0.7", 1),
            ("pause", BY, 2),
            ("resume", BY, 1),
            ("pause", BY, 1),
            ("replay", BY, 7)
        ]
    );
    let mut retried: Vec<String> = acts[0].what["ids"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|id| id.as_str().map(Into::into))
        .collect();
    retried.sort_unstable();
    let mut expected = [ids[0].to_string(), ids[1].to_string()];
    expected.sort_unstable();
    assert_eq!(retried, expected, "those that were changed");
    assert_eq!(acts[1].what, json!({ "ids": [ids[2]] }));
    assert_eq!(acts[2].what, json!({ "tenants": ["acme", "globex"] }));
    assert_eq!(acts[2].note.as_deref(), Some("moving"));
    assert_eq!(acts[3].what, json!({ "tenants": ["acme"] }));
    assert_eq!(acts[4].what, json!({ "destinations": ["main"] }));
    assert_eq!(acts[5], replay);
}

/// Acts are read in pages, each going on where the last one ended.
pub async fn acts_are_read_in_pages<S: TransactionalStore>(store: S) {
    for n in 0..7 {
        let act = Act::new(BY, "replay", json!({ "n": n }), n, None);
        ok(store.audit(&act).await);
    }
    let (mut before, mut read) = (None, Vec::new());
    loop {
        let page = ok(store.acts(before, 3).await);
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        before = Some(last.number);
        read.extend(page.iter().map(|kept| kept.act.changed));
        assert!(read.len() <= 7, "{read:?}");
    }
    assert_eq!(read, [6, 5, 4, 3, 2, 1, 0]);
}

/// Nobody ever sees a change without its act: they are one transaction.
pub async fn a_change_and_its_act_are_seen_together<S: TransactionalStore>(store: S) {
    let tenant = ["acme".to_string()];
    for n in 0..4 {
        let id = commit(&store, [event(&n.to_string(), n)]).await[0];
        settle(&store, id, dead()).await;
        let (actor, paused) = (store.clone(), tenant.clone());
        let acting = tokio::spawn(async move {
            ok(match n % 4 {
                0 => actor.retry(&[id], BY).await,
                1 => actor.discard(&[id], BY).await,
                2 => actor.pause(Pausable::Tenant, &paused, BY, None).await,
                _ => actor.resume(Pausable::Tenant, &paused, BY).await,
            })
        });
        loop {
            let changed = match n % 4 {
                0 | 1 => ok(store.find(&[id]).await)
                    .pop()
                    .is_none_or(|record| record.delivery.status == Status::New),
                2 => !ok(store.pauses().await).is_empty(),
                _ => ok(store.pauses().await).is_empty(),
            };
            if changed {
                let acts = ok(store.acts(None, 10).await);
                assert_eq!(acts.len(), n as usize + 1, "{acts:?}");
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(ok(acting.await), 1);
    }
}
