//! PgBouncer in a version that knows prepared statements (1.21), where the system packages an older one: Debian's
//! newer package and the libraries it needs, unpacked in the user's cache, and nothing of it installed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{self, Command};

use crate::workspace::{Workspace, cache_folder, find_program};

use super::SBIN;

/// Where it is unpacked; the conformance crate looks for it there first.
const FOLDER: &str = "pgbouncer-trixie";

/// PgBouncer and what it is linked to; `ldd` says the same of it.
const PACKAGES: &[&str] = &[
    "pgbouncer",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libevent-2.1-7t64",
    "libpam0g",
    "libssl3t64",
    "libsystemd0",
];

/// Where packages come from.
const SOURCE: &str = "deb http://deb.debian.org/debian trixie main\n";

/// Starts PgBouncer with the libraries beside it, whatever the system's own are.
const START: &str = "#!/bin/sh\nhere=$(dirname \"$0\")\n\
    libraries=$(dirname \"$(find \"$here\" -name 'ld-linux-*.so.*' -path '*/usr/lib/*-linux-gnu/*')\")\n\
    exec \"$libraries\"/ld-linux-*.so.* --library-path \"$libraries\" \"$here/usr/sbin/pgbouncer\" \"$@\"\n";

/// Sees to it that there is one that the tests can use.
pub(super) fn install(workspace: &mut Workspace) -> Result<(), String> {
    if find_program("pgbouncer", SBIN).is_some_and(|program| knows_prepared_statements(&program)) {
        return Ok(());
    }
    let cache =
        cache_folder().ok_or("neither HOME nor XDG_CACHE_HOME says where servers may be put")?;
    let folder = cache.join("bento-outbox/servers").join(FOLDER);
    if knows_prepared_statements(&folder.join("start")) {
        return Ok(());
    }
    let half = folder.with_extension(process::id().to_string());
    let unpacked = unpack(workspace, &half);
    if unpacked.is_ok() {
        fs::rename(&half, &folder).ok();
    }
    fs::remove_dir_all(&half).ok();
    if knows_prepared_statements(&folder.join("start")) {
        return Ok(());
    }
    Err(format!(
        "the tests need PgBouncer 1.21 or later, which this system does not package{}; install it from \
         https://www.pgbouncer.org/install.html",
        unpacked
            .err()
            .map(|how| format!(" ({how})"))
            .unwrap_or_default()
    ))
}

/// Downloads the packages with lists of their own, so that the system's do not change, and unpacks them.
fn unpack(workspace: &mut Workspace, folder: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder.join("apt/lists/partial")).map_err(failed)?;
    fs::create_dir_all(folder.join("apt/archives/partial")).map_err(failed)?;
    fs::write(folder.join("apt/sources.list"), SOURCE).map_err(failed)?;
    let apt = folder.join("apt");
    let mut options = vec!["-q".to_owned()];
    for (name, value) in [
        (
            "Dir::Etc::sourcelist",
            apt.join("sources.list").display().to_string(),
        ),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::State::lists", apt.join("lists").display().to_string()),
        ("Dir::Cache", apt.display().to_string()),
        ("APT::Sandbox::User", "root".into()),
    ] {
        options.extend(["-o".into(), format!("{name}={value}")]);
    }
    let run = |workspace: &mut Workspace, program: &str, words: &[&str]| {
        let mut command = workspace.command(program);
        command.current_dir(&apt).args(words);
        workspace.run(&mut command)
    };
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    run(workspace, "apt-get", &[&options[..], &["update"]].concat())?;
    run(
        workspace,
        "apt-get",
        &[&options[..], &["download"], PACKAGES].concat(),
    )?;
    for file in fs::read_dir(&apt).map_err(failed)?.flatten() {
        let path = file.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            let (package, into) = (path.display().to_string(), folder.display().to_string());
            run(workspace, "dpkg-deb", &["--extract", &package, &into])?;
        }
    }
    fs::remove_dir_all(&apt).map_err(failed)?;
    let start = folder.join("start");
    fs::write(&start, START).map_err(failed)?;
    fs::set_permissions(&start, Permissions::from_mode(0o755)).map_err(failed)
}

/// Whether a program is a PgBouncer of version 1.21 or later.
fn knows_prepared_statements(program: &Path) -> bool {
    let Ok(output) = Command::new(program).arg("--version").output() else {
        return false;
    };
    is_new_enough(&String::from_utf8_lossy(&output.stdout))
}

/// Whether what PgBouncer says of its version, `PgBouncer 1.24.1`, is 1.21 or later.
fn is_new_enough(says: &str) -> bool {
    let version = says.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = version
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 21)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_it_says() {
        assert!(is_new_enough("PgBouncer 1.24.1\nlibevent 2.1.13-stable\n"));
        assert!(is_new_enough("PgBouncer 1.21.0\n"));
        assert!(is_new_enough("PgBouncer 2.0\n"));
        assert!(!is_new_enough("PgBouncer 1.18.0\n"));
        assert!(!is_new_enough(""));
    }
}
