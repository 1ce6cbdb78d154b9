//! Whether the server can be reached at all, and what is wrong if it cannot.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Connection};
use tokio::time::timeout;

use super::super::sql::error;
use crate::error::{Error, ErrorKind, Result};

/// The options of a URL that sqlx 0.9 knows.
pub(super) const OPTIONS: [&str; 19] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "options[",
];

/// How long a server may take to let us in.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects once beside a pool that never did. The pool itself tries a server that is not there
/// for as long as it may, and then says nothing but "timed out".
pub(super) async fn check(pool: &PgPool) -> Result<()> {
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

fn server(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(folder) => format!("PostgreSQL in {}", folder.display()),
        None => format!(
            "PostgreSQL at {}:{}",
            options.get_host(),
            options.get_port()
        ),
    }
}
