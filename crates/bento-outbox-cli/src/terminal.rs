//! Standard output is for machines and standard error for people; both may be closed at any time.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::time::Duration;

use bento_outbox::Timestamp;
use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::failure::{Failure, Result};

/// Writes to standard output. A reader that went away (`| head`) has all it wanted: no failure.
///
/// # Errors
/// Standard output takes no more, say because the disk behind it is full.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    printed(write).map(|_| ())
}

/// As [`print`]; false when the reader went away and more would be in vain.
///
/// # Errors
/// As for [`print`].
pub(crate) fn printed(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<bool> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// Whether somebody may still read standard output: false when it is a pipe whose reader went away.
pub(crate) fn is_read() -> bool {
    #[cfg(unix)]
    {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stdout = io::stdout();
        let mut asked = [PollFd::new(&stdout, PollFlags::empty())];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // What is wrong is told without being asked for.
        let gone = PollFlags::ERR | PollFlags::HUP;
        poll(&mut asked, Some(&at_once)).is_err() || !asked[0].revents().intersects(gone)
    }
    #[cfg(not(unix))]
    true
}

/// # Errors
/// Nobody is at a terminal who could be asked; exit code 2.
pub(crate) fn must_have_a_person() -> Result<()> {
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        return Ok(());
    }
    Err(Failure::misuse(
        "nobody is at a terminal who could be asked: give --yes, or --dry-run to see what would happen",
    ))
}

/// Whether the person at the terminal says yes to `question`.
pub(crate) fn agreed(question: &str) -> bool {
    let _ = write!(io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.is_ok() && ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str())
}

/// `text` without what would move a terminal's cursor or split a line.
pub(crate) fn visible(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_control() || reorders(c) => ' ',
            c => c,
        })
        .collect()
}

/// Whether a character reorders what is shown.
pub(crate) fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Says something to the person at standard error, if there still is one.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// `1 event`, `2 events`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Whether standard output is a person's terminal, for which there are tables and colours.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether standard output is a terminal that can be emptied and written anew.
pub(crate) fn can_redraw() -> bool {
    stdout_is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a stream that is a terminal (or not) gets colours: <https://no-color.org>.
pub(crate) fn coloured(is_terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Colours for one stream, or none.
#[derive(Clone, Copy)]
pub(crate) struct Paint {
    on: bool,
}

#[cfg_attr(
    not(feature = "sqlite"),
    expect(dead_code, reason = "most of them are for the demo")
)]
impl Paint {
    pub(crate) fn stdout() -> Self {
        Self {
            on: coloured(io::stdout().is_terminal()),
        }
    }

    pub(crate) fn stderr() -> Self {
        Self {
            on: coloured(io::stderr().is_terminal()),
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(crate) fn green(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.with("36", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.into()
        }
    }
}

/// Columns of a terminal that does not say how many it has.
const WIDTH: u16 = 80;

/// A table for a person: a line under the header, none between rows. The first column is what a row is
/// of, to be copied into the next command, so it stays in one piece.
pub(crate) fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table
        .load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if table.width() == Some(0) {
        table.set_width(WIDTH);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_constraint(ColumnConstraint::ContentWidth);
    }
    table
}

/// A bar on standard error for work whose size is known; it is not there in a pipe.
pub(crate) fn bar(length: u64) -> ProgressBar {
    styled(
        ProgressBar::new(length),
        "{bar:32} {human_pos} of {human_len} events  {rate}  {eta} left",
    )
}

/// `2m 3s`: whole seconds are enough for a person.
pub(crate) fn age(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.max(0.0).floor()).unwrap_or_default();
    humantime::format_duration(whole).to_string()
}

/// A moment for a person: whole seconds are enough.
pub(crate) fn moment(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => text,
    }
}

/// A spinner on standard error for work of unknown size; it is not there in a pipe.
pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let spinner = styled(
        ProgressBar::new_spinner(),
        "{spinner} {human_pos} {msg}  {rate}",
    );
    spinner.set_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// A spinner on standard error for one step after the other; it is not there in a pipe.
pub(crate) fn steps() -> ProgressBar {
    let spinner = styled(ProgressBar::new_spinner(), "{spinner} {msg}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
        let _ = write!(text, "{:.0}/s", state.per_sec());
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}
