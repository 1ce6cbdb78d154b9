//! One JSON line of `append`: the columns that any writer may give, as one event.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bento_outbox::{Aggregate, Event, Headers, Payload};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What a line may give, in the words of the table's columns.
const COLUMNS: [&str; 15] = [
    "id",
    "tenant_id",
    "aggregate_type",
    "aggregate_id",
    "type",
    "schema_id",
    "schema_ver",
    "payload",
    "data",
    "content_type",
    "key_id",
    "headers",
    "occurred_at",
    "created_at",
    "available_at",
];

/// The event that a line holds.
///
/// # Errors
/// What is wrong, naming the field and never showing a value: it may be part of a payload.
pub(crate) fn parse(line: &[u8]) -> Result<Event, String> {
    let line = std::str::from_utf8(line)
        .map_err(|error| format!("byte {} is not UTF-8", error.valid_up_to() + 1))?;
    let fields: Fields<'_> = serde_json::from_str(line).map_err(|error| syntax(&error))?;
    if let Some(complaint) = fields.complaint {
        return Err(complaint);
    }
    let event = fields.event()?;
    let named = format!("event {}: ", event.id);
    event
        .check()
        .map_err(|error| error.to_string().replacen(&named, "", 1))?;
    Ok(event)
}

/// Where a line stops being a JSON object. Serde's own words may repeat what stands there.
fn syntax(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => "it is not a JSON object".into(),
        serde_json::error::Category::Eof => "the JSON object does not end".into(),
        _ => format!(
            "it is not a JSON object: column {} is not JSON",
            error.column()
        ),
    }
}

/// A line's fields, each as it stands there.
#[derive(Default)]
struct Fields<'a> {
    values: [Option<&'a RawValue>; COLUMNS.len()],
    /// The first field that is not a column or is there twice.
    complaint: Option<String>,
}

