//! Statements that are dropped while sqlx prepares them.

use std::time::Duration;

use bento_outbox::stores::MySqlStore;
use bento_outbox::{Filter, Page, Store as _};
use bento_outbox_conformance::faults::{Proxy, Way};
use bento_outbox_conformance::servers::shared_mariadb;
use sqlx::MySqlPool;
use sqlx::mysql::MySqlPoolOptions;
use tokio::time::timeout;

/// So long a connection is waited for that is lost, and one that is not: it was given back, so it is there
/// at once or never.
const BRIEF: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the one connection of a pool is not to be had any more, when the statement of a read that names
/// all columns was dropped at some moment while its answer came in pieces.
async fn loses_its_connection(options: fn() -> MySqlPoolOptions, patience: Duration) -> bool {
    let database = shared_mariadb().database().await;
    let direct = MySqlStore::open(database.url(), Default::default());
    direct.await.unwrap().migrate().await.unwrap();
    let proxy = Proxy::before(database.url()).await;
    let url = proxy.url_of(database.url());
    let connect = async || {
        let pool = options().max_connections(1).acquire_timeout(patience);
        let pool = pool.connect(&url).await.unwrap();
        proxy.segments(Way::ToClient, 64);
        proxy.delay(Way::ToClient, Duration::from_millis(1));
        MySqlStore::new(pool)
    };
    let is_there = async |pool: &MySqlPool| pool.acquire().await.is_ok();
    let (filter, page) = (Filter::default(), Page::default());
    for millis in (2..32).step_by(3) {
        proxy.heal();
        let store = connect().await;
        let read = timeout(Duration::from_millis(millis), store.events(&filter, &page));
        drop(read.await);
        if !is_there(store.pool()).await {
            return true;
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_of_our_options_gets_each_connection_back() {
    assert!(
        loses_its_connection(MySqlPoolOptions::new, BRIEF).await,
        "sqlx keeps its place now: the options are of no use any more"
    );
    assert!(!loses_its_connection(MySqlStore::pool_options, PATIENCE).await);
}
