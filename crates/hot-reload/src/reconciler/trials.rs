//! Puts changes on trial, and takes back those that fail.
//!
//! What is to be done is decided by [`Generations`]; here it is done. A rollback is a
//! change like any other: everything that can fail comes before the swap, and all the
//! actors of the group swap together.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::Arc,
};

use reflowd_runtime::{
    ActorName, Change, Changed, Digest, EventKind, GoneBack, Metadata, TrialOutcome, Trialing,
    panic::Boundary,
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    Reconciler,
    fit::Fit,
    job::{ChangeRefused, Job},
    library::Library,
    reloader::BackWish,
    rollout::{Aim, BackAnswer, Outcome, Stage},
    telling::chain,
};
use crate::{
    ActorSpec, Ban, Blueprint, ChangePlan, Former, LeftBehind, ModuleRef, Running, Snapshot,
    Swapping,
    generations::{Standing, Verdict},
    plan::touched,
};

/// An actor does not run what it ran before.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RollBackError {
    /// There is no such actor.
    #[error("the actor `{actor}` does not run")]
    NotRunning {
        /// The name that was asked for.
        actor: ActorName,
    },
    /// It has run nothing else.
    #[error("`{actor}` has nothing to go back to: no generation before the one that runs is known")]
    NothingBefore {
        /// The actor.
        actor: ActorName,
    },
    /// It is not known.
    #[error(
        "`{actor}` cannot go back to generation {wanted}, {}; it can go back to {}",
        why_not(*wanted, *runs),
        list(known)
    )]
    NoSuchGeneration {
        /// The actor.
        actor: ActorName,
        /// The generation that was asked for.
        wanted: u64,
        /// The generation that runs.
        runs: u64,
        /// Those that there are, with their modules. Several may have the same and other keys.
        known: Vec<(u64, Digest)>,
    },
    /// It can no longer run.
    #[error("cannot go back: {why}")]
    Unfit {
        /// Why, with the actor that it is about.
        why: String,
    },
    /// The state that belongs to it is gone.
    #[error(
        "cannot go back: the state that `{actor}` had before it was migrated cannot be had: {why}; to run the former module on the present state, put its file back instead"
    )]
    StateLost {
        /// The actor.
        actor: ActorName,
        /// Why, with the file.
        why: String,
    },
    /// Nobody knows whether it would understand the present state.
    #[error(
        "cannot go back: module {} exports `migrate_state` and has run since, and an earlier version of reflowd kept no state of `{actor}` from before it; to run the former module on the present state, put its file back instead",
        by.short()
    )]
    StateUnknown {
        /// The actor.
        actor: ActorName,
        /// The module that may have migrated its state.
        by: Digest,
    },
    /// Something has changed that was to be as it was.
    #[error("it has changed meanwhile; look at it again")]
    Changed,
    /// The rollback broke.
    #[error("reflowd itself broke over it, which is a bug in it; `reflowd events` has more")]
    Broke,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

fn list(known: &[(u64, Digest)]) -> String {
    let name = |(number, digest): &(u64, Digest)| format!("{number} ({})", digest.short());
    known.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn why_not(wanted: u64, runs: u64) -> &'static str {
    match wanted.cmp(&runs) {
        std::cmp::Ordering::Equal => "which is the one that runs",
        std::cmp::Ordering::Greater => "which has not been yet",
        std::cmp::Ordering::Less => "which never passed a trial or is no longer kept",
    }
}

/// What a change means for trials.
pub(super) enum Trying {
    /// It puts nobody on trial, and leaves the trials of others as they are.
    Nobody,
    /// What it swaps is on trial, with all who were.
    OnTrial,
    /// Nobody can judge after it: the trials of all these are over.
    NoJudge { over: BTreeSet<ActorName>, why: String },
}

impl Trying {
    pub(super) fn trialing(&self) -> Trialing {
        match self {
            Self::OnTrial => Trialing::OnTrial,
            Self::Nobody | Self::NoJudge { .. } => Trialing::NoTrial,
        }
    }
}

/// Where a rollback leads, and why.
pub(super) struct Way {
    back: Vec<(ActorName, Former)>,
    why: String,
}

