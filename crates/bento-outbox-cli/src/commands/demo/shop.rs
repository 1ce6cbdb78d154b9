//! The order service of the demo, written as an application would write it.

use bento_outbox::stores::SqliteStore;
use bento_outbox::{AggregateRoot, DomainEvent, Error, Outbox, Result};
use serde::Serialize;

/// An order is an aggregate: it raises events when it changes and knows no outbox.
struct Order {
    id: String,
    total_cents: i64,
}

impl AggregateRoot for Order {
    const KIND: &'static str = "order";

    fn aggregate_id(&self) -> String {
        self.id.clone()
    }
}

#[derive(Serialize)]
struct OrderPlaced {
    item: &'static str,
    total_cents: i64,
}

impl DomainEvent for OrderPlaced {
    const TYPE: &'static str = "order.placed";
}

#[derive(Serialize)]
struct OrderPaid {
    total_cents: i64,
}

impl DomainEvent for OrderPaid {
    const TYPE: &'static str = "order.paid";
}

impl Order {
    fn place(&mut self, item: &'static str) -> Result<()> {
        self.raise(OrderPlaced {
            item,
            total_cents: self.total_cents,
        })
    }

    fn pay(&mut self, card_is_good: bool) -> Result<(), Refused> {
        if !card_is_good {
            return Err(Refused::CardDeclined {
                order: self.id.clone(),
            });
        }
        Ok(self.raise(OrderPaid {
            total_cents: self.total_cents,
        })?)
    }
}

/// Why an order was not placed.
pub(super) enum Refused {
    /// A matter of business: everything of the order is rolled back.
    CardDeclined { order: String },
    /// A matter of machinery.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The service: two tenants sell what is on the shelf.
pub(super) struct Shop {
    outbox: Outbox<SqliteStore>,
}

const TENANTS: [&str; 2] = ["acme", "globex"];

const SHELF: [(&str, i64); 5] = [
    ("teapot", 3_490),
    ("lamp", 5_900),
    ("stool", 12_500),
    ("rug", 24_000),
    ("vase", 1_850),
];

/// Every so many cards is declined.
const DECLINED_EVERY: u32 = 7;

impl Shop {
    pub(super) async fn open(outbox: Outbox<SqliteStore>) -> Result<Self> {
        sqlx::query("create table orders (id text primary key, total_cents integer not null)")
            .execute(outbox.store().pool())
            .await?;
        Ok(Self { outbox })
    }

    /// One customer's order, in one unit of work: the row, both events, or nothing at all.
    pub(super) async fn order(&self, number: u32) -> Result<String, Refused> {
        let (item, total_cents) = SHELF[number as usize % SHELF.len()];
        let tenant = TENANTS[number as usize % TENANTS.len()];
        let mut order = Order {
            id: (1_000 + number).to_string(),
            total_cents,
        };
        self.outbox
            .tenant(tenant)
            .run(async |uow| {
                sqlx::query("insert into orders (id, total_cents) values (?, ?)")
                    .bind(&order.id)
                    .bind(order.total_cents)
                    .execute(uow.tx())
                    .await?;
                order.place(item)?;
                // A declined card undoes the row and the event that was raised a line before.
                order.pay(!number.is_multiple_of(DECLINED_EVERY))?;
                Ok::<_, Refused>(())
            })
            .await?;
        Ok(order.id)
    }

    /// Returns when the events of every order are out, or left to the projector.
    pub(super) async fn closed(&self) {
        self.outbox.flushed().await;
    }

    /// How many orders the database has: those that were placed.
    pub(super) async fn orders_in_database(&self) -> Result<u64> {
        let count: i64 = sqlx::query_scalar("select count(*) from orders")
            .fetch_one(self.outbox.store().pool())
            .await?;
        Ok(count.unsigned_abs())
    }
}
