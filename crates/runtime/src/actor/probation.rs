//! A generation on trial, with what the trial needs: its judge, the state as it was when
//! the generation was put in place, and the one of which it has made its own.
//!
//! A judge costs nothing until it is asked. Then it gets an engine for one turn, and
//! the engine is dropped after.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Context, Effects, EpochState, FailureKind, Generation, InstantiateError, Program, State,
    TrialOutcome, TrialView,
    envelope::unix_millis,
    panic::{Boundary, Panic},
    trial::{AskedOf, Opinion, SinceSwap, Trial},
};

/// A generation on trial.
pub(super) struct Probation {
    pub(super) trial: Trial,
    pub(super) judge: Judge,
    /// The state at the swap.
    state: EpochState,
    /// The state of which a generation on trial has made its own, where one has. The judge
    /// understands no later one.
    unmigrated: Option<EpochState>,
    since: u64,
}

/// The last generation that passed.
pub(super) struct Judge {
    pub(super) program: Arc<dyn Program>,
    pub(super) generation: Generation,
}

/// What came of asking a judge.
pub(super) enum Heard {
    /// It processed the message; this is what it wants to happen.
    Stands(Effects),
    /// It failed as well.
    FailsToo(FailureKind),
    /// It has no engine, or the daemon broke over it.
    Nobody(InstantiateError),
}

impl Probation {
    pub(super) fn new(judge: Judge, state: EpochState) -> Self {
        let (trial, since) = (Trial::new(Instant::now()), unix_millis());
        Self { trial, judge, state, unmigrated: None, since }
    }

    /// The generation has made its own state of that one.
    pub(super) fn migrated(&mut self, before: EpochState) {
        self.unmigrated.get_or_insert(before);
        self.trial.migrated();
    }

    /// Another generation takes the place of the one on trial. Judge and state stay.
    pub(super) fn replaced(&mut self) {
        self.trial.replaced(Instant::now());
        self.since = unix_millis();
    }

    /// An operator has set the state: that is what a rollback restores, unless it is one
    /// that the judge does not understand.
    pub(super) fn state_given(&mut self, state: EpochState) {
        if self.unmigrated.is_none() {
            self.state = state;
            self.trial.state_given();
        }
    }

    /// How it stands, for the generation that it is about.
    pub(super) fn view(&self, generation: Generation) -> TrialView {
        let outcome = match self.trial.fell() {
            Some(fall) => TrialOutcome::Fell(fall.clone()),
            None => TrialOutcome::Running,
        };
        TrialView {
            generation,
            judge: self.judge.generation,
            since: self.since,
            turns: self.trial.turns(),
            failures: self.trial.failures(),
            outcome,
        }
    }

    /// Puts a message to the judge. `context` has the present state.
    pub(super) async fn ask(&self, of: AskedOf, mut context: Context, timeout: Duration) -> Heard {
        if let Some(known) = self.put_aside(of) {
            context.state = known.state.clone();
        }
        let judge = &self.judge.program;
        let engine = match Boundary::Judge.hold(judge.instantiate()).await {
            Ok(Ok(engine)) => engine,
            Ok(Err(error)) => return Heard::Nobody(error),
            Err(panic) => return Heard::broke(&panic),
        };
        match Boundary::Judge.hold(engine.turn(context, Instant::now() + timeout)).await {
            Ok(Ok((_, effects))) => Heard::Stands(effects),
            Ok(Err(failure)) => Heard::FailsToo(failure.kind),
            Err(panic) => Heard::broke(&panic),
        }
    }

    /// Whether the state that was asked of is another than that at the swap.
    pub(super) fn since_swap(&self, of: AskedOf, present: &State) -> SinceSwap {
        let asked = self.put_aside(of).map_or(present, |known| &known.state);
        if *asked == self.state.state { SinceSwap::Same } else { SinceSwap::Changed }
    }

    /// The state to ask of, where that is not the present one.
    fn put_aside(&self, of: AskedOf) -> Option<&EpochState> {
        match of {
            AskedOf::PresentState => None,
            AskedOf::BeforeMigration => self.unmigrated.as_ref(),
            AskedOf::StateAtSwap => Some(&self.state),
        }
    }

    /// Whether the generation is to go back.
    pub(super) fn fell(&self) -> bool {
        self.trial.fell().is_some()
    }

    /// The state that the generation before is to have again, where not the present one.
    pub(super) fn fallback(&self) -> Option<&EpochState> {
        self.put_aside(self.trial.needs()?)
    }
}

impl Heard {
    /// That the daemon breaks says nothing of the judge, and must cost no state.
    fn broke(panic: &Panic) -> Self {
        Self::Nobody(InstantiateError { why: panic.to_string() })
    }

    /// What it means for the trial, where the judge could be asked.
    pub(super) fn opinion(&self) -> Option<Opinion> {
        match self {
            Self::Stands(_) => Some(Opinion::Stands),
            Self::FailsToo(_) => Some(Opinion::FailsToo),
            Self::Nobody(_) => None,
        }
    }

    /// What the judge failed with, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Stands(_) => None,
            Self::FailsToo(kind) => Some(kind.to_string()),
            Self::Nobody(error) => Some(error.to_string()),
        }
    }
}
