//! Where the program runs in a test, and how it ended.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use tempfile::TempDir;

/// Stands wherever a payload or a secret may stand.
pub(crate) const CANARY: &str = "s3cr3t-canary";

/// So long anything may take that happens by itself, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder of its own, in which the program runs.
pub(crate) struct Place(TempDir);

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A place with tables.
    pub(crate) fn migrated() -> Self {
        let place = Self::new();
        place.run(&["migrate"]).succeeded();
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bento-outbox"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OUTBOX_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }

    /// Runs a command that was advised, `bento-outbox …`, as a shell takes it.
    pub(crate) fn pasted(&self, advised: &str) -> Ran {
        let arguments = advised.strip_prefix("bento-outbox ").unwrap();
        let program = self.command(&[]);
        let mut shell = Command::new("sh");
        for (name, _) in program.get_envs() {
            shell.env_remove(name);
        }
        shell
            .args(["-c", &format!("exec \"$0\" {arguments}")])
            .arg(program.get_program())
            .current_dir(self.path())
            .stdin(Stdio::null());
        Ran::of(shell.output().unwrap())
    }

    pub(crate) fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        Ran::of(
            self.command(arguments)
                .envs(variables.iter().copied())
                .output()
                .unwrap(),
        )
    }

    pub(crate) fn append(&self, lines: impl AsRef<[u8]>) -> Ran {
        let mut command = self.command(&["append"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let lines = lines.as_ref().to_vec();
        // The program may stop reading at a bad line.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&lines)));
        let ran = Ran::of(child.wait_with_output().unwrap());
        writer.join().unwrap();
        ran
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "--json"]).succeeded().stdout).unwrap()
    }

    /// How many whole lines a file has, none when it is not there.
    pub(crate) fn lines(&self, file: &str) -> usize {
        self.told(file, "\n")
    }

    /// How often something stands in a file, a log say, by now.
    pub(crate) fn told(&self, file: &str, what: &str) -> usize {
        let text = fs::read_to_string(self.path().join(file));
        text.unwrap_or_default().matches(what).count()
    }

    pub(crate) fn sql(&self, statement: &'static str) {
        self.on_database(async |pool| {
            sqlx::query(statement).execute(&pool).await.unwrap();
        });
    }

    /// The text that a query answers.
    pub(crate) fn text(&self, query: &'static str) -> String {
        self.on_database(async |pool| sqlx::query_scalar(query).fetch_one(&pool).await.unwrap())
    }

    /// Runs `work` while somebody else writes to the database.
    pub(crate) fn locked(&self, work: impl FnOnce()) {
        self.on_database(async |pool| {
            let mut connection = pool.acquire().await.unwrap();
            let begin = sqlx::query("begin immediate");
            begin.execute(&mut *connection).await.unwrap();
            work();
            let end = sqlx::query("rollback");
            end.execute(&mut *connection).await.unwrap();
        });
    }

    fn on_database<T>(&self, work: impl AsyncFnOnce(sqlx::SqlitePool) -> T) -> T {
        let url = format!("sqlite://{}", self.path().join("outbox.db").display());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // A relay may be writing, on a disk that is busy.
        let options = SqliteConnectOptions::from_str(&url).unwrap();
        let options = options.busy_timeout(PATIENCE);
        runtime.block_on(async {
            let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
            let done = work(pool.clone()).await;
            pool.close().await;
            done
        })
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// One sentence on standard error that says `said`, nothing on standard output, no secret.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, said: &str) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(
            self.stderr.starts_with("error: ") && self.stderr.contains(said),
            "no {said:?} in {self:?}"
        );
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert_eq!(self.stdout, "");
        self.without_secrets()
    }

    #[track_caller]
    pub(crate) fn without_secrets(self) -> Self {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(
            !all.contains(CANARY) && !all.contains("panicked"),
            "{self:?}"
        );
        self
    }
}

/// A relay in the background. It ends when this is dropped. It answers at no address unless one is given: the
/// default one is the same for all the tests that run just now.
pub(crate) struct Relay(Option<Child>);

const ANSWERS_NOWHERE: (&str, &str) = ("OUTBOX_ADMIN_ADDR", "off");

impl Relay {
    pub(crate) fn start(place: &Place, arguments: &[&str]) -> Self {
        Self::start_with(place, arguments, &[])
    }

    pub(crate) fn start_with(
        place: &Place,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = place.command(arguments);
        command
            .envs([ANSWERS_NOWHERE])
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    /// One whose log is read while it runs.
    pub(crate) fn logging(
        place: &Place,
        arguments: &[&str],
        variables: &[(&str, &str)],
        log: &Path,
    ) -> Self {
        let mut command = place.command(arguments);
        command
            .envs([ANSWERS_NOWHERE])
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(File::create(log).unwrap());
        Self(Some(command.spawn().unwrap()))
    }

    /// Gives it a signal and waits for its end.
    pub(crate) fn told(mut self, name: &str) -> Ran {
        let child = self.0.take().unwrap();
        signal(&child, name);
        Ran::of(child.wait_with_output().unwrap())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Gives a process a signal.
pub(crate) fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let given = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(given.success());
}

/// Runs the program with a standard output that nobody reads any more.
pub(crate) fn into_closed_pipe(place: &Place, arguments: &[&str]) -> Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = place.command(arguments);
    Ran::of(
        command
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap(),
    )
}

#[track_caller]
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it did not become so");
        std::thread::sleep(Duration::from_millis(20));
    }
}
