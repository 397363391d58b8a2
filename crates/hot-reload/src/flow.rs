//! The flow that an operator asks for, as values.
//!
//! Configuration is parsed elsewhere into these types; everything from here on
//! compares, plans and applies values, and never looks at TOML again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use reflowd_loader::ModuleUrl;
use reflowd_runtime::{ActorName, Digest, EnginePer, Overflow, PortRef, Settings};
use serde::Serialize;

/// All actors and wires that the configuration asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// The configured actors.
    pub actors: BTreeMap<ActorName, ActorSpec>,
    /// The wires, without doubles.
    pub wires: Vec<WireSpec>,
    /// The ports that actors wait for without a wire from there.
    pub waits: Vec<WaitSpec>,
}

/// A port from which an actor awaits answers, by correlation and not over a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitSpec {
    /// The actor that waits.
    pub actor: ActorName,
    /// The outport.
    pub port: PortRef,
    /// Where that stands in the configuration, for messages: `file:line`.
    pub origin: String,
}

/// One configured actor.
#[derive(Clone, Debug, PartialEq)]
pub struct ActorSpec {
    /// What it runs.
    pub module: ModuleRef,
    /// The keys that make a generation.
    pub keys: GenerationKeys,
    /// The keys that apply in place.
    pub settings: Settings,
    /// The version that the module must have, as a semantic version requirement.
    pub version: Option<String>,
    /// The actor's former name, whose mailbox and state it takes over.
    pub was: Option<ActorName>,
    /// Where the actor stands in the configuration, for messages: `file:line`.
    pub origin: String,
}

/// The keys whose change needs a new engine.
#[derive(Clone, PartialEq)]
pub struct GenerationKeys {
    /// The module's configuration, a JSON object.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// The environment. Values may be secret, so they are never shown.
    pub env: BTreeMap<String, String>,
    /// The export that takes turns, where it is not `process`.
    pub entry_point: Option<String>,
    /// Bytes of linear memory of one engine.
    pub memory: u64,
    /// Hosts that the guest may reach by HTTP.
    pub allow_hosts: Vec<String>,
    /// How long an engine lives.
    pub engine_per: EnginePer,
}

impl Default for GenerationKeys {
    fn default() -> Self {
        Self {
            config: serde_json::Map::new(),
            env: BTreeMap::new(),
            entry_point: None,
            memory: 100 << 20,
            allow_hosts: Vec::new(),
            engine_per: EnginePer::default(),
        }
    }
}

impl fmt::Debug for GenerationKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerationKeys")
            .field("config", &self.config)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("entry_point", &self.entry_point)
            .field("memory", &self.memory)
            .field("allow_hosts", &self.allow_hosts)
            .field("engine_per", &self.engine_per)
            .finish()
    }
}

/// Where an actor's code comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ModuleRef {
    /// A file's stem in the watched folder.
    Stem {
        /// The stem: `counter` for `counter.wasm`.
        stem: String,
        /// The digest that the file must have, where the actor is pinned.
        pin: Option<Digest>,
    },
    /// A path to a file. Absolute.
    Path {
        /// The file.
        path: PathBuf,
        /// The digest that the file must have, where the actor is pinned.
        pin: Option<Digest>,
    },
    /// A download.
    Url {
        /// From where.
        url: ModuleUrl,
        /// The digest that it must have.
        sha256: Digest,
    },
    /// A connector: `std:interval`.
    Builtin {
        /// The name after `std:`.
        name: String,
    },
}

/// Where the bytes of a module are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModulePlace {
    /// In a file.
    File(PathBuf),
    /// Behind a URL.
    Url(ModuleUrl),
}

/// From an outport to an inport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireSpec {
    /// The sending port.
    pub from: PortRef,
    /// The receiving port.
    pub to: PortRef,
    /// The wire's own way with a full mailbox, where it differs from the actor's.
    pub overflow: Option<Overflow>,
    /// Where the wire stands in the configuration, for messages: `file:line`.
    pub origin: String,
}

/// Where a module comes from, pinned or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin<'m> {
    Stem(&'m str),
    Path(&'m Path),
    Download(Digest),
    Builtin(&'m str),
}

impl ModuleRef {
    /// Whether both name the same file or connector, pinned or not. Downloads are the
    /// same where their digest is, wherever they come from.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        self.origin() == other.origin()
    }

    /// What is [the same place](Self::same_place), to look modules up by.
    pub(crate) fn origin(&self) -> Origin<'_> {
        match self {
            Self::Stem { stem, .. } => Origin::Stem(stem),
            Self::Path { path, .. } => Origin::Path(path),
            Self::Url { sha256, .. } => Origin::Download(*sha256),
            Self::Builtin { name } => Origin::Builtin(name),
        }
    }

    /// The digest that the module must have, where the actor is pinned.
    #[must_use]
    pub fn pin(&self) -> Option<Digest> {
        match self {
            Self::Url { sha256, .. } => Some(*sha256),
            Self::Stem { pin, .. } | Self::Path { pin, .. } => *pin,
            Self::Builtin { .. } => None,
        }
    }

    /// The stem of the file in `folder` that it names, if it names one there.
    #[must_use]
    pub fn stem_in(&self, folder: &Path) -> Option<&str> {
        match self {
            Self::Stem { stem, .. } => Some(stem),
            Self::Path { path, .. } if path.parent() == Some(folder) => {
                path.file_name()?.to_str()?.strip_suffix(".wasm")
            }
            Self::Path { .. } | Self::Url { .. } | Self::Builtin { .. } => None,
        }
    }

    /// The place that it names, where `folder` is the watched one; none for a connector.
    #[must_use]
    pub fn place_in(&self, folder: &Path) -> Option<ModulePlace> {
        match self {
            Self::Stem { stem, .. } => Some(ModulePlace::File(folder.join(format!("{stem}.wasm")))),
            Self::Path { path, .. } => Some(ModulePlace::File(path.clone())),
            Self::Url { url, .. } => Some(ModulePlace::Url(url.clone())),
            Self::Builtin { .. } => None,
        }
    }
}

/// As the configuration writes it.
impl fmt::Display for ModuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stem { stem, .. } => f.write_str(stem),
            Self::Path { path, .. } => path.display().fmt(f),
            Self::Url { url, .. } => url.fmt(f),
            Self::Builtin { name } => write!(f, "std:{name}"),
        }
    }
}

impl ModulePlace {
    /// The file, where it is one.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Url(_) => None,
        }
    }
}

impl fmt::Display for ModulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

impl Flow {
    /// The modules that actors name by path, for looking at them.
    #[must_use]
    pub fn paths(&self) -> BTreeSet<PathBuf> {
        let modules = self.actors.values().map(|spec| &spec.module);
        let paths = modules.filter_map(|module| match module {
            ModuleRef::Path { path, .. } => Some(path.clone()),
            ModuleRef::Stem { .. } | ModuleRef::Url { .. } | ModuleRef::Builtin { .. } => None,
        });
        paths.collect()
    }

    /// The modules that actors name by URL, with all URLs of each.
    #[must_use]
    pub fn downloads(&self) -> BTreeMap<Digest, Vec<ModuleUrl>> {
        let mut downloads: BTreeMap<Digest, Vec<ModuleUrl>> = BTreeMap::new();
        for spec in self.actors.values() {
            if let ModuleRef::Url { url, sha256 } = &spec.module {
                let urls = downloads.entry(*sha256).or_default();
                if !urls.contains(url) {
                    urls.push(url.clone());
                }
            }
        }
        downloads
    }
}
