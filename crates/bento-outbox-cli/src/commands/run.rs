//! `run`: the relay.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bento_outbox::{
    AlertSettings, Batch, DeadLetterAlert, DeadLetterObserver, DeadLetterTopic, OutboxRecord,
    Outcome, Projector, Publisher, Rejection, RejectionClass, Store, TenantStatus,
};
use clap::Args;
use indicatif::ProgressBar;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::admin;
use crate::connect;
use crate::failure::{Failure, Result};
use crate::logging;
use crate::paused;
use crate::settings::{self, Settings};
use crate::stop::Stop;
use crate::systemd;
use crate::terminal;

/// Carry events from the database to the bus
///
/// Runs until SIGTERM or Ctrl-C, finishes what is in flight within shutdown_timeout and exits with 0;
/// what could not be finished is left to other relays, and the exit code is 1. A second signal ends it
/// at once. Many may run at the same time: they share the ordering keys, and take over from one that
/// died when its lease_ttl is over. A bus or database that goes away costs no event an attempt: the
/// relay keeps trying. A database that is not there at the start ends it with 1. With --once it exits
/// with 0 as soon as nothing is due anywhere, and with 1 if the bus is not there.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox run --bus-url nats://localhost:4222
  bento-outbox run --once --bus-url file:events.jsonl")]
pub(crate) struct Run {
    /// Until nothing is due
    #[arg(long)]
    once: bool,
}

/// How long giving the leases back may take when what is in flight is given up.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// How long telling people of dead letters may take at the end.
const ALERT_MAX: Duration = Duration::from_secs(5);

impl Run {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let stop = Stop::on_signals()?;
        let bus = connect::bus(&settings)?;
        let alert = connect::alert(&settings)?;
        let store = connect::database(&settings).await?.store();
        let traces = logging::begin_with_traces(&settings, self.once);
        for sentence in settings.topics_in_vain() {
            tracing::warn!("{sentence}");
        }
        store.check().await?;
        for sentence in paused::in_vain(&store.pauses().await?, &settings).values() {
            tracing::warn!("{}", settings.advice(sentence));
        }
        let observers = Observers::of(&settings, alert, &bus)?;
        let ended = match self.once {
            true => once(&settings, store, bus, &observers, &stop).await,
            false => always(&settings, store, bus, &observers, &stop).await,
        };
        observers.flush().await;
        traces.end().await;
        ended.map(|()| ExitCode::SUCCESS)
    }
}

/// Who is told of dead letters.
#[derive(Default)]
struct Observers {
    alert: Option<Arc<DeadLetterAlert>>,
    copies: Option<Arc<DeadLetterTopic>>,
}

impl Observers {
    fn of(
        settings: &Settings,
        alert: Option<Arc<dyn Publisher>>,
        bus: &Arc<dyn Publisher>,
    ) -> Result<Self> {
        let start = |webhook| Arc::new(DeadLetterAlert::start(webhook, AlertSettings::default()));
        Ok(Self {
            alert: alert.map(start),
            copies: connect::dead_letter_topic(settings, bus)?.map(Arc::new),
        })
    }

    fn projector(
        &self,
        settings: &Settings,
        store: Arc<dyn Store>,
        bus: Arc<dyn Publisher>,
    ) -> Projector {
        let alert = self
            .alert
            .clone()
            .map(|it| it as Arc<dyn DeadLetterObserver>);
        let copies = self
            .copies
            .clone()
            .map(|it| it as Arc<dyn DeadLetterObserver>);
        let observers = alert.into_iter().chain(copies).collect();
        Projector::observed(store, bus, settings.projector.clone(), observers)
    }

    /// Tells what was not told yet, within bounds.
    async fn flush(&self) {
        if let Some(alert) = &self.alert {
            alert.flush(ALERT_MAX).await;
        }
        if let Some(copies) = &self.copies
            && timeout(ALERT_MAX, copies.flushed()).await.is_err()
        {
            let copies = copies.waiting();
            tracing::warn!(
                copies,
                "some copies of dead letters could not be published in time"
            );
        }
    }
}

