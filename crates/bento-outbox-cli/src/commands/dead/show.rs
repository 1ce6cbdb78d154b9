//! `dead show`: all that is known of one dead letter.

use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{OutboxRecord, Status, Store};
use clap::Args;
use uuid::Uuid;

use super::column;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Show one dead letter
#[derive(Args)]
#[command(after_help = "Example:
  bento-outbox dead show 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --payload")]
pub(super) struct Show {
    /// The event's id
    id: Uuid,
    /// With its payload
    #[arg(long)]
    payload: bool,
    /// One JSON object, with the columns of the view outbox_events
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self, store: &Arc<dyn Store>) -> Result<ExitCode> {
        let letter = self.letter(store).await?;
        if self.json {
            let line = column::json_line(&letter, self.payload);
            terminal::print(|out| writeln!(out, "{line}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns = column::columns(&letter, self.payload);
        let aligned = terminal::stdout_is_terminal();
        terminal::print(|out| {
            columns.iter().try_for_each(|(name, cell)| match aligned {
                true => writeln!(out, "{name:14}  {}", cell.shown()),
                false => writeln!(out, "{name}\t{}", cell.shown()),
            })
        })?;
        if !self.payload {
            let bytes = terminal::counted(letter.payload.len() as u64, "byte");
            terminal::say(format!("its payload of {bytes} is shown with --payload"));
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn letter(&self, store: &Arc<dyn Store>) -> Result<OutboxRecord> {
        let found = store.find(&[self.id]).await?.pop();
        let is = match &found {
            None => {
                "is not in the outbox: it never was, or it was sent or discarded and is no longer kept"
            }
            Some(record) => match record.delivery.status {
                Status::Err => "",
                Status::Sent => "is no dead letter: it was sent",
                Status::New if record.delivery.retry_at.is_some() => {
                    "is no dead letter: it failed and is tried again by itself"
                }
                Status::New => "is no dead letter: it is not sent yet",
            },
        };
        found
            .filter(|_| is.is_empty())
            .ok_or_else(|| Failure::failed(format!("event {} {is}", self.id)))
    }
}
