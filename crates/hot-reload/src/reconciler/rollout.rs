//! Rollouts: each takes one group of actors from "disk differs" to "applied" or "refused",
//! beside all others.
//!
//! A rollout is a task with a [`Job`](super::job::Job) of its own. Until its point of no
//! return it can be taken over by one that leads elsewhere; from then on its actors are no
//! other's until it has ended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::pending,
    sync::Arc,
};

use parking_lot::Mutex;
use reflowd_runtime::{ActorName, Digest, GoneBack};
use tokio::{
    sync::{Notify, oneshot},
    task::{AbortHandle, Id, JoinError, JoinSet},
};

use super::{
    RollBackError,
    job::{Applied, ChangeRefused},
    overlap::UnderWay,
    trials::{Trying, WentBack},
};
use crate::{ChangePlan, Remaining};

/// Tells rollouts of one process apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RolloutId(u64);

impl RolloutId {
    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// How far a rollout has come, as its task and others see it.
#[derive(Default)]
pub(super) struct Stage {
    progress: Mutex<Progress>,
    /// Told of what people may want to see.
    news: Arc<Notify>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// Its modules are being made ready.
    #[default]
    Preparing,
    /// It waits for turns to end.
    Waiting(Vec<ActorName>),
    /// It is past the point of no return.
    Committed,
    /// Another has taken over.
    TakenOver,
}

impl Stage {
    /// The rollout waits for the turns of these actors to end.
    pub(super) fn waits_for(&self, actors: &[ActorName]) {
        let mut progress = self.progress.lock();
        if matches!(*progress, Progress::Preparing | Progress::Waiting(_)) {
            *progress = Progress::Waiting(actors.to_vec());
            self.news.notify_one();
        }
    }

    /// Goes past the point of no return. False where another has taken over.
    pub(super) fn commit(&self) -> bool {
        let mut progress = self.progress.lock();
        if *progress == Progress::TakenOver {
            return false;
        }
        *progress = Progress::Committed;
        true
    }

    /// Takes over. False where it is too late for that.
    fn take_over(&self) -> bool {
        let mut progress = self.progress.lock();
        if *progress == Progress::Committed {
            return false;
        }
        *progress = Progress::TakenOver;
        true
    }

    fn is_committed(&self) -> bool {
        *self.progress.lock() == Progress::Committed
    }

    /// What the rollout is at, for people.
    fn show(&self) -> String {
        match &*self.progress.lock() {
            Progress::Preparing => "being prepared".into(),
            Progress::Waiting(actors) if actors.is_empty() => "about to be put in place".into(),
            Progress::Waiting(actors) => {
                let names: Vec<_> = actors.iter().map(|actor| format!("`{actor}`")).collect();
                format!("waiting for the turn of {}", names.join(", "))
            }
            Progress::Committed => "being put in place".into(),
            Progress::TakenOver => "being given up".into(),
        }
    }
}

/// What a rollout is for.
pub(super) enum Aim {
    /// Disk asks for it.
    Change {
        plan: ChangePlan,
        /// What it means for trials.
        trying: Trying,
    },
    /// Somebody wants to know whether it could be done.
    Rehearsal { plan: ChangePlan },
    /// Actors go back to what they ran before.
    Back {
        /// Who is told, where somebody has asked for it.
        answer: Option<BackAnswer>,
    },
}

/// Tells who has asked for a rollback what has come of it.
pub(super) type BackAnswer = oneshot::Sender<Result<Vec<GoneBack>, RollBackError>>;

/// What has come of a rollout.
pub(super) enum Outcome {
    Change(Result<Applied, ChangeRefused>),
    Rehearsal(Result<(), ChangeRefused>),
    Back(Result<Box<WentBack>, RollBackError>),
}

impl Aim {
    /// Whether it changes anything.
    fn changes(&self) -> bool {
        !matches!(self, Self::Rehearsal { .. })
    }

