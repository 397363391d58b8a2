//! The admin API: what the command line, scripts and scrapers talk to.
//!
//! Every handler reads from, or asks something of, the [`System`] and the one
//! that looks at disk; none of them keeps anything. The same routes are served
//! on a Unix socket and, where that is configured, on a loopback address.

mod actors;
mod intake;
mod answer;
mod lines;
mod reload;
mod events;
mod live;
mod tap;
mod logs;
mod graph;
mod state;
mod dead_letters;
mod health;
mod version;
mod in_path;
mod guard;
mod access;
mod problem;
mod listen;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    http::{Method, StatusCode, Uri, header},
    middleware,
    routing::{get, post},
};
use futures_util::future::BoxFuture;
use reflowd_hot_reload::{Passes, ReloadError, ReloadOptions, Report, RollBackError, View};
use reflowd_runtime::{ActorName, Digest, GoneBack, Precondition, System};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use access::{Role, Tokens, usable_token};
pub(crate) use actors::{ActorSummary, Told};
pub(crate) use answer::{Answered, answered};
pub(crate) use dead_letters::moment;
pub(crate) use graph::{Edge, Graph, LiveEdge, LiveNode, Node};
pub(crate) use guard::{Via, admit as guard};
use in_path::InPath;
pub(crate) use intake::{is_json, media_type, trace};
pub(crate) use listen::{Socket, bind_address, bind_socket, passed_socket, serve};
pub(crate) use problem::Problem;

use crate::{receipt::Receipts, snapshot::Snapshots};

/// What the handlers work on. Clones are the same.
#[derive(Clone)]
pub(crate) struct Admin {
    /// The actors and wires.
    pub(crate) system: System,
    /// Looks at disk.
    pub(crate) reloader: Arc<dyn Reload>,
    /// Where states are written.
    pub(crate) states: Arc<Snapshots>,
    /// How far the daemon is.
    pub(crate) phase: watch::Receiver<Phase>,
    /// Ends streams that would go on for ever, so that the server can stop.
    pub(crate) stopping: CancellationToken,
    /// Bodies that are coming in.
    pub(crate) receipts: Receipts,
    /// Work that goes on when whoever asked for it hangs up.
    pub(crate) tasks: TaskTracker,
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first actors are being loaded.
    Starting,
    /// All that disk asks for has been tried once.
    Ready,
    /// No more messages are taken, and what is queued is worked off.
    Draining,
}

/// What the API asks of the part that looks at disk.
pub(crate) trait Reload: Send + Sync {
    /// Looks at disk now, does what follows, and tells what that was.
    fn reload(
        &self,
        options: ReloadOptions,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<Report, ReloadError>>;

    /// Has an actor run what it ran before.
    fn roll_back(
        &self,
        actor: ActorName,
        to: Option<u64>,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<Vec<GoneBack>, RollBackError>>;

    /// How each actor stands to what is on disk.
    fn view(&self) -> View;

    /// Whether the configuration on disk is the one in force.
    fn config_in_force(&self) -> bool;

    /// The modules that are known, by file.
    fn modules(&self) -> Vec<ModuleView>;

    /// When looks at disk have ended; nothing before the first one.
    fn passes(&self) -> Option<Passes>;

    /// How many modules have been refused since the start, by reason.
    fn refusals(&self) -> BTreeMap<String, u64>;
}

/// One module's file or download, and what is known of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModuleView {
    /// The file, or the URL.
    pub(crate) file: String,
    /// Its digest, where it was read.
    pub(crate) digest: Option<Digest>,
    /// Its size in bytes, where it was read.
    pub(crate) size: Option<u64>,
    /// `loaded`, `refused`, `unused`, `gone` …
    pub(crate) state: String,
    /// Why, where there is more to say.
    pub(crate) why: Option<String>,
    /// Actors that run it.
    pub(crate) actors: Vec<ActorName>,
}

/// All routes, as they are served to callers that come `via` that way and have to show one of
/// `tokens`, where there are any.
pub(crate) fn router(admin: Admin, via: Via, tokens: Tokens) -> Router {
    Router::new()
        .route("/v1/actors", get(actors::list))
        .route("/v1/actors/{actor}", get(actors::show))
        .route("/v1/actors/{actor}/pause", post(actors::pause))
        .route("/v1/actors/{actor}/resume", post(actors::resume))
        .route("/v1/actors/{actor}/retry", post(actors::retry))
        .route("/v1/actors/{actor}/rollback", post(actors::roll_back))
        .route("/v1/actors/{actor}/ports/{port}", post(intake::take))
        .route("/v1/actors/{actor}/ports/{port}/tap", get(tap::port))
        .route("/v1/actors/{actor}/tap", get(tap::actor))
        .route("/v1/actors/{actor}/logs", get(logs::logs))
        .route("/v1/actors/{actor}/state", get(state::show).put(state::set).delete(state::reset))
        .route("/v1/graph", get(graph::graph))
        .route("/v1/modules", get(reload::modules))
        .route("/v1/reload", post(reload::reload))
        .route("/v1/events", get(events::events))
        .route("/v1/dead-letters", get(dead_letters::list).delete(dead_letters::purge))
        .route("/v1/dead-letters/stock", get(dead_letters::stock))
        .route("/v1/dead-letters/replay", post(dead_letters::replay))
        .route("/v1/dead-letters/{number}", get(dead_letters::show))
        .route("/v1/openapi.json", get(open_api))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route_layer(middleware::from_fn_with_state(admin.clone(), version::hold))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(Arc::new(tokens), access::control))
        .layer(middleware::from_fn_with_state(via, guard::guard))
        .with_state(admin)
}

/// All that can be asked, for programs.
const OPEN_API: &str = include_str!("admin/openapi.json");

/// `GET /v1/openapi.json`.
async fn open_api() -> ([(header::HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], OPEN_API)
}

async fn no_route(uri: Uri) -> Problem {
    Problem::not_found("no-route", "no such route", format!("there is nothing at {}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}", uri.path());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Problem::new(status, "no-method", "no such method", detail)
}

/// What a query says, or the problem with it.
fn query<Q: for<'de> Deserialize<'de>>(uri: &Uri) -> Result<Q, Problem> {
    axum::extract::Query::try_from_uri(uri).map(|axum::extract::Query(query)| query).map_err(
        |rejection| {
            use std::error::Error as _;
            let why = rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
            Problem::bad_request("query", "bad query", why)
        },
    )
}

/// `?flag`, `?flag=true` or `?flag=false`.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match &*std::borrow::Cow::<'de, str>::deserialize(deserializer)? {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(serde::de::Error::custom(format!("`{other}` is neither true nor false"))),
    }
}

#[cfg(test)]
mod tests;
