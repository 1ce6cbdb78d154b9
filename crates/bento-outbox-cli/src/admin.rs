//! What a running relay answers at `admin_addr`: health, metrics and the operator's API.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bento_outbox::{Publisher, Store, telemetry};
use bento_outbox_dashboard::{Admin, router};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::failure::{Failure, Result};
use crate::settings::Settings;

/// The bounds of the histograms, in seconds: a bus in the same rack, to one that was away for hours.
const BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0,
    3_600.0,
];

/// How long counting what waits may hold up the start.
const COUNT_MAX: Duration = Duration::from_secs(5);

/// How often the recorder sorts what it has collected.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The server. It ends when this is dropped.
pub(crate) struct Server {
    serving: Option<JoinHandle<()>>,
}

impl Server {
    /// Opens the address of the settings and answers there.
    ///
    /// # Errors
    /// An address that was asked for and cannot be had. The default one is done without: another
    /// relay of this machine has it.
    pub(crate) async fn start(
        settings: &Settings,
        store: Arc<dyn Store>,
        bus: Arc<dyn Publisher>,
    ) -> Result<Self> {
        let Some(address) = settings.admin_addr else {
            return Ok(Self { serving: None });
        };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) if settings.is_given("admin_addr") => {
                return Err(Failure::failed(format!(
                    "admin_addr: nothing can be served at {address}: {error}; set OUTBOX_ADMIN_ADDR to another port, or \
                     to off"
                )));
            }
            Err(error) => {
                // Another relay of this machine has it, as a rule.
                tracing::warn!(
                    %address,
                    %error,
                    "health and metrics are not served; set admin_addr to another address, or to off"
                );
                return Ok(Self { serving: None });
            }
        };
        let recorder = recorder()?;
        // The first question is answered rightly too.
        if let Ok(Ok(backlog)) = timeout(COUNT_MAX, store.backlog()).await {
            telemetry::database_up(true);
            telemetry::backlog(&backlog);
        }
        let rendered = recorder.clone();
        let admin = Admin {
            store,
            bus,
            destinations: settings.destinations(),
            settings: settings.projector.clone(),
            token: settings.admin_token.as_deref().map(Into::into),
            metrics: Arc::new(move || rendered.render()),
        };
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "health, metrics, the API and the dashboard are served");
        }
        let served = router(admin).into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move {
            let upkeep = async {
                loop {
                    tokio::time::sleep(UPKEEP_EVERY).await;
                    recorder.run_upkeep();
                }
            };
            tokio::select! {
                ended = axum::serve(listener, served) => if let Err(error) = ended {
                    tracing::warn!(%error, "health and metrics are served no more");
                },
                () = upkeep => {}
            }
        });
        Ok(Self {
            serving: Some(serving),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

fn recorder() -> Result<PrometheusHandle> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("the metrics cannot be collected: {error}"))
    };
    let mut builder = PrometheusBuilder::new();
    for name in [telemetry::BATCH_SECONDS, telemetry::LATENCY_SECONDS] {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.into()), &BUCKETS)
            .map_err(|error| failed(&error))?;
    }
    let recorder = builder.install_recorder().map_err(|error| failed(&error))?;
    telemetry::describe();
    Ok(recorder)
}
