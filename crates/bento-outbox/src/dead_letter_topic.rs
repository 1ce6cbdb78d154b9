//! A copy of each dead letter, for those who listen to a topic and not to us.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::dead_letter::{DeadLetter, DeadLetterObserver};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Headers;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::retry::{self, RetrySettings};
use crate::sparing::Sparing;
use crate::timestamp::Timestamp;
use crate::topic::Topic;

/// Publishes a copy of each dead letter on the bus that the event was for, under the topic that
/// [`Topic::dead_letters`] gives to records whose status is `ERR`.
///
/// The copy is the event, with four headers more: `outbox-dead-reason`, `outbox-dead-at` (RFC 3339),
/// `outbox-dead-attempts`, and `outbox-dead-topic`, where the event would have gone (left out if no
/// topic could be made of it). If the bus refuses the copy with the event's own headers, it goes without them.
///
/// The truth is the row in the table: its copy is published after that, in a task of its own, and
/// tried again while the bus is away. A copy is lost, and the loss logged, when the process ends
/// before, when the bus refuses it as it refused the event, or when 256 others wait already.
#[derive(Clone)]
pub struct DeadLetterTopic {
    shared: Arc<Shared>,
}

struct Shared {
    bus: Arc<dyn Publisher>,
    topic: Topic,
    retry: RetrySettings,
    places: Arc<Semaphore>,
    copies: OnceLock<mpsc::UnboundedSender<LetterCopy>>,
}

/// A copy that is to be published, with its place.
struct LetterCopy {
    record: OutboxRecord,
    /// The headers without those of the event, which may be what it died of; none once they were tried.
    bare: Option<String>,
    failures: u32,
    _place: OwnedSemaphorePermit,
}

/// Copies that wait at most.
const COPIES_MAX: u32 = 256;

/// The longest pause before copies are tried again.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How much of the reason a header has room for, at four bytes a character.
const REASON_CHARS_MAX: usize = 1_000;

impl DeadLetterTopic {
    /// Publishes to `bus`, whose adapters were made with the same `topic`. A copy that is refused,
    /// but not for good, is tried as often as `retry` says.
    ///
    /// # Errors
    /// [`InvalidSetting`](ErrorKind::InvalidSetting) when the topic gives dead letters none of their
    /// own: a copy would be taken for the event.
    pub fn new(bus: Arc<dyn Publisher>, topic: Topic, retry: RetrySettings) -> Result<Self> {
        if topic.dead_letters.is_none() {
            let what = "the copies of dead letters need a topic of their own";
            return Err(Error::new(ErrorKind::InvalidSetting, what));
        }
        let places = Arc::new(Semaphore::new(COPIES_MAX as usize));
        Ok(Self {
            shared: Arc::new(Shared {
                bus,
                topic,
                retry,
                places,
                copies: OnceLock::new(),
            }),
        })
    }

    /// Returns when no copy waits any more: before the process ends.
    ///
    /// # Cancel safety
    /// Nothing is lost when this future is dropped.
    pub async fn flushed(&self) {
        let _all = self.shared.places.acquire_many(COPIES_MAX).await;
    }

    /// How many copies wait.
    pub fn waiting(&self) -> usize {
        (COPIES_MAX as usize).saturating_sub(self.shared.places.available_permits())
    }
}

impl DeadLetterObserver for DeadLetterTopic {
    fn died(&self, letters: &[DeadLetter]) {
        let copies = self.shared.copies.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (bus, retry) = (self.shared.bus.clone(), self.shared.retry.clone());
            tokio::spawn(publish_all(bus, retry, receiver));
            sender
        });
        for letter in letters {
            let Ok(place) = self.shared.places.clone().try_acquire_owned() else {
                lost(&letter.record, "too many others wait already");
                continue;
            };
            let (record, bare) = copy_of(letter, &self.shared.topic, Timestamp::now());
            let copy = LetterCopy {
                record,
                bare,
                failures: 0,
                _place: place,
            };
            if let Err(unsent) = copies.send(copy) {
                lost(&unsent.0.record, "the task that publishes them has ended");
            }
        }
    }
}

