//! What is said before the first message: who we are, and which exchange it is.

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::{AMQPClass, channel, confirm, connection, exchange};
use amq_protocol::types::{AMQPValue, ChannelId, FieldTable, ShortString};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::frames::{self, FRAME_BYTES_MAX};
use super::{Exchange, Login, misconfigured, unreachable};
use crate::publishers::socket::{Address, Socket};
use crate::record::Rejection;

/// A connection on which the channels are open and confirm what is published.
pub(super) struct Opened {
    pub(super) socket: Socket,
    /// What was read and not yet looked at.
    pub(super) input: BytesMut,
    pub(super) frame_bytes_max: usize,
    /// How many seconds either side may be silent; zero: any time.
    pub(super) heartbeat_seconds: u16,
}

/// The longest silence that we ask for.
const HEARTBEAT_SECONDS_MAX: u16 = 30;

/// Opens a connection and these channels, and sees to the exchange.
///
/// # Errors
/// `Unreachable`, or `Config` with what must be changed.
pub(super) async fn open(
    address: &Address,
    login: &Login,
    exchange: &Exchange,
    channels: &[ChannelId],
) -> Result<Opened, Rejection> {
    let mut dialogue = Dialogue {
        socket: address.connect().await?,
        input: BytesMut::new(),
        address,
    };
    let (frame_bytes_max, heartbeat_seconds) = dialogue.log_in(login).await?;
    for channel in channels {
        dialogue.open_channel(*channel).await?;
    }
    let first = channels.first().copied().unwrap_or_default();
    dialogue.see_to(exchange, first).await?;
    Ok(Opened {
        socket: dialogue.socket,
        input: dialogue.input,
        frame_bytes_max,
        heartbeat_seconds,
    })
}

/// What opens a channel again, or the first time.
pub(super) fn opening() -> [AMQPClass; 2] {
    [
        AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open::default())),
        AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select::default())),
    ]
}

struct Dialogue<'a> {
    socket: Socket,
    input: BytesMut,
    address: &'a Address,
}

