//! Compares disk with what runs, and plans the way from one to the other.
//!
//! Pure: values in, values out, and the same again for the same. What is on
//! disk and what runs are both told as they are, never how they came to be, so
//! a plan that was carried out half-way is simply made again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
};

use reflowd_runtime::{ActorName, Digest, Overflow, PortRef};

use crate::{
    ActorSpec, Adjusting, Blocked, ChangePlan, Doubt, ModuleRef, Note, Plan, Removals, Running,
    RunningActor, Sight, Starting, StopReason, Stopping, Swapping, Wanted, WireSpec,
    builtin_digest, plan::touched,
};

/// What makes what runs equal to what disk asks for.
#[must_use]
pub fn plan(wanted: Wanted<'_>, running: &Running) -> Plan {
    let mut planner = Planner {
        wanted,
        running,
        desired: BTreeMap::new(),
        users: BTreeMap::new(),
        groups: Groups::default(),
        all: ChangePlan::default(),
        because: BTreeMap::new(),
        notes: Vec::new(),
    };
    planner.ask_configuration();
    planner.ask_files();
    planner.change_actors();
    planner.stop_actors();
    planner.change_wires();
    planner.finish()
}

/// Makes one plan.
struct Planner<'a> {
    wanted: Wanted<'a>,
    running: &'a Running,
    desired: BTreeMap<ActorName, Desired>,
    /// Configured actors by the stem that they use.
    users: BTreeMap<String, ActorName>,
    groups: Groups,
    /// Everything to do, ungrouped.
    all: ChangePlan,
    because: BTreeMap<ActorName, Doubt>,
    notes: Vec<Note>,
}

/// What an actor is asked to be, and by whom.
struct Desired {
    spec: ActorSpec,
    autostarted: bool,
}

