//! Released migrations never change: somebody's database has them already.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::Finding;
use super::house::House;

/// The checksum and the path of every released migration, one a line.
const SUMS: &str = "crates/xtask/migrations.sum";

/// Each migration is as it was when it was recorded.
pub(super) fn released_migrations_never_change(house: &House) -> Vec<Finding> {
    let recorded = recorded(house);
    let migrations = migrations(house);
    let mut findings = Vec::new();
    for (path, sum) in &recorded {
        match migrations.get(path) {
            Some(now) if now == sum => {}
            Some(_) => findings.push(Finding::new(
                path,
                0,
                format!("has changed, and migrations never do: write a new one. (If no release has it yet: delete its line from {SUMS}, then `cargo x tidy --bless`)"),
            )),
            None => findings.push(Finding::new(path, 0, format!("is gone, but {SUMS} has it: a migration stays for ever"))),
        }
    }
    let new = migrations
        .keys()
        .filter(|path| !recorded.contains_key(*path));
    findings
        .extend(new.map(|path| Finding::new(path, 0, "is new; `cargo x tidy --bless` records it")));
    findings
}

/// Adds the new migrations to the list. A line that is there already is never changed.
pub(super) fn bless(house: &House, root: &Path) -> Result<(), String> {
    let recorded = recorded(house);
    let new: Vec<String> = migrations(house)
        .into_iter()
        .filter(|(path, _)| !recorded.contains_key(path))
        .map(|(path, sum)| format!("{sum}  {path}\n"))
        .collect();
    let text = house.text(SUMS).unwrap_or_default().to_owned() + &new.concat();
    if !new.is_empty() {
        fs::write(root.join(SUMS), text).map_err(|error| format!("{SUMS}: {error}"))?;
    }
    eprintln!("{} new in {SUMS}", new.len());
    Ok(())
}

fn recorded(house: &House) -> BTreeMap<String, String> {
    let lines = house.text(SUMS).unwrap_or_default().lines();
    lines
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, path)| (path.to_owned(), sum.to_owned()))
        .collect()
}

fn migrations(house: &House) -> BTreeMap<String, String> {
    let files = house
        .texts()
        .iter()
        .filter(|(path, _)| path.contains("/migrations/") && path.ends_with(".sql"));
    files
        .map(|(path, text)| (path.clone(), format!("{:016x}", fnv_1a(text.as_bytes()))))
        .collect()
}

/// FNV-1a, 64 bits: enough against an accident, and it needs no dependency.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "crates/bento-outbox/src/stores/sqlite/migrations/0001_outbox.sql";

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        released_migrations_never_change(&House::of(files))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_sum_is_fnv_1a() {
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn a_changed_a_lost_and_a_new_migration_are_found() {
        let sums = format!("{:016x}  {FILE}\n", fnv_1a(b"create table outbox"));
        assert!(findings(&[(SUMS, &sums), (FILE, "create table outbox")]).is_empty());
        assert!(
            findings(&[(SUMS, &sums), (FILE, "create table other")])[0].contains("has changed")
        );
        assert!(findings(&[(SUMS, &sums)])[0].contains("is gone"));
        assert!(findings(&[(FILE, "create table outbox")])[0].contains("is new"));
    }

    #[test]
    fn blessing_adds_and_never_changes() {
        let sums = format!("0123456789abcdef  {FILE}\n");
        let second = FILE.replace("0001", "0002");
        let root = std::env::temp_dir().join(format!("bento-outbox-bless-{}", std::process::id()));
        fs::create_dir_all(root.join("crates/xtask")).expect("the temporary folder can be written");
        let house = House::of(&[(SUMS, &sums), (FILE, "changed"), (&second, "a")]);
        bless(&house, &root).expect("there is something to add");
        let written = fs::read_to_string(root.join(SUMS)).expect("it was written");
        assert_eq!(written, format!("{sums}af63dc4c8601ec8c  {second}\n"));
        fs::remove_dir_all(root).expect("the temporary folder is ours");
    }
}
