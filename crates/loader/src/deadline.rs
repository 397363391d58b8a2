//! One thread that ends turns at their deadline.
//!
//! Arming and disarming cost one lock each and wake nobody: the thread sleeps
//! until the earliest deadline that it knows, and is woken only for an earlier
//! one. Disarming tells whether the deadline had struck; both look at the same
//! map under the same lock, so a turn that is told "in time" is never hit later.

use std::{
    collections::BTreeMap,
    sync::OnceLock,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use reflowd_runtime::panic::Boundary;

/// How often a deadline strikes again while the turn goes on: the stroke may
/// have come just before the guest began to run, and then it has no effect.
const AGAIN: Duration = Duration::from_millis(5);

/// Ends a turn, from another thread. Must not wait.
pub(crate) type Stroke = Box<dyn Fn() + Send>;

/// A deadline that has been set. Dropping it disarms it.
pub(crate) struct Armed {
    clock: &'static Clock,
    key: Key,
}

type Key = (Instant, u64);

struct Clock {
    deadlines: Mutex<Deadlines>,
    earlier: Condvar,
}

#[derive(Default)]
struct Deadlines {
    /// By the time at which they were set to strike first.
    armed: BTreeMap<Key, Arm>,
    next: u64,
    /// Until when the thread sleeps; none while it sleeps without end.
    asleep_until: Option<Instant>,
}

struct Arm {
    stroke: Stroke,
    struck: bool,
}

/// Calls `stroke` at `at` and on, until the answer is disarmed or dropped.
pub(crate) fn arm(at: Instant, stroke: Stroke) -> Armed {
    static CLOCK: OnceLock<&'static Clock> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| {
        let clock: &'static Clock = Box::leak(Box::new(Clock {
            deadlines: Mutex::new(Deadlines::default()),
            earlier: Condvar::new(),
        }));
        std::thread::Builder::new()
            .name("deadlines".into())
            // A stroke that breaks must not leave the other turns without a deadline.
            .spawn(|| -> () { Boundary::Deadlines.keep_thread(|| clock.run()) })
            .expect("a thread can be started while the daemon starts its first turn");
        clock
    });
    let mut deadlines = clock.deadlines.lock();
    deadlines.next += 1;
    let key = (at, deadlines.next);
    deadlines.armed.insert(key, Arm { stroke, struck: false });
    if deadlines.asleep_until.is_none_or(|until| at < until) {
        clock.earlier.notify_one();
    }
    Armed { clock, key }
}

impl Armed {
    /// Ends the deadline. True if it has struck.
    pub(crate) fn disarm(self) -> bool {
        self.remove().is_some_and(|arm| arm.struck)
    }

    fn remove(&self) -> Option<Arm> {
        self.clock.deadlines.lock().armed.remove(&self.key)
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        drop(self.remove());
    }
}

impl Clock {
    fn run(&self) {
        let mut deadlines = self.deadlines.lock();
        loop {
            let now = Instant::now();
            let wake = deadlines.strike(now);
            Boundary::Deadlines.works();
            deadlines.asleep_until = wake;
            match wake {
                Some(at) => _ = self.earlier.wait_until(&mut deadlines, at),
                None => self.earlier.wait(&mut deadlines),
            }
        }
    }
}

impl Deadlines {
    /// Strikes what is due, and says when to look again.
    fn strike(&mut self, now: Instant) -> Option<Instant> {
        let due = (now, u64::MAX);
        let mut struck = false;
        for (_, arm) in self.armed.range_mut(..=due) {
            (arm.stroke)();
            arm.struck = true;
            struck = true;
        }
        let next = self.armed.range(due..).next().map(|((at, _), _)| *at);
        let again = struck.then(|| now + AGAIN);
        [next, again].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn striker() -> (Stroke, mpsc::Receiver<()>) {
        let (sender, strokes) = mpsc::sync_channel(1000);
        (Box::new(move || _ = sender.try_send(())), strokes)
    }

    #[test]
    fn a_deadline_strikes_until_it_is_disarmed() {
        let (stroke, strokes) = striker();
        let at = Instant::now() + Duration::from_millis(20);
        let armed = arm(at, stroke);
        let wait = Duration::from_secs(30);
        strokes.recv_timeout(wait).unwrap();
        assert!(Instant::now() >= at);
        strokes.recv_timeout(wait).expect("it strikes again");
        assert!(armed.disarm());
        while strokes.try_recv().is_ok() {}
        assert_eq!(strokes.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn what_is_due_strikes_and_strikes_again() {
        let mut deadlines = Deadlines::default();
        let start = Instant::now();
        let (stroke, strokes) = striker();
        let (later, later_strokes) = striker();
        let at = start + Duration::from_secs(1);
        let late = start + Duration::from_secs(9);
        assert_eq!(deadlines.strike(start), None);
        deadlines.armed.insert((at, 1), Arm { stroke, struck: false });
        deadlines.armed.insert((late, 2), Arm { stroke: later, struck: false });
        assert_eq!(deadlines.strike(start), Some(at));
        assert!(strokes.try_recv().is_err());
        assert_eq!(deadlines.strike(at), Some(at + AGAIN));
        assert_eq!(deadlines.strike(at + AGAIN), Some(at + AGAIN * 2));
        assert_eq!(strokes.try_iter().count(), 2);
        deadlines.armed.remove(&(at, 1));
        assert_eq!(deadlines.strike(at + AGAIN * 2), Some(late));
        assert_eq!(later_strokes.try_iter().count(), 0);
    }

    #[test]
    fn an_earlier_deadline_wakes_the_thread_that_waits_for_a_later_one() {
        let (late, late_strokes) = striker();
        let (early, early_strokes) = striker();
        let late = arm(Instant::now() + Duration::from_secs(3600), late);
        let early = arm(Instant::now() + Duration::from_millis(10), early);
        early_strokes.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(early.disarm());
        assert!(!late.disarm());
        assert!(late_strokes.try_recv().is_err());
    }
}
