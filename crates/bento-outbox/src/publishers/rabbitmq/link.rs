//! A connection to RabbitMQ.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amq_protocol::frame::AMQPFrame;
use amq_protocol::protocol::{AMQPClass, basic, channel, connection};
use amq_protocol::types::ChannelId;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};
use uuid::Uuid;

use super::confirms::{Answer, Closed, Confirms, Waiting};
use super::frames;
use super::handshake::{self, Opened};
use super::{Exchange, Login, PRECONDITION_FAILED, unreachable};
use crate::publishers::socket::{Address, Socket};
use crate::record::Rejection;

/// One connection. It is used until it fails and then given up with all that it still holds: what
/// waits in a client that reconnects by itself would go out later, behind newer events.
pub(super) struct Link {
    publications: mpsc::Sender<Publication>,
    state: watch::Receiver<State>,
    sizes: Arc<Sizes>,
    pub(super) frame_bytes_max: usize,
    driver: AbortHandle,
}

/// How a connection is.
enum State {
    Up,
    /// The server takes nothing at present, for this reason.
    Blocked(String),
    /// It is of no use any more, for this reason.
    Ended(String),
}

/// What is known of the largest message that the server takes, which AMQP does not tell.
struct Sizes {
    /// It has taken one of so many bytes.
    taken: AtomicUsize,
    /// It has said that so many are the most.
    most: AtomicUsize,
}

/// A batch as it goes to the server.
pub(super) struct Publication {
    pub(super) bytes: Vec<u8>,
    /// In the order in which they stand in the bytes.
    pub(super) messages: Vec<Message>,
    /// Takes the place of a message in its batch, and what became of it.
    pub(super) answers: UnboundedSender<(usize, Answer)>,
}

pub(super) struct Message {
    pub(super) channel: ChannelId,
    pub(super) id: Uuid,
    pub(super) place: usize,
    pub(super) bytes: usize,
}

/// Where messages go.
const MAIN: ChannelId = 1;
/// Where a message goes that is larger than any the server has taken: if it is refused, it takes
/// its channel with it, and with the channel all confirmations that are still to come.
const TRIAL: ChannelId = 2;
/// Every server takes a message of so many bytes, or is set to take hardly any.
const TAKEN_BYTES: usize = 64 * 1024;

/// So many batches may wait for the connection.
const PUBLICATIONS_MAX: usize = 16;
/// While so many bytes wait to be written, no batch is taken.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;

impl Link {
    /// Opens a connection, and declares the exchange or looks whether it is there.
    ///
    /// # Errors
    /// `Unreachable`, or `Config` with what must be changed.
    pub(super) async fn open(
        address: &Address,
        login: &Login,
        exchange: &Exchange,
    ) -> Result<Self, Rejection> {
        let opened = handshake::open(address, login, exchange, &[MAIN, TRIAL]).await?;
        let frame_bytes_max = opened.frame_bytes_max;
        let (publications, mut waiting) = mpsc::channel(PUBLICATIONS_MAX);
        let (sender, state) = watch::channel(State::Up);
        let sizes = Arc::new(Sizes {
            taken: AtomicUsize::new(TAKEN_BYTES),
            most: AtomicUsize::new(usize::MAX),
        });
        let mut driver = Driver::new(opened, sender, Arc::clone(&sizes));
        let driver = tokio::spawn(async move {
            let why = driver.run(&mut waiting).await;
            // Before the answers end, so that whoever waits for them knows why.
            driver.state.send_replace(State::Ended(why));
        });
        Ok(Self {
            publications,
            state,
            sizes,
            frame_bytes_max,
            driver: driver.abort_handle(),
        })
    }

    pub(super) fn is_up(&self) -> bool {
        !matches!(*self.state.borrow(), State::Ended(_))
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(*self.state.borrow(), State::Blocked(_))
    }

