//! What all queues of a system may hold together.
//!
//! Each mailbox and each wire has a share of the budget and tells of it in grains, so
//! that most messages touch no counter that other threads write too. The sum is off by
//! less than a grain for each queue that is not empty, and exact for those that are.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio::sync::watch;

/// What a queue may have taken or given back without telling, in bytes.
const GRAIN: i64 = 16 << 10;

/// Bytes that a message takes beside what it carries.
const ENVELOPE: i64 = 256;

/// Bytes that all queues of a system may hold together.
///
/// Over it, nothing enters from outside: sources wait and senders are refused. What is
/// inside goes on, so that it becomes less. Messages enter again once a tenth is free.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicI64,
    used: AtomicI64,
    over: watch::Sender<bool>,
}

impl Default for Budget {
    /// One that is never used up.
    fn default() -> Self {
        Self {
            limit: AtomicI64::new(i64::MAX),
            used: AtomicI64::new(0),
            over: watch::Sender::new(false),
        }
    }
}

impl Budget {
    /// Sets what all queues may hold, in bytes.
    pub fn set_limit(&self, bytes: u64) {
        self.limit.store(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        self.look();
    }

    /// What all queues may hold, in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed).unsigned_abs()
    }

    /// What they hold, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        u64::try_from(self.used.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether nothing enters.
    #[must_use]
    pub fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Tells whenever that changes.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// Returns when messages may enter.
    pub(crate) async fn room(&self) {
        // The sender lives as long as the budget.
        _ = self.watch().wait_for(|over| !over).await;
    }

    fn moved(&self, bytes: i64) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if is_over(false, used, self.limit.load(Ordering::Relaxed)) || self.is_over() {
            self.look();
        }
    }

    /// Looks again, under the lock of what is shown, so that the last look is right.
    fn look(&self) {
        self.over.send_if_modified(|over| {
            let used = self.used.load(Ordering::Relaxed);
            let now = is_over(*over, used, self.limit.load(Ordering::Relaxed));
            mem::replace(over, now) != now
        });
    }
}

/// Whether nothing enters. It takes a tenth less to enter again than to be refused, so
/// that the two do not follow each other with every message.
fn is_over(before: bool, used: i64, limit: i64) -> bool {
    used > if before { limit - limit / 10 } else { limit }
}

/// One queue's part of a budget, given back when the queue goes.
#[derive(Debug, Default)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    /// What the budget has been told.
    told: i64,
    /// What it has not.
    untold: i64,
}

impl Share {
    pub(crate) fn of(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), ..Self::default() }
    }

    /// A message with that much in it has come.
    pub(crate) fn more(&mut self, bytes: usize) {
        self.change(weight(bytes));
    }

    /// A message with that much in it has gone.
    pub(crate) fn less(&mut self, bytes: usize) {
        self.change(-weight(bytes));
    }

    /// All messages have gone.
    pub(crate) fn nothing(&mut self) {
        self.change(-(self.told + self.untold));
    }

    fn change(&mut self, bytes: i64) {
        self.untold += bytes;
        let empty = self.told + self.untold == 0;
        if self.untold.abs() >= GRAIN || (empty && self.told != 0) {
            let untold = mem::take(&mut self.untold);
            self.told += untold;
            self.budget.moved(untold);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.told != 0 {
            self.budget.moved(-self.told);
        }
    }
}

fn weight(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 2) + ENVELOPE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: bool, used: i64, over: bool) {
        assert_eq!(is_over(before, used, 1000), over, "{before} {used}");
    }

    #[test]
    fn a_tenth_has_to_be_free_before_messages_enter_again() {
        check(false, 1000, false);
        check(false, 1001, true);
        check(true, 901, true);
        check(true, 900, false);
    }

    #[test]
    fn a_queue_tells_in_grains_and_when_it_is_empty() {
        let budget = Arc::new(Budget::default());
        let mut share = Share::of(&budget);
        share.more(1000);
        assert_eq!(budget.used(), 0);
        share.more(20_000);
        assert_eq!(budget.used(), 21_000 + 2 * ENVELOPE.unsigned_abs());
        share.less(1000);
        assert_eq!(budget.used(), 21_000 + 2 * ENVELOPE.unsigned_abs());
        share.less(20_000);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_a_queue_held_is_given_back_when_it_goes() {
        let budget = Arc::new(Budget::default());
        budget.set_limit(50_000);
        let mut share = Share::of(&budget);
        share.more(60_000);
        assert!(budget.is_over());
        drop(share);
        assert!(!budget.is_over());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_lower_limit_holds_at_once() {
        let budget = Arc::new(Budget::default());
        let mut share = Share::of(&budget);
        share.more(60_000);
        budget.set_limit(50_000);
        assert!(budget.is_over());
        share.nothing();
        assert!(!budget.is_over());
    }
}
