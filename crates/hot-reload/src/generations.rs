//! What each actor can go back to, which changes are on trial, and what is banned.
//!
//! A trial belongs to a change, so the actors that were swapped together are one
//! group: while one of them is on trial, none of them has passed for good, and when
//! one goes back, all go. Another change that touches one of them joins them.
//!
//! Pure: it is told what was done and how the trials stand.

use std::collections::{BTreeMap, BTreeSet};

use reflowd_runtime::{ActorName, Digest, Fall, Generation, State};

use crate::{ActorSpec, GenerationKeys, RunningActor};

/// What is banned of one actor; beyond this many, the oldest may be tried again.
const MAX_BANS: usize = 100;

/// What each actor has behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Generations {
    /// How many former ones of an actor can be gone back to. One is the least: it judges.
    max: usize,
    /// Generations that passed, before the one that runs; the latest is last.
    former: BTreeMap<ActorName, Vec<Former>>,
    /// The changes that are on trial.
    groups: Vec<BTreeSet<ActorName>>,
}

/// A generation that passed, and that can be run again.
#[derive(Clone, Debug, PartialEq)]
pub struct Former {
    /// Its number, when it ran.
    pub generation: Generation,
    /// Its module.
    pub digest: Digest,
    /// What it was asked to be.
    pub spec: ActorSpec,
    /// The fate of the state that it has left.
    pub left: LeftBehind,
}

/// The fate of the state that a former generation has left.
#[derive(Clone, Debug, PartialEq)]
pub enum LeftBehind {
    /// The generation after it went on with it.
    GoneOn,
    /// The generation after it has made its own of it.
    Migrated(PutAside),
    /// Unknown: the version of reflowd that ran then did not write it down.
    Unsaid,
}

/// A state as it was before it was migrated.
#[derive(Clone, Debug, PartialEq)]
pub struct PutAside {
    /// The state.
    pub state: PutAsideState,
    /// Milliseconds since the Unix epoch at which it was put aside.
    pub since: u64,
    /// Turns of this process that it has in it.
    pub turns: u64,
}

/// A state that is kept for going back.
#[derive(Clone, Debug, PartialEq)]
pub enum PutAsideState {
    /// Among the [former states](crate::FormerStates), under that digest.
    OnDisk(Digest),
    /// Here only: the actor's state is not written.
    InMemory(State),
}

/// How an actor that was swapped stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its trial goes on.
    OnTrial,
    /// It has no trial, or not any more.
    Passed,
    /// It has to go back.
    Fell(Fall),
    /// It does not run any more.
    Gone,
}

/// What to do about a change that was on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of it has passed.
    Passed(BTreeSet<ActorName>),
    /// All of it goes back.
    GoBack {
        /// What goes back.
        actors: BTreeSet<ActorName>,
        /// The actor that could not stay.
        fell: ActorName,
        /// Why, and what it costs.
        fall: Fall,
    },
}

impl Generations {
    /// Nothing yet; of each actor so many former generations will be known.
    #[must_use]
    pub fn keeping(max: usize) -> Self {
        Self { max: max.max(1), former: BTreeMap::new(), groups: Vec::new() }
    }

    /// A change is done that has put these on trial; it has touched those.
    pub fn begin(&mut self, swapped: BTreeSet<ActorName>, touched: &BTreeSet<ActorName>) {
        if swapped.is_empty() {
            return;
        }
        let mut group = self.leave(&swapped);
        group.extend(self.leave(touched));
        group.extend(swapped);
        self.groups.push(group);
    }

    /// Those of a change that is on trial with any of these, which is no longer so.
    pub fn leave(&mut self, touched: &BTreeSet<ActorName>) -> BTreeSet<ActorName> {
        let (joined, others) =
            std::mem::take(&mut self.groups).into_iter().partition(|g| !g.is_disjoint(touched));
        self.groups = others;
        let joined: Vec<BTreeSet<ActorName>> = joined;
        joined.into_iter().flatten().collect()
    }

