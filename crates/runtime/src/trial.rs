//! Decides whether a new generation stays.
//!
//! After a swap the new generation is on trial, and the last one that passed is its
//! judge. A message that fails is put to the judge: if the judge can do it, the new
//! generation is to blame; if it can do it only with the state as it was at the swap,
//! the new generation has spoilt the state; if it cannot do it at all, the message is
//! to blame. What is blamed on the new generation sends it back.
//!
//! A generation that has made its own state of the one before is judged with that one,
//! which alone its judge understands. There is no way on from there with the present
//! state, so the first message that the judge can do sends the generation back.
//!
//! Pure: it is told what happened and what time it is; the actor asks the judge and
//! acts on the answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{FailureKind, Generation};

/// Successes without which no time that passes is proof enough.
const FEWEST_TURNS: u32 = 20;

/// What a new generation of an actor has to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrialRules {
    /// Turns that succeed, after which the trial is passed.
    pub turns: u32,
    /// Time since the swap, after which it is passed too, if 20 turns have succeeded.
    pub time: Duration,
    /// Messages that the judge has to take over, at which the generation goes back.
    pub max_failures: u32,
    /// Whether a guest's own error is a failure.
    pub guest_errors: GuestErrors,
}

impl Default for TrialRules {
    fn default() -> Self {
        Self {
            turns: 1_000,
            time: Duration::from_secs(60),
            max_failures: 3,
            guest_errors: GuestErrors::Count,
        }
    }
}

/// Whether an error that a guest returns, and that no `error` wire takes, is held
/// against a generation on trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestErrors {
    /// It is a failure like any other.
    #[default]
    Count,
    /// It is what the guest has to say of the message.
    Ignore,
}

/// How a trial stands, for whoever looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrialView {
    /// The generation on trial.
    pub generation: Generation,
    /// The generation that judges it.
    pub judge: Generation,
    /// Milliseconds since the Unix epoch at which the trial began.
    pub since: u64,
    /// Turns of the generation that succeeded.
    pub turns: u32,
    /// Messages that the judge had to take over.
    pub failures: u32,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: TrialOutcome,
}

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum TrialOutcome {
    /// Nothing yet.
    Running,
    /// The generation stays.
    Passed,
    /// The generation is to go back, and takes no further turn.
    Fell(Fall),
}

/// Why a generation is to go back, and what that costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fall {
    /// The failure that was too much.
    pub why: String,
    /// Whether the state is to be what it was at the swap, or before it was migrated.
    pub restore_state: bool,
    /// Turns whose state is lost with that.
    pub lost_turns: u64,
}

/// One trial.
#[derive(Debug)]
pub(crate) struct Trial {
    /// When the generation was put in place.
    began: Instant,
    turns: u32,
    failures: u32,
    /// Turns that may have moved the state since it was put aside.
    moved: u64,
    /// How many of these were before a generation made its own state, if one has.
    migrated: Option<u64>,
    /// Whether a message that has failed is in hand.
    failing: bool,
    /// The question that is open: what failed, and whether it was a time-out.
    asked: Option<Asked>,
    fell: Option<Fall>,
    /// The state without which it cannot go back.
    needs: Option<AskedOf>,
}

#[derive(Debug)]
struct Asked {
    failure: String,
    timed_out: bool,
    of: AskedOf,
}

/// The state that the judge is given with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedOf {
    /// The one before the failed turn, which is the present one.
    PresentState,
    /// The one of which a generation on trial has made its own.
    BeforeMigration,
    /// The one at the swap.
    StateAtSwap,
}

/// What the judge made of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opinion {
    /// It could process it.
    Stands,
    /// It failed as well.
    FailsToo,
}

/// Whether the state that was asked of last is another than the one at the swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SinceSwap {
    Changed,
    Same,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    GoOn,
    /// Put the message in hand to the judge.
    Ask(AskedOf),
    /// Commit what the judge made of the message; then go on.
    Commit,
    /// Commit what the judge made of the message; the generation goes back.
    CommitAndFall,
    /// Keep the message; the generation goes back.
    KeepAndFall,
    /// The message is to blame.
    DeadLetter,
    /// The generation has proved itself.
    Passed,
}

