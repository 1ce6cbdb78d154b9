//! Broken configurations: each stops with exit code 2, names the setting and its origin, and shows
//! no secret.

use std::time::Duration;

use super::*;

/// Stands wherever a secret may stand.
const CANARY: &str = "s3cr3t-canary";

/// Settings from a file's text, variables `NAME=value`, and the two URLs of the command line.
#[derive(Default)]
struct Given<'a> {
    file: &'a str,
    variables: &'a [&'a str],
    database_url: Option<&'a str>,
}

impl Given<'_> {
    fn load(&self) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("outbox.toml");
        std::fs::write(&config, self.file).unwrap();
        let flags = Flags {
            config: Some(config),
            database_url: self.database_url.map(Into::into),
            bus_url: None,
        };
        let variables = self
            .variables
            .iter()
            .map(|variable| variable.split_once('=').unwrap());
        Settings::from(
            &flags,
            variables.map(|(name, value)| (name.into(), value.into())),
        )
    }
}

fn file(text: &str) -> Result<Settings> {
    Given {
        file: text,
        ..Given::default()
    }
    .load()
}

fn variables(variables: &[&str]) -> Result<Settings> {
    Given {
        variables,
        ..Given::default()
    }
    .load()
}

fn text<'a>(settings: &'a Settings, name: &str) -> (&'a str, &'static str) {
    let given = settings.in_force.get(name).unwrap();
    (&given.text, given.origin.word())
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let settings = Given {
        file: "table = \"a\"\nbatch_size = 7\ndatabase_url = \"sqlite://file.db\"",
        variables: &[
            "OUTBOX_BATCH_SIZE=8",
            "OUTBOX_DATABASE_URL=sqlite://env.db",
            "PATH=/bin",
        ],
        database_url: Some("sqlite://flag.db"),
    }
    .load()
    .unwrap();
    assert_eq!(
        text(&settings, "database_url"),
        ("sqlite://flag.db", "flag")
    );
    assert_eq!(text(&settings, "batch_size"), ("8", "environment"));
    assert_eq!(text(&settings, "table"), ("a", "file"));
    assert_eq!(text(&settings, "max_retry"), ("5", "default"));
    assert_eq!(settings.projector.batch_size, 8);
    assert_eq!(settings.tables.table(), "a");
}

#[test]
fn the_defaults_are_the_librarys_own() {
    let settings = file("").unwrap();
    // A service that uses the library says by itself what is deleted and counted; the program keeps
    // a week, and remembers what was received for a month.
    let theirs = ProjectorSettings {
        retention: Some(Duration::from_secs(7 * 86_400)),
        inbox_retention: Some(Duration::from_secs(30 * 86_400)),
        command_retention: Some(Duration::from_secs(7 * 86_400)),
        count_backlog_every: Some(Duration::from_secs(5)),
        ..ProjectorSettings::default()
    };
    let ours = &settings.projector;
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(settings.tables, Tables::default());
    assert_eq!(settings.cloud_events, CloudEvents::default());
    assert_eq!(settings.topic, TopicTemplate::default());
    assert!(settings.routes.is_empty());
}

#[test]
fn durations_are_read_from_text_and_numbers() {
    let settings = file("poll_interval_idle = 2\npoll_interval_busy = 0.25\nretry_max_delay = \"1h\"\nretention = 0").unwrap();
    assert_eq!(
        settings.projector.poll_interval_idle,
        Duration::from_secs(2)
    );
    assert_eq!(
        settings.projector.poll_interval_busy,
        Duration::from_millis(250)
    );
    assert_eq!(
        settings.projector.retry.max_delay,
        Duration::from_secs(3_600)
    );
    assert_eq!(settings.projector.retention, Some(Duration::ZERO));
}

