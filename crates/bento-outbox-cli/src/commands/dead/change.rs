//! `dead retry` and `dead discard`: what a person decides about dead letters.
//!
//! The letters that match are counted first, and those are then changed page by page, whoever else
//! changes them meanwhile: each statement takes only what is still a dead letter.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{DeadLetters, Decision, OutboxRecord, Store};
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::PAGE;
use super::choice::Choice;
use crate::failure::Result;
use crate::operator::Actor;
use crate::settings::Settings;
use crate::terminal::{self, counted};

/// Make dead letters NEW again, with the same ids and bytes
///
/// Their attempts are counted from none. The command says first what that does to the order of
/// their aggregates' events.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox dead retry --id 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001
  bento-outbox dead retry --type order.placed --since 2h --dry-run
  bento-outbox dead retry --all --yes")]
pub(super) struct Retry {
    #[command(flatten)]
    change: Change,
}

/// Delete dead letters for good
///
/// `dead list --json --payload` keeps a copy of them.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox dead discard --id 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001
  bento-outbox dead discard --tenant acme --until 30d --yes")]
pub(super) struct Discard {
    #[command(flatten)]
    change: Change,
}

#[derive(Args)]
struct Change {
    #[command(flatten)]
    choice: Choice,
    /// Say what would happen and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Say at the end what was done, as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    actor: Actor,
}

/// How many keys with waiting events are looked at.
const HELD_KEYS_MAX: u32 = 10_000;

impl Retry {
    pub(super) async fn run(self, settings: &Settings, store: &Arc<dyn Store>) -> Result<ExitCode> {
        self.change.run(Decision::Retry, settings, store).await
    }
}

