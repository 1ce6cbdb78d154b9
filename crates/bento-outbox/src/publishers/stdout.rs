//! Standard output as a bus.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::lines::Lines;
use crate::cloud_event::CloudEvents;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};

/// `stdout:`, one structured CloudEvent a line.
///
/// Acknowledged is what was written and flushed. Whether the reader at the other end keeps it, only
/// the reader knows.
pub struct StdoutPublisher {
    events: CloudEvents,
    output: Arc<Mutex<Output>>,
}

struct Output {
    writer: Box<dyn Write + Send>,
    /// A failed write may have ended in the middle of a line.
    torn: bool,
    closed: bool,
}

impl StdoutPublisher {
    /// Writes to standard output.
    pub fn new(events: CloudEvents) -> Self {
        Self::to(io::stdout(), events)
    }

    /// Writes to `writer` in place of standard output.
    pub fn to(writer: impl Write + Send + 'static, events: CloudEvents) -> Self {
        let output = Output {
            writer: Box::new(writer),
            torn: false,
            closed: false,
        };
        Self {
            events,
            output: Arc::new(Mutex::new(output)),
        }
    }
}

#[async_trait]
impl Publisher for StdoutPublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let Lines { text, answers } = Lines::of(batch, &self.events);
        let output = Arc::clone(&self.output);
        let write = move || {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.write(&text)
        };
        let outcome = tokio::task::spawn_blocking(write)
            .await
            .unwrap_or_else(|error| Outcome::unknown(format!("writing ended early: {error}")));
        answers.with(&outcome)
    }

    async fn check(&self) -> Result<(), Rejection> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if output.closed { Err(closed()) } else { Ok(()) }
    }
}

impl Output {
    fn write(&mut self, text: &[u8]) -> Outcome {
        let written = self.try_write(text);
        self.torn = written.is_err();
        match written {
            Ok(()) => Outcome::Acked,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                closed().into()
            }
            // A part may have got out, but none of it counts: all of it is written again.
            Err(error) => {
                let reason = format!("cannot write to standard output: {error}");
                Outcome::rejected(RejectionClass::Unreachable, reason)
            }
        }
    }

    fn try_write(&mut self, text: &[u8]) -> io::Result<()> {
        if self.torn {
            self.writer.write_all(b"\n")?;
        }
        self.writer.write_all(text)?;
        self.writer.flush()
    }
}

fn closed() -> Rejection {
    Rejection::new(RejectionClass::Config, "standard output was closed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Payload};
    use crate::timestamp::Timestamp;

    /// Takes so many bytes, then fails once, then takes the rest.
    struct Full {
        bytes: Arc<Mutex<Vec<u8>>>,
        room: usize,
        error: io::ErrorKind,
    }

    impl Write for Full {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                self.room = usize::MAX;
                return Err(self.error.into());
            }
            let taken = text.len().min(self.room);
            self.room -= taken;
            self.bytes.lock().unwrap().extend(&text[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bus(error: io::ErrorKind) -> (StdoutPublisher, Arc<Mutex<Vec<u8>>>) {
        let bytes = Arc::default();
        let full = Full {
            bytes: Arc::clone(&bytes),
            room: 10,
            error,
        };
        (StdoutPublisher::to(full, CloudEvents::default()), bytes)
    }

    fn batch() -> [OutboxRecord; 1] {
        let event = Event::new("a", Payload::json("1").unwrap());
        [OutboxRecord::of(
            &event,
            &Default::default(),
            1,
            Timestamp::now(),
        )]
    }

    #[tokio::test]
    async fn a_line_after_a_torn_one_stands_alone() {
        let (bus, bytes) = bus(io::ErrorKind::StorageFull);
        let outcome = bus.publish(&batch()).await.remove(0);
        let Outcome::Rejected(Rejection { class, reason }) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(class, RejectionClass::Unreachable);
        assert!(reason.contains("no storage space"), "{reason}");
        bus.check().await.unwrap();
        assert_eq!(bus.publish(&batch()).await, [Outcome::Acked]);
        let text = String::from_utf8(bytes.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("{\"specvers\n{\"specversion"), "{text}");
    }

    #[tokio::test]
    async fn a_closed_pipe_is_said_to_be_closed() {
        let (bus, _) = bus(io::ErrorKind::BrokenPipe);
        assert_eq!(bus.publish(&batch()).await, [closed().into()]);
        assert_eq!(bus.check().await, Err(closed()));
    }
}
