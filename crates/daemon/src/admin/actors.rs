//! Actors as they are now, and the words that an operator has for them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State,
    http::{StatusCode, Uri},
};
use reflowd_hot_reload::{ActorView, RollBackError};
use reflowd_runtime::{
    Actor, ActorName, ActorState, Counts, GoneBack, Metadata, Precondition, Settings, Status,
    TrialOutcome, TrialView, WireCounts,
};
use serde::{Deserialize, Serialize};

use super::{Admin, InPath, Phase, Problem, query, version};

/// One actor at a glance, as `ps` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ActorSummary {
    pub(crate) name: String,
    pub(crate) state: String,
    /// Milliseconds since the Unix epoch at which it came into this state.
    pub(crate) since: Option<u64>,
    pub(crate) why: Option<String>,
    /// Nothing where it does not run yet, as with everything that follows from running.
    pub(crate) generation: Option<u64>,
    /// What it runs, as the configuration writes it.
    pub(crate) module: Option<String>,
    pub(crate) component: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) source: bool,
    pub(crate) autostarted: bool,
    pub(crate) queued: u64,
    pub(crate) in_flight: u64,
    pub(crate) mailbox_bytes: u64,
    pub(crate) mailbox: usize,
    pub(crate) turns: u64,
    pub(crate) failures: u64,
    pub(crate) restarts: u64,
    pub(crate) swaps: u64,
    pub(crate) memory_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub(crate) started: Option<u64>,
    /// What disk asks it to run.
    pub(crate) wanted: Option<String>,
    /// Whether what disk asks for is what runs, where that is known.
    pub(crate) in_sync: Option<bool>,
    pub(crate) file_gone: bool,
    /// Whether it was rolled back from what disk asks for.
    pub(crate) banned: bool,
    /// Why it is not what disk asks for, where that was refused.
    #[serde(default)]
    pub(crate) held: Option<String>,
    /// What is being waited for, where it is rolling out.
    #[serde(default)]
    pub(crate) rolling_out: Option<String>,
    /// Whether what it runs is on trial, or about to go back.
    pub(crate) on_trial: bool,
}

/// One actor with all that is known of it, but its environment, which may be secret.
#[derive(Serialize)]
pub(super) struct ActorDetail {
    #[serde(flatten)]
    summary: ActorSummary,
    metadata: Option<Metadata>,
    settings: Option<Settings>,
    books: Option<Counts>,
    queued_by_port: BTreeMap<String, usize>,
    trial: Option<TrialView>,
    /// How many look at its messages.
    taps: usize,
    wires: Vec<WireSummary>,
}

#[derive(Serialize)]
struct WireSummary {
    from: String,
    to: String,
    books: WireCounts,
}

/// `GET /v1/actors`: those that run, and those that disk asks for and that do not run yet.
pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<ActorSummary>> {
    let view = admin.reloader.view();
    let running = admin.system.actors();
    let mut summaries: Vec<_> =
        running.iter().map(|actor| summary(actor, view.get(actor.name().as_str()))).collect();
    let is_running = |name: &ActorName| running.iter().any(|actor| actor.name() == name);
    // An actor that has stopped since the last pass is not waited for.
    let not_yet = view.iter().filter(|(name, view)| view.pending.is_some() && !is_running(name));
    summaries.extend(not_yet.map(|(name, view)| pending(name, view)));
    summaries.sort_by(|a, b| a.name.cmp(&b.name));
    Json(summaries)
}

/// `GET /v1/actors/{actor}`.
pub(super) async fn show(
    State(admin): State<Admin>,
    InPath(name): InPath<String>,
) -> Result<Json<ActorDetail>, Problem> {
    let view = admin.reloader.view();
    let Some(actor) = admin.system.actor(&name) else {
        let waited_for = view.get_key_value(name.as_str());
        let waited_for = waited_for.filter(|(_, view)| view.pending.is_some());
        let (name, view) = waited_for.ok_or_else(|| no_actor(&admin, &name))?;
        return Ok(Json(ActorDetail {
            summary: pending(name, view),
            metadata: None,
            settings: None,
            books: None,
            queued_by_port: BTreeMap::new(),
            trial: None,
            taps: 0,
            wires: Vec::new(),
        }));
    };
    let wires = admin
        .system
        .wires()
        .into_iter()
        .filter(|wire| wire.from().actor == *actor.name() || wire.to().actor == *actor.name());
    let wires = wires.map(|wire| WireSummary {
        from: wire.from().to_string(),
        to: wire.to().to_string(),
        books: wire.counts(),
    });
    let queued = actor.mailbox().queued_by_port();
    Ok(Json(ActorDetail {
        summary: summary(&actor, view.get(actor.name())),
        metadata: Some((*actor.metadata()).clone()),
        settings: Some((*actor.settings()).clone()),
        books: Some(actor.mailbox().counts()),
        queued_by_port: queued.into_iter().map(|(port, n)| (port.to_string(), n)).collect(),
        trial: actor.trial(),
        taps: actor.taps(),
        wires: wires.collect(),
    }))
}

