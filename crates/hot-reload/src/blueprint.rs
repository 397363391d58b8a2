//! What the reconciler asks of the code that knows configuration and connectors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use reflowd_runtime::{ActorName, Metadata, Ready};

use crate::{ActorSpec, Flow, GenerationKeys, Include, ModuleRef};

/// Knows how a flow is written, and what connectors there are.
///
/// The reconciler gives it texts and takes values; it never looks at a file
/// itself, so that what is parsed is what was seen to stand still.
pub trait Blueprint: Send + Sync {
    /// The files that make up the configuration, as far as those texts tell. The
    /// main file, where there are no texts yet.
    fn files(&self, texts: &Texts) -> ConfigFiles;

    /// Makes a draft of a flow from texts.
    ///
    /// # Errors
    /// Every problem, ready to be shown.
    fn draft(&self, texts: &Texts) -> Result<Box<dyn Draft>, String>;

    /// Makes the connector of that name ready for an actor.
    ///
    /// # Errors
    /// There is no such connector, or its configuration is wrong.
    fn connector(&self, actor: &ActorName, name: &str, spec: &ActorSpec) -> Result<Ready, String>;

    /// The ports of a connector: those that it has with an actor's keys, or, without
    /// them, those that all of its kind have.
    fn connector_metadata(&self, name: &str, keys: Option<&GenerationKeys>) -> Option<Metadata>;
}

/// The files that make up a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigFiles {
    /// Those that must be there.
    pub configs: Vec<PathBuf>,
    /// Those that count where they are there.
    pub includes: Vec<Include>,
}

/// Configuration files by path.
pub type Texts = BTreeMap<PathBuf, Arc<str>>;

/// A flow that is well written; whether it fits its modules is another question.
pub trait Draft: Send + Sync {
    /// The flow.
    fn flow(&self) -> &Flow;

    /// Checks modules, ports, types and cycles.
    ///
    /// # Errors
    /// Every problem, ready to be shown, where the files alone show one.
    fn check(&self, lookup: &dyn Fn(&ModuleRef) -> Found) -> Result<Checked, String>;

    /// The draft comes into force: what differs from it from now on is a change.
    fn adopted(&self);
}

/// A flow that can come into force, if not as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Warnings, ready to be shown.
    pub warnings: Option<String>,
    /// The parts that do not fit the present modules.
    pub misfits: Vec<Misfit>,
}

/// Actors that do not fit each other or their modules. They go on as they are, with all that
/// are wired to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// The actors.
    pub actors: BTreeSet<ActorName>,
    /// Why and where, ready to be shown.
    pub why: String,
}

/// What is known of the module that an actor names.
#[derive(Clone, Debug)]
pub enum Found {
    /// It can be loaded, and says this of itself.
    Known(Metadata),
    /// There is no such file or connector.
    Missing {
        /// The file that was looked for; none for a connector.
        looked_at: Option<PathBuf>,
        /// The names that there are.
        names: Arc<[String]>,
    },
    /// It is on its way, and what it is like is not known. Whether it fits shows when it
    /// has come.
    Awaited,
    /// It is there and cannot be used.
    Broken {
        /// Why.
        why: String,
    },
}
