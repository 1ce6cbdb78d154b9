//! The bus of the demo: whoever looks at standard output.

use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bento_outbox::{CloudEvents, OutboxRecord, Outcome, Publisher, Rejection, RejectionClass};

use crate::failure::{Failure, Result};
use crate::terminal::{Paint, say};

/// Publishes a line an event: coloured for a person, the CloudEvent itself for a pipe.
pub(super) struct Screen {
    cloud_events: CloudEvents,
    out: Paint,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    published: Mutex<Published>,
}

/// What really came out.
#[derive(Clone, Default)]
pub(super) struct Published {
    pub(super) events: u64,
    pub(super) of_orders: HashSet<String>,
    closed: Option<io::ErrorKind>,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            cloud_events: CloudEvents::default(),
            out: Paint::stdout(),
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            published: Mutex::default(),
        }
    }
}

impl Screen {
    /// Whether a person watches, for whom it goes slowly.
    pub(super) fn is_watched(&self) -> bool {
        self.stdout_is_terminal
    }

    /// Whether standard output takes no more.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed.is_some()
    }

    /// How the demo ends when standard output takes no more: a reader that went away has all it
    /// wanted.
    pub(super) fn closed(&self) -> Result<()> {
        match self.state().closed {
            None | Some(io::ErrorKind::BrokenPipe) => Ok(()),
            Some(kind) => Err(Failure::failed(format!(
                "cannot write to standard output: {kind}"
            ))),
        }
    }

    /// What came out so far.
    pub(super) fn published(&self) -> Published {
        self.state().clone()
    }

    pub(super) fn title(&self, text: &str) {
        if self.stderr_is_terminal {
            say(format!("{}\n", Paint::stderr().bold(text)));
        }
    }

    /// An order that the outbox will never hear of.
    pub(super) fn rolled_back(&self, order: &str) {
        if self.stderr_is_terminal {
            let paint = Paint::stderr();
            let what =
                format!("order {order}: card declined, rolled back with the event it had raised");
            say(format!("{} {}", paint.red("✗"), paint.dim(&what)));
        }
    }

    fn line(&self, record: &OutboxRecord, lines: &mut Vec<u8>) -> Result<(), Rejection> {
        if !self.stdout_is_terminal {
            return self.cloud_events.append_line(record, lines);
        }
        let aggregate = record.aggregate.id.as_deref().unwrap_or_default();
        let line = format!(
            "{} {} {aggregate}  {:8}  {}\n",
            self.out.green("✓"),
            self.out.bold(&format!("{:14}", record.event_type)),
            record.tenant.as_str(),
            self.out.dim(&String::from_utf8_lossy(&record.payload)),
        );
        lines.extend_from_slice(line.as_bytes());
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, Published> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the ways to the screen, which counts what passes.
pub(super) struct Door {
    screen: Arc<Screen>,
    passed: AtomicU64,
}

impl Door {
    pub(super) fn to(screen: &Arc<Screen>) -> Arc<Self> {
        Arc::new(Self {
            screen: screen.clone(),
            passed: AtomicU64::new(0),
        })
    }

    /// How many events went through here.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Publisher for Door {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let outcomes = self.screen.publish(batch).await;
        let acked = outcomes
            .iter()
            .filter(|outcome| **outcome == Outcome::Acked);
        self.passed
            .fetch_add(acked.count() as u64, Ordering::Relaxed);
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        self.screen.check().await
    }
}

#[async_trait]
impl Publisher for Screen {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut lines = Vec::new();
        let refused: Vec<Option<Rejection>> = batch
            .iter()
            .map(|record| self.line(record, &mut lines).err())
            .collect();
        let mut out = io::stdout().lock();
        let written = out.write_all(&lines).and_then(|()| out.flush());
        let mut state = self.state();
        if let Err(error) = written {
            state.closed = Some(error.kind());
            let closed = Rejection::new(
                RejectionClass::Unreachable,
                format!("standard output: {error}"),
            );
            return vec![closed.into(); batch.len()];
        }
        let answer = |(record, refused): (&OutboxRecord, Option<Rejection>)| match refused {
            Some(rejection) => rejection.into(),
            None => {
                state.events += 1;
                state.of_orders.extend(record.aggregate.id.clone());
                Outcome::Acked
            }
        };
        batch.iter().zip(refused).map(answer).collect()
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}
