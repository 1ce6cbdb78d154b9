//! `doctor`: what is wrong, and what to do about it.

mod finding;
mod retrying;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bento_outbox::{Inspection, LiveRelay, Pausable, Relay, Store, TenantStatus, Timestamp};
use clap::Args;
use uuid::Uuid;

use self::finding::{Findings, State};
use super::health;
use crate::failure::Result;
use crate::settings::{self, Settings};
use crate::terminal::{self, counted};
use crate::{connect, held, logging, paused};

/// Look for what is wrong, and say what to do about it
///
/// Checks the settings, the database (reachable, version, tables, indexes, rights, clock), the bus, the
/// relays, what is paused, the ordering keys that wait, the dead letters, and the webhook that is told of them. Exits with 1 when something is broken.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox doctor
  bento-outbox doctor --json | jq '.findings[] | select(.state == \"broken\")'")]
pub(crate) struct Doctor {
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// How far the database's clock may be from this machine's.
const SKEW_MAX: Duration = Duration::from_secs(5);

/// How long a transaction may be open before it is worth a word.
const TRANSACTION_SECONDS_MAX: f64 = 600.0;

/// How old an unsent event may be before it is worth a word.
const UNSENT_SECONDS_MAX: f64 = 300.0;

/// How many waiting keys are named, and how many pauses.
const KEYS_NAMED_MAX: u32 = 5;
const PAUSES_NAMED_MAX: usize = 20;

impl Doctor {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        // A bus that works may still warn of how it is set up.
        logging::begin(&settings, true);
        let mut findings = Findings::of(&settings);
        check_settings(&settings, &mut findings);
        let relays = check_database(&settings, &mut findings).await;
        let takes_nothing = taking_nothing(&settings).await;
        for bus in settings.buses() {
            check_bus(&settings, bus, relays > 0, &takes_nothing, &mut findings).await;
        }
        check_alert(&settings, &mut findings).await;
        findings.print(self.json)?;
        Ok(match findings.count(State::Broken) {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(1),
        })
    }
}

fn check_settings(settings: &Settings, findings: &mut Findings<'_>) {
    if let Err(refused) = settings.refuse_unsupported() {
        let advice = "remove it: `run` refuses to start with it";
        findings.add("settings", State::Broken, refused.to_string(), advice);
        return;
    }
    for sentence in settings.topics_in_vain() {
        findings.add("settings", State::Note, sentence, "");
    }
    let found = match settings.given_count() {
        0 => "all defaults".to_string(),
        given => format!("{} given, the others are defaults", counted(given, "value")),
    };
    findings.add("settings", State::Ok, found, "");
}

/// Where the database itself says what is wrong.
pub(super) const SEE_TO_IT: &str = "the database says what is wrong: see that it runs, that its user may do this and that `bento-outbox migrate` has \
     run; `bento-outbox config` says where database_url comes from; events are kept meanwhile";

/// What is in the database; answers how many relays live.
async fn check_database(settings: &Settings, findings: &mut Findings<'_>) -> usize {
    let url = settings::masked(&settings.database_url);
    let store = match connect::database(settings).await {
        Ok(database) => database.store(),
        Err(failure) => {
            findings.add("database", State::Broken, failure.to_string(), SEE_TO_IT);
            return 0;
        }
    };
    let checked = store.check().await;
    let asked = Timestamp::now();
    let inspected = store.inspect().await;
    if let Err(error) = checked {
        let forbidden = inspected.map(|it| it.forbidden).unwrap_or_default();
        match forbidden.is_empty() {
            true => {
                let found = format!("{url}: {}", error.report());
                findings.add("database", State::Broken, found, SEE_TO_IT);
            }
            false => say_what_is_forbidden(&forbidden, findings),
        }
        return 0;
    }
    let inspection = match inspected {
        Ok(inspection) => inspection,
        Err(error) => {
            findings.add("database", State::Broken, error.report(), SEE_TO_IT);
            return 0;
        }
    };
    check_server(&url, &inspection, asked, findings);
    let lives = !inspection.relays.is_empty();
    check_events(settings, &store, lives, findings).await;
    let is_due = match is_due(settings, store.as_ref()).await {
        Ok(is_due) => is_due,
        Err(error) => {
            findings.add("events", State::Broken, error.report(), SEE_TO_IT);
            false
        }
    };
    check_relays(settings, &inspection.relays, is_due, findings);
    inspection.relays.len()
}

