//! `completions`: what a shell needs to complete the command line.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use crate::failure::Result;
use crate::settings::Flags;
use crate::terminal;

/// Print completions for a shell
#[derive(Args)]
#[command(args = Flags::hidden())]
#[command(after_help = "Example:
  bento-outbox completions bash > /etc/bash_completion.d/bento-outbox")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, cli: &mut clap::Command) -> Result<ExitCode> {
        // Into memory first: the generator panics where a pipe is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, cli, "bento-outbox", &mut script);
        terminal::print(|out| out.write_all(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
