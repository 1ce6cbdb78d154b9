//! A TCP proxy that stands in front of a server and fails on demand.
//!
//! ```no_run
//! # async fn example(server: &bento_outbox_conformance::servers::PostgresServer) {
//! use bento_outbox_conformance::faults::Proxy;
//!
//! let proxy = Proxy::before(&server.url()).await;
//! let url = proxy.url_of(&server.url()); // for the code under test
//! proxy.swallow_reply(b"COMMIT", 1); // the next commit will be in doubt
//! // … run the code under test …
//! assert_eq!(proxy.bites().unanswered, 1); // or the test has proved nothing
//! # }
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use url::Url;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// How often each fault really bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bites {
    /// Reads that [`Proxy::delay`] held back.
    pub delayed: u64,
    /// Connections that [`Proxy::cut`] cut.
    pub cut: u64,
    /// Connections that [`Proxy::cut_after`] cut.
    pub cut_short: u64,
    /// Connections that [`Proxy::refuse`] turned away.
    pub refused: u64,
    /// Directions of connections that lost bytes to [`Proxy::blackhole`].
    pub blackholed: u64,
    /// Connections that lost a reply to [`Proxy::swallow_reply`].
    pub unanswered: u64,
}

/// A proxy before one server. Clones are handles to the same proxy; with the last one it ends, and
/// its connections with it.
///
/// Each fault works from now on, on the connections there are and on new ones. As in a real TCP
/// stream nothing can follow a gap: a connection that lost bytes one way stays silent that way,
/// even after the fault is over, until it is cut.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    _acceptor: Arc<AbortOnDrop>,
}

impl Proxy {
    /// Starts a proxy before the server that `url` names. It dials the server anew for each client,
    /// so the server may come and go.
    ///
    /// # Panics
    ///
    /// If the URL names no host and port.
    pub async fn before(url: &str) -> Self {
        let server = parse(url);
        let (Some(host), Some(port)) = (server.host_str(), server.port_or_known_default()) else {
            panic!("the proxy needs a URL with host and port, not {url}");
        };
        let server = format!("{host}:{port}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port on 127.0.0.1");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            cuts: watch::Sender::new(()),
        });
        let acceptor = tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        Self {
            shared,
            address,
            _acceptor: Arc::new(AbortOnDrop(acceptor.abort_handle())),
        }
    }

    /// The same URL, but through this proxy.
    ///
    /// # Panics
    ///
    /// If the URL is none.
    #[must_use]
    pub fn url_of(&self, url: &str) -> String {
        let mut url = parse(url);
        url.set_ip_host(self.address.ip())
            .expect("a URL with a host takes another one");
        url.set_port(Some(self.address.port()))
            .expect("a URL with a host takes a port");
        url.into()
    }

    /// How often each fault really bit, since the proxy began.
    #[must_use]
    pub fn bites(&self) -> Bites {
        self.shared.state().bites
    }

    /// Ends all faults. Connections that lost bytes stay as they are.
    pub fn heal(&self) {
        self.shared.state().faults = Faults::default();
    }

    /// Holds back what goes this way for so long, as a slow line does; zero ends it.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.shared.state().faults.delay[way as usize] = delay;
    }

    /// Passes on so many bytes at a time, as a network does that cuts what is sent into segments; a
    /// [`delay`](Self::delay) is of each. Zero ends it.
    pub fn segments(&self, way: Way, bytes: usize) {
        self.shared.state().faults.segment[way as usize] = bytes;
    }

    /// Accepts bytes and connections, and passes nothing on: the network drops every packet.
    pub fn blackhole(&self, on: bool) {
        self.shared.state().faults.blackhole = on;
    }

    /// Turns new connections away, with a reset right after they are made.
    pub fn refuse(&self, on: bool) {
        self.shared.state().faults.refuse = on;
    }

    /// Cuts all connections now. New ones may come.
    pub fn cut(&self) {
        // Each connection holds one receiver.
        let connections = self.shared.cuts.receiver_count();
        self.shared.state().bites.cut += connections as u64;
        self.shared.cuts.send_replace(());
    }

    /// Lets `bytes` more bytes pass this way, on all connections together, and then cuts the one
    /// that carried the last of them. Happens once.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        self.shared.state().faults.cut_after[way as usize] = Some(bytes);
    }

    /// The *in-doubt* fault: passes on all that the client sends, but swallows what the server says
    /// on that connection, from the moment the client has sent `pattern` (`COMMIT`, say, or
    /// `PUB `). Happens to the next `times` connections that send it; zero ends it.
    ///
    /// # Panics
    ///
    /// If the pattern is empty.
    pub fn swallow_reply(&self, pattern: &[u8], times: usize) {
        assert!(!pattern.is_empty(), "an empty pattern matches nothing");
        self.shared.state().faults.swallow_reply = (times > 0).then(|| (pattern.to_owned(), times));
    }
}

