//! Publishing right after the commit, by the process that committed.
//!
//! An event is inserted already leased to this process if nothing earlier of its key is unsent, so
//! no relay touches it meanwhile and no later event of the key goes first. What fails here, or is
//! not settled when the process dies, is the relay's when the lease ends.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use uuid::Uuid;

use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};
use crate::spans::BatchSpan;
use crate::sparing::Sparing;
use crate::store::{Birth, Fence, Settle, Settlement, Store, Verdict};
use crate::telemetry::{self, Tally};
use crate::timestamp::Timestamp;

/// How events are published right after the commit.
#[derive(Clone, Debug)]
pub struct ImmediateSettings {
    /// Tries before an event is handed over to a relay. Defaults to 3.
    pub tries: u32,
    /// The delay before the second try, doubled before each further one. Defaults to 0.5 s.
    pub multiplier: Duration,
    /// How long an event is leased to this process. Defaults to 10 s.
    pub lease_term: Duration,
    /// Events under way at once. What is committed beyond them is the relay's. Defaults to 1,024.
    pub slots: u32,
    /// Whether sent events are kept, or deleted at once. Defaults to true.
    pub keep_sent: bool,
}

impl Default for ImmediateSettings {
    fn default() -> Self {
        Self {
            tries: 3,
            multiplier: Duration::from_millis(500),
            lease_term: Duration::from_secs(10),
            slots: 1_024,
            keep_sent: true,
        }
    }
}

/// The part of a term in which a holder acts: by its own clock, counted from before the lease was
/// asked for. The rest is for what happens between looking at the clock and acting.
pub(crate) const TERM_USED: f64 = 0.6;

/// How long nothing is published at once after the bus could not be reached.
const AWAY: Duration = Duration::from_secs(1);

/// Settlements written in one statement at most.
const GROUP_MAX: usize = 1_000;

/// Publishes what this process commits. Clones share the slots and the incarnation.
#[derive(Clone)]
pub(crate) struct Immediate {
    shared: Arc<Shared>,
}

struct Shared {
    /// A random id, new at each start.
    owner: Uuid,
    store: Arc<dyn Store>,
    publisher: Arc<dyn Publisher>,
    settings: ImmediateSettings,
    slots: Arc<Semaphore>,
    /// To the task that settles for all units of work of the process.
    settler: OnceLock<mpsc::UnboundedSender<Published>>,
    started: Instant,
    /// Until when, in milliseconds from `started`, the bus is taken for unreachable.
    away_until: AtomicU64,
}

/// A place for the events of one unit of work, taken before its commit.
pub(crate) struct Reservation {
    slots: OwnedSemaphorePermit,
    deadline: Instant,
    birth: Birth,
}

/// Events of one unit of work that were tried, with their places.
struct Published {
    settlements: Vec<Settlement>,
    _slots: OwnedSemaphorePermit,
}

impl Immediate {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        publisher: Arc<dyn Publisher>,
        settings: ImmediateSettings,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(settings.slots as usize));
        Self {
            shared: Arc::new(Shared {
                owner: Uuid::new_v4(),
                store,
                publisher,
                settings,
                slots,
                settler: OnceLock::new(),
                started: Instant::now(),
                away_until: AtomicU64::new(0),
            }),
        }
    }

    /// Places for so many events, before they are written; none when all are taken or the bus is
    /// away. Never waits: a slow bus delays no commit.
    pub(crate) fn reserve(&self, events: usize) -> Option<Reservation> {
        let now = Instant::now();
        let since_start =
            u64::try_from((now - self.shared.started).as_millis()).unwrap_or(u64::MAX);
        if since_start < self.shared.away_until.load(Ordering::Relaxed) {
            return None;
        }
        let slots = u32::try_from(events).ok()?;
        let slots = self
            .shared
            .slots
            .clone()
            .try_acquire_many_owned(slots)
            .ok()?;
        let term = self.shared.settings.lease_term;
        let birth = Birth {
            owner: self.shared.owner,
            term,
        };
        Some(Reservation {
            slots,
            deadline: now + term.mul_f64(TERM_USED),
            birth,
        })
    }

    /// Publishes the records that were born leased, in a task of its own; the rest of the places
    /// is free again.
    pub(crate) fn publish(&self, mut reservation: Reservation, leased: Vec<OutboxRecord>) {
        let Some(slots) = reservation
            .slots
            .split(leased.len())
            .filter(|_| !leased.is_empty())
        else {
            return;
        };
        let immediate = self.clone();
        tokio::spawn(async move {
            let settlements = immediate
                .shared
                .try_to_publish(leased, reservation.deadline)
                .await;
            // The settler ends only with the runtime; then the lease runs out and a relay goes on.
            let _ = immediate.settler().send(Published {
                settlements,
                _slots: slots,
            });
        });
    }

    /// Returns when everything that was under way is settled.
    pub(crate) async fn flushed(&self) {
        let _all = self
            .shared
            .slots
            .acquire_many(self.shared.settings.slots)
            .await;
    }

    fn settler(&self) -> &mpsc::UnboundedSender<Published> {
        self.shared.settler.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let shared = self.shared.clone();
            tokio::spawn(settle_in_groups(
                shared.store.clone(),
                shared.owner,
                shared.settings.keep_sent,
                receiver,
            ));
            sender
        })
    }
}

impl Reservation {
    pub(crate) fn birth(&self) -> &Birth {
        &self.birth
    }
}

