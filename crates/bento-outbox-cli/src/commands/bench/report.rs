//! What was measured: figures, their ratios and the goals beside them, for people and for machines.

use comfy_table::CellAlignment;
use indicatif::HumanCount;
use serde::Serialize;

use super::Sizes;
use crate::failure::Result;
use crate::terminal;

/// Everything that was measured in one run; `--json` prints it as it is.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) version: &'static str,
    /// The database's URL without its password.
    pub(super) database: String,
    /// Name and version of the database's server.
    pub(super) server: Option<String>,
    /// The bus's URL without its password.
    pub(super) bus: String,
    pub(super) machine: Machine,
    pub(super) sizes: Sizes,
    pub(super) figures: Vec<Figure>,
    pub(super) skipped: Vec<Skipped>,
}

/// Where the program ran.
#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) cpus: usize,
    /// How many processes wanted a processor before the run began, over a minute.
    pub(super) load_before: Option<f64>,
}

impl Machine {
    pub(super) fn of_this_run() -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()),
        }
    }
}

/// What could not be measured here.
#[derive(Serialize)]
pub(super) struct Skipped {
    pub(super) name: &'static str,
    pub(super) reason: &'static str,
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    /// Transactions a second.
    #[serde(rename = "transactions/s")]
    Transactions,
    /// Events a second.
    #[serde(rename = "events/s")]
    Events,
    /// Milliseconds; the median of a round.
    #[serde(rename = "ms")]
    Milliseconds,
}

/// One thing that was measured, round by round.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    /// What machines call it; it stays.
    name: &'static str,
    #[serde(skip)]
    words: &'static str,
    unit: Unit,
    /// The median of the rounds.
    value: f64,
    /// Of the milliseconds of all rounds together.
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    rounds: Vec<f64>,
    ratios: Vec<Ratio>,
    /// What the value should be.
    goal: Option<&'static str>,
    /// How many rows of a trap there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    note: Option<String>,
}

/// A figure by another one, round by round.
#[derive(Debug, Serialize)]
struct Ratio {
    against: &'static str,
    median: f64,
    min: f64,
    max: f64,
    /// What the median should be.
    goal: Option<&'static str>,
}

impl Figure {
    pub(super) fn new(name: &'static str, words: &'static str, unit: Unit) -> Self {
        Self {
            name,
            words,
            unit,
            value: 0.0,
            p99: None,
            rounds: Vec::new(),
            ratios: Vec::new(),
            goal: None,
            rows: None,
            note: None,
        }
    }

    /// Adds what a round gave.
    pub(super) fn add(&mut self, value: f64) {
        self.rounds.push(to_thousandths(value));
        self.value = median(&self.rounds);
    }

    /// Sets the ratios to another figure of the same rounds.
    pub(super) fn compare(&mut self, with: &Figure, goal: Option<&'static str>) {
        let pairs = self.rounds.iter().zip(&with.rounds);
        let ratios: Vec<f64> = pairs
            .filter(|(_, with)| **with > 0.0)
            .map(|(own, with)| to_thousandths(own / with))
            .collect();
        if ratios.is_empty() {
            return;
        }
        self.ratios.push(Ratio {
            against: with.name,
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(0.0, f64::max),
            goal,
        });
    }

    pub(super) fn p99(&mut self, milliseconds: f64) {
        self.p99 = Some(to_thousandths(milliseconds));
    }

    pub(super) fn goal(&mut self, goal: &'static str) {
        self.goal = Some(goal);
    }

    pub(super) fn note(&mut self, note: String) {
        self.note = Some(note);
    }

    /// Says how many rows there were besides those that were measured, also in words.
    pub(super) fn beside(&mut self, rows: u64, words: String) {
        self.rows = Some(rows);
        self.note = Some(words);
    }

    fn shown(&self) -> String {
        match (self.unit, self.p99) {
            (Unit::Transactions | Unit::Events, _) => format!("{}/s", whole(self.value)),
            (Unit::Milliseconds, Some(p99)) => format!("{:.2} ms, p99 {p99:.2} ms", self.value),
            (Unit::Milliseconds, None) => format!("{:.2} ms", self.value),
        }
    }
}

/// Milliseconds, by which share of the values is not above it.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => to_thousandths((sorted[even / 2 - 1] + sorted[even / 2]) / 2.0),
    }
}

