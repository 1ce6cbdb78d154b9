//! The consumer's side: each message has its effects once, however often it is delivered.

use crate::causality::{Cause, handling};
use crate::error::{Error, ErrorKind, Result};
use crate::outbox::Outbox;
use crate::store::TransactionalStore;
use crate::tenant::Tenant;
use crate::unit_of_work::{Conflicts, UnitOfWork};

/// Remembers in the consumer's own database which messages were received, in the transaction that
/// has their effects. So a message that a bus delivers again, after a crash, a lost acknowledgement
/// or to two consumers at once, has its effects once.
///
/// ```
/// # use bento_outbox::{Error, Inbox, Message, Outbox, Result, stores::MemoryStore};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
/// # let outbox = Outbox::new(MemoryStore::default());
/// # let headers = [("ce_specversion", "1.0"), ("ce_id", "4711"), ("ce_type", "order.placed")];
/// # let body = "{}";
/// let message = Message::of(headers, body)?; // as the bus delivered it
/// let inbox = Inbox::new(&outbox.tenant(message.tenant()));
/// for _delivery in 0..2 {
///     inbox.handle("invoices", &message, async |_uow| {
///         // sqlx::query("insert into invoices …").execute(uow.tx()).await?;
///         Ok::<_, Error>(())
///     }).await?; // once; the second time nothing is done
///     // only now: acknowledge the message to the bus
/// }
/// # Ok(()) }
/// ```
///
/// A message is known by its consumer's name, the tenant of the unit of work and its id, each byte
/// for byte. Give each consumer that has effects of its own a name of its own, and all its processes
/// the same. The ids of what this library publishes are unique. Where others publish, a message may
/// need its source in front of its id.
///
/// It is forgotten after the relay's `inbox_retention`: let that be longer than the bus can take to
/// deliver a message again.
///
/// # When two receive the same message at once
///
/// The second waits until the transaction of the first has ended. If that committed, the second is
/// not the first; if it rolled back, the second is.
///
/// | | read committed (the default) | repeatable read, serializable |
/// | --- | --- | --- |
/// | PostgreSQL | as said | after a commit of the first, [`Conflict`](ErrorKind::Conflict) |
/// | MySQL, MariaDB | as said; [`Conflict`](ErrorKind::Conflict) after `innodb_lock_wait_timeout` (50 s), or for some of several that wait for one that rolled back | the same |
/// | SQLite | | the second waits already where it begins, for up to the pool's `busy_timeout` (10 s), then [`Conflict`](ErrorKind::Conflict) |
///
/// A conflict means that nothing was done. [`handle`](Self::handle) begins again by itself, a few
/// times; who calls [`first_time`](Self::first_time) runs the whole unit of work again, or lets the
/// bus deliver again. Two units of work that receive several messages each, in another order, can
/// wait for each other; the database lets one of them give way.
#[derive(Clone)]
pub struct Inbox<S> {
    outbox: Outbox<S>,
}

/// The most characters of a consumer's name.
pub const CONSUMER_CHARS_MAX: usize = 128;

/// The most characters of a message's id.
pub const MESSAGE_ID_CHARS_MAX: usize = 255;

impl<S: TransactionalStore> Inbox<S> {
    /// The inbox beside an outbox, in the same database: for the outbox's
    /// [tenant](Outbox::tenant), at its [isolation](Outbox::isolation).
    pub fn new(outbox: &Outbox<S>) -> Self {
        Self {
            outbox: outbox.clone(),
        }
    }

    /// Whether this is the first time that a consumer receives a message, which it then has received
    /// if the unit of work commits. For units of work of your own, also of several messages:
    ///
    /// ```
    /// # use bento_outbox::{Error, Inbox, Outbox, Result, stores::MemoryStore};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<()> {
    /// # let outbox = Outbox::new(MemoryStore::default());
    /// # let inbox = Inbox::new(&outbox);
    /// outbox.run(async |uow| {
    ///     for id in ["4711", "4712", "4711"] {
    ///         if inbox.first_time(uow, "invoices", id).await? {
    ///             // its effects, on uow.tx()
    ///         }
    ///     }
    ///     Ok::<_, Error>(())
    /// }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// In a [nested](UnitOfWork::nested) unit of work that fails, the message is unreceived again.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) as the table above says,
    /// [`InvalidName`](ErrorKind::InvalidName) for a name that is empty, longer than
    /// [`CONSUMER_CHARS_MAX`] or [`MESSAGE_ID_CHARS_MAX`] characters, or has control characters or
    /// blanks at an end, [`WrongTenant`](ErrorKind::WrongTenant) for a unit of work of another tenant
    /// than the inbox's; otherwise what the database answers. But for `InvalidName` and `WrongTenant`
    /// the unit of work can then only be rolled back.
    ///
    /// # Cancel safety
    /// Dropped before its end, it is not known whether the message is received, so the whole unit of
    /// work can only be rolled back; its commit then says so.
    pub async fn first_time(
        &self,
        uow: &mut UnitOfWork<S>,
        consumer: &str,
        message_id: &str,
    ) -> Result<bool> {
        check(consumer, message_id)?;
        self.must_be_its_tenant("the unit of work", uow.tenant())?;
        let first = uow.receive(consumer, message_id).await?;
        if !first {
            tracing::debug!(consumer, message_id, "received before");
        }
        Ok(first)
    }

