//! Traces, exported by OTLP as the standard variables of OpenTelemetry say.

#[cfg(feature = "otlp")]
mod otlp;

#[cfg(feature = "otlp")]
pub(crate) use otlp::Traces;
#[cfg(not(feature = "otlp"))]
pub(crate) use without::Traces;

/// Whether traces are to be exported, by the variables that `of` answers.
///
/// # Errors
/// One sentence about what is asked for and cannot be had.
fn are_wanted(of: impl Fn(&str) -> Option<String>) -> Result<bool, String> {
    let given = |name: &str| of(name).filter(|text| !text.trim().is_empty());
    if given("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
        return Ok(false);
    }
    let endpoints = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ];
    match given("OTEL_TRACES_EXPORTER").as_deref().map(str::trim) {
        Some("none") => return Ok(false),
        Some("otlp") => {}
        None if endpoints.iter().any(|name| given(name).is_some()) => {}
        None => return Ok(false),
        Some(other) => {
            let other = bento_outbox::sanitised(other);
            return Err(format!(
                "OTEL_TRACES_EXPORTER is {other}, and only otlp or none can be had; no traces are exported"
            ));
        }
    }
    let protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        .or_else(|| given("OTEL_EXPORTER_OTLP_PROTOCOL"));
    match protocol.as_deref().map(str::trim) {
        None | Some("http/protobuf") => Ok(true),
        Some(other) => {
            let other = bento_outbox::sanitised(other);
            Err(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {other}, and only http/protobuf is spoken, as a rule at port 4318 of \
                 the collector; no traces are exported"
            ))
        }
    }
}

/// What is said where traces are wanted of a program that was built without.
#[cfg(any(test, not(feature = "otlp")))]
const LEFT_OUT: &str = "the OTEL_ variables ask for traces, and this program was built without their export; build it \
     with --features full, or set OTEL_SDK_DISABLED=true";

#[cfg(not(feature = "otlp"))]
mod without {
    use tracing_subscriber::layer::Identity;

    /// No export of traces.
    pub(crate) struct Traces {
        /// What is to be said about it.
        pub(crate) complaint: Option<String>,
    }

    impl Traces {
        pub(crate) fn begin() -> Self {
            let complaint = match super::are_wanted(|name| std::env::var(name).ok()) {
                Ok(false) => None,
                Ok(true) => Some(super::LEFT_OUT.to_string()),
                Err(what) => Some(what),
            };
            Self { complaint }
        }

        pub(crate) fn layer(&self) -> Identity {
            Identity::new()
        }

        pub(crate) async fn end(self) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_variables_decide() {
        let wanted = |given: &[(&str, &str)]| {
            are_wanted(|name| {
                let mut found = given.iter().filter(|(other, _)| *other == name);
                found.next().map(|(_, value)| (*value).to_string())
            })
        };
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");
        assert_eq!(wanted(&[]), Ok(false), "nothing asks for traces");
        assert_eq!(wanted(&[endpoint]), Ok(true));
        assert_eq!(
            wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "x")]),
            Ok(true)
        );
        assert_eq!(wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(false));
        assert_eq!(wanted(&[("OTEL_TRACES_EXPORTER", "otlp")]), Ok(true));
        assert_eq!(
            wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]),
            Ok(false)
        );
        assert_eq!(
            wanted(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]),
            Ok(false)
        );
        assert_eq!(
            wanted(&[endpoint, ("OTEL_SDK_DISABLED", "false")]),
            Ok(true)
        );
        let zipkin = wanted(&[endpoint, ("OTEL_TRACES_EXPORTER", "zipkin\n")]).unwrap_err();
        assert!(
            zipkin.contains("is zipkin") && !zipkin.contains('\n'),
            "{zipkin}"
        );
        let grpc = wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).unwrap_err();
        assert!(grpc.contains("http/protobuf"), "{grpc}");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert_eq!(
            wanted(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), own]),
            Ok(true),
            "what is said of traces beats what is said of everything"
        );
        assert!(LEFT_OUT.contains("--features full"));
    }
}
