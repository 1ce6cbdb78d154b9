//! An HTTP endpoint as a bus: a webhook.

mod answer;
mod client;
mod endpoint;
mod guard;
mod signature;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Request;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use url::Url;

use self::answer::{Answer, Evidence, REFUSED_MAX};
use self::client::{ANSWER_BYTES_MAX, Body, Client, NoAnswer};
use self::endpoint::Endpoint;
use self::guard::Guard;
pub use self::signature::WebhookSecrets;
use super::options::{Options, invalid};
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::publisher::Publisher;
use crate::record::RejectionClass::{Config, Unreachable};
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::topic::Topic;

/// `http://[USER:PASSWORD@]HOST[:PORT]/PATH` or `https://…`: a webhook, called by POST.
///
/// Acknowledged is what was answered by a status 2xx, with a complete body and in time; nothing else
/// is, and no redirect is followed. So the receiver must store the event before it answers. It must
/// also know an event that comes again, by the header `webhook-id`, which is the event's id.
///
/// An event is a CloudEvent: in binary mode its attributes are headers that begin with `ce-`, and its
/// content type is the request's. The topic is the header `webhook-topic`. With secrets each request
/// is signed after [Standard Webhooks](https://www.standardwebhooks.com).
///
/// | option | meaning | default |
/// | --- | --- | --- |
/// | `mode` | `binary` or `structured` CloudEvents | `binary` |
/// | `timeout` | how long one request may take, from the connection to the end of the answer | `10s` |
/// | `concurrency` | requests at the same time, 1 to 256 | `16` |
/// | `allow_private` | `true` lets the host's name lead into networks inside | `false` |
///
/// All other parameters are the receiver's and stay in the URL. A name must not lead to this machine
/// or into a network inside unless `allow_private` says so; an address or `localhost` in the URL
/// itself is the operator's own word. `https` checks the certificate against the authorities that
/// the system knows or that `SSL_CERT_FILE` names.
///
/// The records of a batch are sent side by side, so a batch must not have two of one ordering key.
pub struct HttpPublisher {
    endpoint: Endpoint,
    timeout: Duration,
    concurrency: usize,
    guard: Guard,
    client: OnceLock<Client>,
    /// One permit for each request under way, of all batches.
    slots: Semaphore,
    evidence: Mutex<Evidence>,
    /// Until when the endpoint asked to be left alone.
    pause: Mutex<Option<Instant>>,
}

/// How long one request may take unless the URL says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONCURRENCY: usize = 16;
const CONCURRENCY_MAX: usize = 256;

/// The options that are ours; the other parameters of the URL are the receiver's.
const OPTIONS: [&str; 4] = ["mode", "timeout", "concurrency", "allow_private"];

impl HttpPublisher {
    /// Publishes to the endpoint at `url`, which is reached at the first use.
    ///
    /// # Errors
    /// [`InvalidSetting`](crate::ErrorKind::InvalidSetting) when the URL has no host, or an option
    /// with a value that it cannot have.
    pub fn new(
        url: &Url,
        topic: Topic,
        events: CloudEvents,
        secrets: WebhookSecrets,
    ) -> Result<Self> {
        if !["http", "https"].contains(&url.scheme()) {
            return Err(invalid("the scheme is neither http nor https"));
        }
        let (Some(host), None) = (url.host(), url.fragment()) else {
            return Err(invalid("a webhook's URL has a host and no #"));
        };
        let (ours, theirs) = parted(url);
        let mut options = Options::of(&ours)?;
        let mode = options.mode(events.mode)?;
        let timeout = options.duration("timeout")?.unwrap_or(TIMEOUT);
        let concurrency = match options.text("concurrency").map(|text| text.parse()) {
            None => CONCURRENCY,
            Some(Ok(concurrency @ 1..=CONCURRENCY_MAX)) => concurrency,
            Some(_) => {
                return Err(invalid(format!(
                    "option concurrency is not a number from 1 to {CONCURRENCY_MAX}"
                )));
            }
        };
        let guard = Guard::new(&host, options.flag("allow_private")?);
        options.finish()?;
        let events = CloudEvents { mode, ..events };
        Ok(Self {
            endpoint: Endpoint::new(&theirs, topic, events, secrets)?,
            timeout,
            concurrency,
            guard,
            client: OnceLock::new(),
            slots: Semaphore::new(concurrency),
            evidence: Mutex::default(),
            pause: Mutex::default(),
        })
    }
}

/// The URL with our options alone, and with the receiver's parameters alone, as they were written.
fn parted(url: &Url) -> (Url, Url) {
    let is_ours = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or_default();
        OPTIONS.contains(&name)
    };
    let parameters = url.query().unwrap_or_default().split('&');
    let (ours, theirs): (Vec<&str>, Vec<&str>) = parameters.partition(is_ours);
    let with = |parameters: Vec<&str>| {
        let mut url = url.clone();
        let query = parameters.join("&");
        url.set_query((!query.is_empty()).then_some(&query));
        url
    };
    (with(ours), with(theirs))
}

