//! Spaces messages evenly.
//!
//! Pure: it is told the time, and says until when to wait.

use std::time::Duration;

use tokio::time::Instant;

/// How far behind its plan a pace may fall and still catch up.
///
/// Timers have steps of a millisecond, so without any slack a rate above a
/// thousand could not be kept. What is further behind than this was held up by a
/// full mailbox, and is not made up for.
const SLACK: Duration = Duration::from_millis(10);

/// A plan of when the next message may leave.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Option<Instant>,
}

impl Pace {
    /// A pace of `rate` messages a second, which must be above zero.
    pub(super) fn new(rate: f64) -> Self {
        Self { gap: Duration::from_secs_f64(1.0 / rate), next: None }
    }

    /// When the next message may leave, which may be in the past.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let planned = self.next.unwrap_or(now);
        let due = if planned + SLACK < now { now } else { planned };
        self.next = Some(due + self.gap);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When messages leave that are asked for at `asked` milliseconds.
    #[track_caller]
    fn check(rate: f64, asked: &[u64], leave: &[u128]) {
        let zero = Instant::now();
        let mut pace = Pace::new(rate);
        let times = asked.iter().map(|at| pace.next(zero + Duration::from_millis(*at)));
        let times: Vec<_> = times.map(|at| (at - zero).as_millis()).collect();
        assert_eq!(times, leave);
    }

    #[test]
    fn messages_leave_evenly() {
        check(10.0, &[0, 0, 0], &[0, 100, 200]);
        // A little late each time: the plan stands, and there is no drift.
        check(10.0, &[0, 102, 205, 301], &[0, 100, 200, 300]);
    }

    #[test]
    fn nothing_is_made_up_for_after_being_held_up() {
        check(10.0, &[0, 1_000, 1_000, 1_000], &[0, 1_000, 1_100, 1_200]);
    }

    #[test]
    fn a_rate_above_the_clock_is_kept() {
        check(10_000.0, &[0, 1, 1, 1, 1], &[0, 0, 0, 0, 0]);
    }
}
