//! Messages are received once, together with their effects.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::{
    Cause, Commands, Error, ErrorKind, Inbox, Isolation, Projector, ProjectorSettings, Result,
    raise,
};
use tokio::sync::{Mutex, Notify};

use super::*;
use crate::cancel::cancel_at_every_await;

/// So long a case looks whether somebody waits.
pub(super) const LOOK: Duration = Duration::from_millis(200);

fn message(id: &str) -> Cause {
    Cause {
        message_id: id.into(),
        ..Cause::default()
    }
}

/// Delivers a message whose effect is an event; says whether it had it now.
async fn deliver<S: TransactionalStore>(inbox: &Inbox<S>, consumer: &str, id: &str) -> bool {
    ok(redelivered(inbox, consumer, id).await)
}

/// Delivers it again for as long as the consumer gives way to another, as a bus does.
async fn redelivered<S: TransactionalStore>(
    inbox: &Inbox<S>,
    consumer: &str,
    id: &str,
) -> Result<bool> {
    loop {
        let effect = async |_: &mut _| raise(unordered(1));
        match inbox.handle(consumer, message(id), effect).await {
            Err(error) if error.is_retryable() => {}
            answer => return answer.map(|done| done.is_some()),
        }
    }
}

/// How many effects there are.
pub(super) async fn effects<S: TransactionalStore>(store: &S) -> usize {
    claim(store).await.len()
}

pub(super) fn undone() -> Error {
    Error::new(ErrorKind::RolledBack, "declined")
}

/// A message is received once, within a unit of work and after it.
pub async fn only_the_first_time_is_the_first<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    let mut uow = ok(outbox.begin().await);
    assert!(ok(inbox.first_time(&mut uow, "bills", "1").await));
    assert!(!ok(inbox.first_time(&mut uow, "bills", "1").await));
    assert!(ok(inbox.first_time(&mut uow, "bills", "2").await));
    ok(uow.commit().await);
    let mut uow = ok(outbox.begin().await);
    assert!(!ok(inbox.first_time(&mut uow, "bills", "2").await));
    assert!(ok(inbox.first_time(&mut uow, "bills", "3").await));
    ok(uow.commit().await);
    assert!(!deliver(&inbox, "bills", "1").await);
    assert!(!deliver(&inbox, "bills", "3").await);
    assert!(deliver(&inbox, "bills", "4").await);
    assert!(!deliver(&inbox, "bills", "4").await);
    assert_eq!(effects(&store).await, 1);
}

/// Each consumer receives a message for itself.
pub async fn each_consumer_receives_for_itself<S: TransactionalStore>(store: S) {
    let inbox = Inbox::new(&Outbox::new(store.clone()));
    for first in [true, false] {
        for consumer in ["bills", "mails", "Bills"] {
            assert_eq!(deliver(&inbox, consumer, "1").await, first, "{consumer}");
        }
    }
    assert_eq!(effects(&store).await, 3);
}

/// Each tenant has its own messages.
pub async fn each_tenant_receives_for_itself<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    for first in [true, false] {
        for tenant in ["acme", "other", "default"] {
            let inbox = Inbox::new(&outbox.tenant(tenant));
            assert_eq!(deliver(&inbox, "bills", "1").await, first, "{tenant}");
        }
        let inbox = Inbox::new(&outbox);
        assert!(!deliver(&inbox, "bills", "1").await, "it is default's");
    }
    assert_eq!(effects(&store).await, 3);
}

/// However many deliver the same messages at the same time, and at whatever isolation.
pub async fn deliveries_at_the_same_time_have_their_effects_once<S: TransactionalStore>(store: S) {
    const MESSAGES: usize = 4;
    let levels = [
        Isolation::ReadCommitted,
        Isolation::RepeatableRead,
        Isolation::Serializable,
    ];
    for (round, level) in (1..).zip(levels) {
        let inbox = Inbox::new(&Outbox::new(store.clone()).isolation(level));
        let all: Vec<_> = (0..8 * MESSAGES)
            .map(|n| {
                let (inbox, id) = (inbox.clone(), format!("{level:?}-{}", n % MESSAGES));
                tokio::spawn(async move { deliver(&inbox, "bills", &id).await })
            })
            .collect();
        let mut first = 0;
        for one in all {
            first += usize::from(ok(one.await));
        }
        assert_eq!(first, MESSAGES, "{level:?}");
        assert_eq!(effects(&store).await, round * MESSAGES, "{level:?}");
    }
}

