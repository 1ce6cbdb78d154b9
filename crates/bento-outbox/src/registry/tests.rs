use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;

/// Declares event types of one name, each a version.
macro_rules! event {
    ($rust:ident, $name:literal, $version:literal) => {
        impl DomainEvent for $rust {
            const TYPE: &'static str = $name;
            const VERSION: u32 = $version;
        }
    };
}

mod unseen;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PlacedV1 {
    euros: i64,
}
event!(PlacedV1, "order.placed", 1);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PlacedV2 {
    cents: i64,
}
event!(PlacedV2, "order.placed", 2);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Placed {
    total: Total,
    lines: Vec<Line>,
}
event!(Placed, "order.placed", 3);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Total {
    cents: i64,
    currency: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    price: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Shipped;
event!(Shipped, "order.shipped", 1);

fn euros(cents: i64) -> Total {
    Total {
        cents,
        currency: "EUR".into(),
    }
}

fn placed() -> EventType {
    EventType::of::<Placed>()
        .upcast(|old: PlacedV1| {
            Ok(PlacedV2 {
                cents: old.euros.checked_mul(100).ok_or("euros is too large")?,
            })
        })
        .upcast(|old: PlacedV2| {
            Ok(Placed {
                total: euros(old.cents),
                lines: Vec::new(),
            })
        })
}

fn registry() -> EventRegistry {
    EventRegistry::new([placed(), EventType::of::<Shipped>()]).unwrap()
}

fn encoded<'a>(event_type: &'a str, version: u32, payload: &'a str) -> Encoded<'a> {
    (event_type, version, payload.as_bytes()).into()
}

fn refused(version: u32, payload: &str) -> String {
    registry()
        .decode(encoded("order.placed", version, payload))
        .unwrap_err()
        .to_string()
}

#[test]
fn every_version_becomes_the_newest() {
    let expected = || Placed {
        total: euros(4_200),
        lines: Vec::new(),
    };
    for (version, payload) in [
        (1, r#"{"euros":42}"#),
        (2, r#" { "cents" : 4200 } "#),
        (3, r#"{"total":{"currency":"EUR","cents":4200},"lines":[]}"#),
    ] {
        let event = registry()
            .decode(encoded("order.placed", version, payload))
            .unwrap();
        assert_eq!(
            (event.event_type(), event.version()),
            (Placed::TYPE, version)
        );
        assert!(event.is::<Placed>() && !event.is::<Shipped>());
        assert_eq!(event.downcast_ref(), Some(&expected()));
        assert_eq!(event.downcast::<Placed>().unwrap(), expected());
    }
    let event = Event::of(&Shipped).unwrap();
    assert_eq!(registry().decode_as::<Shipped>(&event).unwrap(), Shipped);
}

#[test]
fn what_is_not_known_is_said() {
    let kind = |encoded: Encoded<'_>| registry().decode(encoded).unwrap_err();
    let error = kind(encoded("order.lost", 1, "{}"));
    assert_eq!(error.kind(), ErrorKind::UnknownType);
    assert_eq!(
        error.to_string(),
        "event of type order.lost version 1: its type is not registered"
    );
    let error = kind(encoded("order.placed", 4, "{}"));
    assert_eq!(error.kind(), ErrorKind::UnknownVersion);
    assert!(error.to_string().contains("versions up to 3"), "{error}");
    assert_eq!(
        kind(encoded("order.placed", 0, "{}")).kind(),
        ErrorKind::UnknownVersion
    );

    let retiring = EventType::of::<Placed>().oldest_version(3);
    let retiring = EventRegistry::new([retiring]).unwrap();
    let error = retiring
        .decode(encoded("order.placed", 2, r#"{"cents":1}"#))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RetiredVersion);
    assert!(
        error.to_string().contains("versions 3 to 3")
            && error.to_string().contains("oldest_version(2)"),
        "{error}"
    );
    let error = retiring.decode(encoded("order.placed", 0, "{}"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownVersion);

    let event = Event {
        key_id: Some("k1".into()),
        ..Event::of(&Shipped).unwrap()
    };
    let error = kind(Encoded::from(&event));
    assert_eq!(error.kind(), ErrorKind::Undecodable);
    assert!(
        error.to_string().contains("encrypted with key \"k1\""),
        "{error}"
    );
    assert!(error.to_string().contains(&event.id.to_string()), "{error}");
    let binary = Encoded {
        content_type: "application/protobuf",
        ..encoded("order.shipped", 1, "x")
    };
    assert!(kind(binary).to_string().contains("application/protobuf"));
    let more = Encoded {
        content_type: "application/cloudevents+JSON; charset=utf-8",
        ..encoded("order.shipped", 1, "null")
    };
    registry().decode(more).unwrap();

    let shipped = registry()
        .decode(encoded("order.shipped", 1, "null"))
        .unwrap();
    let error = shipped.downcast::<Placed>().unwrap_err();
    assert!(error.to_string().contains("Shipped, and not as"), "{error}");
    let error = registry()
        .decode_as::<Placed>(encoded("order.shipped", 1, "null"))
        .unwrap_err();
    assert!(
        error.to_string().contains("order.placed was asked for"),
        "{error}"
    );
}

#[test]
fn the_path_is_named_and_the_value_is_not() {
    for (payload, says) in [
        (r#"{"lines":[]}"#, r#"field "total" is missing"#),
        (
            r#"{"total":{"cents":1},"lines":[]}"#,
            r#"field "total.currency" is missing"#,
        ),
        (
            r#"{"total":{"cents":"canary","currency":""},"lines":[]}"#,
            r#"field "total.cents" is a string, expected i64"#,
        ),
        (
            r#"{"total":{"cents":"canary, expected joy at line 7","currency":""},"lines":[]}"#,
            r#"field "total.cents" is a string, expected i64"#,
        ),
        (
            r#"{"total":{"cents":1,"currency":""},"lines":[{"price":1},{"price":-7777}]}"#,
            r#"field "lines[1].price" is an integer outside of what is expected: u32"#,
        ),
        (
            r#"{"total":{"cents":1,"currency":""},"lines":[{"price":1,"canary":1}]}"#,
            r#"field "lines[0].canary" is not known to the type, and would be lost"#,
        ),
        (
            r#"{"total":{"cents":1,"currency":"","x":null},"lines":[],"y":{"z":[]}}"#,
            "the payload has fields that the type does not know, and that would be lost: total.x, y",
        ),
        (
            r#"{"total":{"cents":1,"currency":"","cents":2},"lines":[]}"#,
            r#"field "total.cents" is there twice"#,
        ),
        (
            r#"[{"cents":1,"currency":""},[],7777]"#,
            "the payload has more elements than its type takes",
        ),
        ("7777", "the payload is an integer, expected struct Placed"),
        ("{\"canary", "the payload is not JSON: it ends too early"),
        (
            "{\"total\":canary}",
            "the payload is not JSON, at line 1 column 10",
        ),
        (
            "{\"total\":{\"cents\":1,\"currency\":\"\"},\"lines\":[]} canary",
            "the payload is not JSON, at line 1 column",
        ),
        ("", "the payload is not JSON: it ends too early"),
    ] {
        let said = refused(3, payload);
        assert!(said.contains(says), "{said}\nfor {payload}");
        assert!(
            !said.contains("7777") && (says.contains("canary") || !said.contains("canary")),
            "{said}"
        );
    }
    let bytes = Encoded {
        payload: b"{\"\xff\":1}",
        ..encoded("order.placed", 3, "")
    };
    assert!(
        registry()
            .decode(bytes)
            .unwrap_err()
            .to_string()
            .contains("is not UTF-8")
    );
    assert!(refused(1, r#"{"euros":1,"tip":2}"#).contains(r#"field "tip" is not known"#));
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(refused(3, &deep).contains("missing"), "and no stack ends");
}

#[test]
fn an_upcaster_may_refuse_and_its_result_is_read_as_strictly() {
    let error = registry()
        .decode(encoded("order.placed", 1, r#"{"euros":92233720368547759}"#))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undecodable);
    assert!(
        error.to_string().ends_with("version 1: euros is too large"),
        "{error}"
    );
    let registry = EventRegistry::new([EventType::of::<Placed>()
        .upcast_json(1, |json| {
            Ok(json!({"cents": json["euros"].as_i64().ok_or("euros is no integer")?}))
        })
        .upcast_json(2, |json| {
            Ok(json!({"total": {"cents": json["cents"], "currency": 1}, "lines": []}))
        })])
    .unwrap();
    let said = |payload: &str| {
        registry
            .decode(encoded("order.placed", 1, payload))
            .unwrap_err()
            .to_string()
    };
    assert!(
        said(r#"{"euros":"x"}"#).ends_with("version 1: euros is no integer"),
        "{}",
        said(r#"{"euros":"x"}"#)
    );
    assert!(
        said(r#"{"euros":1}"#)
            .ends_with(r#"version 1: upcast to version 3: field "total.currency" is an integer, expected a string"#),
        "{}",
        said(r#"{"euros":1}"#)
    );
    assert!(said(r#"{"euros":1,"euros":2}"#).contains(r#"field "euros" is there twice"#));
    let carried = "18446744073709551615,-9223372036854775808,1e300,-0.0,1.50,0.1,0.10000000000000001,\
                   0.1000000000000000055511151231257827,5e-324,123456789.125E2";
    for rounded in [
        "18446744073709551616",
        "-9223372036854775809",
        "12345678901234567.89",
        "-0.1234567890123456789",
        "1e-400",
    ] {
        let payload = format!(r#"{{"euros":1,"of":[{carried},{rounded}]}}"#);
        let said = said(&payload);
        let says = r#"field "of[10]" is a number that upcast_json would round"#;
        assert!(said.contains(says), "{said}");
    }
    assert!(said(r#"{"euros":1e400}"#).contains("is a number out of range"));
    let deep = format!(r#"{{"euros":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    assert!(
        said(&deep).contains("is nested too deep"),
        "{}",
        said(&deep)
    );
}

#[test]
fn a_registry_that_would_fail_at_an_old_event_is_not_made() {
    let said = |types: Vec<EventType>| EventRegistry::new(types).unwrap_err().to_string();
    let hole = EventType::of::<Placed>().upcast(|_: PlacedV1| Ok(PlacedV2 { cents: 0 }));
    assert!(said(vec![hole]).contains("version 2 has no upcaster"));
    assert!(
        said(vec![EventType::of::<Placed>().upcast_json(2, Ok)])
            .contains("version 1 has no upcaster")
    );
    EventRegistry::new([EventType::of::<Placed>()
        .upcast_json(2, Ok)
        .oldest_version(2)])
    .unwrap();
    EventRegistry::new([EventType::of::<Placed>().oldest_version(3)]).unwrap();
    assert!(said(vec![placed().upcast_json(1, Ok)]).contains("version 1 has two upcasters"));
    assert!(said(vec![placed().upcast_json(3, Ok)]).contains("from version 3 to 4"));
    assert!(said(vec![placed().upcast_json(0, Ok)]).contains("from version 0 to 1"));
    let down = EventType::of::<Placed>().upcast(|_: PlacedV2| Ok(PlacedV1 { euros: 0 }));
    assert!(said(vec![down]).contains("from version 2 to 1"));
    assert!(
        said(vec![EventType::of::<Placed>().oldest_version(4)])
            .contains("oldest_version(4) is not within 1 to 3, its newest version")
    );
    let foreign = EventType::of::<Placed>().upcast(|_: Shipped| Ok(PlacedV2 { cents: 0 }));
    assert!(said(vec![foreign]).contains("upcaster of type order.shipped"));
    assert!(said(vec![placed(), placed()]).contains("order.placed is registered twice"));
    assert!(
        said(vec![placed().with_schema(4, json!({}))])
            .contains("version 4, and reads 1 (oldest_version) to 3")
    );
    assert!(said(vec![placed().with_schema(1, json!(true))]).contains("version 1 is no object"));
    let twice = placed().with_schema(1, json!({})).with_schema(1, json!({}));
    assert!(said(vec![twice]).contains("version 1 has two schemas"));

    #[derive(Serialize, Deserialize)]
    struct Odd;
    event!(Odd, "order placed", 1);
    assert!(said(vec![EventType::of::<Odd>()]).contains("its type is not 1 to 255"));
    // A step may go further than to the next version, and each version has its own.
    let far = EventType::of::<Placed>()
        .upcast(|_: PlacedV1| Err::<Placed, _>("no way".into()))
        .upcast_json(2, Ok);
    EventRegistry::new([far]).unwrap();
}

#[test]
fn a_schema_has_an_id_which_is_the_events() {
    #[derive(Serialize, Deserialize)]
    struct Told;
    impl DomainEvent for Told {
        const TYPE: &'static str = "told";
        const SCHEMA_ID: Option<&'static str> = Some("https://shop.example/told.json");
    }
    let types = || {
        [
            placed()
                .with_schema(1, json!({"$id": "urn:one"}))
                .with_schema(2, json!({})),
            EventType::of::<Told>().with_schema(1, json!({})),
        ]
    };
    let registry = EventRegistry::new(types()).unwrap();
    assert_eq!(registry.schema_id("order.placed", 1), Some("urn:one"));
    assert_eq!(
        registry.schema_id("order.placed", 2),
        Some("urn:bento-outbox:schema:order.placed/2")
    );
    assert_eq!(registry.schema_id("order.placed", 3), None);
    assert_eq!(registry.schema_id("told", 1), Told::SCHEMA_ID);
    let registry = EventRegistry::with_schema_base("https://shop.example/", types()).unwrap();
    assert_eq!(
        registry.schema_id("order.placed", 2),
        Some("https://shop.example/order.placed/2")
    );

    let other = EventType::of::<Told>().with_schema(1, json!({"$id": "urn:other"}));
    let said = EventRegistry::new([other]).unwrap_err().to_string();
    assert!(
        said.contains("urn:other") && said.contains("told.json"),
        "{said}"
    );
    let one_id = |first, second| {
        let first = placed().with_schema(1, first);
        let second = EventType::of::<Shipped>().with_schema(1, second);
        EventRegistry::new([first, second])
    };
    let (text, number) = (
        json!({"$id": "urn:it", "type": "string"}),
        json!({"$id": "urn:it", "type": "number"}),
    );
    let said = one_id(text.clone(), number).unwrap_err().to_string();
    assert!(
        said.contains("version 1 of order.placed and version 1 of order.shipped")
            && said.contains("urn:it"),
        "{said}"
    );
    one_id(text.clone(), text).unwrap();
    let long = EventRegistry::with_schema_base(&"x".repeat(250), types()).unwrap_err();
    assert!(long.to_string().contains("255 characters"), "{long}");
}
