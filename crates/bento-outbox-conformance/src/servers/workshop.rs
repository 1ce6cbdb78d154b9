//! The one temporary folder in which all servers of this test process live, and its watchdog.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Pid;

/// Sleeps on a pipe from the test process. The pipe closes however that process ends, even by
/// `kill -9` and although Rust drops no statics; then this ends every server and takes the folder
/// away. (PR_SET_PDEATHSIG will not do: it fires when the *thread* that started the server ends,
/// and every test has a thread of its own.)
const WATCHDOG: &str = r#"
    trap '' HUP INT TERM
    servers() {
        ls -ld /proc/[0-9]*/cwd 2>/dev/null | sed -n "s|.* /proc/\([0-9]*\)/cwd -> $root/.*|\1|p"
    }
    root=$1
    read -r _
    # As `Drop for Inner` does, and for the same reason: ask first, then kill.
    pids=$(servers); [ -n "$pids" ] && kill -QUIT $pids && kill -CONT $pids
    for _ in 1 2 3 4 5 6 7 8 9 10; do [ -n "$(servers)" ] || break; sleep 0.1; done
    pids=$(servers); [ -n "$pids" ] && kill -KILL $pids
    rm -rf "$root"
"#;

struct Workshop {
    root: PathBuf,
    folders: AtomicUsize,
    /// Holds the writing end of the watchdog's pipe.
    _watchdog: Child,
}

/// A new, empty folder; gone when the test process is.
pub(super) fn new_folder(name: &str) -> PathBuf {
    let workshop = workshop();
    let number = workshop.folders.fetch_add(1, Ordering::Relaxed);
    let folder = workshop.root.join(format!("{name}-{number}"));
    fs::create_dir(&folder).unwrap_or_else(|e| panic!("cannot make {}: {e}", folder.display()));
    folder
}

/// The processes whose working directory is `folder` or lies in it.
///
/// This finds what a walk down from the main process would miss: PostgreSQL's processes are each a
/// session of their own, and orphans once the first one is dead. Without `/proc` (not on Linux) it
/// finds none, and the harness knows only the main process.
pub(super) fn processes_in(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let works_in = fs::read_link(process.path().join("cwd")).ok()?;
            works_in.starts_with(folder).then(|| Pid::from_raw(pid))?
        })
        .collect()
}

/// Whether no thread of this process runs any more; without `/proc` that is taken on trust.
pub(super) fn is_stopped(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid()));
    threads.into_iter().flatten().flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:\t"));
        // Stopped, or at its end.
        state.is_none_or(|state| state.starts_with(['T', 'Z', 'X']))
    })
}

fn workshop() -> &'static Workshop {
    static WORKSHOP: OnceLock<Workshop> = OnceLock::new();
    WORKSHOP.get_or_init(|| {
        let root = tempfile::Builder::new()
            .prefix("bento-outbox-")
            // Servers that run as another user must get through to their own folders.
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .and_then(|folder| folder.keep().canonicalize())
            .unwrap_or_else(|e| panic!("cannot make a temporary folder: {e}"));
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "bento-outbox-watchdog"])
            .arg(&root)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run sh, which watches over the servers: {e}"));
        Workshop {
            root,
            folders: AtomicUsize::new(0),
            _watchdog: watchdog,
        }
    })
}
