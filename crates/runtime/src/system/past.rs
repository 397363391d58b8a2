//! What is left of actors and wires that are gone.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::Books;
use crate::{Actor, ActorName, EpochState, Generation, Meters, Persistence, Wire};

/// How long it is known what a removed actor has left.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The books of what is gone, and what comes back with an actor's name.
///
/// Its lock is held wherever something moves from the present to the past, or from
/// one actor to its heir, so that the sum of both never has a gap.
#[derive(Default)]
pub(super) struct Past {
    pub(super) books: Books,
    /// What actors that are gone have counted.
    pub(super) meters: Meters,
    /// Wires that were cut while something waited on them.
    pub(super) retiring: Vec<Arc<Wire>>,
    /// What removed actors have left, taken up if the actor comes back.
    left: BTreeMap<ActorName, Left>,
}

/// What comes back with an actor's name.
pub(super) struct Left {
    /// Its state, where no heir has it.
    pub(super) state: Option<EpochState>,
    /// Whether an heir has it: then it is not to be had from disk either.
    pub(super) moved: bool,
    /// Whether its state is to be had from disk after this process.
    persists: bool,
    /// The last that ran under the name.
    pub(super) generation: Generation,
    since: Instant,
}

impl Past {
    /// What the actor has counted becomes part of the past, and its wires are closed
    /// when they are empty.
    pub(super) fn take_over(&mut self, actor: &Actor) {
        self.meters.add(actor.meters());
        self.retiring.extend(actor.shared.routes.load().all().cloned());
        self.sweep();
    }

    /// Keeps what an actor leaves that is gone, at that time.
    pub(super) fn leave(&mut self, actor: &Actor, state: Option<EpochState>, now: Instant) {
        self.left.retain(|_, left| now.duration_since(left.since) < KEPT);
        let generation = actor.status().generation;
        let persists = actor.settings().state == Persistence::Snapshot;
        let left = Left { moved: state.is_none(), state, persists, generation, since: now };
        self.left.insert(actor.name().clone(), left);
    }

    /// An earlier process has run an actor of that name.
    pub(super) fn recall(&mut self, name: ActorName, generation: Generation, now: Instant) {
        let left = Left { state: None, moved: false, persists: false, generation, since: now };
        self.left.insert(name, left);
    }

    /// The states that are to be had from disk after this process; none, where an heir has it.
    pub(super) fn left(&self) -> Vec<(ActorName, Option<EpochState>)> {
        let persist = self.left.iter().filter(|(_, left)| left.persists);
        persist.map(|(name, left)| (name.clone(), left.state.clone())).collect()
    }

    /// What is left of the actor of that name, which is coming back.
    pub(super) fn comes_back(&mut self, name: &ActorName) -> Option<Left> {
        self.left.remove(name)
    }

    /// Closes the books of cut wires that nobody can use any more: a source that
    /// loaded its routes just before the cut may still put one message on an old wire.
    pub(super) fn sweep(&mut self) {
        let books = &mut self.books;
        self.retiring.retain(|wire| {
            let in_use = Arc::strong_count(wire) > 1 || wire.pending() > 0;
            if !in_use {
                books.wires.add(&wire.counts());
            }
            in_use
        });
    }
}
