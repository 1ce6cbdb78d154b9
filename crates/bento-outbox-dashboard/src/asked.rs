//! What a request says, taken strictly: what is unknown, doubled or out of bounds is refused, by name.

use axum::body::{Bytes, HttpBody as _};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bento_outbox::{Filter, Tenant, Timestamp};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use crate::Problem;

/// The most bytes of a request's body: a thousand ids take forty thousand.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 10;

/// The most characters of a text that is searched for.
const TEXT_CHARS_MAX: usize = 255;

/// The query of a request.
pub(crate) struct Asked<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => {
                let what = rejection.body_text();
                let what = what.strip_prefix("Failed to deserialize query string: ");
                let detail = match what {
                    Some(what) => format!("the query is wrong: {what}"),
                    None => "the query is wrong".into(),
                };
                Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "the query is wrong",
                    detail,
                ))
            }
        }
    }
}

/// The JSON body of a request.
///
/// Only `application/json` is taken. A page of another origin cannot send that without asking this
/// server first, which never says yes. Where nothing has to be said, a body may be missing altogether: with that a
/// browser sends the page's origin, and no other than ours comes through the door.
pub(crate) struct Given<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Given<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers();
        let is_unsaid =
            !headers.contains_key(header::CONTENT_TYPE) && request.body().is_end_stream();
        if is_unsaid && let Ok(nothing) = serde_json::from_str("{}") {
            return Ok(Self(nothing));
        }
        if !is_json(headers) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not JSON",
                "send the body as `Content-Type: application/json`",
            ));
        }
        let body = match Bytes::from_request(request, state).await {
            Ok(body) => body,
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                return Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too large",
                    format!("a body has at most {BODY_BYTES_MAX} bytes"),
                ));
            }
            Err(_) => {
                return Err(wrong_body("it did not arrive whole"));
            }
        };
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|error| wrong_body(&error.to_string()))
    }
}

fn wrong_body(what: &str) -> Problem {
    let detail = format!("the body is wrong: {what}");
    Problem::new(StatusCode::BAD_REQUEST, "the body is wrong", detail)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| {
            let kind = kind.split(';').next().unwrap_or_default().trim();
            kind.eq_ignore_ascii_case("application/json")
        })
}

/// The event's id in the path, in its usual form with hyphens.
pub(crate) struct EventId(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for EventId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let InPath(id) = InPath::<HyphenatedUuid>::from_request_parts(parts, state).await?;
        Ok(Self(id.0))
    }
}

/// What stands in the path.
pub(crate) struct InPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            Err(rejection) => {
                let what = rejection.body_text();
                let what = what.strip_prefix("Invalid URL: ").unwrap_or(&what);
                let detail = format!("the path is wrong: {what}");
                Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "the path is wrong",
                    detail,
                ))
            }
        }
    }
}

/// An id as it is shown everywhere: `0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001`.
#[derive(Clone, Copy)]
pub(crate) struct HyphenatedUuid(pub(crate) Uuid);

impl<'de> Deserialize<'de> for HyphenatedUuid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match Uuid::try_parse(&text) {
            Ok(id) if text.len() == 36 => Ok(Self(id)),
            _ => Err(D::Error::custom(
                "an event's id is a UUID, as 0190b2f4-7c3e-7cc1-8bd5-6fd3b3f6a001",
            )),
        }
    }
}

/// A text that is searched for: not empty, and without control characters, which no event has.
pub(crate) struct Text(pub(crate) String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let chars = text.chars().count();
        if chars == 0 || chars > TEXT_CHARS_MAX || text.chars().any(char::is_control) {
            return Err(D::Error::custom(
                "a text that is searched for has 1 to 255 characters and no control characters",
            ));
        }
        Ok(Self(text))
    }
}

/// A member that may be missing, but is no null.
pub(crate) fn present<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}

/// Filters of a body: an event must match all that are given.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chosen {
    #[serde(default, deserialize_with = "present")]
    ids: Option<Vec<HyphenatedUuid>>,
    #[serde(default, deserialize_with = "present")]
    tenant: Option<Tenant>,
    #[serde(default, rename = "type", deserialize_with = "present")]
    event_type: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    aggregate: Option<Text>,
    #[serde(default, deserialize_with = "present")]
    since: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    until: Option<Timestamp>,
    #[serde(default)]
    all: bool,
}

/// The most ids in one request.
pub(crate) const IDS_MAX: usize = 1_000;

impl Chosen {
    /// The filter; it must be meant.
    ///
    /// # Errors
    /// 400 where neither a filter nor `all` was given, or both were; 422 where nothing can match.
    pub(crate) fn filter(self, of_what: &str) -> Result<Filter, Problem> {
        let refuse =
            |what: String| Err(Problem::new(StatusCode::BAD_REQUEST, "which events?", what));
        if let Some(ids) = &self.ids
            && !(1..=IDS_MAX).contains(&ids.len())
        {
            return refuse(format!("`ids` has 1 to {IDS_MAX} ids"));
        }
        let filter = Filter {
            tenant: self.tenant,
            event_type: self.event_type.map(|text| text.0),
            aggregate_id: self.aggregate.map(|text| text.0),
            since: self.since,
            until: self.until,
            ids: self.ids.map(|ids| ids.into_iter().map(|id| id.0).collect()),
            ..Filter::default()
        };
        match (filter != Filter::default(), self.all) {
            (true, false) | (false, true) => matchable(filter),
            (false, false) => refuse(format!(
                "which {of_what}? Give ids, tenant, type, aggregate, since or until, or `\"all\": true`"
            )),
            (true, true) => refuse("`all` goes with no other filter".into()),
        }
    }
}

/// A filter that some event may match.
///
/// # Errors
/// 422 where none can.
pub(crate) fn matchable(filter: Filter) -> Result<Filter, Problem> {
    match filter.check() {
        Ok(()) => Ok(filter),
        Err(error) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "nothing can match",
            error.report(),
        )),
    }
}
