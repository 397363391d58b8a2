//! From a WebAssembly file to a module that an actor can run.
//!
//! [`Loader::load`] takes a file or bytes through every check to a
//! [`LoadedModule`]. That is made ready for one actor's settings, and then makes
//! the actor's engines; the runtime's traits `Module`, `Program` and `Engine`
//! are how.
//!
//! ```
//! use std::time::Duration;
//!
//! use reflowd_loader::{Limits, Loader, Source};
//! use reflowd_runtime::*;
//! use tokio::time::Instant;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/guests/relay.wasm");
//! let loader = Loader::new(Limits::default());
//! let module = loader.load(Source::File(path.into())).await?;
//! println!("{} takes {:?}", module.metadata().component, module.metadata().inports);
//!
//! let actor: ActorName = "relay".parse()?;
//! let spec = ProgramSpec {
//!     actor: actor.clone(),
//!     config: Default::default(),
//!     env: Default::default(),
//!     entry_point: None,
//!     memory: 100 << 20,
//!     allow_hosts: Vec::new(),
//!     engine_per: EnginePer::Actor,
//!     version: None,
//!     log: ActorLog::new(actor, 100),
//! };
//! let program = module.prepare(spec).await?;
//! let engine = program.instantiate().await?;
//!
//! let context = Context {
//!     payload: vec![("in".parse()?, Message::new(Type::Integer, "7")?)],
//!     state: State::default(),
//!     message: MessageId::new(),
//!     traceparent: None,
//!     meta: None,
//!     state_in_context: true,
//!     limits: TurnLimits { output: 1 << 20, state: 1 << 20 },
//!     now: None,
//! };
//! let deadline = Instant::now() + Duration::from_secs(30);
//! let (_engine, effects) = engine.turn(context, deadline).await.map_err(|failure| failure.kind)?;
//! println!("it put out {:?}", effects.outputs);
//! # Ok(())
//! # }
//! ```

mod loader;
mod loaded;
mod signature;
mod binary;
mod code_cache;
mod metadata;
mod migration;
mod turn;
mod host;
mod http;
mod url;
mod download;
mod code;
mod direct;
mod deadline;
mod extism_engine;

pub use binary::{Binary, Export, Import, InvalidBinary, ItemType, Memory};
pub use code::{EngineKind, UnknownEngine};
pub use code_cache::CodeCacheError;
pub use download::{Authorities, DownloadError, DownloadRules, InvalidAuthorities};
pub use loaded::{LoadedModule, check_version};
pub use loader::{Inspection, Limits, LoadError, LoadErrorKind, Loader, Source};
pub use metadata::InvalidMetadata;
pub use signature::{Signature, host_functions};
pub use url::{InvalidUrl, ModuleUrl};
