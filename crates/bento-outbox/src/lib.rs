//! The transactional outbox: domain events are committed with the business data and published
//! afterwards, at least once, in order.
//!
//! A service changes its own database and tells others about it. An event here is a row in a table
//! of the same database, written in the same transaction as the change it speaks of, so that both
//! are there or neither is. A [`Projector`], in the service or in the program `bento-outbox`, then
//! reads the table and publishes each event until the bus has it.
//!
//! # Example
//!
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! # use std::sync::Arc;
//! # use bento_outbox::publishers::MemoryPublisher;
//! # use bento_outbox::stores::{SqliteStore, Tables};
//! # use bento_outbox::{AggregateRoot, DomainEvent, Outbox, Projector, ProjectorSettings, Result, Store as _};
//! #[derive(serde::Serialize)]
//! struct OrderPlaced { total_cents: i64 }
//! impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
//!
//! struct Order { id: i64, total_cents: i64 }
//! impl AggregateRoot for Order {
//!     const KIND: &'static str = "order";
//!     fn aggregate_id(&self) -> String { self.id.to_string() }
//! }
//! impl Order {
//!     fn place(&mut self) -> Result<()> {
//!         self.raise(OrderPlaced { total_cents: self.total_cents })
//!     }
//! }
//!
//! async fn place(outbox: &Outbox<SqliteStore>, order: &mut Order) -> Result<()> {
//!     outbox.run(async |uow| {
//!         sqlx::query("insert into orders (id) values (?)").bind(order.id).execute(uow.tx()).await?;
//!         order.place() // nothing is passed: the event finds the unit of work that is open
//!     }).await // the order and its event are committed, together
//! }
//! #
//! # #[tokio::main]
//! # async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//! #     let folder = tempfile::tempdir()?;
//! #     let url = format!("sqlite://{}/shop.db", folder.path().display());
//! #     let store = SqliteStore::open_or_create(&url, Tables::default()).await?;
//! #     store.migrate().await?;
//! #     sqlx::query("create table orders (id integer primary key)").execute(store.pool()).await?;
//! #     let outbox = Outbox::new(store.clone());
//! #     place(&outbox, &mut Order { id: 7, total_cents: 4_200 }).await?;
//! #     let bus = MemoryPublisher::default();
//! #     let projector = Projector::new(Arc::new(store), Arc::new(bus.clone()), ProjectorSettings::default());
//! #     projector.run_once().await?;
//! #     assert_eq!(&bus.published()[0].payload[..], br#"{"total_cents":4200}"#);
//! #     Ok(())
//! # }
//! ```
//!
//! [`Outbox::begin`] is the explicit form, [`Outbox::append`] writes into a transaction of your own,
//! and [`UnitOfWork::nested`] is a savepoint. `examples/service.rs` shows them all in one service.
//!
//! The error of a closure is your own: all that is asked of it is `From<bento_outbox::Error>`, and
//! with a second `From` for the driver's error `?` works on your statements too. The futures are
//! `Send`, so that a unit of work can run in a handler or a spawned task. To try again after a
//! [conflict](Error::is_retryable), put the loop around `run`: each round begins without events.
//!
//! # The words
//!
//! One meaning each, in the code, the logs and the program:
//!
//! | word | meaning |
//! | --- | --- |
//! | domain event | a fact of the business in the past tense: [`DomainEvent`], with its envelope an [`Event`] |
//! | aggregate | an entity that *raises* events, and within which they are ordered: [`AggregateRoot`] |
//! | unit of work | one transaction that *tracks* domain code and *appends* what it raised: [`UnitOfWork`] |
//! | record | a row of the table `outbox`; after the commit its payload is opaque: [`OutboxRecord`] |
//! | ordering key | tenant, aggregate type and aggregate id; no aggregate, no order: [`OrderingKey`] |
//! | tenant | whose event it is; `default` where nothing else is said: [`Tenant`] |
//! | registry | the event types that a program knows, with all their versions: [`EventRegistry`] |
//! | message | an event as it travels on a bus, and as a consumer gets it: [`Message`] |
//! | cause | the message in whose handling an event was raised: [`Cause`] |
//! | store | a database, as the outbox sees it: [`Store`], and [`TransactionalStore`] for writing |
//! | publisher | a message bus, as the outbox sees it; it *publishes*: [`Publisher`] |
//! | projector | the relay: it *claims* records, has them published and *settles* them: [`Projector`] |
//! | destination | a bus that events may be routed to: [`MessageBus`] |
//! | inbox | the messages that a consumer has received; *received* is one with its effects: [`Inbox`] |
//! | command | a request that runs once, by its key: [`Commands`] |
//! | outcome | what the bus answered about one record: [`Outcome`] |
//! | dead letter | a record with the status `ERR`: a person must look |
//! | pause | a tenant or destination whose events an operator keeps back: [`Pause`] |
//! | act | something an operator did, as the audit keeps it: [`Act`] |
//!
//! | status | meaning |
//! | --- | --- |
//! | `NEW` | not delivered yet; with a `retry_at` it failed and waits |
//! | `SENT` | the bus acknowledged it durably |
//! | `ERR` | a dead letter |
//!
//! We do without: job, task, worker, handler, manager, engine, service, processor, dispatcher; and
//! *message* is what travels on the bus, never a record.
//!
//! # Features
//!
//! None is on by default. Each adds one module and its driver, and excludes nothing:
//!
//! | feature | adds |
//! | --- | --- |
//! | `mysql` | [`stores`]`::MySqlStore`, for MySQL and MariaDB, on sqlx |
//! | `postgres` | [`stores`]`::PostgresStore`, on sqlx |
//! | `sqlite` | [`stores`]`::SqliteStore`, on sqlx, with SQLite built in |
//! | `nats` | [`publishers`]`::NatsPublisher`, on async-nats |
//! | `http` | [`publishers`]`::HttpPublisher`, webhooks, on hyper |
//! | `kafka` | [`publishers`]`::KafkaPublisher`, on rdkafka |
//! | `rabbitmq` | [`publishers`]`::RabbitMqPublisher`, on the codec of AMQP amq-protocol |
//! | `redis` | [`publishers`]`::RedisPublisher`, on redis |
//! | `schema` | JSON Schemas from Rust types, by schemars 1: `EventType::described` |
//! | `validation` | payloads held to their JSON Schemas at the door: `EventRegistry::enforcing_schemas` |
//! | `opentelemetry` | the current span's trace context in each event, and spans that go on with it after the commit, by tracing-opentelemetry 0.34 |
//!
//! Always there: [`stores::MemoryStore`], and the [`publishers`] for memory, standard output, a file
//! and nowhere. Your own statements run on sqlx 0.9.
//!
//! # Further
//!
//! - What happens when a future is dropped: the sections "Cancel safety" of [`Outbox`]'s and
//!   [`UnitOfWork`]'s functions.
//! - Events that change and are still read, schemas, and whom a change breaks: [`EventRegistry`],
//!   [`SchemaFiles`], [`schema_breaks`].
//! - Tests without a database: [`testing`].
//! - What an error means for the caller: [`ErrorKind`].
//! - What a message looks like: [`CloudEvents`]; under which topic: [`Topic`].
//! - An adapter of your own: [`Store`], [`Publisher`], and the crate `bento-outbox-conformance`,
//!   which has the cases it must pass.

