//! What a change does about the rollouts that are under way.
//!
//! Pure: a table.

use std::collections::BTreeSet;

use reflowd_runtime::ActorName;

use super::rollout::RolloutId;
use crate::{ActorSpec, ChangePlan, WireSpec};

/// A rollout that is under way, as far as others have to know.
pub(super) struct UnderWay<'a> {
    pub(super) id: RolloutId,
    /// The actors that are no other's until it has ended.
    pub(super) touched: &'a BTreeSet<ActorName>,
    /// What disk has asked for; nothing, where actors go back to what they ran before.
    pub(super) change: Option<&'a ChangePlan>,
    /// Whether it is past the point of no return.
    pub(super) committed: bool,
}

/// What to do about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    /// None of them is about any of these actors.
    Free,
    /// One leads to the same.
    Joins(RolloutId),
    /// These lead to what is not asked for any more.
    TakesOver(Vec<RolloutId>),
    /// One cannot be taken back any more; what is left to do shows when it has ended.
    Waits(RolloutId),
}

/// What a change does about the rollouts that are under way.
pub(super) fn overlap<'a>(
    change: &ChangePlan,
    touched: &BTreeSet<ActorName>,
    under_way: impl Iterator<Item = UnderWay<'a>>,
) -> Overlap {
    let others: Vec<_> =
        under_way.filter(|rollout| !rollout.touched.is_disjoint(touched)).collect();
    let bound = others.iter().find(|rollout| rollout.committed || rollout.change.is_none());
    match (bound, &others[..]) {
        (Some(rollout), _) => Overlap::Waits(rollout.id),
        (None, []) => Overlap::Free,
        (None, [UnderWay { id, change: Some(under_way), .. }])
            if lead_to_the_same(under_way, change) =>
        {
            Overlap::Joins(*id)
        }
        (None, others) => Overlap::TakesOver(others.iter().map(|rollout| rollout.id).collect()),
    }
}

/// Whether two changes lead to the same, wherever it stands in the configuration and whatever
/// else runs.
pub(super) fn lead_to_the_same(one: &ChangePlan, other: &ChangePlan) -> bool {
    let bare = |change: &ChangePlan| {
        let mut change = change.clone();
        change.around.clear();
        let starts = change.start.iter_mut().map(|start| &mut start.spec);
        let swaps = change.swap.iter_mut().map(|swap| &mut swap.spec);
        let adjusts = change.adjust.iter_mut().map(|adjust| &mut adjust.spec);
        let nowhere = |spec: &mut ActorSpec| spec.origin.clear();
        starts.chain(swaps).chain(adjusts).for_each(nowhere);
        let wires = change.connect.iter_mut().chain(&mut change.cut);
        wires.for_each(|wire: &mut WireSpec| wire.origin.clear());
        change
    };
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use reflowd_runtime::{Digest, Settings};

    use super::*;
    use crate::{GenerationKeys, ModuleRef, Swapping};

    fn swaps(actors: &str, digest: u8, origin: &str) -> ChangePlan {
        let swap = |actor: &str| Swapping {
            actor: actor.parse().unwrap(),
            spec: ActorSpec {
                module: ModuleRef::Stem { stem: "m".into(), pin: None },
                keys: GenerationKeys::default(),
                settings: Settings::default(),
                version: None,
                was: None,
                origin: origin.into(),
            },
            digest: Digest::new([digest; 32]),
            autostarted: false,
        };
        let swap = actors.split(' ').map(swap).collect();
        ChangePlan { swap, ..ChangePlan::default() }
    }

    fn names(actors: &str) -> BTreeSet<ActorName> {
        actors.split(' ').map(|name| name.parse().unwrap()).collect()
    }

    enum Kind {
        Goes(u8),
        Committed(u8),
        GoesBack,
    }
    use Kind::{Committed, Goes, GoesBack};

    /// The change swaps `a b` to module 2; under way are these, numbered from 1.
    #[track_caller]
    fn check(under_way: &[(&str, Kind)], expected: Overlap) {
        let change = swaps("a b", 2, "flow:1");
        let plans: Vec<_> = under_way
            .iter()
            .map(|(actors, kind)| match kind {
                Goes(digest) => (Some(swaps(actors, *digest, "flow:9")), false),
                Committed(digest) => (Some(swaps(actors, *digest, "flow:9")), true),
                GoesBack => (None, false),
            })
            .collect();
        let touched: Vec<_> = under_way.iter().map(|(actors, _)| names(actors)).collect();
        let under_way = plans.iter().zip(&touched).enumerate().map(|(n, (plan, touched))| {
            let (change, committed) = (plan.0.as_ref(), plan.1);
            UnderWay { id: RolloutId::numbered(n as u64 + 1), touched, change, committed }
        });
        assert_eq!(overlap(&change, &names("a b"), under_way), expected);
    }

    #[test]
    fn what_a_change_does_about_others() {
        let id = RolloutId::numbered;
        check(&[], Overlap::Free);
        check(&[("c", Goes(2)), ("d e", Committed(2))], Overlap::Free);
        check(&[("a b", Goes(2))], Overlap::Joins(id(1)));
        check(&[("a b", Goes(1))], Overlap::TakesOver(vec![id(1)]));
        check(&[("a", Goes(2))], Overlap::TakesOver(vec![id(1)]));
        check(&[("a b c", Goes(2))], Overlap::TakesOver(vec![id(1)]));
        check(
            &[("a", Goes(2)), ("x", Goes(2)), ("b", Goes(2))],
            Overlap::TakesOver(vec![id(1), id(3)]),
        );
        check(&[("a b", Committed(2))], Overlap::Waits(id(1)));
        check(&[("b", Committed(1))], Overlap::Waits(id(1)));
        check(&[("a", Goes(1)), ("b", Committed(1))], Overlap::Waits(id(2)));
        check(&[("b", GoesBack)], Overlap::Waits(id(1)));
        check(&[("a", Goes(2)), ("b", GoesBack)], Overlap::Waits(id(2)));
    }
}