/// What a rollback goes by, besides its job.
struct Ways {
    way: Way,
    /// What each actor has run since the generation that it goes back to, that one first.
    since: BTreeMap<ActorName, Vec<Former>>,
}

/// A rollback is in place.
pub(super) struct WentBack {
    way: Way,
    change: ChangePlan,
    changed: Changed,
    /// When the states were put aside that actors were given back.
    since: BTreeMap<ActorName, u64>,
}

impl Reconciler {
    /// What a change that is about to be made means for trials.
    pub(super) fn trying(&self, change: &ChangePlan) -> Trying {
        let touched = touched(change);
        let mut group = self.generations.with(&touched);
        group.extend(change.swap.iter().map(|swap| swap.actor.clone()));
        if group.is_empty() {
            return Trying::Nobody;
        }
        let stops = |actor: &ActorName| change.stop.iter().any(|stop| stop.actor == *actor);
        group.retain(|actor| !stops(actor));
        let on_trial = self.generations.with(&group);
        let judges = group.iter().filter_map(|actor| {
            if on_trial.contains(actor) {
                return Some((actor.clone(), self.generations.last(actor)?.clone()));
            }
            let running = self.running.actors.get(actor)?;
            let (generation, digest) = (running.generation, running.digest);
            let (spec, left) = (running.spec.clone(), LeftBehind::GoneOn);
            Some((actor.clone(), Former { generation, digest, spec, left }))
        });
        let mut after = self.running.around(&group.union(&touched).cloned().collect());
        after.take(change, &BTreeMap::new());
        let back = swaps_back(judges.collect(), &after);
        let metadata = |spec: &ActorSpec, digest: &Digest| self.metadata(spec, digest);
        match fits(&back, &after, &metadata) {
            Err(refused) => {
                let why = format!("what ran before does not fit any more: {}", refused.why);
                Trying::NoJudge { over: group, why }
            }
            Ok(()) if change.swap.is_empty() => Trying::Nobody,
            Ok(()) => Trying::OnTrial,
        }
    }

    /// The change is in place.
    pub(super) fn begin_trials(&mut self, change: &ChangePlan, trying: Trying) {
        for start in &change.start {
            if let Some(was) = &start.was {
                self.generations.rename(was, &start.actor);
                self.memory.bans.rename(was, &start.actor);
            }
        }
        let swapped: BTreeSet<_> = change.swap.iter().map(|swap| swap.actor.clone()).collect();
        for actor in &swapped {
            if let Some(running) = self.running.actors.get(actor) {
                self.generations.replace(actor, running);
            }
            // Disk asks for something else than what is banned.
            self.memory.bans.lift(actor);
        }
        let touches = touched(change);
        let tried = change.swap.iter().any(|swap| swap.spec.settings.trial.is_some());
        match trying {
            Trying::Nobody => {}
            // Who has no trial has passed at once, and is no judge's business after a crash.
            Trying::OnTrial if !tried && self.generations.with(&touches).is_empty() => {}
            Trying::OnTrial => self.generations.begin(swapped, &touches),
            Trying::NoJudge { over, why } => {
                self.generations.leave(&over);
                over.difference(&swapped).for_each(|actor| self.system.end_trial(actor));
                let actors: Vec<_> = over.into_iter().collect();
                info!(?actors, %why, "no trial");
                self.system.events().record(EventKind::NoTrial { actors, why });
            }
        }
    }

    /// Does what follows from how the trials stand.
    pub(super) fn judge_trials(&mut self, snapshot: &Arc<Snapshot>) {
        for verdict in self.generations.weigh(|actor| self.standing(actor)) {
            match verdict {
                // What rolls out is judged when that is over.
                Verdict::Passed(actors) if self.rolls_out(&actors) => {}
                Verdict::Passed(actors) => {
                    self.generations.leave(&actors);
                    actors.iter().for_each(|actor| self.system.end_trial(actor));
                    info!(?actors, "change passed its trial");
                }
                Verdict::GoBack { actors, .. }
                    if self.stuck.standing(&actors, |()| true, Instant::now()).is_some() => {}
                Verdict::GoBack { actors, fell, fall } => {
                    let back = actors.iter().filter_map(|actor| {
                        Some((actor.clone(), self.generations.last(actor)?.clone()))
                    });
                    let back = back.collect();
                    let why = format!("`{fell}` {}", fall.why);
                    // Where it has to wait, this is found again when that is over.
                    _ = self.begin_back(Way { back, why }, None, snapshot);
                }
            }
        }
    }