    /// Those that are on trial with any of these.
    #[must_use]
    pub fn with(&self, touched: &BTreeSet<ActorName>) -> BTreeSet<ActorName> {
        let joined = self.groups.iter().filter(|group| !group.is_disjoint(touched));
        joined.flatten().cloned().collect()
    }

    /// What follows from how each actor stands. Decides, and changes nothing.
    #[must_use]
    pub fn weigh(&self, standing: impl Fn(&ActorName) -> Standing) -> Vec<Verdict> {
        let weigh = |group: &BTreeSet<ActorName>| {
            let all: Vec<_> = group.iter().map(|actor| (actor, standing(actor))).collect();
            let fell = all.iter().find_map(|(actor, standing)| match standing {
                Standing::Fell(fall) => Some(((*actor).clone(), fall.clone())),
                Standing::OnTrial | Standing::Passed | Standing::Gone => None,
            });
            if let Some((fell, fall)) = fell {
                let here = all.iter().filter(|(_, standing)| *standing != Standing::Gone);
                let actors = here.map(|(actor, _)| (*actor).clone()).collect();
                return Some(Verdict::GoBack { actors, fell, fall });
            }
            let waits = all.iter().any(|(_, standing)| *standing == Standing::OnTrial);
            (!waits).then(|| Verdict::Passed(group.clone()))
        };
        self.groups.iter().filter_map(weigh).collect()
    }

    /// The generation that is about to be replaced can be gone back to, unless it is on trial.
    pub fn replace(&mut self, actor: &ActorName, running: &RunningActor) {
        if self.groups.iter().any(|group| group.contains(actor)) {
            return;
        }
        let former = self.former.entry(actor.clone()).or_default();
        former.push(Former {
            generation: running.generation,
            digest: running.digest,
            spec: running.spec.clone(),
            left: LeftBehind::GoneOn,
        });
        if former.len() > self.max {
            former.remove(0);
        }
    }

    /// What runs has made its own state of the one before, which is that. Where it took
    /// the place of one on trial that has done so, the earlier one is what the last that
    /// passed has left.
    pub fn migrated(&mut self, actor: &ActorName, aside: PutAside) {
        let last = self.former.get_mut(actor).and_then(|former| former.last_mut());
        if let Some(last) = last.filter(|last| !matches!(last.left, LeftBehind::Migrated(_))) {
            last.left = LeftBehind::Migrated(aside);
        }
    }

    /// A former generation runs again, as that number, and has no successor to come back from.
    pub fn unfold(&mut self, actor: &ActorName, generation: Generation) {
        if let Some(former) = self.former.get_mut(actor) {
            former.pop_if(|last| last.generation == generation);
        }
    }

    /// The former generations of an actor from that one on, in order: what has become of
    /// the state of the first that did not simply leave it to the next says what going
    /// back to it needs.
    pub fn since(&self, actor: &ActorName, first: Generation) -> impl Iterator<Item = &Former> {
        self.former(actor).iter().skip_while(move |former| former.generation != first)
    }

    /// What an actor would go back to, where it can: the last that passed before what runs.
    #[must_use]
    pub fn last(&self, actor: &ActorName) -> Option<&Former> {
        self.former.get(actor)?.last()
    }

    /// All that an actor can go back to, the latest last.
    #[must_use]
    pub fn former(&self, actor: &ActorName) -> &[Former] {
        self.former.get(actor).map_or(&[], Vec::as_slice)
    }

    /// What an earlier process could go back to.
    pub fn recollect(&mut self, actor: ActorName, mut former: Vec<Former>) {
        former.drain(..former.len().saturating_sub(self.max));
        self.former.insert(actor, former);
    }

    /// The judge of an actor that is on trial.
    #[must_use]
    pub fn judge(&self, actor: &ActorName) -> Option<&Former> {
        let on_trial = self.groups.iter().any(|group| group.contains(actor));
        self.last(actor).filter(|_| on_trial)
    }

    /// An actor runs that former generation again: what came after it is over.
    pub fn went_back(&mut self, actor: &ActorName, to: Generation) {
        if let Some(former) = self.former.get_mut(actor) {
            former.retain(|former| former.generation < to);
        }
    }

