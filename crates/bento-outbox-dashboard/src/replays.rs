//! Replays: sent events published once more, in the background of this process, one run at a time.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bento_outbox::{
    ReplayEnd, ReplayProgress, ReplaySettings, Replayed, Result, Timestamp, replayable,
};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::actor::Actor;
use crate::asked::{Asked, Chosen, EventId, Given, present};
use crate::events::Nothing;
use crate::{Admin, Problem};

/// How many runs are remembered. The process forgets all of them when it ends; the audit does not.
const REMEMBERED_MAX: usize = 20;

/// The most events a second that can be asked for.
pub(crate) const RATE_MAX: u32 = 100_000;

/// The runs of this process, the newest first. The one that runs stops when this is dropped.
#[derive(Default)]
pub(crate) struct Replays(Mutex<VecDeque<Kept>>);

struct Kept {
    run: Run,
    stopped_by: Option<String>,
    stop: watch::Sender<bool>,
}

/// A run, as it is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    id: Uuid,
    state: Progress,
    by: String,
    filter: Value,
    rate: Option<Rate>,
    /// None before they are counted.
    matched: Option<u64>,
    published: u64,
    /// Why the bus takes nothing at present.
    waits_for: Option<String>,
    /// Which event was refused, and why it was or the run failed.
    refused: Option<Uuid>,
    reason: Option<String>,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Progress {
    Counting,
    Running,
    Stopping,
    Done,
    Stopped,
    Refused,
    Failed,
}

/// Events a second, at most.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate(NonZeroU32);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        NonZeroU32::deserialize(from)
            .ok()
            .filter(|rate| rate.get() <= RATE_MAX)
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("rate is a whole number from 1 to {RATE_MAX}")))
    }
}

/// What is to be published once more.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    filter: Chosen,
    #[serde(default, deserialize_with = "present")]
    rate: Option<Rate>,
    #[serde(default)]
    dry_run: bool,
}

/// What would be published.
#[derive(Serialize)]
struct Counted {
    matched: u64,
    dry_run: bool,
}

#[derive(Serialize)]
pub(crate) struct Runs {
    replays: Vec<Run>,
}

pub(crate) async fn start(
    State(admin): State<Admin>,
    State(replays): State<Arc<Replays>>,
    Actor(by): Actor,
    Given(order): Given<Order>,
) -> Result<Response, Problem> {
    let settings = ReplaySettings {
        filter: order.filter.filter("sent events")?,
        per_second: order.rate.map(|rate| rate.0),
        ordered: admin.settings.ordered,
        retry: admin.settings.retry.clone(),
        ..ReplaySettings::default()
    };
    if order.dry_run {
        let store = admin.store.as_ref();
        let found = replayable(store, admin.bus.as_ref(), &settings).await?;
        found.must_not_be_paused(store).await?;
        let matched = found.events;
        let dry_run = true;
        return Ok(Json(Counted { matched, dry_run }).into_response());
    }
    let run = Run {
        id: Uuid::now_v7(),
        state: Progress::Counting,
        by,
        filter: settings.filter.shown(),
        rate: order.rate,
        matched: None,
        published: 0,
        waits_for: None,
        refused: None,
        reason: None,
        started_at: Timestamp::now(),
        ended_at: None,
    };
    let stopping = replays.enter(run.clone())?;
    // Nothing is awaited from here on: a run that is entered is begun.
    tokio::spawn(carried_out(
        admin,
        Arc::downgrade(&replays),
        run.clone(),
        settings,
        stopping,
    ));
    Ok((StatusCode::ACCEPTED, Json(run)).into_response())
}

pub(crate) async fn list(
    State(replays): State<Arc<Replays>>,
    Asked(Nothing {}): Asked<Nothing>,
) -> Json<Runs> {
    let replays = replays.runs().iter().map(|kept| kept.run.clone()).collect();
    Json(Runs { replays })
}

pub(crate) async fn show(
    State(replays): State<Arc<Replays>>,
    EventId(id): EventId,
    Asked(Nothing {}): Asked<Nothing>,
) -> Result<Json<Run>, Problem> {
    replays.changed(id, |_| ()).map(Json)
}

