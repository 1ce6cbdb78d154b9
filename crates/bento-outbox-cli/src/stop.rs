//! SIGTERM and Ctrl-C: the first one asks to stop, the second one ends the process at once.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::failure::{Failure, Result};

/// Whether somebody asked to stop.
pub(crate) struct Stop {
    requested: watch::Receiver<bool>,
}

impl Stop {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    /// The operating system does not let us.
    pub(crate) fn on_signals() -> Result<Self> {
        let mut signals = Signals::new()
            .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
        let (request, requested) = watch::channel(false);
        tokio::spawn(async move {
            signals.next().await;
            request.send_replace(true);
            let code = signals.next().await;
            std::process::exit(code);
        });
        Ok(Self { requested })
    }

    /// Whether somebody asked to stop.
    pub(crate) fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }

    /// What `work` answers; none if somebody asked to stop and it had not ended `patience` later.
    pub(crate) async fn patiently<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let too_late = async {
            self.requested().await;
            sleep(patience).await;
        };
        let mut work = pin!(work);
        tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = too_late => None,
        }
    }

    /// Returns when somebody asks to stop.
    pub(crate) async fn requested(&self) {
        // The sender ends only with the process.
        let _ = self
            .requested
            .clone()
            .wait_for(|requested| *requested)
            .await;
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The exit code of a process that the next signal ends.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    /// The exit code of a process that the next signal ends.
    async fn next(&mut self) -> i32 {
        let _ = tokio::signal::ctrl_c().await;
        130
    }
}
