//! The trace context of the OpenTelemetry span that is active here.

use std::str::FromStr as _;

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A W3C trace context, as it is written into headers.
pub(crate) struct TraceContext {
    pub(crate) traceparent: String,
    pub(crate) tracestate: Option<String>,
}

/// That of the current span of `tracing`, as `tracing-opentelemetry` knows it; otherwise that of the
/// current OpenTelemetry context.
pub(crate) fn current() -> Option<TraceContext> {
    let spans = [
        tracing::Span::current().context(),
        opentelemetry::Context::current(),
    ];
    spans
        .iter()
        .map(|context| context.span().span_context().clone())
        .find(SpanContext::is_valid)
        .map(|span| written(&span))
}

/// That of a span, if `tracing-opentelemetry` knows it.
pub(crate) fn of(span: &Span) -> Option<TraceContext> {
    let context = span.context().span().span_context().clone();
    context.is_valid().then(|| written(&context))
}

/// Makes a span, which nobody has entered yet, part of the trace that is written there. Whether it is
/// sampled was decided where that trace began.
pub(crate) fn go_on(span: &Span, with: &TraceContext) -> bool {
    let Some(parent) = read(with) else {
        return false;
    };
    let context = opentelemetry::Context::new().with_remote_span_context(parent);
    span.set_parent(context).is_ok()
}

