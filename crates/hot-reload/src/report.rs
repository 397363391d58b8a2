//! What a pass over disk has done, for people and tools.

use std::{collections::BTreeMap, time::Duration};

use reflowd_runtime::{ActorName, ActorState, Digest};
use serde::Serialize;

use crate::ModulePlace;

/// The difference that a pass found between disk and what ran, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Actors that were started.
    pub added: Vec<ActorName>,
    /// Actors that were swapped, changed in place or rewired.
    pub changed: Vec<ActorName>,
    /// Actors that were removed.
    pub removed: Vec<ActorName>,
    /// What was refused; what it concerns goes on as it was.
    pub refused: Vec<Refusal>,
    /// Anything else worth knowing.
    pub warnings: Vec<String>,
    /// What is held back until an operator allows removals.
    pub held: Option<String>,
    /// What is still under way, where it was not waited for any longer.
    pub under_way: Vec<Remaining>,
}

/// Something that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remaining {
    /// The actors, or the module, that it is about.
    pub what: String,
    /// What it waits for.
    pub why: String,
}

/// Something that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// An actor, a module's file or the configuration.
    pub what: String,
    /// Why, and what to do. May be many lines.
    pub why: String,
}

impl Report {
    /// Whether everything that disk asks for was done.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refused.is_empty() && self.held.is_none() && self.under_way.is_empty()
    }

    /// Whether there was no difference.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.changed.is_empty()
            && self.removed.is_empty()
            && self.is_clean()
    }
}

/// What an operator asks of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Try modules again that were refused before.
    pub force: bool,
    /// Do removals that are held back.
    pub allow_removal: bool,
    /// How long to wait for what it begins; until that has ended, where it is not said.
    pub timeout: Option<Duration>,
}

/// How an actor stands to what is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActorView {
    /// What it runs, as the configuration writes it.
    pub module: String,
    /// Whether a file started it, rather than the configuration.
    pub autostarted: bool,
    /// What disk asks it to run, where that is known.
    pub wanted: Option<Digest>,
    /// Whether what disk asks for is what runs.
    pub in_sync: bool,
    /// Whether the module's file is gone and the kept copy runs.
    pub file_gone: bool,
    /// Whether it was rolled back from what disk asks for, which is not tried again.
    pub banned: bool,
    /// The reason why it is not what disk asks for, if that was refused.
    pub held: Option<String>,
    /// What is being waited for, where it is rolling out.
    pub rolling_out: Option<String>,
    /// Where it does not run yet: what it waits for, and why.
    pub pending: Option<(ActorState, String)>,
}

/// One module's file or download, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// The file or URL.
    pub place: ModulePlace,
    /// What it holds, where that is certain.
    pub digest: Option<Digest>,
    /// `running`, `unused`, `refused`, `being written`, `on its way`, `gone` or `unknown`.
    pub state: &'static str,
    /// Why, where there is more to say.
    pub why: Option<String>,
    /// The actors that run it.
    pub actors: Vec<ActorName>,
}

/// All actors that disk asks for or that run, by name.
pub type View = BTreeMap<ActorName, ActorView>;
