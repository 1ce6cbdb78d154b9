//! Real servers for tests: child processes on free loopback ports, each in a folder of its own.
//!
//! A [`Server`] is killed and its folder removed when it is dropped, and also when the test process
//! ends in any other way, `kill -9` included. In between it can be crashed ([`Server::kill`]),
//! stopped as an operator would ([`Server::stop`]), brought back on the same port and data
//! ([`Server::restart`]) and frozen ([`Server::pause`]).
//!
//! What differs from one server program to the next is its [`Recipe`]: one short file each.
//!
//! Everything here panics with a full sentence where it cannot do its work, because a test that
//! silently runs without its server proves nothing.

mod account;
mod bucket;
pub mod kafka;
pub mod mariadb;
pub mod nats;
pub mod pgbouncer;
pub mod postgres;
pub mod rabbitmq;
pub mod receiver;
pub mod redis;
mod workshop;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use uuid::Uuid;

pub use kafka::{KafkaServer, shared_kafka};
pub use mariadb::{MariaDbDatabase, MariaDbServer, shared_mariadb};
pub use nats::{NatsServer, shared_nats};
pub use pgbouncer::{PgBouncerServer, shared_pgbouncer};
pub use postgres::{Database, PostgresServer, shared_postgres};
pub use rabbitmq::{RabbitMqServer, shared_rabbitmq};
pub use receiver::ReceiverServer;
pub use redis::{RedisServer, shared_redis};
pub use rustix::process::Signal;

/// How long a server may take to start or to stop: far more than it needs, since CI machines stall.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often a waiting harness looks again.
const GLANCE: Duration = Duration::from_millis(10);

/// How one server program is set up, started and asked whether it is ready.
pub trait Recipe: Send + Sync + 'static {
    /// What messages and folders call the server, in lower case.
    const NAME: &'static str;

    /// The signal that asks for an orderly stop which does not wait for clients to leave.
    const STOP: Signal = Signal::TERM;

    /// Fills the new, empty `folder` with what the server must find at its first start.
    fn prepare(&self, folder: &Path);

    /// The command that runs the server in the foreground on 127.0.0.1:`port`.
    ///
    /// The harness adds the working directory (`folder`) and sends the output to a log. Every
    /// process of the server must keep its working directory inside `folder`: this is how the
    /// harness knows them.
    fn command(&self, folder: &Path, port: u16) -> Command;

    /// Whether the server answers a client by now; [`answers`] helps.
    fn is_ready(&self, port: u16) -> bool;

    /// The URL that a client connects to.
    fn url(&self, port: u16) -> String;
}

/// A running server, or one that was killed and can be started again.
///
/// The methods that take a moment are `async` and wait off the runtime, so that the load a test
/// has going in other tasks sees the fault and does not stand still with it.
pub struct Server<R: Recipe> {
    inner: Arc<Inner<R>>,
}

struct Inner<R: Recipe> {
    recipe: R,
    folder: PathBuf,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl<R: Recipe> Server<R> {
    /// Starts a server and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not come up, with the end of its log.
    pub async fn from_recipe(recipe: R) -> Self {
        off_runtime(move || Self::from_recipe_blocking(recipe)).await
    }

    /// Like [`from_recipe`](Self::from_recipe), for callers without a runtime.
    ///
    /// # Panics
    ///
    /// If it does not come up, with the end of its log.
    pub fn from_recipe_blocking(recipe: R) -> Self {
        let folder = workshop::new_folder(R::NAME);
        recipe.prepare(&folder);
        for _ in 0..5 {
            let port = free_port();
            match spawn(&recipe, &folder, port) {
                Ok(child) => {
                    let child = Mutex::new(Some(child));
                    let inner = Inner {
                        recipe,
                        folder,
                        port,
                        child,
                    };
                    return Self {
                        inner: Arc::new(inner),
                    };
                }
                // Somebody took the port between our look and the server's.
                Err(why) if why.to_lowercase().contains("address already in use") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!(
            "{} found no free port on 127.0.0.1 in five attempts",
            R::NAME
        );
    }

    /// The URL that a client connects to; the same for the server's whole life.
    #[must_use]
    pub fn url(&self) -> String {
        self.inner.recipe.url(self.inner.port)
    }

    /// The port on 127.0.0.1; the same for the server's whole life.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// The folder that holds the server's data and its log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    fn recipe(&self) -> &R {
        &self.inner.recipe
    }

    /// The last lines that the server logged since its last start.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.inner.folder)
    }

    /// Whether the server's process is there; a paused one is.
    #[must_use]
    pub fn is_running(&self) -> bool {
        match &mut *self.inner.child() {
            Some(child) => !has_ended(child),
            None => false,
        }
    }

    /// Crashes the server: `kill -9` to all its processes, and back when none is left.
    pub fn kill(&self) {
        if let Some(mut child) = self.inner.child().take() {
            kill_all(&mut child, &self.inner.folder);
        }
    }

    /// Stops the server in order, as an operator's stop does.
    ///
    /// # Panics
    ///
    /// If it does not end within three minutes, for example because it is paused.
    pub async fn stop(&self) {
        let inner = Arc::clone(&self.inner);
        off_runtime(move || inner.stop()).await;
    }

    /// Starts the server on the same port and data, and waits until it answers. Kills it first if
    /// it runs.
    ///
    /// # Panics
    ///
    /// If it does not come up, with the end of its log.
    pub async fn restart(&self) {
        self.kill();
        let inner = Arc::clone(&self.inner);
        off_runtime(move || inner.start()).await;
    }

    /// Freezes the server (SIGSTOP), and back when it stands still: its connections stay open, the
    /// kernel still accepts new ones, and nobody answers.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn pause(&self) {
        self.inner.pause();
    }

