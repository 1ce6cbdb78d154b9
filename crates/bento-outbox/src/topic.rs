//! Where an event goes: a topic with the parts of the event filled in.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{OutboxRecord, Rejection, RejectionClass};

/// The name of the subject, topic, routing key or stream an event goes to, as a template:
/// `{type}`, `{tenant_id}`, `{aggregate_type}` and text between them. Defaults to `{type}`.
///
/// The type is filled in as it is. In tenant and aggregate type every character other than letters
/// and digits of ASCII, `_` and `-` becomes `__` and two hexadecimal digits per byte (so does the
/// second of two underscores in a row): `acme.com` is `acme__2Ecom`. So each stays one part of the
/// name, no tenant's topic can be another's, and every bus takes the characters.
///
/// ```
/// use bento_outbox::Topic;
/// assert_eq!("shop.{tenant_id}.{type}".parse::<Topic>()?.to_string(), "shop.{tenant_id}.{type}");
/// assert!("{tenant}.{type}".parse::<Topic>().is_err());
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Type,
    TenantId,
    AggregateType,
}

impl Topic {
    /// The topic of `record`.
    ///
    /// # Errors
    /// A permanent rejection when the template wants an aggregate type and the record has none.
    pub fn of(&self, record: &OutboxRecord) -> Result<String, Rejection> {
        let mut name = String::with_capacity(64);
        for part in &self.0 {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Type => name.push_str(&record.event_type),
                Part::TenantId => push_escaped(&mut name, record.tenant.as_str()),
                Part::AggregateType => {
                    let Some(kind) = &record.aggregate.kind else {
                        return Err(Rejection::new(
                            RejectionClass::Permanent,
                            format!("topic {self} needs an aggregate_type and the event has none"),
                        ));
                    };
                    push_escaped(&mut name, kind);
                }
            }
        }
        Ok(name)
    }
}

/// Adds `text` so that no two texts are added alike and no separator is in it.
fn push_escaped(name: &mut String, text: &str) {
    let mut before = None;
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        // A plain second underscore would look like the beginning of an escaped byte.
        if plain && (byte, before) != (b'_', Some(b'_')) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("__{byte:02X}"));
        }
        before = Some(byte);
    }
}

impl Default for Topic {
    fn default() -> Self {
        Self(vec![Part::Type])
    }
}

impl FromStr for Topic {
    type Err = Error;

    fn from_str(template: &str) -> Result<Self> {
        let refuse = |what: String| {
            Err(Error::new(
                ErrorKind::InvalidSetting,
                format!("topic {template:?} {what}"),
            ))
        };
        if template.is_empty() || template.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return refuse("is empty or has white space".into());
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while !rest.is_empty() {
            let (text, tail) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if text.contains('}') {
                return refuse("has a } without a {".into());
            }
            if tail.is_empty() {
                parts.push(Part::Text(text.into()));
                break;
            }
            // Otherwise "a-b" and "c" would give the same name as "a" and "b-c".
            if !parts.is_empty() && !text.contains(['.', '/', ':']) {
                return refuse("needs a . or / or : between two placeholders".into());
            }
            if !text.is_empty() {
                parts.push(Part::Text(text.into()));
            }
            let Some((name, tail)) = tail[1..].split_once('}') else {
                return refuse("has a { without a }".into());
            };
            parts.push(match name {
                "type" => Part::Type,
                "tenant_id" => Part::TenantId,
                "aggregate_type" => Part::AggregateType,
                _ => {
                    return refuse(format!(
                        "has the unknown placeholder {{{name}}}: there are {{type}}, {{tenant_id}} and {{aggregate_type}}"
                    ));
                }
            });
            rest = tail;
        }
        Ok(Self(parts))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| {
            f.write_str(match part {
                Part::Text(text) => text,
                Part::Type => "{type}",
                Part::TenantId => "{tenant_id}",
                Part::AggregateType => "{aggregate_type}",
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Aggregate, Event, Payload};
    use crate::timestamp::Timestamp;

    fn rendered(
        template: &str,
        tenant: &str,
        kind: Option<&str>,
        event_type: &str,
    ) -> Result<String, Rejection> {
        let event = Event {
            aggregate: Aggregate {
                kind: kind.map(Into::into),
                id: None,
            },
            ..Event::new(event_type, Payload::json("1").unwrap())
        };
        let tenant = tenant.parse().unwrap();
        let record = OutboxRecord::of(&event, &tenant, 1, Timestamp::now());
        template.parse::<Topic>().unwrap().of(&record)
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
    }
}
