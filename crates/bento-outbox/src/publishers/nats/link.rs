//! A connection to NATS.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{Context, ContextBuilder};
use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::sync::watch;
use url::Url;

use super::super::options::invalid;
use crate::error::Result;
use crate::record::{Outcome, Rejection, RejectionClass};

/// One connection. It is used until it fails and then given up with all that it still holds: what
/// waits in a client that reconnects by itself would go out later, behind newer events.
pub(super) struct Link {
    pub(super) context: Context,
    news: watch::Receiver<News>,
}

/// What the server said of a connection, outside of any answer.
#[derive(Default)]
pub(super) struct News {
    lost: bool,
    /// The refusals to publish to a subject that this user has no permission for.
    forbidden: Vec<String>,
}

/// Where the servers of one cluster are, and who connects. Shown without the credentials.
pub(super) struct Servers {
    addresses: Vec<ServerAddr>,
    credentials: Option<Credentials>,
}

enum Credentials {
    User { name: String, password: String },
    Token(String),
}

/// How long one address may take to answer; less than a batch has, so that its outcome is
/// "unreachable" and not "unknown".
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// More than all batches under way have records: the batch and not the client sets the limit.
const IN_FLIGHT_MAX: usize = 1 << 20;

impl Servers {
    /// The server of `url` and `more` of its cluster.
    pub(super) fn of(url: &Url, more: &[String]) -> Result<Self> {
        let scheme = url.scheme();
        if !["nats", "tls"].contains(&scheme) {
            return Err(invalid("the scheme is neither nats nor tls"));
        }
        let address = |url: &Url| -> Option<ServerAddr> {
            let host = url.host_str().filter(|host| !host.is_empty())?;
            let port = url.port().unwrap_or(4_222);
            let bare = format!("{scheme}://{host}:{port}").parse().ok()?;
            ["", "/"].contains(&url.path()).then_some(bare)
        };
        let first = address(url).ok_or_else(|| {
            invalid("a nats URL has a host and no path: name the stream by ?stream=NAME")
        })?;
        let mut addresses = vec![first];
        for server in more {
            let url = Url::parse(&format!("{scheme}://{server}")).ok();
            addresses.push(url.as_ref().and_then(address).ok_or_else(|| {
                invalid("option servers is not a list of HOST:PORT with commas between")
            })?);
        }
        Ok(Self {
            addresses,
            credentials: Credentials::of(url),
        })
    }

    /// Connects; `timeout` is for what is asked of the connection later.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<Link, Rejection> {
        let (sender, news) = watch::channel(News::default());
        let sender = Arc::new(sender);
        let mut options = ConnectOptions::new()
            .name("bento-outbox")
            .connection_timeout(CONNECT_TIMEOUT)
            .ignore_discovered_servers()
            // Enough to try each address once; then a client that was given up ends.
            .max_reconnects(self.addresses.len())
            .event_callback(move |event| {
                let sender = Arc::clone(&sender);
                async move { sender.send_modify(|news| news.hear(&event)) }
            });
        options = match &self.credentials {
            Some(Credentials::User { name, password }) => {
                options.user_and_password(name.clone(), password.clone())
            }
            Some(Credentials::Token(token)) => options.token(token.clone()),
            None => options,
        };
        let connected = options.connect(&self.addresses[..]).await;
        let client = connected.map_err(|error| {
            let class = match error.kind() {
                ConnectErrorKind::Authentication
                | ConnectErrorKind::AuthorizationViolation
                | ConnectErrorKind::Tls
                | ConnectErrorKind::ServerParse => RejectionClass::Config,
                _ => RejectionClass::Unreachable,
            };
            Rejection::new(class, format!("cannot connect to {self}: {error}"))
        })?;
        let context = ContextBuilder::new()
            .timeout(timeout)
            .max_ack_inflight(IN_FLIGHT_MAX)
            .build(client);
        Ok(Link { context, news })
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(ServerAddr::as_url_str).collect();
        f.write_str(&addresses.join(", "))
    }
}

impl Credentials {
    fn of(url: &Url) -> Option<Self> {
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let name = Some(url.username()).filter(|name| !name.is_empty())?;
        Some(match url.password() {
            Some(password) => Self::User {
                name: decoded(name),
                password: decoded(password),
            },
            None => Self::Token(decoded(name)),
        })
    }
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.is_trusted() && self.context.client().connection_state() == State::Connected
    }

    /// Whether nothing was heard but answers.
    pub(super) fn is_trusted(&self) -> bool {
        let news = self.news.borrow();
        !news.lost && news.forbidden.is_empty()
    }

    /// The news of the connection, to be waited for beside the answers.
    pub(super) fn news(&self) -> watch::Receiver<News> {
        self.news.clone()
    }
}

impl News {
    /// Waits for news that leave a message to `subject` without an answer.
    pub(super) async fn trouble(news: &mut watch::Receiver<Self>, subject: &str) -> Outcome {
        match news
            .wait_for(|news| news.lost || news.forbids(subject))
            .await
        {
            Ok(news) if news.forbids(subject) => {
                let reason = format!(
                    "no permission to publish to subject {subject}: the server's settings must give it to the user"
                );
                Outcome::rejected(RejectionClass::Blocked, reason)
            }
            _ => Outcome::unknown("the connection was lost before the answer came"),
        }
    }

    fn forbids(&self, subject: &str) -> bool {
        let quoted = |text: &String| text.contains(&format!("\"{subject}\""));
        self.forbidden.iter().any(quoted)
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::Disconnected | Event::Closed => self.lost = true,
            Event::ServerError(error) => {
                let text = error.to_string();
                if text.contains("Permissions Violation for Publish") {
                    self.forbidden.push(text);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let url = Url::parse("tls://bob:p%40ss@a").unwrap();
        let servers = Servers::of(&url, &["b:1".into(), "[::1]".into()]).unwrap();
        assert_eq!(
            servers.to_string(),
            "tls://a:4222, tls://b:1, tls://[::1]:4222"
        );
        let Some(Credentials::User { name, password }) = servers.credentials else {
            panic!("no user");
        };
        assert_eq!((name.as_str(), password.as_str()), ("bob", "p@ss"));
        let token = Credentials::of(&Url::parse("nats://t0ken@a").unwrap());
        assert!(matches!(token, Some(Credentials::Token(token)) if token == "t0ken"));
    }
}
