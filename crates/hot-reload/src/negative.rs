//! Refusals that are remembered, so that a bad module is not tried for ever.
//!
//! What a module is in itself does not change, so a module that was refused for
//! what it is stays refused until other bytes come. A time-out may have been
//! the machine's fault, and is tried again, with growing pauses. What was
//! refused for its surroundings is judged anew whenever they change.
//!
//! Pure: it is told the time, and never sleeps.

use std::{collections::BTreeMap, time::Duration};

use reflowd_runtime::{Digest, panic::Pauses};
use tokio::time::Instant;

use crate::ChangePlan;

/// Pauses before a module that ran out of time is tried again; the last repeats.
const RETRIES: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// Refusals remembered at once. Each is for bytes that somebody put in the
/// folder; beyond this many the oldest are tried again, which is harmless.
const MAX_REMEMBERED: usize = 50_000;

/// Why a module is not worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is wrong in itself: its binary, its exports, its metadata.
    Intrinsic,
    /// It ran out of time while it was compiled, initialised or asked for its
    /// metadata, or the machine had no room for it.
    Timeout,
}

/// Modules that were refused, by digest.
#[derive(Clone, Debug, Default)]
pub struct BadModules {
    refused: BTreeMap<Digest, Standing>,
}

/// One remembered refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What was wrong.
    pub why: String,
    /// When to try again; never, where the module is wrong in itself.
    pub retry: Option<Instant>,
    at: Instant,
    tries: usize,
}

impl BadModules {
    /// Remembers that the module was refused.
    pub fn refuse(&mut self, digest: Digest, fault: Fault, why: impl Into<String>, now: Instant) {
        let before = self.refused.get(&digest).map_or(0, |refusal| refusal.tries);
        let retry = match fault {
            Fault::Intrinsic => None,
            Fault::Timeout => Some(now + RETRIES[before.min(RETRIES.len() - 1)]),
        };
        let refusal = Standing { why: why.into(), retry, at: now, tries: before + 1 };
        self.refused.insert(digest, refusal);
        if self.refused.len() > MAX_REMEMBERED {
            let oldest = self.refused.iter().min_by_key(|(_, refusal)| refusal.at);
            if let Some(oldest) = oldest.map(|(digest, _)| *digest) {
                self.refused.remove(&oldest);
            }
        }
    }

    /// Why the module must not be tried now, if so.
    #[must_use]
    pub fn standing(&self, digest: &Digest, now: Instant) -> Option<&Standing> {
        self.refused.get(digest).filter(|refusal| refusal.retry.is_none_or(|retry| now < retry))
    }

    /// The modules that must not be tried now, and why.
    #[must_use]
    pub fn all_standing(&self, now: Instant) -> BTreeMap<Digest, String> {
        let all =
            self.refused.keys().filter_map(|digest| Some((digest, self.standing(digest, now)?)));
        all.map(|(digest, standing)| (*digest, standing.why.clone())).collect()
    }

    /// The module was tried and is fine, or somebody wants it tried regardless.
    pub fn forget(&mut self, digest: &Digest) {
        self.refused.remove(digest);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.refused.clear();
    }

    /// When the next module is worth another try.
    #[must_use]
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.refused.values().filter_map(|refusal| refusal.retry).filter(|at| *at > now).min()
    }
}

/// How long the refusal of a change holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// As long as its surroundings are the same.
    Lasts,
    /// The daemon broke over it: it is tried again, with growing pauses.
    Rests,
    /// It is one that is remembered already.
    Known,
    /// Another time it may go well.
    Passes,
}

/// Changes that were refused for their surroundings: ports that do not fit, a
/// configuration that the module does not take.
///
/// The same change in the same surroundings gets the same verdict, so it is not
/// prepared again at each look. [`ChangePlan::around`] makes any difference on
/// either side a different change.
#[derive(Clone, Debug, Default)]
pub struct RefusedChanges {
    refused: Vec<RefusedChange>,
}

/// One remembered refusal.
#[derive(Clone, Debug)]
struct RefusedChange {
    change: ChangePlan,
    why: String,
    /// When to try again; never, where only other surroundings help.
    retry: Option<Instant>,
    pauses: Pauses,
}

impl RefusedChange {
    fn stands(&self, now: Instant) -> bool {
        self.retry.is_none_or(|retry| now < retry)
    }
}

impl RefusedChanges {
    /// Remembers that the change was refused, for as long as that holds.
    pub fn refuse(&mut self, change: ChangePlan, holds: Holds, why: String, now: Instant) {
        if matches!(holds, Holds::Known | Holds::Passes) {
            return;
        }
        let before = self.refused.iter().position(|refused| refused.change == change);
        let before = before.map(|at| self.refused.swap_remove(at));
        let mut pauses = before.map_or_else(Pauses::default, |refused| refused.pauses);
        let retry = match holds {
            Holds::Rests => Some(now + pauses.after_another()),
            _ => None,
        };
        self.refused.push(RefusedChange { change, why, retry, pauses });
    }

