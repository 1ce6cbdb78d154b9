//! Redis Streams as a bus.

mod link;
mod server;

use std::io::Write as _;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Pipeline, RedisConnectionInfo, RedisError, RedisWrite, ToRedisArgs, Value};
use tokio::time::{Instant, sleep_until, timeout_at};
use url::Url;

use self::link::{Answers, Link};
use super::options::{Options, invalid};
use super::socket::{Address, Credentials, Scheme};
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::publisher::Publisher;
use crate::record::RejectionClass::{Blocked, Config, Message, Permanent, Throttled, Unreachable};
use crate::record::{OutboxRecord, Outcome, Rejection};
use crate::topic::Topic;

/// `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, Redis Streams; `rediss://` with TLS.
///
/// Acknowledged is what has an id in its stream. The stream is the topic; each entry has a field
/// `ce_NAME` for each attribute, one for each header, and `data` with the payload. A repetition is
/// added again: consumers go by `ce_id`.
///
/// Redis may forget: what keeps events is `appendonly yes`, with `appendfsync always` even when the
/// machine loses power. A server that evicts keys is refused.
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | `maxlen` | streams are cut to about so many entries, read or not | never cut |
/// | `create` | `false` makes no stream: an event whose stream is missing waits | `true` |
/// | `wait_replicas` | so many replicas must have an event before it is sent | `0` |
/// | `allow_eviction` | `true` uses a server that may throw streams away when memory is short | `false` |
/// | `mode` | `binary` or `structured` CloudEvents | `binary` |
/// | `timeout` | how long a batch waits for its answers | `10s` |
///
/// The certificate of a server with TLS must be signed by an authority that the system knows or
/// that `SSL_CERT_FILE` names.
pub struct RedisPublisher {
    topic: Topic,
    events: CloudEvents,
    address: Address,
    login: RedisConnectionInfo,
    maxlen: Option<u64>,
    create: bool,
    wait_replicas: u64,
    allow_eviction: bool,
    timeout: Duration,
    link: Mutex<Option<Arc<Link>>>,
    /// Held by the one who connects.
    connecting: tokio::sync::Mutex<()>,
}

/// How long a batch waits for its answers unless the URL says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

const SCHEME: Scheme = Scheme {
    plain: ("redis", 6_379),
    encrypted: ("rediss", 6_379),
};

/// The field that has the payload or the envelope.
const DATA: &str = "data";
/// The field that tells an envelope from a payload.
const CONTENT_TYPE: &str = "content-type";

impl RedisPublisher {
    /// Publishes to the server of `url`, which is reached at the first use.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when the URL names no host or has an
    /// unknown option.
    pub fn new(url: &Url, topic: Topic, events: CloudEvents) -> Result<Self> {
        let mut options = Options::of(url)?;
        let maxlen = options.number("maxlen")?;
        let create = options.flag_or("create", true)?;
        let wait_replicas = options.number("wait_replicas")?.unwrap_or(0);
        let allow_eviction = options.flag("allow_eviction")?;
        let mode = options.mode(events.mode)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        options.finish()?;
        if maxlen == Some(0) {
            return Err(invalid("option maxlen is 0, which would keep no event"));
        }
        Ok(Self {
            topic,
            events: CloudEvents { mode, ..events },
            address: Address::of(url, &SCHEME)?,
            login: login(url)?,
            maxlen,
            create,
            wait_replicas,
            allow_eviction,
            timeout,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        })
    }
}

fn login(url: &Url) -> Result<RedisConnectionInfo> {
    let Credentials { user, password } = Credentials::of(url);
    let mut login = RedisConnectionInfo::default();
    if user.is_some() && password.is_none() {
        return Err(invalid("names a user and no password"));
    }
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password);
    }
    match url.path().strip_prefix('/').unwrap_or_default() {
        "" => Ok(login),
        database => match database.parse() {
            Ok(number @ 0..) => Ok(login.set_db(number)),
            _ => Err(invalid(
                "a redis URL has no path but the number of the database, as redis://HOST/0",
            )),
        },
    }
}

