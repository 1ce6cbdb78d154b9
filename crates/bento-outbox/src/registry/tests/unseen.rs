//! Types of each kind in which serde lets nobody see what it skips.

use std::collections::BTreeSet;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Common {
    by: String,
    #[serde(default)]
    urgent: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Flat {
    id: u32,
    #[serde(flatten)]
    common: Common,
}
event!(Flat, "flat", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Rest {
    id: u32,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}
event!(Rest, "rest", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
enum Tagged {
    Card {
        last4: String,
        #[serde(default)]
        tries: u32,
    },
    Cash,
    Wrapped(Common),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Paid {
    ways: Vec<Tagged>,
}
event!(Paid, "paid", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Long { first: String, last: String },
    Short { name: String },
    Plain(String),
}
event!(Untagged, "named", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Renamed {
    #[serde(alias = "total", alias = "sum")]
    total_cents: u32,
    #[serde(skip_serializing)]
    secret: String,
    #[serde(skip_deserializing)]
    made: u32,
    set: BTreeSet<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", alias = "parts")]
    items: Vec<Line>,
}
event!(Renamed, "renamed", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Exact {
    big: u128,
    raw: Box<str>,
    any: serde_json::Value,
    map: BTreeMap<String, u8>,
    price: f64,
}
event!(Exact, "exact", 1);

#[derive(Serialize, Deserialize)]
struct Raw {
    raw: Box<serde_json::value::RawValue>,
    n: u8,
}
event!(Raw, "raw", 1);

/// Serialises as something else than it reads.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Common", into = "String")]
struct Converted {
    by: String,
}
event!(Converted, "converted", 1);
impl Clone for Converted {
    fn clone(&self) -> Self {
        Self {
            by: self.by.clone(),
        }
    }
}
impl From<Common> for Converted {
    fn from(common: Common) -> Self {
        Self {
            by: format!("{}{}", common.by, if common.urgent { "!" } else { "" }),
        }
    }
}
impl From<Converted> for String {
    fn from(converted: Converted) -> Self {
        converted.by
    }
}

fn registry(ease: fn(EventType) -> EventType) -> EventRegistry {
    EventRegistry::new(
        [
            EventType::of::<Flat>(),
            EventType::of::<Rest>(),
            EventType::of::<Paid>(),
            EventType::of::<Untagged>(),
            EventType::of::<Renamed>(),
            EventType::of::<Exact>(),
            EventType::of::<Raw>(),
            EventType::of::<Converted>(),
        ]
        .map(ease),
    )
    .unwrap()
}

#[test]
fn what_is_known_is_taken_however_it_is_written() {
    for (name, payload) in [
        ("flat", r#"{"urgent":false,"id":1,"by":"x"}"#),
        ("flat", r#"{"by":"x","id":1}"#),
        ("rest", r#"{"any":{"thing":[1,null]},"id":1,"more":2.50}"#),
        (
            "paid",
            r#"{"ways":[{"how":"cash"},{"tries":0,"last4":"0000","how":"card"}]}"#,
        ),
        (
            "paid",
            r#"{"ways":[{"how":"wrapped","by":"x","urgent":true}]}"#,
        ),
        ("named", r#"{"last":"x","first":"y"}"#),
        ("named", r#""x""#),
        ("renamed", r#"{"secret":"x","total":1,"set":[3,1,1,2]}"#),
        (
            "renamed",
            r#"{"set":[],"sum":1,"secret":"x","parts":[{"price":1,"note":null},{"price":2,"note":"\u0041"}]}"#,
        ),
        (
            "renamed",
            r#"{"set":[],"totalCents":1,"secret":"","items":[]}"#,
        ),
        (
            "exact",
            r#"{"big":340282366920938463463374607431768211455,"raw":"\u0041","any":{"b":1,"a":1.50},"map":{"a":1},"price":100}"#,
        ),
        ("raw", r#"{"n":1,"raw":{ "x" : 1e400, "y" : 2 }}"#),
        ("converted", r#"{"by":"x","urgent":false}"#),
    ] {
        let result = registry(|it| it).decode(encoded(name, 1, payload));
        assert!(result.is_ok(), "{name} {payload}: {result:?}");
    }
}

#[test]
fn what_nobody_would_see_skipped_is_found() {
    for (name, payload, lost) in [
        ("flat", r#"{"id":1,"by":"x","lost":null}"#, "\"lost\""),
        ("flat", r#"{"id":1,"by":"x","Urgent":true}"#, "\"Urgent\""),
        (
            "paid",
            r#"{"ways":[{"how":"cash","tip":1},{"how":"card","last4":"","tries":1}]}"#,
            "\"ways[0].tip\"",
        ),
        (
            "paid",
            r#"{"ways":[{"how":"card","last4":"1","try":7}]}"#,
            "\"ways[0].try\"",
        ),
        (
            "paid",
            r#"{"ways":[{"how":"wrapped","by":"x","at":[{}]}]}"#,
            "\"ways[0].at\"",
        ),
        (
            "named",
            r#"{"first":"x","last":"y","title":"z"}"#,
            "\"title\"",
        ),
        ("named", r#"{"name":"x","first":"y"}"#, "\"first\""),
        (
            "renamed",
            r#"{"secret":"x","total":1,"set":[],"made":7}"#,
            "\"made\"",
        ),
        (
            "renamed",
            r#"{"secret":"x","sum":1,"set":[],"parts":[{"price":1,"not":1}]}"#,
            "\"parts[0].not\"",
        ),
        (
            "exact",
            r#"{"big":1,"raw":"","any":{},"map":{},"price":1,"x":340282366920938463463374607431768211455}"#,
            "\"x\"",
        ),
        ("converted", r#"{"by":"x","of":1}"#, "\"of\""),
    ] {
        let said = registry(|it| it)
            .decode(encoded(name, 1, payload))
            .unwrap_err()
            .to_string();
        assert!(
            said.contains(lost) && said.contains("would be lost"),
            "{name} {payload}: {said}"
        );
        registry(EventType::taking_unknown_fields)
            .decode(encoded(name, 1, payload))
            .unwrap();
    }
}

#[test]
fn many_fields_under_another_name_are_read_in_bounded_time() {
    let lines = vec![r#"{"price":1,"note":null}"#; 20_000].join(",");
    let payload = format!(r#"{{"set":[],"sum":1,"secret":"x","parts":[{lines}]}}"#);
    registry(|it| it)
        .decode(encoded("renamed", 1, &payload))
        .unwrap();
    let payload = payload.replacen("note", "not", 1);
    let said = registry(|it| it)
        .decode(encoded("renamed", 1, &payload))
        .unwrap_err();
    assert!(said.to_string().contains("parts[0].not"), "{said}");
}
