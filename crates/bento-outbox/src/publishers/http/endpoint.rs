//! Where events go, and the requests that carry them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::Full;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use hyper::{Method, Request, Uri};
use percent_encoding::percent_decode_str;
use url::{Position, Url};

use super::super::options::invalid;
use super::signature::WebhookSecrets;
use crate::cloud_event::CloudEvents;
use crate::error::Result;
use crate::record::RejectionClass::Permanent;
use crate::record::{OutboxRecord, Rejection, Status};
use crate::topic::Topic;

/// Where requests go, and what they are made of.
pub(super) struct Endpoint {
    pub(super) url: Uri,
    /// The URL without what may be secret in it: scheme, host and port.
    pub(super) shown: String,
    authorization: Option<HeaderValue>,
    topic: Topic,
    events: CloudEvents,
    secrets: WebhookSecrets,
}

impl Endpoint {
    /// The endpoint at `url`. A user in it goes into a header.
    pub(super) fn new(
        url: &Url,
        topic: Topic,
        events: CloudEvents,
        secrets: WebhookSecrets,
    ) -> Result<Self> {
        let host = &url[Position::BeforeHost..Position::AfterPort];
        let shown = format!("{}://{host}", url.scheme());
        let bare = format!("{shown}{}", &url[Position::BeforePath..]);
        Ok(Self {
            url: Uri::try_from(bare).map_err(|_| invalid("is no URL that HTTP could carry"))?,
            shown,
            authorization: authorization(url),
            topic,
            events,
            secrets,
        })
    }

