//! A small order service with its outbox, on SQLite in a temporary folder: no server, nothing left.
//!
//! ```sh
//! cargo run -p bento-outbox --example service --features sqlite
//! ```
//!
//! Three ways to write events together with rows, and a projector inside the service which
//! publishes them: events appear on standard output, what the service does on standard error.

use std::sync::Arc;

use bento_outbox::publishers::StdoutPublisher;
use bento_outbox::stores::{SqliteStore, Tables};
use bento_outbox::{
    AggregateRoot, CloudEvents, DomainEvent, Outbox, Projector, ProjectorSettings, Publisher,
    Store as _, UnitOfWork,
};
use serde::Serialize;
use sqlx::SqliteConnection;
use tokio::sync::oneshot;

#[tokio::main]
async fn main() -> Result<(), ShopError> {
    run(Arc::new(StdoutPublisher::new(CloudEvents::default()))).await
}

/// The life of the service: opens, carries events while it works, and ends with nothing unsent.
async fn run(bus: Arc<dyn Publisher>) -> Result<(), ShopError> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}/shop.db", folder.path().display());
    let store = SqliteStore::open_or_create(&url, Tables::default()).await?;
    store.migrate().await?;
    let shop = Shop::open(Outbox::new(store.clone())).await?;

    let projector = Projector::new(Arc::new(store), bus, ProjectorSettings::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let relay = tokio::spawn({
        let projector = projector.clone();
        async move { projector.run(async { drop(stopped.await) }).await }
    });

    shop.trade().await?;

    let _ = stop.send(());
    relay.await.map_err(std::io::Error::other)??;
    while projector.run_once().await?.claimed > 0 {}
    shop.tell().await
}

/// The aggregate. It raises what happened to it and knows no unit of work.
struct Order {
    id: i64,
    total_cents: i64,
}

impl AggregateRoot for Order {
    const KIND: &'static str = "order";

    fn aggregate_id(&self) -> String {
        self.id.to_string()
    }
}

#[derive(Serialize)]
struct OrderPlaced {
    total_cents: i64,
}

impl DomainEvent for OrderPlaced {
    const TYPE: &'static str = "order.placed";
}

#[derive(Serialize)]
struct OrderShipped;

impl DomainEvent for OrderShipped {
    const TYPE: &'static str = "order.shipped";
}

#[derive(Serialize)]
struct BonusGranted {
    cents: i64,
}

impl DomainEvent for BonusGranted {
    const TYPE: &'static str = "order.bonus_granted";
}

#[derive(Serialize)]
struct OrderCancelled {
    reason: &'static str,
}

impl DomainEvent for OrderCancelled {
    const TYPE: &'static str = "order.cancelled";
}

impl Order {
    fn place(&mut self) -> bento_outbox::Result<()> {
        self.raise(OrderPlaced {
            total_cents: self.total_cents,
        })
    }

    fn ship(&mut self) -> bento_outbox::Result<()> {
        self.raise(OrderShipped)
    }

    fn grant_bonus(&mut self) -> Result<(), ShopError> {
        let cents = self.total_cents / 100;
        self.raise(BonusGranted { cents })?;
        if cents < 50 {
            return Err(ShopError::BonusTooSmall);
        }
        Ok(())
    }
}

