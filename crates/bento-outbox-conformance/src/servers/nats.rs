//! NATS with JetStream.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::{Recipe, Server, answers, find_program};

/// A NATS server of the test's own, to be killed and paused at will.
pub type NatsServer = Server<Nats>;

/// The NATS server of this test process, with JetStream. Tests share it, so each names its streams
/// and subjects after itself. The first caller waits for its start.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_nats() -> &'static NatsServer {
    static SHARED: OnceLock<NatsServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(Nats::new(JETSTREAM)))
}

impl Server<Nats> {
    /// Starts a NATS server with JetStream.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start() -> Self {
        Self::from_recipe(Nats::new(JETSTREAM)).await
    }

    /// Starts a NATS server with this configuration file: users, limits, no JetStream.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_with(config: &str) -> Self {
        Self::from_recipe(Nats::new(config)).await
    }
}

/// How NATS is started.
pub struct Nats {
    program: PathBuf,
    config: String,
}

const JETSTREAM: &str = "jetstream: enabled";

impl Nats {
    fn new(config: &str) -> Self {
        // Debian puts it where a user's PATH does not look.
        let folders = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        Self {
            program: find_program("nats-server", &folders, "nats-server"),
            config: config.into(),
        }
    }
}

impl Recipe for Nats {
    const NAME: &'static str = "nats";

    fn prepare(&self, folder: &Path) {
        let written = fs::write(folder.join("nats.conf"), &self.config);
        written.unwrap_or_else(|e| panic!("no configuration in {}: {e}", folder.display()));
    }

    fn command(&self, folder: &Path, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        command.args([
            "--config",
            "nats.conf",
            "--addr",
            "127.0.0.1",
            "--port",
            &port.to_string(),
        ]);
        command.arg("--store_dir").arg(folder.join("data"));
        command
    }

    /// NATS greets its clients, and listens for them only when JetStream has recovered its streams.
    fn is_ready(&self, port: u16) -> bool {
        answers(port, b"", b"INFO ")
    }

    fn url(&self, port: u16) -> String {
        format!("nats://127.0.0.1:{port}")
    }
}
