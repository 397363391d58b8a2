//! Decides what follows from a failed turn.
//!
//! Pure: it is told what happened and never sleeps; the actor acts on the verdict.

use std::time::Duration;

use crate::{FailureKind, Settings};

/// Messages in a row without a success after which an actor gives up.
pub(crate) const FRUITLESS: u32 = 10;

/// The pause before the first retry of a message; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(50);

/// The longest pause between two attempts at anything.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The pause before an actor that gave up, or a source that failed, tries again;
/// doubled each time.
const FIRST_OUTAGE: Duration = Duration::from_secs(1);

/// Remembers an actor's recent failures and judges the next one.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    /// Failed attempts at the message in hand.
    attempts: u32,
    /// Messages given up since the last success.
    fruitless: u32,
    /// Times in a row that the actor gave up.
    outages: u32,
    /// Whether it gave up since the last success.
    gave_up: bool,
    /// Why, as it was last told.
    told: Option<String>,
}

/// What to do about a failed turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Try the same message again after a pause.
    Retry { after: Duration },
    /// The message has had its chances. `rest` is the pause where the actor gives up.
    GiveUp { attempts: u32, rest: Option<Duration> },
    /// The guest's own error: an answer, not an accident.
    Answer,
    /// Nothing is wrong with the message: keep it and try again after a pause.
    Keep { rest: Duration },
}

impl Supervisor {
    /// A message was processed. Tells whether the actor had given up before.
    pub(crate) fn succeeded(&mut self) -> bool {
        std::mem::take(self).gave_up
    }

    /// The operator, or a new engine, gives the actor a fresh start.
    pub(crate) fn forgive(&mut self) {
        *self = Self { gave_up: self.gave_up, ..Self::default() };
    }

    /// Whether the actor gave up since the last success.
    pub(crate) fn has_given_up(&self) -> bool {
        self.gave_up
    }

    /// Whether that the actor gave up, and why, is to be told: an outage is told when it
    /// begins and when its reason changes, not each time that somebody tries.
    pub(crate) fn is_news(&mut self, why: &str) -> bool {
        if self.told.as_deref() == Some(why) {
            return false;
        }
        self.told = Some(why.to_owned());
        true
    }

    /// How often the message in hand has failed.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A turn failed. `answered` tells whether the `error` outport has a wire.
    pub(crate) fn judge(
        &mut self,
        kind: &FailureKind,
        settings: &Settings,
        answered: bool,
    ) -> Verdict {
        if let FailureKind::Unavailable(setback) = kind {
            let rest = match setback.pause {
                Some(pause) => self.asked_to_wait(pause),
                None => self.outage(),
            };
            return Verdict::Keep { rest };
        }
        self.attempts += 1;
        let retries = match kind {
            FailureKind::Guest(_) | FailureKind::Refused(_) if answered => {
                self.attempts = 0;
                self.fruitless = 0;
                return Verdict::Answer;
            }
            FailureKind::Trap(_) | FailureKind::Remote(_) => settings.retries,
            FailureKind::Timeout(_) => settings.retries_timeout,
            FailureKind::Turn(_)
            | FailureKind::Guest(_)
            | FailureKind::Refused(_)
            | FailureKind::Unavailable(_) => 0,
        };
        if self.attempts <= retries {
            let after = BACKOFF.saturating_mul(1 << (self.attempts - 1).min(16)).min(LONGEST_PAUSE);
            let after = after.max(kind.pause().unwrap_or_default());
            return Verdict::Retry { after };
        }
        let attempts = std::mem::take(&mut self.attempts);
        self.fruitless += 1;
        let rest = (self.fruitless >= FRUITLESS).then(|| self.outage());
        Verdict::GiveUp { attempts, rest }
    }

    /// Obeys a pause that the other side has asked for. It says nothing about how long an
    /// outage will last, so later pauses do not grow because of it.
    fn asked_to_wait(&mut self, pause: Duration) -> Duration {
        self.gave_up = true;
        pause.max(FIRST_OUTAGE)
    }

