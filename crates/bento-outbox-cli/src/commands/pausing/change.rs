//! `pause` and `resume`. Neither destroys anything, so nobody is asked.

use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{Pausable, Store};
use clap::Args;
use serde::Serialize;

use crate::failure::Result;
use crate::operator::Actor;
use crate::terminal;

#[derive(Args)]
pub(super) struct Reason {
    /// Why, for whoever finds it paused
    #[arg(long = "reason", value_name = "TEXT")]
    text: Option<String>,
}

#[derive(Args)]
pub(super) struct ChangeForm {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    actor: Actor,
}

pub(super) enum Verb {
    Pause(Reason),
    Resume,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Done {
    kind: Pausable,
    names: Vec<String>,
    changed: u64,
}

pub(super) async fn change(
    store: &Arc<dyn Store>,
    kind: Pausable,
    verb: Verb,
    names: Vec<String>,
    form: ChangeForm,
) -> Result<ExitCode> {
    let names = kind.names(&names)?;
    let before = store.pauses().await?;
    let was_paused = |name: &String| {
        let same = |pause: &bento_outbox::Pause| pause.kind == kind && pause.name == *name;
        before.iter().any(same)
    };
    let by = form.actor.by();
    let changed = match &verb {
        Verb::Pause(reason) => {
            let reason = reason.text.as_deref();
            store.pause(kind, &names, &by, reason).await?
        }
        Verb::Resume => store.resume(kind, &names, &by).await?,
    };
    for name in &names {
        let said = match (&verb, was_paused(name)) {
            (Verb::Pause(_), false) => "paused: its events are kept until it is resumed",
            (Verb::Pause(_), true) => "was paused already",
            (Verb::Resume, true) => "resumed",
            (Verb::Resume, false) => "was not paused",
        };
        terminal::say(format!("{kind} {} {said}", terminal::visible(name)));
    }
    if form.json {
        let done = Done {
            kind,
            names,
            changed,
        };
        let json = serde_json::to_string(&done).unwrap_or_default();
        terminal::print(|out| writeln!(out, "{json}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
