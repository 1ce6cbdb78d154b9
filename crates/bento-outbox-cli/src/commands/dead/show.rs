//! `dead show`: all that is known of one dead letter.

use std::process::ExitCode;
use std::sync::Arc;

use bento_outbox::{Status, Store};
use clap::Args;

use super::shown::Shown;
use crate::failure::{Failure, Result};

/// Show one dead letter
#[derive(Args)]
#[command(after_help = "Example:
  bento-outbox dead show 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001 --payload")]
pub(super) struct Show {
    #[command(flatten)]
    shown: Shown,
}

impl Show {
    pub(super) async fn run(self, store: &Arc<dyn Store>) -> Result<ExitCode> {
        let event = self.shown.event(store.as_ref()).await?;
        let is = match event.delivery.status {
            Status::Err => return self.shown.print(&event),
            Status::Sent => "it was sent",
            Status::New if event.delivery.retry_at.is_some() => {
                "it failed and is tried again by itself"
            }
            Status::New => "it is not sent yet",
        };
        let id = event.id;
        Err(Failure::failed(format!(
            "event {id} is no dead letter: {is}"
        )))
    }
}
