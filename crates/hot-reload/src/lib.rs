//! From a change on disk to swaps of running actors.

mod flow;
mod report;

pub use flow::{ActorSpec, Flow, GenerationKeys, ModuleRef, WireSpec};
pub use report::{ActorView, Refusal, ReloadOptions, Report, View};
