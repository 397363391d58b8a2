//! Begins rollouts, and takes in what has come of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use reflowd_runtime::{ActorName, Digest, panic::Boundary};
use tokio::time::Instant;

use super::{
    Reconciler,
    fit::Fit,
    job::{Applied, ChangeRefused, Job},
    overlap::{Overlap, lead_to_the_same, overlap},
    rollout::{Aim, Ended, Outcome, RolloutId},
    telling::Telling,
    trials::Trying,
};
use crate::{ActorSpec, ChangePlan, Holds, Misfit, Report, Snapshot, plan::touched};

/// What becomes of a change that a pass asks for.
pub(super) enum Attempt {
    /// It is rolling out.
    UnderWay(RolloutId),
    /// Another has to end first.
    Waits(RolloutId),
    /// It does not happen.
    Refused(ChangeRefused),
}

impl Reconciler {
    /// Has a change rolled out, unless it is already, or cannot be.
    pub(super) fn attempt(&mut self, change: &ChangePlan, snapshot: &Arc<Snapshot>) -> Attempt {
        let touches = touched(change);
        let others = match overlap(change, &touches, self.rollouts.changing()) {
            Overlap::Joins(id) => return Attempt::UnderWay(id),
            Overlap::Waits(id) => return Attempt::Waits(id),
            Overlap::Free => Vec::new(),
            Overlap::TakesOver(others) => others,
        };
        // What they lead to is not asked for any more, whatever comes of this.
        if let Some(late) = others.into_iter().find(|id| !self.rollouts.take_over(*id)) {
            return Attempt::Waits(late);
        }
        if let Err(refused) = self.judge(change) {
            return Attempt::Refused(refused);
        }
        let same = |failed: &ChangePlan| lead_to_the_same(failed, change);
        if let Some(why) = self.rests.standing(&touches, same, Instant::now()) {
            return Attempt::Refused(ChangeRefused { why: why.to_owned(), holds: Holds::Known });
        }
        let trying = self.trying(change);
        let trialing = trying.trialing();
        let needs = needs(change);
        self.library.claim_more(&needs);
        let (job, plan) = (self.job(&touches, snapshot), change.clone());
        let aim = Aim::Change { plan: change.clone(), trying };
        let id = self.rollouts.begin(aim, touches.clone(), needs, |stage| async move {
            let rolled = Boundary::Prepare.hold(job.roll_out(plan, trialing, stage)).await;
            let broke = |why: String| Err(ChangeRefused { why, holds: Holds::Rests });
            Outcome::Change(rolled.unwrap_or_else(|panic| broke(panic.to_string())))
        });
        Attempt::UnderWay(id)
    }

    /// Has it tried whether a change could be made.
    pub(super) fn rehearse(
        &mut self,
        change: &ChangePlan,
        snapshot: &Arc<Snapshot>,
    ) -> Result<RolloutId, ChangeRefused> {
        self.judge(change)?;
        let touches = touched(change);
        let (job, plan) = (self.job(&touches, snapshot), change.clone());
        let aim = Aim::Rehearsal { plan: change.clone() };
        Ok(self.rollouts.begin(aim, touches, needs(change), |_| async move {
            let tried = Boundary::Prepare.hold(job.rehearse(&plan)).await;
            let broke = |why: String| Err(ChangeRefused { why, holds: Holds::Rests });
            Outcome::Rehearsal(tried.unwrap_or_else(|panic| broke(panic.to_string())))
        }))
    }

    /// What a rollout among these actors works with.
    pub(super) fn job(&self, actors: &BTreeSet<ActorName>, snapshot: &Arc<Snapshot>) -> Job {
        let resumed = actors.iter().filter_map(|actor| self.resumed.get_key_value(actor));
        let epochs = actors.iter().filter_map(|actor| self.epochs.get_key_value(actor));
        let unread = self.unread.iter();
        Job {
            system: self.system.clone(),
            blueprint: Arc::clone(&self.blueprint),
            library: self.library.clone(),
            folder: self.folder.clone(),
            drain: self.drain,
            states: self.states.clone(),
            running: self.running.around(actors),
            resumed: resumed.map(|(actor, resumed)| (actor.clone(), resumed.clone())).collect(),
            epochs: epochs.map(|(actor, epoch)| (actor.clone(), *epoch)).collect(),
            unread: unread.map(|(digest, unread)| (*digest, unread.why.clone())).collect(),
            snapshot: Arc::clone(snapshot),
        }
    }