#[test]
fn sent_events_are_kept_for_a_time_for_ever_or_not_at_all() {
    for (text, kept) in [
        ("forever", None),
        ("0", Some(0)),
        ("0s", Some(0)),
        ("30d", Some(30 * 86_400)),
        ("36500d", Some(36_500 * 86_400)),
    ] {
        let settings = variables(&[&format!("OUTBOX_RETENTION={text}")]).unwrap();
        let kept = kept.map(Duration::from_secs);
        assert_eq!(settings.projector.retention, kept, "{text}");
    }
}

#[test]
fn leases_and_shutdown_are_as_set() {
    let settings = file("lease_ttl = \"3s\"\nshutdown_timeout = 0").unwrap();
    assert_eq!(settings.projector.lease_term, Duration::from_secs(3));
    assert_eq!(settings.shutdown_timeout, Duration::ZERO);
}

#[test]
fn a_variable_can_name_a_file_whose_last_newline_is_no_part() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("url");
    std::fs::write(&secret, "postgres://bob:pw@db/x\r\n").unwrap();
    let settings = variables(&[&format!("OUTBOX_DATABASE_URL_FILE={}", secret.display())]).unwrap();
    assert_eq!(
        text(&settings, "database_url"),
        ("postgres://bob:pw@db/x", "environment")
    );
}

#[test]
fn what_would_be_dangerous_to_ignore_is_refused() {
    let refused = |settings: Result<Settings>| {
        settings
            .unwrap()
            .refuse_unsupported()
            .unwrap_err()
            .to_string()
    };
    for (said, name) in [
        (
            refused(file("encryption_keys = \"a=b\"")),
            "encryption_keys (",
        ),
        (
            refused(file("encryption_keys = \"a=b\"\nencryption_key_id = \"a\"")),
            "encryption_key",
        ),
        (
            refused(file("[tenants.acme]\nencryption_key_id = \"a\"")),
            "[tenants.acme] (",
        ),
    ] {
        assert!(
            said.starts_with(name) && said.ends_with("is not supported by this version yet"),
            "{said}"
        );
    }
    let harmless = "admin_addr = \"off\"\nlease_ttl = 5\non_dead_letter = \"block\"";
    let harmless = file(harmless).unwrap();
    harmless.refuse_unsupported().unwrap();
    assert!(harmless.projector.dead_letters_block);
}

#[test]
fn routes_choose_bus_and_topic() {
    let settings = file(
        "bus_url = \"nats://main\"\ntopic = \"all.{type}\"\n\
         [[routes]]\ntype = \"order.*\"\ntenant = \"acme\"\ntopic = \"orders\"\nbus = \"nats://other\"\n\
         [[routes]]\ntype = \"order.*\"\nbus = \"nats://other\"\n\
         [[routes]]\ntenant = \"eu-*\"\ntopic = \"eu.{type}\"\n",
    )
    .unwrap();
    settings.refuse_unsupported().unwrap();
    let lines: Vec<String> = settings
        .routes
        .iter()
        .map(|route| route.origin.to_string())
        .collect();
    for (line, at) in std::iter::zip(lines, [3, 8, 11]) {
        assert!(line.ends_with(&format!("outbox.toml line {at}")), "{line}");
    }
    let [main, other] = &settings.buses()[..] else {
        panic!("two buses");
    };
    assert_eq!((main.url, other.url), ("nats://main", "nats://other"));
    let topics = |bus: &Bus<'_>| -> Vec<String> {
        let topic = bus.topic();
        let rules = topic.rules.iter().map(|rule| rule.template.to_string());
        rules.chain([topic.template.to_string()]).collect()
    };
    assert_eq!(topics(main), ["eu.{type}", "all.{type}"]);
    assert_eq!(topics(other), ["orders", "all.{type}", "all.{type}"]);
    assert!(settings.topics_in_vain().is_empty());
}

