//! One AsyncAPI 3 document of all types, topics and payloads.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::cloud_event::{ATTRIBUTES, Attribute};
use crate::registry::{EventRegistry, EventType};
use crate::topic::{Topic, TopicTemplate};

/// What an AsyncAPI document says beside what the registry knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsyncApi {
    /// What the events are called together. Defaults to `Events`.
    pub title: String,
    /// The version of the document, which is the team's own. Defaults to `1.0.0`.
    pub version: String,
    /// More about them. Defaults to nothing.
    pub description: Option<String>,
    /// Where the relay publishes them: its setting `topic` and its routes. Defaults to `{type}`.
    pub topic: Topic,
    /// What the headers begin with that carry the attributes of CloudEvents: `ce-` on HTTP and NATS,
    /// `ce_` on Kafka and Redis, `cloudEvents:` on RabbitMQ. Defaults to `ce-`.
    pub header_prefix: String,
}

/// Where the document has the headers that all messages share. No message's key is like that one.
const HEADERS: &str = "headers";

/// How the payloads of messages are described.
const SCHEMA_FORMAT: &str = "application/schema+json;version=draft-2020-12";

impl Default for AsyncApi {
    fn default() -> Self {
        Self {
            title: "Events".into(),
            version: "1.0.0".into(),
            description: None,
            topic: Topic::default(),
            header_prefix: "ce-".into(),
        }
    }
}

impl EventRegistry {
    /// An [AsyncAPI 3.0](https://www.asyncapi.com/docs/reference/specification/v3.0.0) document: a
    /// channel for each topic, in it a message for each version of each type that may be there, with
    /// the headers that carry its attributes and its payload's schema where that is known.
    ///
    /// The same registry gives the same document.
    pub fn asyncapi(&self, about: &AsyncApi) -> Value {
        let mut document = Document::with_headers(&about.header_prefix);
        for event_type in self.types() {
            for template in templates(&about.topic, event_type.name()) {
                document.add(event_type, template);
            }
        }
        let mut info = json!({"title": about.title, "version": about.version});
        if let Some(description) = &about.description {
            info["description"] = description.as_str().into();
        }
        json!({
            "asyncapi": "3.0.0",
            "info": info,
            "defaultContentType": "application/json",
            "channels": document.channels,
            "operations": document.operations,
            "components": {"messages": document.messages, "schemas": document.schemas},
        })
    }
}

/// The templates by which an event of that type may get its topic, whatever its tenant.
fn templates<'a>(topic: &'a Topic, event_type: &str) -> Vec<&'a TopicTemplate> {
    let mut templates = Vec::new();
    for rule in topic
        .rules
        .iter()
        .filter(|rule| rule.events.event_type.matches(event_type))
    {
        templates.push(&rule.template);
        if rule.events.tenant.is_everything() {
            return templates;
        }
    }
    templates.push(&topic.template);
    templates
}

/// The parts of the document, as they come together.
struct Document<'a> {
    header_prefix: &'a str,
    channels: BTreeMap<String, Value>,
    operations: BTreeMap<String, Value>,
    messages: BTreeMap<String, Value>,
    schemas: BTreeMap<String, Value>,
}

impl<'a> Document<'a> {
    fn with_headers(header_prefix: &'a str) -> Self {
        let headers = shared_headers(header_prefix);
        Self {
            header_prefix,
            channels: BTreeMap::new(),
            operations: BTreeMap::new(),
            messages: BTreeMap::new(),
            schemas: BTreeMap::from([(HEADERS.into(), headers)]),
        }
    }