impl<'a> Deserialize<'a> for Fields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'a> Visitor<'a> for Object {
            type Value = Fields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'a>>(self, mut object: M) -> Result<Fields<'a>, M::Error> {
                let mut fields = Fields::default();
                while let Some(name) = object.next_key::<String>()? {
                    let value = object.next_value()?;
                    if let Err(complaint) = fields.put(&name, value) {
                        fields.complaint.get_or_insert(complaint);
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl<'a> Fields<'a> {
    fn put(&mut self, name: &str, value: &'a RawValue) -> Result<(), String> {
        let shown = || name.chars().take(40).collect::<String>();
        let Some(at) = COLUMNS.iter().position(|column| *column == name) else {
            return Err(format!(
                "field {:?} is unknown; the fields are {}",
                shown(),
                COLUMNS.join(", ")
            ));
        };
        match self.values[at].replace(value) {
            Some(_) => Err(format!("field {name} is there twice")),
            None => Ok(()),
        }
    }

    fn event(&self) -> Result<Event, String> {
        let event_type = self.text("type")?.ok_or("type is missing")?;
        let mut event = Event::new(event_type, self.payload()?);
        if let Some(id) = self.parsed("id", "a UUID")? {
            event.id = id;
        }
        if let Some(name) = self.text("tenant_id")? {
            event.tenant = Some(name.parse().map_err(|_| {
                "tenant_id is not 1 to 64 of the characters A-Z a-z 0-9 . _ - beginning with a letter or digit"
            })?);
        }
        event.aggregate = Aggregate {
            kind: self.text("aggregate_type")?,
            id: self.text("aggregate_id")?,
        };
        event.schema_id = self.text("schema_id")?;
        if let Some(version) = self.get("schema_ver") {
            event.schema_version = version
                .get()
                .parse()
                .map_err(|_| "schema_ver is not a whole number from 0 to 2147483647")?;
        }
        if let Some(content_type) = self.text("content_type")? {
            event.content_type = content_type;
        }
        event.key_id = self.text("key_id")?;
        if let Some(headers) = self.get("headers") {
            event.headers = Headers::from_json(headers.get()).map_err(|error| error.to_string())?;
        }
        if let Some(time) = self.parsed("occurred_at", TIME)? {
            event.occurred_at = time;
        }
        event.created_at = self.parsed("created_at", TIME)?;
        event.available_at = self.parsed("available_at", TIME)?;
        Ok(event)
    }

    fn payload(&self) -> Result<Payload, String> {
        let payload = self.raw("payload");
        match (payload, self.text("data")?) {
            // `null` is a payload like any other, but beside data it is the empty column of a row.
            (Some(payload), Some(_)) if payload.get() != "null" => {
                Err("it has both payload and data".into())
            }
            (_, Some(data)) => BASE64_STANDARD
                .decode(data)
                .map(|bytes| Payload::Data(bytes.into()))
                .map_err(|_| "data is not base64".into()),
            (Some(payload), None) => Ok(Payload::Json(payload.to_owned())),
            (None, None) => Err("it has neither payload nor data".into()),
        }
    }

    /// A field as it stands in the line.
    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let at = COLUMNS.iter().position(|column| *column == name)?;
        self.values[at]
    }

    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.raw(name).filter(|value| value.get() != "null")
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.get(name)
            .map(|value| {
                serde_json::from_str::<Cow<'_, str>>(value.get())
                    .map(Cow::into_owned)
                    .map_err(|_| format!("{name} is not a string"))
            })
            .transpose()
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, String> {
        let text = self.text(name)?;
        text.map(|text| text.parse().map_err(|_| format!("{name} is not {what}")))
            .transpose()
    }
}

/// What the three times are.
const TIME: &str = "a time in RFC 3339 such as 2013-01-01T05:17:00Z, in the years 1 to 9999";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_kept_byte_for_byte() {
        for payload in [
            "{ \"b\" : 1e400 , \"a\":\"\\u0000é\" }",
            "null",
            "0",
            "\"\\ud83d\\ude00\"",
            "[ ]",
        ] {
            let event =
                parse(format!("{{\"type\":\"a\",\"payload\":  {payload}  }}").as_bytes()).unwrap();
            assert_eq!(event.payload.as_bytes(), payload.as_bytes());
        }
    }

    #[test]
    fn every_column_arrives() {
        let event = parse(
            br#"{"id":"ce974dcd-cdcc-4219-b109-10e01ce658e4","tenant_id":"ua","aggregate_type":"aircraft",
                "aggregate_id":"N1\u0034","type":"flight.departed","schema_id":"urn:x","schema_ver":3,"payload":null,
                "data":"AP8=","content_type":"application/x","key_id":"k1","headers":{"correlation_id":"c"},
                "occurred_at":"2013-01-01T05:17:00Z","created_at":"2013-01-01T06:17:00+01:00","available_at":null}"#,
        )
        .unwrap();
        assert_eq!(event.id.to_string(), "ce974dcd-cdcc-4219-b109-10e01ce658e4");
        assert_eq!(event.tenant.unwrap().as_str(), "ua");
        assert_eq!(event.aggregate, Aggregate::new("aircraft", "N14"));
        assert_eq!(
            (event.event_type.as_str(), event.schema_version),
            ("flight.departed", 3)
        );
        assert_eq!(
            (event.schema_id.as_deref(), event.key_id.as_deref()),
            (Some("urn:x"), Some("k1"))
        );
        assert_eq!(event.payload.as_bytes(), [0, 255]);
        assert_eq!(event.content_type, "application/x");
        assert_eq!(event.headers.get("correlation_id"), Some("c"));
        assert_eq!(event.created_at, Some(event.occurred_at));
        assert_eq!(event.available_at, None);
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_shown() {
        for (line, said) in [
            (r#"{"payload":"CANARY"}"#, "type is missing"),
            (r#"{"type":"a"}"#, "neither payload nor data"),
            (
                r#"{"type":"a","payload":"CANARY","data":"AA=="}"#,
                "both payload and data",
            ),
            (r#"{"type":"a","data":"CANARY!"}"#, "data is not base64"),
            (r#"{"type":"a","payload":{"x":"CANARY"}"#, "does not end"),
            (
                r#"{"type":"a","payload":{"x":CANARY}}"#,
                "column 28 is not JSON",
            ),
            (r#"{"type":"a","payload":1} "CANARY""#, "not a JSON object"),
            (r#""CANARY""#, "not a JSON object"),
            (r#"["CANARY"]"#, "not a JSON object"),
            (
                r#"{"type":"a","payload":1,"sequence":"CANARY"}"#,
                "\"sequence\" is unknown",
            ),
            (
                r#"{"type":"a","payload":1,"payload":"CANARY"}"#,
                "payload is there twice",
            ),
            (r#"{"type":7,"payload":"CANARY"}"#, "type is not a string"),
            (
                r#"{"type":"a b","payload":"CANARY"}"#,
                "type is not 1 to 255",
            ),
            (
                r#"{"type":"a","payload":1,"id":"CANARY"}"#,
                "id is not a UUID",
            ),
            (
                r#"{"type":"a","payload":1,"tenant_id":"CAN ARY"}"#,
                "tenant_id is not",
            ),
            (
                r#"{"type":"a","payload":1,"tenant_id":""}"#,
                "tenant_id is not",
            ),
            (
                r#"{"type":"a","payload":1,"aggregate_id":""}"#,
                "aggregate_id is not",
            ),
            (
                r#"{"type":"a","payload":1,"aggregate_type":1}"#,
                "aggregate_type is not a string",
            ),
            (
                r#"{"type":"a","payload":1,"schema_ver":"CANARY"}"#,
                "schema_ver is not",
            ),
            (
                r#"{"type":"a","payload":1,"schema_ver":1.5}"#,
                "schema_ver is not",
            ),
            (
                r#"{"type":"a","payload":1,"schema_ver":-1}"#,
                "schema_ver is not",
            ),
            (
                r#"{"type":"a","payload":1,"schema_ver":4294967295}"#,
                "schema_ver is over",
            ),
            (
                r#"{"type":"a","payload":1,"headers":["CANARY"]}"#,
                "headers is not",
            ),
            (
                r#"{"type":"a","payload":1,"headers":{"ce-id":"CANARY"}}"#,
                "header \"ce-id\"",
            ),
            (
                r#"{"type":"a","payload":1,"occurred_at":"CANARY"}"#,
                "occurred_at is not",
            ),
            (
                r#"{"type":"a","payload":1,"available_at":0}"#,
                "available_at is not",
            ),
        ] {
            let complaint = parse(line.as_bytes()).unwrap_err();
            assert!(
                complaint.contains(said) && !complaint.contains("CANARY"),
                "{line}: {complaint}"
            );
        }
        assert_eq!(
            parse(b"{\"type\":\"\xff\"}").unwrap_err(),
            "byte 10 is not UTF-8"
        );
    }
}
