//! The buses: one file each, behind the feature of its name where it has a driver.
//!
//! Each is a [`Publisher`](crate::Publisher) that is made without I/O, reaches its bus at the first
//! [`publish`](crate::Publisher::publish) or [`check`](crate::Publisher::check), and reaches it
//! again after a failure. What it acknowledges and which options its URL takes is written at its
//! type.

mod file;
#[cfg(feature = "http")]
mod http;
mod lines;
mod memory;
#[cfg(feature = "nats")]
mod nats;
mod null;
#[cfg(any(feature = "nats", feature = "http"))]
#[cfg_attr(
    not(feature = "nats"),
    allow(dead_code, reason = "not every bus has options of every kind")
)]
mod options;
mod stdout;

pub use file::FilePublisher;
#[cfg(feature = "http")]
pub use http::{HttpPublisher, WebhookSecrets};
pub use memory::{MemoryPublisher, Subscription};
#[cfg(feature = "nats")]
pub use nats::NatsPublisher;
pub use null::NullPublisher;
pub use stdout::StdoutPublisher;
