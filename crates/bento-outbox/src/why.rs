//! Where an event is, what it waits for, and what to do about that.

use serde::Serialize;
use uuid::Uuid;

use crate::error::Result;
use crate::pause::{Pausable, Pause};
use crate::projector::ProjectorSettings;
use crate::record::Status;
use crate::standing::Standing;
use crate::store::Store;
use crate::timestamp::Timestamp;

/// Where an event is, what it waits for, and what to do about that: one answer for every place that
/// shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The event's id.
    pub id: Uuid,
    /// Where it is, as a word (in JSON under `because`) with what is known of that.
    #[serde(flatten)]
    pub because: Because,
    /// The event; none when it is not in the outbox.
    pub event: Option<About>,
    /// What it is behind, where an earlier event of its ordering key has to go first.
    pub behind: Option<Box<Why>>,
    /// Where it is and what it waits for, in a sentence.
    pub explanation: String,
    /// What to do about it, in a sentence.
    pub advice: String,
}

/// Where an event is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Because {
    /// It is not in the outbox.
    Unknown,
    /// The bus has it.
    Sent {
        /// Since when, as exactly as the store knows.
        sent_at: Option<Timestamp>,
    },
    /// It is a dead letter.
    Dead {
        /// The attempts that failed.
        attempts: u32,
        /// The last failure.
        reason: Option<String>,
    },
    /// An operator keeps its tenant or its destination back.
    Paused(Pause),
    /// Its writer wants it to be published later.
    Delayed {
        /// When.
        until: Timestamp,
    },
    /// It failed and is tried again.
    Retrying {
        /// When.
        until: Timestamp,
        /// The attempts that failed by its own fault.
        attempts: u32,
        /// The last failure.
        reason: Option<String>,
    },
    /// The process that wrote it is publishing it, and no relay does before that has ended.
    AtOnce {
        /// The incarnation of that process.
        process: Uuid,
        /// When a relay takes over at the latest.
        until: Timestamp,
    },
    /// An earlier event of its ordering key goes first.
    Behind,
    /// No relay runs that carries its tenant.
    NoRelay,
    /// Relays run, and none of them holds its partition.
    Unheld {
        /// How many carry its tenant.
        relays: u32,
    },
    /// A relay is about to publish it.
    Due {
        /// That relay.
        relay: Uuid,
        /// How long it holds the partition, unless it renews its lease.
        until: Timestamp,
    },
}

/// What an event is, for people who look for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct About {
    /// Its place in the outbox.
    pub seq: i64,
    /// Its tenant.
    pub tenant_id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The kind of its aggregate.
    pub aggregate_type: Option<String>,
    /// Its aggregate; without one it is not ordered.
    pub aggregate_id: Option<String>,
    /// Its state of delivery.
    pub status: Status,
    /// When it was written.
    pub created_at: Timestamp,
    /// The partition of its ordering key.
    pub partition: u16,
    /// Attempts that left no result, because a process died in the middle.
    pub lost_attempts: u32,
}

/// Tells where an event is and what it waits for, under the order that the relays' settings say.
///
/// # Errors
/// When the database cannot be read.
pub async fn why(store: &dyn Store, id: Uuid, settings: &ProjectorSettings) -> Result<Why> {
    let block = settings.ordered && settings.dead_letters_block;
    let Some(standing) = store.standing(id, block).await? else {
        return Ok(Why::new(id, Because::Unknown, None));
    };
    let pauses = store.pauses().await?;
    let ahead = standing.ahead.filter(|_| settings.ordered);
    // What is ahead is the first of its key, and so behind nothing.
    let ahead = match ahead {
        Some(ahead) => store.standing(ahead, block).await?,
        None => None,
    };
    let behind = ahead.map(|ahead| {
        let id = ahead.record.id;
        Box::new(Why::new(
            id,
            because(&ahead, false, &pauses),
            Some(about(&ahead)),
        ))
    });
    let because = because(&standing, behind.is_some(), &pauses);
    let mut why = Why::new(id, because, Some(about(&standing)));
    why.behind = behind;
    why.mention_what_is_ahead();
    Ok(why)
}

/// The reason that would be left if all others were gone comes last.
fn because(standing: &Standing, is_behind: bool, pauses: &[Pause]) -> Because {
    let Standing { record, now, .. } = standing;
    let delivery = &record.delivery;
    match delivery.status {
        Status::Sent => {
            return Because::Sent {
                sent_at: delivery.sent_at,
            };
        }
        Status::Err => {
            return Because::Dead {
                attempts: delivery.retry_cnt,
                reason: delivery.error_message.clone(),
            };
        }
        Status::New => {}
    }
    let later = |until: &Timestamp| until > now;
    if let Some((process, until)) = standing.born_to.filter(|(_, until)| later(until)) {
        return Because::AtOnce { process, until };
    }
    // Of a destination it is known only when the event was put aside for it.
    let aside = delivery.error_message.as_deref();
    let keeps_it_back = |pause: &&Pause| match pause.kind {
        Pausable::Tenant => pause.name == record.tenant.as_str(),
        Pausable::Destination => aside == Some(&Pause::aside(&pause.name)),
    };
    if let Some(pause) = pauses.iter().find(keeps_it_back) {
        return Because::Paused(pause.clone());
    }
    let retry_at = delivery.retry_at.filter(later);
    if later(&record.available_at) && retry_at.is_none_or(|retry| retry < record.available_at) {
        return Because::Delayed {
            until: record.available_at,
        };
    }
    if let Some(until) = retry_at {
        return Because::Retrying {
            until,
            attempts: delivery.retry_cnt,
            reason: delivery.error_message.clone(),
        };
    }
    match (is_behind, standing.relays, standing.held_by) {
        (true, ..) => Because::Behind,
        (_, 0, _) => Because::NoRelay,
        (_, relays, None) => Because::Unheld { relays },
        (_, _, Some((relay, until))) => Because::Due { relay, until },
    }
}

