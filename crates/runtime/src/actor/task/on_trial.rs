//! An actor whose generation is on trial: asking its judge, counting what happens, and
//! going back.
//!
//! What is to be done is decided by [`Trial`]; the task acts on it here.

use tracing::{info, warn};

use super::{About, ActorTask};
use crate::{
    Effects, EpochState, EventKind, FailureKind, Routes, Settings, TrialOutcome, TrialRules,
    TrialView, Trialing, TurnTrace,
    actor::probation::{Heard, Judge, Probation},
    envelope::Origin,
    trial::{AskedOf, Step, Trial},
};

/// What a swap has put another state in place of.
pub(super) enum Replacing {
    Nothing,
    State(EpochState),
}

/// What came of asking a judge.
#[derive(PartialEq, Eq)]
pub(super) enum Consulted {
    /// The message has left, or stays for another generation.
    Settled,
    /// The message is to blame, or nobody can tell.
    DeadLetter,
}

impl ActorTask {
    /// Has the judge's opinion on a message that a generation on trial has failed on.
    pub(super) async fn consult(
        &mut self,
        kind: &FailureKind,
        settings: &Settings,
        origin: &Origin,
        routes: &Routes,
    ) -> Consulted {
        let Some(rules) = settings.trial else { return Consulted::DeadLetter };
        let Some(mut probation) = self.probation.take() else { return Consulted::DeadLetter };
        let judged = self.shared.mailbox.in_hand().iter().any(|envelope| envelope.judged);
        let mut step = probation.trial.failed(kind, judged, &rules);
        let mut effects = Effects::default();
        while let Step::Ask(of) = step {
            let Some(taken) = self.shared.mailbox.take() else { break };
            // Nothing leaves before it is clear that the judge's word stands.
            let about = About {
                payload: taken.payload,
                message: taken.first,
                trace: taken.lineage.trace.map(|trace| TurnTrace::new(trace, None)),
            };
            let context = self.context(about, settings, None);
            let present = context.state.clone();
            let heard = tokio::select! {
                biased;
                heard = probation.ask(of, context, settings.timeout) => heard,
                () = self.shared.kill.cancelled() => return Consulted::Settled,
            };
            if self.shared.kill.is_cancelled() {
                return Consulted::Settled;
            }
            self.shared.meters.opinions.add(1);
            step = match heard.opinion() {
                Some(opinion) => {
                    let state = probation.since_swap(of, &present);
                    probation.trial.answered(opinion, state, &rules)
                }
                None => probation.trial.unanswered(),
            };
            self.tell_opinion(&probation, of, kind, &heard);
            if let Heard::Stands(wanted) = heard {
                effects = wanted;
            }
        }
        self.probation = Some(probation);
        match step {
            Step::Commit | Step::CommitAndFall => {
                let Origin { lineage, at, judged: _ } = origin;
                let origin = Origin { lineage: lineage.clone(), at: *at, judged: true };
                self.commit(effects, &origin, routes);
                self.show_trial();
                if step == Step::CommitAndFall {
                    self.fall();
                }
                Consulted::Settled
            }
            Step::KeepAndFall => {
                self.fall();
                Consulted::Settled
            }
            Step::DeadLetter | Step::GoOn | Step::Passed | Step::Ask(_) => Consulted::DeadLetter,
        }
    }

    fn tell_opinion(&self, probation: &Probation, of: AskedOf, kind: &FailureKind, heard: &Heard) {
        let actor = self.shared.name.clone();
        let stands = matches!(heard, Heard::Stands(_));
        let judge = probation.judge.generation.number();
        let state = match of {
            AskedOf::PresentState => "present",
            AskedOf::BeforeMigration => "before-migration",
            AskedOf::StateAtSwap => "at-swap",
        };
        warn!(%actor, error = %kind, %judge, stands, state, "a generation on trial failed, and its judge was asked");
        self.shared.events.record(EventKind::Opinion {
            actor,
            generation: self.shared.status.borrow().generation.number(),
            judge,
            stands,
            state: state.into(),
            failure: kind.to_string(),
            failures: probation.trial.failures(),
            why: heard.failure().map(|why| self.shared.secrets.mask(&why).into_owned()),
        });
    }

    /// A swap has been made, over the generation that would be its judge.
    pub(super) fn begin_trial(&mut self, trialing: Trialing, before: Judge, over: Replacing) {
        *self.shared.fallback.lock() = None;
        let rules = self.shared.settings.load().trial;
        let passed = self.passed.take();
        if trialing == Trialing::OnTrial && self.probation.is_none() {
            self.probation = passed;
        }
        match (trialing, rules, &mut self.probation) {
            (Trialing::OnTrial, Some(_), Some(probation)) => probation.replaced(),
            (Trialing::OnTrial, Some(_), none) => {
                let state = match &over {
                    Replacing::Nothing => self.shared.state.lock().clone(),
                    Replacing::State(state) => state.clone(),
                };
                *none = Some(Probation::new(before, state));
            }
            (Trialing::OnTrial, None, probation) | (Trialing::NoTrial, _, probation) => {
                *probation = None;
            }
            (Trialing::GoingBack, _, probation) => {
                *probation = None;
                self.shared.meters.rollbacks.add(1);
            }
        }
        if let (Some(probation), Replacing::State(before)) = (&mut self.probation, over) {
            probation.migrated(before);
        }
        self.show_trial();
    }

    /// Lets something that happened count in the trial.
    pub(super) fn weigh(&mut self, happened: impl FnOnce(&mut Trial, &TrialRules) -> Step) {
        let Some(probation) = &mut self.probation else { return };
        let Some(rules) = self.shared.settings.load().trial else { return };
        if happened(&mut probation.trial, &rules) != Step::Passed {
            return self.show_trial();
        }
        let actor = self.shared.name.clone();
        let view = probation.view(self.shared.status.borrow().generation);
        let (generation, judge) = (view.generation.number(), view.judge.number());
        let (turns, failures) = (view.turns, view.failures);
        info!(%actor, generation, turns, failures, "trial passed");
        self.passed = self.probation.take();
        self.shared.meters.trials_passed.add(1);
        *self.shared.trial.lock() = Some(TrialView { outcome: TrialOutcome::Passed, ..view });
        self.shared.trials.notify_one();
        let passed = EventKind::TrialPassed { actor, generation, judge, turns, failures };
        self.shared.events.record(passed);
    }

    /// The generation is to go back: no turn before that.
    fn fall(&mut self) {
        let fallback = self.probation.as_ref().and_then(Probation::fallback);
        *self.shared.fallback.lock() = fallback.cloned();
        self.show_trial();
        self.show();
        let actor = &self.shared.name;
        warn!(%actor, "a generation on trial failed too often or too badly, and is to go back");
        self.shared.trials.notify_one();
    }

    /// What runs stays.
    pub(super) fn end_trial(&mut self) {
        self.passed = None;
        if self.probation.take().is_some() {
            self.supervisor.forgive();
            self.show_trial();
            self.shared.trials.notify_one();
        }
    }

    pub(super) fn is_falling(&self) -> bool {
        self.probation.as_ref().is_some_and(Probation::fell)
    }

    /// The message that was in hand has left, though no turn has succeeded.
    pub(super) fn message_left(&mut self) {
        if let Some(probation) = &mut self.probation {
            probation.trial.message_left();
        }
    }

    fn show_trial(&self) {
        let generation = self.shared.status.borrow().generation;
        let view = self.probation.as_ref().map(|probation| probation.view(generation));
        *self.shared.trial.lock() = view;
    }
}
