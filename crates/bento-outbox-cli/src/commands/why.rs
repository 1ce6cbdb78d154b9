//! `why`: where one event is, and what it waits for.

use std::process::ExitCode;

use bento_outbox::{Because, Why as Answer, why};
use clap::Args;
use uuid::Uuid;

use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal;

/// Say where an event is, what it waits for, and what to do about it
///
/// It was sent, it is a dead letter, it is delayed or tried again later, an earlier event of its
/// aggregate goes first, no relay runs, and so on. Exits with 1 when there is no such event.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox why 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001
  bento-outbox why 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --json | jq -r .because")]
pub(crate) struct Why {
    /// The event's id
    id: Uuid,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        let mut answer = why(store.as_ref(), self.id, &settings.projector).await?;
        answer.advice = settings.advice(&answer.advice);
        if let Some(behind) = &mut answer.behind {
            behind.advice = settings.advice(&behind.advice);
        }
        if self.json {
            let json = serde_json::to_string(&answer).unwrap_or_default();
            terminal::print(|out| writeln!(out, "{json}"))?;
        } else {
            let aligned = terminal::stdout_is_terminal();
            terminal::print(|out| {
                lines(&answer)
                    .iter()
                    .try_for_each(|(name, text)| match aligned {
                        true => writeln!(out, "{name:9}  {}", terminal::visible(text)),
                        false => writeln!(out, "{name}\t{}", terminal::visible(text)),
                    })
            })?;
        }
        Ok(match answer.because {
            Because::Unknown => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        })
    }
}

fn lines(answer: &Answer) -> Vec<(&'static str, String)> {
    let mut lines = vec![("event", answer.id.to_string())];
    if let Some(event) = &answer.event {
        let aggregate = match (&event.aggregate_type, &event.aggregate_id) {
            (Some(kind), Some(id)) => format!("{kind} {id}"),
            (None, Some(id)) => id.clone(),
            (_, None) => "-".into(),
        };
        lines.extend([
            ("type", event.event_type.clone()),
            ("tenant", event.tenant_id.clone()),
            ("aggregate", aggregate),
            ("written", event.created_at.to_string()),
            ("status", event.status.to_string()),
        ]);
    }
    lines.extend([
        ("why", answer.explanation.clone()),
        ("to do", answer.advice.clone()),
    ]);
    lines
}