/// Carries events until told to stop.
async fn always(
    settings: &Settings,
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    observers: &Observers,
    stop: &Stop,
) -> Result<()> {
    let (bus, mut is_lost) = Watched::new(settings, bus);
    let database_url = settings::masked(&settings.database_url);
    let buses: Vec<String> = settings.buses().iter().map(settings::Bus::name).collect();
    tracing::info!(
        database = database_url,
        bus = buses.join(" "),
        "relay started"
    );
    let _server = admin::Server::start(settings, store.clone(), bus.clone()).await?;
    let projector = observers.projector(settings, store.clone(), bus.clone());
    let carrying = async {
        // A bus that takes no events is told of by the projector. Without an event, a check tells.
        let is_idle = tokio::select! {
            first = projector.run_once() => first.is_ok_and(|batch| batch.claimed == 0),
            () = stop.requested() => false,
        };
        tokio::select! {
            () = look_at(&bus, is_idle) => {}
            () = stop.requested() => {}
        }
        let end = async {
            tokio::select! {
                () = stop.requested() => {
                    let in_flight = bus.in_flight.load(Ordering::Relaxed);
                    tracing::info!(in_flight, "stopping; a second signal ends it at once");
                }
                Ok(_) = is_lost.wait_for(Option::is_some) => {}
            }
        };
        projector.run(end).await
    };
    let told = systemd::tell(&projector, store.as_ref(), bus.as_ref(), stop);
    let carried = tokio::select! {
        carried = stop.patiently(settings.shutdown_timeout, carrying) => carried,
        never = told => match never {},
    };
    match carried {
        Some(ended) => ended?,
        None => return Err(gave_up(settings, &projector, &bus).await),
    }
    match bus.loss() {
        Some(Rejection { reason, .. }) => Err(Failure::failed(reason)),
        None => {
            tracing::info!("relay stopped");
            Ok(())
        }
    }
}

/// Says what is wrong with the bus, and what is not as it should be.
async fn look_at(bus: &Watched, check: bool) {
    if check && let Err(rejection) = bus.check().await {
        tracing::warn!(
            reason = rejection.reason,
            "the bus is not ready; events are kept until it is"
        );
        return;
    }
    for caveat in bus.caveats().await {
        tracing::warn!(caveat, "the bus may lose what it acknowledged");
    }
}

/// Gives the leases back although something is in flight, and says what that means.
async fn gave_up(settings: &Settings, projector: &Projector, bus: &Watched) -> Failure {
    let released = timeout(RELEASE_MAX, projector.release()).await;
    let waited = humantime::format_duration(settings.shutdown_timeout);
    let left = match bus.in_flight.load(Ordering::Relaxed) {
        0 => "what was published last could not be marked in the database".to_string(),
        events => format!(
            "the bus had not answered for {}",
            terminal::counted(events as u64, "event")
        ),
    };
    let next = match released {
        Ok(Ok(())) => "another relay, or the next run, publishes them again at once",
        _ => "another relay, or the next run, publishes them again when the lease runs out",
    };
    Failure::failed(format!(
        "stopped after shutdown_timeout ({waited}): {left}; {next}, under the same ids"
    ))
}

/// The bus of a relay, which keeps count of what is in flight.
struct Watched {
    bus: Arc<dyn Publisher>,
    in_flight: AtomicUsize,
    /// Whether it comes back once it is gone, as standard output does not.
    heals: bool,
    lost: watch::Sender<Option<Rejection>>,
}

impl Watched {
    fn new(
        settings: &Settings,
        bus: Arc<dyn Publisher>,
    ) -> (Arc<Self>, watch::Receiver<Option<Rejection>>) {
        let (lost, is_lost) = watch::channel(None);
        let watched = Self {
            bus,
            in_flight: AtomicUsize::new(0),
            heals: settings.buses().len() > 1
                || settings::scheme(&settings.bus_url) != Some("stdout"),
            lost,
        };
        (Arc::new(watched), is_lost)
    }

    /// Why it is gone for good.
    fn loss(&self) -> Option<Rejection> {
        self.lost.borrow().clone()
    }
}

