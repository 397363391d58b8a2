//! What to do about a difference between disk and what runs.
//!
//! Pure: values in, values out, and the same again for the same. What is on
//! disk and what runs are both told as they are, never how they came to be, so
//! a plan that was carried out half-way is simply made again.
//!
//! Actors that are wired together, before or after, change together or not at
//! all: a [`ChangePlan`] is one such group. Groups know nothing of each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::Path,
};

use reflowd_loader::ModuleUrl;
use reflowd_runtime::{ActorName, Digest, Generation, Overflow, PortRef, Settings};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    ActorSpec, Bans, Flow, GenerationKeys, ModuleRef, Running, RunningActor, Sight, Snapshot,
    Trouble, WireSpec,
};

/// What disk asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The configuration.
    pub flow: &'a Flow,
    /// The modules.
    pub snapshot: &'a Snapshot,
    /// The watched folder.
    pub folder: &'a Path,
    /// What an actor gets that no configuration names; nothing, where files
    /// alone start no actors.
    pub autostart: Option<&'a Template>,
    /// What is not autostarted again.
    pub retired: &'a Retired,
    /// Modules that were refused for what they are, and why.
    pub refused: &'a BTreeMap<Digest, String>,
    /// What actors were rolled back from: they go on with what they run.
    pub bans: &'a Bans,
    /// What actors ran last in an earlier process. They start as that, and what disk
    /// asks for is a change like any other.
    pub recollected: &'a BTreeMap<ActorName, RunningActor>,
    /// Whether many removals at once are meant.
    pub removals: Removals,
}

/// The keys of an actor that a file alone has started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    /// The keys that make a generation.
    pub keys: GenerationKeys,
    /// The keys that apply in place.
    pub settings: Settings,
}

/// Whether many removals at once are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removals {
    /// They look like an accident, and are held.
    #[default]
    Guarded,
    /// Somebody has said so.
    Allowed,
}

/// Names and stems that configuration has had in its hands.
///
/// An actor that is taken out of the configuration is meant to be gone, though
/// its file is still there. So files are not autostarted that an actor of the
/// configuration has used while the daemon lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    names: BTreeSet<ActorName>,
    stems: BTreeSet<String>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What can be prepared and done, each on its own.
    pub changes: Vec<ChangePlan>,
    /// What cannot be done now, because of modules that are not there to be had.
    pub blocked: Vec<Blocked>,
    /// What looks like an accident.
    pub held: Option<Held>,
    /// What an operator should know.
    pub notes: Vec<Note>,
}

/// What to do with actors that are wired together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangePlan {
    /// What runs now among the actors of this group, changed or not. With it,
    /// two equal plans have equal surroundings and deserve the same verdict.
    pub around: BTreeMap<ActorName, (Digest, Generation)>,
    /// Actors that do not run yet.
    pub start: Vec<Starting>,
    /// Actors that get another generation.
    pub swap: Vec<Swapping>,
    /// Actors that only change in place.
    pub adjust: Vec<Adjusting>,
    /// Actors to drain and stop.
    pub stop: Vec<Stopping>,
    /// Wires that are new.
    pub connect: Vec<WireSpec>,
    /// Wires that are not wanted any more. Those that lead out of an actor that
    /// stops are not among them: it keeps them until it is empty.
    pub cut: Vec<WireSpec>,
}

/// An actor to start.
#[derive(Clone, Debug, PartialEq)]
pub struct Starting {
    /// Its name.
    pub actor: ActorName,
    /// What it is asked to be.
    pub spec: ActorSpec,
    /// The module that it is to run.
    pub digest: Digest,
    /// Whether a file alone starts it.
    pub autostarted: bool,
    /// The running actor whose mailbox and state it takes over.
    pub was: Option<ActorName>,
    /// Whether it is still draining, which ends with this.
    pub draining: bool,
}

/// An actor to swap.
#[derive(Clone, Debug, PartialEq)]
pub struct Swapping {
    /// Its name.
    pub actor: ActorName,
    /// What it is asked to be, the keys that apply in place included.
    pub spec: ActorSpec,
    /// The module that it is to run.
    pub digest: Digest,
    /// Whether a file alone has started it.
    pub autostarted: bool,
}

/// An actor whose generation stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Adjusting {
    /// Its name.
    pub actor: ActorName,
    /// What it is asked to be. A version requirement may be new, and is to be
    /// held against the module that runs.
    pub spec: ActorSpec,
    /// Whether a file alone has started it.
    pub autostarted: bool,
}

/// An actor to drain and stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    /// Its name.
    pub actor: ActorName,
    /// Why.
    pub why: StopReason,
}

/// Why an actor stops.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StopReason {
    /// It is not in the configuration any more.
    #[error("it is not in the configuration any more")]
    Removed,
    /// The file that had started it is gone.
    #[error("its file is gone")]
    FileGone,
    /// A configured actor uses the module of the file that had started it.
    #[error("`{by}` uses its module")]
    Taken {
        /// That actor.
        by: ActorName,
    },
    /// Files alone start no actors any more.
    #[error("files alone start no actors any more")]
    AutostartOff,
}

/// A group that cannot change now. All of it goes on as it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocked {
    /// What would be done.
    pub change: ChangePlan,
    /// What stands in the way, by actor.
    pub because: BTreeMap<ActorName, Doubt>,
}

