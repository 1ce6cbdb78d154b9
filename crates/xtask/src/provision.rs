//! The programs that the tests need: found, installed where we may, asked for by name where we may not.
//!
//! The tests start the servers themselves, as child processes on free ports. Nothing is started here.

mod pooler;
mod wheels;

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process;

use crate::workspace::{Workspace, find_program};

/// Something to be installed, and how to tell that it is.
struct Need {
    name: &'static str,
    /// All of these must be found.
    programs: &'static [&'static str],
    /// Where they may be beside `PATH`; a component may have a `*`.
    folders: &'static [&'static str],
    /// The packages that have them; none where the system has no such package.
    apt: &'static [&'static str],
    dnf: &'static [&'static str],
    brew: &'static [&'static str],
    /// Where a person finds it otherwise.
    home: &'static str,
}

/// Not on everybody's `PATH`, though daemons live there.
const SBIN: &[&str] = &["/usr/sbin", "/usr/local/sbin"];

/// A server more is a row more.
const NEEDS: &[Need] = &[
    Need {
        name: "a C compiler (for SQLite)",
        programs: &["cc"],
        folders: &[],
        apt: &["gcc", "libc6-dev"],
        dnf: &["gcc"],
        brew: &[],
        home: "xcode-select --install",
    },
    Need {
        name: "OpenSSL and make (for Kafka's client)",
        programs: &["ssl.h", "make"],
        folders: &[
            "/usr/include/openssl",
            "/opt/homebrew/opt/openssl@*/include/openssl",
            "/usr/local/opt/openssl@*/include/openssl",
        ],
        apt: &["libssl-dev", "make", "pkg-config"],
        dnf: &["openssl-devel", "make", "pkgconf"],
        brew: &["openssl@3"],
        home: "https://www.openssl.org/source/",
    },
    Need {
        name: "pip (for Tansu)",
        programs: &["python3", "pip3"],
        folders: &[],
        apt: &["python3-pip"],
        dnf: &["python3-pip"],
        brew: &["python"],
        home: "https://pip.pypa.io/en/stable/installation/",
    },
    Need {
        name: "Prometheus (for the alert rules and the metrics)",
        programs: &["promtool", "prometheus"],
        folders: &[],
        apt: &["prometheus"],
        dnf: &["golang-github-prometheus"],
        brew: &["prometheus"],
        home: "https://prometheus.io/download/",
    },
    #[cfg(target_os = "linux")]
    Need {
        name: "systemd-analyze (for the unit of systemd)",
        programs: &["systemd-analyze"],
        folders: &[],
        apt: &["systemd"],
        dnf: &["systemd"],
        brew: &[],
        home: "https://systemd.io",
    },
    Need {
        name: "PostgreSQL",
        programs: &["initdb", "postgres"],
        folders: &[
            "/usr/lib/postgresql/*/bin",
            "/opt/homebrew/opt/postgresql@*/bin",
            "/usr/local/opt/postgresql@*/bin",
        ],
        apt: &["postgresql"],
        dnf: &["postgresql-server"],
        brew: &["postgresql@17"],
        home: "https://www.postgresql.org/download/",
    },
    Need {
        name: "PgBouncer",
        programs: &["pgbouncer"],
        folders: SBIN,
        apt: &["pgbouncer"],
        dnf: &["pgbouncer"],
        brew: &["pgbouncer"],
        home: "https://www.pgbouncer.org/install.html",
    },
    Need {
        name: "MariaDB",
        programs: &["mariadbd", "mariadb-install-db"],
        folders: &[
            "/usr/sbin",
            "/usr/local/sbin",
            "/usr/libexec",
            "/opt/homebrew/opt/mariadb/bin",
            "/usr/local/opt/mariadb/bin",
        ],
        apt: &["mariadb-server"],
        dnf: &["mariadb-server"],
        brew: &["mariadb"],
        home: "https://mariadb.org/download/",
    },
    Need {
        name: "NATS server",
        programs: &["nats-server"],
        folders: SBIN,
        apt: &["nats-server"],
        dnf: &[],
        brew: &["nats-server"],
        home: "https://docs.nats.io/running-a-nats-service/introduction/installation",
    },
    Need {
        name: "Python (for the receiver of webhooks)",
        programs: &["python3"],
        folders: &[],
        apt: &["python3"],
        dnf: &["python3"],
        brew: &["python"],
        home: "https://www.python.org/downloads/",
    },
    Need {
        name: "RabbitMQ",
        programs: &["rabbitmq-server", "rabbitmqctl", "epmd"],
        folders: SBIN,
        apt: &["rabbitmq-server"],
        dnf: &["rabbitmq-server"],
        brew: &["rabbitmq"],
        home: "https://www.rabbitmq.com/docs/download",
    },
    Need {
        name: "Redis",
        programs: &["redis-server"],
        folders: SBIN,
        apt: &["redis-server"],
        dnf: &["redis"],
        brew: &["redis"],
        home: "https://redis.io/docs/latest/operate/oss_and_stack/install/",
    },
    Need {
        name: "Chromium and its driver (for the dashboard)",
        programs: &["chromium", "chromedriver"],
        folders: &[],
        apt: &["chromium", "chromium-driver"],
        dnf: &["chromium", "chromedriver"],
        brew: &["chromedriver"],
        home: "https://www.chromium.org/getting-involved/download-chromium/",
    },
];

