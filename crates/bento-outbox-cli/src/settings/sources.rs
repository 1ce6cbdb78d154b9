//! Where settings are given: command line, environment, file. Each value keeps its origin.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bento_outbox::shell_word;
use clap::{Arg, Args, Command};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::routes::{self, Route};
use super::table::{SETTINGS, Setting};
use super::value::masked;
use crate::GLOBAL;
use crate::failure::{Failure, Result};

/// The settings file that is read when none is named.
pub(crate) const DEFAULT_FILE: &str = "outbox.toml";

/// The longest settings file and the longest file with one value, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the command line says about settings.
#[derive(Args, Debug, Default)]
pub(crate) struct Flags {
    /// Settings file [default: outbox.toml, if it is there]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Database, as sqlite://outbox.db, postgres://user@host/name or mysql://user@host/name
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Bus, as stdout:, file:events.jsonl, nats://host:4222 or https://host/path
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "URL")]
    pub(crate) bus_url: Option<String>,
}

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) setting: &'static Setting,
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Variable(String),
    VariableFile { variable: String, path: PathBuf },
    Flag(&'static str),
}

impl Origin {
    /// The kind of origin, in one word for scripts.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Variable(_) | Self::VariableFile { .. } => "environment",
            Self::Flag(_) => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File { path, line } => write!(f, "{} line {line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::VariableFile { variable, path } => {
                write!(f, "{} named by {variable}", path.display())
            }
            Self::Flag(flag) => write!(f, "{flag}"),
        }
    }
}

impl Given {
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn refuse(&self, what: &str) -> Failure {
        Failure::misuse(format!("{} ({}) {what}", self.setting.name, self.origin))
    }
}

impl Flags {
    /// The flags, taken and not shown: for a command that has no use for settings.
    pub(crate) fn hidden() -> impl Iterator<Item = Arg> {
        let flags = Self::augment_args(Command::default());
        let flags: Vec<Arg> = flags.get_arguments().cloned().collect();
        flags.into_iter().map(|flag| flag.hide(true))
    }

    /// The values on the command line.
    pub(crate) fn given(&self) -> Vec<Given> {
        let flag = |name, flag, text: &Option<String>| {
            let (text, setting) = (text.clone()?, Setting::named(name)?);
            Some(Given {
                setting,
                text,
                origin: Origin::Flag(flag),
            })
        };
        let urls = [
            flag("database_url", "--database-url", &self.database_url),
            flag("bus_url", "--bus-url", &self.bus_url),
        ];
        urls.into_iter().flatten().collect()
    }

