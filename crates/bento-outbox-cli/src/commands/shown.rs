//! One event, with all that is known of it.

use std::process::ExitCode;

use bento_outbox::{OutboxRecord, Store};
use clap::Args;
use uuid::Uuid;

use super::column;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Which event is shown, and how.
#[derive(Args)]
pub(crate) struct Shown {
    /// The event's id
    id: Uuid,
    /// With its payload
    #[arg(long)]
    payload: bool,
    /// One JSON object, with the columns of the view outbox_events
    #[arg(long)]
    json: bool,
}

impl Shown {
    /// # Errors
    /// There is no such event; exit code 1.
    pub(crate) async fn event(&self, store: &dyn Store) -> Result<OutboxRecord> {
        let id = self.id;
        store.find(&[id]).await?.pop().ok_or_else(|| {
            Failure::failed(format!(
                "event {id} is not in the outbox: it never was, or it was sent or discarded and is no longer kept"
            ))
        })
    }

    /// Shows the event, a column a line or as JSON.
    ///
    /// # Errors
    /// A standard output that takes no more.
    pub(crate) fn print(&self, event: &OutboxRecord) -> Result<ExitCode> {
        if self.json {
            let line = column::json_line(event, self.payload);
            terminal::print(|out| writeln!(out, "{line}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let columns = column::columns(event, self.payload);
        let aligned = terminal::stdout_is_terminal();
        terminal::print(|out| {
            columns.iter().try_for_each(|(name, cell)| match aligned {
                true => writeln!(out, "{name:14}  {}", cell.shown()),
                false => writeln!(out, "{name}\t{}", cell.shown()),
            })
        })?;
        if !self.payload {
            let bytes = terminal::counted(event.payload.len() as u64, "byte");
            terminal::say(format!("its payload of {bytes} is shown with --payload"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