impl Shared {
    /// Tries until every record has an answer, is handed over, or the deadline has passed. A key of
    /// which a record is handed over goes no further here.
    async fn try_to_publish(
        &self,
        leased: Vec<OutboxRecord>,
        deadline: Instant,
    ) -> Vec<Settlement> {
        let mut settlements = Vec::with_capacity(leased.len());
        let mut held: HashSet<String> = HashSet::new();
        let mut tally = Tally::default();
        for wave in retry::waves(leased, true) {
            let (waits, mut wave): (Vec<_>, Vec<_>) = wave
                .into_iter()
                .partition(|record| !held.is_empty() && held.contains(&key_of(record)));
            settlements.extend(waits.iter().map(hand_over));
            let mut tries = 0;
            while !wave.is_empty() && Instant::now() < deadline {
                tries += 1;
                let spans = BatchSpan::default().publish(&wave);
                let outcomes = self.publisher.publish(&wave).await;
                spans.ended(&outcomes);
                let mut outcomes = outcomes.into_iter();
                let mut again = Vec::new();
                let now = Timestamp::now();
                for record in wave {
                    let outcome = outcomes
                        .next()
                        .unwrap_or_else(|| Outcome::unknown("the publisher gave no answer"));
                    tally.outcome(&outcome);
                    match self.judge(outcome, tries) {
                        Judgement::Settle(verdict) => {
                            tally.verdict(&record, &verdict, now);
                            settlements.push(Settlement {
                                id: record.id,
                                verdict,
                            });
                        }
                        Judgement::TryAgain => again.push(record),
                        Judgement::Relay(verdict) => {
                            tally.verdict(&record, &verdict, now);
                            held.insert(key_of(&record));
                            settlements.push(Settlement {
                                id: record.id,
                                verdict,
                            });
                        }
                    }
                }
                wave = again;
                if !wave.is_empty() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    tokio::time::sleep(
                        retry::delay(tries, &self.retry(), rand::random()).min(left),
                    )
                    .await;
                }
            }
            held.extend(wave.iter().map(key_of));
            settlements.extend(wave.iter().map(hand_over));
        }
        tally.tell();
        settlements
    }

    fn judge(&self, outcome: Outcome, tries: u32) -> Judgement {
        match outcome {
            Outcome::Acked => Judgement::Settle(Verdict::Sent),
            // Only a relay makes dead letters: it also tells of them.
            Outcome::Rejected(Rejection {
                class: RejectionClass::Permanent,
                ..
            }) => Judgement::Relay(Verdict::HandOver),
            // One of several buses that asks to wait leaves the others alone.
            Outcome::Rejected(Rejection {
                class: RejectionClass::Throttled(_),
                ..
            }) => Judgement::Relay(Verdict::HandOver),
            Outcome::Rejected(Rejection {
                class: RejectionClass::Unreachable | RejectionClass::Config,
                ..
            }) => {
                self.bus_is_away();
                Judgement::Relay(Verdict::HandOver)
            }
            _ if tries < self.settings.tries => Judgement::TryAgain,
            // All tries here are one attempt of the event's.
            Outcome::Rejected(Rejection { reason, .. }) => {
                let after = retry::delay(tries, &self.retry(), rand::random());
                Judgement::Relay(Verdict::Retry {
                    after,
                    counts: true,
                    reason,
                })
            }
            Outcome::Unknown { .. } => Judgement::Relay(Verdict::HandOver),
        }
    }

    fn retry(&self) -> RetrySettings {
        RetrySettings {
            multiplier: self.settings.multiplier,
            ..RetrySettings::default()
        }
    }

    fn bus_is_away(&self) {
        let until = u64::try_from((self.started.elapsed() + AWAY).as_millis()).unwrap_or(u64::MAX);
        self.away_until.store(until, Ordering::Relaxed);
    }
}

/// What to do about a record after a try.
enum Judgement {
    Settle(Verdict),
    TryAgain,
    /// Settle it so, and leave its key to the relay.
    Relay(Verdict),
}

fn key_of(record: &OutboxRecord) -> String {
    record
        .ordering_key()
        .map_or_else(|| record.id.to_string(), |key| key.to_string())
}

fn hand_over(record: &OutboxRecord) -> Settlement {
    Settlement {
        id: record.id,
        verdict: Verdict::HandOver,
    }
}

/// Writes the settlements of all units of work that ended meanwhile in one statement, as databases
/// do with commits. What cannot be written is a relay's when the lease runs out.
async fn settle_in_groups(
    store: Arc<dyn Store>,
    owner: Uuid,
    keep_sent: bool,
    mut published: mpsc::UnboundedReceiver<Published>,
) {
    let mut group = Vec::new();
    let unmarked = Sparing::new();
    while published.recv_many(&mut group, GROUP_MAX).await > 0 {
        let settlements: Vec<Settlement> = group
            .iter_mut()
            .flat_map(|published| std::mem::take(&mut published.settlements))
            .collect();
        let settle = Settle {
            fence: Fence::Birth(owner),
            keep_sent,
            settlements: &settlements,
        };
        match retry::stubbornly(|| store.settle(&settle)).await {
            Ok(changed) => {
                let handed_over = settlements
                    .iter()
                    .any(|settlement| settlement.verdict != Verdict::Sent);
                let lost = (settlements.len() as u64).saturating_sub(changed);
                if lost > 0 {
                    telemetry::fenced(lost);
                    tracing::debug!(lost, "a lease had run out before it was settled");
                }
                if handed_over {
                    store.give_hint();
                }
            }
            Err(error) => {
                if let Some(events) = unmarked.speak(settlements.len() as u64) {
                    tracing::warn!(
                        events,
                        error = error.report(),
                        "published events could not be marked; a relay will publish them again"
                    );
                }
            }
        }
        group.clear();
    }
}
