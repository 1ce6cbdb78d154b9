//! A relay that is told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::stores::MemoryStore;
use bento_outbox::{
    Aggregate, Event, Outbox, OutboxRecord, Outcome, Payload, Projector, ProjectorSettings,
    Publisher, Rejection, raise,
};

/// A bus that takes its time.
#[derive(Default)]
struct Slow {
    asked: AtomicUsize,
}

#[async_trait]
impl Publisher for Slow {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        self.asked.fetch_add(batch.len(), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
        vec![Outcome::Acked; batch.len()]
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_not_with_the_bus_yet_is_left_to_others() {
    let store = MemoryStore::default();
    Outbox::new(store.clone())
        .run(async |_| -> bento_outbox::Result<()> {
            for number in 0..12 {
                let json = serde_json::value::to_raw_value(&number).unwrap();
                let mut event = Event::new("order.moved", Payload::Json(json));
                event.aggregate = Aggregate::new("order", "7");
                raise(event)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let bus = Arc::new(Slow::default());
    let sent = async || {
        use bento_outbox::Store as _;
        store.status().await.unwrap()[0].sent
    };
    let projector = Projector::new(
        Arc::new(store.clone()),
        bus.clone(),
        ProjectorSettings::default(),
    );
    let stop = async {
        while bus.asked.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    projector.run(stop).await.unwrap();
    // The second one was with the bus, and is waited for; no third one was begun.
    assert_eq!((bus.asked.load(Ordering::SeqCst), sent().await), (2, 2));

    // It can be told to carry again.
    let all = async {
        while sent().await < 12 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    projector.run(all).await.unwrap();
    assert_eq!(bus.asked.load(Ordering::SeqCst), 12);
}
