//! RabbitMQ as a bus.

mod confirms;
mod frames;
mod handshake;
mod link;

use std::borrow::Cow;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amq_protocol::protocol::basic;
use amq_protocol::types::{AMQPValue, FieldTable, LongString, ShortString};
use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use self::confirms::{Answer, Closed};
use self::link::{Link, Message, Publication};
use super::options::{Options, invalid};
use super::socket::{Address, Credentials, Scheme};
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::publisher::Publisher;
use crate::record::RejectionClass::{Blocked, Config, Permanent, Throttled, Unreachable};
use crate::record::{OutboxRecord, Outcome, Rejection};
use crate::topic::Topic;

/// `amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST]`, RabbitMQ by AMQP 0-9-1; `amqps://` with TLS.
///
/// Acknowledged is what the server confirmed and did not give back: every queue to which the
/// exchange routed the event has it, and a durable queue has it on its disk (a quorum queue on the
/// disks of a majority). Messages are persistent and mandatory, so an event that no queue takes
/// waits and is not sent. The routing key is the topic, and `message_id` the event's id.
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | `exchange` | the exchange to publish to | `outbox` |
/// | `declare` | `false` uses the exchange as it is, of whatever type; otherwise it is made, as a durable topic exchange, when it is missing | `true` |
/// | `mode` | `binary` or `structured` CloudEvents | `binary` |
/// | `timeout` | how long a batch waits for its confirmations | `10s` |
///
/// Without user and password it is `guest`, without a virtual host `/`. The certificate of a server
/// with TLS must be signed by an authority that the system knows or that `SSL_CERT_FILE` names.
pub struct RabbitMqPublisher {
    topic: Topic,
    events: CloudEvents,
    address: Address,
    login: Login,
    exchange: Exchange,
    timeout: Duration,
    link: Mutex<Option<Arc<Link>>>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

/// Who connects, and to which part of the server.
struct Login {
    user: String,
    password: String,
    vhost: ShortString,
}

struct Exchange {
    name: ShortString,
    declare: bool,
}

/// How long a batch waits for its confirmations unless the URL says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

const SCHEME: Scheme = Scheme {
    plain: ("amqp", 5_672),
    encrypted: ("amqps", 5_671),
};

/// The prefix of an attribute in the headers, as the binding for AMQP says.
const PREFIX: &str = "cloudEvents:";
const PERSISTENT: u8 = 2;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

impl RabbitMqPublisher {
    /// Publishes to the server of `url`, which is reached at the first use.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when the URL names no host or has an
    /// unknown option.
    pub fn new(url: &Url, topic: Topic, events: CloudEvents) -> Result<Self> {
        let mut options = Options::of(url)?;
        let exchange = options.text("exchange").unwrap_or_else(|| "outbox".into());
        let declare = options.flag_or("declare", true)?;
        let mode = options.mode(events.mode)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        options.finish()?;
        if exchange.is_empty() {
            return Err(invalid("option exchange is empty"));
        }
        let name = ShortString::try_new(exchange)
            .map_err(|_| invalid("option exchange is longer than 255 bytes"))?;
        Ok(Self {
            topic,
            events: CloudEvents { mode, ..events },
            address: Address::of(url, &SCHEME)?,
            login: Login::of(url)?,
            exchange: Exchange { name, declare },
            timeout,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }
}

impl Login {
    fn of(url: &Url) -> Result<Self> {
        let Credentials { user, password } = Credentials::of(url);
        let path = url.path().strip_prefix('/').unwrap_or_default();
        if path.contains('/') {
            return Err(invalid(
                "an amqp URL has one part of a path, the virtual host; a / in its name is %2F",
            ));
        }
        let vhost = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| invalid("the virtual host is no UTF-8"))?;
        let vhost = match &*vhost {
            "" => "/".to_owned(),
            name => name.to_owned(),
        };
        Ok(Self {
            user: user.unwrap_or_else(|| "guest".into()),
            password: password.unwrap_or_else(|| "guest".into()),
            vhost: ShortString::try_new(vhost)
                .map_err(|_| invalid("the virtual host is longer than 255 bytes"))?,
        })
    }
}

#[async_trait]
impl Publisher for RabbitMqPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let link = match self.unblocked_link(deadline).await {
            Ok(link) => link,
            Err(rejection) => return vec![rejection.into(); batch.len()],
        };
        let (answers, mut heard) = unbounded_channel();
        let mut publication = Publication {
            bytes: Vec::with_capacity(batch.len() * 512),
            messages: Vec::with_capacity(batch.len()),
            answers,
        };
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(batch.len());
        for (place, record) in batch.iter().enumerate() {
            let added = self.add(&link, record, place, &mut publication);
            outcomes.push(added.err().map(Outcome::from));
        }
        let mut late = pin!(sleep_until(deadline));
        if !publication.messages.is_empty() {
            link.publish(publication, deadline).await;
            loop {
                tokio::select! {
                    biased;
                    // The answers end when all messages have theirs, or the connection ends.
                    answer = heard.recv() => match answer {
                        Some((place, answer)) => {
                            outcomes[place] = Some(self.outcome(&link, &batch[place], answer));
                        }
                        None => break,
                    },
                    () = &mut late => break,
                }
            }
        }
        let is_silent = outcomes.iter().any(Option::is_none);
        let outcomes: Vec<Outcome> = outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| self.unanswered(&link)))
            .collect();
        let is_wrong = |outcome: &Outcome| matches!(outcome, Outcome::Rejected(rejection) if rejection.class == Config);
        // A server that takes nothing at present goes on with what it has been sent.
        if is_silent && !link.is_blocked() || outcomes.iter().any(is_wrong) {
            self.give_up(&link);
        }
        outcomes
    }

    /// Makes a connection of its own, since only then the server says whether user, virtual host and
    /// exchange are still right.
    async fn check(&self) -> Result<(), Rejection> {
        let opened = Link::open(&self.address, &self.login, &self.exchange);
        let opened = timeout_at(Instant::now() + self.timeout, opened).await;
        opened.unwrap_or_else(|_| Err(self.silent())).map(drop)
    }
}