#[async_trait]
impl Publisher for HttpPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let round = Mutex::default();
        let answers = batch.iter().map(async |record| {
            let answer = self.answer(record, &round).await;
            (record.id, answer)
        });
        let answers = join_all(answers).await;
        self.evidence().judge(answers)
    }

    async fn check(&self) -> Result<(), Rejection> {
        if let Some(rejection) = self.pausing() {
            return Err(rejection);
        }
        let reached = self.client()?.reach(&self.endpoint.url).await;
        reached.map_err(|rejection| self.named(rejection))
    }
}

/// What is known while a batch is under way.
#[derive(Default)]
struct Round {
    taken: usize,
    refused: usize,
    last_answer: Option<Instant>,
    /// Why the rest of the batch is not sent.
    ended: Option<Rejection>,
}

impl HttpPublisher {
    /// Sends one record when it is its turn.
    async fn answer(&self, record: &OutboxRecord, round: &Mutex<Round>) -> Answer {
        // The permits come in the order of the batch. Nobody closes a semaphore that lives in here.
        let _slot = self.slots.acquire().await;
        let ended = held(round).ended.clone();
        if let Some(rejection) = ended.or_else(|| self.pausing()) {
            return Answer::Other(rejection.into());
        }
        let answer = match (self.endpoint.request(record), self.client()) {
            (Err(rejection), _) => return Answer::Other(rejection.into()),
            (_, Err(rejection)) => Answer::Other(rejection.into()),
            (Ok(request), Ok(client)) => self.exchange(client, request, round).await,
        };
        if let Some(pause) = answer.pause() {
            self.begin_pause(pause);
        }
        held(round).hear(&answer);
        answer
    }

    /// Sends a request and hears what is answered until the deadline.
    async fn exchange(
        &self,
        client: &Client,
        request: Request<Full<Bytes>>,
        round: &Mutex<Round>,
    ) -> Answer {
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        let late = || {
            let reason = format!(
                "no complete answer from {} within {:?}",
                self.endpoint.shown, self.timeout
            );
            held(round).miss(begun, &reason);
            Answer::Other(Outcome::unknown(reason))
        };
        let response = match timeout_at(deadline, client.send(request)).await {
            Err(_) => return late(),
            Ok(Err(NoAnswer::Unsent(rejection))) => {
                return Answer::Other(self.named(rejection).into());
            }
            Ok(Err(NoAnswer::Lost(why))) => return self.lost(&why),
            Ok(Ok(response)) => response,
        };
        let (head, body) = response.into_parts();
        let body = timeout_at(deadline, Body::of(body)).await;
        // What a refusal goes on to say, and whether it ends, does not matter.
        if !head.status.is_success() {
            return Answer::of(head.status, &head.headers, &self.endpoint.shown);
        }
        match body {
            Ok(Body::Complete) => Answer::of(head.status, &head.headers, &self.endpoint.shown),
            Ok(Body::Endless) => {
                Answer::endless(head.status, ANSWER_BYTES_MAX, &self.endpoint.shown)
            }
            Ok(Body::Torn(why)) => self.lost(&why),
            Err(_) => late(),
        }
    }

    fn lost(&self, why: &str) -> Answer {
        let reason = format!("the answer of {} was lost: {why}", self.endpoint.shown);
        Answer::Other(Outcome::unknown(reason))
    }

    fn client(&self) -> Result<&Client, Rejection> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = Client::new(
            &self.endpoint.url,
            self.guard.clone(),
            self.concurrency,
            self.timeout,
        )?;
        Ok(self.client.get_or_init(|| client))
    }

    fn named(&self, rejection: Rejection) -> Rejection {
        let reason = format!(
            "cannot connect to {}: {}",
            self.endpoint.shown, rejection.reason
        );
        Rejection::new(rejection.class, reason)
    }

    fn begin_pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut slot = held(&self.pause);
        *slot = slot.max(Some(until));
    }

    /// Why nothing is sent while the endpoint is to be left alone.
    fn pausing(&self) -> Option<Rejection> {
        let until = (*held(&self.pause))?;
        let left = until.checked_duration_since(Instant::now())?;
        let (shown, seconds) = (&self.endpoint.shown, left.as_secs() + 1);
        let reason = format!("{shown} asked not to be called for the next {seconds} s");
        Some(Rejection::new(Unreachable, reason))
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        held(&self.evidence)
    }
}

impl Round {
    /// Ends the round when the rest of the batch would fare no better.
    fn hear(&mut self, answer: &Answer) {
        match answer {
            Answer::Taken => self.taken += 1,
            Answer::Refused(refusal) => {
                self.refused += 1;
                if self.taken == 0 && self.refused >= REFUSED_MAX {
                    self.ended.get_or_insert_with(|| refusal.of_the_endpoint());
                }
            }
            Answer::Other(Outcome::Rejected(rejection)) if is_of_the_endpoint(rejection.class) => {
                self.ended.get_or_insert_with(|| rejection.clone());
            }
            Answer::Other(_) => {}
        }
        if !matches!(answer, Answer::Other(Outcome::Unknown { .. })) {
            self.last_answer = Some(Instant::now());
        }
    }