    /// The request that carries a record, signed now.
    ///
    /// # Errors
    /// A permanent rejection that names what HTTP cannot carry.
    pub(super) fn request(&self, record: &OutboxRecord) -> Result<Request<Full<Bytes>>, Rejection> {
        let event = self.events.message(record)?;
        let topic = self.topic.of(record)?;
        let mut headers = HeaderMap::with_capacity(32);
        for (name, value) in event.headers {
            self.check_header(&name)?;
            headers.append(header_name(&name)?, header_value(&name, &value)?);
        }
        for (name, value) in event.attributes {
            // The binding gives it the content type's place and forbids it another one.
            if name != "datacontenttype" {
                headers.insert(
                    attribute_name(name)?,
                    header_value(name, &CloudEvents::header_value(&value))?,
                );
            }
        }
        headers.insert(
            CONTENT_TYPE,
            header_value("content_type", event.content_type)?,
        );
        // An empty body has a length too: some servers insist on it.
        headers.insert(CONTENT_LENGTH, event.body.len().into());
        // The copy of a dead letter is another message: a receiver that has seen it must still take the
        // event when somebody retries it.
        let id = match record.delivery.status {
            Status::Err => format!("{}-dead", record.id),
            _ => record.id.to_string(),
        };
        let now = Utc::now().timestamp();
        if let Some(signature) = self.secrets.signature(&id, now, &event.body) {
            headers.insert(
                WEBHOOK_SIGNATURE,
                header_value("webhook-signature", &signature)?,
            );
        }
        headers.insert(WEBHOOK_ID, header_value("webhook-id", &id)?);
        headers.insert(WEBHOOK_TIMESTAMP, now.into());
        headers.insert(
            WEBHOOK_TOPIC,
            header_value("topic", &CloudEvents::header_value(&topic))?,
        );
        headers.entry(USER_AGENT).or_insert(USER);
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut request = Request::new(Full::new(event.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Refuses a header of an event that would have a say in the connection, or in who we are.
    fn check_header(&self, name: &str) -> Result<(), Rejection> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let taken = is("authorization") && self.authorization.is_some();
        if taken
            || ["keep-alive", "proxy-connection", "http2-settings"]
                .into_iter()
                .any(is)
        {
            let reason = format!("header {name:?} is a name that the connection itself uses");
            return Err(Rejection::new(Permanent, reason));
        }
        Ok(())
    }
}

/// User and password of the URL (Basic, RFC 7617).
fn authorization(url: &Url) -> Option<HeaderValue> {
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
    let (user, password) = (url.username(), url.password());
    if user.is_empty() && password.is_none() {
        return None;
    }
    let password = password.unwrap_or_default();
    let credentials = format!("{}:{}", decoded(user), decoded(password));
    let basic = format!("Basic {}", BASE64.encode(credentials));
    let mut value = HeaderValue::try_from(basic).expect("base64 is plain ASCII");
    value.set_sensitive(true);
    Some(value)
}

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// The names that begin so are reserved, so that no event can have a header of this name.
const WEBHOOK_TOPIC: HeaderName = HeaderName::from_static("webhook-topic");
const USER: HeaderValue =
    HeaderValue::from_static(concat!("bento-outbox/", env!("CARGO_PKG_VERSION")));

/// The header of an attribute. Most events have these names, which need not be built each time.
fn attribute_name(attribute: &str) -> Result<HeaderName, Rejection> {
    macro_rules! known {
        ($($name:literal)+) => {
            match attribute {
                $($name => return Ok(HeaderName::from_static(concat!("ce-", $name))),)+
                _ => {}
            }
        };
    }
    known! {
        "specversion" "id" "source" "type" "time" "subject" "dataschema"
        "tenantid" "aggregatetype" "schemaversion" "sequence" "partitionkey"
        "traceparent" "tracestate" "correlationid" "causationid"
    }
    header_name(&format!("ce-{attribute}"))
}

fn header_name(name: &str) -> Result<HeaderName, Rejection> {
    HeaderName::try_from(name).map_err(|_| {
        Rejection::new(
            Permanent,
            format!("header {name:?} is no name that HTTP knows"),
        )
    })
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Rejection> {
    HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
        Rejection::new(
            Permanent,
            format!("{name} is no text that HTTP could carry"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Payload};
    use crate::tenant::Tenant;
    use crate::timestamp::Timestamp;

    fn record() -> OutboxRecord {
        let event = Event::new("order.placed", Payload::json("1").unwrap());
        OutboxRecord::of(&event, &Tenant::default(), 7, Timestamp::now())
    }

    fn request(url: &str, record: &OutboxRecord) -> Result<Request<Full<Bytes>>, Rejection> {
        let (topic, events) = (Topic::default(), CloudEvents::default());
        let url = Url::parse(url).unwrap();
        let endpoint = Endpoint::new(&url, topic, events, WebhookSecrets::default());
        endpoint.unwrap().request(record)
    }

    #[test]
    fn a_request_has_the_attributes_that_the_binding_says_and_no_others() {
        let mut record = record();
        record.headers = r#"{"x-shop":"Z\u00fcrich","X-Shop":"2","user-agent":"mine"}"#.into();
        let request = request("http://bob:p%40ss@h/a", &record).unwrap();
        let headers = request.headers();
        let header = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
        let shop: Vec<_> = headers
            .get_all("x-shop")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(shop, [b"2".as_slice(), "Zürich".as_bytes()]);
        for (name, value) in [
            ("ce-type", Some("order.placed")),
            ("ce-datacontenttype", None),
            ("content-type", Some("application/json")),
            ("user-agent", Some("mine")),
            ("authorization", Some("Basic Ym9iOnBAc3M=")),
            ("webhook-id", Some(record.id.to_string().as_str())),
            ("webhook-topic", Some("order.placed")),
            ("webhook-signature", None),
        ] {
            assert_eq!(
                header(name),
                value.map(|value| value.as_bytes().to_vec()),
                "{name}"
            );
        }
        assert!(
            !format!("{headers:?}").contains("Ym9i"),
            "a secret in Debug"
        );
    }

    #[test]
    fn a_header_that_would_speak_for_the_connection_is_refused() {
        for (url, name, refused) in [
            ("http://h/", "Keep-Alive", true),
            ("http://h/", "proxy-connection", true),
            ("http://h/", "authorization", false),
            ("http://bob:pw@h/", "Authorization", true),
        ] {
            let mut record = record();
            record.headers = format!("{{\"{name}\":\"x\"}}");
            let rejection = request(url, &record).err();
            assert_eq!(rejection.is_some(), refused, "{name}");
            let class = rejection.map(|rejection| rejection.class);
            assert!(class.is_none_or(|class| class == Permanent));
        }
    }
}