impl RabbitMqPublisher {
    async fn unblocked_link(&self, deadline: Instant) -> Result<Arc<Link>, Rejection> {
        let link = self.link(deadline).await?;
        link.unblocked(deadline).await?;
        Ok(link)
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
            let link = Link::open(&self.address, &self.login, &self.exchange).await?;
            let link = Arc::new(link);
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

    /// Adds the message that carries `record`.
    fn add(
        &self,
        link: &Link,
        record: &OutboxRecord,
        place: usize,
        publication: &mut Publication,
    ) -> Result<(), Rejection> {
        let event = self.events.message(record)?;
        let routing_key = short(Cow::from(self.topic.of(record)?), "topic")?;
        let content_type = short(event.content_type.into(), "column content_type")?;
        let mut headers = FieldTable::default();
        for (name, value) in event.attributes {
            // The protocol has a place of its own for it.
            if name != "datacontenttype" {
                let name = ShortString::from(format!("{PREFIX}{name}"));
                headers.insert(name, text(value.into_owned()));
            }
        }
        for (name, value) in event.headers {
            if matches!(name.as_str(), "CC" | "BCC") {
                let reason =
                    format!("header {name:?} is a name by which RabbitMQ sends to further queues");
                return Err(Rejection::new(Permanent, reason));
            }
            headers.insert(short(name.into(), "header")?, text(value));
        }
        let channel = link.channel_for(event.body.len());
        let channel = channel.map_err(|most| too_large(event.body.len(), most))?;
        let publish = basic::Publish {
            exchange: self.exchange.name.clone(),
            routing_key,
            mandatory: true,
            immediate: false,
        };
        let properties = basic::AMQPProperties::default()
            .with_message_id(record.id.to_string().into())
            .with_content_type(content_type)
            .with_delivery_mode(PERSISTENT)
            .with_headers(headers);
        let bytes_max = link.frame_bytes_max;
        let bytes = &mut publication.bytes;
        frames::add_message(bytes, channel, publish, properties, &event.body, bytes_max).map_err(
            |bytes| {
                let reason = format!(
                    "the attributes and headers have {bytes} bytes, and one frame of AMQP has {bytes_max}"
                );
                Rejection::new(Permanent, reason)
            },
        )?;
        publication.messages.push(Message {
            channel,
            id: record.id,
            place,
            bytes: event.body.len(),
        });
        Ok(())
    }

    /// What the server's answer means.
    fn outcome(&self, link: &Link, record: &OutboxRecord, answer: Answer) -> Outcome {
        let key = || self.topic.of(record).unwrap_or_default();
        match answer {
            Answer::Acked => Outcome::Acked,
            Answer::Returned(reason) => Outcome::rejected(
                Blocked,
                format!(
                    "{reason}: no queue takes routing key {}, bind one to exchange {}",
                    key(),
                    self.exchange.name
                ),
            ),
            // No event's fault: a queue is full and rejects what comes, or has failed.
            Answer::Nacked => Outcome::rejected(
                Throttled(None),
                format!(
                    "a queue for routing key {} did not take it: it is full, or has failed",
                    key()
                ),
            ),
            Answer::Closed(closed) => {
                let bytes = self.events.message(record);
                let bytes = bytes.map_or(0, |event| event.body.len());
                self.unconfirmed(&closed, &key(), bytes, link.most())
            }
        }
    }

    /// What became of a message with this routing key and so many bytes whose channel was closed.
    /// Some of those before the one that closed it may have been taken. Each answer here sends them
    /// again, but for the one that names the message itself.
    fn unconfirmed(&self, closed: &Closed, key: &str, bytes: usize, most: usize) -> Outcome {
        let Closed { code, text } = closed;
        let exchange = &self.exchange.name;
        match *code {
            PRECONDITION_FAILED if bytes > most => too_large(bytes, most).into(),
            NOT_FOUND => misconfigured(format!("exchange {exchange}: {text}")).into(),
            ACCESS_REFUSED => match text.split_once("access to topic '") {
                None => misconfigured(format!("exchange {exchange}: {text}")).into(),
                // The text has 255 bytes at most, and so may end in the midst of the key.
                Some((_, named))
                    if named.starts_with(&format!("{key}'")) || key.starts_with(named) =>
                {
                    Outcome::rejected(
                        Blocked,
                        format!("{text}; grant this user to write to the topic"),
                    )
                }
                Some(_) => Outcome::unknown(lost_with(text)),
            },
            _ => Outcome::unknown(lost_with(text)),
        }
    }

    fn unanswered(&self, link: &Link) -> Outcome {
        Outcome::unknown(link.trouble().unwrap_or_else(|| {
            format!(
                "no confirmation from {} within {:?}",
                self.address, self.timeout
            )
        }))
    }

    fn silent(&self) -> Rejection {
        unreachable(format!("{} did not answer in time", self.address))
    }
}

fn lost_with(text: &str) -> String {
    format!("its confirmation was lost with another message's: {text}")
}

fn too_large(bytes: usize, most: usize) -> Rejection {
    let reason =
        format!("the payload has {bytes} bytes, and max_message_size of the server is {most}");
    Rejection::new(Permanent, reason)
}

/// Text as the protocol has it where it is short.
fn short(text: Cow<'_, str>, what: &str) -> Result<ShortString, Rejection> {
    let bytes = text.len();
    ShortString::try_new(text).map_err(|_| {
        let reason = format!("{what} has {bytes} bytes, and AMQP has room for 255");
        Rejection::new(Permanent, reason)
    })
}

fn text(text: String) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
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
    use crate::event::{Event, Payload};
    use crate::timestamp::Timestamp;

