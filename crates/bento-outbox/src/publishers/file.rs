//! A file as a bus.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::lines::Lines;
use crate::cloud_event::CloudEvents;
use crate::publisher::Publisher;
use crate::record::{OutboxRecord, Outcome, Rejection, RejectionClass};

/// `file:PATH`, one structured CloudEvent a line, appended.
///
/// Acknowledged is what the disk has: each batch is synced before any of it counts. No line is ever
/// left torn: a write that fails is cut off again, one that a crash cut short is cut off when the
/// file is opened the next time. The file is locked, so that two relays cannot mix their lines;
/// readers are not hindered. When it is renamed or removed (log rotation), the next batch begins a
/// new one.
pub struct FilePublisher {
    path: Arc<Path>,
    events: CloudEvents,
    /// The open file; none before the first use and after a failure.
    file: Arc<Mutex<Option<File>>>,
}

impl FilePublisher {
    /// Appends to the file at `path`, which is opened, or made, at the first use.
    pub fn new(path: impl Into<PathBuf>, events: CloudEvents) -> Self {
        Self {
            path: path.into().into(),
            events,
            file: Arc::default(),
        }
    }

    /// Runs `work` on the open file where it may block.
    async fn with_file(
        &self,
        work: impl FnOnce(&File, &Path) -> Result<(), Outcome> + Send + 'static,
    ) -> Result<(), Outcome> {
        let (slot, path) = (Arc::clone(&self.file), Arc::clone(&self.path));
        let blocking = move || {
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            // Taken out: after a failure the file is opened, and looked at, anew.
            let file = match slot.take() {
                Some(file) if is_at(&file, &path) => file,
                _ => open(&path)?,
            };
            work(&file, &path)?;
            *slot = Some(file);
            Ok(())
        };
        tokio::task::spawn_blocking(blocking)
            .await
            .unwrap_or_else(|error| Err(Outcome::unknown(format!("writing ended early: {error}"))))
    }
}

#[async_trait]
impl Publisher for FilePublisher {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let Lines { text, answers } = Lines::of(batch, &self.events);
        let appended = self
            .with_file(move |file, path| append(file, path, &text))
            .await;
        answers.with(&appended.map_or_else(|outcome| outcome, |()| Outcome::Acked))
    }

    async fn check(&self) -> Result<(), Rejection> {
        match self.with_file(|_, _| Ok(())).await {
            Err(Outcome::Rejected(rejection)) => Err(rejection),
            Err(Outcome::Unknown { reason }) => {
                Err(Rejection::new(RejectionClass::Unreachable, reason))
            }
            Err(Outcome::Acked) | Ok(()) => Ok(()),
        }
    }
}

/// Appends `text` and syncs it; on a failure leaves the file as it was.
fn append(mut file: &File, path: &Path, text: &[u8]) -> Result<(), Outcome> {
    let before = file
        .metadata()
        .map_err(|error| rejected("reading", path, &error))?
        .len();
    let Err(error) = file.write_all(text).and_then(|()| file.sync_data()) else {
        return Ok(());
    };
    match file.set_len(before).and_then(|()| file.sync_data()) {
        Ok(()) => Err(rejected("writing to", path, &error)),
        Err(_) => Err(Outcome::unknown(format!(
            "writing to {} failed and so did undoing it: {error}",
            path.display()
        ))),
    }
}

/// Opens the file for appending by this process alone, with a whole line at its end.
fn open(path: &Path) -> Result<File, Outcome> {
    let config = |what: &str| {
        let reason = format!("{} {what}", path.display());
        Outcome::rejected(RejectionClass::Config, reason)
    };
    let opened = open_or_create(path);
    let file = opened.map_err(|error| rejected("opening", path, &error))?;
    let metadata = file.metadata();
    if !metadata.is_ok_and(|metadata| metadata.is_file()) {
        return Err(config("is not a file"));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(config("is locked: another relay writes to it"));
        }
        Err(TryLockError::Error(error)) => return Err(rejected("locking", path, &error)),
    }
    match mend(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(config(
            "does not end in a newline and was not written by bento-outbox: give another path",
        )),
        Err(error) => Err(rejected("reading", path, &error)),
    }
}

fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true);
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        opened => return opened,
    }
    let file = options.create(true).open(path)?;
    if cfg!(unix) {
        // Else the file could be gone after a power failure, with all that was synced into it.
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(file)
}

/// What each of our lines begins with.
const BEGINNING: &[u8] = b"{\"specversion\":\"1.0\",";

/// Ends the last line of the file, or cuts it off if it is one of ours that a crash tore: it never
/// counted as sent. False if it is somebody else's.
fn mend(mut file: &File) -> io::Result<bool> {
    let (end, tail) = last_line(file)?;
    if tail.is_empty() {
        return Ok(true);
    }
    if !tail.starts_with(BEGINNING) && !BEGINNING.starts_with(&tail) {
        return Ok(false);
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(&tail).is_ok() {
        file.write_all(b"\n")?;
    } else {
        file.set_len(end)?;
    }
    file.sync_data()?;
    Ok(true)
}

/// Where the last newline ends, and what stands after it; of a long tail only the last part.
fn last_line(mut file: &File) -> io::Result<(u64, Vec<u8>)> {
    /// More than the longest line of ours: 16 MiB of payload in base64.
    const TAIL_BYTES_MAX: u64 = 32 << 20;
    let len = file.metadata()?.len();
    let mut tail = Vec::new();
    let mut window = 4_096;
    loop {
        let start = len.saturating_sub(window);
        file.seek(SeekFrom::Start(start))?;
        tail.clear();
        file.take(len - start).read_to_end(&mut tail)?;
        if let Some(newline) = tail.iter().rposition(|byte| *byte == b'\n') {
            let line = tail.split_off(newline + 1);
            return Ok((start + tail.len() as u64, line));
        }
        if start == 0 || window >= TAIL_BYTES_MAX {
            return Ok((start, tail));
        }
        window *= 8;
    }
}

/// Whether the path still leads to the open file.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        file.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
    }
    #[cfg(not(unix))]
    {
        // Other systems do not let an open file be renamed or removed.
        let _ = file;
        fs::exists(path).unwrap_or(false)
    }
}

