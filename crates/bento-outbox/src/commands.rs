//! Commands that may be sent again: each runs once and answers the same each time.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};
use crate::inbox::check_name;
use crate::outbox::Outbox;
use crate::store::{FirstRun, TransactionalStore};
use crate::unit_of_work::{Conflicts, UnitOfWork};

/// Runs commands once, by a key that their sender gives, as by the HTTP header `Idempotency-Key`.
///
/// The key and the answer are rows of the transaction that has the command's effects, so that they
/// are there together or not at all:
///
/// ```
/// # use bento_outbox::{Commands, Error, ErrorKind, Outbox, Result, stores::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let outbox = Outbox::new(MemoryStore::default());
/// let commands = Commands::new(&outbox.tenant("acme"));
/// let pay = async |key: &str, cents: i64| {
///     commands.run_once(key, &format!("POST /payments {cents}"), async |_uow| {
///         // sqlx::query("insert into payments …").execute(uow.tx()).await?;
///         Ok::<_, Error>(format!("paid {cents}"))
///     }).await
/// };
/// assert_eq!(pay("8f2a", 4_200).await?, "paid 4200");
/// assert_eq!(pay("8f2a", 4_200).await?, "paid 4200"); // the first answer: it was not paid again
/// let other = pay("8f2a", 9_900).await.unwrap_err();
/// assert_eq!(other.kind(), ErrorKind::KeyReused);
/// # Ok(()) }
/// ```
///
/// A key belongs to the tenant of the [outbox](Outbox::tenant). It is forgotten after the relay's
/// `command_retention`; one that comes again after that runs again.
#[derive(Clone)]
pub struct Commands<S> {
    outbox: Outbox<S>,
}

/// The most characters of a command's key.
pub const COMMAND_KEY_CHARS_MAX: usize = 255;

/// The most characters of a request's fingerprint: a digest of the request, or a short request itself.
pub const FINGERPRINT_CHARS_MAX: usize = 255;

/// The most bytes of an answer, as JSON: it is kept with the key, and read for each repetition.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

impl<S: TransactionalStore> Commands<S> {
    /// The commands beside an outbox, in the same database: for the outbox's
    /// [tenant](Outbox::tenant), at its [isolation](Outbox::isolation).
    pub fn new(outbox: &Outbox<S>) -> Self {
        Self {
            outbox: outbox.clone(),
        }
    }

    /// Runs a command in a unit of work of its own, if none with this key has run; otherwise answers
    /// what that one answered. `request_fingerprint` tells requests apart, so that a key that is used
    /// for another one is refused: a digest of whatever makes the request what it is.
    ///
    /// While one call runs the command, others with its key wait. If it fails, its effects and the
    /// key are undone and the next one runs. So an outcome that shall stay, as a payment that was
    /// declined, is part of `T` and no error. The answer is kept as JSON, and every caller, the first
    /// as well, gets what that JSON says.
    ///
    /// How others wait is up to the database, as for the [inbox](crate::Inbox#when-two-receive-the-same-message-at-once);
    /// where it makes one give way, that one begins again by itself, a few times.
    ///
    /// # Errors
    /// What `work` answers. [`KeyReused`](ErrorKind::KeyReused) when the key was used for a request
    /// with another fingerprint; nothing is done. [`InvalidName`](ErrorKind::InvalidName) for a key or
    /// fingerprint that is empty, too long, or has control characters or blanks at an end;
    /// [`AnswerTooLarge`](ErrorKind::AnswerTooLarge) for an answer over [`ANSWER_BYTES_MAX`], and
    /// [`Undecodable`](ErrorKind::Undecodable) for one that is no JSON or cannot be read back: before
    /// the commit, so nothing is done; or, later, when a program that answers otherwise has the same key.
    /// [`Conflict`](ErrorKind::Conflict) when others held the key for so long that it was given up.
    /// [`CommitUnknown`](ErrorKind::CommitUnknown) when the command may have been done: calling again
    /// with the same key tells, or does it.
    ///
    /// # Cancel safety
    /// Dropped before the commit began, nothing is done; later it may be. Calling again with the same
    /// key answers correctly.
    pub async fn run_once<T, E, F>(
        &self,
        key: &str,
        request_fingerprint: &str,
        work: F,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        F: AsyncFnOnce(&mut UnitOfWork<S>) -> Result<T, E>,
        E: From<Error>,
    {
        check_name("the command's key", key, COMMAND_KEY_CHARS_MAX)?;
        check_name(
            "the request's fingerprint",
            request_fingerprint,
            FINGERPRINT_CHARS_MAX,
        )?;
        let mut conflicts = Conflicts::default();
        let begun = loop {
            match self.begin(key, request_fingerprint).await {
                Ok(begun) => break begun,
                Err(error) => conflicts.begin_again(error).await?,
            }
        };
        let uow = match begun {
            Begun::First(uow) => uow,
            Begun::Before(first) if first.fingerprint == request_fingerprint => {
                return Ok(decoded(
                    key,
                    &first.answer,
                    "is not what this program takes it for",
                )?);
            }
            Begun::Before(_) => return Err(reused(key).into()),
        };
        uow.complete(async |uow| {
            let answer = encoded(key, &work(uow).await?)?;
            let value = decoded(key, &answer, NO_WAY_BACK)?;
            uow.end_command(key, &answer).await?;
            Ok(value)
        })
        .await
    }

    async fn begin(&self, key: &str, fingerprint: &str) -> Result<Begun<S>> {
        let mut uow = self.outbox.begin().await?;
        match uow.begin_command(key, fingerprint).await {
            Ok(None) => Ok(Begun::First(uow)),
            Ok(Some(first)) => {
                uow.abandon().await;
                Ok(Begun::Before(first))
            }
            Err(error) => {
                uow.abandon().await;
                Err(error)
            }
        }
    }
}

const NO_WAY_BACK: &str = "cannot be read back from the JSON that it is written as, so nothing is done: see \
                           that its type reads what it writes";

/// A command that is to run, or what is kept of it.
enum Begun<S: TransactionalStore> {
    First(UnitOfWork<S>),
    Before(FirstRun),
}

fn reused(key: &str) -> Error {
    Error::new(
        ErrorKind::KeyReused,
        format!(
            "the key {key:?} was used for another request, and nothing is done: a new request needs a new key"
        ),
    )
}

fn encoded<T: Serialize>(key: &str, answer: &T) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(answer).map_err(|cause| {
        Error::new(
            ErrorKind::Undecodable,
            format!("the answer of command {key:?} cannot be written as JSON"),
        )
        .because(cause)
    })?;
    if json.len() > ANSWER_BYTES_MAX {
        let bytes = json.len();
        return Err(Error::new(
            ErrorKind::AnswerTooLarge,
            format!(
                "the answer of command {key:?} has {bytes} bytes as JSON, and the most that are kept with a key are \
                 {ANSWER_BYTES_MAX}: nothing is done; store what is large in a table of your own, in the same unit \
                 of work, and answer its key"
            ),
        ));
    }
    Ok(json)
}

/// What serde says of a value may have a piece of it inside, so the place alone is told.
fn decoded<T: DeserializeOwned>(key: &str, answer: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(answer).map_err(|cause| {
        Error::new(
            ErrorKind::Undecodable,
            format!(
                "the answer of command {key:?} {what} (at byte {} of its JSON)",
                cause.column()
            ),
        )
    })
}
