//! A loaded module, and how it is made ready for an actor.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use reflowd_runtime::{
    Digest, InstantiateError, Metadata, Module, PrepareError, Program, ProgramSpec, excerpt,
    panic::Boundary,
};
use semver::{Version, VersionReq};
use serde_json::Value;

use crate::{
    binary::{Binary, ItemType},
    code::{Code, Ended, EngineKind, Instance, Parts},
    config_schema::{self, Costly, InvalidSchema, Unfit},
    host::Surroundings,
    loader::{Limits, compile},
    migration,
    signature::Signature,
};

/// How long an actor's configuration may be held against a schema. What takes that long is
/// ended by bounds of its own, unless the machine has no time for it.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(20);

/// The export that takes turns, unless the actor names another.
const ENTRY_POINT: &str = "process";

/// A module that has passed every step of loading.
pub struct LoadedModule {
    loaded: Loaded,
    /// The code with which it was loaded, for all actors or for the first.
    code: Mutex<Option<Code>>,
}

/// What is known of a loaded module.
pub(crate) struct Loaded {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
    pub(crate) binary: Binary,
    pub(crate) metadata: Metadata,
    pub(crate) version: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) engine: EngineKind,
}

impl LoadedModule {
    pub(crate) fn new(loaded: Loaded, code: Code) -> Self {
        // Code that counts fuel is slower and could run out of it in a turn.
        let counts = loaded.engine == EngineKind::Extism && loaded.binary.runs_at_instantiation();
        Self { loaded, code: Mutex::new((!counts).then_some(code)) }
    }

    /// The bytes from which it was loaded.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.loaded.bytes
    }

    /// What its bytes declare.
    #[must_use]
    pub fn binary(&self) -> &Binary {
        &self.loaded.binary
    }

    /// Code that is there for an actor with so much memory.
    fn code_for(&self, memory: u64) -> Option<Code> {
        let mut code = self.code.lock();
        match code.as_ref()?.share() {
            Some(shared) => Some(shared),
            // Its limit on memory is compiled in.
            None if memory == self.loaded.limits.memory => code.take(),
            None => None,
        }
    }

    async fn make(&self, spec: ProgramSpec) -> Result<Arc<dyn Program>, PrepareError> {
        let Loaded { digest, bytes, binary, metadata, version, limits, engine } = &self.loaded;
        let entry_point = spec.entry_point.clone().unwrap_or_else(|| ENTRY_POINT.into());
        check_entry_point(binary, &entry_point)?;
        check_version(version.as_deref(), spec.version.as_deref())?;
        check_memory(binary, spec.memory)?;
        check_config(metadata, &spec).await?;

        let failed = |why: String| PrepareError::from(InstantiateError { why });
        let memory = spec.memory;
        let code = match self.code_for(memory) {
            Some(code) => code,
            None => {
                let (bytes, binary) = (bytes.clone(), binary.clone());
                let compiling = compile(*engine, bytes, binary, memory, limits.compile_timeout);
                compiling.await.map_err(failed)?
            }
        };

        let around = Arc::new(Surroundings::of(&spec, &metadata.component));
        let validates = binary.has_turn("validate_config");
        let (engine_per, timeout) = (spec.engine_per, limits.metadata_timeout);
        let surroundings = around.clone();
        let proving = Boundary::Prepare.aside(move || {
            let mut instance = code
                .instantiate(&surroundings, memory, timeout)
                .map_err(|unstarted| failed(unstarted.to_string()))?;
            if validates {
                let config = serde_json::to_vec(&spec.config).expect("JSON can be written");
                validate(&mut instance, &config, timeout)?;
            }
            Ok::<_, PrepareError>((code, instance))
        });
        let patience = timeout * 2;
        let (code, instance) = match tokio::time::timeout(patience, proving).await {
            Ok(Ok(proven)) => proven?,
            Ok(Err(panic)) => return Err(panic.into()),
            Err(_) => return Err(failed(format!("it takes more than {patience:?}"))),
        };
        let (digest, metadata) = (*digest, metadata.clone());
        let migrates = binary.has_turn(migration::EXPORT);
        let parts =
            Parts { digest, metadata, around, entry_point, engine_per, memory, migrates, patience };
        Ok(code.into_program(parts, instance))
    }
}

