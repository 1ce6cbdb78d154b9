//! What every event goes through on its way into the outbox, before its commit.

use std::sync::Arc;

use crate::causality::{self, Cause};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::registry::EventRegistry;

/// The door of one outbox. Defaults to one that only writes down what caused an event.
#[derive(Clone, Default)]
pub(crate) struct Door {
    registry: Option<EventRegistry>,
    checks: bool,
    /// What the bus takes, where there is one.
    payload_bytes_max: Option<Arc<PayloadBytesMax>>,
}

/// The most bytes of an event's payload, its tenant set; none where that is not known.
type PayloadBytesMax = dyn Fn(&Event) -> Option<usize> + Send + Sync;

impl Door {
    /// The same door, which writes the ids of known schemas into the events, and with `checks`
    /// refuses what the registry would refuse to read. A door that checks goes on to.
    pub(crate) fn knowing(self, registry: &EventRegistry, checks: bool) -> Self {
        Self {
            registry: Some(registry.clone()),
            checks: self.checks || checks,
            ..self
        }
    }

    /// The same door, which refuses before the commit what would be a dead letter after it: payloads of
    /// more bytes than `most` says that the bus takes of an event.
    pub(crate) fn refusing_over(
        self,
        most: impl Fn(&Event) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        Self {
            payload_bytes_max: Some(Arc::new(most)),
            ..self
        }
    }

