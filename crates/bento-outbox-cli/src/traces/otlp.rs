//! The exporter: spans in batches, by a thread of the SDK, over the runtime of the program.
//!
//! It never stands in the way: what does not fit into its queue is dropped, and a collector that is away
//! is told of once.

use std::env;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bento_outbox::sanitised;
use hyper_rustls::HttpsConnectorBuilder;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

/// How long one request may take unless the variables say otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long what is left may take at the end.
const END_MAX: Duration = Duration::from_secs(2);

/// The export of traces; none where nobody asked for it.
pub(crate) struct Traces {
    provider: Option<SdkTracerProvider>,
    /// What is to be said about it.
    pub(crate) complaint: Option<String>,
}

impl Traces {
    /// Exports what is traced from now on, if the variables say so.
    pub(crate) fn begin() -> Self {
        let wanted = super::are_wanted(|name| env::var(name).ok());
        let provider = wanted.and_then(|wanted| wanted.then(provider).transpose());
        let (provider, complaint) = match provider {
            Ok(provider) => (provider, None),
            Err(what) => (None, Some(what)),
        };
        Self {
            provider,
            complaint,
        }
    }

    /// What hands the library's spans to the exporter, and nothing else.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let ours = |about: &Metadata<'_>| {
            about.is_span()
                && *about.level() <= Level::DEBUG
                && about.target().starts_with("bento_outbox")
        };
        self.provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("bento-outbox"))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_level(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(ours).with_max_level_hint(LevelFilter::DEBUG))
        })
    }

    /// Exports what is left, within bounds.
    pub(crate) async fn end(self) {
        if let Some(provider) = self.provider {
            // It waits for the SDK's thread, which waits for this runtime.
            let end = move || provider.shutdown_with_timeout(END_MAX);
            let _ = tokio::task::spawn_blocking(end).await;
        }
    }
}

fn provider() -> Result<SdkTracerProvider, String> {
    let failed = |error: &dyn fmt::Display| {
        let error = sanitised(&error.to_string());
        format!("no traces are exported: {error}; see the OTEL_EXPORTER_OTLP_ variables")
    };
    let sender = Sender {
        runtime: Handle::current(),
        client: client().map_err(|error| failed(&error))?,
        is_away: AtomicBool::new(false),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .build()
        .map_err(|error| failed(&error))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource())
        .build())
}

/// What the variables say of this process, and what they leave open.
fn resource() -> Resource {
    let said = Resource::builder().build();
    let named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|text| text.contains("service.name="));
    let mut ours = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
    ];
    ours.retain(|attribute| said.get(&attribute.key).is_none());
    if !named {
        ours.push(KeyValue::new("service.name", "bento-outbox"));
    }
    Resource::builder().with_attributes(ours).build()
}

fn client() -> Result<Arc<dyn HttpClient>, std::io::Error> {
    let first = |names: [&str; 2]| names.iter().find_map(|name| env::var(name).ok());
    let millis = first([
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
    ]);
    let millis = millis.and_then(|text| text.trim().parse().ok());
    let timeout = millis.map_or(TIMEOUT, Duration::from_millis);
    let endpoint = first([
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]);
    // The certificates of the system are read only where one is to be checked.
    if !endpoint.is_some_and(|url| url.trim().starts_with("https:")) {
        return Ok(Arc::new(HyperClient::with_default_connector(timeout, None)));
    }
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())?
        .https_only()
        .enable_http1()
        .build();
    Ok(Arc::new(HyperClient::new(https, timeout, None)))
}

/// Sends over the runtime of the program, since the SDK's thread has none, and says when the collector
/// goes away and comes back.
struct Sender {
    runtime: Handle,
    client: Arc<dyn HttpClient>,
    is_away: AtomicBool,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sent = self
            .runtime
            .spawn(async move { client.send_bytes(request).await });
        let answered = sent.await.map_err(HttpError::from).and_then(|sent| sent);
        match &answered {
            Ok(response) if response.status().is_success() => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("traces are exported again");
                }
            }
            Ok(response) => self.is_away_because(response.status().to_string()),
            Err(error) => self.is_away_because(reasons(error.as_ref())),
        }
        answered
    }
}

impl Sender {
    fn is_away_because(&self, reason: String) {
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                reason = sanitised(&reason),
                "traces cannot be exported, and are lost until they can; events are carried on"
            );
        }
    }
}

/// An error with what caused it: the outermost one says little.
fn reasons(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