impl Need {
    fn is_met(&self) -> bool {
        self.programs
            .iter()
            .all(|program| find_program(program, self.folders).is_some())
    }
}

/// Sees to it that every server the tests start is on this machine.
pub(crate) fn servers(workspace: &mut Workspace) -> Result<(), String> {
    packages(workspace)?;
    pooler::install(workspace)?;
    wheels::install(workspace)
}

/// The part of it that the system packages.
fn packages(workspace: &mut Workspace) -> Result<(), String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let system = System::here();
    if system != System::Apt || !is_root() {
        return Err(how_to_install(&missing, system, is_root()));
    }
    install(workspace, &missing)?;
    match self::missing()[..] {
        [] => Ok(()),
        [need, ..] => Err(format!(
            "{} is installed, but `{}` is not to be found",
            need.name,
            need.programs.join("`, `")
        )),
    }
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !need.is_met()).collect()
}

fn install(workspace: &mut Workspace, missing: &[&Need]) -> Result<(), String> {
    let _quiet = Quiet::begin()
        .map_err(|error| format!("cannot tell the packages not to start servers: {error}"))?;
    let apt = |words: &[&str]| {
        let mut command = workspace.command("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-o", "DPkg::Lock::Timeout=300"])
            .args(words);
        command
    };
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.apt).copied().collect();
    let (mut update, mut install) = (
        apt(&["update"]),
        apt(&[&["install", "-y", "--no-install-recommends"], &packages[..]].concat()),
    );
    workspace.run(&mut update)?;
    workspace.run(&mut install)
}

/// The system's package manager.
#[derive(Clone, Copy, Debug, PartialEq)]
enum System {
    Apt,
    Dnf,
    Brew,
    Other,
}

impl System {
    fn here() -> Self {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if is_debian(&release) && find_program("apt-get", &[]).is_some() {
            System::Apt
        } else if find_program("dnf", &[]).is_some() {
            System::Dnf
        } else if find_program("brew", &[]).is_some() {
            System::Brew
        } else {
            System::Other
        }
    }
}

