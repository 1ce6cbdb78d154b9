//! Sent events, published once more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::act::Act;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{Filter, PAGE_MAX, Page};
use crate::pause::{Pausable, Pause};
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass, Status};
use crate::retry::{self, RetrySettings};
use crate::store::Store;

/// Which sent events are published once more, and how fast.
#[derive(Clone, Debug)]
pub struct ReplaySettings {
    /// Which; of these only those that are `SENT`, whatever the filter says of a status.
    pub filter: Filter,
    /// Only those after this `seq`. Defaults to none.
    pub after: Option<i64>,
    /// None after this `seq`: what is sent meanwhile would be published twice. Defaults to none.
    pub up_to: Option<i64>,
    /// How many a second at most; none for as fast as the bus takes them. Defaults to none.
    pub per_second: Option<NonZeroU32>,
    /// Whether the events of one aggregate are published in order. Defaults to true.
    pub ordered: bool,
    /// How long it is waited for a bus that is away or asks to wait, and how often an event that
    /// is refused, but not for good, is tried.
    pub retry: RetrySettings,
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self {
            filter: Filter::default(),
            after: None,
            up_to: None,
            per_second: None,
            ordered: true,
            retry: RetrySettings::default(),
        }
    }
}

/// How far a replay is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayProgress {
    /// Events that the bus has once more.
    pub published: u64,
    /// All that match up to this `seq` are published: where another replay would go on.
    pub through: Option<i64>,
    /// Why the bus takes nothing at present; it is tried again.
    pub waits_for: Option<String>,
}

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Replayed {
    /// Events that the bus has once more.
    pub published: u64,
    /// All that match up to this `seq` are published: where another replay would go on.
    pub through: Option<i64>,
    /// How it ended, in JSON as `end` with what is known of that.
    #[serde(flatten)]
    pub end: ReplayEnd,
}

/// How a replay ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum ReplayEnd {
    /// All are published.
    #[default]
    Done,
    /// It was told to stop.
    Stopped,
    /// The bus refuses one.
    Refused {
        /// That event.
        id: Uuid,
        /// Why it is refused.
        reason: String,
    },
    /// The database could not be read.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What a replay would publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayable {
    /// How many events.
    pub events: u64,
    /// The `seq` of the last one.
    pub last: Option<i64>,
    /// How many of each tenant, by its name.
    pub tenants: BTreeMap<String, u64>,
    /// How many for each destination that has a [name](Publisher::destination), by that.
    pub destinations: BTreeMap<String, u64>,
}

/// The longest pause while the bus is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How often a second a slow replay publishes at most, so that it need not do so one by one.
const BEATS: u32 = 10;

/// Of more pauses than these that are in the way only the number is said.
const PAUSES_NAMED_MAX: usize = 3;

/// A page that does not go on after the last one would be published again and again.
fn go_on(after: Option<i64>, page: &[OutboxRecord]) -> Result<()> {
    let first = page.first().map(|record| record.seq);
    match first <= after && first.is_some() {
        true => Err(Error::new(
            ErrorKind::Database,
            "the database answered events that were read before: is it another one, or an older copy?",
        )),
        false => Ok(()),
    }
}

/// Counts what a replay would publish, and where, without reading a payload.
///
/// # Errors
/// When the database cannot be read.
pub async fn replayable(
    store: &dyn Store,
    bus: &dyn Publisher,
    settings: &ReplaySettings,
) -> Result<Replayable> {
    let mut found = Replayable::default();
    let mut after = settings.after;
    loop {
        let page = store
            .events(&settings.sent(), &settings.page(after, false))
            .await?;
        go_on(after, &page)?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = Some(last.seq);
        let within = settings.within(&page);
        within.iter().for_each(|record| found.add(record, bus));
        if within.len() < page.len() || page.len() < PAGE_MAX as usize {
            return Ok(found);
        }
    }
}

