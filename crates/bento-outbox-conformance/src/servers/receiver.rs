//! A receiver of webhooks, in Python and on plain sockets, so that it shares no code with us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::{Recipe, Server, answers, find_program};

/// A receiver of the test's own, to be killed and paused at will.
pub type ReceiverServer = Server<Receiver>;

/// How the receiver is started.
pub struct Receiver {
    python: PathBuf,
}

/// A request as the receiver wrote it down before it answered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Received {
    /// The path and query.
    pub target: String,
    /// Names and values in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// The body, in base64.
    pub body: String,
}

/// The largest body that the receiver takes.
pub const BODY_BYTES_MAX: usize = 1 << 20;

const FILE: &str = "received.jsonl";

impl Server<Receiver> {
    /// Starts a receiver.
    ///
    /// # Panics
    ///
    /// If Python is not installed or the receiver does not come up.
    pub async fn start() -> Self {
        let python = find_program("python3", &[], "python3");
        Self::from_recipe(Receiver { python }).await
    }

    /// How many requests were received.
    #[must_use]
    pub fn received_count(&self) -> usize {
        let text = fs::read(self.folder().join(FILE)).unwrap_or_default();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    /// All that was received, in the order in which it was written down.
    ///
    /// # Panics
    ///
    /// If the receiver wrote something else than it should.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        let text = fs::read_to_string(self.folder().join(FILE)).unwrap_or_default();
        let line = |line| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("the receiver wrote {line}: {e}"))
        };
        // A line that was begun when the receiver was killed was not answered.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(line).collect()
    }
}

impl Recipe for Receiver {
    const NAME: &'static str = "receiver";

    fn prepare(&self, folder: &Path) {
        let written = fs::write(folder.join("receiver.py"), include_str!("receiver.py"));
        written.unwrap_or_else(|e| panic!("no script in {}: {e}", folder.display()));
    }

    fn command(&self, _folder: &Path, port: u16) -> Command {
        let mut command = Command::new(&self.python);
        command
            .args(["receiver.py", &port.to_string(), FILE])
            .arg(BODY_BYTES_MAX.to_string());
        command
    }

    fn is_ready(&self, port: u16) -> bool {
        answers(port, b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 ")
    }

    fn url(&self, port: u16) -> String {
        format!("http://127.0.0.1:{port}")
    }
}
