//! Keeps web pages from driving the API through somebody's browser.
//!
//! A page can make a browser send requests to loopback, directly or by a name
//! that it lets resolve there. It cannot hide where it comes from (`Origin`, and
//! `Sec-Fetch-Site` where it only looks) nor which name it used (`Host`), so all
//! are looked at.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::Problem;

/// What a browser says of where a request comes from.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The way that callers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// The Unix socket, which has no host name of its own.
    Socket,
    /// A loopback address.
    Tcp,
    /// Any address, where a token is asked for: a page that gets there under a name of its
    /// own has none to show.
    Guarded,
}

/// Lets a request pass if its `Host` and `Origin` are ours.
pub(super) async fn guard(State(via): State<Via>, request: Request, next: Next) -> Response {
    match admit(via, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Whether a request's `Host` and `Origin` are ours, or the problem that they are not.
pub(crate) fn admit(via: Via, headers: &HeaderMap) -> Result<(), Problem> {
    check(via, headers)
        .map_err(|why| Problem::new(StatusCode::FORBIDDEN, "foreign", "refused", why))
}

fn check(via: Via, headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &HeaderName| match headers.get(name) {
        None => Ok(""),
        Some(value) => value.to_str().map_err(|_| format!("`{name}` is no text")),
    };
    // Names are the same in capitals.
    let host = text(&header::HOST)?.to_ascii_lowercase();
    let host = host.as_str();
    let name = without_port(host);
    let ours = match via {
        Via::Socket => matches!(name, "" | "localhost" | "reflowd"),
        // A tunnel may end at another port of ours; what counts is that the name
        // cannot be somebody else's.
        Via::Tcp => matches!(name, "localhost" | "127.0.0.1" | "[::1]"),
        Via::Guarded => true,
    };
    if !ours {
        return Err(format!("the host `{host}` is not this daemon; call it `localhost`"));
    }
    if headers.contains_key(header::ORIGIN) {
        let origin = text(&header::ORIGIN)?.to_ascii_lowercase();
        if host.is_empty() || origin.strip_prefix("http://") != Some(host) {
            return Err(format!("requests from pages of `{origin}` are refused"));
        }
    }
    // What a page only looks at has no origin, but a stream that it opens takes a place.
    let site = text(&FETCH_SITE)?;
    if matches!(site, "cross-site" | "same-site") {
        return Err("requests from pages of other origins are refused".into());
    }
    Ok(())
}

/// `localhost` of `localhost:9670`; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(via: Via, host: Option<&str>, origin: Option<&str>, passes: bool) {
        let mut headers = HeaderMap::new();
        if let Some(host) = host {
            headers.insert(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        let result = super::check(via, &headers);
        assert_eq!(result.is_ok(), passes, "{via:?} {host:?} {origin:?}: {result:?}");
    }

    #[test]
    fn only_our_own_names_pass() {
        check(Via::Socket, None, None, true);
        check(Via::Socket, Some(""), None, true);
        check(Via::Socket, Some("localhost"), None, true);
        check(Via::Socket, Some("reflowd"), None, true);
        check(Via::Socket, Some("example.com"), None, false);
        check(Via::Tcp, Some("localhost:9670"), None, true);
        check(Via::Tcp, Some("127.0.0.1:9670"), None, true);
        check(Via::Tcp, Some("[::1]:9670"), None, true);
        check(Via::Tcp, Some("[::1]"), None, true);
        check(Via::Tcp, Some("LocalHost:9670"), None, true);
        check(Via::Socket, Some("LOCALHOST"), None, true);
        check(Via::Guarded, Some("reflowd.example.com"), None, true);
        check(Via::Tcp, Some("localhost.example.com:9670"), None, false);
        check(Via::Tcp, Some("reflowd"), None, false);
        check(Via::Tcp, None, None, false);
    }

    #[test]
    fn a_page_that_only_looks_is_seen_too() {
        for (site, passes) in
            [("none", true), ("same-origin", true), ("same-site", false), ("cross-site", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:9670"));
            headers.insert(FETCH_SITE, HeaderValue::from_static(site));
            assert_eq!(super::check(Via::Tcp, &headers).is_ok(), passes, "{site}");
        }
    }

    #[test]
    fn only_our_own_pages_pass() {
        check(Via::Tcp, Some("localhost:9670"), Some("http://localhost:9670"), true);
        check(Via::Tcp, Some("localhost:9670"), Some("http://localhost:3000"), false);
        check(Via::Tcp, Some("localhost:9670"), Some("https://example.com"), false);
        check(Via::Tcp, Some("localhost:9670"), Some("null"), false);
        check(Via::Socket, Some("localhost"), Some("http://localhost"), true);
        check(Via::Tcp, Some("localhost:9670"), Some("http://LOCALHOST:9670"), true);
        check(Via::Guarded, Some("one.example"), Some("http://two.example"), false);
        check(Via::Socket, Some("localhost"), Some("https://example.com"), false);
        check(Via::Socket, None, Some("http://"), false);
    }
}
