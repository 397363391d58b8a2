//! What a run has covered.

use std::fmt;

/// What is counted. A run in which one of these never happens has tested less than it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Steps,
    Messages,
    RefusedFull,
    Swaps,
    JointSwaps,
    TrialsPassed,
    Rollbacks,
    RollbacksByHand,
    StatesRestored,
    Bans,
    BansHeld,
    DeadLetters,
    Joins,
    Renames,
    Dropped,
    Opinions,
    RetriesThatSucceed,
    Restarts,
    Saved,
    Edits,
    Migrations,
    MigrationsRefused,
    MigrationsResumed,
    MigrationsTakenBack,
    Crashes,
    LostInCrashes,
}

use Counted::*;

impl Counted {
    const ALL: [(Self, &str); 26] = [
        (Steps, "steps"),
        (Messages, "messages accepted"),
        (RefusedFull, "messages refused, mailbox full"),
        (Swaps, "swaps"),
        (JointSwaps, "swaps of two actors as one"),
        (TrialsPassed, "changes that passed their trial"),
        (Rollbacks, "rollbacks"),
        (RollbacksByHand, "rollbacks by hand"),
        (StatesRestored, "states restored by a rollback"),
        (Bans, "bans"),
        (BansHeld, "swaps that a ban has held off"),
        (DeadLetters, "dead letters"),
        (Joins, "joins"),
        (Renames, "renames"),
        (Dropped, "dropped by a full listener"),
        (Opinions, "opinions of judges"),
        (RetriesThatSucceed, "messages that succeed when retried"),
        (Restarts, "restarts"),
        (Saved, "messages saved by a stop"),
        (Edits, "edits that need a new engine"),
        (Migrations, "states migrated"),
        (MigrationsRefused, "swaps refused, the state cannot be migrated"),
        (MigrationsResumed, "trials of a migrated state that outlive the daemon"),
        (MigrationsTakenBack, "states from before a migration given back"),
        (Crashes, "crashes"),
        (LostInCrashes, "messages lost in a crash"),
    ];
}

/// How often each happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals([u64; Counted::ALL.len()]);

impl Totals {
    pub(crate) fn count(&mut self, what: Counted, times: u64) {
        self.0[what as usize] += times;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, other) in self.0.iter_mut().zip(other.0) {
            *mine += other;
        }
    }

    /// What has not happened at all.
    pub(crate) fn never(&self) -> Vec<Counted> {
        let all = Counted::ALL.into_iter().map(|(what, _)| what);
        all.filter(|what| self.0[*what as usize] == 0).collect()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |(what, words): &(Counted, &str)| {
            writeln!(f, "{words:52} {:>9}", self.0[*what as usize])
        };
        Counted::ALL.iter().try_for_each(line)
    }
}
