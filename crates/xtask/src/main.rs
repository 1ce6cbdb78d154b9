//! The developer's commands: `cargo x check | test | chaos | docs | tidy | ci`.
//!
//! The standard library alone, so that they work on a machine with nothing but Rust.

mod chaos;
mod check;
mod ci;
mod docs;
mod pages;
mod provision;
mod test;
mod tidy;
mod workspace;

use std::env;
use std::process::ExitCode;

use workspace::Workspace;

const USAGE: &str = "\
The developer's commands of bento-outbox.

Usage: cargo x COMMAND

  check            format, tidy, clippy, each feature alone, docs, licences
  test [NAME…]     installs what the tests need, then runs them all, or those whose name has NAME in it
  chaos [--minutes N] [--seed S] [--database mysql|postgres|sqlite]
                   real processes under real faults, for 10 minutes a database unless said
  docs             the API pages and the book
  tidy [--bless]   the rules of the house, and whether the book says what the code says; --bless records new
                   migrations and writes what the book has from the code
  ci               check, test and docs: what .ci/run runs
  help             this page
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("", &[][..]),
    };
    let takes_no_arguments = matches!(command, "check" | "docs" | "ci");
    if takes_no_arguments && !rest.is_empty() {
        return wrong_use(&format!("`cargo x {command}` takes no arguments"));
    }

    if rest
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        return usage();
    }
    if let Some(flag) = rest
        .iter()
        .find(|argument| command == "test" && argument.starts_with('-'))
    {
        return wrong_use(&format!(
            "`cargo x test` takes parts of test names, not {flag}"
        ));
    }

    let outcome = match command {
        "check" => Workspace::open().and_then(|mut workspace| check::run(&mut workspace)),
        "test" => Workspace::open().and_then(|mut workspace| test::run(&mut workspace, rest)),
        "chaos" => match chaos::Plan::parse(rest) {
            Ok(plan) => {
                Workspace::open().and_then(|mut workspace| chaos::run(&mut workspace, &plan))
            }
            Err(what) => return wrong_use(&what),
        },
        "docs" => Workspace::open().and_then(|mut workspace| docs::run(&mut workspace)),
        "ci" => Workspace::open().and_then(|mut workspace| ci::run(&mut workspace)),
        "tidy" => match rest.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] => Workspace::open().and_then(|mut workspace| tidy::all(&mut workspace)),
            ["--bless"] => Workspace::open().and_then(|mut workspace| tidy::bless(&mut workspace)),
            _ => return wrong_use("`cargo x tidy` takes nothing but --bless"),
        },
        "help" | "--help" | "-h" => return usage(),
        "" => return wrong_use("which command?"),
        unknown => return wrong_use(&format!("there is no command `{unknown}`")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "asked for, so it may be piped")]
fn usage() -> ExitCode {
    print!("{USAGE}");
    ExitCode::SUCCESS
}

fn wrong_use(what: &str) -> ExitCode {
    eprint!("error: {what}\n\n{USAGE}");
    ExitCode::from(2)
}
