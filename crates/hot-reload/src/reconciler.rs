//! Makes what runs equal to what is on disk.
//!
//! A pass looks at modules and configuration together, plans what differs,
//! prepares each change as a whole and applies it. Passes know nothing of each
//! other but what runs; one that is given up half-way is simply made again.
//!
//! Everything that can fail (reading, loading, checking, keeping, making the
//! first engine) happens before [`System::apply`], which has no error.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use reflowd_loader::{LoadError, Loader, Source};
use reflowd_runtime::{
    ActorLog, ActorName, ActorState, Change, Digest, ERROR_PORT, EventKind, Metadata, Module,
    PortName, PortRef, ProgramSpec, Ready, Start, State, System, WireDef,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    ActorSpec, ActorView, Adjusting, Blueprint, ChangePlan, Claims, ConfigFiles, Demand, Depth,
    DiskWatcher, Doubt, Eyes, Fault, Flow, Found, Kept, Look, ModuleFile, ModuleRef, Moment, Pace,
    Refusal, Refusals, RefusedChanges, ReloadOptions, Removals, Report, Retired, Running,
    RunningActor, ScanOptions, Scanner, Sight, Snapshot, StopReason, Template, View, Wanted,
    WireSpec,
    blueprint::Texts,
    emptied::emptied,
    plan::{self, Note, Plan, Starting, Swapping},
};

/// Passes that may wait for the one in hand.
const MAX_REQUESTS: usize = 16;

/// How long an explicit reload waits for files that are being written.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// Looks in a row that one pass takes to find out which files belong to the configuration.
const MAX_LOOKS: usize = 4;

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
    /// The state that an earlier process has written of an actor, if any.
    pub state: Box<States>,
}

/// Knows what an earlier process has written of an actor's state.
pub type States = dyn Fn(&ActorName) -> Option<State> + Send + Sync;

/// Watches the disk and keeps what runs equal to it.
pub struct Reconciler {
    parts: Parts,
    watcher: DiskWatcher,
    scanner: Option<Scanner>,
    look: Look,
    texts: Texts,
    flow: Flow,
    /// Why the configuration on disk is not in force, where it is not.
    config_refused: Option<String>,
    /// Whether a configuration has come into force. Nothing starts before.
    configured: bool,
    running: Running,
    retired: Retired,
    refusals: Refusals,
    loaded: HashMap<Digest, Arc<dyn Module>>,
    refused: RefusedChanges,
    /// What has been said once and is not said again while it lasts.
    said: BTreeSet<String>,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
}

#[derive(Default)]
struct Shared {
    view: ArcSwap<View>,
    modules: ArcSwap<Vec<ModuleFile>>,
    in_sync: AtomicBool,
    /// Modules refused since the start, by reason.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

struct Request {
    options: ReloadOptions,
    report: oneshot::Sender<Report>,
}

/// Asks a [`Reconciler`] for a pass, from anywhere.
#[derive(Clone)]
pub struct Reloader {
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    demand: Demand,
}

impl Reloader {
    /// Looks at disk now and returns what came of it; nothing, when the daemon is stopping.
    pub async fn reload(&self, options: ReloadOptions) -> Option<Report> {
        let (report, answer) = oneshot::channel();
        self.requests.send(Request { options, report }).await.ok()?;
        answer.await.ok()
    }

    /// Asks for a pass without waiting for it.
    pub fn demand(&self) {
        self.demand.look();
    }

    /// How each actor stands to what is on disk.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.load_full()
    }

    /// Whether all that disk asks for is what runs.
    #[must_use]
    pub fn in_sync(&self) -> bool {
        self.shared.in_sync.load(Ordering::Relaxed)
    }

    /// The module files that the last pass has seen.
    #[must_use]
    pub fn modules(&self) -> Arc<Vec<ModuleFile>> {
        self.shared.modules.load_full()
    }

