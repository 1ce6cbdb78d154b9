//! `cargo x test`: sets up what the tests need, then runs them all.

use std::env;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};

use crate::provision;
use crate::workspace::{Workspace, shown};

/// Runs unit tests, doctests and the conformance suites: all, or those whose name has one of `names` in it.
pub(crate) fn run(workspace: &mut Workspace, names: &[String]) -> Result<(), String> {
    provision::servers(workspace)?;
    // The end-to-end tests start the program itself and an example, which `cargo test` alone does not promise to build.
    workspace
        .run(&mut workspace.cargo("build --workspace --all-features --bins --examples --tests"))?;

    let mut command = workspace.cargo("test --workspace --all-features --no-fail-fast --");
    if io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() {
        command.arg("--color=always"); // the tests write to our pipe and cannot see the terminal behind it
    }
    command.args(names);
    let line = shown(&command);
    let tally = workspace.step(&format!("$ {line}"), || run_and_count(&mut command, &line))?;
    if tally.passed == 0 && !names.is_empty() {
        return Err(format!("no test has {} in its name", names.join(" or ")));
    }
    Ok(())
}

/// What all test binaries did together; cargo itself never says.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

fn run_and_count(command: &mut Command, line: &str) -> Result<Tally, String> {
    let failed = |error: io::Error| format!("`{line}`: {error}");
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let output = child
        .stdout
        .take()
        .ok_or("the tests have no output to read")?;
    let tally = copy_and_count(BufReader::new(output), io::stdout());
    let status = child.wait().map_err(failed)?;
    let tally = tally.map_err(failed)?;
    writeln!(
        io::stdout(),
        "\n{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed,
        tally.skipped
    )
    .map_err(failed)?;
    if status.success() {
        Ok(tally)
    } else {
        Err(format!("`{line}` failed ({status})"))
    }
}

fn copy_and_count(mut from: impl BufRead, mut to: impl Write) -> io::Result<Tally> {
    let (mut tally, mut line) = (Tally::default(), Vec::new());
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        tally.add(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(tally)
}

impl Tally {
    /// Adds `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        let count = |what: &str| -> u64 {
            let words: Vec<&str> = result
                .split([' ', ';'])
                .filter(|word| !word.is_empty())
                .collect();
            words
                .windows(2)
                .find(|pair| pair[1] == what)
                .and_then(|pair| pair[0].parse().ok())
                .unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        self.skipped += count("ignored");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_the_output_is_passed_on() {
        let output = "running 2 tests\ntest a ... ok\n\
            test result: \u{1b}[32mok\u{1b}[0m. 2 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
            test result: FAILED. 40 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        let mut copy = Vec::new();
        let tally = copy_and_count(output.as_bytes(), &mut copy).expect("memory does not fail");
        assert_eq!(
            tally,
            Tally {
                passed: 42,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(copy, output.as_bytes());
    }
}
