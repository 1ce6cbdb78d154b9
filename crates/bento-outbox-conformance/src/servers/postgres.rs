//! PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use super::account::{self, Account, run};
use super::{Recipe, Server, Signal, answers, find_program, workshop};

/// Settings for a server that need not survive a power cut, which a test machine's disk would pay
/// for. (A killed server loses nothing even with these: the kernel still has its writes.)
pub const FAST: &[(&str, &str)] = &[("fsync", "off"), ("full_page_writes", "off")];

/// A PostgreSQL server of the test's own, to be killed and paused at will.
pub type PostgresServer = Server<Postgres>;

/// The PostgreSQL server of this test process, [`FAST`]. Tests share it, so each works in a
/// [`database`](PostgresServer::database) of its own. The first caller waits for its start.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_postgres() -> &'static PostgresServer {
    static SHARED: OnceLock<PostgresServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(Postgres::new(FAST)))
}

/// A database that nobody else uses; it goes with its server.
#[derive(Clone, Debug)]
pub struct Database {
    name: String,
    url: String,
}

impl Database {
    /// Its random name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL that connects to it, as superuser.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Server<Postgres> {
    /// Starts a PostgreSQL server with its own settings, `fsync` on.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a PostgreSQL server with these settings on top, such as [`FAST`].
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::from_recipe(Postgres::new(settings)).await
    }

    /// Makes a fresh database.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn database(&self) -> Database {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let create = async {
            let mut connection = PgConnection::connect(&self.url()).await?;
            sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}")))
                .execute(&mut connection)
                .await?;
            connection.close().await
        };
        create
            .await
            .unwrap_or_else(|e| panic!("cannot make a database: {e}; {}", self.log_tail()));
        let url = format!("postgres://postgres@127.0.0.1:{}/{name}", self.port());
        Database { name, url }
    }
}

/// How PostgreSQL is started.
pub struct Postgres {
    programs: PathBuf,
    user: Option<Account>,
    settings: Vec<String>,
}

impl Postgres {
    fn new(settings: &[(&str, &str)]) -> Self {
        let settings = settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Self {
            programs: find_programs(),
            user: Account::lesser("postgres"),
            settings,
        }
    }

    fn command_as_user(&self, program: &str) -> Command {
        account::command(&self.programs.join(program), self.user)
    }

    /// A folder as `initdb` leaves it. That takes a second, copying it a tenth: so once a process.
    fn template(&self) -> &'static Path {
        static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
        TEMPLATE.get_or_init(|| {
            let folder = workshop::new_folder("postgres-template");
            account::hand_over(&folder, self.user);
            let mut initdb = self.command_as_user("initdb");
            initdb
                .current_dir(&folder)
                .args(["--username=postgres", "--auth=trust", "--no-sync"]);
            initdb
                .args(["--encoding=UTF8", "--locale=C", "--pgdata"])
                .arg(&folder);
            run(&mut initdb);
            folder
        })
    }
}

impl Recipe for Postgres {
    const NAME: &'static str = "postgres";
    /// A "fast" shutdown: rolls back what is open. SIGTERM would wait for all clients to leave.
    const STOP: Signal = Signal::INT;

    fn prepare(&self, folder: &Path) {
        account::hand_over(folder, self.user);
        run(Command::new("cp")
            .arg("-a")
            .arg(self.template())
            .arg(folder.join("data")));
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let mut command = self.command_as_user("postgres");
        command
            .arg("-D")
            .arg(folder.join("data"))
            .arg("-k")
            .arg(folder);
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-c",
            "max_connections=200",
        ]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        command
    }

    /// Opens a session as user postgres: `R` lets it in, where a server that still starts says `E`.
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

/// The folder that has both `initdb` and `postgres`: on PATH, or Debian's newest.
fn find_programs() -> PathBuf {
    let version = |folder: &PathBuf| folder.file_name()?.to_str()?.parse::<u32>().ok();
    let mut installed: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    installed.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    let folders: Vec<PathBuf> = installed
        .into_iter()
        .map(|folder| folder.join("bin"))
        .collect();
    let initdb = find_program("initdb", &folders, "postgresql");
    initdb.parent().map(Path::to_owned).unwrap_or_default()
}