/// Publishes events that were sent once more, with the same ids and bytes, in order of `seq`, and
/// changes nothing about them. `progress` is told after each call to the bus.
///
/// Within an ordering key an event follows only when the bus has the one before. A bus that is away
/// or asks to wait is waited for; an event that is refused ends the replay.
///
/// # Cancel safety
/// What is in flight when `stop` ends is finished first. Dropped, it goes on to there as well.
pub async fn replay(
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    settings: ReplaySettings,
    progress: impl Fn(&ReplayProgress) + Send + 'static,
    stop: impl Future<Output = ()>,
) -> Replayed {
    // Dropped with this future, the sender tells the task to stop as well.
    let (request, stopping) = watch::channel(false);
    let replay = Replay {
        store,
        bus,
        settings,
        tell: Box::new(progress),
        stopping,
        next_at: Instant::now(),
        progress: ReplayProgress::default(),
    };
    let mut replaying = tokio::spawn(replay.run());
    let ended = tokio::select! {
        ended = &mut replaying => ended,
        () = pin!(stop) => {
            request.send_replace(true);
            replaying.await
        }
    };
    ended.unwrap_or_else(|cause| Replayed {
        published: 0,
        through: None,
        end: ReplayEnd::Failed {
            reason: format!("the replay ended abruptly: {cause}"),
        },
    })
}

impl Replayable {
    fn add(&mut self, record: &OutboxRecord, bus: &dyn Publisher) {
        self.events += 1;
        self.last = Some(record.seq);
        *self.tenants.entry(record.tenant.to_string()).or_default() += 1;
        if let Some(name) = bus.destination(record) {
            *self.destinations.entry(name.into()).or_default() += 1;
        }
    }

    /// Whether all of it may go out now: what is paused is kept back from a replay too.
    ///
    /// # Errors
    /// [`Paused`](ErrorKind::Paused) where some of it is of a tenant, or for a destination, that is
    /// paused: it names them and what to do. When the pauses cannot be read.
    pub async fn must_not_be_paused(&self, store: &dyn Store) -> Result<()> {
        let events = |pause: &Pause| match pause.kind {
            Pausable::Tenant => self.tenants.get(&pause.name).copied(),
            Pausable::Destination => self.destinations.get(&pause.name).copied(),
        };
        let pauses = store.pauses().await?;
        let in_the_way: Vec<(&Pause, u64)> = pauses
            .iter()
            .filter_map(|pause| Some((pause, events(pause)?)))
            .collect();
        if in_the_way.is_empty() {
            return Ok(());
        }
        let named = in_the_way.iter().take(PAUSES_NAMED_MAX);
        let named: Vec<String> = named
            .map(|(pause, events)| {
                let (kind, name, resume) = (pause.kind, &pause.name, pause.resume_command());
                format!("{kind} {name} ({events} of the events; `{resume}`)")
            })
            .collect();
        let more = match in_the_way.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(Error::new(
            ErrorKind::Paused,
            format!(
                "nothing is published, since these are paused: {}{more}; resume them, or leave their events out by \
                 a filter for a tenant or a type",
                named.join(", ")
            ),
        ))
    }

    /// Publishes what was counted, and nothing that was sent since, as [`replay`] does, but as an act
    /// of an operator: its begin and its end are in the audit, each once. `stop` may answer who it was
    /// that stopped it. Where nothing was counted, nothing is done.
    ///
    /// # Errors
    /// Those of [`must_not_be_paused`](Self::must_not_be_paused), and when its begin cannot be written;
    /// nothing is published then. That its end cannot be is logged.
    ///
    /// # Cancel safety
    /// As for [`replay`]; dropped, its end is not in the audit.
    pub async fn publish_by(
        &self,
        by: &str,
        store: Arc<dyn Store>,
        bus: Arc<dyn Publisher>,
        settings: ReplaySettings,
        progress: impl Fn(&ReplayProgress) + Send + 'static,
        stop: impl Future<Output = Option<String>>,
    ) -> Result<Replayed> {
        if self.events == 0 {
            return Ok(Replayed::default());
        }
        self.must_not_be_paused(store.as_ref()).await?;
        let what = settings.shown();
        let act = |by: &str, published, note: &str| {
            Act::new(by, "replay", what.clone(), published, Some(note))
        };
        // Before it begins, since the process may be killed.
        let begins = format!("begun: {} to publish", self.events);
        store.audit(&act(by, 0, &begins)).await?;
        let settings = ReplaySettings {
            up_to: self.last,
            ..settings
        };
        let mut stopped_by = None;
        let stop = async { stopped_by = stop.await };
        let replayed = replay(store.clone(), bus, settings, progress, stop).await;
        let by = stopped_by.as_deref().unwrap_or(by);
        let ended = act(by, replayed.published, &replayed.end.note());
        if let Err(error) = store.audit(&ended).await {
            tracing::warn!(error = %error.report(), "the end of a replay is not in the audit");
        }
        Ok(replayed)
    }
}