/// It may be over already; to stop it once more does no harm.
pub(crate) async fn cancel(
    State(replays): State<Arc<Replays>>,
    EventId(id): EventId,
    Actor(by): Actor,
    Given(Nothing {}): Given<Nothing>,
) -> Result<Json<Run>, Problem> {
    let stopped = replays.changed(id, |kept| {
        if kept.run.ended_at.is_none() {
            kept.stopped_by.get_or_insert(by);
            kept.run.state = Progress::Stopping;
            kept.stop.send_replace(true);
        }
    });
    stopped.map(Json)
}

/// One run, from its first act in the audit to its last.
async fn carried_out(
    admin: Admin,
    replays: Weak<Replays>,
    run: Run,
    settings: ReplaySettings,
    mut stopping: watch::Receiver<bool>,
) {
    let tell = {
        let replays = replays.clone();
        move |change: &dyn Fn(&mut Run)| {
            if let Some(replays) = replays.upgrade() {
                let _ = replays.changed(run.id, |kept| change(&mut kept.run));
            }
        }
    };
    let published = async {
        let mut told_to_stop = stopping.clone();
        let found = tokio::select! {
            biased;
            // Nothing has begun, so nothing is in the audit.
            _ = told_to_stop.wait_for(|stop| *stop) => return Ok(Replayed {
                end: ReplayEnd::Stopped,
                ..Replayed::default()
            }),
            found = replayable(admin.store.as_ref(), admin.bus.as_ref(), &settings) => found?,
        };
        tell(&|run| {
            run.matched = Some(found.events);
            if run.state == Progress::Counting {
                run.state = Progress::Running;
            }
        });
        let told = tell.clone();
        let tell_progress = move |progress: &ReplayProgress| {
            told(&|run| {
                run.published = progress.published;
                run.waits_for.clone_from(&progress.waits_for);
            });
        };
        let stopped_by = async {
            // It ends as well when the process forgets its runs.
            let _ = stopping.wait_for(|stop| *stop).await;
            replays.upgrade()?.stopped_by(run.id)
        };
        let (store, bus) = (Arc::clone(&admin.store), Arc::clone(&admin.bus));
        found
            .publish_by(&run.by, store, bus, settings, tell_progress, stopped_by)
            .await
    };
    let replayed = published.await.unwrap_or_else(|error| Replayed {
        end: ReplayEnd::Failed {
            reason: error.report(),
        },
        ..Replayed::default()
    });
    let (state, refused, reason) = match &replayed.end {
        ReplayEnd::Done => (Progress::Done, None, None),
        ReplayEnd::Stopped => (Progress::Stopped, None, None),
        ReplayEnd::Refused { id, reason } => (Progress::Refused, Some(*id), Some(reason.clone())),
        ReplayEnd::Failed { reason } => (Progress::Failed, None, Some(reason.clone())),
    };
    let published = replayed.published;
    tell(&|run| {
        run.state = state;
        run.published = published;
        run.waits_for = None;
        run.refused = refused;
        run.reason.clone_from(&reason);
        run.ended_at = Some(Timestamp::now());
    });
}

impl Replays {
    fn runs(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a run, unless one runs; says when it is to stop.
    fn enter(&self, run: Run) -> Result<watch::Receiver<bool>, Problem> {
        let mut runs = self.runs();
        if let Some(other) = runs.iter().find(|kept| kept.run.ended_at.is_none()) {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "another replay runs",
                format!(
                    "wait for replay {} or cancel it: they run one at a time",
                    other.run.id
                ),
            ));
        }
        let (stop, stopping) = watch::channel(false);
        runs.push_front(Kept {
            run,
            stopped_by: None,
            stop,
        });
        runs.truncate(REMEMBERED_MAX);
        Ok(stopping)
    }

    /// Who told a run to stop.
    fn stopped_by(&self, id: Uuid) -> Option<String> {
        let runs = self.runs();
        let kept = runs.iter().find(|kept| kept.run.id == id)?;
        kept.stopped_by.clone()
    }

    /// A run after a change.
    fn changed(&self, id: Uuid, change: impl FnOnce(&mut Kept)) -> Result<Run, Problem> {
        let mut runs = self.runs();
        let kept = runs.iter_mut().find(|kept| kept.run.id == id);
        let kept = kept.ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no such replay",
                format!(
                    "this process knows no replay {id}: it remembers the last {REMEMBERED_MAX} of its own"
                ),
            )
        })?;
        change(kept);
        Ok(kept.run.clone())
    }
}
