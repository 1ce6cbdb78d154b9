//! The application's door.

use std::sync::Arc;

use uuid::Uuid;

use crate::door::Door;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::immediate::{Immediate, ImmediateSettings};
use crate::pending::{self, Scope};
use crate::publisher::Publisher;
use crate::registry::EventRegistry;
use crate::store::{Appended, Isolation, Store, TransactionalStore};
use crate::tenant::Tenant;
use crate::unit_of_work::UnitOfWork;

/// Opens units of work on a store. Cheap to clone; clones are the same outbox.
#[derive(Clone)]
pub struct Outbox<S> {
    store: S,
    id: Uuid,
    tenant: Option<Tenant>,
    /// Why the tenant that was asked for is none; said at the first use.
    no_tenant: Option<String>,
    isolation: Option<Isolation>,
    immediate: Option<Immediate>,
    door: Door,
}

impl<S: TransactionalStore> Outbox<S> {
    /// The outbox in `store`, for the tenant `default`.
    pub fn new(store: S) -> Self {
        Self {
            store,
            id: Uuid::now_v7(),
            tenant: None,
            no_tenant: None,
            isolation: None,
            immediate: None,
            door: Door::default(),
        }
    }

    /// The same outbox for one tenant: its units of work refuse events of any other.
    ///
    /// A name outside the [grammar](Tenant) is an error at the first use.
    #[must_use]
    pub fn tenant(&self, name: impl AsRef<str>) -> Self {
        let parsed = name.as_ref().parse::<Tenant>();
        let no_tenant = parsed.as_ref().err().map(ToString::to_string);
        Self {
            tenant: parsed.ok(),
            no_tenant,
            ..self.clone()
        }
    }

    /// The same outbox with another isolation level. Defaults to read committed on PostgreSQL and
    /// MySQL; SQLite is always serializable.
    #[must_use]
    pub fn isolation(&self, isolation: Isolation) -> Self {
        Self {
            isolation: Some(isolation),
            ..self.clone()
        }
    }

    /// The same outbox, whose units of work publish their events right after the commit.
    ///
    /// An event of whose key an earlier one is not sent yet waits for it, and is a relay's: so is
    /// what fails here or is under way when the process dies. So a [`Projector`](crate::Projector)
    /// must run somewhere.
    ///
    /// An event whose payload is larger than the bus takes is then refused where it is raised, as
    /// soon as the bus has said how much that is: a bus that was never reached has not. A
    /// [`check`](Publisher::check) at the start of the service reaches it.
    #[must_use]
    pub fn publish_with(&self, publisher: impl Publisher) -> Self {
        self.publish_with_settings(Arc::new(publisher), ImmediateSettings::default())
    }

    /// As [`publish_with`](Self::publish_with), with other settings.
    #[must_use]
    pub fn publish_with_settings(
        &self,
        publisher: Arc<dyn Publisher>,
        settings: ImmediateSettings,
    ) -> Self {
        let store: Arc<dyn Store> = Arc::new(self.store.clone());
        let bus = publisher.clone();
        let door = self.door.clone();
        Self {
            door: door.refusing_over(move |event| bus.payload_bytes_max(event)),
            immediate: Some(Immediate::new(store, publisher, settings)),
            ..self.clone()
        }
    }

    /// The same outbox, which writes the `$id` of each event's schema into its row, as far as
    /// `registry` has the schema and the event does not name one. An outbox that
    /// [checks](Self::check_with) goes on to, with this registry.
    #[must_use]
    pub fn describe_with(&self, registry: &EventRegistry) -> Self {
        Self {
            door: self.door.clone().knowing(registry, false),
            ..self.clone()
        }
    }

    /// As [`describe_with`](Self::describe_with), and refuses each event that `registry` could not
    /// read back: of a type or version that it does not know, or with a payload that is not what
    /// these say. Refused where it is raised or appended, before anything is written, by an
    /// [`InvalidEvent`](ErrorKind::InvalidEvent) that names the path. A registry that enforces its
    /// schemas holds the payload to them too.
    #[must_use]
    pub fn check_with(&self, registry: &EventRegistry) -> Self {
        Self {
            door: self.door.clone().knowing(registry, true),
            ..self.clone()
        }
    }

    /// Returns when everything that was published right after a commit is settled: before the
    /// process ends. What is not settled then is published again by a relay.
    pub async fn flushed(&self) {
        if let Some(immediate) = &self.immediate {
            immediate.flushed().await;
        }
    }

