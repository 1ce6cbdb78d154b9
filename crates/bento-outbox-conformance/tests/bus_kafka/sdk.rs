//! What is published, read by the SDK of CloudEvents. The one for Rust brings a C library of its own for Kafka, so it
//! is the one for Python.

use std::process::Stdio;
use std::slice::from_ref;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bento_outbox_conformance::servers::find_in_wheel;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::*;

const READER: &str = "
import base64, json, sys
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
for message in json.load(sys.stdin):
    headers = {name: value.encode() for name, value in message['headers']}
    event = from_kafka_event(KafkaMessage(headers, message['key'], base64.b64decode(message['body'])))
    attributes = {name: str(value) for name, value in event.get_attributes().items()}
    print(json.dumps({'attributes': attributes, 'data': event.get_data()}))
";

/// The messages as the SDK reads them.
async fn read(messages: &[Message]) -> Vec<Value> {
    let binding = find_in_wheel("cloudevents-2.2.0/cloudevents/core/bindings/kafka.py");
    let mut python = Command::new("python3")
        .args(["-c", READER])
        .env("PYTHONPATH", binding.ancestors().nth(4).unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = messages.iter().map(|message| {
        let Message { key, headers, .. } = message;
        json!({ "key": key, "headers": headers, "body": BASE64.encode(&message.body) })
    });
    let input = Value::from_iter(input).to_string();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = python.wait_with_output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_sdk_of_cloudevents_reads_both_modes() {
    let url = shared_kafka().url();
    topic(&url, "read", 1, &[]).await;
    let record = OutboxRecord {
        schema_id: Some("https://shop.example/order.json".into()),
        headers: r#"{"correlation_id":"c 1","x-shop":"Z\u00fcrich"}"#.into(),
        occurred_at: "2013-01-01T05:17:00.25Z".parse().unwrap(),
        payload: r#"{"total":[4200,"\u20ac"]}"#.into(),
        ..of("n\u{b0} 7", "read")
    };
    for mode in ["binary", "structured"] {
        let bus = shared(&format!("mode={mode}"));
        assert_eq!(bus.publish(from_ref(&record)).await, [ACKED]);
    }
    let events = read(&messages(&url, "read").await).await;
    let expected = json!({
        "specversion": "1.0",
        "id": record.id,
        "source": "urn:bento-outbox",
        "type": "read",
        "subject": "n\u{b0} 7",
        "time": "2013-01-01 05:17:00.250000+00:00",
        "datacontenttype": "application/json",
        "dataschema": "https://shop.example/order.json",
        "tenantid": "default",
        "aggregatetype": "order",
        "schemaversion": "1",
        "sequence": "1",
        "correlationid": "c 1",
        // The SDK puts the message's key in the place of the attribute.
        "partitionkey": "n\u{b0} 7",
    });
    let [binary, structured] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(binary["attributes"], expected);
    for event in [binary, structured] {
        assert_eq!(event["data"], json!({ "total": [4200, "\u{20ac}"] }));
        assert_eq!(event["attributes"]["id"], expected["id"]);
        assert_eq!(event["attributes"]["time"], expected["time"]);
    }
}