    /// An actor is gone, and its past with it.
    pub fn forget(&mut self, actor: &ActorName) {
        self.former.remove(actor);
        self.groups.iter_mut().for_each(|group| _ = group.remove(actor));
        self.groups.retain(|group| !group.is_empty());
    }

    /// An actor goes on under another name, with its past.
    pub fn rename(&mut self, was: &ActorName, name: &ActorName) {
        if let Some(former) = self.former.remove(was) {
            self.former.insert(name.clone(), former);
        }
        for group in &mut self.groups {
            if group.remove(was) {
                group.insert(name.clone());
            }
        }
    }

    /// The modules of those that judge.
    #[must_use]
    pub fn judges(&self) -> BTreeSet<Digest> {
        let on_trial = self.groups.iter().flatten();
        on_trial.filter_map(|actor| Some(self.last(actor)?.digest)).collect()
    }

    /// The states on disk that going back may need.
    #[must_use]
    pub fn states(&self) -> BTreeSet<Digest> {
        let states = self.former.values().flatten().filter_map(|former| match &former.left {
            LeftBehind::Migrated(PutAside { state: PutAsideState::OnDisk(digest), .. }) => {
                Some(*digest)
            }
            LeftBehind::Migrated(_) | LeftBehind::GoneOn | LeftBehind::Unsaid => None,
        });
        states.collect()
    }

    /// The modules of all that can be gone back to.
    #[must_use]
    pub fn digests(&self) -> BTreeSet<Digest> {
        self.former.values().flatten().map(|former| former.digest).collect()
    }
}

/// What is not to run again, as long as disk asks for exactly that.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bans {
    bans: BTreeMap<ActorName, Vec<Ban>>,
    /// Modules that may have been banned: what an earlier process knew of them is lost.
    suspects: BTreeSet<Digest>,
}

/// One module with its keys that an actor was rolled back from.
#[derive(Clone, Debug, PartialEq)]
pub struct Ban {
    /// The module.
    pub digest: Digest,
    /// The keys.
    pub keys: GenerationKeys,
    /// Why it was rolled back.
    pub why: String,
}

impl Bans {
    /// Nothing is banned, and nothing starts with these modules by itself.
    #[must_use]
    pub fn suspecting(suspects: BTreeSet<Digest>) -> Self {
        Self { bans: BTreeMap::new(), suspects }
    }

    /// Modules that may have been banned, by whichever actor.
    #[must_use]
    pub fn suspects(&self) -> &BTreeSet<Digest> {
        &self.suspects
    }

    /// The modules that actors were rolled back from.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.bans.values().flatten().map(|ban| ban.digest)
    }

    /// Bans it.
    pub fn add(&mut self, actor: &ActorName, ban: Ban) {
        let bans = self.bans.entry(actor.clone()).or_default();
        bans.retain(|other| other.digest != ban.digest || other.keys != ban.keys);
        bans.push(ban);
        if bans.len() > MAX_BANS {
            bans.remove(0);
        }
    }

    /// Why the actor must not run that, if so.
    #[must_use]
    pub fn standing(
        &self,
        actor: &ActorName,
        digest: &Digest,
        keys: &GenerationKeys,
    ) -> Option<&Ban> {
        let bans = self.bans.get(actor)?;
        bans.iter().find(|ban| ban.digest == *digest && ban.keys == *keys)
    }

    /// All that the actor must not run.
    #[must_use]
    pub fn of(&self, actor: &ActorName) -> &[Ban] {
        self.bans.get(actor).map_or(&[], Vec::as_slice)
    }

    /// An actor goes on under another name: what it must not run stays so.
    pub fn rename(&mut self, was: &ActorName, name: &ActorName) {
        if let Some(bans) = self.bans.remove(was) {
            self.bans.insert(name.clone(), bans);
        }
    }

    /// The actor runs other bytes or other keys than it was banned from, because disk
    /// asks for that: what was banned may come again.
    pub fn lift(&mut self, actor: &ActorName) {
        self.bans.remove(actor);
    }

    /// The actor runs that again because an operator or a rollback put it there: one that
    /// runs is not banned, or disk could never ask for it.
    pub fn allow(&mut self, actor: &ActorName, digest: &Digest, keys: &GenerationKeys) {
        if let Some(bans) = self.bans.get_mut(actor) {
            bans.retain(|ban| ban.digest != *digest || ban.keys != *keys);
        }
    }

    /// Lifts all, and suspects nothing.
    pub fn clear(&mut self) {
        self.bans.clear();
        self.suspects.clear();
    }
}

