//! What has changed since it was looked at last.
//!
//! Nothing is found by a position in the table: each time what is not sent is read, from the newest
//! down, and what was sent since a moment a little before the last look. So an event whose
//! transaction commits late is found as well, and nothing is read that has not changed for long.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bento_outbox::{Filter, OutboxRecord, PAGE_MAX, Page, Result, Status, Store, Timestamp};
use uuid::Uuid;

/// Something that happened to an event.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// `written`, `sent`, `retrying`, `dead` or `retried`.
    pub(super) what: &'static str,
    pub(super) record: OutboxRecord,
}

/// What is known of an event.
struct Seen {
    status: Status,
    retry_cnt: u32,
    retry_at: Option<Timestamp>,
    /// The look at which it was there last.
    at: u64,
}

/// Looks again and again.
pub(super) struct Follower {
    store: Arc<dyn Store>,
    filter: Filter,
    payload: bool,
    seen: HashMap<Uuid, Seen>,
    looks: u64,
    /// The last moment at which something is known to have been sent.
    sent_at: Timestamp,
    /// What was looked at in the beginning was written up to this place.
    begun_at: i64,
    /// What is new below this place was there at the beginning, and only not looked at.
    floor: i64,
    /// The next page of what was written before the beginning.
    past: Option<Page>,
    left_some_out: bool,
}

/// A settlement may be seen so much later than the time that it writes.
const OVERLAP: Duration = Duration::from_secs(2);

/// The most pages of sent events read at one look.
const PAGES_MAX: usize = 10;

/// So many events are remembered, and more only while each look finds them.
const SEEN_MAX: usize = 50_000;

/// So many looks an event is remembered that is not found any more, where there are many.
const REMEMBERED: u64 = 20;

impl Follower {
    pub(super) fn new(store: Arc<dyn Store>, filter: Filter, payload: bool) -> Self {
        Self {
            store,
            filter,
            payload,
            seen: HashMap::new(),
            looks: 0,
            sent_at: Timestamp::now(),
            begun_at: i64::MIN,
            floor: i64::MIN,
            past: None,
            left_some_out: false,
        }
    }

    /// Whether it has looked at least once.
    pub(super) fn has_begun(&self) -> bool {
        self.looks > 0
    }

    /// Whether more happened than one look takes.
    pub(super) fn left_some_out(&self) -> bool {
        self.left_some_out
    }

    /// Whether there is more of the past to be told of at once.
    pub(super) fn is_in_the_past(&self) -> bool {
        self.past.is_some()
    }

    /// What has changed since the last look; at first, what the filter asks for of the past.
    pub(super) async fn changes(&mut self) -> Result<Vec<Change>> {
        if !self.has_begun() {
            self.begin().await?;
        }
        let mut changes = match self.past {
            Some(page) => self.page_of_the_past(page).await?,
            None => self.look().await?,
        };
        if self.payload && !changes.is_empty() {
            self.read_payloads(&mut changes).await?;
        }
        Ok(changes)
    }

    /// Remembers what is there.
    async fn begin(&mut self) -> Result<()> {
        if let Some(clock) = self.store.inspect().await?.clock {
            self.sent_at = clock;
        }
        let there = self.there().await?;
        self.begun_at = there.iter().map(|record| record.seq).max().unwrap_or(0);
        let unsent = there.iter().filter(|it| it.delivery.status == Status::New);
        if unsent.clone().count() >= PAGE_MAX as usize {
            self.floor = unsent.map(|record| record.seq).min().unwrap_or(i64::MIN);
        }
        there.iter().for_each(|record| self.remember(record));
        self.past = self.filter.since.map(|_| Page {
            limit: PAGE_MAX,
            ..Page::default()
        });
        self.looks = 1;
        Ok(())
    }

    /// What matches and was written since the moment that was asked for, as it is now.
    async fn page_of_the_past(&mut self, page: Page) -> Result<Vec<Change>> {
        let records = self.store.events(&self.filter, &page).await?;
        self.past = (records.len() == PAGE_MAX as usize).then_some(Page {
            after: records.last().map(|record| record.seq),
            ..page
        });
        let mut changes = Vec::new();
        for record in &records {
            changes.extend(told(None, record, true));
            self.remember(record);
        }
        Ok(changes)
    }

