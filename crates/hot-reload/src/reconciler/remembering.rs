//! What outlives the daemon: who ran what, what can be gone back to, what is banned.
//!
//! At the start, actors come up as what last passed its trial, from the kept modules;
//! then disk is looked at as ever. So a file that has changed meanwhile is a swap with
//! a trial, one that is gone or bad is no obstacle, and a ban holds.

use std::{collections::BTreeMap, sync::Arc};

use reflowd_runtime::{ActorName, Digest, EventKind, Generation, panic::blocking};
use tracing::{info, warn};

use super::{Reconciler, migration::StateLeft, telling::chain};
use crate::{
    ActorSpec, ChangePlan, Flow, LeftBehind, ModuleRef, Snapshot, Starting, WireSpec,
    history::{Recollection, Remembered},
};

impl Reconciler {
    /// Takes up what an earlier process has left of the actors of a flow, and of those
    /// that files alone have started.
    pub(super) fn recollect(&mut self, flow: &Flow) {
        let known: Vec<_> =
            self.history.actors().map(|(name, auto)| (name.clone(), auto)).collect();
        for (name, autostarted) in known {
            let spec = match (flow.actors.get(&name), &self.autostart) {
                (Some(spec), _) => spec.clone(),
                (None, Some(template)) if autostarted => template.spec(name.as_str()),
                (None, _) => continue,
            };
            if matches!(spec.module, ModuleRef::Builtin { .. }) {
                continue;
            }
            if let Some(known) = self.history.recollect(&name, &spec) {
                self.take_up(name, &spec, known);
            }
        }
    }

    fn take_up(&mut self, name: ActorName, spec: &ActorSpec, known: Recollection) {
        let Recollection { last, generation, former, bans, epoch, ran } = known;
        let judge = last
            .as_ref()
            .and_then(|last| former.last().filter(|former| former.generation == last.generation));
        let aside = match judge.map(|judge| &judge.left) {
            Some(LeftBehind::Migrated(aside)) => Some(aside.clone()),
            Some(LeftBehind::GoneOn | LeftBehind::Unsaid) | None => None,
        };
        let mut last = last;
        if !self.take_up_state(&name, StateLeft { epoch, ran, aside }) {
            let why = "the state from before its trial cannot be had, which what ran before needs";
            warn!(actor = %name, %why, "actor starts as what is on disk");
            let (actors, why) = (vec![name.clone()], why.into());
            self.system.events().record(EventKind::NoTrial { actors, why });
            last = None;
        }
        // What runs on is no other generation.
        let same = last.as_ref().is_some_and(|last| last.generation == generation);
        let before = if same { generation.number().saturating_sub(1) } else { generation.number() };
        self.system.follow_on(name.clone(), Generation::numbered(before));
        for ban in bans {
            self.memory.bans.add(&name, ban);
        }
        self.generations.recollect(name.clone(), former);
        if let Some(mut last) = last {
            last.spec.settings = spec.settings.clone();
            self.recollected.insert(name, last);
        }
    }

    /// Loads what actors ran last where their files cannot be used, so that a
    /// configuration can be held against it.
    pub(super) fn load_recollected(&mut self, flow: &Flow, snapshot: &Arc<Snapshot>) {
        for (name, spec) in &flow.actors {
            let Some(digest) = self.recollected.get(name).map(|last| last.digest) else { continue };
            let Some(place) = spec.module.place_in(&self.folder) else { continue };
            let on_disk = snapshot.module(&spec.module).present().copied();
            let usable = |digest: Digest| {
                self.library.get(&digest).is_some() || self.loads.is_under_way(&digest)
            };
            if !on_disk.is_some_and(usable) {
                self.load(digest, &place, snapshot);
                if self.loads.is_under_way(&digest) {
                    self.awaited.insert(digest);
                }
            }
        }
    }