#[async_trait]
impl Publisher for RedisPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let deadline = Instant::now() + self.timeout;
        let link = match self.link(deadline).await {
            Ok(link) => link,
            Err(rejection) => return vec![rejection.into(); batch.len()],
        };
        let mut outcomes: Vec<Option<Outcome>> = vec![None; batch.len()];
        let mut groups = Vec::with_capacity(batch.len() / GROUP_COMMANDS_MAX + 1);
        let mut group = Group::default();
        for (place, record) in batch.iter().enumerate() {
            match self.command(&link, record) {
                Ok(command) => {
                    if !group.has_room_for(record) {
                        groups.push(mem::take(&mut group).send(&link).await);
                    }
                    group.add(place, record, command);
                }
                Err(rejection) => outcomes[place] = Some(rejection.into()),
            }
        }
        if !group.places.is_empty() {
            groups.push(group.send(&link).await);
        }
        let replicated = match self.wait_replicas {
            0 => None,
            _ => Some(link.send(self.wait(deadline)).await),
        };
        let mut late = pin!(sleep_until(deadline));
        for (places, answers) in groups {
            let heard = tokio::select! {
                biased;
                heard = answers.heard() => heard,
                () = &mut late => break,
            };
            let each = match heard {
                Ok(answers) => answers.into_iter().map(Value::extract_error).collect(),
                Err(error) => vec![Err(error); places.len()],
            };
            for (place, answer) in places.into_iter().zip(each) {
                outcomes[place] = Some(self.outcome(&batch[place], answer));
            }
        }
        let mut outcomes: Vec<Outcome> = outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| self.unanswered()))
            .collect();
        if let Some(replicated) = replicated {
            let short = tokio::select! {
                biased;
                heard = replicated.heard() => self.short_of_replicas(heard),
                () = &mut late => Some(self.unanswered()),
            };
            if let Some(short) = short {
                let acked = outcomes
                    .iter_mut()
                    .filter(|outcome| **outcome == Outcome::Acked);
                acked.for_each(|outcome| *outcome = short.clone());
            }
        }
        if outcomes.iter().any(costs_the_link) {
            self.give_up(&link);
        }
        outcomes
    }

    /// Makes a connection of its own, since only then the server says whether user and database are
    /// still right.
    async fn check(&self) -> Result<(), Rejection> {
        self.open(Instant::now() + self.timeout).await.map(drop)
    }

    async fn caveats(&self) -> Vec<String> {
        let opened = self.open(Instant::now() + self.timeout).await;
        opened.map_or_else(|_| Vec::new(), |link| link.server.caveats())
    }
}

/// Commands that are handed over together, and share their fate where the connection fails: a few,
/// since each handing over costs as much as several commands.
#[derive(Default)]
struct Group {
    commands: Pipeline,
    /// The places of their records in the batch.
    places: Vec<usize>,
    bytes: usize,
}

const GROUP_COMMANDS_MAX: usize = 32;
/// A payload of more goes alone, so that the server's refusal is its own.
const GROUP_BYTES_MAX: usize = 64 * 1024;

impl Group {
    fn has_room_for(&self, record: &OutboxRecord) -> bool {
        self.places.len() < GROUP_COMMANDS_MAX
            && self.bytes + record.payload.len() <= GROUP_BYTES_MAX
    }

    fn add(&mut self, place: usize, record: &OutboxRecord, command: Cmd) {
        self.commands.add_command(command);
        self.places.push(place);
        self.bytes += record.payload.len();
    }

    async fn send(self, link: &Link) -> (Vec<usize>, Answers) {
        (self.places, link.send(self.commands).await)
    }
}

/// Whether a connection with this outcome is not trusted any more, or leads to the wrong server.
fn costs_the_link(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Unknown { .. } => true,
        Outcome::Rejected(rejection) => matches!(rejection.class, Config | Unreachable),
        Outcome::Acked => false,
    }
}