    /// Lets in an event whose tenant is set, with what caused it and the id of its schema, unless it
    /// says these itself. `remembered` is what the unit of work knows of the cause.
    pub(crate) fn admit(&self, event: &mut Event, remembered: Option<&Cause>) -> Result<()> {
        causality::tell(&mut event.headers, remembered)?;
        if let Some(registry) = &self.registry {
            if event.schema_id.is_none() {
                let id = registry.schema_id(&event.event_type, event.schema_version);
                event.schema_id = id.map(Into::into);
            }
            if self.checks {
                registry.check(event).map_err(|why| {
                    Error::new(
                        ErrorKind::InvalidEvent,
                        format!("{why}; the event is not kept"),
                    )
                })?;
            }
        }
        let bytes = event.payload.as_bytes().len();
        match self.payload_bytes_max.as_ref().and_then(|most| most(event)) {
            Some(most) if bytes > most => Err(Error::new(
                ErrorKind::InvalidEvent,
                format!(
                    "event {} of type {} has a payload of {bytes} bytes, and its bus takes {most}: store it elsewhere \
                     and raise an event that refers to it",
                    event.id, event.event_type
                ),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;
    use crate::event::{DomainEvent, Payload};
    use crate::outbox::Outbox;
    use crate::registry::EventType;
    use crate::store::TransactionalStore as _;
    use crate::stores::MemoryStore;

    #[derive(Serialize, Deserialize)]
    struct Placed {
        cents: i64,
    }
    impl DomainEvent for Placed {
        const TYPE: &'static str = "order.placed";
        const VERSION: u32 = 2;
    }

    #[derive(Serialize)]
    struct Unregistered;
    impl DomainEvent for Unregistered {
        const TYPE: &'static str = "unregistered";
    }

    fn registry() -> EventRegistry {
        let placed = EventType::of::<Placed>()
            .upcast_json(1, Ok)
            .with_schema(2, json!({"properties": {"cents": {"minimum": 1}}}));
        EventRegistry::new([placed]).unwrap()
    }

    fn event(version: u32, payload: &str) -> Event {
        Event {
            schema_version: version,
            ..Event::new("order.placed", Payload::json(payload).unwrap())
        }
    }

    async fn appended(outbox: &Outbox<MemoryStore>, event: Event) -> Result<Vec<Option<String>>> {
        let store = outbox.store();
        let mut transaction = store.begin(None).await?;
        let connection = MemoryStore::connection(&mut transaction);
        let appended = outbox.append(connection, [event]).await?;
        store.commit(transaction, &appended).await?;
        Ok(store
            .records()
            .into_iter()
            .map(|record| record.schema_id)
            .collect())
    }

    #[tokio::test]
    async fn rows_name_the_schema_that_their_payload_follows() {
        let outbox = Outbox::new(MemoryStore::default()).describe_with(&registry());
        let own = Event {
            schema_id: Some("urn:own".into()),
            ..event(2, "{}")
        };
        outbox
            .run(async |_| {
                for event in [event(2, "1"), event(1, "1"), own, Event::of(&Unregistered)?] {
                    crate::raise(event)?;
                }
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
        let schema_ids = appended(&outbox, event(2, "1")).await.unwrap();
        let id = Some("urn:bento-outbox:schema:order.placed/2".to_owned());
        assert_eq!(
            schema_ids,
            [id.clone(), None, Some("urn:own".into()), None, id]
        );
    }

    #[tokio::test]
    async fn what_could_not_be_read_back_is_refused_before_anything_is_written() {
        let outbox = Outbox::new(MemoryStore::default()).check_with(&registry());
        for (event, says) in [
            (
                event(2, r#"{"cents":"x"}"#),
                "field \"cents\" is a string, expected i64",
            ),
            (
                event(2, r#"{"cents":1,"tip":1}"#),
                "field \"tip\" is not known",
            ),
            (event(2, "{}"), "field \"cents\" is missing"),
            (event(3, "{}"), "versions up to 2"),
            (Event::of(&Unregistered).unwrap(), "not registered"),
            (
                Event {
                    key_id: Some("k".into()),
                    ..event(2, "{}")
                },
                "encrypted",
            ),
            (
                Event {
                    content_type: "text/plain".into(),
                    ..event(2, "{}")
                },
                "text/plain",
            ),
        ] {
            let raised = event.clone();
            let at_raise = outbox
                .run(async |_| crate::raise(raised))
                .await
                .unwrap_err();
            let at_append = appended(&outbox, event).await.unwrap_err();
            for error in [at_raise, at_append] {
                assert_eq!(error.kind(), ErrorKind::InvalidEvent);
                assert!(error.to_string().contains(says), "{error}");
                assert!(
                    error.to_string().ends_with("; the event is not kept"),
                    "{error}"
                );
            }
        }
        let outbox = outbox.describe_with(&registry());
        outbox
            .run(async |_| crate::raise(event(2, "{}")))
            .await
            .unwrap_err();
        outbox
            .run(async |_| crate::raise(event(1, r#"{"cents":7}"#)))
            .await
            .unwrap();
        assert_eq!(outbox.store().records().len(), 1);
    }

    #[tokio::test]
    async fn a_schema_that_is_enforced_refuses_too() {
        let minimum = |schema: &Value| {
            let minimum = schema["properties"]["cents"]["minimum"]
                .as_i64()
                .ok_or("has no minimum")?;
            let check = move |payload: &Value| match payload["cents"].as_i64() {
                Some(cents) if cents >= minimum => Ok(()),
                _ => Err(format!("field \"cents\" is under {minimum}")),
            };
            Ok(Arc::new(check) as crate::registry::SchemaValidator)
        };
        let registry = registry().enforcing_schemas_with(minimum).unwrap();
        let outbox = Outbox::new(MemoryStore::default()).check_with(&registry);
        let raised = async |cents| {
            outbox
                .run(async |_| crate::raise(Event::of(&Placed { cents })?))
                .await
        };
        raised(1).await.unwrap();
        let error = raised(0).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("version 2: field \"cents\" is under 1; the event"),
            "{error}"
        );
        assert_eq!(outbox.store().records().len(), 1);

        let none = EventType::of::<Placed>()
            .upcast_json(1, Ok)
            .with_schema(1, json!({}))
            .with_schema(2, json!({}));
        let error = EventRegistry::new([none])
            .unwrap()
            .enforcing_schemas_with(minimum)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "event type order.placed: the schema of version 1 has no minimum"
        );
    }
}