    /// Whether any of these actors is rolling out.
    fn rolls_out(&self, actors: &BTreeSet<ActorName>) -> bool {
        self.rollouts.changing().any(|rollout| !rollout.touched.is_disjoint(actors))
    }

    fn standing(&self, actor: &ActorName) -> Standing {
        let running = self.running.actors.get(actor).is_some_and(|running| !running.draining);
        let Some(actor) = self.system.actor(actor.as_str()).filter(|_| running) else {
            return Standing::Gone;
        };
        match actor.trial().map(|trial| trial.outcome) {
            Some(TrialOutcome::Running) => Standing::OnTrial,
            Some(TrialOutcome::Fell(fall)) => Standing::Fell(fall),
            Some(TrialOutcome::Passed) | None => Standing::Passed,
        }
    }

    /// Those that have to go back cannot, and rest until they can; said once.
    fn tell_stuck(&mut self, actors: BTreeSet<ActorName>, error: &RollBackError) {
        let why = format!("{error}; it is tried again, and other bytes end it");
        let now = Instant::now();
        if self.stuck.failed(actors.clone(), (), &why, now) {
            warn!(?actors, %why, "rollback is not possible");
            let actors = actors.into_iter().collect();
            self.system.events().record(EventKind::ChangeRefused { actors, why });
        }
        if let Some(again) = self.stuck.next(now) {
            self.watcher.again(again);
        }
    }

    /// An operator wants an actor to run what it ran before. Gives the request back where it
    /// has to wait for a rollout that cannot be taken back any more.
    pub(super) fn roll_back(&mut self, wish: BackWish) -> Option<BackWish> {
        let BackWish { actor, to, answer } = wish;
        let way = match self.way_back(&actor, to) {
            Ok(way) => way,
            Err(error) => {
                // Whoever asked may have given up.
                _ = answer.send(Err(error));
                return None;
            }
        };
        let snapshot = Arc::clone(&self.seen);
        let answer = self.begin_back(way, Some(answer), &snapshot).err()?;
        answer.map(|answer| BackWish { actor, to, answer })
    }

    fn way_back(&self, actor: &ActorName, to: Option<u64>) -> Result<Way, RollBackError> {
        let runs = self.running.actors.get(actor).is_some_and(|running| !running.draining);
        if !runs {
            return Err(RollBackError::NotRunning { actor: actor.clone() });
        }
        let target = self.target(actor, to)?.clone();
        let mut back = vec![(actor.clone(), target)];
        for other in self.generations.with(&[actor.clone()].into()) {
            if other != *actor
                && self.standing(&other) != Standing::Gone
                && let Some(former) = self.generations.last(&other)
            {
                back.push((other, former.clone()));
            }
        }
        Ok(Way { back, why: "an operator asked for it".into() })
    }

    fn target(&self, actor: &ActorName, to: Option<u64>) -> Result<&Former, RollBackError> {
        let former = self.generations.former(actor);
        let Some(last) = former.last() else {
            return Err(RollBackError::NothingBefore { actor: actor.clone() });
        };
        let Some(wanted) = to else { return Ok(last) };
        let known = || former.iter().map(|former| (former.generation.number(), former.digest));
        let running = self.running.actors.get(actor);
        let found = former.iter().find(|former| former.generation.number() == wanted);
        found.ok_or_else(|| RollBackError::NoSuchGeneration {
            actor: actor.clone(),
            wanted,
            runs: running.map_or(0, |running| running.generation.number()),
            known: known().collect(),
        })
    }

