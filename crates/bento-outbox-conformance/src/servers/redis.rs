//! Redis.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Recipe, Server, answers, find_program};

/// A Redis server of the test's own, to be killed and paused at will.
pub type RedisServer = Server<Redis>;

/// The Redis server of this test process. Tests share it, so each names its streams after itself or
/// takes a database of its own. The first caller waits for its start.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_redis() -> &'static RedisServer {
    static SHARED: OnceLock<RedisServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(Redis::new(&[])))
}

impl Server<Redis> {
    /// Starts a Redis server that syncs every write.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a Redis server with these settings too: `[("maxmemory", "5mb")]`.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::from_recipe(Redis::new(settings)).await
    }
}

/// How Redis is started.
pub struct Redis {
    program: PathBuf,
    settings: Vec<String>,
}

impl Redis {
    fn new(settings: &[(&str, &str)]) -> Self {
        let folders = ["/usr/sbin", "/usr/local/bin"].map(PathBuf::from);
        let words = |(name, value): &(&str, &str)| {
            let name = std::iter::once(format!("--{name}"));
            name.chain(value.split(' ').map(Into::into))
                .collect::<Vec<_>>()
        };
        Self {
            program: find_program("redis-server", &folders, "redis-server"),
            settings: settings.iter().flat_map(words).collect(),
        }
    }
}

impl Recipe for Redis {
    const NAME: &'static str = "redis";

    fn prepare(&self, _folder: &Path) {}

    fn command(&self, folder: &Path, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
            .arg(folder)
            .args([
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
            ])
            .args(&self.settings);
        command
    }

    /// Whatever it says: with a password it says that it wants one.
    fn is_ready(&self, port: u16) -> bool {
        answers(port, b"PING\r\n", b"+PONG") || answers(port, b"PING\r\n", b"-NOAUTH")
    }

    fn url(&self, port: u16) -> String {
        format!("redis://127.0.0.1:{port}")
    }
}
