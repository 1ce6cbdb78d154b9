//! PgBouncer, a pooler between services and PostgreSQL, in transaction mode: from one transaction to
//! the next a client's statements run on whichever connection is free.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::account::{self, Account, run};
use super::postgres::{Database, shared_postgres};
use super::{Recipe, Server, Signal, answers, find_program, in_cache};

/// A pooler of the test's own, to be killed and paused at will.
pub type PgBouncerServer = Server<PgBouncer>;

/// The pooler of this test process, before [`shared_postgres`].
///
/// # Panics
///
/// If it does not come up.
pub fn shared_pgbouncer() -> &'static PgBouncerServer {
    static SHARED: OnceLock<PgBouncerServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(PgBouncer::new(shared_postgres().port())))
}

impl Server<PgBouncer> {
    /// The URL that reaches a database of the server through the pooler.
    #[must_use]
    pub fn url_of(&self, database: &Database) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{}",
            self.port(),
            database.name()
        )
    }
}

/// How PgBouncer is started.
pub struct PgBouncer {
    /// The folder that `cargo x test` unpacked where the system's package is too old.
    unpacked: Option<PathBuf>,
    user: Option<Account>,
    server: u16,
}

impl PgBouncer {
    fn new(server: u16) -> Self {
        let unpacked = in_cache("pgbouncer-trixie");
        Self {
            unpacked: unpacked.is_dir().then_some(unpacked),
            user: Account::lesser("postgres"),
            server,
        }
    }
}

impl Recipe for PgBouncer {
    const NAME: &'static str = "pgbouncer";
    const STOP: Signal = Signal::INT;

    fn prepare(&self, folder: &Path) {
        account::hand_over(folder, self.user);
        if let Some(unpacked) = &self.unpacked {
            // Whom it runs as cannot read the cache of whom we run as.
            run(Command::new("cp")
                .arg("-a")
                .arg(unpacked)
                .arg(folder.join("program")));
        }
        let write = |name: &str, text: &str| {
            fs::write(folder.join(name), text)
                .unwrap_or_else(|e| panic!("cannot write {name}: {e}"));
        };
        write("users.txt", "\"postgres\" \"\"\n");
        // Each test has a database, and so a pool, of its own: those that are done must be let go.
        write(
            "pgbouncer.ini",
            &format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\npool_mode = transaction\n\
                 max_prepared_statements = 200\ndefault_pool_size = 10\nserver_round_robin = 1\n\
                 server_idle_timeout = 1\nlisten_addr = 127.0.0.1\n\
                 auth_type = trust\nauth_file = users.txt\nunix_socket_dir =\n\
                 ignore_startup_parameters = extra_float_digits\n",
                self.server
            ),
        );
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let program = match &self.unpacked {
            Some(_) => folder.join("program/start"),
            None => find_program("pgbouncer", &["/usr/sbin".into()], "pgbouncer"),
        };
        // The port is chosen after the file is written, and no option has it.
        let mut command = account::command(Path::new("sh"), self.user);
        let script = "grep -v ^listen_port pgbouncer.ini > started.ini && \
                      echo \"listen_port = $1\" >> started.ini && exec \"$0\" started.ini";
        command
            .arg("-c")
            .arg(script)
            .arg(program)
            .arg(port.to_string());
        command
    }

    /// Opens a session as user postgres: `R` lets it in.
    fn is_ready(&self, port: u16) -> bool {
        answers(
            port,
            b"\x00\x00\x00\x17\x00\x03\x00\x00user\x00postgres\x00\x00",
            b"R",
        )
    }

    fn url(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/postgres")
    }
}
