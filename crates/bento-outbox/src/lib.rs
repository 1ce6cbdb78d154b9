//! The transactional outbox: domain events are committed with the business data and published
//! afterwards, at least once, in order.

mod aggregate;
mod cloud_event;
mod error;
mod event;
mod outbox;
mod pending;
mod projector;
mod publisher;
mod record;
mod retry;
mod store;
mod tenant;
mod timestamp;
mod topic;
mod unit_of_work;

pub mod publishers;
pub mod stores;

pub use aggregate::AggregateRoot;
pub use cloud_event::{CloudEvent, CloudEvents, ContentMode};
pub use error::{ERROR_MESSAGE_CHARS_MAX, Error, ErrorKind, Result, sanitised};
pub use event::{Aggregate, DomainEvent, Event, Headers, PAYLOAD_BYTES_MAX, Payload};
pub use outbox::Outbox;
pub use pending::{InUnitOfWork, raise};
pub use projector::{Batch, Projector, ProjectorSettings};
pub use publisher::Publisher;
pub use record::{Delivery, OrderingKey, OutboxRecord, Outcome, Rejection, RejectionClass, Status};
pub use retry::RetrySettings;
pub use store::{
    Appended, Claim, Claimed, Isolation, Savepoint, Settlement, Store, TenantStatus,
    TransactionalStore, Verdict,
};
pub use tenant::{TENANT_CHARS_MAX, Tenant};
pub use timestamp::Timestamp;
pub use topic::Topic;
pub use unit_of_work::UnitOfWork;
