//! Tells the service manager's watchdog that the daemon gets on, once it is proven.
//!
//! A thread that only pings would go on pinging in a daemon whose actors are stuck. So
//! a ping goes out only when the actors' own threads have answered, or ended a turn,
//! since the last one, and the part that looks at disk is still there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use reflowd_runtime::{System, panic::Boundary};
use tokio::{runtime::Handle, time};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{error, info};

use crate::systemd::Notifier;

/// Looks in each period in which the manager wants to hear something.
const LOOKS: u32 = 4;

/// What can be seen of the daemon's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    /// How often the actors' threads have answered.
    beats: u64,
    /// Turns that have ended.
    turns: u64,
    /// Whether disk is looked at.
    looks: bool,
}

impl Signs {
    /// Whether the daemon has got on since these were seen.
    fn show_progress_since(self, before: Self) -> bool {
        self.looks && (self.beats != before.beats || self.turns != before.turns)
    }
}

/// What has to get on for the daemon to count as alive.
pub(crate) struct Watched {
    /// The actors.
    pub(crate) system: System,
    /// Where their turns run.
    pub(crate) turns: Handle,
    /// The part that looks at disk; it holds a token for as long as it runs.
    pub(crate) looking: TaskTracker,
}

impl Watched {
    /// A token for the part that looks at disk.
    pub(crate) fn looks(&self) -> TaskTrackerToken {
        self.looking.token()
    }

    /// Pings each time that progress is proven, until stopped. Ends at once where the
    /// service manager has no watchdog.
    pub(crate) async fn watch(
        self,
        notifier: Notifier,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) {
        let Some(period) = notifier.watchdog() else { return };
        info!(?period, "the service manager's watchdog is fed");
        let every = period / LOOKS;
        let beats = Arc::new(AtomicU64::new(0));
        let (beating, until) = (Arc::clone(&beats), stopping.clone());
        let beat = async move { Boundary::Watchdog.keep(|| beat(&beating, every, &until)).await };
        tasks.spawn_on(beat, &self.turns);
        Boundary::Watchdog.keep(|| self.ping(&notifier, &beats, &stopping)).await;
    }

    /// Pings each time that progress is proven.
    async fn ping(&self, notifier: &Notifier, beats: &AtomicU64, stopping: &CancellationToken) {
        let Some(period) = notifier.watchdog() else { return };
        let every = period / LOOKS;
        let (mut before, mut silent) = (Signs::default(), 0);
        let mut ticks = time::interval(every);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let signs = Signs {
                beats: beats.load(Ordering::Relaxed),
                turns: self.system.turns_ended(),
                looks: !self.looking.is_empty(),
            };
            if signs.show_progress_since(before) {
                notifier.alive();
                Boundary::Watchdog.works();
                (before, silent) = (signs, 0);
                continue;
            }
            silent += 1;
            if silent == LOOKS - 1 {
                error!(?signs, "no progress: the service manager's watchdog is about to end this");
            }
        }
    }
}

/// Answers for the actors' threads.
async fn beat(beats: &AtomicU64, every: Duration, stopping: &CancellationToken) {
    let mut ticks = time::interval(every);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = ticks.tick() => {
                beats.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: (u64, u64), now: (u64, u64, bool), progress: bool) {
        let before = Signs { beats: before.0, turns: before.1, looks: true };
        let now = Signs { beats: now.0, turns: now.1, looks: now.2 };
        assert_eq!(now.show_progress_since(before), progress, "{before:?} {now:?}");
    }

    #[test]
    fn progress_is_an_answer_or_a_turn_that_has_ended() {
        check((1, 1), (2, 1, true), true);
        check((1, 1), (1, 2, true), true);
        check((1, 1), (1, 1, true), false);
        // An actor that is gone takes its count with it.
        check((1, 9), (1, 0, true), true);
        check((1, 1), (2, 2, false), false);
    }
}
