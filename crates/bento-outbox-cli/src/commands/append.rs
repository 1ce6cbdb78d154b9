//! `append`: events from JSON lines, in one transaction.

use std::collections::HashSet;
use std::io::{self, BufRead, IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use bento_outbox::{Appended, ErrorKind, Event, Outbox, TransactionalStore};
use clap::Args;
use uuid::Uuid;

use crate::connect::{self, with_store};
use crate::event_line;
use crate::failure::{Failure, Result};
use crate::settings::Settings;
use crate::terminal;

/// Write events from JSON lines on standard input, in one transaction
///
/// A line is an object of the table's columns: type and one of payload (any JSON value, kept byte for
/// byte) or data (base64), and optionally id, tenant_id, aggregate_type, aggregate_id, schema_id,
/// schema_ver, content_type, key_id, headers, occurred_at, created_at, available_at (times in RFC 3339).
/// All lines are written or none. The ids are printed after the commit, one a line; events whose id
/// is already there are skipped and reported.
#[derive(Args)]
#[command(after_help = r#"Examples:
  echo '{"type":"order.placed","aggregate_id":"7","payload":{"total":42}}' |
    bento-outbox append
  zcat events.jsonl.gz | bento-outbox append > ids.txt"#)]
pub(crate) struct Append {}

/// Events in one statement.
const CHUNK_EVENTS_MAX: usize = 1_000;

/// What is read for one statement; a longer line than that goes alone.
const CHUNK_BYTES_MAX: usize = 8 << 20;

/// The longest line: a payload of 16 MiB in base64, and room for the rest.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Others are told of new events in a task of its own, a few milliseconds later: the process should
/// not be gone by then.
const HINT_IS_TOLD: Duration = Duration::from_millis(30);

/// How many duplicates are named.
const DUPLICATES_NAMED_MAX: usize = 10;

impl Append {
    pub(crate) async fn run(self, settings: Settings) -> Result<ExitCode> {
        settings.refuse_unsupported()?;
        let database = connect::database(&settings).await?;
        database.store().check().await?;
        if io::stdin().is_terminal() {
            terminal::say("reading JSON lines from standard input; end with Ctrl-D");
        }
        let lines = Lines::new(io::stdin().lock());
        let written: Result<Written> =
            with_store!(database, store => write_all(store, lines).await);
        let written = written?;
        terminal::print(|out| written.ids.iter().try_for_each(|id| writeln!(out, "{id}")))
            .map_err(|failure| {
                let count = terminal::counted(written.ids.len() as u64, "event");
                failure.about(format!("{count} written, but the ids could not be shown"))
            })?;
        written.report();
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes every event of `lines` or none.
async fn write_all<S: TransactionalStore, R: BufRead>(
    store: S,
    mut lines: Lines<R>,
) -> Result<Written> {
    let outbox = Outbox::new(store.clone());
    let mut written = Written::default();
    let progress = terminal::spinner("events read");
    // Read before the transaction begins: whoever types should not keep other writers waiting.
    let mut chunk = lines.next_chunk()?;
    let mut transaction = store.begin(None).await?;
    while let (Some(&(first, _)), Some(&(last, _))) = (chunk.lines.first(), chunk.lines.last()) {
        let appended = outbox
            .append(S::connection(&mut transaction), chunk.events)
            .await
            .map_err(|error| {
                Failure::from(error)
                    .about(format!("{}, nothing is written", lines_named(first, last)))
            })?;
        written.add(&chunk.lines, appended);
        progress.set_position(written.events());
        chunk = lines.next_chunk()?;
    }
    progress.finish_and_clear();
    let appended = Appended {
        ids: written.ids.clone(),
        ..Appended::default()
    };
    store.commit(transaction, &appended).await.map_err(|error| match error.kind() {
        ErrorKind::CommitUnknown => Failure::from(error).about(
            "the events may be written or not; giving the same lines again is safe where each has an id of its own",
        ),
        _ => Failure::from(error).about("nothing is written"),
    })?;
    store.give_hint();
    tokio::time::sleep(HINT_IS_TOLD).await;
    Ok(written)
}

/// What was written, and what was there already.
#[derive(Default)]
struct Written {
    ids: Vec<Uuid>,
    /// The first few duplicates with their lines.
    duplicates: Vec<(u64, Uuid)>,
    duplicate_count: u64,
}

impl Written {
    fn add(&mut self, lines: &[(u64, Uuid)], appended: Appended) {
        // Of two events with one id the first was written, unless the id was there before.
        let mut fresh: HashSet<Uuid> = appended.ids.iter().copied().collect();
        for duplicate in lines.iter().filter(|(_, id)| !fresh.remove(id)) {
            self.duplicate_count += 1;
            if self.duplicates.len() < DUPLICATES_NAMED_MAX {
                self.duplicates.push(*duplicate);
            }
        }
        self.ids.extend(appended.ids);
    }

    fn events(&self) -> u64 {
        self.ids.len() as u64 + self.duplicate_count
    }

    /// Says how it went to the person at standard error.
    fn report(&self) {
        terminal::say(format!(
            "{} written",
            terminal::counted(self.ids.len() as u64, "event")
        ));
        if self.duplicate_count == 0 {
            return;
        }
        terminal::say(format!(
            "{} skipped, because the id was there already:",
            terminal::counted(self.duplicate_count, "event")
        ));
        for (line, id) in &self.duplicates {
            terminal::say(format!("  line {line}: {id}"));
        }
        let more = self.duplicate_count - self.duplicates.len() as u64;
        if more > 0 {
            terminal::say(format!("  and {more} more"));
        }
    }
}

fn lines_named(first: u64, last: u64) -> String {
    if first == last {
        format!("line {first}")
    } else {
        format!("lines {first} to {last}")
    }
}

/// What goes into one statement.
#[derive(Default)]
struct Chunk {
    events: Vec<Event>,
    /// The number of each event's line, with the event's id.
    lines: Vec<(u64, Uuid)>,
}

/// The events on standard input, each with the number of its line.
struct Lines<R> {
    input: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            number: 0,
            line: Vec::new(),
        }
    }

    /// The next events, as many as go into one statement; none at the end.
    fn next_chunk(&mut self) -> Result<Chunk> {
        let (mut chunk, mut bytes) = (Chunk::default(), 0);
        while chunk.events.len() < CHUNK_EVENTS_MAX
            && bytes < CHUNK_BYTES_MAX
            && self.next_line()?
        {
            bytes += self.line.len();
            let line = self
                .line
                .strip_prefix(b"\xef\xbb\xbf")
                .filter(|_| self.number == 1)
                .unwrap_or(&self.line);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let event = event_line::parse(line).map_err(|complaint| self.refuse(&complaint))?;
            chunk.lines.push((self.number, event.id));
            chunk.events.push(event);
        }
        Ok(chunk)
    }

    /// Reads a line into memory, and no more than a line may have.
    fn next_line(&mut self) -> Result<bool> {
        self.line.clear();
        self.number += 1;
        let mut limited = self.input.by_ref().take(LINE_BYTES_MAX as u64 + 1);
        let read = limited.read_until(b'\n', &mut self.line).map_err(|error| {
            Failure::failed(format!(
                "cannot read standard input: {error}; nothing is written"
            ))
        })?;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        if self.line.len() > LINE_BYTES_MAX {
            return Err(self.refuse("it is over 32 MiB"));
        }
        Ok(read > 0)
    }

    fn refuse(&self, complaint: &str) -> Failure {
        Failure::failed(format!(
            "line {}: {complaint}; nothing is written",
            self.number
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(input: &str) -> Result<Vec<Vec<u64>>> {
        let mut lines = Lines::new(input.as_bytes());
        let mut chunks = Vec::new();
        loop {
            let chunk: Vec<u64> = lines
                .next_chunk()?
                .lines
                .iter()
                .map(|(line, _)| *line)
                .collect();
            if chunk.is_empty() {
                return Ok(chunks);
            }
            chunks.push(chunk);
        }
    }

    #[test]
    fn blank_lines_count_and_say_nothing() {
        let event = r#"{"type":"a","payload":1}"#;
        let input = format!("\u{feff}{event}\r\n\n   \n{event}");
        assert_eq!(chunks(&input).unwrap(), [[1, 4]]);
        assert!(chunks("").unwrap().is_empty());
        let many = format!("{event}\n").repeat(CHUNK_EVENTS_MAX + 1);
        assert_eq!(chunks(&many).unwrap()[1], [CHUNK_EVENTS_MAX as u64 + 1]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let said = chunks("\n{\"type\":\"a\"}\n").unwrap_err();
        assert_eq!(
            said.to_string(),
            "line 2: it has neither payload nor data; nothing is written"
        );
        let long = format!("\"{}\"", "x".repeat(LINE_BYTES_MAX));
        assert!(
            chunks(&long)
                .unwrap_err()
                .to_string()
                .starts_with("line 1: it is over 32 MiB")
        );
    }

    #[test]
    fn of_two_events_with_one_id_the_second_is_the_duplicate() {
        let id = Uuid::now_v7();
        let lines = [(3, id), (5, id)];
        let mut written = Written::default();
        written.add(
            &lines,
            Appended {
                ids: vec![id],
                duplicates: vec![id],
                ..Appended::default()
            },
        );
        assert_eq!(written.duplicates, [(5, id)]);
        written.add(
            &lines,
            Appended {
                ids: vec![],
                duplicates: vec![id, id],
                ..Appended::default()
            },
        );
        assert_eq!((written.duplicate_count, written.events()), (3, 4));
    }
}
