//! Log lines of `run`, on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::settings::{self, Settings};
use crate::terminal;

/// Begins to log as the settings say. Where a person waits for the end and its one sentence, only
/// warnings are logged unless the settings ask for more.
pub(crate) fn begin(settings: &Settings, waits_for_the_end: bool) {
    let level = match settings.log_level.as_str() {
        _ if waits_for_the_end && !settings.is_given("log_level") => "warn",
        level => level,
    };
    // A standard error that was closed is no reason to stop, nor to say so on itself.
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(terminal::coloured(io::stderr().is_terminal()))
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(settings::log_filter(level));
    let begun = if settings.log_json {
        registry.with(lines.json().flatten_event(true)).try_init()
    } else {
        registry.with(lines.with_target(false)).try_init()
    };
    debug_assert!(begun.is_ok(), "logging begins once");
}