    /// Begins to put former generations back. Gives the answer back where that has to wait.
    fn begin_back(
        &mut self,
        way: Way,
        answer: Option<BackAnswer>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), Option<BackAnswer>> {
        let actors: BTreeSet<_> = way.back.iter().map(|(actor, _)| actor.clone()).collect();
        let others = self.rollouts.changing();
        let others: Vec<_> = others.filter(|other| !other.touched.is_disjoint(&actors)).collect();
        if others.iter().any(|other| other.committed || other.change.is_none()) {
            return Err(answer);
        }
        let others: Vec<_> = others.iter().map(|other| other.id).collect();
        if !others.into_iter().all(|id| self.rollouts.take_over(id)) {
            return Err(answer);
        }
        let since = way.back.iter().map(|(actor, former)| {
            let since = self.generations.since(actor, former.generation).cloned();
            (actor.clone(), since.collect())
        });
        let since = since.collect();
        let needs: BTreeSet<_> = way.back.iter().map(|(_, former)| former.digest).collect();
        self.library.claim_more(&needs);
        let job = self.job(&actors, snapshot);
        let ways = Ways { way, since };
        self.rollouts.begin(Aim::Back { answer }, actors, needs, |stage| async move {
            let back = Boundary::Prepare.hold(job.go_back(ways, stage)).await;
            Outcome::Back(
                back.unwrap_or_else(|panic| Err(RollBackError::Unfit { why: panic.to_string() })),
            )
        });
        Ok(())
    }

    /// A rollback has ended.
    pub(super) async fn end_back(
        &mut self,
        actors: BTreeSet<ActorName>,
        answer: Option<BackAnswer>,
        ended: Result<Box<WentBack>, RollBackError>,
    ) {
        let ended = match ended {
            Ok(went) => {
                self.stuck.forget(&actors);
                Ok(self.went_back(went).await)
            }
            Err(error) => Err(error),
        };
        match (answer, ended) {
            // Whoever asked may have given up; what was done stands all the same.
            (Some(answer), ended) => _ = answer.send(ended),
            (None, Ok(_)) => {}
            (None, Err(error)) => self.tell_stuck(actors, &error),
        }
    }

    /// Former generations are in place: what they have replaced is banned.
    async fn went_back(&mut self, went: Box<WentBack>) -> Vec<GoneBack> {
        let WentBack { way: Way { back, why }, change, changed, since } = *went;
        let left = change.swap.iter().filter_map(|swap| {
            Some((swap.actor.clone(), self.running.actors.get(&swap.actor)?.clone()))
        });
        let left: Vec<_> = left.collect();
        self.running.take(&change, &changed.generations);
        self.generations.leave(&left.iter().map(|(actor, _)| actor.clone()).collect());
        for (actor, former) in &back {
            self.generations.went_back(actor, former.generation);
        }
        let lost = changed.lost_turns;
        let lost_turns = lost.values().sum::<u64>();
        let mut gone_back = Vec::new();
        let mut bans = Vec::new();
        for (actor, left) in left {
            let Some(now) = self.running.actors.get(&actor) else { continue };
            let former = back.iter().find(|(name, _)| *name == actor);
            self.memory.bans.allow(&actor, &now.digest, &now.spec.keys);
            let banned = left.digest != now.digest || left.spec.keys != now.spec.keys;
            gone_back.push(GoneBack {
                actor: actor.clone(),
                left: left.generation.number(),
                left_digest: left.digest,
                generation: now.generation.number(),
                digest: now.digest,
                former: former.map_or(0, |(_, former)| former.generation.number()),
                banned,
                lost_turns: lost.get(&actor).copied().unwrap_or(0),
                state_from: since.get(&actor).copied(),
            });
            if banned {
                let (generation, digest) = (left.generation.number(), left.digest);
                bans.push(EventKind::Banned { actor: actor.clone(), generation, digest });
                let ban = Ban { digest, keys: left.spec.keys, why: why.clone() };
                self.memory.bans.add(&actor, ban);
            }
        }
        // Whoever reads the event may end the daemon: it is not forgotten any more.
        self.remember().await;
        let actors: Vec<_> = gone_back.iter().map(|back| back.actor.clone()).collect();
        warn!(?actors, %why, lost_turns, "rolled back");
        let back = gone_back.clone();
        self.system.events().record(EventKind::RolledBack { actors, back, lost_turns, why });
        bans.into_iter().for_each(|ban| self.system.events().record(ban));
        gone_back
    }

