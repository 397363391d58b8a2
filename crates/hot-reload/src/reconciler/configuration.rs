//! How a changed configuration comes into force: as a whole, or not at all.
//!
//! That is so for what the files alone show. What only a module shows is about the actors
//! that are wired to it: the configuration comes into force, and they go on as they are
//! until they fit.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use reflowd_runtime::{
    Digest,
    panic::{Boundary, Panic, Pauses},
};
use tokio::time::Instant;

use super::{Reconciler, telling::Telling};
use crate::{
    Checked, Depth, Flow, Found, ModuleRef, ReloadOptions, Sight, Snapshot, blueprint::Texts,
    flow::Origin,
};

/// A configuration over which the daemon broke.
pub(super) struct ConfigBreakage {
    texts: Texts,
    pauses: Pauses,
    /// Until when it is not asked about, unless somebody wants that.
    until: Instant,
}

/// Modules of flows, by where they come from.
struct Origins<'o> {
    /// Those of the flow that is in force.
    in_force: BTreeSet<Origin<'o>>,
    /// Those of actors in the new flow that have run before a restart.
    have_run: BTreeSet<Origin<'o>>,
    /// What runs from there.
    running: BTreeMap<Origin<'o>, Digest>,
    /// What has run from there before a restart.
    recollected: BTreeMap<Origin<'o>, Digest>,
    /// The stems of the modules in the watched folder, which are seldom asked for.
    stems: OnceCell<Arc<[String]>>,
}

impl ConfigBreakage {
    pub(super) fn rests(&self, texts: &Texts) -> bool {
        self.texts == *texts && Instant::now() < self.until
    }

    /// When to ask about it again, where a pass that began then may have left it alone.
    pub(super) fn after(&self, began: Instant) -> Option<Instant> {
        Some(self.until).filter(|until| began < *until)
    }
}

impl Reconciler {
    /// Takes up a changed configuration, if it is right as a whole. Gives the
    /// look back, wider where the new flow names modules by path.
    pub(super) async fn read_config(
        &mut self,
        texts: Texts,
        snapshot: Snapshot,
        options: ReloadOptions,
        telling: &mut Telling,
    ) -> Snapshot {
        let (blueprint, drafted) = (Arc::clone(&self.blueprint), texts.clone());
        let asked = Boundary::Config.aside(move || blueprint.draft(&drafted)).await;
        let draft = match self.unbroken(&texts, asked) {
            Ok(draft) => draft,
            Err(why) => {
                self.refuse_config(why, telling);
                return snapshot;
            }
        };
        let mut snapshot = self.widen(draft.flow(), snapshot).await;
        self.look_for_downloads(&draft.flow().downloads(), &mut snapshot, options).await;
        if !self.configured {
            self.recollect(draft.flow());
        }
        let seen = Arc::new(snapshot);
        self.awaited.clear();
        for spec in draft.flow().actors.values() {
            let digest = seen.module(&spec.module).present().copied();
            if let Some(digest) = digest
                && let Some(place) = spec.module.place_in(&self.folder)
            {
                self.load(digest, &place, &seen);
                if self.loads.is_under_way(&digest) {
                    self.awaited.insert(digest);
                }
            }
        }
        self.load_recollected(draft.flow(), &seen);
        let snapshot = Arc::unwrap_or_clone(seen);
        let now = Instant::now();
        let flow = draft.flow();
        let asked = {
            let origins = self.origins(flow);
            let found = |module: &ModuleRef| self.found(module, &origins, &snapshot, now);
            Boundary::Config.catch(|| draft.check(&found))
        };
        match self.unbroken(&texts, asked) {
            Ok(Checked { warnings, misfits }) => {
                telling.report.warnings.extend(warnings);
                self.memory.misfits = misfits;
                self.memory.flow = draft.flow().clone();
                self.memory.config_refused = None;
                if !options.dry_run {
                    draft.adopted();
                    self.configured = true;
                    self.retired.note(&self.memory.flow, &self.folder);
                    self.texts = texts;
                }
            }
            Err(why) => self.refuse_config(why, telling),
        }
        snapshot
    }

    /// Whether these texts are left alone, because the daemon broke over them.
    pub(super) fn config_rests(&self, texts: &Texts) -> bool {
        self.config_breakage.as_ref().is_some_and(|broken| broken.rests(texts))
    }

    /// What the blueprint has answered of these texts. Where it broke over them, they are
    /// refused, and it is asked again after a pause that grows.
    pub(super) fn unbroken<T>(
        &mut self,
        texts: &Texts,
        asked: Result<Result<T, String>, Panic>,
    ) -> Result<T, String> {
        asked.unwrap_or_else(|panic| {
            let same = self.config_breakage.take().filter(|broken| broken.texts == *texts);
            let mut pauses = same.map_or_else(Pauses::default, |broken| broken.pauses);
            let until = Instant::now() + Boundary::Config.again_after(&mut pauses);
            self.config_breakage = Some(ConfigBreakage { texts: texts.clone(), pauses, until });
            Err(panic.to_string())
        })
    }