/// Who comes second waits, and is told what has become of the first.
pub async fn a_second_delivery_waits_for_the_first<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    for commits in [true, false] {
        let id = format!("{commits}");
        let mut uow = ok(outbox.begin().await);
        assert!(ok(inbox.first_time(&mut uow, "bills", &id).await));
        let second = {
            let (inbox, id) = (inbox.clone(), id.clone());
            tokio::spawn(async move { deliver(&inbox, "bills", &id).await })
        };
        tokio::time::sleep(LOOK).await;
        assert!(!second.is_finished(), "the first has not ended");
        match commits {
            true => drop(ok(uow.commit().await)),
            false => ok(uow.rollback().await),
        }
        let second = ok(tokio::time::timeout(patience(), second).await);
        assert_eq!(ok(second), !commits);
    }
    assert_eq!(effects(&store).await, 1);
}

/// Where the first fails while several wait, one of them is the first.
pub async fn of_those_that_wait_one_goes_on<S: TransactionalStore>(store: S) {
    let inbox = Inbox::new(&Outbox::new(store.clone()));
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let failing = {
        let (inbox, begun, go_on) = (inbox.clone(), begun.clone(), go_on.clone());
        tokio::spawn(async move {
            let effect = async |_: &mut _| {
                begun.notify_one();
                go_on.notified().await;
                Err::<(), _>(undone())
            };
            inbox.handle("bills", message("1"), effect).await
        })
    };
    begun.notified().await;
    let waiting: Vec<_> = (0..6)
        .map(|_| {
            let inbox = inbox.clone();
            tokio::spawn(async move { deliver(&inbox, "bills", "1").await })
        })
        .collect();
    tokio::time::sleep(LOOK).await;
    go_on.notify_one();
    assert!(ok(failing.await).is_err());
    let mut first = 0;
    for one in waiting {
        first += usize::from(ok(ok(tokio::time::timeout(patience(), one).await)));
    }
    assert_eq!((first, effects(&store).await), (1, 1));
}

/// An error, a panic and a unit of work that nobody ends: the message comes again and is new.
pub async fn a_failed_effect_leaves_the_message_unreceived<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    let failing = async |_: &mut _| {
        raise(unordered(1))?;
        Err::<(), _>(undone())
    };
    let failed = inbox.handle("bills", message("1"), failing).await;
    assert_eq!(failed.map_err(|e| e.to_string()), Err("declined".into()));
    let panicking = {
        let inbox = inbox.clone();
        tokio::spawn(async move {
            let effect = async |_: &mut _| -> Result<()> { panic!("a planned panic") };
            inbox.handle("bills", message("2"), effect).await
        })
    };
    assert!(panicking.await.is_err_and(|error| error.is_panic()));
    let mut dropped = ok(outbox.begin().await);
    assert!(ok(inbox.first_time(&mut dropped, "bills", "3").await));
    drop(dropped);
    for id in ["1", "2", "3"] {
        assert!(
            deliver(&inbox, "bills", id).await,
            "{id} has no effects yet"
        );
        assert!(!deliver(&inbox, "bills", id).await, "{id} has");
    }
    assert_eq!(effects(&store).await, 3);
}

/// What a nested unit of work receives is undone with it, and nothing else is.
pub async fn a_nested_unit_takes_what_it_received_with_it<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    let mut uow = ok(outbox.begin().await);
    assert!(ok(inbox.first_time(&mut uow, "bills", "before").await));
    for id in ["again", "undone"] {
        let nested = uow.nested(async |uow| {
            assert!(ok(inbox.first_time(uow, "bills", id).await));
            Err::<(), _>(undone())
        });
        assert!(nested.await.is_err());
    }
    assert!(ok(inbox.first_time(&mut uow, "bills", "again").await));
    let kept = uow.nested(async |uow| inbox.first_time(uow, "bills", "kept").await);
    assert!(ok(kept.await));
    ok(uow.commit().await);
    for (id, first) in [
        ("before", false),
        ("again", false),
        ("kept", false),
        ("undone", true),
    ] {
        assert_eq!(deliver(&inbox, "bills", id).await, first, "{id}");
    }
}

