//! Types of each kind in which serde lets nobody see what it skips.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::*;
use crate::registry::fields;

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

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Step {
    Moved {
        at: DateTime<Utc>,
        #[serde(default, alias = "m")]
        metres: f64,
    },
    Noted {
        text: String,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Walk {
    steps: Vec<Step>,
}
event!(Walk, "walk", 1);

/// Of which halves are no events.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Prices {
    corner: (f64, f64),
    by_name: BTreeMap<String, f64>,
    ids: HashMap<String, Uuid>,
    #[serde(default)]
    seen: HashSet<String>,
    #[serde(skip_deserializing)]
    made: Vec<u32>,
}
event!(Prices, "prices", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Trip {
    steps: Vec<Step>,
    #[serde(alias = "p")]
    parts: Vec<Line>,
    #[serde(alias = "q")]
    others: Vec<Line>,
}
event!(Trip, "trip", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Shaped {
    pair: (u32, u32),
    by_number: BTreeMap<u32, String>,
    line: Line,
}
event!(Shaped, "shaped", 1);

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
            EventType::of::<Walk>(),
            EventType::of::<Prices>(),
            EventType::of::<Shaped>(),
            EventType::of::<Trip>(),
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
    let lines = vec![r#"{"price":1,"note":null}"#; 5_000].join(",");
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

#[test]
fn one_variant_drops_a_field_after_however_many_of_another_have_read_it() {
    for (at, moved) in [
        ("at", r#"{"kind":"Moved","at":"2026-01-01T00:00:00.000Z"}"#),
        ("at", r#"{"kind":"Moved","at":"2026-01-01T01:00:00+01:00"}"#),
        (
            "metres",
            r#"{"kind":"Moved","at":"2026-01-01T00:00:00Z","metres":1.50}"#,
        ),
        (
            "m",
            r#"{"kind":"Moved","at":"2026-01-01T00:00:00Z","m":1.5}"#,
        ),
    ] {
        for n in [0, 1, 7, 8, 20, 300] {
            let mut steps = vec![moved.to_owned(); n];
            let decode = |steps: &[String]| {
                let payload = format!(r#"{{"steps":[{}]}}"#, steps.join(","));
                registry(|it| it).decode(encoded("walk", 1, &payload))
            };
            decode(&steps).unwrap();
            steps.insert(
                n / 2,
                format!(r#"{{"kind":"Noted","text":"t","{at}":1.50}}"#),
            );
            let said = decode(&steps).unwrap_err().to_string();
            let lost = format!(r#"field "steps[{}].{at}" is not known to the type"#, n / 2);
            assert!(said.contains(&lost), "{n} {moved}: {said}");
        }
    }
}

#[test]
fn what_is_lost_is_found_whatever_the_order_and_however_much_else_is_written_differently() {
    let ids: Vec<String> = (0..500)
        .map(|n| format!(r#""{n}":"{:032X}""#, n * 7919))
        .collect();
    let prices = |more: &str| {
        let ids = ids.join(",");
        format!(
            r#"{{"corner":[1.50,2.50],"by_name":{{"a":1.50}},"ids":{{{ids}}},"seen":["x","y","z"]{more}}}"#
        )
    };
    let decode = |payload: &str| registry(|it| it).decode(encoded("prices", 1, payload));
    decode(&prices("")).unwrap();
    for lost in ["made", "x"] {
        let said = decode(&prices(&format!(r#","{lost}":[1]"#)))
            .unwrap_err()
            .to_string();
        assert!(said.contains(&format!("field {lost:?} is not")), "{said}");
    }
}

/// How often a payload is read again, counted in its own length.
fn readings<E: serde::de::DeserializeOwned + Serialize>(payload: &str) -> usize {
    let bytes = Cell::new(0);
    let read = |json: &str| {
        bytes.set(bytes.get() + json.len());
        serde_json::to_string(&serde_json::from_str::<E>(json).ok()?).ok()
    };
    let written = read(payload).unwrap();
    bytes.set(0);
    let left = fields::left_aside(payload, &written, &read);
    assert_eq!(left.ok(), Some(Vec::new()));
    bytes.get() / payload.len()
}

#[test]
fn a_payload_is_read_again_no_oftener_the_larger_it_is() {
    let list = |n: usize, element: fn(usize) -> String| -> String {
        (0..n).map(element).collect::<Vec<_>>().join(",")
    };
    let price = |n: usize| format!(r#""{n}":1.50"#);
    let id = |n: usize| format!(r#""{n}":"{n:032X}""#);
    let step = |n: usize| format!(r#"{{"kind":"Moved","at":"2026-01-01T00:00:00Z","m":{n}.50}}"#);
    let floats = format!("{{{}}}", list(10_000, price));
    assert_eq!(readings::<BTreeMap<String, f64>>(&floats), 0);
    let time = |n: usize| format!(r#""{n}":"2026-01-01T00:00:00.000Z""#);
    let times = format!("{{{}}}", list(10_000, time));
    assert_eq!(readings::<BTreeMap<String, DateTime<Utc>>>(&times), 0);
    for n in [100, 4_000] {
        let ids = format!("{{{}}}", list(n, id));
        let most = readings::<BTreeMap<String, Uuid>>(&ids);
        assert!(most <= 30, "{n} ids: {most}");
        let steps = format!(r#"{{"steps":[{}]}}"#, list(n, step));
        let most = readings::<Walk>(&steps);
        assert!(most <= 30, "{n} steps: {most}");
    }
}

#[test]
fn a_list_under_another_name_is_looked_through_to_its_end() {
    let steps: Vec<String> = (0..40)
        .map(|n| format!(r#"{{"kind":"Moved","at":"2026-01-01T00:00:00Z","m":{n}}}"#))
        .collect();
    for at in [0, 17, 39] {
        let mut parts = vec![r#"{"price":1}"#; 40];
        parts[at] = r#"{"price":1,"not":1}"#;
        let (steps, parts) = (steps.join(","), parts.join(","));
        let payload = format!(r#"{{"steps":[{steps}],"p":[{parts}],"q":[{parts}]}}"#);
        let said = registry(|it| it)
            .decode(encoded("trip", 1, &payload))
            .unwrap_err()
            .to_string();
        assert!(
            said.ends_with(&format!("lost: p[{at}].not, q[{at}].not")),
            "{said}"
        );
    }
}

#[test]
fn json_of_another_shape_is_not_called_no_json() {
    let at = |payload: &str, from: &str, to: &str| {
        let payload = payload.replacen(from, to, 1);
        let answer = registry(|it| it).decode(encoded("shaped", 1, &payload));
        answer.unwrap_err().to_string()
    };
    let payload = r#"{"pair":[1,2],"by_number":{"7":"x"},"line":{"price":1}}"#;
    registry(|it| it)
        .decode(encoded("shaped", 1, payload))
        .unwrap();
    for (from, to, says) in [
        (
            "2]",
            "2,7777]",
            r#"field "pair" has more elements than its type takes"#,
        ),
        (
            ",2]",
            "]",
            r#"field "pair" has another length than expected: a tuple of size 2"#,
        ),
        (
            "\"7\"",
            "\"07\"",
            r#"field "by_number" has a key that its type refuses, expected a number"#,
        ),
        (
            "\"7\"",
            "\"canary\"",
            r#"field "by_number" has a key that its type refuses"#,
        ),
        (
            r#"{"price":1}"#,
            "[1,null,7777]",
            r#"field "line" has more elements than its type takes"#,
        ),
    ] {
        let said = at(payload, from, to);
        assert!(said.contains(says), "{said}\nfor {to}");
        assert!(!said.contains("7777") && !said.contains("canary"), "{said}");
    }
}