impl RedisPublisher {
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
            let link = Arc::new(self.open(deadline).await?);
            *self.slot() = Some(Arc::clone(&link));
            Ok(link)
        };
        let connected = timeout_at(deadline, connect).await;
        connected.unwrap_or_else(|_| Err(self.silent()))
    }

    /// A new connection, to a server that keeps what it takes.
    async fn open(&self, deadline: Instant) -> Result<Link, Rejection> {
        let opened = timeout_at(deadline, Link::open(&self.address, &self.login)).await;
        let link = opened.unwrap_or_else(|_| Err(self.silent()))?;
        link.server.check(self.allow_eviction, self.wait_replicas)?;
        Ok(link)
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

    /// The command that adds `record` to its stream.
    fn command(&self, link: &Link, record: &OutboxRecord) -> Result<Cmd, Rejection> {
        let event = self.events.message(record)?;
        // Room for what most events have.
        let mut command = Cmd::with_capacity(48, event.body.len() + 1_024);
        command.arg("XADD").arg(self.topic.of(record)?);
        if !self.create {
            command.arg("NOMKSTREAM");
        }
        if let Some(maxlen) = self.maxlen {
            // About so many: exactly so many costs a search in each command.
            command.arg("MAXLEN").arg("~").arg(maxlen);
        }
        command.arg("*");
        if event.attributes.is_empty() {
            command.arg(CONTENT_TYPE).arg(event.content_type);
        }
        for (name, value) in &event.attributes {
            command.arg(Attribute(name)).arg(&**value);
        }
        for (name, value) in &event.headers {
            if name == DATA {
                let reason = format!("header {name:?} is the field that has the payload in Redis");
                return Err(Rejection::new(Permanent, reason));
            }
            command.arg(name).arg(value);
        }
        let (bytes, most) = (event.body.len(), link.server.value_bytes_max());
        if bytes > most {
            let reason = format!(
                "the payload has {bytes} bytes, and proto-max-bulk-len of the server is {most}"
            );
            return Err(Rejection::new(Permanent, reason));
        }
        command.arg(DATA).arg(&event.body[..]);
        Ok(command)
    }

    /// The command that waits for replicas, within what a batch may take.
    fn wait(&self, deadline: Instant) -> Pipeline {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut command = Pipeline::new();
        command
            .cmd("WAIT")
            .arg(self.wait_replicas)
            // So that its answer still comes; zero would be for ever.
            .arg((left.as_millis() as u64 * 9 / 10).max(1));
        command
    }

    /// What the server's answer means.
    fn outcome(&self, record: &OutboxRecord, answer: Result<Value, RedisError>) -> Outcome {
        let stream = || self.topic.of(record).unwrap_or_default();
        match answer {
            // The id of the entry.
            Ok(Value::BulkString(_)) => Outcome::Acked,
            Ok(Value::Nil) => Outcome::rejected(
                Blocked,
                format!(
                    "stream {} does not exist: create it, or leave out create=false in bus_url",
                    stream()
                ),
            ),
            Ok(_) => Outcome::unknown(format!(
                "{} answered with something else than the id of an entry",
                self.address
            )),
            Err(error) => match error.code() {
                Some(code) => refused(&stream(), code, &error),
                None => Outcome::unknown(format!("the answer did not come: {error}")),
            },
        }
    }

    /// What a batch is that too few replicas have; none where enough have it.
    fn short_of_replicas(&self, heard: Result<Vec<Value>, RedisError>) -> Option<Outcome> {
        let wanted = self.wait_replicas;
        let answer = heard.map(|mut answers| answers.pop().unwrap_or(Value::Nil));
        match answer.and_then(Value::extract_error) {
            Ok(Value::Int(have)) if u64::try_from(have).is_ok_and(|have| have >= wanted) => None,
            Ok(Value::Int(have)) => Some(Outcome::unknown(format!(
                "{have} replicas have it, and wait_replicas is {wanted}"
            ))),
            Ok(_) => Some(self.unanswered()),
            Err(error) => Some(Outcome::unknown(format!("waiting for replicas: {error}"))),
        }
    }

    fn unanswered(&self) -> Outcome {
        Outcome::unknown(format!(
            "no answer from {} within {:?}",
            self.address, self.timeout
        ))
    }

    fn silent(&self) -> Rejection {
        unreachable(format!("{} did not answer in time", self.address))
    }
}

/// What the refusal of a command says about the event and about the server.
fn refused(stream: &str, code: &str, error: &RedisError) -> Outcome {
    let said = error.detail().unwrap_or_default();
    let class = match code {
        // It is full; no event's fault, and its consumers or a person can make room.
        "OOM" => Throttled(None),
        "READONLY" | "LOADING" | "MASTERDOWN" | "NOREPLICAS" | "BUSY" => Unreachable,
        // The name is taken by what is no stream.
        "WRONGTYPE" => Blocked,
        "NOPERM" if said.contains("key") => Blocked,
        "NOPERM" | "NOAUTH" | "WRONGPASS" | "MISCONF" => Config,
        "MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT" | "TRYAGAIN" => Config,
        "ERR" if said.contains("invalid bulk length") => Permanent,
        "ERR" if said.contains("exhausted the last possible ID") => Blocked,
        _ => Message,
    };
    Outcome::rejected(class, format!("stream {stream}: {code} {said}"))
}

/// The name of an attribute's field.
struct Attribute<'a>(&'a str);

impl ToRedisArgs for Attribute<'_> {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        let mut out = out.writer_for_next_arg();
        // A command is memory, which takes everything.
        out.write_all(b"ce_").ok();
        out.write_all(self.0.as_bytes()).ok();
    }
}

fn misconfigured(reason: impl AsRef<str>) -> Rejection {
    Rejection::new(Config, reason)
}

fn unreachable(reason: impl AsRef<str>) -> Rejection {
    Rejection::new(Unreachable, reason)
}

#[cfg(test)]
mod tests {
    use redis::parse_redis_value;

    use super::*;
    use crate::event::{Event, Payload};
    use crate::record::RejectionClass;
    use crate::timestamp::Timestamp;

