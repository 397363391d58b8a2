//! Versions of actors and of the flow, for callers that change only what they have seen.
//!
//! An actor's version follows from what it runs and its keys, and not from its figures; a
//! state has its own, which follows from the text too: `ETag` on what shows it, `If-Match`
//! on what changes it. A caller that asks for a change of something that has changed
//! meanwhile gets 412, and nothing happens. The comparison is made by the code that makes the
//! change, when nobody else can change anything, and after everything else that is wrong with
//! the request: what is not there is 404, with or without `If-Match` (RFC 9110 §13.2.1).
//! `If-None-Match` saves a caller that has the current version the answer (304).

use axum::{
    extract::{RawPathParams, Request, State, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use reflowd_runtime::{Actor, Precondition};
use sha2::{Digest as _, Sha256};

use super::{Admin, Problem, in_path};

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
    Unversioned,
}

/// Adds versions to answers. Requests that change something get a [`Precondition`] for the
/// code that makes the change.
pub(super) async fn hold(
    State(admin): State<Admin>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let parameters = match parameters {
        Ok(parameters) => parameters,
        Err(rejection) => return in_path::unreadable(&rejection.body_text()).into_response(),
    };
    let subject = Subject::of(request.uri().path(), &parameters);
    let conditions = Conditions::of(request.headers());
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        // Before the answer is made: an answer newer than its version costs its reader one
        // more look, an older one would be taken for the newer.
        let version = subject.version(&admin);
        let mut response = next.run(request).await;
        if let Some(version) = version.filter(|_| response.status().is_success()) {
            if conditions.has(&version) {
                response = StatusCode::NOT_MODIFIED.into_response();
            }
            response.headers_mut().insert(header::ETAG, version);
        }
        return response;
    }
    let mut precondition = Precondition::default();
    if !conditions.is_empty() {
        if matches!(subject, Subject::Unversioned) && !is_missing(&admin, &parameters) {
            return unversioned().into_response();
        }
        precondition = Precondition::new(move || {
            let version = subject.version(&admin);
            version.is_some_and(|version| conditions.allow_change_of(&version))
        });
    }
    request.extensions_mut().insert(precondition);
    next.run(request).await
}

/// The problem that what was to be changed is not what the caller has seen.
pub(super) fn changed() -> Problem {
    let why = "it has another version by now, or none; look at it again";
    Problem::new(StatusCode::PRECONDITION_FAILED, "changed", "changed meanwhile", why)
}

/// The problem that something without a version is to be changed only if it has one.
fn unversioned() -> Problem {
    let why = "this has no version to compare; leave `If-Match` and `If-None-Match` out";
    Problem::new(StatusCode::PRECONDITION_FAILED, "unversioned", "no version", why)
}

/// Whether the path names an actor that is not there, which its handler is to say.
fn is_missing(admin: &Admin, parameters: &RawPathParams) -> bool {
    let mut named = parameters.iter().filter(|(name, _)| *name == "actor");
    named.any(|(_, actor)| admin.system.actor(actor).is_none())
}

/// Checks the conditions on a change, at the moment of the change.
///
/// # Errors
/// The actor has changed since the caller saw it.
pub(super) fn check(precondition: &Precondition) -> Result<(), Problem> {
    if precondition.holds() { Ok(()) } else { Err(changed()) }
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
            _ => Self::Unversioned,
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
            Self::Unversioned => return None,
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

/// The conditions of a request on the version of its target.
struct Conditions {
    if_match: Vec<HeaderValue>,
    if_none_match: Vec<HeaderValue>,
}

impl Conditions {
    fn of(headers: &HeaderMap) -> Self {
        let all = |name| headers.get_all(name).iter().cloned().collect();
        Self { if_match: all(header::IF_MATCH), if_none_match: all(header::IF_NONE_MATCH) }
    }

    fn is_empty(&self) -> bool {
        self.if_match.is_empty() && self.if_none_match.is_empty()
    }

    /// Whether `If-None-Match` names this version.
    fn has(&self, version: &HeaderValue) -> bool {
        self.if_none_match.iter().any(|tags| names(tags, version, Comparison::Weak))
    }

    /// Whether `If-Match` allows a change of this version.
    fn allow_change_of(&self, version: &HeaderValue) -> bool {
        let named = |tags| names(tags, version, Comparison::Strong);
        (self.if_match.is_empty() || self.if_match.iter().any(named)) && !self.has(version)
    }
}

/// The comparison of tags (RFC 9110 §8.8.3.2).
#[derive(Clone, Copy)]
enum Comparison {
    /// A weak tag is equal to nothing.
    Strong,
    /// A weak tag is equal to the strong one with the same text.
    Weak,
}

/// Whether a condition matches the version, in a list or by `*`.
fn names(tags: &HeaderValue, version: &HeaderValue, comparison: Comparison) -> bool {
    let (Ok(tags), Ok(version)) = (tags.to_str(), version.to_str()) else { return false };
    tags.split(',').map(str::trim).any(|tag| {
        let tag = match comparison {
            Comparison::Strong => tag,
            Comparison::Weak => tag.strip_prefix("W/").unwrap_or(tag),
        };
        tag == "*" || tag == version
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tags: &str, strong: bool, weak: bool) {
        let version = HeaderValue::from_static("\"12ab\"");
        let names = |comparison| names(&tags.parse().unwrap(), &version, comparison);
        let found = (names(Comparison::Strong), names(Comparison::Weak));
        assert_eq!(found, (strong, weak), "{tags}");
    }

    #[test]
    fn a_version_is_named_alone_in_a_list_or_by_a_star() {
        check("\"12ab\"", true, true);
        check("\"00\", \"12ab\"", true, true);
        check("*", true, true);
        check("\"12\"", false, false);
        check("W/\"12ab\"", false, true);
        check("12ab", false, false);
    }
}
