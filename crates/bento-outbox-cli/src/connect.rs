//! From a URL to a database or a bus: the only place that names every adapter.

use std::collections::HashMap;
use std::sync::Arc;

use bento_outbox::publishers::{FilePublisher, NullPublisher, StdoutPublisher};
use bento_outbox::{DeadLetterTopic, Destination, Error, MessageBus, Publisher, Store};

use crate::failure::{Failure, Result};
use crate::settings::{self, Settings};

/// The database that the settings name.
pub(crate) enum Database {
    #[cfg(feature = "mysql")]
    MySql(bento_outbox::stores::MySqlStore),
    #[cfg(feature = "postgres")]
    Postgres(bento_outbox::stores::PostgresStore),
    #[cfg(feature = "sqlite")]
    Sqlite(bento_outbox::stores::SqliteStore),
}

/// Evaluates an expression with the store of whichever type a [`Database`] has.
macro_rules! with_store {
    ($database:expr, $store:pat => $evaluated:expr) => {
        match $database {
            #[cfg(feature = "mysql")]
            $crate::connect::Database::MySql($store) => $evaluated,
            #[cfg(feature = "postgres")]
            $crate::connect::Database::Postgres($store) => $evaluated,
            #[cfg(feature = "sqlite")]
            $crate::connect::Database::Sqlite($store) => $evaluated,
        }
    };
}
pub(crate) use with_store;

impl Database {
    /// The database as the relay and the operator see it.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        with_store!(*self, ref store => Arc::new(store.clone()))
    }
}

/// The database of `database_url`. A file must be there.
///
/// # Errors
/// A URL that this program cannot use; exit code 2. Whether the database answers, its first use tells.
pub(crate) async fn database(settings: &Settings) -> Result<Database> {
    open(settings, false).await
}

/// The outbox of an operator's command: the settings are ones that `run` takes, and the tables are there.
///
/// # Errors
/// As for [`database`]; settings that are not built yet; a database that does not answer or is not migrated.
pub(crate) async fn outbox(settings: &Settings) -> Result<Arc<dyn Store>> {
    settings.refuse_unsupported()?;
    let store = database(settings).await?.store();
    store.check().await?;
    Ok(store)
}

/// The database of `database_url`. A file is created at its first use if it is not there.
///
/// # Errors
/// As for [`database`].
pub(crate) async fn database_created(settings: &Settings) -> Result<Database> {
    open(settings, true).await
}

/// Whether `run` can use the URLs of the settings. Nobody is asked.
///
/// # Errors
/// A URL that this program cannot use; exit code 2.
pub(crate) async fn check(settings: &Settings) -> Result<()> {
    bus(settings)?;
    alert(settings)?;
    database_created(settings).await.map(drop)
}

#[cfg_attr(
    not(feature = "sqlite"),
    expect(unused_variables, reason = "only SQLite has a file")
)]
async fn open(settings: &Settings, create: bool) -> Result<Database> {
    let url = &settings.database_url;
    let refuse = |what: &str| settings.refuse("database_url", what);
    match settings::scheme(url).unwrap_or_default() {
        #[cfg(feature = "sqlite")]
        "sqlite" => {
            use bento_outbox::stores::SqliteStore;
            let tables = settings.tables.clone();
            let opened = match create {
                true => SqliteStore::open_or_create(url, tables).await,
                false => SqliteStore::open(url, tables).await,
            };
            opened
                .map(Database::Sqlite)
                .map_err(|error| named(error, refuse))
        }
        #[cfg(not(feature = "sqlite"))]
        "sqlite" => Err(refuse("needs a program built with `--features sqlite`")),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            bento_outbox::stores::PostgresStore::open(url, settings.tables.clone())
                .await
                .map(Database::Postgres)
                .map_err(|error| named(error, refuse))
        }
        #[cfg(not(feature = "postgres"))]
        "postgres" | "postgresql" => {
            Err(refuse("needs a program built with `--features postgres`"))
        }
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => bento_outbox::stores::MySqlStore::open(url, settings.tables.clone())
            .await
            .map(Database::MySql)
            .map_err(|error| named(error, refuse)),
        #[cfg(not(feature = "mysql"))]
        "mysql" | "mariadb" => Err(refuse("needs a program built with `--features mysql`")),
        other => Err(refuse(&format!(
            "begins with {other:?}, which is none of sqlite, postgres, mysql, mariadb"
        ))),
    }
}

/// The bus of `bus_url`, with those of the routes behind it.
///
/// # Errors
/// A URL that this program cannot use; exit code 2. Whether the bus answers, its first use tells.
pub(crate) fn bus(settings: &Settings) -> Result<Arc<dyn Publisher>> {
    let mut destinations = HashMap::new();
    for bus in settings.buses() {
        let destination = Destination {
            name: bus.name(),
            publisher: one_bus(settings, bus)?,
        };
        destinations.insert(bus.url, destination);
    }
    // Every URL of the settings is that of one of its buses.
    let at = |url: &str| destinations[url].clone();
    let otherwise = at(&settings.bus_url);
    let route = |route: &settings::Route| bento_outbox::Route {
        events: route.events.clone(),
        destination: at(route.bus().unwrap_or(&settings.bus_url)),
    };
    let routes = settings.routes.iter().map(route).collect();
    let bus = MessageBus::new(otherwise, routes, &settings.projector.retry);
    Ok(Arc::new(bus))
}

/// Who publishes copies of dead letters on `bus`, where the settings name a topic for them.
///
/// # Errors
/// None that the settings would not have had before.
pub(crate) fn dead_letter_topic(
    settings: &Settings,
    bus: &Arc<dyn Publisher>,
) -> Result<Option<DeadLetterTopic>> {
    let Some(topic) = settings.topic_with_dead_letters() else {
        return Ok(None);
    };
    let retry = settings.projector.retry.clone();
    Ok(Some(DeadLetterTopic::new(bus.clone(), topic, retry)?))
}