#[async_trait]
impl Publisher for Watched {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        self.in_flight.fetch_add(batch.len(), Ordering::Relaxed);
        let outcomes = self.bus.publish(batch).await;
        self.in_flight.fetch_sub(batch.len(), Ordering::Relaxed);
        for outcome in outcomes.iter().filter(|_| !self.heals) {
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

    fn refuses(&self) -> Option<Rejection> {
        self.bus.refuses()
    }

    fn destination(&self, record: &OutboxRecord) -> Option<&str> {
        self.bus.destination(record)
    }

    async fn caveats(&self) -> Vec<String> {
        self.bus.caveats().await
    }
}

/// Carries events until nothing is due.
async fn once(
    settings: &Settings,
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    observers: &Observers,
    stop: &Stop,
) -> Result<()> {
    let (bus, _) = Watched::new(settings, bus);
    // Of several, one that is away need not keep the events of the others.
    let is_one = settings.buses().len() == 1;
    if is_one {
        let checked = bus.check().await;
        checked.map_err(|rejection| away(settings, &rejection, 0))?;
    }
    look_at(&bus, false).await;
    let backlog = store
        .status()
        .await?
        .iter()
        .map(|tenant| tenant.new + tenant.retrying)
        .sum();
    let progress = terminal::bar(backlog);
    let projector = observers.projector(settings, store.clone(), bus.clone());
    let begun = Instant::now();
    let carrying = until_nothing_is_due(settings, &projector, stop, &progress);
    let carried = stop.patiently(settings.shutdown_timeout, carrying).await;
    progress.finish_and_clear();
    let Some(carried) = carried else {
        return Err(gave_up(settings, &projector, &bus).await);
    };
    // Else the next one would wait for the leases to run out.
    let released = projector.release().await;
    let all = carried?;
    if let Err(error) = released {
        terminal::say(format!(
            "the leases run out by themselves, giving them back failed: {}",
            error.report()
        ));
    }
    let seconds = begun.elapsed().as_secs_f64();
    // Also those that were put aside before.
    let kept = TenantStatus::total(&store.status().await?).paused_events;
    terminal::say(summary(&all, kept, seconds));
    if !is_one {
        let checked = bus.check().await;
        checked.map_err(|rejection| away(settings, &rejection, all.sent))?;
    }
    match &all.blocked {
        Some(rejection) => Err(Failure::failed(format!(
            "some events cannot go out, and are kept: {}",
            rejection.reason
        ))),
        None => Ok(()),
    }
}

async fn until_nothing_is_due(
    settings: &Settings,
    projector: &Projector,
    stop: &Stop,
    progress: &ProgressBar,
) -> Result<Batch> {
    let mut all = Batch::default();
    let mut said = false;
    loop {
        let batch = projector.run_once().await?;
        all.sent += batch.sent;
        all.retried += batch.retried;
        all.dead += batch.dead;
        all.paused += batch.paused;
        all.waiting = batch.waiting;
        progress.inc((batch.sent + batch.dead) as u64);
        all.blocked = all.blocked.or(batch.blocked);
        if let Some(rejection) = &batch.stopped_by {
            return Err(away(settings, rejection, all.sent));
        }
        if batch.claimed == 0 && !batch.elsewhere {
            return Ok(all);
        }
        if stop.is_requested() {
            return Err(Failure::failed(format!(
                "stopped before everything due was sent ({} sent)",
                all.sent
            )));
        }
        if batch.claimed == 0 {
            if !said {
                let term = humantime::format_duration(settings.projector.lease_term);
                progress.suspend(|| {
                    terminal::say(format!(
                        "waiting: another relay holds events that are due; if it died, they are free {term} \
                         (lease_ttl) after that"
                    ));
                });
                said = true;
            }
            tokio::select! {
                () = sleep(settings.projector.poll_interval_busy) => {}
                () = stop.requested() => {}
            }
        }
    }
}

fn away(settings: &Settings, rejection: &Rejection, sent: usize) -> Failure {
    let Rejection { reason, .. } = rejection;
    let away = match &settings.buses()[..] {
        [bus] => format!("the bus {} takes no events: {reason}", bus.name()),
        // Then it names the bus.
        _ => reason.clone(),
    };
    Failure::failed(format!("{away} ({sent} sent before)"))
}

fn summary(all: &Batch, kept: u64, seconds: f64) -> String {
    let mut summary = match all.sent {
        0 if all.retried + all.dead + all.paused == 0 => "nothing was due".to_string(),
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
        summary += &format!(
            ", new dead letters: {} (see `bento-outbox dead list`)",
            all.dead
        );
    }
    if kept > 0 {
        summary += &format!(
            ", kept since their destination is paused: {kept} (see `bento-outbox destinations list`)"
        );
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
            summary(&all, 0, 2.0)
        };
        assert_eq!(said(0, 0, 0, false), "nothing was due");
        assert_eq!(said(10, 0, 0, false), "10 sent in 2.0 s (5 a second)");
        assert_eq!(
            said(0, 2, 1, true),
            "nothing was sent, attempts that failed and are repeated later: 2, new dead letters: 1 \
             (see `bento-outbox dead list`), others wait for their time"
        );
    }
}
