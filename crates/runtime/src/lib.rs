//! Actors, mailboxes, turns and wires.
//!
//! The runtime moves messages and owns everything that outlives an engine. It
//! does not know WebAssembly: an actor runs whatever implements [`Engine`].

mod name;
mod message;
mod module;
mod settings;
mod log;

pub use log::ActorLog;
pub use message::{EXCERPT, Message, MessageError, Type, excerpt};
pub use module::{
    Context, Digest, DigestError, Effects, Engine, EnginePer, Failure, FailureKind,
    InstantiateError, Metadata, Module, Port, PrepareError, Program, ProgramSpec, SendNow, State,
    StateError, Turn, TurnLimits,
};
pub use name::{ActorName, ActorNameError, PortName, PortNameError, PortRef, PortRefError};
pub use settings::{Inport, Overflow, Persistence, Send, Settings, Trigger};
