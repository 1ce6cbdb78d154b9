//! A service that writes a bill for each order that is placed, once, however often the bus delivers
//! the order: a consumer for JetStream, Kafka, RabbitMQ and Redis Streams, with its inbox in PostgreSQL.
//!
//! ```sh
//! cargo run -p bento-outbox --example consumer --features postgres,nats,kafka,rabbitmq,redis -- \
//!     postgres://localhost/billing nats://localhost:4222
//! ```
//!
//! Start two of them, publish events of type `order.placed`, end one by `kill -9` and start it again:
//! `select count(*), count(distinct order_id) from bills` stays the same number twice. What each bus
//! asks of a consumer is in a file of its own; what is done with a message is here, and the same for
//! all: the bus is told that it was received only after the commit.

#![allow(clippy::print_stdout, reason = "it says what it does")]

mod kafka;
mod nats;
mod rabbitmq;
mod redis;

use std::collections::HashMap;
use std::time::Duration;

use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{Aggregate, Cause, DomainEvent, Event, Inbox, Outbox, Store as _, raise};
use serde::{Deserialize, Serialize};

/// The consumer's name, here and on the bus: all its processes have the same.
const CONSUMER: &str = "bills";

/// What it listens to.
const TYPE: &str = "order.placed";

/// How long a bus leaves a message with a process before another one gets it. Where a process only
/// is slow, both handle it, and the inbox lets one of them have the effects.
const TAKE_OVER: Duration = Duration::from_secs(6);

/// How many messages a process has at a time.
const AT_A_TIME: u16 = 50;

/// The pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

type Problem = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Problem> {
    let mut arguments = std::env::args().skip(1);
    let (Some(database), Some(bus)) = (arguments.next(), arguments.next()) else {
        return Err("usage: consumer DATABASE_URL BUS_URL".into());
    };
    let bills = Bills::open(&database).await?;
    loop {
        let ended = match bus.split(':').next() {
            Some("nats") => nats::consume(&bus, &bills).await,
            Some("kafka") => kafka::consume(&bus, &bills).await,
            Some("amqp") => rabbitmq::consume(&bus, &bills).await,
            Some("redis") => redis::consume(&bus, &bills).await,
            _ => return Err(format!("{bus} is none of nats:, kafka:, amqp: and redis:").into()),
        };
        // A bus that was lost comes back, and delivers what it was not told of.
        if let Err(problem) = ended {
            eprintln!("the bus is away: {problem}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A message, as every bus delivers it: its attributes of CloudEvents, without the bus's prefix.
struct Message {
    attributes: HashMap<String, String>,
    body: Vec<u8>,
}

impl Message {
    fn attribute(&self, name: &str) -> Option<String> {
        self.attributes.get(name).cloned()
    }

    /// What the events that it causes remember of it.
    fn cause(&self) -> Cause {
        Cause {
            message_id: self.attribute("id").unwrap_or_default(),
            correlation_id: self.attribute("correlationid"),
            traceparent: self.attribute("traceparent"),
            tracestate: self.attribute("tracestate"),
        }
    }
}

/// What the bus is to be told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It need not come again.
    Done,
    /// It should come again later.
    Later,
}

/// What a message says.
#[derive(Deserialize)]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

/// What it causes.
#[derive(Serialize)]
struct BillWritten {
    order_id: String,
}

impl DomainEvent for BillWritten {
    const TYPE: &'static str = "bill.written";
}

/// The service's own database.
struct Bills {
    outbox: Outbox<PostgresStore>,
}

impl Bills {
    async fn open(url: &str) -> Result<Self, Problem> {
        let store = PostgresStore::open(url, Tables::default()).await?;
        store.migrate().await?;
        sqlx::query("create table if not exists bills (order_id text not null, total_cents bigint not null)")
            .execute(store.pool())
            .await?;
        let outbox = Outbox::new(store);
        Ok(Self { outbox })
    }

    /// Writes the bill and raises an event about it, unless that was done before.
    async fn receive(&self, message: &Message) -> Answer {
        // What can be received never, or is no order, must not come for ever.
        let Some(id) = message.attribute("id") else {
            eprintln!("refused a message without an id");
            return Answer::Done;
        };
        let order: OrderPlaced = match serde_json::from_slice(&message.body) {
            Ok(order) => order,
            Err(problem) => {
                eprintln!("refused {id}: {problem}");
                return Answer::Done;
            }
        };
        let tenant = message.attribute("tenantid").unwrap_or("default".into());
        let inbox = Inbox::new(&self.outbox.tenant(tenant));
        let billed = inbox.handle(CONSUMER, message.cause(), async |uow| {
            sqlx::query("insert into bills (order_id, total_cents) values ($1, $2)")
                .bind(&order.order_id)
                .bind(order.total_cents)
                .execute(uow.tx())
                .await?;
            let written = BillWritten {
                order_id: order.order_id.clone(),
            };
            raise(Event {
                aggregate: Aggregate::new("order", &order.order_id),
                ..Event::of(&written)?
            })
        });
        match billed.await {
            Ok(Some(())) => println!("billed {}", order.order_id),
            Ok(None) => println!("again {}", order.order_id),
            Err(problem) => {
                eprintln!("not now {id}: {}", problem.report());
                return Answer::Later;
            }
        }
        Answer::Done
    }
}
