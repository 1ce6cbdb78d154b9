//! Telling people of new dead letters, many in one message.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::dead_letter::{DeadLetter, DeadLetterObserver};
use crate::error::{Error, sanitised};
use crate::event::{Event, Payload};
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};
use crate::tenant::Tenant;
use crate::timestamp::Timestamp;

/// Gathers new dead letters and publishes one message about them, as an event of the type
/// `bento-outbox.dead-letters`.
///
/// The message says how many there are of each tenant and type, with a few ids and reasons and no
/// payload. It goes out some seconds after the first dead letter; while more keep coming, the next
/// ones wait longer, up to minutes. What could not be told is told with the next message.
///
/// Who tells it of a dead letter never waits: publishing is the work of a task that ends when this is
/// dropped.
pub struct DeadLetterAlert {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// When messages go out.
#[derive(Clone, Debug)]
pub struct AlertSettings {
    /// How long dead letters are gathered before a message goes out. Defaults to 5 s.
    pub window: Duration,
    /// What that grows to, doubled each time, while dead letters keep coming. Defaults to 5 minutes.
    pub window_max: Duration,
    /// How often a message is tried. Defaults to 6 times.
    pub tries: u32,
    /// The delay before the second try, doubled before each further one. Defaults to 1 s.
    pub retry_multiplier: Duration,
}

impl Default for AlertSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(5),
            window_max: Duration::from_secs(300),
            tries: 6,
            retry_multiplier: Duration::from_secs(1),
        }
    }
}

struct Shared {
    publisher: Arc<dyn Publisher>,
    settings: AlertSettings,
    gathered: Mutex<Gathered>,
    /// There is something to tell.
    told: Notify,
    /// It is to be told now.
    hurry: Notify,
    /// Dead letters that nobody was told of yet.
    untold: watch::Sender<u64>,
}

impl DeadLetterObserver for DeadLetterAlert {
    fn died(&self, letters: &[DeadLetter]) {
        for DeadLetter { record, reason } in letters {
            self.tell(&record.tenant, &record.event_type, record.id, reason);
        }
    }
}

