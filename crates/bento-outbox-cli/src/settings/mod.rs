//! The settings: command line over environment over file over default, checked as a whole.
//!
//! Nothing here is guessed: an unknown name, a value out of range or two values that contradict each
//! other stop the program with one sentence that names the setting and where it came from.

mod routes;
mod sources;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

#[cfg(feature = "http")]
use bento_outbox::publishers::WebhookSecrets;
use bento_outbox::stores::Tables;
use bento_outbox::{CloudEvents, ProjectorSettings, RetrySettings, TopicTemplate};

use crate::failure::{Failure, Result};

pub(crate) use routes::{Bus, Route};
pub(crate) use sources::{Flags, Given, Origin};
pub(crate) use table::{SETTINGS, Setting, Support};
pub(crate) use value::{log_filter, masked, scheme};

/// The settings in force.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The database.
    pub(crate) database_url: String,
    /// What its tables are called.
    pub(crate) tables: Tables,
    /// The bus of the events that no route sends to another one.
    pub(crate) bus_url: String,
    /// Which events go to another topic, or another bus.
    pub(crate) routes: Vec<Route>,
    /// The topic of the events that no route sends to another one.
    topic: TopicTemplate,
    /// The topic of the copies of dead letters.
    dead_letter_topic: Option<TopicTemplate>,
    /// The webhook that is told of new dead letters.
    pub(crate) alert_url: Option<String>,
    /// What webhooks are signed with.
    #[cfg(feature = "http")]
    pub(crate) webhook_secrets: WebhookSecrets,
    /// How records become CloudEvents.
    pub(crate) cloud_events: CloudEvents,
    /// How the projector works.
    pub(crate) projector: ProjectorSettings,
    /// How long a stopping relay waits for what is in flight.
    pub(crate) shutdown_timeout: Duration,
    /// Where health, metrics and the API are served; none for nowhere.
    pub(crate) admin_addr: Option<SocketAddr>,
    /// What who asks there must show.
    pub(crate) admin_token: Option<String>,
    /// What is logged.
    pub(crate) log_level: String,
    /// Whether log lines are JSON.
    pub(crate) log_json: bool,
    in_force: InForce,
    sections: Vec<(String, Origin)>,
    /// The flags that gave some of them, as arguments of another command.
    pub(crate) flags: String,
}

/// How often what waits is counted for the metrics.
const COUNT_BACKLOG_EVERY: Duration = Duration::from_secs(5);

impl Settings {
    /// The settings that command line, environment and file give.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence; exit code 2.
    pub(crate) fn load(flags: &Flags) -> Result<Self> {
        Self::from(flags, std::env::vars_os())
    }

    /// The settings of a command that only asks a relay how it is: for that no token is shown, so whoever
    /// asks need not know it.
    ///
    /// # Errors
    /// As for [`load`](Self::load), but for a missing `admin_token`.
    pub(crate) fn load_to_ask(flags: &Flags) -> Result<Self> {
        Self::read(flags, std::env::vars_os())
    }