    pub(super) fn refuse_config(&mut self, why: String, telling: &mut Telling) {
        if self.configured {
            telling.config_refused(why.clone());
        } else {
            // Whoever started the daemon is told, and it ends.
            telling.config_still_refused(why.clone());
        }
        self.memory.config_refused = Some(why);
    }

    /// Modules by path are looked at only once a flow names them; those of the
    /// flow in force and of what runs, for as long as another has not taken its place.
    async fn widen(&mut self, flow: &Flow, snapshot: Snapshot) -> Snapshot {
        let mut paths = flow.paths();
        paths.extend(self.memory.flow.paths());
        let running = self.running.actors.values().map(|actor| &actor.spec.module);
        paths.extend(running.filter_map(|module| match module {
            ModuleRef::Path { path, .. } => Some(path.clone()),
            _ => None,
        }));
        if paths == self.look.paths {
            return snapshot;
        }
        self.look.paths = paths;
        self.watcher.set_roots(self.look.roots());
        let snapshot = self.library.look(self.look.clone(), Depth::Changed).await;
        self.follow_links(&snapshot);
        snapshot
    }

    /// Where the modules come from that another flow may name too. For as many questions as
    /// there are actors.
    fn origins<'o>(&'o self, flow: &'o Flow) -> Origins<'o> {
        let in_force = self.memory.flow.actors.values().map(|spec| spec.module.origin());
        let run = flow.actors.iter().filter(|(name, _)| self.recollected.contains_key(*name));
        // Of several, the first one counts.
        let running = self.running.actors.values().rev();
        let recollected = self.recollected.values().rev();
        Origins {
            in_force: in_force.collect(),
            have_run: run.map(|(_, spec)| spec.module.origin()).collect(),
            running: running.map(|run| (run.spec.module.origin(), run.digest)).collect(),
            recollected: recollected.map(|ran| (ran.spec.module.origin(), ran.digest)).collect(),
            stems: OnceCell::new(),
        }
    }

    /// What can be said of a module that an actor names, by what is on disk or what runs.
    fn found(
        &self,
        module: &ModuleRef,
        origins: &Origins<'_>,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Found {
        if let ModuleRef::Builtin { name } = module {
            return match self.blueprint.connector_metadata(name, None) {
                Some(metadata) => Found::Known(metadata),
                None => Found::Missing { looked_at: None, names: Arc::default() },
            };
        }
        let sight = snapshot.module(module);
        let digest = sight.present();
        let known = |digest: &Digest| Some(self.library.get(digest)?.metadata().clone());
        if let Some(metadata) = digest.and_then(known) {
            return Found::Known(metadata);
        }
        if digest.is_some_and(|digest| self.loads.is_under_way(digest)) {
            return Found::Awaited;
        }
        if let ModuleRef::Url { .. } = module {
            // A download that turns out bad is no reason to refuse a configuration that was
            // taken before it had come, nor one whose actor has something else to run.
            let was_taken = self.configured && origins.in_force.contains(&module.origin());
            let has_run = origins.have_run.contains(&module.origin());
            if digest.is_none() || was_taken || has_run {
                return Found::Awaited;
            }
        }
        // A bad new version does not make the configuration wrong: the old one runs on.
        let runs = origins.running.get(&module.origin()).and_then(known);
        let ran = origins.recollected.get(&module.origin());
        if let Some(metadata) = runs.or_else(|| ran.and_then(known)) {
            return Found::Known(metadata);
        }
        if ran.is_some_and(|last| self.loads.is_under_way(last)) {
            return Found::Awaited;
        }
        if let Some(bad) = digest.and_then(|d| self.memory.bad_modules.standing(d, now)) {
            return Found::Broken { why: bad.why.clone() };
        }
        match sight {
            Sight::Present(digest) => {
                let why = self.unread.get(&digest);
                let why = why.map_or("it has changed meanwhile; try again in a moment", |u| &u.why);
                Found::Broken { why: why.into() }
            }
            Sight::Unsettled => {
                Found::Broken { why: "it is being written; try again in a moment".into() }
            }
            Sight::Unknown(trouble) => Found::Broken { why: trouble.to_string() },
            Sight::Missing | Sight::Gone => {
                let place = module.place_in(&self.folder);
                let looked_at = place.and_then(|place| place.file().map(Path::to_owned));
                let names = Arc::clone(origins.stems.get_or_init(|| stems(snapshot)));
                Found::Missing { looked_at, names }
            }
        }
    }
}

/// The stems of the modules in the watched folder.
fn stems(snapshot: &Snapshot) -> Arc<[String]> {
    let names = snapshot.modules.keys().filter_map(|name| name.to_str());
    names.filter_map(|name| name.strip_suffix(".wasm")).map(str::to_owned).collect()
}
