//! The messages of an actor, as they come and go.
//!
//! The actor fills a buffer and never waits for who reads it. What did not fit is told as
//! a number in the place where it is missing.

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use reflowd_runtime::{
    Actor, ActorName, Direction, ERROR_PORT, PortName, Seen, Sighting, System, Tap, TapFilter,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    Admin, InPath, Problem, actors,
    live::{Form, SIGN_OF_LIFE},
    query,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// `in` or `out`; both, where it is not said.
    direction: Option<Direction>,
}

/// `GET /v1/actors/{actor}/tap?direction=in`.
pub(super) async fn actor(
    State(admin): State<Admin>,
    InPath(actor): InPath<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Wanted { direction } = query(&uri)?;
    let actor = actors::running(&admin, &actor)?;
    open(admin, &actor, TapFilter { port: None, direction }, &headers)
}

/// `GET /v1/actors/{actor}/ports/{port}/tap`.
pub(super) async fn port(
    State(admin): State<Admin>,
    InPath((actor, port)): InPath<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Wanted { direction } = query(&uri)?;
    let actor = actors::running(&admin, &actor)?;
    let port = known(&admin.system, &actor, &port)?;
    open(admin, &actor, TapFilter { port: Some(port), direction }, &headers)
}

fn open(
    admin: Admin,
    actor: &Actor,
    filter: TapFilter,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let tap = actor.tap(filter).map_err(|error| {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Problem::new(status, "too-many-taps", "too many taps", error.to_string())
            .with("actor", actor.name().as_str())
    })?;
    let form = Form::wanted(headers);
    let reader = Reader { tap, actor: actor.name().clone(), form, stopping: admin.stopping };
    let pieces = stream::unfold(reader, |mut reader| async move {
        reader.piece().await.map(|piece| (piece, reader))
    });
    Ok(form.answer(pieces))
}

/// The port, or the problem that the actor has none of that name.
fn known(system: &System, actor: &Actor, port: &str) -> Result<PortName, Problem> {
    let metadata = actor.metadata();
    let wires = system.wires();
    // Modules put out on ports that they do not declare, and that works where there is a wire.
    let wired = wires.iter().filter(|wire| wire.from().actor == *actor.name());
    let mut names: Vec<&str> = wired.map(|wire| wire.from().port.as_str()).collect();
    let declared = metadata.inports.iter().chain(&metadata.outports);
    names.extend(declared.map(|port| port.name.as_str()));
    if names.contains(&port) || port == ERROR_PORT {
        return Ok(port.parse().expect("an actor's ports have names"));
    }
    names.sort_unstable();
    names.dedup();
    let has = names.join("`, `");
    let detail = format!("`{}` has no port `{port}`; it has `{has}`", actor.name());
    let problem = Problem::not_found("no-port", "no such port", detail);
    Err(problem.with("actor", actor.name().as_str()).with("ports", names))
}

/// Somebody who reads a tap.
struct Reader {
    tap: Tap,
    actor: ActorName,
    form: Form,
    stopping: CancellationToken,
}

impl Reader {
    /// The next lines, or none when the daemon stops.
    async fn piece(&mut self) -> Option<Bytes> {
        let Seen { messages, skipped } = tokio::select! {
            biased;
            // First, or a tap that always has something would hold up a stop.
            () = self.stopping.cancelled() => return None,
            seen = time::timeout(SIGN_OF_LIFE, self.tap.next()) => match seen {
                Ok(seen) => seen,
                Err(_) => return Some(self.form.sign_of_life()),
            },
        };
        let mut out = Vec::new();
        for sighting in &messages {
            self.form.put(&mut out, "message", &line(&self.actor, sighting));
        }
        if skipped > 0 {
            let line = Skipped { actor: &self.actor, skipped };
            self.form.put(&mut out, "skipped", &line);
        }
        Some(out.into())
    }
}

/// Messages that are missing here.
#[derive(Serialize)]
struct Skipped<'a> {
    actor: &'a ActorName,
    skipped: u64,
}

/// A message as it is told.
#[derive(Serialize)]
struct Line<'a> {
    actor: &'a ActorName,
    port: &'a PortName,
    direction: Direction,
    r#type: &'static str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<String>,
    /// Milliseconds since the Unix epoch.
    at: u64,
    generation: u64,
    #[serde(skip_serializing_if = "is_first")]
    attempt: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replayed: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    judged: bool,
    /// Where it went, for what is put out.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Vec<Delivery>>,
}

/// One wire's share of a message that was put out.
#[derive(Serialize)]
struct Delivery {
    port: String,
    id: String,
}

/// Whether there is nothing to say about the attempt.
fn is_first(attempt: &u32) -> bool {
    *attempt <= 1
}

fn line<'a>(actor: &'a ActorName, sighting: &'a Sighting) -> Line<'a> {
    let deliveries = sighting.to.iter();
    let deliveries = deliveries
        .map(|(port, id)| Delivery { port: port.to_string(), id: id.to_string() })
        .collect();
    Line {
        actor,
        port: &sighting.port,
        direction: sighting.direction,
        r#type: sighting.message.ty().name(),
        data: serde_json::from_slice(sighting.message.data())
            .expect("a message's data is JSON text"),
        id: sighting.id.map(|id| id.to_string()),
        correlation: sighting.correlation.map(|id| id.to_string()),
        at: sighting.time,
        generation: sighting.generation,
        attempt: sighting.attempt,
        replayed: sighting.replayed,
        judged: sighting.judged,
        to: (sighting.direction == Direction::Out).then_some(deliveries),
    }
}