    /// No engine can be made, a connector has nothing to talk to, or a source failed:
    /// how long to rest.
    pub(crate) fn outage(&mut self) -> Duration {
        let rest = FIRST_OUTAGE.saturating_mul(1 << self.outages.min(16)).min(LONGEST_PAUSE);
        self.outages += 1;
        self.gave_up = true;
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Setback;

    fn trap() -> FailureKind {
        FailureKind::Trap("x".into())
    }

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_trap_is_retried_with_backoff_and_then_given_up() {
        let (mut s, settings) = (Supervisor::default(), Settings::default());
        assert_eq!(s.judge(&trap(), &settings, false), Verdict::Retry { after: millis(50) });
        assert_eq!(s.judge(&trap(), &settings, false), Verdict::Retry { after: millis(100) });
        let given_up = Verdict::GiveUp { attempts: 3, rest: None };
        assert_eq!(s.judge(&trap(), &settings, false), given_up);
        // The next message has all its chances.
        assert_eq!(s.judge(&trap(), &settings, false), Verdict::Retry { after: millis(50) });
    }

    #[test]
    fn a_time_out_is_not_retried_unless_asked_for() {
        let (mut s, mut settings) = (Supervisor::default(), Settings::default());
        let kind = FailureKind::Timeout(millis(1));
        let given_up = Verdict::GiveUp { attempts: 1, rest: None };
        assert_eq!(s.judge(&kind, &settings, false), given_up);
        settings.retries_timeout = 1;
        assert_eq!(s.judge(&kind, &settings, false), Verdict::Retry { after: millis(50) });
    }

    #[test]
    fn ten_messages_without_success_are_enough() {
        let (mut s, settings) = (Supervisor::default(), Settings::default());
        let kind = FailureKind::Turn("x".into());
        for _ in 0..9 {
            let verdict = s.judge(&kind, &settings, false);
            assert_eq!(verdict, Verdict::GiveUp { attempts: 1, rest: None });
        }
        let verdict = |rest| Verdict::GiveUp { attempts: 1, rest: Some(Duration::from_secs(rest)) };
        for rest in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(s.judge(&kind, &settings, false), verdict(rest));
        }
        s.succeeded();
        assert_eq!(s.judge(&kind, &settings, false), Verdict::GiveUp { attempts: 1, rest: None });
    }

    #[test]
    fn an_outage_is_told_once_for_each_reason() {
        let mut s = Supervisor::default();
        assert!(!s.succeeded());
        s.outage();
        assert!(s.is_news("refused"));
        s.outage();
        assert!(!s.is_news("refused"));
        assert!(s.is_news("busy"));
        // Whoever gave it another chance is told what came of it.
        s.forgive();
        assert!(s.is_news("busy"));
        assert!(s.succeeded());
        assert!(!s.succeeded());
        assert!(s.is_news("busy"));
    }

    #[test]
    fn a_guest_error_that_somebody_hears_is_an_answer() {
        let (mut s, settings) = (Supervisor::default(), Settings::default());
        for kind in [FailureKind::Guest("x".into()), FailureKind::Refused("x".into())] {
            assert_eq!(s.judge(&kind, &settings, true), Verdict::Answer);
            let given_up = Verdict::GiveUp { attempts: 1, rest: None };
            assert_eq!(s.judge(&kind, &settings, false), given_up);
        }
    }

    #[test]
    fn what_is_unavailable_keeps_its_message() {
        let (mut s, settings) = (Supervisor::default(), Settings::default());
        let kind = FailureKind::Unavailable("disk full".into());
        for rest in [1, 2, 4] {
            let keep = Verdict::Keep { rest: Duration::from_secs(rest) };
            assert_eq!(s.judge(&kind, &settings, true), keep);
        }
    }

    #[test]
    fn a_pause_that_is_asked_for_is_kept_and_lets_no_other_grow() {
        let (mut s, settings) = (Supervisor::default(), Settings::default());
        let busy = |pause| Setback { why: "busy".into(), pause: Some(pause) };
        let keep = |rest| Verdict::Keep { rest };
        for (pause, rest) in [(8_000, 8_000), (300_000, 300_000), (0, 1_000), (8_000, 8_000)] {
            let kind = FailureKind::Unavailable(busy(millis(pause)));
            assert_eq!(s.judge(&kind, &settings, true), keep(millis(rest)), "{pause}");
        }
        let away = FailureKind::Unavailable("refused".into());
        assert_eq!(s.judge(&away, &settings, true), keep(millis(1_000)));
        assert!(s.succeeded(), "an actor that waits has to recover");
        // An attempt that counts waits as long as it is asked to.
        let broken = FailureKind::Remote(busy(millis(8_000)));
        let retry = |after| Verdict::Retry { after: millis(after) };
        assert_eq!(s.judge(&broken, &settings, true), retry(8_000));
        let broken = FailureKind::Remote(busy(millis(10)));
        assert_eq!(s.judge(&broken, &settings, true), retry(100));
    }
}
