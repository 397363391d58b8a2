//! How the wires of a running system change.
//!
//! The wires that leave an actor are one value, replaced as a whole. A turn goes by
//! the one that was in force when it began; a wire that is cut meanwhile delivers
//! what it has and is no more, unless its port has no other: then that is dead letters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::System;
use crate::{
    Actor, ActorName, Entry, PortName, PortRef, Routes, Wire, WireDef, WireEnds, actor::Kind,
    dead_letter::Reason, panic::Boundary, wire::WireTarget,
};

/// A difference to the wires of a running system.
pub(super) struct Rewiring<'a> {
    /// Wires that come, or get another way with a full mailbox.
    pub(super) connect: &'a [WireDef],
    /// Wires that go.
    pub(super) cut: &'a [WireEnds],
    /// Actors that are about to stop.
    pub(super) stopping: &'a [ActorName],
    /// The wires of actors that had to start anew.
    pub(super) uprooted: Vec<Arc<Wire>>,
    /// Actors whose ports may be others than before.
    pub(super) fresh: BTreeSet<ActorName>,
}

impl System {
    /// Makes a difference to the wires. Those that stay are the same objects, so their books
    /// and what waits on them stay too.
    pub(super) fn rewire(&self, change: Rewiring<'_>) {
        let _one_at_a_time = self.0.wiring.lock();
        let Rewiring { connect, cut, stopping, uprooted, mut fresh } = change;
        // An actor that is on its way out keeps its outgoing wires until it is empty,
        // and works off what its own mailbox holds.
        let leaving = |name: &ActorName| {
            stopping.contains(name) || self.actor(name.as_str()).is_none_or(|actor| actor.leaving())
        };
        let is_cut = |from: &PortRef, to: &PortRef| {
            cut.iter().any(|ends| ends.from == *from && ends.to == *to)
        };
        let mut wanted: BTreeMap<ActorName, Vec<WireDef>> = BTreeMap::new();
        for ends in cut {
            wanted.entry(ends.from.actor.clone()).or_default();
        }
        // An actor that had to start anew has the wires of the one whose place it has taken.
        let stay = uprooted.iter().filter(|wire| !is_cut(wire.from(), wire.to()));
        for def in stay.map(|wire| def_of(wire)).chain(connect.iter().cloned()) {
            wanted.entry(def.from.actor.clone()).or_default().push(def);
        }
        let mut gone: Vec<Arc<Wire>> = Vec::new();
        let mut rerouted = Vec::new();
        for (name, defs) in wanted {
            let Some(sender) = self.actor(name.as_str()).filter(|_| !leaving(&name)) else {
                continue;
            };
            let before: Vec<_> = sender.shared.routes.load().all().cloned().collect();
            let mut after = before.clone();
            after.retain(|wire| !is_cut(wire.from(), wire.to()));
            for def in defs {
                let Some(target) = self.actor(def.to.actor.as_str()) else { continue };
                fresh.insert(def.to.actor.clone());
                let same = |wire: &Arc<Wire>| *wire.from() == def.from && *wire.to() == def.to;
                match after.iter().position(same) {
                    Some(at) if after[at].ends_at(target.mailbox()) => {
                        after[at].set_overflow(def.overflow);
                    }
                    Some(at) => after[at] = self.wire(def, &sender, &target),
                    None => after.push(self.wire(def, &sender, &target)),
                }
            }
            let stays = |wire: &Arc<Wire>| after.iter().any(|other| Arc::ptr_eq(other, wire));
            gone.extend(before.into_iter().filter(|wire| !stays(wire)));
            rerouted.push((sender, after));
        }
        {
            let mut past = self.0.past.lock();
            for (sender, after) in rerouted {
                sender.shared.routes.store(Arc::new(Routes::new(after)));
            }
            past.retiring.extend(gone.iter().map(Arc::clone));
            past.sweep();
        }
        let wires = self.wires();
        for wire in &gone {
            // An actor that has taken another's place has its mailbox too.
            let target = self.actors_at(wire);
            let port = target
                .filter(|actor| !leaving(actor.name()))
                .map(|actor| PortRef { actor: actor.name().clone(), port: wire.to().port.clone() });
            match port.filter(|port| !wires.iter().any(|wire| wire.to() == port)) {
                // What waits for a port without a wire is nobody's any more.
                Some(port) => {
                    wire.abandon(Reason::Unwired);
                    self.expel(&port);
                }
                None => self.finish_wire(wire),
            }
            fresh.insert(wire.to().actor.clone());
        }
        self.rejoin(&fresh, &wires);
    }

    /// A wire that nothing has gone over yet.
    fn wire(&self, def: WireDef, sender: &Actor, target: &Actor) -> Arc<Wire> {
        let entry = match sender.kind {
            Kind::Engine => Entry::Wire,
            Kind::Source(_) => Entry::Connector,
        };
        let mailbox = Arc::clone(target.mailbox());
        let target = WireTarget { mailbox, max_hops: Arc::clone(&target.shared.max_hops) };
        Arc::new(Wire::new(def.from, def.to, target, def.overflow, entry, self.0.sinks.clone()))
    }

    /// The actor that has the mailbox at the end of a wire.
    fn actors_at(&self, wire: &Wire) -> Option<Arc<Actor>> {
        let named = self.actor(wire.to().actor.as_str());
        let named = named.filter(|actor| wire.ends_at(actor.mailbox()));
        named.or_else(|| self.actors().into_iter().find(|actor| wire.ends_at(actor.mailbox())))
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

    /// Tells joins which inports they wait for: the required ones that have a
    /// wire, or every one that has a wire where none is required.
    fn rejoin(&self, actors: &BTreeSet<ActorName>, wires: &[Arc<Wire>]) {
        let mut wired: BTreeMap<&ActorName, BTreeSet<&PortName>> = BTreeMap::new();
        for to in wires.iter().map(|wire| wire.to()).filter(|to| actors.contains(&to.actor)) {
            wired.entry(&to.actor).or_default().insert(&to.port);
        }
        // Also where a message is a turn by itself: the actor may be about to hear
        // that it is to join.
        for name in actors {
            let Some(actor) = self.actor(name.as_str()) else { continue };
            let metadata = actor.metadata();
            let wired = |port: &PortName| wired.get(name).is_some_and(|ports| ports.contains(port));
            let ports = metadata.inports.iter().filter(|port| wired(&port.name));
            let (required, optional): (Vec<_>, Vec<_>) = ports.partition(|port| port.required);
            let join = if required.is_empty() { optional } else { required };
            actor.mailbox().set_join(join.into_iter().map(|port| port.name.clone()).collect());
        }
    }
}

/// What a wire is, to make it anew.
fn def_of(wire: &Wire) -> WireDef {
    WireDef { from: wire.from().clone(), to: wire.to().clone(), overflow: wire.overflow() }
}