fn rejected(doing: &str, path: &Path, error: &io::Error) -> Outcome {
    let class = match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::InvalidFilename => RejectionClass::Config,
        _ => RejectionClass::Unreachable,
    };
    Outcome::rejected(class, format!("{doing} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Payload};
    use crate::timestamp::Timestamp;

    fn batch() -> [OutboxRecord; 1] {
        let event = Event::new("a", Payload::json("1").unwrap());
        [OutboxRecord::of(
            &event,
            &Default::default(),
            1,
            Timestamp::now(),
        )]
    }

    fn bus(path: impl Into<PathBuf>) -> FilePublisher {
        FilePublisher::new(path, CloudEvents::default())
    }

    async fn refusal(path: impl Into<PathBuf>) -> String {
        let path = path.into();
        let rejection = bus(&path).check().await.unwrap_err();
        assert_eq!(rejection.class, RejectionClass::Config);
        assert!(
            rejection.reason.contains(path.to_str().unwrap()),
            "{rejection}"
        );
        assert_eq!(
            bus(path).publish(&batch()).await,
            [rejection.clone().into()]
        );
        rejection.reason
    }

    #[tokio::test]
    async fn a_torn_line_of_ours_is_cut_off_and_a_whole_one_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let long = format!(
            "{{\"specversion\":\"1.0\",\"data\":\"{}",
            "x".repeat(100_000)
        );
        for (tail, kept) in [
            ("{\"spec", ""),
            ("{\"specversion\":\"1.0\",\"id\":\"1", ""),
            (long.as_str(), ""),
            (
                "{\"specversion\":\"1.0\",\"id\":\"1\"}",
                "{\"specversion\":\"1.0\",\"id\":\"1\"}\n",
            ),
        ] {
            for before in ["", "{}\n"] {
                fs::write(&path, format!("{before}{tail}")).unwrap();
                assert_eq!(bus(&path).publish(&batch()).await, [Outcome::Acked]);
                let text = fs::read_to_string(&path).unwrap();
                let rest = text.strip_prefix(&format!("{before}{kept}")).unwrap();
                assert!(rest.starts_with("{\"specversion") && rest.ends_with("}\n"));
                assert_eq!(rest.lines().count(), 1);
            }
        }
    }

    #[tokio::test]
    async fn a_file_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        for text in ["notes", "{}\nnotes", "{\"specversion\":\"1.0\",}\nx"] {
            fs::write(&path, text).unwrap();
            assert!(refusal(&path).await.contains("newline"));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        refusal(folder.path().join("missing/events")).await;
        refusal(folder.path()).await;
        assert!(refusal("/dev/null").await.contains("is not a file"));
    }

    #[tokio::test]
    async fn a_second_relay_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let first = bus(&path);
        first.check().await.unwrap();
        assert!(refusal(&path).await.contains("another relay"));
        drop(first);
        bus(&path).check().await.unwrap();
    }

    #[tokio::test]
    async fn after_rotation_a_new_file_is_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let bus = bus(&path);
        bus.publish(&batch()).await;
        fs::rename(&path, folder.path().join("events.1")).unwrap();
        assert_eq!(bus.publish(&batch()).await, [Outcome::Acked]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_full_disk_leaves_no_torn_line() {
        // The limit on a file's size stands in for the full disk: it too cuts a write short. It is
        // the whole process's, so the test runs itself in one of its own.
        const CHILD: &str = "BENTO_OUTBOX_TEST_FILE";
        const NAME: &str = "publishers::file::tests::a_full_disk_leaves_no_torn_line";
        if let Some(path) = std::env::var_os(CHILD) {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            return runtime.unwrap().block_on(fill(path.into()));
        }
        let folder = tempfile::tempdir().unwrap();
        let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact \"$1\"";
        let child = std::process::Command::new("sh")
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap())
            .arg(NAME)
            .env(CHILD, folder.path().join("events"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    async fn fill(path: PathBuf) {
        let bus = bus(&path);
        assert_eq!(bus.publish(&batch()).await, [Outcome::Acked]);
        let before = fs::read_to_string(&path).unwrap();
        let [mut large] = batch();
        large.payload = format!("\"{}\"", "x".repeat(20_000)).into();
        let outcome = bus.publish(&[large]).await.remove(0);
        let Outcome::Rejected(rejection) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(rejection.class, RejectionClass::Unreachable);
        assert!(rejection.reason.contains("too large"), "{rejection}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert_eq!(bus.publish(&batch()).await, [Outcome::Acked]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_write_that_cannot_be_undone_is_unknown() {
        // What is written to /dev/full fails as on a full disk, and it has no length to cut.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let outcome = append(&full, Path::new("/dev/full"), b"x").unwrap_err();
        let Outcome::Unknown { reason } = outcome else {
            panic!("{outcome:?}");
        };
        assert!(reason.contains("No space left"), "{reason}");
    }
}
