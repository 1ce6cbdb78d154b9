//! Who is let in.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;

use crate::{Admin, Problem};

/// Where there is no token, lets a request in that was sent to a loopback name. A page in a browser can send
/// requests to this machine, but not under such a name of its own ("DNS rebinding").
pub(crate) async fn own_name(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok());
    if admin.token.is_some() || host.is_some_and(is_loopback) {
        return next.run(request).await;
    }
    let detail =
        "without an admin_token only requests to localhost, 127.0.0.1 or [::1] are answered";
    Problem::new(StatusCode::FORBIDDEN, "not let in", detail).into_response()
}

/// Where there is a token, lets a request in that shows it.
pub(crate) async fn token(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Some(token) = &admin.token else {
        return next.run(request).await;
    };
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given
        .and_then(|given| given.to_str().ok())
        .and_then(|given| given.split_once(' '));
    let bearer = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let detail = match bearer.map(|(_, token)| token) {
        Some(given) if bool::from(given.as_bytes().ct_eq(token.as_bytes())) => {
            return next.run(request).await;
        }
        Some(_) => "the token is not the one of admin_token",
        None => "show admin_token as `Authorization: Bearer TOKEN`",
    };
    let mut answer = Problem::new(StatusCode::UNAUTHORIZED, "not let in", detail).into_response();
    let scheme = HeaderValue::from_static("Bearer");
    answer
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, scheme);
    answer
}

/// Refuses a change that a page of another origin asks for. Browsers say where a request comes from;
/// whoever says nothing is no browser. A token is never sent by such a page, so that behind a proxy, with
/// one, the names may differ.
pub(crate) async fn same_origin(
    State(admin): State<Admin>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let foreign = match (headers.get(header::ORIGIN), headers.get(header::HOST)) {
        _ if admin.token.is_some() || request.method().is_safe() => false,
        (None, _) => false,
        (Some(origin), host) => {
            let origin = origin.as_bytes().strip_prefix(b"http://");
            origin.is_none() || origin != host.map(HeaderValue::as_bytes)
        }
    };
    if foreign {
        let detail = "a page of another origin asks for this";
        return Problem::new(StatusCode::FORBIDDEN, "not let in", detail).into_response();
    }
    next.run(request).await
}

/// Whether `localhost`, `127.0.0.1:7077` or `[::1]:7077` is the machine itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_machine_itself_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:7077",
            "127.0.0.1:7077",
            "127.9.9.9",
            "[::1]:7077",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "[::2]",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
