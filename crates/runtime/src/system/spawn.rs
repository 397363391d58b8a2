//! Starting one actor from a loaded module, as a program that embeds the runtime does.
//!
//! A daemon makes several actors ready and has all of them change at once
//! ([`System::apply`]); a program that starts its own actors one by one need not
//! know about that.

use thiserror::Error;

use super::{Change, Ready, Start, System};
use crate::{ActorName, InstantiateError, Module, PrepareError, ProgramSpec, Settings};

/// An actor was not started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The module does not fit what the actor asks of it.
    #[error("`{actor}` cannot run this module")]
    Prepare {
        /// The actor.
        actor: ActorName,
        /// What does not fit.
        source: PrepareError,
    },
    /// There can be no engine.
    #[error("`{actor}` has no engine")]
    Instantiate {
        /// The actor.
        actor: ActorName,
        /// Why not.
        source: InstantiateError,
    },
    /// There is an actor of that name.
    #[error("there is an actor `{actor}` already; stop it first, or choose another name")]
    Taken {
        /// The actor.
        actor: ActorName,
    },
}

impl System {
    /// Starts an actor that runs a module, with its first engine.
    ///
    /// # Errors
    /// The name is taken, or the module cannot be run as `spec` says. Nothing was started.
    pub async fn spawn(
        &self,
        module: &dyn Module,
        spec: ProgramSpec,
        settings: Settings,
    ) -> Result<(), SpawnError> {
        let actor = spec.actor.clone();
        // Told early where it is known, and for certain in the end.
        if self.actor(actor.as_str()).is_some() {
            return Err(SpawnError::Taken { actor });
        }
        let (log, name) = (spec.log.clone(), actor.clone());
        let program = module.prepare(spec).await;
        let program = program.map_err(|source| SpawnError::Prepare { actor, source })?;
        let engine = program.instantiate().await;
        let actor = name.clone();
        let engine = engine.map_err(|source| SpawnError::Instantiate { actor, source })?;
        let version = module.version().map(str::to_owned);
        let module = program.metadata().component.clone();
        let ready = Ready::Engine { program, engine, version, log, module };
        let start = Start { name, ready, settings, state: None, was: None };
        let _one_at_a_time = self.0.spawning.lock().await;
        if self.actor(start.name.as_str()).is_some() {
            return Err(SpawnError::Taken { actor: start.name });
        }
        self.apply(Change { start: vec![start], ..Change::default() }).await;
        Ok(())
    }
}
