//! A connection to a cluster: one idempotent producer, and what was heard of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{FutureProducer, Producer as _};
use tokio::sync::{RwLock, watch};
use tokio::task::spawn_blocking;

use super::cluster::Cluster;
use super::topics::Taken;
use super::{misconfigured, unreachable};
use crate::record::Rejection;

/// One producer. It is used until a record stays without an answer, and then given up: what its
/// successor sends is a new sequence, whatever the brokers make of the old one.
pub(super) struct Link {
    /// There until the link is dropped.
    producer: Option<FutureProducer<Listener>>,
    listener: Listener,
    /// Publications share it; one that must be alone in the producer has it for itself.
    pub(super) lanes: RwLock<()>,
    /// What is known of the topics that take events.
    pub(super) taken: Mutex<HashMap<String, Taken>>,
    /// The largest batch that the producer makes of more than one record.
    pub(super) batch_bytes: usize,
}

/// How long a cluster may take to answer a question; less than a batch has, so that its outcome is
/// "unreachable" and not "unknown".
const PATIENCE: Duration = Duration::from_secs(3);

/// Any name does: an answer that there is no such topic is an answer.
const PROBE: &str = "__consumer_offsets";

impl Link {
    /// Makes a producer and waits until a broker answers.
    pub(super) async fn connect(
        cluster: &Arc<Cluster>,
        timeout: Duration,
        batch_bytes: usize,
    ) -> Result<Self, Rejection> {
        let config = cluster.producer_config(timeout, batch_bytes);
        let listener = Listener::default();
        let context = listener.clone();
        // It reads certificates from the disk.
        let made =
            spawn_blocking(move || FutureProducer::from_config_and_context(&config, context));
        let producer = match made.await {
            Ok(Ok(producer)) => producer,
            Ok(Err(error)) => return Err(misconfigured(unusable(&error))),
            Err(error) => return Err(unreachable(format!("the client was not made: {error}"))),
        };
        let link = Self {
            producer: Some(producer),
            listener,
            lanes: RwLock::default(),
            taken: Mutex::default(),
            batch_bytes,
        };
        link.probe(cluster).await?;
        Ok(link)
    }

    /// Whether a broker answers.
    pub(super) async fn probe(&self, cluster: &Cluster) -> Result<(), Rejection> {
        self.metadata(cluster, PROBE).await.map(|_| ())
    }

    /// What a broker says of the topic; an error when no broker says anything.
    pub(super) async fn metadata(
        &self,
        cluster: &Cluster,
        topic: &str,
    ) -> Result<Metadata, Rejection> {
        let (producer, topic) = (self.producer().clone(), topic.to_owned());
        let asked =
            spawn_blocking(move || producer.client().fetch_metadata(Some(&topic), PATIENCE));
        let error = tokio::select! {
            biased;
            asked = asked => match asked {
                Ok(Ok(metadata)) => return Ok(metadata),
                Ok(Err(error)) => code_of(&error).to_string(),
                Err(error) => error.to_string(),
            },
            // The question would wait for a broker all the same.
            () = self.listener.loss() => String::new(),
        };
        let news = self.listener.0.borrow();
        Err(match (&news.refusal, &news.last) {
            (Some(refusal), _) => misconfigured(format!("{cluster} refuses: {refusal}")),
            (None, Some(last)) => unreachable(format!("cannot reach {cluster}: {last}")),
            (None, None) => unreachable(format!("cannot reach {cluster}: {error}")),
        })
    }

    pub(super) fn producer(&self) -> &FutureProducer<Listener> {
        let producer = self.producer.as_ref();
        producer.expect("the producer is there until the link is dropped")
    }

    /// Whether nothing was heard after which records would wait in the producer.
    pub(super) fn is_trusted(&self) -> bool {
        !self.listener.0.borrow().lost
    }

    pub(super) fn taken(&self) -> MutexGuard<'_, HashMap<String, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The client ends its threads one after the other, which may take a second.
        let producer = self.producer.take();
        std::thread::spawn(move || drop(producer));
    }
}

/// What the client said of a connection, outside of any answer. Clones hear the same.
#[derive(Clone, Default)]
pub(super) struct Listener(Arc<watch::Sender<News>>);

#[derive(Default)]
struct News {
    /// No broker is connected, or the producer cannot go on.
    lost: bool,
    /// Why the cluster does not let us in.
    refusal: Option<String>,
    /// The last trouble of any kind.
    last: Option<String>,
}

impl Listener {
    /// Waits until the connection is lost and it is known why, which the client says a little later.
    async fn loss(&self) {
        let mut news = self.0.subscribe();
        let known = |news: &News| news.lost && (news.refusal.is_some() || news.last.is_some());
        // It fails when the sender is gone, which is here.
        news.wait_for(known).await.ok();
    }
}

impl ClientContext for Listener {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(facility, line, "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        // Without "(after 3ms in state CONNECT)", so that the same trouble is the same sentence.
        let reason = reason.split(" (after ").next().unwrap_or(reason).to_owned();
        self.0.send_modify(|news| match code_of(&error) {
            Code::AllBrokersDown => news.lost = true,
            Code::Fatal => {
                news.lost = true;
                news.last = Some(reason);
            }
            Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::ClusterAuthorizationFailed
            | Code::SSL => {
                news.lost = true;
                news.refusal = Some(reason);
            }
            // Of a handshake that fails at once the client says so in OpenSSL's words alone.
            _ if reason.contains("SSL routines") => {
                news.lost = true;
                news.refusal = Some(reason);
            }
            _ => news.last = Some(reason),
        });
    }
}

pub(super) fn code_of(error: &KafkaError) -> Code {
    error.rdkafka_error_code().unwrap_or(Code::Fail)
}

/// Why no client can be made; without the value of the setting, which may be a secret.
pub(super) fn unusable(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, what, name, _) => format!("client setting {name}: {what}"),
        error => error.to_string(),
    }
}
