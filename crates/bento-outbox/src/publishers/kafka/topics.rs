//! The topics that take the events: whether they are there, how large an event may be, and whether
//! what they acknowledge is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::cluster::Cluster;
use super::link::{Link, Listener, unusable};
use super::{misconfigured, unreachable};
use crate::record::Rejection;
use crate::record::RejectionClass::{Blocked, Config, Throttled};

/// Which topics there must be, and how a missing one is made.
pub(super) struct Topics {
    /// Looked at when the bus is checked.
    pub(super) named: Vec<String>,
    /// How a missing topic is made, if it is.
    pub(super) create: Option<Shape>,
    /// What may take durability from a topic, of all that were looked at.
    doubts: Mutex<BTreeSet<String>>,
}

/// What a new topic is like; none is what the cluster makes of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) partitions: Option<u16>,
    pub(super) replication: Option<u16>,
}

/// A topic that takes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// The largest batch that the topic takes, if the cluster says so.
    pub(super) batch_bytes_max: Option<usize>,
}

/// How long a question about settings may take; without an answer it is done without.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a topic that was made is looked for.
const GLANCE: Duration = Duration::from_millis(50);

/// How a topic stands.
enum Standing {
    Missing,
    There(Copies),
    Not(Rejection),
}

/// How many brokers have a topic: of its partitions the fewest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copies {
    replicas: usize,
    in_sync: usize,
}

impl Topics {
    pub(super) fn new(named: Vec<String>, create: Option<Shape>) -> Self {
        Self {
            named,
            create,
            doubts: Mutex::default(),
        }
    }

    /// Which of the topics take events, and why the others do not. What is known from before is not
    /// asked again.
    ///
    /// # Errors
    /// When no broker answers.
    pub(super) async fn look(
        &self,
        link: &Link,
        cluster: &Cluster,
        names: &BTreeSet<&str>,
        deadline: Instant,
    ) -> Result<BTreeMap<String, Result<Taken, Rejection>>, Rejection> {
        let mut found = BTreeMap::new();
        let (mut missing, mut there) = (Vec::new(), Vec::new());
        for &name in names {
            if let Some(taken) = link.taken().get(name) {
                found.insert(name.to_owned(), Ok(*taken));
                continue;
            }
            match standing(link, cluster, name).await? {
                Standing::There(copies) => there.push((name, copies)),
                Standing::Missing if self.create.is_some() => missing.push(name),
                Standing::Missing => {
                    let reason = format!(
                        "topic {name} does not exist: create it, or have it created by \
                         ?create=true in bus_url"
                    );
                    found.insert(name.into(), Err(Rejection::new(Blocked, reason)));
                }
                Standing::Not(rejection) => {
                    found.insert(name.into(), Err(rejection));
                }
            }
        }
        if missing.is_empty() && there.is_empty() {
            return Ok(found);
        }
        let admin = Admin::new(cluster).await?;
        if let (Some(shape), false) = (self.create, missing.is_empty()) {
            for (name, refusal) in admin.create(&missing, shape).await {
                found.insert(name, Err(refusal));
            }
            missing.retain(|name| !found.contains_key(*name));
            for name in missing {
                match appearance(link, cluster, name, deadline).await? {
                    Ok(copies) => there.push((name, copies)),
                    Err(rejection) => drop(found.insert(name.into(), Err(rejection))),
                }
            }
        }
        let names: Vec<_> = there.iter().map(|(name, _)| *name).collect();
        let settings = admin.settings(&names).await;
        for (name, copies) in there {
            let settings = settings.get(name).copied().unwrap_or_default();
            let taken = self.judge(name, copies, settings);
            if let Ok(taken) = taken {
                link.taken().insert(name.into(), taken);
            }
            found.insert(name.into(), taken);
        }
        Ok(found)
    }

    /// Whether what this topic acknowledges is kept.
    fn judge(&self, name: &str, copies: Copies, settings: Settings) -> Result<Taken, Rejection> {
        if let Some(impossible) = settings.impossible(copies) {
            return Err(Rejection::new(
                Blocked,
                format!("topic {name} {impossible}"),
            ));
        }
        for doubt in settings.doubts(copies) {
            let doubt = format!("topic {name} {doubt}");
            // Of a topic that is named in the settings it is said when the bus is checked.
            if self.doubts().insert(doubt.clone()) && !self.named.iter().any(|named| named == name)
            {
                tracing::warn!("{doubt}");
            }
        }
        Ok(Taken {
            batch_bytes_max: settings.batch_bytes_max,
        })
    }

