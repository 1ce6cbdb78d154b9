//! What was found, for a person and for a script.

use serde::Serialize;

use crate::failure::Result;
use crate::settings::Settings;
use crate::terminal::{self, Paint};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    Note,
    Warning,
    Broken,
}

#[derive(Serialize)]
struct Finding {
    about: &'static str,
    state: State,
    found: String,
    /// What to do, where something is to be done.
    advice: Option<String>,
}

pub(super) struct Findings<'a> {
    settings: &'a Settings,
    all: Vec<Finding>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    broken: usize,
    warnings: usize,
}

impl<'a> Findings<'a> {
    pub(super) fn of(settings: &'a Settings) -> Self {
        let all = Vec::new();
        Self { settings, all }
    }

    pub(super) fn add(&mut self, about: &'static str, state: State, found: String, advice: &str) {
        self.all.push(Finding {
            about,
            state,
            found: terminal::visible(&self.settings.advice(&found)),
            advice: (!advice.is_empty()).then(|| self.settings.advice(advice)),
        });
    }

    pub(super) fn count(&self, state: State) -> usize {
        let of_it = self.all.iter().filter(|finding| finding.state == state);
        of_it.count()
    }

    pub(super) fn print(&self, json: bool) -> Result<()> {
        let (broken, warnings) = (self.count(State::Broken), self.count(State::Warning));
        if json {
            let report = Report {
                findings: &self.all,
                broken,
                warnings,
            };
            let json = serde_json::to_string(&report).unwrap_or_default();
            return terminal::print(|out| writeln!(out, "{json}"));
        }
        let paint = Paint::stdout();
        terminal::print(|out| {
            self.all.iter().try_for_each(|finding| {
                let word = match finding.state {
                    State::Ok => paint.green("ok     "),
                    State::Note => paint.dim("note   "),
                    State::Warning => paint.cyan("warning"),
                    State::Broken => paint.red("broken "),
                };
                writeln!(out, "{word}  {:12}  {}", finding.about, finding.found)?;
                match &finding.advice {
                    Some(advice) => writeln!(out, "{:23}{}", "", paint.dim(&format!("→ {advice}"))),
                    None => Ok(()),
                }
            })
        })?;
        terminal::say(match (broken, warnings) {
            (0, 0) => "nothing is wrong".to_string(),
            (0, _) => format!("nothing is broken, {warnings} to look at"),
            _ => format!("{broken} broken, {warnings} more to look at"),
        });
        Ok(())
    }
}
