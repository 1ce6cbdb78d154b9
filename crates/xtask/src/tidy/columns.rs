//! The book's page of the table has the columns, types and defaults of the migrations. What a column means is
//! prose, and stays as the page has it.

use std::fs;
use std::path::Path;

use super::Finding;
use super::house::House;
use crate::pages;

const PAGE: &str = "docs/src/the-table.md";
const STORES: [&str; 3] = ["postgres", "mysql", "sqlite"];
/// The first column that is the state of delivery, and the last one that the view shows.
const STATE_BEGINS: &str = "status";
const STATE_ENDS: &str = "sent_at";

/// The page is as the migrations are.
pub(super) fn the_page_of_the_table_is_as_the_migrations(house: &House) -> Vec<Finding> {
    let Some(page) = house.text(PAGE) else {
        return Vec::new();
    };
    match made(house, page) {
        Err(what) => vec![Finding::new(PAGE, 0, what)],
        Ok(new) if new != page => vec![Finding::new(
            PAGE,
            0,
            "is no longer as the migrations are; `cargo x tidy --bless` writes it anew",
        )],
        Ok(_) => Vec::new(),
    }
}

/// Writes the page anew.
pub(super) fn bless(house: &House, root: &Path) -> Result<(), String> {
    let page = house.text(PAGE).unwrap_or_default();
    let new = made(house, page).map_err(|what| format!("{PAGE}: {what}"))?;
    if new != page {
        fs::write(root.join(PAGE), new).map_err(|error| format!("{PAGE}: {error}"))?;
        eprintln!("{PAGE} is written anew");
    }
    Ok(())
}

fn made(house: &House, page: &str) -> Result<String, String> {
    let stores = STORES.map(|store| columns(&migrations(house, store)));
    let [postgres, ..] = &stores;
    let state = postgres
        .iter()
        .position(|column| column.name == STATE_BEGINS)
        .ok_or("the first migration of PostgreSQL has no column status")?;
    let end = postgres
        .iter()
        .position(|column| column.name == STATE_ENDS)
        .map_or(postgres.len(), |at| at + 1);
    let table = |name: &str, columns: &[Column]| {
        let old = pages::part_of(page, name)
            .ok_or_else(|| format!("has no part `{name}` between its two comments"))?;
        let mut text = String::from(
            "| column | PostgreSQL | MySQL | SQLite | default | meaning |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        for column in columns {
            let types = stores.each_ref().map(|store| {
                let same = store.iter().find(|other| other.name == column.name);
                same.map_or("–".into(), |column| format!("`{}`", column.kind))
            });
            let name = &column.name;
            let meaning = meaning(old, name).ok_or_else(|| {
                format!("says nothing of column {name}: give it a row that ends with what it means")
            })?;
            let cells = [&types[..], &[column.default.clone(), meaning.to_owned()]].concat();
            text += &format!("| `{name}` | {} |\n", cells.join(" | "));
        }
        Ok::<_, String>(text)
    };
    let parts = [
        ("table", table("table", &postgres[..state])?),
        ("view", table("view", &postgres[state..end])?),
    ];
    pages::filled(page, |name| {
        let part = parts.iter().find(|(part, _)| *part == name);
        part.map(|(_, text)| text.clone())
    })
}

/// The migrations of a store, one after the other.
fn migrations(house: &House, store: &str) -> String {
    let folder = format!("/stores/{store}/migrations/");
    let files = house
        .texts()
        .iter()
        .filter(|(path, _)| path.contains(&folder) && path.ends_with(".sql"));
    files.map(|(_, text)| text.as_str()).collect()
}

/// A column of the table.
#[derive(Debug, PartialEq)]
struct Column {
    name: String,
    kind: String,
    default: String,
}

/// The columns of the first table that is created: the outbox itself.
fn columns(sql: &str) -> Vec<Column> {
    let lines = sql
        .lines()
        .skip_while(|line| !line.starts_with("create table"))
        .skip(1)
        .take_while(|line| !line.starts_with(')'));
    lines.filter_map(column).collect()
}

/// What follows a column's type.
const AFTER_TYPE: &[&str] = &[
    "not",
    "null",
    "default",
    "check",
    "generated",
    "primary",
    "unique",
    "character",
    "collate",
    "auto_increment",
];
/// What begins a line that is no column.
const NO_COLUMN: &[&str] = &["--", "constraint", "check", "primary", "unique", "key"];

