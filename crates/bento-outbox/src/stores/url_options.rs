//! What a database's URL may say behind its `?`.

use crate::error::{Error, ErrorKind, Result};

/// Refuses an option of a database's URL that is none of `known`: sqlx leaves it aside, and a mistyped
/// `sslmode` would leave the connection open to all. A known one that ends with `[` takes any name.
pub(super) fn check(url: &str, known: &[&str]) -> Result<()> {
    let options = url.split('#').next().and_then(|url| url.split_once('?'));
    let mut names = options
        .into_iter()
        .flat_map(|(_, options)| options.split('&'))
        .filter_map(|option| option.split('=').next())
        .filter(|name| !name.is_empty());
    let is_known = |name: &str| {
        let is = |known: &&str| *known == name || known.ends_with('[') && name.starts_with(*known);
        known.iter().any(is)
    };
    match names.find(|name| !is_known(name)) {
        None => Ok(()),
        Some(unknown) => Err(Error::new(
            ErrorKind::InvalidSetting,
            format!(
                "the URL has an option {unknown:?}, which is none of {}",
                known.join(", ").replace('[', "[NAME]")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_would_be_left_aside_is_refused() {
        let known = ["sslmode", "options["];
        for fine in [
            "postgres://h/x",
            "postgres://h/x?",
            "postgres://h/x?sslmode=require&options[a.b]=1#sslmod",
        ] {
            check(fine, &known).unwrap();
        }
        let said = check("postgres://h/x?sslmode=a&sslmod=s3cret", &known).unwrap_err();
        assert_eq!(
            said.to_string(),
            "the URL has an option \"sslmod\", which is none of sslmode, options[NAME]"
        );
    }
}
