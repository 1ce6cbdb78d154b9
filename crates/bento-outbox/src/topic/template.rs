//! A topic with the parts of the event filled in.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::record::{OutboxRecord, Rejection, RejectionClass};
use crate::selector::{Pattern, Selector};
use crate::tenant::Tenant;

/// The template of a topic: `{type}`, `{tenant_id}`, `{aggregate_type}` and text between them.
/// Defaults to `{type}`.
///
/// The type is filled in as it is. In tenant and aggregate type every character other than letters
/// and digits of ASCII, `_` and `-` becomes `__` and two hexadecimal digits per byte (so does the
/// second of two underscores in a row): `acme.com` is `acme__2Ecom`. So each stays one part of the
/// name, no tenant's topic can be another's, and every bus takes the characters.
///
/// ```
/// use bento_outbox::TopicTemplate;
/// let template = "shop.{tenant_id}.{type}".parse::<TopicTemplate>()?;
/// assert_eq!(template.to_string(), "shop.{tenant_id}.{type}");
/// assert!("{tenant}.{type}".parse::<TopicTemplate>().is_err());
/// # Ok::<_, bento_outbox::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Type,
    TenantId,
    AggregateType,
}

/// What parts the name on one bus or another.
const SEPARATORS: [char; 3] = ['.', '/', ':'];

impl TopicTemplate {
    /// The topic of `record`, and how much of its beginning is the operator's: the event has no say
    /// in that.
    ///
    /// # Errors
    /// A permanent rejection when an aggregate type is wanted and the record has none.
    pub(super) fn fill(&self, record: &OutboxRecord) -> Result<(String, usize), Rejection> {
        let mut name = String::with_capacity(64);
        let mut fixed = None;
        for part in &self.0 {
            if matches!(part, Part::Type | Part::AggregateType) {
                fixed.get_or_insert(name.len());
            }
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
        let fixed = fixed.unwrap_or(name.len());
        Ok((name, fixed))
    }

    /// Whether it makes `name` of an event that matches, of another tenant than `tenant`, whose part
    /// does not end within the first `fixed` bytes: whoever chose the rest chose that tenant's topic.
    pub(super) fn claims(
        &self,
        matching: &Selector,
        name: &str,
        fixed: usize,
        tenant: &Tenant,
    ) -> bool {
        if fixed == name.len() {
            return false;
        }
        let before_the_type = |part: &&Part| !matches!(part, Part::Type | Part::AggregateType);
        let owner: Vec<&Part> = self.0.iter().take_while(before_the_type).collect();
        let claim = |owned: &dyn Fn(&str, usize) -> bool| {
            let event_type = &matching.event_type;
            let template = Filled {
                name,
                event_type,
                owned,
            };
            template.is_of(&self.0, 0)
        };
        if owner.contains(&&Part::TenantId) {
            return claim(&|filled, end| {
                (fixed..).contains(&end)
                    && unescaped(filled).is_some_and(|other| {
                        other != *tenant && matching.tenant.matches(other.as_str())
                    })
            });
        }
        let text: usize = owner.iter().map(|part| part.len()).sum();
        let anothers = !matching.tenant.matches(tenant.as_str());
        anothers && text > fixed && claim(&|_, _| true)
    }

    /// Whether an event has a say in the first part of the name.
    pub(super) fn begins_as_the_event_likes(&self) -> bool {
        let separated =
            |part: &&Part| matches!(part, Part::Text(text) if text.contains(SEPARATORS));
        let first_part = self.0.iter().take_while(|part| !separated(part));
        first_part
            .into_iter()
            .any(|part| matches!(part, Part::Type | Part::AggregateType))
    }

    /// Whether the name begins with the tenant.
    pub(super) fn begins_with_the_tenant(&self) -> bool {
        matches!(self.0.first(), Some(Part::TenantId))
    }
}

impl Part {
    /// How long it is, where that is the same for every event.
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            _ => 0,
        }
    }
}

/// A name, looked at as one that a template may have made.
struct Filled<'a> {
    name: &'a str,
    event_type: &'a Pattern,
    /// Whether what stands for the tenant, and ends there, will do.
    owned: &'a dyn Fn(&str, usize) -> bool,
}

impl Filled<'_> {
    /// Whether `parts` make the name from byte `at` on. Names are short, and so are templates.
    fn is_of(&self, parts: &[Part], at: usize) -> bool {
        let rest = &self.name[at..];
        let Some((part, parts)) = parts.split_first() else {
            return rest.is_empty();
        };
        if let Part::Text(text) = part {
            return rest.starts_with(text) && self.is_of(parts, at + text.len());
        }
        let ends = rest.char_indices().map(|(start, c)| start + c.len_utf8());
        let fits = |end: usize| {
            let filled = &rest[..end];
            match part {
                Part::TenantId => (self.owned)(filled, at + end),
                Part::AggregateType => filled.bytes().all(is_plain),
                _ => self.event_type.matches(filled),
            }
        };
        ends.into_iter()
            .any(|end| fits(end) && self.is_of(parts, at + end))
    }
}

/// Adds `text` so that no two texts are added alike and no separator is in it.
fn push_escaped(name: &mut String, text: &str) {
    let mut before = None;
    for byte in text.bytes() {
        // A plain second underscore would look like the beginning of an escaped byte.
        if is_plain(byte) && (byte, before) != (b'_', Some(b'_')) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("__{byte:02X}"));
        }
        before = Some(byte);
    }
}

/// The tenant whose name is added so; none where it is nobody's.
fn unescaped(name: &str) -> Option<Tenant> {
    let mut parts = name.split("__");
    let mut text = parts.next()?.to_owned();
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok()?;
        text.push(char::from(byte)); // a tenant's name is ASCII
        text.push_str(&part[2..]);
    }
    let mut again = String::with_capacity(name.len());
    push_escaped(&mut again, &text);
    text.parse().ok().filter(|_| again == name)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

impl Default for TopicTemplate {
    fn default() -> Self {
        Self(vec![Part::Type])
    }
}

impl FromStr for TopicTemplate {
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
            if !parts.is_empty() && !text.contains(SEPARATORS) {
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

impl fmt::Display for TopicTemplate {
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
