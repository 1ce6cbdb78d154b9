//! Apache Kafka as a bus.

mod cluster;
mod link;
mod message;
mod report;
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::FutureRecord;
use rdkafka::producer::future_producer::DeliveryFuture;
use tokio::time::{Instant, sleep, timeout_at};

use self::cluster::{Cluster, Compression};
use self::link::{Link, code_of};
use self::message::{FRAME_BYTES, Message, check_topic};
use self::report::{Failure, failure};
use self::topics::{Shape, Taken, Topics};
use super::options::{Options, invalid};
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::event::{Event, Payload};
use crate::publisher::Publisher;
use crate::record::RejectionClass::{Blocked, Config, Permanent, Throttled, Unreachable};
use crate::record::{OutboxRecord, Outcome, Rejection};
use crate::topic::Topic;

/// `kafka://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…`; `kafkas://` is the same over TLS.
///
/// Acknowledged is what all in-sync replicas of a partition have (`acks=all`, an idempotent
/// producer), as the client's report on this very event says. How many replicas that are, the topic
/// says: 3 with `min.insync.replicas=2` outlive the loss of any one broker.
///
/// The key is the aggregate's id, placed as Kafka's own clients do it (murmur2); an event without
/// one has no key. Adding partitions to a topic moves keys to other partitions, and with them the
/// order between old and new events. Attributes are headers that begin with `ce_`, as the Kafka
/// binding of CloudEvents has them.
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | `topics` | the topics that [`check`](Publisher::check) looks at, with commas | those that are named without a placeholder |
/// | `create` | `true` makes a topic that is missing, when it is checked or first published to | `false` |
/// | `partitions` | of a topic that is made | the cluster's |
/// | `replication` | how many brokers have a topic that is made | the cluster's |
/// | `compression` | `none`, `gzip`, `snappy`, `lz4` or `zstd` | `none` |
/// | `sasl` | `plain`, `scram-sha-256` or `scram-sha-512`, with user and password | `plain` |
/// | `ca` | a file with the authorities that may sign the brokers' certificates | the system's |
/// | `mode` | `binary` or `structured` CloudEvents | `binary` |
/// | `timeout` | how long an answer is waited for | `10s` |
///
/// A certificate must be valid and name the host. Only the characters that Kafka takes may be in a
/// topic: letters and digits of ASCII, `.`, `_` and `-`, 249 of them at most.
pub struct KafkaPublisher {
    topic: Topic,
    events: CloudEvents,
    cluster: Arc<Cluster>,
    topics: Topics,
    timeout: Duration,
    /// The largest batch of more than one event that every topic takes, as far as is known.
    batch_bytes: AtomicUsize,
    link: Mutex<Option<Arc<Link>>>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

/// How long an answer is waited for unless the URL says otherwise, and at most.
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// The client reports on every record in time; so late it certainly has, or never will.
const GRACE: Duration = Duration::from_secs(5);

/// The largest batch unless a topic takes less. A single event may be larger.
const BATCH_BYTES: usize = 1_000_000;

impl KafkaPublisher {
    /// Publishes to the cluster of `url`, which is reached at the first use. A string and no
    /// [`Url`](url::Url), whose grammar knows one host.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when the URL names no broker, has an
    /// unknown option, or one that contradicts another.
    pub fn new(url: &str, topic: Topic, events: CloudEvents) -> Result<Self> {
        let (url, brokers) = cluster::split(url)?;
        let mut options = Options::of(&url)?;
        let mut named = options.list("topics");
        let create = options.flag("create")?;
        let shape = Shape {
            partitions: count(&mut options, "partitions")?,
            replication: count(&mut options, "replication")?,
        };
        let cluster = Cluster::of(&url, brokers, &mut options)?;
        let mode = options.mode(events.mode)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        options.finish()?;
        if !create && shape != Shape::default() {
            return Err(invalid(
                "options partitions and replication need the option create=true",
            ));
        }
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&timeout) {
            return Err(invalid("option timeout is not between 100ms and 5m"));
        }
        if named.is_empty() {
            named = names_of(&topic);
        }
        for name in &named {
            check_topic(name).map_err(|rejection| invalid(rejection.reason))?;
        }
        Ok(Self {
            topic,
            events: CloudEvents { mode, ..events },
            cluster: cluster.into(),
            topics: Topics::new(named, create.then_some(shape)),
            timeout,
            batch_bytes: BATCH_BYTES.into(),
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }
}

/// The topics whose names need no event.
fn names_of(topic: &Topic) -> Vec<String> {
    let rules = topic.rules.iter().map(|rule| &rule.template);
    let templates = iter::once(&topic.template).chain(rules);
    let names = templates
        .chain(&topic.dead_letters)
        .map(ToString::to_string);
    let names: BTreeSet<_> = names.filter(|name| !name.contains('{')).collect();
    names.into_iter().collect()
}

fn count(options: &mut Options, name: &'static str) -> Result<Option<u16>> {
    let number = |text: String| {
        let number = text
            .parse()
            .ok()
            .filter(|number| (1..=10_000).contains(number));
        number.ok_or_else(|| invalid(format!("option {name} is no number from 1 to 10000")))
    };
    options.text(name).map(number).transpose()
}

#[async_trait]
impl Publisher for KafkaPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let mut messages: Vec<_> = batch.iter().map(|record| self.message(record)).collect();
        let (link, takes) = match self.prepare(&messages, deadline).await {
            Ok(prepared) => prepared,
            Err(rejection) => {
                let outcome =
                    |message: Result<_, Rejection>| message.err().unwrap_or(rejection.clone());
                return messages
                    .into_iter()
                    .map(outcome)
                    .map(Outcome::from)
                    .collect();
            }
        };
        for message in &mut messages {
            if let Ok(fine) = message
                && let Err(rejection) = self.accept(fine, &takes)
            {
                *message = Err(rejection);
            }
        }
        let reports = {
            let _shared = link.lanes.read().await;
            self.send(&link, messages, deadline).await
        };
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut is_answered = true;
        for (record, report) in batch.iter().zip(reports) {
            outcomes.push(match report {
                Ok(()) => Outcome::Acked,
                Err(Failure::Of(outcome)) => outcome,
                Err(Failure::OfBatch(_)) if is_answered => {
                    let outcome = self.send_alone(&link, record).await;
                    is_answered = !is_unknown(&outcome);
                    outcome
                }
                Err(Failure::OfBatch(code)) => {
                    let reason = format!("a batch was refused: {code}");
                    Outcome::rejected(Throttled(None), reason)
                }
            });
        }
        if outcomes.iter().any(is_unknown) || !link.is_trusted() {
            self.give_up(&link);
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        let deadline = Instant::now() + self.timeout;
        let link = self.link(deadline).await?;
        let checked = async {
            if self.topics.named.is_empty() {
                return link.probe(&self.cluster).await;
            }
            link.taken().clear();
            let names = self.topics.named.iter().map(String::as_str).collect();
            let looked = self.topics.look(&link, &self.cluster, &names, deadline);
            let refused = looked.await?.into_values().find_map(Result::err);
            refused.map_or(Ok(()), |rejection| Err(topics::for_check(rejection)))
        };
        let checked = checked.await;
        if matches!(&checked, Err(rejection) if rejection.class == Unreachable) {
            self.give_up(&link);
        }
        checked
    }

