//! Somebody who waits for what passes come to.

use std::collections::BTreeSet;

use reflowd_runtime::Digest;
use tokio::{sync::oneshot, time::Instant};

use super::{
    loads::Loads,
    reloader::ReloadError,
    rollout::{RolloutId, Rollouts},
};
use crate::{Depth, ReloadOptions, Remaining, Report};

/// What one pass has left to wait for.
#[derive(Default)]
pub(super) struct Pending {
    /// Rollouts that it has begun or joined, or that have to end first.
    pub(super) rollouts: BTreeSet<RolloutId>,
    /// Modules that it needs and that are being loaded.
    pub(super) loads: BTreeSet<Digest>,
    /// When another look is worth it, as files are being written.
    pub(super) again: Option<Instant>,
    /// Until when downloads are worth waiting for.
    pub(super) downloads: Option<Instant>,
}

/// Somebody who has asked for a pass.
pub(super) struct Asker {
    pub(super) options: ReloadOptions,
    pub(super) depth: Depth,
    answer: oneshot::Sender<Result<Report, ReloadError>>,
    /// Until when files are waited for that are being written.
    patience: Instant,
    /// When it is answered, whatever is still under way.
    until: Option<Instant>,
    /// What the last pass has said.
    latest: Report,
    /// What rollouts have done since.
    done: Report,
    pending: Pending,
    stage: AskerStage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AskerStage {
    /// Nothing has been done for it yet.
    Fresh,
    /// What its last pass has begun is waited for.
    Waiting,
}

impl Asker {
    pub(super) fn new(
        options: ReloadOptions,
        depth: Depth,
        patience: Instant,
        answer: oneshot::Sender<Result<Report, ReloadError>>,
    ) -> Self {
        let (latest, done) = (Report::default(), Report::default());
        let (pending, stage) = (Pending::default(), AskerStage::Fresh);
        let until = options.timeout.map(|timeout| Instant::now() + timeout);
        Self { options, depth, answer, patience, until, latest, done, pending, stage }
    }

    /// Whether no pass was made for it yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.stage == AskerStage::Fresh
    }

    /// A pass was made for it.
    pub(super) fn took(&mut self, report: Report, pending: Pending) {
        self.latest = report;
        if self.options.dry_run {
            // It is tried anew, by what is on disk now.
            self.done = Report::default();
        }
        self.pending = pending;
        if self.pending.again.is_some_and(|again| again >= self.patience) {
            self.pending.again = None;
        }
        self.stage = AskerStage::Waiting;
        // What was refused before may go now, or is asked for no more; and what a force has
        // lifted is lifted. A dry run has put everything back.
        self.options.force &= self.options.dry_run;
    }

    pub(super) fn waits_for(&self, rollout: RolloutId) -> bool {
        self.pending.rollouts.contains(&rollout)
    }

    /// Something has come of a rollout that it waits for.
    pub(super) fn add(&mut self, lines: &Report) {
        self.done.added.extend_from_slice(&lines.added);
        self.done.changed.extend_from_slice(&lines.changed);
        self.done.removed.extend_from_slice(&lines.removed);
        self.done.refused.extend_from_slice(&lines.refused);
    }

    /// What is to be done for it now.
    pub(super) fn due(&self, rollouts: &Rollouts, loads: &Loads, now: Instant) -> Due {
        let due = self.due_in_time(rollouts, loads, now);
        let Some(until) = self.until.filter(|_| !self.is_fresh()) else { return due };
        match due {
            Due::Nothing | Due::At(_) if until <= now => Due::Answer,
            Due::Nothing => Due::At(until),
            Due::At(at) => Due::At(at.min(until)),
            Due::Pass | Due::Answer => due,
        }
    }

    /// The same, for one who waits as long as it takes.
    fn due_in_time(&self, rollouts: &Rollouts, loads: &Loads, now: Instant) -> Due {
        let Pending { rollouts: waits_for, loads: modules, again, downloads } = &self.pending;
        let rolls = waits_for.iter().any(|id| rollouts.is_under_way(*id));
        let loading = modules.iter().any(|digest| loads.is_under_way(digest));
        match self.stage {
            AskerStage::Fresh => Due::Pass,
            AskerStage::Waiting if rolls || loading => Due::Nothing,
            // Of a dry run it is known what could be done; another would try it again.
            AskerStage::Waiting if !waits_for.is_empty() && !self.options.dry_run => Due::Pass,
            AskerStage::Waiting if !modules.is_empty() => Due::Pass,
            AskerStage::Waiting => match (again, downloads) {
                (Some(again), _) if *again <= now => Due::Pass,
                (Some(again), _) => Due::At(*again),
                (None, Some(until)) if *until <= now => Due::Pass,
                (None, Some(until)) => Due::At(*until),
                (None, None) => Due::Answer,
            },
        }
    }

    /// A download has ended, or the disk has changed: what waits for that need not any more.
    pub(super) fn has_news(&mut self, now: Instant) {
        if let Some(until) = &mut self.pending.downloads {
            *until = now;
        }
    }

    /// All that has been said until now.
    pub(super) fn report(&self) -> Report {
        let Self { latest, done, .. } = self;
        let mut report = latest.clone();
        let both = |done: &[_], latest: &[_]| [done, latest].concat();
        report.added = both(&done.added, &latest.added);
        report.changed = both(&done.changed, &latest.changed);
        report.removed = both(&done.removed, &latest.removed);
        report.refused.extend_from_slice(&done.refused);
        report
    }

    /// What of that which it waits for is still under way.
    pub(super) fn under_way(&self, rollouts: &Rollouts, loads: &Loads) -> Vec<Remaining> {
        let modules = self.pending.loads.iter().filter(|digest| loads.is_under_way(digest));
        let modules = modules.map(|digest| Remaining {
            what: format!("module {}", digest.short()),
            why: "it is being loaded".into(),
        });
        rollouts.remaining(&self.pending.rollouts).chain(modules).collect()
    }

    /// Says what has come of it.
    pub(super) fn answer(self, under_way: Vec<Remaining>) {
        let report = Report { under_way, ..self.report() };
        // Whoever asked may have given up; what was done stands all the same.
        _ = self.answer.send(Ok(report));
    }
}

/// What is to be done for an asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It waits for what will say when it has ended.
    Nothing,
    /// Something is to be done then.
    At(Instant),
    /// A pass.
    Pass,
    /// It is to be told.
    Answer,
}
