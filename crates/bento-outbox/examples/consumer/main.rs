//! A service that writes a bill for each order that is placed, once, however often the bus delivers
//! the order: a consumer for JetStream, Kafka, RabbitMQ and Redis Streams, with its inbox in PostgreSQL.
//!
//! ```sh
//! cargo run -p bento-outbox --example consumer --features postgres,nats,kafka,rabbitmq,redis -- \
//!     postgres://localhost/billing nats://localhost:4222
//! ```
//!
//! On JetStream there must be a stream for the subject `order.placed`: the relay makes it by
//! `?stream=ORDERS&create=true&subjects=order.>`. Start two consumers, publish events of type `order.placed`, end one by `kill -9` and start it again:
//! `select count(*), count(distinct order_id) from bills` stays the same number twice. What cannot be
//! read is in the table `refused`. What each bus asks of a consumer is in a file of its own; what is
//! done with a message is here, and the same for all: the bus is told that it was received only after
//! the commit.

#![allow(clippy::print_stdout, reason = "it says what it does")]

mod kafka;
mod nats;
mod rabbitmq;
mod redis;

use std::time::Duration;

use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{
    Aggregate, DomainEvent, Event, EventRegistry, EventType, Inbox, Message, Outbox, Store as _,
    raise,
};
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
    let mut said = String::new();
    loop {
        let ended = match bus.split(':').next() {
            Some("nats") => nats::consume(&bus, &bills).await,
            Some("kafka") => kafka::consume(&bus, &bills).await,
            Some("amqp") => rabbitmq::consume(&bus, &bills).await,
            Some("redis") => redis::consume(&bus, &bills).await,
            _ => return Err(format!("{bus} is none of nats:, kafka:, amqp: and redis:").into()),
        };
        // A bus that was lost comes back, and delivers what it was not told of.
        if let Err(problem) = ended
            && said != problem.to_string()
        {
            said = problem.to_string();
            eprintln!("not consuming: {problem}");
        }
        tokio::time::sleep(PAUSE).await;
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
#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    order_id: String,
    total_cents: i64,
}

impl DomainEvent for OrderPlaced {
    const TYPE: &'static str = TYPE;
}

/// What it causes.
#[derive(Serialize)]
struct BillWritten {
    order_id: String,
}

impl DomainEvent for BillWritten {
    const TYPE: &'static str = "bill.written";
}

/// What the service keeps in its own database. `refused` has the messages that it cannot read, for a
/// person to look at.
const TABLES: &str = "
    create table if not exists bills (order_id text not null, total_cents bigint not null);
    create table if not exists refused (
        message_id text, reason text not null, body bytea not null,
        refused_at timestamptz not null default now())";

/// The service, in its own database.
struct Bills {
    outbox: Outbox<PostgresStore>,
    registry: EventRegistry,
}

impl Bills {
    async fn open(url: &str) -> Result<Self, Problem> {
        let store = PostgresStore::open(url, Tables::default()).await?;
        store.migrate().await?;
        sqlx::raw_sql(TABLES).execute(store.pool()).await?;
        Ok(Self {
            outbox: Outbox::new(store),
            registry: EventRegistry::new([EventType::of::<OrderPlaced>()])?,
        })
    }

    /// Writes the bill and raises an event about it, unless that was done before.
    async fn receive<N, V>(&self, headers: impl Iterator<Item = (N, V)>, body: &[u8]) -> Answer
    where
        N: AsRef<str>,
        V: AsRef<[u8]>,
    {
        let message = match Message::of(headers, body.to_vec()) {
            Ok(message) => message,
            Err(problem) => return self.refuse(None, &problem, body).await,
        };
        let order: OrderPlaced = match self.registry.decode_as(&message) {
            Ok(order) => order,
            Err(problem) => return self.refuse(Some(message.id()), &problem, body).await,
        };
        let inbox = Inbox::new(&self.outbox.tenant(message.tenant()));
        let billed = inbox.handle(CONSUMER, &message, async |uow| {
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
                eprintln!("not now {}: {}", message.id(), problem.report());
                return Answer::Later;
            }
        }
        Answer::Done
    }

    /// Keeps what never can be read, instead of having it come for ever. The inbox does not know it:
    /// when the program reads more, `bento-outbox replay` sends it once more. If it comes again before
    /// the bus was told, it is kept twice, which is better than to take two messages for one.
    async fn refuse(&self, id: Option<&str>, problem: &bento_outbox::Error, body: &[u8]) -> Answer {
        let reason = problem.report();
        let keep =
            sqlx::query("insert into refused (message_id, reason, body) values ($1, $2, $3)")
                .bind(id)
                .bind(&reason)
                .bind(body);
        match keep.execute(self.outbox.store().pool()).await {
            Ok(_) => {
                eprintln!("refused {}: {reason}", id.unwrap_or("a message"));
                Answer::Done
            }
            Err(problem) => {
                eprintln!("not now: {problem}");
                Answer::Later
            }
        }
    }
}
