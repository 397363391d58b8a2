//! Rollouts that have failed for what may pass: each is tried again, after pauses that grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use reflowd_runtime::ActorName;
use tokio::time::Instant;

/// Pauses before another try; the last repeats. A port that is taken for a moment, a disk that
/// is full for an hour: the first tries are soon, and the later ones cost nothing.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// By what has failed; `T` tells one try of the same actors from another.
#[derive(Clone, Debug)]
pub(super) struct Rests<T>(BTreeMap<BTreeSet<ActorName>, Rest<T>>);

#[derive(Clone, Debug)]
struct Rest<T> {
    of: T,
    why: String,
    failures: usize,
    until: Instant,
}

impl<T> Default for Rests<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: PartialEq> Rests<T> {
    /// It has failed. True where the same has not failed for that reason before.
    pub(super) fn failed(
        &mut self,
        actors: BTreeSet<ActorName>,
        of: T,
        why: &str,
        now: Instant,
    ) -> bool {
        let before = self.0.remove(&actors).filter(|rest| rest.of == of);
        let failures = before.as_ref().map_or(0, |rest| rest.failures);
        let is_news = before.is_none_or(|rest| rest.why != why);
        let until = now + PAUSES[failures.min(PAUSES.len() - 1)];
        let rest = Rest { of, why: why.to_owned(), failures: failures + 1, until };
        self.0.insert(actors, rest);
        is_news
    }

    /// Why it is not tried now, where it has failed a moment ago.
    pub(super) fn standing(
        &self,
        actors: &BTreeSet<ActorName>,
        of: impl Fn(&T) -> bool,
        now: Instant,
    ) -> Option<&str> {
        let rest = self.0.get(actors).filter(|rest| of(&rest.of) && now < rest.until)?;
        Some(&rest.why)
    }

    /// Why it has failed last, whether it is tried again by now or not.
    pub(super) fn last(&self, actors: &BTreeSet<ActorName>) -> Option<&str> {
        self.0.get(actors).map(|rest| rest.why.as_str())
    }

    /// It has not failed this time.
    pub(super) fn forget(&mut self, actors: &BTreeSet<ActorName>) {
        self.0.remove(actors);
    }

    /// Somebody has looked after what was wrong: all of it is tried at once.
    pub(super) fn try_again(&mut self, now: Instant) {
        self.0.values_mut().for_each(|rest| rest.until = now);
    }

    /// Keeps what is still asked for.
    pub(super) fn keep_only(&mut self, asked: impl Fn(&BTreeSet<ActorName>) -> bool) {
        self.0.retain(|actors, _| asked(actors));
    }

    /// When the next one is to be tried again.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|rest| rest.until).filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actors() -> BTreeSet<ActorName> {
        ["a".parse().unwrap()].into()
    }

    #[test]
    fn pauses_grow_until_something_else_is_tried() {
        let begin = Instant::now();
        let mut rests = Rests::default();
        for (n, seconds) in [1, 5, 15, 60, 60].into_iter().enumerate() {
            assert_eq!(rests.failed(actors(), 1, "no port", begin), n == 0, "{n}");
            assert_eq!(rests.next(begin), Some(begin + Duration::from_secs(seconds)));
        }
        let later = begin + Duration::from_secs(59);
        assert_eq!(rests.standing(&actors(), |of| *of == 1, later), Some("no port"));
        assert_eq!(rests.standing(&actors(), |of| *of == 2, later), None, "another change");
        assert!(rests.failed(actors(), 2, "no port", begin));
        assert_eq!(rests.next(begin), Some(begin + Duration::from_secs(1)));
        rests.try_again(begin);
        assert_eq!(rests.standing(&actors(), |of| *of == 2, begin), None);
        assert_eq!(rests.last(&actors()), Some("no port"));
    }
}