/// Whether an `/etc/os-release` is Debian's, Ubuntu's or one of their kin.
fn is_debian(release: &str) -> bool {
    let ids = release.lines().filter_map(|line| {
        line.strip_prefix("ID=")
            .or_else(|| line.strip_prefix("ID_LIKE="))
    });
    ids.flat_map(|ids| ids.trim_matches('"').split_whitespace())
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn how_to_install(missing: &[&Need], system: System, root: bool) -> String {
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    let mut text = format!("the tests need {}; install with:", names.join(", "));
    let (installer, packages): (&str, fn(&Need) -> &'static [&'static str]) = match system {
        System::Apt => ("apt-get install -y --no-install-recommends", |need| {
            need.apt
        }),
        System::Dnf => ("dnf install -y", |need| need.dnf),
        System::Brew => ("brew install", |need| need.brew),
        System::Other => ("", |_| &[]),
    };
    let sudo = if root || system == System::Brew {
        ""
    } else {
        "sudo "
    };
    let packaged: Vec<&str> = missing
        .iter()
        .flat_map(|need| packages(need))
        .copied()
        .collect();
    if !packaged.is_empty() {
        text += &format!("\n  {sudo}{installer} {}", packaged.join(" "));
    }
    for need in missing.iter().filter(|need| packages(need).is_empty()) {
        text += &format!("\n  {}: {}", need.name, need.home);
    }
    text
}

/// While this lives, packages are installed without starting a server or making a database cluster. It takes its
/// two files away again; one that was there already stays, for then somebody has decided otherwise.
struct Quiet {
    ours: Vec<&'static str>,
}

const START_POLICY: &str = "/usr/sbin/policy-rc.d";
const CLUSTER_FOLDER: &str = "/etc/postgresql-common/createcluster.d";
const CLUSTER_POLICY: &str = "/etc/postgresql-common/createcluster.d/bento-outbox.conf";

impl Quiet {
    fn begin() -> io::Result<Self> {
        let mut quiet = Self { ours: Vec::new() };
        // Ctrl-C leaves the file behind; so it has a say only while this process lives.
        let script = format!(
            "#!/bin/sh\nkill -0 {} 2>/dev/null && exit 101\nexit 0\n",
            process::id()
        );
        quiet.write(START_POLICY, &script, 0o755)?;
        fs::create_dir_all(CLUSTER_FOLDER)?;
        quiet.write(CLUSTER_POLICY, "# Written by `cargo x test` while it installs PostgreSQL; safe to delete.\ncreate_main_cluster = false\n", 0o644)?;
        Ok(quiet)
    }

    fn write(&mut self, path: &'static str, text: &str, mode: u32) -> io::Result<()> {
        if Path::new(path).exists() {
            return Ok(());
        }
        self.ours.push(path);
        fs::write(path, text)?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for path in &self.ours {
            if let Err(error) = fs::remove_file(path) {
                eprintln!("warning: {path} is left behind: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_kin_are_known_by_their_release_file() {
        assert!(is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian(
            "ID=fedora\nID_LIKE=\"rhel centos\"\nHOME_URL=\"https://debian.example\"\n"
        ));
        assert!(!is_debian(""));
    }

    #[test]
    fn what_is_missing_is_said_as_the_command_that_installs_it() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        let named = |name: &str| needs.iter().position(|need| need.name == name);
        let postgres = named("PostgreSQL").expect("it is needed");
        let debian = how_to_install(&needs[postgres..], System::Apt, false);
        assert!(
            debian
                .contains("sudo apt-get install -y --no-install-recommends postgresql pgbouncer mariadb-server nats-server"),
            "{debian}"
        );
        let fedora = how_to_install(&needs[postgres..], System::Dnf, true);
        assert!(
            fedora.contains(
                "\n  dnf install -y postgresql-server pgbouncer mariadb-server python3 rabbitmq-server redis chromium chromedriver\n  NATS server: https://docs.nats.io"
            ),
            "{fedora}"
        );
        let other = how_to_install(&needs[postgres..=postgres], System::Other, false);
        assert!(
            other.ends_with("install with:\n  PostgreSQL: https://www.postgresql.org/download/"),
            "{other}"
        );
    }
}