impl Planner<'_> {
    /// The actors that the configuration asks for.
    fn ask_configuration(&mut self) {
        for (name, spec) in &self.wanted.flow.actors {
            if let Some(stem) = spec.module.stem_in(self.wanted.folder) {
                self.users.entry(stem.to_owned()).or_insert_with(|| name.clone());
            }
            let desired = Desired { spec: spec.clone(), autostarted: false };
            self.desired.insert(name.clone(), desired);
        }
    }

    /// The actors that files alone ask for.
    fn ask_files(&mut self) {
        let Some(template) = self.wanted.autostart else { return };
        let snapshot = self.wanted.snapshot;
        for (file, sight) in &snapshot.modules {
            let Some(stem) = stem_of(file) else {
                self.does_not_fit(file, sight);
                continue;
            };
            let runs = self.autostarted(stem);
            let retired = self.wanted.retired.has(stem) && !runs;
            if self.users.contains_key(stem) || self.gives_way(stem) || retired {
                continue;
            }
            let Ok(name) = stem.parse::<ActorName>() else {
                self.does_not_fit(file, sight);
                continue;
            };
            if self.desired.contains_key(&name) {
                if sight.present().is_some() {
                    self.notes.push(Note::NameTaken { file: file.clone(), actor: name });
                }
                continue;
            }
            match self.digest_of(sight, None) {
                Err(Doubt::Gone) => continue,
                Err(doubt) if !runs && !self.wanted.recollected.contains_key(&name) => {
                    if !doubt.passes() {
                        self.notes.push(Note::NotStarted { file: file.clone(), doubt });
                    }
                    continue;
                }
                Ok(_) | Err(_) => {}
            }
            self.desired.insert(name, Desired { spec: template.spec(stem), autostarted: true });
        }
        // A folder that cannot be read, at a time when it is not even known
        // what was in it, stops nobody.
        for (name, actor) in self.running.actors.iter().filter(|(_, actor)| actor.autostarted) {
            let Some(stem) = actor.spec.module.stem_in(self.wanted.folder) else { continue };
            let taken = self.users.contains_key(stem) || self.desired.contains_key(name);
            let taken = taken || self.gives_way(name.as_str()) || actor.draining;
            if !taken && matches!(snapshot.stem(stem), Sight::Unknown(_)) {
                let desired = Desired { spec: template.spec(stem), autostarted: true };
                self.desired.insert(name.clone(), desired);
            }
        }
    }

    /// Whether an actor that is about to start takes over the one of that name.
    fn gives_way(&self, name: &str) -> bool {
        let starts = |name| !self.running.actors.contains_key(name);
        let takes = |spec: &ActorSpec| spec.was.as_ref().is_some_and(|was| was.as_str() == name);
        self.wanted.flow.actors.iter().any(|(actor, spec)| takes(spec) && starts(actor))
    }

    fn does_not_fit(&mut self, file: &OsStr, sight: &Sight<Digest>) {
        if let Some(digest) = sight.present() {
            self.notes.push(Note::NameDoesNotFit { file: file.to_owned(), digest: *digest });
        }
    }

    /// Whether the actor of that name was started by the file of that stem, and
    /// still runs.
    fn autostarted(&self, stem: &str) -> bool {
        self.running.actors.get(stem).is_some_and(|actor| actor.autostarted && !actor.draining)
    }

    /// What each desired actor needs.
    fn change_actors(&mut self) {
        let desired = std::mem::take(&mut self.desired);
        for (name, desired) in &desired {
            let target = self.target(&desired.spec.module);
            match self.running.actors.get(name) {
                Some(actor) if !actor.draining => self.change(name, desired, actor, target),
                running => self.start(name, desired, target, running.is_some()),
            }
        }
        self.desired = desired;
    }

    /// What the module's place holds.
    fn target(&self, module: &ModuleRef) -> Result<Digest, Doubt> {
        match module {
            ModuleRef::Builtin { name } => Ok(builtin_digest(name)),
            ModuleRef::Url { url, .. } => match self.wanted.snapshot.module(module) {
                Sight::Unknown(trouble) => Err(Doubt::NotDownloaded(trouble)),
                Sight::Present(digest) => self.digest_of(&Sight::Present(digest), None),
                _ => Err(Doubt::OnItsWay(url.clone())),
            },
            ModuleRef::Stem { pin, .. } | ModuleRef::Path { pin, .. } => {
                self.digest_of(&self.wanted.snapshot.module(module), *pin)
            }
        }
    }

    fn digest_of(&self, sight: &Sight<Digest>, pin: Option<Digest>) -> Result<Digest, Doubt> {
        let digest = match sight {
            Sight::Present(digest) => *digest,
            Sight::Unsettled => return Err(Doubt::Unsettled),
            Sight::Missing => return Err(Doubt::Missing),
            Sight::Gone => return Err(Doubt::Gone),
            Sight::Unknown(trouble) => return Err(Doubt::Unknown(trouble.clone())),
        };
        if let Some(pin) = pin.filter(|pin| *pin != digest) {
            return Err(Doubt::Pinned { pin, found: digest });
        }
        match self.wanted.refused.get(&digest) {
            Some(why) => Err(Doubt::Refused { digest, why: why.clone() }),
            None if self.wanted.loading.contains(&digest) => Err(Doubt::Loading { digest }),
            None => Ok(digest),
        }
    }

    /// An actor that does not run, or is on its way out.
    fn start(
        &mut self,
        name: &ActorName,
        desired: &Desired,
        target: Result<Digest, Doubt>,
        draining: bool,
    ) {
        let mut spec = desired.spec.clone();
        let was = desired.spec.was.as_ref().filter(|was| !draining && self.moves(was)).cloned();
        let digest = match target {
            Ok(digest)
                if let Some(was) = &was
                    && let Some(actor) = self.running.actors.get(was)
                    && let Some(ban) = self.wanted.bans.standing(was, &digest, &spec.keys) =>
            {
                // Another name does not lift a ban.
                let doubt = Doubt::Banned { digest, why: ban.why.clone() };
                self.notes.push(Note::GoesOn { actor: was.clone(), doubt });
                spec.keys = actor.spec.keys.clone();
                spec.version = actor.spec.version.clone();
                actor.digest
            }
            target if let Some(last) = self.recollected(name, &desired.spec, &target) => {
                spec.keys = last.spec.keys.clone();
                spec.version = last.spec.version.clone();
                last.digest
            }
            Ok(digest) if let Some(ban) = self.wanted.bans.standing(name, &digest, &spec.keys) => {
                return self.block(name, Doubt::Banned { digest, why: ban.why.clone() });
            }
            Ok(digest) if !draining && self.wanted.bans.suspects().contains(&digest) => {
                return self.block(name, Doubt::Suspect { digest });
            }
            Ok(digest) => digest,
            Err(doubt @ Doubt::Loading { .. }) => return self.block(name, doubt),
            // An actor that drains still has its module.
            Err(doubt) => match self.running.actors.get(name) {
                Some(actor) if goes_on(&desired.spec, actor, &doubt) => actor.digest,
                _ => return self.block(name, doubt),
            },
        };
        if self.wanted.loading.contains(&digest) {
            return self.block(name, Doubt::Loading { digest });
        }
        if let Some(was) = &was {
            self.groups.join(name, was);
        }
        self.all.start.push(Starting {
            actor: name.clone(),
            spec,
            digest,
            autostarted: desired.autostarted,
            was,
            draining,
        });
    }

    /// What the actor ran last, where it is to start as that.
    fn recollected(
        &self,
        name: &ActorName,
        spec: &ActorSpec,
        target: &Result<Digest, Doubt>,
    ) -> Option<&RunningActor> {
        let last = self.wanted.recollected.get(name)?;
        let elsewhere = spec.module.pin().is_some_and(|pin| pin != last.digest);
        // What a URL gave before is kept, so that a start does not depend on a server.
        let download = |spec: &ActorSpec| matches!(spec.module, ModuleRef::Url { .. });
        let stays = match target {
            _ if download(spec) && download(&last.spec) => true,
            Ok(_) => !elsewhere,
            Err(doubt) => goes_on(spec, last, doubt),
        };
        let runs = self.running.actors.contains_key(name);
        let refused = self.wanted.refused.contains_key(&last.digest);
        (stays && !runs && !refused).then_some(last)
    }

    /// The actor holds up its group.
    fn block(&mut self, name: &ActorName, doubt: Doubt) {
        self.because.insert(name.clone(), doubt);
    }

    /// Whether the actor of the former name runs, is not wanted any more, and
    /// nobody else takes it over.
    fn moves(&self, was: &ActorName) -> bool {
        let runs = self.running.actors.get(was).is_some_and(|actor| !actor.draining);
        // Its file alone does not keep an actor that is given another name.
        let wanted = self.wanted.flow.actors.contains_key(was);
        runs && !wanted && !self.all.start.iter().any(|start| start.was.as_ref() == Some(was))
    }

    /// An actor that runs and is to go on.
    fn change(
        &mut self,
        name: &ActorName,
        desired: &Desired,
        actor: &RunningActor,
        target: Result<Digest, Doubt>,
    ) {
        let Desired { spec, autostarted } = desired;
        let keys_differ = spec.keys != actor.spec.keys;
        let differs_in_place = spec.settings != actor.spec.settings
            || spec.version != actor.spec.version
            || spec.module != actor.spec.module
            || *autostarted != actor.autostarted;
        let digest = match target {
            Ok(digest) => digest,
            // What else differs may be meant for the module that is on its way.
            Err(doubt @ Doubt::Loading { .. }) => return self.block(name, doubt),
            Err(doubt) => {
                if !goes_on(spec, actor, &doubt) {
                    return self.block(name, doubt);
                }
                let refused = matches!(doubt, Doubt::Refused { .. });
                if refused && (keys_differ || differs_in_place) {
                    // The keys may be meant for the module that was refused.
                    return self.block(name, doubt);
                }
                if !doubt.passes() {
                    self.notes.push(Note::GoesOn { actor: name.clone(), doubt });
                }
                actor.digest
            }
        };
        let (actor_name, mut spec, autostarted) = (name.clone(), spec.clone(), *autostarted);
        let swaps = keys_differ || digest != actor.digest;
        if swaps && let Some(ban) = self.wanted.bans.standing(name, &digest, &spec.keys) {
            let doubt = Doubt::Banned { digest, why: ban.why.clone() };
            self.notes.push(Note::GoesOn { actor: name.clone(), doubt });
            // They belong to what is banned.
            spec.keys = actor.spec.keys.clone();
            spec.version = actor.spec.version.clone();
            let differs_in_place = spec.settings != actor.spec.settings
                || spec.module != actor.spec.module
                || autostarted != actor.autostarted;
            if differs_in_place {
                self.all.adjust.push(Adjusting { actor: actor_name, spec, autostarted });
            }
        } else if swaps {
            self.all.swap.push(Swapping { actor: actor_name, spec, digest, autostarted });
        } else if differs_in_place {
            self.all.adjust.push(Adjusting { actor: actor_name, spec, autostarted });
        }
    }

    /// The actors that nobody asks for any more.
    fn stop_actors(&mut self) {
        let moved: BTreeSet<_> =
            self.all.start.iter().filter_map(|start| start.was.clone()).collect();
        for (name, actor) in &self.running.actors {
            if actor.draining || self.desired.contains_key(name) || moved.contains(name) {
                continue;
            }
            let why = if actor.autostarted {
                let stem = actor.spec.module.stem_in(self.wanted.folder);
                match stem.and_then(|stem| self.users.get(stem)) {
                    Some(by) => {
                        // It goes when the other can come, not before.
                        self.groups.join(name, by);
                        StopReason::Taken { by: by.clone() }
                    }
                    None if self.wanted.autostart.is_none() => StopReason::AutostartOff,
                    None => StopReason::FileGone,
                }
            } else {
                StopReason::Removed
            };
            self.all.stop.push(Stopping { actor: name.clone(), why });
        }
    }

    /// The wires that come and go.
    fn change_wires(&mut self) {
        let stopping: BTreeSet<_> = self.all.stop.iter().map(|stop| &stop.actor).collect();
        let leaving = |wire: &WireSpec| {
            let from = &wire.from.actor;
            let drains = self.running.actors.get(from).is_some_and(|actor| actor.draining);
            stopping.contains(from) || (drains && !self.desired.contains_key(from))
        };
        let (new, old) = (&self.wanted.flow.wires, &self.running.wires);
        let (news, olds) = (ways(new), ways(old));
        let has = |ways: &Ways<'_>, wire: &WireSpec| {
            ways.get(&(&wire.from, &wire.to)) == Some(&wire.overflow)
        };
        let connect = new.iter().filter(|wire| !has(&olds, wire)).cloned().collect();
        let cut = old.iter().filter(|wire| !has(&news, wire) && !leaving(wire)).cloned().collect();
        self.all.connect = connect;
        self.all.cut = cut;
        // Who is wired to a change and stays as it is, is no part of it.
        let mut touched = touched(&self.all);
        touched.extend(self.because.keys().cloned());
        for wire in new.iter().chain(old) {
            if touched.contains(&wire.from.actor) && touched.contains(&wire.to.actor) {
                self.groups.join(&wire.from.actor, &wire.to.actor);
            }
        }
    }

    /// Sorts everything into groups, and the groups by what can be done.
    fn finish(mut self) -> Plan {
        let mut changes: BTreeMap<ActorName, ChangePlan> = BTreeMap::new();
        let groups = &mut self.groups;
        let mut of = |actor: &ActorName| groups.of(actor);
        for start in self.all.start {
            changes.entry(of(&start.actor)).or_default().start.push(start);
        }
        for swap in self.all.swap {
            changes.entry(of(&swap.actor)).or_default().swap.push(swap);
        }
        for adjust in self.all.adjust {
            changes.entry(of(&adjust.actor)).or_default().adjust.push(adjust);
        }
        for stop in self.all.stop {
            changes.entry(of(&stop.actor)).or_default().stop.push(stop);
        }
        for wire in self.all.connect {
            changes.entry(of(&wire.from.actor)).or_default().connect.push(wire);
        }
        for wire in self.all.cut {
            changes.entry(of(&wire.from.actor)).or_default().cut.push(wire);
        }
        let mut because: BTreeMap<ActorName, BTreeMap<ActorName, Doubt>> = BTreeMap::new();
        for (actor, doubt) in self.because {
            let group = of(&actor);
            changes.entry(group.clone()).or_default();
            because.entry(group).or_default().insert(actor, doubt);
        }
        let runs = |name: &ActorName| {
            let actor = self.running.actors.get(name)?;
            Some((name.clone(), (actor.digest, actor.generation)))
        };
        for name in self.running.actors.keys() {
            if let Some(change) = changes.get_mut(&of(name)) {
                change.around.extend(runs(name));
            }
        }
        for wire in self.wanted.flow.wires.iter().chain(&self.running.wires) {
            let ends = [&wire.from.actor, &wire.to.actor];
            for (end, other) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                if let Some(change) = changes.get_mut(&of(end)) {
                    change.around.extend(runs(other));
                }
            }
        }
        let mut plan = Plan { notes: self.notes, ..Plan::default() };
        for (group, change) in changes {
            match because.remove(&group) {
                Some(because) => plan.blocked.push(Blocked { change, because }),
                None => plan.changes.push(change),
            }
        }
        if self.wanted.removals == Removals::Guarded {
            let of = self.running.actors.values().filter(|actor| !actor.draining).count();
            plan.hold_accidents(of);
        }
        plan
    }
}