impl Discard {
    pub(super) async fn run(self, settings: &Settings, store: &Arc<dyn Store>) -> Result<ExitCode> {
        self.change.run(Decision::Discard, settings, store).await
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Done {
    matched: u64,
    changed: u64,
    dry_run: bool,
}

impl Change {
    async fn run(
        self,
        decision: Decision,
        settings: &Settings,
        store: &Arc<dyn Store>,
    ) -> Result<ExitCode> {
        self.choice.must_be_made("dead letters")?;
        let filter = self.choice.filter()?;
        if !self.dry_run && !self.yes {
            terminal::must_have_a_person()?;
        }
        let waiting = waiting(settings, store).await?;
        let matching = Matching::of(DeadLetters::of(store.as_ref(), &filter), &waiting).await?;
        if matching.letters == 0 {
            terminal::say(match self.choice.is_everything() {
                true => "there are no dead letters",
                false => "no dead letter matches: there is none, or somebody dealt with it already",
            });
            return self.end(&matching, 0);
        }
        let many = counted(matching.letters, "dead letter");
        terminal::say(format!("{many}: {}", matching.of_tenants()));
        terminal::say(matching.order(decision, settings));
        if self.dry_run {
            terminal::say("nothing is changed (--dry-run)");
            return self.end(&matching, 0);
        }
        let question = match decision {
            Decision::Retry => format!("Retry {many}?"),
            Decision::Discard => format!("Discard {many}, for good?"),
        };
        if !self.yes && !terminal::agreed(&question) {
            terminal::say("nothing is changed");
            return self.end(&matching, 0);
        }
        let letters = DeadLetters::of(store.as_ref(), &filter).up_to(Some(matching.last));
        let by = self.actor.by();
        let changed = changed(decision, letters, matching.letters, &by).await?;
        let did = match decision {
            Decision::Retry => "retried: NEW again, under the same ids",
            Decision::Discard => "discarded",
        };
        terminal::say(format!("{} {did}", counted(changed, "dead letter")));
        if changed < matching.letters {
            let others = counted(matching.letters - changed, "other");
            terminal::say(format!("{others} had been dealt with meanwhile"));
        }
        self.end(&matching, changed)
    }

    fn end(&self, matching: &Matching, changed: u64) -> Result<ExitCode> {
        if self.json {
            let done = Done {
                matched: matching.letters,
                changed,
                dry_run: self.dry_run,
            };
            let json = serde_json::to_string(&done).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Changes the letters page by page; says how many.
async fn changed(
    decision: Decision,
    mut letters: DeadLetters<'_>,
    expected: u64,
    by: &str,
) -> Result<u64> {
    let progress = terminal::bar(expected);
    let mut changed = 0;
    while let Some(page) = letters.decide(decision, PAGE, by).await? {
        changed += page.changed;
        progress.inc(page.letters);
    }
    progress.finish_and_clear();
    Ok(changed)
}

/// How many unsent events each dead letter has behind it, by its id.
async fn waiting(settings: &Settings, store: &Arc<dyn Store>) -> Result<HashMap<Uuid, u64>> {
    if !settings.projector.ordered {
        return Ok(HashMap::new());
    }
    let held = store.held_keys(HELD_KEYS_MAX).await?;
    let dead = held.into_iter().filter(|key| key.because == "dead");
    Ok(dead.map(|key| (key.id, key.waiting)).collect())
}

/// The dead letters that a command is about.
#[derive(Default)]
struct Matching {
    letters: u64,
    /// The `seq` of the last one.
    last: i64,
    tenants: HashMap<String, u64>,
    unordered: u64,
    keys: HashSet<String>,
    /// Unsent events behind the first of the letters of each key.
    waiting: u64,
}

impl Matching {
    async fn of(mut letters: DeadLetters<'_>, waiting: &HashMap<Uuid, u64>) -> Result<Self> {
        let progress = terminal::spinner("dead letters found");
        let mut matching = Self::default();
        loop {
            let page = letters.next_page(PAGE).await?;
            if page.is_empty() {
                break;
            }
            for letter in &page {
                matching.add(letter, waiting.get(&letter.id));
            }
            progress.inc(page.len() as u64);
        }
        progress.finish_and_clear();
        Ok(matching)
    }

    fn add(&mut self, letter: &OutboxRecord, waiting: Option<&u64>) {
        self.letters += 1;
        self.last = letter.seq;
        *self.tenants.entry(letter.tenant.to_string()).or_default() += 1;
        match letter.ordering_key() {
            None => self.unordered += 1,
            // The first letter of a key has the most behind it.
            Some(key) if self.keys.insert(key.to_string()) => {
                self.waiting += waiting.copied().unwrap_or(0);
            }
            Some(_) => {}
        }
    }

    /// `acme 3, globex 1`, the first ten of them.
    fn of_tenants(&self) -> String {
        const NAMED_MAX: usize = 10;
        let mut tenants: Vec<(&String, &u64)> = self.tenants.iter().collect();
        tenants.sort_unstable_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
        let named = tenants.iter().take(NAMED_MAX);
        let mut text = named
            .map(|(name, letters)| format!("{name} {letters}"))
            .collect::<Vec<_>>()
            .join(", ");
        if tenants.len() > NAMED_MAX {
            text += &format!(" and {} more tenants", tenants.len() - NAMED_MAX);
        }
        text
    }

    /// What the command does to the order of events, in a sentence.
    fn order(&self, decision: Decision, settings: &Settings) -> String {
        let keys = match self.keys.len() {
            1 => "1 aggregate".to_string(),
            keys => format!("{keys} aggregates"),
        };
        let waiting = match self.waiting {
            0 => "there are none at present".to_string(),
            waiting => format!("{waiting} at present"),
        };
        let block = settings.projector.dead_letters_block;
        if !settings.projector.ordered || self.keys.is_empty() {
            return "order: no event waits for these".into();
        }
        match (decision, block) {
            (Decision::Retry, true) => format!(
                "order: kept. The later events of their {keys} wait for these (on_dead_letter = block): {waiting}"
            ),
            (Decision::Retry, false) => format!(
                "order: the later events of their {keys} did not wait (on_dead_letter = skip), so these come after \
                 what was sent of them already, and before what is not sent yet: {waiting}"
            ),
            (Decision::Discard, true) => format!(
                "order: the later events of their {keys} stop waiting (on_dead_letter = block) and go out without \
                 these: {waiting}"
            ),
            (Decision::Discard, false) => {
                format!("order: no event of their {keys} waits for these (on_dead_letter = skip)")
            }
        }
    }
}