    /// Handles a message in a unit of work of its own: runs `effects` and commits, if it is the
    /// first time that the consumer receives it. Answers what `effects` did, or none if it was
    /// received before and so nothing was done. Acknowledge the message to the bus in both cases, and
    /// only then.
    ///
    /// What `effects` raises says that the message [caused](crate::handling) it.
    ///
    /// # Errors
    /// What `effects` answers; then the message is not received. [`Conflict`](ErrorKind::Conflict)
    /// when others held it for so long that it was given up, or when `effects` or the commit met one:
    /// only what receives the message is begun again.
    /// [`WrongTenant`](ErrorKind::WrongTenant) for a message of another tenant than the inbox's: make
    /// the inbox of [`outbox.tenant(message.tenant())`](Outbox::tenant). And the other errors of
    /// [`first_time`](Self::first_time), [`begin`](Outbox::begin) and
    /// [`commit`](UnitOfWork::commit). After each of them, let the bus deliver the message again: even
    /// where it is not known whether the commit was done.
    ///
    /// # Cancel safety
    /// Dropped before the commit began, nothing is done and the message is not received; later it may
    /// be. Delivered again it is handled correctly.
    pub async fn handle<T, E, F>(
        &self,
        consumer: &str,
        message: impl Into<Cause>,
        effects: F,
    ) -> Result<Option<T>, E>
    where
        F: AsyncFnOnce(&mut UnitOfWork<S>) -> Result<T, E>,
        E: From<Error>,
    {
        let message: Cause = message.into();
        let message_id = message.message_id.clone();
        check(consumer, &message_id)?;
        if let Some(tenant) = &message.tenant {
            self.must_be_its_tenant("the message", tenant)?;
        }
        handling(message, async {
            let mut conflicts = Conflicts::default();
            let begun = loop {
                match self.begin(consumer, &message_id).await {
                    Ok(begun) => break begun,
                    Err(error) => conflicts.begin_again(error).await?,
                }
            };
            match begun {
                Some(uow) => uow.complete(effects).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    fn must_be_its_tenant(&self, what: &str, tenant: &Tenant) -> Result<()> {
        let own = self.outbox.the_tenant()?.cloned().unwrap_or_default();
        if *tenant == own {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongTenant,
            format!(
                "{what} is of tenant {tenant}, its inbox of tenant {own}: nothing is received; make the inbox of \
                 outbox.tenant({:?})",
                tenant.as_str()
            ),
        ))
    }

    /// A unit of work that receives the message; none if it was received before.
    async fn begin(&self, consumer: &str, message_id: &str) -> Result<Option<UnitOfWork<S>>> {
        let mut uow = self.outbox.begin().await?;
        match self.first_time(&mut uow, consumer, message_id).await {
            Ok(true) => Ok(Some(uow)),
            answer => {
                uow.abandon().await;
                answer.map(|_| None)
            }
        }
    }
}

fn check(consumer: &str, message_id: &str) -> Result<()> {
    check_name("the consumer's name", consumer, CONSUMER_CHARS_MAX)?;
    check_name("the message's id", message_id, MESSAGE_ID_CHARS_MAX)
}

/// Refuses a name that some database could take for another one, or not take.
pub(crate) fn check_name(what: &str, name: &str, chars_max: usize) -> Result<()> {
    let chars = name.chars().count();
    let why = if chars == 0 {
        "is empty".to_owned()
    } else if chars > chars_max {
        format!("has {chars} characters, the most are {chars_max}")
    } else if name.contains(char::is_control) {
        format!("{name:?} has control characters")
    } else if name.trim() != name {
        format!("{name:?} begins or ends with a blank, which not every database sees")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidName, format!("{what} {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::stores::MemoryStore;

    #[tokio::test]
    async fn an_inbox_receives_for_its_own_tenant_only() {
        let outbox = Outbox::new(MemoryStore::default());
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", "1"),
            ("ce_type", "t"),
            ("ce_tenantid", "acme"),
        ];
        let message = Message::of(headers, "{}").unwrap();
        let handled = async |outbox: &Outbox<MemoryStore>| {
            let effects = async |_: &mut UnitOfWork<MemoryStore>| Ok::<_, Error>(());
            Inbox::new(outbox).handle("c", &message, effects).await
        };
        let acme = outbox.tenant("acme");
        for other in [&outbox, &outbox.tenant("globex")] {
            let error = handled(other).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WrongTenant);
            assert!(
                error.to_string().contains("outbox.tenant(\"acme\")"),
                "{error}"
            );

            let mut uow = acme.begin().await.unwrap();
            let first = Inbox::new(other).first_time(&mut uow, "c", "1").await;
            assert_eq!(first.unwrap_err().kind(), ErrorKind::WrongTenant);
            uow.commit().await.unwrap();
        }
        assert_eq!(handled(&acme).await.unwrap(), Some(()));
        assert_eq!(handled(&acme).await.unwrap(), None);
    }

    #[test]
    fn names_that_are_refused_say_which_and_why() {
        let refused = |name: &str| check("c", name).unwrap_err().to_string();
        assert_eq!(refused(""), "the message's id is empty");
        assert_eq!(
            refused(&"é".repeat(256)),
            "the message's id has 256 characters, the most are 255"
        );
        assert_eq!(
            refused("a\0"),
            "the message's id \"a\\0\" has control characters"
        );
        assert!(refused("a ").contains("\"a \" begins or ends with a blank"));
        assert!(refused("\u{3000}a").contains("blank"));
        check("c", &"é".repeat(255)).unwrap();
        check("a b", "a b").unwrap();
        let consumer = check(&"x".repeat(129), "1").unwrap_err();
        assert_eq!(consumer.kind(), ErrorKind::InvalidName);
        assert!(consumer.to_string().starts_with("the consumer's name"));
    }
}
