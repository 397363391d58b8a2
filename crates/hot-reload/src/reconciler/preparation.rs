//! From a change that is planned to one that is ready: everything that can fail.
//!
//! Checking, making engines and keeping modules come before the point of no
//! return. What comes out needs only to be put in place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use reflowd_runtime::{
    ActorLog, ActorName, Change, Digest, PrepareError, ProgramSpec, Ready, Settings, Start,
    WireDef,
    panic::{Boundary, Panic, blocking},
};
use tokio::time::Instant;

use super::{
    Reconciler,
    fit::Fit,
    telling::{chain, touched},
};
use crate::{ActorSpec, Adjusting, ChangePlan, Holds, Misfit, ModuleRef, Snapshot, WireSpec};

/// A change is not made; its actors go on as they are.
#[derive(Debug)]
pub(super) struct ChangeRefused {
    pub(super) why: String,
    pub(super) holds: Holds,
}

impl ChangeRefused {
    /// The actor cannot become what it is to be, today or tomorrow.
    fn lasting(actor: &ActorName, error: &dyn std::error::Error) -> Self {
        Self { why: format!("`{actor}`: {}", chain(error)), holds: Holds::Lasts }
    }

    /// Another time it may go well.
    pub(super) fn passing(actor: &ActorName, why: impl std::fmt::Display) -> Self {
        Self { why: format!("`{actor}`: {why}"), holds: Holds::Passes }
    }

    /// The daemon broke over it.
    pub(super) fn broke(actor: &ActorName, panic: &Panic) -> Self {
        Self { why: format!("`{actor}`: {panic}"), holds: Holds::Rests }
    }
}

impl Reconciler {
    /// What can be said against a change without making anything.
    pub(super) fn judge(&self, change: &ChangePlan) -> Result<(), ChangeRefused> {
        if let Some(why) = self.memory.refused_changes.standing(change, Instant::now()) {
            return Err(ChangeRefused { why: why.into(), holds: Holds::Known });
        }
        let metadata = |spec: &ActorSpec, digest: &Digest| self.metadata(spec, digest);
        let queued = |actor: &ActorName| {
            let actor = self.system.actor(actor.as_str());
            actor.map(|actor| actor.mailbox().queued_by_port()).unwrap_or_default()
        };
        let (running, waits) = (&self.running, &self.memory.flow.waits);
        let fit = Fit { change, running, metadata: &metadata, waits, queued: &queued }.check();
        fit.map_err(|refused| self.explain(change, refused))
    }

    /// The same refusal as the configuration's check tells it, with the lines of the files.
    fn explain(&self, change: &ChangePlan, refused: ChangeRefused) -> ChangeRefused {
        let touched = touched(change);
        let about = |misfit: &&Misfit| !misfit.actors.is_disjoint(&touched);
        let told: Vec<_> =
            self.memory.misfits.iter().filter(about).map(|misfit| misfit.why.trim_end()).collect();
        if told.is_empty() {
            return refused;
        }
        ChangeRefused { why: told.join("\n"), ..refused }
    }

    /// Makes all of a change ready, to see whether it can be made, and drops it. What shows
    /// only when it runs, such as an address that another program holds, stays unknown.
    pub(super) async fn rehearse(
        &self,
        change: &ChangePlan,
        snapshot: &Snapshot,
    ) -> Result<(), ChangeRefused> {
        let (needed, mut coming) = (self.needed(change), BTreeMap::new());
        for start in &change.start {
            self.make(&start.actor, &start.spec, start.digest).await?;
            let Some(place) = start.spec.module.place_in(&self.folder) else { continue };
            let room = self.library.room(start.digest, &place, snapshot, &needed, &mut coming);
            room.await.map_err(|error| ChangeRefused::passing(&start.actor, chain(&error)))?;
        }
        let mut ready = Change::default();
        for swap in &change.swap {
            let program = self.make(&swap.actor, &swap.spec, swap.digest).await?;
            ready.swap.push((swap.actor.clone(), program));
            let Some(place) = swap.spec.module.place_in(&self.folder) else { continue };
            let room = self.library.room(swap.digest, &place, snapshot, &needed, &mut coming);
            room.await.map_err(|error| ChangeRefused::passing(&swap.actor, chain(&error)))?;
        }
        self.try_all(self.migrations(&ready)).await?;
        change.adjust.iter().try_for_each(|adjust| self.check_version(adjust))
    }

