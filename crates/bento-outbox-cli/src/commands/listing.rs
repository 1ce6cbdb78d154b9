//! A list, page by page: a table for a person, lines with tabs or JSON for a script.

use comfy_table::Table;

use crate::failure::Result;
use crate::terminal;

/// How many entries are asked for at once.
const PAGE: u32 = 500;

/// A list that is being printed.
pub(crate) struct Listing<const COLUMNS: usize> {
    header: [&'static str; COLUMNS],
    json: bool,
    /// Shown when it is complete; none where a script reads.
    table: Option<Table>,
    listed: usize,
}

impl<const COLUMNS: usize> Listing<COLUMNS> {
    /// A list with nothing in it yet.
    pub(crate) fn of(header: [&'static str; COLUMNS], json: bool) -> Self {
        let for_a_person = !json && terminal::stdout_is_terminal();
        Self {
            header,
            json,
            table: for_a_person.then(|| terminal::table(header)),
            listed: 0,
        }
    }

    pub(crate) fn is_for_a_person(&self) -> bool {
        self.table.is_some()
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
        if let Some(table) = &mut self.table {
            entries.iter().for_each(|entry| {
                table.add_row(cells(entry));
            });
            return Ok(true);
        }
        terminal::printed(|out| {
            if is_first && !self.json {
                writeln!(out, "{}", self.header.join("\t"))?;
            }
            entries.iter().try_for_each(|entry| match self.json {
                true => writeln!(out, "{}", json(entry)),
                false => writeln!(out, "{}", cells(entry).join("\t")),
            })
        })
    }

    /// Shows what is left to be shown.
    ///
    /// # Errors
    /// A standard output that takes no more.
    pub(crate) fn end(self) -> Result<()> {
        match self.table {
            Some(table) if self.listed > 0 => terminal::print(|out| writeln!(out, "{table}")),
            _ => Ok(()),
        }
    }
}
