//! Where events go: `[[routes]]` in the settings file, and the buses and topics that come of them.

use bento_outbox::{Pattern, Selector, Topic, TopicRule, TopicTemplate};
use toml::de::{DeTable, DeValue};

use super::Settings;
use super::sources::{Origin, did_you_mean};
use super::value::{self, Kind};
use crate::failure::{Failure, Result};

/// One route. The first whose type and tenant match an event decides where it goes.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Which one it is in the file, from 1.
    pub(crate) number: usize,
    /// Where it stands.
    pub(crate) origin: Origin,
    /// For which events.
    pub(crate) events: Selector,
    /// Their topic, where it is not that of the setting.
    pub(crate) topic: Option<TopicTemplate>,
    /// Their bus, where it is not that of the setting.
    bus: Option<String>,
}

/// A bus that events may go to, with where its URL stands.
#[derive(Clone, Copy)]
pub(crate) struct Bus<'a> {
    settings: &'a Settings,
    /// Its URL, which may hold a password.
    pub(crate) url: &'a str,
    /// The first route that names it; none for that of `bus_url`.
    route: Option<&'a Route>,
}

const KEYS: [&str; 4] = ["type", "tenant", "topic", "bus"];

impl Route {
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn refuse(&self, what: &str) -> Failure {
        refuse(self.number, &self.origin, what)
    }

    /// The topic of its events; `otherwise` where it names none.
    fn rule(&self, otherwise: &TopicTemplate) -> TopicRule {
        TopicRule {
            events: self.events.clone(),
            template: self.topic.as_ref().unwrap_or(otherwise).clone(),
        }
    }

    /// The URL of its bus, where it names one; it may hold a password.
    pub(crate) fn bus(&self) -> Option<&str> {
        self.bus.as_deref()
    }
}

impl Settings {
    /// Every bus that events may go to, once each, that of `bus_url` first.
    pub(crate) fn buses(&self) -> Vec<Bus<'_>> {
        let named = |route| Some((Route::bus(route)?, Some(route)));
        let urls = [(self.bus_url.as_str(), None)].into_iter();
        let mut buses: Vec<Bus<'_>> = Vec::new();
        for (url, route) in urls.chain(self.routes.iter().filter_map(named)) {
            if buses.iter().all(|bus| bus.url != url) {
                buses.push(Bus {
                    settings: self,
                    url,
                    route,
                });
            }
        }
        buses
    }

    /// The names of the destinations that events may go to, once each: buses may differ in secrets only.
    pub(crate) fn destinations(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.buses().iter().map(Bus::name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The topic of any event, whichever bus it goes to, where dead letters have one of their own.
    pub(crate) fn topic_with_dead_letters(&self) -> Option<Topic> {
        let dead_letters = self.dead_letter_topic.clone()?;
        let rules = self.routes.iter().map(|route| route.rule(&self.topic));
        Some(Topic {
            template: self.topic.clone(),
            rules: rules.collect(),
            dead_letters: Some(dead_letters),
        })
    }

    /// Topics that somebody gave to events on a bus without topics, a sentence each.
    pub(crate) fn topics_in_vain(&self) -> Vec<String> {
        let buses = self.buses();
        let in_vain = |url: &str, said: String| {
            let bus = buses
                .iter()
                .find(|bus| bus.url == url && !bus.has_topics())?;
            Some(format!(
                "{said} changes nothing: {} has no topics",
                bus.name()
            ))
        };
        let own = self
            .is_given("topic")
            .then(|| in_vain(&self.bus_url, "topic".into()));
        let of_routes = self.routes.iter().filter(|route| route.topic.is_some());
        let of_routes = of_routes.map(|route| {
            let url = route.bus().unwrap_or(&self.bus_url);
            in_vain(url, format!("the topic of route {}", route.number))
        });
        own.into_iter().chain(of_routes).flatten().collect()
    }
}

impl Bus<'_> {
    /// What is wrong with its URL.
    pub(crate) fn refuse(&self, what: &str) -> Failure {
        match self.route {
            Some(route) => route.refuse(&format!("has a bus that {what}")),
            None => self.settings.refuse("bus_url", what),
        }
    }

    /// The URL without what is secret in it.
    pub(crate) fn name(&self) -> String {
        value::masked(self.url)
    }

    /// Whether topics mean something to it.
    pub(crate) fn has_topics(&self) -> bool {
        let without = ["stdout", "file", "null"];
        !value::scheme(self.url).is_some_and(|scheme| without.contains(&scheme))
    }

    /// The topics of the events that come to it. Each of its routes is a rule, also one that names
    /// no topic, so that the same route decides about topic and bus.
    pub(crate) fn topic(&self) -> Topic {
        let Settings {
            bus_url,
            routes,
            topic,
            dead_letter_topic,
            ..
        } = self.settings;
        let ours = |route: &&Route| route.bus().unwrap_or(bus_url) == self.url;
        let rules = routes.iter().filter(ours).map(|route| route.rule(topic));
        let rules: Vec<TopicRule> = rules.collect();
        // What no route picks comes to the bus of `bus_url` alone.
        let rest = match (self.route, rules.last()) {
            (Some(_), Some(rule)) => &rule.template,
            _ => topic,
        };
        Topic {
            template: rest.clone(),
            dead_letters: dead_letter_topic.clone(),
            rules,
        }
    }
}

