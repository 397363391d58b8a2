//! When to report unreadable lines.
//!
//! Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

/// The pause after the first report; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: an unreadable file must not fill the log and the events.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Unreadable lines that have not been reported.
///
/// Each is counted in exactly one report: the first is reported at once, later ones at the end of
/// the pause in which they come.
#[derive(Debug)]
pub(super) struct UnreadableLines {
    untold: Option<Untold>,
    /// No report before that.
    quiet_until: Option<Instant>,
    pause: Duration,
}

/// A number of lines, and the last of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    pub(super) lines: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    /// The fault of the last one.
    pub(super) why: String,
}

impl Default for UnreadableLines {
    fn default() -> Self {
        Self { untold: None, quiet_until: None, pause: FIRST_PAUSE }
    }
}

impl UnreadableLines {
    /// Adds a line by its number.
    pub(super) fn add(&mut self, number: u64, why: String) {
        let (lines, first) = self.untold.as_ref().map_or((0, number), |u| (u.lines, u.first));
        self.untold = Some(Untold { lines: lines + 1, first, last: number, why });
    }

    /// Returns the report that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<Untold> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        let Some(untold) = self.untold.take() else {
            // No line came in the whole pause.
            (self.quiet_until, self.pause) = (None, FIRST_PAUSE);
            return None;
        };
        self.quiet_until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Some(untold)
    }

    /// Returns the lines not yet reported, at the end.
    pub(super) fn rest(&mut self) -> Option<Untold> {
        self.untold.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reports at each second, for lines that come at these.
    #[track_caller]
    fn check(came: &[(u64, u64)], told: &[(u64, u64)]) {
        let zero = Instant::now();
        let mut unreadable = UnreadableLines::default();
        let mut got = Vec::new();
        let mut number = 0;
        for second in 0..200 {
            for _ in 0..came.iter().filter(|(at, _)| *at == second).map(|(_, n)| *n).sum() {
                number += 1;
                unreadable.add(number, "it is none".into());
            }
            let due = unreadable.due(zero + Duration::from_secs(second));
            got.extend(due.map(|untold| (second, untold.lines)));
        }
        assert_eq!(got, told);
        assert_eq!(unreadable.rest(), None);
    }

    #[test]
    fn every_line_is_told_of_and_the_first_at_once() {
        check(&[], &[]);
        check(&[(0, 5)], &[(0, 5)]);
        check(&[(0, 1), (0, 4)], &[(0, 5)]);
        // Lines after the first wait for the pause to end.
        check(&[(0, 1), (1, 1), (2, 4)], &[(0, 1), (1, 1), (3, 4)]);
    }

    #[test]
    fn many_are_told_of_ever_more_rarely() {
        let always: Vec<_> = (0..130).map(|second| (second, 10)).collect();
        check(
            &always,
            &[
                (0, 10),
                (1, 10),
                (3, 20),
                (7, 40),
                (15, 80),
                (31, 160),
                (63, 320),
                (123, 600),
                (183, 60),
            ],
        );
    }

    #[test]
    fn after_a_pause_without_any_they_are_told_of_at_once_again() {
        check(&[(0, 1), (1, 1), (10, 1), (11, 1)], &[(0, 1), (1, 1), (10, 1), (11, 1)]);
    }
}
