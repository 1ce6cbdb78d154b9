//! Every bus against the one list of cases, and the list against buses that break a promise.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bento_outbox::publishers::{FilePublisher, MemoryPublisher, NullPublisher, StdoutPublisher};
use bento_outbox::{Aggregate, CloudEvents, OutboxRecord, Publisher};
use bento_outbox_conformance::bus::{Arrived, Bus, Capabilities};
use bento_outbox_conformance::mutants::bus::{CAPABILITIES, Fault, MutantBus};
use bento_outbox_conformance::{bus_cases, bus_suite};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tempfile::TempDir;

bus_suite!(memory, fresh_memory, MEMORY);
bus_suite!(stdout, fresh_stdout, LINES);
bus_suite!(file, fresh_file, LINES);
bus_suite!(null, fresh_null, NULL);

const MEMORY: Capabilities = Capabilities {
    keeps: true,
    carries_bodies: true,
    keeps_batch_order: true,
    lowers_header_names: false,
    drops_repetitions: false,
    refuses_unrouted: false,
    payload_bytes_max: None,
};
const LINES: Capabilities = Capabilities {
    carries_bodies: false,
    ..MEMORY
};
const NULL: Capabilities = Capabilities {
    keeps: false,
    ..MEMORY
};

/// The bus in memory, whose records are spelt out here as the contract says.
struct Memory(MemoryPublisher);

async fn fresh_memory() -> Memory {
    Memory(MemoryPublisher::default())
}

#[async_trait]
impl Bus for Memory {
    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(self.0.clone())
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        None
    }

    async fn arrived(&self) -> Vec<Arrived> {
        self.0.published().iter().map(spelt_out).collect()
    }
}

fn spelt_out(record: &OutboxRecord) -> Arrived {
    let mut headers: BTreeMap<String, String> = serde_json::from_str(&record.headers).unwrap();
    let Aggregate { kind, id } = &record.aggregate;
    let key = id.as_ref().map(|id| {
        let kind = kind.as_deref().unwrap_or_default();
        format!("{}/{kind}/{id}", record.tenant)
    });
    let optional = [
        ("dataschema", record.schema_id.clone()),
        ("subject", id.clone()),
        ("aggregatetype", kind.clone()),
        ("partitionkey", key),
        ("traceparent", headers.remove("traceparent")),
        ("tracestate", headers.remove("tracestate")),
        ("correlationid", headers.remove("correlation_id")),
        ("causationid", headers.remove("causation_id")),
    ];
    let required = [
        ("specversion", "1.0".to_owned()),
        ("id", record.id.to_string()),
        ("source", "urn:bento-outbox".to_owned()),
        ("type", record.event_type.clone()),
        ("time", record.occurred_at.to_string()),
        ("datacontenttype", record.content_type.clone()),
        ("tenantid", record.tenant.to_string()),
        ("schemaversion", record.schema_version.to_string()),
        ("sequence", record.seq.to_string()),
    ];
    let optional = optional
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let attributes = required.into_iter().chain(optional);
    Arrived {
        attributes: attributes
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        headers,
        body: record.payload.to_vec(),
    }
}

/// Standard output, caught.
#[derive(Clone, Default)]
struct Stdout(Arc<Mutex<Vec<u8>>>);

async fn fresh_stdout() -> Stdout {
    Stdout::default()
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Bus for Stdout {
    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(StdoutPublisher::to(self.clone(), CloudEvents::default()))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        None
    }

    async fn arrived(&self) -> Vec<Arrived> {
        lines(&self.0.lock().unwrap())
    }
}

/// A file in a folder of its own.
struct File(TempDir);

async fn fresh_file() -> File {
    File(tempfile::tempdir().unwrap())
}

#[async_trait]
impl Bus for File {
    fn publisher(&self) -> Box<dyn Publisher> {
        let path = self.0.path().join("events.jsonl");
        Box::new(FilePublisher::new(path, CloudEvents::default()))
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        let path = self.0.path().join("missing/events.jsonl");
        Some(Box::new(FilePublisher::new(path, CloudEvents::default())))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        lines(&std::fs::read(self.0.path().join("events.jsonl")).unwrap_or_default())
    }
}

/// Where nothing arrives.
struct Null;

async fn fresh_null() -> Null {
    Null
}

#[async_trait]
impl Bus for Null {
    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(NullPublisher)
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        None
    }

    async fn arrived(&self) -> Vec<Arrived> {
        Vec::new()
    }
}

/// Structured CloudEvents, one a line.
pub(crate) fn lines(text: &[u8]) -> Vec<Arrived> {
    let text = std::str::from_utf8(text).expect("lines are UTF-8");
    assert!(text.is_empty() || text.ends_with('\n'), "a torn line");
    text.lines().map(envelope).collect()
}

/// A structured CloudEvent, read without losing a byte of its data.
pub(crate) fn envelope(text: &str) -> Arrived {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap();
    let headers = fields.remove("headers").map(|headers| {
        let headers: String = serde_json::from_str(headers.get()).unwrap();
        serde_json::from_str(&headers).unwrap()
    });
    let body = match (fields.remove("data"), fields.remove("data_base64")) {
        (Some(data), None) => data.get().into(),
        (None, Some(data)) => {
            let data: String = serde_json::from_str(data.get()).unwrap();
            BASE64.decode(data).unwrap()
        }
        _ => panic!("not one of data and data_base64: {text}"),
    };
    let attribute = |(name, value): (String, Box<RawValue>)| {
        let value = if name == "schemaversion" {
            serde_json::from_str::<u32>(value.get())
                .unwrap()
                .to_string()
        } else {
            serde_json::from_str(value.get()).unwrap()
        };
        (name, value)
    };
    Arrived {
        attributes: fields.into_iter().map(attribute).collect(),
        headers: headers.unwrap_or_default(),
        body,
    }
}

/// How long publishers that are to fail wait for an answer: longer than a busy machine takes to give one.
pub(crate) const TIMEOUT: &str = "5s";

type Case = for<'a> fn(&'a dyn Bus, &'a Capabilities) -> BoxFuture<'a, ()>;

macro_rules! table {
    ({} $($group:ident::$case:ident),* $(,)?) => {
        const CASES: &[(&str, Case)] = &[$((stringify!($case), |bus, can| {
            Box::pin(bento_outbox_conformance::bus::$group::$case(bus, can))
        })),*];
    };
}

bus_cases!(table {});

/// The cases that a bus with this fault does not pass.
async fn failing(fault: Option<Fault>) -> BTreeSet<&'static str> {
    let mut failing = BTreeSet::new();
    for (name, case) in CASES {
        let bus = MutantBus::new(fault);
        let run = AssertUnwindSafe(case(&bus, &CAPABILITIES)).catch_unwind();
        if run.await.is_err() {
            failing.insert(*name);
        }
    }
    failing
}

#[tokio::test(start_paused = true)]
async fn a_bus_without_a_fault_passes_every_case() {
    assert_eq!(failing(None).await, BTreeSet::new());
}

#[tokio::test(start_paused = true)]
async fn every_fault_fails_a_case_and_every_case_is_failed_by_a_fault() {
    let mut caught = BTreeSet::new();
    for fault in Fault::ALL {
        let failing = failing(Some(*fault)).await;
        assert!(!failing.is_empty(), "no case notices a bus that {fault:?}");
        caught.extend(failing);
    }
    let all: BTreeSet<_> = CASES.iter().map(|(name, _)| *name).collect();
    let idle: Vec<_> = all.difference(&caught).collect();
    assert!(idle.is_empty(), "no fault fails {idle:?}");
}
