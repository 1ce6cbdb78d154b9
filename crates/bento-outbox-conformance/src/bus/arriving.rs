//! What arrives is what was written.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
    pairs.iter().map(owned).collect()
}

/// Each column is the attribute that the contract says, and each header is there.
pub async fn every_attribute_and_header_arrives(bus: &dyn Bus, can: &Capabilities) {
    let event = Event {
        tenant: "acme".parse().ok(),
        aggregate: Aggregate::new("order", "7"),
        schema_id: Some("https://shop.example/order.json".into()),
        schema_version: 3,
        headers: headers(&[
            (
                "traceparent",
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ("tracestate", "vendor=1"),
            ("correlation_id", "conversation-1"),
            ("causation_id", "message-1"),
            ("x-shop", "north"),
            ("Region", "eu"),
        ]),
        occurred_at: time("2013-01-01T05:17:00.25Z"),
        ..event("7", 1)
    };
    let Some(arrived) = passed(bus, can, &row(&event, 42)).await else {
        return;
    };
    let expected = [
        ("specversion", "1.0"),
        ("id", &event.id.to_string()),
        ("source", "urn:bento-outbox"),
        ("type", "case.changed"),
        ("subject", "7"),
        ("datacontenttype", "application/json"),
        ("dataschema", "https://shop.example/order.json"),
        ("tenantid", "acme"),
        ("aggregatetype", "order"),
        ("schemaversion", "3"),
        ("sequence", "42"),
        ("partitionkey", "acme/order/7"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("tracestate", "vendor=1"),
        ("correlationid", "conversation-1"),
        ("causationid", "message-1"),
    ];
    let mut attributes = arrived.attributes;
    let Some(arrived_time) = attributes.remove("time") else {
        panic!("the attribute time did not arrive");
    };
    assert_eq!(time(&arrived_time), event.occurred_at);
    assert_eq!(attributes, map(&expected));
    let region = match can.lowers_header_names {
        true => "region",
        false => "Region",
    };
    assert_eq!(arrived.headers, map(&[("x-shop", "north"), (region, "eu")]));
    assert_eq!(arrived.body, event.payload.as_bytes());
}

fn time(text: &str) -> Timestamp {
    match text.parse() {
        Ok(time) => time,
        Err(error) => panic!("{error}"),
    }
}

/// A column that is null is no attribute, not even an empty one.
pub async fn what_an_event_does_not_have_is_left_out(bus: &dyn Bus, can: &Capabilities) {
    let no_aggregate = Event {
        aggregate: Aggregate::default(),
        ..event("", 1)
    };
    let Some(arrived) = passed(bus, can, &record(&no_aggregate)).await else {
        return;
    };
    let mut expected = BTreeSet::from([
        "datacontenttype",
        "id",
        "schemaversion",
        "sequence",
        "source",
        "specversion",
        "tenantid",
        "time",
        "type",
    ]);
    assert_eq!(names(&arrived), expected);
    assert_eq!(arrived.headers, BTreeMap::new());

    let kind_alone = Event {
        aggregate: Aggregate {
            kind: Some("order".into()),
            id: None,
        },
        ..event("", 2)
    };
    if let Some(arrived) = passed(bus, can, &record(&kind_alone)).await {
        expected.insert("aggregatetype");
        assert_eq!(names(&arrived), expected);
    }
}

fn names(arrived: &Arrived) -> BTreeSet<&str> {
    arrived.attributes.keys().map(String::as_str).collect()
}

/// What has a meaning in the protocol has none in the text of a user.
pub async fn hostile_text_arrives_as_it_is(bus: &dyn Bus, can: &Capabilities) {
    for text in [
        "100%",
        "%41",
        "\"a\" \\b\\",
        "{\"a\":1}",
        "ä € 😀",
        "a\u{202e}b",
        "a,b;c=d",
    ] {
        let event = Event {
            aggregate: Aggregate::new(text, text),
            headers: headers(&[("correlation_id", text), ("x-text", text)]),
            ..event("", 1)
        };
        let Some(arrived) = passed(bus, can, &record(&event)).await else {
            return;
        };
        for name in ["subject", "aggregatetype", "correlationid"] {
            assert_eq!(arrived.attributes.get(name).map(String::as_str), Some(text));
        }
        assert_eq!(arrived.headers, map(&[("x-text", text)]));
    }
}

/// A payload of any bytes, of any content type.
pub async fn any_bytes_arrive_unchanged(bus: &dyn Bus, can: &Capabilities) {
    let every_byte: Vec<u8> = (0..=255).collect();
    let long: Vec<u8> = (0..100_000_usize).map(|n| (n * n / 7) as u8).collect();
    for data in [every_byte, long, b"\r\n".into(), b"{\"a\":1}\n".into()] {
        for content_type in ["application/octet-stream", "text/plain", "application/json"] {
            let event = Event {
                payload: Payload::Data(data.clone().into()),
                content_type: content_type.into(),
                ..event("7", 1)
            };
            let Some(arrived) = passed(bus, can, &record(&event)).await else {
                return;
            };
            assert!(
                arrived.body == data,
                "{} bytes of {content_type}",
                data.len()
            );
            assert_eq!(arrived.attributes["datacontenttype"], content_type);
        }
    }
}

/// JSON is not parsed and written again: white space, order, numbers and escapes stay.
pub async fn json_arrives_as_written(bus: &dyn Bus, can: &Capabilities) {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for text in [
        "{ \"b\" :1,\t\"a\":2 }",
        "{\"a\":1,\"a\":2}",
        "[1e400,1.0,0.1e1,-0,123456789012345678901234567890]",
        "\"\\u0000\\ud800\\/\\u00e9\u{e9}\u{2028}\"",
        "{\r\n  \"a\": [\n1 ]\r}",
        "null",
        deep.as_str(),
    ] {
        for content_type in [
            "application/json",
            "application/vnd.shop+json",
            "text/plain",
        ] {
            let event = Event {
                payload: json(text),
                content_type: content_type.into(),
                ..event("7", 1)
            };
            let Some(arrived) = passed(bus, can, &record(&event)).await else {
                return;
            };
            let in_line = !can.carries_bodies && content_type != "text/plain";
            let expected = if in_line {
                text.replace(['\r', '\n'], " ")
            } else {
                text.to_owned()
            };
            let short: String = text.chars().take(40).collect();
            assert!(
                arrived.body == expected.as_bytes(),
                "{content_type}: {short}"
            );
        }
    }
}

/// Nothing is a payload too.
pub async fn an_empty_payload_arrives_empty(bus: &dyn Bus, can: &Capabilities) {
    let event = Event {
        payload: Payload::Data(Vec::new().into()),
        content_type: "application/octet-stream".into(),
        ..event("7", 1)
    };
    if let Some(arrived) = passed(bus, can, &record(&event)).await {
        assert_eq!(arrived.body, b"");
    }
}

/// The records of a batch arrive once each, in the order given.
pub async fn a_batch_arrives_in_its_order(bus: &dyn Bus, can: &Capabilities) {
    let batch = batch(0..400);
    publish_all(&*bus.publisher(), &batch).await;
    if can.keeps {
        assert_arrived(can, &arrived_ids(bus).await, &[&batch]);
    }
}

/// A later batch is behind an earlier one, so a key that is in both is in order.
pub async fn batches_arrive_one_after_the_other(bus: &dyn Bus, can: &Capabilities) {
    let publisher = bus.publisher();
    let mut batches = Vec::new();
    for round in 0..20 {
        let batch: Vec<_> = (0..10)
            .map(|key| row(&event(&format!("k{key}"), round), round * 10 + key))
            .collect();
        publish_all(&*publisher, &batch).await;
        batches.push(batch);
    }
    if can.keeps {
        let batches: Vec<_> = batches.iter().map(Vec::as_slice).collect();
        assert_arrived(can, &arrived_ids(bus).await, &batches);
    }
}

/// The relay and the units of work may publish at the same time.
pub async fn batches_at_the_same_time_lose_nothing(bus: &dyn Bus, can: &Capabilities) {
    let publisher = bus.publisher();
    let batches: Vec<_> = (0..8).map(|n| batch(n * 50..n * 50 + 50)).collect();
    let all = batches.iter().map(|batch| publish_all(&*publisher, batch));
    futures_util::future::join_all(all).await;
    if !can.keeps {
        return;
    }
    let arrived = arrived_ids(bus).await;
    assert_eq!(arrived.len(), 400);
    for batch in &batches {
        let own: HashSet<_> = ids(batch).into_iter().collect();
        let own: Vec<_> = arrived
            .iter()
            .filter(|id| own.contains(*id))
            .cloned()
            .collect();
        assert_arrived(can, &own, &[batch]);
    }
}

/// A relay that starts again goes on where the last one ended.
pub async fn a_new_publisher_adds_to_what_is_there(bus: &dyn Bus, can: &Capabilities) {
    let batch = batch(0..10);
    publish_all(&*bus.publisher(), &batch[..5]).await;
    publish_all(&*bus.publisher(), &batch[5..]).await;
    if can.keeps {
        assert_arrived(can, &arrived_ids(bus).await, &[&batch[..5], &batch[5..]]);
    }
}