    /// A change is made: whoever it has started has no other past any more.
    pub(super) fn recollected_run(&mut self, change: &ChangePlan) {
        for start in &change.start {
            self.epochs.remove(&start.actor);
            if let Some(last) = self.recollected.remove(&start.actor) {
                // It runs, and is not what could be gone back to as well.
                self.generations.unfold(&start.actor, last.generation);
                let (actor, digest) = (&start.actor, last.digest.short());
                info!(%actor, %digest, "actor runs on as before the restart");
                self.again = true;
            }
        }
    }

    /// The part of a change that starts what ran before the restart, where the change is also
    /// about actors that did not: those had no wires then, so leaving out theirs takes none away.
    pub(super) fn without_newcomers(&self, change: &ChangePlan) -> Option<ChangePlan> {
        let ran = |actor: &ActorName| self.recollected.contains_key(actor);
        if !change.start.iter().any(|start| ran(&start.actor)) {
            return None;
        }
        let stays = |start: &&Starting| {
            ran(&start.actor) || matches!(start.spec.module, ModuleRef::Builtin { .. })
        };
        let start: Vec<_> = change.start.iter().filter(stays).cloned().collect();
        let here = |actor: &ActorName| {
            start.iter().any(|start| start.actor == *actor)
                || self.running.actors.contains_key(actor)
        };
        let fits = |wire: &&WireSpec| here(&wire.from.actor) && here(&wire.to.actor);
        let connect: Vec<_> = change.connect.iter().filter(fits).cloned().collect();
        let all = start.len() == change.start.len() && connect.len() == change.connect.len();
        (!all).then(|| ChangePlan { start, connect, ..change.clone() })
    }

    /// A change is refused: if that is for what actors ran before the restart, they
    /// start as disk asks instead. True where that is so.
    pub(super) fn give_up_recollected(&mut self, change: &ChangePlan, why: &str) -> bool {
        let mut actors = Vec::new();
        for start in &change.start {
            if let Some(last) = self.recollected.remove(&start.actor) {
                // What disk asks for goes on with the state that is there.
                self.resumed.remove(&start.actor);
                self.system.follow_on(start.actor.clone(), last.generation);
                actors.push(start.actor.clone());
            }
        }
        if actors.is_empty() {
            return false;
        }
        let why = format!("what ran before the restart cannot run now: {why}");
        warn!(?actors, %why, "actors start as what is on disk");
        self.system.events().record(EventKind::NoTrial { actors, why });
        self.again = true;
        true
    }

    /// Writes what another process has to know, if that is news.
    pub(super) async fn remember(&mut self) {
        if !self.configured {
            return;
        }
        // Of those that have resumed, what is written still holds.
        let resumed = |name: &ActorName| self.resumed.contains_key(name);
        let running = self.running.actors.iter();
        let running = running.filter(|(name, actor)| !actor.draining && !resumed(name));
        let remembered = running.map(|(name, running)| {
            let actor = self.system.actor(name.as_str());
            let remembered = Remembered {
                running,
                judge: self.generations.judge(name),
                former: self.generations.former(name),
                bans: self.memory.bans.of(name),
                epoch: actor.as_ref().map(|actor| actor.epoch_state().epoch).unwrap_or_default(),
                version: actor.and_then(|actor| actor.status().version),
            };
            (name.clone(), remembered)
        });
        let remembered: BTreeMap<_, _> = remembered.collect();
        let (flow, autostart) = (&self.memory.flow, self.autostart.is_some());
        let asked = |name: &ActorName| flow.actors.contains_key(name) || autostart;
        let suspects = self.memory.bans.suspects();
        let Some(writing) = self.history.next(&remembered, asked, suspects) else {
            return self.settle_states().await;
        };
        let (writing, written) = blocking(move || {
            let written = writing.write();
            (writing, written)
        })
        .await;
        match written {
            Ok(()) => {
                self.unwritten = None;
                self.history.wrote(writing);
                self.settle_states().await;
            }
            Err(error) => {
                let why = chain(&error);
                if self.unwritten.as_ref() != Some(&why) {
                    warn!(%why, "generations and bans cannot be written, and are lost with the daemon");
                    self.unwritten = Some(why);
                }
            }
        }
    }
}
