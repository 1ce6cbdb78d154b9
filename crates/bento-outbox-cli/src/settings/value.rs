//! What the values of settings are, how they are read, and how they are shown.

use std::net::SocketAddr;
use std::time::Duration;

use bento_outbox::{Tenant, Topic};
use tracing_subscriber::filter::Targets;

/// What the values of a setting are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// A URL, which may hold a password.
    Url,
    /// A name in the database.
    Identifier,
    /// A template of a topic.
    Topic,
    /// A CloudEvents `source`.
    Source,
    /// `*` or a comma list of tenants.
    Tenants,
    /// A whole number from the first to the second.
    Number(u32, u32),
    /// A duration from the first to the second.
    Duration(Duration, Duration),
    /// A duration from the first to the second, or `forever`.
    Retention(Duration, Duration),
    /// `true` or `false`.
    Flag,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An IP address with a port, or `off`.
    Address,
    /// A level or directives of tracing's filter.
    LogLevel,
    /// Any text on one line.
    Text,
    /// Text on one line that is never shown.
    Secret,
    /// Lines that are never shown.
    SecretLines,
}

impl Kind {
    /// Whether `text` is such a value.
    ///
    /// # Errors
    /// What the value must be, as the end of a sentence that begins with the setting's name.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        if text.trim().is_empty() {
            return Err("is empty".into());
        }
        let must_be = |what: &str| Err(format!("must be {what}{}", self.not(text)));
        if text.chars().any(char::is_control) && !matches!(self, Self::SecretLines) {
            return must_be("one line without control characters");
        }
        match self {
            Self::Url if scheme(text).is_none() => {
                must_be("a URL, such as sqlite://outbox.db or nats://host:4222")
            }
            Self::Identifier if !is_identifier(text) => {
                must_be("1 to 45 of the characters a-z 0-9 _ beginning with a letter or _")
            }
            Self::Topic => text.parse::<Topic>().map(|_| ()).map_err(|error| {
                let what = error.to_string();
                what.strip_prefix(&format!("topic {text:?} "))
                    .unwrap_or(&what)
                    .into()
            }),
            Self::Source if text.contains(char::is_whitespace) => must_be("a URI without spaces"),
            Self::Tenants if tenants(text).is_none() => must_be(
                "* or a comma list of tenants, each of 1 to 64 of the characters A-Z a-z 0-9 . _ - beginning with a \
                 letter or digit",
            ),
            Self::Number(least, most) if whole(text).is_none_or(|n| n < least || n > most) => {
                must_be(&format!("a whole number from {least} to {most}"))
            }
            Self::Duration(shortest, longest)
                if duration(text).is_none_or(|d| d < shortest || d > longest) =>
            {
                must_be(&format!(
                    "a duration from {} to {}, such as 250ms, 10s, 7d or a plain number of seconds",
                    humantime::format_duration(shortest),
                    humantime::format_duration(longest),
                ))
            }
            Self::Retention(shortest, longest)
                if retention(text)
                    .is_none_or(|kept| kept.is_some_and(|d| d < shortest || d > longest)) =>
            {
                must_be(&match shortest.is_zero() {
                    true => "a duration of at most 100 years, such as 7d or a plain number of seconds, or 0, or forever"
                        .into(),
                    false => format!(
                        "a duration from {} to 100 years, such as 7d or a plain number of seconds, or forever",
                        humantime::format_duration(shortest)
                    ),
                })
            }
            Self::Flag if flag(text).is_none() => must_be("true or false"),
            Self::OneOf(words) if !words.contains(&text) => must_be(&words.join(" or ")),
            Self::Address if text != "off" && text.parse::<SocketAddr>().is_err() => {
                must_be("an IP address with a port, such as 127.0.0.1:7077, or off")
            }
            Self::LogLevel if log_filter(text).is_none() => must_be(
                "error, warn, info, debug, trace or off, or directives such as bento_outbox=debug,sqlx=warn",
            ),
            _ => Ok(()),
        }
    }

    /// The ways in which a file writes such a value, in words.
    pub(crate) fn in_file(self) -> &'static [&'static str] {
        match self {
            Self::Number(..) => &["integer"],
            Self::Flag => &["boolean"],
            Self::Duration(..) | Self::Retention(..) => &["string", "integer", "float"],
            _ => &["string"],
        }
    }

    /// The value as it may be shown.
    pub(crate) fn shown(self, text: &str) -> String {
        match self {
            Self::Secret | Self::SecretLines => "***".into(),
            Self::Url => masked(text),
            _ => text.into(),
        }
    }

    /// `, not "…"`, for values that may be shown at all: a broken URL may be a password alone.
    fn not(self, text: &str) -> String {
        match self {
            Self::Secret | Self::SecretLines | Self::Url => String::new(),
            _ => format!(", not {:?}", text.chars().take(60).collect::<String>()),
        }
    }
}

