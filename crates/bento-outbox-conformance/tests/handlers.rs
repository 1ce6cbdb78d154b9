//! Units of work run where services run them: in handlers and spawned tasks, which must be `Send`,
//! with borrowed arguments and an error type of the service's own.
//!
//! Most of this file is tried by the compiler: "implementation of `Send` is not general enough" is
//! what it would say.

use std::time::Duration;

use bento_outbox::stores::{MemoryStore, SqliteStore, Tables};
use bento_outbox::{
    AggregateRoot, DomainEvent, Error, ErrorKind, Event, Outbox, Payload, Store,
    TransactionalStore, UnitOfWork, raise,
};

#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error(transparent)]
    Outbox(#[from] Error),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error("declined")]
    Declined,
}

#[derive(serde::Serialize)]
struct Placed;

impl DomainEvent for Placed {
    const TYPE: &'static str = "order.placed";
}

struct Order {
    id: i64,
}

impl AggregateRoot for Order {
    const KIND: &'static str = "order";

    fn aggregate_id(&self) -> String {
        self.id.to_string()
    }
}

impl Order {
    fn place(&mut self) -> Result<(), Error> {
        self.raise(Placed)
    }
}

/// What a web framework keeps and clones for each request.
#[derive(Clone)]
struct Shop {
    outbox: Outbox<SqliteStore>,
}

impl Shop {
    /// Borrows its arguments and changes one of them, over several awaits and a nested unit.
    async fn place(&self, order: &mut Order, tags: &[&str]) -> Result<usize, ShopError> {
        let unit = self.outbox.tenant("acme");
        unit.run(async |uow| {
            insert(uow, order.id, "order").await?;
            for tag in tags.iter().filter(|tag| !tag.is_empty()) {
                insert(uow, order.id, tag).await?;
            }
            order.place()?;
            let declined = uow
                .nested(async |uow| {
                    insert(uow, order.id, "undone").await?;
                    order.place()?;
                    Err::<(), _>(ShopError::Declined)
                })
                .await;
            assert!(matches!(declined, Err(ShopError::Declined)));
            let rows: Vec<(String,)> = sqlx::query_as("select name from orders where id = ?")
                .bind(order.id)
                .fetch_all(uow.tx())
                .await?;
            Ok(rows.len())
        })
        .await
    }

    /// The explicit form.
    async fn begin(&self, order: &mut Order) -> Result<(), ShopError> {
        let mut uow = self.outbox.begin().await?;
        insert(&mut uow, order.id, "order").await?;
        uow.track(|| order.place())?;
        uow.commit().await?;
        Ok(())
    }

    /// The caller's own transaction.
    async fn append(&self, order: &Order) -> Result<(), ShopError> {
        let mut transaction = self.outbox.store().pool().begin().await?;
        let event = order.event(&Placed)?;
        self.outbox.append(&mut transaction, [event]).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Runs the unit of work again for as long as others win.
    async fn place_patiently(&self, order: &mut Order) -> Result<(), ShopError> {
        let mut rounds = 0;
        loop {
            let placed = self.outbox.run(async |uow| {
                insert(uow, order.id, "order").await?;
                order.place()?;
                rounds += 1;
                if rounds < 3 {
                    return Err(Error::new(ErrorKind::Conflict, "others won, says the test").into());
                }
                Ok(())
            });
            match placed.await {
                Err(ShopError::Outbox(error)) if error.is_retryable() => {}
                placed => return placed,
            }
        }
    }
}

async fn insert(uow: &mut UnitOfWork<SqliteStore>, id: i64, name: &str) -> Result<(), ShopError> {
    sqlx::query("insert into orders (id, name) values (?, ?)")
        .bind(id)
        .bind(name)
        .execute(uow.tx())
        .await?;
    Ok(())
}

/// The shape in which a web framework takes handlers: an owned state and an owned body.
async fn handler(shop: Shop, id: i64) -> Result<String, ShopError> {
    let name = format!("order {id}");
    shop.outbox
        .run(async |uow| {
            insert(uow, id, &name).await?;
            Order { id }.place()?;
            Ok(name.clone())
        })
        .await
}

/// Accepts what axum does, and calls it as axum does: in a task of its own.
async fn serve<F, Fut, T>(handler: F, shop: Shop, body: i64) -> T
where
    F: FnOnce(Shop, i64) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    tokio::spawn(handler(shop, body)).await.unwrap()
}

/// For those who do not know their store.
async fn generic<S: TransactionalStore>(outbox: Outbox<S>, name: &str) -> Result<(), ShopError> {
    outbox
        .run(async |uow| {
            raise(Event::new(name, Payload::json("1")?))?;
            tokio::task::yield_now().await;
            uow.nested(async |_| raise(Event::new(name, Payload::json("2")?)))
                .await?;
            Ok(())
        })
        .await
}

fn assert_send<T: Send>(future: T) -> T {
    future
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_of_work_run_in_handlers_and_spawned_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/shop.db", folder.path().display());
    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    sqlx::query("create table orders (id integer, name text)")
        .execute(store.pool())
        .await
        .unwrap();
    let outbox = Outbox::new(store.clone());
    let shop = Shop {
        outbox: outbox.clone(),
    };

    assert_eq!(serve(handler, shop.clone(), 1).await.unwrap(), "order 1");
    let task = {
        let shop = shop.clone();
        tokio::spawn(async move { shop.place(&mut Order { id: 2 }, &["new", "", "red"]).await })
    };
    assert_eq!(task.await.unwrap().unwrap(), 3);
    let task = tokio::spawn(async move {
        outbox
            .run(async |uow| {
                insert(uow, 3, "order").await?;
                uow.nested(async |uow| insert(uow, 3, "tag").await).await?;
                Order { id: 3 }.place()?;
                Ok::<_, ShopError>(())
            })
            .await
    });
    task.await.unwrap().unwrap();
    let mut order = Order { id: 4 };
    assert_send(shop.begin(&mut order)).await.unwrap();
    assert_send(shop.append(&order)).await.unwrap();
    assert_send(shop.place_patiently(&mut order)).await.unwrap();
    let two_at_once = async {
        let (mut a, mut b) = (Order { id: 5 }, Order { id: 6 });
        tokio::join!(shop.place(&mut a, &[]), shop.place(&mut b, &[]))
    };
    let in_time = tokio::time::timeout(Duration::from_secs(120), assert_send(two_at_once));
    let (a, b) = in_time.await.unwrap();
    assert_eq!((a.unwrap(), b.unwrap()), (1, 1));
    tokio::spawn(async move { generic(Outbox::new(MemoryStore::default()), "any").await })
        .await
        .unwrap()
        .unwrap();

    let events: Vec<(String, i64)> = sqlx::query_as(
        "select aggregate_id, count(*) from outbox_events group by aggregate_id order by aggregate_id",
    )
    .fetch_all(store.pool())
    .await
    .unwrap();
    let expected = [(1, 1), (2, 1), (3, 1), (4, 3), (5, 1), (6, 1)];
    assert_eq!(
        events,
        expected.map(|(id, count): (i64, i64)| (id.to_string(), count))
    );
}
