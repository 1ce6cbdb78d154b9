//! Traces, as a receiver of OTLP gets them.

use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;

use super::{Receiver, Request, answered, free_port, picky};
use crate::event;
use crate::place::{CANARY, Place, Ran};

/// What a collector got.
#[derive(Clone, Default)]
struct Collected {
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Collected {
    fn start() -> (Self, String) {
        let collected = Self::default();
        let requests = collected.requests.clone();
        let receiver = Receiver::start(move |request| {
            requests.lock().unwrap().push(request);
            answered("200 OK", "")
        });
        (collected, format!("http://127.0.0.1:{}", receiver.port))
    }

    /// Every span, with the resource that it is of.
    fn spans(&self) -> Vec<(Resource, Span)> {
        let requests = self.requests.lock().unwrap();
        let of = |request: &Request| {
            assert_eq!(request.path, "/v1/traces");
            assert_eq!(request.headers["content-type"], "application/x-protobuf");
            let mut body = request.body.clone();
            if request
                .headers
                .get("content-encoding")
                .is_some_and(|text| text == "gzip")
            {
                body.clear();
                flate2::read::GzDecoder::new(&request.body[..])
                    .read_to_end(&mut body)
                    .unwrap();
            }
            ExportTraceServiceRequest::decode(&body[..])
                .unwrap()
                .resource_spans
        };
        requests
            .iter()
            .flat_map(of)
            .flat_map(|of| {
                let resource = of.resource.unwrap();
                let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.map(move |span| (resource.clone(), span))
            })
            .collect()
    }
}

fn text<'s>(attributes: &'s [KeyValue], name: &str) -> Option<&'s str> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()? {
        AnyValue {
            value: Some(Value::StringValue(text)),
        } => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traced(event_type: &str, flags: &str) -> String {
    format!(
        "{{\"type\":\"{event_type}\",\"payload\":\"{CANARY}\",\"headers\":{{\"traceparent\":\"00-{TRACE}-{PARENT}-{flags}\",\"tracestate\":\"shop=1\"}}}}\n"
    )
}

fn once(place: &Place, bus: &str, variables: &[(&str, &str)]) -> Ran {
    place.run_with(&["run", "--once", "--bus-url", bus], variables)
}

#[test]
fn a_trace_goes_through_the_table() {
    let place = Place::migrated();
    let (collected, endpoint) = Collected::start();
    let bus = picky();
    let lines = traced("good", "01") + &traced("bad", "01") + &traced("unsampled", "00");
    place.append(lines + &event(1)).succeeded();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20me"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
    ];
    let url = format!("http://127.0.0.1:{}/", bus.port);
    let ran = once(&place, &url, &variables).succeeded();
    assert!(ran.stderr.starts_with("3 sent"), "{ran:?}");

    let spans = collected.spans();
    let all = format!("{spans:?}");
    assert!(!all.contains(CANARY), "no payload: {all}");
    {
        let requests = collected.requests.lock().unwrap();
        assert!(
            requests
                .iter()
                .all(|request| request.headers["authorization"] == "Bearer me")
        );
        assert!(
            requests
                .iter()
                .all(|request| request.headers["content-encoding"] == "gzip")
        );
    }
    for (resource, _) in &spans {
        assert_eq!(
            text(&resource.attributes, "service.name"),
            Some("bento-outbox")
        );
        assert_eq!(
            text(&resource.attributes, "deployment.environment.name"),
            Some("test")
        );
        assert!(text(&resource.attributes, "service.version").is_some());
    }
    let named = |name: &str| -> Vec<&Span> {
        let spans = spans.iter().map(|(_, span)| span);
        spans.filter(|span| span.name == name).collect()
    };
    let batch = named("outbox.batch");
    assert_eq!(batch.len(), 1, "{all}");
    let batch = batch[0];
    assert!(batch.parent_span_id.is_empty() && batch.kind() == SpanKind::Internal);

    let published = named("outbox.publish");
    assert_eq!(
        published.len(),
        3,
        "what was not sampled is not exported: {all}"
    );
    let of_type = |event_type: &str| {
        let mut of = published.iter();
        let of = of.find(|span| text(&span.attributes, "outbox.event_type") == Some(event_type));
        *of.unwrap_or_else(|| panic!("no {event_type} in {all}"))
    };
    for span in [of_type("good"), of_type("bad")] {
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.into(), PARENT.into())
        );
        assert_eq!(
            (span.trace_state.as_str(), span.kind()),
            ("shop=1", SpanKind::Producer)
        );
        assert_eq!(span.links.len(), 1);
        assert_eq!(
            (&span.links[0].trace_id, &span.links[0].span_id),
            (&batch.trace_id, &batch.span_id),
            "linked to its batch"
        );
        assert!(span.start_time_unix_nano >= batch.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= batch.end_time_unix_nano);
        assert_eq!(
            text(&span.attributes, "messaging.message.id").map(str::len),
            Some(36)
        );
    }
    let status = |span: &Span| span.status.clone().unwrap_or_default().code();
    assert_eq!(status(of_type("good")), StatusCode::Unset);
    assert_eq!(status(of_type("bad")), StatusCode::Error);
    assert_eq!(
        text(&of_type("bad").attributes, "error.type"),
        Some("permanent")
    );
    let untraced = of_type("order.placed");
    assert_eq!(untraced.parent_span_id, batch.span_id, "of its batch");
    assert_eq!(untraced.trace_id, batch.trace_id);
}