fn column(line: &str) -> Option<Column> {
    let line = line
        .strip_prefix("    ")
        .filter(|line| !line.starts_with(' '))?;
    let mut words = line.split_whitespace();
    let name = words.next().filter(|word| !NO_COLUMN.contains(word))?;
    let kind: Vec<&str> = words
        .map(|word| word.trim_end_matches(','))
        .take_while(|word| !AFTER_TYPE.contains(word))
        .collect();
    Some(Column {
        name: name.into(),
        kind: kind.join(" "),
        default: default(line),
    })
}

/// What a column is where its writer says nothing.
fn default(line: &str) -> String {
    let given = line.split_once(" default ").map(|(_, after)| {
        let literal = after
            .strip_prefix('\'')
            .and_then(|text| text.split_once('\''));
        match literal {
            Some((text, _)) => format!("`'{text}'`"),
            None => after.split([' ', ',']).next().unwrap_or_default().into(),
        }
    });
    match given.as_deref() {
        Some("now()") => "now".into(),
        Some("gen_random_uuid()") => "generated".into(),
        Some(text) if text.starts_with('`') => text.into(),
        Some(text) => format!("`{text}`"),
        None if line.contains(" generated always") => "generated".into(),
        None if line.contains(" not null") => "must be given".into(),
        None => "null".into(),
    }
}

/// The last cell of the row of that column.
fn meaning<'t>(table: &'t str, name: &str) -> Option<&'t str> {
    let row = table
        .lines()
        .find(|line| line.starts_with(&format!("| `{name}` |")))?;
    let cell = row
        .trim_end()
        .strip_suffix('|')?
        .rsplit(" | ")
        .next()?
        .trim();
    (!cell.is_empty()).then_some(cell)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQL: &str = "-- A note.\ncreate table \"{table}\" (\n    id uuid primary key default gen_random_uuid(),\n    \
        type text not null check (type ~ '^a'),\n    name varchar(9) not null default 'default' check (true),\n    \
        data bytea,\n    at timestamptz not null default now()\n        check (at > 'x'),\n    -- Of the relay.\n    \
        status text not null default 'NEW',\n    cnt integer not null default 0 check (cnt >= 0),\n    sent_at text,\n    \
        owner uuid,\n    constraint c check (true)\n);\ncreate table other (\n    x text\n);\n";

    fn house(page: &str) -> House {
        let file =
            |store: &str| format!("crates/bento-outbox/src/stores/{store}/migrations/0001.sql");
        House::of(&[
            (PAGE, page),
            (&file("postgres"), SQL),
            (&file("mysql"), &SQL.replace("uuid", "char(36)")),
            (&file("sqlite"), SQL),
        ])
    }

    fn page(table: &str, view: &str) -> String {
        format!(
            "# T\n<!-- made from the code: table -->\n{table}<!-- until here -->\nprose\n\
             <!-- made from the code: view -->\n{view}<!-- until here -->\n"
        )
    }

    #[test]
    fn columns_are_read_from_the_sql() {
        let read: Vec<(String, String, String)> = columns(SQL)
            .into_iter()
            .map(|column| (column.name, column.kind, column.default))
            .collect();
        let expected = [
            ("id", "uuid", "generated"),
            ("type", "text", "must be given"),
            ("name", "varchar(9)", "`'default'`"),
            ("data", "bytea", "null"),
            ("at", "timestamptz", "now"),
            ("status", "text", "`'NEW'`"),
            ("cnt", "integer", "`0`"),
            ("sent_at", "text", "null"),
            ("owner", "uuid", "null"),
        ];
        let expected: Vec<(String, String, String)> = expected
            .map(|(name, kind, default)| (name.into(), kind.into(), default.into()))
            .into();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_page_that_is_stale_or_says_nothing_of_a_column_is_found() {
        let rows = |names: &[&str]| -> String {
            names
                .iter()
                .map(|name| format!("| `{name}` | what {name} means |\n"))
                .collect()
        };
        let stale = page(
            &rows(&["id", "type", "name", "data", "at"]),
            &rows(&["status", "cnt", "sent_at"]),
        );
        let found = the_page_of_the_table_is_as_the_migrations(&house(&stale));
        assert!(found[0].to_string().contains("--bless"), "{}", found[0]);
        let new = made(&house(&stale), &stale).expect("it has all columns");
        assert!(
            new.contains("| `id` | `uuid` | `char(36)` | `uuid` | generated | what id means |"),
            "{new}"
        );
        assert!(
            !new.contains("owner"),
            "the relay's own columns are left out"
        );
        assert!(the_page_of_the_table_is_as_the_migrations(&house(&new)).is_empty());
        let silent = new.replace("what data means", "");
        let found = the_page_of_the_table_is_as_the_migrations(&house(&silent));
        assert!(found[0].to_string().contains("column data"), "{}", found[0]);
    }
}
