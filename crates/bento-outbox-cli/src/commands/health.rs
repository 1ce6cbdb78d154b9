//! `health`: whether the relay of this machine can carry events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::terminal;

/// Ask the relay of this machine whether it can carry events
///
/// Asks the `run` that answers at admin_addr, and exits with 0 if its database and its bus answer, with 1
/// and the reason if not: what containers and scripts check. With --live it is enough that the process
/// answers. No token is needed.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox health
  bento-outbox health --live")]
pub(crate) struct Health {
    /// Only whether the process answers
    #[arg(long)]
    live: bool,
}

/// How long the answer may take: the relay itself waits for database and bus for three seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

impl Health {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let Some(address) = settings.admin_addr else {
            return Err(settings.refuse("admin_addr", "is off, so no relay can be asked there"));
        };
        let path = if self.live {
            "/health/live"
        } else {
            "/health/ready"
        };
        let (status, body) = asked(address, path).await?;
        if status == 200 {
            terminal::say(body["status"].as_str().unwrap_or("healthy"));
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::failed(reasons(&body)))
    }
}

/// What the relay of this machine answers to `path` at its `admin_addr`: the status, and what it says.
///
/// # Errors
/// When nobody answers there, or no relay.
pub(super) async fn asked(address: SocketAddr, path: &str) -> Result<(u16, Value)> {
    let address = reachable(address);
    let away = |what: &str| {
        Failure::failed(format!(
            "no relay answers at {address} (admin_addr): {what}"
        ))
    };
    let answer = match timeout(PATIENCE, ask(address, path)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(away(&error.to_string())),
        Err(_) => return Err(away(&format!("nothing came within {PATIENCE:?}"))),
    };
    parsed(&answer).ok_or_else(|| away("what answers is no relay"))
}

/// An address that stands for all of the machine's is asked at the loopback one.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The status of an answer, and its body.
fn parsed(answer: &str) -> Option<(u16, Value)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body: Value = serde_json::from_str(body).ok()?;
    body["status"].is_string().then_some((status, body))
}

/// `not ready: the database: …; the bus: …`.
fn reasons(body: &Value) -> String {
    let of = |name: &str| Some(format!("the {name}: {}", body[name].as_str()?));
    let reasons: Vec<String> = ["database", "bus"].into_iter().filter_map(of).collect();
    let status = body["status"].as_str().unwrap_or("not ready");
    match reasons.is_empty() {
        true => status.into(),
        false => format!("{status}: {}", reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_what_is_wrong() {
        let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\r\n";
        let answer = format!(r#"{head}{{"status":"not ready","bus":"no route"}}"#);
        let (status, body) = parsed(&answer).unwrap();
        assert_eq!(
            (status, reasons(&body).as_str()),
            (503, "not ready: the bus: no route")
        );
        for strange in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\n\r\n{}",
        ] {
            assert!(parsed(strange).is_none(), "{strange}");
        }
    }

    #[test]
    fn all_addresses_are_asked_at_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.0.0.1:1"), "10.0.0.1:1");
    }
}
