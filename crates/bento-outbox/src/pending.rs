//! Events that are raised and not yet committed, and how an event finds its unit of work.
//!
//! A task-local holds the current [`Scope`]: a unit of work, or a nested one inside it. It is set
//! only while the future that it was given to is polled, so two units joined in one task never mix,
//! and a spawned task has none.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::causality::Cause;
use crate::door::Door;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Event;
use crate::tenant::Tenant;

tokio::task_local! {
    static CURRENT: Scope;
}

/// Raises an event with its envelope in the unit of work that is open in this task.
///
/// [`AggregateRoot::raise`](crate::AggregateRoot::raise) is the usual way; this one is for events
/// of no aggregate, or with headers, ids or times of their own.
///
/// # Errors
/// As for [`AggregateRoot::raise`](crate::AggregateRoot::raise), and
/// [`ErrorKind::WrongTenant`] for an event of another tenant than the unit of work's.
pub fn raise(event: Event) -> Result<()> {
    match CURRENT.try_with(Clone::clone) {
        Ok(scope) => scope.raise(event),
        Err(_) => Err(Error::new(
            ErrorKind::NoUnitOfWork,
            format!(
                "event {} was raised where no unit of work is open, and is not kept: raise it inside \
                 Outbox::run or UnitOfWork::track; a spawned task needs UnitOfWork::spawn or \
                 .in_unit_of_work()",
                event.event_type
            ),
        )),
    }
}

/// Passes the current unit of work on to a future that will run elsewhere.
pub trait InUnitOfWork: Future + Sized {
    /// The future, with the unit of work that is open here as its own, say for `tokio::spawn`.
    ///
    /// What it raises after the unit of work has ended is an error there. Without a unit of work
    /// here it has none either, and raising in it is an error.
    fn in_unit_of_work(self) -> impl Future<Output = Self::Output> {
        let scope = current();
        async move {
            match scope {
                Some(scope) => scope.enter(self).await,
                None => self.await,
            }
        }
    }
}

impl<F: Future> InUnitOfWork for F {}

/// The scope that events raised in this task belong to.
pub(crate) fn current() -> Option<Scope> {
    CURRENT.try_with(Clone::clone).ok()
}

/// A unit of work, or one nested in it, as seen by those who raise events.
#[derive(Clone)]
pub(crate) struct Scope {
    pending: Arc<PendingEvents>,
    level: u32,
}

struct PendingEvents {
    /// The outbox that the unit of work belongs to.
    outbox: Uuid,
    tenant: Tenant,
    door: Door,
    /// The message in whose handling the unit of work was begun.
    cause: Option<Cause>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Each event with the level that raised it.
    events: Vec<(u32, Event)>,
    /// The open levels, outermost first; empty once the unit of work has ended.
    open: Vec<u32>,
    levels: u32,
}

impl Scope {
    /// A new unit of work without events. It remembers the message that is handled here.
    pub(crate) fn new(outbox: Uuid, tenant: Tenant, door: Door) -> Self {
        let state = State {
            open: vec![0],
            ..State::default()
        };
        Self {
            pending: Arc::new(PendingEvents {
                outbox,
                tenant,
                door,
                cause: Cause::current(),
                state: Mutex::new(state),
            }),
            level: 0,
        }
    }

    pub(crate) fn outbox(&self) -> Uuid {
        self.pending.outbox
    }

    pub(crate) fn tenant(&self) -> &Tenant {
        &self.pending.tenant
    }

