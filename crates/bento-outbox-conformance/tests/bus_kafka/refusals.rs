//! What a broker says no to, on the cluster that Kafka's C library plays for tests: Tansu refuses little.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Refusal};

use super::*;

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// A cluster of three brokers with the topic `a`.
fn cluster() -> Cluster {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic("a", 1, 3).unwrap();
    cluster
}

fn publisher(cluster: &Cluster, timeout: &str) -> KafkaPublisher {
    let brokers = cluster.bootstrap_servers();
    super::publisher(&format!("kafka://{brokers}?timeout={timeout}"))
}

fn refuse(cluster: &Cluster, refusals: &[Refusal]) {
    cluster.request_errors(RDKafkaApiKey::Produce, refusals);
}

async fn arrived(cluster: &Cluster) -> usize {
    messages(&cluster.bootstrap_servers(), "a").await.len()
}

#[tokio::test]
async fn what_a_cluster_takes_the_second_time_is_there_once() {
    let cluster = cluster();
    let bus = publisher(&cluster, "10s");
    let passing = [
        Refusal::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Refusal::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Refusal::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Refusal::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Refusal::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        // The connection is cut.
        Refusal::RD_KAFKA_RESP_ERR__TRANSPORT,
    ];
    for (n, refusal) in passing.into_iter().enumerate() {
        refuse(&cluster, &[refusal]);
        assert_eq!(bus.publish(&[record("a")]).await, [ACKED], "{refusal:?}");
        assert_eq!(arrived(&cluster).await, n + 1, "{refusal:?}");
    }
}

#[tokio::test]
async fn too_few_replicas_are_no_acknowledgement() {
    let cluster = cluster();
    let bus = publisher(&cluster, "3s");
    let few = [Refusal::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1_000];
    refuse(&cluster, &few);
    let outcomes = bus.publish(&[record("a"), record("a")]).await;
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    }
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    assert_eq!(arrived(&cluster).await, 0);
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
}

#[tokio::test]
async fn a_refused_batch_is_sent_one_by_one() {
    let cluster = cluster();
    let bus = publisher(&cluster, "10s");
    for refusal in [
        Refusal::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        Refusal::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    ] {
        // Of a whole batch nobody knows whose fault it was; here it was nobody's.
        refuse(&cluster, &[refusal]);
        let batch: Vec<_> = (0..20).map(|n| of(&format!("k{n}"), "a")).collect();
        assert_eq!(bus.publish(&batch).await, [ACKED; 20], "{refusal:?}");
        // Refused with its batch, and alone.
        refuse(&cluster, &[refusal, refusal]);
        let refused = rejection(&bus, "a").await;
        assert_eq!(refused.class, RejectionClass::Permanent, "{refused}");
        assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    }
    assert_eq!(arrived(&cluster).await, 42);
}

#[tokio::test]
async fn a_missing_right_is_no_events_fault() {
    let cluster = cluster();
    let bus = publisher(&cluster, "10s");
    for (refusal, class) in [
        (
            Refusal::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            RejectionClass::Blocked,
        ),
        (
            Refusal::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
            RejectionClass::Config,
        ),
        (
            Refusal::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
            RejectionClass::Message,
        ),
    ] {
        refuse(&cluster, &[refusal]);
        let rejection = rejection(&bus, "a").await;
        assert_eq!(rejection.class, class, "{rejection}");
        // The right was given meanwhile.
        assert_eq!(bus.publish(&[record("a")]).await, [ACKED], "{refusal:?}");
    }
    let refusal = Refusal::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    cluster.create_topic("b", 1, 1).unwrap();
    cluster.topic_error("b", refusal).unwrap();
    let outcomes = bus.publish(&[record("b"), record("a")]).await;
    let [Outcome::Rejected(blocked), Outcome::Acked] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(blocked.class, RejectionClass::Blocked);
    assert!(
        blocked.reason.contains("no permission for topic b"),
        "{blocked}"
    );
}

#[tokio::test]
async fn a_cluster_that_loses_its_brokers_is_reached_again() {
    let cluster = cluster();
    let bus = publisher(&cluster, "3s");
    assert_eq!(bus.publish(&[record("a")]).await, [ACKED]);
    cluster.broker_down(-1).unwrap();
    for _ in 0..2 {
        let outcome = bus.publish(&[record("a")]).await.remove(0);
        assert_ne!(outcome, ACKED);
    }
    assert!(bus.check().await.is_err());
    cluster.broker_up(-1).unwrap();
    let patience = tokio::time::timeout(Duration::from_secs(120), async {
        while bus.publish(&[record("a")]).await != [ACKED] {}
    });
    patience.await.expect("it is reached again");
    assert_eq!(arrived(&cluster).await, 2);
}
