//! What the stores on sqlx share.

use crate::error::{Error, ErrorKind};

/// What a database error met while `doing` means.
pub(crate) fn error(doing: &str, error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Database, doing.to_string()).because(error)
}
