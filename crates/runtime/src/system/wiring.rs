//! How the wires of a running system change.
//!
//! The wires that leave an actor are one value, replaced as a whole. A turn goes by
//! the one that was in force when it began; a wire that is cut meanwhile delivers
//! what it has and is no more, unless its port has no other: then that is dead letters.

use std::{collections::BTreeSet, sync::Arc};

use super::System;
use crate::{
    ActorName, Entry, PortName, PortRef, Routes, Wire, WireDef, actor::Kind, dead_letter::Reason,
    panic::Boundary, wire::WireTarget,
};

impl System {
    /// Makes the wires what `wires` says. Wires that stay are the same objects, so
    /// their books and what waits on them stay too.
    pub(super) fn rewire(&self, wires: &[WireDef], stopping: &[ActorName]) {
        let before = self.wires();
        let mut after: Vec<Arc<Wire>> = Vec::new();
        for def in wires {
            let Some(target) = self.actor(def.to.actor.as_str()) else { continue };
            let old = before.iter().find(|wire| {
                *wire.from() == def.from && *wire.to() == def.to && wire.ends_at(target.mailbox())
            });
            match old {
                Some(wire) => {
                    wire.set_overflow(def.overflow);
                    after.push(Arc::clone(wire));
                }
                None => {
                    let Some(sender) = self.actor(def.from.actor.as_str()) else { continue };
                    let entry = match sender.kind {
                        Kind::Engine => Entry::Wire,
                        Kind::Source(_) => Entry::Connector,
                    };
                    after.push(Arc::new(Wire::new(
                        def.from.clone(),
                        def.to.clone(),
                        WireTarget {
                            mailbox: Arc::clone(target.mailbox()),
                            max_hops: Arc::clone(&target.shared.max_hops),
                        },
                        def.overflow,
                        entry,
                        self.0.sinks.clone(),
                    )));
                }
            }
        }
        // An actor that is on its way out keeps its outgoing wires until it is empty,
        // and works off what its own mailbox holds.
        let leaving = |name: &ActorName| {
            stopping.contains(name) || self.actor(name.as_str()).is_none_or(|actor| actor.leaving())
        };
        let stays = |wire: &Arc<Wire>| after.iter().any(|w| Arc::ptr_eq(w, wire));
        let cut: Vec<&Arc<Wire>> =
            before.iter().filter(|wire| !stays(wire) && !leaving(&wire.from().actor)).collect();
        {
            let mut past = self.0.past.lock();
            for actor in self.actors().iter().filter(|actor| !leaving(actor.name())) {
                let mine = after.iter().filter(|wire| wire.from().actor == *actor.name()).cloned();
                actor.shared.routes.store(Arc::new(Routes::new(mine)));
            }
            past.retiring.extend(cut.iter().map(|wire| Arc::clone(wire)));
            past.sweep();
        }
        // An actor that has taken another's place has its mailbox too.
        let actors = self.actors();
        let mut lost: BTreeSet<PortRef> = BTreeSet::new();
        for wire in &cut {
            let target = actors.iter().find(|actor| wire.ends_at(actor.mailbox()));
            let port = target
                .filter(|actor| !leaving(actor.name()))
                .map(|actor| PortRef { actor: actor.name().clone(), port: wire.to().port.clone() });
            match port.filter(|port| !after.iter().any(|wire| wire.to() == port)) {
                // What waits for a port without a wire is nobody's any more.
                Some(port) => {
                    wire.abandon(Reason::Unwired);
                    lost.insert(port);
                }
                None => self.finish_wire(wire),
            }
        }
        lost.iter().for_each(|port| self.expel(port));
        self.rejoin(&after);
    }

    /// Sees in the background to it that what waits on a cut wire arrives.
    pub(super) fn finish_wire(&self, wire: &Arc<Wire>) {
        let (kill, wire) = (self.0.kill.clone(), Arc::clone(wire));
        let finished = async move {
            tokio::select! {
                () = wire.drain() => {}
                // What is left stays where it is, to be counted.
                () = kill.cancelled() => {}
            }
        };
        let finished = async { _ = Boundary::Burial.hold(finished).await };
        self.0.tasks.spawn_on(finished, &self.0.turns);
    }

    /// A port lost its last wire: what waits for it are dead letters.
    fn expel(&self, port: &PortRef) {
        let Some(actor) = self.actor(port.actor.as_str()) else { return };
        for envelope in actor.mailbox().expel(Some(&port.port)) {
            self.0.sinks.waits.died(envelope.correlation, &Reason::Unwired);
            let ran = Some(actor.shared.ran());
            self.0.sinks.dead.put(&port.actor, &envelope, Reason::Unwired, ran, 0);
        }
    }

    /// Tells every join which inports it waits for: the required ones that have a
    /// wire, or every one that has a wire where none is required.
    pub(super) fn rejoin(&self, wires: &[Arc<Wire>]) {
        // Also where a message is a turn by itself: the actor may be about to hear
        // that it is to join.
        for actor in self.actors() {
            let metadata = actor.metadata();
            let wired = |name: &PortName| {
                wires.iter().any(|w| w.to().actor == *actor.name() && w.to().port == *name)
            };
            let ports = metadata.inports.iter().filter(|port| wired(&port.name));
            let (required, optional): (Vec<_>, Vec<_>) = ports.partition(|port| port.required);
            let join = if required.is_empty() { optional } else { required };
            actor.mailbox().set_join(join.into_iter().map(|port| port.name.clone()).collect());
        }
    }
}
