//! What has happened, as one JSON object a line.

use std::collections::VecDeque;

use axum::{
    body::Body,
    extract::State,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use reflowd_runtime::{ActorName, Event, System};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{Admin, Problem, actors, flag, query};

/// How many lines leave in one piece.
const LINES_AT_ONCE: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The number of the last event that the caller knows.
    #[serde(default)]
    after: u64,
    /// Only those that name this actor.
    actor: Option<String>,
    /// Whether to stay and tell what happens from now on.
    #[serde(default, deserialize_with = "flag")]
    follow: bool,
}

/// `GET /v1/events?after=N&actor=A&follow=true`.
pub(super) async fn events(State(admin): State<Admin>, uri: Uri) -> Result<Response, Problem> {
    let Wanted { after, actor, follow } = query(&uri)?;
    let only = actor.map(|name| known(&admin, &name)).transpose()?;
    let (past, live) = admin.system.events().since(after);
    let reader = Reader {
        system: admin.system,
        past: past.into(),
        live: follow.then_some(live),
        only,
        last: after,
        stopping: admin.stopping,
    };
    let pieces = stream::unfold(reader, |mut reader| async move {
        reader.piece().await.map(|piece| (Ok::<_, std::convert::Infallible>(piece), reader))
    });
    Ok(ndjson(Body::from_stream(pieces)))
}

/// Somebody who reads the history and, if they follow, what is added to it.
struct Reader {
    system: System,
    past: VecDeque<Event>,
    live: Option<Receiver<Event>>,
    /// The actor that they have to name, where it is one.
    only: Option<ActorName>,
    /// The number of the last event that was told.
    last: u64,
    stopping: CancellationToken,
}

impl Reader {
    /// The next lines, or none when there will be no more.
    async fn piece(&mut self) -> Option<Bytes> {
        while self.past.is_empty() {
            let live = self.live.as_mut()?;
            let event = tokio::select! {
                biased;
                event = live.recv() => event,
                () = self.stopping.cancelled() => return None,
            };
            match event {
                Ok(event) => self.past.push_back(event),
                // A slow reader reads what it missed from the history.
                Err(RecvError::Lagged(_)) => {
                    let (past, live) = self.system.events().since(self.last);
                    self.past = past.into();
                    self.live = Some(live);
                }
                Err(RecvError::Closed) => return None,
            }
        }
        let count = self.past.len().min(LINES_AT_ONCE);
        let mut out = Vec::new();
        for event in self.past.drain(..count) {
            self.last = event.number;
            if self.only.as_ref().is_none_or(|actor| event.kind.concerns(actor)) {
                line(&mut out, &event);
            }
        }
        Some(out.into())
    }
}

/// The actor of that name, that there is or that has been.
fn known(admin: &Admin, name: &str) -> Result<ActorName, Problem> {
    let of_events = |actor: &ActorName| {
        admin.system.events().since(0).0.iter().any(|event| event.kind.concerns(actor))
    };
    let actor = name.parse().ok();
    let known = actor.filter(|actor| actors::is_known(admin, actor) || of_events(actor));
    known.ok_or_else(|| actors::no_actor(admin, name))
}

/// An answer of JSON lines.
pub(super) fn ndjson(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Adds a line.
pub(super) fn line(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *out, value).expect("what is told has no map with odd keys");
    out.push(b'\n');
}
