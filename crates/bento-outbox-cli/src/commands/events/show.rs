//! `events show`: all that is known of one event.

use std::process::ExitCode;

use bento_outbox::Store;
use clap::Args;

use super::shown::Shown;
use crate::failure::Result;

/// Show one event
#[derive(Args)]
#[command(after_help = "Example:
  bento-outbox events show 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --payload")]
pub(super) struct Show {
    #[command(flatten)]
    shown: Shown,
}

impl Show {
    pub(super) async fn run(self, store: &dyn Store) -> Result<ExitCode> {
        let event = self.shown.event(store).await?;
        self.shown.print(&event)
    }
}
