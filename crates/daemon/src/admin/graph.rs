//! The flow as a graph: actors, their ports, the wires, and what moves on them.

use axum::{Json, extract::State};
use reflowd_runtime::Overflow;
use serde::{Deserialize, Serialize};

use super::{Admin, actors};

/// Actors and wires.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Graph {
    /// By name.
    pub(crate) actors: Vec<Node>,
    /// By their ends.
    pub(crate) wires: Vec<Edge>,
}

/// One actor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// What it runs, as the configuration writes it.
    pub(crate) module: Option<String>,
    /// The name that its module gives itself.
    pub(crate) component: Option<String>,
    /// Its inports, where its module is known.
    pub(crate) inports: Vec<String>,
    /// Its outports, where its module is known.
    pub(crate) outports: Vec<String>,
    /// How it stands; nothing where no daemon was asked.
    pub(crate) live: Option<LiveNode>,
}

/// An actor's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LiveNode {
    /// As `ps` has it.
    pub(crate) state: String,
    /// What it runs, counted.
    pub(crate) generation: Option<u64>,
    /// Whether that has yet to prove itself.
    pub(crate) on_trial: bool,
    /// Whether it has no mailbox.
    pub(crate) source: bool,
    /// Messages that wait or are in hand.
    pub(crate) queued: u64,
    /// Messages that the mailbox holds.
    pub(crate) mailbox: usize,
    /// Turns, the failed ones included; of a source, messages.
    pub(crate) turns: u64,
    /// Failed turns.
    pub(crate) failures: u64,
}

/// One wire.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Edge {
    /// `actor.outport`.
    pub(crate) from: String,
    /// `actor.inport`.
    pub(crate) to: String,
    /// Its own way with a full mailbox.
    pub(crate) overflow: Option<Overflow>,
    /// What has moved; nothing where no daemon was asked.
    pub(crate) live: Option<LiveEdge>,
}

/// A wire's figures.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LiveEdge {
    /// Messages put on it.
    pub(crate) emitted: u64,
    /// Messages that the far end took.
    pub(crate) accepted: u64,
    /// Messages that the far end did not take.
    pub(crate) refused: u64,
    /// Messages that wait on it.
    pub(crate) pending: u64,
}

/// `GET /v1/graph`.
pub(super) async fn graph(State(admin): State<Admin>) -> Json<Graph> {
    let Json(summaries) = actors::list(State(admin.clone())).await;
    let nodes = summaries.into_iter().map(|actor| {
        let metadata = admin.system.actor(&actor.name).map(|actor| actor.metadata());
        let names = |ports: &[reflowd_runtime::Port]| {
            ports.iter().map(|port| port.name.to_string()).collect()
        };
        Node {
            inports: metadata.as_ref().map(|m| names(&m.inports)).unwrap_or_default(),
            outports: metadata.as_ref().map(|m| names(&m.outports)).unwrap_or_default(),
            live: Some(LiveNode {
                state: actor.state,
                generation: actor.generation,
                on_trial: actor.on_trial,
                source: actor.source,
                queued: actor.queued + actor.in_flight,
                mailbox: actor.mailbox,
                turns: actor.turns,
                failures: actor.failures,
            }),
            name: actor.name,
            module: actor.module,
            component: actor.component,
        }
    });
    let edges = admin.system.wires().into_iter().map(|wire| {
        let counts = wire.counts();
        Edge {
            from: wire.from().to_string(),
            to: wire.to().to_string(),
            overflow: wire.overflow(),
            live: Some(LiveEdge {
                emitted: counts.emitted,
                accepted: counts.accepted,
                refused: counts.refused_total(),
                pending: counts.pending,
            }),
        }
    });
    Json(Graph { actors: nodes.collect(), wires: edges.collect() })
}
