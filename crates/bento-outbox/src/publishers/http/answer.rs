//! What an endpoint's answer says, and whose fault a refusal is.

use std::collections::HashSet;
use std::num::IntErrorKind;
use std::time::Duration;

use chrono::{DateTime, Utc};
use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;
use uuid::Uuid;

use crate::record::RejectionClass::{Config, Message, Permanent, Throttled, Unreachable};
use crate::record::{Outcome, Rejection, RejectionClass};

/// What became of one event.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// A complete answer of success, in time.
    Taken,
    /// A complete answer of something else.
    Refused(Refusal),
    /// No such answer, so that there is nothing to judge.
    Other(Outcome),
}

/// A refusal, which may be about the event or about every event.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// What it is where this event is to blame.
    event: RejectionClass,
    /// What it is where the endpoint is.
    endpoint: RejectionClass,
    /// Who is to blame where nothing else is known.
    presumed: Culprit,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Culprit {
    Event,
    Endpoint,
}

/// The longest pause that an endpoint is granted by one answer.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

impl Answer {
    /// The answer with this status, complete where it is one of success. `from` names the endpoint.
    pub(super) fn of(status: StatusCode, headers: &HeaderMap, from: &str) -> Self {
        let refused = |event, endpoint, presumed, advice: &str| {
            Self::Refused(Refusal {
                event,
                endpoint,
                presumed,
                reason: format!("{from} answered {status}{advice}"),
            })
        };
        match status.as_u16() {
            200..=299 => Self::Taken,
            300..=399 => {
                let advice = ": redirects are not followed, so write where it leads into the URL";
                refused(Message, Config, Culprit::Endpoint, advice)
            }
            // It is asked to come later, which is no one's fault, or there is no room (507); of a 504
            // nobody knows whether the event got through, so that it is sent again like one without
            // an answer.
            408 | 425 | 429 | 503 | 504 | 507 => {
                let event = Throttled(retry_after(headers, Utc::now()));
                refused(event, Unreachable, Culprit::Event, "")
            }
            413 | 431 => {
                let reason = format!("{from} answered {status}: the event is larger than it takes");
                Self::Other(Outcome::rejected(Permanent, reason))
            }
            401 | 403 | 407 => {
                let advice = ": it does not know us by webhook_secret, or by what is in the URL";
                refused(Message, Config, Culprit::Endpoint, advice)
            }
            404 | 405 | 410 | 411 | 414 | 421 | 426 | 501 | 505 | 511 => {
                refused(Message, Config, Culprit::Endpoint, "")
            }
            400..=499 => refused(Message, Config, Culprit::Event, ""),
            500..=599 => refused(Message, Unreachable, Culprit::Event, ""),
            _ => refused(Message, Config, Culprit::Endpoint, ", which is no answer"),
        }
    }

    /// An answer of success that goes on for longer than any receiver has to say.
    pub(super) fn endless(status: StatusCode, bytes_max: usize, from: &str) -> Self {
        Self::Refused(Refusal {
            event: Message,
            endpoint: Config,
            presumed: Culprit::Endpoint,
            reason: format!(
                "{from} answered {status} with more than {bytes_max} bytes: a receiver of webhooks \
                 answers shortly, so this may be a page for people"
            ),
        })
    }

    /// How long the endpoint asks to be left alone, with all events.
    pub(super) fn pause(&self) -> Option<Duration> {
        match self {
            Self::Refused(Refusal {
                event: Throttled(after),
                ..
            }) => *after,
            _ => None,
        }
    }
}

/// What `Retry-After` says: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(error) if *error.kind() == IntErrorKind::PosOverflow => RETRY_AFTER_MAX,
        Err(_) => {
            let until = DateTime::parse_from_rfc2822(text).ok()?;
            (until.to_utc() - now).to_std().unwrap_or_default()
        }
    };
    Some(after.min(RETRY_AFTER_MAX))
}

/// Tells an endpoint that fails from an event that it cannot take.
///
/// Both are told by the same statuses, and a wrong guess is dear: an endpoint that answers 500 to
/// everything would make dead letters of a whole backlog, and an event that alone is answered 500
/// would hold up all others. So the other events are the evidence. Where one of the same batch was
/// taken, a refusal is its event's fault. Where ten different events were refused since one was
/// taken, it is the endpoint's. In between a refusal is whose it usually is.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// Events refused since one was taken; no more than are needed.
    refused: HashSet<Uuid>,
    /// Since when there are enough of them.
    enough_since: Option<Instant>,
}

/// So many different events refused in a row are the endpoint's fault.
pub(super) const REFUSED_MAX: usize = 10;

/// After so long the events are asked anew. An endpoint that will never take the ten foremost ones
/// would keep all others from it; so from time to time one of them is charged an attempt.
const SUSPECT_FOR: Duration = Duration::from_secs(300);

