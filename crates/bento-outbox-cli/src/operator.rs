//! Who gives the command, for the audit.

use std::process::{Command, Stdio};
use std::{env, fs};

/// `cli:USER@HOST`. What the environment says: a note for colleagues, and no proof.
pub(crate) fn name() -> String {
    let user = ["USER", "LOGNAME", "USERNAME"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|user| !user.is_empty()));
    let host = host().unwrap_or_else(|| "unknown".into());
    format!("cli:{}@{host}", user.as_deref().unwrap_or("unknown"))
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