fn to_thousandths(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

/// `12,345`.
pub(super) fn whole(number: f64) -> String {
    HumanCount(number.max(0.0).round() as u64).to_string()
}

const HEADER: [&str; 6] = ["measured", "median", "against", "ratio", "goal", "note"];

impl Report {
    /// Prints one JSON object, or a table on a terminal, or lines of tab-separated columns.
    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            let json = serde_json::to_string(self).unwrap_or_default();
            return terminal::print(|out| writeln!(out, "{json}"));
        }
        let lines: Vec<[String; 6]> = self
            .figures
            .iter()
            .flat_map(|each| self.lines(each))
            .collect();
        if terminal::stdout_is_terminal() {
            let mut table = terminal::table(HEADER);
            for line in &lines {
                table.add_row(line);
            }
            for column in [1, 3] {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            return terminal::print(|out| writeln!(out, "{table}"));
        }
        terminal::print(|out| {
            writeln!(out, "{}", HEADER.join("\t"))?;
            lines
                .iter()
                .try_for_each(|line| writeln!(out, "{}", line.join("\t")))
        })
    }

    /// A line of the table for each ratio of a figure, at least one; what the figure is and its value
    /// stand on the first.
    fn lines(&self, figure: &Figure) -> Vec<[String; 6]> {
        let blank = String::new;
        let dash = || String::from("–");
        let words_of = |name| {
            let named = self.figures.iter().find(|figure| figure.name == name);
            named.map_or(name, |figure| figure.words).to_string()
        };
        let mut lines: Vec<[String; 6]> = (0..figure.ratios.len().max(1))
            .map(|number| {
                let ratio = figure.ratios.get(number);
                let range = |ratio: &Ratio| {
                    let Ratio {
                        median, min, max, ..
                    } = ratio;
                    format!("{median:.2} ({min:.2} to {max:.2})")
                };
                [
                    blank(),
                    blank(),
                    ratio.map_or_else(dash, |ratio| words_of(ratio.against)),
                    ratio.map_or_else(dash, range),
                    ratio
                        .and_then(|ratio| ratio.goal)
                        .map_or_else(dash, str::to_string),
                    blank(),
                ]
            })
            .collect();
        lines[0][0] = figure.words.into();
        lines[0][1] = figure.shown();
        if let Some(goal) = figure.goal {
            lines[0][4] = goal.into();
        }
        lines[0][5] = figure.note.clone().unwrap_or_default();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &'static str, rounds: &[f64]) -> Figure {
        let mut figure = Figure::new(name, name, Unit::Events);
        rounds.iter().for_each(|value| figure.add(*value));
        figure
    }

    #[test]
    fn a_ratio_is_of_the_same_round_and_the_median_is_of_the_ratios() {
        // The second round met a slow moment of the machine, which both felt.
        let base = figure("base", &[100.0, 10.0, 200.0]);
        let mut half = figure("half", &[50.0, 5.0, 80.0]);
        half.compare(&base, Some("≥ 0.45"));
        assert_eq!(half.value, 50.0);
        let ratio = &half.ratios[0];
        assert_eq!((ratio.min, ratio.median, ratio.max), (0.4, 0.5, 0.5));
        let even = figure("even", &[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(even.value, 2.5);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let none = figure("none", &[0.0, 0.0]);
        let mut some = figure("some", &[1.0, 2.0]);
        some.compare(&none, None);
        assert!(some.ratios.is_empty());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.99), 0.0);
    }

    #[test]
    fn the_table_has_a_line_for_each_ratio() {
        let base = figure("base", &[100.0]);
        let mut half = figure("half", &[50.0]);
        half.compare(&base, Some("≥ 0.45"));
        half.compare(&base, None);
        half.note("on 9 rows".into());
        let report = Report {
            version: "0",
            database: "sqlite://x".into(),
            server: None,
            bus: "null:".into(),
            machine: Machine::of_this_run(),
            sizes: Sizes::default(),
            figures: vec![half, base],
            skipped: Vec::new(),
        };
        let lines = report.lines(&report.figures[0]);
        assert_eq!(
            lines[0],
            [
                "half",
                "50/s",
                "base",
                "0.50 (0.50 to 0.50)",
                "≥ 0.45",
                "on 9 rows"
            ]
        );
        assert_eq!(lines[1], ["", "", "base", "0.50 (0.50 to 0.50)", "–", ""]);
        assert_eq!(
            report.lines(&report.figures[1]),
            [["base", "100/s", "–", "–", "–", ""]]
        );
    }
}