impl Trial {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            began: now,
            turns: 0,
            failures: 0,
            moved: 0,
            migrated: None,
            failing: false,
            asked: None,
            fell: None,
            needs: None,
        }
    }

    /// Another generation takes the place of the one on trial. The state that was put
    /// aside stays the one before both.
    pub(crate) fn replaced(&mut self, now: Instant) {
        *self = Self { moved: self.moved, migrated: self.migrated, ..Self::new(now) };
    }

    /// The generation on trial has made its own state. The one before is put aside, unless
    /// an earlier one on trial has done so.
    pub(crate) fn migrated(&mut self) {
        self.migrated.get_or_insert(self.moved);
    }

    /// An operator set the state, and that is the one put aside from now on.
    pub(crate) fn state_given(&mut self) {
        self.moved = 0;
    }

    /// A turn succeeded.
    pub(crate) fn succeeded(&mut self, rules: &TrialRules, now: Instant) -> Step {
        self.turns += 1;
        self.moved += 1;
        self.failing = false;
        if self.fell.is_none() && (self.turns >= rules.turns || self.lasted(rules, now)) {
            return Step::Passed;
        }
        Step::GoOn
    }

    /// A turn succeeded after the trial was passed.
    pub(crate) fn went_on(&mut self) {
        self.moved += 1;
    }

    /// A turn failed, and its message is in hand.
    pub(crate) fn attempt_failed(&mut self) {
        self.failing = true;
    }

    /// The message in hand has left, or waits again like any other.
    pub(crate) fn message_left(&mut self) {
        self.failing = false;
    }

    /// A message failed for good. `judged` tells whether a judge has put it out.
    pub(crate) fn failed(&mut self, kind: &FailureKind, judged: bool, rules: &TrialRules) -> Step {
        let counts = match kind {
            FailureKind::Unavailable(_) | FailureKind::Remote(_) => false,
            FailureKind::Guest(_) | FailureKind::Refused(_) => {
                rules.guest_errors == GuestErrors::Count
            }
            FailureKind::Trap(_) | FailureKind::Timeout(_) | FailureKind::Turn(_) => true,
        };
        if !counts || judged || self.fell.is_some() {
            return Step::DeadLetter;
        }
        let timed_out = matches!(kind, FailureKind::Timeout(_));
        let of = match self.migrated {
            Some(_) => AskedOf::BeforeMigration,
            None => AskedOf::PresentState,
        };
        self.asked = Some(Asked { failure: kind.to_string(), timed_out, of });
        Step::Ask(of)
    }

    /// The judge has answered the question that was asked last.
    pub(crate) fn answered(
        &mut self,
        opinion: Opinion,
        state: SinceSwap,
        rules: &TrialRules,
    ) -> Step {
        let Some(asked) = self.asked.take() else { return Step::DeadLetter };
        match (asked.of, opinion) {
            (AskedOf::PresentState, Opinion::Stands) => {
                self.failures += 1;
                self.moved += 1;
                self.failing = false;
                if !asked.timed_out && self.failures < rules.max_failures {
                    return Step::Commit;
                }
                self.fell = Some(Fall { why: asked.failure, restore_state: false, lost_turns: 0 });
                Step::CommitAndFall
            }
            (AskedOf::PresentState | AskedOf::BeforeMigration, Opinion::FailsToo)
                if state == SinceSwap::Changed =>
            {
                let of = AskedOf::StateAtSwap;
                self.asked = Some(Asked { of, ..asked });
                Step::Ask(of)
            }
            (of @ (AskedOf::BeforeMigration | AskedOf::StateAtSwap), Opinion::Stands) => {
                let before = match of {
                    AskedOf::BeforeMigration => self.migrated.unwrap_or(0),
                    AskedOf::PresentState | AskedOf::StateAtSwap => 0,
                };
                let lost_turns = self.moved - before;
                self.failures += 1;
                self.fell = Some(Fall { why: asked.failure, restore_state: true, lost_turns });
                self.needs = Some(of);
                Step::KeepAndFall
            }
            (_, Opinion::FailsToo) => Step::DeadLetter,
        }
    }

    /// The judge cannot be asked: nothing is held against anybody.
    pub(crate) fn unanswered(&mut self) -> Step {
        self.asked = None;
        Step::DeadLetter
    }

    /// When time alone may pass it, as things stand.
    pub(crate) fn passes_at(&self, rules: &TrialRules) -> Option<Instant> {
        let may = self.turns >= FEWEST_TURNS && !self.failing && self.fell.is_none();
        may.then(|| self.began + rules.time)
    }

    /// What time has made of it.
    pub(crate) fn time(&self, rules: &TrialRules, now: Instant) -> Step {
        if self.lasted(rules, now) { Step::Passed } else { Step::GoOn }
    }

    fn lasted(&self, rules: &TrialRules, now: Instant) -> bool {
        self.passes_at(rules).is_some_and(|at| now >= at)
    }

    pub(crate) fn turns(&self) -> u32 {
        self.turns
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// The state that has to be given back with the former generation, where it is not to
    /// have the present one.
    pub(crate) fn needs(&self) -> Option<AskedOf> {
        self.needs
    }

    /// Why the generation is to go back, if it is.
    pub(crate) fn fell(&self) -> Option<&Fall> {
        self.fell.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: TrialRules = TrialRules {
        turns: 1_000,
        time: Duration::from_secs(60),
        max_failures: 3,
        guest_errors: GuestErrors::Count,
    };

    /// What may happen in a trial.
    enum Happens {
        Succeeds(u32),
        Attempt,
        Fails(FailureKind),
        FailsOnJudged(FailureKind),
        Stands,
        FailsToo,
        FailsTooOnSameState,
        NoJudge,
        /// So many seconds after the swap.
        Time(u64),
        /// A turn succeeds so many seconds after the swap.
        SucceedsAt(u64),
        Replaced,
        Migrated,
    }

    use Happens::*;

    const PRESENT: Step = Step::Ask(AskedOf::PresentState);
    const AT_SWAP: Step = Step::Ask(AskedOf::StateAtSwap);
    const BEFORE: Step = Step::Ask(AskedOf::BeforeMigration);

    fn trap() -> Happens {
        Fails(FailureKind::Trap("x".into()))
    }

    fn timeout() -> Happens {
        Fails(FailureKind::Timeout(Duration::from_secs(1)))
    }

    fn guest() -> Happens {
        Fails(FailureKind::Guest("x".into()))
    }

    #[track_caller]
    fn check(rules: TrialRules, cases: Vec<(Happens, Step)>) -> Trial {
        let began = Instant::now();
        let mut trial = Trial::new(began);
        let changed = SinceSwap::Changed;
        for (number, (happens, expected)) in cases.into_iter().enumerate() {
            let second = |n| began + Duration::from_secs(n);
            let step = match happens {
                Succeeds(n) => (0..n).map(|_| trial.succeeded(&rules, began)).last().unwrap(),
                Attempt => {
                    trial.attempt_failed();
                    Step::GoOn
                }
                Fails(kind) => trial.failed(&kind, false, &rules),
                FailsOnJudged(kind) => trial.failed(&kind, true, &rules),
                Stands => trial.answered(Opinion::Stands, changed, &rules),
                FailsToo => trial.answered(Opinion::FailsToo, changed, &rules),
                FailsTooOnSameState => trial.answered(Opinion::FailsToo, SinceSwap::Same, &rules),
                NoJudge => trial.unanswered(),
                Time(n) => trial.time(&rules, second(n)),
                SucceedsAt(n) => trial.succeeded(&rules, second(n)),
                Replaced => {
                    trial.replaced(began);
                    Step::GoOn
                }
                Migrated => {
                    trial.migrated();
                    Step::GoOn
                }
            };
            assert_eq!(step, expected, "step {number}");
        }
        trial
    }

    #[test]
    fn enough_successes_pass() {
        check(RULES, vec![(Succeeds(999), Step::GoOn), (Succeeds(1), Step::Passed)]);
    }

    #[test]
    fn time_passes_with_twenty_successes() {
        check(
            RULES,
            vec![(Succeeds(19), Step::GoOn), (Time(600), Step::GoOn), (Succeeds(1), Step::GoOn)],
        );
        let twenty = || (Succeeds(20), Step::GoOn);
        check(RULES, vec![twenty(), (Time(59), Step::GoOn), (Time(60), Step::Passed)]);
        check(RULES, vec![(Succeeds(19), Step::GoOn), (SucceedsAt(60), Step::Passed)]);
    }

    #[test]
    fn time_passes_nobody_while_a_failed_message_is_in_hand() {
        let cases = vec![
            (Succeeds(20), Step::GoOn),
            (Attempt, Step::GoOn),
            (Time(60), Step::GoOn),
            (SucceedsAt(61), Step::Passed),
        ];
        check(RULES, cases);
    }

    #[test]
    fn the_third_failure_is_too_much() {
        let cases = vec![
            (trap(), PRESENT),
            (Stands, Step::Commit),
            (Succeeds(500), Step::GoOn),
            (Fails(FailureKind::Turn("x".into())), PRESENT),
            (Stands, Step::Commit),
            (trap(), PRESENT),
            (Stands, Step::CommitAndFall),
        ];
        let fall = Fall { why: "trapped: x".into(), restore_state: false, lost_turns: 0 };
        assert_eq!(check(RULES, cases).fell(), Some(&fall));
    }

    #[test]
    fn the_first_time_out_is_too_much() {
        check(RULES, vec![(timeout(), PRESENT), (Stands, Step::CommitAndFall)]);
    }

    #[test]
    fn a_broken_state_is_too_much_at_once_and_costs_the_turns_since_the_swap() {
        let cases = vec![
            (Succeeds(4), Step::GoOn),
            (trap(), PRESENT),
            (Stands, Step::Commit),
            (trap(), PRESENT),
            (FailsToo, AT_SWAP),
            (Stands, Step::KeepAndFall),
        ];
        let fall = Fall { why: "trapped: x".into(), restore_state: true, lost_turns: 5 };
        assert_eq!(check(RULES, cases).fell(), Some(&fall));
    }

    #[test]
    fn who_has_migrated_the_state_goes_back_at_the_first_message_that_the_judge_can_do() {
        let cases = vec![
            (Migrated, Step::GoOn),
            (Succeeds(7), Step::GoOn),
            (trap(), BEFORE),
            (Stands, Step::KeepAndFall),
        ];
        let fall = Fall { why: "trapped: x".into(), restore_state: true, lost_turns: 7 };
        let trial = check(RULES, cases);
        assert_eq!((trial.fell(), trial.needs()), (Some(&fall), Some(AskedOf::BeforeMigration)));
    }

    #[test]
    fn what_the_judge_cannot_do_before_the_migration_either_is_a_dead_letter() {
        let cases = vec![
            (Migrated, Step::GoOn),
            (Succeeds(7), Step::GoOn),
            (trap(), BEFORE),
            (FailsTooOnSameState, Step::DeadLetter),
            (Succeeds(992), Step::GoOn),
            (Succeeds(1), Step::Passed),
        ];
        assert_eq!(check(RULES, cases).failures(), 0);
    }

    #[test]
    fn a_state_that_was_broken_before_it_was_migrated_costs_the_turns_of_both() {
        let cases = vec![
            (Succeeds(3), Step::GoOn),
            (Replaced, Step::GoOn),
            (Migrated, Step::GoOn),
            (Succeeds(4), Step::GoOn),
            // What comes after it migrates what is no more the judge's.
            (Replaced, Step::GoOn),
            (Migrated, Step::GoOn),
            (trap(), BEFORE),
            (FailsToo, AT_SWAP),
            (Stands, Step::KeepAndFall),
        ];
        let trial = check(RULES, cases);
        assert_eq!(trial.fell().map(|fall| fall.lost_turns), Some(7));
        assert_eq!(trial.needs(), Some(AskedOf::StateAtSwap));
        let only_migrated = vec![
            (Succeeds(3), Step::GoOn),
            (Replaced, Step::GoOn),
            (Migrated, Step::GoOn),
            (Succeeds(4), Step::GoOn),
            (trap(), BEFORE),
            (Stands, Step::KeepAndFall),
        ];
        assert_eq!(check(RULES, only_migrated).fell().map(|fall| fall.lost_turns), Some(4));
    }

    #[test]
    fn a_message_that_nobody_can_process_is_a_dead_letter_and_counts_against_nobody() {
        let twice = vec![(trap(), PRESENT), (FailsToo, AT_SWAP), (FailsToo, Step::DeadLetter)];
        assert_eq!(check(RULES, twice).failures(), 0);
        // With the same state there is nothing more to ask.
        let once = vec![(timeout(), PRESENT), (FailsTooOnSameState, Step::DeadLetter)];
        assert_eq!(check(RULES, once).failures(), 0);
    }

    #[test]
    fn a_message_of_the_judge_is_never_put_to_it() {
        let kind = FailureKind::Trap("x".into());
        let trial = check(RULES, vec![(FailsOnJudged(kind), Step::DeadLetter)]);
        assert_eq!(trial.failures(), 0);
    }

    #[test]
    fn a_judge_that_cannot_be_had_counts_against_nobody() {
        let trial = check(RULES, vec![(trap(), PRESENT), (NoJudge, Step::DeadLetter)]);
        assert_eq!(trial.failures(), 0);
    }

    #[test]
    fn guest_errors_count_unless_they_are_to_be_ignored() {
        check(RULES, vec![(guest(), PRESENT), (Stands, Step::Commit)]);
        let ignoring = TrialRules { guest_errors: GuestErrors::Ignore, ..RULES };
        check(ignoring, vec![(guest(), Step::DeadLetter), (trap(), PRESENT)]);
    }

    #[test]
    fn another_generation_begins_anew_but_for_the_state_that_was_put_aside() {
        let cases = vec![
            (Succeeds(999), Step::GoOn),
            (timeout(), PRESENT),
            (Stands, Step::CommitAndFall),
            (Replaced, Step::GoOn),
            (Succeeds(999), Step::GoOn),
            (trap(), PRESENT),
            (FailsToo, AT_SWAP),
            (Stands, Step::KeepAndFall),
        ];
        let trial = check(RULES, cases);
        assert_eq!(trial.fell().map(|fall| fall.lost_turns), Some(999 + 1 + 999));
    }

    #[test]
    fn who_is_to_go_back_does_not_pass_and_asks_nobody() {
        let cases = vec![
            (timeout(), PRESENT),
            (Stands, Step::CommitAndFall),
            (trap(), Step::DeadLetter),
            (Succeeds(1_000), Step::GoOn),
            (Time(60), Step::GoOn),
        ];
        check(RULES, cases);
    }
}