mod act;
mod aggregate;
mod alert;
mod asyncapi;
mod bus;
mod causality;
mod cloud_event;
mod commands;
mod compatibility;
mod dead_letter;
mod dead_letter_topic;
mod decision;
mod door;
mod error;
mod event;
mod filter;
mod held;
mod immediate;
mod inbox;
mod inspection;
mod message;
mod outbox;
mod pause;
mod pending;
mod projector;
mod publisher;
mod record;
mod refusing;
mod registry;
mod replay;
mod retry;
#[cfg(feature = "schema")]
mod schema;
mod schema_files;
mod selector;
mod spans;
mod sparing;
mod standing;
mod store;
pub mod telemetry;
mod tenant;
mod timestamp;
mod topic;
#[cfg(feature = "opentelemetry")]
mod trace_context;
mod unit_of_work;
#[cfg(feature = "validation")]
mod validation;
mod why;

/// Without OpenTelemetry no span is active.
#[cfg(not(feature = "opentelemetry"))]
mod trace_context {
    pub(crate) struct TraceContext {
        pub(crate) traceparent: String,
        pub(crate) tracestate: Option<String>,
    }

    pub(crate) fn current() -> Option<TraceContext> {
        None
    }

    pub(crate) fn of(_: &tracing::Span) -> Option<TraceContext> {
        None
    }

