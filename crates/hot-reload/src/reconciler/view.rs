//! How actors and files stand to each other, for whoever asks between passes.

use std::{collections::BTreeMap, path::Path};

use reflowd_runtime::{ActorName, ActorState, Digest};
use tokio::time::Instant;

use crate::{
    ActorSpec, ActorView, BadModules, Bans, Doubt, Flow, ModuleFile, ModulePlace, ModuleRef,
    Running, RunningActor, Sight, Snapshot, Trouble, View,
};

/// What a view is made of.
pub(super) struct Stand<'a> {
    pub(super) flow: &'a Flow,
    pub(super) running: &'a Running,
    pub(super) snapshot: &'a Snapshot,
    pub(super) bad_modules: &'a BadModules,
    pub(super) bans: &'a Bans,
    /// What keeps actors from becoming what disk asks for.
    pub(super) held: &'a BTreeMap<ActorName, String>,
    /// What those wait for that are rolling out.
    pub(super) rolling_out: BTreeMap<ActorName, String>,
    /// The watched folder.
    pub(super) folder: &'a Path,
    pub(super) now: Instant,
}

impl Stand<'_> {
    /// All actors that disk asks for or that run.
    pub(super) fn actors(&self) -> View {
        let running = self.running.actors.iter();
        let running = running.map(|(name, actor)| {
            (name.clone(), self.running_actor(name, actor, self.flow.actors.get(name)))
        });
        let asked = self.flow.actors.iter();
        let pending = asked.filter(|(name, _)| !self.running.actors.contains_key(*name));
        let pending = pending.map(|(name, spec)| (name.clone(), self.pending_actor(name, spec)));
        running.chain(pending).collect()
    }

    fn running_actor(
        &self,
        name: &ActorName,
        actor: &RunningActor,
        asked: Option<&ActorSpec>,
    ) -> ActorView {
        let sight = self.snapshot.module(&actor.spec.module);
        let wanted = wanted(&actor.spec.module, &sight);
        let file_gone = matches!(sight, Sight::Gone);
        let keys = asked.map_or(&actor.spec.keys, |spec| &spec.keys);
        let is_banned = |digest| self.bans.standing(name, &digest, keys).is_some();
        let banned = wanted.is_some_and(is_banned);
        let spec_in_force =
            actor.autostarted || asked.is_some_and(|spec| same_spec(spec, &actor.spec));
        ActorView {
            module: actor.spec.module.to_string(),
            autostarted: actor.autostarted,
            wanted,
            // What was refused may be a wire.
            in_sync: spec_in_force
                && wanted == Some(actor.digest)
                && !self.held.contains_key(name)
                && !self.rolling_out.contains_key(name),
            file_gone,
            banned,
            held: self.held.get(name).cloned(),
            rolling_out: self.rolling_out.get(name).cloned(),
            pending: None,
        }
    }

    fn pending_actor(&self, name: &ActorName, spec: &ActorSpec) -> ActorView {
        let sight = self.snapshot.module(&spec.module);
        let wanted = wanted(&spec.module, &sight);
        let refusal = wanted.and_then(|digest| self.bad_modules.standing(&digest, self.now));
        let why = match (&sight, refusal) {
            _ if let Some(what) = self.rolling_out.get(name) => format!("it is {what}"),
            _ if let Some(why) = self.held.get(name) => why.clone(),
            (_, Some(refusal)) => refusal.why.clone(),
            (Sight::Unsettled, None) if let ModuleRef::Url { url, .. } = &spec.module => {
                Doubt::OnItsWay(url.clone()).to_string()
            }
            (Sight::Unknown(trouble @ Trouble::NotDownloaded(_)), None) => {
                Doubt::NotDownloaded(trouble.clone()).to_string()
            }
            _ => "its change was refused; see `reflowd events`".into(),
        };
        ActorView {
            module: spec.module.to_string(),
            autostarted: false,
            wanted,
            in_sync: false,
            file_gone: false,
            banned: false,
            held: self.held.get(name).cloned(),
            rolling_out: self.rolling_out.get(name).cloned(),
            pending: Some((ActorState::Loading, why)),
        }
    }

    /// All files of modules that the look has seen, and all downloads.
    pub(super) fn modules(&self) -> Vec<ModuleFile> {
        let in_folder = self.snapshot.modules.iter();
        let in_folder = in_folder.map(|(name, sight)| (self.folder.join(name), sight));
        let by_path = self.snapshot.paths.iter().map(|(path, sight)| (path.clone(), sight));
        let files =
            in_folder.chain(by_path).map(|(f, sight)| (ModulePlace::File(f), sight.clone()));
        let downloads = self.flow.downloads().into_iter().flat_map(|(digest, urls)| {
            let sight = self.snapshot.downloads.get(&digest).cloned().unwrap_or(Sight::Unsettled);
            urls.into_iter().map(move |url| (ModulePlace::Url(url), sight.clone()))
        });
        files.chain(downloads).map(|(place, sight)| self.module(place, &sight)).collect()
    }

    fn module(&self, place: ModulePlace, sight: &Sight<Digest>) -> ModuleFile {
        let digest = sight.present().copied();
        let uses = |actor: &RunningActor| {
            Some(actor.digest) == digest
                && actor.spec.module.place_in(self.folder).as_ref() == Some(&place)
        };
        let actors = self.running.actors.iter().filter(|(_, actor)| uses(actor));
        let actors: Vec<_> = actors.map(|(name, _)| name.clone()).collect();
        let refusal = digest.and_then(|digest| self.bad_modules.standing(&digest, self.now));
        let (state, why) = match (sight, refusal) {
            (_, Some(refusal)) => ("refused", Some(refusal.why.clone())),
            (Sight::Present(_), None) if !actors.is_empty() => ("running", None),
            (Sight::Present(_), None) => ("unused", None),
            (Sight::Unsettled, _) if place.file().is_none() => ("on its way", None),
            (Sight::Unsettled, _) => ("being written", None),
            (Sight::Missing | Sight::Gone, _) => ("gone", None),
            (Sight::Unknown(trouble), _) => ("unknown", Some(trouble.to_string())),
        };
        ModuleFile { place, digest, state, why, actors }
    }
}

/// What disk asks for; of a download that is known before it is here.
fn wanted(module: &ModuleRef, sight: &Sight<Digest>) -> Option<Digest> {
    match module {
        ModuleRef::Url { sha256, .. } => Some(*sha256),
        _ => sight.present().copied(),
    }
}

/// Whether both ask for the same, wherever they stand in the configuration.
fn same_spec(a: &ActorSpec, b: &ActorSpec) -> bool {
    a.module == b.module && a.keys == b.keys && a.settings == b.settings && a.version == b.version
}
