//! A bus in memory that keeps every promise, or breaks one.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::{CloudEvents, OutboxRecord, Outcome, Publisher, Rejection, RejectionClass};
use tokio::time::sleep;
use uuid::Uuid;

use crate::bus::{Arrived, Bus, Capabilities, Faults};

use Fault::*;

macro_rules! faults {
    ($($(#[$doc:meta])+ $fault:ident,)+) => {
        /// The promise that a [`MutantBus`] breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault { $($(#[$doc])+ $fault,)+ }

        impl Fault {
            /// Every fault there is.
            pub const ALL: &[Self] = &[$($fault,)+];
        }
    };
}

faults! {
    /// An attribute is not sent.
    ForgetsAnAttribute,
    /// The other headers are not sent.
    ForgetsHeaders,
    /// A header that is no attribute is sent as one.
    TakesHeadersForAttributes,
    /// What is null is sent as an empty attribute.
    SendsEmptyAttributes,
    /// Values arrive percent-encoded.
    LeavesValuesEncoded,
    /// JSON is parsed and written again.
    ReformatsJson,
    /// Bytes that are no text are replaced.
    TakesBytesForText,
    /// A payload ends at its first line break.
    CutsAtLineBreaks,
    /// An empty payload is sent as `null`.
    SendsNullForNothing,

    /// Everything is acknowledged and nothing sent.
    SendsNothing,
    /// The last record of a batch is acknowledged and not sent.
    DropsTheLast,
    /// Records past the hundredth of a batch are acknowledged and not sent.
    SendsAHundred,
    /// A batch is sent last record first.
    SendsBackwards,
    /// The last record of a batch is sent behind the first of the next one.
    HoldsTheLastBack,
    /// Of two batches at the same time one is acknowledged and not sent.
    DropsWhatOverlaps,
    /// A new publisher throws away what is there.
    BeginsAnew,

    /// The last record has no answer.
    AnswersFewer,
    /// The answers stand last record first.
    AnswersBackwards,
    /// An empty batch has an answer.
    AnswersNothing,
    /// A record that cannot be sent is acknowledged.
    AcksBadRecords,
    /// A record that cannot be sent may be tried again.
    RetriesBadRecords,
    /// One record that cannot be sent is the end of its batch.
    BlamesTheBatch,
    /// The reason for a refusal is not said.
    GivesNoReason,
    /// A payload over the limit is acknowledged.
    AcksTooLarge,
    /// A payload over the limit costs the connection, and the rest of its batch.
    LosesTheConnectionToTooLarge,
    /// A topic that nobody takes is acknowledged.
    AcksUnrouted,
    /// A repetition is refused.
    RefusesRepetitions,
    /// A repetition has another time.
    ChangesRepetitions,
    /// A check of a working bus complains.
    AlwaysComplains,

    /// A check of a dead bus is content.
    NeverComplains,
    /// Publishing to a dead bus never ends.
    WaitsForDeadBus,
    /// A dead bus is the event's fault.
    BlamesEventsForDeadBus,
    /// What is published to a dead bus is acknowledged and lost.
    AcksForDeadBus,
    /// What is published to a dead bus is sent when it comes back.
    QueuesForDeadBus,
    /// After the bus was away it is never reached again.
    NeverReconnects,
    /// What a silent bus did not answer is acknowledged.
    AcksSilence,
    /// A silent bus is waited for as long as it takes.
    WaitsForSilentBus,
    /// What has no answer is refused for good.
    RefusesUnanswered,
    /// What has no answer is acknowledged.
    AcksUnanswered,
    /// What a crash interrupted is acknowledged.
    AcksInterrupted,
}

/// The limit of the bus.
const PAYLOAD_BYTES_MAX: usize = 200_000;

/// What the bus can do.
pub const CAPABILITIES: Capabilities = Capabilities {
    keeps: true,
    carries_bodies: true,
    keeps_batch_order: true,
    lowers_header_names: false,
    drops_repetitions: false,
    refuses_unrouted: true,
    payload_bytes_max: Some(PAYLOAD_BYTES_MAX),
};

/// A bus in memory that can fail. Clones are the same bus.
#[derive(Clone)]
pub struct MutantBus {
    fault: Option<Fault>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    arrived: Vec<Arrived>,
    ids: HashSet<Uuid>,
    held_back: Option<Arrived>,
    queued: Vec<Arrived>,
    publishing: u32,
    kills: u32,
    away: bool,
    silent: bool,
    losing_answers: bool,
}

impl MutantBus {
    /// The bus with this fault, or with none.
    pub fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            state: Arc::default(),
        }
    }

    /// The bus with this fault to which there is no connection.
    fn nowhere(&self) -> Self {
        let nowhere = Self::new(self.fault);
        nowhere.state().away = true;
        nowhere
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Publishes one record of a batch that was begun after so many kills.
    fn send(&self, record: &OutboxRecord, kills: u32) -> Outcome {
        let arrived = match self.message(record) {
            Ok(arrived) => arrived,
            Err(_) if self.has(AcksBadRecords) => return Outcome::Acked,
            Err(rejection) => return rejection.into(),
        };
        let state = &mut *self.state();
        if state.away || state.kills != kills {
            return match self.fault {
                Some(AcksInterrupted) if state.kills != kills => Outcome::Acked,
                Some(AcksForDeadBus) if state.kills == kills => Outcome::Acked,
                Some(BlamesEventsForDeadBus) => {
                    Outcome::rejected(RejectionClass::Message, "refused")
                }
                _ => {
                    if self.has(QueuesForDeadBus) {
                        state.queued.push(arrived);
                    }
                    Outcome::rejected(RejectionClass::Unreachable, "the bus is away")
                }
            };
        }
        if state.silent {
            return match self.fault {
                Some(AcksSilence) => Outcome::Acked,
                _ => Outcome::unknown("no answer"),
            };
        }
        if record.event_type == "nowhere" && !self.has(AcksUnrouted) {
            return Outcome::rejected(RejectionClass::Config, "nobody takes nowhere");
        }
        if record.payload.len() > PAYLOAD_BYTES_MAX {
            if self.has(LosesTheConnectionToTooLarge) {
                state.kills += 1;
            }
            return match self.fault {
                Some(AcksTooLarge) => Outcome::Acked,
                _ => Outcome::rejected(RejectionClass::Permanent, "too large"),
            };
        }
        let repeated = !state.ids.insert(record.id);
        match self.fault {
            Some(RefusesRepetitions) if repeated => {
                return Outcome::rejected(RejectionClass::Message, "is there already");
            }
            Some(ChangesRepetitions) if repeated => {
                let mut changed = arrived;
                changed.attributes.insert("time".into(), "later".into());
                state.arrived.push(changed);
            }
            _ => state.arrived.push(arrived),
        }
        match self.fault {
            _ if !state.losing_answers => Outcome::Acked,
            Some(AcksUnanswered) => Outcome::Acked,
            Some(RefusesUnanswered) => Outcome::rejected(RejectionClass::Permanent, "no answer"),
            _ => Outcome::unknown("no answer"),
        }
    }

    fn message(&self, record: &OutboxRecord) -> Result<Arrived, Rejection> {
        let events = CloudEvents::default();
        let message = events.message(record).map_err(|mut rejection| {
            if self.has(RetriesBadRecords) {
                rejection.class = RejectionClass::Message;
            }
            if self.has(GivesNoReason) {
                rejection.reason = "refused".into();
            }
            rejection
        })?;
        let mut arrived = Arrived {
            headers: message.headers.into_iter().collect(),
            body: message.body.to_vec(),
            ..Arrived::default()
        };
        for (name, value) in message.attributes {
            let value = match self.fault {
                Some(LeavesValuesEncoded) => CloudEvents::header_value(&value),
                _ => value,
            };
            arrived.attributes.insert(name.into(), value.into());
        }
        match self.fault {
            Some(ForgetsAnAttribute) => drop(arrived.attributes.remove("tracestate")),
            Some(ForgetsHeaders) => arrived.headers.clear(),
            Some(TakesHeadersForAttributes) => arrived.attributes.append(&mut arrived.headers),
            Some(SendsEmptyAttributes) => {
                let subject = arrived.attributes.entry("subject".into());
                subject.or_default();
            }
            Some(ReformatsJson) => {
                if let Ok(value) = serde_json::from_slice::<serde_json::Value>(&arrived.body) {
                    arrived.body = value.to_string().into();
                }
            }
            Some(TakesBytesForText) => {
                arrived.body = String::from_utf8_lossy(&arrived.body).into_owned().into();
            }
            Some(CutsAtLineBreaks) => {
                let mut lines = arrived.body.split(|byte| *byte == b'\n');
                arrived.body = lines.next().unwrap_or_default().into();
            }
            Some(SendsNullForNothing) if arrived.body.is_empty() => arrived.body = "null".into(),
            _ => {}
        }
        Ok(arrived)
    }
}

#[async_trait]
impl Publisher for MutantBus {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let (kills, overlaps) = {
            let state = &mut *self.state();
            state.publishing += 1;
            if self.has(NeverReconnects) {
                state.away |= state.kills > 0;
            }
            let kills = match self.fault {
                // The connection that the kill has broken is still used.
                Some(AcksInterrupted) => 0,
                _ => state.kills,
            };
            (kills, state.publishing > 1)
        };
        let waits = {
            let state = self.state();
            self.has(WaitsForDeadBus) && state.away || self.has(WaitsForSilentBus) && state.silent
        };
        if waits {
            std::future::pending::<()>().await;
        }
        // A while on the way, in which others can publish and the bus can die.
        sleep(Duration::from_millis(1)).await;
        let mut order: Vec<usize> = (0..batch.len()).collect();
        if self.has(SendsBackwards) {
            order.reverse();
        }
        let before = self.state().held_back.take();
        let mut outcomes = vec![Outcome::Acked; batch.len()];
        for n in order {
            let dropped = match self.fault {
                Some(SendsNothing) => true,
                Some(DropsTheLast) => n + 1 == batch.len(),
                Some(SendsAHundred) => n >= 100,
                Some(DropsWhatOverlaps) => overlaps,
                _ => false,
            };
            if !dropped {
                outcomes[n] = self.send(&batch[n], kills);
            }
            if n % 50 == 49 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        let state = &mut *self.state();
        state.publishing -= 1;
        state.arrived.extend(before);
        // The next batch has a connection of its own.
        state.losing_answers = false;
        match self.fault {
            Some(HoldsTheLastBack) => state.held_back = state.arrived.pop(),
            Some(AnswersFewer) => drop(outcomes.pop()),
            Some(AnswersBackwards) => outcomes.reverse(),
            Some(AnswersNothing) if batch.is_empty() => outcomes.push(Outcome::Acked),
            Some(BlamesTheBatch) => {
                let refused = |outcome: &&Outcome| matches!(outcome, Outcome::Rejected(_));
                if let Some(bad) = outcomes.iter().find(refused).cloned() {
                    outcomes.fill(bad);
                }
            }
            _ => {}
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        let away = self.state().away && !self.has(NeverComplains);
        if away || self.has(AlwaysComplains) {
            return Err(Rejection::new(
                RejectionClass::Unreachable,
                "the bus is away",
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Bus for MutantBus {
    fn publisher(&self) -> Box<dyn Publisher> {
        if self.has(BeginsAnew) {
            self.state().arrived.clear();
        }
        Box::new(self.clone())
    }

    fn publisher_to_nowhere(&self) -> Option<Box<dyn Publisher>> {
        Some(Box::new(self.nowhere()))
    }

    async fn arrived(&self) -> Vec<Arrived> {
        self.state().arrived.clone()
    }

    fn faults(&self) -> Option<&dyn Faults> {
        Some(self)
    }
}

#[async_trait]
impl Faults for MutantBus {
    async fn kill(&self) {
        let mut state = self.state();
        state.away = true;
        state.kills += 1;
    }

    async fn restart(&self) {
        let state = &mut *self.state();
        state.away = false;
        state.arrived.append(&mut state.queued);
    }

    async fn pause(&self) {
        self.state().silent = true;
    }

    async fn resume(&self) {
        self.state().silent = false;
    }

    async fn lose_answers(&self) {
        self.state().losing_answers = true;
    }
}