/// One of the buses that the settings name.
///
/// # Errors
/// As for [`bus`].
pub(crate) fn one_bus(settings: &Settings, bus: settings::Bus<'_>) -> Result<Arc<dyn Publisher>> {
    let url = bus.url;
    let refuse = |what: &str| bus.refuse(what);
    let events = || settings.cloud_events.clone();
    match settings::scheme(url).unwrap_or_default() {
        "stdout" if url == "stdout:" => Ok(Arc::new(StdoutPublisher::new(events()))),
        "null" if url == "null:" => Ok(Arc::new(NullPublisher)),
        alone @ ("stdout" | "null") => {
            Err(refuse(&format!("must be {alone}: and nothing after it")))
        }
        "file" => match url.trim_start_matches("file:").trim_start_matches("//") {
            "" => Err(refuse("names no file, as file:events.jsonl does")),
            path => Ok(Arc::new(FilePublisher::new(path, events()))),
        },
        #[cfg(feature = "nats")]
        "nats" | "tls" => remote(url, refuse, |url| {
            bento_outbox::publishers::NatsPublisher::new(url, bus.topic(), events())
        }),
        #[cfg(not(feature = "nats"))]
        "nats" | "tls" => Err(refuse("needs a program built with `--features nats`")),
        #[cfg(feature = "rabbitmq")]
        "amqp" | "amqps" => remote(url, refuse, |url| {
            bento_outbox::publishers::RabbitMqPublisher::new(url, bus.topic(), events())
        }),
        #[cfg(not(feature = "rabbitmq"))]
        "amqp" | "amqps" => Err(refuse("needs a program built with `--features rabbitmq`")),
        #[cfg(feature = "redis")]
        "redis" | "rediss" => remote(url, refuse, |url| {
            bento_outbox::publishers::RedisPublisher::new(url, bus.topic(), events())
        }),
        #[cfg(not(feature = "redis"))]
        "redis" | "rediss" => Err(refuse("needs a program built with `--features redis`")),
        "memory" => Err(refuse(
            "names the bus inside a process, which only the library has",
        )),
        #[cfg(feature = "kafka")]
        "kafka" | "kafkas" => {
            use bento_outbox::publishers::KafkaPublisher;
            KafkaPublisher::new(url, bus.topic(), events())
                .map(|bus| Arc::new(bus) as Arc<dyn Publisher>)
                .map_err(|error| named(error, refuse))
        }
        #[cfg(not(feature = "kafka"))]
        "kafka" | "kafkas" => Err(refuse(
            "names Kafka, which needs a program built with `--features full`",
        )),
        #[cfg(feature = "http")]
        "http" | "https" => remote(url, refuse, |url| webhook(settings, url, bus.topic())),
        #[cfg(not(feature = "http"))]
        "http" | "https" => Err(refuse("needs a program built with `--features http`")),
        other => Err(refuse(&format!(
            "begins with {other:?}, which is none of stdout, file, null, nats, tls, kafka, kafkas, amqp, amqps, redis, rediss, http, https"
        ))),
    }
}

/// The webhook of `alert_url`; none where nobody is to be told.
///
/// # Errors
/// A URL that this program cannot use; exit code 2. Whether it answers, its first use tells.
pub(crate) fn alert(settings: &Settings) -> Result<Option<Arc<dyn Publisher>>> {
    let Some(url) = &settings.alert_url else {
        return Ok(None);
    };
    let refuse = |what: &str| settings.refuse("alert_url", what);
    match settings::scheme(url).unwrap_or_default() {
        #[cfg(feature = "http")]
        "http" | "https" => {
            let topic = bento_outbox::Topic::default();
            remote(url, refuse, |url| webhook(settings, url, topic)).map(Some)
        }
        #[cfg(not(feature = "http"))]
        "http" | "https" => Err(refuse("needs a program built with `--features http`")),
        other => Err(refuse(&format!(
            "begins with {other:?}, which is neither http nor https"
        ))),
    }
}

#[cfg(feature = "http")]
fn webhook(
    settings: &Settings,
    url: &url::Url,
    topic: bento_outbox::Topic,
) -> bento_outbox::Result<bento_outbox::publishers::HttpPublisher> {
    let secrets = settings.webhook_secrets.clone();
    bento_outbox::publishers::HttpPublisher::new(url, topic, settings.cloud_events.clone(), secrets)
}

/// A bus that is somewhere else, made of its URL by its adapter.
#[cfg(any(
    feature = "http",
    feature = "nats",
    feature = "rabbitmq",
    feature = "redis"
))]
fn remote<P: Publisher>(
    url: &str,
    refuse: impl Fn(&str) -> Failure,
    make: impl FnOnce(&url::Url) -> bento_outbox::Result<P>,
) -> Result<Arc<dyn Publisher>> {
    let url = url.parse();
    let url = url.map_err(|error| refuse(&format!("is no URL: {error}")))?;
    match make(&url) {
        Ok(bus) => Ok(Arc::new(bus)),
        Err(error) => Err(named(error, refuse)),
    }
}

/// An adapter's error about its URL, with the name of the setting where it is about the URL.
fn named(error: Error, refuse: impl FnOnce(&str) -> Failure) -> Failure {
    match error.kind() {
        bento_outbox::ErrorKind::InvalidSetting => {
            let what = error.report();
            // The library names the setting that a bus's URL has most often; `refuse` knows which it is.
            let what = what.strip_prefix("bus_url: ").unwrap_or(&what);
            refuse(&format!("cannot be used: {what}"))
        }
        _ => error.into(),
    }
}
