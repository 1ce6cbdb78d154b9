//! How much may be asked at once, and for how long: operators share the database with the relay.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Problem;

/// The most requests that are worked on at the same time; others wait for their turn.
const AT_ONCE_MAX: usize = 8;

/// How long an answer may take, the wait for its turn included.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The turns of the requests.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE_MAX)))
    }
}

/// Answers in its turn and in time, or says that it did not.
pub(crate) async fn keep(State(turns): State<Turns>, request: Request, next: Next) -> Response {
    let answered = timeout(ANSWER_WITHIN, async {
        let _turn = turns.0.acquire().await;
        next.run(request).await
    });
    answered.await.unwrap_or_else(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "it takes too long",
            format!(
                "there is no answer within {ANSWER_WITHIN:?}; ask for less, say by a tenant or a time. What was to be \
                 changed may be changed in part, and asking again does the rest"
            ),
        )
        .into_response()
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    async fn asked(router: &Router, path: &str) -> StatusCode {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_and_so_is_who_waits_behind_it() {
        let router = Router::new()
            .route("/", get(async || "at once"))
            .route("/stuck", get(std::future::pending::<()>))
            .layer(from_fn_with_state(Turns::default(), keep));
        let begun = tokio::time::Instant::now();
        let mut stuck = Vec::new();
        for _ in 0..AT_ONCE_MAX {
            let router = router.clone();
            stuck.push(tokio::spawn(async move { asked(&router, "/stuck").await }));
        }
        tokio::task::yield_now().await;
        let behind = tokio::spawn({
            let router = router.clone();
            async move { asked(&router, "/stuck").await }
        });
        for one in stuck {
            assert_eq!(one.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(behind.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(begun.elapsed() <= ANSWER_WITHIN + Duration::from_secs(1));
        assert_eq!(
            asked(&router, "/").await,
            StatusCode::OK,
            "its turn was given back"
        );
    }
}