/// Why it cannot be said what an actor is to run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Doubt {
    /// The file is being written.
    #[error("its module's file is being written")]
    Unsettled,
    /// The file has just vanished, and may be back.
    #[error("its module's file has just vanished")]
    Missing,
    /// There is no such file.
    #[error("there is no file of its module")]
    Gone,
    /// It is to be downloaded, and is not here yet.
    #[error("its module is still to come from {0}")]
    OnItsWay(ModuleUrl),
    /// It could not be downloaded.
    #[error("its module is not here: {0}; that is tried again")]
    NotDownloaded(Trouble),
    /// Nothing can be said of the file.
    #[error("nothing is known of its module's file: {0}")]
    Unknown(Trouble),
    /// The file holds another module than the actor is pinned to.
    #[error("its module's file has digest {found}, and `sha256` pins {pin}")]
    Pinned {
        /// The digest that it must have.
        pin: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// The module was refused for what it is.
    #[error("its module {} was refused: {why}", digest.short())]
    Refused {
        /// The module.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// The actor was rolled back from exactly that.
    #[error(
        "it was rolled back from {} with these keys, because {why}; other bytes, other keys or `reflowd reload --force` bring it on again",
        digest.short()
    )]
    Banned {
        /// The module.
        digest: Digest,
        /// Why it was rolled back.
        why: String,
    },
}

impl Doubt {
    /// Whether a later look will say more by itself.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unsettled | Self::Missing | Self::OnItsWay(_))
    }
}

/// Removals that look like an accident.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// What would be done.
    pub changes: Vec<ChangePlan>,
    /// How many actors that would remove.
    pub removes: usize,
    /// How many actors run.
    pub of: usize,
}

/// What an operator should know, though there is nothing to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Note {
    /// The actor goes on with what is kept.
    #[error("`{actor}` goes on with what it runs: {doubt}")]
    GoesOn {
        /// The actor.
        actor: ActorName,
        /// What is wrong with its file; [`Doubt::Gone`] is `file gone`.
        doubt: Doubt,
    },
    /// A new file cannot be an actor.
    #[error("{} starts no actor: {doubt}", file.display())]
    NotStarted {
        /// The file's name.
        file: OsString,
        /// What is wrong with it.
        doubt: Doubt,
    },
    /// The file's name is no actor's name. The module is to be loaded all the
    /// same, so that its faults show.
    #[error("{} starts no actor: its name does not fit; rename it, or name it as `module` of an actor", file.display())]
    NameDoesNotFit {
        /// The file's name.
        file: OsString,
        /// The module.
        digest: Digest,
    },
    /// A configured actor has the file's name and runs something else.
    #[error("{} starts no actor: `{actor}` is configured to run something else", file.display())]
    NameTaken {
        /// The file's name.
        file: OsString,
        /// The actor.
        actor: ActorName,
    },
}

/// What an actor is asked to be, and by whom.
struct Desired {
    spec: ActorSpec,
    autostarted: bool,
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

/// The digest that stands for a connector: the same in every build, because
/// connectors change with the daemon and not while it runs.
#[must_use]
pub fn builtin_digest(name: &str) -> Digest {
    Digest::new(Sha256::digest(format!("std:{name}")).into())
}

impl Retired {
    /// The flow has come into force, so its actors are the configuration's.
    pub fn note(&mut self, flow: &Flow, folder: &Path) {
        for (name, spec) in &flow.actors {
            self.names.insert(name.clone());
            self.stems.extend(spec.module.stem_in(folder).map(str::to_owned));
        }
    }

    fn has(&self, stem: &str) -> bool {
        self.stems.contains(stem) || self.names.contains(stem)
    }
}

impl ChangePlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { around: _, start, swap, adjust, stop, connect, cut } = self;
        start.is_empty()
            && swap.is_empty()
            && adjust.is_empty()
            && stop.is_empty()
            && connect.is_empty()
            && cut.is_empty()
    }

    /// Actors that this takes away for good. Where a configured actor takes the
    /// place of an autostarted one, nothing is lost.
    fn removes(&self) -> usize {
        let lost = |stop: &&Stopping| !matches!(stop.why, StopReason::Taken { .. });
        self.stop.iter().filter(lost).count()
    }
}

impl Plan {
    /// Whether disk asks for what runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.blocked.is_empty() && self.held.is_none()
    }
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
            Ok(digest) => digest,
            // An actor that drains still has its module.
            Err(doubt) => match self.running.actors.get(name) {
                Some(actor) if goes_on(&desired.spec, actor, &doubt) => actor.digest,
                _ => return self.block(name, doubt),
            },
        };
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
        for wire in new.iter().chain(old) {
            self.groups.join(&wire.from.actor, &wire.to.actor);
        }
        self.all.connect = connect;
        self.all.cut = cut;
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
        for (name, actor) in &self.running.actors {
            if let Some(change) = changes.get_mut(&of(name)) {
                change.around.insert(name.clone(), (actor.digest, actor.generation));
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

impl Plan {
    /// Holds back what would remove more than one actor and more than half.
    fn hold_accidents(&mut self, of: usize) {
        let removes = self.changes.iter().map(ChangePlan::removes).sum();
        if removes > 1 && removes * 2 > of {
            let (held, changes) =
                std::mem::take(&mut self.changes).into_iter().partition(|c| c.removes() > 0);
            self.changes = changes;
            self.held = Some(Held { changes: held, removes, of });
        }
    }
}

impl Template {
    pub(crate) fn spec(&self, stem: &str) -> ActorSpec {
        ActorSpec {
            module: ModuleRef::Stem { stem: stem.to_owned(), pin: None },
            keys: self.keys.clone(),
            settings: self.settings.clone(),
            version: None,
            was: None,
            origin: format!("{stem}.wasm"),
        }
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
