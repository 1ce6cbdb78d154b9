//! A list, page by page: a table or blocks for a person, lines with tabs or JSON for a script.

use comfy_table::Table;

use crate::failure::Result;
use crate::terminal;

/// How many entries are asked for at once.
const PAGE: u32 = 500;

/// A terminal with fewer columns has no room for a table of events: each of its words would be wrapped.
const TABLE_COLUMNS_MIN: u16 = 120;

/// A list that is being printed.
pub(crate) struct Listing<const COLUMNS: usize> {
    header: [&'static str; COLUMNS],
    form: Form,
    listed: usize,
}

enum Form {
    Json,
    Tabs,
    /// Shown when it is complete.
    Table(Box<Table>),
    /// One of some lines for each entry, of at most so many characters.
    Blocks(usize),
}

impl<const COLUMNS: usize> Listing<COLUMNS> {
    /// A list with nothing in it yet.
    pub(crate) fn of(header: [&'static str; COLUMNS], json: bool) -> Self {
        let form = match (json, terminal::stdout_is_terminal()) {
            (true, _) => Form::Json,
            (false, true) => Form::Table(Box::new(terminal::table(header))),
            (false, false) => Form::Tabs,
        };
        Self {
            header,
            form,
            listed: 0,
        }
    }

    /// The same list of events, which are shown as blocks on a terminal that is too narrow for a table.
    pub(crate) fn of_events(header: [&'static str; COLUMNS], json: bool) -> Self {
        let mut list = Self::of(header, json);
        if let Form::Table(table) = &list.form
            && let Some(width) = table.width().filter(|width| *width < TABLE_COLUMNS_MIN)
        {
            list.form = Form::Blocks(width.into());
        }
        list
    }

    pub(crate) fn is_for_a_person(&self) -> bool {
        matches!(self.form, Form::Table(_) | Form::Blocks(_))
    }

    /// How many entries are in it.
    pub(crate) fn listed(&self) -> usize {
        self.listed
    }

    /// Lists what `next` answers, which is asked for so many entries until it has fewer, and no more
    /// than `limit` in all; tells after which entry there are more, if there are and somebody reads.
    ///
    /// # Errors
    /// Those of `next`, and a standard output that takes no more.
    pub(crate) async fn fill<E>(
        &mut self,
        limit: usize,
        mut next: impl AsyncFnMut(u32) -> Result<Vec<E>>,
        json: impl Fn(&E) -> String,
        cells: impl Fn(&E) -> [String; COLUMNS],
    ) -> Result<Option<E>> {
        let mut last = None;
        loop {
            let left = limit - self.listed;
            // One more tells whether there are more.
            let asked = u32::try_from(left).map_or(PAGE, |left| PAGE.min(left.saturating_add(1)));
            let mut page = next(asked).await?;
            let (more, is_last) = (page.len() > left, page.len() < asked as usize);
            page.truncate(left);
            if !self.add(&page, &json, &cells)? {
                return Ok(None);
            }
            last = page.pop().or(last);
            if more || is_last {
                return Ok(last.filter(|_| more));
            }
        }
    }

    /// Adds entries; false when nobody reads any more.
    fn add<E>(
        &mut self,
        entries: &[E],
        json: impl Fn(&E) -> String,
        cells: impl Fn(&E) -> [String; COLUMNS],
    ) -> Result<bool> {
        let is_first = self.listed == 0 && !entries.is_empty();
        self.listed += entries.len();
        if let Form::Table(table) = &mut self.form {
            entries.iter().for_each(|entry| {
                table.add_row(cells(entry));
            });
            return Ok(true);
        }
        terminal::printed(|out| {
            if is_first && matches!(self.form, Form::Tabs) {
                writeln!(out, "{}", self.header.join("\t"))?;
            }
            entries.iter().try_for_each(|entry| match self.form {
                Form::Json => writeln!(out, "{}", json(entry)),
                Form::Blocks(width) => {
                    writeln!(out, "{}", block(&self.header, &cells(entry), width))
                }
                Form::Tabs | Form::Table(_) => writeln!(out, "{}", cells(entry).join("\t")),
            })
        })
    }

    /// Shows what is left to be shown.
    ///
    /// # Errors
    /// A standard output that takes no more.
    pub(crate) fn end(self) -> Result<()> {
        match self.form {
            Form::Table(table) if self.listed > 0 => {
                terminal::print(|out| writeln!(out, "{table}"))
            }
            _ => Ok(()),
        }
    }
}

/// What an event's column is called that has a sentence in it: it gets a line of its own.
pub(crate) const ERROR: &str = "error";

/// What an entry is of, and the other columns by their names, as many on a line as there is room for.
fn block(header: &[&str], cells: &[String], width: usize) -> String {
    let mut lines = Vec::new();
    let mut line = String::new();
    for (name, cell) in header.iter().zip(cells) {
        let text = match line.is_empty() && lines.is_empty() {
            true => cell.clone(),
            false => format!("  {name} {cell}"),
        };
        let fits = line.chars().count() + text.chars().count() <= width;
        if !line.is_empty() && (!fits || *name == ERROR) {
            lines.push(std::mem::take(&mut line));
        }
        line += &text;
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_what_fits_on_a_line_and_the_reason_on_its_own() {
        let header = ["id", "tenant", "type", "attempts", ERROR];
        let cells = ["0190b2f4", "acme", "order.placed", "5", "no such stream"];
        let shown = |width| block(&header, &cells.map(String::from), width);
        assert_eq!(
            shown(80),
            "0190b2f4  tenant acme  type order.placed  attempts 5\n  error no such stream"
        );
        assert_eq!(
            shown(32),
            "0190b2f4  tenant acme\n  type order.placed  attempts 5\n  error no such stream"
        );
        let long = block(&["id", "type"], &["0190b2f4".into(), "x".repeat(50)], 20);
        assert_eq!(long.lines().count(), 2, "{long}");
    }
}