    fn add(&mut self, event_type: &EventType, topic: &TopicTemplate) {
        let address = topic.to_string().replace("{type}", event_type.name());
        let channel = key(&address);
        let placeholders = ["tenant_id", "aggregate_type"];
        let parameters: Map<String, Value> = placeholders
            .into_iter()
            .filter(|name| address.contains(&format!("{{{name}}}")))
            .map(|name| {
                (
                    name.into(),
                    json!({"description": format!("The {name} of the event.")}),
                )
            })
            .collect();
        self.channels.entry(channel.clone()).or_insert_with(|| {
            let mut channel = json!({"address": address, "messages": {}});
            if !parameters.is_empty() {
                channel["parameters"] = parameters.into();
            }
            channel
        });
        self.operations
            .entry(format!("send.{channel}"))
            .or_insert_with(
                || json!({"action": "send", "channel": {"$ref": format!("#/channels/{channel}")}}),
            );
        for version in event_type.versions() {
            let message = message_key(event_type.name(), version);
            let reference = json!({"$ref": format!("#/components/messages/{message}")});
            self.channels.entry(channel.clone()).and_modify(|channel| {
                channel["messages"][message.as_str()] = reference;
            });
            self.add_message(event_type, version, message);
        }
    }

    fn add_message(&mut self, event_type: &EventType, version: u32, key: String) {
        let name = event_type.name();
        let said = |attribute: &str, value: &str| {
            (
                format!("{}{attribute}", self.header_prefix),
                json!({"const": value}),
            )
        };
        let own: Map<String, Value> = [
            said("type", name),
            said("schemaversion", &version.to_string()),
        ]
        .into_iter()
        .collect();
        let mut message = json!({
            "name": name,
            "title": format!("{name}, version {version}"),
            "contentType": "application/json",
            "headers": {"allOf": [
                {"$ref": format!("#/components/schemas/{HEADERS}")},
                {"properties": own},
            ]},
            "x-schema-version": version,
        });
        if let Some(schema) = event_type.schema(version) {
            if let Some(id) = schema.get("$id") {
                message["x-schema-id"] = id.clone();
            }
            message["payload"] = json!({"$ref": format!("#/components/schemas/{key}")});
            let schema = within_document(schema, &format!("#/components/schemas/{key}/schema"));
            self.schemas.insert(
                key.clone(),
                json!({"schemaFormat": SCHEMA_FORMAT, "schema": schema}),
            );
        }
        self.messages.insert(key, message);
    }
}

/// The headers of every message. There may be others: those that the writer of the event set.
fn shared_headers(prefix: &str) -> Value {
    let named = |attribute: &Attribute| format!("{prefix}{}", attribute.name);
    let properties: Map<String, Value> = ATTRIBUTES
        .iter()
        .map(|attribute| {
            let mut schema = json!({"type": "string", "description": attribute.meaning});
            if let Some(format) = attribute.format {
                schema["format"] = format.into();
            }
            (named(attribute), schema)
        })
        .collect();
    let always = ATTRIBUTES.iter().filter(|attribute| attribute.always);
    let required: Vec<String> = always.map(named).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// The schema with references that lead within the document. With an `$id` they would lead within
/// the schema, and tools differ in whether they know that.
fn within_document(schema: &Value, place: &str) -> Value {
    let mut schema = schema.clone();
    if let Some(keywords) = schema.as_object_mut() {
        keywords.remove("$id");
        keywords.remove("$schema");
    }
    move_references(&mut schema, place);
    schema
}

fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(reference) if name == "$ref" && reference.starts_with('#') => {
                        reference.replace_range(..1, place);
                    }
                    value => move_references(value, place),
                }
            }
        }
        Value::Array(elements) => {
            elements
                .iter_mut()
                .for_each(|value| move_references(value, place));
        }
        _ => {}
    }
}

/// `order.placed.v3`.
pub(crate) fn message_key(event_type: &str, version: u32) -> String {
    format!("{}.v{version}", key(event_type))
}