fn about(standing: &Standing) -> About {
    let record = &standing.record;
    About {
        seq: record.seq,
        tenant_id: record.tenant.to_string(),
        event_type: record.event_type.clone(),
        aggregate_type: record.aggregate.kind.clone(),
        aggregate_id: record.aggregate.id.clone(),
        status: record.delivery.status,
        created_at: record.created_at,
        partition: standing.partition,
        lost_attempts: record.lost_attempts,
    }
}

impl Why {
    fn new(id: Uuid, because: Because, event: Option<About>) -> Self {
        Self {
            explanation: because.explanation(),
            advice: because.advice(id),
            id,
            because,
            event,
            behind: None,
        }
    }

    /// What is ahead is what is to be dealt with first.
    fn mention_what_is_ahead(&mut self) {
        let Some(ahead) = &self.behind else { return };
        let (id, explanation) = (ahead.id, &ahead.explanation);
        match self.because {
            Because::Behind => {
                self.explanation = format!(
                    "it waits for event {id}, an earlier one of its ordering key: {explanation}"
                );
                self.advice.clone_from(&ahead.advice);
            }
            _ => {
                self.explanation += &format!(
                    "; and event {id}, an earlier one of its ordering key, goes first: {explanation}"
                );
            }
        }
    }
}

impl Because {
    fn explanation(&self) -> String {
        let failed = |attempts: &u32| match attempts {
            0 => "it failed through no fault of its own".to_string(),
            1 => "1 attempt failed".to_string(),
            attempts => format!("{attempts} attempts failed"),
        };
        let with = |reason: &Option<String>| match reason {
            Some(reason) => format!(": {reason}"),
            None => String::new(),
        };
        match self {
            Self::Unknown => "it is not in the outbox".into(),
            Self::Sent { sent_at: Some(at) } => format!("it was sent: the bus has it since {at}"),
            Self::Sent { sent_at: None } => "it was sent: the bus has it".into(),
            Self::Dead { attempts, reason } => {
                format!("it is a dead letter ({}){}", failed(attempts), with(reason))
            }
            Self::Paused(pause) => format!(
                "its {} {} is paused since {} by {}{}",
                pause.kind,
                pause.name,
                pause.since,
                pause.by,
                with(&pause.reason)
            ),
            Self::Delayed { until } => format!("its writer delayed it until {until}"),
            Self::Retrying {
                until,
                attempts,
                reason,
            } => format!(
                "it is tried again at {until} ({}){}",
                failed(attempts),
                with(reason)
            ),
            Self::AtOnce { process, until } => format!(
                "process {process}, which wrote it, may publish it at once; a relay takes over at {until}"
            ),
            Self::Behind => "it waits for an earlier event of its ordering key".into(),
            Self::NoRelay => "it is due, and no relay runs that carries its tenant".into(),
            Self::Unheld { relays } => format!(
                "it is due, and none of the {relays} relays that carry its tenant holds its partition"
            ),
            Self::Due { relay, until } => {
                format!("it is due, and relay {relay} holds its partition until {until} or longer")
            }
        }
    }

    fn advice(&self, id: Uuid) -> String {
        match self {
            Self::Unknown => "it was never committed, or it was discarded, or it was sent and is kept no longer \
                              (`retention`): look for its id where it was written, and at its consumers"
                .into(),
            Self::Sent { .. } => {
                format!("nothing; `bento-outbox replay --id {id}` publishes it once more")
            }
            Self::Dead { .. } => format!(
                "mend what the failure names, then `bento-outbox dead retry --id {id}`; or give it up with \
                 `bento-outbox dead discard --id {id}`"
            ),
            Self::Paused(pause) => format!("when that may end, `{}`", pause.resume_command()),
            Self::Delayed { .. } => "nothing: it goes out when its time has come".into(),
            Self::Retrying { .. } => {
                "mend what the failure names; it is then sent at the next attempt".into()
            }
            Self::AtOnce { .. } => "nothing: it is sent now, or a relay's soon".into(),
            Self::Behind => "look at the event before it".into(),
            Self::NoRelay => "start one with `bento-outbox run`, or look why it has ended; if one runs, its \
                              setting `tenants` leaves this tenant out"
                .into(),
            Self::Unheld { .. } => "wait for a lease term (`lease_ttl`): the partition is passed on from a relay that \
                                    has stopped or died. If it stays so, `bento-outbox doctor` looks at the database"
                .into(),
            Self::Due { .. } => "wait a moment and ask again; if it stays so, the bus takes no events, or there are \
                                 many before it: see `bento-outbox status`, `bento-outbox doctor` and the relay's log"
                .into(),
        }
    }
}
