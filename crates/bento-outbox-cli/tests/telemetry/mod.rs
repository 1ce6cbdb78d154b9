//! What a running relay says of itself: metrics, log lines, traces, to systemd; and the files that watch it.

mod deploy;
mod full;
mod logs;
mod metrics;
#[cfg(target_os = "linux")]
mod systemd;
mod traces;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A server of HTTP on a free port, for as long as the test runs.
pub(crate) struct Receiver {
    pub(crate) port: u16,
}

/// A request that it got.
pub(crate) struct Request {
    pub(crate) path: String,
    /// By their names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Receiver {
    /// Answers each request with the bytes that `answer` makes of it.
    pub(crate) fn start(answer: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, answer)
    }

    /// The same on a port that was chosen before.
    pub(crate) fn on(
        listener: TcpListener,
        answer: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let answer = answer.clone();
                std::thread::spawn(move || {
                    // Who asks may go away at any time.
                    let _ = serve(stream?, answer.as_ref());
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        Self { port }
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(Request) -> Vec<u8>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_string();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_string());
        }
        let length = headers
            .get("content-length")
            .map_or(0, |text| text.parse().unwrap());
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request = Request {
            path,
            headers,
            body,
        };
        stream.write_all(&answer(request))?;
    }
}

/// An answer with that status line and body.
pub(crate) fn answered(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A webhook that takes no event of the type `bad`, ever, and none of the type `odd`.
pub(crate) fn picky() -> Receiver {
    Receiver::start(|request| match request.headers["ce-type"].as_str() {
        "bad" => answered("413 Content Too Large", "no"),
        "odd" => answered("422 Unprocessable Content", "no"),
        _ => answered("200 OK", ""),
    })
}

/// A port on which nobody listens, nor will unless told to: it lies below those that the kernel gives to
/// clients and to whoever asks for any, and no other test gets it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(127);
    let nobody_listens = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)))
        .map(|number| 15_000 + (number % 17_000) as u16)
        .find(nobody_listens)
        .unwrap()
}

/// What `path` of a relay's address answers; none while nobody answers there.
pub(crate) fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_string())
}

/// Where `cargo x test` has put what is in wheels.
pub(crate) fn tool(path: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .unwrap();
    let tool = cache.join("bento-outbox/servers").join(path);
    assert!(
        tool.exists(),
        "{} is missing; `cargo x test` installs it",
        tool.display()
    );
    tool
}
