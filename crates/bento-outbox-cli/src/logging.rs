//! Log lines of `run`, on standard error, and the traces beside them.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

use tracing::Subscriber;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, registry};

use crate::settings::{self, Settings};
use crate::terminal;
use crate::traces::Traces;

/// Begins to log as the settings say. Where a person waits for the end and its one sentence, only
/// warnings are logged unless the settings ask for more.
pub(crate) fn begin(settings: &Settings, waits_for_the_end: bool) {
    begin_with(settings, waits_for_the_end, None);
}

/// As [`begin`], with the traces that the variables of OpenTelemetry ask for. They are to be ended.
pub(crate) fn begin_with_traces(settings: &Settings, waits_for_the_end: bool) -> Traces {
    let traces = Traces::begin();
    begin_with(settings, waits_for_the_end, Some(&traces));
    if let Some(complaint) = &traces.complaint {
        tracing::warn!("{complaint}");
    }
    traces
}

fn begin_with(settings: &Settings, waits_for_the_end: bool, traces: Option<&Traces>) {
    let level = match settings.log_level.as_str() {
        _ if waits_for_the_end && !settings.is_given("log_level") => "warn",
        level => level,
    };
    let is_coloured = terminal::coloured(io::stderr().is_terminal());
    let begun = subscriber(level, settings.log_json, is_coloured, traces).try_init();
    debug_assert!(begun.is_ok(), "logging begins once");
}

/// What collects log lines and spans. What neither of the two wants costs next to nothing.
fn subscriber(
    level: &str,
    is_json: bool,
    is_coloured: bool,
    traces: Option<&Traces>,
) -> impl Subscriber + Send + Sync + use<> {
    // A standard error that was closed is no reason to stop, nor to say so on itself.
    let lines = fmt::layer()
        .with_writer(Lines { is_coloured })
        .with_ansi(is_coloured)
        .log_internal_errors(false);
    let filter = settings::log_filter(level);
    let lines = match is_json {
        true => lines.json().flatten_event(true).with_filter(filter).boxed(),
        false => lines.with_target(false).with_filter(filter).boxed(),
    };
    registry()
        .with(lines)
        .with(traces.map(|traces| traces.layer()))
}

/// Standard error, where a line is one line: what an event, a bus or a database calls itself moves no
/// cursor and begins no line of its own.
#[derive(Clone, Copy)]
struct Lines {
    is_coloured: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Lines {
    /// Gets a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        io::stderr().write_all(one_line(&text, self.is_coloured).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// `text` with control characters, but for the last end of a line and our own colours, as `\u0007`: so
/// they stand in JSON too.
fn one_line(text: &str, is_coloured: bool) -> Cow<'_, str> {
    let (line, end) = match text.strip_suffix('\n') {
        Some(line) => (line, "\n"),
        None => (text, ""),
    };
    let is_harmless =
        |c: char| !c.is_control() && !terminal::reorders(c) || is_coloured && c == '\u{1b}';
    if line.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in line.chars() {
        match is_harmless(c) {
            true => out.push(c),
            false => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(out + end)
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;

    use super::*;

    #[test]
    fn what_nobody_wants_is_not_even_made() {
        // Nobody asks for traces here.
        let nothing = Traces::begin();
        for traces in [None, Some(&nothing)] {
            for is_json in [true, false] {
                let hint = |level| subscriber(level, is_json, false, traces).max_level_hint();
                assert_eq!(hint("info"), Some(LevelFilter::INFO));
                assert_eq!(hint("warn"), Some(LevelFilter::WARN));
                assert_eq!(hint("debug"), Some(LevelFilter::DEBUG));
            }
        }
    }

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(one_line("a b\n", false), "a b\n");
        assert_eq!(
            one_line("a\nb\u{7}\u{9b}\u{202e}\n", false),
            "a\\u000ab\\u0007\\u009b\\u202e\n"
        );
        assert_eq!(one_line("\u{1b}[1m\n", true), "\u{1b}[1m\n");
        assert_eq!(one_line("\u{1b}[1m\n", false), "\\u001b[1m\n");
        let json = one_line("{\"reason\":\"\u{9b}x\"}\n", false).into_owned();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["reason"], "\u{9b}x");
    }
}