fn check_server(url: &str, inspection: &Inspection, asked: Timestamp, findings: &mut Findings<'_>) {
    let server = inspection.server.as_deref().unwrap_or("answers");
    let found = format!("{url}: {server}, tables of this version");
    findings.add("database", State::Ok, found, "");
    if !inspection.missing.is_empty() {
        let found = format!(
            "indexes that are missing: {}",
            inspection.missing.join(", ")
        );
        let advice = "create them (`bento-outbox migrate --print` has the statements): without them every poll reads the whole table";
        findings.add("database", State::Broken, found, advice);
    }
    if !inspection.forbidden.is_empty() {
        say_what_is_forbidden(&inspection.forbidden, findings);
    }
    if !inspection.hidden.is_empty() {
        let hidden = inspection.hidden.join(", ");
        let found = format!("row-level security hides rows of {hidden} from this user");
        let advice = "give the user of database_url `bypassrls`, or another user that has it: `run` refuses to start as one \
                      that would silently see nothing";
        findings.add("database", State::Broken, found, advice);
    }
    for caution in &inspection.cautions {
        findings.add(
            "database",
            State::Warning,
            caution.found.clone(),
            caution.advice,
        );
    }
    if let Some(clock) = inspection.clock {
        // The answer is younger than the question by at most the time it took.
        let took = asked.until(Timestamp::now());
        let ahead = asked.until(clock).saturating_sub(took);
        let behind = clock.until(asked);
        if ahead.max(behind) > SKEW_MAX {
            let (off, way) = match ahead > behind {
                true => (ahead, "ahead of"),
                false => (behind, "behind"),
            };
            let found = format!(
                "the database's clock is {:.0} s {way} this machine's",
                off.as_secs_f64()
            );
            let advice = "set both by NTP: leases and delays go by the database's clock, occurred_at by the writer's";
            findings.add("database", State::Warning, found, advice);
        }
    }
    if let Some(seconds) = inspection
        .oldest_transaction_seconds
        .filter(|seconds| *seconds > TRANSACTION_SECONDS_MAX)
    {
        let found = format!("a transaction has been open for {}", terminal::age(seconds));
        let advice =
            "end it: until then the database keeps every row version, and claims read past them";
        findings.add("database", State::Warning, found, advice);
    }
}

fn say_what_is_forbidden(forbidden: &[String], findings: &mut Findings<'_>) {
    let found = format!("this user may not {}", forbidden.join(", "));
    let advice = "grant these rights to the user of database_url";
    findings.add("database", State::Broken, found, advice);
}

/// Whether an event of the tenants of these settings could go out now.
async fn is_due(settings: &Settings, store: &dyn Store) -> bento_outbox::Result<bool> {
    let ours = settings.projector.tenants.as_ref();
    let is_ours = |id: &str| ours.is_none_or(|ours| ours.iter().any(|our| our.as_str() == id));
    let backlog = store.backlog().await?;
    let mut ours = backlog.iter().filter(|it| is_ours(&it.tenant_id));
    Ok(ours.any(|it| it.oldest_due_seconds.is_some()))
}

/// What is in the outbox.
async fn check_events(
    settings: &Settings,
    store: &Arc<dyn Store>,
    relay_lives: bool,
    findings: &mut Findings<'_>,
) {
    let tenants = match store.status().await {
        Ok(tenants) => tenants,
        Err(error) => {
            findings.add("events", State::Broken, error.report(), SEE_TO_IT);
            return;
        }
    };
    let total = TenantStatus::total(&tenants);
    let (unsent, dead) = (total.new + total.retrying, total.dead);
    let oldest = total.oldest_new_seconds.unwrap_or(0.0);
    match oldest > UNSENT_SECONDS_MAX {
        true => {
            let found = format!(
                "{} not sent, the oldest written {} ago",
                counted(unsent, "event"),
                terminal::age(oldest)
            );
            let advice = "see below for what is paused, a relay, the bus and the keys that wait; `bento-outbox status` has it by tenant";
            findings.add("events", State::Warning, found, advice);
        }
        false => findings.add(
            "events",
            State::Ok,
            format!("{} not sent", counted(unsent, "event")),
            "",
        ),
    }
    if dead > 0 {
        let advice = "look at them: `bento-outbox dead list`; then `bento-outbox dead retry --all` or \
                      `bento-outbox dead discard --all`, or some of them by a filter";
        findings.add(
            "dead letters",
            State::Warning,
            counted(dead, "dead letter"),
            advice,
        );
    }
    if total.paused_events > 0 {
        let kept = counted(total.paused_events, "event");
        let found = format!("{kept} kept because the destination is paused");
        findings.add("events", State::Note, found, "");
    }
    let stands_still = relay_lives && total.sent_per_second == 0.0;
    retrying::check(settings, store, stands_still, findings).await;
    check_pauses(settings, store, findings).await;
    check_order(settings, store, findings).await;
}