/// The service's own errors. The library asks for nothing but a `From<bento_outbox::Error>`.
#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("the card was declined")]
    CardDeclined,
    #[error("the bonus is too small to be granted")]
    BonusTooSmall,
    #[error(transparent)]
    Outbox(#[from] bento_outbox::Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

struct Shop {
    outbox: Outbox<SqliteStore>,
}

impl Shop {
    async fn open(outbox: Outbox<SqliteStore>) -> Result<Self, ShopError> {
        sqlx::query(
            "create table orders (id integer primary key, state text, bonus_cents integer)",
        )
        .execute(outbox.store().pool())
        .await?;
        Ok(Self { outbox })
    }

    async fn trade(&self) -> Result<(), ShopError> {
        let [mut first, mut second, third] =
            [(1, 4_200), (2, 9_900), (3, 700)].map(|(id, total_cents)| Order { id, total_cents });
        self.place(&mut first, true).await?;
        eprintln!("order 1: placed");
        if let Err(ShopError::CardDeclined) = self.place(&mut second, false).await {
            eprintln!("order 2: card declined, rolled back with the event it had raised");
        }
        self.ship(&mut first).await?;
        self.cancel(&third).await?;
        eprintln!("order 3: cancelled");
        Ok(())
    }

    /// Ambient: what is raised inside `run` belongs to its transaction, and nothing is passed on.
    async fn place(&self, order: &mut Order, card_is_good: bool) -> Result<(), ShopError> {
        self.outbox
            .run(async |uow| {
                save(uow.tx(), order, "placed").await?;
                order.place()?;
                if !card_is_good {
                    return Err(ShopError::CardDeclined);
                }
                Ok(())
            })
            .await
    }

    /// Explicit: begin, track, commit. What a nested unit did is undone without the rest.
    async fn ship(&self, order: &mut Order) -> Result<(), ShopError> {
        let mut uow = self.outbox.begin().await?;
        save(uow.tx(), order, "shipped").await?;
        uow.track(|| order.ship())?;
        let bonus = match uow.nested(async |uow| grant_bonus(uow, order).await).await {
            Ok(()) => "with a bonus",
            Err(ShopError::BonusTooSmall) => "without the bonus, which alone was rolled back",
            Err(other) => return Err(other), // `uow` is dropped: everything is rolled back
        };
        let appended = uow.commit().await?;
        eprintln!(
            "order {}: shipped {bonus}; events: {}",
            order.id,
            appended.ids.len()
        );
        Ok(())
    }

    /// The caller's own transaction: `append` writes in it and never ends it.
    async fn cancel(&self, order: &Order) -> Result<(), ShopError> {
        // SQLite: a transaction that will write says so at once, or it may fail half-way.
        let pool = self.outbox.store().pool();
        let mut transaction = pool.begin_with("begin immediate").await?;
        save(&mut transaction, order, "cancelled").await?;
        let event = order.event(&OrderCancelled { reason: "sold out" })?;
        self.outbox.append(&mut transaction, [event]).await?;
        transaction.commit().await?;
        self.outbox.store().give_hint(); // else the next poll finds it, a second later at most
        Ok(())
    }

    /// What there is in the end, by SQL that any language could ask.
    async fn tell(&self) -> Result<(), ShopError> {
        let pool = self.outbox.store().pool();
        let orders: Vec<(i64, String, Option<i64>)> =
            sqlx::query_as("select id, state, bonus_cents from orders order by id")
                .fetch_all(pool)
                .await?;
        let events: Vec<(String, String, String)> =
            sqlx::query_as("select aggregate_id, type, status from outbox_events order by seq")
                .fetch_all(pool)
                .await?;
        eprintln!("\n{} orders in the database:", orders.len());
        for (id, state, bonus) in orders {
            eprintln!("  {id} {state}, bonus {}", bonus.unwrap_or(0));
        }
        eprintln!("{} events in the outbox:", events.len());
        for (id, event_type, status) in events {
            eprintln!("  {status} {event_type} of order {id}");
        }
        Ok(())
    }
}

/// Writes the order on whatever connection the transaction is on.
async fn save(to: &mut SqliteConnection, order: &Order, state: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into orders (id, state) values (?1, ?2) on conflict (id) do update set state = ?2",
    )
    .bind(order.id)
    .bind(state)
    .execute(to)
    .await
    .map(drop)
}

async fn grant_bonus(
    uow: &mut UnitOfWork<SqliteStore>,
    order: &mut Order,
) -> Result<(), ShopError> {
    sqlx::query("update orders set bonus_cents = ?2 where id = ?1")
        .bind(order.id)
        .bind(order.total_cents / 100)
        .execute(uow.tx())
        .await?;
    order.grant_bonus()
}

#[cfg(test)]
mod tests {
    use bento_outbox::publishers::MemoryPublisher;

    use super::*;

    #[tokio::test]
    async fn what_is_committed_is_published_and_nothing_else() {
        let bus = MemoryPublisher::default();
        run(Arc::new(bus.clone())).await.unwrap();
        let mut published: Vec<(String, String)> = bus
            .published()
            .into_iter()
            .map(|record| (record.aggregate.id.unwrap(), record.event_type))
            .collect();
        // Orders are apart: only the events of one come in order, which a stable sort keeps.
        published.sort_by(|(one, _), (other, _)| one.cmp(other));
        let expected = [
            ("1", "order.placed"),
            ("1", "order.shipped"),
            ("3", "order.cancelled"),
        ];
        assert_eq!(
            published,
            expected.map(|(id, event)| (id.into(), event.into()))
        );
    }
}
