//! The connections to one endpoint.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::http::uri::Scheme;
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower_service::Service;

use super::guard::{self, Guard};
use crate::record::Rejection;
use crate::record::RejectionClass::{Config, Unreachable};

/// Sends requests over connections that it keeps. It follows no redirect, keeps no cookie, unpacks
/// no answer and heeds no proxy of the environment.
pub(super) struct Client {
    connector: Connector,
    pool: legacy::Client<Connector, Full<Bytes>>,
}

/// Why there is no answer.
pub(super) enum NoAnswer {
    /// Nothing was sent.
    Unsent(Rejection),
    /// It was sent, in whole or in part.
    Lost(String),
}

/// The most bytes that are read of an answer.
pub(super) const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a connection is kept without use: less than the five seconds after which servers commonly
/// close theirs, perhaps in the very moment in which the next event is sent.
const IDLE_MAX: Duration = Duration::from_secs(4);

/// How soon a connection with several requests on it (HTTP/2) is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(5);

/// How long a server that speaks only when spoken to is listened to.
const LISTEN: Duration = Duration::from_millis(500);

impl Client {
    /// A client for the endpoint at `url`, with so many connections and so much time for a request.
    ///
    /// # Errors
    /// With class `Config` when the system has no certificates to check others against.
    pub(super) fn new(
        url: &Uri,
        guard: Guard,
        connections: usize,
        deadline: Duration,
    ) -> Result<Self, Rejection> {
        let mut tcp = HttpConnector::new_with_resolver(guard);
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        // Less than the request has, so that its outcome is "unreachable" and not "unknown".
        let within = CONNECT_MAX.min(deadline / 2);
        tcp.set_connect_timeout(Some(within));
        let https = if url.scheme() == Some(&Scheme::HTTPS) {
            let tls = HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(ring::default_provider())
                .map_err(|error| {
                    let reason = format!(
                        "no certificates to check others against ({error}): install ca-certificates or set SSL_CERT_FILE"
                    );
                    Rejection::new(Config, reason)
                })?;
            tls.https_only().enable_all_versions().wrap_connector(tcp)
        } else {
            let tls = without_certificates()?;
            let tls = HttpsConnectorBuilder::new().with_tls_config(tls);
            tls.https_or_http().enable_http1().wrap_connector(tcp)
        };
        let connector = Connector { https, within };
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(connections)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_EVERY)
            .build(connector.clone());
        Ok(Self { connector, pool })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let sent = self.pool.request(request).await;
        sent.map_err(|error| match error.is_connect() {
            true => NoAnswer::Unsent(unreachable(&error)),
            false => NoAnswer::Lost(root(&error)),
        })
    }

    /// Whether a server listens, found out without a request: to a receiver each would be an event.
    pub(super) async fn reach(&self, url: &Uri) -> Result<(), Rejection> {
        let connected = self.connector.clone().call(url.clone()).await;
        let stream = connected.map_err(|error| unreachable(error.as_ref()))?;
        let MaybeHttpsStream::Http(stream) = stream else {
            // A handshake has two sides: the server is there.
            return Ok(());
        };
        // Whoever stands before a server that is down takes the connection and drops it.
        let mut stream = stream.into_inner();
        match timeout(LISTEN, stream.read(&mut [0; 1])).await {
            Err(_) => Ok(()),
            Ok(Ok(1..)) => {
                let reason = "it speaks first, which no server of HTTP does";
                Err(Rejection::new(Config, reason))
            }
            Ok(Ok(0)) => Err(Rejection::new(
                Unreachable,
                "it closed the connection at once",
            )),
            Ok(Err(error)) => Err(unreachable(&error)),
        }
    }
}

fn without_certificates() -> Result<ClientConfig, Rejection> {
    let provider = Arc::new(ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| Rejection::new(Config, format!("TLS: {error}")))?;
    let nobody = RootCertStore::empty();
    Ok(config.with_root_certificates(nobody).with_no_client_auth())
}

/// The body of an answer, not kept.
pub(super) enum Body {
    /// It ended as it should.
    Complete,
    /// It went on for more than [`ANSWER_BYTES_MAX`].
    Endless,
    /// It broke off.
    Torn(String),
}

impl Body {
    /// Reads a body to its end, or as far as is bearable.
    pub(super) async fn of(mut body: Incoming) -> Self {
        let mut left = ANSWER_BYTES_MAX;
        while let Some(frame) = body.frame().await {
            let bytes = match &frame {
                Ok(frame) => frame.data_ref().map_or(0, Bytes::len),
                Err(error) => return Self::Torn(root(error)),
            };
            match left.checked_sub(bytes) {
                Some(still) => left = still,
                None => return Self::Endless,
            }
        }
        Self::Complete
    }
}

/// Connects, within a time that includes the lookup of the name and the handshake of TLS.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector<Guard>>,
    within: Duration,
}

type Failure = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.https.poll_ready(context)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connecting = timeout(self.within, self.https.call(url));
        Box::pin(async move {
            let connected = connecting.await;
            connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        })
    }
}

/// Why no connection could be made, and whether that heals by itself.
fn unreachable(error: &(dyn Error + 'static)) -> Rejection {
    let class = if cause::<guard::Refused>(error).is_some() {
        Config
    } else {
        match cause(error) {
            Some(rustls::Error::InvalidCertificate(_)) => Config,
            _ => Unreachable,
        }
    };
    Rejection::new(class, root(error))
}

/// The first error of that type in a chain.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// What the last error of a chain says; the others only say where it happened.
fn root(error: &(dyn Error + 'static)) -> String {
    chain(error)
        .last()
        .map_or_else(String::new, ToString::to_string)
}

/// An error and what is behind it. `io::Error` hides the error that it was made of.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}
