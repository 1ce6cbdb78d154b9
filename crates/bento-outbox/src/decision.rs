//! What a person decides about dead letters, many of them at a time.

use uuid::Uuid;

use crate::error::Result;
use crate::filter::{Filter, PAGE_MAX, Page};
use crate::record::{OutboxRecord, Status};
use crate::store::Store;

/// What becomes of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// They are `NEW` again, with the same ids and bytes and no attempts counted.
    Retry,
    /// They are deleted for good.
    Discard,
}

/// Dead letters changed at once: what a transaction holds back from the relays for a moment.
const CHANGED_AT_ONCE_MAX: u32 = 500;

/// The dead letters that match a filter, in order of `seq`, a page at a time.
///
/// Each is met once, however it is decided about meanwhile: one that was retried and is dead again is
/// not met a second time.
pub struct DeadLetters<'a> {
    store: &'a dyn Store,
    filter: Filter,
    after: Option<i64>,
    up_to: Option<i64>,
    payload: bool,
}

impl<'a> DeadLetters<'a> {
    /// All that match, whatever the filter says of a status.
    pub fn of(store: &'a dyn Store, filter: &Filter) -> Self {
        Self {
            store,
            filter: Filter {
                status: Some(Status::Err),
                ..filter.clone()
            },
            after: None,
            up_to: None,
            payload: false,
        }
    }

    /// Whether the letters that are read have their payloads; otherwise they are empty.
    #[must_use]
    pub fn with_payloads(self, payload: bool) -> Self {
        Self { payload, ..self }
    }

    /// Only those after that `seq`.
    #[must_use]
    pub fn after(self, seq: Option<i64>) -> Self {
        Self { after: seq, ..self }
    }

    /// None after that `seq`: those came later than somebody looked.
    #[must_use]
    pub fn up_to(self, seq: Option<i64>) -> Self {
        Self { up_to: seq, ..self }
    }

    /// The next page, of so many letters and never more than [`PAGE_MAX`]; empty at the end.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn next_page(&mut self, limit: u32) -> Result<Vec<OutboxRecord>> {
        let page = Page {
            after: self.after,
            limit: limit.min(PAGE_MAX),
            payload: self.payload,
            ..Page::default()
        };
        let is_past = |after| self.up_to.is_some_and(|last| after >= last);
        if self.after.is_some_and(is_past) {
            return Ok(Vec::new());
        }
        let mut letters = self.store.events(&self.filter, &page).await?;
        letters.retain(|letter| self.up_to.is_none_or(|last| letter.seq <= last));
        self.after = letters.last().map(|letter| letter.seq).or(self.after);
        Ok(letters)
    }

    /// What [`decide`](Self::decide) would decide about, and changes nothing.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn look(&mut self, limit: u32) -> Result<Option<Decided>> {
        let page = self.next_page(limit).await?;
        Ok(Decided::of(&page, 0))
    }

    /// Decides about the next page, as [`next_page`](Self::next_page) reads it but of 500 letters at
    /// most; none at the end. `by` is who decides, for the audit.
    ///
    /// A page is changed as a whole and audited with it, and only what is still a dead letter is
    /// changed: to decide once more does no harm.
    ///
    /// # Cancel safety
    /// Dropped, a page that was begun goes on to its end, and the next one is not begun.
    ///
    /// # Errors
    /// When the database cannot be read or written; what was decided before stays.
    pub async fn decide(
        &mut self,
        decision: Decision,
        limit: u32,
        by: &str,
    ) -> Result<Option<Decided>> {
        let page = self.next_page(limit.min(CHANGED_AT_ONCE_MAX)).await?;
        if page.is_empty() {
            return Ok(None);
        }
        let ids: Vec<Uuid> = page.iter().map(|letter| letter.id).collect();
        let changed = match decision {
            Decision::Retry => {
                let changed = self.store.retry(&ids, by).await?;
                self.store.give_hint();
                changed
            }
            Decision::Discard => self.store.discard(&ids, by).await?,
        };
        Ok(Decided::of(&page, changed))
    }
}

/// What became of a page of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// How many there were.
    pub letters: u64,
    /// How many of them were still dead letters, and are changed.
    pub changed: u64,
    /// The `seq` of the last one.
    pub last: i64,
}

