//! Whether the daemon lives, whether it serves, and its figures.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{Admin, Phase, Problem};
use crate::metrics;

/// `GET /livez`: whoever can answer lives.
pub(super) async fn live() -> &'static str {
    "alive\n"
}

/// `GET /readyz`.
pub(super) async fn ready(State(admin): State<Admin>) -> Result<&'static str, Problem> {
    let not_yet = |why: &str| {
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "not ready", why))
    };
    match *admin.phase.borrow() {
        Phase::Starting => not_yet("the actors are being started"),
        Phase::Ready => Ok("ready\n"),
        Phase::Draining => not_yet("the daemon is stopping"),
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    let text = metrics::text(&admin.system, &admin.reloader.view(), &admin.reloader.refusals());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