    /// Why there are no answers.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Up => None,
            State::Blocked(why) => Some(blocked(why)),
            State::Ended(why) => Some(why.clone()),
        }
    }

    /// Waits until the server takes messages.
    ///
    /// # Errors
    /// `Unreachable`, when it does not by the deadline.
    pub(super) async fn unblocked(&self, deadline: Instant) -> Result<(), Rejection> {
        let mut state = self.state.clone();
        let unblocked = state.wait_for(|state| !matches!(state, State::Blocked(_)));
        match timeout_at(deadline, unblocked).await {
            Ok(_) => Ok(()),
            Err(_) => Err(unreachable(self.trouble().unwrap_or_default())),
        }
    }

    /// The channel for a message with a payload of so many bytes, or the most that there may be.
    pub(super) fn channel_for(&self, bytes: usize) -> Result<ChannelId, usize> {
        match self.sizes.most.load(Ordering::Relaxed) {
            most if bytes > most => Err(most),
            _ if bytes > self.sizes.taken.load(Ordering::Relaxed) => Ok(TRIAL),
            _ => Ok(MAIN),
        }
    }

    /// The most bytes that a payload may have, where the server has said so.
    pub(super) fn most(&self) -> usize {
        self.sizes.most.load(Ordering::Relaxed)
    }

    /// Hands a batch over. When the connection ends, its answers end.
    pub(super) async fn publish(&self, publication: Publication, deadline: Instant) {
        let sent = timeout_at(deadline, self.publications.send(publication)).await;
        // What was not handed over is dropped with its senders, and so has no answers either.
        drop(sent);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn blocked(why: &str) -> String {
    format!("RabbitMQ takes no messages at present: {why}")
}

/// Reads and writes at the same time: a server that cannot write does not read.
struct Driver {
    reader: ReadHalf<Socket>,
    writer: WriteHalf<Socket>,
    input: BytesMut,
    output: BytesMut,
    /// There is output, or what was written is not yet flushed.
    has_to_write: bool,
    heartbeat: Option<Interval>,
    last_heard: Instant,
    silence_max: Duration,
    channels: [Channel; 2],
    state: watch::Sender<State>,
    sizes: Arc<Sizes>,
}

#[derive(Default)]
struct Channel {
    confirms: Confirms,
    /// The server is giving a message back, for this reason.
    returning: Option<String>,
}

impl Driver {
    fn new(opened: Opened, state: watch::Sender<State>, sizes: Arc<Sizes>) -> Self {
        let (reader, writer) = split(opened.socket);
        let seconds = u64::from(opened.heartbeat_seconds);
        let heartbeat = (seconds > 0).then(|| {
            let mut heartbeat = interval(Duration::from_millis(500 * seconds));
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            heartbeat
        });
        Self {
            reader,
            writer,
            input: opened.input,
            output: BytesMut::new(),
            has_to_write: false,
            heartbeat,
            last_heard: Instant::now(),
            silence_max: Duration::from_secs(2 * seconds),
            channels: Default::default(),
            state,
            sizes,
        }
    }

    /// Drives the connection to its end, and says why it ended.
    async fn run(&mut self, publications: &mut mpsc::Receiver<Publication>) -> String {
        loop {
            if let Err(why) = self.take_frames() {
                return why;
            }
            let takes_batches = self.output.len() < OUTPUT_BYTES_MAX && !self.is_blocked();
            tokio::select! {
                read = self.reader.read_buf(&mut self.input) => match read {
                    Ok(0) => return "the server closed the connection".into(),
                    Ok(_) => self.last_heard = Instant::now(),
                    Err(error) => return format!("the connection was lost: {error}"),
                },
                written = write(&mut self.writer, &mut self.output), if self.has_to_write => match written {
                    Ok(has_more) => self.has_to_write = has_more,
                    Err(error) => return format!("the connection was lost: {error}"),
                },
                Some(publication) = publications.recv(), if takes_batches => self.take(publication),
                () = tick(&mut self.heartbeat) => {
                    if self.last_heard.elapsed() > self.silence_max {
                        return format!("the server was silent for {:?}", self.silence_max);
                    }
                    if self.output.is_empty() {
                        let mut heartbeat = Vec::new();
                        frames::add_heartbeat(&mut heartbeat);
                        self.say(&heartbeat);
                    }
                }
            }
        }
    }

    fn is_blocked(&self) -> bool {
        matches!(*self.state.borrow(), State::Blocked(_))
    }

    fn take(&mut self, publication: Publication) {
        let Publication {
            bytes,
            messages,
            answers,
        } = publication;
        // Whoever waits no longer will send it again.
        if answers.is_closed() {
            return;
        }
        for message in messages {
            let waiting = Waiting {
                id: message.id,
                bytes: message.bytes,
                place: message.place,
                answers: answers.clone(),
                returned: None,
            };
            self.channel(message.channel).confirms.published(waiting);
        }
        self.say(&bytes);
    }

    fn say(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
        self.has_to_write = true;
    }

    fn channel(&mut self, id: ChannelId) -> &mut Channel {
        &mut self.channels[usize::from(id == TRIAL)]
    }

    fn take_frames(&mut self) -> Result<(), String> {
        loop {
            match frames::take(&mut self.input) {
                Ok(Some(frame)) => self.take_frame(frame)?,
                Ok(None) => return Ok(()),
                Err(frames::Garbled) => return Err("the server sent what is no AMQP".into()),
            }
        }
    }

    fn take_frame(&mut self, frame: AMQPFrame) -> Result<(), String> {
        match frame {
            AMQPFrame::Method(0, AMQPClass::Connection(method)) => self.take_state(method),
            AMQPFrame::Method(id, AMQPClass::Basic(method)) => self.take_confirmation(id, method),
            AMQPFrame::Method(
                id,
                AMQPClass::Channel(channel::AMQPMethod::Close(channel::Close {
                    reply_code,
                    reply_text,
                    ..
                })),
            ) => {
                self.reopen(id, reply_code, reply_text.into());
                Ok(())
            }
            AMQPFrame::Header(id, header) => {
                let channel = self.channel(id);
                let message = header.properties.message_id().as_ref();
                let message = message.and_then(|id| Uuid::try_parse(id.as_str()).ok());
                if let (Some(reason), Some(message)) = (channel.returning.take(), message) {
                    channel.confirms.returned(message, &reason);
                }
                Ok(())
            }
            // The body of what was returned, heartbeats, and answers to what opens a channel again.
            _ => Ok(()),
        }
    }

    fn take_state(&mut self, method: connection::AMQPMethod) -> Result<(), String> {
        match method {
            connection::AMQPMethod::Blocked(connection::Blocked { reason }) => {
                self.state.send_replace(State::Blocked(reason.into()));
            }
            connection::AMQPMethod::Unblocked(_) => {
                self.state.send_replace(State::Up);
            }
            connection::AMQPMethod::Close(close) => {
                return Err(format!(
                    "the server closed the connection: {}",
                    close.reply_text
                ));
            }
            _ => {}
        }
        Ok(())
    }

    fn take_confirmation(
        &mut self,
        id: ChannelId,
        method: basic::AMQPMethod,
    ) -> Result<(), String> {
        let channel = self.channel(id);
        let confirms = &mut channel.confirms;
        let confirmed = match method {
            basic::AMQPMethod::Ack(ack) => confirms.confirmed(ack.delivery_tag, ack.multiple, true),
            basic::AMQPMethod::Nack(nack) => {
                confirms.confirmed(nack.delivery_tag, nack.multiple, false)
            }
            basic::AMQPMethod::Return(returned) => {
                channel.returning = Some(returned.reply_text.into());
                return Ok(());
            }
            _ => return Ok(()),
        };
        let largest = confirmed
            .map_err(|_unfounded| "the server confirmed what was never published".to_owned())?;
        self.sizes.taken.fetch_max(largest, Ordering::Relaxed);
        Ok(())
    }

    /// Opens a channel again that the server closed. Until it hears that we know, it passes over
    /// what we had published behind the message that it did not like.
    fn reopen(&mut self, id: ChannelId, code: u16, text: String) {
        if let Some(most) = largest_allowed(code, &text) {
            self.sizes.most.fetch_min(most, Ordering::Relaxed);
        }
        let channel = self.channel(id);
        channel.returning = None;
        channel.confirms.closed(&Arc::new(Closed { code, text }));
        let mut out = Vec::new();
        let closed = channel::AMQPMethod::CloseOk(channel::CloseOk::default());
        frames::add_method(&mut out, id, AMQPClass::Channel(closed));
        for method in handshake::opening() {
            frames::add_method(&mut out, id, method);
        }
        self.say(&out);
    }
}

/// Writes some output, or flushes what was written of it; answers whether there is more to do. An
/// encrypted connection keeps the end of what it was given until it is flushed.
async fn write(writer: &mut WriteHalf<Socket>, output: &mut BytesMut) -> io::Result<bool> {
    if output.is_empty() {
        return writer.flush().await.map(|()| false);
    }
    match writer.write_buf(output).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(true),
    }
}

