//! The states of actors on disk, as a reconciler needs them.

use std::io;

use reflowd_runtime::{ActorName, Epoch, EpochState};

/// Where states are written while actors run: for each actor, a file for each epoch.
///
/// Which of an actor's files counts is said with its generations, in `generations.json`: a
/// crash between the first file of a new epoch and that word leaves the old one in force.
pub trait StateFiles: Send + Sync {
    /// The state that an earlier process has written of an actor in an epoch; where none is
    /// named, in the last that there is a file of. Blocks.
    fn found(&self, actor: &ActorName, epoch: Option<Epoch>) -> Option<EpochState>;

    /// Writes the state that an epoch is to begin with. When this returns, it outlives a
    /// loss of power. Blocks.
    ///
    /// # Errors
    /// It is not there.
    fn begin(&self, actor: &ActorName, state: &EpochState) -> io::Result<()>;

    /// That epoch is the actor's now, and the files of others are of no use. Blocks.
    fn settle(&self, actor: &ActorName, epoch: Epoch);
}