impl Decided {
    fn of(page: &[OutboxRecord], changed: u64) -> Option<Self> {
        Some(Self {
            letters: page.len() as u64,
            changed,
            last: page.last()?.seq,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::{Event, Payload};
    use crate::store::{Claim, Fence, Relay, Settle, Settlement, TransactionalStore as _, Verdict};
    use crate::stores::MemoryStore;
    use crate::tenant::Tenant;

    /// Makes a dead letter of all that is to be sent.
    async fn refuse_all(store: &MemoryStore) {
        let relay = Relay::new(None);
        let leases = store.lease(&relay, Duration::from_secs(10)).await.unwrap();
        let claim = Claim {
            relay: &relay,
            leases: &leases,
            limit: 10_000,
            in_flight: &[],
            ordered: true,
            dead_letters_block: false,
        };
        let records = store.claim(&claim).await.unwrap().records;
        let refused = |record: &OutboxRecord| Settlement {
            id: record.id,
            verdict: Verdict::Dead {
                counts: true,
                reason: "never".into(),
            },
        };
        let settlements: Vec<Settlement> = records.iter().map(refused).collect();
        let settle = Settle {
            fence: Fence::Leases {
                relay: &relay,
                leases: &leases,
            },
            keep_sent: true,
            settlements: &settlements,
        };
        store.settle(&settle).await.unwrap();
        store.release(&relay).await.unwrap();
    }

    /// A store with so many dead letters.
    async fn dead(letters: usize) -> MemoryStore {
        let store = MemoryStore::default();
        let event = || Event::new("order.placed", Payload::json("1").unwrap());
        let events: Vec<Event> = (0..letters).map(|_| event()).collect();
        let mut transaction = store.begin(None).await.unwrap();
        let connection = MemoryStore::connection(&mut transaction);
        let tenant = Tenant::default();
        let appended = store.append(connection, &tenant, &events, None).await;
        store.commit(transaction, &appended.unwrap()).await.unwrap();
        refuse_all(&store).await;
        store
    }

    #[tokio::test]
    async fn all_that_match_are_decided_about_page_by_page() {
        let store = dead(1_200).await;
        let filter = Filter::default();
        let mut letters = DeadLetters::of(&store, &filter);
        let mut pages = Vec::new();
        while let Some(page) = letters
            .decide(Decision::Discard, 800, "a test")
            .await
            .unwrap()
        {
            assert_eq!(page.changed, page.letters);
            pages.push(page.letters);
        }
        assert_eq!(pages, [500, 500, 200]);
        assert!(store.records().is_empty());
    }

    #[tokio::test]
    async fn a_letter_that_dies_again_is_not_met_twice() {
        let store = dead(600).await;
        let filter = Filter::default();
        let mut letters = DeadLetters::of(&store, &filter);
        let mut met = 0;
        while let Some(page) = letters
            .decide(Decision::Retry, 500, "a test")
            .await
            .unwrap()
        {
            met += page.letters;
            refuse_all(&store).await;
        }
        assert_eq!(met, 600);
        let mut again = DeadLetters::of(&store, &filter);
        assert_eq!(
            again.look(1_000).await.unwrap().map(|page| page.letters),
            Some(600)
        );
        assert_eq!(again.look(1_000).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_out_of_bounds_is_left_alone() {
        let store = dead(10).await;
        let seqs: Vec<i64> = store.records().iter().map(|record| record.seq).collect();
        let filter = Filter::default();
        let bounded = || {
            DeadLetters::of(&store, &filter)
                .after(Some(seqs[1]))
                .up_to(Some(seqs[4]))
        };
        let mut letters = bounded();
        let page = letters
            .decide(Decision::Discard, 100, "a test")
            .await
            .unwrap();
        assert_eq!(
            page,
            Some(Decided {
                letters: 3,
                changed: 3,
                last: seqs[4]
            })
        );
        assert_eq!(
            letters
                .decide(Decision::Discard, 100, "a test")
                .await
                .unwrap(),
            None
        );
        assert_eq!(bounded().look(100).await.unwrap(), None, "they are gone");
        assert_eq!(store.records().len(), 7);
    }
}
