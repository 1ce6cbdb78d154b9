//! Whether the server can be reached at all, and what is wrong if it cannot.

use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPool};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use super::super::sql::error;
use crate::error::{Error, ErrorKind, Result};

/// The options of a URL that sqlx 0.9 knows.
pub(super) const OPTIONS: [&str; 14] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "charset",
    "collation",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "socket",
    "timezone",
    "time-zone",
];

/// How long a server may take to let us in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects once beside a pool that never did. The pool itself tries a server that is not there
/// for as long as it may, and then says nothing but "timed out".
pub(super) async fn check(pool: &MySqlPool) -> Result<()> {
    if pool.size() > 0 {
        return Ok(());
    }
    let options = pool.connect_options();
    match timeout(PATIENCE, options.connect()).await {
        Ok(Ok(connection)) => {
            // It has answered; how it says goodbye changes nothing.
            let _ = connection.close().await;
            Ok(())
        }
        Ok(Err(cause)) => Err(error(&format!("connecting to {}", server(&options)), cause)),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("{} does not answer within {PATIENCE:?}", server(&options)),
        )),
    }
}

fn server(options: &MySqlConnectOptions) -> String {
    match options.get_socket() {
        Some(file) => format!("MySQL at {}", file.display()),
        None => format!("MySQL at {}:{}", options.get_host(), options.get_port()),
    }
}