impl Dialogue<'_> {
    /// Answers the largest frame and the longest silence, as both sides want them.
    async fn log_in(&mut self, login: &Login) -> Result<(usize, u16), Rejection> {
        let mut hello = Vec::new();
        frames::add_protocol_header(&mut hello);
        self.send(&hello).await?;
        let AMQPClass::Connection(connection::AMQPMethod::Start(start)) = self.hear().await? else {
            return Err(self.surprised());
        };
        let mechanisms = start.mechanisms.to_string();
        if !mechanisms.split_whitespace().any(|one| one == "PLAIN") {
            return Err(misconfigured(format!(
                "{} takes no user and password: it offers {mechanisms}",
                self.address
            )));
        }
        self.say(
            0,
            AMQPClass::Connection(connection::AMQPMethod::StartOk(connection::StartOk {
                client_properties: introduction(),
                mechanism: "PLAIN".into(),
                response: format!("\0{}\0{}", login.user, login.password).into(),
                locale: "en_US".into(),
            })),
        )
        .await?;
        let AMQPClass::Connection(connection::AMQPMethod::Tune(tune)) = self.hear().await? else {
            return Err(self.surprised());
        };
        let frame_bytes_max = match tune.frame_max {
            0 => FRAME_BYTES_MAX,
            most => FRAME_BYTES_MAX.min(most as usize),
        };
        let heartbeat_seconds = tune.heartbeat.min(HEARTBEAT_SECONDS_MAX);
        self.say(
            0,
            AMQPClass::Connection(connection::AMQPMethod::TuneOk(connection::TuneOk {
                channel_max: tune.channel_max,
                frame_max: frame_bytes_max as u32,
                heartbeat: heartbeat_seconds,
            })),
        )
        .await?;
        self.say(
            0,
            AMQPClass::Connection(connection::AMQPMethod::Open(connection::Open {
                virtual_host: login.vhost.clone(),
            })),
        )
        .await?;
        match self.hear().await? {
            AMQPClass::Connection(connection::AMQPMethod::OpenOk(_)) => {
                Ok((frame_bytes_max, heartbeat_seconds))
            }
            _ => Err(self.surprised()),
        }
    }

    async fn open_channel(&mut self, id: ChannelId) -> Result<(), Rejection> {
        for method in opening() {
            self.say(id, method).await?;
            match self.hear().await? {
                AMQPClass::Channel(channel::AMQPMethod::OpenOk(_))
                | AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(_)) => {}
                // Without it nothing would ever be known to have arrived.
                _ => return Err(self.surprised()),
            }
        }
        Ok(())
    }

    /// Declares the exchange, or looks whether it is there. The server refuses a declaration that
    /// the exchange there is does not match.
    async fn see_to(&mut self, wanted: &Exchange, channel: ChannelId) -> Result<(), Rejection> {
        let declare = exchange::Declare {
            exchange: wanted.name.clone(),
            kind: "topic".into(),
            passive: !wanted.declare,
            durable: true,
            ..exchange::Declare::default()
        };
        let declare = AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare));
        self.say(channel, declare).await?;
        match self.hear().await? {
            AMQPClass::Exchange(exchange::AMQPMethod::DeclareOk(_)) => Ok(()),
            AMQPClass::Channel(channel::AMQPMethod::Close(close)) => {
                let name = &wanted.name;
                let cure = match close.reply_code {
                    404 => "create it, or have it created by leaving out declare=false",
                    403 => "grant this user to configure it, or create it and add declare=false",
                    406 => {
                        "what is not a durable topic exchange may lose events: name another one by exchange=NAME, \
                         or add declare=false to use this one as it is"
                    }
                    _ => "see the server's log",
                };
                Err(misconfigured(format!(
                    "exchange {name}: {}; {cure}",
                    close.reply_text
                )))
            }
            _ => Err(self.surprised()),
        }
    }

    async fn say(&mut self, channel: ChannelId, method: AMQPClass) -> Result<(), Rejection> {
        let mut out = Vec::new();
        frames::add_method(&mut out, channel, method);
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Rejection> {
        let sent = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        sent.await.map_err(|error| self.lost(&error.to_string()))
    }

    /// The next method. What closes the connection is an error.
    async fn hear(&mut self) -> Result<AMQPClass, Rejection> {
        loop {
            match frames::take(&mut self.input) {
                Ok(Some(AMQPFrame::Method(
                    _,
                    AMQPClass::Connection(connection::AMQPMethod::Close(close)),
                ))) => return Err(self.closed(&close)),
                Ok(Some(AMQPFrame::Method(_, method))) => return Ok(method),
                Ok(Some(AMQPFrame::Heartbeat)) => {}
                Ok(Some(_)) | Err(_) => return Err(self.surprised()),
                Ok(None) => match self.socket.read_buf(&mut self.input).await {
                    Ok(0) => return Err(self.lost("it closed the connection")),
                    Ok(_) => {}
                    Err(error) => return Err(self.lost(&error.to_string())),
                },
            }
        }
    }

    fn closed(&self, close: &connection::Close) -> Rejection {
        let reason = format!("{}: {}", self.address, close.reply_text);
        match close.reply_code {
            // Wrong user or password, no such virtual host or no right to it.
            403 | 402 | 530 => misconfigured(reason),
            _ => unreachable(reason),
        }
    }

    fn lost(&self, what: &str) -> Rejection {
        unreachable(format!("opening a connection to {}: {what}", self.address))
    }

    fn surprised(&self) -> Rejection {
        misconfigured(format!("{} does not speak AMQP 0-9-1", self.address))
    }
}

/// Who we are, and what we understand without having asked for it.
fn introduction() -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let capabilities = [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "publisher_confirms",
    ];
    let capabilities = capabilities.map(|name| (ShortString::from(name), true.into()));
    let mut introduction = FieldTable::default();
    introduction.insert("product".into(), text("bento-outbox"));
    introduction.insert("connection_name".into(), text("bento-outbox"));
    introduction.insert("version".into(), text(env!("CARGO_PKG_VERSION")));
    introduction.insert("platform".into(), text("Rust"));
    introduction.insert(
        "capabilities".into(),
        AMQPValue::FieldTable(std::collections::BTreeMap::from(capabilities).into()),
    );
    introduction
}
