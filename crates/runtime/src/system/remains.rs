//! What a stop leaves, and how the next process takes it up.
//!
//! A stop seals every actor, so that no turn can move anything any more, and hands
//! out copies; only when these are safe do the originals leave the books. A start
//! holds every actor back until what was left is in its mailboxes again: it was
//! there first.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::Instant;

use super::{System, past::Past};
use crate::{Actor, ActorName, Envelope, EpochState, Wire, actor::Command, dead_letter::Reason};

/// What is left of one actor, or for it.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// Its state.
    pub state: Option<EpochState>,
    /// What its mailbox held, in order, and then what waited on the wires to it.
    pub messages: Vec<Envelope>,
}

/// What has become of remains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Messages that are in mailboxes again.
    pub messages: u64,
    /// Those whose actor or port is gone: dead letters.
    pub no_target: u64,
}

impl System {
    /// All that is left after [`kill`](Self::kill). A turn that was not over by then
    /// moves nothing any more.
    #[must_use]
    pub fn remains(&self) -> BTreeMap<ActorName, Remains> {
        let mut remains: BTreeMap<ActorName, Remains> = BTreeMap::new();
        // No actor takes another's place meanwhile.
        let past = self.0.past.lock();
        let actors = self.actors();
        for actor in &actors {
            *actor.shared.sealed.lock() = true;
        }
        for actor in &actors {
            let of = remains.entry(actor.name().clone()).or_default();
            of.state = Some(actor.epoch_state());
            of.messages = actor.mailbox().seal();
        }
        for wire in self.laid_wires(&past) {
            let waiting = wire.contents();
            if !waiting.is_empty() {
                // The mailbox may have another owner than when the wire was laid.
                let heir = actors.iter().find(|actor| wire.ends_at(actor.mailbox()));
                let to = heir.map_or(&wire.to().actor, |heir| heir.name());
                remains.entry(to.clone()).or_default().messages.extend(waiting);
            }
        }
        remains
    }

    /// What [`remains`](Self::remains) has handed out is safe, and here no more.
    pub fn saved(&self) {
        self.actors().iter().for_each(|actor| actor.mailbox().saved());
        let past = self.0.past.lock();
        self.laid_wires(&past).iter().for_each(|wire| wire.saved());
    }

    /// All wires on which something can wait: those that were cut first, because what
    /// waits on them is older.
    fn laid_wires(&self, past: &Past) -> Vec<Arc<Wire>> {
        let mut wires = past.retiring.clone();
        wires.extend(self.wires());
        wires
    }

    /// From now on, no actor that starts takes a turn before [`go`](Self::go).
    pub fn hold_back(&self) {
        self.0.held_back.lock().get_or_insert_default();
    }

    /// Puts back what an earlier process left, before all that has come since.
    /// The actors have to be held back.
    pub fn put_back(&self, remains: BTreeMap<ActorName, Remains>) -> PutBack {
        let mut done = PutBack::default();
        let now = Instant::now();
        for (name, Remains { state: _, messages }) in remains {
            let actor = self.actor(name.as_str());
            let (here, gone): (Vec<_>, Vec<_>) = messages.into_iter().partition(|envelope| {
                actor
                    .as_ref()
                    .is_some_and(|actor| actor.metadata().inport(envelope.port.as_str()).is_some())
            });
            done.messages += here.len() as u64;
            done.no_target += gone.len() as u64;
            for envelope in gone {
                self.0.sinks.dead.put(&name, &envelope, Reason::NoTarget, None, 0);
            }
            let Some(actor) = actor else { continue };
            actor.mailbox().restore(here, now);
        }
        done
    }

    /// Lets the actors take turns that were held back.
    pub async fn go(&self) {
        let held = self.0.held_back.lock().take();
        self.release(held.unwrap_or_default()).await;
    }

    /// Lets actors go on after a hold, as soon as none is held back.
    pub(super) async fn release(&self, held: Vec<Arc<Actor>>) {
        if let Some(back) = &mut *self.0.held_back.lock() {
            back.extend(held);
            return;
        }
        for actor in held {
            _ = actor.commands.send(Command::Release).await;
        }
    }
}
