//! Who gives the command, for the audit.

use std::process::{Command, Stdio};
use std::{env, fs};

use bento_outbox::Act;
use clap::Args;

/// Who somebody says they are.
#[derive(Args)]
pub(crate) struct Actor {
    /// Who gives the command, for the audit [default: the user of this session]
    #[arg(long = "actor", value_name = "NAME", value_parser = name)]
    name: Option<String>,
}

impl Actor {
    /// `cli:USER@HOST`. What the command line or the environment says: a note for colleagues, and no proof.
    pub(crate) fn by(&self) -> String {
        let user = self.name.clone().or_else(|| {
            let mut names = ["USER", "LOGNAME", "USERNAME"].into_iter();
            names.find_map(|name| env::var(name).ok().filter(|user| !user.is_empty()))
        });
        let user = user.or_else(|| uid().map(|uid| format!("uid-{uid}")));
        let (unknown, host) = (|| "unknown".into(), host());
        let (user, host) = (user.unwrap_or_else(unknown), host.unwrap_or_else(unknown));
        format!("cli:{user}@{host}")
    }
}

fn name(text: &str) -> Result<String, &'static str> {
    match Act::is_name(text) {
        true => Ok(text.into()),
        false => Err("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ @ + -"),
    }
}

/// The number of the user, which a container may have instead of a name.
fn uid() -> Option<u32> {
    #[cfg(unix)]
    return Some(rustix::process::getuid().as_raw());
    #[cfg(not(unix))]
    None
}

/// The standard library does not know what the machine is called. Linux says it in a file, other
/// systems by a command.
fn host() -> Option<String> {
    let named = |name: String| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    if let Some(name) = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .and_then(named)
    {
        return Some(name);
    }
    let mut command = Command::new("hostname");
    let said = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    named(String::from_utf8_lossy(&said.stdout).into_owned())
}