    /// How many modules were refused since the daemon started, by reason.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.shared.refusals.lock().clone()
    }
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
        };
        let watcher = DiskWatcher::new(look.roots(), parts.pace, parts.eyes);
        let shared = Arc::new(Shared::default());
        let (sender, requests) = mpsc::channel(MAX_REQUESTS);
        let reloader =
            Reloader { requests: sender, shared: Arc::clone(&shared), demand: watcher.demand() };
        let reconciler = Self {
            scanner: Some(Scanner::new(parts.scan.clone())),
            watcher,
            look,
            texts: Texts::new(),
            flow: Flow::default(),
            config_refused: None,
            configured: false,
            running: Running::default(),
            retired: Retired::default(),
            refusals: Refusals::default(),
            loaded: HashMap::new(),
            refused: RefusedChanges::default(),
            said: BTreeSet::new(),
            shared,
            requests,
            parts,
        };
        (reconciler, reloader)
    }

    /// The first pass. Waits for files that are being written.
    ///
    /// The report says whether the configuration could be taken: a daemon whose
    /// first configuration is wrong does not serve.
    pub async fn begin(&mut self) -> Report {
        // The first wake comes at once, and the folders are watched from then on.
        self.watcher.next().await;
        self.settled_pass(ReloadOptions::default(), Depth::Changed).await
    }

    /// Why the configuration on disk is not in force, where it is not.
    #[must_use]
    pub fn config_problem(&self) -> Option<&str> {
        self.config_refused.as_deref()
    }

    /// Passes until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(request) = self.requests.recv() => {
                    let report = self.settled_pass(request.options, Depth::Everything).await;
                    // Whoever asked may have given up; the pass stands all the same.
                    _ = request.report.send(report);
                }
                _ = self.watcher.next() => {
                    self.pass(ReloadOptions::default(), Depth::Changed).await;
                }
            }
        }
    }

    /// Passes until no file is being written any more, and reports all that was done.
    async fn settled_pass(&mut self, options: ReloadOptions, depth: Depth) -> Report {
        let patience = Instant::now() + SETTLE_PATIENCE;
        let mut report = Report::default();
        loop {
            let (mut latest, again) = self.pass(options, depth).await;
            latest.added.splice(0..0, report.added);
            latest.changed.splice(0..0, report.changed);
            latest.removed.splice(0..0, report.removed);
            report = latest;
            match again {
                Some(again) if again < patience => tokio::time::sleep_until(again).await,
                _ => return report,
            }
        }
    }

    /// One pass. Also says when files that are being written are worth another.
    async fn pass(&mut self, options: ReloadOptions, depth: Depth) -> (Report, Option<Instant>) {
        let mut report = Report::default();
        let mut saying = BTreeSet::new();
        if options.force {
            self.refusals.clear();
            self.refused.clear();
        }
        let before = self.flow.clone();
        let (mut snapshot, texts) = self.look(depth, &mut saying, &mut report).await;
        self.forget_stopped();

        let emptied = texts.as_ref().map_or_else(Vec::new, |texts| emptied(&self.texts, texts));
        if let [file, ..] = emptied.as_slice()
            && !options.allow_removal
        {
            let why = format!("{} was emptied", file.display());
            self.hold(why, &mut saying, &mut report);
        } else if let Some(texts) = texts
            && (texts != self.texts || options.force || self.config_refused.is_some())
        {
            snapshot =
                self.read_config(texts, snapshot, &mut saying, &mut report, options.dry_run).await;
        } else if let Some(why) = self.config_refused.clone() {
            report.refused.push(Refusal { what: "configuration".into(), why });
        }
        let mut in_sync = false;
        if self.configured {
            let plan = self.plan(&snapshot, options, &mut report).await;
            in_sync = self.follow(plan, &snapshot, options, &mut saying, &mut report).await;
        }
        self.show(&snapshot, in_sync && report.is_clean());
        self.said = saying;
        if options.dry_run {
            self.flow = before;
        } else {
            self.forget_unused(&snapshot);
        }
        if let Some(retry) = self.refusals.next_retry(Instant::now()) {
            self.watcher.again(retry);
        }
        if let Some(again) = snapshot.again {
            self.watcher.again(again);
        }
        let unsettled = snapshot.unsettled().next().is_some();
        (report, snapshot.again.filter(|_| unsettled))
    }

    /// Looks at the disk until it is clear which files belong to the configuration.
    async fn look(
        &mut self,
        depth: Depth,
        saying: &mut BTreeSet<String>,
        report: &mut Report,
    ) -> (Snapshot, Option<Texts>) {
        let mut looks = 0;
        let snapshot = loop {
            let snapshot = self.scan(depth).await;
            looks += 1;
            let Ok(texts) = snapshot.sources() else { break snapshot };
            let ConfigFiles { configs, includes } = self.parts.blueprint.files(&texts);
            let same = configs == self.look.configs && includes == self.look.includes;
            if same || looks == MAX_LOOKS {
                break snapshot;
            }
            self.look.configs = configs;
            self.look.includes = includes;
            self.watcher.set_roots(self.look.roots());
        };
        for (folder, trouble) in &snapshot.troubles {
            let (path, why) = (folder.display().to_string(), trouble.to_string());
            report.warnings.push(format!("{path}: {why}"));
            let known = format!("folder {path}: {why}");
            if self.say(saying, known) {
                warn!(%path, %why, "folder cannot be judged; nothing in it is taken for removed");
                self.parts.system.events().record(EventKind::FolderUnknown { path, why });
            }
        }
        let texts = snapshot.sources().ok();
        (snapshot, texts)
    }

    async fn scan(&mut self, depth: Depth) -> Snapshot {
        let mut scanner = self.scanner.take().expect("a scanner is given back after each look");
        let has: BTreeSet<Digest> = self.loaded.keys().copied().collect();
        let look = self.look.clone();
        let scanned = tokio::task::spawn_blocking(move || {
            let snapshot = scanner.scan(&look, &has, depth, Moment::now());
            (scanner, snapshot)
        });
        let (scanner, snapshot) = scanned.await.expect("a look does not panic");
        self.scanner = Some(scanner);
        snapshot
    }

    /// Takes up a changed configuration, if it is right as a whole. Gives the
    /// look back, wider where the new flow names modules by path.
    async fn read_config(
        &mut self,
        texts: Texts,
        snapshot: Snapshot,
        saying: &mut BTreeSet<String>,
        report: &mut Report,
        dry_run: bool,
    ) -> Snapshot {
        let draft = match self.parts.blueprint.draft(&texts) {
            Ok(draft) => draft,
            Err(why) => {
                self.refuse_config(why, saying, report);
                return snapshot;
            }
        };
        let snapshot = self.widen(draft.flow(), snapshot).await;
        let unsettled =
            |spec: &&ActorSpec| matches!(sight_of(&snapshot, &spec.module), Sight::Unsettled);
        if let Some(spec) = draft.flow().actors.values().find(unsettled) {
            // Whether the two fit can be said in a moment; the next pass asks again.
            let module = name_of(&spec.module);
            report
                .warnings
                .push(format!("`{module}` is being written; the configuration waits for it"));
            return snapshot;
        }
        for spec in draft.flow().actors.values() {
            let builtin = matches!(spec.module, ModuleRef::Builtin { .. });
            if !builtin && let Some(digest) = digest_in(&snapshot, &spec.module) {
                self.load(digest, &spec.module, &snapshot).await;
            }
        }
        let now = Instant::now();
        let checked = draft.check(&|module| self.found(module, &snapshot, now));
        match checked {
            Ok(warnings) => {
                report.warnings.extend(warnings);
                self.flow = draft.flow().clone();
                if !dry_run {
                    draft.adopted();
                    self.configured = true;
                    self.retired.note(&self.flow, &self.parts.modules);
                    self.config_refused = None;
                    self.texts = texts;
                }
            }
            Err(why) => self.refuse_config(why, saying, report),
        }
        snapshot
    }

    fn refuse_config(&mut self, why: String, saying: &mut BTreeSet<String>, report: &mut Report) {
        // At the start, whoever started the daemon is told, and it ends.
        if self.say(saying, format!("config {why}")) && self.configured {
            warn!("configuration refused; nothing changed\n{why}");
            let why = why.clone();
            self.parts.system.events().record(EventKind::ConfigRefused { why });
        }
        self.config_refused = Some(why.clone());
        report.refused.push(Refusal { what: "configuration".into(), why });
    }

    /// Modules by path are looked at only once a flow names them.
    async fn widen(&mut self, flow: &Flow, snapshot: Snapshot) -> Snapshot {
        let paths = flow.paths();
        if paths == self.look.paths {
            return snapshot;
        }
        self.look.paths = paths;
        self.watcher.set_roots(self.look.roots());
        self.scan(Depth::Changed).await
    }

    /// What can be said of a module that an actor names, by what is on disk or what runs.
    fn found(&self, module: &ModuleRef, snapshot: &Snapshot, now: Instant) -> Found {
        if let ModuleRef::Builtin { name } = module {
            return match self.parts.blueprint.connector_metadata(name) {
                Some(metadata) => Found::Known(metadata),
                None => Found::Missing { looked_at: None, names: Vec::new() },
            };
        }
        let digest = digest_in(snapshot, module);
        if let Some(module) = digest.and_then(|digest| self.loaded.get(&digest)) {
            return Found::Known(module.metadata().clone());
        }
        // A bad new version does not make the configuration wrong: the old one runs on.
        let runs = self.running.actors.values().find(|actor| actor.spec.module.same_place(module));
        if let Some(module) = runs.and_then(|actor| self.loaded.get(&actor.digest)) {
            return Found::Known(module.metadata().clone());
        }
        if let Some(refusal) = digest.and_then(|digest| self.refusals.standing(&digest, now)) {
            return Found::Broken { why: refusal.why.clone() };
        }
        match sight_of(snapshot, module) {
            Sight::Present(_) | Sight::Unsettled => {
                Found::Broken { why: "it is being written; try again in a moment".into() }
            }
            Sight::Unknown(trouble) => Found::Broken { why: trouble.to_string() },
            Sight::Missing | Sight::Gone => Found::Missing {
                looked_at: Some(path_of(module, &self.parts.modules)),
                names: stems(snapshot),
            },
        }
    }

    /// Loads a module, unless it is loaded or known to be bad.
    async fn load(&mut self, digest: Digest, module: &ModuleRef, snapshot: &Snapshot) {
        if !matches!(module, ModuleRef::Builtin { .. }) {
            let path = path_of(module, &self.parts.modules);
            self.load_file(digest, &path, snapshot).await;
        }
    }

    async fn load_file(&mut self, digest: Digest, path: &Path, snapshot: &Snapshot) {
        let now = Instant::now();
        if self.loaded.contains_key(&digest) || self.refusals.standing(&digest, now).is_some() {
            return;
        }
        let bytes = match self.bytes_of(digest, path, snapshot) {
            Ok(bytes) => bytes,
            Err(why) => {
                // The file is another by now: the next look will say which.
                warn!(path = %path.display(), %why, "module cannot be read");
                return;
            }
        };
        let name = path.display().to_string();
        match self.parts.loader.load(Source::Bytes { name: name.clone(), bytes }).await {
            Ok(module) => {
                info!(module = %name, digest = %digest.short(), component = %module.metadata().component, "module loaded");
                self.refusals.forget(&digest);
                self.loaded.insert(digest, module);
            }
            Err(error) => self.refuse_module(digest, name, &error),
        }
    }

    fn bytes_of(&self, digest: Digest, path: &Path, snapshot: &Snapshot) -> Result<Bytes, String> {
        if let Some(bytes) = snapshot.bytes.get(&digest) {
            return Ok(bytes.clone());
        }
        let scanner = self.scanner.as_ref().expect("a scanner is given back after each look");
        let fetched = scanner.fetch(path, &digest);
        fetched.or_else(|error| self.parts.kept.read(&digest).map_err(|_| chain(&error)))
    }

    fn refuse_module(&mut self, digest: Digest, module: String, error: &LoadError) {
        let why = chain(error);
        let fault = if error.is_intrinsic() { Fault::Intrinsic } else { Fault::Timeout };
        error!(%module, digest = %digest.short(), %why, "module refused");
        self.refusals.refuse(digest, fault, why.clone(), Instant::now());
        *self.shared.refusals.lock().entry(error.reason()).or_default() += 1;
        self.parts.system.events().record(EventKind::ModuleRefused {
            module,
            digest: Some(digest),
            reason: error.reason().into(),
            why,
        });
    }

    /// Plans, loading what the plan needs.
    async fn plan(
        &mut self,
        snapshot: &Snapshot,
        options: ReloadOptions,
        report: &mut Report,
    ) -> Plan {
        // Loading may refuse modules, which changes the plan; each round loads
        // what is new in it, so the second round has nothing left to load.
        loop {
            let plan = self.planned(snapshot, options);
            let mut fresh: Vec<(Digest, PathBuf)> = Vec::new();
            for change in plan.changes.iter().chain(plan.held.iter().flat_map(|h| &h.changes)) {
                let starts = change.start.iter().map(|s| (s.digest, &s.spec.module));
                let swaps = change.swap.iter().map(|s| (s.digest, &s.spec.module));
                for (digest, module) in starts.chain(swaps) {
                    if !matches!(module, ModuleRef::Builtin { .. }) {
                        fresh.push((digest, path_of(module, &self.parts.modules)));
                    }
                }
            }
            for note in &plan.notes {
                if let Note::NameDoesNotFit { file, digest } = note {
                    fresh.push((*digest, self.parts.modules.join(file)));
                }
            }
            let now = Instant::now();
            fresh.retain(|(digest, _)| {
                !self.loaded.contains_key(digest) && self.refusals.standing(digest, now).is_none()
            });
            if fresh.is_empty() {
                return plan;
            }
            let before = self.loaded.len() + self.refused_now(now).len();
            for (digest, path) in fresh {
                self.load_file(digest, &path, snapshot).await;
            }
            if before == self.loaded.len() + self.refused_now(Instant::now()).len() {
                report.warnings.push("a module changed while it was being read".into());
                return plan;
            }
        }
    }

    fn planned(&self, snapshot: &Snapshot, options: ReloadOptions) -> Plan {
        let refused = self.refused_now(Instant::now());
        let removals = if options.allow_removal { Removals::Allowed } else { Removals::Guarded };
        let wanted = Wanted {
            flow: &self.flow,
            snapshot,
            folder: &self.parts.modules,
            autostart: self.parts.autostart.as_ref(),
            retired: &self.retired,
            refused: &refused,
            removals,
        };
        plan::plan(wanted, &self.running)
    }

    fn refused_now(&self, now: Instant) -> BTreeMap<Digest, String> {
        self.refusals.all_standing(now)
    }

    /// Carries a plan out. True when nothing of it was left undone.
    async fn follow(
        &mut self,
        plan: Plan,
        snapshot: &Snapshot,
        options: ReloadOptions,
        saying: &mut BTreeSet<String>,
        report: &mut Report,
    ) -> bool {
        let mut complete = plan.blocked.is_empty() && plan.held.is_none();
        for note in &plan.notes {
            self.note(note, saying, report);
        }
        for blocked in &plan.blocked {
            for (actor, doubt) in &blocked.because {
                let why = doubt.to_string();
                if !doubt.passes() {
                    report.refused.push(Refusal { what: actor.to_string(), why: why.clone() });
                    if self.say(saying, format!("blocked {actor} {why}")) {
                        warn!(%actor, %why, "actor cannot change");
                        let actors = vec![actor.clone()];
                        self.parts.system.events().record(EventKind::ChangeRefused { actors, why });
                    }
                }
            }
        }
        if let Some(held) = &plan.held {
            let why = format!("{} of {} actors would be removed at once", held.removes, held.of);
            self.hold(why, saying, report);
        }
        self.refused.keep_only(&plan.changes);
        for change in plan.changes {
            if options.dry_run {
                tell(&change, report);
            } else if let Err(why) = self.change(&change, snapshot).await {
                complete = false;
                self.refuse_change(change, why, saying, report);
            } else {
                tell(&change, report);
            }
        }
        if !(options.dry_run
            || report.added.is_empty() && report.changed.is_empty() && report.removed.is_empty())
        {
            self.parts.system.events().record(EventKind::Changed {
                added: report.added.clone(),
                changed: report.changed.clone(),
                removed: report.removed.clone(),
            });
        }
        complete
    }

    /// Says that something looks like an accident and waits for an operator's word.
    fn hold(&self, what: String, saying: &mut BTreeSet<String>, report: &mut Report) {
        let why = format!("{what}; if that is meant: `reflowd reload --allow-removal`");
        if self.say(saying, format!("held {why}")) {
            warn!(%why, "removal held");
            self.parts.system.events().record(EventKind::RemovalHeld { why: why.clone() });
        }
        report.held = Some(why);
    }

    fn note(&self, note: &Note, saying: &mut BTreeSet<String>, report: &mut Report) {
        let text = note.to_string();
        let actor = |actor: &ActorName| actor.to_string();
        let refused = match note {
            Note::GoesOn { actor: name, doubt } => Some((actor(name), doubt)),
            Note::NotStarted { file, doubt } => Some((file.display().to_string(), doubt)),
            Note::NameDoesNotFit { .. } | Note::NameTaken { .. } => None,
        };
        match refused
            .filter(|(_, doubt)| matches!(doubt, Doubt::Refused { .. } | Doubt::Pinned { .. }))
        {
            Some((what, doubt)) => {
                report.refused.push(Refusal { what, why: doubt.to_string() });
            }
            None => report.warnings.push(text.clone()),
        }
        if !self.say(saying, text.clone()) {
            return;
        }
        warn!("{text}");
        let events = self.parts.system.events();
        match note {
            Note::GoesOn { actor, doubt: Doubt::Gone } => {
                let module = self.running.actors.get(actor).map(|a| name_of(&a.spec.module));
                let module = module.unwrap_or_default();
                events.record(EventKind::FileGone { module, actors: vec![actor.clone()] });
            }
            Note::GoesOn { actor, .. } => {
                events.record(EventKind::ChangeRefused { actors: vec![actor.clone()], why: text });
            }
            Note::NameDoesNotFit { file, digest } => events.record(EventKind::ModuleLoaded {
                module: file.display().to_string(),
                digest: *digest,
                why: text,
            }),
            Note::NotStarted { file, .. } | Note::NameTaken { file, .. } => {
                events.record(EventKind::Ignored { path: file.display().to_string(), why: text });
            }
        }
    }

    fn refuse_change(
        &mut self,
        change: ChangePlan,
        refused: ChangeRefused,
        saying: &mut BTreeSet<String>,
        report: &mut Report,
    ) {
        let actors = touched(&change);
        let what = actors.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let why = refused.why;
        if self.say(saying, format!("change {what} {why}")) {
            warn!(actors = %what, %why, "change refused; its actors go on as they are");
            self.parts
                .system
                .events()
                .record(EventKind::ChangeRefused { actors, why: why.clone() });
        }
        report.refused.push(Refusal { what, why: why.clone() });
        if refused.lasts {
            self.refused.refuse(change, why);
        }
    }

    /// Prepares all of a change, then applies it.
    async fn change(
        &mut self,
        change: &ChangePlan,
        snapshot: &Snapshot,
    ) -> Result<(), ChangeRefused> {
        if let Some(why) = self.refused.standing(change) {
            return Err(ChangeRefused { why: why.into(), lasts: true });
        }
        self.check_ports(change)?;
        self.check_queued(change)?;
        let mut ready = Change { drain: self.parts.drain, ..Change::default() };
        let mut generations = Vec::new();
        for start in &change.start {
            let (program, version) = self.prepare(&start.actor, &start.spec, start.digest).await?;
            self.keep(start.digest, &start.spec.module, snapshot)?;
            generations.push((start.actor.clone(), version));
            ready.start.push(Start {
                name: start.actor.clone(),
                ready: program,
                settings: start.spec.settings.clone(),
                state: (self.parts.state)(&start.actor),
                was: start.was.clone(),
            });
        }
        for swap in &change.swap {
            let (program, version) = self.prepare(&swap.actor, &swap.spec, swap.digest).await?;
            self.keep(swap.digest, &swap.spec.module, snapshot)?;
            generations.push((swap.actor.clone(), version));
            ready.swap.push((swap.actor.clone(), program));
            ready.settings.extend(self.settings_of(&swap.actor, &swap.spec));
        }
        for adjust in &change.adjust {
            self.check_version(adjust)?;
            ready.settings.extend(self.settings_of(&adjust.actor, &adjust.spec));
        }
        ready.stop = change.stop.iter().map(|stop| stop.actor.clone()).collect();
        let wires = self.wires_after(change);
        ready.wires = Some(wires.iter().map(wire_def).collect());
        let changed = self.parts.system.apply(ready).await;
        self.record(change, &changed.generations, wires);
        Ok(())
    }

    /// The in-place keys of an actor, where they differ from those in force.
    fn settings_of(
        &self,
        actor: &ActorName,
        spec: &ActorSpec,
    ) -> Option<(ActorName, reflowd_runtime::Settings)> {
        let running = self.running.actors.get(actor)?;
        (running.spec.settings != spec.settings).then(|| (actor.clone(), spec.settings.clone()))
    }

    fn check_version(&self, adjust: &Adjusting) -> Result<(), ChangeRefused> {
        let Some(wanted) = &adjust.spec.version else { return Ok(()) };
        let Some(running) = self.running.actors.get(&adjust.actor) else { return Ok(()) };
        let found = self.loaded.get(&running.digest).and_then(|module| module.version());
        reflowd_loader::check_version(found, Some(wanted))
            .map_err(|error| ChangeRefused::lasting(&adjust.actor, &error))
    }

    /// Makes an actor's module ready, with a first engine: the proof that there can be one.
    async fn prepare(
        &self,
        actor: &ActorName,
        spec: &ActorSpec,
        digest: Digest,
    ) -> Result<(Ready, Option<String>), ChangeRefused> {
        if let ModuleRef::Builtin { name } = &spec.module {
            let ready = self.parts.blueprint.connector(name, spec);
            let ready = ready
                .map_err(|why| ChangeRefused { why: format!("`{actor}`: {why}"), lasts: false })?;
            return Ok((ready, None));
        }
        let Some(module) = self.loaded.get(&digest) else {
            let why = format!("`{actor}`: its module changed while it was being read");
            return Err(ChangeRefused { why, lasts: false });
        };
        let log = ActorLog::new(actor.clone(), spec.settings.log_rate);
        let program = module
            .prepare(ProgramSpec {
                actor: actor.clone(),
                config: spec.keys.config.clone(),
                env: spec.keys.env.clone(),
                entry_point: spec.keys.entry_point.clone(),
                memory: spec.keys.memory,
                allow_hosts: spec.keys.allow_hosts.clone(),
                engine_per: spec.keys.engine_per,
                version: spec.version.clone(),
                log: log.clone(),
            })
            .await
            .map_err(|error| ChangeRefused::lasting(actor, &error))?;
        let engine =
            program.instantiate().await.map_err(|error| ChangeRefused::lasting(actor, &error))?;
        let version = module.version().map(str::to_owned);
        Ok((Ready::Engine { program, engine, version: version.clone(), log }, version))
    }

    /// Keeps the module in the data folder: what goes live must outlive its file.
    fn keep(
        &self,
        digest: Digest,
        module: &ModuleRef,
        snapshot: &Snapshot,
    ) -> Result<(), ChangeRefused> {
        if matches!(module, ModuleRef::Builtin { .. }) || self.parts.kept.read(&digest).is_ok() {
            return Ok(());
        }
        let path = path_of(module, &self.parts.modules);
        let refused = |why: String| ChangeRefused { why, lasts: false };
        let bytes = self.bytes_of(digest, &path, snapshot).map_err(refused)?;
        let needed = self.running.actors.values().map(|actor| actor.digest).collect();
        let claims = Claims { needed, recent: self.loaded.keys().copied().collect() };
        self.parts.kept.keep(digest, &bytes, &claims).map_err(|error| refused(chain(&error)))
    }

    /// All wires after the change. An actor that stops keeps its own until it is empty.
    fn wires_after(&self, change: &ChangePlan) -> Vec<WireSpec> {
        let same = |a: &WireSpec, b: &WireSpec| a.from == b.from && a.to == b.to;
        let stops = |actor: &ActorName| change.stop.iter().any(|stop| stop.actor == *actor);
        let renamed =
            |actor: &ActorName| change.start.iter().any(|s| s.was.as_ref() == Some(actor));
        let mut wires: Vec<WireSpec> = self
            .running
            .wires
            .iter()
            .filter(|wire| !change.cut.iter().any(|cut| same(cut, wire)))
            .filter(|wire| !change.connect.iter().any(|new| same(new, wire)))
            .filter(|wire| !stops(&wire.from.actor) && !stops(&wire.to.actor))
            .filter(|wire| !renamed(&wire.from.actor) && !renamed(&wire.to.actor))
            .cloned()
            .collect();
        wires.extend(change.connect.iter().cloned());
        wires
    }

    /// Remembers what runs now.
    fn record(
        &mut self,
        change: &ChangePlan,
        generations: &BTreeMap<ActorName, reflowd_runtime::Generation>,
        wires: Vec<WireSpec>,
    ) {
        let generation = |actor: &ActorName, before: Option<&RunningActor>| {
            let before = before.map_or(reflowd_runtime::Generation::FIRST, |a| a.generation);
            generations.get(actor).copied().unwrap_or(before)
        };
        for Starting { actor, spec, digest, autostarted, was, .. } in &change.start {
            let running = RunningActor {
                spec: spec.clone(),
                digest: *digest,
                generation: generation(actor, None),
                autostarted: *autostarted,
                draining: false,
            };
            if let Some(was) = was {
                self.running.actors.remove(was);
            }
            self.running.actors.insert(actor.clone(), running);
        }
        for Swapping { actor, spec, digest, autostarted } in &change.swap {
            let before = self.running.actors.get(actor);
            let running = RunningActor {
                spec: spec.clone(),
                digest: *digest,
                generation: generation(actor, before),
                autostarted: *autostarted,
                draining: false,
            };
            self.running.actors.insert(actor.clone(), running);
        }
        for Adjusting { actor, spec, autostarted } in &change.adjust {
            if let Some(running) = self.running.actors.get_mut(actor) {
                running.spec = spec.clone();
                running.autostarted = *autostarted;
            }
        }
        for stop in &change.stop {
            if let Some(running) = self.running.actors.get_mut(&stop.actor) {
                running.draining = true;
            }
            let why = match &stop.why {
                StopReason::Removed => "it is not in the configuration any more".into(),
                StopReason::FileGone => "its file is gone".into(),
                StopReason::Taken { by } => format!("`{by}` uses its module"),
                StopReason::AutostartOff => "files alone start no actors any more".to_owned(),
            };
            info!(actor = %stop.actor, %why, "actor is drained");
        }
        self.running.wires = wires;
    }

    /// Forgets actors that have stopped since the last pass.
    fn forget_stopped(&mut self) {
        let system = &self.parts.system;
        self.running
            .actors
            .retain(|name, actor| !actor.draining || system.actor(name.as_str()).is_some());
    }

    /// Whether the ports of the new generations fit the wires.
    fn check_ports(&self, change: &ChangePlan) -> Result<(), ChangeRefused> {
        let fresh: BTreeSet<&ActorName> = (change.start.iter().map(|s| &s.actor))
            .chain(change.swap.iter().map(|s| &s.actor))
            .collect();
        let new_wire = |wire: &WireSpec| {
            change.connect.iter().any(|new| new.from == wire.from && new.to == wire.to)
        };
        for wire in self.wires_after(change) {
            if !new_wire(&wire)
                && !fresh.contains(&wire.from.actor)
                && !fresh.contains(&wire.to.actor)
            {
                continue;
            }
            self.check_wire(&wire, change).map_err(|why| ChangeRefused {
                why: format!("{} -> {}: {why}", wire.from, wire.to),
                lasts: true,
            })?;
        }
        Ok(())
    }

    fn check_wire(&self, wire: &WireSpec, change: &ChangePlan) -> Result<(), String> {
        let metadata = |port: &PortRef| {
            self.metadata_after(&port.actor, change)
                .ok_or_else(|| format!("the actor `{}` does not run", port.actor))
        };
        let (from, to) = (metadata(&wire.from)?, metadata(&wire.to)?);
        let missing = |port: &PortRef, kind: &str, ports: &[reflowd_runtime::Port]| {
            let has: Vec<_> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
            let has = if has.is_empty() { "none".into() } else { has.join(", ") };
            format!("`{}` has no {kind} `{}`; it has {has}", port.actor, port.port)
        };
        let inport = to
            .inport(wire.to.port.as_str())
            .ok_or_else(|| missing(&wire.to, "inport", &to.inports))?;
        let outport = match from.outport(wire.from.port.as_str()) {
            Some(port) => port.port_type,
            None if wire.from.port.as_str() == ERROR_PORT => reflowd_runtime::Type::Error,
            None => return Err(missing(&wire.from, "outport", &from.outports)),
        };
        if outport.can_fit(inport.port_type) {
            Ok(())
        } else {
            Err(format!("a {outport} can never be a {}", inport.port_type))
        }
    }

    /// The ports of an actor once the change is done.
    fn metadata_after(&self, actor: &ActorName, change: &ChangePlan) -> Option<Metadata> {
        let starts = change.start.iter().map(|s| (&s.actor, s.digest, &s.spec.module));
        let swaps = change.swap.iter().map(|s| (&s.actor, s.digest, &s.spec.module));
        let fresh = starts.chain(swaps).find(|(name, ..)| *name == actor);
        let (digest, module) = match fresh {
            Some((_, digest, module)) => (digest, module),
            None => self.running.actors.get(actor).map(|a| (a.digest, &a.spec.module))?,
        };
        match module {
            ModuleRef::Builtin { name } => self.parts.blueprint.connector_metadata(name),
            _ => self.loaded.get(&digest).map(|module| module.metadata().clone()),
        }
    }

    /// Whether messages wait for a port that the new generation lacks.
    fn check_queued(&self, change: &ChangePlan) -> Result<(), ChangeRefused> {
        for swap in &change.swap {
            let Some(actor) = self.parts.system.actor(swap.actor.as_str()) else { continue };
            let Some(metadata) = self.metadata_after(&swap.actor, change) else { continue };
            for (port, count) in actor.mailbox().queued_by_port() {
                let cut = |port: &PortName| {
                    change.cut.iter().any(|w| w.to.actor == swap.actor && w.to.port == *port)
                };
                if metadata.inport(port.as_str()).is_none() && !cut(&port) {
                    let why = format!(
                        "`{}`: {count} messages wait for its inport `{port}`, which the new module lacks; it is tried again when they are gone",
                        swap.actor
                    );
                    return Err(ChangeRefused { why, lasts: false });
                }
            }
        }
        Ok(())
    }

    /// Shows how actors stand to disk.
    fn show(&self, snapshot: &Snapshot, in_sync: bool) {
        let mut view = View::new();
        for (name, actor) in &self.running.actors {
            let wanted = digest_in(snapshot, &actor.spec.module);
            let gone = !matches!(actor.spec.module, ModuleRef::Builtin { .. })
                && matches!(sight_of(snapshot, &actor.spec.module), Sight::Gone);
            let asked = self.flow.actors.get(name);
            let spec_in_force =
                actor.autostarted || asked.is_some_and(|spec| same_spec(spec, &actor.spec));
            let view_of = ActorView {
                module: name_of(&actor.spec.module),
                autostarted: actor.autostarted,
                wanted,
                in_sync: spec_in_force && !gone && wanted.is_some_and(|d| d == actor.digest),
                file_gone: gone,
                pending: None,
            };
            view.insert(name.clone(), view_of);
        }
        for (name, spec) in &self.flow.actors {
            if self.running.actors.contains_key(name) {
                continue;
            }
            let wanted = digest_in(snapshot, &spec.module);
            let why = wanted
                .and_then(|digest| self.refusals.standing(&digest, Instant::now()))
                .map_or_else(
                    || "its change was refused; see `reflowd events`".into(),
                    |r| r.why.clone(),
                );
            view.insert(
                name.clone(),
                ActorView {
                    module: name_of(&spec.module),
                    autostarted: false,
                    wanted,
                    in_sync: false,
                    file_gone: false,
                    pending: Some((ActorState::Loading, why)),
                },
            );
        }
        self.shared.view.store(Arc::new(view));
        self.shared.modules.store(Arc::new(self.module_files(snapshot)));
        self.shared.in_sync.store(in_sync, Ordering::Relaxed);
    }

    fn module_files(&self, snapshot: &Snapshot) -> Vec<ModuleFile> {
        let in_folder = snapshot.modules.iter();
        let in_folder = in_folder.map(|(name, sight)| (self.parts.modules.join(name), sight));
        let by_path = snapshot.paths.iter().map(|(path, sight)| (path.clone(), sight));
        let now = Instant::now();
        let file = |(file, sight): (PathBuf, &Sight<Digest>)| {
            let digest = sight.present().copied();
            let uses = |actor: &RunningActor| {
                Some(actor.digest) == digest
                    && path_of(&actor.spec.module, &self.parts.modules) == file
            };
            let actors = self.running.actors.iter().filter(|(_, actor)| uses(actor));
            let actors: Vec<_> = actors.map(|(name, _)| name.clone()).collect();
            let refusal = digest.and_then(|digest| self.refusals.standing(&digest, now));
            let (state, why) = match (sight, refusal) {
                (_, Some(refusal)) => ("refused", Some(refusal.why.clone())),
                (Sight::Present(_), None) if !actors.is_empty() => ("running", None),
                (Sight::Present(_), None) => ("unused", None),
                (Sight::Unsettled, _) => ("being written", None),
                (Sight::Missing | Sight::Gone, _) => ("gone", None),
                (Sight::Unknown(trouble), _) => ("unknown", Some(trouble.to_string())),
            };
            ModuleFile { file, digest, state, why, actors }
        };
        in_folder.chain(by_path).map(file).collect()
    }

    /// Lets go of modules that are not on disk any more and that nothing runs.
    fn forget_unused(&mut self, snapshot: &Snapshot) {
        let mut used: BTreeSet<Digest> = self.running.actors.values().map(|a| a.digest).collect();
        let files = snapshot.modules.values().chain(snapshot.paths.values());
        used.extend(files.filter_map(Sight::present));
        let loader = &self.parts.loader;
        self.loaded.retain(|digest, _| {
            let keep = used.contains(digest);
            if !keep {
                loader.forget(digest);
            }
            keep
        });
    }

    /// Whether something is new and worth saying. It is not said again while it lasts.
    fn say(&self, saying: &mut BTreeSet<String>, what: String) -> bool {
        let new = !self.said.contains(&what) && !saying.contains(&what);
        saying.insert(what);
        new
    }
}

