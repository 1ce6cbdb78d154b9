//! Every setting, once: loading, `config`, the error messages and the reference page come from here.

use std::time::Duration;

use super::value::Kind;

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its key in the file; upper-case and after `OUTBOX_`, its environment variable.
    pub(crate) name: &'static str,
    /// Its value where nothing says otherwise, written as in the file; none: it is unset.
    pub(crate) default: Option<&'static str>,
    /// What its values are.
    pub(crate) kind: Kind,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// How far this version goes with it.
    pub(crate) support: Support,
}

/// How far this version goes with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// It does what it says.
    Full,
    /// To ignore it would break what it promises, so the program refuses to start with it.
    Refused,
}

impl Setting {
    /// The setting's environment variable.
    pub(crate) fn variable(&self) -> String {
        format!("OUTBOX_{}", self.name.to_ascii_uppercase())
    }

    /// The setting of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }
}

const fn setting(
    name: &'static str,
    default: Option<&'static str>,
    kind: Kind,
    meaning: &'static str,
) -> Setting {
    Setting {
        name,
        default,
        kind,
        meaning,
        support: Support::Full,
    }
}

const fn refused(setting: Setting) -> Setting {
    Setting {
        support: Support::Refused,
        ..setting
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const WEEK: Duration = Duration::from_secs(7 * 86_400);
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Every setting, in the order in which they are shown.
pub(crate) const SETTINGS: &[Setting] = &[
    setting(
        "database_url",
        Some("sqlite://outbox.db"),
        Kind::Url,
        "the database: postgres://, mysql://, sqlite://",
    ),
    setting(
        "schema",
        Some("public"),
        Kind::Identifier,
        "the schema of the tables; in MySQL a database, of which public stands for that of the URL; SQLite has none",
    ),
    setting(
        "table",
        Some("outbox"),
        Kind::Identifier,
        "the table's name, and how its helpers' names begin",
    ),
    setting(
        "bus_url",
        Some("stdout:"),
        Kind::Url,
        "the bus: stdout:, file:PATH, null:, nats://HOST:PORT, …",
    ),
    setting(
        "topic",
        Some("{type}"),
        Kind::Topic,
        "where an event goes on the bus: a template of {tenant_id}, {aggregate_type}, {type}",
    ),
    setting(
        "source",
        Some("urn:bento-outbox"),
        Kind::Source,
        "the CloudEvents attribute source",
    ),
    setting(
        "tenants",
        Some("*"),
        Kind::Tenants,
        "whose events this relay carries: * or a comma list",
    ),
    setting(
        "batch_size",
        Some("200"),
        Kind::Number(1, 10_000),
        "events claimed at once",
    ),
    setting(
        "max_retry",
        Some("5"),
        Kind::Number(1, 1_000),
        "attempts before an event becomes a dead letter",
    ),
    setting(
        "retry_multiplier",
        Some("0.5"),
        Kind::Duration(MILLISECOND, HOUR),
        "the delay before the second attempt, doubled before each further one",
    ),
    setting(
        "retry_max_delay",
        Some("5m"),
        Kind::Duration(MILLISECOND, WEEK),
        "the longest delay between attempts",
    ),
    setting(
        "poll_interval_busy",
        Some("0.1"),
        Kind::Duration(MILLISECOND, HOUR),
        "the pause between polls while there are only events not yet due",
    ),
    setting(
        "poll_interval_idle",
        Some("1.0"),
        Kind::Duration(MILLISECOND, HOUR),
        "the longest pause when nothing is there; a wake-up from the database ends it",
    ),
    setting(
        "uow_publish_immediately",
        Some("true"),
        Kind::Flag,
        "whether a unit of work publishes right after its commit: for services that use the library, not for run",
    ),
    setting(
        "uow_publish_max_retries",
        Some("3"),
        Kind::Number(1, 100),
        "tries of that immediate publication before a relay takes over: for services that use the library",
    ),
    setting(
        "uow_publish_retry_multiplier",
        Some("0.5"),
        Kind::Duration(MILLISECOND, HOUR),
        "the delay between those tries, doubled each time: for services that use the library",
    ),
    setting(
        "ordering",
        Some("aggregate"),
        Kind::OneOf(&["aggregate", "none"]),
        "whether the events of one aggregate are published in order",
    ),
    setting(
        "on_dead_letter",
        Some("skip"),
        Kind::OneOf(&["skip", "block"]),
        "after a dead letter its aggregate goes on (skip), or its later events wait (block)",
    ),
    setting(
        "lease_ttl",
        Some("10s"),
        Kind::Duration(SECOND, HOUR),
        "how long a relay that went silent keeps its part of the work; a relay renews at a third of it",
    ),
    setting(
        "shutdown_timeout",
        Some("30s"),
        Kind::Duration(Duration::ZERO, HOUR),
        "how long a stopping relay waits for what is in flight before it leaves that to others",
    ),
    setting(
        "retention",
        Some("7d"),
        Kind::Retention(Duration::ZERO, CENTURY),
        "how long sent events are kept: a duration, 0 to delete them as they are sent, or forever",
    ),
    setting(
        "inbox_retention",
        Some("30d"),
        Kind::Retention(MINUTE, CENTURY),
        "how long received messages are remembered: longer than a bus can take to deliver one again, or forever",
    ),
    setting(
        "command_retention",
        Some("7d"),
        Kind::Retention(MINUTE, CENTURY),
        "how long the keys and answers of commands are remembered: a duration, or forever",
    ),
    setting(
        "dead_letter_topic",
        None,
        Kind::Topic,
        "a copy of each new dead letter goes there too, with the reason in its headers",
    ),
    setting(
        "alert_url",
        None,
        Kind::Url,
        "a webhook that is told of new dead letters, many in one message",
    ),
    setting(
        "webhook_secret",
        None,
        Kind::Secret,
        "what webhooks are signed with: whsec_ and base64, several with spaces between while one replaces another",
    ),
    setting(
        "admin_addr",
        Some("127.0.0.1:7077"),
        Kind::Address,
        "where health, metrics and the API are served: an IP address with a port, or off",
    ),
    setting(
        "admin_token",
        None,
        Kind::Secret,
        "who asks there must show it; needed for an address that is not loopback",
    ),
    setting(
        "log_level",
        Some("info"),
        Kind::LogLevel,
        "error, warn, info, debug, trace or off, or directives such as bento_outbox=debug",
    ),
    setting(
        "log_format",
        Some("text"),
        Kind::OneOf(&["text", "json"]),
        "how log lines are written",
    ),
    refused(setting(
        "encryption_keys",
        None,
        Kind::SecretLines,
        "lines of ID=base64(32 bytes)",
    )),
    refused(setting(
        "encryption_key_id",
        None,
        Kind::Text,
        "the key for new events",
    )),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_kind_and_every_name_stands_once() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            if let Some(default) = setting.default {
                assert_eq!(setting.kind.check(default), Ok(()), "{}", setting.name);
            }
            assert!(
                SETTINGS[..at]
                    .iter()
                    .all(|other| other.name != setting.name)
            );
            assert!(!setting.meaning.is_empty());
        }
    }

    #[test]
    fn a_variable_is_named_after_its_setting() {
        assert_eq!(
            Setting::named("bus_url").map(Setting::variable).as_deref(),
            Some("OUTBOX_BUS_URL")
        );
    }
}
