//! When a file that cannot be seen is gone.
//!
//! Many ways of writing a file take it away for a moment, and `install` is one
//! of them. So one look that does not find a file proves nothing: it is gone
//! when two looks at a readable folder, far enough apart, have both missed it.
//!
//! Pure: it is told the time, and never sleeps.

use std::{borrow::Borrow, collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How far apart the two looks must be.
///
/// Removing a file and writing it anew takes a script, an editor or a mirror
/// well under a second; stopping an actor by mistake takes its queue with it.
pub const GRACE: Duration = Duration::from_secs(2);

/// Remembers since when files have been missing.
#[derive(Debug)]
pub struct Absence<K> {
    missed: BTreeMap<K, Instant>,
}

/// What to make of a file that a look has not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Too early to say; a look at that time will tell.
    Until(Instant),
    /// It is gone.
    Gone,
}

impl<K: Ord> Absence<K> {
    /// Nothing is missing.
    #[must_use]
    pub fn new() -> Self {
        Self { missed: BTreeMap::new() }
    }

    /// A look has found the file, or could not have found it: the folder was
    /// not readable, which says nothing about what is in it.
    pub fn forget<Q: Ord + ?Sized>(&mut self, file: &Q)
    where
        K: Borrow<Q>,
    {
        self.missed.remove(file);
    }

    /// A look at a readable folder has not found the file.
    pub fn miss(&mut self, file: K, now: Instant) -> Missing {
        let first = *self.missed.entry(file).or_insert(now);
        if now >= first + GRACE { Missing::Gone } else { Missing::Until(first + GRACE) }
    }
}

impl<K: Ord> Default for Absence<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Look {
        Misses,
        Finds,
        CannotTell,
    }
    use Look::{CannotTell, Finds, Misses};

    /// Plays looks at those milliseconds; the last must say whether it is gone.
    #[track_caller]
    fn check(looks: &[(u64, Look)], gone: bool) {
        let start = Instant::now();
        let mut absence = Absence::new();
        let mut last = None;
        for (ms, look) in looks {
            let now = start + Duration::from_millis(*ms);
            last = match look {
                Misses => Some(absence.miss("a", now)),
                Finds | CannotTell => {
                    absence.forget("a");
                    None
                }
            };
        }
        assert_eq!(last == Some(Missing::Gone), gone, "{last:?}");
    }

    #[test]
    fn one_look_proves_nothing() {
        check(&[(0, Misses)], false);
        check(&[(60_000, Misses)], false);
    }

    #[test]
    fn two_looks_two_seconds_apart_do() {
        check(&[(0, Misses), (1999, Misses)], false);
        check(&[(0, Misses), (2000, Misses)], true);
        check(&[(0, Misses), (10, Misses), (2000, Misses)], true);
        check(&[(0, Misses), (2000, Misses), (2001, Misses)], true);
    }

    #[test]
    fn a_file_that_was_back_in_between_starts_over() {
        check(&[(0, Misses), (500, Finds), (2100, Misses)], false);
        check(&[(0, Misses), (500, Finds), (2100, Misses), (4100, Misses)], true);
    }

    #[test]
    fn a_folder_that_cannot_be_read_starts_over() {
        check(&[(0, Misses), (500, CannotTell), (2100, Misses)], false);
    }

    #[test]
    fn the_time_of_the_next_look_is_known() {
        let now = Instant::now();
        let mut absence = Absence::new();
        assert_eq!(absence.miss("a", now), Missing::Until(now + GRACE));
        let later = now + Duration::from_secs(1);
        assert_eq!(absence.miss("a", later), Missing::Until(now + GRACE));
    }
}
