//! Versions of actors and of the flow, for callers that change only what they have seen.
//!
//! An actor's version follows from what it runs and its keys, and not from its figures:
//! `ETag` on what shows it, `If-Match` on what changes it. Who asks for a change of
//! something that is another by now is told so (412), and nothing happens.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use reflowd_runtime::Actor;
use sha2::{Digest as _, Sha256};

use super::{Admin, Problem};

/// Adds versions to answers, and holds requests against them.
pub(super) async fn hold(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let Some(version) = version_of(&admin, request.uri().path()) else {
        return next.run(request).await;
    };
    if reads {
        let mut response = next.run(request).await;
        if response.status().is_success() {
            response.headers_mut().insert(header::ETAG, version);
        }
        return response;
    }
    let seen = request.headers().get(header::IF_MATCH);
    if seen.is_some_and(|seen| !matches(seen, &version)) {
        let why = "it has another version by now; look at it again";
        let status = StatusCode::PRECONDITION_FAILED;
        let problem = Problem::new(status, "changed", "changed meanwhile", why);
        return problem.with_header(header::ETAG, version).into_response();
    }
    next.run(request).await
}

/// The version of what a path is about, if it has one and is there.
fn version_of(admin: &Admin, path: &str) -> Option<HeaderValue> {
    let mut hash = Sha256::new();
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "v1", "actors" | "graph" | "reload"] => {
            admin.system.actors().iter().for_each(|actor| add(&mut hash, actor));
            for wire in admin.system.wires() {
                hash.update(format!("{} {} {:?}\n", wire.from(), wire.to(), wire.overflow()));
            }
        }
        ["", "v1", "actors", name]
        | ["", "v1", "actors", name, "state" | "pause" | "resume" | "retry" | "rollback"] => {
            add(&mut hash, &*admin.system.actor(name)?);
        }
        _ => return None,
    }
    let digest: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("\"{digest}\"").try_into().expect("digits and quotes make a header"))
}

fn add(hash: &mut Sha256, actor: &Actor) {
    let status = actor.status();
    let settings = serde_json::to_vec(&*actor.settings()).expect("settings can be encoded");
    hash.update(format!("{} {} {}\n", actor.name(), status.generation.number(), status.digest));
    hash.update(settings);
}

/// Whether `If-Match` names the version, in a list or by `*`.
fn matches(seen: &HeaderValue, version: &HeaderValue) -> bool {
    let (Ok(seen), Ok(version)) = (seen.to_str(), version.to_str()) else { return false };
    seen.split(',').map(str::trim).any(|tag| tag == "*" || tag == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seen: &str, expected: bool) {
        let version = HeaderValue::from_static("\"12ab\"");
        assert_eq!(matches(&seen.parse().unwrap(), &version), expected, "{seen}");
    }

    #[test]
    fn a_version_is_named_alone_in_a_list_or_by_a_star() {
        check("\"12ab\"", true);
        check("\"00\", \"12ab\"", true);
        check("*", true);
        check("\"12\"", false);
        check("W/\"12ab\"", false);
        check("12ab", false);
    }
}
