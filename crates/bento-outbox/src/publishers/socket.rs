//! A TCP connection to a bus, encrypted where its URL asks for it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use url::Url;

use super::options::invalid;
use crate::error::Result;
use crate::record::{Rejection, RejectionClass};

/// A connection, encrypted or not.
pub(super) type Socket = Box<dyn Stream>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a bus is. Shown without the credentials of its URL.
pub(super) struct Address {
    scheme: &'static str,
    host: String,
    port: u16,
    encrypted: bool,
}

/// A scheme of URLs, and the port where none is given.
pub(super) struct Scheme {
    pub(super) plain: (&'static str, u16),
    pub(super) encrypted: (&'static str, u16),
}

/// Who connects, as the URL says.
pub(super) struct Credentials {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

/// How long a server may take to accept a connection, and again to encrypt it; less than a batch
/// has, so that its outcome is "unreachable" and not "unknown".
const CONNECT_MAX: Duration = Duration::from_secs(3);

impl Address {
    pub(super) fn of(url: &Url, scheme: &Scheme) -> Result<Self> {
        let ((name, port), encrypted) = match url.scheme() {
            given if given == scheme.plain.0 => (scheme.plain, false),
            given if given == scheme.encrypted.0 => (scheme.encrypted, true),
            _ => {
                let (plain, encrypted) = (scheme.plain.0, scheme.encrypted.0);
                return Err(invalid(format!(
                    "the scheme is neither {plain} nor {encrypted}"
                )));
            }
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| invalid(format!("names no host, as {name}://HOST does")))?;
        Ok(Self {
            scheme: name,
            host: host.into(),
            port: url.port().unwrap_or(port),
            encrypted,
        })
    }

    /// Connects. The certificate of a server with TLS must be signed by an authority that the
    /// system knows or that `SSL_CERT_FILE` names, and be for the host of the URL.
    ///
    /// # Errors
    /// `Unreachable`, or `Config` where the other side is not who it should be.
    pub(super) async fn connect(&self) -> Result<Socket, Rejection> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let tcp = within(TcpStream::connect((host, self.port)), "no answer in time").await;
        let tcp = tcp.map_err(|error| {
            Rejection::new(
                RejectionClass::Unreachable,
                format!("cannot connect to {self}: {error}"),
            )
        })?;
        // Otherwise the last part of a batch waits for the answer to the one before.
        tcp.set_nodelay(true).ok();
        if !self.encrypted {
            return Ok(Box::new(tcp));
        }
        let encrypted = async {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let config = tokio::task::spawn_blocking(trusting_the_system).await??;
            TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await
        };
        // Some servers wait for the end of what they take for a command.
        match within(encrypted, "no answer in time, as from a port without TLS").await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                let reason = format!("cannot encrypt the connection to {self}: {error}");
                let refused = error
                    .get_ref()
                    .is_some_and(|inner| inner.is::<rustls::Error>());
                Err(if refused {
                    let cure = "the certificate must be for this host and signed by an authority that the system, \
                                or SSL_CERT_FILE, names";
                    Rejection::new(RejectionClass::Config, format!("{reason}; {cure}"))
                } else {
                    Rejection::new(RejectionClass::Unreachable, reason)
                })
            }
        }
    }
}

async fn within<T>(
    connecting: impl Future<Output = io::Result<T>>,
    otherwise: &str,
) -> io::Result<T> {
    let connected = timeout(CONNECT_MAX, connecting).await;
    connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, otherwise)))
}

/// Reads the certificates of the system, which may change while a relay runs.
fn trusting_the_system() -> io::Result<ClientConfig> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(ToString::to_string);
        return Err(io::Error::other(format!(
            "the system trusts no authority{}: install its certificates, or set SSL_CERT_FILE",
            why.map(|why| format!(" ({why})")).unwrap_or_default()
        )));
    }
    // Named, because an application may have more than one provider built in.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

impl Credentials {
    pub(super) fn of(url: &Url) -> Self {
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = Some(url.username()).filter(|user| !user.is_empty());
        Self {
            user: user.map(decoded),
            password: url.password().map(decoded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEME: Scheme = Scheme {
        plain: ("bus", 1),
        encrypted: ("buss", 2),
    };

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn an_address_has_a_port_and_no_password() {
        for (given, shown) in [
            ("bus://bob:s3cret@h", "bus://h:1"),
            ("buss://h/x?y=z", "buss://h:2"),
            ("bus://[::1]:7", "bus://[::1]:7"),
        ] {
            let address = Address::of(&url(given), &SCHEME).unwrap();
            assert_eq!(address.to_string(), shown);
        }
        for (given, reason) in [
            ("http://s3cret@h", "neither bus nor buss"),
            ("bus:///x", "no host"),
        ] {
            let error = Address::of(&url(given), &SCHEME).err().unwrap().report();
            assert!(
                error.contains(reason) && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn credentials_are_decoded() {
        let of = |text| {
            let Credentials { user, password } = Credentials::of(&url(text));
            (user, password)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("bus://b%40b:p%2F%3A@h"), (some("b@b"), some("p/:")));
        assert_eq!(of("bus://:p@h"), (None, some("p")));
        assert_eq!(of("bus://h"), (None, None));
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_says_nothing_is_not_waited_for_when_it_should_encrypt() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::of(&url(&format!("buss://127.0.0.1:{port}")), &SCHEME).unwrap();
        let error = address.connect().await.err().unwrap();
        assert_eq!(error.class, RejectionClass::Unreachable, "{error}");
    }

    #[tokio::test]
    async fn a_server_that_does_not_encrypt_is_a_mistake_in_the_set_up() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut plain, _) = listener.accept().await.unwrap();
            plain.write_all(b"-ERR unknown command\r\n").await.unwrap();
            plain.read_to_end(&mut Vec::new()).await.ok();
        });
        let address = Address::of(&url(&format!("buss://127.0.0.1:{port}")), &SCHEME).unwrap();
        let error = address.connect().await.err().unwrap();
        assert_eq!(error.class, RejectionClass::Config, "{error}");
    }
}
