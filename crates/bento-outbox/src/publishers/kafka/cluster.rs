//! Where the brokers of a cluster are, and who connects to them how.

use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use url::Url;

use super::super::options::{Options, invalid};
use crate::error::Result;

/// The brokers of one cluster, and how they are talked to. Shown without the credentials.
pub(super) struct Cluster {
    tls: bool,
    /// As `HOST:PORT`.
    brokers: Vec<String>,
    ca: Option<String>,
    login: Option<Login>,
    pub(super) compression: Compression,
}

struct Login {
    mechanism: &'static str,
    user: String,
    password: String,
}

/// How a batch is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Compression(&'static str);

impl Compression {
    pub(super) const NONE: Self = Self("none");
    const ALL: [&'static str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
}

/// The largest event that is handed to the client: more than a row may hold. What the cluster takes,
/// its topics say.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The longest pause before a lost broker is dialled again.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Takes a Kafka URL apart, which is none by the grammar of URLs: it names many hosts. The URL that
/// comes back names the first broker alone.
pub(super) fn split(url: &str) -> Result<(Url, Vec<String>)> {
    let no_url = || invalid("a Kafka URL is kafka://HOST:PORT,HOST:PORT with options behind a ?");
    let (scheme, rest) = url.split_once("://").ok_or_else(no_url)?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, hosts) = match authority.rsplit_once('@') {
        // One login for all brokers; an @ in a password is written %40.
        Some((user, _)) if user.contains('@') => return Err(no_url()),
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let brokers: Option<Vec<String>> = hosts.split(',').map(broker).collect();
    let brokers = brokers.ok_or_else(no_url)?;
    let one = format!("{scheme}://{user}{}{tail}", brokers[0]);
    let url = Url::parse(&one).map_err(|_| no_url())?;
    if !["", "/"].contains(&url.path()) || url.fragment().is_some() {
        return Err(no_url());
    }
    Ok((url, brokers))
}

/// `HOST:PORT` of a host that may stand without its port.
fn broker(text: &str) -> Option<String> {
    let url = Url::parse(&format!("kafka://{text}")).ok()?;
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let bare = url.path().is_empty() && url.query().is_none() && url.username().is_empty();
    bare.then(|| format!("{host}:{}", url.port().unwrap_or(9_092)))
}

impl Cluster {
    /// The cluster of a URL that was [`split`].
    pub(super) fn of(url: &Url, brokers: Vec<String>, options: &mut Options) -> Result<Self> {
        let tls = match url.scheme() {
            "kafka" => false,
            "kafkas" => true,
            _ => return Err(invalid("the scheme is neither kafka nor kafkas")),
        };
        let compression = options.text("compression").unwrap_or("none".into());
        let compression = Compression::ALL.iter().find(|name| **name == compression);
        let sasl = options.text("sasl");
        let ca = options.text("ca");
        if ca.is_some() && !tls {
            return Err(invalid("option ca needs TLS: begin the URL with kafkas://"));
        }
        Ok(Self {
            tls,
            brokers,
            ca,
            login: Login::of(url, sasl.as_deref())?,
            compression: Compression(compression.ok_or_else(|| {
                let known = Compression::ALL.join(", ");
                invalid(format!("option compression is none of {known}"))
            })?),
        })
    }

    /// Whether the password travels so that the network can read it.
    pub(super) fn shows_password(&self) -> bool {
        let login = self.login.as_ref();
        !self.tls && login.is_some_and(|login| login.mechanism == "PLAIN")
    }

    /// How a client must be set up that waits for an answer for so long.
    pub(super) fn config(&self, timeout: Duration) -> ClientConfig {
        let mut config = ClientConfig::new();
        let milliseconds = |duration: Duration| duration.as_millis().to_string();
        config
            .set("bootstrap.servers", self.brokers.join(","))
            .set("client.id", "bento-outbox")
            .set(
                "socket.timeout.ms",
                milliseconds(timeout.max(Duration::from_secs(1))),
            )
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set(
                "reconnect.backoff.max.ms",
                milliseconds(RECONNECT_PAUSE_MAX),
            )
            // A topic that a misspelt type made by itself would take events that nobody reads.
            .set("allow.auto.create.topics", "false")
            .set_log_level(RDKafkaLogLevel::Warning);
        config.set(
            "security.protocol",
            match (self.tls, self.login.is_some()) {
                (false, false) => "plaintext",
                (false, true) => "sasl_plaintext",
                (true, false) => "ssl",
                (true, true) => "sasl_ssl",
            },
        );
        if let Some(ca) = &self.ca {
            config.set("ssl.ca.location", ca);
        }
        if let Some(login) = &self.login {
            config
                .set("sasl.mechanisms", login.mechanism)
                .set("sasl.username", &login.user)
                .set("sasl.password", &login.password);
        }
        config
    }

