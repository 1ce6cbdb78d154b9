//! A connection to Redis.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisConnectionInfo, RedisError, Value, cmd,
};
use tokio::task::{AbortHandle, unconstrained};

use super::server::{SETTINGS, Server};
use super::{misconfigured, unreachable};
use crate::publishers::socket::Address;
use crate::record::Rejection;

/// One connection. It is used until it fails and then given up with all that it still holds: what
/// waits in a client that reconnects by itself would go out later, behind newer events.
pub(super) struct Link {
    connection: MultiplexedConnection,
    pub(super) server: Server,
    driver: AbortHandle,
}

/// The answers to commands that were handed over together.
pub(super) struct Answers {
    future: Pin<Box<dyn Future<Output = Heard> + Send>>,
    /// Where they came at once.
    there: Option<Heard>,
}

/// An answer to each command, of which the server's refusal is one; or what happened to them all.
type Heard = Result<Vec<Value>, RedisError>;

/// So many groups of commands may wait in the client: more than all batches under way have records.
const GROUPS_MAX: usize = 1 << 16;
/// So much is written at once.
const OUTPUT_BYTES: usize = 64 * 1024;

impl Link {
    /// Opens a connection, logs in and asks the server about itself.
    ///
    /// # Errors
    /// `Unreachable`, or `Config` with what must be changed.
    pub(super) async fn open(
        address: &Address,
        login: &RedisConnectionInfo,
    ) -> Result<Self, Rejection> {
        let socket = address.connect().await?;
        let config = AsyncConnectionConfig::new()
            // The batch and not the client sets the limit.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(GROUPS_MAX)
            .set_write_backpressure_boundary(OUTPUT_BYTES);
        let opened = MultiplexedConnection::new_with_config(login, socket, config).await;
        let (connection, driver) = opened.map_err(|error| not_opened(address, login, &error))?;
        let mut link = Self {
            connection,
            server: Server::of(None, HashMap::new()),
            driver: tokio::spawn(driver).abort_handle(),
        };
        link.server = link.ask(address, login).await?;
        Ok(link)
    }

    pub(super) fn is_up(&self) -> bool {
        !self.driver.is_finished()
    }

    /// Hands commands over. They go out in the order in which they were handed over.
    pub(super) async fn send(&self, commands: Pipeline) -> Answers {
        let mut connection = self.connection.clone();
        let mut future = Box::pin(async move {
            let count = commands.len();
            connection.send_packed_commands(&commands, 0, count).await
        });
        let handed_over = poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(heard) => Poll::Ready(Some(heard)),
            Poll::Pending => Poll::Ready(None),
        });
        // Otherwise tokio would hold commands back in the midst of a large batch, so that its task
        // rests, and each of them would go out when the one before was answered.
        let there = unconstrained(handed_over).await;
        Answers { there, future }
    }

    async fn say(&self, command: Cmd) -> Result<Value, RedisError> {
        let mut commands = Pipeline::new();
        commands.add_command(command);
        let mut heard = self.send(commands).await.heard().await?;
        heard.pop().unwrap_or(Value::Nil).extract_error()
    }

    /// What the server says of itself, as far as this user may ask.
    async fn ask(
        &self,
        address: &Address,
        login: &RedisConnectionInfo,
    ) -> Result<Server, Rejection> {
        let lost = |error: &RedisError| {
            // Only what the server answered is an answer.
            match error.code() {
                Some("LOADING" | "MASTERDOWN") | None => Err(not_opened(address, login, error)),
                Some("NOAUTH") => Err(misconfigured(format!(
                    "{address} wants a password: name user and password in bus_url ({error})"
                ))),
                Some(_) => Ok(()),
            }
        };
        let info = match self.say(cmd("INFO")).await {
            Ok(info) => Some(text(&info)),
            Err(error) => lost(&error).map(|()| None)?,
        };
        let mut settings = HashMap::new();
        for name in SETTINGS {
            let mut command = cmd("CONFIG");
            command.arg("GET").arg(name);
            match self.say(command).await {
                Ok(Value::Array(pair)) if pair.len() == 2 => {
                    settings.insert(name.to_owned(), text(&pair[1]));
                }
                Ok(_) => {}
                Err(error) => lost(&error)?,
            }
        }
        Ok(Server::of(info.as_deref(), settings))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Answers {
    pub(super) async fn heard(self) -> Heard {
        match self.there {
            Some(heard) => heard,
            None => self.future.await,
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

fn not_opened(address: &Address, login: &RedisConnectionInfo, error: &RedisError) -> Rejection {
    let place = match login.db() {
        0 => address.to_string(),
        number => format!("{address}, database {number}"),
    };
    match error.kind() {
        ErrorKind::AuthenticationFailed => misconfigured(format!(
            "{address} refuses user or password: {}",
            error.code().unwrap_or("wrong, or the user is disabled")
        )),
        // The number of the database, or what no Redis says.
        ErrorKind::Server(_) | ErrorKind::Extension | ErrorKind::Parse | ErrorKind::Client => {
            misconfigured(format!("opening a connection to {place}: {error}"))
        }
        _ => unreachable(format!("opening a connection to {place}: {error}")),
    }
}