    /// The store behind it.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Runs `work` in a unit of work and commits it; if `work` fails, everything is rolled back.
    ///
    /// Events raised by code that `work` calls belong to the unit of work, without being passed:
    ///
    /// ```
    /// # use bento_outbox::{AggregateRoot, DomainEvent, Error, Outbox, Result, stores::MemoryStore};
    /// # #[derive(serde::Serialize)] struct OrderPlaced;
    /// # impl DomainEvent for OrderPlaced { const TYPE: &'static str = "order.placed"; }
    /// # struct Order { id: u64 }
    /// # impl AggregateRoot for Order {
    /// #     const KIND: &'static str = "order";
    /// #     fn aggregate_id(&self) -> String { self.id.to_string() }
    /// # }
    /// # impl Order { fn place(&mut self) -> Result<()> { self.raise(OrderPlaced) } }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
    /// # let outbox = Outbox::new(MemoryStore::default());
    /// # let mut order = Order { id: 7 };
    /// outbox.tenant("acme").run(async |uow| {
    ///     // sqlx::query("insert into orders …").execute(uow.tx()).await?;
    ///     order.place()?;
    ///     Ok::<_, Error>(())
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What `work` answers, and the errors of [`begin`](Self::begin) and
    /// [`commit`](UnitOfWork::commit).
    ///
    /// # Cancel safety
    /// Dropped before the commit began, everything is rolled back; later it may be committed.
    pub async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut UnitOfWork<S>) -> Result<T, E>,
        E: From<Error>,
    {
        self.begin().await?.complete(work).await
    }

    /// Begins a unit of work, to be ended by [`commit`](UnitOfWork::commit) or
    /// [`rollback`](UnitOfWork::rollback).
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) without a database,
    /// [`InvalidEvent`](ErrorKind::InvalidEvent) for a tenant outside its grammar,
    /// [`UnitOfWorkOpen`](ErrorKind::UnitOfWorkOpen) inside [`run`](Self::run) or a task that has
    /// one already: [`UnitOfWork::nested`] is the way to a savepoint.
    ///
    /// # Cancel safety
    /// Dropped at any await, no connection stays inside a transaction.
    pub async fn begin(&self) -> Result<UnitOfWork<S>> {
        if pending::current().is_some_and(|scope| scope.outbox() == self.id) {
            return Err(Error::new(
                ErrorKind::UnitOfWorkOpen,
                "a unit of work of this outbox is already open in this task: use UnitOfWork::nested for a \
                 savepoint in it, or tokio::spawn for one of its own",
            ));
        }
        let tenant = self.the_tenant()?.cloned().unwrap_or_default();
        let scope = Scope::new(self.id, tenant, self.door.clone());
        UnitOfWork::begin(
            self.store.clone(),
            scope,
            self.isolation,
            self.immediate.clone(),
        )
        .await
    }

    /// Writes events in the caller's own transaction, in one statement. Never commits it.
    ///
    /// Events without a tenant become this outbox's; for an outbox of one
    /// [tenant](Self::tenant), one of another is refused. Call
    /// [`Store::give_hint`](crate::Store::give_hint) after the commit to have the events published
    /// without waiting for the next poll.
    ///
    /// # Errors
    /// [`InvalidEvent`](ErrorKind::InvalidEvent) or [`WrongTenant`](ErrorKind::WrongTenant), before
    /// anything is written; otherwise what the database answers.
    pub async fn append(
        &self,
        connection: &mut S::Connection,
        events: impl IntoIterator<Item = Event>,
    ) -> Result<Appended> {
        let own = self.the_tenant()?;
        let tenant = own.cloned().unwrap_or_default();
        let mut events: Vec<Event> = events.into_iter().collect();
        for event in &mut events {
            event.check()?;
            if let (Some(own), Some(other)) = (own, &event.tenant)
                && own != other
            {
                return Err(Error::new(
                    ErrorKind::WrongTenant,
                    format!(
                        "event {} is of tenant {other}, this outbox of tenant {own}",
                        event.id
                    ),
                ));
            }
            event.tenant.get_or_insert_with(|| tenant.clone());
            self.door.admit(event, None)?;
        }
        if events.is_empty() {
            return Ok(Appended::default());
        }
        self.store.append(connection, &tenant, &events, None).await
    }

    pub(crate) fn the_tenant(&self) -> Result<Option<&Tenant>> {
        match &self.no_tenant {
            Some(why) => Err(Error::new(ErrorKind::InvalidEvent, why)),
            None => Ok(self.tenant.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::event::{DomainEvent, Event};
    use crate::publishers::MemoryPublisher;
    use crate::stores::MemoryStore;

    #[derive(Serialize, Deserialize)]
    struct Told;
    impl DomainEvent for Told {
        const TYPE: &'static str = "told";
    }

    #[tokio::test]
    async fn a_dropped_flush_loses_no_event_and_keeps_none_from_being_published_at_once() {
        let (bus, gate) = (MemoryPublisher::default(), Arc::new(Semaphore::new(0)));
        let closed = gate.clone();
        bus.on(move |_: Told, _| {
            let gate = closed.clone();
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, &str>(())
            }
        });
        let outbox = Outbox::new(MemoryStore::default()).publish_with(bus.clone());
        for _ in 0..5 {
            let raised = outbox.run(async |_| crate::raise(Event::of(&Told)?));
            raised.await.unwrap();
            tokio::select! {
                biased;
                () = outbox.flushed() => panic!("nothing is settled yet"),
                () = std::future::ready(()) => {}
            }
        }
        gate.add_permits(5);
        outbox.flushed().await;
        assert_eq!(bus.published().len(), 5);
        assert_eq!(outbox.store().status().await.unwrap()[0].sent, 5);
    }
}
