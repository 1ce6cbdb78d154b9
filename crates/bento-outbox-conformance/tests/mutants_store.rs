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

/// So long a case waits in vain for what a mutant does not do. The sound store has as long as any other.
const PATIENCE: Duration = Duration::from_secs(5);

/// These take long: they are for mutants that no other case notices, and for one mutant each that
/// shows what they are for.
const LONG: [(&str, Fault); 3] = [
    ("an_append_may_be_large", Fault::AppendsAThousand),
    (
        "an_event_that_kills_the_relay_ends_as_a_dead_letter",
        Fault::ForgetsAttempts,
    ),
    (
        "many_relays_and_writers_under_faults_lose_and_invert_nothing",
        Fault::BornThoughNewWaits,
    ),
];

/// What a long case may take.
const LONG_CASE_MAX: Duration = Duration::from_secs(60);

/// So many mutants run at once; most of their time they wait.
const THREADS: usize = 20;

/// The threads that run mutants, whose panics are planned.
const THREAD: &str = "mutant";

/// Cases that need not be failed by a fault of a store: the library keeps these promises by itself,
/// before it asks the store for anything, or other cases look at the store's part more closely.
/// They are in the list for what they do to a real database's connections.
const NOT_THE_STORES: [&str; 3] = [
    "a_unit_inside_a_unit_is_refused",
    "an_event_raised_in_a_spawned_task_belongs_to_its_unit",
    "at_once_and_by_a_relay_each_event_comes_once",
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
    // What takes long comes first.
    let (first, then): (Vec<Fault>, Vec<Fault>) = Fault::ALL
        .iter()
        .partition(|fault| LONG.iter().any(|(_, long)| long == *fault));
    let faults = first.into_iter().map(Some).chain([None]);
    let queue = Mutex::new(faults.chain(then.into_iter().map(Some)));
    let next = || queue.lock().unwrap().next();
    let mut results: Vec<(Option<Fault>, Vec<&str>)> = std::thread::scope(|scope| {
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

    // In the crowd a case may have had no time to fail: who seems to survive is looked at alone.
    for (fault, failed) in &mut results {
        if fault.is_some() && failed.is_empty() {
            let fault = *fault;
            let alone = Builder::new().name(THREAD.into());
            *failed = alone
                .spawn(move || failed_cases(fault))
                .unwrap()
                .join()
                .unwrap();
        }
    }

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
    idle.retain(|case| !NOT_THE_STORES.contains(case));
    assert!(idle.is_empty(), "cases that no mutant fails: {idle:?}");
}

/// Says which cases panicked.
fn failed_cases(fault: Option<Fault>) -> Vec<&'static str> {
    let is_long = |case: &&Case| LONG.iter().any(|(name, _)| *name == case.name);
    let (long, short): (Vec<&Case>, Vec<&Case>) = CASES.iter().partition(is_long);
    let mut failed = failed_of(short, fault, CASE_MAX);
    let survives = failed.is_empty();
    let its_own = |name, of| LONG.contains(&(name, of));
    let shown = |case: &&Case| survives || fault.is_some_and(|fault| its_own(case.name, fault));
    let long = long.into_iter().filter(shown).collect();
    failed.extend(failed_of(long, fault, LONG_CASE_MAX));
    failed
}

/// Runs these cases at once, each on a store of its own.
fn failed_of(cases: Vec<&Case>, fault: Option<Fault>, case_max: Duration) -> Vec<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut running = JoinSet::new();
        for case in cases {
            let run = (case.run)(MutantStore::new(fault));
            let done = async move {
                match fault {
                    Some(_) => store::impatient(PATIENCE, run).await,
                    None => run.await,
                }
            };
            let name = case.name;
            running.spawn_local(async move {
                let run = tokio::task::spawn_local(tokio::time::timeout(case_max, done));
                (name, run.await)
            });
        }
        let ended = running.join_all().await;
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
