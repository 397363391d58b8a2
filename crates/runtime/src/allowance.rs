//! The number of unreadable lines of a source that are kept as dead letters.
//!
//! Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

/// The size of a burst that is kept in full: enough to look through.
///
/// A file of nothing else would push every other dead letter out of its ring, and the file
/// still has its lines.
const AT_ONCE: u64 = 100;

/// The time that restores one slot.
const ONE_IN: Duration = Duration::from_secs(1);

/// The slots of one source.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// Slots in use.
    spent: u64,
    /// The start of the time that restores the next slot.
    since: Option<Instant>,
}

impl Allowance {
    /// Takes a slot if one is free.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let regained = now.duration_since(since).as_secs() / ONE_IN.as_secs();
        if regained > 0 {
            self.spent = self.spent.saturating_sub(regained);
            self.since = Some(now);
        }
        let is_left = self.spent < AT_ONCE;
        self.spent += u64::from(is_left);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number kept of lines that arrive at these seconds.
    #[track_caller]
    fn check(came: &[(u64, u64)], kept: &[u64]) {
        let (zero, mut allowance) = (Instant::now(), Allowance::default());
        let of = |(second, lines): &(u64, u64)| {
            let now = zero + Duration::from_secs(*second);
            (0..*lines).filter(|_| allowance.take(now)).count() as u64
        };
        assert_eq!(came.iter().map(of).collect::<Vec<_>>(), kept);
    }

    #[test]
    fn a_hundred_are_kept_at_once_and_then_one_a_second() {
        check(&[(0, 5)], &[5]);
        check(&[(0, 250), (0, 10), (1, 10), (2, 10), (12, 100)], &[100, 0, 1, 1, 10]);
        // No more than a hundred are saved up for.
        check(&[(0, 250), (1000, 250)], &[100, 100]);
        check(&[(0, 1), (1000, 250)], &[1, 100]);
    }
}
