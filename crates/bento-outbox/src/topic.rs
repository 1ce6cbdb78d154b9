//! Where an event goes on its bus.

mod template;

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{OutboxRecord, Rejection, RejectionClass, Status};
use crate::selector::Selector;

pub use template::TopicTemplate;

/// The name of the subject, topic, routing key or stream an event goes to: a template, and others
/// for the events that a rule picks. Defaults to `{type}`.
///
/// What an event says of itself never puts it into a topic that the rules give to another tenant:
/// such an event is refused.
///
/// ```
/// use bento_outbox::{Selector, Topic, TopicRule};
/// let orders = Selector { event_type: "order.*".parse()?, ..Selector::default() };
/// let topic = Topic {
///     rules: vec![TopicRule { events: orders, template: "orders.{tenant_id}".parse()? }],
///     ..Topic::default()
/// };
/// topic.check()?;
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// For events that no rule picks.
    pub template: TopicTemplate,
    /// The first that picks an event decides. Defaults to none.
    pub rules: Vec<TopicRule>,
    /// Where the copies of dead letters go: records whose status is `ERR`. Defaults to none: they
    /// go where they would have gone before.
    pub dead_letters: Option<TopicTemplate>,
}

/// A template for some events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRule {
    /// Which events.
    pub events: Selector,
    /// Their topic.
    pub template: TopicTemplate,
}

/// The events that no rule picks, taken for more than they are.
static EVERYTHING: LazyLock<Selector> = LazyLock::new(Selector::default);

impl Topic {
    /// The topic of `record`.
    ///
    /// # Errors
    /// A permanent rejection when the template wants an aggregate type and the record has none, or
    /// the type is such that the topic would be another tenant's.
    pub fn of(&self, record: &OutboxRecord) -> Result<String, Rejection> {
        if let (Status::Err, Some(template)) = (record.delivery.status, &self.dead_letters) {
            return Ok(template.fill(record)?.0);
        }
        let (event_type, tenant) = (&record.event_type, &record.tenant);
        let picks = |rule: &&TopicRule| rule.events.matches(event_type, tenant);
        let rule = self.rules.iter().find(picks);
        let template = rule.map_or(&self.template, |rule| &rule.template);
        let (name, fixed) = template.fill(record)?;
        let claims = |(other, events): &(&TopicTemplate, &Selector)| {
            *other != template && other.claims(events, &name, fixed, tenant)
        };
        if self.templates().any(|other| claims(&other)) {
            return Err(Rejection::new(
                RejectionClass::Permanent,
                format!("topic {name} is another tenant's: tenant {tenant} needs another type"),
            ));
        }
        Ok(name)
    }

    /// Refuses rules of which no event could come through: those with which every type that an
    /// event may have looks like another tenant's topic.
    ///
    /// # Errors
    /// [`InvalidSetting`](ErrorKind::InvalidSetting), naming the two templates.
    pub fn check(&self) -> Result<()> {
        let anybodys = |(template, events): &(&TopicTemplate, &Selector)| {
            template.begins_with_the_tenant()
                && events.tenant.is_everything()
                && events.event_type.is_everything()
        };
        let likes =
            |(template, _): &(&TopicTemplate, &Selector)| template.begins_as_the_event_likes();
        let (Some((owned, _)), Some((free, _))) = (
            self.templates().find(anybodys),
            self.templates().find(likes),
        ) else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::InvalidSetting,
            format!(
                "topic {free} could be made to look like another tenant's {owned}: begin it with {{tenant_id}} or a \
                 text of its own and a dot"
            ),
        ))
    }

    /// Every template with the events that it is for.
    fn templates(&self) -> impl Iterator<Item = (&TopicTemplate, &Selector)> {
        let rules = self.rules.iter().map(|rule| (&rule.template, &rule.events));
        let rest = (!self.rules.is_empty()).then_some((&self.template, &*EVERYTHING));
        rules.chain(rest)
    }
}

impl From<TopicTemplate> for Topic {
    fn from(template: TopicTemplate) -> Self {
        Self {
            template,
            ..Self::default()
        }
    }
}

impl FromStr for Topic {
    type Err = Error;

    fn from_str(template: &str) -> Result<Self> {
        Ok(template.parse::<TopicTemplate>()?.into())
    }
}