#[test]
fn the_message_keeps_the_trace_of_its_event() {
    let place = Place::migrated();
    let (collected, endpoint) = Collected::start();
    place.append(traced("good", "01")).succeeded();
    let variables = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &*format!("{endpoint}/v1/traces"),
        ),
        ("OTEL_SERVICE_NAME", "my relay"),
    ];
    once(&place, "file:bus.jsonl", &variables).succeeded();
    let line = std::fs::read_to_string(place.path().join("bus.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["traceparent"], format!("00-{TRACE}-{PARENT}-01"));
    let spans = collected.spans();
    assert!(!spans.is_empty());
    for (resource, _) in spans {
        assert_eq!(text(&resource.attributes, "service.name"), Some("my relay"));
    }
}

#[test]
fn nobody_is_asked_where_no_traces_are_wanted() {
    let (collected, endpoint) = Collected::start();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str());
    for (variables, said) in [
        (vec![("OTEL_SERVICE_NAME", "x")], ""),
        (vec![endpoint, ("OTEL_SDK_DISABLED", "true")], ""),
        (vec![endpoint, ("OTEL_TRACES_EXPORTER", "none")], ""),
        (
            vec![endpoint, ("OTEL_TRACES_EXPORTER", "zipkin")],
            "OTEL_TRACES_EXPORTER is zipkin",
        ),
        (
            vec![endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "http/protobuf",
        ),
    ] {
        let place = Place::migrated();
        place.append(event(1)).succeeded();
        let ran = once(&place, "null:", &variables).succeeded();
        assert!(ran.stderr.contains(said), "{ran:?}");
        assert_eq!(ran.stderr.contains("WARN"), !said.is_empty(), "{ran:?}");
    }
    assert!(collected.requests.lock().unwrap().is_empty());
}

#[test]
fn a_collector_that_is_away_or_refuses_harms_nothing_and_is_told_of_once() {
    let refusing = Receiver::start(|_| answered("503 Service Unavailable", "later"));
    for port in [free_port(), refusing.port] {
        let place = Place::migrated();
        place.append(event(1).repeat(3_000)).succeeded();
        let endpoint = format!("http://127.0.0.1:{port}");
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ];
        let begun = Instant::now();
        let ran = once(&place, "null:", &variables).succeeded();
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        assert!(ran.stderr.contains("3000 sent"), "{ran:?}");
        assert_eq!(
            ran.stderr.matches("traces cannot be exported").count(),
            1,
            "{ran:?}"
        );
        assert!(ran.stderr.lines().count() <= 3, "{ran:?}");
    }
}