#[cfg(test)]
mod tests {
    use reflowd_runtime::Settings;

    use super::*;
    use crate::ModuleRef;

    fn name(text: &str) -> ActorName {
        text.parse().unwrap()
    }

    fn names(text: &str) -> BTreeSet<ActorName> {
        text.split_whitespace().map(name).collect()
    }

    fn fall() -> Fall {
        Fall { why: "trapped".into(), restore_state: false, lost_turns: 0 }
    }

    fn go_back(actors: &str, fell: &str) -> Verdict {
        Verdict::GoBack { actors: names(actors), fell: name(fell), fall: fall() }
    }

    fn passed(actors: &str) -> Verdict {
        Verdict::Passed(names(actors))
    }

    /// Changes, each as what it swaps and what it touches besides; how actors stand, as
    /// `a+` (passed), `a-` (fell), `a?` (on trial) and `a.` (gone).
    #[track_caller]
    fn check(changes: &[(&str, &str)], stand: &str, expected: &[Verdict]) {
        let mut generations = Generations::keeping(10);
        for (swaps, touches) in changes {
            generations.begin(names(swaps), &names(touches));
        }
        let verdicts = generations.weigh(|actor| {
            let word = stand.split_whitespace().find(|word| word.starts_with(actor.as_str()));
            match word.unwrap().chars().last().unwrap() {
                '+' => Standing::Passed,
                '-' => Standing::Fell(fall()),
                '?' => Standing::OnTrial,
                _ => Standing::Gone,
            }
        });
        assert_eq!(verdicts, expected, "{changes:?} {stand}");
    }

    #[test]
    fn a_change_passes_when_all_of_it_has_and_goes_back_when_one_of_it_must() {
        check(&[("a b", "")], "a? b?", &[]);
        check(&[("a b", "")], "a+ b?", &[]);
        check(&[("a b", "")], "a+ b+", &[passed("a b")]);
        check(&[("a b", "")], "a+ b-", &[go_back("a b", "b")]);
        check(&[("a b", "")], "a? b-", &[go_back("a b", "b")]);
    }

    #[test]
    fn who_is_gone_is_not_waited_for_and_does_not_go_back() {
        check(&[("a b", "")], "a+ b.", &[passed("a b")]);
        check(&[("a b", "")], "a- b.", &[go_back("a", "a")]);
    }

    #[test]
    fn changes_that_have_nothing_in_common_are_judged_apart() {
        check(&[("a", ""), ("b", "")], "a- b+", &[go_back("a", "a"), passed("b")]);
    }

    #[test]
    fn a_change_that_touches_one_on_trial_joins_its_group() {
        let both = &[go_back("a b c", "c")];
        check(&[("a b", ""), ("b c", "")], "a+ b+ c-", both);
        check(&[("a b", ""), ("c", "b")], "a+ b+ c-", both);
        check(&[("a", ""), ("b", ""), ("c", "a b")], "a+ b+ c-", both);
        // A change that swaps nobody puts nobody on trial.
        check(&[("a", ""), ("b", ""), ("", "a b")], "a- b+", &[go_back("a", "a"), passed("b")]);
    }

    fn running(generation: Generation, digest: u8) -> RunningActor {
        RunningActor {
            spec: ActorSpec {
                module: ModuleRef::Stem { stem: "module".into(), pin: None },
                keys: GenerationKeys::default(),
                settings: Settings::default(),
                version: None,
                was: None,
                origin: "flow:1".into(),
            },
            digest: Digest::new([digest; 32]),
            generation,
            autostarted: false,
            draining: false,
        }
    }