    async fn look(&mut self) -> Result<Vec<Change>> {
        let mut there = self.there().await?;
        there.sort_by_key(|record| record.seq);
        self.looks += 1;
        let mut changes = Vec::new();
        for record in &there {
            let seen = self.seen.get(&record.id);
            let is_new = match record.delivery.status {
                Status::New => record.seq >= self.floor,
                // What has become of it before it was ever looked at.
                Status::Sent | Status::Err => record.seq > self.begun_at,
            };
            changes.extend(told(seen, record, is_new));
            self.remember(record);
        }
        if self.seen.len() > SEEN_MAX {
            let looks = self.looks;
            self.seen.retain(|_, seen| seen.at + REMEMBERED > looks);
        }
        Ok(changes)
    }

    /// What is not sent, the newest of it, and what was sent a moment ago.
    async fn there(&mut self) -> Result<Vec<OutboxRecord>> {
        let newest = Page {
            limit: PAGE_MAX,
            newest_first: true,
            ..Page::default()
        };
        let with = |status| Filter {
            status: Some(status),
            ..self.filter.clone()
        };
        // An event that is sent in between is found twice, the other way round not at all.
        let mut there = self.store.events(&with(Status::New), &newest).await?;
        there.extend(self.store.events(&with(Status::Err), &newest).await?);
        let sent = Filter {
            sent_since: Some(before(self.sent_at, OVERLAP)),
            ..with(Status::Sent)
        };
        let mut page = newest;
        for number in 1.. {
            let records = self.store.events(&sent, &page).await?;
            page.after = records.last().map(|record| record.seq);
            let full = records.len() == PAGE_MAX as usize;
            there.extend(records);
            self.left_some_out |= full && number == PAGES_MAX;
            if !full || number == PAGES_MAX {
                break;
            }
        }
        let sent_at = there.iter().filter_map(|record| record.delivery.sent_at);
        self.sent_at = sent_at
            .max()
            .map_or(self.sent_at, |at| at.max(self.sent_at));
        Ok(there)
    }

    fn remember(&mut self, record: &OutboxRecord) {
        let delivery = &record.delivery;
        let seen = Seen {
            status: delivery.status,
            retry_cnt: delivery.retry_cnt,
            retry_at: delivery.retry_at,
            at: self.looks,
        };
        self.seen.insert(record.id, seen);
    }

    async fn read_payloads(&self, changes: &mut [Change]) -> Result<()> {
        for part in changes.chunks_mut(PAGE_MAX as usize) {
            let ids: Vec<Uuid> = part.iter().map(|change| change.record.id).collect();
            let found = self.store.find(&ids).await?;
            let found: HashMap<Uuid, OutboxRecord> = found
                .into_iter()
                .map(|record| (record.id, record))
                .collect();
            for change in part {
                if let Some(record) = found.get(&change.record.id) {
                    change.record.payload = record.payload.clone();
                }
            }
        }
        Ok(())
    }
}

/// What is to be told of an event that was seen so before, or never; `is_new` if it was written
/// since the first look.
fn told(seen: Option<&Seen>, record: &OutboxRecord, is_new: bool) -> Vec<Change> {
    let delivery = &record.delivery;
    let mut changes = Vec::new();
    let mut tell = |what| {
        changes.push(Change {
            what,
            record: record.clone(),
        });
    };
    if seen.is_none() && is_new {
        tell("written");
    }
    let before = seen.map_or(Status::New, |seen| seen.status);
    match delivery.status {
        Status::Sent if before != Status::Sent => tell("sent"),
        Status::Err if before != Status::Err && (seen.is_some() || is_new) => tell("dead"),
        Status::New if before == Status::Err => tell("retried"),
        Status::New if delivery.retry_at.is_some() => {
            let failed = match seen {
                Some(seen) => {
                    (seen.retry_cnt, seen.retry_at) != (delivery.retry_cnt, delivery.retry_at)
                }
                None => is_new,
            };
            if failed {
                tell("retrying");
            }
        }
        _ => {}
    }
    changes
}

fn before(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_micros()).unwrap_or(0);
    Timestamp::from_unix_micros(time.unix_micros().saturating_sub(by)).unwrap_or(time)
}