    async fn caveats(&self) -> Vec<String> {
        let password = "the password of bus_url is sent in the clear; begin it with kafkas://";
        let shown = self.cluster.shows_password().then(|| password.into());
        shown
            .into_iter()
            .chain(self.topics.doubts().iter().cloned())
            .collect()
    }

    fn payload_bytes_max(&self, event: &Event) -> Option<usize> {
        let link = self.slot().clone()?;
        let bare = Event {
            aggregate: event.aggregate.clone(),
            ..Event::new(event.event_type.as_str(), Payload::Data(Bytes::new()))
        };
        let tenant = event.tenant.clone().unwrap_or_default();
        let record = OutboxRecord::of(&bare, &tenant, 0, event.occurred_at);
        let topic = self.topic.of(&record).ok()?;
        let taken = *link.taken().get(&topic)?;
        Some(self.limit(taken)?.saturating_sub(FRAME_BYTES))
    }
}

impl KafkaPublisher {
    /// A connection, and which of the topics of these messages take events.
    async fn prepare(
        &self,
        messages: &[Result<Message<'_>, Rejection>],
        deadline: Instant,
    ) -> Result<(Arc<Link>, BTreeMap<String, Result<Taken, Rejection>>), Rejection> {
        let messages = || messages.iter().flatten();
        let names: BTreeSet<_> = messages().map(|message| message.topic.as_str()).collect();
        loop {
            let link = self.link(deadline).await?;
            let look = async || {
                let looked = self
                    .topics
                    .look(&link, &self.cluster, &names, deadline)
                    .await;
                looked.inspect_err(|_| self.give_up(&link))
            };
            let mut takes = look().await?;
            // Nothing is refused for a limit that somebody may have raised meanwhile.
            let mut is_stale = false;
            for message in messages().filter(|message| self.accept(message, &takes).is_err()) {
                is_stale |= link.taken().remove(&message.topic).is_some();
            }
            if is_stale {
                takes = look().await?;
            }
            // Batches that their topic takes as a whole: what a broker refuses of many events
            // together, would have to be sent again one by one.
            let limits = takes
                .values()
                .flatten()
                .filter_map(|taken| taken.batch_bytes_max);
            let smallest = limits.min().unwrap_or(BATCH_BYTES);
            if smallest >= link.batch_bytes {
                return Ok((link, takes));
            }
            self.batch_bytes.fetch_min(smallest, Ordering::Relaxed);
            self.give_up(&link);
        }
    }

    /// The connection, made now if there is none that works.
    async fn link(&self, deadline: Instant) -> Result<Arc<Link>, Rejection> {
        if let Some(link) = self.working_link() {
            return Ok(link);
        }
        let connect = async {
            let _one_at_a_time = self.connecting.lock().await;
            if let Some(link) = self.working_link() {
                return Ok(link);
            }
            let batch_bytes = self.batch_bytes.load(Ordering::Relaxed);
            let link = Link::connect(&self.cluster, self.timeout, batch_bytes).await?;
            let link = Arc::new(link);
            *self.slot() = Some(Arc::clone(&link));
            Ok(link)
        };
        let connected = timeout_at(deadline + GRACE, connect).await;
        connected.unwrap_or_else(|_| {
            Err(unreachable(format!(
                "{} did not answer in time",
                self.cluster
            )))
        })
    }

    fn working_link(&self) -> Option<Arc<Link>> {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|link| !link.is_trusted()) {
            *slot = None;
        }
        slot.clone()
    }

