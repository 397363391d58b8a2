//! Whether the daemon lives, whether it serves, and its figures.

use std::fmt;

use axum::{
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use reflowd_runtime::{ActorState, panic::PartHealth};
use serde::Deserialize;

use super::{Admin, Phase, Problem, flag, query};
use crate::metrics;

/// `GET /livez`: whoever can answer lives.
pub(super) async fn live() -> &'static str {
    "alive\n"
}

/// The query of `GET /readyz`.
#[derive(Deserialize)]
struct Wanted {
    /// Whether each part is told of.
    #[serde(default, deserialize_with = "flag")]
    verbose: bool,
}

/// `GET /readyz`: whether messages are taken, and all parts work that the daemon cannot do
/// without. With `?verbose`, a line for each part: `[+]`
/// where it is as it should be, `[-]` where somebody may want to look.
pub(super) async fn ready(State(admin): State<Admin>, uri: Uri) -> Result<String, Problem> {
    let wanted: Wanted = query(&uri)?;
    let phase = *admin.phase.borrow();
    let why = match phase {
        Phase::Starting => Some("the actors are being started".to_owned()),
        Phase::Ready => PartHealth::vital_failure().map(|part| {
            let trouble = part.trouble.unwrap_or_default();
            format!("{} does not work: {trouble}", part.boundary.name())
        }),
        Phase::Draining => Some("the daemon is stopping".to_owned()),
    };
    let mut text = String::new();
    if wanted.verbose {
        text = parts(&admin).iter().map(ToString::to_string).collect();
    }
    match why {
        None => Ok(format!("{text}ready\n")),
        Some(why) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(Problem::new(status, "not-ready", "not ready", format!("{text}{why}")))
        }
    }
}

/// How one part of the daemon stands.
struct Part {
    name: &'static str,
    good: bool,
    how: String,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, good, how } = self;
        writeln!(f, "[{}] {name}: {how}", if *good { '+' } else { '-' })
    }
}

fn parts(admin: &Admin) -> Vec<Part> {
    let parts = [actors(admin), config(admin), queues(admin), dead_letters(admin), books(admin)]
        .into_iter();
    parts.chain(code()).collect()
}

fn actors(admin: &Admin) -> Part {
    let actors = admin.system.actors();
    let down: Vec<_> = (actors.iter().map(|actor| (actor.name(), actor.status())))
        .filter(|(_, status)| matches!(status.state, ActorState::Failed | ActorState::Resting))
        .map(|(name, status)| format!("{name} is {}", status.state.name()))
        .collect();
    let waiting = actors.iter().filter(|a| a.status().state == ActorState::Waiting);
    let waiting: Vec<_> = waiting.map(|actor| format!("{} is waiting", actor.name())).collect();
    Part {
        name: "actors",
        // A source that waits for a file goes on by itself.
        good: down.is_empty(),
        how: match &[down, waiting].concat()[..] {
            [] => format!("{} run", actors.len()),
            told => format!("of {}, {}", actors.len(), told.join(", ")),
        },
    }
}

fn config(admin: &Admin) -> Part {
    let view = admin.reloader.view();
    let behind = view.values().filter(|actor| !actor.in_sync || actor.pending.is_some()).count();
    let in_force = admin.reloader.config_in_force();
    Part {
        name: "config",
        good: in_force && behind == 0,
        how: match (in_force, behind) {
            (false, _) => "what disk has is not in force; `reflowd reload` says why".into(),
            (true, 0) => "what disk asks for is what runs".into(),
            (true, n) => format!("{n} actors are not what disk asks for; `reflowd events` has why"),
        },
    }
}

fn queues(admin: &Admin) -> Part {
    let budget = admin.system.budget();
    let kib = |bytes: u64| bytes >> 10;
    Part {
        name: "queues",
        good: !budget.is_over(),
        how: format!("{} of {} KiB", kib(budget.used()), kib(budget.limit())),
    }
}

fn dead_letters(admin: &Admin) -> Part {
    let stock = admin.system.dead_letters().stock();
    Part {
        name: "dead letters",
        good: stock.trouble.is_none(),
        how: format!("{} on disk, {} in memory only", stock.on_disk, stock.in_memory),
    }
}

fn books(admin: &Admin) -> Part {
    let books = admin.system.books();
    let balanced = books.balanced();
    Part {
        name: "books",
        good: balanced,
        how: if balanced { "nothing is lost or doubled".into() } else { format!("{books:?}") },
    }
}

/// The daemon's own code: a summary, and each part that is broken.
fn code() -> Vec<Part> {
    let health = PartHealth::all();
    let panics: u64 = health.iter().map(|part| part.panics).sum();
    let broken = health.into_iter().filter_map(|part| {
        let how = part.trouble?;
        Some(Part { name: part.boundary.name(), good: false, how })
    });
    let broken: Vec<_> = broken.collect();
    let summary = Part {
        name: "parts",
        good: broken.is_empty(),
        how: match (broken.len(), panics) {
            (0, 0) => "none has broken".into(),
            (0, n) => format!("all work; {n} panics since the start"),
            (some, n) => format!("{some} broke; {n} panics since the start"),
        },
    };
    [summary].into_iter().chain(broken).collect()
}

/// `GET /metrics`.
pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    let text = metrics::text(&admin.system, &*admin.reloader);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}
