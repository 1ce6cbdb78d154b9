//! Every store against the one list of cases.

use bento_outbox::Store;
use bento_outbox::stores::{MemoryStore, MySqlStore, PostgresStore, SqliteStore, Tables};
use bento_outbox_conformance::servers::{shared_mariadb, shared_pgbouncer, shared_postgres};
use bento_outbox_conformance::store::Fresh;
use bento_outbox_conformance::store_suite;

store_suite!(memory, fresh_memory);
store_suite!(sqlite, fresh_sqlite);
store_suite!(postgres, fresh_postgres);
store_suite!(postgres_behind_a_pooler, fresh_pooled);
store_suite!(mysql, fresh_mysql);

async fn fresh_memory() -> Fresh<MemoryStore> {
    Fresh::new(MemoryStore::default())
}

async fn fresh_sqlite() -> Fresh<SqliteStore> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/outbox.db", folder.path().display());
    let store = SqliteStore::open_or_create(&url, Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    Fresh {
        store,
        keep: Box::new(folder),
    }
}

async fn fresh_postgres() -> Fresh<PostgresStore> {
    let database = shared_postgres().database().await;
    let store = PostgresStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    Fresh {
        store,
        keep: Box::new(database),
    }
}

/// In transaction mode, so nothing of a session is there in the next transaction.
async fn fresh_pooled() -> Fresh<PostgresStore> {
    let database = shared_postgres().database().await;
    let url = shared_pgbouncer().url_of(&database);
    let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
    store.migrate().await.unwrap();
    Fresh {
        store,
        keep: Box::new(database),
    }
}

async fn fresh_mysql() -> Fresh<MySqlStore> {
    let database = shared_mariadb().database().await;
    let store = MySqlStore::open(database.url(), Tables::default())
        .await
        .unwrap();
    store.migrate().await.unwrap();
    Fresh {
        store,
        keep: Box::new(database),
    }
}
