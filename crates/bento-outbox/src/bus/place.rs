//! A destination, with what is known of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Destination;
use super::breaker::{Breaker, Change, Leave, News, Ticket};
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};
use crate::refusing::Refusing;
use crate::retry::RetrySettings;

/// How long others wait for the answer to a probe: a place that was away may well be silent now.
const PROBE_WAIT: Duration = Duration::from_secs(1);

pub(super) struct Place {
    pub(super) destination: Destination,
    breaker: Mutex<Breaker>,
    refusing: Mutex<Refusing>,
    /// Whether it was said that it takes no events.
    said: AtomicBool,
}

impl Place {
    pub(super) fn new(destination: Destination, pauses: RetrySettings) -> Self {
        Self {
            destination,
            breaker: Mutex::new(Breaker::new(pauses)),
            refusing: Mutex::default(),
            said: AtomicBool::new(false),
        }
    }

    /// Publishes, and remembers whether anything was taken.
    pub(super) async fn send(&self, records: &[OutboxRecord]) -> Vec<Outcome> {
        let outcomes = self.destination.publisher.publish(records).await;
        self.refusing().hear(&outcomes, Instant::now().into_std());
        outcomes
    }

    /// Why it has taken nothing for a while.
    pub(super) fn refuses(&self) -> Option<Rejection> {
        self.refusing().why().cloned()
    }

    /// Publishes what the breaker lets through; the rest is answered as the last that tried was.
    pub(super) async fn carry(self: Arc<Self>, records: Vec<OutboxRecord>) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(records.len());
        let mut rest = &records[..];
        while let Some((first, others)) = rest.split_first() {
            match self.ask() {
                Leave::All(ticket) => {
                    outcomes.extend(self.publish(ticket, rest).await);
                    break;
                }
                Leave::Probe(ticket) => {
                    outcomes.push(Arc::clone(&self).probe(ticket, first.clone()).await);
                    rest = others;
                }
                Leave::Nothing => {
                    outcomes.extend(rest.iter().map(|_| self.away()));
                    break;
                }
            }
        }
        outcomes
    }

    /// Publishes one record. It goes on when nobody waits any more, and what it finds out counts.
    async fn probe(self: Arc<Self>, ticket: Ticket, record: OutboxRecord) -> Outcome {
        let name = self.destination.name.clone();
        let probe = tokio::spawn(async move { self.publish(ticket, &[record]).await });
        let answered = tokio::time::timeout(PROBE_WAIT, probe).await;
        let outcome = answered.ok().and_then(|outcomes| outcomes.ok()?.pop());
        outcome.unwrap_or_else(|| Outcome::unknown(format!("{name} has not answered yet")))
    }

    async fn publish(&self, ticket: Ticket, records: &[OutboxRecord]) -> Vec<Outcome> {
        let mut asked = Asked {
            place: self,
            ticket,
            news: News::None,
        };
        let outcomes = self.send(records).await;
        asked.news = News::of(&outcomes);
        outcomes
    }

    fn ask(&self) -> Leave {
        self.breaker().ask(Instant::now().into_std())
    }

    fn tell(&self, ticket: Ticket, news: News) {
        let change = self
            .breaker()
            .tell(ticket, news, Instant::now().into_std(), rand::random());
        let gone = match change {
            Some(Change::Gone(why)) => Some(why),
            Some(Change::Back) | None => self.refuses(),
        };
        self.say(gone);
    }

    /// Says once that it takes no events, and once that it takes them again.
    fn say(&self, gone: Option<Rejection>) {
        let destination = &self.destination.name;
        match gone {
            Some(Rejection { reason, .. }) => {
                if !self.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        destination,
                        reason,
                        "the destination takes no events; they are kept and tried again, others go on"
                    );
                }
            }
            None => {
                let is_there = self.breaker().why().is_none();
                if is_there && self.said.swap(false, Ordering::Relaxed) {
                    tracing::info!(destination, "the destination answers again");
                }
            }
        }
    }

    /// What is said of a record that is not even tried.
    fn away(&self) -> Outcome {
        match self.breaker().why() {
            Some(why) => why.clone().into(),
            None => Outcome::rejected(RejectionClass::Unreachable, "it is tried again just now"),
        }
    }

    pub(super) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusing(&self) -> MutexGuard<'_, Refusing> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question to a destination. Its ticket is shown however it ends, a panic included.
struct Asked<'a> {
    place: &'a Place,
    ticket: Ticket,
    news: News,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let news = std::mem::replace(&mut self.news, News::None);
        self.place.tell(self.ticket, news);
    }
}
