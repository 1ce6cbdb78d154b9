//! The parts of the book that are made from the code. A page has such a part between two comments:
//!
//! ```text
//! <!-- made from the code: settings -->
//! …
//! <!-- until here -->
//! ```
//!
//! The program prints them (`bento-outbox reference settings`), so that they say what it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::workspace::Workspace;

const FOLDER: &str = "docs/src";
const BEGIN: &str = "<!-- made from the code: ";
const BEGIN_ENDS: &str = " -->\n";
const END: &str = "<!-- until here -->";

/// What the program prints; every one of them stands in the book.
const PARTS: &[&str] = &["settings", "commands", "metrics"];

/// Holds the pages to what the program prints.
pub(crate) fn check(workspace: &mut Workspace) -> Result<(), String> {
    let stale = made(workspace)?;
    if stale.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = stale
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    Err(format!(
        "{} {} no longer what the code says; `cargo x tidy --bless` writes it anew",
        names.join(", "),
        if names.len() == 1 { "is" } else { "are" }
    ))
}

/// Writes the pages anew that are no longer what the program prints.
pub(crate) fn bless(workspace: &mut Workspace) -> Result<(), String> {
    for (path, text) in made(workspace)? {
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        eprintln!("{} is written anew", path.display());
    }
    Ok(())
}

/// The pages that are no longer what they should be, as they should be.
fn made(workspace: &mut Workspace) -> Result<Vec<(PathBuf, String)>, String> {
    let program = program(workspace)?;
    let mut parts = Vec::new();
    for part in PARTS {
        let output = workspace
            .command(&program)
            .args(["reference", part])
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || text.is_empty() {
            return Err(format!("`bento-outbox reference {part}` prints nothing"));
        }
        parts.push((*part, text));
    }
    let of = |name: &str| {
        let part = parts.iter().find(|(part, _)| *part == name);
        part.map(|(_, text)| text.clone())
    };
    let mut seen = Vec::new();
    let mut stale = Vec::new();
    for path in pages(&workspace.root().join(FOLDER))? {
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let new = filled(&text, |name| {
            seen.push(name.to_owned());
            of(name)
        })
        .map_err(|what| format!("{}: {what}", path.display()))?;
        if new != text {
            stale.push((path, new));
        }
    }
    match PARTS
        .iter()
        .find(|part| !seen.iter().any(|name| name == *part))
    {
        Some(missing) => Err(format!("no page of {FOLDER} has `{BEGIN}{missing} -->`")),
        None => Ok(stale),
    }
}

/// `page` with the parts in it as `part` has them; what `part` does not know stays as it is.
pub(crate) fn filled(
    page: &str,
    mut part: impl FnMut(&str) -> Option<String>,
) -> Result<String, String> {
    let mut out = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(at) = rest.find(BEGIN) {
        let (before, after) = rest.split_at(at + BEGIN.len());
        out += before;
        let (name, body) = after
            .split_once(BEGIN_ENDS)
            .ok_or_else(|| format!("`{BEGIN}` without ` -->` at its line's end"))?;
        let end = body
            .find(END)
            .ok_or_else(|| format!("`{BEGIN}{name} -->` without `{END}`"))?;
        let new = part(name).unwrap_or_else(|| body[..end].to_owned());
        out += &format!("{name}{BEGIN_ENDS}{new}");
        rest = &body[end..];
    }
    Ok(out + rest)
}

/// The part of that name as the page has it.
pub(crate) fn part_of<'p>(page: &'p str, name: &str) -> Option<&'p str> {
    let (_, after) = page.split_once(&format!("{BEGIN}{name}{BEGIN_ENDS}"))?;
    Some(after.split_once(END)?.0)
}

fn pages(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            found.extend(pages(&path)?);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Builds the program, as the tests do and so with what they have built, and says where it is.
fn program(workspace: &mut Workspace) -> Result<PathBuf, String> {
    let line = "test --workspace --all-features --test cli --no-run --message-format=json";
    let mut command = workspace.cargo(line);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = workspace.step(&format!("$ cargo {line}"), || {
        command
            .output()
            .map_err(|error| format!("`cargo {line}`: {error}"))
    })?;
    if !output.status.success() {
        return Err(format!("`cargo {line}` failed ({})", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    executable(&messages)
        .ok_or_else(|| format!("`cargo {line}` names no executable `bento-outbox`"))
}

/// The path of the program in cargo's messages, one of JSON a line.
fn executable(messages: &str) -> Option<PathBuf> {
    let path = |line: &str| {
        let (_, after) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(after.split_once('"')?.0))
    };
    messages
        .lines()
        .filter_map(path)
        .find(|path| path.file_stem().is_some_and(|name| name == "bento-outbox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A\n\n<!-- made from the code: a -->\nold\n<!-- until here -->\n\nprose\n\
                        <!-- made from the code: b -->\nmine\n<!-- until here -->\nend\n";

    #[test]
    fn parts_are_replaced_and_prose_stays() {
        let new = filled(PAGE, |name| (name == "a").then(|| "new\n".into())).expect("it is whole");
        assert_eq!(new, PAGE.replace("old", "new"));
        assert_eq!(part_of(&new, "a"), Some("new\n"));
        assert_eq!(part_of(&new, "b"), Some("mine\n"));
        assert_eq!(part_of(&new, "c"), None);
        assert!(filled("<!-- made from the code: a -->\nno end", |_| None).is_err());
    }

    #[test]
    fn the_program_is_found_in_the_messages_of_cargo() {
        let messages = "{\"reason\":\"x\",\"executable\":null}\n\
                        {\"executable\":\"/t/debug/deps/cli-1f\"}\n{\"a\":1,\"executable\":\"/t/debug/bento-outbox\",\"fresh\":true}\n";
        assert_eq!(executable(messages), Some("/t/debug/bento-outbox".into()));
        assert_eq!(executable("{}"), None);
    }
}
