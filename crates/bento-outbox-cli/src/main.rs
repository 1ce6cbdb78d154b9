//! The program `bento-outbox`: the relay and the operator's commands.
#![cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(
        unreachable_code,
        unused_variables,
        dead_code,
        reason = "no command gets further than to a database"
    )
)]

mod admin;
mod commands;
mod connect;
mod event_line;
mod failure;
mod held;
mod logging;
mod operator;
mod paused;
mod settings;
mod stop;
mod systemd;
mod terminal;
mod traces;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

#[cfg(feature = "sqlite")]
use crate::commands::demo;
use crate::commands::{
    append, audit, bench, completions, config, dead, doctor, events, health, migrate, pausing,
    reference, replay, run, schema, status, tail, why,
};
use crate::failure::{Failure, Result};
use crate::settings::{Flags, Settings};

/// The transactional outbox: events committed with the business data, published at least once, in
/// order.
#[derive(Parser)]
#[command(
    name = "bento-outbox",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(after_help = "Example:
  bento-outbox demo

Exit codes: 0 done, 1 failed, 2 wrong use or settings, 3 done but something needs a person.")]
pub(crate) struct Cli {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    command: Command,
}

/// What comes last in every help: the options of the command itself are what is looked for.
const GLOBAL: &str = "Options of every command";

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "sqlite")]
    Demo(demo::Demo),
    Migrate(migrate::Migrate),
    Run(run::Run),
    Append(append::Append),
    Status(status::Status),
    Events(events::Events),
    Why(why::Why),
    Dead(dead::Dead),
    Replay(replay::Replay),
    Tail(tail::Tail),
    Tenants(pausing::Tenants),
    Destinations(pausing::Destinations),
    Audit(audit::Audit),
    Doctor(doctor::Doctor),
    Health(health::Health),
    Bench(bench::Bench),
    Schema(schema::Schema),
    Config(config::Config),
    Completions(completions::Completions),
    Reference(reference::Reference),
}

fn main() -> ExitCode {
    let ended = match Cli::try_parse() {
        Ok(cli) => executed(cli),
        Err(usage) => return said(&usage),
    };
    ended.unwrap_or_else(|failure| {
        terminal::say(format!(
            "{} {failure}",
            terminal::Paint::stderr().red("error:")
        ));
        ExitCode::from(failure.code())
    })
}

fn executed(cli: Cli) -> Result<ExitCode> {
    let flags = cli.flags;
    let settings = || Settings::load(&flags);
    match cli.command {
        #[cfg(feature = "sqlite")]
        Command::Demo(command) => finish(command.run(&flags)),
        Command::Migrate(command) => finish(command.run(settings()?)),
        Command::Run(command) => finish(command.run(settings()?)),
        Command::Append(command) => finish(command.run(settings()?)),
        Command::Status(command) => finish(command.run(settings()?)),
        Command::Events(command) => finish(command.run(settings()?)),
        Command::Why(command) => finish(command.run(settings()?)),
        Command::Dead(command) => finish(command.run(settings()?)),
        Command::Replay(command) => finish(command.run(settings()?)),
        Command::Tail(command) => finish(command.run(settings()?)),
        Command::Tenants(command) => finish(command.run(settings()?)),
        Command::Destinations(command) => finish(command.run(settings()?)),
        Command::Audit(command) => finish(command.run(settings()?)),
        Command::Doctor(command) => finish(command.run(settings()?)),
        Command::Health(command) => finish(command.run(Settings::load_to_ask(&flags)?)),
        Command::Bench(command) => finish(command.run(settings()?)),
        Command::Schema(command) => command.run(),
        Command::Config(command) => finish(command.run(settings()?)),
        Command::Completions(command) => command.run(&mut Cli::command()),
        Command::Reference(command) => command.run(&Cli::command()),
    }
}

/// Runs a command's future to its end.
fn finish(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(command);
    // A write that is stuck, say into a pipe that nobody reads, must not keep the process.
    runtime.shutdown_background();
    ended
}

/// Says what clap has to say (help, version or what is wrong) and gives the exit code for it.
fn said(usage: &clap::Error) -> ExitCode {
    // Clap repeats words it does not know, and a URL given without its flag is such a word.
    let repeats = matches!(
        usage.kind(),
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand | ErrorKind::InvalidValue
    );
    if repeats {
        usage
            .to_string()
            .trim_end()
            .lines()
            .for_each(|line| terminal::say(without_passwords(line)));
    } else {
        let _ = usage.print();
    }
    ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2))
}

fn without_passwords(line: &str) -> String {
    let masked = |word: &str| {
        if word.contains(':') {
            settings::masked(word)
        } else {
            word.into()
        }
    };
    line.split(' ')
        .map(masked)
        .collect::<Vec<String>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_help_has_an_example() {
        let mut cli = Cli::command();
        cli.clone().debug_assert();
        assert!(cli.render_long_help().to_string().contains("Example"));
        every_help_below_has_an_example(&mut cli);
    }

    fn every_help_below_has_an_example(command: &mut clap::Command) {
        for command in command
            .get_subcommands_mut()
            .filter(|command| command.get_name() != "help")
        {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
            let options: Vec<&str> = help
                .lines()
                .filter(|line| {
                    line.contains("ptions") && line.ends_with(':') && !line.starts_with(' ')
                })
                .collect();
            let has_settings = command
                .get_arguments()
                .any(|flag| flag.get_id().as_str() == "database_url" && !flag.is_hide_set());
            let last = if has_settings { GLOBAL } else { "Options" };
            assert_eq!(options.last(), Some(&&*format!("{last}:")), "{help}");
            every_help_below_has_an_example(command);
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_examples_of_every_help_can_be_pasted_into_a_shell() {
        let mut commands = vec![Cli::command()];
        let mut seen = 0;
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands().cloned());
            let Some(written) = command.get_after_help().map(ToString::to_string) else {
                continue;
            };
            let examples: Vec<&str> = written
                .lines()
                .filter(|line| line.starts_with("  "))
                .collect();
            // What a terminal of the usual width wraps is two commands.
            let shown = command
                .clone()
                .term_width(80)
                .render_long_help()
                .to_string();
            for line in &examples {
                assert!(shown.lines().any(|it| it == *line), "{line:?} in {shown}");
            }
            let text = examples.join("\n");
            let mut shell = std::process::Command::new("sh");
            let parsed = shell.args(["-n", "-c", &text]).output().unwrap();
            assert!(
                parsed.status.success() && parsed.stderr.is_empty(),
                "{text}: {parsed:?}"
            );
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }
}