    /// What may take durability from the topics that were looked at.
    pub(super) fn doubts(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the topic stands; an error when no broker answers.
async fn standing(link: &Link, cluster: &Cluster, name: &str) -> Result<Standing, Rejection> {
    let metadata = link.metadata(cluster, name).await?;
    let topic = metadata.topics().iter().find(|topic| topic.name() == name);
    Ok(topic.map_or(Standing::Missing, |topic| standing_of(name, topic)))
}

fn standing_of(name: &str, topic: &MetadataTopic) -> Standing {
    use RDKafkaErrorCode as Code;
    match topic.error().map(Code::from) {
        None => {}
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Standing::Missing,
        Some(Code::TopicAuthorizationFailed) => {
            let reason = format!(
                "no permission for topic {name}: the user of bus_url must be allowed to describe \
                 it and to write to it"
            );
            return Standing::Not(Rejection::new(Blocked, reason));
        }
        Some(error) => {
            let reason = format!("topic {name}: {error}");
            return Standing::Not(Rejection::new(Throttled(None), reason));
        }
    }
    let partitions = topic.partitions().iter();
    let copies = partitions.map(|partition| (partition.replicas().len(), partition.isr().len()));
    let fewest = copies.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)));
    fewest.map_or(Standing::Missing, |(replicas, in_sync)| {
        Standing::There(Copies { replicas, in_sync })
    })
}

/// Waits until a topic that was made is there.
async fn appearance(
    link: &Link,
    cluster: &Cluster,
    name: &str,
    deadline: Instant,
) -> Result<Result<Copies, Rejection>, Rejection> {
    loop {
        let rejection = match standing(link, cluster, name).await? {
            Standing::There(copies) => return Ok(Ok(copies)),
            Standing::Missing => {
                let reason = format!("topic {name} was created and is not there yet");
                Rejection::new(Throttled(None), reason)
            }
            Standing::Not(rejection) => rejection,
        };
        if Instant::now() >= deadline {
            return Ok(Err(rejection));
        }
        sleep(GLANCE).await;
    }
}

/// A client for what is not publishing, for one use.
struct Admin {
    /// There until it is dropped.
    client: Option<AdminClient<Listener>>,
    options: AdminOptions,
}

impl Admin {
    async fn new(cluster: &Cluster) -> Result<Self, Rejection> {
        let config = cluster.config(PATIENCE);
        let made = spawn_blocking(move || {
            AdminClient::from_config_and_context(&config, Listener::default())
        });
        let options = AdminOptions::new()
            .request_timeout(Some(PATIENCE))
            .operation_timeout(Some(PATIENCE));
        match made.await {
            Ok(Ok(client)) => Ok(Self {
                client: Some(client),
                options,
            }),
            Ok(Err(error)) => Err(misconfigured(unusable(&error))),
            Err(error) => Err(unreachable(format!("the client was not made: {error}"))),
        }
    }

    fn client(&self) -> &AdminClient<Listener> {
        let client = self.client.as_ref();
        client.expect("the client is there until it is dropped")
    }

    /// Makes the topics; gives back those that were refused, and why.
    async fn create(&self, names: &[&str], shape: Shape) -> Vec<(String, Rejection)> {
        let count = |count: Option<u16>| count.map_or(-1, i32::from);
        let topics: Vec<_> = names
            .iter()
            .map(|name| {
                let replication = TopicReplication::Fixed(count(shape.replication));
                NewTopic::new(name, count(shape.partitions), replication)
            })
            .collect();
        let refused = |name: String, error: &dyn std::fmt::Display| {
            let reason = format!("creating topic {name}: {error}");
            (name, Rejection::new(Blocked, reason))
        };
        match self.client().create_topics(&topics, &self.options).await {
            Ok(results) => results
                .into_iter()
                .filter_map(Result::err)
                .filter(|(_, error)| *error != RDKafkaErrorCode::TopicAlreadyExists)
                .map(|(name, error)| refused(name, &error))
                .collect(),
            Err(error) => names
                .iter()
                .map(|name| refused((*name).to_owned(), &error))
                .collect(),
        }
    }

    /// The settings of the topics as far as they can be learnt: a user may lack the right to ask.
    async fn settings(&self, names: &[&str]) -> BTreeMap<String, Settings> {
        let topics: Vec<_> = names
            .iter()
            .map(|name| ResourceSpecifier::Topic(name))
            .collect();
        let described: Result<_, KafkaError> =
            self.client().describe_configs(&topics, &self.options).await;
        let described = described.unwrap_or_else(|error| {
            tracing::debug!(%error, "the settings of topics cannot be learnt");
            Vec::new()
        });
        let resources = described.into_iter().filter_map(|resource| {
            let resource = resource
                .inspect_err(|error| tracing::debug!(%error, "settings of a topic"))
                .ok()?;
            let settings = Settings::of(&resource);
            match resource.specifier {
                OwnedResourceSpecifier::Topic(name) => Some((name, settings)),
                _ => None,
            }
        });
        resources.collect()
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let client = self.client.take();
        std::thread::spawn(move || drop(client));
    }
}