/// The template for events that no rule picks.
impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.template.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Aggregate, Event, Payload};
    use crate::timestamp::Timestamp;

    fn record(tenant: &str, kind: Option<&str>, event_type: &str) -> OutboxRecord {
        let event = Event {
            aggregate: Aggregate {
                kind: kind.map(Into::into),
                id: None,
            },
            ..Event::new(event_type, Payload::json("1").unwrap())
        };
        let tenant = tenant.parse().unwrap();
        OutboxRecord::of(&event, &tenant, 1, Timestamp::now())
    }

    fn rendered(
        template: &str,
        tenant: &str,
        kind: Option<&str>,
        event_type: &str,
    ) -> Result<String, Rejection> {
        let topic = template.parse::<Topic>().unwrap();
        topic.of(&record(tenant, kind, event_type))
    }

    #[test]
    fn a_template_is_filled_in() {
        assert_eq!(
            rendered(
                "shop.{tenant_id}.{aggregate_type}.{type}",
                "acme",
                Some("ORDER_LINE"),
                "order.placed"
            ),
            Ok("shop.acme.ORDER_LINE.order.placed".into())
        );
        assert_eq!(
            rendered("{aggregate_type}", "acme", Some("a.b > é"), "x"),
            Ok("a__2Eb__20__3E__20__C3__A9".into())
        );
        assert_eq!(Topic::default().to_string(), "{type}");
    }

    #[test]
    fn an_event_without_an_aggregate_type_is_refused_where_the_topic_needs_one() {
        let rejection = rendered("{aggregate_type}.{type}", "acme", None, "x").unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Permanent);
        assert!(rejection.reason.contains("aggregate_type"), "{rejection}");
    }

    #[test]
    fn broken_templates_are_refused_with_the_reason() {
        for (template, reason) in [
            ("", "empty"),
            ("a b", "white space"),
            ("{tenant}.{type}", "{tenant}"),
            ("{}", "{}"),
            ("{type", "without a }"),
            ("type}", "without a {"),
            ("{tenant_id}{type}", "between two placeholders"),
            ("{tenant_id}-{type}", "between two placeholders"),
        ] {
            let error = template.parse::<Topic>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSetting);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn a_tenant_with_dots_stays_in_its_own_topic() {
        let topic = |tenant, event_type| rendered("{tenant_id}.{type}", tenant, None, event_type);
        assert_ne!(topic("a.b", "c"), topic("a", "b.c"));
        assert_ne!(topic("a.b", "c"), topic("a__2Eb", "c"));
        assert_eq!(topic("a_b", "c"), Ok("a_b.c".into()));
    }

    /// A topic with rules `(type, tenant, template)`.
    fn topic(template: &str, rules: &[(&str, &str, &str)]) -> Topic {
        let rule = |(event_type, tenant, template): &(&str, &str, &str)| TopicRule {
            events: Selector {
                event_type: event_type.parse().unwrap(),
                tenant: tenant.parse().unwrap(),
            },
            template: template.parse().unwrap(),
        };
        Topic {
            template: template.parse().unwrap(),
            rules: rules.iter().map(rule).collect(),
            dead_letters: None,
        }
    }

    #[test]
    fn the_first_rule_that_picks_an_event_decides() {
        let topic = topic(
            "rest.{type}",
            &[
                ("order.*", "acme", "acme.orders"),
                ("order.*", "*", "orders.{tenant_id}"),
                ("*", "acme", "acme.{type}"),
            ],
        );
        topic.check().unwrap();
        for (tenant, event_type, name) in [
            ("acme", "order.placed", "acme.orders"),
            ("b.c", "order.placed", "orders.b__2Ec"),
            ("acme", "user.added", "acme.user.added"),
            ("b.c", "user.added", "rest.user.added"),
        ] {
            let record = record(tenant, None, event_type);
            assert_eq!(topic.of(&record).as_deref(), Ok(name));
        }
    }

    #[test]
    fn dead_letters_have_a_topic_of_their_own() {
        let mut topic = topic("{type}", &[("*", "acme", "acme.{type}")]);
        let mut record = record("acme", None, "x");
        record.delivery.status = Status::Err;
        assert_eq!(topic.of(&record).as_deref(), Ok("acme.x"));
        topic.dead_letters = Some("dead.{tenant_id}".parse().unwrap());
        assert_eq!(topic.of(&record).as_deref(), Ok("dead.acme"));
        record.delivery.status = Status::New;
        assert_eq!(topic.of(&record).as_deref(), Ok("acme.x"));
    }

    #[test]
    fn no_type_leads_into_the_topic_of_another_tenant() {
        let named = topic("{type}", &[("*", "acme", "acme.{type}")]);
        let by_tenant = topic("{type}", &[("order.*", "*", "{tenant_id}.{type}")]);
        let inside = topic(
            "shop.{type}",
            &[("order.*", "*", "shop.{tenant_id}.{type}")],
        );
        let dotted = topic("{type}", &[("*", "a.b", "{tenant_id}.{type}")]);
        let single = topic("{type}", &[("*", "acme", "private")]);
        let by_kind = topic("{aggregate_type}.x", &[("*", "acme", "acme.x")]);
        let refused = |topic: &Topic, kind, event_type| {
            let rejection = topic.of(&record("evil", kind, event_type)).unwrap_err();
            assert_eq!(rejection.class, RejectionClass::Permanent);
            assert!(rejection.reason.contains("another tenant's"), "{rejection}");
        };
        let unseparated = topic("acme{type}", &[("order.*", "*", "{tenant_id}.{type}")]);
        refused(&unseparated, None, ".order.placed");
        refused(&named, None, "acme.placed");
        refused(&by_tenant, None, "acme.order.placed");
        refused(&inside, None, "acme.order.placed");
        refused(&dotted, None, "a__2Eb.x");
        refused(&single, None, "private");
        refused(&by_kind, Some("acme"), "y");

        let taken = |topic: &Topic, tenant, event_type, name: &str| {
            let record = record(tenant, Some("order"), event_type);
            assert_eq!(topic.of(&record).as_deref(), Ok(name));
        };
        taken(&named, "acme", "acme.placed", "acme.acme.placed");
        taken(&named, "evil", "acmes.placed", "acmes.placed");
        taken(&by_tenant, "evil", "evil.order.placed", "evil.order.placed");
        taken(&by_tenant, "evil", "acme.user.added", "acme.user.added");
        taken(&dotted, "evil", "a.b.x", "a.b.x");
        taken(&by_kind, "evil", "y", "order.x");
        // What the operator wrote is no trick, whoever is called so.
        let shared = topic("{tenant_id}.{type}", &[("audit.*", "*", "audit.log")]);
        shared.check().unwrap();
        taken(&shared, "evil", "audit.x", "audit.log");
        let vip = topic(
            "{tenant_id}.{type}",
            &[("*", "vip", "vip-{tenant_id}.{type}")],
        );
        vip.check().unwrap();
        taken(&vip, "vip", "x", "vip-vip.x");
    }

    #[test]
    fn rules_that_would_refuse_every_event_are_refused() {
        for free in ["{type}", "o{type}", "{aggregate_type}.x"] {
            let error = topic("{tenant_id}.{type}", &[("order.*", "*", free)])
                .check()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSetting);
            assert!(error.to_string().contains(free), "{error}");
        }
        for own in ["o.{type}", "{tenant_id}.o.{type}", "orders"] {
            topic("{tenant_id}.{type}", &[("order.*", "*", own)])
                .check()
                .unwrap();
        }
        topic("{type}", &[]).check().unwrap();
        topic("{type}", &[("*", "*", "{tenant_id}.{type}")])
            .check()
            .unwrap_err();
    }

    proptest! {
        #[test]
        fn two_tenants_never_share_a_topic(
            (a, b) in ("[a2][._E2-]{0,8}", "[a2][._E2-]{0,8}"),
            (x, y) in ("[a2E._:/-]{1,8}", "[a2E._:/-]{1,8}"),
        ) {
            prop_assume!(a != b);
            for template in ["{tenant_id}.{type}", "{type}.{tenant_id}", "_{tenant_id}__2.{type}"] {
                prop_assert_ne!(rendered(template, &a, None, &x), rendered(template, &b, None, &y));
            }
        }

        /// Also not where each has rules of its own: an event that would is refused.
        #[test]
        fn nor_do_they_where_rules_differ(
            (a, b) in ("[ab][.b]{0,2}", "[ab][.b]{0,2}"),
            (x, from) in ("[ab2E._]{1,9}", 0..8_usize),
            (first, second) in (0..5_usize, 0..5_usize),
        ) {
            if a == b {
                return Ok(());
            }
            let owned = ["{tenant_id}.{type}", "a.{type}", "a", "ab.{type}", "s.{tenant_id}.{type}"];
            // The rest may say what it likes, but never what is the first tenant's.
            let free = ["{type}", "{aggregate_type}.{type}", "a{type}", "s.{type}", "{type}.b"];
            let topic = topic(free[second], &[("*", &a, owned[first])]);
            let own = topic.of(&record(&a, Some("order"), &x)).unwrap();
            // What is left of the name is what a type would have to be.
            let y = own.get(from..).filter(|y| !y.is_empty()).unwrap_or(&own);
            for kind in [&a, "order", "s", "a"] {
                if let Ok(other) = topic.of(&record(&b, Some(kind), y)) {
                    prop_assert_ne!(&own, &other);
                }
            }
        }
    }
}
