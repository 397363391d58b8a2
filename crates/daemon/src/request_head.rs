//! Checks that every listener makes on a request's head.
//!
//! A head that two implementations could read differently is refused: a proxy in front of the
//! daemon may have let it pass as one request, and the daemon would serve another (RFC 9112, 3.2).

use axum::http::{Request, StatusCode, Version, header, uri::Authority};

use crate::admin::Problem;

/// The longest request target in bytes: the length that RFC 9110 asks every server to support.
const MAX_TARGET: usize = 8000;

/// The largest request head in bytes. Larger than [`MAX_TARGET`], so that an overlong target is
/// answered with 414 rather than 431.
pub(crate) const MAX_HEAD: usize = 64 << 10;

/// Checks that a request names exactly one host and has a target of reasonable length, and sets
/// `Host` to the host that counts: that of an absolute target, if it has one.
///
/// # Errors
/// The problem to answer with.
pub(crate) fn settle<B>(request: &mut Request<B>) -> Result<(), Problem> {
    let length = target_length(request);
    if length > MAX_TARGET {
        let why = format!(
            "the target has {length} bytes, and at most {MAX_TARGET} are allowed; shorten it"
        );
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "target", "target too long", why)
            .with("max", MAX_TARGET));
    }
    let refused = |why: &str| Problem::bad_request("host", "bad host", why);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => {
            return Err(refused("the request has several `Host` headers; send one"));
        }
        (None, _) if request.version() == Version::HTTP_11 => {
            return Err(refused("the request has no `Host` header; HTTP/1.1 requires one"));
        }
        (host, _) => host,
    };
    if host.is_some_and(|host| !host.is_empty() && !is_host(host.as_bytes())) {
        return Err(refused("the `Host` header is not a host name with an optional port"));
    }
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    if authority.as_str().contains('@') {
        return Err(refused("the target names a user; send credentials in `Authorization`"));
    }
    let host = authority.as_str().parse().expect("an authority is a header's value");
    request.headers_mut().insert(header::HOST, host);
    Ok(())
}

fn is_host(bytes: &[u8]) -> bool {
    !bytes.contains(&b'@') && Authority::try_from(bytes).is_ok()
}

/// The length of a request's target, give or take its scheme.
fn target_length<B>(request: &Request<B>) -> usize {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    authority + uri.path().len() + uri.query().map_or(0, |query| 1 + query.len())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    #[track_caller]
    fn check(version: Version, target: &str, hosts: &[&str], expected: Result<Option<&str>, u16>) {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        let found = settle(&mut request).map(|()| {
            let all: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
            assert!(all.len() < 2, "{all:?}");
            all.first().map(|host| host.to_str().unwrap())
        });
        let found = found.map_err(|problem| problem.into_response().status().as_u16());
        assert_eq!(found, expected, "{version:?} {target} {hosts:?}");
    }

    #[test]
    fn a_request_names_one_host() {
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        check(new, "/", &["localhost:1"], Ok(Some("localhost:1")));
        check(new, "/", &[""], Ok(Some("")));
        check(new, "/", &["[::1]:80"], Ok(Some("[::1]:80")));
        check(new, "/", &[], Err(400));
        check(old, "/", &[], Ok(None));
        check(old, "/", &["a"], Ok(Some("a")));
        for version in [old, new] {
            check(version, "/", &["localhost", "localhost"], Err(400));
            check(version, "/", &["localhost", "evil.example"], Err(400));
        }
        for host in ["a b", "a/b", "user@localhost", "http://a", "[::1"] {
            check(new, "/", &[host], Err(400));
        }
    }

    #[test]
    fn of_an_absolute_target_its_host_counts() {
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        check(new, "http://evil.example/x", &["localhost"], Ok(Some("evil.example")));
        check(new, "http://localhost:9/x", &["evil.example"], Ok(Some("localhost:9")));
        check(old, "http://evil.example/", &[], Ok(Some("evil.example")));
        check(new, "http://localhost/", &[], Err(400));
        check(new, "http://localhost/", &["localhost", "localhost"], Err(400));
        check(new, "http://localhost@evil.example/", &["localhost"], Err(400));
    }

    #[test]
    fn a_target_has_a_bound() {
        let target = |length: usize| format!("/{}", "x".repeat(length - 1));
        check(Version::HTTP_11, &target(MAX_TARGET), &["a"], Ok(Some("a")));
        check(Version::HTTP_11, &target(MAX_TARGET + 1), &["a"], Err(414));
        let query = format!("/?{}", "x".repeat(MAX_TARGET - 1));
        check(Version::HTTP_11, &query, &["a"], Err(414));
        // The length is checked first.
        check(Version::HTTP_11, &target(MAX_TARGET + 1), &[], Err(414));
    }
}
