//! Committed guests, made ready for actors.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use reflowd_runtime::{
    ActorLog, ActorName, EnginePer, Module, Program, ProgramSpec, Ready, Settings, Start,
};

/// A committed file, by its path in the repository.
pub(crate) fn file(path: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read(root.join(path)).expect("the file is committed").into()
}

pub(crate) fn actor(name: &str) -> ActorName {
    name.parse().expect("a plain word names an actor")
}

/// A module made ready for one actor, without config.
pub(crate) async fn prepare(
    module: &dyn Module,
    actor: &ActorName,
    engine_per: EnginePer,
) -> Arc<dyn Program> {
    let spec = ProgramSpec {
        actor: actor.clone(),
        config: serde_json::Map::new(),
        env: BTreeMap::new(),
        entry_point: None,
        memory: 100 << 20,
        allow_hosts: Vec::new(),
        engine_per,
        version: None,
        log: ActorLog::new(actor.clone(), 100),
    };
    module.prepare(spec).await.expect("the guest needs no config")
}

/// A program with its first engine.
pub(crate) async fn ready(program: Arc<dyn Program>, actor: &ActorName) -> Ready {
    let engine = program.instantiate().await.expect("there is memory for one more");
    let (log, module) = (ActorLog::new(actor.clone(), 100), actor.to_string());
    Ready::Engine { program, engine, version: None, log, module }
}

/// An actor that is to run that program.
pub(crate) async fn start(name: ActorName, program: Arc<dyn Program>, settings: Settings) -> Start {
    let ready = ready(program, &name).await;
    Start { name, ready, settings, state: None, was: None }
}