/// A change was not applied; its actors go on as they are.
struct ChangeRefused {
    why: String,
    /// Whether the same change deserves the same answer as long as its surroundings are the same.
    lasts: bool,
}

impl ChangeRefused {
    fn lasting(actor: &ActorName, error: &dyn std::error::Error) -> Self {
        Self { why: format!("`{actor}`: {}", chain(error)), lasts: true }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Adds a change to a report.
fn tell(change: &ChangePlan, report: &mut Report) {
    report.added.extend(change.start.iter().map(|s| s.actor.clone()));
    let mut changed: BTreeSet<ActorName> = change.swap.iter().map(|s| s.actor.clone()).collect();
    changed.extend(change.adjust.iter().map(|a| a.actor.clone()));
    for wire in change.connect.iter().chain(&change.cut) {
        changed.extend([wire.from.actor.clone(), wire.to.actor.clone()]);
    }
    let gone = |name: &ActorName| {
        change.start.iter().any(|s| s.actor == *name)
            || change.stop.iter().any(|s| s.actor == *name)
            || change.start.iter().any(|s| s.was.as_ref() == Some(name))
    };
    report.changed.extend(changed.into_iter().filter(|name| !gone(name)));
    let removed = change.stop.iter().filter(|s| !matches!(s.why, StopReason::Taken { .. }));
    report.removed.extend(removed.map(|s| s.actor.clone()));
    report.removed.extend(change.start.iter().filter_map(|s| s.was.clone()));
}

/// The actors that a change is about.
fn touched(change: &ChangePlan) -> Vec<ActorName> {
    let mut actors: BTreeSet<ActorName> = change.start.iter().map(|s| s.actor.clone()).collect();
    actors.extend(change.swap.iter().map(|s| s.actor.clone()));
    actors.extend(change.adjust.iter().map(|s| s.actor.clone()));
    actors.extend(change.stop.iter().map(|s| s.actor.clone()));
    for wire in change.connect.iter().chain(&change.cut) {
        actors.extend([wire.from.actor.clone(), wire.to.actor.clone()]);
    }
    actors.into_iter().collect()
}

fn same_spec(a: &ActorSpec, b: &ActorSpec) -> bool {
    a.module == b.module && a.keys == b.keys && a.settings == b.settings && a.version == b.version
}

fn wire_def(wire: &WireSpec) -> WireDef {
    WireDef { from: wire.from.clone(), to: wire.to.clone(), overflow: wire.overflow }
}

/// What a look says of a module's file.
fn sight_of(snapshot: &Snapshot, module: &ModuleRef) -> Sight<Digest> {
    match module {
        ModuleRef::Stem { stem, .. } => snapshot.stem(stem),
        ModuleRef::Path { path, .. } => snapshot.paths.get(path).cloned().unwrap_or(Sight::Gone),
        ModuleRef::Builtin { name } => Sight::Present(plan::builtin_digest(name)),
    }
}

fn digest_in(snapshot: &Snapshot, module: &ModuleRef) -> Option<Digest> {
    sight_of(snapshot, module).present().copied()
}

fn path_of(module: &ModuleRef, folder: &Path) -> PathBuf {
    match module {
        ModuleRef::Stem { stem, .. } => folder.join(format!("{stem}.wasm")),
        ModuleRef::Path { path, .. } => path.clone(),
        ModuleRef::Builtin { name } => PathBuf::from(format!("std:{name}")),
    }
}

fn name_of(module: &ModuleRef) -> String {
    match module {
        ModuleRef::Stem { stem, .. } => stem.clone(),
        ModuleRef::Path { path, .. } => path.display().to_string(),
        ModuleRef::Builtin { name } => format!("std:{name}"),
    }
}

/// The stems of the modules in the watched folder.
fn stems(snapshot: &Snapshot) -> Vec<String> {
    let names = snapshot.modules.keys().filter_map(|name| name.to_str());
    names.filter_map(|name| name.strip_suffix(".wasm")).map(str::to_owned).collect()
}
