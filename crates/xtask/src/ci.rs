//! `cargo x ci`: what `.ci/run` runs on every submission.

use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;
use std::{env, io};

use crate::workspace::{Workspace, cache_folder, in_ci};
use crate::{check, docs, test};

/// Checks, runs the README's test command, builds the docs, and says how long each step took.
pub(crate) fn run(workspace: &mut Workspace) -> Result<(), String> {
    let _held = warm_build_folder(workspace)?;
    // `test::run` is the README's `cargo x test`; tidy sees to it that the README names it.
    let outcome = lock_file_is_committed(workspace)
        .and_then(|()| check::run(workspace))
        .and_then(|()| test::run(workspace, &[]))
        .and_then(|()| docs::run(workspace));
    workspace.report();
    outcome
}

/// By now cargo has brought `Cargo.lock` up to date; a clone in which that changed it was committed with an old one.
fn lock_file_is_committed(workspace: &mut Workspace) -> Result<(), String> {
    if !in_ci() {
        return Ok(());
    }
    let mut command = workspace.command("git");
    workspace.run(command.args(["diff", "--exit-code", "--stat", "--", "Cargo.lock"]))
}

/// In CI, builds into a folder outside the fresh clone, so that the second run finds the dependencies built.
///
/// Cargo sees by hash whether a dependency from a registry is still right, but it judges our own files by their
/// time alone and does not see that another clone built them. So this clone's files are made newer than anything
/// in the folder, and the folder is held until the run ends.
fn warm_build_folder(workspace: &mut Workspace) -> Result<Option<File>, String> {
    if !in_ci() || env::var_os("CARGO_TARGET_DIR").is_some() {
        return Ok(None);
    }
    let Some(cache) = cache_folder() else {
        return Ok(None);
    };
    let folder = cache.join("bento-outbox");
    let named = |error: io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(named)?;
    let lock = File::create(folder.join("ci.lock")).map_err(named)?;
    lock.lock().map_err(named)?;
    touch_sources(workspace.root()).map_err(|error| format!("touching the sources: {error}"))?;
    eprintln!("building into {}", folder.join("target").display());
    workspace.build_into(folder.join("target"));
    Ok(Some(lock))
}

fn touch_sources(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in folder.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        if name == "target" || name == ".git" {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            touch_sources(&entry.path())?;
        } else if kind.is_file() {
            File::options()
                .append(true)
                .open(entry.path())?
                .set_modified(now)?;
        }
    }
    Ok(())
}