#[test]
fn the_topics_of_one_bus_are_no_others() {
    let route = "[[routes]]\ntype = \"order.*\"\ntopic = \"{type}\"\n";
    let both = format!("topic = \"{{tenant_id}}.{{type}}\"\nbus_url = \"nats://a\"\n{route}");
    expect_refused(
        &both,
        file(&both),
        "look like another tenant's {tenant_id}.{type}",
    );
    file(&format!("{both}bus = \"nats://b\"\n")).unwrap();
}

#[test]
fn dead_letters_have_a_topic_where_there_are_topics() {
    let given = "dead_letter_topic = \"dead.{type}\"\n";
    let refused = file(given).unwrap().refuse_unsupported().unwrap_err();
    let said = "needs topics, and the bus stdout: has none";
    assert!(refused.to_string().ends_with(said), "{refused}");
    let settings = file(&format!("{given}bus_url = \"nats://a\"")).unwrap();
    settings.refuse_unsupported().unwrap();
    let dead_letters = settings.buses()[0].topic().dead_letters;
    assert_eq!(dead_letters.unwrap().to_string(), "dead.{type}");
    let without = file("bus_url = \"nats://a\"").unwrap();
    assert!(without.topic_with_dead_letters().is_none());
}

#[test]
fn topics_where_there_are_none_are_told() {
    let route = "[[routes]]\ntype = \"a\"\ntopic = \"b\"\nbus = \"file:x\"\n";
    let settings = file(&format!("topic = \"c\"\n{route}")).unwrap();
    let told = settings.topics_in_vain();
    assert_eq!(
        told,
        [
            "topic changes nothing: stdout: has no topics",
            "the topic of route 1 changes nothing: file:x has no topics"
        ]
    );
}

#[test]
fn a_broken_route_stops_with_one_sentence_that_has_its_number() {
    let good = "[[routes]]\ntype = \"a\"\ntopic = \"x\"\n";
    let url = format!("bus = \"nats://bob:{CANARY}@host\"");
    for (broken, said) in [
        ("type = \"b\"", "names no topic and no bus"),
        (
            "typ = \"b\"",
            "unknown key \"typ\": there are type, tenant, topic and bus; did you mean type?",
        ),
        (
            "type = 7\ntopic = \"x\"",
            "has a type that must be written as string, not as integer",
        ),
        (
            "type = \"b c\"\ntopic = \"x\"",
            "has a type that is no pattern: \"b c\" is empty or has white space",
        ),
        (
            "type = \"order.>\"\ntopic = \"x\"",
            "the only wildcard there is is *",
        ),
        ("tenant = \"\"\ntopic = \"x\"", "has a tenant that is empty"),
        (
            "topic = \"{tenant}\"",
            "has a topic that has the unknown placeholder {tenant}",
        ),
        ("bus = \"s3cr3t-canary\"", "has a bus that must be a URL"),
        (
            "type = \"a\"\ntopic = \"y\"",
            "is never used: route 1 is for all its events",
        ),
        (
            "type = \"a\"\ntenant = \"t\"\ntopic = \"y\"",
            "is never used: route 1",
        ),
    ] {
        let broken = format!("{good}[[routes]]\n{broken}\n");
        expect_refused(&broken, file(&broken), "route 2 (");
        expect_refused(&broken, file(&broken), said);
    }
    for (broken, said) in [
        (format!("[routes]\n{url}"), "routes ("),
        (format!("routes = [\"{CANARY}\"]"), "route 1 ("),
        (
            format!("[[routes]]\n{url}\nbus2 = 1"),
            "unknown key \"bus2\"",
        ),
    ] {
        expect_refused(&broken, file(&broken), said);
    }
}

