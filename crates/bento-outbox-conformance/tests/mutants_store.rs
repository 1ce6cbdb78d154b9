//! The list of cases notices every broken promise, and no case in it is idle.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Mutex, Once};
use std::thread::Builder;
use std::time::Duration;

use bento_outbox_conformance::mutants::store::{Fault, MutantStore};
use bento_outbox_conformance::{store, store_cases};
use tokio::task::{JoinSet, LocalSet};

/// A case that did not end by then proves nothing: it may be the machine that is slow.
const CASE_MAX: Duration = Duration::from_secs(10);

/// So many mutants run at once; most of their time they wait.
const THREADS: usize = 12;

/// The threads that run mutants, whose panics are planned.
const THREAD: &str = "mutant";

/// Cases that no single fault of a store can fail: the library keeps these promises by itself,
/// before it asks the store for anything. They are in the list for what they do to a real
/// database's connections.
const NOT_THE_STORES: [&str; 2] = [
    "a_unit_inside_a_unit_is_refused",
    "an_event_raised_in_a_spawned_task_belongs_to_its_unit",
];

/// The one list, as data.
struct Case {
    name: &'static str,
    run: fn(MutantStore) -> Pin<Box<dyn Future<Output = ()>>>,
}

macro_rules! as_data {
    ({} $($group:ident::$case:ident),* $(,)?) => {
        const CASES: &[Case] = &[$(Case {
            name: stringify!($case),
            run: |store| Box::pin(store::$group::$case(store)),
        }),*];
    };
}
store_cases!(as_data {});

#[test]
fn every_broken_promise_fails_a_case() {
    be_quiet_about_mutants();
    // The sound one runs in the same crowd: were a case too hasty for it, it would fail as well.
    let stores = Fault::ALL.iter().copied().map(Some).chain([None]);
    let queue = Mutex::new(stores);
    let next = || queue.lock().unwrap().next();
    let results: Vec<(Option<Fault>, Vec<&str>)> = std::thread::scope(|scope| {
        let work = || {
            std::iter::from_fn(next)
                .map(|fault| (fault, failed_cases(fault)))
                .collect()
        };
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                Builder::new()
                    .name(THREAD.into())
                    .spawn_scoped(scope, work)
                    .unwrap()
            })
            .collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect::<Vec<Vec<_>>>().concat()
    });

    let mut idle: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    let mut survivors = Vec::new();
    for (fault, failed) in &results {
        let Some(fault) = fault else {
            assert_eq!(failed, &[""; 0], "a store without a fault fails");
            continue;
        };
        if failed.is_empty() {
            survivors.push(fault);
        }
        // A fault that fails most of the cases tells nothing of any one of them.
        let (names, tells) = match failed.len() {
            many if many > CASES.len() / 2 => ("most cases".into(), false),
            _ => (failed.join(", "), true),
        };
        eprintln!("{fault:?}: {names}");
        idle.retain(|case| !(tells && failed.contains(case)));
    }
    assert_eq!(results.len(), Fault::ALL.len() + 1);
    assert!(survivors.is_empty(), "no case notices {survivors:?}");
    assert_eq!(
        idle,
        BTreeSet::from(NOT_THE_STORES),
        "cases that no mutant fails"
    );
}

/// Runs every case on a store of its own; says which ones panicked.
fn failed_cases(fault: Option<Fault>) -> Vec<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut cases = JoinSet::new();
        for case in CASES {
            let done = (case.run)(MutantStore::new(fault));
            cases.spawn_local(async move {
                let run = tokio::task::spawn_local(tokio::time::timeout(CASE_MAX, done));
                (case.name, run.await)
            });
        }
        let ended = cases.join_all().await;
        let failed = ended.into_iter().filter(|(_, result)| result.is_err());
        failed.map(|(name, _)| name).collect()
    })
}

/// Hundreds of planned panics would hide the one that matters.
fn be_quiet_about_mutants() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name() != Some(THREAD) {
                tell(panic);
            }
        }));
    });
}
