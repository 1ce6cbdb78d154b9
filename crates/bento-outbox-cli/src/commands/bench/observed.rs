//! A bus that is watched: how much it took, when, and whether it refused anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bento_outbox::{OutboxRecord, Outcome, Publisher, Rejection, RejectionClass};
use tokio::sync::{RwLock, watch};
use tokio::time::timeout;
use uuid::Uuid;

use crate::failure::{Failure, Result};

/// How long a measurement may stand still before it is given up.
const STILL_MAX: Duration = Duration::from_secs(120);

/// How long the bus has to answer for what is under way when the measurements end.
const CLOSING_MAX: Duration = Duration::from_secs(10);

/// The way to the user's bus, which is closed when the measurements end: what was interrupted may
/// go on for a moment, and shall publish nothing more.
pub(super) struct Gate {
    bus: Arc<dyn Publisher>,
    is_open: RwLock<bool>,
}

impl Gate {
    pub(super) fn before(bus: Arc<dyn Publisher>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            is_open: RwLock::new(true),
        })
    }

    /// Returns when nothing is under way any more, or when the bus gives no answer.
    pub(super) async fn close(&self) {
        // A bus that is stuck with a batch gets no further one while the batch waits.
        if let Ok(mut is_open) = timeout(CLOSING_MAX, self.is_open.write()).await {
            *is_open = false;
        }
    }
}

#[async_trait]
impl Publisher for Gate {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        match *self.is_open.read().await {
            true => self.bus.publish(batch).await,
            false => {
                let over =
                    || Outcome::rejected(RejectionClass::Unreachable, "the benchmark is over");
                batch.iter().map(|_| over()).collect()
            }
        }
    }

    async fn check(&self) -> Result<(), Rejection> {
        self.bus.check().await
    }
}

/// A bus, and what it took through here.
pub(super) struct Observed {
    bus: Arc<dyn Publisher>,
    tally: watch::Sender<Tally>,
    /// When each event was acknowledged, where somebody wants to know.
    arrivals: Option<Mutex<HashMap<Uuid, Instant>>>,
}

#[derive(Clone, Default)]
struct Tally {
    acked: u64,
    /// Why there is nothing to measure.
    trouble: Option<String>,
}

impl Observed {
    /// Counts what `bus` takes.
    pub(super) fn counting(bus: Arc<dyn Publisher>) -> Arc<Self> {
        Self::new(bus, None)
    }

    /// Also notes when it takes each.
    pub(super) fn timing(bus: Arc<dyn Publisher>) -> Arc<Self> {
        Self::new(bus, Some(Mutex::default()))
    }

    fn new(bus: Arc<dyn Publisher>, arrivals: Option<Mutex<HashMap<Uuid, Instant>>>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            tally: watch::Sender::default(),
            arrivals,
        })
    }

    /// How many events were acknowledged so far.
    pub(super) fn acked(&self) -> u64 {
        self.tally.borrow().acked
    }

    /// Returns when so many events were acknowledged, or when something is wrong.
    pub(super) async fn reached(&self, events: u64) {
        let mut tally = self.tally.subscribe();
        loop {
            let is_over = {
                let tally = tally.borrow_and_update();
                tally.acked >= events || tally.trouble.is_some()
            };
            if is_over {
                return;
            }
            if timeout(STILL_MAX, tally.changed()).await.is_err() {
                let seconds = STILL_MAX.as_secs();
                self.give_up(format!("nothing was published for {seconds} s"));
            }
        }
    }

    /// When the bus acknowledged an event.
    ///
    /// # Errors
    /// It never will.
    pub(super) async fn arrival(&self, id: Uuid) -> Result<Instant> {
        loop {
            let acked = self.acked();
            let arrived = self.arrivals.as_ref().and_then(|arrivals| {
                let arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                arrivals.get(&id).copied()
            });
            if let Some(arrived) = arrived {
                return Ok(arrived);
            }
            self.reached(acked + 1).await;
            self.sound()?;
        }
    }

    /// # Errors
    /// The bus refused something, so that there is nothing to measure.
    pub(super) fn sound(&self) -> Result<()> {
        match &self.tally.borrow().trouble {
            Some(trouble) => Err(Failure::failed(trouble)),
            None => Ok(()),
        }
    }

    fn give_up(&self, why: String) {
        self.tally.send_modify(|tally| {
            tally.trouble.get_or_insert(why);
        });
    }
}

#[async_trait]
impl Publisher for Observed {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let outcomes = self.bus.publish(batch).await;
        let now = Instant::now();
        if let Some(arrivals) = &self.arrivals {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let acked = batch.iter().zip(&outcomes);
            arrivals.extend(
                acked
                    .filter(|(_, outcome)| **outcome == Outcome::Acked)
                    .map(|(record, _)| (record.id, now)),
            );
        }
        let refused = |outcome: &&Outcome| **outcome != Outcome::Acked;
        let trouble = outcomes.iter().find(refused).map(refusal);
        let acked = outcomes.len() - outcomes.iter().filter(refused).count();
        self.tally.send_modify(|tally| {
            tally.acked += acked as u64;
            tally.trouble = tally.trouble.take().or(trouble);
        });
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        self.bus.check().await
    }
}

/// What to say about events that the bus did not take.
pub(super) fn refusal(outcome: &Outcome) -> String {
    let reason = match outcome {
        Outcome::Acked => "it was acknowledged",
        Outcome::Rejected(rejection) => &rejection.reason,
        Outcome::Unknown { reason } => reason,
    };
    format!("the bus did not take an event, so there is nothing to measure: {reason}")
}