    fn bus(url: &str) -> Result<RabbitMqPublisher> {
        let url = Url::parse(url).unwrap();
        RabbitMqPublisher::new(&url, Topic::default(), CloudEvents::default())
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_secrets() {
        let long = format!("amqp://s3cret@h?exchange={}", "x".repeat(256));
        for (url, reason) in [
            ("http://s3cret@h", "neither amqp nor amqps"),
            ("amqp:///v", "no host"),
            ("amqp://s3cret@h/a/b", "virtual host"),
            ("amqp://s3cret@h/%ff", "virtual host"),
            ("amqp://s3cret@h?exchange=", "exchange"),
            (&long, "exchange"),
            ("amqp://s3cret@h?declare=maybe", "declare"),
            ("amqp://s3cret@h?timeout=0", "timeout"),
            (
                "amqp://s3cret@h?heartbeat=1",
                "exchange, declare, mode, timeout",
            ),
        ] {
            let error = bus(url).err().unwrap().report();
            assert!(
                error.contains(reason) && !error.contains("s3cret"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn who_connects_and_where_to_stands_in_the_url() {
        let login = |url| {
            let Login {
                user,
                password,
                vhost,
            } = bus(url).unwrap().login;
            (user, password, vhost.to_string())
        };
        let owned = |user: &str, password: &str, vhost: &str| {
            (user.to_owned(), password.to_owned(), vhost.to_owned())
        };
        assert_eq!(login("amqp://h"), owned("guest", "guest", "/"));
        assert_eq!(login("amqp://h/?mode=binary"), owned("guest", "guest", "/"));
        assert_eq!(
            login("amqps://b%40b:p%3A@h/shop"),
            owned("b@b", "p:", "shop")
        );
        assert_eq!(login("amqp://h/%2Fa"), owned("guest", "guest", "/a"));
    }

    fn outcome(code: u16, text: &str, bytes: usize, most: usize) -> Outcome {
        let closed = Closed {
            code,
            text: text.into(),
        };
        bus("amqp://h")
            .unwrap()
            .unconfirmed(&closed, "a.b", bytes, most)
    }

    fn class(outcome: Outcome) -> Option<crate::record::RejectionClass> {
        match outcome {
            Outcome::Rejected(rejection) => Some(rejection.class),
            Outcome::Unknown { .. } => None,
            Outcome::Acked => panic!("a closed channel acknowledges nothing"),
        }
    }

    #[test]
    fn the_message_that_closed_its_channel_is_told_from_the_others_on_it() {
        let too_large = "PRECONDITION_FAILED - message size 9 is larger than max size 5";
        assert_eq!(class(outcome(406, too_large, 9, 5)), Some(Permanent));
        assert_eq!(class(outcome(406, too_large, 5, 5)), None);
        let topic =
            "ACCESS_REFUSED - access to topic 'a.b' in exchange 'outbox' in vhost '/' refused";
        assert_eq!(class(outcome(403, topic, 1, 5)), Some(Blocked));
        let other =
            "ACCESS_REFUSED - access to topic 'a.bc' in exchange 'outbox' in vhost '/' refused";
        assert_eq!(class(outcome(403, other, 1, 5)), None);
        let cut_short = "ACCESS_REFUSED - access to topic 'a.";
        assert_eq!(class(outcome(403, cut_short, 1, 5)), Some(Blocked));
        let exchange = "ACCESS_REFUSED - access to exchange 'outbox' in vhost '/' refused";
        assert_eq!(class(outcome(403, exchange, 1, 5)), Some(Config));
        assert_eq!(
            class(outcome(404, "NOT_FOUND - no exchange 'outbox'", 1, 5)),
            Some(Config)
        );
        assert_eq!(class(outcome(541, "INTERNAL_ERROR", 9, 5)), None);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_to_be_unreachable() {
        let bus = bus("amqp://bob:s3cret@127.0.0.1:1").unwrap();
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, Unreachable);
        assert!(rejection.reason.contains("127.0.0.1:1") && !rejection.reason.contains("s3cret"));
        let event = Event::new("a", Payload::json("1").unwrap());
        let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
        let batch = [record.clone(), record];
        assert_eq!(bus.publish(&batch).await, vec![rejection.into(); 2]);
    }
}