impl DeadLetterAlert {
    /// Gathers from now on, for `publisher`. Called in a runtime of tokio.
    pub fn start(publisher: Arc<dyn Publisher>, settings: AlertSettings) -> Self {
        let shared = Arc::new(Shared {
            publisher,
            settings,
            gathered: Mutex::default(),
            told: Notify::new(),
            hurry: Notify::new(),
            untold: watch::Sender::new(0),
        });
        let task = tokio::spawn(Shared::run(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Takes note of a new dead letter, and returns at once.
    pub fn tell(&self, tenant: &Tenant, event_type: &str, id: Uuid, reason: &str) {
        self.shared.untold.send_modify(|untold| *untold += 1);
        self.shared.gathered().add(tenant, event_type, id, reason);
        self.shared.told.notify_one();
    }

    /// Publishes what is gathered without waiting for more, and returns when all is told; after
    /// `patience` at the latest.
    pub async fn flush(&self, patience: Duration) {
        let mut untold = self.shared.untold.subscribe();
        if *untold.borrow() == 0 {
            return;
        }
        self.shared.told.notify_one();
        self.shared.hurry.notify_one();
        // The sender lives as long as this does.
        let all_told = timeout(patience, untold.wait_for(|untold| *untold == 0)).await;
        if all_told.is_err() {
            let untold = *self.shared.untold.borrow();
            tracing::warn!(untold, "nobody could be told of some dead letters in time");
        }
    }
}

impl Drop for DeadLetterAlert {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        let mut window = self.settings.window;
        let mut last: Option<Instant> = None;
        loop {
            self.told.notified().await;
            let is_storm = last.is_some_and(|last| last.elapsed() < window);
            window = match is_storm {
                true => (window * 2).min(self.settings.window_max),
                false => self.settings.window,
            };
            tokio::select! {
                () = sleep(window) => {}
                () = self.hurry.notified() => {}
            }
            let gathered = mem::take(&mut *self.gathered());
            if gathered.total == 0 {
                continue;
            }
            match self.publish(&gathered).await {
                Ok(()) => self.untold.send_modify(|untold| *untold -= gathered.total),
                Err(reason) => {
                    tracing::warn!(
                        reason,
                        dead_letters = gathered.total,
                        "nobody could be told of new dead letters; the next message has them too"
                    );
                    self.gathered().add_all(gathered);
                }
            }
            last = Some(Instant::now());
        }
    }

    /// Tries until the message is taken, a bounded number of times, always under the same id.
    async fn publish(&self, gathered: &Gathered) -> Result<(), String> {
        let message = gathered.message().map_err(|error| error.report())?;
        let retry = RetrySettings {
            multiplier: self.settings.retry_multiplier,
            ..RetrySettings::default()
        };
        let mut tries = 1;
        loop {
            let outcomes = self.publisher.publish(std::slice::from_ref(&message)).await;
            let reason = match outcomes.into_iter().next() {
                Some(Outcome::Acked) => return Ok(()),
                Some(Outcome::Rejected(Rejection {
                    class: RejectionClass::Permanent,
                    reason,
                })) => return Err(reason),
                Some(Outcome::Rejected(Rejection { reason, .. }))
                | Some(Outcome::Unknown { reason }) => reason,
                None => "the publisher gave no answer".into(),
            };
            if tries >= self.settings.tries {
                return Err(reason);
            }
            sleep(retry::delay(tries, &retry, rand::random())).await;
            tries += 1;
        }
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dead letters that are told together.
#[derive(Default)]
struct Gathered {
    total: u64,
    since: Option<Timestamp>,
    /// By tenant and type.
    groups: BTreeMap<(String, String), Group>,
    /// Those of tenants and types for which there is no room.
    others: u64,
}

#[derive(Default)]
struct Group {
    count: u64,
    examples: Vec<Example>,
}

#[derive(Serialize)]
struct Example {
    id: Uuid,
    reason: String,
}

/// The most groups in a message, the most examples of each, and the most characters of a reason: with
/// them a message has less than 100 KB.
const GROUPS_MAX: usize = 50;
const EXAMPLES_MAX: usize = 3;
const REASON_CHARS_MAX: usize = 300;

/// The groups that the one line for people names.
const NAMED_MAX: usize = 3;

/// The type of the event that is published.
const TYPE: &str = "bento-outbox.dead-letters";

/// The payload.
#[derive(Serialize)]
struct Message<'a> {
    /// One line, which chat programs show.
    text: String,
    total: u64,
    since: Timestamp,
    until: Timestamp,
    groups: Vec<GroupOfMessage<'a>>,
    others: u64,
}

#[derive(Serialize)]
struct GroupOfMessage<'a> {
    tenant_id: &'a str,
    r#type: &'a str,
    count: u64,
    examples: &'a [Example],
}

impl Gathered {
    fn add(&mut self, tenant: &Tenant, event_type: &str, id: Uuid, reason: &str) {
        self.total += 1;
        self.since.get_or_insert_with(Timestamp::now);
        let Some(group) = self.group(tenant.as_str(), event_type) else {
            self.others += 1;
            return;
        };
        group.count += 1;
        if group.examples.len() < EXAMPLES_MAX {
            let reason = sanitised(reason).chars().take(REASON_CHARS_MAX).collect();
            group.examples.push(Example { id, reason });
        }
    }

    /// Adds what was gathered before this.
    fn add_all(&mut self, earlier: Self) {
        self.total += earlier.total;
        self.others += earlier.others;
        self.since = earlier.since.or(self.since);
        for ((tenant, event_type), group) in earlier.groups {
            match self.group(&tenant, &event_type) {
                None => self.others += group.count,
                Some(ours) => {
                    ours.count += group.count;
                    ours.examples.splice(..0, group.examples);
                    ours.examples.truncate(EXAMPLES_MAX);
                }
            }
        }
    }

    /// The group, made if there is room for it.
    fn group(&mut self, tenant: &str, event_type: &str) -> Option<&mut Group> {
        let key = (tenant.to_owned(), event_type.to_owned());
        match self.groups.len() < GROUPS_MAX {
            true => Some(self.groups.entry(key).or_default()),
            false => self.groups.get_mut(&key),
        }
    }

    fn message(&self) -> Result<OutboxRecord, Error> {
        let now = Timestamp::now();
        let groups = self.groups.iter();
        let message = Message {
            text: self.text(),
            total: self.total,
            since: self.since.unwrap_or(now),
            until: now,
            groups: groups
                .map(|((tenant_id, event_type), group)| GroupOfMessage {
                    tenant_id,
                    r#type: event_type,
                    count: group.count,
                    examples: &group.examples,
                })
                .collect(),
            others: self.others,
        };
        let json = serde_json::to_string(&message).unwrap_or_default();
        let event = Event::new(TYPE, Payload::json(json)?);
        Ok(OutboxRecord::of(&event, &Tenant::default(), 0, now))
    }

    /// `7 new dead letters: 5 order.placed of acme, 2 user.left of default`.
    fn text(&self) -> String {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        let named: Vec<String> = groups
            .iter()
            .take(NAMED_MAX)
            .map(|((tenant, event_type), group)| {
                format!("{} {event_type} of {tenant}", group.count)
            })
            .collect();
        let named_count: u64 = groups
            .iter()
            .take(NAMED_MAX)
            .map(|(_, group)| group.count)
            .sum();
        let plural = if self.total == 1 { "" } else { "s" };
        let mut text = format!(
            "{} new dead letter{plural}: {}",
            self.total,
            named.join(", ")
        );
        if named_count < self.total {
            text += &format!(", {} others", self.total - named_count);
        }
        text + " (see `bento-outbox dead list`)"
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::Value;

    use super::*;
    use crate::publishers::MemoryPublisher;

    fn settings() -> AlertSettings {
        AlertSettings::default()
    }

    fn told(bus: &MemoryPublisher) -> Vec<Value> {
        let published = bus.published();
        let payload = |record: &OutboxRecord| serde_json::from_slice(&record.payload).unwrap();
        published.iter().map(payload).collect()
    }

    fn tell(alert: &DeadLetterAlert, tenant: &str, event_type: &str, reason: &str) {
        let tenant = tenant.parse().unwrap();
        alert.tell(&tenant, event_type, Uuid::now_v7(), reason);
    }

    #[tokio::test(start_paused = true)]
    async fn many_dead_letters_are_one_message_by_tenant_and_type() {
        let bus = MemoryPublisher::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        for n in 0..5 {
            tell(
                &alert,
                "acme",
                "order.placed",
                &format!("no {n}\n at http://bob:s3cr3t@h/"),
            );
        }
        tell(&alert, "default", "user.left", "no");
        sleep(settings().window * 2).await;
        let messages = told(&bus);
        let [message] = &messages[..] else {
            panic!("{messages:?}");
        };
        assert_eq!(
            message["text"],
            "6 new dead letters: 5 order.placed of acme, 1 user.left of default (see `bento-outbox dead list`)"
        );
        assert_eq!(
            (&message["total"], &message["others"]),
            (&6.into(), &0.into())
        );
        let group = &message["groups"][0];
        assert_eq!(
            (&group["tenant_id"], &group["type"]),
            (&"acme".into(), &"order.placed".into())
        );
        assert_eq!(group["count"], 5);
        assert_eq!(group["examples"].as_array().unwrap().len(), EXAMPLES_MAX);
        assert_eq!(group["examples"][0]["reason"], "no 0  at http://bob:***@h/");
        assert_eq!(bus.published()[0].event_type, TYPE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_told_ever_more_seldom_and_calm_is_told_soon() {
        let bus = MemoryPublisher::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        for _ in 0..3_600 {
            tell(&alert, "acme", "a", "no");
            sleep(Duration::from_secs(1)).await;
        }
        let messages = told(&bus);
        assert!((5..25).contains(&messages.len()), "{}", messages.len());
        alert.flush(Duration::from_secs(1)).await;
        let total: u64 = told(&bus)
            .iter()
            .map(|message| message["total"].as_u64().unwrap())
            .sum();
        assert_eq!(total, 3_600);
        sleep(settings().window_max * 2).await;
        let before = told(&bus).len();
        tell(&alert, "acme", "a", "no");
        sleep(settings().window + Duration::from_millis(1)).await;
        assert_eq!(told(&bus).len(), before + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_without_end_have_room_in_one_message() {
        let bus = MemoryPublisher::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        for n in 0..10_000 {
            tell(&alert, &format!("t{n}"), "a", &"é".repeat(5_000));
        }
        alert.flush(Duration::from_secs(1)).await;
        let message = &told(&bus)[0];
        assert_eq!(
            (&message["total"], &message["others"]),
            (&10_000.into(), &9_950.into())
        );
        assert!(bus.published()[0].payload.len() < 100_000);
    }

    /// A bus that takes nothing until it is told to.
    #[derive(Clone, Default)]
    struct Broken {
        works: Arc<std::sync::atomic::AtomicBool>,
        bus: MemoryPublisher,
        asked: Arc<Mutex<Vec<Uuid>>>,
    }

    #[async_trait]
    impl Publisher for Broken {
        async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
            let ids = batch.iter().map(|record| record.id);
            self.asked.lock().unwrap().extend(ids);
            match self.works.load(std::sync::atomic::Ordering::Relaxed) {
                true => self.bus.publish(batch).await,
                false => vec![Outcome::rejected(RejectionClass::Config, "404"); batch.len()],
            }
        }

        async fn check(&self) -> Result<(), Rejection> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_tried_so_often_and_then_told_with_the_next_one() {
        let bus = Broken::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        tell(&alert, "acme", "a", "first");
        sleep(Duration::from_secs(600)).await;
        let asked = bus.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), settings().tries as usize);
        assert!(asked.iter().all(|id| *id == asked[0]), "under one id");

        bus.works.store(true, std::sync::atomic::Ordering::Relaxed);
        tell(&alert, "acme", "a", "second");
        sleep(Duration::from_secs(60)).await;
        let messages = told(&bus.bus);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0]["total"], 2);
        let reasons = &messages[0]["groups"][0]["examples"];
        assert_eq!(
            (&reasons[0]["reason"], &reasons[1]["reason"]),
            (&"first".into(), &"second".into())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_tells_at_once_and_does_not_wait_for_ever() {
        let bus = Broken::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        let begun = Instant::now();
        alert.flush(Duration::from_secs(60)).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "nothing was to be told");
        tell(&alert, "acme", "a", "no");
        alert.flush(Duration::from_secs(3)).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        bus.works.store(true, std::sync::atomic::Ordering::Relaxed);
        alert.flush(Duration::from_secs(60)).await;
        assert_eq!(told(&bus.bus).len(), 1);
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_flush_loses_no_word() {
        let bus = MemoryPublisher::default();
        let alert = DeadLetterAlert::start(Arc::new(bus.clone()), settings());
        tell(&alert, "acme", "order.placed", "no");
        let flushed = timeout(Duration::ZERO, alert.flush(settings().window)).await;
        assert!(flushed.is_err(), "nothing is told yet");
        alert.flush(settings().window).await;
        let messages = told(&bus);
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert_eq!(messages[0]["total"], 1);
    }
}
