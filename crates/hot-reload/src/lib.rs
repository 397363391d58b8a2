//! From a change on disk to swaps of running actors.

mod flow;

pub use flow::{ActorSpec, Flow, GenerationKeys, ModuleRef, WireSpec};
