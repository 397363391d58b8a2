//! An operator gives an actor another state, between two turns.
//!
//! On trial, the state that was put aside at the swap is replaced too: what the operator
//! says now is what a rollback is to restore, and what the judge is asked with. The state
//! from before a migration stays, because only that is in the form of the generation before.

use tokio::sync::oneshot;

use super::ActorTask;
use crate::{Precondition, SetStateError, State, StateSet};

/// Another state, and whom to tell.
pub(crate) struct NewState {
    pub(crate) state: State,
    pub(crate) precondition: Precondition,
    pub(crate) done: oneshot::Sender<Result<StateSet, SetStateError>>,
}

impl ActorTask {
    pub(super) fn set_state(&mut self, new: NewState) {
        let NewState { state, precondition, done } = new;
        let limit = self.shared.settings.load().state_size;
        let bytes = state.text().len() as u64;
        if bytes > limit {
            // Whoever asked may have given up; nothing has happened.
            _ = done.send(Err(SetStateError::TooLarge { bytes, limit }));
            return;
        }
        if !precondition.holds() {
            _ = done.send(Err(SetStateError::Changed));
            return;
        }
        let shared = std::sync::Arc::clone(&self.shared);
        let sealed = shared.sealed.lock();
        if *sealed {
            _ = done.send(Err(SetStateError::Stopped));
            return;
        }
        let (before, now) = {
            let mut held = shared.state.lock();
            let before = std::mem::replace(&mut held.state, state.clone());
            (before, held.clone())
        };
        drop(sealed);
        let on_trial = self.probation.is_some();
        for probation in [&mut self.probation, &mut self.passed].into_iter().flatten() {
            probation.state_given(now.clone());
        }
        let set = shared.state_was_set(&before, &state, on_trial);
        // The state is set whether or not anybody still waits to hear of it.
        _ = done.send(Ok(set));
    }
}
