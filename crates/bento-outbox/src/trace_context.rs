//! The trace context of the OpenTelemetry span that is active here.

use opentelemetry::trace::{SpanContext, TraceContextExt as _};
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
    use std::str::FromStr as _;

    use opentelemetry::trace::{
        Span as _, SpanContext, SpanId, TraceFlags, TraceId, TraceState, Tracer as _,
        TracerProvider as _,
    };
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
    use tracing::Instrument as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use crate::causality::{Cause, handling};
    use crate::event::{Event, Headers, Payload};
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
}
