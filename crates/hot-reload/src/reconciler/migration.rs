//! States that take the places of others: what new modules make of those that the modules
//! before them have left, and what a rollback gives back.
//!
//! A migration is tried on a copy while a change is prepared, and done when the actors are
//! halted, right before the swaps. Where it fails, nothing of the change happens.
//!
//! Each state that takes the place of another begins an epoch. Its file, and the state from
//! before a migration, are on the disk before the swap; that the epoch counts is said with
//! the generations, right after it. So whenever the process ends, a start finds modules and
//! states that belong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    sync::Arc,
};

use reflowd_runtime::{
    Actor, ActorName, Change, Digest, Epoch, EpochState, EventKind, Generation, Halted, LeftState,
    MigrateError, Persistence, Program, Ready, State, panic::blocking, unix_millis,
};
use thiserror::Error;
use tracing::warn;

use super::{
    Reconciler,
    job::{ChangeRefused, Job},
    telling::chain,
};
use crate::{
    ChangePlan, Former, FormerStates, LeftBehind, ModulePlace, PutAside, PutAsideState,
    ReadFormerStateError, RollBackError, StateFiles, history::Ran,
};

/// An actor that has come up as what last passed its trial, with the state from before it,
/// while the generation that was on trial has left a state of its own.
#[derive(Clone)]
pub(super) struct Resumed {
    /// What the generation on trial has left.
    present: State,
    /// That generation's module.
    by: Ran,
    /// The state that it was made of.
    aside: PutAside,
}

/// A program that is about to take over a state that is not simply the present one.
pub(super) struct Migration {
    actor: ActorName,
    program: Arc<dyn Program>,
    /// Bytes that its state may have.
    limit: u64,
    takes: Takes,
}

/// What a program does with the state that it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// It makes its own of it.
    Migrates,
    /// It goes on with it.
    AsItIs,
}

/// Actors that are halted, with what becomes of their states.
pub(super) struct Migrated {
    pub(super) halted: Halted,
    /// What they had before.
    pub(super) aside: BTreeMap<ActorName, PutAside>,
}

/// What an actor is given back with a former generation.
pub(super) struct GivenBack {
    actor: ActorName,
    state: State,
    /// Turns of this process that it has in it.
    turns: u64,
    /// Milliseconds since the Unix epoch at which it was put aside.
    since: u64,
}

impl GivenBack {
    pub(super) fn actor(&self) -> &ActorName {
        &self.actor
    }

    pub(super) fn since(&self) -> u64 {
        self.since
    }
}