/// However a delivery is cancelled, the next one makes it whole.
pub async fn a_cancelled_delivery_has_its_effects_once<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    let number = AtomicU32::new(0);
    let delivery = async || {
        let id = number.load(Ordering::Relaxed).to_string();
        // One is a statement of the user's own, which may be dropped while it is prepared.
        let effects = async |uow: &mut bento_outbox::UnitOfWork<S>| {
            outbox.append(uow.tx(), [unordered(1)]).await?;
            raise(unordered(2))
        };
        inbox.handle("bills", message(&id), effects).await
    };
    let redelivered = async |_| {
        ok(delivery().await);
        assert!(ok(delivery().await).is_none(), "it was received before");
        let so_far = number.fetch_add(1, Ordering::Relaxed) + 1;
        assert_eq!(effects(&store).await, so_far as usize * 2);
    };
    cancel_at_every_await(delivery, redelivered).await;
}

/// A unit of work in which it is not known what was received is not committed.
pub async fn a_receipt_that_did_not_end_rolls_back<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let inbox = Inbox::new(&outbox);
    let unit = async || {
        let mut uow = ok(outbox.begin().await);
        ok(uow.raise(unordered(1)));
        uow
    };
    // It outlives what is dropped.
    let open = Mutex::new(Some(unit().await));
    let (mut before_it_began, mut committed) = (true, 0);
    let receive = async || match &mut *open.lock().await {
        Some(uow) => ok(inbox.first_time(uow, "bills", "1").await),
        None => panic!("a unit of work is open"),
    };
    let commit = async |received: Option<bool>| {
        let Some(uow) = open.lock().await.take() else {
            return;
        };
        match uow.commit().await {
            Ok(_) => {
                assert!(received == Some(true) || before_it_began, "{received:?}");
                committed += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::RolledBack, "{error:?}");
                assert_eq!(received, None);
            }
        }
        before_it_began = false;
        *open.lock().await = Some(unit().await);
    };
    cancel_at_every_await(receive, commit).await;
    drop(open);
    assert_eq!((committed, effects(&store).await), (2, 2));
    assert!(!deliver(&inbox, "bills", "1").await);
}

/// Two names are one only if they are so byte for byte, up to the longest there are.
pub async fn names_are_told_apart_byte_for_byte<S: TransactionalStore>(store: S) {
    let long = "\u{1f600}".repeat(254);
    let names = [
        "a",
        "A",
        "á",
        "a\u{301}",
        "ä",
        "ae",
        "ss",
        "ß",
        "ẞ",
        "a b",
        "a  b",
        "a%",
        "_",
        "%",
        "a_",
        "\u{1f600}",
        "'; drop table outbox_inbox; --",
        "\\",
        "\"",
        "0",
        "00",
        "0.0",
        "1e0",
        "true",
        "null",
        "NULL",
        "{table}",
        "ﬁ",
        "fi",
        "\u{feff}a",
        "a\u{200b}",
    ];
    let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
    names.extend([format!("{long}a"), format!("{long}b"), long.clone()]);
    let outbox = Outbox::new(store.clone());
    let (inbox, commands) = (Inbox::new(&outbox), Commands::new(&outbox));
    for first in [true, false] {
        let mut uow = ok(outbox.begin().await);
        for name in &names {
            let received = ok(inbox.first_time(&mut uow, "bills", name).await);
            assert_eq!(received, first, "message {name:?}");
            let consumer: String = name.chars().rev().take(128).collect();
            let received = ok(inbox.first_time(&mut uow, &consumer, "1").await);
            assert_eq!(received, first, "consumer {consumer:?}");
        }
        ok(uow.commit().await);
    }
    for name in &names {
        let answer = commands.run_once(name, name, async |_| Ok::<_, Error>(name.clone()));
        assert_eq!(&ok(answer.await), name);
    }
    for name in &names {
        let again = commands.run_once(name, name, async |_| Err::<String, _>(undone()));
        assert_eq!(&ok(again.await), name);
    }
}

/// Names that some database would cut, fold or refuse are refused on all, and spoil nothing.
pub async fn names_out_of_bounds_are_refused<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let (inbox, commands) = (Inbox::new(&outbox), Commands::new(&outbox));
    let (wide, long) = ("x".repeat(129), "é".repeat(256));
    let mut uow = ok(outbox.begin().await);
    for bad in ["", " ", "a ", " a", "a\0", "a\n", "a\u{a0}", &long] {
        for (consumer, id) in [("bills", bad), (bad, "1"), (wide.as_str(), "1")] {
            let refused = inbox.first_time(&mut uow, consumer, id).await;
            let refused = refused.map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidName), "{consumer:?} {id:?}");
        }
        for (key, fingerprint) in [("1", bad), (bad, "1")] {
            let refused = commands.run_once(key, fingerprint, async |_| Ok::<_, Error>(1));
            let refused = refused.await.map_err(|error| error.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidName), "{key:?}");
        }
    }
    assert!(ok(inbox.first_time(&mut uow, "bills", "1").await));
    ok(uow.commit().await);
    assert!(!deliver(&inbox, "bills", "1").await);
}

