//! `schema`: the shapes of events.

mod catalogue;
mod check;
mod version;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::failure::Result;
use crate::settings::Flags;

/// Compare the schemas of events
#[derive(Args)]
#[command(args = Flags::hidden())]
#[command(after_help = "Example:
  bento-outbox schema check schemas/order.placed.v3.schema.json \\
    schemas/order.placed.v4.schema.json")]
pub(crate) struct Schema {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Check),
}

impl Schema {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Check(check) => check.run(),
        }
    }
}