    /// Lets a paused server go on (SIGCONT) as if nothing had been.
    ///
    /// # Panics
    ///
    /// If the server does not run.
    pub fn resume(&self) {
        self.inner.resume();
    }
}

impl<R: Recipe> Inner<R> {
    /// The child, whether or not a test panicked while it held the lock: its process must go.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) {
        let child =
            spawn(&self.recipe, &self.folder, self.port).unwrap_or_else(|why| panic!("{why}"));
        *self.child() = Some(child);
    }

    fn stop(&self) {
        let Some(mut child) = self.child().take() else {
            return;
        };
        signal_main(&child, R::STOP);
        let ended = wait_until(PATIENCE, || has_ended(&mut child));
        kill_all(&mut child, &self.folder);
        assert!(
            ended,
            "{} did not stop within {PATIENCE:?}; {}",
            R::NAME,
            log_tail(&self.folder)
        );
    }

    /// Waits until the processes really stand still: a signal takes effect when its process next
    /// runs, and on a busy machine a server's other threads go on answering until then.
    fn pause(&self) {
        let mut child = self.child();
        let child = self.expect_running(&mut child);
        let all_stopped = |pids: &[Pid]| pids.iter().all(|pid| workshop::is_stopped(*pid));
        // The main process first: once it stands still, it forks none that we would miss.
        signal_main(child, Signal::STOP);
        let stopped = wait_until(PATIENCE, || all_stopped(&[Pid::from_child(child)]));
        signal_others(child, &self.folder, Signal::STOP);
        let stopped = stopped
            && wait_until(PATIENCE, || {
                all_stopped(&workshop::processes_in(&self.folder))
            });
        assert!(stopped, "{} does not heed SIGSTOP", R::NAME);
    }

    fn resume(&self) {
        let mut child = self.child();
        let child = self.expect_running(&mut child);
        signal_others(child, &self.folder, Signal::CONT);
        signal_main(child, Signal::CONT);
    }

    fn expect_running<'a>(&self, child: &'a mut Option<Child>) -> &'a Child {
        let running = child
            .as_mut()
            .and_then(|child| (!has_ended(child)).then_some(child));
        running.unwrap_or_else(|| panic!("{} does not run; {}", R::NAME, log_tail(&self.folder)))
    }
}

impl<R: Recipe> Drop for Inner<R> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            // SIGQUIT ends every server at once too, but PostgreSQL then gives back its shared
            // memory, which after kill -9 would stay on the machine until it boots again.
            signal_main(&child, Signal::QUIT);
            signal_main(&child, Signal::CONT);
            signal_others(&child, &self.folder, Signal::CONT);
            wait_until(Duration::from_secs(2), || has_ended(&mut child));
            kill_all(&mut child, &self.folder);
        }
        // What cannot be removed now, the watchdog removes at the end.
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Starts the server's process and waits until it answers; else says why it does not, with its log.
fn spawn<R: Recipe>(recipe: &R, folder: &Path, port: u16) -> Result<Child, String> {
    let log = open_log(folder).unwrap_or_else(|e| panic!("no log in {}: {e}", folder.display()));
    let mut command = recipe.command(folder, port);
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.0)
        .stderr(log.1);
    // A group of its own, so that Ctrl-C in the terminal reaches the test and not its servers.
    let mut child = command
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));

    let mut ended = false;
    let settled = wait_until(PATIENCE, || {
        ended = has_ended(&mut child);
        ended || recipe.is_ready(port)
    });
    if settled && !ended {
        return Ok(child);
    }
    kill_all(&mut child, folder);
    let how = if ended {
        "ended at its start".to_owned()
    } else {
        format!("gave no answer within {PATIENCE:?}")
    };
    Err(format!("{} {how}; {}", R::NAME, log_tail(folder)))
}