async fn tick(heartbeat: &mut Option<Interval>) {
    match heartbeat {
        Some(heartbeat) => {
            heartbeat.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// The most bytes that a message may have, where this is why the channel was closed:
/// "message size 268 is larger than configured max size 200".
fn largest_allowed(code: u16, text: &str) -> Option<usize> {
    if code != PRECONDITION_FAILED || !text.contains("message size ") {
        return None;
    }
    let (_, most) = text.rsplit_once("max size ")?;
    let digits = most.find(|c: char| !c.is_ascii_digit());
    most[..digits.unwrap_or(most.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_is_learnt_from_what_the_server_says() {
        for (text, most) in [
            (
                "PRECONDITION_FAILED - message size 760000 is larger than configured max size 200000",
                Some(200_000),
            ),
            (
                "PRECONDITION_FAILED - message size 9 is larger than max size 536870912.",
                Some(536_870_912),
            ),
            ("PRECONDITION_FAILED - inequivalent arg 'max size 7'", None),
            (
                "PRECONDITION_FAILED - message size 9 is larger than max size ",
                None,
            ),
        ] {
            assert_eq!(largest_allowed(PRECONDITION_FAILED, text), most, "{text}");
        }
        assert_eq!(largest_allowed(404, "message size 1 max size 2"), None);
    }
}
