//! When to look at the disk.
//!
//! An event says that something is happening, not that it is over. So a look
//! waits until events have been quiet for a while, but never long: a folder in
//! which something always happens must still be looked at. A look also happens
//! every so often without any event, because events get lost.
//!
//! Pure: it is told the time, and never sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// The longest that a burst of events may put off a look.
///
/// Long enough for a copy of a few modules to be one burst, short enough that
/// a file which is written to all day does not hide the others.
const MAX_BURST: Duration = Duration::from_secs(1);

/// Why it is time to look at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Somebody asked.
    Demand,
    /// Something happened in a watched folder, and it has been quiet since.
    Events,
    /// An earlier look found something that only a later one can decide.
    Again,
    /// It has been a while.
    Rescan,
}

/// Times of looks at the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long events must have been quiet.
    pub quiet: Duration,
    /// How often to look without any event.
    pub rescan: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(100), rescan: Duration::from_secs(5) }
    }
}

/// Turns events and demands into times to look.
#[derive(Debug)]
pub struct Settle {
    pace: Pace,
    burst: Option<Burst>,
    demanded: bool,
    again: Option<Instant>,
    rescan: Instant,
}

/// Events without a look in between.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Settle {
    /// Nothing has happened yet; the first rescan is due at once.
    #[must_use]
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, burst: None, demanded: false, again: None, rescan: now }
    }

    /// Something happened.
    pub fn event(&mut self, now: Instant) {
        let first = self.burst.map_or(now, |burst| burst.first);
        self.burst = Some(Burst { first, last: now });
    }

    /// Somebody asked for a look.
    pub fn demand(&mut self) {
        self.demanded = true;
    }

    /// The last look wants another at `at`. The earliest such wish counts.
    pub fn again(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |before| before.min(at)));
    }

    /// Other times from now on.
    pub fn set_pace(&mut self, pace: Pace, now: Instant) {
        self.pace = pace;
        self.rescan = self.rescan.min(now + pace.rescan);
    }

    /// Whether it is time to look, and why. The most telling reason wins.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Wake> {
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.demanded {
            Some(Wake::Demand)
        } else if over(self.burst_ends()) {
            Some(Wake::Events)
        } else if over(self.again) {
            Some(Wake::Again)
        } else if over(Some(self.rescan)) {
            Some(Wake::Rescan)
        } else {
            None
        }
    }

    /// When to ask [`due`](Self::due) again, if nothing happens before.
    #[must_use]
    pub fn next(&self) -> Instant {
        [self.burst_ends(), self.again].into_iter().flatten().fold(self.rescan, Instant::min)
    }

    /// A look begins now, and sees all that has happened until now.
    pub fn look(&mut self, now: Instant) {
        self.burst = None;
        self.demanded = false;
        self.again = None;
        self.rescan = now + self.pace.rescan;
    }

    fn burst_ends(&self) -> Option<Instant> {
        self.burst.map(|Burst { first, last }| (last + self.pace.quiet).min(first + MAX_BURST))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Plays events at those milliseconds, looking whenever it is due, and
    /// compares the looks until `until`.
    #[track_caller]
    fn check(events: &[u64], until: u64, looks: &[(u64, Wake)]) {
        let start = Instant::now();
        let pace = Pace { quiet: Duration::from_millis(100), rescan: Duration::from_secs(5) };
        let mut settle = Settle::new(pace, start);
        settle.look(start);
        let mut seen = Vec::new();
        for ms in 0..=until {
            let now = start + Duration::from_millis(ms);
            if events.contains(&ms) {
                settle.event(now);
            }
            assert_eq!(settle.due(now).is_some(), settle.next() <= now, "at {ms}");
            if let Some(why) = settle.due(now) {
                settle.look(now);
                seen.push((ms, why));
            }
        }
        assert_eq!(seen, looks);
    }

    #[test]
    fn a_look_waits_for_quiet() {
        check(&[], 4999, &[]);
        check(&[10], 1000, &[(110, Wake::Events)]);
        check(&[10, 109], 1000, &[(209, Wake::Events)]);
        check(&[10, 60, 110, 300], 1000, &[(210, Wake::Events), (400, Wake::Events)]);
    }

    #[test]
    fn a_burst_puts_a_look_off_for_a_second_at_most() {
        let events: Vec<u64> = (0..50).map(|n| n * 50).collect();
        check(
            &events,
            3000,
            // 1000 is an event of the second burst, which begins with it: the
            // first ends at that very moment, having seen it.
            &[(1000, Wake::Events), (2050, Wake::Events), (2550, Wake::Events)],
        );
    }

    #[test]
    fn a_rescan_comes_without_events() {
        check(&[], 10_000, &[(5000, Wake::Rescan), (10_000, Wake::Rescan)]);
        check(&[1000], 6200, &[(1100, Wake::Events), (6100, Wake::Rescan)]);
    }

    #[test]
    fn a_demand_does_not_wait() {
        let now = Instant::now();
        let mut settle = Settle::new(Pace::default(), now);
        settle.look(now);
        settle.event(now);
        settle.demand();
        assert_eq!(settle.due(now), Some(Wake::Demand));
        settle.look(now);
        assert_eq!(settle.due(now), None);
    }

    #[test]
    fn the_earliest_wish_for_another_look_counts() {
        let now = Instant::now();
        let ms = |n| now + Duration::from_millis(n);
        let mut settle = Settle::new(Pace::default(), now);
        settle.look(now);
        settle.again(ms(300));
        settle.again(ms(200));
        settle.again(ms(400));
        assert_eq!(settle.next(), ms(200));
        assert_eq!(settle.due(ms(199)), None);
        assert_eq!(settle.due(ms(200)), Some(Wake::Again));
    }

    #[test]
    fn a_shorter_pace_applies_at_once() {
        let now = Instant::now();
        let mut settle = Settle::new(Pace::default(), now);
        settle.look(now);
        settle.set_pace(Pace { rescan: Duration::from_secs(1), ..Pace::default() }, now);
        assert_eq!(settle.due(now + Duration::from_secs(1)), Some(Wake::Rescan));
    }

    proptest! {
        #[test]
        fn a_look_comes_after_quiet_and_never_late(
            gaps in prop::collection::vec(0..400_u64, 1..40),
        ) {
            let start = Instant::now();
            let pace = Pace { rescan: Duration::from_secs(3600), ..Pace::default() };
            let mut settle = Settle::new(pace, start);
            settle.look(start);
            let mut events: Vec<Instant> = Vec::new();
            let mut now = start;
            for gap in gaps {
                let event = now + Duration::from_millis(gap);
                // All looks that are due before the event.
                while settle.next() < event {
                    now = settle.next();
                    prop_assert_eq!(settle.due(now), Some(Wake::Events));
                    let (first, last) = (events[0], *events.last().expect("it has a first"));
                    prop_assert!(now == last + pace.quiet || now == first + MAX_BURST);
                    prop_assert!(now <= last + pace.quiet && now <= first + MAX_BURST);
                    settle.look(now);
                    events.clear();
                }
                now = event;
                settle.event(now);
                events.push(now);
            }
            prop_assert!(settle.next() <= now + pace.quiet, "the last event is not forgotten");
        }
    }
}
