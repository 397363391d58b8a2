//! The epochs of an actor's state.
//!
//! A state is understood by the modules that it was made for. Where a module makes its own
//! state of the one before, or a rollback gives an earlier one back, the new state belongs
//! to another epoch. On disk each epoch has a file of its own, so that whoever decides
//! what runs decides with the same word which state it has: a crash in between leaves both
//! as they were, and never a module with the state of another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::State;

/// Counts how often an actor's state was replaced by one that another module understands.
/// Only grows, going back included.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(u64);

impl Epoch {
    /// An actor's first.
    pub const FIRST: Self = Self(0);

    /// The one with that number, as it was written down.
    #[must_use]
    pub const fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An actor's state, and what has to be known of it to go back to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochState {
    /// The state.
    pub state: State,
    /// The epoch that it belongs to.
    pub epoch: Epoch,
    /// Turns of this process that have set it, former epochs included: the difference of
    /// two says what going back from one to the other loses.
    pub turns: u64,
}

impl EpochState {
    /// A state as it was found on disk.
    #[must_use]
    pub fn found(state: State, epoch: Epoch) -> Self {
        Self { state, epoch, turns: 0 }
    }

    /// Another state in place of this one, in an epoch of its own. It has the turns that
    /// `turns` says.
    #[must_use]
    pub fn followed_by(&self, state: State, turns: u64) -> Self {
        Self { state, epoch: self.epoch.next(), turns }
    }
}

/// A state of the first epoch.
impl From<State> for EpochState {
    fn from(state: State) -> Self {
        Self::found(state, Epoch::FIRST)
    }
}
