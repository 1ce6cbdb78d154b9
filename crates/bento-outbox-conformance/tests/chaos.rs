//! Real relays and real writing services under real faults, and a checker that shares no code with
//! them: what a ledger table says was committed against what a raw consumer saw.
//!
//! The short form runs with the other tests. `cargo x chaos --minutes N --seed S` runs the long one.

mod checker;
mod nemesis;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use bento_outbox_conformance::faults::Proxy;
use bento_outbox_conformance::servers::{MariaDbServer, NatsServer, PostgresServer, Signal};
use rustix::process::{Pid, kill_process};

use self::checker::Verdict;
use self::nemesis::Nemesis;

/// How long partitions and births are leased, and a bus is waited for: short, so that take-overs happen often.
const LEASE: Duration = Duration::from_secs(2);

/// The same where nothing is to happen: a machine that keeps a process from running for seconds is a fault as well.
const LONG_LEASE: Duration = Duration::from_secs(60);

/// The most events that one process has under way: a relay's batch, or a writer's slots.
const IN_FLIGHT: usize = 50;

/// So long what was committed may take to arrive once all is well again.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_loses_invents_and_inverts_nothing() {
    World::start(Database::Postgres, LEASE)
        .await
        .suffer(Duration::from_secs(24), 1)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_loses_invents_and_inverts_nothing() {
    World::start(Database::Mysql, LEASE)
        .await
        .suffer(Duration::from_secs(24), 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_loses_invents_and_inverts_nothing() {
    World::start(Database::Sqlite, LEASE)
        .await
        .suffer(Duration::from_secs(14), 2)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_faults_each_event_comes_once() {
    let verdict = World::start(Database::Postgres, LONG_LEASE)
        .await
        .live(Duration::from_secs(4))
        .await;
    assert_eq!(verdict.duplicates, 0, "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the long form: cargo x chaos"]
async fn long() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let minutes = number("CHAOS_MINUTES").unwrap_or(10);
    let seed = number("CHAOS_SEED").unwrap_or(1);
    let databases = match std::env::var("CHAOS_DATABASE").as_deref() {
        Ok("mysql") => vec![Database::Mysql],
        Ok("postgres") => vec![Database::Postgres],
        Ok("sqlite") => vec![Database::Sqlite],
        _ => vec![Database::Postgres, Database::Mysql, Database::Sqlite],
    };
    for database in databases {
        World::start(database, LEASE)
            .await
            .suffer(Duration::from_secs(60 * minutes), seed)
            .await;
    }
}

/// The body of a writing service: this test program, started again as a process of its own.
#[test]
#[ignore = "a part of the chaos tests"]
fn a_writing_service() {
    writer::serve();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Database {
    Mysql,
    Postgres,
    Sqlite,
}

impl Database {
    /// What the driver sends to commit.
    fn commit(self) -> &'static [u8] {
        match self {
            Self::Mysql => b"; commit;",
            Self::Postgres | Self::Sqlite => b"COMMIT",
        }
    }
}

/// The database's server, where it has one.
enum Server {
    None,
    MariaDb(MariaDbServer),
    Postgres(PostgresServer),
}

impl Server {
    /// Crashes it, and brings it back after a while.
    async fn crash(&self, away: Duration) {
        match self {
            Self::None => {}
            Self::MariaDb(server) => {
                server.kill();
                tokio::time::sleep(away).await;
                server.restart().await;
            }
            Self::Postgres(server) => {
                server.kill();
                tokio::time::sleep(away).await;
                server.restart().await;
            }
        }
    }
}

/// Everything that takes part.
struct World {
    kind: Database,
    lease: Duration,
    server: Server,
    nats: NatsServer,
    to_database: Option<Proxy>,
    to_bus: Proxy,
    folder: tempfile::TempDir,
    /// Where the checker and the writing services' tables are.
    database_url: String,
    relays: Vec<Option<Process>>,
    writers: Vec<Option<Process>>,
    started: usize,
}

impl World {
    async fn start(kind: Database, lease: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats = NatsServer::start().await;
        let to_bus = Proxy::before(&nats.url()).await;
        let context = jetstream::new(async_nats::connect(nats.url()).await.unwrap());
        let stream = jetstream::stream::Config {
            name: "CHAOS".into(),
            subjects: vec!["chaos.>".into()],
            // As good as none: the checker wants to see what was sent twice.
            duplicate_window: Duration::from_millis(100),
            ..Default::default()
        };
        context.create_stream(stream).await.unwrap();
        let (server, to_database, database_url) = match kind {
            Database::Mysql => {
                let server = MariaDbServer::start().await;
                let url = server.database().await.url().to_owned();
                (
                    Server::MariaDb(server),
                    Some(Proxy::before(&url).await),
                    url,
                )
            }
            Database::Postgres => {
                let server = PostgresServer::start().await;
                let url = server.database().await.url().to_owned();
                (
                    Server::Postgres(server),
                    Some(Proxy::before(&url).await),
                    url,
                )
            }
            Database::Sqlite => (
                Server::None,
                None,
                format!("sqlite://{}/outbox.db", folder.path().display()),
            ),
        };
        let mut world = Self {
            kind,
            lease,
            server,
            nats,
            to_database,
            to_bus,
            folder,
            database_url,
            relays: Vec::new(),
            writers: Vec::new(),
            started: 0,
        };
        let migrated = world.program().arg("migrate").status().unwrap();
        assert!(migrated.success());
        checker::prepare(world.kind, &world.database_url).await;
        for _ in 0..3 {
            world.relays.push(None);
            world.writers.push(None);
        }
        world.restart_the_fallen();
        world
    }

    /// Lives through faults, heals, and is judged.
    async fn suffer(mut self, time: Duration, seed: u64) -> Verdict {
        let end = Instant::now() + time;
        let mut nemesis = Nemesis::new(seed);
        while Instant::now() < end {
            nemesis.strike(&mut self).await;
            self.restart_the_fallen();
            tokio::time::sleep(nemesis.pause()).await;
        }
        nemesis.heal(&mut self).await;
        let verdict = self.live(Duration::from_secs(1)).await;
        let bound = (nemesis.bites() + 1) * 2 * IN_FLIGHT;
        eprintln!(
            "chaos: seed {seed}: {verdict}; {nemesis}; at most {bound} duplicates were to be expected"
        );
        assert!(
            verdict.duplicates <= bound,
            "{verdict}: more than was in flight"
        );
        assert!(nemesis.bites() > 0, "no fault bit");
        verdict
    }

    /// Lives without faults for a while, lets the writers end, waits until all is sent, and judges.
    async fn live(mut self, time: Duration) -> Verdict {
        self.restart_the_fallen();
        tokio::time::sleep(time).await;
        for writer in self.writers.iter_mut().flatten() {
            assert!(writer.finish(), "a writing service did not end");
        }
        let patience = Instant::now() + PATIENCE;
        while checker::unsent(self.kind, &self.database_url).await > 0 {
            assert!(
                Instant::now() < patience,
                "the backlog does not end\n{}",
                self.logs()
            );
            self.restart_the_fallen_relays();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for relay in self.relays.iter_mut().flatten() {
            relay.signal(Signal::TERM);
            assert!(
                relay.wait(PATIENCE),
                "a relay did not end\n{}",
                self.folder.path().display()
            );
        }
        let verdict = checker::judge(self.kind, &self.database_url, &self.nats.url()).await;
        assert!(verdict.is_sound(), "{verdict}\n{}", self.logs());
        assert!(
            verdict.committed > 20,
            "{verdict}: too little happened\n{}",
            self.logs()
        );
        verdict
    }

    fn restart_the_fallen(&mut self) {
        self.restart_the_fallen_relays();
        for at in 0..self.writers.len() {
            if self.writers[at]
                .as_mut()
                .is_none_or(|writer| !writer.lives())
            {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args([
                        "--exact",
                        "chaos::a_writing_service",
                        "--ignored",
                        "--nocapture",
                    ])
                    .env("CHAOS_DATABASE_URL", self.url_for_processes())
                    .env("CHAOS_BUS_URL", self.bus_url())
                    .env("CHAOS_LEASE_SECONDS", self.lease.as_secs().to_string())
                    .env("CHAOS_SEED", self.started.to_string());
                self.writers[at] = Some(self.process("writer", command));
            }
        }
    }

    fn restart_the_fallen_relays(&mut self) {
        for at in 0..self.relays.len() {
            if self.relays[at].as_mut().is_none_or(|relay| !relay.lives()) {
                let mut command = self.program();
                command.arg("run");
                self.relays[at] = Some(self.process("relay", command));
            }
        }
    }

    fn process(&mut self, name: &str, mut command: Command) -> Process {
        self.started += 1;
        let log = self
            .folder
            .path()
            .join(format!("{name}-{}.log", self.started));
        let output = File::create(&log).unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        Process {
            child: command.spawn().unwrap(),
        }
    }

    /// `bento-outbox` with settings that make trouble likely.
    fn program(&self) -> Command {
        let mut command = Command::new(program());
        command
            .current_dir(self.folder.path())
            .env("OUTBOX_DATABASE_URL", self.url_for_processes())
            .env("OUTBOX_BUS_URL", self.bus_url())
            .env("OUTBOX_LEASE_TTL", format!("{}s", self.lease.as_secs()))
            .env("OUTBOX_BATCH_SIZE", IN_FLIGHT.to_string())
            .env("OUTBOX_RETRY_MULTIPLIER", "50ms")
            .env("OUTBOX_ADMIN_ADDR", "off");
        command
    }

    fn bus_url(&self) -> String {
        let url = self.to_bus.url_of(&self.nats.url());
        format!("{url}?timeout={}s", self.lease.as_secs())
    }

    fn url_for_processes(&self) -> String {
        match &self.to_database {
            Some(proxy) => proxy.url_of(&self.database_url),
            None => self.database_url.clone(),
        }
    }

    /// The last lines that the processes wrote.
    fn logs(&self) -> String {
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        logs.iter().map(|path| tail(path)).collect()
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("--- {}\n{}\n", path.display(), lines.join("\n"))
}

/// A relay or a writing service. Killed when dropped.
struct Process {
    child: Child,
}

impl Process {
    fn signal(&self, signal: Signal) {
        // One that has ended already needs no signal.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Tells a writing service to end in order, by the end of its standard input; says whether it did. A commit in
    /// doubt takes it half a minute.
    fn finish(&mut self) -> bool {
        drop(self.child.stdin.take());
        self.wait(PATIENCE)
    }

    fn wait(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while self.lives() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }
}

/// The program that the same build made beside this test.
pub(crate) fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let program = this
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("bento-outbox");
    assert!(
        program.exists(),
        "{} is missing: cargo build -p bento-outbox-cli",
        program.display()
    );
    program
}
