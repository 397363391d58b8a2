//! What runs, as passes remember it: what disk asks for is held against this.

use std::collections::{BTreeMap, BTreeSet};

use reflowd_runtime::{ActorName, Digest, Generation};

use crate::{
    ActorSpec, WireSpec,
    plan::{Adjusting, ChangePlan, Starting, Swapping},
};

/// What runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Running {
    /// The actors, those that drain included.
    pub actors: BTreeMap<ActorName, RunningActor>,
    /// The wires.
    pub wires: Vec<WireSpec>,
}

/// One actor that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningActor {
    /// What it was asked to run when it was last changed.
    pub spec: ActorSpec,
    /// The module that it runs.
    pub digest: Digest,
    /// The generation that it runs.
    pub generation: Generation,
    /// Whether a file alone has started it.
    pub autostarted: bool,
    /// Whether it is on its way out.
    pub draining: bool,
}

impl Running {
    /// These actors, those that they are wired to, and the wires between them.
    pub(crate) fn around(&self, actors: &BTreeSet<ActorName>) -> Self {
        let near =
            |wire: &&WireSpec| actors.contains(&wire.from.actor) || actors.contains(&wire.to.actor);
        let wires: Vec<_> = self.wires.iter().filter(near).cloned().collect();
        let ends = wires.iter().flat_map(|wire| [&wire.from.actor, &wire.to.actor]);
        let names: BTreeSet<_> = ends.chain(actors).collect();
        let here = |name: &&ActorName| Some(((*name).clone(), self.actors.get(*name)?.clone()));
        Self { actors: names.iter().filter_map(here).collect(), wires }
    }

    /// All wires after the change. An actor that stops keeps its own until it is empty.
    pub(crate) fn wires_after(&self, change: &ChangePlan) -> Vec<WireSpec> {
        let connected = |wire: &WireSpec| change.connect.iter().any(|new| same_ends(new, wire));
        let goes = going(change);
        let stays = self.wires.iter().filter(|wire| !goes(wire) && !connected(wire));
        stays.chain(&change.connect).cloned().collect()
    }

    /// The wires that are not there any more after the change.
    pub(crate) fn wires_cut_by(&self, change: &ChangePlan) -> Vec<WireSpec> {
        let connected = |wire: &WireSpec| change.connect.iter().any(|new| same_ends(new, wire));
        let goes = going(change);
        self.wires.iter().filter(|wire| goes(wire) && !connected(wire)).cloned().collect()
    }

    /// The change is done, and gave these generations.
    pub(crate) fn take(
        &mut self,
        change: &ChangePlan,
        generations: &BTreeMap<ActorName, Generation>,
    ) {
        self.wires = self.wires_after(change);
        for Starting { actor, spec, digest, autostarted, was, draining: _ } in &change.start {
            if let Some(was) = was {
                self.actors.remove(was);
            }
            self.put(actor, spec, *digest, *autostarted, generations);
        }
        for Swapping { actor, spec, digest, autostarted } in &change.swap {
            self.put(actor, spec, *digest, *autostarted, generations);
        }
        for Adjusting { actor, spec, autostarted } in &change.adjust {
            if let Some(running) = self.actors.get_mut(actor) {
                running.spec = spec.clone();
                running.autostarted = *autostarted;
            }
        }
        for stop in &change.stop {
            if let Some(running) = self.actors.get_mut(&stop.actor) {
                running.draining = true;
            }
        }
    }

    fn put(
        &mut self,
        actor: &ActorName,
        spec: &ActorSpec,
        digest: Digest,
        autostarted: bool,
        generations: &BTreeMap<ActorName, Generation>,
    ) {
        let before = self.actors.get(actor).map(|running| running.generation);
        let generation = generations.get(actor).copied().or(before).unwrap_or(Generation::FIRST);
        let spec = spec.clone();
        let running = RunningActor { spec, digest, generation, autostarted, draining: false };
        self.actors.insert(actor.clone(), running);
    }
}

fn same_ends(a: &WireSpec, b: &WireSpec) -> bool {
    a.from == b.from && a.to == b.to
}

/// Whether a change takes a wire away, by itself or with one of its ends.
fn going(change: &ChangePlan) -> impl Fn(&WireSpec) -> bool {
    let stopped = change.stop.iter().map(|stop| &stop.actor);
    let renamed = change.start.iter().filter_map(|start| start.was.as_ref());
    let gone: BTreeSet<&ActorName> = stopped.chain(renamed).collect();
    move |wire| {
        change.cut.iter().any(|cut| same_ends(cut, wire))
            || gone.contains(&wire.from.actor)
            || gone.contains(&wire.to.actor)
    }
}