impl ReplayEnd {
    fn note(&self) -> String {
        match self {
            Self::Done => "done".into(),
            Self::Stopped => "stopped".into(),
            Self::Refused { id, reason } => format!("event {id} is refused: {reason}"),
            Self::Failed { reason } => format!("failed: {reason}"),
        }
    }
}

impl ReplaySettings {
    /// Which events are meant, for the audit.
    fn shown(&self) -> Value {
        let mut shown = self.filter.shown();
        if let Some(after) = self.after {
            shown["after"] = after.into();
        }
        shown
    }

    fn sent(&self) -> Filter {
        Filter {
            status: Some(Status::Sent),
            ..self.filter.clone()
        }
    }

    fn page(&self, after: Option<i64>, payload: bool) -> Page {
        Page {
            after,
            limit: PAGE_MAX,
            newest_first: false,
            payload,
        }
    }

    /// The records that are not after the last one.
    fn within<'a>(&self, page: &'a [OutboxRecord]) -> &'a [OutboxRecord] {
        let end = page.partition_point(|record| self.up_to.is_none_or(|last| record.seq <= last));
        &page[..end]
    }
}

struct Replay {
    store: Arc<dyn Store>,
    bus: Arc<dyn Publisher>,
    settings: ReplaySettings,
    tell: Box<dyn Fn(&ReplayProgress) + Send>,
    stopping: watch::Receiver<bool>,
    /// When the rate allows the next call.
    next_at: Instant,
    progress: ReplayProgress,
}

impl Replay {
    async fn run(mut self) -> Replayed {
        let filter = self.settings.sent();
        let mut after = self.settings.after;
        let end = loop {
            if self.is_stopping() {
                break ReplayEnd::Stopped;
            }
            let page = self.settings.page(after, true);
            let read = retry::stubbornly(|| self.store.events(&filter, &page)).await;
            let read = read.and_then(|records| go_on(after, &records).map(|()| records));
            let mut records = match read {
                Ok(records) => records,
                Err(error) => {
                    break ReplayEnd::Failed {
                        reason: error.report(),
                    };
                }
            };
            records.truncate(self.settings.within(&records).len());
            let Some(last) = records.last() else {
                break ReplayEnd::Done;
            };
            after = Some(last.seq);
            if let Err(end) = self.publish(records).await {
                break end;
            }
        };
        Replayed {
            published: self.progress.published,
            through: self.progress.through,
            end,
        }
    }

    /// Publishes a page, in waves that have one record of each ordering key at most.
    async fn publish(&mut self, records: Vec<OutboxRecord>) -> Result<(), ReplayEnd> {
        let seqs: Vec<i64> = records.iter().map(|record| record.seq).collect();
        let mut open: BTreeSet<i64> = seqs.iter().copied().collect();
        let at_once = match self.settings.per_second {
            Some(rate) => (rate.get() / BEATS).max(1) as usize,
            None => usize::MAX,
        };
        for mut wave in retry::waves(records, self.settings.ordered) {
            while !wave.is_empty() {
                let rest = wave.split_off(at_once.min(wave.len()));
                let part = std::mem::replace(&mut wave, rest);
                let mut done = |record: &OutboxRecord, progress: &mut ReplayProgress| {
                    open.remove(&record.seq);
                    progress.published += 1;
                    let first_open = open.first().copied().unwrap_or(i64::MAX);
                    let published = seqs.partition_point(|seq| *seq < first_open);
                    progress.through = published
                        .checked_sub(1)
                        .map(|at| seqs[at])
                        .or(progress.through);
                };
                self.publish_part(part, &mut done).await?;
            }
        }
        Ok(())
    }