impl Evidence {
    /// The outcome of each event of a batch.
    pub(super) fn judge(&mut self, answers: Vec<(Uuid, Answer)>) -> Vec<Outcome> {
        let is_taken = |(_, answer): &(_, Answer)| matches!(answer, Answer::Taken);
        let any_taken = answers.iter().any(is_taken);
        let expired = self
            .enough_since
            .is_some_and(|since| since.elapsed() >= SUSPECT_FOR);
        if any_taken || expired {
            *self = Self::default();
        }
        if !any_taken {
            for (id, answer) in &answers {
                if matches!(answer, Answer::Refused(_)) && self.refused.len() < REFUSED_MAX {
                    self.refused.insert(*id);
                }
            }
        }
        let is_enough = self.refused.len() >= REFUSED_MAX;
        if is_enough {
            self.enough_since.get_or_insert_with(Instant::now);
        }
        let culprit = |refusal: &Refusal| match (any_taken, is_enough) {
            (true, _) => Culprit::Event,
            (false, true) => Culprit::Endpoint,
            (false, false) => refusal.presumed,
        };
        let outcome = |(_, answer)| match answer {
            Answer::Taken => Outcome::Acked,
            Answer::Other(outcome) => outcome,
            Answer::Refused(refusal) => match culprit(&refusal) {
                Culprit::Event => Outcome::rejected(refusal.event, refusal.reason),
                Culprit::Endpoint => refusal.of_the_endpoint().into(),
            },
        };
        answers.into_iter().map(outcome).collect()
    }
}

impl Refusal {
    /// The refusal of every event.
    pub(super) fn of_the_endpoint(&self) -> Rejection {
        let reason = match self.presumed {
            Culprit::Endpoint => self.reason.clone(),
            Culprit::Event => format!("{}, and so it did to others", self.reason),
        };
        Rejection::new(self.endpoint, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer::of(status, &HeaderMap::new(), "http://h:1")
    }

    fn classes(evidence: &mut Evidence, statuses: &[u16]) -> Vec<Option<RejectionClass>> {
        judged(
            evidence,
            statuses
                .iter()
                .map(|status| (Uuid::new_v4(), answer(*status))),
        )
    }

    fn judged(
        evidence: &mut Evidence,
        answers: impl IntoIterator<Item = (Uuid, Answer)>,
    ) -> Vec<Option<RejectionClass>> {
        let outcomes = evidence.judge(answers.into_iter().collect());
        let class = |outcome| match outcome {
            Outcome::Acked => None,
            Outcome::Rejected(rejection) => Some(rejection.class),
            Outcome::Unknown { .. } => panic!("a status is never unknown"),
        };
        outcomes.into_iter().map(class).collect()
    }

    /// One event alone, and each of ten that are all refused so.
    #[test]
    fn every_status_has_its_class() {
        for (statuses, alone, of_all) in [
            (&[200, 201, 202, 204, 299][..], None, None),
            (
                &[
                    101, 300, 301, 302, 303, 307, 308, 401, 403, 404, 405, 410, 501, 600,
                ][..],
                Some(Config),
                Some(Config),
            ),
            (
                &[400, 402, 406, 409, 415, 422, 499][..],
                Some(Message),
                Some(Config),
            ),
            (
                &[500, 502, 508, 520, 599][..],
                Some(Message),
                Some(Unreachable),
            ),
            (
                &[408, 425, 429, 503, 504, 507][..],
                Some(Throttled(None)),
                Some(Unreachable),
            ),
            (&[413, 431][..], Some(Permanent), Some(Permanent)),
        ] {
            for status in statuses {
                let classes = |n| classes(&mut Evidence::default(), &vec![*status; n]);
                assert_eq!(classes(1), [alone], "{status}");
                assert_eq!(classes(9), vec![alone; 9], "{status}");
                assert_eq!(classes(10), vec![of_all; 10], "{status}");
            }
        }
    }

    #[test]
    fn what_another_event_of_the_batch_did_not_suffer_is_the_events_own_fault() {
        for status in [301, 401, 404, 400, 500, 502] {
            let mut statuses = vec![status; 20];
            statuses.push(200);
            let mut expected = vec![Some(Message); 20];
            expected.push(None);
            assert_eq!(classes(&mut Evidence::default(), &statuses), expected);
        }
    }

    #[test]
    fn ten_events_in_a_row_accuse_the_endpoint_until_it_takes_one() {
        let mut evidence = Evidence::default();
        assert_eq!(classes(&mut evidence, &[500; 4]), [Some(Message); 4]);
        assert_eq!(classes(&mut evidence, &[500; 5]), [Some(Message); 5]);
        assert_eq!(classes(&mut evidence, &[500]), [Some(Unreachable)]);
        assert_eq!(classes(&mut evidence, &[503]), [Some(Unreachable)]);
        assert_eq!(classes(&mut evidence, &[200]), [None]);
        assert_eq!(classes(&mut evidence, &[500]), [Some(Message)]);
    }

    #[test]
    fn one_event_alone_never_accuses_the_endpoint() {
        let (mut evidence, id) = (Evidence::default(), Uuid::new_v4());
        for _ in 0..50 {
            assert_eq!(judged(&mut evidence, [(id, answer(500))]), [Some(Message)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspicion_ends_and_charges_one_attempt() {
        let mut evidence = Evidence::default();
        assert_eq!(classes(&mut evidence, &[500; 10]), [Some(Unreachable); 10]);
        tokio::time::advance(SUSPECT_FOR - Duration::from_secs(1)).await;
        assert_eq!(classes(&mut evidence, &[500]), [Some(Unreachable)]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(classes(&mut evidence, &[500]), [Some(Message)]);
        assert_eq!(classes(&mut evidence, &[500; 10]), [Some(Unreachable); 10]);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
        let now = DateTime::parse_from_rfc3339("1994-11-06T08:49:00Z")
            .unwrap()
            .to_utc();
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(0)),
            ("1000000000", Some(3_600)),
            ("99999999999999999999999999", Some(3_600)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", Some(3_600)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{text:?}");
        }
    }
}