/// The states of a change cannot be written, so it does not happen.
#[derive(Debug, Error)]
enum WriteStateError {
    #[error("the state from before it cannot be kept")]
    Former(#[source] io::Error),
    #[error("its state cannot be written")]
    Next(#[source] io::Error),
}

/// Where states are written.
#[derive(Clone)]
pub(super) struct StatesOnDisk {
    pub(super) files: Arc<dyn StateFiles>,
    pub(super) former: FormerStates,
}

impl StatesOnDisk {
    /// Puts a state aside for going back to it.
    fn put_aside(&self, persists: Persistence, before: EpochState) -> io::Result<PutAside> {
        let EpochState { state, turns, .. } = before;
        let state = match persists {
            Persistence::Snapshot => PutAsideState::OnDisk(self.former.keep(&state)?),
            Persistence::Memory => PutAsideState::InMemory(state),
        };
        Ok(PutAside { state, since: unix_millis(), turns })
    }

    /// Writes the state that an epoch begins with.
    fn begin(
        &self,
        persists: Persistence,
        actor: &ActorName,
        state: &EpochState,
    ) -> io::Result<()> {
        match persists {
            Persistence::Snapshot => self.files.begin(actor, state),
            Persistence::Memory => Ok(()),
        }
    }

    fn read(&self, aside: &PutAside) -> Result<State, ReadFormerStateError> {
        match &aside.state {
            PutAsideState::OnDisk(digest) => self.former.read(digest),
            PutAsideState::InMemory(state) => Ok(state.clone()),
        }
    }
}

impl Job {
    /// Tries on copies of the states whether the programs can make their own of them.
    pub(super) async fn try_all(&self, migrations: Vec<Migration>) -> Result<(), ChangeRefused> {
        for migration in migrations {
            self.next_state(&migration).await?;
        }
        Ok(())
    }

    /// Halts the actors whose next modules take over another state, has it made, and
    /// writes it with the one from before.
    pub(super) async fn migrate_all(&self, ready: &mut Change) -> Result<Migrated, ChangeRefused> {
        let migrations = self.migrations(ready);
        let halted = self.system.halt(migrations.iter().map(|of| &of.actor)).await;
        let mut aside = BTreeMap::new();
        for migration in migrations {
            match self.migrate(&migration).await {
                Ok(None) => {}
                Ok(Some((state, before))) => {
                    ready.states.insert(migration.actor.clone(), state);
                    aside.insert(migration.actor, before);
                }
                Err(refused) => {
                    self.system.go_on(halted).await;
                    return Err(refused);
                }
            }
        }
        Ok(Migrated { halted, aside })
    }

    /// The programs that swap in, can make another state, and are other modules than what
    /// has left the present one; and those of actors that are to go on where a former
    /// process was.
    pub(super) fn migrations(&self, ready: &Change) -> Vec<Migration> {
        let migration = |(actor, ready): &(ActorName, Ready)| {
            let Ready::Engine { program, .. } = ready else { return None };
            let before = self.running.actors.get(actor)?;
            let resumed = self.resumed.get(actor);
            let left_by = resumed.map_or(Some(before.digest), |resumed| resumed.by.digest());
            let migrates = program.migrates_state() && left_by != Some(program.digest());
            let takes = if migrates { Takes::Migrates } else { Takes::AsItIs };
            (migrates || resumed.is_some()).then(|| Migration {
                actor: actor.clone(),
                program: Arc::clone(program),
                limit: before.spec.settings.state_size,
                takes,
            })
        };
        ready.swap.iter().filter_map(migration).collect()
    }

    /// The state that the program is to have, written, and the one from before; nothing
    /// where it goes on with the present one.
    async fn migrate(
        &self,
        migration: &Migration,
    ) -> Result<Option<(EpochState, PutAside)>, ChangeRefused> {
        let actor = &migration.actor;
        let running = self.actor(actor)?;
        let next = self.next_state(migration).await?;
        let (before, persists) = (running.epoch_state(), running.settings().state);
        let resumed = self.resumed.get(actor);
        let none = before.state == State::default();
        if resumed.is_none() && next == before.state && !none {
            return Ok(None);
        }
        let next = before.followed_by(next, before.turns);
        let aside = resumed.map(|resumed| resumed.aside.clone());
        let (disk, name) = (self.states.clone(), actor.clone());
        let written = blocking(move || {
            let aside = match aside {
                Some(aside) => aside,
                None => disk.put_aside(persists, before).map_err(WriteStateError::Former)?,
            };
            disk.begin(persists, &name, &next).map_err(WriteStateError::Next)?;
            Ok((next, aside))
        });
        let written: Result<_, WriteStateError> = written.await;
        written.map(Some).map_err(|error| ChangeRefused::passing(actor, chain(&error)))
    }

    /// The state that the program is to have. Changes nothing.
    async fn next_state(&self, migration: &Migration) -> Result<State, ChangeRefused> {
        let Migration { actor, program, limit, takes } = migration;
        let running = self.actor(actor)?;
        let status = running.status();
        let (state, digest, version) = match self.resumed.get(actor) {
            Some(Resumed { present, by, .. }) => {
                (present.clone(), by.digest().unwrap_or(status.digest), by.version.clone())
            }
            None => (running.state(), status.digest, status.version),
        };
        // A module is not asked to make anything of a state that there is none of yet.
        if *takes == Takes::AsItIs || state == State::default() {
            return Ok(state);
        }
        let left = LeftState { state, digest, version, limit: *limit };
        let migrated = program.migrate_state(left).await;
        migrated.map_err(|error| match error {
            MigrateError::Broke(panic) => ChangeRefused::broke(actor, &panic),
            // The error may be the guest's own words.
            error => ChangeRefused::passing(actor, self.system.secrets().mask(&error.to_string())),
        })
    }

    fn actor(&self, name: &ActorName) -> Result<Arc<Actor>, ChangeRefused> {
        let actor = self.system.actor(name.as_str());
        actor.ok_or_else(|| ChangeRefused::passing(name, "it has ended meanwhile"))
    }

    /// What an actor needs besides the module to go back to a former generation; nothing
    /// where its present state will do.
    ///
    /// # Errors
    /// The state from before a migration cannot be had, or there may have been one of which
    /// nothing is known.
    pub(super) async fn given_back(
        &self,
        actor: &ActorName,
        to: Generation,
        since: &[Former],
    ) -> Result<Option<GivenBack>, RollBackError> {
        let running = self.system.actor(actor.as_str());
        let fallback = running.and_then(|actor| actor.fallback().zip(actor.trial()));
        // What a trial has put aside is for its judge. After a rename that may be another
        // than the last that has passed.
        let fallback = fallback.filter(|(_, trial)| trial.judge == to);
        if let Some((EpochState { state, turns, .. }, trial)) = fallback {
            let (actor, since) = (actor.clone(), trial.since);
            return Ok(Some(GivenBack { actor, state, turns, since }));
        }
        let running = self.running.actors.get(actor);
        let running = running.map(|now| (now.digest, now.spec.module.clone()));
        for (at, former) in since.iter().enumerate() {
            match &former.left {
                LeftBehind::GoneOn => {}
                LeftBehind::Migrated(aside) => {
                    let (disk, aside) = (self.states.clone(), aside.clone());
                    let (turns, since) = (aside.turns, aside.since);
                    let read = blocking(move || disk.read(&aside)).await;
                    let state = read.map_err(|error| RollBackError::StateLost {
                        actor: actor.clone(),
                        why: chain(&error),
                    })?;
                    let actor = actor.clone();
                    return Ok(Some(GivenBack { actor, state, turns, since }));
                }
                LeftBehind::Unsaid => {
                    let next =
                        since.get(at + 1).map(|next| (next.digest, next.spec.module.clone()));
                    let next = next.or_else(|| running.clone());
                    let Some((digest, module)) = next else { continue };
                    let place = module.place_in(&self.folder);
                    if digest != former.digest && self.may_migrate(digest, place).await {
                        return Err(RollBackError::StateUnknown {
                            actor: actor.clone(),
                            by: digest,
                        });
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a module that has run can migrate states, or is not to be had and so may.
    async fn may_migrate(&self, digest: Digest, place: Option<ModulePlace>) -> bool {
        let Some(place) = place else { return false };
        let taken = self.library.take_again(digest, &place).await;
        let module = taken.ok().and_then(|()| self.library.get(&digest));
        module.is_none_or(|module| module.migrates_state())
    }

    /// Writes what actors that are halted are given back, as the beginnings of epochs.
    pub(super) async fn write_back(
        &self,
        given: Vec<GivenBack>,
    ) -> Result<BTreeMap<ActorName, EpochState>, RollBackError> {
        let mut states = BTreeMap::new();
        for GivenBack { actor, state, turns, since: _ } in given {
            let Some(running) = self.system.actor(actor.as_str()) else { continue };
            let (before, persists) = (running.epoch_state(), running.settings().state);
            let next = before.followed_by(state, turns);
            let (disk, name) = (self.states.clone(), actor.clone());
            let written = blocking(move || {
                let written = disk.begin(persists, &name, &next);
                written.map(|()| next).map_err(WriteStateError::Next)
            });
            let written = written.await.map_err(|error| RollBackError::Unfit {
                why: format!("`{actor}`: {}", chain(&error)),
            })?;
            states.insert(actor, written);
        }
        Ok(states)
    }

    /// What an actor has taken over from one of another name is written under its own before
    /// it is written that it has the past of that one.
    pub(super) async fn write_heirs(&self, change: &ChangePlan) {
        for start in change.start.iter().filter(|start| start.was.is_some()) {
            let name = start.actor.clone();
            let Some(heir) = self.system.actor(name.as_str()) else { continue };
            let (state, persists) = (heir.epoch_state(), heir.settings().state);
            if state.state == State::default() {
                continue;
            }
            let disk = self.states.clone();
            let written = blocking(move || disk.begin(persists, &name, &state)).await;
            // It is tried again with every round.
            if let Err(error) = written {
                warn!(actor = %start.actor, %error, "the state cannot be written under the new name yet");
            }
        }
    }

    /// The first state of an actor that starts, where an earlier process has left one.
    pub(super) async fn first_state(&self, actor: &ActorName) -> Option<EpochState> {
        let epoch = self.epochs.get(actor).copied();
        let (disk, name) = (self.states.clone(), actor.clone());
        if let Some(resumed) = self.resumed.get(actor) {
            // What it is now is settled, and written, with what it becomes of that.
            let aside = resumed.aside.clone();
            let state = blocking(move || disk.read(&aside).unwrap_or_default()).await;
            return Some(EpochState::found(state, epoch.unwrap_or_default().next()));
        }
        let found = blocking(move || disk.files.found(&name, epoch)).await;
        found.or_else(|| Some(EpochState::found(State::default(), epoch?)))
    }
}

impl Reconciler {
    /// What is known of the states of an actor that an earlier process has run. False where
    /// what last passed its trial cannot have the state from before it.
    pub(super) fn take_up_state(&mut self, actor: &ActorName, left: StateLeft) -> bool {
        let StateLeft { epoch, ran, aside } = left;
        self.epochs.insert(actor.clone(), epoch);
        let (Some(aside), Some(by)) = (aside, ran) else { return true };
        if self.states.read(&aside).is_err() {
            return false;
        }
        let present = self.states.files.found(actor, Some(epoch));
        let present = present.map(|found| found.state).unwrap_or_default();
        self.resumed.insert(actor.clone(), Resumed { present, by, aside });
        true
    }

    /// Actors that have come up as what last passed and were not swapped since go on with
    /// that, and with the state from before it.
    pub(super) fn give_up_resumed(&mut self) {
        for (actor, resumed) in mem::take(&mut self.resumed) {
            let why = format!(
                "its last module, {}, does not run again; what it has made of the state since it was migrated is lost",
                resumed.by.digest().map_or_else(|| "unknown".into(), |digest| digest.short())
            );
            warn!(%actor, %why, "an earlier state is given back");
            let since = resumed.aside.since;
            self.system.events().record(EventKind::StateGivenBack { actor, since, why });
        }
    }

    /// The states that the disk is to keep are those that are known now.
    pub(super) async fn settle_states(&mut self) {
        let mut needed = self.generations.states();
        needed.extend(self.history.states());
        let epochs = self
            .running
            .actors
            .keys()
            // What they have is settled with what becomes of them.
            .filter(|name| !self.resumed.contains_key(*name))
            .filter_map(|name| {
                let actor = self.system.actor(name.as_str())?;
                Some((name.clone(), actor.epoch_state().epoch))
            })
            .collect();
        let now = Settled { needed, epochs };
        if now == self.settled {
            return;
        }
        let disk = self.states.clone();
        let before = mem::replace(&mut self.settled, now.clone());
        blocking(move || {
            let news =
                |(actor, epoch): &(&ActorName, &Epoch)| before.epochs.get(*actor) != Some(*epoch);
            for (actor, epoch) in now.epochs.iter().filter(news) {
                disk.files.settle(actor, *epoch);
            }
            disk.former.retain(&now.needed);
        })
        .await;
    }
}

/// What an earlier process has left of an actor's states.
pub(super) struct StateLeft {
    /// The epoch of the state that it had last.
    pub(super) epoch: Epoch,
    /// Who has left that one.
    pub(super) ran: Option<Ran>,
    /// The state from before the trial that it was on, where it has migrated it.
    pub(super) aside: Option<PutAside>,
}

/// What the disk has been told to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Former states.
    needed: BTreeSet<Digest>,
    /// The epoch that each actor is in.
    epochs: BTreeMap<ActorName, Epoch>,
}
