//! From what the client reports of a record to its outcome.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::record::RejectionClass::{Blocked, Config, Message, Throttled};
use crate::record::{Outcome, RejectionClass};

/// Why a record was not delivered.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    /// Its own.
    Of(Outcome),
    /// The batch was refused that it was in; whose fault that was, only sending it alone can tell.
    OfBatch(Code),
}

/// What it means that the client reports this error for a record, which it gave up for good.
///
/// Only what a broker says is a refusal. What the client says itself (its codes are below zero)
/// leaves open whether an earlier try had arrived, but for a topic that is not there.
pub(super) fn failure(code: Code, topic: &str) -> Failure {
    let rejected = |class: RejectionClass, what: &str| {
        Failure::Of(Outcome::rejected(class, format!("topic {topic}: {what}")))
    };
    match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidRecord => {
            Failure::OfBatch(code)
        }
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => {
            rejected(Blocked, "is not there any more: create it")
        }
        Code::TopicAuthorizationFailed => rejected(
            Blocked,
            "no permission: the user of bus_url must be allowed to write to it",
        ),
        Code::ClusterAuthorizationFailed
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::InvalidRequiredAcks
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::UnsupportedVersion => rejected(Config, &code.to_string()),
        // The leader refused before it wrote.
        Code::NotEnoughReplicas | Code::ThrottlingQuotaExceeded => {
            rejected(Throttled(None), &code.to_string())
        }
        Code::InvalidTimestamp | Code::PolicyViolation => rejected(Message, &code.to_string()),
        _ => Failure::Of(Outcome::unknown(format!("topic {topic}: {code}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_arrived_is_never_a_refusal() {
        for code in [
            Code::MessageTimedOut,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::BrokerTransportFailure,
            Code::RequestTimedOut,
            Code::NotEnoughReplicasAfterAppend,
            Code::OutOfOrderSequenceNumber,
            Code::InvalidProducerEpoch,
            Code::UnknownProducerId,
            Code::Fatal,
            Code::KafkaStorageError,
            Code::NotLeaderForPartition,
            Code::Unknown,
        ] {
            let failure = failure(code, "t");
            assert!(
                matches!(failure, Failure::Of(Outcome::Unknown { .. })),
                "{code:?}: {failure:?}"
            );
        }
    }

    #[test]
    fn a_refusal_says_whose_fault_it_was() {
        let class = |code| match failure(code, "orders") {
            Failure::Of(Outcome::Rejected(rejection)) => {
                assert!(rejection.reason.contains("orders"), "{rejection}");
                rejection.class
            }
            other => panic!("{code:?}: {other:?}"),
        };
        assert_eq!(class(Code::UnknownTopicOrPartition), Blocked);
        assert_eq!(class(Code::TopicAuthorizationFailed), Blocked);
        assert_eq!(class(Code::ClusterAuthorizationFailed), Config);
        assert_eq!(class(Code::NotEnoughReplicas), Throttled(None));
        assert_eq!(class(Code::PolicyViolation), Message);
        let size = Code::MessageSizeTooLarge;
        assert_eq!(failure(size, "orders"), Failure::OfBatch(size));
    }
}
