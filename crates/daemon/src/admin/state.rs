//! An actor's state, looked at and set.
//!
//! What is set takes effect between two turns and is on disk before the answer, so neither
//! a turn nor a crash can undo what a caller was told is done.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::State as Of,
    http::{HeaderMap, StatusCode},
};
use reflowd_runtime::{
    Actor, Persistence, Precondition, SetStateError, State, StateSet, TrialOutcome, panic::Boundary,
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Admin, InPath, Phase, Problem, actors,
    intake::{is_json, media_type},
    version,
};
use crate::{coding::must_be_plain, receipt::ReceiveError};

/// A state with what it belongs to, so that it can be told where it fits.
#[derive(Serialize)]
pub(super) struct Shown {
    actor: String,
    component: String,
    version: Option<String>,
    digest: String,
    generation: u64,
    on_trial: bool,
    bytes: usize,
    state: Box<RawValue>,
}

/// What came of setting a state.
#[derive(Serialize)]
pub(super) struct Answer {
    actor: String,
    #[serde(flatten)]
    set: StateSet,
    /// Whether it is on disk; nothing where the actor's state is not to be written.
    written: Option<bool>,
}

/// `GET /v1/actors/{actor}/state`.
pub(super) async fn show(
    Of(admin): Of<Admin>,
    InPath(name): InPath<String>,
) -> Result<Json<Shown>, Problem> {
    let actor = actors::running(&admin, &name)?;
    let (status, state) = (actor.status(), actor.state());
    let on_trial = actor.trial().is_some_and(|trial| trial.outcome != TrialOutcome::Passed);
    let text = String::from_utf8_lossy(state.text()).into_owned();
    Ok(Json(Shown {
        actor: actor.name().to_string(),
        component: status.component,
        version: status.version,
        digest: status.digest.to_string(),
        generation: status.generation.number(),
        on_trial,
        bytes: text.len(),
        state: RawValue::from_string(text).expect("a state is JSON text"),
    }))
}

/// `PUT /v1/actors/{actor}/state`: the body is the state, one JSON object.
pub(super) async fn set(
    Of(admin): Of<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Answer>, Problem> {
    let actor = actors::running(&admin, &name)?;
    must_be_plain(&headers)?;
    if !is_json(&media_type(&headers)) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let why = "send the state as application/json";
        return Err(Problem::new(status, "content-type", "unknown content type", why));
    }
    let limit = actor.settings().state_size;
    let max = usize::try_from(limit).unwrap_or(usize::MAX);
    let read = admin.receipts.read(body, max).await;
    let (bytes, _receipt) = read.map_err(|error| match error {
        ReceiveError::TooLarge(_) => {
            let detail = format!("`state_size` of `{}` allows {limit} bytes", actor.name());
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            Problem::new(status, "too-large", "too large", detail).with("max", limit)
        }
        error => error.into(),
    })?;
    let state = State::new(bytes.slice_ref(bytes.trim_ascii())).map_err(|error| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Problem::new(status, "bad-state", "bad state", error.to_string())
    })?;
    change(&admin, actor, state, precondition).await
}

/// `DELETE /v1/actors/{actor}/state`: an empty state, as an actor has at its first start.
pub(super) async fn reset(
    Of(admin): Of<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
) -> Result<Json<Answer>, Problem> {
    let actor = actors::running(&admin, &name)?;
    change(&admin, actor, State::default(), precondition).await
}

async fn change(
    admin: &Admin,
    actor: Arc<Actor>,
    state: State,
    precondition: Precondition,
) -> Result<Json<Answer>, Problem> {
    // What the last stop has saved may still come back, with its own state.
    if *admin.phase.borrow() == Phase::Starting {
        return Err(Problem::not_ready());
    }
    let set = tokio::select! {
        set = actor.set_state(state, precondition) => set.map_err(|error| refused(&actor, error))?,
        () = admin.stopping.cancelled() => return Err(refused(&actor, SetStateError::Stopped)),
    };
    let mut written = None;
    if actor.settings().state == Persistence::Snapshot {
        let (states, of) = (Arc::clone(&admin.states), Arc::clone(&actor));
        let write = Boundary::States.aside(move || states.write(&of));
        // The state is set; that it is on disk is another matter.
        written = Some(write.await.unwrap_or(false));
    }
    Ok(Json(Answer { actor: actor.name().to_string(), set, written }))
}

fn refused(actor: &Actor, error: SetStateError) -> Problem {
    let (status, kind, title) = match error {
        SetStateError::Changed => return version::changed(),
        SetStateError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large"),
        SetStateError::NoPosition => (StatusCode::UNPROCESSABLE_ENTITY, "bad-state", "bad state"),
        SetStateError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "draining", "stopping"),
    };
    Problem::new(status, kind, title, format!("`{}`: {error}", actor.name()))
        .with("actor", actor.name().as_str())
}
