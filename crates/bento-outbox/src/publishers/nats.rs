//! NATS JetStream as a bus.

mod link;
mod stream;

use std::borrow::Cow;
use std::error::Error as _;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::header::{HeaderMap, HeaderName, IntoHeaderName as _};
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, ErrorCode};
use async_trait::async_trait;
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use self::link::{Link, News, Servers};
use self::stream::Stream;
use super::options::{Options, invalid};
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::event::Event;
use crate::publisher::Publisher;
use crate::record::RejectionClass::{Blocked, Config, Message, Permanent, Throttled, Unreachable};
use crate::record::{OutboxRecord, Outcome, Rejection, Status};
use crate::topic::Topic;

/// `nats://[USER:PASSWORD@]HOST[:PORT]`, NATS JetStream; `tls://` insists on TLS.
///
/// Acknowledged is what a stream has stored: the server's answer names the stream. The subject is
/// the topic. The header `Nats-Msg-Id` is the event's id, by which the stream drops a repetition
/// within its duplicate window (two minutes unless set). Keep that longer than the relay may need
/// to try again, and the stream in file storage; how soon that is synced is the server's
/// `sync_interval`.
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | `stream` | the stream that must take the events; another one's acknowledgement is none | any |
/// | `create` | `true` makes `stream` for `subjects`, in file storage, when it is missing | `false` |
/// | `subjects` | the subjects of a stream that is made, with commas: `orders.>,users.>` | |
/// | `servers` | more addresses of the same cluster, with commas: `b:4222,c:4222` | |
/// | `mode` | `binary` or `structured` CloudEvents | `binary` |
/// | `timeout` | how long a batch waits for its answers | `10s` |
///
/// A user without a password is a token. The certificate of a server with TLS must be signed by an
/// authority that the system knows or that `SSL_CERT_FILE` names.
pub struct NatsPublisher {
    topic: Topic,
    events: CloudEvents,
    servers: Servers,
    stream: Option<Stream>,
    timeout: Duration,
    link: Mutex<Option<Arc<Link>>>,
    /// The server's `max_payload`, as it said at the last connection; 0 before the first one.
    bytes_max: AtomicUsize,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

/// How long a batch waits for its answers unless the URL says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

impl NatsPublisher {
    /// Publishes to the servers of `url`, which are reached at the first use.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when the URL names no host, has an
    /// unknown option, or one that contradicts another, and for a topic that its
    /// [check](Topic::check) refuses.
    pub fn new(url: &Url, topic: Topic, events: CloudEvents) -> Result<Self> {
        topic.check()?;
        let mut options = Options::of(url)?;
        let stream = options.text("stream");
        let create = options.flag("create")?;
        let subjects = options.list("subjects");
        let more_servers = options.list("servers");
        let mode = options.mode(events.mode)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        options.finish()?;
        if stream.as_ref().is_some_and(|name| !is_stream_name(name)) {
            return Err(invalid("option stream is no name that a stream can have"));
        }
        if create && (stream.is_none() || subjects.is_empty()) {
            return Err(invalid(
                "option create needs the options stream and subjects",
            ));
        }
        if !create && !subjects.is_empty() {
            return Err(invalid("option subjects needs the option create=true"));
        }
        Ok(Self {
            topic,
            events: CloudEvents { mode, ..events },
            servers: Servers::of(url, &more_servers)?,
            stream: stream.map(|name| Stream { name, subjects }),
            timeout,
            link: Mutex::default(),
            bytes_max: AtomicUsize::new(0),
            connecting: tokio::sync::Mutex::default(),
        })
    }
}

#[async_trait]
impl Publisher for NatsPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let link = match self.link(deadline).await {
            Ok(link) => link,
            Err(rejection) => return vec![rejection.into(); batch.len()],
        };
        let mut answers = Vec::with_capacity(batch.len());
        for record in batch {
            answers.push(self.send(&link, record, deadline).await);
        }
        let mut news = link.news();
        let mut late = pin!(sleep_until(deadline));
        let mut outcomes = Vec::with_capacity(batch.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok((subject, answer)) => tokio::select! {
                    biased;
                    answer = answer.into_future() => self.outcome(&subject, answer),
                    outcome = News::trouble(&mut news, &subject) => outcome,
                    () = &mut late => self.unanswered(),
                },
                Err(rejection) => rejection.into(),
            });
        }
        let unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown { .. });
        if outcomes.iter().any(unknown) || !link.is_trusted() {
            self.give_up(&link);
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        let deadline = Instant::now() + self.timeout;
        let link = self.link(deadline).await?;
        let checked = timeout_at(deadline, async {
            match &self.stream {
                Some(stream) => stream.check(&link.context).await,
                None => stream::check_account(&link.context).await,
            }
        });
        let checked = checked.await.unwrap_or_else(|_| Err(self.silent()));
        if checked
            .as_ref()
            .is_err_and(|rejection| rejection.class == Unreachable)
        {
            self.give_up(&link);
        }
        checked
    }

    /// The server counts the headers too, so that an event of almost this size may be refused later.
    fn payload_bytes_max(&self, _: &Event) -> Option<usize> {
        let learned = self.bytes_max.load(Ordering::Relaxed);
        (learned > 0).then_some(learned)
    }
}