fn open_log(folder: &Path) -> io::Result<(File, File)> {
    let log = File::create(folder.join("log"))?;
    Ok((log.try_clone()?, log))
}

fn log_tail(folder: &Path) -> String {
    let bytes = fs::read(folder.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = log.lines().collect();
    format!(
        "the end of its log:\n{}",
        lines[lines.len().saturating_sub(20)..].join("\n")
    )
}

fn has_ended(child: &mut Child) -> bool {
    // An error means that there is no such child any more.
    !matches!(child.try_wait(), Ok(None))
}

/// Kills the main process and all that it started, and waits for their end.
fn kill_all(child: &mut Child, folder: &Path) {
    child.kill().ok();
    let gone = wait_until(PATIENCE, || {
        signal_others(child, folder, Signal::KILL);
        has_ended(child) && workshop::processes_in(folder).is_empty()
    });
    assert!(gone, "processes in {} survive kill -9", folder.display());
}

fn signal_main(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).ok();
}

fn signal_others(child: &Child, folder: &Path, signal: Signal) {
    let main = Pid::from_child(child);
    for pid in workshop::processes_in(folder)
        .into_iter()
        .filter(|pid| *pid != main)
    {
        kill_process(pid, signal).ok();
    }
}

/// A port on 127.0.0.1 on which nothing listens, and which this process was not given before: a server that is
/// down for a while finds its port free when it comes back.
///
/// It lies below the range from which the kernel serves `bind(0)` and outgoing connections. There,
/// while a server is down, a client that keeps dialling its port would sooner or later be given
/// that very port for its own end, connect to itself, and keep the server from coming back.
///
/// # Panics
///
/// If a hundred ports in a row are taken.
#[must_use]
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    (0..100)
        .map(|_| 15_000 + (Uuid::now_v7().as_u128() % 17_000) as u16)
        .filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .find(|port| {
            let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
            given.insert(*port)
        })
        .expect("one of a hundred ports on 127.0.0.1 is free")
}

/// Whether what listens on 127.0.0.1:`port` answers `say` with bytes that begin with `hear`: enough
/// of a client to tell a ready server from one that only listens.
#[must_use]
pub fn answers(port: u16, say: &[u8], hear: &[u8]) -> bool {
    let second = Duration::from_secs(1);
    let ask = || -> io::Result<Vec<u8>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, second)?;
        stream.set_read_timeout(Some(second))?;
        stream.write_all(say)?;
        let mut heard = vec![0; hear.len()];
        stream.read_exact(&mut heard)?;
        Ok(heard)
    };
    ask().is_ok_and(|heard| heard == hear)
}

/// The path of `program`, from PATH or from `folders`.
///
/// # Panics
///
/// If the machine does not have it, with the commands that bring it.
#[must_use]
pub fn find_program(program: &str, folders: &[PathBuf], package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .unwrap_or_else(|| {
            panic!(
                "this test needs the program `{program}`: run `cargo x test`, which installs it, \
                 or `apt-get install -y {package}`"
            )
        })
}

/// The path of a file that `cargo x test` installs from a wheel: one of `WHEELS` in
/// `crates/xtask/src/provision/wheels.rs`.
///
/// # Panics
///
/// If it is not installed.
#[must_use]
pub fn find_in_wheel(file: &str) -> PathBuf {
    let path = in_cache(file);
    assert!(
        path.is_file(),
        "this test needs {}: run `cargo x test`, which installs it",
        path.display()
    );
    path
}

/// Where `cargo x test` puts something that no package of the system has.
fn in_cache(name: &str) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")));
    cache
        .unwrap_or_default()
        .join("bento-outbox/servers")
        .join(name)
}

/// Looks until `condition` holds, or for at most `limit`; says whether it holds.
fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(GLANCE);
    }
}

/// Runs `work` where it may block, and passes its panic on to the test.
async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