    /// What a module says of itself, where it is at hand.
    pub(super) fn metadata(&self, spec: &ActorSpec, digest: &Digest) -> Option<Metadata> {
        metadata_of(&*self.blueprint, &self.library, spec, digest)
    }
}

impl Job {
    /// Puts former generations back, all of them or none.
    async fn go_back(self, ways: Ways, stage: Arc<Stage>) -> Result<Box<WentBack>, RollBackError> {
        let Ways { way, since } = ways;
        for (actor, former) in &way.back {
            let Some(place) = former.spec.module.place_in(&self.folder) else { continue };
            let taken = self.library.take_again(former.digest, &place).await;
            if let Err(error) = taken {
                let why = chain(&error);
                if let Some(path) = error.damaged() {
                    let (path, why) = (path.display().to_string(), why.clone());
                    error!(%path, %why, "kept module is damaged");
                    self.system.events().record(EventKind::DataDamaged { path, why });
                }
                return Err(RollBackError::Unfit { why: format!("`{actor}`: {why}") });
            }
        }
        let change = swaps_back(way.back.clone(), &self.running);
        let metadata = |spec: &ActorSpec, digest: &Digest| {
            metadata_of(&*self.blueprint, &self.library, spec, digest)
        };
        let fits = fits(&change, &self.running, &metadata);
        fits.map_err(|refused| RollBackError::Unfit { why: refused.why })?;

        let mut given = Vec::new();
        for (actor, former) in &way.back {
            let since = since.get(actor).map_or(&[][..], |since| since);
            given.extend(self.given_back(actor, former.generation, since).await?);
        }
        let since: BTreeMap<_, _> =
            given.iter().map(|given| (given.actor().clone(), given.since())).collect();
        let mut ready =
            Change { drain: self.drain, trialing: Trialing::GoingBack, ..Change::default() };
        for Swapping { actor, spec, digest, .. } in &change.swap {
            let made = self.make(actor, spec, *digest).await;
            let made = made.map_err(|refused| RollBackError::Unfit { why: refused.why })?;
            ready.swap.push((actor.clone(), made));
        }
        let mut waits_for = |actors: &[ActorName]| stage.waits_for(actors);
        let halted = self.system.halt_for(&ready, &mut waits_for).await;
        if !stage.commit() {
            // Whoever has taken over ends this task.
            pending::<()>().await;
        }
        // What is lost is known, and written, before they take another turn.
        ready.states = self.write_back(given).await?;
        let applied = Boundary::Change.hold(async {
            let changed = self.system.apply(ready).await;
            self.system.go_on(halted).await;
            changed
        });
        let changed = applied.await.unwrap_or_else(|panic| panic.go_on());
        Ok(Box::new(WentBack { way, change, changed, since }))
    }
}

/// Whether former generations fit the wires that there are now.
fn fits(
    back: &ChangePlan,
    running: &Running,
    metadata: &dyn Fn(&ActorSpec, &Digest) -> Option<Metadata>,
) -> Result<(), ChangeRefused> {
    Fit { change: back, running, metadata, waits: &[], queued: &|_| Vec::new() }.check_wires()
}

fn metadata_of(
    blueprint: &dyn Blueprint,
    library: &Library,
    spec: &ActorSpec,
    digest: &Digest,
) -> Option<Metadata> {
    match &spec.module {
        ModuleRef::Builtin { name } => blueprint.connector_metadata(name, Some(&spec.keys)),
        _ => library.get(digest).map(|module| module.metadata().clone()),
    }
}

/// The change that puts former generations back. What applies in place stays as it is.
fn swaps_back(back: Vec<(ActorName, Former)>, running: &Running) -> ChangePlan {
    let swap = back.into_iter().filter_map(|(actor, former)| {
        let running = running.actors.get(&actor)?;
        let mut spec = former.spec;
        spec.settings = running.spec.settings.clone();
        let (digest, autostarted) = (former.digest, running.autostarted);
        Some(Swapping { actor, spec, digest, autostarted })
    });
    ChangePlan { swap: swap.collect(), ..ChangePlan::default() }
}