/// Which keys wait, and for what.
async fn check_order(settings: &Settings, store: &Arc<dyn Store>, findings: &mut Findings<'_>) {
    let held = bento_outbox::held(store.as_ref(), &settings.projector, KEYS_NAMED_MAX).await;
    let holding = match &held {
        Ok(held) => {
            let ids: Vec<Uuid> = held.keys.iter().map(|key| key.id).collect();
            store.find(&ids).await
        }
        Err(_) => Ok(Vec::new()),
    };
    let (held, holding) = match (held, holding) {
        (Ok(held), Ok(holding)) => (held, holding),
        (Err(error), _) | (_, Err(error)) => {
            return findings.add("order", State::Broken, error.report(), SEE_TO_IT);
        }
    };
    for key in &held.keys {
        let id = key.id;
        let has_failed = holding
            .iter()
            .any(|event| event.id == id && event.delivery.retry_cnt > 0);
        let (state, advice) = match key.because.as_str() {
            "dead" => (
                State::Warning,
                format!(
                    "on_dead_letter is block: `bento-outbox dead retry --id {id}` or `bento-outbox dead discard \
                     --id {id}`"
                ),
            ),
            "paused" => (
                State::Note,
                "see what is paused: `bento-outbox status` names it".into(),
            ),
            "retrying" if has_failed => (
                State::Note,
                "it goes on by itself; `bento-outbox dead list` has it if it fails for good".into(),
            ),
            "retrying" => (State::Note, retrying::BRING_IT_BACK.into()),
            _ => (
                State::Note,
                "it goes on by itself: an event that is written for later holds its own key back"
                    .into(),
            ),
        };
        findings.add("order", state, held::sentence(key), &advice);
    }
    if held.more {
        let found = "and more keys wait".to_string();
        let advice = "`bento-outbox status --json` names 20";
        findings.add("order", State::Note, found, advice);
    }
}

/// Whoever paused something may have forgotten it.
async fn check_pauses(settings: &Settings, store: &Arc<dyn Store>, findings: &mut Findings<'_>) {
    let pauses = match store.pauses().await {
        Ok(pauses) => pauses,
        Err(error) => {
            findings.add("pauses", State::Broken, error.report(), SEE_TO_IT);
            return;
        }
    };
    let in_vain = paused::in_vain(&pauses, settings);
    for pause in pauses.iter().take(PAUSES_NAMED_MAX) {
        let resume = pause.resume_command();
        let advice = match in_vain.get(&pause.name) {
            Some(in_vain) if pause.kind == Pausable::Destination => in_vain.clone(),
            _ => format!("`{resume}` when its events may go out again"),
        };
        findings.add("pauses", State::Warning, paused::sentence(pause), &advice);
    }
    if pauses.len() > PAUSES_NAMED_MAX {
        let found = format!("{} more are paused", pauses.len() - PAUSES_NAMED_MAX);
        let advice = "see `bento-outbox tenants list` and `bento-outbox destinations list`";
        findings.add("pauses", State::Warning, found, advice);
    }
}

fn check_relays(
    settings: &Settings,
    relays: &[LiveRelay],
    is_due: bool,
    findings: &mut Findings<'_>,
) {
    let scope = Relay::new(settings.projector.tenants.clone()).scope();
    let ours: Vec<&LiveRelay> = relays
        .iter()
        .filter(|relay| relay.tenants == scope)
        .collect();
    let others = relays
        .iter()
        .find(|relay| Relay::scopes_collide(&scope, &relay.tenants));
    if let Some(other) = others {
        let found = format!(
            "a relay runs for tenants {:?}, these settings are for {scope:?}",
            other.tenants
        );
        let advice =
            "let all relays of one outbox carry the same tenants, or tenants that do not overlap";
        findings.add("relays", State::Broken, found, advice);
    }
    if ours.is_empty() && others.is_none() {
        let (state, due) = match is_due {
            true => (State::Broken, ", and events are due"),
            false => (State::Note, ""),
        };
        let found = format!("no relay is running for tenants {scope:?}{due}");
        findings.add("relays", state, found, "start one: `bento-outbox run`");
    }
    if !ours.is_empty() {
        let shares: Vec<String> = ours
            .iter()
            .map(|relay| relay.partitions.to_string())
            .collect();
        let found = format!(
            "{} for tenants {scope:?}, with {} of {} partitions",
            match ours.len() {
                1 => "1 relay".into(),
                relays => format!("{relays} relays"),
            },
            shares.join(" + "),
            bento_outbox::PARTITIONS
        );
        findings.add("relays", State::Ok, found, "");
    }
}