    /// The flags once more, each as a shell takes it and without what is secret, ` --config x.toml`.
    pub(crate) fn as_arguments(&self) -> String {
        let config = self.config.as_ref().map(|path| path.display().to_string());
        let url = |url: &Option<String>| url.as_deref().map(masked);
        let flags = [
            ("config", config),
            ("database-url", url(&self.database_url)),
            ("bus-url", url(&self.bus_url)),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        given
            .map(|(name, value)| format!(" --{name} {}", shell_word(&value)))
            .collect()
    }
}

/// The values in variables named `OUTBOX_…`, and in files that variables named `OUTBOX_…_FILE` name.
///
/// # Errors
/// A variable that is no setting's, is not UTF-8, or says again what its `_FILE` says.
pub(crate) fn environment(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Given>> {
    let mut given: Vec<Given> = Vec::new();
    for (name, text) in variables {
        let name = name.to_string_lossy();
        let name = name.as_ref();
        if !name.starts_with("OUTBOX_") {
            continue;
        }
        let Some((setting, in_file)) = setting_of(name) else {
            let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
            let hint = did_you_mean(name, known.iter().map(String::as_str));
            return Err(Failure::misuse(format!(
                "environment variable {name} is no setting{hint}"
            )));
        };
        if let Some(other) = given
            .iter()
            .find(|other| other.setting.name == setting.name)
        {
            let variable = setting.variable();
            return Err(other.refuse(&format!(
                "is set twice: by {variable} and by {variable}_FILE"
            )));
        }
        let Ok(text) = text.into_string() else {
            return Err(Failure::misuse(format!(
                "environment variable {name} is not UTF-8"
            )));
        };
        let (text, origin) = if in_file {
            (
                one_value(name, &text)?,
                Origin::VariableFile {
                    variable: name.into(),
                    path: text.into(),
                },
            )
        } else {
            (text, Origin::Variable(name.into()))
        };
        given.push(Given {
            setting,
            text,
            origin,
        });
    }
    Ok(given)
}

/// The setting that a variable gives, and whether it names a file.
fn setting_of(variable: &str) -> Option<(&'static Setting, bool)> {
    SETTINGS.iter().find_map(|setting| {
        let rest = variable.strip_prefix(&setting.variable())?;
        [("", false), ("_FILE", true)]
            .into_iter()
            .find_map(|(suffix, in_file)| (rest == suffix).then_some((setting, in_file)))
    })
}

/// The content of a file that holds one value; the newline that editors leave at its end is no part.
fn one_value(variable: &str, path: &str) -> Result<String> {
    if path.is_empty() {
        return Err(Failure::misuse(format!(
            "environment variable {variable} is empty"
        )));
    }
    let text = read(Path::new(path)).map_err(|why| {
        Failure::misuse(format!("{variable}: cannot read the file {path}: {why}"))
    })?;
    Ok(text
        .strip_suffix('\n')
        .map_or(&*text, |text| text.strip_suffix('\r').unwrap_or(text))
        .to_string())
}

/// What a settings file says.
#[derive(Debug, Default)]
pub(crate) struct FileLayer {
    pub(crate) given: Vec<Given>,
    pub(crate) routes: Vec<Route>,
    /// `[tenants.NAME]`, each with its origin.
    pub(crate) sections: Vec<(String, Origin)>,
}

/// The values in the settings file: the one that was named, else the default one if it is there.
///
/// # Errors
/// A file that cannot be read, is not TOML, or holds a key or type that no setting has.
pub(crate) fn file(named: Option<&Path>) -> Result<FileLayer> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match read(path) {
        Ok(text) => text,
        Err(why) if why.kind() == io::ErrorKind::NotFound && named.is_none() => {
            return Ok(FileLayer::default());
        }
        Err(why) => {
            return Err(Failure::misuse(format!(
                "cannot read the settings file {}: {why}",
                path.display()
            )));
        }
    };
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<FileLayer> {
    let table = DeTable::parse(text).map_err(|error| {
        let place = error
            .span()
            .map(|span| place(text, span.start))
            .unwrap_or((1, 1));
        Failure::misuse(format!(
            "{} line {} column {} is not TOML: {}",
            path.display(),
            place.0,
            place.1,
            error.message()
        ))
    })?;
    let mut layer = FileLayer::default();
    for (key, value) in table.get_ref() {
        let name: &str = key.get_ref();
        let origin_of = |byte| Origin::File {
            path: path.into(),
            line: place(text, byte).0,
        };
        let origin = origin_of(key.span().start);
        match (name, value.get_ref()) {
            ("routes", value) => layer.routes = routes::routes(value, &origin, origin_of)?,
            ("tenants", DeValue::Table(tenants)) => {
                let sections = tenants
                    .keys()
                    .map(|tenant| (format!("[tenants.{}]", tenant.get_ref()), origin.clone()));
                layer.sections.extend(sections);
            }
            _ => layer.given.push(one_key(name, value, origin)?),
        }
    }
    Ok(layer)
}

fn one_key(name: &str, value: &Spanned<DeValue<'_>>, origin: Origin) -> Result<Given> {
    let Some(setting) = Setting::named(name) else {
        let shown: String = name.chars().take(60).collect();
        let hint = did_you_mean(name, SETTINGS.iter().map(|setting| setting.name));
        return Err(Failure::misuse(format!(
            "{shown} ({origin}) is no setting{hint}"
        )));
    };
    let value = value.get_ref();
    let given = |text| Given {
        setting,
        text,
        origin,
    };
    let types = setting.kind.in_file();
    if !types.contains(&value.type_str()) {
        let what = format!(
            "must be written as {}, not as {}",
            types.join(" or "),
            value.type_str()
        );
        return Err(given(String::new()).refuse(&what));
    }
    Ok(match value {
        DeValue::String(text) => given(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => given(number.to_string()),
            Err(_) => given(number.to_string()),
        },
        DeValue::Float(number) => given(number.as_str().into()),
        DeValue::Boolean(flag) => given(flag.to_string()),
        // No kind of setting is written in another way.
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => given(String::new()),
    })
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is over 1 MiB"));
    }
    Ok(text)
}

/// Line and column of a byte, each from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// `; did you mean …?` where a known name is close.
pub(super) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().min(name.len()) / 3)
        .min()
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_is_named_with_line_and_column() {
        let broken = parse(Path::new("x.toml"), "table = \"a\"\nschema = = 1\n").unwrap_err();
        assert!(
            broken
                .to_string()
                .starts_with("x.toml line 2 column 10 is not TOML"),
            "{broken}"
        );
    }

    #[test]
    fn a_byte_order_mark_and_numbers_in_any_radix_are_fine() {
        let layer = parse(
            Path::new("x.toml"),
            "\u{feff}batch_size = 0x10\nretention = 0\n",
        )
        .unwrap();
        let texts: Vec<&str> = layer.given.iter().map(|given| &*given.text).collect();
        assert_eq!(texts, ["16", "0"]);
    }

    #[test]
    fn the_flags_are_said_again_fit_for_a_shell_and_without_passwords() {
        let flags = Flags {
            config: Some("my outbox.toml".into()),
            database_url: None,
            bus_url: Some("nats://bob:s3cr3t@host:4222?stream=A&create=true".into()),
        };
        assert_eq!(
            flags.as_arguments(),
            " --config 'my outbox.toml' --bus-url 'nats://bob:***@host:4222?stream=A&create=true'"
        );
        assert_eq!(Flags::default().as_arguments(), "");
    }

    #[test]
    fn only_what_is_close_is_suggested() {
        let known = || SETTINGS.iter().map(|setting| setting.name);
        assert_eq!(
            did_you_mean("bach_size", known()),
            "; did you mean batch_size?"
        );
        assert_eq!(did_you_mean("colour", known()), "");
    }
}
