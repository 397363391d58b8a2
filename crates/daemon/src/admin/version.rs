//! Versions of actors and of the flow, for callers that change only what they have seen.
//!
//! An actor's version follows from what it runs and its keys, and not from its figures; a
//! state has its own, which follows from the text too: `ETag` on what shows it, `If-Match`
//! on what changes it. Who asks for a change of something that is another by now is told so
//! (412), and nothing happens. That is looked at twice: when the request comes, and by
//! whoever makes the change, in the moment in which nobody else can.

use axum::{
    extract::{RawPathParams, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use reflowd_runtime::{Actor, Precondition};
use sha2::{Digest as _, Sha256};

use super::{Admin, Problem};

/// What a request is about.
#[derive(Clone, Debug)]
enum Subject {
    /// All actors and wires.
    Flow,
    /// The actor of that name.
    Actor(String),
    /// Its state.
    State(String),
    /// Something that has no version.
    Other,
}

/// Adds versions to answers, and holds requests against them. Those that change something
/// find a [`Precondition`] to be looked at by whoever does it.
pub(super) async fn hold(
    State(admin): State<Admin>,
    parameters: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let subject = Subject::of(request.uri().path(), &parameters);
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        let version = subject.version(&admin);
        let mut response = next.run(request).await;
        if let Some(version) = version.filter(|_| response.status().is_success()) {
            response.headers_mut().insert(header::ETAG, version);
        }
        return response;
    }
    let seen: Vec<_> = request.headers().get_all(header::IF_MATCH).iter().cloned().collect();
    let mut precondition = Precondition::default();
    if !seen.is_empty() {
        let still = move || {
            let version = subject.version(&admin);
            version.is_some_and(|version| seen.iter().any(|seen| matches(seen, &version)))
        };
        precondition = Precondition::new(still);
    }
    if !precondition.holds() {
        return changed().into_response();
    }
    request.extensions_mut().insert(precondition);
    next.run(request).await
}

/// The problem that what was to be changed is not what the caller has seen.
pub(super) fn changed() -> Problem {
    let why = "it has another version by now, or none; look at it again";
    Problem::new(StatusCode::PRECONDITION_FAILED, "changed", "changed meanwhile", why)
}

impl Subject {
    /// What a path is about. Its parameters are decoded, so that every way of writing a
    /// name is the name.
    fn of(path: &str, parameters: &RawPathParams) -> Self {
        let actor = || {
            let named = parameters.iter().find(|(name, _)| *name == "actor");
            named.map(|(_, actor)| actor.to_owned()).unwrap_or_default()
        };
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", "v1", "actors" | "graph" | "reload"] => Self::Flow,
            ["", "v1", "actors", _, "state"] => Self::State(actor()),
            ["", "v1", "actors", _]
            | ["", "v1", "actors", _, "pause" | "resume" | "retry" | "rollback"] => {
                Self::Actor(actor())
            }
            _ => Self::Other,
        }
    }

    /// Its version, if it has one and is there.
    fn version(&self, admin: &Admin) -> Option<HeaderValue> {
        let mut hash = Sha256::new();
        match self {
            Self::Flow => {
                admin.system.actors().iter().for_each(|actor| add(&mut hash, actor));
                for wire in admin.system.wires() {
                    let overflow = wire.overflow();
                    hash.update(format!("{} {} {overflow:?}\n", wire.from(), wire.to()));
                }
            }
            Self::Actor(name) => add(&mut hash, &*admin.system.actor(name)?),
            Self::State(name) => {
                let actor = admin.system.actor(name)?;
                add(&mut hash, &actor);
                hash.update(actor.state().text());
            }
            Self::Other => return None,
        }
        let digest: String =
            hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(format!("\"{digest}\"").try_into().expect("digits and quotes make a header"))
    }
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
