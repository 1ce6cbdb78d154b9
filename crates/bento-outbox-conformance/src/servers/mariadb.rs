//! MariaDB, which speaks for MySQL too.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use uuid::Uuid;

use super::account::{self, Account, run};
use super::{Recipe, Server, find_program, workshop};

/// Settings for a server that need not survive a power cut, which a test machine's disk would pay
/// for. (A killed server loses nothing even with these: the kernel still has its writes.)
pub const FAST: &[(&str, &str)] = &[
    ("innodb_flush_method", "nosync"),
    ("innodb_doublewrite", "off"),
];

/// A MariaDB server of the test's own, to be killed and paused at will.
pub type MariaDbServer = Server<MariaDb>;

/// The MariaDB server of this test process, [`FAST`]. Tests share it, so each works in a
/// [`database`](MariaDbServer::database) of its own. The first caller waits for its start.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_mariadb() -> &'static MariaDbServer {
    static SHARED: OnceLock<MariaDbServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(MariaDb::new(FAST)))
}

/// A database that nobody else uses; it goes with its server.
#[derive(Clone, Debug)]
pub struct MariaDbDatabase {
    name: String,
    url: String,
}

impl MariaDbDatabase {
    /// Its random name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL that a client connects to, as a user with all rights.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl MariaDbServer {
    /// Starts a MariaDB server with its own settings, which sync each commit.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a MariaDB server with these settings on top, such as [`FAST`].
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::from_recipe(MariaDb::new(settings)).await
    }

    /// Makes a fresh database.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn database(&self) -> MariaDbDatabase {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let create = async {
            let mut connection = MySqlConnection::connect(&self.url()).await?;
            sqlx::raw_sql(AssertSqlSafe(format!("create database {name}")))
                .execute(&mut connection)
                .await?;
            connection.close().await
        };
        create
            .await
            .unwrap_or_else(|e| panic!("cannot make a database: {e}; {}", self.log_tail()));
        let url = format!("mysql://root@127.0.0.1:{}/{name}", self.port());
        MariaDbDatabase { name, url }
    }
}

/// How MariaDB is started.
pub struct MariaDb {
    server: PathBuf,
    user: Option<Account>,
    settings: Vec<String>,
}

impl MariaDb {
    fn new(settings: &[(&str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|(name, value)| format!("--{name}={value}"))
            .collect();
        Self {
            server: find("mariadbd"),
            user: Account::lesser("mysql"),
            settings,
        }
    }

    /// A folder as `mariadb-install-db` leaves it. That takes a second, copying it a tenth: so once
    /// a process.
    fn template(&self) -> &'static Path {
        static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
        TEMPLATE.get_or_init(|| {
            let folder = workshop::new_folder("mariadb-template");
            account::hand_over(&folder, self.user);
            let mut install = account::command(&find("mariadb-install-db"), self.user);
            install
                .current_dir(&folder)
                .args(["--no-defaults", "--auth-root-authentication-method=normal"])
                .args(["--skip-test-db", "--skip-name-resolve", LOG_SIZE])
                .arg(format!("--datadir={}", folder.display()));
            run(&mut install);
            folder
        })
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A tenth of the default: it is copied for each server.
const LOG_SIZE: &str = "--innodb-log-file-size=10M";

impl Recipe for MariaDb {
    const NAME: &'static str = "mariadb";

    fn prepare(&self, folder: &Path) {
        account::hand_over(folder, self.user);
        run(Command::new("cp")
            .arg("-a")
            .arg(self.template())
            .arg(folder.join("data")));
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let mut command = account::command(&self.server, self.user);
        command
            .arg("--no-defaults")
            .arg(format!("--datadir={}", folder.join("data").display()))
            .arg(format!("--socket={}", folder.join("socket").display()))
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .arg(format!("--port={port}"))
            .args(["--bind-address=127.0.0.1", "--skip-name-resolve"])
            .args([
                "--max-connections=200",
                "--innodb-buffer-pool-size=64M",
                LOG_SIZE,
            ])
            .args(&self.settings);
        command
    }

    /// A server that is ready greets: after the length of its greeting come a 0, its number, and the
    /// version of the protocol.
    fn is_ready(&self, port: u16) -> bool {
        let greeting = || -> io::Result<[u8; 5]> {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&address, SECOND)?;
            stream.set_read_timeout(Some(SECOND))?;
            let mut heard = [0; 5];
            stream.read_exact(&mut heard)?;
            Ok(heard)
        };
        greeting().is_ok_and(|heard| heard[3..] == [0, 10])
    }

    fn url(&self, port: u16) -> String {
        format!("mysql://root@127.0.0.1:{port}/mysql")
    }
}

/// Daemons are not on everybody's `PATH`.
fn find(program: &str) -> PathBuf {
    let folders = ["/usr/sbin", "/usr/local/sbin", "/usr/libexec"].map(PathBuf::from);
    find_program(program, &folders, "mariadb-server")
}
