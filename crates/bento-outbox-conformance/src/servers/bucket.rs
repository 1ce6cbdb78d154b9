//! An S3 bucket in memory: as much of S3 as Tansu asks for.
//!
//! Tansu keeps what it acknowledges in an object store. The bucket lives in the test process, so
//! that it outlives every `kill -9` of the broker, and goes with the test.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use percent_encoding::percent_decode_str;
use url::Url;

/// A running server of one bucket; it ends when this is dropped.
pub(super) struct Bucket {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

/// The objects, and how many there ever were: each version has a tag of its own.
#[derive(Default)]
struct Objects {
    by_key: BTreeMap<String, Object>,
    versions: u64,
}

#[derive(Clone)]
struct Object {
    tag: String,
    body: Arc<[u8]>,
}

struct Request {
    method: String,
    /// Path and query, as sent.
    target: Url,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    tag: Option<String>,
    body: Arc<[u8]>,
}

impl Bucket {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap_or_else(|e| panic!("no port on 127.0.0.1 for a bucket: {e}"));
        let address = listener.local_addr();
        let address = address.unwrap_or_else(|e| panic!("a bound socket has no address: {e}"));
        let ended = Arc::new(AtomicBool::new(false));
        let (ending, objects) = (Arc::clone(&ended), Arc::default());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                let objects = Arc::clone(&objects);
                thread::spawn(move || serve(client, &objects));
            }
        });
        Self { address, ended }
    }

    /// What Tansu's environment must say for this bucket.
    pub(super) fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_DEFAULT_REGION", "local".into()),
            ("AWS_ACCESS_KEY_ID", "nobody".into()),
            ("AWS_SECRET_ACCESS_KEY", "nothing".into()),
            // A proxy for the world is none for this machine.
            ("NO_PROXY", "*".into()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        TcpStream::connect(self.address).ok();
    }
}

/// Answers one connection until the client hangs up.
fn serve(client: TcpStream, objects: &Mutex<Objects>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut writer = client.try_clone()?;
    let mut reader = BufReader::new(client);
    while let Some(request) = Request::read(&mut reader)? {
        let answer = objects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answer(&request);
        answer.write(&request.method, &mut writer)?;
    }
    Ok(())
}

impl Objects {
    fn answer(&mut self, request: &Request) -> Answer {
        // The first part of the path is the bucket's name.
        let path = request.target.path().trim_start_matches('/');
        let key = path.split_once('/').map_or("", |(_, key)| key);
        let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
        let there = self.by_key.get(&key);
        let is = |header: &str| {
            let wanted = request.headers.get(header)?;
            Some(there.is_some_and(|object| wanted == "*" || *wanted == object.tag))
        };
        match (request.method.as_str(), key.as_str()) {
            ("GET", "") => Answer::body(self.list(&request.target)),
            ("GET" | "HEAD", _) => match there {
                None => Answer::status("404 Not Found"),
                Some(_) if is("if-none-match") == Some(true) => Answer::status("304 Not Modified"),
                Some(object) => Answer {
                    status: "200 OK",
                    tag: Some(object.tag.clone()),
                    body: Arc::clone(&object.body),
                },
            },
            ("PUT", _) if is("if-match") == Some(false) || is("if-none-match") == Some(true) => {
                Answer::status("412 Precondition Failed")
            }
            ("PUT", _) => {
                self.versions += 1;
                let tag = format!("\"{}\"", self.versions);
                let body = request.body.as_slice().into();
                let object = Object {
                    tag: tag.clone(),
                    body,
                };
                self.by_key.insert(key, object);
                Answer {
                    tag: Some(tag),
                    ..Answer::status("200 OK")
                }
            }
            ("DELETE", _) => {
                self.by_key.remove(&key);
                Answer::status("204 No Content")
            }
            _ => Answer::status("501 Not Implemented"),
        }
    }

    /// All keys that begin with the asked prefix, on one page.
    fn list(&self, target: &Url) -> String {
        let prefix = target.query_pairs().find(|(name, _)| name == "prefix");
        let prefix = prefix.map_or_else(String::new, |(_, prefix)| prefix.into_owned());
        let mut page = String::from("<ListBucketResult>");
        let listed = self.by_key.range(prefix.clone()..);
        for (key, object) in listed.take_while(|(key, _)| key.starts_with(&prefix)) {
            page += &format!(
                "<Contents><Key>{key}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>\
                 <ETag>{}</ETag><Size>{}</Size></Contents>",
                object.tag,
                object.body.len()
            );
        }
        page + "<IsTruncated>false</IsTruncated></ListBucketResult>"
    }
}

impl Request {
    /// The next request of a connection; none at its end.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = format!("http://bucket{}", words.next().unwrap_or_default());
        let target = Url::parse(&target).map_err(io::Error::other)?;
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or("0", String::as_str);
        let mut body = vec![0; length.parse().map_err(io::Error::other)?];
        reader.read_exact(&mut body)?;
        Ok(Some(Self {
            method,
            target,
            headers,
            body,
        }))
    }
}

impl Answer {
    fn status(status: &'static str) -> Self {
        Self {
            status,
            tag: None,
            body: Arc::default(),
        }
    }

    fn body(text: String) -> Self {
        Self {
            body: text.into_bytes().into(),
            ..Self::status("200 OK")
        }
    }

    fn write(&self, method: &str, writer: &mut impl Write) -> io::Result<()> {
        let mut answer = format!(
            "HTTP/1.1 {}\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: {}\r\n",
            self.status,
            self.body.len()
        );
        if let Some(tag) = &self.tag {
            answer += &format!("ETag: {tag}\r\n");
        }
        answer += "\r\n";
        let mut answer = answer.into_bytes();
        if method != "HEAD" {
            answer.extend_from_slice(&self.body);
        }
        writer.write_all(&answer)
    }
}