    pub(crate) fn go_on(_: &tracing::Span, _: &TraceContext) -> bool {
        false
    }
}

pub mod publishers;
pub mod stores;
pub mod testing;

pub use act::{ACT_BY_CHARS_MAX, Act, Audited};
pub use aggregate::AggregateRoot;
pub use alert::{AlertSettings, DeadLetterAlert};
pub use asyncapi::AsyncApi;
pub use bus::{Destination, MessageBus, Route};
pub use causality::{Cause, handling};
pub use cloud_event::{CloudEvent, CloudEvents, ContentMode};
pub use commands::{ANSWER_BYTES_MAX, COMMAND_KEY_CHARS_MAX, Commands, FINGERPRINT_CHARS_MAX};
pub use compatibility::{
    BrokenSide, CompatibilityMode, SchemaBreak, schema_breaks, schema_breaks_at,
};
pub use dead_letter::{DeadLetter, DeadLetterObserver};
pub use dead_letter_topic::DeadLetterTopic;
pub use decision::{DeadLetters, Decided, Decision};
pub use error::{ERROR_MESSAGE_CHARS_MAX, Error, ErrorKind, Result, sanitised, shell_word};
pub use event::{Aggregate, DomainEvent, Event, Headers, PAYLOAD_BYTES_MAX, Payload};
pub use filter::{Filter, PAGE_MAX, Page};
pub use held::{Held, held};
pub use immediate::ImmediateSettings;
pub use inbox::{CONSUMER_CHARS_MAX, Inbox, MESSAGE_ID_CHARS_MAX};
pub use inspection::{Caution, Inspection, LiveRelay};
pub use message::Message;
pub use outbox::Outbox;
pub use pause::{PAUSE_NAME_CHARS_MAX, PAUSES_MAX, Pausable, Pause};
pub use pending::{InUnitOfWork, raise};
pub use projector::{Batch, Progress, Projector, ProjectorSettings};
pub use publisher::Publisher;
pub use record::{Delivery, OrderingKey, OutboxRecord, Outcome, Rejection, RejectionClass, Status};
pub use registry::{Decoded, Encoded, EventRegistry, EventType, SchemaValidator};
pub use replay::{
    ReplayEnd, ReplayProgress, ReplaySettings, Replayable, Replayed, replay, replayable,
};
pub use retry::RetrySettings;
pub use schema_files::SchemaFiles;
pub use selector::{Pattern, Selector};
pub use standing::Standing;
pub use store::{
    Appended, Birth, Claim, Claimed, Fence, FirstRun, HeldKey, Isolation, Lease, PARTITIONS, Relay,
    Savepoint, Settle, Settlement, Store, TenantBacklog, TenantStatus, TransactionalStore, Verdict,
};
pub use tenant::{TENANT_CHARS_MAX, Tenant};
pub use timestamp::Timestamp;
pub use topic::{Topic, TopicRule, TopicTemplate};
pub use unit_of_work::UnitOfWork;
pub use why::{About, Because, Why, why};

/// The README, so that its code is tested.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The pages of the book that are mostly code.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../../docs/src/consuming.md")]
    struct Consuming;
    #[doc = include_str!("../../../docs/src/evolving-events.md")]
    struct EvolvingEvents;
    #[doc = include_str!("../../../docs/src/testing.md")]
    struct Testing;
}