impl Module for LoadedModule {
    fn digest(&self) -> Digest {
        self.loaded.digest
    }

    fn metadata(&self) -> &Metadata {
        &self.loaded.metadata
    }

    fn version(&self) -> Option<&str> {
        self.loaded.version.as_deref()
    }

    fn migrates_state(&self) -> bool {
        self.binary().has_turn(migration::EXPORT)
    }

    fn prepare(&self, spec: ProgramSpec) -> BoxFuture<'_, Result<Arc<dyn Program>, PrepareError>> {
        Box::pin(self.make(spec))
    }
}

fn check_entry_point(binary: &Binary, name: &str) -> Result<(), PrepareError> {
    match binary.export(name) {
        Some(ItemType::Function(ty)) if *ty == Signature::turn() => Ok(()),
        Some(ty) => Err(PrepareError::WrongExportType { name: name.into(), found: ty.to_string() }),
        None => Err(PrepareError::MissingExport {
            name: name.into(),
            exports: binary.exported_functions(),
        }),
    }
}

/// Holds a module's version against what an actor asks for.
///
/// # Errors
/// They do not fit, or what the actor asks for is no requirement.
pub fn check_version(version: Option<&str>, wanted: Option<&str>) -> Result<(), PrepareError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let mismatch =
        |found: &str, wanted: String| PrepareError::VersionMismatch { wanted, found: found.into() };
    let requirement = VersionReq::parse(wanted).map_err(|error| {
        mismatch(version.unwrap_or("none"), format!("{wanted} ({error}; write `>=1.2, <2`)"))
    })?;
    let found = version.and_then(|version| Version::parse(version).ok());
    if found.is_some_and(|found| requirement.matches(&found)) {
        Ok(())
    } else {
        Err(mismatch(version.unwrap_or("none"), wanted.into()))
    }
}

fn check_memory(binary: &Binary, limit: u64) -> Result<(), PrepareError> {
    let needed = binary.needed_memory();
    if needed > limit { Err(PrepareError::MemoryTooSmall { needed, limit }) } else { Ok(()) }
}

async fn check_config(metadata: &Metadata, spec: &ProgramSpec) -> Result<(), PrepareError> {
    let Some(schema) = metadata.config_schema.clone() else { return Ok(()) };
    let config = Value::Object(spec.config.clone());
    let fitting = Boundary::Prepare.aside(move || config_schema::fit(&schema, &config));
    let rejected = |why: String| PrepareError::ConfigRejected { why };
    match tokio::time::timeout(SCHEMA_PATIENCE, fitting).await {
        Ok(Ok(Err(
            Unfit::Costly(Costly::Broke(panic))
            | Unfit::Schema(InvalidSchema::Costly(Costly::Broke(panic))),
        ))) => Err(panic.into()),
        Ok(Ok(fits)) => fits.map_err(|why| rejected(why.to_string())),
        Ok(Err(panic)) => Err(panic.into()),
        Err(_) => Err(rejected(format!(
            "holding it against the module's `config_schema` takes more than {SCHEMA_PATIENCE:?}"
        ))),
    }
}

fn validate(instance: &mut Instance, config: &[u8], time: Duration) -> Result<(), PrepareError> {
    let rejected = |why: String| Err(PrepareError::ConfigRejected { why });
    match instance.ask("validate_config", config, time) {
        Ended::Answer(answer) => match answer.trim_ascii() {
            b"true" => Ok(()),
            b"false" => rejected("`validate_config` said false".into()),
            _ => rejected(format!(
                "`validate_config` answered {}, not true or false",
                excerpt(&answer)
            )),
        },
        Ended::Guest(error) => rejected(error),
        Ended::Bad(why) | Ended::Trap(why) => rejected(format!("`validate_config` broke: {why}")),
        Ended::Timeout => rejected("`validate_config` does not answer in time".into()),
    }
}
