//! A Prometheus with the alerts of `deploy/`, on a clock that runs sixty times as fast.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::place::eventually;
use crate::telemetry::{free_port, get};

pub(super) struct Prometheus {
    server: Child,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    /// Looks at the relays each second.
    pub(super) fn start(relays: &[u16]) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let rules =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/prometheus/rules.yaml");
        let rules = quickened(fs::read_to_string(rules).unwrap());
        fs::write(folder.path().join("rules.yaml"), rules).unwrap();
        let targets: Vec<String> = relays
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let settings = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yaml]\n\
             scrape_configs: [{{job_name: bento-outbox, static_configs: [{{targets: {targets:?}}}]}}]\n"
        );
        fs::write(folder.path().join("prometheus.yml"), settings).unwrap();
        let mut command = Command::new("prometheus");
        command
            .current_dir(folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stderr(Stdio::null());
        let server = command
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus: {error}; `cargo x test` installs it"));
        eventually(|| get(port, "/-/ready").is_some_and(|said| said.contains("Ready")));
        Self {
            server,
            port,
            _folder: folder,
        }
    }

    /// The lines of an answer, each `series => value @[time]`.
    pub(super) fn ask(&self, query: &str) -> String {
        let url = format!("http://127.0.0.1:{}", self.port);
        let output = Command::new("promtool")
            .args(["query", "instant", &url, query])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The names of the alerts that somebody would be woken by.
    pub(super) fn firing(&self) -> BTreeSet<String> {
        let lines = self.ask("ALERTS{alertstate=\"firing\"}");
        let name = |line: &str| {
            let (_, after) = line.split_once("alertname=\"")?;
            Some(after.split_once('"')?.0.to_string())
        };
        lines.lines().filter_map(name).collect()
    }
}

/// Minutes become seconds, and so do the thresholds that are ages; a flood is a thousand events.
fn quickened(mut rules: String) -> String {
    for minutes in [1, 2, 3, 5, 10, 15] {
        for (before, after) in [("for: ", "\n"), ("[", "]")] {
            let slow = format!("{before}{minutes}m{after}");
            rules = rules.replace(&slow, &format!("{before}{minutes}s{after}"));
        }
    }
    for (slow, quick) in [
        ("> 120\n", "> 2\n"),
        ("> 300\n", "> 5\n"),
        ("> 10000\n", "> 1000\n"),
    ] {
        assert!(rules.contains(slow), "{slow:?} is in no rule");
        rules = rules.replace(slow, quick);
    }
    let is_slow = |line: &&str| line.contains("for: ") && line.ends_with('m');
    assert_eq!(rules.lines().find(is_slow), None);
    rules
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
