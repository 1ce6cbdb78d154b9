//! From the commit to the acknowledgement, at once and through the projector, against the bus's own
//! round trip.

use std::time::{Duration, Instant};

use bento_outbox::{ImmediateSettings, Outbox, Outcome, Publisher as _};
use uuid::Uuid;

use super::ground::Ground;
use super::observed::{Observed, refusal};
use super::own::Own;
use super::relay::Beside;
use super::report::{Figure, Unit, percentile};
use super::{Site, in_turn, load};
use crate::failure::{Failure, Result};

/// How often a time is taken in a round.
pub(super) const SAMPLES: u64 = 100;

#[derive(Clone, Copy)]
enum Way {
    Bus,
    AtOnce,
    Projector,
}

const WAYS: [Way; 3] = [Way::Bus, Way::AtOnce, Way::Projector];

pub(super) async fn measure<S: Ground>(site: &Site<S>) -> Result<Vec<Figure>> {
    let own = site.own.outbox("latency").await?;
    let figure = |name, words| Figure::new(name, words, Unit::Milliseconds);
    let mut figures = [
        figure("latency_bus", "round trip to the bus"),
        figure("latency_at_once", "commit to acknowledged, at once"),
        figure("latency_projector", "commit to acknowledged, projector"),
    ];
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    let samples = SAMPLES.min(site.sizes.events);
    site.preparing("what answers soon");
    for way in WAYS {
        times(site, &own, way, samples.div_ceil(10)).await?;
    }
    for round in 0..site.sizes.rounds {
        own.empty().await?;
        for way in in_turn(&WAYS, round) {
            site.step(round, "latency");
            let taken = times(site, &own, way, samples).await?;
            figures[way as usize].add(percentile(&taken, 0.5));
            all[way as usize].extend(taken);
        }
    }
    for (figure, all) in figures.iter_mut().zip(&all) {
        figure.p99(percentile(all, 0.99));
    }
    let [bus, at_once, projector] = &mut figures;
    // A bus that does nothing takes no time, and nothing can be compared with that.
    if !site.bus_is_null {
        at_once.compare(bus, Some("≤ 1.5"));
        projector.compare(bus, None);
    }
    projector.goal("≤ 10 ms");
    Ok(figures.into())
}

/// Milliseconds, each taken after the one before has ended.
async fn times<S: Ground>(
    site: &Site<S>,
    own: &Own<S>,
    way: Way,
    samples: u64,
) -> Result<Vec<f64>> {
    match way {
        Way::Bus => round_trips(site, samples).await,
        Way::AtOnce => {
            let observed = Observed::timing(site.bus.clone());
            let outbox = Outbox::new(own.store.clone())
                .publish_with_settings(observed.clone(), ImmediateSettings::default());
            let taken = commits(site, &outbox, &observed, samples).await;
            outbox.flushed().await;
            taken
        }
        Way::Projector => {
            let observed = Observed::timing(site.bus.clone());
            let relay = Beside::start(own, observed.clone(), site.projector.clone());
            let outbox = Outbox::new(own.store.clone());
            let taken = commits(site, &outbox, &observed, samples).await?;
            relay.end().await?;
            Ok(taken)
        }
    }
}

async fn round_trips<S: Ground>(site: &Site<S>, samples: u64) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    for number in 0..samples {
        let records = load::records(&site.sizes.event_type, number, 1)?;
        let begun = Instant::now();
        let outcomes = site.bus.publish(&records).await;
        taken.push(milliseconds(begun.elapsed()));
        if let Some(refused) = outcomes.iter().find(|outcome| **outcome != Outcome::Acked) {
            return Err(Failure::failed(refusal(refused)));
        }
    }
    Ok(taken)
}

/// Commits an event, waits until the bus has it, and so on.
async fn commits<S: Ground>(
    site: &Site<S>,
    outbox: &Outbox<S>,
    observed: &Observed,
    samples: u64,
) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    for _ in 0..samples {
        let (id, committed) = commit(outbox, &site.sizes.event_type).await?;
        let arrived = observed.arrival(id).await?;
        // It may have arrived before this task heard of the commit.
        taken.push(milliseconds(arrived.saturating_duration_since(committed)));
    }
    Ok(taken)
}

/// Commits one event about something new; answers its id, and when the commit was through.
pub(super) async fn commit<S: Ground>(
    outbox: &Outbox<S>,
    event_type: &str,
) -> Result<(Uuid, Instant)> {
    let event = load::event(event_type, &Uuid::now_v7().to_string())?;
    let id = event.id;
    let mut uow = outbox.begin().await?;
    uow.raise(event)?;
    uow.commit().await?;
    Ok((id, Instant::now()))
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