    /// Publishes records of different keys until the bus has them all.
    async fn publish_part(
        &mut self,
        mut part: Vec<OutboxRecord>,
        done: &mut (dyn FnMut(&OutboxRecord, &mut ReplayProgress) + Send),
    ) -> Result<(), ReplayEnd> {
        let mut refusals: HashMap<Uuid, u32> = HashMap::new();
        let mut failures = 0;
        while !part.is_empty() {
            self.wait_for_its_turn(part.len()).await?;
            let mut outcomes = self.bus.publish(&part).await.into_iter();
            let (mut again, mut refused, mut wait) = (Vec::new(), None, None);
            self.progress.waits_for = None;
            let before = part.len();
            for record in part {
                let outcome = outcomes
                    .next()
                    .unwrap_or_else(|| Outcome::unknown("the publisher gave no answer for it"));
                match outcome {
                    Outcome::Acked => {
                        done(&record, &mut self.progress);
                        continue;
                    }
                    Outcome::Unknown { reason } => self.progress.waits_for = Some(reason),
                    Outcome::Rejected(Rejection { class, reason }) => match class {
                        RejectionClass::Throttled(after) => {
                            wait = wait.max(after);
                            self.progress.waits_for = Some(reason);
                        }
                        RejectionClass::Unreachable => self.progress.waits_for = Some(reason),
                        RejectionClass::Message => {
                            let refusals = refusals.entry(record.id).or_default();
                            *refusals += 1;
                            if *refusals >= self.settings.retry.max_retry {
                                refused.get_or_insert((record.id, reason));
                            } else {
                                self.progress.waits_for = Some(reason);
                            }
                        }
                        RejectionClass::Permanent
                        | RejectionClass::Blocked
                        | RejectionClass::Config => {
                            refused.get_or_insert((record.id, reason));
                        }
                    },
                }
                again.push(record);
            }
            (self.tell)(&self.progress);
            if let Some((id, reason)) = refused {
                return Err(ReplayEnd::Refused { id, reason });
            }
            failures = if again.len() < before {
                1
            } else {
                failures + 1
            };
            if !again.is_empty() {
                self.pause(failures, wait).await?;
            }
            part = again;
        }
        Ok(())
    }

    fn is_stopping(&self) -> bool {
        // Whoever dropped the future has dropped the sender.
        *self.stopping.borrow() || self.stopping.has_changed().is_err()
    }

    /// Waits until the rate allows so many events more.
    async fn wait_for_its_turn(&mut self, events: usize) -> Result<(), ReplayEnd> {
        if let Some(rate) = self.settings.per_second {
            self.sleep(self.next_at.saturating_duration_since(Instant::now()))
                .await?;
            let takes = Duration::from_secs_f64(events as f64 / f64::from(rate.get()));
            self.next_at = self.next_at.max(Instant::now()) + takes;
        }
        match self.is_stopping() {
            true => Err(ReplayEnd::Stopped),
            false => Ok(()),
        }
    }

    async fn pause(&mut self, failures: u32, asked: Option<Duration>) -> Result<(), ReplayEnd> {
        let settings = RetrySettings {
            max_delay: self.settings.retry.max_delay.min(AWAY_PAUSE_MAX),
            ..self.settings.retry.clone()
        };
        let pause = retry::delay(failures, &settings, rand::random());
        let asked = asked.unwrap_or_default().min(self.settings.retry.max_delay);
        self.sleep(pause.max(asked)).await
    }

    /// Sleeps, unless it is told to stop.
    async fn sleep(&mut self, time: Duration) -> Result<(), ReplayEnd> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            // It ends as well when the sender is gone.
            _ = stopping.wait_for(|stopping| *stopping) => Err(ReplayEnd::Stopped),
        }
    }
}
