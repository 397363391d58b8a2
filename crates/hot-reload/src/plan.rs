//! What to do about a difference between disk and what runs.
//!
//! Actors that change and are wired together, before or after, change together or not at
//! all: a [`ChangePlan`] is one such group. Who is wired to them and stays as it is, is no
//! part of it. Groups know nothing of each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
};

use reflowd_loader::ModuleUrl;
use reflowd_runtime::{ActorName, Digest, Generation, Settings};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    ActorSpec, Bans, Flow, GenerationKeys, ModuleRef, RunningActor, Snapshot, Trouble, WireSpec,
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
    /// Modules that are being loaded: whether they are any good is not known yet.
    pub loading: &'a BTreeSet<Digest>,
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
    /// What runs now among the actors of this group and those that are wired to them. With
    /// it, two equal plans have equal surroundings and deserve the same verdict.
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
    /// The module is being loaded.
    #[error("its module {} is being loaded", digest.short())]
    Loading {
        /// The module.
        digest: Digest,
    },
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
    /// The module has run before, and whether it was banned is not known any more.
    #[error(
        "its module {} has run here before, and what is remembered of that is lost: it may have been rolled back; other bytes or `reflowd reload --force` start it",
        digest.short()
    )]
    Suspect {
        /// The module.
        digest: Digest,
    },
}

impl Doubt {
    /// Whether a later look will say more by itself.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self, Self::Unsettled | Self::Missing | Self::OnItsWay(_) | Self::Loading { .. })
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

    pub(crate) fn has(&self, stem: &str) -> bool {
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
    pub(crate) fn removes(&self) -> usize {
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

    /// Holds back what would remove more than one actor and more than half.
    pub(crate) fn hold_accidents(&mut self, of: usize) {
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

/// The actors that a change is about.
pub(crate) fn touched(change: &ChangePlan) -> BTreeSet<ActorName> {
    let ChangePlan { around: _, start, swap, adjust, stop, connect, cut } = change;
    let wires = connect.iter().chain(cut).flat_map(|wire| [&wire.from.actor, &wire.to.actor]);
    (start.iter().map(|start| &start.actor))
        .chain(swap.iter().map(|swap| &swap.actor))
        .chain(adjust.iter().map(|adjust| &adjust.actor))
        .chain(stop.iter().map(|stop| &stop.actor))
        .chain(wires)
        .cloned()
        .collect()
}
