//! Chromium without a window, driven by WebDriver.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::admin::sent;

/// A browser with one tab. It ends when this is dropped.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .args(["--port=0", "--log-level=SEVERE"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("this test needs chromedriver ({error}); `cargo x test` installs it")
            });
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            let (_, port) = line.split_once("successfully on port ")?;
            port.trim_end_matches('.').parse().ok()
        });
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self {
            driver,
            port: port.expect("chromedriver says its port"),
            session: String::new(),
            _profile: profile,
        };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.told("POST", "/session", &wanted);
        let id = session["sessionId"].as_str().unwrap();
        browser.session = format!("/session/{id}");
        browser
    }

    /// Opens an address, and waits until it is there.
    pub(crate) fn go(&self, url: &str) {
        self.in_session("POST", "/url", &json!({ "url": url }));
    }

    /// Follows a link within the page.
    pub(crate) fn go_to(&self, section: &str) {
        self.run("location.hash = arguments[0]", json!([section]));
    }

    /// What a script answers.
    pub(crate) fn run(&self, script: &str, arguments: Value) -> Value {
        let call = json!({ "script": script, "args": arguments });
        self.in_session("POST", "/execute/sync", &call)
    }

    pub(crate) fn title(&self) -> String {
        let title = self.in_session("GET", "/title", &Value::Null);
        title.as_str().unwrap().to_owned()
    }

    /// What the browser complains of: scripts that fail, and what the page's policy forbids.
    pub(crate) fn complaints(&self) -> Vec<Value> {
        let log = self.in_session("POST", "/se/log", &json!({ "type": "browser" }));
        let mut log = log.as_array().unwrap().clone();
        log.retain(|entry| entry["level"] == "SEVERE");
        log
    }

    fn in_session(&self, method: &str, path: &str, body: &Value) -> Value {
        self.told(method, &format!("{}{path}", self.session), body)
    }

    fn told(&self, method: &str, path: &str, body: &Value) -> Value {
        let headers = "Host: localhost\r\nContent-Type: application/json\r\n";
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let answer = sent(self.port, &format!("{method} {path}"), headers, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        answer["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // Chromium is the driver's child, not ours.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.in_session("DELETE", "", &Value::Null);
            }));
            drop(ended);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