    /// Gives a connection up, unless another batch has done so already.
    fn give_up(&self, link: &Arc<Link>) {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|other| Arc::ptr_eq(other, link)) {
            *slot = None;
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what the message's topic does not take.
    fn accept(
        &self,
        message: &Message<'_>,
        takes: &BTreeMap<String, Result<Taken, Rejection>>,
    ) -> Result<(), Rejection> {
        let taken = takes.get(&message.topic);
        let taken = taken.cloned().unwrap_or_else(|| {
            let reason = format!("topic {} was not looked at", message.topic);
            Err(Rejection::new(Throttled(None), reason))
        })?;
        match self.limit(taken) {
            Some(limit) if message.bytes > limit => Err(Rejection::new(
                Permanent,
                format!(
                    "{} bytes, headers included: topic {} takes {limit} (max.message.bytes)",
                    message.bytes, message.topic
                ),
            )),
            _ => Ok(()),
        }
    }

    /// What a batch may have before it is packed, as far as is known: how small an event gets by
    /// compression, only the client knows.
    fn limit(&self, taken: Taken) -> Option<usize> {
        let is_packed = self.cluster.compression != Compression::NONE;
        taken.batch_bytes_max.filter(|_| !is_packed)
    }

    /// Sends all messages, then waits for the report on each.
    async fn send(
        &self,
        link: &Link,
        messages: Vec<Result<Message<'_>, Rejection>>,
        deadline: Instant,
    ) -> Vec<Result<(), Failure>> {
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            answers.push(match message {
                Ok(message) => enqueue(link, message, deadline).await,
                Err(rejection) => Err(rejection.into()),
            });
        }
        // The client gives a record up `timeout` after it was handed over, and says so.
        let late = Instant::now() + self.timeout + GRACE;
        let mut reports = Vec::with_capacity(answers.len());
        for answer in answers {
            reports.push(match answer {
                Ok((topic, answer)) => self.report(link, &topic, answer, late).await,
                Err(outcome) => Err(Failure::Of(outcome)),
            });
        }
        reports
    }