    /// A request that was begun then had no answer in time. Where no other had one since, none will.
    fn miss(&mut self, begun: Instant, reason: &str) {
        if self.last_answer.is_none_or(|last| last < begun) {
            self.ended
                .get_or_insert_with(|| Rejection::new(Unreachable, reason));
        }
    }
}

fn is_of_the_endpoint(class: RejectionClass) -> bool {
    matches!(class, Unreachable | Config)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicU16, Ordering};

    use tokio::net::TcpListener;

    use super::*;
    use crate::event::{Event, Payload};
    use crate::tenant::Tenant;
    use crate::timestamp::Timestamp;

    fn publisher(url: &str) -> Result<HttpPublisher> {
        let url = Url::parse(url).unwrap();
        let (topic, events) = (Topic::default(), CloudEvents::default());
        HttpPublisher::new(&url, topic, events, WebhookSecrets::default())
    }

    fn record() -> OutboxRecord {
        let event = Event::new("order.placed", Payload::json("1").unwrap());
        OutboxRecord::of(&event, &Tenant::default(), 7, Timestamp::now())
    }

    #[test]
    fn our_options_stay_here_and_the_receivers_go_on_as_they_were_written() {
        for (url, asked, shown) in [
            ("http://h/a", "http://h/a", "http://h"),
            ("http://h", "http://h/", "http://h"),
            (
                "https://h:8443/a?timeout=1s&mode=structured",
                "https://h:8443/a",
                "https://h:8443",
            ),
            (
                "https://bob:pw@h/a%2Fb?sig=%2b%20a&timeout=1s&&x&concurrency=2&Mode=1",
                "https://h/a%2Fb?sig=%2b%20a&&x&Mode=1",
                "https://h",
            ),
            (
                "http://[::1]:80/?allow_private=true",
                "http://[::1]/",
                "http://[::1]",
            ),
            ("http://0x7f.1/", "http://127.0.0.1/", "http://127.0.0.1"),
        ] {
            let publisher = publisher(url).unwrap();
            assert_eq!(publisher.endpoint.url.to_string(), asked);
            assert_eq!(publisher.endpoint.shown, shown);
        }
    }

    #[test]
    fn a_url_that_cannot_be_is_refused_by_name() {
        for (url, said) in [
            ("ftp://h/", "scheme"),
            ("http://h/#a", "no #"),
            ("http://h/?timeout=soon", "option timeout"),
            (
                "http://h/?timeout=1s&timeout=2s",
                "option timeout is given twice",
            ),
            ("http://h/?concurrency=0", "option concurrency"),
            ("http://h/?concurrency=257", "option concurrency"),
            ("http://h/?allow_private=yes", "option allow_private"),
            ("http://h/?mode=both", "option mode"),
        ] {
            let error = publisher(url).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    /// The first lookup of a name says something else than the second.
    #[tokio::test]
    async fn a_name_that_leads_inside_is_never_dialled() {
        static LOOKUPS: AtomicU16 = AtomicU16::new(0);
        fn names(name: &str) -> Vec<SocketAddr> {
            let turn = LOOKUPS.fetch_add(1, Ordering::Relaxed);
            let address = match (name, turn) {
                // Documentation: nobody is there, and the guard says so before anybody is asked.
                ("rebinding.example", 0) => Ipv4Addr::new(203, 0, 113, 1),
                _ => Ipv4Addr::LOCALHOST,
            };
            vec![(address, 0).into()]
        }
        let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = inside.local_addr().unwrap().port();
        let mut bus = publisher(&format!("http://rebinding.example:{port}/")).unwrap();
        bus.guard = bus.guard.with_names(names);
        for said in ["203.0.113.1", "127.0.0.1", "127.0.0.1"] {
            let outcomes = bus.publish(&[record()]).await;
            let Outcome::Rejected(rejection) = &outcomes[0] else {
                panic!("{outcomes:?}");
            };
            assert_eq!(rejection.class, Config, "{rejection}");
            assert!(rejection.reason.contains(said), "{rejection}");
            let checked = bus.check().await.unwrap_err();
            assert_eq!(checked.class, Config, "{checked}");
        }
        let nobody = tokio::time::timeout(Duration::from_millis(100), inside.accept()).await;
        assert!(nobody.is_err(), "somebody came in");
    }

    #[tokio::test]
    async fn the_address_that_was_judged_is_the_one_that_is_dialled() {
        fn names(_: &str) -> Vec<SocketAddr> {
            vec![(Ipv4Addr::LOCALHOST, 0).into()]
        }
        let inside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = inside.local_addr().unwrap().port();
        let url = format!("http://no-such-name.invalid:{port}/?allow_private=true&timeout=300ms");
        let mut bus = publisher(&url).unwrap();
        bus.guard = bus.guard.with_names(names);
        let batch = [record()];
        let (outcomes, accepted) = tokio::join!(bus.publish(&batch), inside.accept());
        accepted.unwrap();
        assert!(
            matches!(outcomes[0], Outcome::Unknown { .. }),
            "{outcomes:?}"
        );
    }
}