/// What a topic's settings mean for us; none is what the cluster does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settings {
    batch_bytes_max: Option<usize>,
    min_in_sync: Option<usize>,
    unclean_election: Option<bool>,
    compacts: bool,
}

impl Settings {
    fn of(resource: &ConfigResource) -> Self {
        let text = |name| resource.get(name).and_then(|entry| entry.value.as_deref());
        let number = |name| text(name).and_then(|text| text.parse().ok());
        Self {
            batch_bytes_max: number("max.message.bytes"),
            min_in_sync: number("min.insync.replicas"),
            unclean_election: text("unclean.leader.election.enable").map(|text| text == "true"),
            compacts: text("cleanup.policy").is_some_and(|policy| policy.contains("compact")),
        }
    }

    /// Why nothing would ever be acknowledged, and what to do.
    fn impossible(&self, Copies { replicas, .. }: Copies) -> Option<String> {
        let wanted = self.min_in_sync.filter(|wanted| *wanted > replicas)?;
        Some(format!(
            "has min.insync.replicas={wanted} and {replicas} replica(s), so that it acknowledges \
             nothing: add replicas, or set min.insync.replicas to at most {replicas}"
        ))
    }

    /// Why what is acknowledged could be lost, and what to do.
    fn doubts(&self, Copies { replicas, in_sync }: Copies) -> Vec<String> {
        let mut doubts = Vec::new();
        if replicas == 1 {
            doubts.push(
                "is kept by one broker: what it acknowledged is lost with its disk, so give the \
                 topic 3 replicas and min.insync.replicas=2"
                    .into(),
            );
        } else if self.min_in_sync == Some(1) {
            doubts.push(format!(
                "has {replicas} replicas and min.insync.replicas=1: an event that one broker alone \
                 has counts as acknowledged, so set min.insync.replicas to 2"
            ));
        }
        if let Some(wanted) = self
            .min_in_sync
            .filter(|wanted| in_sync < *wanted && *wanted <= replicas)
        {
            doubts.push(format!(
                "has {in_sync} of the {wanted} replicas in sync that it wants, and acknowledges \
                 nothing until there are more: bring the missing brokers back"
            ));
        }
        if self.unclean_election == Some(true) {
            doubts.push(
                "lets a broker lead that lacks acknowledged events: set \
                 unclean.leader.election.enable to false"
                    .into(),
            );
        }
        if self.compacts {
            doubts.push(
                "is compacted: of each aggregate only the last event stays, so set cleanup.policy \
                 to delete"
                    .into(),
            );
        }
        doubts
    }
}

/// As a check says it: a topic that waits for a person is a bus that does.
pub(super) fn for_check(rejection: Rejection) -> Rejection {
    match rejection.class {
        Blocked => Rejection::new(Config, rejection.reason),
        Throttled(_) => unreachable(rejection.reason),
        _ => rejection,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_promise_is_said_with_what_to_change() {
        let settings = |min_in_sync| Settings {
            min_in_sync,
            ..Settings::default()
        };
        let copies = |replicas, in_sync| Copies { replicas, in_sync };
        let sound = Settings {
            unclean_election: Some(false),
            ..settings(Some(2))
        };
        assert_eq!(sound.impossible(copies(3, 3)), None);
        assert_eq!(sound.doubts(copies(3, 2)), [""; 0]);
        // What the cluster does not tell is no reason to complain.
        assert_eq!(settings(None).doubts(copies(3, 3)), [""; 0]);

        let impossible = settings(Some(3)).impossible(copies(2, 2)).unwrap();
        assert!(impossible.contains("at most 2"), "{impossible}");
        let unclean = Settings {
            unclean_election: Some(true),
            ..sound
        };
        let compacted = Settings {
            compacts: true,
            ..sound
        };
        for (settings, copies, advice) in [
            (settings(Some(1)), copies(1, 1), "3 replicas"),
            (settings(Some(1)), copies(3, 3), "min.insync.replicas to 2"),
            (sound, copies(3, 1), "missing brokers back"),
            (
                unclean,
                copies(3, 3),
                "unclean.leader.election.enable to false",
            ),
            (compacted, copies(3, 3), "cleanup.policy"),
        ] {
            let doubts = settings.doubts(copies);
            let [doubt] = &doubts[..] else {
                panic!("{advice}: {doubts:?}");
            };
            assert!(doubt.contains(advice), "{doubt}");
        }
    }
}
