//! `run`: the relay.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bento_outbox::{
    Batch, OutboxRecord, Outcome, Projector, Publisher, Rejection, RejectionClass, Store,
};
use clap::Args;
use tokio::sync::watch;

use crate::connect;
use crate::failure::{Failure, Result};
use crate::logging;
use crate::settings::{self, Settings};
use crate::stop::Stop;
use crate::terminal;

/// Carry events from the database to the bus
///
/// Runs until SIGTERM or Ctrl-C, finishes what is in flight and exits with 0. A bus or database that
/// is away costs no event an attempt: the relay keeps trying. With --once it exits with 0 as soon as
/// nothing is due, and with 1 if the bus is not there.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox run --bus-url nats://localhost:4222
  bento-outbox run --once --bus-url file:events.jsonl")]
pub(crate) struct Run {
    /// Until nothing is due
    #[arg(long)]
    once: bool,
}

impl Run {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let stop = Stop::on_signals()?;
        let bus = connect::bus(&settings)?;
        let store = connect::database(&settings).await?.store();
        logging::begin(&settings);
        let without_effect = settings.without_effect();
        if !without_effect.is_empty() {
            tracing::info!(
                settings = without_effect.join(","),
                "these settings have no effect in this version yet"
            );
        }
        store.check().await?;
        match self.once {
            true => once(&settings, store, bus, &stop).await?,
            false => always(&settings, store, bus, &stop).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Carries events until told to stop.
async fn always(
    settings: &Settings,
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    stop: &Stop,
) -> Result<()> {
    let (lost, mut is_lost) = watch::channel(None);
    let bus: Arc<dyn Publisher> = match settings::scheme(&settings.bus_url) {
        Some("stdout") => Arc::new(Unhealable { bus, lost }),
        _ => bus,
    };
    let (database_url, bus_url) = (
        settings::masked(&settings.database_url),
        settings::masked(&settings.bus_url),
    );
    tracing::info!(database = database_url, bus = bus_url, "relay started");
    let projector = Projector::new(store, bus.clone(), settings.projector.clone());
    // A bus that takes no events is told of by the projector. Without an event, a check tells.
    let first = projector.run_once().await;
    if first.is_ok_and(|batch| batch.claimed == 0) {
        tokio::select! {
            checked = bus.check() => if let Err(rejection) = checked {
                tracing::warn!(
                    reason = rejection.reason,
                    "the bus is not ready; events are kept until it is"
                );
            },
            () = stop.requested() => {}
        }
    }
    let end = async {
        tokio::select! {
            () = stop.requested() => {}
            Ok(_) = is_lost.wait_for(Option::is_some) => {}
        }
    };
    projector.run(end).await?;
    match &*is_lost.borrow() {
        Some(Rejection { reason, .. }) => Err(Failure::failed(reason)),
        None => {
            tracing::info!("relay stopped");
            Ok(())
        }
    }
}

/// A bus that does not come back once it is closed, as standard output does not.
struct Unhealable {
    bus: Arc<dyn Publisher>,
    lost: watch::Sender<Option<Rejection>>,
}

#[async_trait]
impl Publisher for Unhealable {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let outcomes = self.bus.publish(batch).await;
        for outcome in &outcomes {
            if let Outcome::Rejected(rejection) = outcome
                && rejection.class == RejectionClass::Config
            {
                self.lost.send_replace(Some(rejection.clone()));
            }
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        self.bus.check().await
    }
}

/// Carries events until nothing is due.
async fn once(
    settings: &Settings,
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    stop: &Stop,
) -> Result<()> {
    let away = |rejection: &Rejection, sent: usize| {
        let url = settings::masked(&settings.bus_url);
        Failure::failed(format!(
            "the bus {url} takes no events: {} ({sent} sent before)",
            rejection.reason
        ))
    };
    bus.check().await.map_err(|rejection| away(&rejection, 0))?;
    let backlog = store
        .status()
        .await?
        .iter()
        .map(|tenant| tenant.new + tenant.retrying)
        .sum();
    let progress = terminal::bar(backlog);
    let projector = Projector::new(store, bus, settings.projector.clone());
    let begun = Instant::now();
    let mut all = Batch::default();
    loop {
        let batch = projector.run_once().await?;
        all.sent += batch.sent;
        all.retried += batch.retried;
        all.dead += batch.dead;
        all.waiting = batch.waiting;
        progress.inc((batch.sent + batch.dead) as u64);
        if let Some(rejection) = &batch.stopped_by {
            return Err(away(rejection, all.sent));
        }
        if batch.claimed == 0 {
            break;
        }
        if stop.is_requested() {
            return Err(Failure::failed(format!(
                "stopped before everything due was sent ({} sent)",
                all.sent
            )));
        }
    }
    progress.finish_and_clear();
    terminal::say(summary(&all, begun.elapsed().as_secs_f64()));
    Ok(())
}

fn summary(all: &Batch, seconds: f64) -> String {
    let mut summary = match all.sent {
        0 if all.retried + all.dead == 0 => "nothing was due".to_string(),
        0 => "nothing was sent".to_string(),
        sent => format!(
            "{sent} sent in {seconds:.1} s ({:.0} a second)",
            sent as f64 / seconds.max(0.001)
        ),
    };
    if all.retried > 0 {
        summary += &format!(
            ", attempts that failed and are repeated later: {}",
            all.retried
        );
    }
    if all.dead > 0 {
        summary += &format!(", new dead letters: {}", all.dead);
    }
    if all.waiting {
        summary += ", others wait for their time";
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_leaves_out_what_did_not_happen() {
        let said = |sent, retried, dead, waiting| {
            let all = Batch {
                sent,
                retried,
                dead,
                waiting,
                ..Batch::default()
            };
            summary(&all, 2.0)
        };
        assert_eq!(said(0, 0, 0, false), "nothing was due");
        assert_eq!(said(10, 0, 0, false), "10 sent in 2.0 s (5 a second)");
        assert_eq!(
            said(0, 2, 1, true),
            "nothing was sent, attempts that failed and are repeated later: 2, new dead letters: 1, \
             others wait for their time"
        );
    }
}