/// The record that is published in the name of a dead letter, and the headers it has if those of the event
/// are refused; none if it has these already.
fn copy_of(letter: &DeadLetter, topic: &Topic, at: Timestamp) -> (OutboxRecord, Option<String>) {
    let mut alive = letter.record.clone();
    alive.delivery.status = Default::default();
    let reason = letter.reason.chars().take(REASON_CHARS_MAX).collect();
    let attempts = letter.record.delivery.retry_cnt.to_string();
    let about = [
        ("outbox-dead-reason", Some(reason)),
        ("outbox-dead-at", Some(at.to_string())),
        ("outbox-dead-attempts", Some(attempts)),
        ("outbox-dead-topic", topic.of(&alive).ok()),
    ];
    let with = |mut headers: Headers| {
        for (name, value) in about
            .iter()
            .filter_map(|(name, value)| Some((*name, value.as_ref()?)))
        {
            headers.insert(name, value)?;
        }
        Ok::<_, Error>(headers)
    };
    let bare = with(Headers::default()).unwrap_or_default().to_json();
    // Headers that no bus carries may be what it died of.
    let full = letter.record.headers().and_then(&with);
    let (headers, bare) = match full.map(|full| full.to_json()) {
        Ok(full) if full != bare => (full, Some(bare)),
        _ => (bare, None),
    };
    let record = OutboxRecord {
        headers,
        ..letter.record.clone()
    };
    (record, bare)
}

async fn publish_all(
    bus: Arc<dyn Publisher>,
    retry: RetrySettings,
    mut copies: mpsc::UnboundedReceiver<LetterCopy>,
) {
    let mut waiting: Vec<LetterCopy> = Vec::new();
    let mut rounds_in_vain = 0;
    loop {
        if waiting.is_empty() {
            match copies.recv().await {
                Some(copy) => waiting.push(copy),
                None => return,
            }
        }
        while let Ok(copy) = copies.try_recv() {
            waiting.push(copy);
        }
        let before = waiting.len();
        waiting = publish_some(bus.as_ref(), &retry, waiting).await;
        rounds_in_vain = if waiting.len() < before {
            0
        } else {
            rounds_in_vain + 1
        };
        if rounds_in_vain > 0 {
            let retry = RetrySettings {
                max_delay: PAUSE_MAX.min(retry.max_delay),
                ..retry.clone()
            };
            tokio::time::sleep(retry::delay(rounds_in_vain, &retry, rand::random())).await;
        }
    }
}

/// Publishes one copy of each ordering key, and gives back those that are still to be published.
async fn publish_some(
    bus: &dyn Publisher,
    retry: &RetrySettings,
    waiting: Vec<LetterCopy>,
) -> Vec<LetterCopy> {
    let mut keys = HashSet::new();
    let (now, later): (Vec<LetterCopy>, Vec<LetterCopy>) = waiting.into_iter().partition(|copy| {
        let key = copy.record.ordering_key().map(|key| key.to_string());
        key.is_none_or(|key| keys.insert(key))
    });
    let records: Vec<OutboxRecord> = now.iter().map(|copy| copy.record.clone()).collect();
    let mut outcomes = bus.publish(&records).await.into_iter();
    let mut again = Vec::new();
    for mut copy in now {
        match outcomes.next() {
            Some(Outcome::Acked) => continue,
            Some(Outcome::Rejected(Rejection { class, reason })) => {
                copy.failures += u32::from(class == RejectionClass::Message);
                if class == RejectionClass::Permanent || copy.failures >= retry.max_retry {
                    let Some(bare) = copy.bare.take() else {
                        lost(&copy.record, &reason);
                        continue;
                    };
                    copy.record.headers = bare;
                    copy.failures = 0;
                }
            }
            Some(Outcome::Unknown { .. }) | None => {}
        }
        again.push(copy);
    }
    again.extend(later);
    again
}

/// One line speaks for many: where one copy is refused, all may be.
static LOST: Sparing = Sparing::new();

