//! The flow that an operator asks for, as values.
//!
//! Configuration is parsed elsewhere into these types; everything from here on
//! compares, plans and applies values, and never looks at TOML again.

use std::{collections::BTreeMap, path::PathBuf};

use reflowd_runtime::{ActorName, Digest, EnginePer, Overflow, PortRef, Settings};
use serde::Serialize;

/// All actors and wires that the configuration asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flow {
    /// The configured actors.
    pub actors: BTreeMap<ActorName, ActorSpec>,
    /// The wires, without doubles.
    pub wires: Vec<WireSpec>,
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

impl std::fmt::Debug for GenerationKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
    /// A connector: `std:interval`.
    Builtin {
        /// The name after `std:`.
        name: String,
    },
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