    #[test]
    fn so_many_former_generations_are_known_as_are_to_be_kept() {
        let (mut generations, a) = (Generations::keeping(2), name("a"));
        let mut generation = Generation::FIRST;
        for digest in 0..5 {
            generations.replace(&a, &running(generation, digest));
            generation = generation.next();
        }
        let known = generations.former(&a).to_vec();
        assert_eq!(known.iter().map(|f| f.generation.number()).collect::<Vec<_>>(), [4, 5]);
        let mut fewer = Generations::keeping(1);
        fewer.recollect(a.clone(), known);
        assert_eq!(fewer.last(&a).unwrap().generation.number(), 5);
        assert_eq!(fewer.former(&a).len(), 1);
    }

    #[test]
    fn only_what_has_passed_can_be_gone_back_to() {
        let (mut generations, a) = (Generations::keeping(10), name("a"));
        let first = Generation::FIRST;
        assert_eq!(generations.last(&a), None);
        generations.replace(&a, &running(first, 1));
        generations.begin(names("a"), &names(""));
        // The second is on trial when the third comes.
        generations.replace(&a, &running(first.next(), 2));
        assert_eq!(generations.last(&a).map(|former| former.generation), Some(first));
        assert_eq!(generations.judges(), [Digest::new([1; 32])].into());
        // The third has passed when the fourth comes.
        generations.leave(&names("a"));
        assert!(generations.judges().is_empty());
        generations.replace(&a, &running(first.next().next(), 3));
        let numbers = |generations: &Generations| {
            let former = generations.former(&a).iter();
            former.map(|former| former.generation.number()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&generations), [1, 3]);
        generations.went_back(&a, first.next().next());
        assert_eq!(numbers(&generations), [1]);
        generations.forget(&a);
        assert!(generations.digests().is_empty());
    }

    #[test]
    fn the_state_that_the_last_that_passed_has_left_is_the_first_that_was_migrated() {
        let (mut generations, a) = (Generations::keeping(10), name("a"));
        let aside = |since| PutAside {
            state: PutAsideState::OnDisk(Digest::new([9; 32])),
            since,
            turns: 0,
        };
        let first = Generation::FIRST;
        generations.replace(&a, &running(first, 1));
        generations.begin(names("a"), &names(""));
        generations.migrated(&a, aside(1));
        // The second is on trial when the third comes, and the third migrates as well.
        generations.replace(&a, &running(first.next(), 2));
        generations.migrated(&a, aside(2));
        generations.leave(&names("a"));
        generations.replace(&a, &running(first.next().next(), 3));
        let lefts = |from| {
            let since = generations.since(&a, from);
            since.map(|former| former.left.clone()).collect::<Vec<_>>()
        };
        assert_eq!(lefts(first), [LeftBehind::Migrated(aside(1)), LeftBehind::GoneOn]);
        assert_eq!(lefts(first.next().next()), [LeftBehind::GoneOn]);
        assert_eq!(generations.states(), [Digest::new([9; 32])].into());
    }

    #[test]
    fn a_ban_is_about_one_actor_and_exactly_these_bytes_and_keys() {
        let (mut bans, a, keys) = (Bans::default(), name("a"), GenerationKeys::default());
        let (bad, good) = (Digest::new([1; 32]), Digest::new([2; 32]));
        bans.add(&a, Ban { digest: bad, keys: keys.clone(), why: "trapped".into() });
        assert!(bans.standing(&a, &bad, &keys).is_some());
        assert!(bans.standing(&a, &good, &keys).is_none());
        assert!(bans.standing(&name("b"), &bad, &keys).is_none());
        let others = GenerationKeys { memory: 1 << 20, ..keys.clone() };
        assert!(bans.standing(&a, &bad, &others).is_none());
        bans.allow(&a, &bad, &others);
        assert!(bans.standing(&a, &bad, &keys).is_some());
        bans.allow(&a, &bad, &keys);
        assert!(bans.standing(&a, &bad, &keys).is_none());
        bans.add(&a, Ban { digest: bad, keys: keys.clone(), why: "trapped".into() });
        bans.lift(&a);
        assert!(bans.standing(&a, &bad, &keys).is_none());
    }
}
