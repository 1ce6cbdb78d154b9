//! `tenants` and `destinations`: keeping the events of one back for a while.

mod change;
mod list;

use std::process::ExitCode;

use bento_outbox::Pausable;
use clap::{Args, Subcommand};

use self::change::{ChangeForm, Reason, Verb};
use crate::connect;
use crate::failure::Result;
use crate::settings::Settings;

/// Keep the events of tenants back, and let them go again
///
/// No relay claims an event of a paused tenant. They are all kept, in order, and cost no attempt; the
/// events of other tenants go on. It stays so through restarts until somebody resumes the tenant.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox tenants pause acme --reason 'their webhook is being moved'
  bento-outbox tenants list
  bento-outbox tenants resume acme")]
pub(crate) struct Tenants {
    #[command(subcommand)]
    command: OfTenants,
}

/// Keep the events for destinations back, and let them go again
///
/// A destination is a bus that events are routed to, by the name that `destinations list` shows: its
/// URL without what is secret in it. Relays publish nothing to a paused one and do not try whether it
/// is there. Its events are kept, in order, and cost no attempt; those for others go on, through relays
/// alone: nothing is published right after its commit meanwhile. It stays so through restarts.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox destinations list
  bento-outbox destinations pause nats://localhost:4222 --reason 'disk full'
  bento-outbox destinations resume nats://localhost:4222")]
pub(crate) struct Destinations {
    #[command(subcommand)]
    command: OfDestinations,
}

#[derive(Subcommand)]
enum OfTenants {
    /// Keep the events of tenants back, also of one that has none yet
    ///
    /// It holds for every relay from its next claim on. What is in flight by then, or was committed
    /// by a service that is just publishing it, still goes out.
    #[command(after_help = "Example:
  bento-outbox tenants pause acme globex --reason 'schema change'")]
    Pause {
        /// The tenants
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        form: ChangeForm,
    },
    /// Let the events of tenants go again
    #[command(after_help = "Example:
  bento-outbox tenants resume acme")]
    Resume {
        /// The tenants
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        form: ChangeForm,
    },
    /// List the tenants that are paused or have events that are not sent
    #[command(after_help = "Examples:
  bento-outbox tenants list
  bento-outbox tenants list --json |
    jq -r '.tenants[] | select(.paused) | .tenant_id'")]
    List {
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Subcommand)]
enum OfDestinations {
    /// Keep the events for destinations back
    ///
    /// It holds for every relay within a second. What is in flight by then still goes out.
    #[command(after_help = "Example:
  bento-outbox destinations pause nats://localhost:4222 --reason 'disk full'")]
    Pause {
        /// The destinations, as `destinations list` names them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        reason: Reason,
        #[command(flatten)]
        form: ChangeForm,
    },
    /// Let the events for destinations go again, within a second or two
    ///
    /// Also those that no route here leads to, if they were paused elsewhere.
    #[command(after_help = "Example:
  bento-outbox destinations resume nats://localhost:4222")]
    Resume {
        /// The destinations, as `destinations list` names them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        form: ChangeForm,
    },
    /// List the destinations of these settings, and those that are paused
    #[command(after_help = "Examples:
  bento-outbox destinations list
  bento-outbox destinations list --json |
    jq -r '.destinations[] | select(.paused) | .name'")]
    List {
        #[command(flatten)]
        form: Form,
    },
}

#[derive(Args)]
struct Form {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

impl Tenants {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        let kind = Pausable::Tenant;
        match self.command {
            OfTenants::Pause {
                names,
                reason,
                form,
            } => change::change(&store, kind, Verb::Pause(reason), names, form).await,
            OfTenants::Resume { names, form } => {
                change::change(&store, kind, Verb::Resume, names, form).await
            }
            OfTenants::List { form } => list::tenants(&store, form.json).await,
        }
    }
}

impl Destinations {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        let store = connect::outbox(&settings).await?;
        let kind = Pausable::Destination;
        match self.command {
            OfDestinations::Pause {
                names,
                reason,
                form,
            } => {
                kind.must_be_there(&names, &settings.destinations())?;
                change::change(&store, kind, Verb::Pause(reason), names, form).await
            }
            OfDestinations::Resume { names, form } => {
                change::change(&store, kind, Verb::Resume, names, form).await
            }
            OfDestinations::List { form } => list::destinations(&store, &settings, form.json).await,
        }
    }
}
