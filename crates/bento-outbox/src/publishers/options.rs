//! The query parameters of a bus URL.

use std::time::Duration;

use url::Url;

use crate::cloud_event::ContentMode;
use crate::error::{Error, ErrorKind, Result};

/// The options of one URL, each taken once by its name; what nobody took is unknown.
pub(super) struct Options {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Options {
    pub(super) fn of(url: &Url) -> Result<Self> {
        let given: Vec<_> = url.query_pairs().into_owned().collect();
        for (n, (name, _)) in given.iter().enumerate() {
            if given[..n].iter().any(|(other, _)| other == name) {
                return Err(invalid(format!("option {name} is given twice")));
            }
        }
        Ok(Self {
            given,
            known: Vec::new(),
        })
    }

    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let at = self.given.iter().position(|(given, _)| given == name)?;
        Some(self.given.remove(at).1)
    }

    pub(super) fn list(&mut self, name: &'static str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.split(',')
            .filter(|item| !item.is_empty())
            .map(Into::into)
            .collect()
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool> {
        self.flag_or(name, false)
    }

    pub(super) fn flag_or(&mut self, name: &'static str, default: bool) -> Result<bool> {
        match self.text(name).as_deref() {
            None => Ok(default),
            Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(invalid(format!("option {name} is neither true nor false"))),
        }
    }

    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<u64>> {
        let number = self.text(name).map(|text| text.parse());
        number
            .transpose()
            .map_err(|_| invalid(format!("option {name} is not a whole number")))
    }

    /// `250ms`, `10s`, `5m`, or a plain number of seconds.
    pub(super) fn duration(&mut self, name: &'static str) -> Result<Option<Duration>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let seconds = match &text[digits.len()..] {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" => 60.0,
            _ => f64::NAN,
        };
        let seconds = digits.parse::<f64>().unwrap_or(f64::NAN) * seconds;
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() => Ok(Some(duration)),
            _ => Err(invalid(format!(
                "option {name} is not a duration such as 250ms, 10s or 5m"
            ))),
        }
    }

    pub(super) fn mode(&mut self, default: ContentMode) -> Result<ContentMode> {
        match self.text("mode").as_deref() {
            None => Ok(default),
            Some("binary") => Ok(ContentMode::Binary),
            Some("structured") => Ok(ContentMode::Structured),
            Some(_) => Err(invalid("option mode is neither binary nor structured")),
        }
    }

    /// Refuses what nobody took: a misspelt option must not be a silent default.
    pub(super) fn finish(self) -> Result<()> {
        match self.given.first() {
            None => Ok(()),
            Some((name, _)) => Err(invalid(format!(
                "unknown option {name:?}: there are {}",
                self.known.join(", ")
            ))),
        }
    }
}

/// The URL is wrong. Its values are never shown: they may be secrets.
pub(super) fn invalid(what: impl AsRef<str>) -> Error {
    Error::new(
        ErrorKind::InvalidSetting,
        format!("bus_url: {}", what.as_ref()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &str) -> Result<Options> {
        Options::of(&Url::parse(&format!("nats://h?{query}")).unwrap())
    }

    #[test]
    fn a_duration_has_a_unit_or_is_seconds() {
        let duration = |text: &str| options(&format!("t={text}")).unwrap().duration("t");
        assert_eq!(duration("250ms").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(duration("1.5").unwrap(), Some(Duration::from_millis(1_500)));
        assert_eq!(duration("2m").unwrap(), Some(Duration::from_secs(120)));
        for text in ["", "s", "0", "-1s", "10x", "inf", "nan", "1e400", "1 s"] {
            let error = duration(text).unwrap_err();
            assert!(error.to_string().contains("option t"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_unknown_or_given_twice_is_refused_by_name() {
        let mut given = options("a=1&strem=secret").unwrap();
        assert_eq!(given.text("a").as_deref(), Some("1"));
        assert_eq!(given.text("stream"), None);
        assert_eq!(
            given.finish().unwrap_err().to_string(),
            "bus_url: unknown option \"strem\": there are a, stream"
        );
        assert!(options("a=1&a=1").is_err());
        assert!(options("f=yes").unwrap().flag("f").is_err());
        assert!(
            options("mode=both")
                .unwrap()
                .mode(ContentMode::Binary)
                .is_err()
        );
    }
}
