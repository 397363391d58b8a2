//! From a WebAssembly file to a module that an actor can run.
//!
//! [`Loader::load`] takes a file, bytes or a URL through every check to a
//! [`LoadedModule`]; [`Loader::get`] finds it again by the name that it gives
//! itself. A loaded module is made ready for one actor's settings, and then makes
//! the actor's engines; the runtime's traits `Module`, `Program` and `Engine` are how.
//!
//! A program that brings its modules along, and runs them as actors:
//!
//! ```
//! use reflowd_loader::{Limits, Loader, Source};
//! use reflowd_runtime::{Answer, Message, ProgramSpec, Settings, System, Type};
//! use tokio::runtime::Handle;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # const RELAY: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/guests/relay.wasm"));
//! # /*
//! const RELAY: &[u8] = include_bytes!("relay.wasm");
//! # */
//! let loader = Loader::new(Limits::default());
//! loader.load(Source::Bytes { name: "relay.wasm".into(), bytes: RELAY.into() }).await?;
//! let relay = loader.get("Relay").expect("that is its name");
//!
//! // Actors take their turns on this runtime.
//! let system = System::new(Handle::current());
//! system.spawn(&*relay, ProgramSpec::new("first".parse()?), Settings::default()).await?;
//!
//! let message = Message::new(Type::Integer, "7")?;
//! let (_, answer) = system.ask(&"first.in".parse()?, message, None, "first.out".parse()?)?;
//! let Answer::Message(message) = answer.await? else { panic!("a relay answers") };
//! assert_eq!(message.data(), "7");
//! # system.kill().await;
//! # Ok(())
//! # }
//! ```
//!
//! From a URL comes what has the digest that is asked for, or nothing:
//!
//! ```no_run
//! # use reflowd_loader::{DownloadRules, Limits, LoadError, Loader, Source};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let rules = DownloadRules { hosts: vec!["modules.internal".into()], ..Default::default() };
//! let loader = Loader::new(Limits::default()).with_downloads(rules);
//! let source = Source::Url {
//!     url: "https://modules.internal/v1/relay.wasm".parse()?,
//!     sha256: "0a38e20af05bcb21f79abe569120af26af37bf3db4c4075b641ad69df0439c8d".parse()?,
//! };
//! loader.validate(source).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Without the runtime's actors, one turn by hand:
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
//! let program = module.prepare(ProgramSpec::new("relay".parse()?)).await?;
//! let engine = program.instantiate().await?;
//!
//! let context = Context {
//!     payload: vec![("in".parse()?, Message::new(Type::Integer, "7")?)],
//!     state: State::default(),
//!     message: MessageId::new(),
//!     trace: None,
//!     meta: None,
//!     state_in_context: true,
//!     limits: TurnLimits::default(),
//!     now: None,
//!     host_memory: None,
//! };
//! let deadline = Instant::now() + Duration::from_secs(30);
//! let (_engine, effects) = engine.turn(context, deadline).await.map_err(|failure| failure.kind)?;
//! println!("it put out {:?}", effects.outputs);
//! # Ok(())
//! # }
//! ```

mod loader;
mod loaded;
mod load_error;
mod inspection;
mod signature;
mod binary;
mod code_cache;
mod metadata;
mod config_schema;
mod migration;
mod turn;
mod host;
mod account;
mod http;
mod url;
mod download;
mod code;
mod direct;
mod deadline;
mod extism_engine;

pub use binary::{Binary, Export, Import, InvalidBinary, ItemType, Memory, PROPOSALS_ON};
pub use code::{EngineKind, UnknownEngine};
pub use code_cache::CodeCacheError;
pub use config_schema::{Costly, InvalidSchema};
pub use download::{Authorities, DownloadError, DownloadRules, InvalidAuthorities};
pub use http::is_reserved_header;
pub use inspection::Inspection;
pub use load_error::{LoadError, LoadErrorKind};
pub use loaded::{LoadedModule, check_version};
pub use loader::{Limits, Loader, Source};
pub use metadata::InvalidMetadata;
pub use signature::{Signature, host_functions};
pub use url::{InvalidUrl, ModuleUrl};
