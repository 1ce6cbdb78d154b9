//! The relay that is measured: the library's own, as `run` has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bento_outbox::{Error, Projector, ProjectorSettings, Publisher};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::ground::Ground;
use super::observed::Observed;
use super::own::Own;
use crate::failure::{Failure, Result};

/// Carries a backlog of so many events to the bus, and answers how long that took, from the first
/// lease to the last settlement. `left` are not due, and stay.
///
/// # Errors
/// Something was not published, or something else was: then there is nothing to measure.
pub(super) async fn carry<S: Ground>(
    own: &Own<S>,
    bus: Arc<dyn Publisher>,
    settings: ProjectorSettings,
    events: u64,
    left: u64,
) -> Result<Duration> {
    let observed = Observed::counting(bus);
    let projector = Projector::new(Arc::new(own.store.clone()), observed.clone(), settings);
    let begun = Instant::now();
    projector.run(observed.reached(events)).await?;
    let took = begun.elapsed();
    observed.sound()?;
    let (acked, unsent) = (observed.acked(), own.unsent().await?);
    if (acked, unsent) != (events, left) {
        return Err(Failure::failed(format!(
            "of {events} events {acked} were published and {unsent} are unsent instead of {left}: a lease ran out \
             half-way, or an event was lost; measure again, and report it if it stays so"
        )));
    }
    Ok(took)
}

/// A relay beside what is measured. It ends when it is dropped.
pub(super) struct Beside {
    end: oneshot::Sender<()>,
    relay: JoinSet<Result<(), Error>>,
}

impl Beside {
    pub(super) fn start<S: Ground>(
        own: &Own<S>,
        bus: Arc<dyn Publisher>,
        settings: ProjectorSettings,
    ) -> Self {
        let projector = Projector::new(Arc::new(own.store.clone()), bus, settings);
        let (end, ended) = oneshot::channel();
        let mut relay = JoinSet::new();
        relay.spawn(async move { projector.run(async { drop(ended.await) }).await });
        Self { end, relay }
    }

    /// Lets it finish what is in flight.
    pub(super) async fn end(mut self) -> Result<()> {
        drop(self.end);
        while let Some(ended) = self.relay.join_next().await {
            ended.map_err(|error| Failure::failed(format!("the relay ended: {error}")))??;
        }
        Ok(())
    }
}
