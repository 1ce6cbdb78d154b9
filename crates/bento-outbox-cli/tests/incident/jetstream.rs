//! A NATS server with one stream, set up and read by nothing but the protocol's own lines.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::LARGE;
use crate::place::eventually;
use crate::telemetry::free_port;

pub(super) struct JetStream {
    server: Child,
    port: u16,
    _folder: TempDir,
}

impl JetStream {
    /// Its stream takes no message that is large.
    pub(super) fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new("nats-server");
        command
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
            .arg(folder.path())
            .stderr(Stdio::null());
        let server = command
            .spawn()
            .unwrap_or_else(|error| panic!("nats-server: {error}; `cargo x test` installs it"));
        eventually(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        let bus = Self {
            server,
            port,
            _folder: folder,
        };
        bus.set("CREATE", -1, LARGE as i64 / 2);
        bus
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}?stream=NIGHT", self.port)
    }

    /// No byte more than it has.
    pub(super) fn fill(&self) {
        let bytes = self.state()["bytes"].as_i64().unwrap();
        self.set("UPDATE", bytes, LARGE as i64 / 2);
    }

    /// For messages of any size.
    pub(super) fn make_room(&self) {
        self.set("UPDATE", -1, -1);
    }

    pub(super) fn messages(&self) -> u64 {
        self.state()["messages"].as_u64().unwrap()
    }

    /// Where the message of a subject stands in the stream, and where the last of all.
    pub(super) fn place_of(&self, subject: &str) -> (u64, u64) {
        let found = self.ask("MSG.GET", &json!({ "last_by_subj": subject }));
        let last = &self.state()["last_seq"];
        (
            found["message"]["seq"].as_u64().unwrap(),
            last.as_u64().unwrap(),
        )
    }

    fn set(&self, how: &str, max_bytes: i64, max_msg_size: i64) {
        let stream = json!({
            "name": "NIGHT", "subjects": ["order.>", "invoice.>"], "storage": "file", "discard": "new",
            "retention": "limits", "num_replicas": 1, "max_bytes": max_bytes, "max_msg_size": max_msg_size,
        });
        self.ask(how, &stream);
    }

    fn state(&self) -> Value {
        self.ask("INFO", &Value::Null)["state"].take()
    }

    fn ask(&self, what: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(
            stream,
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\n\
             PUB $JS.API.STREAM.{what}.NIGHT answer {}\r\n{body}\r\n",
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let length = loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.starts_with("MSG ") {
                break line.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
            }
        };
        let mut answer = vec![0; length];
        reader.read_exact(&mut answer).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["error"].is_null(), "{what}: {answer}");
        answer
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
