//! From a WebAssembly file to a module that an actor can run.

mod loader;
mod loaded;
mod signature;
mod binary;
mod metadata;
mod turn;
mod host;
mod deadline;
mod extism_engine;

pub use binary::{Binary, Export, Import, InvalidBinary, ItemType, Memory};
pub use loaded::LoadedModule;
pub use loader::{Inspection, Limits, LoadError, LoadErrorKind, Loader, Source};
pub use metadata::InvalidMetadata;
pub use signature::{Signature, host_functions};