/// A whole number.
pub(crate) fn whole(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// `250ms`, `10s`, `7d`, `1h 30m`, or a plain number of seconds.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    }
}

/// How long sent events are kept; none inside for `forever`.
pub(crate) fn retention(text: &str) -> Option<Option<Duration>> {
    match text {
        "forever" => Some(None),
        _ => duration(text).map(Some),
    }
}

/// `true` or `false`.
pub(crate) fn flag(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// The tenants of a comma list; none inside for `*`, everybody.
pub(crate) fn tenants(text: &str) -> Option<Option<Vec<Tenant>>> {
    if text == "*" {
        return Some(None);
    }
    let tenants: Result<Vec<Tenant>, _> = text.split(',').map(|name| name.trim().parse()).collect();
    tenants.ok().map(Some)
}

/// What others log that the relay says itself.
const REPEATED: &str = "sqlx::query=off,sqlx::pool=off,async_nats::connector=off";

/// Tracing's filter. A plain level is that of the outbox itself: what its drivers have to say below
/// a warning is for whoever asks for it by directives. So is each statement that took sqlx over a second,
/// though it warns of that: to a relay a slow database is no news, since its metrics say how long a batch
/// takes, and a line of SQL tells nobody what to do. What NATS's client has to say of a connection that it
/// cannot make, and sqlx of one that it waits for, the relay says itself, once.
pub(crate) fn log_filter(text: &str) -> Option<Targets> {
    let is_level = |word: &str| ["error", "warn", "info", "debug", "trace", "off"].contains(&word);
    let directives: String = match text {
        "off" => text.into(),
        "error" => format!("error,{REPEATED}"),
        level if is_level(level) => format!("warn,{REPEATED},bento_outbox={level}"),
        // A word that is no level would be taken for the name of a module and hide everything else.
        directives
            if directives
                .split(',')
                .all(|part| part.contains('=') || is_level(part.trim())) =>
        {
            directives.into()
        }
        _ => return None,
    };
    directives.parse().ok()
}

/// What stands before the colon of a URL.
pub(crate) fn scheme(url: &str) -> Option<&str> {
    let (scheme, _) = url.split_once(':')?;
    let grammatical = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+.-".contains(&b));
    grammatical.then_some(scheme)
}

/// A URL without what may be secret in it: its password (or a user's name that stands alone, which
/// may be a token of a bus) and the options whose names sound like one.
pub(crate) fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        let harmless = !url.contains('@') || url.starts_with("file:") || url.starts_with("sqlite:");
        return if harmless {
            url.into()
        } else {
            format!("{}:***", scheme(url).unwrap_or_default())
        };
    };
    // To the last `@` even where a URL's grammar ends the authority earlier: a password with an
    // unescaped `/` or `?` is still a password.
    let is_name = |user: &str| !user.contains(['/', '?', '#', '@']);
    let is_database = matches!(scheme, "postgres" | "postgresql" | "mysql" | "mariadb");
    let (user, rest) = match rest.rsplit_once('@') {
        None => (String::new(), rest),
        Some((user_info, rest)) => match user_info.split_once(':') {
            Some((user, _)) if is_name(user) => (format!("{user}:***@"), rest),
            None if is_database && is_name(user_info) => (format!("{user_info}@"), rest),
            _ => ("***@".into(), rest),
        },
    };
    let (place, options) = rest
        .split_once('?')
        .map_or((rest, None), |(place, options)| (place, Some(options)));
    // Who knows the URL of a webhook may call it: its path and its own parameters are secrets too.
    let is_webhook = matches!(scheme, "http" | "https");
    let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let place = match path {
        "" | "/" => place.into(),
        _ if is_webhook => format!("{host}/***"),
        _ => place.to_string(),
    };
    let options = options.map(|options| {
        let masked_option = |option| match is_webhook {
            true => masked_parameter(option),
            false => masked_option(option),
        };
        let masked: Vec<String> = options.split('&').map(masked_option).collect();
        format!("?{}", masked.join("&"))
    });
    format!("{scheme}://{user}{place}{}", options.unwrap_or_default())
}