    /// Only a report that says "delivered" is an acknowledgement.
    async fn report(
        &self,
        link: &Link,
        topic: &str,
        answer: DeliveryFuture,
        late: Instant,
    ) -> Result<(), Failure> {
        match timeout_at(late, answer).await {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err((error, _)))) if code_of(&error) == Code::MessageTimedOut => {
                Err(Failure::Of(self.unanswered(topic)))
            }
            Ok(Ok(Err((error, _)))) => Err(failed(link, code_of(&error), topic)),
            Ok(Err(_)) | Err(_) => Err(Failure::Of(self.unanswered(topic))),
        }
    }

    /// Sends one event as a batch of its own, to learn whether it is the one that is refused.
    async fn send_alone(&self, link: &Link, record: &OutboxRecord) -> Outcome {
        let message = match self.message(record) {
            Ok(message) => message,
            Err(rejection) => return rejection.into(),
        };
        let topic = message.topic.clone();
        // Else the client could put an event of another publication into the same batch.
        let _alone = link.lanes.write().await;
        let deadline = Instant::now() + self.timeout;
        let reports = self.send(link, vec![Ok(message)], deadline).await;
        match reports.into_iter().next() {
            Some(Ok(())) => Outcome::Acked,
            Some(Err(Failure::Of(outcome))) => outcome,
            Some(Err(Failure::OfBatch(code))) => {
                Outcome::rejected(Permanent, format!("topic {topic}: {code}"))
            }
            None => self.unanswered(&topic),
        }
    }

    fn message<'a>(&'a self, record: &'a OutboxRecord) -> Result<Message<'a>, Rejection> {
        Message::of(record, &self.topic, &self.events)
    }

    fn unanswered(&self, topic: &str) -> Outcome {
        Outcome::unknown(format!(
            "topic {topic}: no acknowledgement from {} within {:?}",
            self.cluster, self.timeout
        ))
    }
}

/// Hands a message to the client. Its report is still to come.
async fn enqueue(
    link: &Link,
    message: Message<'_>,
    deadline: Instant,
) -> Result<(String, DeliveryFuture), Outcome> {
    /// How often a client whose queue is full is asked again.
    const GLANCE: Duration = Duration::from_millis(10);
    let mut record = FutureRecord::to(&message.topic)
        .payload(&message.body[..])
        .headers(message.headers);
    record.key = message.key;
    loop {
        let (error, back) = match link.producer().send_result(record) {
            Ok(answer) => return Ok((message.topic, answer)),
            Err(refused) => refused,
        };
        let outcome = match code_of(&error) {
            Code::QueueFull if Instant::now() < deadline => {
                record = back;
                sleep(GLANCE).await;
                continue;
            }
            Code::QueueFull => Outcome::rejected(Throttled(None), "the client's queue is full"),
            Code::MessageSizeTooLarge => {
                let reason = format!("{} bytes are more than the client sends", message.bytes);
                Outcome::rejected(Permanent, reason)
            }
            code => match failed(link, code, &message.topic) {
                Failure::Of(Outcome::Rejected(rejection)) => rejection.into(),
                // It was not taken, so it was not sent.
                _ => unreachable(format!("topic {}: {code}", message.topic)).into(),
            },
        };
        return Err(outcome);
    }
}