/// `POST /v1/actors/{actor}/pause`.
pub(super) async fn pause(
    State(admin): State<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
) -> Result<Json<Told>, Problem> {
    let actor = running(&admin, &name)?;
    version::check(&precondition)?;
    let was = actor.status();
    actor.pause().await;
    Ok(Json(told(&actor, was, |status| status.state == ActorState::Paused).await))
}

/// `POST /v1/actors/{actor}/resume`.
pub(super) async fn resume(
    State(admin): State<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
) -> Result<Json<Told>, Problem> {
    let actor = running(&admin, &name)?;
    version::check(&precondition)?;
    let was = actor.status();
    actor.resume().await;
    Ok(Json(told(&actor, was, |status| status.state != ActorState::Paused).await))
}

/// `POST /v1/actors/{actor}/retry`.
pub(super) async fn retry(
    State(admin): State<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
) -> Result<Json<Told>, Problem> {
    let actor = running(&admin, &name)?;
    version::check(&precondition)?;
    let was = actor.status();
    actor.retry().await;
    let idle = |state| matches!(state, ActorState::Resting | ActorState::Failed);
    let since = was.since;
    let again = |status: &Status| !idle(status.state) || status.since > since;
    Ok(Json(told(&actor, was, again).await))
}

/// How long an answer waits for what was asked to show: an actor does what it is told
/// after the turn in hand.
const SHOWS_WITHIN: Duration = Duration::from_secs(1);

/// What an actor has made of a word.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) actor: String,
    /// The state before.
    pub(crate) was: String,
    /// The state now, or after a second where the turn in hand takes longer.
    pub(crate) state: String,
    /// Whether it has done what it was told; otherwise it will after the turn in hand.
    pub(crate) done: bool,
    pub(crate) why: Option<String>,
}