impl NatsPublisher {
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
            let link = Arc::new(self.servers.connect(self.timeout).await?);
            let bytes_max = link.context.client().max_payload();
            self.bytes_max.store(bytes_max, Ordering::Relaxed);
            if let Some(stream) = &self.stream {
                stream.ensure(&link.context).await?;
            }
            *self.slot() = Some(Arc::clone(&link));
            Ok(link)
        };
        let connected = timeout_at(deadline, connect).await;
        connected.unwrap_or_else(|_| Err(self.silent()))
    }

    fn working_link(&self) -> Option<Arc<Link>> {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|link| !link.is_up()) {
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

    /// Sends one record. The answer is the server's, still to come.
    async fn send(
        &self,
        link: &Link,
        record: &OutboxRecord,
        deadline: Instant,
    ) -> Result<(String, PublishAckFuture), Rejection> {
        let (subject, message) = self.message(record)?;
        if !link.is_trusted() {
            let lost = format!("the connection to {} was lost", self.servers);
            return Err(unreachable(lost));
        }
        // This await only hands the message to the client. The acknowledgement is a second one.
        let sent = link.context.send_publish(subject.clone(), message);
        match timeout_at(deadline, sent).await {
            Ok(Ok(answer)) => Ok((subject, answer)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let reason = format!("{error} bytes, headers included");
                Err(Rejection::new(Permanent, reason))
            }
            Ok(Err(error)) => Err(unreachable(format!("sending to {}: {error}", self.servers))),
            Err(_) => Err(self.silent()),
        }
    }

    fn message(&self, record: &OutboxRecord) -> Result<(String, PublishMessage), Rejection> {
        let event = self.events.message(record)?;
        let subject = self.topic.of(record)?;
        check_subject(&subject)?;
        let mut headers = HeaderMap::new();
        for (name, value) in event.attributes {
            let encoded = match CloudEvents::header_value(&value) {
                Cow::Owned(encoded) => encoded,
                Cow::Borrowed(_) => value.into_owned(),
            };
            headers.insert(header_name(name), encoded);
        }
        for (name, value) in event.headers {
            headers.insert(name, value);
        }
        headers.insert("Content-Type", event.content_type);
        let mut message = PublishMessage::build().payload(event.body).headers(headers);
        // The copy of a dead letter has none: the stream would take the event itself, retried by an
        // operator, for a repetition of its copy, and drop it.
        if record.delivery.status != Status::Err {
            message = message.message_id(record.id.to_string());
        }
        if let Some(stream) = &self.stream {
            message = message.expected_stream(&stream.name);
        }
        Ok((subject, message))
    }

    /// What the server's answer means.
    fn outcome(&self, subject: &str, answer: Result<PublishAck, PublishError>) -> Outcome {
        let error = match answer {
            // A duplicate is acknowledged like any other: the stream has the event.
            Ok(ack) if self.expects(&ack.stream) => return Outcome::Acked,
            Ok(ack) => {
                let reason = format!("subject {subject} went to another stream, {}", ack.stream);
                return misconfigured(reason).into();
            }
            Err(error) => error,
        };
        match error.kind() {
            PublishErrorKind::StreamNotFound => Outcome::rejected(
                Blocked,
                format!(
                    "no stream captures subject {subject}: create one, or have it created by \
                     ?stream=NAME&create=true&subjects=… in bus_url"
                ),
            ),
            PublishErrorKind::TimedOut => self.unanswered(),
            _ => match error.source().and_then(|source| source.downcast_ref()) {
                Some(refusal) => refused(subject, refusal),
                None => Outcome::unknown(format!("the answer could not be read: {error}")),
            },
        }
    }

    fn expects(&self, stream: &str) -> bool {
        let expected = self.stream.as_ref();
        expected.is_none_or(|expected| expected.name == stream)
    }

    fn unanswered(&self) -> Outcome {
        Outcome::unknown(format!(
            "no answer from {} within {:?}",
            self.servers, self.timeout
        ))
    }

    fn silent(&self) -> Rejection {
        unreachable(format!("{} did not answer in time", self.servers))
    }
}