/// What the relay of this machine says of its bus, where it finds it not well.
async fn taking_nothing(settings: &Settings) -> String {
    let Some(address) = settings.admin_addr else {
        return String::new();
    };
    let answer = health::asked(address, "/health/ready").await;
    let said = answer
        .ok()
        .and_then(|(_, body)| Some(body["bus"].as_str()?.to_owned()));
    said.unwrap_or_default()
}

async fn check_bus(
    settings: &Settings,
    bus: settings::Bus<'_>,
    relay_lives: bool,
    takes_nothing: &str,
    findings: &mut Findings<'_>,
) {
    let url = bus.name();
    // A check may be content with a bus that takes nothing: then only the relay knows.
    if takes_nothing.starts_with(&format!("{url} has taken no event")) {
        let advice = "make room there, or lift what limits it: the events are kept, cost no attempt and go out by themselves";
        findings.add("bus", State::Broken, takes_nothing.into(), advice);
        return;
    }
    let publisher = match connect::one_bus(settings, bus) {
        Ok(publisher) => publisher,
        Err(failure) => {
            findings.add(
                "bus",
                State::Broken,
                failure.to_string(),
                "correct bus_url or the route: `bento-outbox config` says where it comes from",
            );
            return;
        }
    };
    match (publisher.check().await, settings::scheme(bus.url)) {
        (Ok(()), Some("null")) => {
            let found = format!("{url} acknowledges everything and keeps nothing");
            findings.add("bus", State::Warning, found, "set bus_url");
        }
        (Ok(()), Some("stdout")) => {
            let found = format!("{url} is the terminal, or whatever reads it");
            findings.add("bus", State::Note, found, "set bus_url for a broker");
        }
        (Ok(()), Some("http" | "https")) => {
            // A request would be an event to whoever is there.
            let found = format!("{url} can be reached; what it answers, the first event shows");
            findings.add("bus", State::Ok, found, "");
            if !settings.is_given("webhook_secret") {
                let found = "requests are not signed".to_string();
                let advice = "set webhook_secret, by which the receiver knows who sends";
                findings.add("bus", State::Note, found, advice);
            }
        }
        (Ok(()), _) => {
            findings.add("bus", State::Ok, format!("{url} answers"), "");
            for caveat in publisher.caveats().await {
                let (found, advice) = caveat.split_once("; ").unwrap_or((&caveat, ""));
                findings.add("bus", State::Warning, found.into(), advice);
            }
        }
        // A file is one relay's alone, and that relay is at work.
        (Err(rejection), Some("file")) if relay_lives && rejection.reason.contains("is locked") => {
            findings.add("bus", State::Ok, rejection.reason, "");
        }
        (Err(rejection), _) => {
            let found = format!("{url} takes no events: {}", rejection.reason);
            let advice = "events are kept until it does, and cost no attempt";
            findings.add("bus", State::Broken, found, advice);
        }
    }
}

async fn check_alert(settings: &Settings, findings: &mut Findings<'_>) {
    let url = settings::masked(settings.alert_url.as_deref().unwrap_or_default());
    match connect::alert(settings) {
        Ok(None) => {}
        Err(failure) => findings.add(
            "alerts",
            State::Broken,
            failure.to_string(),
            "correct alert_url, or remove it",
        ),
        Ok(Some(webhook)) => match webhook.check().await {
            Ok(()) => findings.add("alerts", State::Ok, format!("{url} can be reached"), ""),
            Err(rejection) => {
                let found = format!("{url}: {}", rejection.reason);
                let advice =
                    "nobody is told of dead letters meanwhile; `bento-outbox dead list` has them";
                findings.add("alerts", State::Broken, found, advice);
            }
        },
    }
}
