//! While the bus or the database is away.

use std::time::Duration;

use crate::error::Error;
use crate::record::Rejection;
use crate::retry::{self, RetrySettings};
use crate::telemetry;

/// The longest pause between tries while the bus or the database is away.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Keeps count while the bus or the database is away, and says so once.
#[derive(Default)]
pub(super) struct Away {
    pub(super) tries: u32,
    /// What was said of events that cannot go out.
    blocked_by: Option<String>,
}

impl Away {
    pub(super) fn bus(&mut self, rejection: &Rejection) -> Duration {
        telemetry::database_up(true);
        telemetry::bus_up(false);
        if self.tries == 0 {
            tracing::warn!(
                reason = rejection.reason,
                "the bus takes no events; they are kept and tried again"
            );
        }
        self.pause()
    }

    pub(super) fn database(&mut self, error: &Error) -> Duration {
        telemetry::database_up(false);
        if self.tries == 0 {
            tracing::warn!(
                error = error.report(),
                "the database does not answer; trying again"
            );
        }
        self.pause()
    }

    /// Says once what keeps events from going out.
    pub(super) fn blocked(&mut self, rejection: Option<&Rejection>) {
        if let Some(Rejection { reason, .. }) = rejection
            && self.blocked_by.as_ref() != Some(reason)
        {
            tracing::warn!(
                reason,
                "some events cannot go out; they are kept and tried again"
            );
            self.blocked_by = Some(reason.clone());
        }
    }

    /// The database answers, and the bus where something was published.
    pub(super) fn back(&mut self, published: bool) {
        telemetry::database_up(true);
        if published {
            telemetry::bus_up(true);
        }
        if std::mem::take(&mut self.tries) > 0 {
            tracing::info!("bus and database answer again");
        }
    }

    fn pause(&mut self) -> Duration {
        self.tries += 1;
        let settings = RetrySettings {
            max_delay: AWAY_PAUSE_MAX,
            ..RetrySettings::default()
        };
        retry::delay(self.tries, &settings, rand::random())
    }
}
