//! The buses: one file each, behind the feature of its name where it has a driver.
//!
//! Each is a [`Publisher`](crate::Publisher) that is made without I/O, reaches its bus at the first
//! [`publish`](crate::Publisher::publish) or [`check`](crate::Publisher::check), and reaches it
//! again after a failure. What it acknowledges and which options its URL takes is written at its
//! type.

mod file;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod lines;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod null;
#[cfg(any(
    feature = "nats",
    feature = "kafka",
    feature = "rabbitmq",
    feature = "redis",
    feature = "http"
))]
#[allow(dead_code, reason = "no bus has options of every kind")]
mod options;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "rabbitmq", feature = "redis"))]
mod socket;
mod stdout;

#[cfg(feature = "redis")]
pub use self::redis::RedisPublisher;
pub use file::FilePublisher;
#[cfg(feature = "http")]
pub use http::{HttpPublisher, WebhookSecrets};
#[cfg(feature = "kafka")]
pub use kafka::KafkaPublisher;
pub use memory::{MemoryPublisher, Subscription};
#[cfg(feature = "nats")]
pub use nats::NatsPublisher;
pub use null::NullPublisher;
#[cfg(feature = "rabbitmq")]
pub use rabbitmq::RabbitMqPublisher;
pub use stdout::StdoutPublisher;
