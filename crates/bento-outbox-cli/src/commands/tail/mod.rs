//! `tail`: what is written and published, live.

mod follow;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bento_outbox::Timestamp;
use clap::Args;
use serde_json::Value;

use self::follow::{Change, Follower};
use super::choice::Choice;
use super::column;
use crate::connect;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::stop::Stop;
use crate::terminal::{self, Paint};

/// Follow what is written and published, live
///
/// One line for each event that is written, sent, failed (`retrying`), dead or retried by an operator
/// (`retried`), until Ctrl-C. With --since it begins with what was written since then. The database is
/// asked twice a second; what is deleted as it is sent (retention = 0) may be gone before.
#[derive(Args)]
#[command(after_help = "Examples:
  bento-outbox tail
  bento-outbox tail --type order.placed --tenant acme --since 10m
  bento-outbox tail --json --payload | jq -c 'select(.change == \"dead\")'")]
pub(crate) struct Tail {
    #[command(flatten)]
    choice: Choice,
    /// One JSON object a line: `change` and `seen_at`, and the columns of the view outbox_events
    #[arg(long)]
    json: bool,
    /// With the payloads
    #[arg(long, requires = "json")]
    payload: bool,
}

/// How often the database is asked.
const POLL: Duration = Duration::from_millis(500);

/// How much longer than its answer took a database that is slow is left alone.
const LEFT_ALONE: u32 = 4;

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

impl Tail {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let filter = self.choice.filter()?;
        let stop = Stop::on_signals()?;
        let store = connect::database(&settings).await?.store();
        store.check().await?;
        let mut follower = Follower::new(store, filter, self.payload);
        let (mut away, mut more_was_said) = (false, false);
        loop {
            let begun = Instant::now();
            let changes = tokio::select! {
                changes = follower.changes() => changes,
                () = stop.requested() => return Ok(ExitCode::SUCCESS),
            };
            match changes {
                Ok(changes) => {
                    if std::mem::take(&mut away) {
                        terminal::say("the database answers again");
                    }
                    if follower.left_some_out() && !std::mem::replace(&mut more_was_said, true) {
                        terminal::say("more happens than can be followed: some lines are left out");
                    }
                    if !self.print(&changes)? {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Err(error) if !follower.has_begun() => return Err(error.into()),
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        let why = Failure::from(error);
                        terminal::say(format!("the database does not answer, trying again: {why}"));
                    }
                }
            }
            if follower.is_in_the_past() && !away {
                continue;
            }
            let pause = (begun.elapsed() * LEFT_ALONE).clamp(POLL, PAUSE_MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.requested() => return Ok(ExitCode::SUCCESS),
            }
        }
    }

    /// False when nobody reads any more.
    fn print(&self, changes: &[Change]) -> Result<bool> {
        if changes.is_empty() {
            return Ok(terminal::is_read());
        }
        let (paint, now) = (Paint::stdout(), Timestamp::now());
        let for_a_person = terminal::stdout_is_terminal();
        terminal::printed(|out| {
            changes.iter().try_for_each(|change| {
                let line = match (self.json, for_a_person) {
                    (true, _) => self.json_line(change, now),
                    (false, true) => line(change, now, paint),
                    (false, false) => cells(change, now).join("\t"),
                };
                writeln!(out, "{line}")
            })
        })
    }

    fn json_line(&self, change: &Change, now: Timestamp) -> String {
        let others = [
            ("change", Value::from(change.what)),
            ("seen_at", Value::from(now.to_string())),
        ];
        column::json_line_with(&others, &change.record, self.payload)
    }
}

/// When, what, whose, which type, which aggregate, which event, and why.
fn cells(change: &Change, now: Timestamp) -> [String; 7] {
    let (record, delivery) = (&change.record, &change.record.delivery);
    let when = match change.what {
        "written" => record.created_at,
        "sent" => delivery.sent_at.unwrap_or(now),
        _ => now,
    };
    let reason = terminal::visible(delivery.error_message.as_deref().unwrap_or("-"));
    let why = match (change.what, delivery.retry_at) {
        ("retrying", Some(at)) => format!("until {}: {reason}", terminal::moment(at)),
        ("retrying" | "dead", _) => reason,
        _ => "-".into(),
    };
    [
        terminal::moment(when),
        change.what.into(),
        record.tenant.to_string(),
        record.event_type.clone(),
        column::aggregate(record),
        record.id.to_string(),
        why,
    ]
}

/// The same for a person.
fn line(change: &Change, now: Timestamp, paint: Paint) -> String {
    let [when, what, tenant, event_type, aggregate, id, why] = cells(change, now);
    let what = format!("{what:8}");
    let what = match change.what {
        "sent" => paint.green(&what),
        "dead" => paint.red(&what),
        "written" => what,
        _ => paint.cyan(&what),
    };
    let mut line = format!("{when}  {what}  {tenant}  {event_type}");
    for (text, is_there) in [
        (&aggregate, aggregate != "-"),
        (&id, true),
        (&why, why != "-"),
    ] {
        if is_there {
            line += &format!("  {text}");
        }
    }
    line
}
