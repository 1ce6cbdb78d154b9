//! What a publisher of webhooks may take for an acknowledgement: a status 2xx, complete and in time.
//!
//! Each [`FalseAnswer`] is one that is none, and each [`TrueAnswer`] one in a form that clients get
//! wrong. They are given by a server on plain sockets, to one request after the other.

use std::time::Duration;

use bento_outbox::{Event, OutboxRecord, Outcome, Payload, Publisher, Tenant, Timestamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long the publisher under test has to wait for an answer.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Far longer than it may take to give up.
const PATIENCE: Duration = Duration::from_secs(60);

macro_rules! answers {
    ($(#[$about:meta])+ $name:ident { $($(#[$doc:meta])+ $answer:ident,)+ }) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$doc])+ $answer,)+ }

        impl $name {
            /// Every one there is.
            pub const ALL: &[Self] = &[$(Self::$answer,)+];
        }
    };
}

answers! {
    /// What acknowledges nothing.
    FalseAnswer {
        /// `302`, to where `200` is answered.
        Found,
        /// `308`, to where `200` is answered.
        Moved,
        /// `304`.
        NotModified,
        /// `100`, and no answer after it.
        Continue,
        /// `103`, and no answer after it.
        EarlyHints,
        /// `101`.
        Switching,
        /// `400`.
        BadRequest,
        /// `401`.
        Unauthorized,
        /// `404`.
        NotFound,
        /// `429`.
        TooMany,
        /// `500`.
        ServerError,
        /// `503`.
        Unavailable,
        /// `504`.
        GatewayTimeout,
        /// `200`, torn in its first line.
        TornStatus,
        /// `200`, torn in its headers.
        TornHead,
        /// `200`, torn in a body whose length was said.
        TornBody,
        /// `200`, torn between two chunks of its body.
        TornChunks,
        /// `200`, when the deadline is over.
        Late,
        /// `200`, with a body of which a byte comes now and then, for longer than the deadline.
        Drip,
        /// `200`, and no end of the body though all comes at once.
        Endless,
        /// None at all.
        Silence,
        /// The connection is closed.
        Hangup,
        /// The connection is reset.
        Reset,
        /// Something that is not HTTP.
        Garbage,
    }
}

answers! {
    /// What acknowledges.
    TrueAnswer {
        /// `200` with a body.
        Ok,
        /// `202` without a body.
        Accepted,
        /// `204`.
        NoContent,
        /// `200` with a body in chunks.
        Chunks,
        /// `200` of HTTP/1.0, whose body ends with the connection.
        UntilClose,
        /// `200` after a `100` and a `103`.
        AfterOthers,
        /// `200` in pieces, in time.
        Slow,
    }
}

impl FalseAnswer {
    /// Publishes one event to an endpoint that answers so, and fails if that counts.
    ///
    /// # Panics
    ///
    /// If the publisher takes it for an acknowledgement, waits much longer than [`DEADLINE`], or
    /// sends nothing, which would prove nothing.
    pub async fn is_not_taken(self, publisher: impl FnOnce(&str) -> Box<dyn Publisher>) {
        let outcome = outcome(Script::False(self), publisher).await;
        assert_ne!(outcome, Outcome::Acked, "of {self:?}");
    }

    async fn give(self, stream: &mut TcpStream) -> std::io::Result<()> {
        let status = |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let to = |status: &str| {
            format!("HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n")
        };
        let text = match self {
            Self::Found => to("302 Found"),
            Self::Moved => to("308 Permanent Redirect"),
            Self::NotModified => "HTTP/1.1 304 Not Modified\r\n\r\n".into(),
            Self::Continue => "HTTP/1.1 100 Continue\r\n\r\n".into(),
            Self::EarlyHints => "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".into(),
            Self::Switching => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: a\r\n\r\n"
                    .into()
            }
            Self::BadRequest => status("400 Bad Request"),
            Self::Unauthorized => status("401 Unauthorized"),
            Self::NotFound => status("404 Not Found"),
            Self::TooMany => status("429 Too Many Requests"),
            Self::ServerError => status("500 Internal Server Error"),
            Self::Unavailable => status("503 Service Unavailable"),
            Self::GatewayTimeout => status("504 Gateway Timeout"),
            Self::TornStatus => "HTTP/1.1 200".into(),
            Self::TornHead => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndat".into(),
            Self::TornBody => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345".into(),
            Self::TornChunks => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n".into()
            }
            Self::Late => {
                sleep(DEADLINE * 2).await;
                status("200 OK")
            }
            Self::Drip => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
                stream.write_all(head).await?;
                loop {
                    stream.write_all(b"a").await?;
                    sleep(DEADLINE / 10).await;
                }
            }
            Self::Endless => {
                let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await?;
                let chunk = format!("4000\r\n{}\r\n", "a".repeat(0x4000));
                loop {
                    stream.write_all(chunk.as_bytes()).await?;
                }
            }
            Self::Silence => {
                sleep(PATIENCE).await;
                String::new()
            }
            Self::Hangup => String::new(),
            Self::Reset => {
                // Without a linger, closing sends RST instead of an orderly end.
                stream.set_zero_linger()?;
                return Ok(());
            }
            Self::Garbage => "OK, I have it\r\n\r\n".into(),
        };
        stream.write_all(text.as_bytes()).await
    }
}

