//! The rights that the book gives a relay and a writer are enough, and no more than they need.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bento_outbox::publishers::MemoryPublisher;
use bento_outbox::stores::{PostgresStore, Tables};
use bento_outbox::{
    ErrorKind, Event, Outbox, Payload, Projector, ProjectorSettings, Publisher as _, Store as _,
    raise,
};
use bento_outbox_conformance::servers::{Database, shared_postgres};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

/// The SQL under that heading of the book's page on deploying.
fn of_the_book(heading: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/deploying.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once(heading).unwrap();
    let (_, sql) = section.split_once("```sql\n").unwrap();
    sql.split_once("```").unwrap().0.to_string()
}

/// The outbox of whoever owns the database.
async fn migrated(database: &Database) -> PostgresStore {
    let owner = PostgresStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    owner.migrate().await.unwrap();
    owner
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_book_grants_is_enough_for_a_relay() {
    let database = shared_postgres().database().await;
    migrated(&database).await;
    let role = format!("relay_{}", Uuid::now_v7().simple());
    let grants =
        of_the_book("### Rights in the database").replace("outbox_relay;", &format!("{role};"));
    let grants = grants.replace("role outbox_relay ", &format!("role {role} "));
    assert!(grants.matches(&role).count() >= 4, "{grants}");
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(grants))
        .execute(&mut connection)
        .await
        .unwrap();

    let url = database.url().replace("//postgres@", &format!("//{role}@"));
    let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
    store.check().await.unwrap();
    assert_eq!(
        store.inspect().await.unwrap().forbidden,
        Vec::<String>::new()
    );
    // A writer with the rights of the relay, so that one role shows both.
    let outbox = Outbox::new(store.clone());
    outbox
        .run(async |_| raise(Event::new("a", Payload::json("1")?)))
        .await
        .unwrap();
    let settings = ProjectorSettings {
        retention: Some(std::time::Duration::from_nanos(1)),
        ..ProjectorSettings::default()
    };
    let bus = MemoryPublisher::default();
    bus.check().await.unwrap();
    let projector = Projector::new(Arc::new(store.clone()), Arc::new(bus), settings);
    assert_eq!(projector.run_once().await.unwrap().sent, 1);
    projector.run_once().await.unwrap();
    projector.release().await.unwrap();
    store.status().await.unwrap();
    store.backlog().await.unwrap();
    for forbidden in ["drop table outbox", "create table other ()"] {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let tried = sqlx::query(forbidden).execute(&mut connection).await;
        assert!(tried.is_err(), "{forbidden}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_book_says_of_writers_is_enough_for_them() {
    let database = shared_postgres().database().await;
    let owner = migrated(&database).await;
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let id = Uuid::now_v7().simple();
    let roles = format!(
        "create role service_{id} login; grant select, insert, update on outbox to service_{id};
         grant select on outbox_pauses to service_{id};
         create role writer_{id} login; grant insert on outbox to writer_{id};"
    );
    sqlx::raw_sql(AssertSqlSafe(roles))
        .execute(&mut connection)
        .await
        .unwrap();
    let as_role = |role: &str| {
        database
            .url()
            .replace("//postgres@", &format!("//{role}_{id}@"))
    };

    // By the library, published right after the commit.
    let store = PostgresStore::open(&as_role("service"), Tables::default())
        .await
        .unwrap();
    let outbox = Outbox::new(store).publish_with(MemoryPublisher::default());
    outbox
        .run(async |_| raise(Event::new("a", Payload::json("1")?)))
        .await
        .unwrap();
    outbox.flushed().await;

    // By hand.
    let mut writer = PgConnection::connect(&as_role("writer")).await.unwrap();
    sqlx::query("insert into outbox (type, payload) values ('b', '1')")
        .execute(&mut writer)
        .await
        .unwrap();
    let total = owner.status().await.unwrap().remove(0);
    assert_eq!((total.sent, total.new), (1, 1));

    // Who has too few is told so, and where the grants are.
    let poor = PostgresStore::open(&as_role("writer"), Tables::default())
        .await
        .unwrap();
    let refused = poor.status().await.unwrap_err().report();
    assert!(
        refused.contains("is not granted to the user of the database URL")
            && refused.contains("permission denied for"),
        "{refused}"
    );
    let forbidden = poor.inspect().await.unwrap().forbidden;
    for right in ["select on ", "outbox_migrations"] {
        assert!(
            forbidden.iter().any(|it| it.contains(right)),
            "{forbidden:?}"
        );
    }
}

/// To whom row-level security shows no rows, an outbox is empty, and a relay would never find out.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_would_silently_see_nothing_does_not_start() {
    let database = shared_postgres().database().await;
    let owner = migrated(&database).await;
    Outbox::new(owner.clone())
        .run(async |_| raise(Event::new("a", Payload::json("1")?)))
        .await
        .unwrap();
    let mut connection = PgConnection::connect(database.url()).await.unwrap();
    let role = format!("relay_{}", Uuid::now_v7().simple());
    let sql = format!(
        "create role {role} login; grant all on all tables in schema public to {role};
         alter table outbox enable row level security"
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();

    let url = database.url().replace("//postgres@", &format!("//{role}@"));
    let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
    let hidden = store.inspect().await.unwrap().hidden;
    assert!(
        hidden.len() == 1 && hidden[0].contains("outbox"),
        "{hidden:?}"
    );
    let relay = |store: &PostgresStore| {
        let (store, bus) = (
            Arc::new(store.clone()),
            Arc::new(MemoryPublisher::default()),
        );
        Projector::new(store, bus, ProjectorSettings::default())
    };
    let refused = relay(&store).run(std::future::pending()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidSetting);
    assert!(
        refused.to_string().contains("row-level security"),
        "{refused}"
    );

    let bypass = format!("alter role {role} bypassrls");
    sqlx::raw_sql(AssertSqlSafe(bypass))
        .execute(&mut connection)
        .await
        .unwrap();
    let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
    assert_eq!(relay(&store).run_once().await.unwrap().sent, 1);
}
