//! What an actor counts of itself, for metrics and `ps`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A counter that is written by one task and read by anyone.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations in buckets whose bounds are powers of two of a microsecond, as
/// many as reach from 1 µs to about a minute.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; Self::BUCKETS],
    nanos: AtomicU64,
}

impl Histogram {
    const BUCKETS: usize = 28;

    /// Adds one duration.
    pub(crate) fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let micros = nanos / 1_000;
        // The bucket `n` holds what is at most 2^n microseconds.
        let bucket = (u64::BITS - micros.saturating_sub(1).leading_zeros()) as usize;
        self.buckets[bucket.min(Self::BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Upper bounds in seconds with the number of durations in each bucket; the last has no bound.
    #[must_use]
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let mut micros = 0.5f64;
        let mut bound = || {
            micros *= 2.0;
            micros / 1e6
        };
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let mut buckets: Vec<_> = counts.map(|count| (bound(), count)).collect();
        if let Some(last) = buckets.last_mut() {
            last.0 = f64::INFINITY;
        }
        buckets
    }

    /// Adds all durations of another.
    fn add(&self, other: &Self) {
        for (bucket, more) in self.buckets.iter().zip(&other.buckets) {
            bucket.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.nanos.fetch_add(other.nanos.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// How many durations there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Their sum in seconds.
    #[must_use]
    pub fn sum(&self) -> f64 {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) }
    }
}

/// What has counted against an actor's `host_memory` in its turns. Written by one task.
#[derive(Debug, Default)]
pub struct HostMemoryMeter {
    most: AtomicU64,
    refused: Counter,
}

impl HostMemoryMeter {
    /// Notes a turn in which the host has held at most so many bytes, and has refused to
    /// hold more so many times.
    pub fn note(&self, most: u64, refused: u64) {
        if most > self.most() {
            self.most.store(most, Ordering::Relaxed);
        }
        if refused > 0 {
            self.refused.add(refused);
        }
    }

    /// The most bytes that were held in one turn.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// How often there was no room for more.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }
}

/// All that one actor counts, but its mailbox and wires, which count for themselves.
#[derive(Debug, Default)]
pub struct Meters {
    /// Turns that succeeded.
    pub turns_ok: Counter,
    /// Turns that trapped.
    pub turns_trap: Counter,
    /// Turns that ran into their deadline.
    pub turns_timeout: Counter,
    /// Turns that ended with something that is no result.
    pub turns_error: Counter,
    /// Turns in which the guest returned an error.
    pub turns_guest_error: Counter,
    /// Turns of connectors whose other side was not there, and runs of sources that failed.
    pub turns_unavailable: Counter,
    /// Turns of connectors whose other side refused the message.
    pub turns_refused: Counter,
    /// Wall clock of a turn.
    pub turn_seconds: Histogram,
    /// From a message's arrival in the mailbox to its turn.
    pub wait_seconds: Histogram,
    /// The pause that each swap put on its mailbox, if that had messages in it: up to
    /// the first turn of the new generation, from the moment at which there could have
    /// been a turn without the swap. That is the latest of: the end of the old
    /// generation's last turn; the end of whatever else kept the actor from its
    /// messages, as an operator's pause, a rest or a full mailbox behind it; and the
    /// arrival of what the first turn takes.
    pub swap_pause_seconds: Histogram,
    /// Swaps.
    pub swaps: Counter,
    /// Engines replaced by others of the same generation.
    pub restarts: Counter,
    /// Generations that passed their trial.
    pub trials_passed: Counter,
    /// Messages that the judge of a generation on trial was asked about.
    pub opinions: Counter,
    /// Swaps that put a former generation back.
    pub rollbacks: Counter,
    /// Messages that left by a port without a wire.
    pub unrouted: Counter,
    /// Items that a source has read and that are not valid messages.
    pub unreadable: Counter,
    /// Milliseconds spent waiting for full mailboxes.
    pub blocked_millis: Counter,
    /// Messages that did not fit a tap whose reader was slow.
    pub tap_skipped: Counter,
    /// What the host held for its turns, which take note of it themselves.
    pub host_memory: Arc<HostMemoryMeter>,
}

impl Meters {
    /// Adds all that another actor has counted.
    pub(crate) fn add(&self, other: &Self) {
        let Self {
            turns_ok,
            turns_trap,
            turns_timeout,
            turns_error,
            turns_guest_error,
            turns_unavailable,
            turns_refused,
            turn_seconds,
            wait_seconds,
            swap_pause_seconds,
            swaps,
            restarts,
            trials_passed,
            opinions,
            rollbacks,
            unrouted,
            unreadable,
            blocked_millis,
            tap_skipped,
            host_memory,
        } = other;
        self.turns_ok.add(turns_ok.get());
        self.turns_trap.add(turns_trap.get());
        self.turns_timeout.add(turns_timeout.get());
        self.turns_error.add(turns_error.get());
        self.turns_guest_error.add(turns_guest_error.get());
        self.turns_unavailable.add(turns_unavailable.get());
        self.turns_refused.add(turns_refused.get());
        self.turn_seconds.add(turn_seconds);
        self.wait_seconds.add(wait_seconds);
        self.swap_pause_seconds.add(swap_pause_seconds);
        self.swaps.add(swaps.get());
        self.restarts.add(restarts.get());
        self.trials_passed.add(trials_passed.get());
        self.opinions.add(opinions.get());
        self.rollbacks.add(rollbacks.get());
        self.unrouted.add(unrouted.get());
        self.unreadable.add(unreadable.get());
        self.blocked_millis.add(blocked_millis.get());
        self.tap_skipped.add(tap_skipped.get());
        self.host_memory.note(host_memory.most(), host_memory.refused());
    }

    /// Turns that did not succeed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.turns_trap.get()
            + self.turns_timeout.get()
            + self.turns_error.get()
            + self.turns_guest_error.get()
            + self.turns_unavailable.get()
            + self.turns_refused.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(micros: u64, bound: f64) {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(micros));
        let filled: Vec<_> = histogram.buckets().into_iter().filter(|(_, n)| *n > 0).collect();
        assert_eq!(filled, [(bound, 1)], "{micros} µs");
    }

    #[test]
    fn a_bucket_holds_what_is_at_most_its_bound() {
        check(0, 1e-6);
        check(1, 1e-6);
        check(2, 2e-6);
        check(3, 4e-6);
        check(4, 4e-6);
        check(1_000, 1.024e-3);
        check(u64::MAX / 1_000, f64::INFINITY);
    }
}
