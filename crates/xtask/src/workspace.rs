//! The workspace, and how a step in it is run: shown, timed, and named when it fails.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The clone that the commands work on, and the steps taken so far.
pub(crate) struct Workspace {
    root: PathBuf,
    target: Option<PathBuf>,
    steps: Vec<(String, Duration)>,
}

impl Workspace {
    /// Finds the clone that this xtask belongs to.
    pub(crate) fn open() -> Result<Self, String> {
        // Asked at run time and not with `env!`: worktrees that share a build folder share this binary.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .ok_or("run this as `cargo x`, not by the name of its binary")?;
        let root = Path::new(&manifest)
            .ancestors()
            .nth(2)
            .ok_or("xtask is not two folders below the root")?;
        Ok(Self {
            root: root.to_owned(),
            target: None,
            steps: Vec::new(),
        })
    }

    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Builds into `folder` from now on.
    pub(crate) fn build_into(&mut self, folder: PathBuf) {
        self.target = Some(folder);
    }

    /// A cargo command in this workspace; words are split at spaces.
    pub(crate) fn cargo(&self, words: &str) -> Command {
        let mut command = self.command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(words.split_whitespace());
        // What cargo said about xtask is not true of what we build now, and some build scripts (ring's)
        // run again whenever these change: `cargo x test` and `cargo test` would rebuild each other's work.
        for (name, _) in env::vars_os() {
            let of_xtask = [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_BIN_",
                "CARGO_CRATE_",
                "CARGO_PRIMARY_",
            ];
            if of_xtask
                .iter()
                .any(|prefix| name.to_string_lossy().starts_with(prefix))
            {
                command.env_remove(name);
            }
        }
        if let Some(target) = &self.target {
            command.env("CARGO_TARGET_DIR", target);
        }
        if in_ci() && env::var_os("CARGO_INCREMENTAL").is_none() {
            command.env("CARGO_INCREMENTAL", "0"); // a fresh clone has no use for it, and it costs time and disk
        }
        command
    }

    /// Any other program, started in the root folder with no standard input.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Runs one command as a step.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<(), String> {
        let line = shown(command);
        self.step(&format!("$ {line}"), || {
            let status = command
                .status()
                .map_err(|error| format!("`{line}` did not start: {error}"))?;
            if status.success() {
                Ok(())
            } else {
                Err(format!("`{line}` failed ({status})"))
            }
        })
    }

    /// Does one piece of work as a step.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        eprintln!("{name}");
        let start = Instant::now();
        let outcome = work();
        let taken = start.elapsed();
        eprintln!(
            "  {} after {:.1} s",
            if outcome.is_ok() { "done" } else { "failed" },
            taken.as_secs_f64()
        );
        self.steps.push((name.to_owned(), taken));
        outcome
    }

    /// Says how long each step took.
    pub(crate) fn report(&self) {
        eprintln!("\n seconds  step");
        for (name, taken) in &self.steps {
            eprintln!("{:8.1}  {name}", taken.as_secs_f64());
        }
        let total: Duration = self.steps.iter().map(|(_, taken)| taken).sum();
        eprintln!("{:8.1}  in all", total.as_secs_f64());
    }
}

/// A command as one would type it, with the variables that it sets. Where and how cargo builds is the same for
/// every step, so that is left out.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let (name, value) = (name.to_string_lossy(), value?.to_string_lossy());
        let quote = if value.contains(' ') { "'" } else { "" };
        (!name.starts_with("CARGO_")).then(|| format!("{name}={quote}{value}{quote}"))
    });
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let words = command
        .get_args()
        .map(|word| word.to_string_lossy().into_owned());
    let line: Vec<String> = variables
        .chain([program.to_string_lossy().into_owned()])
        .chain(words)
        .collect();
    line.join(" ")
}

/// Whether `CI` says that nobody watches.
pub(crate) fn in_ci() -> bool {
    env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

/// Where what is neither source nor wanted twice may be kept, outside of any clone.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))
}

/// Where `program` is, looking through `PATH` and then through `folders`, in which a component may have a `*`.
pub(crate) fn find_program(program: &str, folders: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).collect::<Vec<_>>();
    let elsewhere = folders
        .iter()
        .flat_map(|pattern| expand(Path::new(pattern)));
    on_path
        .into_iter()
        .chain(elsewhere)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let name = component.as_os_str().to_string_lossy();
        found = match name.split_once('*') {
            None => found
                .into_iter()
                .map(|folder| folder.join(component))
                .collect(),
            Some((before, after)) => found
                .iter()
                .flat_map(|folder| matches(folder, before, after))
                .collect(),
        };
    }
    found
}

fn matches(folder: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let entries = folder
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() >= before.len() + after.len()
            && name.starts_with(before)
            && name.ends_with(after)
    };
    entries.filter(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_part_of_one_component() {
        let workspace = Workspace::open().expect("cargo runs this test");
        let crates = workspace.root().join("crates");
        let pattern = crates.join("xt*k/src");
        assert_eq!(expand(&pattern), [crates.join("xtask/src")]);
        assert!(expand(&crates.join("no*such/src")).is_empty());
    }

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("/usr/bin/cargo");
        command
            .args(["doc", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .env("CARGO_TARGET_DIR", "/tmp/target")
            .env_remove("PATH");
        assert_eq!(
            shown(&command),
            "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps"
        );
    }
}