    /// How the producer must be set up: what it reports as delivered all in-sync replicas have, once
    /// and in order, and what it has not reported by the end of `timeout` it will not send any more.
    pub(super) fn producer_config(&self, timeout: Duration, batch_bytes: usize) -> ClientConfig {
        let mut config = self.config(timeout);
        let timeout = timeout.as_millis().to_string();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", &timeout)
            .set("request.timeout.ms", &timeout)
            // A batch is there as a whole: there is nothing to linger for.
            .set("linger.ms", "0")
            .set("batch.size", batch_bytes.to_string())
            .set("message.max.bytes", MESSAGE_BYTES_MAX.to_string())
            .set("compression.type", self.compression.0)
            // As Kafka's own clients do it, so that the same key meets in the same partition.
            .set("partitioner", "murmur2_random");
        config
    }
}

impl Login {
    fn of(url: &Url, mechanism: Option<&str>) -> Result<Option<Self>> {
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let mechanism = match mechanism {
            None | Some("plain") => "PLAIN",
            Some("scram-sha-256") => "SCRAM-SHA-256",
            Some("scram-sha-512") => "SCRAM-SHA-512",
            Some(_) => {
                return Err(invalid(
                    "option sasl is none of plain, scram-sha-256, scram-sha-512",
                ));
            }
        };
        let login = match (url.username(), url.password()) {
            ("", None) if mechanism == "PLAIN" => return Ok(None),
            ("", _) | (_, None) => {
                return Err(invalid(
                    "SASL needs a user and a password: kafkas://USER:PASSWORD@HOST:PORT",
                ));
            }
            (user, Some(password)) => Self {
                mechanism,
                user: decoded(user),
                password: decoded(password),
            },
        };
        if login.user.contains('\0') || login.password.contains('\0') {
            return Err(invalid("user and password have no zero bytes"));
        }
        Ok(Some(login))
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "kafkas" } else { "kafka" };
        write!(f, "{scheme}://{}", self.brokers.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(url: &str) -> Result<Cluster> {
        let (url, brokers) = split(url)?;
        let mut options = Options::of(&url)?;
        let cluster = Cluster::of(&url, brokers, &mut options)?;
        options.finish()?;
        Ok(cluster)
    }

    #[test]
    fn a_url_names_many_brokers_and_never_shows_its_password() {
        let shop = cluster("kafkas://bob:p%40s%2Fs@a,b:1,[::1]:2/?sasl=scram-sha-512").unwrap();
        assert_eq!(shop.to_string(), "kafkas://a:9092,b:1,[::1]:2");
        let config = shop.config(Duration::from_secs(2));
        for (name, value) in [
            ("bootstrap.servers", "a:9092,b:1,[::1]:2"),
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanisms", "SCRAM-SHA-512"),
            ("sasl.username", "bob"),
            ("sasl.password", "p@s/s"),
            ("allow.auto.create.topics", "false"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        assert!(!shop.shows_password());
        assert!(cluster("kafka://bob:pass@a").unwrap().shows_password());
        assert!(
            !cluster("kafka://bob:pass@a?sasl=scram-sha-256")
                .unwrap()
                .shows_password()
        );
    }

    #[test]
    fn certificates_are_verified() {
        let config = cluster("kafkas://a")
            .unwrap()
            .config(Duration::from_secs(1));
        assert_eq!(config.get("security.protocol"), Some("ssl"));
        // What would switch it off is left at the client's defaults, which verify.
        for name in [
            "enable.ssl.certificate.verification",
            "ssl.endpoint.identification.algorithm",
        ] {
            assert_eq!(config.get(name), None);
        }
    }

    #[test]
    fn only_a_durable_answer_is_a_delivery() {
        let cluster = cluster("kafka://a?compression=zstd").unwrap();
        let config = cluster.producer_config(Duration::from_secs(3), 1_000);
        for (name, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("message.timeout.ms", "3000"),
            ("compression.type", "zstd"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        config.create_native_config().unwrap();
    }
}
