//! What a Redis server says of itself, and what that means for the events it is given.

use std::collections::HashMap;

use super::{misconfigured, unreachable};
use crate::record::Rejection;

/// What a server said of itself.
pub(super) struct Server {
    /// The fields of `INFO`; none where this user may not ask.
    info: Option<HashMap<String, String>>,
    /// The settings that are in no `INFO`; fewer where this user may not ask.
    settings: HashMap<String, String>,
}

/// The settings that are in no `INFO`.
pub(super) const SETTINGS: [&str; 2] = ["appendfsync", "proto-max-bulk-len"];

/// The largest value that a server takes unless it is set otherwise.
const VALUE_BYTES_MAX: usize = 512 << 20;

impl Server {
    pub(super) fn of(info: Option<&str>, settings: HashMap<String, String>) -> Self {
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim_end().to_owned()))
        };
        Self {
            info: info.map(|info| info.lines().filter_map(field).collect()),
            settings,
        }
    }

    /// Refuses a server that takes no events, or may throw them away again.
    ///
    /// # Errors
    /// `Unreachable`, or `Config` with what must be changed.
    pub(super) fn check(&self, allow_eviction: bool, wait_replicas: u64) -> Result<(), Rejection> {
        if self.is("loading", "1") {
            return Err(unreachable("Redis is still loading its data"));
        }
        if self.is("role", "slave") {
            // One that takes writes loses them when it next follows its primary.
            return Err(unreachable(
                "this Redis is a replica, which keeps no events: name the primary in bus_url",
            ));
        }
        if self.is("cluster_enabled", "1") {
            return Err(misconfigured(
                "this Redis is a part of a cluster, which is not supported: name a server that is none",
            ));
        }
        let replicas = self.field("connected_slaves").and_then(|n| n.parse().ok());
        if replicas.is_some_and(|replicas: u64| replicas < wait_replicas) {
            // To send what cannot be sent durably would be to send it again and again.
            return Err(unreachable(format!(
                "Redis has {} replicas, and wait_replicas is {wait_replicas}",
                replicas.unwrap_or_default()
            )));
        }
        if allow_eviction {
            return Ok(());
        }
        if self.info.is_none() {
            return Err(misconfigured(
                "this user may not ask whether Redis evicts: grant +info, or add allow_eviction=true to bus_url",
            ));
        }
        match self.evicting() {
            None => Ok(()),
            Some(policy) => Err(misconfigured(format!(
                "maxmemory-policy is {policy}, so when memory is short Redis may throw away whole streams of sent \
                 events: set it to noeviction, or add allow_eviction=true to bus_url"
            ))),
        }
    }

    /// What a crash or a lack of memory would do to sent events, with what to change.
    pub(super) fn caveats(&self) -> Vec<String> {
        let mut caveats = Vec::new();
        if let Some(policy) = self.evicting() {
            caveats.push(format!(
                "maxmemory-policy is {policy}: when memory is short Redis may throw away streams of sent events; set \
                 it to noeviction"
            ));
        }
        let synced = self.settings.get("appendfsync").map(String::as_str);
        let caveat = match (self.is("aof_enabled", "0"), synced) {
            (true, _) => {
                "Redis keeps no append-only file: a crash loses sent events; set appendonly to yes"
            }
            (false, Some("always")) => return caveats,
            (false, Some("everysec")) => {
                "Redis syncs its append-only file once a second: a machine that loses power loses the events sent \
                 within it; set appendfsync to always where that matters"
            }
            (false, Some(_)) => {
                "Redis leaves it to the system when its append-only file is synced: a machine that loses power loses \
                 sent events; set appendfsync to everysec or always"
            }
            (false, None) => {
                "this user may not ask how Redis syncs its append-only file: see that appendonly is yes and \
                 appendfsync always or everysec, or grant +config|get"
            }
        };
        caveats.push(caveat.into());
        caveats
    }

    /// The most bytes that a field may have.
    pub(super) fn value_bytes_max(&self) -> usize {
        let most = self.settings.get("proto-max-bulk-len");
        most.and_then(|most| most.parse().ok())
            .unwrap_or(VALUE_BYTES_MAX)
    }

    /// The policy by which keys go when memory is short, where that is possible.
    fn evicting(&self) -> Option<&str> {
        let policy = self.field("maxmemory_policy");
        let policy = policy.filter(|policy| *policy != "noeviction")?;
        (!self.is("maxmemory", "0")).then_some(policy)
    }

    fn is(&self, field: &str, value: &str) -> bool {
        self.field(field) == Some(value)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.info.as_ref()?.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RejectionClass::{Config, Unreachable};

    const GOOD: &str = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n\r\n# Persistence\r\nloading:0\r\n\
                        aof_enabled:1\r\n\r\n# Replication\r\nrole:master\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n";

    fn server(info: &str, appendfsync: &str) -> Server {
        let settings = HashMap::from([("appendfsync".to_owned(), appendfsync.to_owned())]);
        Server::of(Some(info), settings)
    }

    #[test]
    fn a_server_that_would_lose_events_is_refused_and_the_setting_named() {
        server(GOOD, "always").check(false, 0).unwrap();
        for (field, other, class, named) in [
            ("loading:0", "loading:1", Unreachable, "loading"),
            ("role:master", "role:slave", Unreachable, "replica"),
            ("cluster_enabled:0", "cluster_enabled:1", Config, "cluster"),
            (
                "maxmemory:0\r\nmaxmemory_policy:noeviction",
                "maxmemory:1\r\nmaxmemory_policy:allkeys-lru",
                Config,
                "allkeys-lru",
            ),
        ] {
            assert!(GOOD.contains(field), "{field}");
            let rejection = server(&GOOD.replace(field, other), "always")
                .check(false, 0)
                .unwrap_err();
            assert_eq!(rejection.class, class, "{rejection}");
            assert!(rejection.reason.contains(named), "{rejection}");
        }
    }

    #[test]
    fn eviction_is_allowed_only_when_told_and_still_worth_a_word() {
        let evicting = GOOD
            .replace("maxmemory:0", "maxmemory:9")
            .replace("noeviction", "volatile-ttl");
        let server = server(&evicting, "always");
        server.check(false, 0).unwrap_err();
        server.check(true, 0).unwrap();
        assert!(server.caveats()[0].contains("volatile-ttl"));

        let mute = Server::of(None, HashMap::new());
        assert!(mute.check(false, 0).unwrap_err().reason.contains("+info"));
        mute.check(true, 0).unwrap();
        // No limit of memory, no eviction.
        super::Server::of(
            Some("maxmemory:0\nmaxmemory_policy:allkeys-lru"),
            HashMap::new(),
        )
        .check(false, 0)
        .unwrap();
    }

    #[test]
    fn a_server_with_too_few_replicas_is_sent_nothing() {
        let server = server(&format!("{GOOD}connected_slaves:1\r\n"), "always");
        server.check(false, 1).unwrap();
        let rejection = server.check(false, 2).unwrap_err();
        assert_eq!(rejection.class, Unreachable);
        assert!(
            rejection.reason.contains("wait_replicas is 2"),
            "{rejection}"
        );
    }

    #[test]
    fn what_a_crash_would_lose_is_said() {
        let caveat = |info: &str, appendfsync| server(info, appendfsync).caveats().join(" ");
        assert_eq!(caveat(GOOD, "always"), "");
        assert!(caveat(GOOD, "everysec").contains("once a second"));
        assert!(caveat(GOOD, "no").contains("to everysec or always"));
        assert!(
            caveat(&GOOD.replace("aof_enabled:1", "aof_enabled:0"), "always")
                .contains("appendonly")
        );
        assert!(Server::of(Some(GOOD), HashMap::new()).caveats()[0].contains("+config|get"));
    }
}