/// A name as keys, references and file names take it: letters, digits, `.`, `-` and `_`. The braces
/// of placeholders go, anything else becomes `__` and two hexadecimal digits.
fn key(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'{' | b'}' => {}
            b'.' | b'-' | b'_' => key.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => key.push(char::from(byte)),
            byte => key.push_str(&format!("__{byte:02X}")),
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::cloud_event::CloudEvents;
    use crate::event::{DomainEvent, Event, Headers};
    use crate::record::OutboxRecord;
    use crate::selector::Selector;
    use crate::timestamp::Timestamp;
    use crate::topic::TopicRule;

    #[derive(Serialize, Deserialize)]
    struct Placed {}
    impl DomainEvent for Placed {
        const TYPE: &'static str = "order.placed";
        const VERSION: u32 = 2;
    }

    #[derive(Serialize, Deserialize)]
    struct Shipped {}
    impl DomainEvent for Shipped {
        const TYPE: &'static str = "order:shipped/now";
    }

    fn registry() -> EventRegistry {
        let placed = json!({
            "properties": {"lines": {"items": {"$ref": "#/$defs/Line"}}, "before": {"$ref": "#"}},
            "$defs": {"Line": {"type": "integer"}},
        });
        EventRegistry::new([
            EventType::of::<Shipped>(),
            EventType::of::<Placed>()
                .upcast_json(1, Ok)
                .with_schema(2, placed),
        ])
        .unwrap()
    }

    fn document(topic: &str) -> Value {
        let topic = topic.parse().unwrap();
        registry().asyncapi(&AsyncApi {
            topic,
            ..AsyncApi::default()
        })
    }

    /// Follows a reference within the document.
    fn at<'a>(document: &'a Value, reference: &Value) -> &'a Value {
        let pointer = reference["$ref"]
            .as_str()
            .unwrap()
            .strip_prefix('#')
            .unwrap();
        document.pointer(pointer).unwrap()
    }

    #[test]
    fn every_version_is_a_message_in_the_channel_of_its_topic() {
        let document = document("shop.{tenant_id}.{type}");
        let channel = &document["channels"]["shop.tenant_id.order.placed"];
        assert_eq!(channel["address"], "shop.{tenant_id}.order.placed");
        assert_eq!(
            channel["parameters"]["tenant_id"]["description"],
            "The tenant_id of the event."
        );
        let messages = channel["messages"].as_object().unwrap();
        let names: Vec<&str> = messages.keys().map(String::as_str).collect();
        assert_eq!(names, ["order.placed.v1", "order.placed.v2"]);
        let newest = at(&document, &messages["order.placed.v2"]);
        assert_eq!(newest["name"], "order.placed");
        assert_eq!(
            newest["x-schema-id"],
            "urn:bento-outbox:schema:order.placed/2"
        );
        let payload = at(&document, &newest["payload"]);
        assert_eq!(payload["schemaFormat"], SCHEMA_FORMAT);
        let schema = &payload["schema"];
        assert!(schema.get("$id").is_none());
        let line = at(&document, &schema["properties"]["lines"]["items"]);
        assert_eq!(line, &json!({"type": "integer"}));
        assert_eq!(at(&document, &schema["properties"]["before"]), schema);
        assert!(
            at(&document, &messages["order.placed.v1"])
                .get("payload")
                .is_none()
        );

        let other = &document["channels"]["shop.tenant_id.order__3Ashipped__2Fnow"];
        assert_eq!(other["address"], "shop.{tenant_id}.order:shipped/now");
        for operation in document["operations"].as_object().unwrap().values() {
            assert!(at(&document, &operation["channel"])["address"].is_string());
        }
    }

    #[test]
    fn the_headers_are_those_of_the_messages_on_the_bus() {
        let document = registry().asyncapi(&AsyncApi {
            header_prefix: "ce_".into(),
            ..AsyncApi::default()
        });
        let mut headers = Headers::default();
        headers.insert(Headers::CORRELATION_ID, "c1").unwrap();
        let event = Event {
            schema_version: 2,
            headers,
            ..Event::of(&Placed {}).unwrap()
        };
        let record = OutboxRecord::of(&event, &Default::default(), 1, Timestamp::now());
        let bus = CloudEvents::default();
        let published = bus.message(&record).unwrap();
        let attributes = published.attributes.iter();
        let headers: Map<String, Value> = attributes
            .map(|(name, value)| (format!("ce_{name}"), value.as_ref().into()))
            .collect();
        let described = |message: &str| {
            let headers = &document["components"]["messages"][message]["headers"]["allOf"];
            json!({"allOf": [at(&document, &headers[0]), headers[1]]})
        };
        let judge = |message: &str| {
            let options = jsonschema::options().should_validate_formats(true);
            options.build(&described(message)).unwrap()
        };
        let headers = Value::Object(headers);
        assert!(judge("order.placed.v2").is_valid(&headers), "{headers:#}");
        for other in ["order.placed.v1", "order__3Ashipped__2Fnow.v1"] {
            assert!(!judge(other).is_valid(&headers), "{other}");
        }
        let named = described("order.placed.v2")["allOf"][0]["properties"].clone();
        for name in headers.as_object().unwrap().keys() {
            assert!(named[name]["description"].is_string(), "{name}");
            let mut fewer = headers.clone();
            fewer.as_object_mut().unwrap().remove(name);
            let optional = ["ce_datacontenttype", "ce_correlationid"].contains(&name.as_str());
            assert_eq!(
                judge("order.placed.v2").is_valid(&fewer),
                optional,
                "{name}"
            );
        }
    }

    #[test]
    fn types_that_share_a_topic_share_a_channel() {
        let document = document("shop.{aggregate_type}");
        let channels = document["channels"].as_object().unwrap();
        assert_eq!(channels.len(), 1);
        assert_eq!(
            channels["shop.aggregate_type"]["messages"]
                .as_object()
                .unwrap()
                .len(),
            3
        );
        assert_eq!(document["operations"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn rules_give_a_type_the_topics_of_its_tenants() {
        let rule = |event_type: &str, tenant: &str, template: &str| TopicRule {
            events: Selector {
                event_type: event_type.parse().unwrap(),
                tenant: tenant.parse().unwrap(),
            },
            template: template.parse().unwrap(),
        };
        let topic = Topic {
            rules: vec![
                rule("order.*", "acme", "acme.orders"),
                rule("order.placed", "*", "placed"),
                rule("order.*", "*", "never.{type}"),
            ],
            ..Topic::default()
        };
        let document = registry().asyncapi(&AsyncApi {
            topic,
            ..AsyncApi::default()
        });
        let channels = document["channels"].as_object().unwrap();
        let names: Vec<&str> = channels.keys().map(String::as_str).collect();
        assert_eq!(names, ["acme.orders", "order__3Ashipped__2Fnow", "placed"]);
        for channel in ["acme.orders", "placed"] {
            assert_eq!(channels[channel]["messages"].as_object().unwrap().len(), 2);
        }
    }

    #[test]
    fn another_crate_takes_it_for_asyncapi() {
        use roas_asyncapi::v3_0::Document;
        use roas_asyncapi::validation::Validate as _;

        for topic in [
            "{type}",
            "shop.{tenant_id}.{type}",
            "shop.{tenant_id}.{aggregate_type}",
        ] {
            let ours = document(topic);
            let theirs: Document = serde_json::from_value(ours.clone()).unwrap();
            theirs.validate(enumset::EnumSet::empty()).unwrap();
            assert_eq!(
                serde_json::to_value(&theirs).unwrap(),
                ours,
                "nothing is lost in it"
            );
            // That it looks: a reference into nowhere is found.
            let mut broken = ours;
            broken["operations"]["send.x"] =
                json!({"action": "send", "channel": {"$ref": "#/channels/x"}});
            let broken: Document = serde_json::from_value(broken).unwrap();
            broken.validate(enumset::EnumSet::empty()).unwrap_err();
        }
    }
}