    /// Why the change must not be tried now, if so.
    #[must_use]
    pub fn standing(&self, change: &ChangePlan, now: Instant) -> Option<&str> {
        let refused = self.refused.iter().find(|refused| refused.change == *change);
        refused.filter(|refused| refused.stands(now)).map(|refused| refused.why.as_str())
    }

    /// When the next change is worth another try.
    #[must_use]
    pub fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.refused.iter().filter_map(|refused| refused.retry).filter(|at| *at > now).min()
    }

    /// Forgets the changes that are not asked for any more: the next plan is
    /// the only one that can ask again.
    pub fn keep_only(&mut self, changes: &[ChangePlan]) {
        self.refused.retain(|refused| changes.contains(&refused.change));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.refused.clear();
    }
}

#[cfg(test)]
mod tests {
    use reflowd_runtime::Generation;

    use super::*;

    const DIGEST: Digest = Digest::new([1; 32]);

    fn minutes(n: u64) -> Duration {
        Duration::from_secs(60 * n)
    }

    #[test]
    fn what_is_wrong_in_itself_stays_refused() {
        let now = Instant::now();
        let mut bad = BadModules::default();
        bad.refuse(DIGEST, Fault::Intrinsic, "no export", now);
        let standing = bad.standing(&DIGEST, now + minutes(100_000));
        assert_eq!(standing.map(|refusal| refusal.why.as_str()), Some("no export"));
        assert_eq!(bad.all_standing(now), [(DIGEST, "no export".to_owned())].into());
        assert_eq!(bad.next_retry(now), None);
    }

    #[test]
    fn other_bytes_are_another_module() {
        let now = Instant::now();
        let mut bad = BadModules::default();
        bad.refuse(DIGEST, Fault::Intrinsic, "no export", now);
        assert_eq!(bad.standing(&Digest::new([2; 32]), now), None);
    }

    #[test]
    fn a_time_out_is_tried_again_with_growing_pauses() {
        let mut now = Instant::now();
        let mut bad = BadModules::default();
        for pause in [1, 10, 60, 60, 60] {
            bad.refuse(DIGEST, Fault::Timeout, "slow", now);
            let again = now + minutes(pause);
            assert_eq!(bad.next_retry(now), Some(again));
            assert!(bad.standing(&DIGEST, again - Duration::from_millis(1)).is_some());
            assert!(bad.standing(&DIGEST, again).is_none());
            assert!(bad.all_standing(again).is_empty());
            now = again;
        }
    }

    #[test]
    fn a_module_that_was_fine_after_all_starts_over() {
        let now = Instant::now();
        let mut bad = BadModules::default();
        bad.refuse(DIGEST, Fault::Timeout, "slow", now);
        bad.refuse(DIGEST, Fault::Timeout, "slow", now);
        bad.forget(&DIGEST);
        bad.refuse(DIGEST, Fault::Timeout, "slow", now);
        assert_eq!(bad.next_retry(now), Some(now + minutes(1)));
    }

    #[test]
    fn a_refused_change_is_judged_anew_in_other_surroundings() {
        let change = |generation| ChangePlan {
            around: [("b".parse().unwrap(), (DIGEST, generation))].into(),
            ..ChangePlan::default()
        };
        let first = change(Generation::FIRST);
        let mut refused = RefusedChanges::default();
        let now = Instant::now();
        refused.refuse(first.clone(), Holds::Lasts, "no such port".into(), now);
        assert_eq!(refused.standing(&first, now + minutes(100)), Some("no such port"));
        assert_eq!(refused.standing(&change(Generation::FIRST.next()), now), None);
        assert_eq!(refused.next_retry(now), None);
        refused.keep_only(&[]);
        assert_eq!(refused.standing(&first, now), None);
    }

    #[test]
    fn a_change_over_which_the_daemon_breaks_is_tried_again_with_growing_pauses() {
        let (mut now, mut refused) = (Instant::now(), RefusedChanges::default());
        let change = ChangePlan::default();
        for pause in [1, 5, 15, 60, 60] {
            refused.refuse(change.clone(), Holds::Rests, "it broke".into(), now);
            // Being asked for meanwhile makes nothing longer.
            refused.refuse(change.clone(), Holds::Known, "it broke".into(), now);
            let again = now + Duration::from_secs(pause);
            assert_eq!(refused.next_retry(now), Some(again));
            assert!(refused.standing(&change, again - Duration::from_millis(1)).is_some());
            assert!(refused.standing(&change, again).is_none());
            refused.keep_only(std::slice::from_ref(&change));
            now = again;
        }
    }
}
