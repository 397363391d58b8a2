//! States that new modules make of those that the modules before them have left.
//!
//! It is tried on a copy while a change is prepared, and done when the actors are
//! halted, right before the swaps. Where it fails, nothing of the change happens.

use std::sync::Arc;

use reflowd_runtime::{ActorName, Change, Halted, LeftState, Program, Ready, State};

use super::{Reconciler, preparation::ChangeRefused};

/// A program that is about to make its own state of an actor's.
pub(super) struct Migration {
    actor: ActorName,
    program: Arc<dyn Program>,
    /// Bytes that its state may have.
    limit: u64,
}

impl Reconciler {
    /// Tries on copies of the states whether the programs can make their own of them.
    pub(super) async fn try_all(&self, migrations: Vec<Migration>) -> Result<(), ChangeRefused> {
        for migration in migrations {
            self.migrate(&migration).await?;
        }
        Ok(())
    }

    /// Halts the actors whose next modules make another state, and has it made.
    pub(super) async fn migrate_all(&self, ready: &mut Change) -> Result<Halted, ChangeRefused> {
        let migrations = self.migrations(ready);
        let halted = self.system.halt(migrations.iter().map(|of| &of.actor)).await;
        for migration in migrations {
            match self.migrate(&migration).await {
                Ok(state) => _ = ready.states.insert(migration.actor, state),
                Err(refused) => {
                    self.system.go_on(halted).await;
                    return Err(refused);
                }
            }
        }
        Ok(halted)
    }

    /// The programs that swap in, can make another state, and are other modules.
    pub(super) fn migrations(&self, ready: &Change) -> Vec<Migration> {
        let migration = |(actor, ready): &(ActorName, Ready)| {
            let Ready::Engine { program, .. } = ready else { return None };
            let before = self.running.actors.get(actor)?;
            let other = program.migrates_state() && before.digest != program.digest();
            other.then(|| Migration {
                actor: actor.clone(),
                program: Arc::clone(program),
                limit: before.spec.settings.state_size,
            })
        };
        ready.swap.iter().filter_map(migration).collect()
    }

    async fn migrate(&self, migration: &Migration) -> Result<State, ChangeRefused> {
        let Migration { actor, program, limit } = migration;
        let Some(running) = self.system.actor(actor.as_str()) else {
            return Err(ChangeRefused::passing(actor, "it has ended meanwhile"));
        };
        let status = running.status();
        let left = LeftState {
            state: running.state(),
            digest: status.digest,
            version: status.version,
            limit: *limit,
        };
        let migrated = program.migrate_state(left).await;
        // The error may be the guest's own words.
        migrated.map_err(|error| {
            ChangeRefused::passing(actor, self.system.secrets().mask(&error.to_string()))
        })
    }
}