/// The faults in force, each indexed by [`Way`] where it has one.
#[derive(Default)]
struct Faults {
    delay: [Duration; 2],
    /// Zero for any size.
    segment: [usize; 2],
    blackhole: bool,
    refuse: bool,
    cut_after: [Option<u64>; 2],
    /// The pattern, and how many connections it may still hit.
    swallow_reply: Option<(Vec<u8>, usize)>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    bites: Bites,
}

struct Shared {
    state: Mutex<State>,
    /// A message on it cuts every connection.
    cuts: watch::Sender<()>,
}

/// What the faults did to one connection.
#[derive(Default)]
struct Line {
    /// Bytes were lost this way, so nothing goes this way any more.
    lost: [bool; 2],
    /// The client sent the pattern, so the server's next bytes are lost.
    in_doubt: bool,
    /// The end of what the client sent: a pattern may be torn over two reads.
    sent: Vec<u8>,
}

/// What is to be done with bytes that were read.
enum Verdict {
    Pass,
    Swallow,
    PassAndCut(usize),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, way: Way, bytes: &[u8], line: &mut Line) -> Verdict {
        let State { faults, bites } = &mut *self.state();
        let lost = &mut line.lost[way as usize];
        if !*lost && faults.blackhole {
            *lost = true;
            bites.blackholed += 1;
        }
        if !*lost && way == Way::ToClient && line.in_doubt {
            *lost = true;
            bites.unanswered += 1;
        }
        if *lost {
            return Verdict::Swallow;
        }
        if way == Way::ToServer {
            line.notice(bytes, &mut faults.swallow_reply);
        }
        match &mut faults.cut_after[way as usize] {
            Some(left) if *left <= bytes.len() as u64 => {
                let pass = *left as usize;
                faults.cut_after[way as usize] = None;
                bites.cut_short += 1;
                return Verdict::PassAndCut(pass);
            }
            Some(left) => *left -= bytes.len() as u64,
            None => {}
        }
        Verdict::Pass
    }
}

impl Line {
    /// Looks for the pattern in what the client sends.
    fn notice(&mut self, bytes: &[u8], swallow_reply: &mut Option<(Vec<u8>, usize)>) {
        let Some((pattern, times)) = swallow_reply else {
            return self.sent.clear();
        };
        self.sent.extend_from_slice(bytes);
        if !self.in_doubt
            && self
                .sent
                .windows(pattern.len())
                .any(|window| window == pattern)
        {
            self.in_doubt = true;
            *times -= 1;
        }
        self.sent
            .drain(..self.sent.len().saturating_sub(pattern.len() - 1));
        if *times == 0 {
            *swallow_reply = None;
        }
    }
}

async fn accept(listener: TcpListener, server: String, shared: Arc<Shared>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let State { faults, bites } = &mut *shared.state();
                if faults.refuse {
                    bites.refused += 1;
                    reset(client);
                } else {
                    let cuts = shared.cuts.subscribe();
                    connections.spawn(connect(client, server.clone(), Arc::clone(&shared), cuts));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection until both sides have said all, or one breaks, or it is cut.
async fn connect(
    mut client: TcpStream,
    server: String,
    shared: Arc<Shared>,
    mut cuts: watch::Receiver<()>,
) {
    let Ok(mut server) = TcpStream::connect(server).await else {
        return reset(client);
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let line = Mutex::default();
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let both = async {
        tokio::try_join!(
            pump(Way::ToServer, client_reads, server_writes, &shared, &line),
            pump(Way::ToClient, server_reads, client_writes, &shared, &line),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = cuts.changed() => {}
    }
}

/// Carries the bytes of one way. An error ends the whole connection.
async fn pump(
    way: Way,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    line: &Mutex<Line>,
) -> io::Result<()> {
    let line = || line.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let segment = match shared.state().faults.segment[way as usize] {
            0 => buffer.len(),
            bytes => bytes.min(buffer.len()),
        };
        let bytes = match from.read(&mut buffer[..segment]).await? {
            // Not even the end of a stream gets past a gap.
            0 if line().lost[way as usize] => return Ok(()),
            0 => return to.shutdown().await,
            n => &buffer[..n],
        };
        let delay = shared.state().faults.delay[way as usize];
        if !delay.is_zero() {
            shared.state().bites.delayed += 1;
            tokio::time::sleep(delay).await;
        }
        // Judged just before the bytes go out, so that no reply can overtake the verdict on them.
        let verdict = shared.judge(way, bytes, &mut line());
        match verdict {
            Verdict::Swallow => {}
            Verdict::Pass => to.write_all(bytes).await?,
            Verdict::PassAndCut(pass) => {
                to.write_all(&bytes[..pass]).await?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
}

fn reset(client: TcpStream) {
    // Without a linger, closing sends RST instead of an orderly end.
    client.set_zero_linger().ok();
}

fn parse(url: &str) -> Url {
    Url::parse(url).unwrap_or_else(|e| panic!("{url} is no URL: {e}"))
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
