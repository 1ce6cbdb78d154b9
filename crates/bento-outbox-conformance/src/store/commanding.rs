//! Commands run once, and answer the same each time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bento_outbox::{ANSWER_BYTES_MAX, Commands, Error, ErrorKind, Isolation, Result, raise};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::receiving::{LOOK, effects, undone};
use super::*;
use crate::cancel::cancel_at_every_await;

/// A command runs once, and everybody gets the first answer.
pub async fn a_command_runs_once_and_answers_the_same<S: TransactionalStore>(store: S) {
    let commands = Commands::new(&Outbox::new(store.clone()));
    for number in 0..3_u32 {
        let work = async |_: &mut _| {
            raise(unordered(number))?;
            Ok::<_, Error>(number)
        };
        assert_eq!(ok(commands.run_once("k", "f", work).await), 0);
        assert_eq!(ok(commands.run_once("l", "f", work).await), 0);
    }
    assert_eq!(effects(&store).await, 2);
}

/// The same key for another request is refused, and nothing is done.
pub async fn a_key_of_another_request_is_refused<S: TransactionalStore>(store: S) {
    let commands = Commands::new(&Outbox::new(store.clone()));
    let work = async |_: &mut _| {
        raise(unordered(1))?;
        Ok::<_, Error>("paid".to_owned())
    };
    ok(commands.run_once("k", "4200", work).await);
    for other in ["9900", "420", "42000", "4200a"] {
        let refused = commands.run_once("k", other, work).await;
        let refused = refused.map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::KeyReused), "{other}");
    }
    assert_eq!(ok(commands.run_once("k", "4200", work).await), "paid");
    assert_eq!(effects(&store).await, 1);
}

/// Each tenant has its own keys.
pub async fn each_tenant_has_its_own_commands<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    for _ in 0..2 {
        for tenant in ["acme", "other"] {
            let commands = Commands::new(&outbox.tenant(tenant));
            let work = async |_: &mut _| {
                raise(unordered(1))?;
                Ok::<_, Error>(tenant.to_owned())
            };
            assert_eq!(ok(commands.run_once("k", tenant, work).await), tenant);
        }
    }
    assert_eq!(effects(&store).await, 2);
}

/// Who calls while a command runs waits for its answer; or for its failure, and then one runs it.
pub async fn a_second_call_waits_for_the_first<S: TransactionalStore>(store: S) {
    let outbox = Outbox::new(store.clone());
    for (level, fails) in [
        (Isolation::ReadCommitted, false),
        (Isolation::ReadCommitted, true),
        (Isolation::Serializable, false),
    ] {
        let commands = Commands::new(&outbox.isolation(level));
        let key = format!("{level:?} {fails}");
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let first = {
            let (commands, key) = (commands.clone(), key.clone());
            let (begun, go_on) = (begun.clone(), go_on.clone());
            tokio::spawn(async move {
                let work = async |_: &mut _| {
                    begun.notify_one();
                    go_on.notified().await;
                    if fails { Err(undone()) } else { Ok(0) }
                };
                commands.run_once(&key, "f", work).await
            })
        };
        begun.notified().await;
        let call = |number: u32, fingerprint: &'static str| {
            let (commands, key) = (commands.clone(), key.clone());
            tokio::spawn(async move {
                let work = async |_: &mut _| Ok::<_, Error>(number);
                commands.run_once(&key, fingerprint, work).await
            })
        };
        let others: Vec<_> = (1..=4).map(|number| call(number, "f")).collect();
        tokio::time::sleep(LOOK).await;
        assert!(others.iter().all(|other| !other.is_finished()), "{key}");
        go_on.notify_one();
        assert_eq!(ok(first.await).is_err(), fails, "{key}");
        let mut answers = BTreeSet::new();
        for other in others {
            answers.insert(ok(ok(ok(tokio::time::timeout(patience(), other).await))));
        }
        assert_eq!(answers.len(), 1, "{key}: {answers:?}");
        assert_eq!(answers.contains(&0), !fails, "{key}");
        let refused = ok(call(9, "g").await).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::KeyReused));
    }
}

/// A command that fails or panics is undone together with its key.
pub async fn a_failed_command_runs_again<S: TransactionalStore>(store: S) {
    let commands = Commands::new(&Outbox::new(store.clone()));
    let failing = async |_: &mut _| {
        raise(unordered(1))?;
        Err::<u32, _>(undone())
    };
    let failed = commands.run_once("k", "f", failing).await;
    assert_eq!(failed.map_err(|e| e.to_string()), Err("declined".into()));
    let panicking = {
        let commands = commands.clone();
        tokio::spawn(async move {
            let work = async |_: &mut _| -> Result<u32> { panic!("a planned panic") };
            commands.run_once("k", "f", work).await
        })
    };
    assert!(panicking.await.is_err_and(|error| error.is_panic()));
    let large = "x".repeat(ANSWER_BYTES_MAX);
    let too_large = commands.run_once("k", "f", async |_| Ok::<_, Error>(large.clone()));
    let refused = too_large.await.map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::AnswerTooLarge));
    // The request may be another one: the key was never used.
    let work = async |_: &mut _| {
        raise(unordered(1))?;
        Ok::<_, Error>(7)
    };
    assert_eq!(ok(commands.run_once("k", "g", work).await), 7);
    assert_eq!(effects(&store).await, 1);
}

/// However a call is cancelled, the next one answers, and the command has run once.
pub async fn a_cancelled_command_runs_once<S: TransactionalStore>(store: S) {
    let commands = Commands::new(&Outbox::new(store.clone()));
    let number = AtomicU32::new(0);
    let call = async || {
        let key = number.load(Ordering::Relaxed);
        let work = async |_: &mut _| {
            raise(unordered(key))?;
            Ok::<_, Error>(key)
        };
        commands.run_once(&key.to_string(), "f", work).await
    };
    let called_again = async |_| {
        let key = number.load(Ordering::Relaxed);
        assert_eq!(ok(call().await), key);
        number.store(key + 1, Ordering::Relaxed);
        assert_eq!(effects(&store).await, key as usize + 1);
    };
    cancel_at_every_await(call, called_again).await;
}

/// An answer is kept as it was written, byte for byte, up to the largest.
pub async fn an_answer_comes_back_byte_for_byte<S: TransactionalStore>(store: S) {
    let commands = Commands::new(&Outbox::new(store.clone()));
    let largest = format!("\"{}\"", "x".repeat(ANSWER_BYTES_MAX - 2));
    let answers = [
        "null",
        "{ \"b\" : 1e400, \"a\":\"\\u0000\", \"a\" : 2 }",
        "-0.0",
        "\"\u{1f600} ' \\\\ é\"",
        "[ ]",
        "123456789012345678901234567890.000000000000000000001",
        &largest,
    ];
    for (key, answer) in answers.into_iter().enumerate() {
        for _ in 0..2 {
            let work =
                async |_: &mut _| Ok::<_, Error>(ok(RawValue::from_string(answer.to_owned())));
            let answered = ok(commands.run_once(&key.to_string(), "f", work).await);
            assert!(answered.get() == answer, "{key} came back otherwise");
        }
    }
    // A program that takes it for something else.
    let work = async |_: &mut _| Ok::<_, Error>(1);
    let refused = commands
        .run_once("1", "f", work)
        .await
        .map_err(|error| error.kind());
    assert_eq!(refused, Err(ErrorKind::Undecodable));
}