/// What became of an actor that was told something, once it shows.
async fn told(actor: &Actor, was: Status, shows: impl Fn(&Status) -> bool) -> Told {
    let mut watch = actor.watch();
    let shown = tokio::time::timeout(SHOWS_WITHIN, watch.wait_for(|status| shows(status))).await;
    let done = matches!(shown, Ok(Ok(_)));
    drop(shown);
    let now = actor.status();
    Told {
        actor: actor.name().to_string(),
        was: was.state.name().into(),
        state: now.state.name().into(),
        done,
        why: now.why,
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RollBack {
    /// The generation's number; the last that passed, where it is not said.
    to: Option<u64>,
}

/// `POST /v1/actors/{actor}/rollback`: answered when it is done, with all that went back.
pub(super) async fn roll_back(
    State(admin): State<Admin>,
    Extension(precondition): Extension<Precondition>,
    InPath(name): InPath<String>,
    uri: Uri,
) -> Result<Json<Vec<GoneBack>>, Problem> {
    let RollBack { to } = query(&uri)?;
    let actor = running(&admin, &name)?.name().clone();
    // It is not left half done because whoever asked for it hangs up.
    let reloader = Arc::clone(&admin.reloader);
    let back = admin.tasks.spawn(async move { reloader.roll_back(actor, to, precondition).await });
    match back.await.expect("whoever asks for a rollback does not break, and nobody aborts it") {
        Ok(back) => Ok(Json(back)),
        Err(error) => {
            let (status, kind) = match &error {
                RollBackError::Changed => return Err(version::changed()),
                RollBackError::Broke => (StatusCode::INTERNAL_SERVER_ERROR, "broke"),
                RollBackError::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
                RollBackError::NotRunning { .. } => (StatusCode::CONFLICT, "not-running"),
                RollBackError::NothingBefore { .. } | RollBackError::NoSuchGeneration { .. } => {
                    (StatusCode::CONFLICT, "nothing-before")
                }
                RollBackError::Unfit { .. } => (StatusCode::CONFLICT, "unfit"),
                RollBackError::StateLost { .. } | RollBackError::StateUnknown { .. } => {
                    (StatusCode::CONFLICT, "state-lost")
                }
            };
            Err(Problem::new(status, kind, "not rolled back", error.to_string()))
        }
    }
}

/// The running actor of that name.
pub(super) fn running(admin: &Admin, name: &str) -> Result<Arc<Actor>, Problem> {
    admin.system.actor(name).ok_or_else(|| no_actor(admin, name))
}

/// Whether an actor of that name runs or is configured.
pub(super) fn is_known(admin: &Admin, name: &ActorName) -> bool {
    admin.system.actor(name.as_str()).is_some() || admin.reloader.view().contains_key(name)
}

/// There is no such actor, but perhaps a similar one.
pub(super) fn no_actor(admin: &Admin, name: &str) -> Problem {
    if *admin.phase.borrow() == Phase::Starting {
        return Problem::not_ready();
    }
    let view = admin.reloader.view();
    if let Some(ActorView { pending: Some((state, why)), .. }) = view.get(name) {
        let detail = format!("the actor `{name}` does not run yet: {why}");
        let problem = Problem::new(StatusCode::CONFLICT, "not-running", "not running", detail);
        return problem.with("actor", name).with("state", state.name());
    }
    let names: Vec<String> = admin.system.actors().iter().map(|a| a.name().to_string()).collect();
    let detail = match nearest(name, names.iter().map(String::as_str)) {
        Some(similar) => format!("there is no actor `{name}`; did you mean `{similar}`?"),
        None => format!("there is no actor `{name}`; `reflowd ps` lists those that there are"),
    };
    Problem::not_found("no-actor", "no such actor", detail)
        .with("actor", name)
        .with("actors", names)
}

/// The name that somebody may have meant.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// How alike two names must be, of 1.
    const ALIKE: f64 = 0.8;
    names
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

fn summary(actor: &Actor, view: Option<&ActorView>) -> ActorSummary {
    let (status, counts, meters) = (actor.status(), actor.mailbox().counts(), actor.meters());
    ActorSummary {
        name: actor.name().to_string(),
        state: status.state.name().into(),
        since: Some(status.since),
        why: status.why,
        generation: Some(status.generation.number()),
        module: view.map(|view| view.module.clone()),
        component: Some(status.component),
        digest: Some(status.digest.to_string()),
        version: status.version,
        source: actor.is_source(),
        autostarted: view.is_some_and(|view| view.autostarted),
        queued: counts.queued,
        in_flight: counts.in_flight,
        mailbox_bytes: counts.bytes,
        mailbox: actor.settings().mailbox,
        turns: meters.turns_ok.get() + meters.failures(),
        failures: meters.failures(),
        restarts: meters.restarts.get(),
        swaps: meters.swaps.get(),
        memory_bytes: actor.memory_bytes(),
        started: Some(actor.started()),
        wanted: view.and_then(|view| view.wanted).map(|digest| digest.to_string()),
        in_sync: view.map(|view| view.in_sync),
        file_gone: view.is_some_and(|view| view.file_gone),
        banned: view.is_some_and(|view| view.banned),
        held: view.and_then(|view| view.held.clone()),
        rolling_out: view.and_then(|view| view.rolling_out.clone()),
        on_trial: actor.trial().is_some_and(|trial| trial.outcome != TrialOutcome::Passed),
    }
}

/// An actor that disk asks for and that does not run yet.
fn pending(name: &ActorName, view: &ActorView) -> ActorSummary {
    let (state, why) = match &view.pending {
        Some((state, why)) => (state.name().to_owned(), Some(why.clone())),
        None => ("stopped".into(), None),
    };
    ActorSummary {
        name: name.to_string(),
        state,
        since: None,
        why,
        generation: None,
        module: Some(view.module.clone()),
        component: None,
        digest: None,
        version: None,
        source: false,
        autostarted: view.autostarted,
        queued: 0,
        in_flight: 0,
        mailbox_bytes: 0,
        mailbox: 0,
        turns: 0,
        failures: 0,
        restarts: 0,
        swaps: 0,
        memory_bytes: 0,
        started: None,
        wanted: view.wanted.map(|digest| digest.to_string()),
        in_sync: Some(view.in_sync),
        file_gone: view.file_gone,
        banned: false,
        held: view.held.clone(),
        rolling_out: view.rolling_out.clone(),
        on_trial: false,
    }
}
