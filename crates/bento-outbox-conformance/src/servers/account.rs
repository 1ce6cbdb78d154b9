//! Whom servers run as that refuse to run as root.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// An account of this machine.
#[derive(Clone, Copy)]
pub(super) struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Under root the account `name`, or else `nobody`; none where we are no root ourselves.
    pub(super) fn lesser(name: &str) -> Option<Self> {
        let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        if !root {
            return None;
        }
        let accounts = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let find = |name: &str| {
            let mut lines = accounts.lines().map(|line| line.split(':'));
            // name:password:uid:gid:…
            let mut account = lines
                .find(|fields| fields.clone().next() == Some(name))?
                .skip(2);
            Some(Self {
                uid: account.next()?.parse().ok()?,
                gid: account.next()?.parse().ok()?,
            })
        };
        let account = find(name).or_else(|| find("nobody"));
        assert!(
            account.is_some(),
            "a server refuses to run as root, and /etc/passwd has no user {name} or nobody"
        );
        account
    }
}

/// A command that runs as `account`, or as ourselves.
pub(super) fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// Gives a folder to `account`.
pub(super) fn hand_over(folder: &Path, account: Option<Account>) {
    if let Some(Account { uid, gid }) = account {
        chown(folder, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("cannot give {} away: {e}", folder.display()));
    }
}

/// Runs a command that must succeed.
pub(super) fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {errors}");
}
