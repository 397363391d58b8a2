//! Makes what runs equal to what is on disk.
//!
//! A pass looks at modules and configuration together, plans what differs, and hands
//! each change over to a rollout of its own. It waits for nothing: not for a module to be
//! loaded, nor for a turn to end. The end of either is a reason for another pass. Passes
//! know nothing of each other but what runs and what is under way; one that is given up
//! half-way is simply made again.
//!
//! Everything that can fail (reading, loading, checking, keeping, making the
//! first engine) happens before [`System::apply`], which has no error.

mod reloader;
mod configuration;
mod library;
mod downloads;
mod migration;
mod lanes;
mod loads;
mod job;
mod rollout;
mod overlap;
mod rests;
mod rolling;
mod asker;
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
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    asker::{Asker, Due, Pending},
    configuration::ConfigBreakage,
    downloads::{Downloads, Fetching},
    job::ChangeRefused,
    library::{Library, TakeError},
    loads::Loads,
    migration::{Resumed, Settled, StatesOnDisk},
    reloader::{BackWish, Request, Shared},
    rests::Rests,
    rolling::Attempt,
    rollout::{Ended, Rollouts},
    telling::{Telling, chain},
    view::Stand,
};
use crate::{
    BadModules, Bans, Blocked, Blueprint, ChangePlan, Claims, ConfigFiles, Depth, DiskWatcher,
    Eyes, Fault, Flow, FormerStates, Generations, History, Kept, Look, Misfit, ModulePlace, Note,
    Pace, Plan, RefusedChanges, ReloadOptions, Removals, Report, Retired, Running, RunningActor,
    ScanOptions, Sight, Snapshot, StateFiles, Template, Trouble, Wanted, blueprint::Texts,
    emptied::emptied, history::Past, plan, plan::touched,
};

pub use reloader::{Passes, ReloadError, Reloader};
pub use trials::RollBackError;

/// How long an explicit reload waits for files that are being written.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Looks in a row that one pass takes to find out which files belong to the configuration.
const MAX_LOOKS: usize = 4;

/// How long a module is left alone whose bytes could not be had: its file may be about to be
/// another.
const UNREAD_PAUSE: Duration = Duration::from_secs(1);

/// How long the ends of loads and rollouts are gathered before a pass looks at them, while
/// there are more to come.
const GATHER: Duration = Duration::from_millis(50);

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
    /// Whether the start has gone on without what its first pass has begun.
    starting: bool,
    /// Whether an actor has started as something that disk does not ask for.
    again: bool,
    /// Why what is remembered could not be written, as far as it has been said.
    unwritten: Option<String>,
    retired: Retired,
    memory: Memory,
    /// The modules that are being loaded, and those of them that the configuration was held
    /// against without being known.
    loads: Loads,
    awaited: BTreeSet<Digest>,
    rollouts: Rollouts,
    /// Changes that have failed for what may pass, and rollbacks.
    rests: Rests<ChangePlan>,
    stuck: Rests<()>,
    /// Those who wait for passes.
    askers: Vec<Asker>,
    /// Those who wait for a rollout to end before an actor can go back.
    wishes: Vec<BackWish>,
    /// When a pass is due, as something has ended.
    due: Option<Instant>,
    /// When what is shown is to be shown anew.
    stale: Option<Instant>,
    /// What the last pass has seen.
    seen: Arc<Snapshot>,
    /// What there was to remember before the dry run that goes on.
    before_dry_run: Option<Memory>,
    /// What keeps actors from becoming what disk asks for, as the last pass found it.
    held: BTreeMap<ActorName, String>,
    /// Modules whose bytes this pass could not get, and why.
    unread: BTreeMap<Digest, Unread>,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    /// Passes that have broken: until it is over, none is made but one that somebody asks for.
    breakage: Breakage,
    config_breakage: Option<ConfigBreakage>,
}