impl TrueAnswer {
    /// Publishes one event to an endpoint that answers so, and fails if that does not count.
    ///
    /// # Panics
    ///
    /// If the publisher does not take it for an acknowledgement, or sends nothing.
    pub async fn is_taken(self, publisher: impl FnOnce(&str) -> Box<dyn Publisher>) {
        let outcome = outcome(Script::True(self), publisher).await;
        assert_eq!(outcome, Outcome::Acked, "of {self:?}");
    }

    async fn give(self, stream: &mut TcpStream) -> std::io::Result<()> {
        let text = match self {
            Self::Ok => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            Self::Accepted => "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
            Self::NoContent => "HTTP/1.1 204 No Content\r\n\r\n",
            Self::Chunks => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            }
            Self::UntilClose => "HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nok",
            Self::AfterOthers => {
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            }
            Self::Slow => {
                for piece in ["HTTP/1.1 200 OK\r\ncontent-", "length: 2\r\n\r", "\no", "k"] {
                    stream.write_all(piece.as_bytes()).await?;
                    sleep(DEADLINE / 20).await;
                }
                return Ok(());
            }
        };
        stream.write_all(text.as_bytes()).await
    }
}

#[derive(Clone, Copy)]
enum Script {
    False(FalseAnswer),
    True(TrueAnswer),
}

/// What a publisher says of one event that an endpoint answered by this script.
async fn outcome(script: Script, publisher: impl FnOnce(&str) -> Box<dyn Publisher>) -> Outcome {
    let mut endpoint = Endpoint::start(script).await;
    let publisher = publisher(&endpoint.url);
    let event = Event::new("case.changed", Payload::Data(b"1".as_slice().into()));
    let record = OutboxRecord::of(&event, &Tenant::default(), 1, Timestamp::now());
    let published = timeout(PATIENCE / 2, publisher.publish(&[record])).await;
    let Ok(mut outcomes) = published else {
        panic!("publish does not end");
    };
    assert!(endpoint.asked.try_recv().is_ok(), "nothing was sent");
    outcomes.remove(0)
}

/// A server that answers every POST by one script, and everything else by `200`.
struct Endpoint {
    url: String,
    asked: mpsc::UnboundedReceiver<()>,
    server: JoinHandle<()>,
}

impl Endpoint {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port on 127.0.0.1");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let (heard, asked) = mpsc::unbounded_channel();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script, heard.clone()));
            }
        });
        Self {
            url: format!("http://{address}/"),
            asked,
            server,
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Answers one request, which has a body of one byte or none, and closes the connection.
async fn serve(mut stream: TcpStream, script: Script, heard: mpsc::UnboundedSender<()>) {
    let mut request = Vec::new();
    let ends = |request: &[u8], end: &[u8]| request.ends_with(end);
    while !ends(&request, b"\r\n\r\n") && !ends(&request, b"\r\n\r\n1") {
        match stream.read_buf(&mut request).await {
            Ok(1..) => {}
            // Whoever only looks whether somebody listens.
            _ => return,
        }
    }
    let given = if request.starts_with(b"POST / ") {
        if !request.ends_with(b"1") {
            let _ = stream.read_buf(&mut request).await;
        }
        let _ = heard.send(());
        match script {
            Script::False(answer) => answer.give(&mut stream).await,
            Script::True(answer) => answer.give(&mut stream).await,
        }
    } else {
        let elsewhere = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(elsewhere).await
    };
    // The client may have gone: that is its right.
    drop(given);
}
