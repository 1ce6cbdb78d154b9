//! What can go wrong, with a kind that decides and a source that explains.

use std::error::Error as StdError;
use std::fmt;

/// The result of the library's own operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error whose [`kind`](Error::kind) tells what to do and whose source tells why.
///
/// The message names the setting, column, event or table it is about. It never holds a payload or
/// a secret.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What an [`Error`] means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An event was raised where no unit of work is open; it belongs to nothing and is not kept.
    NoUnitOfWork,
    /// A unit of work of this outbox is already open in this task. A savepoint in it is
    /// [`UnitOfWork::nested`](crate::UnitOfWork::nested), one of its own needs a task of its own.
    UnitOfWorkOpen,
    /// The unit of work (or the nested one) has ended, or cannot be used any more.
    UnitOfWorkEnded,
    /// An event of another tenant than the unit of work's, or a message or unit of work of another than
    /// the inbox's.
    WrongTenant,
    /// An event, tenant or header outside its grammar, or a payload that is not what it says.
    InvalidEvent,
    /// The name of a consumer, the id of a message, or the key or fingerprint of a command, that is
    /// empty, too long, or has control characters or blanks at an end.
    InvalidName,
    /// The key of a command that has run for another request. Nothing was done: a new request needs
    /// a key of its own.
    KeyReused,
    /// An event of a type that the registry does not have, or has under another Rust type.
    UnknownType,
    /// An event of a version that this program does not know: newer than its own, and read after an
    /// update of the program.
    UnknownVersion,
    /// An event of a version older than the oldest that this program still reads. No update will read
    /// it, unless somebody brings its upcasters back.
    RetiredVersion,
    /// An event whose payload is not what its type and version say, or which an upcaster refuses; a
    /// message that is no CloudEvent; or the answer of a command that is not what this program takes
    /// it for.
    Undecodable,
    /// The answer of a command that is larger than
    /// [`ANSWER_BYTES_MAX`](crate::ANSWER_BYTES_MAX). Nothing was done: keep what is large elsewhere,
    /// and answer where it is.
    AnswerTooLarge,
    /// A setting outside its range, or settings that contradict each other.
    InvalidSetting,
    /// The tables are missing, or of an older or newer version than this library.
    Schema,
    /// Nothing was committed.
    RolledBack,
    /// The answer to COMMIT was lost: the unit of work may be committed, or not.
    ///
    /// Ask the database for the business data, or for the events by their ids, before doing the
    /// work again.
    CommitUnknown,
    /// A deadlock or serialization failure: nothing was committed, and running the whole unit of
    /// work again may succeed.
    Conflict,
    /// The database cannot be reached or cannot take more.
    Unavailable,
    /// What an operator has paused would be published. Nothing was: resume it first, or leave it out.
    Paused,
    /// The bus cannot be reached, or is configured so that it cannot take events.
    Bus,
    /// Anything else the database answered.
    Database,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// The same error, explained by `source`.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What the error means for the caller.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether nothing was committed and running the whole unit of work again may succeed.
    pub fn is_retryable(&self) -> bool {
        self.kind == ErrorKind::Conflict
    }

    /// The message and every source behind it, as one sanitised line.
    pub fn report(&self) -> String {
        let mut line = self.message.clone();
        let mut source = StdError::source(self);
        while let Some(error) = source {
            let text = error.to_string();
            if !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            source = error.source();
        }
        sanitised(&line)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.report())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The longest error text that is kept beside a record, in characters.
pub const ERROR_MESSAGE_CHARS_MAX: usize = 2_000;

/// `text` made fit to be stored, logged and shown: one line, no control characters, no password of
/// a URL, at most [`ERROR_MESSAGE_CHARS_MAX`] characters.
pub fn sanitised(text: &str) -> String {
    let mut line: String = without_url_passwords(text)
        .chars()
        .map(|c| {
            if c.is_control() || is_bidi_control(c) {
                ' '
            } else {
                c
            }
        })
        .take(ERROR_MESSAGE_CHARS_MAX + 1)
        .collect();
    if let Some((cut, _)) = line.char_indices().nth(ERROR_MESSAGE_CHARS_MAX - 1)
        && line.chars().count() > ERROR_MESSAGE_CHARS_MAX
    {
        line.truncate(cut);
        line.push('…');
    }
    line
}

/// `text` as a shell takes it for one word: as it is, or quoted where it must be.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Characters that reorder what a terminal or browser shows.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces `user:password@` after each `://` by `user:***@`.
fn without_url_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`'))
            .unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((user, host)) => {
                let name = user.split(':').next().unwrap_or_default();
                out.push_str(if user.contains(':') { name } else { "***" });
                out.push_str(if user.contains(':') { ":***@" } else { "@" });
                out.push_str(host);
            }
            None => out.push_str(authority),
        }
        rest = tail;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_the_whole_chain_once() {
        let error = Error::new(ErrorKind::Unavailable, "cannot reach the database")
            .because(std::io::Error::other("connection refused"));
        assert_eq!(
            error.report(),
            "cannot reach the database: connection refused"
        );
        assert_eq!(
            format!("{error:?}"),
            "Unavailable: cannot reach the database: connection refused"
        );
    }

    #[test]
    fn a_word_stays_one_in_a_shell() {
        assert_eq!(shell_word("nats://host:4222"), "nats://host:4222");
        assert_eq!(shell_word("https://h/?a=1&b=2"), "'https://h/?a=1&b=2'");
        assert_eq!(shell_word("it's; rm"), r"'it'\''s; rm'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn stored_text_has_no_control_characters_no_password_and_an_end() {
        assert_eq!(sanitised("a\nb\0c\u{1b}[31m\u{202e}"), "a b c [31m ");
        assert_eq!(
            sanitised("at postgres://bob:se/cret and nats://bob:s3cr3t@host:4222/x, redis://tok@h"),
            "at postgres://bob:se/cret and nats://bob:***@host:4222/x, redis://***@h"
        );
        let long = sanitised(&"é".repeat(5_000));
        assert_eq!(long.chars().count(), ERROR_MESSAGE_CHARS_MAX);
        assert!(long.ends_with('…'));
        assert_eq!(sanitised(&"x".repeat(2_000)).len(), 2_000);
    }
}
