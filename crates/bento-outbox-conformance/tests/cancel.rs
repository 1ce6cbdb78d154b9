//! The tools that drop futures drop them at every place, and say so when they could not.

use std::cell::Cell;
use std::time::Duration;

use bento_outbox_conformance::cancel::{cancel_after_each, cancel_at_every_await};
use tokio::task::yield_now;
use tokio::time::sleep;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test]
async fn every_await_is_dropped_once_and_the_last_run_completes() {
    let (mut seen, steps) = (Vec::new(), Cell::new(0));
    let dropped = cancel_at_every_await(
        async || {
            steps.set(0);
            for _ in 0..3 {
                steps.set(steps.get() + 1);
                yield_now().await;
            }
            "done"
        },
        async |output| seen.push((steps.get(), output)),
    )
    .await;

    // Never polled (so the step of the run before is not there yet), then one more step each time.
    assert_eq!(
        seen,
        [
            (0, None),
            (1, None),
            (2, None),
            (3, None),
            (3, Some("done"))
        ]
    );
    assert_eq!(dropped, 4);
}

#[tokio::test]
async fn a_future_that_waits_for_real_events_gets_them() {
    let mut outputs = Vec::new();
    cancel_at_every_await(
        async || {
            sleep(ms(5)).await;
            tokio::spawn(sleep(ms(5))).await.is_ok()
        },
        async |output| outputs.push(output),
    )
    .await;
    assert_eq!(outputs.pop(), Some(Some(true)));
    assert!(outputs.len() >= 3 && outputs.iter().all(Option::is_none));
}

#[tokio::test]
async fn a_step_that_is_half_done_when_dropped_is_found() {
    let (mine, theirs) = (Cell::new(0), Cell::new(0));
    let mut torn = 0;
    cancel_at_every_await(
        async || {
            mine.set(mine.get() + 1);
            yield_now().await; // the fault: money has left and not arrived
            theirs.set(theirs.get() + 1);
        },
        async |_| {
            torn += usize::from(mine.get() != theirs.get());
            theirs.set(mine.get());
        },
    )
    .await;
    assert_eq!(torn, 1);
}

#[tokio::test(start_paused = true)]
async fn every_delay_gets_its_run() {
    let mut outputs = Vec::new();
    let dropped = cancel_after_each(
        [0, 10, 20, 40].map(ms),
        async || sleep(ms(25)).await,
        async |output| outputs.push(output),
    )
    .await;
    assert_eq!(outputs, [None, None, None, Some(())]);
    assert_eq!(dropped, 3);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "none was short enough")]
async fn delays_that_drop_nothing_are_an_error() {
    cancel_after_each([ms(50)], async || sleep(ms(25)).await, async |_| {}).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "none was long enough")]
async fn delays_that_never_let_it_complete_are_an_error() {
    cancel_after_each([ms(5)], async || sleep(ms(25)).await, async |_| {}).await;
}