/// What a failure means. A topic that is refused is looked at again before it is used again: the
/// client would go on refusing it by itself.
fn failed(link: &Link, code: Code, topic: &str) -> Failure {
    let failure = failure(code, topic);
    if matches!(&failure, Failure::Of(Outcome::Rejected(rejection)) if rejection.class == Blocked) {
        link.taken().remove(topic);
    }
    failure
}

fn is_unknown(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Unknown { .. })
}

fn misconfigured(reason: impl AsRef<str>) -> Rejection {
    Rejection::new(Config, reason)
}

fn unreachable(reason: impl AsRef<str>) -> Rejection {
    Rejection::new(Unreachable, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timestamp::Timestamp;

    fn bus(url: &str) -> Result<KafkaPublisher> {
        KafkaPublisher::new(url, Topic::default(), CloudEvents::default())
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_secrets() {
        for (url, reason) in [
            ("kafka", "kafka://HOST:PORT"),
            ("kafka://", "kafka://HOST:PORT"),
            ("kafka://a:9092,", "kafka://HOST:PORT"),
            ("kafka://a:b", "kafka://HOST:PORT"),
            ("kafka://u:s3cret@a,u:s3cret@b", "kafka://HOST:PORT"),
            ("kafka://u:s3cret@a/topic", "kafka://HOST:PORT"),
            ("kafka://u:s3cret@a#topic", "kafka://HOST:PORT"),
            ("kafka://s3cret@a", "a user and a password"),
            ("kafka://:s3cret@a", "a user and a password"),
            ("kafka://a?sasl=scram-sha-256", "a user and a password"),
            ("kafka://u:s3cret@a?sasl=s3cret", "scram-sha-512"),
            ("kafka://u:s3cret%00@a", "zero"),
            ("kafka://u:s3cret@a?ca=/ca.pem", "kafkas://"),
            ("kafka://a?compression=rar", "zstd"),
            ("kafka://a?acks=1", "compression, sasl, ca, mode, timeout"),
            ("kafka://a?partitions=3", "create=true"),
            ("kafka://a?create=true&replication=0", "replication"),
            ("kafka://a?topics=a,b/c", "b/c"),
            ("kafka://a?timeout=50ms", "timeout"),
            ("kafka://a?timeout=6m", "timeout"),
            ("http://a", "kafkas"),
        ] {
            let error = bus(url).map(|_| ()).expect_err(url).report();
            assert!(
                error.contains(reason) && !error.contains("s3cret"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn a_topic_that_is_one_by_itself_is_looked_at() {
        let named = |topic: &Topic, query: &str| {
            let url = format!("kafka://a{query}");
            let bus = KafkaPublisher::new(&url, topic.clone(), CloudEvents::default());
            bus.unwrap().topics.named
        };
        let mut topic = Topic::default();
        assert_eq!(named(&topic, ""), [""; 0]);
        topic.template = "orders".parse().unwrap();
        topic.dead_letters = Some("dead".parse().unwrap());
        assert_eq!(named(&topic, ""), ["dead", "orders"]);
        assert_eq!(named(&topic, "?topics=a,b"), ["a", "b"]);
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_said_to_be_unreachable() {
        let bus = bus("kafka://bob:s3cret@127.0.0.1:1").unwrap();
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, Unreachable);
        assert!(rejection.reason.contains("127.0.0.1:1") && !rejection.reason.contains("s3cret"));
        let event = Event::new("a", Payload::json("1").unwrap());
        let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
        let mut bad = record.clone();
        bad.event_type = "a b".into();
        let outcomes = bus.publish(&[record, bad]).await;
        let classes = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Rejected(rejection) => rejection.class,
            other => panic!("{other:?}"),
        });
        assert!(classes.eq([Unreachable, Permanent]));
    }
}