    /// What disk has asked for.
    fn change(&self) -> Option<&ChangePlan> {
        match self {
            Self::Change { plan, .. } => Some(plan),
            Self::Rehearsal { .. } | Self::Back { .. } => None,
        }
    }
}

/// One rollout that is under way.
pub(super) struct Rollout {
    pub(super) aim: Aim,
    /// The actors that are no other's until it has ended.
    pub(super) touched: BTreeSet<ActorName>,
    /// The modules that it needs.
    pub(super) needs: BTreeSet<Digest>,
    stage: Arc<Stage>,
    task: AbortHandle,
}

/// All rollouts that are under way.
#[derive(Default)]
pub(super) struct Rollouts {
    under_way: BTreeMap<RolloutId, Rollout>,
    tasks: JoinSet<Outcome>,
    ids: HashMap<Id, RolloutId>,
    last: u64,
    news: Arc<Notify>,
}

/// How one has ended; nothing, where its task broke in a way that no boundary has caught.
pub(super) struct Ended {
    pub(super) id: RolloutId,
    pub(super) rollout: Rollout,
    pub(super) outcome: Option<Outcome>,
}

impl Rollouts {
    /// Begins one. `task` gets its stage.
    pub(super) fn begin<F>(
        &mut self,
        aim: Aim,
        touched: BTreeSet<ActorName>,
        needs: BTreeSet<Digest>,
        task: impl FnOnce(Arc<Stage>) -> F,
    ) -> RolloutId
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        self.last += 1;
        let (id, news) = (RolloutId(self.last), Arc::clone(&self.news));
        let stage = Arc::new(Stage { news, ..Stage::default() });
        let task = self.tasks.spawn(task(Arc::clone(&stage)));
        self.ids.insert(task.id(), id);
        self.under_way.insert(id, Rollout { aim, touched, needs, stage, task });
        id
    }

    /// Gives one up before its point of no return. False where it is past that.
    pub(super) fn take_over(&mut self, id: RolloutId) -> bool {
        let Some(rollout) = self.under_way.get(&id) else { return true };
        if !rollout.stage.take_over() {
            return false;
        }
        rollout.task.abort();
        self.under_way.remove(&id);
        true
    }

    /// Those that change something, for a newcomer to look at.
    pub(super) fn changing(&self) -> impl Iterator<Item = UnderWay<'_>> {
        let changing = self.under_way.iter().filter(|(_, rollout)| rollout.aim.changes());
        changing.map(|(id, rollout)| UnderWay {
            id: *id,
            touched: &rollout.touched,
            change: rollout.aim.change(),
            committed: rollout.stage.is_committed(),
        })
    }

    /// What each actor that is rolling out is waiting for.
    pub(super) fn progress(&self) -> BTreeMap<ActorName, String> {
        let changing = self.under_way.values().filter(|rollout| rollout.aim.changes());
        let actors = changing.flat_map(|rollout| {
            let progress = rollout.stage.show();
            rollout.touched.iter().map(move |actor| (actor.clone(), progress.clone()))
        });
        actors.collect()
    }

    /// What those wait for of them that are still under way.
    pub(super) fn remaining(&self, of: &BTreeSet<RolloutId>) -> impl Iterator<Item = Remaining> {
        of.iter().filter_map(|id| self.under_way.get(id)).map(|rollout| {
            let actors: Vec<_> = rollout.touched.iter().map(ActorName::as_str).collect();
            let why = format!("it is {}", rollout.stage.show());
            Remaining { what: actors.join(", "), why }
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn is_under_way(&self, id: RolloutId) -> bool {
        self.under_way.contains_key(&id)
    }

    /// The modules that any of them needs.
    pub(super) fn needs(&self) -> BTreeSet<Digest> {
        self.under_way.values().flat_map(|rollout| &rollout.needs).copied().collect()
    }

    /// Told when one of them waits for something else than before.
    pub(super) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// Returns when one has ended. Cancel at will.
    pub(super) async fn ended(&mut self) -> Ended {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(ended) => {
                    if let Some(ended) = self.note(ended) {
                        return ended;
                    }
                }
                None => pending().await,
            }
        }
    }

    /// One more that has ended, if there is one.
    pub(super) fn also_ended(&mut self) -> Option<Ended> {
        loop {
            let ended = self.tasks.try_join_next_with_id()?;
            if let Some(ended) = self.note(ended) {
                return Some(ended);
            }
        }
    }

    fn note(&mut self, ended: Result<(Id, Outcome), JoinError>) -> Option<Ended> {
        let (task, outcome) = match ended {
            Ok((task, outcome)) => (task, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let id = self.ids.remove(&task)?;
        // One that was taken over has nothing to say.
        let rollout = self.under_way.remove(&id)?;
        Some(Ended { id, rollout, outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_over_after_the_point_of_no_return() {
        let stage = Stage::default();
        stage.waits_for(&["a".parse().unwrap()]);
        assert_eq!(stage.show(), "waiting for the turn of `a`");
        assert!(stage.commit() && !stage.take_over() && stage.is_committed());
        stage.waits_for(&[]);
        assert!(stage.is_committed());
    }

    #[test]
    fn one_that_was_taken_over_does_not_go_on() {
        let stage = Stage::default();
        assert!(stage.take_over() && !stage.commit() && !stage.is_committed());
    }
}
