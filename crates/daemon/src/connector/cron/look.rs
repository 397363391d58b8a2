//! A schedule against the wall clock.
//!
//! Pure: it is told the time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::schedule::{Cadence, Due, Schedule};

/// A step back of this much or more is a correction of a wrong clock, as in cron(8): jobs at fixed
/// times follow the new time. After a smaller step no job runs twice.
const CORRECTION: SignedDuration = SignedDuration::from_hours(3);

/// The same threshold for jobs that run at intervals. Smaller steps are ordinary clock discipline
/// and repeat no moment.
const STEP: SignedDuration = SignedDuration::from_mins(1);

/// The outcome of a look at the clock.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ClockLook {
    /// Nothing is due for that long.
    Wait(Duration),
    /// A tick.
    Due(Due),
    /// The clock was set back: the next look uses the new time.
    SetBack { by: SignedDuration },
    /// The schedule never fires again.
    Never,
}

/// A schedule that is being waited for.
pub(super) struct Watch<'a> {
    schedule: &'a Schedule,
    /// The last moment that had its tick, or the start of the wait.
    last: Timestamp,
    /// The latest time seen since the clock was last set back.
    latest: Timestamp,
    /// The moment after `last`, once computed.
    next: Option<Timestamp>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(schedule: &'a Schedule, now: Timestamp) -> Self {
        Self { schedule, last: now, latest: now, next: None }
    }

    pub(super) fn look(&mut self, now: Timestamp) -> ClockLook {
        let by = now.duration_until(self.latest);
        let taken = match self.schedule.kind() {
            Cadence::Often => STEP,
            Cadence::Fixed => CORRECTION,
        };
        if by >= taken {
            *self = Self::new(self.schedule, now);
            return ClockLook::SetBack { by };
        }
        self.latest = self.latest.max(now);
        let Some(next) = self.next.or_else(|| self.schedule.after(self.last)) else {
            return ClockLook::Never;
        };
        self.next = Some(next);
        if let Ok(left) = Duration::try_from(now.duration_until(next))
            && !left.is_zero()
        {
            return ClockLook::Wait(left);
        }
        let due = self.schedule.due(next, now);
        (self.last, self.next) = (due.at, None);
        ClockLook::Due(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome of looks at these times: the moments of ticks, and `set back`.
    #[track_caller]
    fn check(text: &str, looks: &[&str], expected: &[&str]) {
        let schedule = Schedule::new(text, None).unwrap();
        let at = |text: &str| format!("2026-{text}Z").parse::<Timestamp>().unwrap();
        let mut watch = Watch::new(&schedule, at(looks[0]));
        let mut got = Vec::new();
        for now in looks {
            loop {
                match watch.look(at(now)) {
                    ClockLook::Wait(_) | ClockLook::Never => break,
                    ClockLook::Due(due) => got.push(due.at.strftime("%m-%dT%H:%M:%S").to_string()),
                    ClockLook::SetBack { .. } => got.push("set back".into()),
                }
            }
        }
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn a_clock_that_was_a_day_ahead_stops_nothing() {
        for text in ["* * * * *", "0 * * * *"] {
            check(
                text,
                &["06-02T11:59:30", "06-02T12:00:10", "06-01T11:59:40", "06-01T12:00:00"],
                &["06-02T12:00:00", "set back", "06-01T12:00:00"],
            );
        }
        check(
            "0 12 * * *",
            &["06-02T11:59:30", "06-02T12:00:10", "06-01T11:59:40", "06-01T12:00:00"],
            &["06-02T12:00:00", "set back", "06-01T12:00:00"],
        );
        check(
            "* * * * * *",
            &["06-02T12:00:00", "06-02T12:00:01", "06-01T12:00:01", "06-01T12:00:02"],
            &["06-02T12:00:01", "set back", "06-01T12:00:02"],
        );
    }

    #[test]
    fn a_job_at_a_fixed_time_is_not_run_twice_when_the_clock_goes_back_a_little() {
        check(
            "0 12 * * *",
            &[
                "06-01T11:59:59",
                "06-01T12:00:00",
                "06-01T09:00:01",
                "06-01T12:00:05",
                "06-02T12:00:00",
            ],
            &["06-01T12:00:00", "06-02T12:00:00"],
        );
        // Three hours are a correction.
        check(
            "0 12 * * *",
            &["06-01T11:59:59", "06-01T12:00:00", "06-01T09:00:00", "06-01T12:00:05"],
            &["06-01T12:00:00", "set back", "06-01T12:00:00"],
        );
    }

    #[test]
    fn a_job_that_runs_often_goes_on_when_the_clock_goes_back_a_little() {
        check(
            "*/10 * * * *",
            &["06-01T11:59:59", "06-01T12:00:00", "06-01T11:30:00", "06-01T11:40:00"],
            &["06-01T12:00:00", "set back", "06-01T11:40:00"],
        );
        // A clock that is kept right gives no moment twice.
        check(
            "* * * * * *",
            &[
                "06-01T12:00:00",
                "06-01T12:00:01",
                "06-01T12:00:00.5",
                "06-01T12:00:01.2",
                "06-01T12:00:02",
            ],
            &["06-01T12:00:01", "06-01T12:00:02"],
        );
        // Nor do many small steps hold it up.
        check(
            "* * * * *",
            &[
                "06-01T11:59:59",
                "06-01T12:00:00",
                "06-01T11:59:30",
                "06-01T11:59:00",
                "06-01T12:00:00",
            ],
            &["06-01T12:00:00", "set back", "06-01T12:00:00"],
        );
    }

    #[test]
    fn a_clock_that_jumps_forward_gives_one_tick() {
        check(
            "0 * * * *",
            &["06-01T11:59:59", "06-03T12:30:00", "06-03T13:00:00"],
            &["06-03T12:00:00", "06-03T13:00:00"],
        );
    }
}
