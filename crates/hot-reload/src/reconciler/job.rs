//! From a change that is planned to one that is in place, beside all others.
//!
//! A job has all that it needs at hand, as it was when the job began: nothing that it goes by
//! can change meanwhile, since no other job touches the same actors. Checking, making engines
//! and keeping modules come before the point of no return; what comes after it only puts in
//! place what is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{
    library::Library,
    migration::{Migrated, Resumed, StatesOnDisk},
    rollout::Stage,
    telling::chain,
};
use crate::{
    ActorSpec, Adjusting, Blueprint, ChangePlan, Holds, ModuleRef, PutAside, Running, Snapshot,
    WireSpec,
};
use reflowd_runtime::{
    ActorLog, ActorName, Change, Changed, Digest, Epoch, PrepareError, ProgramSpec, Ready,
    Settings, Start, System, Trialing, WireDef, WireEnds,
    panic::{Boundary, Panic, blocking},
};

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

/// What one rollout works with.
pub(super) struct Job {
    pub(super) system: System,
    pub(super) blueprint: Arc<dyn Blueprint>,
    pub(super) library: Library,
    /// The watched folder.
    pub(super) folder: PathBuf,
    /// How long a removed actor may take to work off its mailbox.
    pub(super) drain: Duration,
    pub(super) states: StatesOnDisk,
    /// What runs of the actors that the rollout is about.
    pub(super) running: Running,
    /// Those of them that go on where an earlier process was, with more than one state.
    pub(super) resumed: BTreeMap<ActorName, Resumed>,
    /// The epochs that the states of those are in which have not run yet.
    pub(super) epochs: BTreeMap<ActorName, Epoch>,
    /// Modules whose bytes could not be had, and why.
    pub(super) unread: BTreeMap<Digest, String>,
    pub(super) snapshot: Arc<Snapshot>,
}

/// A change is in place.
pub(super) struct Applied {
    pub(super) changed: Changed,
    /// What actors had before that have another state now.
    pub(super) aside: BTreeMap<ActorName, PutAside>,
}

impl Job {
    /// Makes all of a change ready, waits for its actors, and puts it in place.
    pub(super) async fn roll_out(
        self,
        change: ChangePlan,
        trialing: Trialing,
        stage: Arc<Stage>,
    ) -> Result<Applied, ChangeRefused> {
        let mut ready = self.prepare(&change).await?;
        ready.trialing = trialing;
        let mut waits_for = |actors: &[ActorName]| stage.waits_for(actors);
        let halted = self.system.halt_for(&ready, &mut waits_for).await;
        if !stage.commit() {
            // Whoever has taken over ends this task.
            pending::<()>().await;
        }
        let Migrated { halted: migrating, aside } = self.migrate_all(&mut ready).await?;
        // Nothing here follows from a file: what can fail has been done. Where it breaks all
        // the same, nobody can say what runs.
        let applied = Boundary::Change.hold(async {
            let changed = self.system.apply(ready).await;
            self.system.go_on(migrating).await;
            self.system.go_on(halted).await;
            self.write_heirs(&change).await;
            Applied { changed, aside }
        });
        Ok(applied.await.unwrap_or_else(|panic| panic.go_on()))
    }

    /// Makes all of a change ready, to see whether it can be made, and drops it. What shows
    /// only when it runs, such as an address that another program holds, stays unknown.
    pub(super) async fn rehearse(&self, change: &ChangePlan) -> Result<(), ChangeRefused> {
        let (snapshot, needed, mut coming) = (&self.snapshot, self.needed(change), BTreeMap::new());
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
    pub(super) async fn prepare(&self, change: &ChangePlan) -> Result<Change, ChangeRefused> {
        let mut ready = Change { drain: self.drain, ..Change::default() };
        for start in &change.start {
            let program = self.make(&start.actor, &start.spec, start.digest).await?;
            self.store(&start.actor, &start.spec.module, start.digest).await?;
            ready.start.push(Start {
                name: start.actor.clone(),
                ready: program,
                settings: start.spec.settings.clone(),
                state: self.first_state(&start.actor).await,
                was: start.was.clone(),
            });
        }
        for swap in &change.swap {
            let program = self.make(&swap.actor, &swap.spec, swap.digest).await?;
            self.store(&swap.actor, &swap.spec.module, swap.digest).await?;
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
        ready.connect = change.connect.iter().map(wire_def).collect();
        ready.cut = self.running.wires_cut_by(change).into_iter().map(wire_ends).collect();
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
        &self,
        actor: &ActorName,
        module: &ModuleRef,
        digest: Digest,
    ) -> Result<(), ChangeRefused> {
        let Some(place) = module.place_in(&self.folder) else { return Ok(()) };
        let stored = self.library.store(digest, &place, &self.snapshot).await;
        stored.map_err(|error| ChangeRefused::passing(actor, chain(&error)))
    }

    /// The modules that are needed while a change is made: the rest of it needs its own as
    /// much as what runs.
    fn needed(&self, change: &ChangePlan) -> BTreeSet<Digest> {
        let mut needed = self.library.needed();
        needed.extend(change.start.iter().map(|start| start.digest));
        needed.extend(change.swap.iter().map(|swap| swap.digest));
        needed
    }

    /// The in-place keys of an actor, where they differ from those in force.
    fn settings(&self, actor: &ActorName, spec: &ActorSpec) -> Option<(ActorName, Settings)> {
        let running = self.running.actors.get(actor)?;
        (running.spec.settings != spec.settings).then(|| (actor.clone(), spec.settings.clone()))
    }

    fn check_version(&self, adjust: &Adjusting) -> Result<(), ChangeRefused> {
        let Some(wanted) = &adjust.spec.version else { return Ok(()) };
        let Some(running) = self.running.actors.get(&adjust.actor) else { return Ok(()) };
        let module = self.library.get(&running.digest);
        let found = module.as_ref().and_then(|module| module.version());
        reflowd_loader::check_version(found, Some(wanted))
            .map_err(|error| ChangeRefused::lasting(&adjust.actor, &error))
    }
}

fn wire_def(wire: &WireSpec) -> WireDef {
    WireDef { from: wire.from.clone(), to: wire.to.clone(), overflow: wire.overflow }
}

fn wire_ends(wire: WireSpec) -> WireEnds {
    WireEnds { from: wire.from, to: wire.to }
}
