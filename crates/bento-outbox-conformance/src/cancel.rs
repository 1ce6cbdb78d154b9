//! Drops futures wherever they can be dropped, and lets the test look at what is left.
//!
//! A caller may drop a future at any await: its own timeout, a `select!`, a client that hung up.
//! Two searches for the await that does not bear it:
//!
//! - [`cancel_at_every_await`] goes through the caller's side without a gap: every state in which
//!   the future can be dropped is dropped once.
//! - [`cancel_after_each`] goes by time. What the library does in tasks of its own is one single
//!   await to the caller, so only the clock (with a connection slowed down by
//!   [`faults::Proxy`](crate::faults::Proxy)) finds the moments inside it.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// Makes the future, polls it `i` times and drops it, for `i` = 0, 1, 2 and so on until it
/// completes by itself. Returns how many times it was dropped.
///
/// After each run `check` gets what the future returned: `None` when it was dropped, `Some` once,
/// at the end. Work that the future left to other tasks may still be going on then: where a check
/// needs its end, it must wait for it.
///
/// **Proves** that no await of the future itself is a bad place to stop, provided that it takes the
/// same way every time. **Does not prove** anything of moments between two polls, such as those in
/// which a spawned task or a server is at work; [`cancel_after_each`] looks there.
pub async fn cancel_at_every_await<T>(
    mut make: impl AsyncFnMut() -> T,
    mut check: impl AsyncFnMut(Option<T>),
) -> usize {
    let mut polls = 0;
    loop {
        let output = poll_at_most(polls, make()).await;
        let completed = output.is_some();
        check(output).await;
        if completed {
            return polls;
        }
        polls += 1;
    }
}

/// Makes the future and drops it when a delay has passed, once for each of `delays`. Returns how
/// many times it was dropped; the other times it was faster.
///
/// After each run `check` gets what the future returned, `None` when it was dropped.
///
/// **Proves** what the moments it hits can prove: take delays in steps shorter than the shortest
/// stage, from zero to past the end, over a connection slow enough for that.
///
/// # Panics
///
/// If no delay was short enough to drop the future, or none long enough to let it complete: then
/// the delays did not cover it, and the test proves less than it seems to.
pub async fn cancel_after_each<T>(
    delays: impl IntoIterator<Item = Duration>,
    mut make: impl AsyncFnMut() -> T,
    mut check: impl AsyncFnMut(Option<T>),
) -> usize {
    let (mut dropped, mut completed) = (0, 0);
    for delay in delays {
        let output = tokio::time::timeout(delay, make()).await.ok();
        match output {
            None => dropped += 1,
            Some(_) => completed += 1,
        }
        check(output).await;
    }
    assert!(
        dropped > 0,
        "the future completed within every delay: none was short enough to drop it"
    );
    assert!(
        completed > 0,
        "the future was dropped after every delay: none was long enough for it"
    );
    dropped
}

/// What the future returns if that takes no more than `polls` polls. Else drops it right after the
/// last one, while what it awaits is still outstanding.
async fn poll_at_most<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