fn lost(record: &OutboxRecord, reason: &str) {
    let Some(copies) = LOST.speak(1) else { return };
    tracing::warn!(
        copies,
        event = %record.id,
        r#type = record.event_type,
        reason,
        "copies of dead letters, the last of which is shown, were not published; the table has them"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud_event::CloudEvents;
    use crate::event::{Aggregate, Event, Payload};
    use crate::publishers::{FilePublisher, MemoryPublisher};

    fn letter(id: &str) -> DeadLetter {
        let event = Event {
            aggregate: Aggregate::new("order", id),
            ..Event::new("order.placed", Payload::json("1").unwrap())
        };
        let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
        DeadLetter::of(record, true, "no such customer")
    }

    fn topic() -> Topic {
        Topic {
            dead_letters: Some("dead".parse().unwrap()),
            ..Topic::default()
        }
    }

    fn copies_to(bus: Arc<dyn Publisher>) -> DeadLetterTopic {
        let retry = RetrySettings {
            multiplier: Duration::from_millis(10),
            ..RetrySettings::default()
        };
        DeadLetterTopic::new(bus, topic(), retry).unwrap()
    }

    #[tokio::test]
    async fn a_copy_is_the_event_and_says_why() {
        let bus = MemoryPublisher::default();
        let copies = copies_to(Arc::new(bus.clone()));
        let mut letter = letter("7");
        letter.record.headers = r#"{"x-shop":"north"}"#.into();
        copies.died(std::slice::from_ref(&letter));
        copies.flushed().await;
        let [copy] = &bus.published()[..] else {
            panic!("{:?}", bus.published());
        };
        let headers = copy.headers().unwrap();
        assert_eq!(headers.get("outbox-dead-reason"), Some("no such customer"));
        assert_eq!(headers.get("outbox-dead-attempts"), Some("1"));
        assert_eq!(headers.get("outbox-dead-topic"), Some("order.placed"));
        assert_eq!(headers.get("x-shop"), Some("north"));
        let at: Timestamp = headers.get("outbox-dead-at").unwrap().parse().unwrap();
        assert!(at.until(Timestamp::now()) < Duration::from_secs(60));
        assert_eq!(
            (copy.id, &copy.payload),
            (letter.record.id, &letter.record.payload)
        );
        assert_eq!(topic().of(copy).as_deref(), Ok("dead"));
    }

    #[test]
    fn headers_that_no_bus_carries_are_left_out() {
        let full: Vec<String> = (0..64).map(|n| format!("\"h{n}\":\"v\"")).collect();
        for headers in [
            "null".into(),
            "{\"ce-id\":\"x\"}".into(),
            format!("{{{}}}", full.join(",")),
        ] {
            let mut letter = letter("7");
            letter.record.headers = headers;
            letter.reason = "\u{1f980}".repeat(2_000);
            let (copy, _) = copy_of(&letter, &topic(), Timestamp::now());
            assert_eq!(
                copy.headers().unwrap().iter().count(),
                4,
                "{}",
                copy.headers
            );
        }
    }

    /// Takes no record with a header of the shop's.
    #[derive(Default)]
    struct Picky(MemoryPublisher);

    #[async_trait::async_trait]
    impl Publisher for Picky {
        async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
            if batch.iter().any(|copy| copy.headers.contains("x-shop")) {
                let refused = Outcome::rejected(RejectionClass::Permanent, "no such header here");
                return vec![refused; batch.len()];
            }
            self.0.publish(batch).await
        }

        async fn check(&self) -> Result<(), Rejection> {
            self.0.check().await
        }
    }

    #[tokio::test]
    async fn headers_that_this_bus_refuses_are_left_out() {
        let bus = Arc::new(Picky::default());
        let copies = copies_to(bus.clone());
        let mut letter = letter("7");
        letter.record.headers = r#"{"x-shop":"north"}"#.into();
        copies.died(std::slice::from_ref(&letter));
        copies.flushed().await;
        let [copy] = &bus.0.published()[..] else {
            panic!("{:?}", bus.0.published());
        };
        let headers = copy.headers().unwrap();
        assert_eq!(headers.get("outbox-dead-reason"), Some("no such customer"));
        assert_eq!(headers.iter().count(), 4);
    }

    #[test]
    fn without_a_topic_of_their_own_there_are_no_copies() {
        let bus = Arc::new(MemoryPublisher::default());
        let refused = DeadLetterTopic::new(bus, Topic::default(), RetrySettings::default());
        assert_eq!(
            refused.err().map(|error| error.kind()),
            Some(ErrorKind::InvalidSetting)
        );
    }

    #[tokio::test]
    async fn copies_wait_for_a_bus_that_is_away_and_are_not_without_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/events.jsonl");
        let bus = FilePublisher::new(&path, CloudEvents::default());
        let copies = copies_to(Arc::new(bus));
        let letters: Vec<DeadLetter> = (0..300).map(|n| letter(&(n % 100).to_string())).collect();
        copies.died(&letters);
        assert_eq!(copies.waiting(), 256);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(copies.waiting(), 256);
        std::fs::create_dir(folder.path().join("later")).unwrap();
        copies.flushed().await;
        assert_eq!(copies.waiting(), 0);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 256);
        // Each key in its order.
        let at = |n: usize| text.find(&letters[n].record.id.to_string()).unwrap();
        assert!(at(0) < at(100) && at(100) < at(200));
    }

    #[tokio::test]
    async fn a_copy_that_is_refused_for_good_is_given_up() {
        let bus = MemoryPublisher::default();
        let copies = copies_to(Arc::new(bus.clone()));
        let mut refused = letter("7");
        refused.record.event_type = String::new();
        copies.died(&[refused, letter("8")]);
        copies.flushed().await;
        assert_eq!(bus.published().len(), 1);
    }

    #[tokio::test]
    async fn a_dropped_flush_loses_no_copy_and_no_place() {
        let bus = MemoryPublisher::default();
        let copies = copies_to(Arc::new(bus.clone()));
        copies.died(&[letter("1"), letter("2")]);
        tokio::select! {
            biased;
            () = copies.flushed() => panic!("nothing is published yet"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(copies.waiting(), 2);
        copies.died(&[letter("3")]);
        copies.flushed().await;
        assert_eq!(bus.published().len(), 3);
    }
}