fn refuse(number: usize, origin: &Origin, what: &str) -> Failure {
    Failure::misuse(format!("route {number} ({origin}) {what}"))
}

/// The routes that the key `routes` holds; `place` tells where in the file a byte is.
///
/// # Errors
/// What is wrong with the first bad one.
pub(super) fn routes(
    value: &DeValue<'_>,
    at: &Origin,
    place: impl Fn(usize) -> Origin,
) -> Result<Vec<Route>> {
    let DeValue::Array(tables) = value else {
        let what = "must be written as [[routes]] above each route's type, tenant, topic and bus";
        return Err(Failure::misuse(format!("routes ({at}) {what}")));
    };
    let mut routes: Vec<Route> = Vec::new();
    for (number, table) in (1..).zip(tables.iter()) {
        let origin = place(table.span().start);
        let DeValue::Table(keys) = table.get_ref() else {
            let what = "must be written as [[routes]] and its keys below";
            return Err(refuse(number, &origin, what));
        };
        let route = route(number, origin, keys)?;
        let covers = |other: &&Route| {
            let (theirs, ours) = (&other.events, &route.events);
            (theirs.event_type.is_everything() || theirs.event_type == ours.event_type)
                && (theirs.tenant.is_everything() || theirs.tenant == ours.tenant)
        };
        if let Some(other) = routes.iter().find(covers) {
            let what = format!(
                "is never used: route {} is for all its events, and the first that matches decides",
                other.number
            );
            return Err(route.refuse(&what));
        }
        routes.push(route);
    }
    Ok(routes)
}

fn route(number: usize, origin: Origin, keys: &DeTable<'_>) -> Result<Route> {
    let refuse = |what: &str| refuse(number, &origin, what);
    for key in keys.keys() {
        let key: &str = key.get_ref();
        if !KEYS.contains(&key) {
            let shown: String = key.chars().take(60).collect();
            let hint = did_you_mean(key, KEYS.into_iter());
            return Err(refuse(&format!(
                "has the unknown key {shown:?}: there are type, tenant, topic and bus{hint}"
            )));
        }
    }
    let text = |key: &str, kind: Kind| -> Result<Option<&str>> {
        let Some(value) = keys.get(key) else {
            return Ok(None);
        };
        let DeValue::String(text) = value.get_ref() else {
            let what = format!(
                "has a {key} that must be written as string, not as {}",
                value.get_ref().type_str()
            );
            return Err(refuse(&what));
        };
        kind.check(text)
            .map_err(|what| refuse(&format!("has a {key} that {what}")))?;
        Ok(Some(text.as_ref()))
    };
    let pattern = |key: &str| -> Result<Pattern> {
        let Some(text) = text(key, Kind::Text)? else {
            return Ok(Pattern::default());
        };
        text.parse().map_err(|error: bento_outbox::Error| {
            let what = error.to_string();
            let what = what.strip_prefix("pattern ").unwrap_or(&what);
            refuse(&format!("has a {key} that is no pattern: {what}"))
        })
    };
    let topic = text("topic", Kind::Topic)?.and_then(|text| text.parse().ok());
    let bus = text("bus", Kind::Url)?.map(Into::into);
    if topic.is_none() && bus.is_none() {
        return Err(refuse("names no topic and no bus, so it changes nothing"));
    }
    Ok(Route {
        events: Selector {
            event_type: pattern("type")?,
            tenant: pattern("tenant")?,
        },
        number,
        topic,
        bus,
        origin,
    })
}
