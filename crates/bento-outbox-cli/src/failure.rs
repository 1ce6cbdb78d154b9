//! How a command ends when it does not end well: one sentence and an exit code.

use std::fmt;

use bento_outbox::{Error, ErrorKind, sanitised};

/// A command's result.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// One sentence for a person, and the exit code for a script.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// What was asked for could not be done: exit code 1.
    pub(crate) fn failed(message: impl AsRef<str>) -> Self {
        Self {
            message: sanitised(message.as_ref()),
            code: 1,
        }
    }

    /// A wrong use of the program or a wrong setting: exit code 2.
    pub(crate) fn misuse(message: impl AsRef<str>) -> Self {
        Self {
            message: sanitised(message.as_ref()),
            code: 2,
        }
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The same failure, said about something: `what: …`.
    pub(crate) fn about(self, what: impl fmt::Display) -> Self {
        Self {
            message: sanitised(&format!("{what}: {}", self.message)),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidSetting => Self::misuse(error.report()),
            _ => Self::failed(error.report()),
        }
    }
}