/// What a handled message raises says that it caused it.
pub async fn what_a_message_raises_says_so<S: TransactionalStore>(store: S) {
    let inbox = Inbox::new(&Outbox::new(store.clone()));
    let cause = Cause {
        correlation_id: Some("c-1".into()),
        ..message("4711")
    };
    let raised = inbox.handle("bills", cause, async |_| raise(unordered(1)));
    assert_eq!(ok(raised.await), Some(()));
    let headers = ok(claim(&store).await[0].headers());
    assert_eq!(headers.get(Headers::CAUSATION_ID), Some("4711"));
    assert_eq!(headers.get(Headers::CORRELATION_ID), Some("c-1"));
}

/// What was received and run long ago is forgotten, a little at a time, each by its own age.
pub async fn only_what_is_old_is_forgotten<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let (inbox, commands) = (Inbox::new(&outbox), Commands::new(&outbox));
    let runs = AtomicU32::new(0);
    let run = async |key: &str| {
        let count = async |_: &mut _| Ok::<_, Error>(runs.fetch_add(1, Ordering::Relaxed));
        ok(commands.run_once(key, "f", count).await)
    };
    for id in ["1", "2", "3"] {
        assert!(deliver(&inbox, "bills", id).await);
        run(id).await;
    }
    let (minute, short) = (Duration::from_secs(60), Duration::from_millis(5));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(ok(store.purge(Duration::ZERO, 10).await), 0);
    assert_eq!(ok(store.purge_inbox(minute, 10).await), 0);
    assert_eq!(ok(store.purge_commands(minute, 10).await), 0);
    assert_eq!(run("1").await, 0);
    assert!(!deliver(&inbox, "bills", "1").await);

    assert_eq!(ok(store.purge_inbox(short, 2).await), 2);
    assert_eq!(ok(store.purge_inbox(short, 10).await), 1);
    assert_eq!(ok(store.purge_inbox(short, 10).await), 0);
    assert_eq!((run("1").await, run("2").await, run("3").await), (0, 1, 2));
    for id in ["1", "2", "3"] {
        assert!(deliver(&inbox, "bills", id).await, "{id} is forgotten");
    }
    assert_eq!(ok(store.purge_commands(short, 2).await), 2);
    assert_eq!(ok(store.purge_commands(short, 10).await), 1);
    assert_eq!(ok(store.purge_commands(short, 10).await), 0);
    assert_eq!(run("1").await, 3);
    assert!(!deliver(&inbox, "bills", "1").await);
    assert_eq!(effects(&store).await, 6, "no event is forgotten");
}

/// The relay forgets by itself what is older than it is told to remember.
pub async fn a_relay_forgets_what_is_old<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    let (inbox, commands) = (Inbox::new(&outbox), Commands::new(&outbox));
    let run = async |number: u32| {
        let work = async |_: &mut _| Ok::<_, Error>(number);
        ok(commands.run_once("k", "f", work).await)
    };
    let relay = async |inbox_retention, command_retention| {
        let settings = ProjectorSettings {
            inbox_retention,
            command_retention,
            ..ProjectorSettings::default()
        };
        let bus = Arc::new(MemoryPublisher::default());
        let projector = Projector::new(Arc::new(store.clone()), bus, settings);
        ok(projector.run_once().await);
        ok(projector.release().await);
    };
    let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
    assert!(deliver(&inbox, "bills", "1").await);
    assert_eq!(run(1).await, 1);
    tokio::time::sleep(Duration::from_millis(20)).await;
    relay(None, None).await;
    relay(Some(long), Some(long)).await;
    assert!(!deliver(&inbox, "bills", "1").await);
    assert_eq!(run(2).await, 1);
    relay(Some(short), None).await;
    assert_eq!(run(2).await, 1);
    assert!(deliver(&inbox, "bills", "1").await);
    relay(None, Some(short)).await;
    assert!(!deliver(&inbox, "bills", "1").await);
    assert_eq!(run(2).await, 2);
}
