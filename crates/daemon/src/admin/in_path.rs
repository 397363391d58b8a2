//! The parameters in a request's path.
//!
//! One that cannot be read is a problem document like every other refusal: axum's own
//! extractor answers in plain text.

use axum::{
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::Problem;

/// The parameters of the path, by type as with axum's [`Path`].
pub(super) struct InPath<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for InPath<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(unreadable(&rejection.body_text())),
        }
    }
}

/// The problem that a parameter of the path cannot be read.
pub(super) fn unreadable(why: &str) -> Problem {
    Problem::bad_request("path", "bad path", why)
}