fn is_stream_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    !name.is_empty() && !name.contains(forbidden)
}

/// The header of an attribute. Most events have these names: not to build them is half the work.
fn header_name(attribute: &str) -> HeaderName {
    macro_rules! known {
        ($($name:literal)+) => {
            match attribute {
                $($name => return HeaderName::from_static(concat!("ce-", $name)),)+
                _ => {}
            }
        };
    }
    known! {
        "specversion" "id" "source" "type" "time" "subject" "datacontenttype" "dataschema"
        "tenantid" "aggregatetype" "schemaversion" "sequence" "partitionkey"
        "traceparent" "tracestate" "correlationid" "causationid"
    }
    format!("ce-{attribute}").into_header_name()
}

/// Refuses a subject that the server would not take for one subject, or take for a command.
fn check_subject(subject: &str) -> Result<(), Rejection> {
    let refuse = |what| {
        let reason = format!("topic {subject:?} {what}");
        Err(Rejection::new(Permanent, reason))
    };
    if subject.contains(|c: char| c.is_whitespace() || c.is_control() || c == '*' || c == '>') {
        return refuse("has white space, * or >, which no NATS subject may have");
    }
    if subject.split('.').any(str::is_empty) {
        return refuse("has an empty part between its dots, which no NATS subject may have");
    }
    if subject.starts_with('$') || subject.starts_with("_INBOX.") {
        return refuse("begins like the subjects that NATS uses itself");
    }
    Ok(())
}

/// What the refusal of a stream says about the event and about the stream.
fn refused(subject: &str, refusal: &jetstream::Error) -> Outcome {
    let class = match refusal.error_code() {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Permanent
        }
        ErrorCode::STREAM_NOT_MATCH
        | ErrorCode::STREAM_SEALED
        | ErrorCode::JETSTREAM_NOT_ENABLED
        | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => Config,
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::STREAM_OFFLINE => Unreachable,
        // A full stream is no event's fault: it takes them again when its consumers have made room.
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STREAM_TOO_MANY_REQUESTS
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED => Throttled(None),
        // The first copy is still on its way to the replicas.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => {
            return Outcome::unknown(refusal.to_string());
        }
        _ => Message,
    };
    Outcome::rejected(class, format!("subject {subject}: {refusal}"))
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
    use crate::event::Payload;
    use crate::timestamp::Timestamp;

    fn bus(url: &str) -> Result<NatsPublisher> {
        let url = Url::parse(url).unwrap();
        NatsPublisher::new(&url, Topic::default(), CloudEvents::default())
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_secrets() {
        for (url, reason) in [
            ("nats://s3cret@h/stream", "?stream=NAME"),
            ("nats://:s3cret@", "host"),
            ("nats:h", "path"),
            ("nats://s3cret@h?strem=x", "servers, mode, timeout"),
            ("nats://s3cret@h?create=true&stream=S", "subjects"),
            ("nats://s3cret@h?stream=a%0D%0Ab", "stream"),
            ("nats://s3cret@h?subjects=a", "create"),
            ("nats://s3cret@h?servers=b/c", "servers"),
            ("nats://s3cret@h?timeout=0", "timeout"),
            ("http://h", "nats"),
        ] {
            let Ok(Err(error)) = Url::parse(url).map(|_| bus(url).map(|_| ())) else {
                assert!(Url::parse(url).is_err(), "{url}");
                continue;
            };
            let error = error.report();
            assert!(
                error.contains(reason) && !error.contains("s3cret"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn a_subject_that_nats_would_not_take_for_one_is_refused() {
        for subject in [
            "",
            ".a",
            "a.",
            "a..b",
            "a b",
            "a\tb",
            "a\r\nPUB b",
            "a.*",
            "a.>",
            "$JS.API.INFO",
            "_INBOX.x",
        ] {
            let rejection = check_subject(subject).unwrap_err();
            assert_eq!(rejection.class, Permanent, "{subject}");
        }
        for subject in ["a", "a.b", "a/b:c", "_a.$b", "ä"] {
            check_subject(subject).unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_to_be_unreachable() {
        let bus = bus("nats://bob:s3cret@127.0.0.1:1").unwrap();
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, Unreachable);
        assert!(rejection.reason.contains("127.0.0.1:1") && !rejection.reason.contains("s3cret"));
        let event = Event::new("a", Payload::json("1").unwrap());
        let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
        let batch = [record.clone(), record];
        assert_eq!(bus.publish(&batch).await, vec![rejection.into(); 2]);
    }
}
