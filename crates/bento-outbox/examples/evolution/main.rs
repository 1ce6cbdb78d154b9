//! One event through three versions, while old ones are still in the outbox and in a stream.
//!
//! ```sh
//! cargo run -p bento-outbox --example evolution --features sqlite,schema
//! ```
//!
//! Three releases of a shop write `order.placed`, each in a form of its own, into one outbox on SQLite.
//! A relay carries them to a stream, here a file of CloudEvents. The third release reads all of them as
//! the newest type; and the check of schemas refuses what somebody has in mind for the fourth.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bento_outbox::publishers::FilePublisher;
use bento_outbox::stores::{SqliteStore, Tables};
use bento_outbox::{
    Aggregate, AsyncApi, CloudEvents, CompatibilityMode, DomainEvent, Event, EventRegistry,
    EventType, Message, Outbox, Payload, Projector, ProjectorSettings, SchemaBreak, SchemaFiles,
    Store as _, schema_breaks,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The event as the third release knows it. Amounts have a currency and there are vouchers.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct OrderPlaced {
    total: Money,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    voucher: Option<String>,
}

impl DomainEvent for OrderPlaced {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 3;
}

#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Money {
    cents: i64,
    currency: String,
}

/// As the second release knew it. It stays as long as such events may be somewhere.
#[derive(Serialize, Deserialize, JsonSchema)]
struct OrderPlacedV2 {
    total_cents: i64,
}

impl DomainEvent for OrderPlacedV2 {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 2;
}

/// What the third release reads. The first one's type is gone: its JSON is enough, and of its schema
/// the file that was committed then.
fn registry() -> bento_outbox::Result<EventRegistry> {
    let first_schema = serde_json::from_str(include_str!("schemas/order.placed.v1.schema.json"))
        .expect("the committed schema is JSON");
    EventRegistry::with_schema_base(
        "https://shop.example/schemas/",
        [EventType::described::<OrderPlaced>()
            .upcast(|old: OrderPlacedV2| {
                Ok(OrderPlaced {
                    total: Money {
                        cents: old.total_cents,
                        currency: "EUR".into(),
                    },
                    voucher: None,
                })
            })
            .describe::<OrderPlacedV2>()
            .upcast_json(1, |mut json| {
                let fields = json.as_object_mut().ok_or("it is no object")?;
                let euros = fields.remove("euros").and_then(|euros| euros.as_i64());
                let cents = euros
                    .ok_or("euros is no integer")?
                    .checked_mul(100)
                    .ok_or("euros are more than cents can tell")?;
                fields.insert("total_cents".into(), cents.into());
                Ok(json) // and whatever else stands there, for the type to refuse
            })
            .with_schema(1, first_schema)],
    )
}

/// The files that the team commits: each schema, and one AsyncAPI document for whoever reads the stream.
fn schema_files() -> bento_outbox::Result<SchemaFiles> {
    let about = AsyncApi {
        title: "The shop's events".into(),
        ..AsyncApi::default()
    };
    Ok(SchemaFiles::of(&registry()?, &about))
}

/// What somebody has in mind for the fourth release: a total that is a text, and a reason.
fn breaks_of_the_fourth_version() -> bento_outbox::Result<Vec<SchemaBreak>> {
    let registry = registry()?;
    let third = registry
        .schema("order.placed", 3)
        .expect("the third version is described");
    let mut fourth = third.clone();
    fourth["properties"]["total"] = serde_json::json!({"type": "string"});
    fourth["properties"]["reason"] = serde_json::json!({"type": "string"});
    fourth["required"] = serde_json::json!(["total", "reason"]);
    Ok(schema_breaks(third, &fourth, CompatibilityMode::Full))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    for handled in run(folder.path()).await? {
        eprintln!(
            "order {} of version {}: {:?}",
            handled.order, handled.version, handled.event
        );
    }
    eprintln!("\nThe team commits:");
    for (name, text) in schema_files()?.iter() {
        eprintln!("  {name}, {} bytes", text.len());
    }
    eprintln!("\nThe fourth version is refused:");
    for found in breaks_of_the_fourth_version()? {
        eprintln!("  {found}");
    }
    Ok(())
}

/// An event that the third release has read from the stream.
struct Handled {
    order: String,
    /// As it was written.
    version: u32,
    event: OrderPlaced,
}

