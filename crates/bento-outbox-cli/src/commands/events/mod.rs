//! `events`: whatever is in the outbox, by what is known of it.

mod list;
mod show;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{choice, column, listing, shown};
use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;

/// Find events and look at them, whatever their state
///
/// What was sent is there for as long as it is kept (retention). `why` says of one event what it waits for.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox events list --aggregate 7 --since 2h
  bento-outbox events show 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --payload")]
pub(crate) struct Events {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
}

impl Events {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        match self.command {
            Command::List(list) => list.run(&settings, store.as_ref()).await,
            Command::Show(show) => show.run(store.as_ref()).await,
        }
    }
}