    /// Runs a future in which raised events belong here.
    pub(crate) fn enter<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), future)
    }

    /// Runs a function in which raised events belong here.
    pub(crate) fn track<T>(&self, f: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), f)
    }

    pub(crate) fn raise(&self, mut event: Event) -> Result<()> {
        event.check()?;
        let tenant = event.tenant.get_or_insert_with(|| self.tenant().clone());
        if tenant != self.tenant() {
            return Err(Error::new(
                ErrorKind::WrongTenant,
                format!(
                    "event {} is of tenant {tenant}, its unit of work of tenant {}: nothing of it is kept",
                    event.id,
                    self.tenant()
                ),
            ));
        }
        self.pending
            .door
            .admit(&mut event, self.pending.cause.as_ref())?;
        let mut state = self.state();
        if !state.open.contains(&self.level) {
            return Err(Error::new(
                ErrorKind::UnitOfWorkEnded,
                format!(
                    "event {} was raised after its unit of work had ended, and is not kept",
                    event.id
                ),
            ));
        }
        state.events.push((self.level, event));
        Ok(())
    }

    /// Opens a nested level; dropping it unkept takes its events away.
    pub(crate) fn nest(&self) -> Nested {
        let mut state = self.state();
        state.levels += 1;
        let level = state.levels;
        state.open.push(level);
        drop(state);
        Nested {
            scope: Self {
                pending: self.pending.clone(),
                level,
            },
            parent: self.level,
        }
    }

    /// What was raised and not undone until now.
    pub(crate) fn raised(&self) -> Vec<Event> {
        self.state()
            .events
            .iter()
            .map(|(_, event)| event.clone())
            .collect()
    }

    /// Ends the unit of work: hands out its events and takes no more.
    pub(crate) fn end(&self) -> Vec<Event> {
        let mut state = self.state();
        state.open.clear();
        std::mem::take(&mut state.events)
            .into_iter()
            .map(|(_, event)| event)
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the lists half-changed: every change is one statement.
        self.pending
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open nested level.
pub(crate) struct Nested {
    pub(crate) scope: Scope,
    parent: u32,
}

impl Nested {
    /// Ends the level and gives its events to the one around it.
    pub(crate) fn keep(self) {
        let parent = self.parent;
        for (level, _) in self
            .scope
            .state()
            .events
            .iter_mut()
            .filter(|(level, _)| *level == self.scope.level)
        {
            *level = parent;
        }
    }
}

/// Ends the level and drops the events that still belong to it, or to levels left open inside it.
impl Drop for Nested {
    fn drop(&mut self) {
        let mut state = self.scope.state();
        if let Some(at) = state
            .open
            .iter()
            .position(|level| *level == self.scope.level)
        {
            let ended = state.open.split_off(at);
            state.events.retain(|(level, _)| !ended.contains(level));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Payload;

    fn event(name: &str) -> Event {
        Event::new(name, Payload::json("1").unwrap())
    }

    fn scope() -> Scope {
        Scope::new(Uuid::now_v7(), Tenant::default(), Door::default())
    }

    fn names(scope: &Scope) -> Vec<String> {
        scope
            .end()
            .into_iter()
            .map(|event| event.event_type)
            .collect()
    }

    #[test]
    fn an_event_outside_a_unit_of_work_is_an_error() {
        assert_eq!(
            raise(event("a")).unwrap_err().kind(),
            ErrorKind::NoUnitOfWork
        );
        let scope = scope();
        scope.track(|| raise(event("a"))).unwrap();
        assert_eq!(
            raise(event("b")).unwrap_err().kind(),
            ErrorKind::NoUnitOfWork
        );
        assert_eq!(names(&scope), ["a"]);
        assert_eq!(
            scope.track(|| raise(event("c"))).unwrap_err().kind(),
            ErrorKind::UnitOfWorkEnded
        );
    }

    #[test]
    fn a_nested_level_takes_only_its_own_events_with_it() {
        let outer = scope();
        outer.raise(event("1")).unwrap();
        let dropped = outer.nest();
        dropped.scope.raise(event("2")).unwrap();
        let inner = dropped.scope.nest();
        inner.scope.raise(event("3")).unwrap();
        inner.keep();
        outer.raise(event("4")).unwrap();
        let late = dropped.scope.clone();
        drop(dropped);
        assert_eq!(
            late.raise(event("5")).unwrap_err().kind(),
            ErrorKind::UnitOfWorkEnded
        );
        let kept = outer.nest();
        kept.scope.raise(event("6")).unwrap();
        kept.keep();
        assert_eq!(names(&outer), ["1", "4", "6"]);
    }

    #[test]
    fn an_event_of_another_tenant_is_refused() {
        let scope = Scope::new(Uuid::now_v7(), "acme".parse().unwrap(), Door::default());
        let foreign = Event {
            tenant: Some("other".parse().unwrap()),
            ..event("a")
        };
        assert_eq!(
            scope.raise(foreign).unwrap_err().kind(),
            ErrorKind::WrongTenant
        );
        scope.raise(event("b")).unwrap();
        let events = scope.end();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].tenant.as_ref().map(Tenant::as_str), Some("acme"));
    }

    #[tokio::test]
    async fn joined_units_never_mix_and_spawn_does_not_inherit() {
        let (a, b) = (scope(), scope());
        let work = |name: &'static str| async move {
            for _ in 0..50 {
                raise(event(name)).unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(a.enter(work("a")), b.enter(work("b")));
        assert_eq!(names(&a), vec!["a"; 50]);
        assert_eq!(names(&b), vec!["b"; 50]);

        let c = scope();
        c.enter(async {
            let alone = tokio::spawn(async { raise(event("lost")).unwrap_err().kind() });
            assert_eq!(alone.await.unwrap(), ErrorKind::NoUnitOfWork);
            let passed = tokio::spawn(async { raise(event("passed")) }.in_unit_of_work());
            passed.await.unwrap().unwrap();
        })
        .await;
        assert_eq!(names(&c), ["passed"]);
    }
}