/// A module whose bytes could not be had.
struct Unread {
    why: String,
    /// Until when that is not tried again.
    until: Instant,
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
    /// A rollout has ended.
    Ended(Box<Ended>),
    /// A download or a load has ended.
    Downloaded,
    Loaded,
    /// Somebody who waits is due.
    Askers,
    /// What rollouts wait for is to be shown.
    Progressed,
    Show,
    /// A pass for what trials, loads or the disk have come to.
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
        let downloads = Downloads::new(parts.loader.clone(), Arc::clone(&kept));
        let library = Library::new(parts.loader, kept, parts.scan);
        let reconciler = Self {
            system: parts.system,
            blueprint: parts.blueprint,
            downloads,
            wanted_downloads: BTreeSet::new(),
            loads: Loads::new(library.clone()),
            library,
            awaited: BTreeSet::new(),
            rollouts: Rollouts::default(),
            rests: Rests::default(),
            stuck: Rests::default(),
            askers: Vec::new(),
            wishes: Vec::new(),
            due: None,
            stale: None,
            seen: Arc::default(),
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
            starting: false,
            again: false,
            unwritten: None,
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
    /// first configuration is wrong does not serve. It also says what is still under way
    /// after `patience`.
    ///
    /// A pass that breaks is made again after a pause that grows.
    pub async fn begin(&mut self, patience: Duration) -> Report {
        loop {
            let unbroken = Boundary::Pass.hold(self.first_passes(patience)).await;
            if let Ok(report) = self.note_breakage(unbroken) {
                return report;
            }
            if let Some(until) = self.breakage.until() {
                tokio::time::sleep_until(until).await;
            }
        }
    }

    async fn first_passes(&mut self, patience: Duration) -> Report {
        // The first wake comes at once, and the folders are watched from then on.
        self.watcher.next().await;
        let options = ReloadOptions { timeout: Some(patience), ..ReloadOptions::default() };
        let report = self.settled_pass(options, Depth::Changed).await;
        self.starting = !report.under_way.is_empty();
        if !self.starting {
            self.give_up_resumed();
        }
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
                () = stop.cancelled() => return self.end_committed().await,
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

    /// Waits for those rollouts to end that cannot be taken back any more.
    async fn end_committed(&mut self) {
        let changing = self.rollouts.changing();
        let all: Vec<_> = changing.map(|rollout| rollout.id).collect();
        for id in all {
            self.rollouts.take_over(id);
        }
        while self.rollouts.changing().next().is_some() {
            let ended = self.rollouts.ended().await;
            self.end_rollouts(ended).await;
        }
    }

    /// Waits for something to do. May be dropped and called again.
    async fn wait(&mut self) -> Work {
        let system = self.system.clone();
        // After a pass that broke, only a request makes another before its time.
        if let Some(until) = self.breakage.until() {
            return tokio::select! {
                biased;
                Some(request) = self.requests.recv() => Work::Request(request),
                ended = self.rollouts.ended() => Work::Ended(Box::new(ended)),
                () = tokio::time::sleep_until(until) => Work::Pass,
            };
        }
        let (due, stale, asker) = (self.due, self.stale, self.asker_due());
        let news = self.rollouts.news();
        tokio::select! {
            biased;
            Some(request) = self.requests.recv() => Work::Request(request),
            ended = self.rollouts.ended() => Work::Ended(Box::new(ended)),
            () = self.downloads.ended() => Work::Downloaded,
            () = self.loads.ended() => Work::Loaded,
            () = sleep_until(asker) => Work::Askers,
            () = system.trial_ended() => Work::Pass,
            _ = self.watcher.next() => Work::Pass,
            () = sleep_until(due) => Work::Pass,
            () = news.notified() => Work::Progressed,
            () = sleep_until(stale) => Work::Show,
        }
    }

    /// Waits for what is under way to end, or for somebody who waits to be due; for nothing
    /// that makes a pass by itself.
    async fn wait_for_ends(&mut self) -> Work {
        let asker = self.asker_due();
        tokio::select! {
            biased;
            ended = self.rollouts.ended() => Work::Ended(Box::new(ended)),
            () = self.downloads.ended() => Work::Downloaded,
            () = self.loads.ended() => Work::Loaded,
            () = sleep_until(asker) => Work::Askers,
        }
    }

    /// When the next one is due of those who wait for passes.
    fn asker_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let due = self.askers.iter().filter_map(|asker| {
            match asker.due(&self.rollouts, &self.loads, now) {
                Due::Nothing => None,
                Due::At(at) => Some(at),
                Due::Pass | Due::Answer => Some(now),
            }
        });
        due.min()
    }

    /// Something has ended that a pass has to look at: at once, or with what ends meanwhile.
    fn pass_soon(&mut self) {
        let more = !self.rollouts.is_empty() || !self.loads.under_way().is_empty();
        let at = if more { Instant::now() + GATHER } else { Instant::now() };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    async fn do_work(&mut self, work: Work) {
        match work {
            Work::Request(request) => self.take_request(request),
            Work::Ended(ended) => {
                self.end_rollouts(*ended).await;
                for wish in mem::take(&mut self.wishes) {
                    self.wish_back(wish);
                }
            }
            Work::Downloaded => {
                self.askers.iter_mut().for_each(|asker| asker.has_news(Instant::now()));
                self.pass_soon();
            }
            Work::Loaded => self.pass_soon(),
            Work::Askers => {}
            // Most waits are over by then.
            Work::Progressed => _ = self.stale.get_or_insert(Instant::now() + GATHER),
            Work::Show => {
                let seen = Arc::clone(&self.seen);
                self.show(&seen, false);
            }
            Work::Pass => _ = self.pass(ReloadOptions::default(), Depth::Changed).await,
        }
        self.serve_askers().await;
    }

    /// Makes the passes that somebody waits for, and answers those who wait no longer.
    async fn serve_askers(&mut self) {
        let now = Instant::now();
        let mut at = 0;
        while let Some(asker) = self.askers.get(at) {
            match asker.due(&self.rollouts, &self.loads, now) {
                Due::Nothing | Due::At(_) => at += 1,
                Due::Answer => {
                    let asker = self.askers.remove(at);
                    let under_way = asker.under_way(&self.rollouts, &self.loads);
                    asker.answer(under_way);
                }
                Due::Pass => {
                    // Where it breaks, this one is gone with it, and learns of that.
                    let mut asker = self.askers.remove(at);
                    if asker.is_fresh() && !asker.options.dry_run {
                        self.downloads.try_again();
                        self.rests.try_again(now);
                    }
                    let (report, pending) = self.pass(asker.options, asker.depth).await;
                    asker.took(report, pending);
                    self.askers.insert(at, asker);
                    at += 1;
                }
            }
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

    /// Takes up what somebody asks for. Where that breaks, the asker finds the answer's sender
    /// gone.
    fn take_request(&mut self, request: Request) {
        // Whoever asked may have given up; what was done stands all the same.
        match request {
            Request::Pass { precondition, report, .. } if !precondition.holds() => {
                _ = report.send(Err(ReloadError::Changed));
            }
            Request::RollBack { precondition, wish } if !precondition.holds() => {
                _ = wish.answer.send(Err(RollBackError::Changed));
            }
            Request::Pass { options, report, .. } => {
                // A pause after one that has broken ends with it.
                self.breakage = Breakage::default();
                let patience = Instant::now() + SETTLE_PATIENCE;
                self.askers.push(Asker::new(options, Depth::Everything, patience, report));
            }
            Request::RollBack { wish, .. } => self.wish_back(wish),
        }
    }

    /// Has an actor go back, now or when a rollout has ended that cannot be taken back.
    fn wish_back(&mut self, wish: BackWish) {
        let waits = self.roll_back(wish);
        self.wishes.extend(waits);
    }

    /// Passes until no file is being written any more or is only away for a moment, and what
    /// that has begun has ended. Reports all that was done.
    async fn settled_pass(&mut self, options: ReloadOptions, depth: Depth) -> Report {
        let (answer, mut done) = oneshot::channel();
        let patience = Instant::now() + SETTLE_PATIENCE;
        self.askers.push(Asker::new(options, depth, patience, answer));
        loop {
            self.serve_askers().await;
            if let Ok(Ok(report)) = done.try_recv() {
                return report;
            }
            let work = self.wait_for_ends().await;
            self.do_work(work).await;
        }
    }

    /// One pass. Also says what it has left to wait for.
    async fn pass(&mut self, options: ReloadOptions, depth: Depth) -> (Report, Pending) {
        let began = Instant::now();
        self.before_dry_run = options.dry_run.then(|| self.memory.clone());
        if options.force {
            self.memory.bad_modules.clear();
            self.memory.refused_changes.clear();
            self.memory.bans.clear();
            self.config_breakage = None;
        }
        if !options.dry_run {
            self.due = None;
            let seen = Arc::clone(&self.seen);
            self.judge_trials(&seen);
            self.again = false;
        }
        match depth {
            Depth::Everything => self.unread.clear(),
            _ => self.unread.retain(|_, unread| unread.until > Instant::now()),
        }
        self.wanted_downloads.clear();
        self.loads.begin_batch();
        let said = mem::take(&mut self.memory.said);
        let mut telling = Telling::new(self.system.clone(), said, options.dry_run);
        self.note_loads(&mut telling);
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
                || !self.memory.misfits.is_empty()
                || self.awaited.iter().any(|digest| !self.loads.is_under_way(digest)))
        {
            snapshot = self.read_config(texts, snapshot, options, &mut telling).await;
        } else if let Some(why) = self.memory.config_refused.clone().filter(|_| readable) {
            telling.config_still_refused(why);
        }
        let in_force = readable && self.memory.config_refused.is_none() && !telling.holds();
        let (mut in_sync, mut pending) = (false, Pending::default());
        let wanted = self.memory.flow.downloads();
        self.look_for_downloads(&wanted, &mut snapshot, options).await;
        let snapshot = Arc::new(snapshot);
        if self.configured {
            let plan = self.plan(&snapshot, options, &mut telling);
            in_sync = self.follow(plan, &snapshot, options, &mut telling, &mut pending);
        }
        let (report, said) = telling.end();
        self.memory.said = said;
        if let Some(before) = self.before_dry_run.take() {
            self.memory = before;
        } else {
            self.downloads.retain(&self.wanted_downloads);
            let used = self.used(&snapshot);
            self.loads.retain(|digest| used.contains(digest));
            self.seen = Arc::clone(&snapshot);
            self.show(&snapshot, in_sync && report.is_clean());
            self.shared.config_in_force.store(in_force, Ordering::Relaxed);
            self.shared.passed(&report);
            let still = self.rollouts.is_empty() && self.loads.under_way().is_empty();
            if still && mem::take(&mut self.starting) {
                self.give_up_resumed();
            }
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
        if let Some(again) = self.rests.next(Instant::now()) {
            self.watcher.again(again);
        }
        if let Some(again) = self.unread.values().map(|unread| unread.until).min() {
            self.watcher.again(again);
        }
        if let Some(again) = snapshot.again {
            self.watcher.again(again);
        }
        let unsettled = snapshot.unsettled().next().is_some() || self.is_away(&snapshot);
        pending.again = snapshot.again.filter(|_| unsettled);
        // What has just started as it ran before is yet to become what disk asks for.
        if self.again {
            pending.again = Some(Instant::now());
        }
        if !options.dry_run {
            pending.downloads = self.downloads.soon(Instant::now());
        }
        pending.loads = self.loads.under_way();
        (report, pending)
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

    /// Has a module loaded, unless it is loaded or known to be bad.
    fn load(&mut self, digest: Digest, place: &ModulePlace, snapshot: &Arc<Snapshot>) {
        if !self.is_judged(&digest) && !self.unread.contains_key(&digest) {
            self.loads.want(digest, place, snapshot);
        }
    }

    /// Takes note of what has come of loads.
    fn note_loads(&mut self, telling: &mut Telling) {
        let now = Instant::now();
        for (digest, ended) in self.loads.outcomes() {
            let (digest, place) = (*digest, &ended.place);
            match &ended.result {
                Ok(()) => {
                    if let Some(module) = self.library.get(&digest) {
                        telling.module_loaded(digest, place, &module.metadata().component);
                    }
                    self.memory.bad_modules.forget(&digest);
                }
                Err(error @ (TakeError::Bytes(_) | TakeError::Broke)) => {
                    let why = chain(error);
                    match error.damaged() {
                        Some(path) => telling.kept_damaged(path, &why),
                        None => telling.module_unread(place, &why),
                    }
                    self.unread.insert(digest, Unread { why, until: now + UNREAD_PAUSE });
                }
                Err(TakeError::Load(error)) => {
                    let fault =
                        if error.is_intrinsic() { Fault::Intrinsic } else { Fault::Timeout };
                    self.memory.bad_modules.refuse(digest, fault, chain(error), now);
                    if telling.module_refused(digest, place, error) {
                        *self.shared.refusal_counts.lock().entry(error.reason()).or_default() += 1;
                    }
                }
            }
        }
        // A dry run leaves it for the pass that does something about it.
        if self.before_dry_run.is_none() {
            self.loads.noted();
        }
    }

    /// Whether the module is loaded or known to be bad.
    fn is_judged(&self, digest: &Digest) -> bool {
        self.library.get(digest).is_some()
            || self.memory.bad_modules.standing(digest, Instant::now()).is_some()
    }

    /// Plans, having loaded what the plan needs.
    fn plan(
        &mut self,
        snapshot: &Arc<Snapshot>,
        options: ReloadOptions,
        telling: &mut Telling,
    ) -> Plan {
        // What is found to be bad changes the plan, and so does what has to be loaded; each
        // round asks for what is new in it, so the last one finds nothing new.
        loop {
            let plan = self.planned(snapshot, options);
            let mut fresh = self.modules_of(&plan);
            fresh.retain(|(digest, _)| {
                !self.is_judged(digest)
                    && !self.unread.contains_key(digest)
                    && !self.loads.is_under_way(digest)
            });
            if fresh.is_empty() {
                if !self.unread.is_empty() {
                    let whys = self.unread.values().map(|unread| unread.why.clone());
                    telling.report.warnings.extend(whys);
                }
                return plan;
            }
            for (digest, place) in fresh {
                self.load(digest, &place, snapshot);
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
            loading: &self.loads.under_way(),
            bans: &self.memory.bans,
            recollected: &self.recollected,
            removals,
        };
        plan(wanted, &self.running)
    }

    /// The modules that a plan is about, with their places.
    fn modules_of(&self, plan: &Plan) -> Vec<(Digest, ModulePlace)> {
        let held = plan.held.iter().flat_map(|held| &held.changes);
        let blocked = plan.blocked.iter().map(|blocked| &blocked.change);
        let mut modules = Vec::new();
        for change in plan.changes.iter().chain(held).chain(blocked) {
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

    /// Has a plan rolled out, or only tried. True when nothing of it is left undone.
    fn follow(
        &mut self,
        plan: Plan,
        snapshot: &Arc<Snapshot>,
        options: ReloadOptions,
        telling: &mut Telling,
        pending: &mut Pending,
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
        if !options.dry_run {
            let held = plan.held.iter().flat_map(|held| &held.changes);
            let blocked = plan.blocked.iter().map(|blocked| &blocked.change);
            let asked: Vec<_> = plan.changes.iter().chain(held).chain(blocked).collect();
            self.give_up_rollouts(asked.iter().copied());
            let touched: BTreeSet<_> = asked.into_iter().map(touched).collect();
            self.rests.keep_only(|actors| touched.contains(actors));
        }
        // What is still to come decides what there is to try.
        let loading = !self.loads.under_way().is_empty();
        for Blocked { change, because } in plan.blocked {
            if let Some(older) = self.without_newcomers(&change)
                && self.try_change(&older, snapshot, options, pending).is_ok()
            {
                // The next pass tells of what stands in the way of the others.
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
            complete = false;
            if options.dry_run && loading {
                continue;
            }
            let tried = self.try_change(&change, snapshot, options, pending);
            let Err(ChangeRefused { why, holds }) = tried else {
                if let Some(why) = self.rests.last(&touched(&change)) {
                    telling.still_refused(&change, why);
                }
                continue;
            };
            if let Some(older) = self.without_newcomers(&change)
                && self.try_change(&older, snapshot, options, pending).is_ok()
            {
                continue;
            }
            if !options.dry_run && self.give_up_recollected(&change, &why) {
                continue;
            }
            telling.change_refused(&change, &why);
            held.extend(touched(&change).into_iter().map(|actor| (actor, why.clone())));
            self.memory.refused_changes.refuse(change, holds, why, Instant::now());
        }
        if !options.dry_run {
            self.held = held;
        }
        complete && self.rollouts.is_empty()
    }

    /// Has a change rolled out, or only tried.
    fn try_change(
        &mut self,
        change: &ChangePlan,
        snapshot: &Arc<Snapshot>,
        options: ReloadOptions,
        pending: &mut Pending,
    ) -> Result<(), ChangeRefused> {
        if options.dry_run {
            pending.rollouts.insert(self.rehearse(change, snapshot)?);
            return Ok(());
        }
        match self.attempt(change, snapshot) {
            Attempt::UnderWay(id) | Attempt::Waits(id) => _ = pending.rollouts.insert(id),
            Attempt::Refused(refused) => return Err(refused),
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

    /// Says which kept modules are needed: what runs, rolls out or judges. What was banned is
    /// kept as long as there is room: a module that is not here has never run.
    fn claim(&self) {
        let mut needed: BTreeSet<Digest> = self.running.actors.values().map(|a| a.digest).collect();
        needed.extend(self.generations.judges());
        needed.extend(self.recollected.values().map(|last| last.digest));
        needed.extend(self.rollouts.needs());
        let mut recent = self.generations.digests();
        recent.extend(self.memory.bans.digests());
        self.library.claim(Claims { needed, recent });
    }

    /// Shows how actors stand to disk.
    fn show(&mut self, snapshot: &Snapshot, in_sync: bool) {
        self.stale = None;
        let stand = Stand {
            flow: &self.memory.flow,
            running: &self.running,
            snapshot,
            bad_modules: &self.memory.bad_modules,
            bans: &self.memory.bans,
            held: &self.held,
            rolling_out: self.rollouts.progress(),
            folder: &self.folder,
            now: Instant::now(),
        };
        self.shared.view.store(Arc::new(stand.actors()));
        self.shared.modules.store(Arc::new(stand.modules()));
        self.shared.in_sync.store(in_sync, Ordering::Relaxed);
    }

    /// Lets go of modules that are not on disk any more and that nothing runs.
    fn forget_unused(&mut self, snapshot: &Snapshot) {
        self.library.retain(&self.used(snapshot));
        self.claim();
    }

    /// The modules that are on disk, or that anything runs or may have to.
    fn used(&self, snapshot: &Snapshot) -> BTreeSet<Digest> {
        let mut used: BTreeSet<Digest> = self.running.actors.values().map(|a| a.digest).collect();
        used.extend(self.generations.judges());
        used.extend(self.recollected.values().map(|last| last.digest));
        let files = snapshot.modules.values().chain(snapshot.paths.values());
        used.extend(files.filter_map(Sight::present));
        used.extend(snapshot.downloads.values().filter_map(Sight::present));
        used.extend(self.rollouts.needs());
        used
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
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