    /// Gives up what rolls out and is not asked for any more: nothing of these plans is about
    /// any of its actors.
    pub(super) fn give_up_rollouts<'a>(&mut self, asked: impl Iterator<Item = &'a ChangePlan>) {
        let asked: BTreeSet<ActorName> = asked.flat_map(touched).collect();
        let stray = self.rollouts.changing().filter(|rollout| {
            rollout.change.is_some() && !rollout.committed && rollout.touched.is_disjoint(&asked)
        });
        for id in stray.map(|rollout| rollout.id).collect::<Vec<_>>() {
            self.rollouts.take_over(id);
        }
    }

    /// Takes in what has come of rollouts.
    pub(super) async fn end_rollouts(&mut self, first: Ended) {
        let mut ended = vec![first];
        while let Some(also) = self.rollouts.also_ended() {
            ended.push(also);
        }
        let mut made: BTreeMap<RolloutId, ChangePlan> = BTreeMap::new();
        for Ended { id, rollout, outcome } in ended {
            let outcome = match (rollout.aim, outcome) {
                (Aim::Change { plan, trying }, Some(Outcome::Change(Ok(applied)))) => {
                    // Where it breaks, nobody can say what runs.
                    let taken = Boundary::Change.catch(|| self.applied(&plan, trying, applied));
                    taken.unwrap_or_else(|panic| panic.go_on());
                    _ = made.insert(id, plan);
                    continue;
                }
                (Aim::Change { plan, .. }, Some(Outcome::Change(Err(refused)))) => {
                    self.refused(plan, rollout.touched, refused);
                    continue;
                }
                (Aim::Rehearsal { plan }, Some(Outcome::Rehearsal(tried))) => {
                    self.rehearsed(id, &plan, tried);
                    continue;
                }
                (Aim::Back { answer }, Some(Outcome::Back(back))) => {
                    self.end_back(rollout.touched, answer, back).await;
                    continue;
                }
                (aim, _) => aim,
            };
            // Its task was torn down: the process is ending, or another pass finds it undone.
            drop(outcome);
        }
        if !made.is_empty() {
            // What runs is not forgotten any more when somebody is told of it.
            self.remember().await;
        }
        for (id, plan) in made {
            let mut telling = Telling::new(self.system.clone(), BTreeSet::new(), false);
            telling.change(&plan);
            telling.changed();
            let (report, _) = telling.end();
            self.tell_askers(id, &report);
        }
        self.pass_soon();
    }

    /// A change is in place.
    fn applied(&mut self, change: &ChangePlan, trying: Trying, applied: Applied) {
        let Applied { changed, aside } = applied;
        self.rests.forget(&touched(change));
        self.begin_trials(change, trying);
        self.running.take(change, &changed.generations);
        self.recollected_run(change);
        for (actor, aside) in aside {
            self.resumed.remove(&actor);
            self.generations.migrated(&actor, aside);
        }
    }

    /// A change was not made, which the next pass tells of.
    fn refused(
        &mut self,
        change: ChangePlan,
        touched: BTreeSet<ActorName>,
        refused: ChangeRefused,
    ) {
        let (ChangeRefused { why, holds }, now) = (refused, Instant::now());
        match holds {
            Holds::Passes => _ = self.rests.failed(touched, change, &why, now),
            Holds::Lasts | Holds::Rests | Holds::Known => {
                self.rests.forget(&touched);
                self.memory.refused_changes.refuse(change, holds, why, now);
            }
        }
        let again = [self.rests.next(now), self.memory.refused_changes.next_retry(now)];
        again.into_iter().flatten().for_each(|again| self.watcher.again(again));
    }

    /// It is known whether a change could be made.
    fn rehearsed(&mut self, id: RolloutId, change: &ChangePlan, tried: Result<(), ChangeRefused>) {
        let mut telling = Telling::new(self.system.clone(), BTreeSet::new(), true);
        match tried {
            Ok(()) => telling.change(change),
            Err(refused) => telling.change_refused(change, &refused.why),
        }
        let (report, _) = telling.end();
        self.tell_askers(id, &report);
    }

    /// Tells those who wait for a rollout what has come of it.
    fn tell_askers(&mut self, id: RolloutId, lines: &Report) {
        for asker in self.askers.iter_mut().filter(|asker| asker.waits_for(id)) {
            asker.add(lines);
        }
    }

    /// What can be said against a change without making anything.
    pub(super) fn judge(&self, change: &ChangePlan) -> Result<(), ChangeRefused> {
        if let Some(why) = self.memory.refused_changes.standing(change, Instant::now()) {
            return Err(ChangeRefused { why: why.into(), holds: Holds::Known });
        }
        let metadata = |spec: &ActorSpec, digest: &Digest| self.metadata(spec, digest);
        let queued = |actor: &ActorName| {
            let actor = self.system.actor(actor.as_str());
            actor.map(|actor| actor.mailbox().queued_by_port()).unwrap_or_default()
        };
        let (running, waits) = (&self.running, &self.memory.flow.waits);
        let fit = Fit { change, running, metadata: &metadata, waits, queued: &queued }.check();
        fit.map_err(|refused| self.explain(change, refused))
    }

    /// The same refusal as the configuration's check tells it, with the lines of the files.
    fn explain(&self, change: &ChangePlan, refused: ChangeRefused) -> ChangeRefused {
        let touched = touched(change);
        let about = |misfit: &&Misfit| !misfit.actors.is_disjoint(&touched);
        let told: Vec<_> =
            self.memory.misfits.iter().filter(about).map(|misfit| misfit.why.trim_end()).collect();
        if told.is_empty() {
            return refused;
        }
        ChangeRefused { why: told.join("\n"), ..refused }
    }
}

/// The modules that a change needs.
fn needs(change: &ChangePlan) -> BTreeSet<Digest> {
    let starts = change.start.iter().map(|start| start.digest);
    starts.chain(change.swap.iter().map(|swap| swap.digest)).collect()
}