    fn bus(url: &str) -> Result<RedisPublisher> {
        let url = Url::parse(url).unwrap();
        RedisPublisher::new(&url, Topic::default(), CloudEvents::default())
    }

    fn record() -> OutboxRecord {
        let event = Event::new("a", Payload::json("1").unwrap());
        OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now())
    }

    #[test]
    fn a_wrong_url_is_refused_without_its_secrets() {
        for (url, reason) in [
            ("http://s3cret@h", "neither redis nor rediss"),
            ("redis:///0", "no host"),
            ("redis://s3cret@h", "no password"),
            ("redis://:s3cret@h/x", "number of the database"),
            ("redis://:s3cret@h/-1", "number of the database"),
            ("redis://:s3cret@h?maxlen=0", "maxlen"),
            ("redis://:s3cret@h?maxlen=1e3", "maxlen"),
            ("redis://:s3cret@h?wait_replicas=-1", "wait_replicas"),
            ("redis://:s3cret@h?allow_eviction=yes", "allow_eviction"),
            (
                "redis://:s3cret@h?max_len=1",
                "maxlen, create, wait_replicas, allow_eviction, mode, timeout",
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
        let login = bus("redis://b%40b:p%3A@h/7").unwrap().login;
        assert_eq!(login.username(), Some("b@b"));
        assert_eq!(login.password(), Some("p:"));
        assert_eq!(login.db(), 7);
        let login = bus("rediss://:p@h").unwrap().login;
        assert_eq!(
            (login.username(), login.password(), login.db()),
            (None, Some("p"), 0)
        );
    }

    /// The class of a rejection; none where it is unknown what became of the event.
    fn class(answer: Result<Value, RedisError>) -> Option<RejectionClass> {
        match bus("redis://h").unwrap().outcome(&record(), answer) {
            Outcome::Rejected(rejection) => Some(rejection.class),
            Outcome::Unknown { .. } => None,
            Outcome::Acked => panic!("taken for an acknowledgement"),
        }
    }

    #[test]
    fn only_the_id_of_an_entry_is_an_acknowledgement() {
        let id = Value::BulkString(b"1-0".into());
        let bus = bus("redis://h").unwrap();
        assert_eq!(bus.outcome(&record(), Ok(id)), Outcome::Acked);
        assert_eq!(class(Ok(Value::Nil)), Some(Blocked));
        for other in [Value::Okay, Value::Int(1), Value::Array(Vec::new())] {
            assert_eq!(class(Ok(other)), None);
        }
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(class(Err(lost.into())), None);
    }

    #[test]
    fn a_refusal_says_whose_fault_it_was() {
        for (said, expected) in [
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Throttled(None),
            ),
            (
                "READONLY You can't write against a read only replica.",
                Unreachable,
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                Unreachable,
            ),
            ("NOREPLICAS Not enough good replicas to write.", Unreachable),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                Blocked,
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Blocked,
            ),
            (
                "NOPERM this user has no permissions to run the 'xadd' command",
                Config,
            ),
            ("NOAUTH Authentication required.", Config),
            ("MISCONF Redis is configured to save RDB snapshots", Config),
            ("MOVED 3999 127.0.0.1:6381", Config),
            ("ERR Protocol error: invalid bulk length", Permanent),
            (
                "ERR The stream has exhausted the last possible ID, unable to add more items",
                Blocked,
            ),
            ("ERR something new", Message),
        ] {
            let answer = parse_redis_value(format!("-{said}\r\n").as_bytes());
            let answer = answer.and_then(Value::extract_error);
            assert!(answer.is_err(), "{said}");
            assert_eq!(class(answer), Some(expected), "{said}");
        }
    }

    #[test]
    fn an_event_that_too_few_replicas_have_is_not_sent() {
        let bus = bus("redis://h?wait_replicas=2").unwrap();
        for (answer, is_short) in [(2, false), (3, false), (1, true), (-1, true)] {
            let short = bus.short_of_replicas(Ok(vec![Value::Int(answer)]));
            assert_eq!(short.is_some(), is_short, "{answer}");
        }
        assert!(bus.short_of_replicas(Ok(Vec::new())).is_some());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_said_to_be_unreachable() {
        let bus = bus("redis://bob:s3cret@127.0.0.1:1").unwrap();
        let rejection = bus.check().await.unwrap_err();
        assert_eq!(rejection.class, Unreachable);
        assert!(rejection.reason.contains("127.0.0.1:1") && !rejection.reason.contains("s3cret"));
        let batch = [record(), record()];
        assert_eq!(bus.publish(&batch).await, vec![rejection.into(); 2]);
    }
}
