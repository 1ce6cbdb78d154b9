//! Wake-ups, by NOTIFY and LISTEN.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::sync::{Notify, OnceCell};
use tokio::time::{sleep, timeout};

/// The pause before listening is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked whether two connections are two sessions.
const LOOKS: u32 = 3;

/// Hints on their way between those who append and those who relay.
#[derive(Debug, Default)]
pub(super) struct Hints {
    pub(super) given: Notify,
    pub(super) telling: AtomicBool,
    pub(super) listening: OnceCell<()>,
}

impl Hints {
    /// Passes NOTIFYs on until the pool is closed. The listener connects again by itself.
    ///
    /// Nobody listens behind a pooler that hands each transaction to another session: the session would
    /// go on listening for whoever has it next, and sqlx 0.9.0 takes a notification that it did not ask for
    /// for a broken answer to whatever is asked then.
    pub(super) fn listen(self: &Arc<Self>, pool: &PgPool, channel: &str) {
        let (pool, hints, channel) = (pool.clone(), Arc::downgrade(self), channel.to_owned());
        tokio::spawn(async move {
            while !pool.is_closed() && hints.strong_count() > 0 {
                match has_sessions(&pool.connect_options()).await {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::debug!(
                            "behind a pooler nobody is woken: polling finds the events"
                        );
                        return;
                    }
                    Err(_) => {
                        sleep(LISTEN_AGAIN).await;
                        continue;
                    }
                }
                let Ok(mut listener) = PgListener::connect_with(&pool).await else {
                    sleep(LISTEN_AGAIN).await;
                    continue;
                };
                if listener.listen(&channel).await.is_err() {
                    sleep(LISTEN_AGAIN).await;
                    continue;
                }
                loop {
                    match timeout(LISTEN_AGAIN, listener.try_recv()).await {
                        Ok(Ok(_)) => match hints.upgrade() {
                            Some(hints) => hints.given.notify_one(),
                            None => return,
                        },
                        Ok(Err(_)) => break,
                        Err(_) if hints.strong_count() == 0 => return,
                        Err(_) => {}
                    }
                }
            }
        });
    }
}

/// Whether each connection has a session of the server's for itself. A pooler in transaction mode gives
/// whoever asks next the session that was used last, or the one that has rested longest: the first shows when
/// two connections ask in turn, the second when one of them asks twice.
async fn has_sessions(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    let (mut one, mut two) = (options.connect().await?, options.connect().await?);
    let (mine, theirs) = (session(&mut one).await?, session(&mut two).await?);
    let mut own = mine != theirs;
    for _ in 0..LOOKS {
        own &= session(&mut two).await? == theirs && session(&mut one).await? == mine;
    }
    // Whatever becomes of them, it is known by now.
    let _ = (one.close().await, two.close().await);
    Ok(own)
}

async fn session(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    let row = connection.fetch_one(sqlx::raw_sql("select pg_backend_pid()"));
    row.await?.try_get(0)
}