    /// Makes all of a change ready.
    pub(super) async fn prepare(
        &mut self,
        change: &ChangePlan,
        snapshot: &Snapshot,
    ) -> Result<Change, ChangeRefused> {
        let mut ready = Change { drain: self.drain, ..Change::default() };
        for start in &change.start {
            let program = self.make(&start.actor, &start.spec, start.digest).await?;
            self.store(&start.actor, &start.spec.module, start.digest, change, snapshot).await?;
            ready.start.push(Start {
                name: start.actor.clone(),
                ready: program,
                settings: start.spec.settings.clone(),
                state: self.first_state(&start.actor),
                was: start.was.clone(),
            });
        }
        for swap in &change.swap {
            let program = self.make(&swap.actor, &swap.spec, swap.digest).await?;
            self.store(&swap.actor, &swap.spec.module, swap.digest, change, snapshot).await?;
            ready.swap.push((swap.actor.clone(), program));
            ready.settings.extend(self.settings(&swap.actor, &swap.spec));
        }
        let migrations = self.migrations(&ready);
        self.try_all(migrations).await?;
        for adjust in &change.adjust {
            self.check_version(adjust)?;
            ready.settings.extend(self.settings(&adjust.actor, &adjust.spec));
        }
        ready.stop = change.stop.iter().map(|stop| stop.actor.clone()).collect();
        ready.wires = Some(self.running.wires_after(change).into_iter().map(wire_def).collect());
        Ok(ready)
    }

    /// Makes an actor's module ready, with a first engine: the proof that there can be one.
    pub(super) async fn make(
        &self,
        actor: &ActorName,
        spec: &ActorSpec,
        digest: Digest,
    ) -> Result<Ready, ChangeRefused> {
        let made = Boundary::Prepare.hold(self.make_within(actor, spec, digest)).await;
        made.unwrap_or_else(|panic| Err(ChangeRefused::broke(actor, &panic)))
    }

    async fn make_within(
        &self,
        actor: &ActorName,
        spec: &ActorSpec,
        digest: Digest,
    ) -> Result<Ready, ChangeRefused> {
        if let ModuleRef::Builtin { name } = &spec.module {
            let blueprint = Arc::clone(&self.blueprint);
            let (named, name, spec) = (actor.clone(), name.clone(), spec.clone());
            let ready = blocking(move || blueprint.connector(&named, &name, &spec)).await;
            return ready.map_err(|why| ChangeRefused::passing(actor, why));
        }
        let Some(module) = self.library.get(&digest) else {
            let why = self.unread.get(&digest).map_or("its module changed meanwhile", |why| why);
            return Err(ChangeRefused::passing(actor, why));
        };
        let secrets = self.system.secrets().clone();
        let log = ActorLog::masked(actor.clone(), spec.settings.log_rate, secrets);
        let program = module
            .prepare(ProgramSpec {
                actor: actor.clone(),
                config: spec.keys.config.clone(),
                env: spec.keys.env.clone(),
                entry_point: spec.keys.entry_point.clone(),
                memory: spec.keys.memory,
                allow_hosts: spec.keys.allow_hosts.clone(),
                engine_per: spec.keys.engine_per,
                version: spec.version.clone(),
                log: log.clone(),
            })
            .await
            .map_err(|error| match error {
                PrepareError::Broke(panic) => ChangeRefused::broke(actor, &panic),
                error => ChangeRefused::lasting(actor, &error),
            })?;
        let engine =
            program.instantiate().await.map_err(|error| ChangeRefused::lasting(actor, &error))?;
        let version = module.version().map(str::to_owned);
        let module = spec.module.to_string();
        Ok(Ready::Engine { program, engine, version, log, module })
    }

    /// Keeps the module that an actor is to run.
    async fn store(
        &mut self,
        actor: &ActorName,
        module: &ModuleRef,
        digest: Digest,
        change: &ChangePlan,
        snapshot: &Snapshot,
    ) -> Result<(), ChangeRefused> {
        let Some(place) = module.place_in(&self.folder) else { return Ok(()) };
        let needed = self.needed(change);
        // What was banned is kept as long as there is room: a module that is not here has never run.
        let mut former = self.generations.digests();
        former.extend(self.memory.bans.digests());
        let stored = self.library.store(digest, &place, snapshot, needed, former).await;
        stored.map_err(|error| ChangeRefused::passing(actor, chain(&error)))
    }

    /// The modules that are needed while a change is made: the rest of it needs its own as
    /// much as what runs.
    fn needed(&self, change: &ChangePlan) -> BTreeSet<Digest> {
        (self.running.actors.values().map(|actor| actor.digest))
            .chain(change.start.iter().map(|start| start.digest))
            .chain(change.swap.iter().map(|swap| swap.digest))
            .chain(self.generations.judges())
            .chain(self.recollected.values().map(|last| last.digest))
            .collect()
    }

    /// The in-place keys of an actor, where they differ from those in force.
    fn settings(&self, actor: &ActorName, spec: &ActorSpec) -> Option<(ActorName, Settings)> {
        let running = self.running.actors.get(actor)?;
        (running.spec.settings != spec.settings).then(|| (actor.clone(), spec.settings.clone()))
    }

    fn check_version(&self, adjust: &Adjusting) -> Result<(), ChangeRefused> {
        let Some(wanted) = &adjust.spec.version else { return Ok(()) };
        let Some(running) = self.running.actors.get(&adjust.actor) else { return Ok(()) };
        let found = self.library.get(&running.digest).and_then(|module| module.version());
        reflowd_loader::check_version(found, Some(wanted))
            .map_err(|error| ChangeRefused::lasting(&adjust.actor, &error))
    }
}

fn wire_def(wire: WireSpec) -> WireDef {
    WireDef { from: wire.from, to: wire.to, overflow: wire.overflow }
}