    fn from(
        flags: &Flags,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self> {
        let settings = Self::read(flags, variables)?;
        settings.in_force.must_be_closed()?;
        Ok(settings)
    }

    fn read(
        flags: &Flags,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self> {
        let file = sources::file(flags.config.as_deref())?;
        let environment = sources::environment(variables)?;
        let layers = [file.given, environment, flags.given()];
        let in_force = InForce::of(layers.into_iter().flatten())?;
        in_force.contradictions()?;
        let settings = Self {
            database_url: in_force.text("database_url").into(),
            tables: Tables::new(in_force.text("schema"), in_force.text("table"))?,
            bus_url: in_force.text("bus_url").into(),
            routes: file.routes,
            topic: in_force.read("topic", |text| text.parse().ok())?,
            dead_letter_topic: match in_force.get("dead_letter_topic") {
                Some(given) => Some(given.text.parse()?),
                None => None,
            },
            alert_url: in_force.get("alert_url").map(|given| given.text.clone()),
            #[cfg(feature = "http")]
            webhook_secrets: in_force.webhook_secrets()?,
            cloud_events: CloudEvents {
                source: in_force.text("source").into(),
                ..CloudEvents::default()
            },
            projector: ProjectorSettings {
                batch_size: in_force.read("batch_size", value::whole)?,
                tenants: in_force.read("tenants", value::tenants)?,
                retry: RetrySettings {
                    max_retry: in_force.read("max_retry", value::whole)?,
                    multiplier: in_force.read("retry_multiplier", value::duration)?,
                    max_delay: in_force.read("retry_max_delay", value::duration)?,
                },
                poll_interval_busy: in_force.read("poll_interval_busy", value::duration)?,
                poll_interval_idle: in_force.read("poll_interval_idle", value::duration)?,
                ordered: in_force.text("ordering") == "aggregate",
                dead_letters_block: in_force.text("on_dead_letter") == "block",
                lease_term: in_force.read("lease_ttl", value::duration)?,
                count_backlog_every: Some(COUNT_BACKLOG_EVERY),
                retention: in_force.read("retention", value::retention)?,
                inbox_retention: in_force.read("inbox_retention", value::retention)?,
                command_retention: in_force.read("command_retention", value::retention)?,
            },
            shutdown_timeout: in_force.read("shutdown_timeout", value::duration)?,
            admin_addr: in_force.text("admin_addr").parse().ok(),
            admin_token: in_force.get("admin_token").map(|given| given.text.clone()),
            log_level: in_force.text("log_level").into(),
            log_json: in_force.text("log_format") == "json",
            in_force,
            sections: file.sections,
            flags: flags.as_arguments(),
        };
        for bus in settings.buses() {
            bus.topic().check()?;
        }
        Ok(settings)
    }

    /// Refuses what this version would have to ignore at the user's cost.
    ///
    /// # Errors
    /// The first such setting; exit code 2.
    pub(crate) fn refuse_unsupported(&self) -> Result<()> {
        let what = "is not supported by this version yet";
        if let Some((section, origin)) = self.sections.first() {
            return Err(Failure::misuse(format!("{section} ({origin}) {what}")));
        }
        if let Some(given) = self
            .given()
            .find(|given| given.setting.support == Support::Refused)
        {
            return Err(given.refuse(what));
        }
        let buses = self.buses();
        match buses.iter().find(|bus| !bus.has_topics()) {
            Some(bus) if self.dead_letter_topic.is_some() => {
                let what = format!("needs topics, and the bus {} has none", bus.name());
                Err(self.refuse("dead_letter_topic", &what))
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody said what `name` is.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.given().any(|given| given.setting.name == name)
    }

    /// Advice whose commands, which stand in it as `` `bento-outbox dead list` ``, are to be run with the
    /// flags that this one was run with.
    pub(crate) fn advice(&self, text: &str) -> String {
        let parts = text.split('`').enumerate().map(|(n, part)| {
            let is_command = n % 2 == 1 && part.starts_with("bento-outbox ");
            let flags = if is_command { self.flags.as_str() } else { "" };
            format!("{part}{flags}")
        });
        parts.collect::<Vec<String>>().join("`")
    }

    /// How many values somebody gave.
    pub(crate) fn given_count(&self) -> u64 {
        self.given().count() as u64
    }

    /// Every setting with its value, in the order of the table; no value where it is unset.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static Setting, Option<&Given>)> {
        SETTINGS
            .iter()
            .map(|setting| (setting, self.in_force.get(setting.name)))
    }

    /// What is wrong with the value of `name`, and where it came from.
    pub(crate) fn refuse(&self, name: &str, what: &str) -> Failure {
        match self.in_force.get(name) {
            Some(given) => given.refuse(what),
            None => Failure::misuse(format!("{name} {what}")),
        }
    }

    fn given(&self) -> impl Iterator<Item = &Given> {
        self.all()
            .filter_map(|(_, given)| given)
            .filter(|given| given.origin != Origin::Default)
    }
}

/// The value of each setting that has one, each valid by itself.
#[derive(Debug)]
struct InForce(Vec<Given>);

impl InForce {
    /// Lays the values over the defaults, later ones over earlier ones.
    fn of(layers: impl Iterator<Item = Given>) -> Result<Self> {
        let default = |setting: &'static Setting| {
            let text = setting.default?.to_string();
            Some(Given {
                setting,
                text,
                origin: Origin::Default,
            })
        };
        let mut in_force: Vec<Given> = SETTINGS.iter().filter_map(default).collect();
        for given in layers {
            // Also a value that another one covers must be right: it may come to light any day.
            given
                .setting
                .kind
                .check(&given.text)
                .map_err(|what| given.refuse(&what))?;
            in_force.retain(|other| other.setting.name != given.setting.name);
            in_force.push(given);
        }
        Ok(Self(in_force))
    }

    fn get(&self, name: &str) -> Option<&Given> {
        self.0.iter().find(|given| given.setting.name == name)
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).map_or("", |given| &given.text)
    }

    fn read<T>(&self, name: &str, read: fn(&str) -> Option<T>) -> Result<T> {
        read(self.text(name))
            .ok_or_else(|| Failure::misuse(format!("{name} has no value that can be read")))
    }

    /// None where nobody gave one.
    #[cfg(feature = "http")]
    fn webhook_secrets(&self) -> Result<WebhookSecrets> {
        let Some(given) = self.get("webhook_secret") else {
            return Ok(WebhookSecrets::default());
        };
        given.text.parse().map_err(|error: bento_outbox::Error| {
            let what = error.to_string();
            given.refuse(what.strip_prefix("webhook_secret ").unwrap_or(&what))
        })
    }

    /// # Errors
    /// Two values that are right by themselves and wrong together.
    fn contradictions(&self) -> Result<()> {
        for (less, more) in [
            ("retry_multiplier", "retry_max_delay"),
            ("poll_interval_busy", "poll_interval_idle"),
        ] {
            if self.read::<Duration>(less, value::duration)? > self.read(more, value::duration)? {
                return Err(
                    self.contradiction(more, &format!("is less than {}", self.described(less)))
                );
            }
        }
        // A relay that pauses for longer than it renews would lose its leases while it sleeps.
        let busy: Duration = self.read("poll_interval_busy", value::duration)?;
        if busy > self.read::<Duration>("lease_ttl", value::duration)? / 3 {
            let what = format!(
                "is less than three times {}, and a relay renews its leases between polls",
                self.described("poll_interval_busy")
            );
            return Err(self.contradiction("lease_ttl", &what));
        }
        if self.text("ordering") == "none" && self.text("on_dead_letter") == "block" {
            let what = format!(
                "is block, but nothing waits for anything with {}",
                self.described("ordering")
            );
            return Err(self.contradiction("on_dead_letter", &what));
        }
        if self.get("encryption_key_id").is_some() && self.get("encryption_keys").is_none() {
            return Err(self.contradiction(
                "encryption_key_id",
                "names a key, but there are no encryption_keys",
            ));
        }
        Ok(())
    }

    /// # Errors
    /// An address that others reach, and no token that they would have to show.
    fn must_be_closed(&self) -> Result<()> {
        let address = self.text("admin_addr").parse::<SocketAddr>();
        if address.is_ok_and(|address| !address.ip().is_loopback())
            && self.get("admin_token").is_none()
        {
            return Err(
                self.contradiction("admin_addr", "is not loopback, which needs an admin_token")
            );
        }
        Ok(())
    }

    fn contradiction(&self, name: &str, what: &str) -> Failure {
        match self.get(name) {
            Some(given) => given.refuse(what),
            None => Failure::misuse(format!("{name} {what}")),
        }
    }

    /// `retry_multiplier 10s (default)`.
    fn described(&self, name: &str) -> String {
        match self.get(name) {
            Some(given) => format!(
                "{name} {} ({})",
                given.setting.kind.shown(&given.text),
                given.origin
            ),
            None => name.into(),
        }
    }
}