#[test]
fn a_broken_file_stops_with_one_sentence() {
    let url = format!("postgres://bob:{CANARY}@db/x");
    for (broken, said) in [
        (format!("database_url = \"{url}"), "line 1 column"),
        (
            format!("batch_size = 3\nbatch_size = 4 # {CANARY}"),
            "line 2 column 1 is not TOML: duplicate key",
        ),
        (format!("password = \"{CANARY}\""), "password ("),
        (
            format!("bach_size = \"{CANARY}\""),
            "did you mean batch_size?",
        ),
        (format!("[database]\nurl = \"{url}\""), "database ("),
        (format!("database_url = [\"{url}\"]"), "database_url ("),
        (format!("database_url = \"{CANARY}\""), "database_url ("),
        (format!("database_url = \"{url}\\n\""), "database_url ("),
        ("database_url = \"\"".into(), "is empty"),
        (
            "bus_url = 7".into(),
            "must be written as string, not as integer",
        ),
        (
            "batch_size = \"200\"".into(),
            "must be written as integer, not as string",
        ),
        (
            "batch_size = 0".into(),
            "must be a whole number from 1 to 10000, not \"0\"",
        ),
        ("batch_size = -1".into(), "batch_size ("),
        ("batch_size = 10001".into(), "batch_size ("),
        ("batch_size = 99999999999999999999".into(), "batch_size"),
        ("batch_size = 1.5".into(), "batch_size ("),
        ("max_retry = 0".into(), "max_retry ("),
        ("retry_multiplier = -0.5".into(), "retry_multiplier ("),
        ("retry_multiplier = nan".into(), "retry_multiplier ("),
        (
            "retry_multiplier = true".into(),
            "string or integer or float, not as boolean",
        ),
        (
            "retry_max_delay = \"5 parsecs\"".into(),
            "retry_max_delay (",
        ),
        ("retry_max_delay = \"8d\"".into(), "retry_max_delay ("),
        ("poll_interval_busy = 0".into(), "poll_interval_busy ("),
        (
            "uow_publish_immediately = \"yes\"".into(),
            "uow_publish_immediately (",
        ),
        (
            "uow_publish_max_retries = 0".into(),
            "uow_publish_max_retries (",
        ),
        (
            "ordering = \"global\"".into(),
            "must be aggregate or none, not \"global\"",
        ),
        ("on_dead_letter = \"drop\"".into(), "must be skip or block"),
        ("lease_ttl = \"1ms\"".into(), "lease_ttl ("),
        ("lease_ttl = \"999ms\"".into(), "a duration from 1s to 1h"),
        ("lease_ttl = \"2h\"".into(), "lease_ttl ("),
        (
            "poll_interval_busy = \"900ms\"\nlease_ttl = 2".into(),
            "lease_ttl (",
        ),
        ("shutdown_timeout = \"-1s\"".into(), "shutdown_timeout ("),
        ("shutdown_timeout = \"61m\"".into(), "from 0s to 1h"),
        ("retention = \"never\"".into(), "retention ("),
        ("retention = \"36501d\"".into(), "retention ("),
        ("retention = -1".into(), "retention ("),
        ("inbox_retention = 0".into(), "inbox_retention ("),
        (
            "inbox_retention = \"59s\"".into(),
            "a duration from 1m to 100 years",
        ),
        ("command_retention = 0".into(), "command_retention ("),
        ("table = \"outbox; drop table users\"".into(), "table ("),
        ("schema = \"Ünïcode\"".into(), "schema ("),
        (format!("table = \"{}\"", "x".repeat(49)), "table ("),
        ("topic = \"{tenant}.{type}\"".into(), "unknown placeholder"),
        ("topic = \"{type\"".into(), "topic ("),
        ("source = \"a b\"".into(), "source ("),
        ("tenants = \"acme,,other\"".into(), "tenants ("),
        ("tenants = \"a*\"".into(), "tenants ("),
        ("log_level = \"loud\"".into(), "log_level ("),
        ("log_format = \"xml\"".into(), "log_format ("),
        ("admin_addr = \"localhost\"".into(), "admin_addr ("),
        (
            "admin_addr = \"0.0.0.0:7077\"".into(),
            "needs an admin_token",
        ),
        (format!("admin_token = [\"{CANARY}\"]"), "admin_token ("),
        (
            format!("admin_token = \"{CANARY}\\u0007\""),
            "admin_token (",
        ),
        ("encryption_key_id = \"k1\"".into(), "no encryption_keys"),
        ("alert_url = \"example.org\"".into(), "alert_url ("),
        ("webhook_secret = \"\"".into(), "webhook_secret ("),
        #[cfg(feature = "http")]
        (
            format!("webhook_secret = \"whsec_{CANARY}\""),
            "number 1 is not base64",
        ),
        (
            "retry_multiplier = 10\nretry_max_delay = 5".into(),
            "retry_max_delay (",
        ),
        (
            "poll_interval_busy = \"2s\"".into(),
            "is less than poll_interval_busy 2s",
        ),
        (
            "ordering = \"none\"\non_dead_letter = \"block\"".into(),
            "on_dead_letter (",
        ),
        (
            "tenants = \"acme\"\n[tenants.acme]\nx = 1".into(),
            "is not TOML",
        ),
        ("routes = 1".into(), "routes ("),
    ] {
        expect_refused(&broken, file(&broken), said);
    }
}

