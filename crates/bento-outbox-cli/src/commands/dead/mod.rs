//! `dead`: the letters that a person must look at.

mod change;
mod list;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{choice, column, listing, shown};
use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;

/// Look at dead letters, retry or discard them
///
/// A dead letter is an event with the status ERR: the bus refused it for good, or as often as
/// max_retry says. It stays until somebody retries or discards it.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox dead list --tenant acme
  bento-outbox dead show 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --payload
  bento-outbox dead retry --type order.placed --since 2h --dry-run
  bento-outbox dead discard --all")]
pub(crate) struct Dead {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Retry(change::Retry),
    Discard(change::Discard),
}

impl Dead {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        match self.command {
            Command::List(list) => list.run(&store).await,
            Command::Show(show) => show.run(&store).await,
            Command::Retry(retry) => retry.run(&settings, &store).await,
            Command::Discard(discard) => discard.run(&settings, &store).await,
        }
    }
}

/// Dead letters read at once.
const PAGE: u32 = 500;
