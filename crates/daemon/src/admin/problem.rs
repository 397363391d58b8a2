//! What the API answers when it does not do what it was asked: RFC 9457.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use reflowd_runtime::panic::Panic;
use serde_json::{Map, Value};

use crate::receipt::{BODY_TIMEOUT, Crowded, ReceiveError};

/// Seconds after which a caller that was told to come back should do so.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A problem document.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    /// The last part of the problem's type: one word for programs.
    kind: &'static str,
    title: &'static str,
    detail: String,
    fields: Map<String, Value>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Problem {
    /// A problem of a kind that always has the same title, and what it is this time.
    pub(crate) fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, kind, title, detail: detail.into(), fields: Map::new(), header: None }
    }

    /// The request itself cannot be understood.
    pub(crate) fn bad_request(
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, title, detail)
    }

    /// The daemon has not started all that it is to run.
    pub(crate) fn not_ready() -> Self {
        let why = "the actors are being started; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "not ready", why)
    }

    /// The daemon's own code broke over the request.
    pub(crate) fn broke(panic: &Panic) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "broke", "the daemon broke over it", panic.to_string())
    }

    /// What is asked for is not there.
    pub(crate) fn not_found(
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(StatusCode::NOT_FOUND, kind, title, detail)
    }

    /// Adds a field for programs.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// Sets a header that goes with the status.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut document = Map::new();
        document.insert("type".into(), format!("urn:reflowd:problem:{}", self.kind).into());
        document.insert("title".into(), self.title.into());
        document.insert("status".into(), self.status.as_u16().into());
        document.insert("detail".into(), self.detail.into());
        document.extend(self.fields);
        let mut response = (self.status, Json(document)).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if let Some((name, value)) = self.header.map(|header| *header) {
            headers.insert(name, value);
        }
        response
    }
}

impl From<Crowded> for Problem {
    fn from(crowded: Crowded) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "crowded", "too much at once", crowded.to_string())
    }
}

impl From<ReceiveError> for Problem {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::TooLarge(max) => {
                let why = format!("a body has {max} bytes at most");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large", why)
                    .with("max", max)
            }
            ReceiveError::TooSlow => {
                let why = format!("nothing more came within {BODY_TIMEOUT:?}");
                let status = StatusCode::REQUEST_TIMEOUT;
                let problem = Self::new(status, "too-slow", "too slow", why);
                problem.with_header(header::CONNECTION, HeaderValue::from_static("close"))
            }
            ReceiveError::Crowded(crowded) => crowded.into(),
            ReceiveError::Broke(panic) => Self::broke(&panic),
            ReceiveError::Broken(error) => {
                Self::bad_request("body", "broken body", error.to_string())
            }
        }
    }
}