/// Of a later version the first four parts are as in this one.
fn read(context: &TraceContext) -> Option<SpanContext> {
    let mut parts = context.traceparent.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let id = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let state = context.tracestate.as_deref().unwrap_or_default();
    let state = TraceState::from_str(state).unwrap_or_default();
    let context = SpanContext::new(trace, id, TraceFlags::new(flags), true, state);
    context.is_valid().then_some(context)
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>
fn written(span: &SpanContext) -> TraceContext {
    let (trace, id, flags) = (span.trace_id(), span.span_id(), span.trace_flags());
    TraceContext {
        traceparent: format!("00-{trace}-{id}-{flags:02x}"),
        tracestate: Some(span.trace_state().header()).filter(|state| !state.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter};
    use tracing::Instrument as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use crate::causality::{Cause, handling};
    use crate::error::{Error, ErrorKind};
    use crate::event::{Event, Headers, Payload};
    use crate::outbox::Outbox;
    use crate::projector::{Projector, ProjectorSettings};
    use crate::publishers::MemoryPublisher;
    use crate::stores::MemoryStore;
    use crate::testing::Unit;

    use super::*;

    fn raise() -> crate::error::Result<()> {
        crate::raise(Event::new("a", Payload::json("1")?))
    }

    fn headers(unit: &Unit) -> Vec<(Option<String>, Option<String>)> {
        let header = |event: &Event, name| event.headers.get(name).map(str::to_owned);
        let both = |event: &Event| {
            (
                header(event, Headers::TRACEPARENT),
                header(event, Headers::TRACESTATE),
            )
        };
        unit.raised().iter().map(both).collect()
    }

    fn remote(state: &str) -> opentelemetry::Context {
        opentelemetry::Context::new().with_remote_span_context(SpanContext::new(
            TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap(),
            SpanId::from_hex("b7ad6b7169203331").unwrap(),
            TraceFlags::SAMPLED,
            true,
            TraceState::from_str(state).unwrap(),
        ))
    }

    #[tokio::test]
    async fn events_carry_the_trace_context_of_the_current_span() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let unit = Unit::default();

        let span = tracing::info_span!("place an order");
        span.set_parent(remote("shop=1")).unwrap();
        unit.enter(
            async {
                raise().unwrap();
                let message = Cause {
                    traceparent: Some("00-x".into()),
                    ..Cause::default()
                };
                handling(
                    message,
                    async { raise() }.instrument(tracing::info_span!("within")),
                )
                .await
                .unwrap();
            }
            .instrument(span.clone()),
        )
        .await;
        unit.track(raise).unwrap();

        let seen = headers(&unit);
        let own = span.context().span().span_context().clone();
        assert_eq!(
            own.trace_id().to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        let expected = format!("00-{}-{}-01", own.trace_id(), own.span_id());
        assert_eq!(seen[0], (Some(expected.clone()), Some("shop=1".into())));
        let within = seen[1].0.clone().unwrap();
        assert_eq!(within[..36], expected[..36], "the same trace");
        assert_ne!(within, expected, "and another span");
        assert_eq!(seen[2], (None, None), "no span is active there");
    }

    #[tokio::test]
    async fn without_a_span_the_handled_messages_context_goes_on() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let message = Cause {
            message_id: "m".into(),
            traceparent: Some(parent.into()),
            tracestate: Some("a=b".into()),
            ..Cause::default()
        };
        let unit = Unit::default();
        unit.enter(handling(message.clone(), async { raise() }))
            .await
            .unwrap();
        assert_eq!(headers(&unit), [(Some(parent.into()), Some("a=b".into()))]);

        // Without tracing, and not sampled: the context of OpenTelemetry itself.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOff)
            .build();
        let span = provider
            .tracer("shop")
            .start_with_context("handle", &remote(""));
        let own = span.span_context().clone();
        let _active = opentelemetry::Context::new().with_span(span).attach();
        let unit = Unit::default();
        unit.enter(handling(message, async { raise() }))
            .await
            .unwrap();
        let expected = format!("00-{}-{}-00", own.trace_id(), own.span_id());
        assert_eq!(headers(&unit), [(Some(expected), None)]);
    }

    /// Keeps what is exported.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    impl Kept {
        /// All spans of that name, in the order in which they ended.
        fn named(&self, name: &str) -> Vec<SpanData> {
            let spans = self.0.lock().unwrap();
            spans
                .iter()
                .filter(|span| span.name == name)
                .cloned()
                .collect()
        }

        fn collect(&self) -> tracing::subscriber::DefaultGuard {
            let provider = SdkTracerProvider::builder()
                .with_simple_exporter(self.clone())
                .build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("shop"));
            tracing::subscriber::set_default(tracing_subscriber::registry().with(layer))
        }
    }

    #[tokio::test]
    async fn a_trace_goes_on_from_the_commit_to_the_bus() {
        let kept = Kept::default();
        let _guard = kept.collect();
        let (store, bus) = (MemoryStore::default(), MemoryPublisher::default());
        let outbox = Outbox::new(store.clone());
        outbox
            .run(async |_| raise())
            .instrument(tracing::info_span!("place an order"))
            .await
            .unwrap();
        outbox.run(async |_| raise()).await.unwrap();
        let failed = outbox
            .run(async |_| {
                raise()?;
                Err::<(), _>(Error::new(ErrorKind::Conflict, "no"))
            })
            .await;
        assert!(failed.is_err());
        let projector = Projector::new(
            Arc::new(store),
            Arc::new(bus.clone()),
            ProjectorSettings::default(),
        );
        assert_eq!(projector.run_once().await.unwrap().sent, 2);
        projector.run_once().await.unwrap();

        let commits = kept.named("outbox.commit");
        assert_eq!(commits.len(), 2, "what was rolled back was not committed");
        let [batch] = &kept.named("outbox.batch")[..] else {
            panic!("a round without records is no batch: {kept:?}");
        };
        let publications = kept.named("outbox.publish");
        let order = &kept.named("place an order")[0].span_context;
        assert_eq!(commits[0].parent_span_id, order.span_id());
        // Raised in the span, and so caused by it; without one the commit is what it was caused by.
        let causes = [order, &commits[1].span_context];
        for (publication, cause) in publications.iter().zip(causes) {
            assert_eq!(publication.span_context.trace_id(), cause.trace_id());
            assert_eq!(publication.parent_span_id, cause.span_id());
            let links: Vec<SpanId> = publication
                .links
                .iter()
                .map(|link| link.span_context.span_id())
                .collect();
            assert_eq!(links, [batch.span_context.span_id()]);
        }
        assert_eq!(publications.len(), 2);
        for (record, cause) in bus.take_published().iter().zip(causes) {
            let headers = record.headers().unwrap();
            assert_eq!(
                headers.get(Headers::TRACEPARENT),
                Some(written(cause).traceparent.as_str()),
                "the message has what the event has"
            );
        }
    }

    #[tokio::test]
    async fn publishing_at_once_is_part_of_the_trace_and_a_commit_that_fails_says_so() {
        let kept = Kept::default();
        let _guard = kept.collect();
        let store = MemoryStore::default();
        let outbox = Outbox::new(store.clone()).publish_with(MemoryPublisher::default());
        outbox.run(async |_| raise()).await.unwrap();
        outbox.flushed().await;
        let (commit, publication) = (kept.named("outbox.commit"), kept.named("outbox.publish"));
        assert_eq!(
            publication[0].parent_span_id,
            commit[0].span_context.span_id()
        );
        assert_eq!(commit[0].status, opentelemetry::trace::Status::Unset);

        let mut uow = outbox.begin().await.unwrap();
        {
            let nested = pin!(uow.nested(async |uow| {
                uow.raise(Event::new("a", Payload::json("1").unwrap()))?;
                std::future::pending::<crate::error::Result<()>>().await
            }));
            let given_up = tokio::time::timeout(Duration::from_millis(20), nested).await;
            assert!(given_up.is_err());
        }
        assert!(uow.commit().await.is_err(), "a nested unit did not end");
        let commit = kept.named("outbox.commit").pop().unwrap();
        assert!(matches!(
            commit.status,
            opentelemetry::trace::Status::Error { .. }
        ));
    }
}