/// Actors that change together: each points at another of its group or, being
/// the one that stands for it, at nobody.
#[derive(Default)]
struct Groups {
    next: BTreeMap<ActorName, ActorName>,
}

impl Groups {
    fn of(&mut self, actor: &ActorName) -> ActorName {
        let mut first = actor.clone();
        while let Some(next) = self.next.get(&first) {
            first = next.clone();
        }
        // Straight to the end next time, so that long chains stay cheap.
        let mut step = actor.clone();
        while step != first {
            step = self.next.insert(step, first.clone()).expect("each but the first has a next");
        }
        first
    }

    fn join(&mut self, one: &ActorName, other: &ActorName) {
        let (one, other) = (self.of(one), self.of(other));
        if one != other {
            // The lesser name stands for both, so that plans are the same again.
            self.next.insert(one.clone().max(other.clone()), one.min(other));
        }
    }
}

/// Whether an actor can go on with the module that it runs, whatever has become
/// of the module's file.
fn goes_on(spec: &ActorSpec, actor: &RunningActor, doubt: &Doubt) -> bool {
    let module = &spec.module;
    let pinned_elsewhere = module.pin().is_some_and(|pin| pin != actor.digest);
    module.same_place(&actor.spec.module)
        && !pinned_elsewhere
        // A file that was pinned and refused is not what the actor runs.
        && !matches!(doubt, Doubt::Pinned { pin, .. } if *pin != actor.digest)
}

/// Wires by where they lead, with what tells two apart: not their place in the
/// configuration.
type Ways<'a> = BTreeMap<(&'a PortRef, &'a PortRef), Option<Overflow>>;

fn ways(wires: &[WireSpec]) -> Ways<'_> {
    wires.iter().map(|wire| ((&wire.from, &wire.to), wire.overflow)).collect()
}

/// The stem of a module's file name, where it is text at all.
fn stem_of(file: &OsStr) -> Option<&str> {
    file.to_str()?.strip_suffix(".wasm")
}

#[cfg(test)]
mod tests;
