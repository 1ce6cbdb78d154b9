//! What became of records.

use bento_outbox::{
    Delivery, Error, ErrorKind, Fence, Result, Settle, Settlement, Status, Timestamp, Verdict,
};
use std::time::Duration;
use uuid::Uuid;

use super::Fault::*;
use super::{MutantStore, State};

impl MutantStore {
    pub(super) fn attempted(&self, fence: &Fence<'_>, id: Uuid) -> Option<u32> {
        let state = &mut *self.state();
        let there = |state: &State| state.rows.iter().position(|row| row.record.id == id);
        let at = match self.fault {
            Some(AttemptsUnfenced) => {
                there(state).filter(|at| state.rows[*at].record.delivery.status == Status::New)
            }
            Some(AttemptsTheSettled) => {
                let sent = |at: &usize| state.rows[*at].record.delivery.status != Status::New;
                let settled = there(state).filter(sent);
                settled.or_else(|| self.writable(state, fence, id))
            }
            _ => self.writable(state, fence, id),
        };
        let lost_attempts = &mut state.rows[at?].record.lost_attempts;
        if self.has(ForgetsAttempts) {
            return Some(*lost_attempts + 1);
        }
        *lost_attempts += 1;
        Some(*lost_attempts - u32::from(self.has(CountsAttemptsFromZero)))
    }

    pub(super) fn settled(&self, settle: &Settle<'_>) -> Result<u64> {
        let state = &mut *self.state();
        let mut changed = 0;
        for Settlement { id, verdict } in settle.settlements {
            let there = state.rows.iter().position(|row| row.record.id == *id);
            let at = match there {
                None if self.has(RefusesUnknownIds) => {
                    return Err(Error::new(ErrorKind::Database, "an unknown record"));
                }
                Some(at) => {
                    let is_new = state.rows[at].record.delivery.status == Status::New;
                    let may = (self.has(SettlesTwice) && !is_new)
                        || (self.has(SettlesUnfenced) && is_new);
                    let writable = self.writable(state, &settle.fence, *id);
                    writable.or(may.then_some(at))
                }
                None => None,
            };
            let Some(at) = at else { continue };
            if changed > 0 && self.has(SettlesTheFirst) {
                continue;
            }
            changed += 1;
            self.settle_one(state, at, verdict, settle.keep_sent);
        }
        Ok(if self.has(SaysAllWereSettled) {
            settle.settlements.len() as u64
        } else {
            changed
        })
    }

    fn settle_one(&self, state: &mut State, at: usize, verdict: &Verdict, keep_sent: bool) {
        let row = &mut state.rows[at];
        let keeps_owner = match verdict {
            Verdict::HandOver if self.has(LosesHandOvers) => return,
            Verdict::Retry { .. } => self.has(RetriesKeepTheOwner),
            _ => false,
        };
        if !keeps_owner {
            row.birth = None;
            row.taken = false;
        }
        let lost = &mut row.record.lost_attempts;
        *lost = match verdict {
            Verdict::HandOver if self.has(HandOverKeepsTheLostAttempt) => *lost,
            Verdict::HandOver if self.has(HandOverForgetsLostAttempts) => 0,
            Verdict::HandOver => lost.saturating_sub(1),
            _ if self.has(ResultsKeepLostAttempts) => *lost,
            _ => 0,
        };
        let keeps = match verdict {
            Verdict::Sent if keep_sent => !self.has(DeletesTheSent),
            Verdict::Sent => self.has(KeepsTheSent),
            Verdict::Dead { .. } if !keep_sent => !self.has(DeletesTheDead),
            _ => true,
        };
        if !keeps {
            state.rows.remove(at);
            return;
        }
        row.record.delivery = self.delivery(&row.record.delivery, verdict);
        if row.record.delivery.status == Status::Sent {
            state.cursor = state.cursor.max(row.record.seq);
        }
    }

    /// What becomes of a delivery.
    fn delivery(&self, before: &Delivery, verdict: &Verdict) -> Delivery {
        let now = Timestamp::now();
        let reason = |reason: &str| match self.fault {
            Some(LosesReasons) => None,
            Some(KeepsLongReasons) => Some(reason.to_owned()),
            _ => Some(
                reason
                    .chars()
                    .take(bento_outbox::ERROR_MESSAGE_CHARS_MAX)
                    .collect(),
            ),
        };
        let counted = |counts: bool| {
            let counts = (counts || self.has(AlwaysCounts)) && !self.has(NeverCounts);
            before.retry_cnt + u32::from(counts)
        };
        match verdict {
            Verdict::Sent => Delivery {
                status: Status::Sent,
                retry_at: before.retry_at.filter(|_| self.has(KeepsRetryAt)),
                sent_at: (!self.has(ForgetsSentAt)).then_some(now),
                ..before.clone()
            },
            Verdict::HandOver => Delivery {
                retry_at: None,
                retry_cnt: before.retry_cnt + u32::from(self.has(CountsHandOvers)),
                ..before.clone()
            },
            Verdict::Retry {
                after,
                counts,
                reason: why,
            } if !self.has(BuriesTheFailed) => Delivery {
                retry_cnt: counted(*counts),
                retry_at: Some(now.after(if self.has(ForgetsRetryAt) {
                    Duration::ZERO
                } else {
                    *after
                })),
                error_message: reason(why),
                ..before.clone()
            },
            Verdict::Retry {
                counts,
                reason: why,
                ..
            }
            | Verdict::Dead {
                counts,
                reason: why,
            } => Delivery {
                status: if self.has(MarksTheDeadSent) {
                    Status::Sent
                } else {
                    Status::Err
                },
                retry_cnt: counted(*counts),
                retry_at: None,
                error_message: reason(why),
                ..before.clone()
            },
        }
    }
}
