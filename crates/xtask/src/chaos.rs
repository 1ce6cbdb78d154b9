//! `cargo x chaos`: the chaos tests for as long as one likes.

use crate::provision;
use crate::workspace::Workspace;

/// How long and from which seed.
#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    minutes: u64,
    seed: u64,
    database: String,
}

impl Plan {
    /// Reads `--minutes N --seed S --database NAME`; says what is wrong.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut plan = Self {
            minutes: 10,
            seed: 1,
            database: "all".into(),
        };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("`{}` needs a value", pair[0]));
            };
            let number = || {
                value
                    .parse()
                    .map_err(|_| format!("`{name} {value}` is not a whole number"))
            };
            match name.as_str() {
                "--minutes" => plan.minutes = number()?,
                "--seed" => plan.seed = number()?,
                "--database" => plan.database.clone_from(value),
                _ => return Err(format!("`cargo x chaos` does not know `{name}`")),
            }
        }
        Ok(plan)
    }
}

/// Runs the long form, which prints events, faults that bit and what the checker found.
pub(crate) fn run(workspace: &mut Workspace, plan: &Plan) -> Result<(), String> {
    provision::servers(workspace)?;
    workspace.run(&mut workspace.cargo("build --workspace --all-features --bins"))?;
    let mut command = workspace.cargo(
        "test -p bento-outbox-conformance --all-features --test conformance -- chaos::long --exact --ignored --nocapture",
    );
    command
        .env("CHAOS_MINUTES", plan.minutes.to_string())
        .env("CHAOS_SEED", plan.seed.to_string())
        .env("CHAOS_DATABASE", &plan.database);
    workspace.run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_pairs_of_known_names_and_numbers() {
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let plan = Plan::parse(&words("--seed 7 --minutes 2")).expect("a plan");
        assert_eq!(
            (plan.minutes, plan.seed, plan.database.as_str()),
            (2, 7, "all")
        );
        for wrong in ["--seed", "--seed x", "--other 1"] {
            assert!(Plan::parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}