#[test]
fn a_broken_environment_stops_with_one_sentence() {
    let missing = "OUTBOX_DATABASE_URL_FILE=/no/such/file";
    for (broken, said) in [
        (
            vec!["OUTBOX_BACH_SIZE=s3cr3t-canary"],
            "OUTBOX_BACH_SIZE is no setting; did you mean OUTBOX_BATCH_SIZE?",
        ),
        (vec!["OUTBOX_=s3cr3t-canary"], "OUTBOX_ is no setting"),
        (
            vec!["OUTBOX_BATCH_SIZE="],
            "batch_size (environment variable OUTBOX_BATCH_SIZE) is empty",
        ),
        (vec!["OUTBOX_BATCH_SIZE=many"], "not \"many\""),
        (
            vec!["OUTBOX_DATABASE_URL=s3cr3t-canary"],
            "database_url (environment variable OUTBOX_DATABASE_URL) must be a URL",
        ),
        (
            vec!["OUTBOX_BUS_URL=S3://s3cr3t-canary@x"],
            "bus_url (environment variable OUTBOX_BUS_URL) must be a URL",
        ),
        (vec!["OUTBOX_ADMIN_TOKEN=s3cr3t-canary\n"], "admin_token"),
        (
            vec!["OUTBOX_UOW_PUBLISH_IMMEDIATELY=1"],
            "must be true or false",
        ),
        (vec![missing], "cannot read the file /no/such/file"),
        (
            vec!["OUTBOX_DATABASE_URL=sqlite://a", missing],
            "OUTBOX_DATABASE_URL",
        ),
        (
            vec![
                "OUTBOX_ADMIN_TOKEN=s3cr3t-canary",
                "OUTBOX_ADMIN_TOKEN_FILE=/x",
            ],
            "is set twice",
        ),
        (
            vec!["OUTBOX_ADMIN_TOKEN_FILE="],
            "OUTBOX_ADMIN_TOKEN_FILE is empty",
        ),
    ] {
        expect_refused(&broken.join(" "), variables(&broken), said);
    }
}

#[test]
fn a_named_file_must_be_there() {
    let flags = Flags {
        config: Some("/no/such/outbox.toml".into()),
        ..Flags::default()
    };
    expect_refused(
        "a missing file",
        Settings::from(&flags, []),
        "cannot read the settings file /no/such/outbox.toml",
    );
}

/// Exit code 2, one line that says `said`, and no secret in it.
fn expect_refused(broken: &str, result: Result<Settings>, said: &str) {
    let failure = result.expect_err(broken);
    let message = failure.to_string();
    assert_eq!(failure.code(), 2, "{broken}");
    assert!(
        message.contains(said),
        "{broken:?} says {message:?}, which has no {said:?}"
    );
    assert!(
        !message.contains(CANARY) && !message.contains('\n'),
        "{broken:?} says {message:?}"
    );
}
