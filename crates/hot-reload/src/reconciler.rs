//! Makes what runs equal to what is on disk.
//!
//! A pass looks at modules and configuration together, plans what differs,
//! prepares each change as a whole and applies it. Passes know nothing of each
//! other but what runs; one that is given up half-way is simply made again.
//!
//! Everything that can fail (reading, loading, checking, keeping, making the
//! first engine) happens before [`System::apply`], which has no error.

mod reloader;
mod configuration;
mod library;
mod downloads;
mod migration;
mod preparation;
mod fit;
mod trials;
mod remembering;
mod telling;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use reflowd_loader::{Loader, ModuleUrl};
use reflowd_runtime::{
    ActorName, Digest, Epoch, System,
    panic::{Boundary, Breakage, Panic, untrusted},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::{
    configuration::ConfigBreakage,
    downloads::{Downloads, Fetching},
    library::{Library, TakeError},
    migration::{Migrated, Resumed, Settled, StatesOnDisk},
    preparation::ChangeRefused,
    reloader::{Request, Shared},
    telling::{Telling, chain, touched},
    view::Stand,
};
use crate::{
    BadModules, Bans, Blocked, Blueprint, ChangePlan, ConfigFiles, Depth, DiskWatcher, Eyes, Fault,
    Flow, FormerStates, Generations, History, Kept, Look, Misfit, ModulePlace, Note, Pace, Plan,
    RefusedChanges, ReloadOptions, Removals, Report, Retired, Running, RunningActor, ScanOptions,
    Sight, Snapshot, StateFiles, Template, Trouble, Wanted, blueprint::Texts, emptied::emptied,
    history::Past, plan,
};

pub use reloader::{Passes, ReloadError, Reloader};
pub use trials::RollBackError;

/// How long an explicit reload waits for files that are being written.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Looks in a row that one pass takes to find out which files belong to the configuration.
const MAX_LOOKS: usize = 4;

/// Passes after the first one of a daemon: one to find that something cannot start as it
/// was, one to start it as it is to be, and one to bring the rest up to date.
const MAX_BEGINNINGS: usize = 3;

/// Configuration files that are named in one complaint.
const MAX_TROUBLES: usize = 5;

/// What a reconciler works with.
pub struct Parts {
    /// What runs.
    pub system: System,
    /// Loads modules.
    pub loader: Loader,
    /// Knows configuration and connectors.
    pub blueprint: Arc<dyn Blueprint>,
    /// Where modules that went live are kept.
    pub kept: Kept,
    /// What an earlier process has left of its actors.
    pub history: History,
    /// How many former generations of an actor can be gone back to.
    pub generations: usize,
    /// The watched folder.
    pub modules: PathBuf,
    /// What an actor gets that a file alone starts; nothing, where files start no actors.
    pub autostart: Option<Template>,
    /// How files are judged.
    pub scan: ScanOptions,
    /// When to look.
    pub pace: Pace,
    /// Whether events may be used.
    pub eyes: Eyes,
    /// How long a removed actor may take to work off its mailbox.
    pub drain: Duration,
    /// Where the states of actors are written.
    pub states: Arc<dyn StateFiles>,
    /// Where states from before migrations are kept.
    pub former_states: FormerStates,
}

/// Watches the disk and keeps what runs equal to it.
pub struct Reconciler {
    system: System,
    blueprint: Arc<dyn Blueprint>,
    library: Library,
    downloads: Downloads,
    /// The downloads that this pass has asked for.
    wanted_downloads: BTreeSet<Digest>,
    /// The watched folder.
    folder: PathBuf,
    autostart: Option<Template>,
    drain: Duration,
    states: StatesOnDisk,
    /// The epochs that the states of actors which have not run yet are in.
    epochs: BTreeMap<ActorName, Epoch>,
    /// Actors that go on where an earlier process was, with more than one state.
    resumed: BTreeMap<ActorName, Resumed>,
    /// The states that are known to be needed on disk.
    settled: Settled,
    watcher: DiskWatcher,
    look: Look,
    /// The configuration in force.
    texts: Texts,
    /// Whether a configuration has come into force. Nothing starts before.
    configured: bool,
    running: Running,
    generations: Generations,
    history: History,
    /// What actors that have not run yet ran last in an earlier process.
    recollected: BTreeMap<ActorName, RunningActor>,
    /// Whether an actor has started as something that disk does not ask for.
    again: bool,
    /// Why what is remembered could not be written, as far as it has been said.
    unwritten: Option<String>,
    /// Why those that have to go back could not, as far as it has been said.
    stuck: Option<String>,
    retired: Retired,
    memory: Memory,
    /// What there was to remember before the dry run that goes on.
    before_dry_run: Option<Memory>,
    /// What keeps actors from becoming what disk asks for, as the last pass found it.
    held: BTreeMap<ActorName, String>,
    /// Modules whose bytes this pass could not get, and why.
    unread: BTreeMap<Digest, String>,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    /// Passes that have broken: until it is over, none is made but one that somebody asks for.
    breakage: Breakage,
    config_breakage: Option<ConfigBreakage>,
}

/// What passes have made up their minds about. A dry run puts it back as it was.
#[derive(Clone, Default)]
struct Memory {
    /// What disk asks for, as far as it can be taken.
    flow: Flow,
    /// Why the configuration on disk is not in force, where it is not.
    config_refused: Option<String>,
    /// What of it does not fit the modules that there are.
    misfits: Vec<Misfit>,
    /// Whether the configuration on disk cannot be read, which has been said.
    config_unknown: bool,
    bad_modules: BadModules,
    refused_changes: RefusedChanges,
    bans: Bans,
    /// What has been said once and is not said again while it lasts.
    said: BTreeSet<String>,
}

/// What a reconciler wakes up for.
enum Work {
    Request(Request),
    /// A pass for what trials, downloads or the disk have come to.
    Pass,
}

impl Reconciler {
    /// A reconciler that has not looked yet.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Reloader) {
        let look = Look {
            modules: parts.modules.clone(),
            paths: BTreeSet::new(),
            configs: parts.blueprint.files(&Texts::new()).configs,
            includes: Vec::new(),
            targets: BTreeSet::new(),
        };
        let watcher = DiskWatcher::new(look.roots(), parts.pace, parts.eyes);
        let shared = Arc::new(Shared::default());
        let (reloader, requests) = Reloader::new(Arc::clone(&shared), watcher.demand());
        let suspects = match parts.history.past() {
            Past::Known(suspects) => suspects.clone(),
            Past::Lost => parts.kept.digests(),
        };
        let memory = Memory { bans: Bans::suspecting(suspects), ..Memory::default() };
        let kept = Arc::new(parts.kept);
        let reconciler = Self {
            system: parts.system,
            blueprint: parts.blueprint,
            downloads: Downloads::new(parts.loader.clone(), Arc::clone(&kept)),
            wanted_downloads: BTreeSet::new(),
            library: Library::new(parts.loader, kept, parts.scan),
            folder: parts.modules,
            autostart: parts.autostart,
            drain: parts.drain,
            states: StatesOnDisk { files: parts.states, former: parts.former_states },
            epochs: BTreeMap::new(),
            resumed: BTreeMap::new(),
            settled: Settled::default(),
            watcher,
            look,
            texts: Texts::new(),
            configured: false,
            running: Running::default(),
            generations: Generations::keeping(parts.generations),
            history: parts.history,
            recollected: BTreeMap::new(),
            again: false,
            unwritten: None,
            stuck: None,
            retired: Retired::default(),
            memory,
            held: BTreeMap::new(),
            before_dry_run: None,
            unread: BTreeMap::new(),
            shared,
            requests,
            breakage: Breakage::default(),
            config_breakage: None,
        };
        (reconciler, reloader)
    }

    /// The first pass. Waits for files that are being written.
    ///
    /// The report says whether the configuration could be taken: a daemon whose
    /// first configuration is wrong does not serve.
    ///
    /// A pass that breaks is made again after a pause that grows.
    pub async fn begin(&mut self) -> Report {
        loop {
            let unbroken = Boundary::Pass.hold(self.first_passes()).await;
            if let Ok(report) = self.note_breakage(unbroken) {
                return report;
            }
            if let Some(until) = self.breakage.until() {
                tokio::time::sleep_until(until).await;
            }
        }
    }

    async fn first_passes(&mut self) -> Report {
        // The first wake comes at once, and the folders are watched from then on.
        self.watcher.next().await;
        let mut report = self.settled_pass(ReloadOptions::default(), Depth::Changed).await;
        // What started as it ran before the restart becomes what disk asks for.
        for _ in 0..MAX_BEGINNINGS {
            if !self.again {
                break;
            }
            report = self.settled_pass(ReloadOptions::default(), Depth::Changed).await;
        }
        self.give_up_resumed();
        self.remember().await;
        report
    }

    /// Why the configuration on disk is not in force, where it is not.
    #[must_use]
    pub fn config_problem(&self) -> Option<&str> {
        self.memory.config_refused.as_deref()
    }

    /// Passes until stopped.
    ///
    /// A pass or a request that breaks is over with that. What passes remember is whole at any
    /// time, since they put whole values in place of others, so the next one simply begins.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let work = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // Nothing is changed any more by who may be wrong about what there is.
                () = untrusted().cancelled() => return,
                work = Boundary::Watcher.hold(self.wait()) => work,
            };
            let done = match work {
                Ok(work) => {
                    if !self.watcher.rests() {
                        Boundary::Watcher.works();
                    }
                    Boundary::Pass.hold(self.do_work(work)).await
                }
                Err(panic) => Err(panic),
            };
            _ = self.note_breakage(done);
        }
    }

    /// Waits for something to do. May be dropped and called again.
    async fn wait(&mut self) -> Work {
        let system = self.system.clone();
        if let Some(until) = self.breakage.until() {
            return tokio::select! {
                biased;
                Some(request) = self.requests.recv() => Work::Request(request),
                () = tokio::time::sleep_until(until) => Work::Pass,
            };
        }
        tokio::select! {
            biased;
            Some(request) = self.requests.recv() => Work::Request(request),
            () = system.trial_ended() => Work::Pass,
            () = self.downloads.ended() => Work::Pass,
            _ = self.watcher.next() => Work::Pass,
        }
    }

    async fn do_work(&mut self, work: Work) {
        match work {
            Work::Request(request) => self.answer(request).await,
            Work::Pass => _ = self.pass(ReloadOptions::default(), Depth::Changed).await,
        }
    }

    /// Has the next pass wait where one has broken.
    fn note_breakage<T>(&mut self, done: Result<T, Panic>) -> Result<T, Panic> {
        match &done {
            Ok(_) => {
                self.breakage = Breakage::default();
                Boundary::Pass.works();
            }
            Err(panic) => {
                self.breakage.broke(panic.boundary());
                // A dry run leaves nothing behind, however it ends.
                if let Some(before) = self.before_dry_run.take() {
                    self.memory = before;
                }
            }
        }
        done
    }

    /// Does what a request asks for. Where that breaks, the asker finds the answer's sender gone.
    async fn answer(&mut self, request: Request) {
        // Whoever asked may have given up; what was done stands all the same.
        match request {
            Request::Pass { precondition, report, .. } if !precondition.holds() => {
                _ = report.send(Err(ReloadError::Changed));
            }
            Request::RollBack { precondition, done, .. } if !precondition.holds() => {
                _ = done.send(Err(RollBackError::Changed));
            }
            Request::Pass { options, report, .. } => {
                if !options.dry_run {
                    self.downloads.try_again();
                }
                _ = report.send(Ok(self.settled_pass(options, Depth::Everything).await));
            }
            Request::RollBack { actor, to, done, .. } => {
                _ = done.send(self.roll_back(&actor, to).await);
                self.pass(ReloadOptions::default(), Depth::Changed).await;
            }
        }
    }

    /// Passes until no file is being written any more or is only away for a moment, and
    /// downloads have had a moment, and reports all that was done.
    async fn settled_pass(&mut self, options: ReloadOptions, depth: Depth) -> Report {
        let patience = Instant::now() + SETTLE_PATIENCE;
        let mut report = Report::default();
        loop {
            let (mut latest, again) = self.pass(options, depth).await;
            if !options.dry_run {
                latest.added.splice(0..0, report.added);
                latest.changed.splice(0..0, report.changed);
                latest.removed.splice(0..0, report.removed);
            }
            report = latest;
            match again {
                Some(again) if again < patience => tokio::time::sleep_until(again).await,
                _ => match self.downloads.soon(Instant::now()) {
                    Some(until) if !options.dry_run => tokio::select! {
                        () = self.downloads.ended() => {}
                        _ = self.watcher.next() => {}
                        () = tokio::time::sleep_until(until) => {}
                    },
                    _ => return report,
                },
            }
        }
    }

    /// One pass. Also says when files that are being written are worth another.
    async fn pass(&mut self, options: ReloadOptions, depth: Depth) -> (Report, Option<Instant>) {
        let began = Instant::now();
        self.before_dry_run = options.dry_run.then(|| self.memory.clone());
        if options.force {
            self.memory.bad_modules.clear();
            self.memory.refused_changes.clear();
            self.memory.bans.clear();
            self.config_breakage = None;
        }
        if !options.dry_run {
            self.judge_trials().await;
        }
        self.unread.clear();
        self.wanted_downloads.clear();
        self.again = false;
        let said = mem::take(&mut self.memory.said);
        let mut telling = Telling::new(self.system.clone(), said, options.dry_run);
        let (mut snapshot, texts) = self.look_at_disk(depth, &mut telling).await;
        self.forget_stopped();
        let readable = self.tell_config_unknown(&snapshot, texts.is_some(), &mut telling);

        let emptied = texts.as_ref().map_or_else(Vec::new, |texts| emptied(&self.texts, texts));
        if let [file, ..] = emptied.as_slice()
            && !options.allow_removal
        {
            telling.hold(format!("{} was emptied", file.display()));
        } else if let Some(texts) = texts
            && (texts != self.texts
                || options.force
                || self.memory.config_refused.is_some()
                || !self.memory.misfits.is_empty())
        {
            snapshot = self.read_config(texts, snapshot, options, &mut telling).await;
        } else if let Some(why) = self.memory.config_refused.clone().filter(|_| readable) {
            telling.config_still_refused(why);
        }
        let in_force = readable && self.memory.config_refused.is_none() && !telling.holds();
        let mut in_sync = false;
        let wanted = self.memory.flow.downloads();
        self.look_for_downloads(&wanted, &mut snapshot, options).await;
        if self.configured {
            let plan = self.plan(&snapshot, options, &mut telling).await;
            in_sync = self.follow(plan, &snapshot, options, &mut telling).await;
        }
        let (report, said) = telling.end();
        self.memory.said = said;
        if let Some(before) = self.before_dry_run.take() {
            self.memory = before;
        } else {
            self.downloads.retain(&self.wanted_downloads);
            self.show(&snapshot, in_sync && report.is_clean());
            self.shared.config_in_force.store(in_force, Ordering::Relaxed);
            self.shared.passed(&report);
            self.forget_unused(&snapshot);
            self.remember().await;
        }
        if self.again {
            self.watcher.again(Instant::now());
        }
        if let Some(retry) = self.memory.bad_modules.next_retry(Instant::now()) {
            self.watcher.again(retry);
        }
        if let Some(retry) = self.memory.refused_changes.next_retry(Instant::now()) {
            self.watcher.again(retry);
        }
        if let Some(again) = self.config_breakage.as_ref().and_then(|broken| broken.after(began)) {
            self.watcher.again(again);
        }
        if let Some(again) = self.downloads.next_try() {
            self.watcher.again(again);
        }
        if let Some(again) = snapshot.again {
            self.watcher.again(again);
        }
        let unsettled = snapshot.unsettled().next().is_some() || self.is_away(&snapshot);
        let again = snapshot.again.filter(|_| unsettled);
        // What has just started as it ran before is yet to become what disk asks for.
        (report, if self.again { Some(Instant::now()) } else { again })
    }

    /// Whether a file that is in use was there a moment ago. Somebody may be about to put it
    /// back, or it is gone for good: what to say of it shows in a moment too.
    fn is_away(&self, snapshot: &Snapshot) -> bool {
        let configs = self.look.configs.iter();
        let asked = self.memory.flow.actors.values().map(|spec| &spec.module);
        let running = self.running.actors.values().filter(|actor| !actor.draining);
        let modules = running.map(|actor| &actor.spec.module).chain(asked);
        configs.filter_map(|path| snapshot.configs.get(path)).any(|s| matches!(s, Sight::Missing))
            || modules.map(|m| snapshot.module(m)).any(|s| matches!(s, Sight::Missing))
    }

    /// Looks until it is clear which files belong to the configuration.
    async fn look_at_disk(
        &mut self,
        depth: Depth,
        telling: &mut Telling,
    ) -> (Snapshot, Option<Texts>) {
        let mut looks = 0;
        let main = self.blueprint.files(&Texts::new()).configs;
        let snapshot = loop {
            let snapshot = self.library.look(self.look.clone(), depth).await;
            looks += 1;
            // The main file says which others there are, also where one of these is the trouble.
            let texts = snapshot.known_sources();
            if !main.iter().all(|path| texts.contains_key(path)) {
                break snapshot;
            }
            if self.config_rests(&texts) {
                break snapshot;
            }
            let (blueprint, asked) = (Arc::clone(&self.blueprint), texts.clone());
            // As large as the files that somebody has written.
            let files = Boundary::Config.aside(move || Ok(blueprint.files(&asked))).await;
            let ConfigFiles { configs, includes } = match self.unbroken(&texts, files) {
                Ok(files) => files,
                Err(why) => {
                    self.refuse_config(why, telling);
                    break snapshot;
                }
            };
            let same = configs == self.look.configs && includes == self.look.includes;
            if same || looks == MAX_LOOKS {
                break snapshot;
            }
            self.look.configs = configs;
            self.look.includes = includes;
            self.watcher.set_roots(self.look.roots());
        };
        self.follow_links(&snapshot);
        for (folder, trouble) in &snapshot.troubles {
            telling.folder_unknown(folder, trouble);
        }
        for (path, what) in &snapshot.oddities {
            // What stands in the place of a configuration file is told as such.
            if !snapshot.configs.contains_key(path) {
                telling.ignored(path, what);
            }
        }
        // Where the daemon broke over them, nobody knows whether these are all of them.
        let texts = snapshot.sources().ok().filter(|texts| !self.config_rests(texts));
        (snapshot, texts)
    }

    /// Tells of a configuration that cannot be read: that it is so, each time; when that begins
    /// and ends, once. Whether it can be read, as far as is known.
    fn tell_config_unknown(
        &mut self,
        snapshot: &Snapshot,
        settled: bool,
        telling: &mut Telling,
    ) -> bool {
        if let Some(why) = unknown_config(snapshot) {
            if !self.configured {
                // Whoever started the daemon is told, and it ends.
                self.memory.config_refused = Some(why.clone());
            } else if !self.memory.config_unknown {
                telling.config_unknown(&why);
            }
            telling.config_still_refused(why);
            self.memory.config_unknown = self.configured;
            return false;
        }
        if settled && mem::take(&mut self.memory.config_unknown) {
            telling.config_known();
        }
        !self.memory.config_unknown
    }

    /// Has the look say of the modules that are wanted by URL whether they are here.
    async fn look_for_downloads(
        &mut self,
        wanted: &BTreeMap<Digest, Vec<ModuleUrl>>,
        snapshot: &mut Snapshot,
        options: ReloadOptions,
    ) {
        let fetching = if options.dry_run { Fetching::Forbidden } else { Fetching::Allowed };
        let sights = self.downloads.want(wanted, fetching).await;
        for (digest, sight) in sights {
            self.wanted_downloads.insert(digest);
            snapshot.bytes.extend(self.downloads.bytes(&digest).map(|bytes| (digest, bytes)));
            snapshot.downloads.insert(digest, sight);
        }
    }

    /// Watches what links have led to.
    fn follow_links(&mut self, snapshot: &Snapshot) {
        if self.look.targets != snapshot.targets {
            self.look.targets.clone_from(&snapshot.targets);
            self.watcher.set_roots(self.look.roots());
        }
    }

    /// Loads a module, unless it is loaded or known to be bad.
    async fn load(
        &mut self,
        digest: Digest,
        place: &ModulePlace,
        snapshot: &Snapshot,
        telling: &mut Telling,
    ) {
        if self.is_judged(&digest) {
            return;
        }
        match self.library.take(digest, place, snapshot).await {
            Ok(module) => {
                let component = &module.metadata().component;
                info!(module = %place, digest = %digest.short(), %component, "module loaded");
                self.memory.bad_modules.forget(&digest);
            }
            Err(error @ TakeError::Bytes(_)) => {
                let why = chain(&error);
                match error.damaged() {
                    Some(path) => telling.kept_damaged(path, &why),
                    None => telling.module_unread(place, &why),
                }
                self.unread.insert(digest, why);
            }
            Err(TakeError::Load(error)) => {
                let fault = if error.is_intrinsic() { Fault::Intrinsic } else { Fault::Timeout };
                self.memory.bad_modules.refuse(digest, fault, chain(&error), Instant::now());
                if telling.module_refused(digest, place, &error) {
                    *self.shared.refusal_counts.lock().entry(error.reason()).or_default() += 1;
                }
            }
        }
    }

    /// Whether the module is loaded or known to be bad.
    fn is_judged(&self, digest: &Digest) -> bool {
        self.library.get(digest).is_some()
            || self.memory.bad_modules.standing(digest, Instant::now()).is_some()
    }

    /// Plans, loading what the plan needs.
    async fn plan(
        &mut self,
        snapshot: &Snapshot,
        options: ReloadOptions,
        telling: &mut Telling,
    ) -> Plan {
        // Loading may refuse modules, which changes the plan; each round loads
        // what is new in it, so the second round has nothing left to load.
        loop {
            let plan = self.planned(snapshot, options);
            let mut fresh = self.modules_of(&plan);
            fresh.retain(|(digest, _)| !self.is_judged(digest));
            if fresh.is_empty() {
                return plan;
            }
            let mut judged = false;
            for (digest, place) in fresh {
                self.load(digest, &place, snapshot, telling).await;
                judged |= self.is_judged(&digest);
            }
            if !judged {
                telling.report.warnings.extend(self.unread.values().cloned());
                return plan;
            }
        }
    }

    fn planned(&self, snapshot: &Snapshot, options: ReloadOptions) -> Plan {
        let refused = self.memory.bad_modules.all_standing(Instant::now());
        let removals = if options.allow_removal { Removals::Allowed } else { Removals::Guarded };
        let wanted = Wanted {
            flow: &self.memory.flow,
            snapshot,
            folder: &self.folder,
            autostart: self.autostart.as_ref(),
            retired: &self.retired,
            refused: &refused,
            bans: &self.memory.bans,
            recollected: &self.recollected,
            removals,
        };
        plan(wanted, &self.running)
    }

    /// The modules that a plan is about, with their places.
    fn modules_of(&self, plan: &Plan) -> Vec<(Digest, ModulePlace)> {
        let held = plan.held.iter().flat_map(|held| &held.changes);
        let mut modules = Vec::new();
        for change in plan.changes.iter().chain(held) {
            let starts = change.start.iter().map(|start| (start.digest, &start.spec.module));
            let swaps = change.swap.iter().map(|swap| (swap.digest, &swap.spec.module));
            let files = starts
                .chain(swaps)
                .filter_map(|(digest, module)| Some((digest, module.place_in(&self.folder)?)));
            modules.extend(files);
        }
        for note in &plan.notes {
            if let Note::NameDoesNotFit { file, digest } = note {
                modules.push((*digest, ModulePlace::File(self.folder.join(file))));
            }
        }
        modules
    }

    /// Carries a plan out, or only says what would be done. True when nothing of
    /// it is left undone.
    async fn follow(
        &mut self,
        plan: Plan,
        snapshot: &Snapshot,
        options: ReloadOptions,
        telling: &mut Telling,
    ) -> bool {
        let mut complete = plan.blocked.is_empty() && plan.held.is_none();
        let mut held = BTreeMap::new();
        for note in &plan.notes {
            telling.note(note, &self.running);
            if let Note::GoesOn { actor, doubt } = note {
                held.insert(actor.clone(), doubt.to_string());
            }
        }
        if let Some(held) = &plan.held {
            telling.held(held);
        }
        self.memory.refused_changes.keep_only(&plan.changes);
        for Blocked { change, because } in plan.blocked {
            if let Some(older) = self.without_newcomers(&change)
                && self.try_change(&older, snapshot, options).await.is_ok()
            {
                // The next pass tells of what stands in the way of the others.
                telling.change(&older);
                continue;
            }
            for (actor, doubt) in &because {
                let alone = |misfit: &&Misfit| misfit.actors.iter().eq([actor]);
                let told = self.memory.misfits.iter().find(alone);
                let why = told.map_or_else(|| doubt.to_string(), |misfit| misfit.why.clone());
                telling.blocked(actor, doubt, why.clone());
                held.extend(touched(&change).into_iter().map(|other| (other, why.clone())));
                held.insert(actor.clone(), why);
            }
        }
        for change in plan.changes {
            let Err(ChangeRefused { why, holds }) =
                self.try_change(&change, snapshot, options).await
            else {
                telling.change(&change);
                continue;
            };
            complete = false;
            if let Some(older) = self.without_newcomers(&change)
                && self.try_change(&older, snapshot, options).await.is_ok()
            {
                telling.change(&older);
                continue;
            }
            if !options.dry_run && self.give_up_recollected(&change, &why) {
                continue;
            }
            telling.change_refused(&change, &why);
            held.extend(touched(&change).into_iter().map(|actor| (actor, why.clone())));
            self.memory.refused_changes.refuse(change, holds, why, Instant::now());
        }
        telling.changed();
        if !options.dry_run {
            self.held = held;
        }
        complete
    }

    /// Makes a change, or only says whether it would be made.
    async fn try_change(
        &mut self,
        change: &ChangePlan,
        snapshot: &Snapshot,
        options: ReloadOptions,
    ) -> Result<(), ChangeRefused> {
        self.judge(change)?;
        if options.dry_run {
            self.rehearse(change, snapshot).await
        } else {
            self.make_change(change, snapshot).await
        }
    }

    /// Prepares all of a change, then applies it.
    async fn make_change(
        &mut self,
        change: &ChangePlan,
        snapshot: &Snapshot,
    ) -> Result<(), ChangeRefused> {
        let mut ready = self.prepare(change, snapshot).await?;
        let trying = self.trying(change);
        ready.trialing = trying.trialing();
        let Migrated { halted, aside } = self.migrate_all(&mut ready).await?;
        let epochs_begin = !aside.is_empty();
        // Nothing here follows from a file: what can fail has been done. Where it breaks all
        // the same, nobody can say what runs.
        let applied = Boundary::Change.hold(async {
            let changed = self.system.apply(ready).await;
            self.system.go_on(halted).await;
            self.begin_trials(change, trying).await;
            self.running.take(change, &changed.generations);
            self.recollected_run(change);
            self.write_heirs(change).await;
            for (actor, aside) in aside {
                self.resumed.remove(&actor);
                self.generations.migrated(&actor, aside);
            }
        });
        applied.await.unwrap_or_else(|panic| panic.go_on());
        if epochs_begin {
            // The sooner it is written that they have begun, the less a crash takes back.
            self.remember().await;
        }
        Ok(())
    }

    /// Forgets actors that have stopped since the last pass.
    fn forget_stopped(&mut self) {
        let system = &self.system;
        let gone = |name: &ActorName| system.actor(name.as_str()).is_none();
        let stopped = self.running.actors.iter().filter(|(name, a)| a.draining && gone(name));
        for name in stopped.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.running.actors.remove(&name);
            self.generations.forget(&name);
        }
    }

    /// Shows how actors stand to disk.
    fn show(&self, snapshot: &Snapshot, in_sync: bool) {
        let stand = Stand {
            flow: &self.memory.flow,
            running: &self.running,
            snapshot,
            bad_modules: &self.memory.bad_modules,
            bans: &self.memory.bans,
            held: &self.held,
            folder: &self.folder,
            now: Instant::now(),
        };
        self.shared.view.store(Arc::new(stand.actors()));
        self.shared.modules.store(Arc::new(stand.modules()));
        self.shared.in_sync.store(in_sync, Ordering::Relaxed);
    }

    /// Lets go of modules that are not on disk any more and that nothing runs.
    fn forget_unused(&mut self, snapshot: &Snapshot) {
        let mut used: BTreeSet<Digest> = self.running.actors.values().map(|a| a.digest).collect();
        used.extend(self.generations.judges());
        used.extend(self.recollected.values().map(|last| last.digest));
        let files = snapshot.modules.values().chain(snapshot.paths.values());
        used.extend(files.filter_map(Sight::present));
        used.extend(snapshot.downloads.values().filter_map(Sight::present));
        self.library.retain(&used);
    }
}

/// Why the configuration cannot be read, a line for each of the first files of which that is so.
fn unknown_config(snapshot: &Snapshot) -> Option<String> {
    let mut troubles = snapshot.config_troubles();
    let line = |(path, trouble): (&Path, &Trouble)| format!("{}: {trouble}", path.display());
    let mut lines: Vec<_> = troubles.by_ref().take(MAX_TROUBLES).map(line).collect();
    let more = troubles.count();
    if more > 0 {
        lines.push(format!("and {more} more files"));
    }
    (!lines.is_empty()).then(|| format!("it cannot be used as it is on disk\n{}", lines.join("\n")))
}

#[cfg(test)]
mod search;
#[cfg(test)]
mod tests;
