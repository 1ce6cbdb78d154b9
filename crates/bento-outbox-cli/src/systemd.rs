//! What systemd is told, as `sd_notify(3)` has it: that the relay is ready, how it gets on, that it goes
//! round, that it stops. Without `NOTIFY_SOCKET` nobody is told anything.

use std::convert::Infallible;

use bento_outbox::{Projector, Publisher, Store};

use crate::stop::Stop;

/// Tells systemd for as long as this is polled.
#[cfg(not(target_os = "linux"))]
pub(crate) async fn tell(_: &Projector, _: &dyn Store, _: &dyn Publisher, _: &Stop) -> Infallible {
    std::future::pending().await
}

/// Tells systemd for as long as this is polled.
#[cfg(target_os = "linux")]
pub(crate) async fn tell(
    projector: &Projector,
    store: &dyn Store,
    bus: &dyn Publisher,
    stop: &Stop,
) -> Infallible {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    linux::tell(projector, store, bus, stop).await
}

#[cfg(target_os = "linux")]
mod linux {
    use std::convert::Infallible;
    use std::time::Duration;

    use bento_outbox::{Progress, Projector, Publisher, Store, sanitised};
    use sd_notify::NotifyState;
    use tokio::time::{Instant, sleep, timeout};

    use crate::stop::Stop;

    /// How often it is looked whether there is something to tell.
    const LOOK_EVERY: Duration = Duration::from_secs(1);

    /// How long database and bus may take to answer before the relay is ready, and the longest pause
    /// until they are asked again.
    const PATIENCE: Duration = Duration::from_secs(3);
    const PAUSE_MAX: Duration = Duration::from_secs(15);

    pub(super) async fn tell(
        projector: &Projector,
        store: &dyn Store,
        bus: &dyn Publisher,
        stop: &Stop,
    ) -> Infallible {
        let watchdog = sd_notify::watchdog_enabled();
        // A quarter of its time: one look that comes late is no death.
        let tick = watchdog.map_or(LOOK_EVERY, |term| (term / 4).min(LOOK_EVERY));
        let mut told = Told::default();
        let (mut is_ready, mut is_stopping) = (false, false);
        let (mut ask_at, mut pause) = (Instant::now(), LOOK_EVERY);
        let mut hindrance = None;
        loop {
            let Progress {
                overdue,
                stopped_by,
            } = projector.progress();
            if watchdog.is_some_and(|term| overdue < term / 2) {
                told.say(&[NotifyState::Watchdog]);
            }
            if stop.is_requested() && !is_stopping {
                is_stopping = true;
                told.say(&[NotifyState::Stopping]);
            }
            if !is_ready && !is_stopping && ask_at <= Instant::now() {
                hindrance = tokio::select! {
                    hindrance = hindrance_of(store, bus) => hindrance,
                    () = stop.requested() => continue,
                };
                is_ready = hindrance.is_none();
                if is_ready {
                    told.say(&[NotifyState::Ready]);
                }
                (ask_at, pause) = (Instant::now() + pause, (pause * 2).min(PAUSE_MAX));
            }
            told.status(
                match (is_stopping, stopped_by.as_ref().or(hindrance.as_ref())) {
                    (true, _) => "stopping: what is in flight is finished".into(),
                    (false, Some(why)) => format!("nothing goes out: {why}"),
                    (false, None) => "carrying events".into(),
                },
            );
            tokio::select! {
                () = sleep(tick) => {}
                () = stop.requested(), if !is_stopping => {}
            }
        }
    }

    /// Why no event can be carried; none: one can.
    async fn hindrance_of(store: &dyn Store, bus: &dyn Publisher) -> Option<String> {
        let late = |what| Some(format!("{what} does not answer within {PATIENCE:?}"));
        let (database, bus) = tokio::join!(
            timeout(PATIENCE, store.check()),
            timeout(PATIENCE, bus.check())
        );
        match (database, bus) {
            (Err(_), _) => late("the database"),
            (Ok(Err(error)), _) => Some(error.report()),
            (_, Err(_)) => late("the bus"),
            (_, Ok(Err(rejection))) => Some(rejection.reason),
            (Ok(Ok(())), Ok(Ok(()))) => None,
        }
    }

    /// What was told already.
    #[derive(Default)]
    struct Told {
        status: String,
        complained: bool,
    }

    impl Told {
        fn status(&mut self, status: String) {
            if self.status != status {
                let line = sanitised(&status);
                self.say(&[NotifyState::Status(&line)]);
                self.status = status;
            }
        }

        fn say(&mut self, states: &[NotifyState<'_>]) {
            if let Err(error) = sd_notify::notify(states)
                && !std::mem::replace(&mut self.complained, true)
            {
                tracing::warn!(%error, "systemd cannot be told at NOTIFY_SOCKET");
            }
        }
    }
}