async fn run(folder: &Path) -> Result<Vec<Handled>, Box<dyn std::error::Error>> {
    let url = format!("sqlite://{}/shop.db", folder.display());
    let store = SqliteStore::open_or_create(&url, Tables::default()).await?;
    store.migrate().await?;
    let outbox = Outbox::new(store.clone());
    let stream = folder.join("stream.jsonl");
    let bus = FilePublisher::new(&stream, CloudEvents::default());
    let relay = Projector::new(
        Arc::new(store.clone()),
        Arc::new(bus),
        ProjectorSettings::default(),
    );

    // Two releases come and go, and their events are in the stream for good.
    place(&outbox, "1", as_the_first_release(42)?).await?;
    place(
        &outbox,
        "2",
        Event::of(&OrderPlacedV2 { total_cents: 4_200 })?,
    )
    .await?;
    relay.run_once().await?;

    // During the rollout of the third one all are at work, and the relay rests.
    let third = outbox.check_with(&registry()?);
    place(&outbox, "3", as_the_first_release(42)?).await?;
    place(
        &outbox,
        "4",
        Event::of(&OrderPlacedV2 { total_cents: 4_200 })?,
    )
    .await?;
    let total = Money {
        cents: 4_200,
        currency: "EUR".into(),
    };
    place(
        &third,
        "5",
        Event::of(&OrderPlaced {
            total,
            voucher: None,
        })?,
    )
    .await?;
    // What does not follow the newest schema is refused at the door of the third.
    let wrong = Event {
        schema_version: 3,
        ..Event::new(
            "order.placed",
            Payload::json(r#"{"total":{"cents":1},"gift":true}"#)?,
        )
    };
    let refused = place(&third, "6", wrong)
        .await
        .expect_err("its currency is missing");
    eprintln!("{refused}\n");

    waiting(&store).await?;
    relay.run_once().await?;
    handle_all(&stream)
}

async fn place(
    outbox: &Outbox<SqliteStore>,
    order: &str,
    event: Event,
) -> bento_outbox::Result<()> {
    outbox
        .run(async |_uow| {
            bento_outbox::raise(Event {
                aggregate: Aggregate::new("order", order),
                ..event
            })
        })
        .await
}

/// Its code is not here any more.
fn as_the_first_release(euros: i64) -> bento_outbox::Result<Event> {
    Ok(Event::new(
        "order.placed",
        Payload::json(format!(r#"{{"euros":{euros}}}"#))?,
    ))
}

/// Shows what is in the outbox and not in the stream yet.
async fn waiting(store: &SqliteStore) -> Result<(), sqlx::Error> {
    let rows: Vec<(String, i64, Option<String>)> = sqlx::query_as(
        "select aggregate_id, schema_ver, schema_id from outbox_events where status = 'NEW' order by seq",
    )
    .fetch_all(store.pool())
    .await?;
    for (order, version, schema) in rows {
        let schema = schema.as_deref().unwrap_or("none");
        eprintln!("waiting: order {order}, version {version}, schema {schema}");
    }
    Ok(())
}

/// Reads the stream from its beginning.
fn handle_all(stream: &Path) -> Result<Vec<Handled>, Box<dyn std::error::Error>> {
    let registry = registry()?;
    let mut handled = Vec::new();
    for line in fs::read_to_string(stream)?.lines() {
        let message = Message::structured(line.as_bytes())?;
        let event = registry.decode(&message)?;
        match event.event_type() {
            OrderPlaced::TYPE => handled.push(Handled {
                order: message.attribute("subject").unwrap_or_default().into(),
                version: event.version(),
                event: event.downcast()?,
            }),
            other => eprintln!("{other} is of no interest here"),
        }
    }
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for order in &handled {
        *sums.entry(&order.event.total.currency).or_default() += order.event.total.cents;
    }
    eprintln!("\n{} orders, in cents: {sums:?}", handled.len());
    Ok(handled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_version_in_outbox_and_stream_is_handled_as_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let handled = run(folder.path()).await.unwrap();
        let versions: Vec<(&str, u32)> = handled
            .iter()
            .map(|handled| (&*handled.order, handled.version))
            .collect();
        assert_eq!(versions, [("1", 1), ("2", 2), ("3", 1), ("4", 2), ("5", 3)]);
        let total = || Money {
            cents: 4_200,
            currency: "EUR".into(),
        };
        for handled in handled {
            assert_eq!(
                handled.event,
                OrderPlaced {
                    total: total(),
                    voucher: None
                }
            );
        }
        let stream = fs::read_to_string(folder.path().join("stream.jsonl")).unwrap();
        assert!(stream.contains(r#""dataschema":"https://shop.example/schemas/order.placed/3""#));
    }

    #[test]
    fn what_an_upcaster_does_not_know_or_cannot_tell_is_refused() {
        let registry = registry().unwrap();
        for (version, json, says) in [
            (
                1,
                r#"{"euros":92233720368547759}"#,
                "euros are more than cents can tell",
            ),
            (1, r#"{"euros":"42"}"#, "euros is no integer"),
            (1, r#"{"euros":42,"tip":2}"#, "field \"tip\" is not known"),
            (
                2,
                r#"{"total_cents":42,"tip":2}"#,
                "field \"tip\" is not known",
            ),
        ] {
            let error = registry
                .decode(("order.placed", version, json.as_bytes()))
                .unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn the_fourth_version_is_refused_with_reasons() {
        let breaks = breaks_of_the_fourth_version().unwrap();
        let said: Vec<String> = breaks.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "total: new readers break: old data may be an object, and they take a string",
                "reason: new readers break: old data may lack it, and they require it",
                "reason: old readers break: new data may have it, and they refuse fields that they do not know",
                "total: old readers break: new data may be a string, and they take an object",
            ]
        );
    }

    /// `BLESS=1 cargo test -p bento-outbox --example evolution --features sqlite,schema` writes them.
    #[test]
    fn the_committed_schemas_are_those_of_the_registry() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/evolution/schemas");
        let files = schema_files().unwrap();
        if std::env::var_os("BLESS").is_some() {
            files.write(&folder).unwrap();
        }
        files.check(&folder).unwrap();
    }
}