fn masked_option(option: &str) -> String {
    let Some((name, _)) = option.split_once('=') else {
        return option.into();
    };
    let secret = ["pass", "secret", "token", "key", "auth", "sign"]
        .iter()
        .any(|word| name.to_ascii_lowercase().contains(word));
    if secret {
        format!("{name}=***")
    } else {
        option.into()
    }
}

/// A parameter of a webhook's URL is the receiver's, unless it is one of our options.
fn masked_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some(("mode" | "timeout" | "concurrency" | "allow_private", _)) => parameter.into(),
        Some((name, _)) => format!("{name}=***"),
        None => "***".into(),
    }
}

fn is_identifier(text: &str) -> bool {
    bento_outbox::stores::Tables::new("public", text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_text_with_a_unit_or_plain_seconds() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("0.1", 100),
            ("1.0", 1_000),
            ("5m", 300_000),
            ("7d", 604_800_000),
            ("0", 0),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in ["-1", "nan", "inf", "1e300", "10 parsecs", "s", "1..0"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn no_url_is_shown_with_what_is_secret_in_it() {
        for (url, shown) in [
            (
                "postgres://bob:s3cr3t@db:5432/shop",
                "postgres://bob:***@db:5432/shop",
            ),
            (
                "postgres://bob:s3/cr?et@db/shop",
                "postgres://bob:***@db/shop",
            ),
            (
                "postgres://bob:s3@cr3t@db/shop",
                "postgres://bob:***@db/shop",
            ),
            ("postgres://s3/cr:3t@db/shop", "postgres://***@db/shop"),
            ("postgres://relay@db/shop", "postgres://relay@db/shop"),
            ("postgres://s3/cr3t@db/shop", "postgres://***@db/shop"),
            ("nats://t0ken@host:4222", "nats://***@host:4222"),
            (
                "nats://host?token=s3cr3t&stream=A",
                "nats://host?token=***&stream=A",
            ),
            ("sqlite://outbox.db", "sqlite://outbox.db"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            (
                "https://bob:s3cr3t@h:1/hooks/s3cr3t?sig=s3cr3t&timeout=1s&s3cr3t",
                "https://bob:***@h:1/***?sig=***&timeout=1s&***",
            ),
            ("nats:bob:s3cr3t@host", "nats:***"),
            ("stdout:", "stdout:"),
        ] {
            assert_eq!(masked(url), shown);
        }
    }

    #[test]
    fn a_mistyped_level_is_no_module() {
        for text in [
            "info",
            "off",
            "debug",
            "bento_outbox=trace,sqlx=info",
            "warn,bento_outbox=debug",
        ] {
            assert!(log_filter(text).is_some(), "{text}");
        }
        for (text, is_told) in [
            ("error", false),
            ("info", false),
            ("debug", false),
            ("warn,sqlx=warn", true),
        ] {
            let filter = log_filter(text).unwrap();
            for repeated in [
                "sqlx::query",
                "sqlx::pool::acquire",
                "async_nats::connector",
            ] {
                let told = filter.would_enable(repeated, &tracing::Level::ERROR);
                assert_eq!(told, is_told, "{repeated} at {text}");
            }
            assert!(
                filter.would_enable("rustls", &tracing::Level::ERROR),
                "{text}"
            );
        }
        for text in ["inof", "loud", "bento_outbox=loud", "INFO,"] {
            assert!(log_filter(text).is_none(), "{text}");
        }
    }
}
