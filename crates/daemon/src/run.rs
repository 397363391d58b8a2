//! The daemon: from a configuration to a flow that runs, and to its orderly end.
//!
//! Two runtimes: actors take their turns on one, everything else (admin API,
//! watching, signals, loading) happens on the other. So an actor that computes
//! for long never keeps the operator from looking at it.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::Write,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::Context;
use futures_util::future::BoxFuture;
use reflowd_hot_reload::{
    Eyes, FormerStates, History, Kept, Pace, Parts, Passes, Reconciler, ReloadError, ReloadOptions,
    Reloader, Remaining, Report, RollBackError, ScanOptions, StateFiles, View,
};
use reflowd_loader::{Limits, Loader};
use reflowd_runtime::{
    ActorName, ActorState, Epoch, EpochState, EventKind, GoneBack, Keeper, Precondition, SpanSink,
    System, Unwritten,
    panic::{self, Boundary, PartHealth, Pauses},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

#[cfg(feature = "otlp")]
use crate::otlp;
use crate::{
    admin::{self, Admin, ModuleView, Phase, Reload, Socket, Tokens, Via},
    blueprint::TomlBlueprint,
    cli::{Exit, Outcome, Stop},
    config::{self, AdminConfig, Config, Environment},
    connector::{Listeners, Services},
    data_folder::DataFolder,
    event_log::EventLog,
    logging::{self, Log},
    memory,
    receipt::Receipts,
    running_mark::RunningMark,
    saved_set::{SaveError, Saved, SavedSets},
    signals::{Signals, Wish},
    snapshot::Snapshots,
    systemd::Notifier,
    watchdog::Watched,
};

/// Has parts of the daemon break on purpose: for tests, and nothing that anybody else has a use for.
const PANICS: &str = "REFLOWD_TEST_PANIC";

/// Threads of the control side. It mostly waits.
const CONTROL_THREADS: usize = 2;

/// How long a start waits for what its first pass begins before it serves without that.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// The same where a stop has left messages: those for an actor that does not run yet would be
/// dead letters. Loading has bounds of its own, so this ends long before.
const LEFT_PATIENCE: Duration = Duration::from_secs(3600);

/// How often the service manager is told how things are.
const UPKEEP: Duration = Duration::from_secs(2);

/// How long the service manager is asked to wait for a start or a reload that goes on: some
/// rounds of [`UPKEEP`], so that one that comes late on a busy machine ends neither.
const WORKING: Duration = Duration::from_secs(30);

/// The longest that the daemon waits for its own tasks once nothing moves any more.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the daemon with the configuration that is found, until it is told to stop.
///
/// # Errors
/// It cannot start: every problem of the configuration, or what else is in the way.
pub(crate) fn run(flag: Option<&Path>) -> Outcome {
    if let Ok(wish) = std::env::var(PANICS) {
        panic::inject(&wish).map_err(|error| {
            Stop::new(Exit::Usage, anyhow::Error::from(error).context(format!("${PANICS}")))
        })?;
    }
    let log = Arc::new(logging::start().context("cannot start the log's thread")?);
    // Why it ends goes the way of the log too, which is written out as the last thing.
    serve(flag, &log).map_err(|Stop { exit, error }| {
        error.iter().for_each(|error| log.say(&format!("error: {error:#}")));
        Stop { exit, error: None }
    })
}

/// The same with a log.
fn serve(flag: Option<&Path>, log: &Arc<Log>) -> Outcome {
    let environment = Environment::of_process();
    let refuse = |report: config::Report| {
        let text = report.render(logging::has_colours());
        Stop::new(Exit::Config, anyhow::anyhow!("the configuration is refused\n{text}"))
    };
    let path = config::locate(flag, &environment).map_err(refuse)?;
    let loaded = Boundary::Config.catch(|| config::load(&path, &environment));
    let loaded = loaded.map_err(|panic| {
        let text = format!("the configuration is refused\n{}: {panic}", path.display());
        Stop::new(Exit::Config, anyhow::anyhow!(text))
    })?;
    let (config, warnings) = loaded.map_err(refuse)?;
    if warnings.warnings() > 0 {
        warn!("configuration:\n{}", warnings.brief());
    }
    warn_of_backtraces();
    raise_open_files();
    let control = Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control side's threads")?;
    // As many guests as there are cores compute at a time; one thread more is left
    // for all that is not a guest.
    let turns = Builder::new_multi_thread()
        .worker_threads(available_parallelism().map_or(2, |cores| cores.get() + 1))
        .thread_name("turns")
        .enable_all()
        .build()
        .context("cannot start the actors' threads")?;
    let served = Daemon::serve(config, environment, &turns, Arc::clone(log));
    let outcome = Boundary::Main.catch(|| control.block_on(served));
    let outcome = outcome.unwrap_or_else(|panic| Err(Stop::new(Exit::Broke, panic)));
    end(turns);
    end(control);
    outcome
}

/// Lets the daemon have as many files open as it may. What the soft limit is for, programs that
/// cannot bear high numbers, does not concern it.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be had, connections wait for others to end.
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The stock engine makes a backtrace in every call where backtraces are on.
fn warn_of_backtraces() {
    let on = |name| std::env::var_os(name).is_some_and(|value| value != "0");
    let off = std::env::var_os("RUST_LIB_BACKTRACE").is_some_and(|value| value == "0");
    if (on("RUST_BACKTRACE") || on("RUST_LIB_BACKTRACE")) && !off {
        warn!(
            "RUST_BACKTRACE makes each turn 3 to 6 times slower; set RUST_LIB_BACKTRACE=0 beside it"
        );
    }
}

/// A guest that still computes must not keep the process from ending.
fn end(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_millis(200));
}

struct Daemon {
    config: Config,
    system: System,
    event_log: Arc<EventLog>,
    /// Set before the first turn.
    mark: Option<RunningMark>,
    reloader: Reloader,
    snapshots: Arc<Snapshots>,
    sets: SavedSets,
    /// Nothing where dead letters are in memory only.
    dead_letters: Option<Keeper>,
    notifier: Notifier,
    stopping: CancellationToken,
    tasks: TaskTracker,
    log: Arc<Log>,
}

impl Daemon {
    async fn serve(
        config: Config,
        environment: Environment,
        turns: &Runtime,
        log: Arc<Log>,
    ) -> Outcome {
        // Signals that come while the daemon starts are not lost.
        let mut signals = Signals::new()?;
        let data = DataFolder::open(&config.daemon.data).map_err(anyhow::Error::from)?;
        let states = data.folder("state").map_err(anyhow::Error::from)?;
        let kept =
            Kept::open(data.path(), config.daemon.keep.bytes).map_err(anyhow::Error::from)?;
        let former_states = FormerStates::open(data.path()).map_err(anyhow::Error::from)?;
        let sets = SavedSets::open(data.folder("saved").map_err(anyhow::Error::from)?);
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let spans = spans(&tasks, &stopping)?;
        let system = System::traced(turns.handle().clone(), spans);
        panic::tell_events(system.events());
        system.hold_back();
        let event_log = keep_events(&system, &data)?;
        tasks.spawn(Arc::clone(&event_log).keep(stopping.clone()));
        let snapshots = Arc::new(Snapshots::open(states, Arc::clone(system.events())));
        let left = sets.load(system.events()).map_err(anyhow::Error::from)?;
        let budget = config.daemon.memory_budget.unwrap_or_else(memory::default_budget);
        system.budget().set_limit(budget);
        system.secrets().add(config.secret_values());
        let dead_letters = keep_dead_letters(&system, &config, &data);
        let listeners = Arc::new(Listeners::new(tasks.clone(), stopping.clone()));
        let receipts = listeners.receipts().clone();
        let services = Services { system: system.clone(), listeners };
        let left_states = LeftStates {
            snapshots: Arc::clone(&snapshots),
            left: left.as_ref().map(Saved::states).unwrap_or_default(),
        };
        let history = remembered(&system, &data);
        let (mut reconciler, reloader) = Reconciler::new(parts(
            &config,
            TomlBlueprint::new(config.clone(), environment.clone(), services),
            system.clone(),
            loader(&config, &data),
            Stores { kept, history, former_states, left_states },
        ));
        let doors = Doors::bind(&config.admin).await?;
        let (phase, phase_seen) = watch::channel(Phase::Starting);
        let mut daemon = Self {
            system,
            event_log,
            mark: None,
            reloader,
            snapshots,
            sets,
            dead_letters,
            notifier: Notifier::from_env(),
            stopping,
            tasks,
            config,
            log,
        };
        doors.open(&daemon.admin(phase_seen, receipts), &daemon.config.admin.tokens);
        // What a stop has left goes to actors that run, so those are waited for.
        let patience = if left.is_some() { LEFT_PATIENCE } else { START_PATIENCE };
        let first_look = daemon.look_first(&mut reconciler, patience, &mut signals).await;
        if !matches!(first_look, Ok(ControlFlow::Continue(()))) {
            daemon.event_log.flush();
        }
        if let ControlFlow::Break(exit) = first_look? {
            return Ok(exit);
        }
        // From here on a crash loses something.
        daemon.mark = Some(RunningMark::set(data.path(), daemon.system.events()));
        if let Some(left) = left {
            daemon.take_up(left)?;
        }
        phase.send_replace(Phase::Ready);
        // Before any turn, so that no actor writes a line to standard output before this one.
        say_ready();
        daemon.begin(turns, reconciler).await;
        let code = daemon.attend(&mut signals, &phase).await;
        drop(data);
        code
    }

    fn admin(&self, phase: watch::Receiver<Phase>, receipts: Receipts) -> Admin {
        Admin {
            system: self.system.clone(),
            reloader: Arc::new(Disk(self.reloader.clone())),
            states: Arc::clone(&self.snapshots),
            phase,
            stopping: self.stopping.clone(),
            tasks: self.tasks.clone(),
            receipts,
        }
    }

    /// Lets messages move, and starts the tasks that go on until the stop.
    async fn begin(&self, turns: &Runtime, reconciler: Reconciler) {
        self.system.go().await;
        self.feed_watchdog(turns, reconciler);
        let snapshots = Arc::clone(&self.snapshots);
        self.tasks.spawn(snapshots.keep(self.system.clone(), self.stopping.clone()));
        self.notifier.ready(&self.status());
        self.system.open();
    }

    /// Has the reconciler look at disk for the first time. No message moves yet.
    ///
    /// # Errors
    /// The configuration is refused.
    async fn look_first(
        &self,
        reconciler: &mut Reconciler,
        patience: Duration,
        signals: &mut Signals,
    ) -> Result<ControlFlow<Exit>, Stop> {
        // A first pass compiles, which may take long; a signal ends it at any point.
        tokio::select! {
            report = reconciler.begin(patience) => {
                for Remaining { what, why } in report.under_way {
                    warn!(%what, "not started yet: {why}");
                }
            }
            never = self.ask_for_patience() => match never {},
            _ = signals.stop() => return Ok(ControlFlow::Break(Exit::Done)),
        }
        if let Some(problem) = reconciler.config_problem() {
            let error = anyhow::anyhow!("the configuration is refused\n{problem}");
            return Err(Stop::new(Exit::Config, error));
        }
        // Of those that run as before the passes have told.
        for (actor, view) in self.reloader.view().iter() {
            if let Some((_, why)) = &view.pending {
                error!(%actor, "not started: {why}");
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells the service manager while the daemon starts that it does.
    async fn ask_for_patience(&self) -> Infallible {
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            upkeep.tick().await;
            let actors = self.system.actors().len();
            self.notifier.working(&format!("starting: {actors} actors so far"), WORKING);
        }
    }

    /// Has disk looked at from now on, and the service manager's watchdog fed for as long as
    /// that goes on and the actors do.
    fn feed_watchdog(&self, turns: &Runtime, reconciler: Reconciler) {
        let (system, turns) = (self.system.clone(), turns.handle().clone());
        let watched = Watched { system, turns, looking: TaskTracker::new() };
        let (looks, stopping) = (watched.looks(), self.stopping.clone());
        self.tasks.spawn(async move {
            let _looks = looks;
            reconciler.run(stopping).await;
        });
        let (notifier, tasks) = (self.notifier.clone(), self.tasks.clone());
        self.tasks.spawn(watched.watch(notifier, tasks, self.stopping.clone()));
    }

    /// Serves signals until one of them says stop, and stops.
    async fn attend(mut self, signals: &mut Signals, phase: &watch::Sender<Phase>) -> Outcome {
        let mut pauses = Pauses::default();
        let why = loop {
            let served = tokio::select! {
                () = panic::untrusted().cancelled() => break Ending::Untrusted,
                served = Boundary::Signals.hold(self.serve_signals(signals)) => served,
            };
            match served {
                Ok(name) => break Ending::Signal(name),
                Err(_) => tokio::time::sleep(Boundary::Signals.again_after(&mut pauses)).await,
            }
        };
        match why {
            Ending::Signal(name) => info!(signal = name, "stopping"),
            Ending::Untrusted => error!(
                "stopping: what the daemon holds may be wrong; the next start begins with what is saved now"
            ),
        }
        self.notifier.stopping(longest_stop(self.config.daemon.drain));
        phase.send_replace(Phase::Draining);
        self.stop(signals, why).await
    }

    /// Serves signals until one of them says stop, and gives its name.
    async fn serve_signals(&mut self, signals: &mut Signals) -> &'static str {
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            tokio::select! {
                wish = signals.next() => {
                    if let Wish::Stop(name) = wish {
                        return name;
                    }
                    info!("SIGHUP: looking at disk");
                    self.notifier.reloading();
                    let reloader = self.reloader.clone();
                    let reload = reloader.reload(ReloadOptions::default(), Precondition::default());
                    tokio::pin!(reload);
                    loop {
                        tokio::select! {
                            _ = &mut reload => break,
                            // A stop does not wait for files that are being written.
                            name = signals.stop() => return name,
                            _ = upkeep.tick() => self.keep_up(signals),
                        }
                    }
                    self.notifier.ready(&self.status());
                    if signals.hung_up() {
                        break "SIGHUP";
                    }
                }
                _ = upkeep.tick() => self.keep_up(signals),
            }
            Boundary::Signals.works();
        }
    }

    /// Tells and notes how things are.
    fn keep_up(&mut self, signals: &mut Signals) {
        let status = self.status();
        match self.reloader.is_awaited() {
            true => self.notifier.working(&status, WORKING),
            false => self.notifier.status(&status),
        }
        signals.look_at_terminal();
        self.system.dead_letters().tell();
        if let Some(mark) = &mut self.mark {
            mark.update(&self.system);
        }
    }

    /// One line for the service manager.
    fn status(&self) -> String {
        let actors = self.system.actors();
        let in_state = |state| actors.iter().filter(|a| a.status().state == state).count();
        let failed = in_state(ActorState::Failed);
        let waiting = match in_state(ActorState::Waiting) {
            0 => String::new(),
            n => format!(", {n} waiting"),
        };
        let sync = if self.reloader.in_sync() { "in sync" } else { "not in sync" };
        let broken =
            PartHealth::vital_failure().map(|part| format!(", {} broke", part.boundary.name()));
        let broken = broken.unwrap_or_default();
        format!("{} actors, {failed} failed{waiting}, config {sync}{broken}", actors.len())
    }

    /// Puts back what the last stop has left, and removes it from disk before the first
    /// turn: a crash from here on loses what is not done, and doubles nothing.
    fn take_up(&self, left: Saved) -> Result<(), Stop> {
        let back = self.system.put_back(left.into_remains());
        // What was saved with it would otherwise be older on disk than what follows from it.
        let round = self.snapshots.write_changed(&self.system);
        if round.failed > 0 {
            warn!(
                states = round.failed,
                "saved states could not be written again; a crash would lose them"
            );
        }
        self.sets.remove().map_err(anyhow::Error::from)?;
        info!(
            messages = back.messages,
            no_target = back.no_target,
            "what the last stop saved is back"
        );
        Ok(())
    }

    /// Stops the sources, lets the flow empty itself, and saves and says what is left.
    async fn stop(mut self, signals: &mut Signals, why: Ending) -> Outcome {
        let began = Instant::now();
        let drain = match why {
            Ending::Signal(_) => self.config.daemon.drain,
            Ending::Untrusted => Duration::ZERO,
        };
        let until = tokio::time::Instant::now() + drain;
        // An actor that a change has left halted takes no orders.
        _ = tokio::time::timeout(drain + LAST_WORDS, self.system.close()).await;
        tokio::select! {
            _ = self.system.settled(until) => {}
            name = signals.insist() => {
                warn!(signal = name, "second signal: stopping at once");
            }
        }
        self.stopping.cancel();
        // A guest that cannot be interrupted must not keep the daemon from ending.
        _ = tokio::time::timeout(LAST_WORDS, self.system.kill()).await;
        let saved = self.sets.save(&self.system);
        let round = self.snapshots.write_changed(&self.system);
        if let Some(Err(Unwritten { letters })) =
            self.dead_letters.map(|keeper| keeper.close(LAST_WORDS))
        {
            warn!(letters, "dead letters could not be written to disk and are lost");
        }
        self.tasks.close();
        _ = tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await;
        // However much was logged before, the lines from here on are not left out.
        self.log.end();
        let books = self.system.books();
        let seconds = began.elapsed().as_secs_f64();
        let completed = books.deliveries.completed;
        if round.failed > 0 {
            warn!(states = round.failed, "states could not be written");
        }
        match self.mark.take() {
            Some(mark) if saved.is_ok() && round.failed == 0 => mark.take_away(),
            // What is lost now is missed at the next start.
            Some(mut mark) => mark.update(&self.system),
            None => {}
        }
        self.system.dead_letters().tell();
        self.event_log.flush();
        match saved {
            Ok(None) => {
                info!(completed, seconds, "stopped: everything was drained, nothing is left");
            }
            Ok(Some(set)) => {
                info!(
                    completed,
                    saved = set.messages,
                    actors = set.actors,
                    bytes = set.bytes,
                    seconds,
                    "stopped: what could not be drained is saved for the next start"
                );
            }
            Err(error @ SaveError { messages, .. }) => {
                warn!(completed, left = messages, seconds, why = %error.source, "stopped: {error}");
                return Ok(Exit::Failed);
            }
        }
        Ok(match why {
            Ending::Untrusted => Exit::Broke,
            Ending::Signal(_) if round.failed > 0 => Exit::Failed,
            Ending::Signal(_) => Exit::Done,
        })
    }
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The signal of that name came.
    Signal(&'static str),
    /// A panic has hit what the daemon holds.
    Untrusted,
}

/// The longest that a stop takes: the drain, and then four things of which each may
/// take its last words: the actors, the dead letters, the daemon's own tasks, and the threads;
/// and the log.
fn longest_stop(drain: Duration) -> Duration {
    drain + LAST_WORDS * 4 + logging::PATIENCE
}

/// The loader that the configuration asks for. It keeps compiled code with the data.
fn loader(config: &Config, data: &DataFolder) -> Loader {
    let limits = Limits { module_size: config.daemon.module_size, ..Limits::default() };
    let loader = Loader::new(limits)
        .with_engine(config.daemon.engine)
        .with_downloads(config.daemon.downloads.clone());
    loader.clone().with_code_cache(data.path().join("code")).unwrap_or_else(|error| {
        warn!(%error, "compiled code is not kept; each start compiles every module");
        loader
    })
}

/// The log that events go to, with the start of this daemon as the next of them.
fn keep_events(system: &System, data: &DataFolder) -> anyhow::Result<Arc<EventLog>> {
    let event_log = Arc::new(EventLog::open(data.folder("events")?, system.events()));
    let version = env!("CARGO_PKG_VERSION").into();
    system.events().record(EventKind::DaemonStarted { version });
    Ok(event_log)
}

/// Brings dead letters to disk from now on.
fn keep_dead_letters(system: &System, config: &Config, data: &DataFolder) -> Option<Keeper> {
    let folder = data.path().join("dead");
    let (bytes, letters) = (config.daemon.dead_letters, system.dead_letters());
    match letters.keep_on_disk(&folder, bytes, system.events()) {
        Ok(keeper) => Some(keeper),
        Err(error) => {
            warn!(%error, why = %error.source, "dead letters are kept in memory only, and lost when the daemon ends");
            None
        }
    }
}

/// What an earlier process has left of its actors. What cannot be used is said.
fn remembered(system: &System, data: &DataFolder) -> History {
    let (history, trouble) = History::open(data.path());
    if let Some(trouble) = trouble {
        let (path, mended) = (trouble.path().display().to_string(), trouble.is_mended());
        let mut why = format!("{:#}", anyhow::Error::from(trouble));
        if mended {
            warn!(%why, "generations and bans are read from their second copy");
        } else {
            why.push_str("; no actor starts with a module that has run before, which may have been rolled back, until other bytes come or `reflowd reload --force`");
            error!(%why, "generations and bans of the last run are lost");
        }
        system.events().record(EventKind::DataDamaged { path, why });
    }
    history
}

/// The admin API's listeners, before anybody is served there.
struct Doors {
    /// The daemon's own socket and, where the service manager holds one, that.
    sockets: Vec<Socket>,
    tcp: Option<TcpListener>,
}

impl Doors {
    /// Takes the socket that the service manager has passed, if it has, and makes the daemon's
    /// own; and the address, where one is wanted.
    ///
    /// The service manager's belongs to somebody else, as a rule to root. The daemon's own is
    /// there besides, so that what runs as the daemon's user, such as `ExecReload=`, gets in.
    async fn bind(config: &AdminConfig) -> anyhow::Result<Self> {
        let mut sockets = Vec::from_iter(admin::passed_socket()?);
        if !sockets.iter().any(|passed| passed.is_at(&config.socket)) {
            sockets.push(admin::bind_socket(&config.socket)?);
        }
        let tcp = match config.listen {
            Some(listen) => Some(admin::bind_address(listen, config.tokens.is_empty()).await?),
            None => None,
        };
        Ok(Self { sockets, tcp })
    }

    /// Serves the API there.
    fn open(self, admin: &Admin, tokens: &Tokens) {
        let (tasks, stopping) = (&admin.tasks, &admin.stopping);
        for socket in self.sockets {
            let router = admin::router(admin.clone(), Via::Socket, Tokens::default());
            tasks.spawn(admin::serve(socket, router, stopping.clone()));
        }
        if let Some(tcp) = self.tcp {
            let via = if tokens.is_empty() { Via::Tcp } else { Via::Guarded };
            let router = admin::router(admin.clone(), via, tokens.clone());
            tasks.spawn(admin::serve(tcp, router, stopping.clone()));
        }
    }
}

/// Where the spans of turns go, if the environment names a collector.
#[cfg(feature = "otlp")]
fn spans(
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) -> Result<Option<Arc<dyn SpanSink>>, Stop> {
    let wanted = otlp::from_env().map_err(|error| Stop::new(Exit::Config, error))?;
    Ok(wanted.map(|(spans, exporter)| {
        tasks.spawn(exporter.run(stopping.clone()));
        spans
    }))
}

/// Spans go nowhere: this daemon is built without.
#[cfg(not(feature = "otlp"))]
fn spans(_: &TaskTracker, _: &CancellationToken) -> Result<Option<Arc<dyn SpanSink>>, Stop> {
    Ok(None)
}

/// What the data folder holds for the reconciler.
struct Stores {
    kept: Kept,
    history: History,
    former_states: FormerStates,
    left_states: LeftStates,
}

/// What the reconciler needs, from the configuration.
fn parts(
    config: &Config,
    blueprint: TomlBlueprint,
    system: System,
    loader: Loader,
    stores: Stores,
) -> Parts {
    let daemon = &config.daemon;
    let Stores { kept, history, former_states, left_states } = stores;
    Parts {
        system,
        loader,
        blueprint: Arc::new(blueprint),
        kept,
        history,
        generations: usize::try_from(daemon.keep.generations).unwrap_or(usize::MAX),
        modules: daemon.modules.clone(),
        autostart: daemon.autostart.then(|| config.template.clone()),
        scan: ScanOptions {
            quiet: daemon.quiet,
            module_size: daemon.module_size,
            allow_insecure: daemon.allow_insecure_dir,
            ..ScanOptions::default()
        },
        pace: Pace { quiet: daemon.quiet, rescan: daemon.rescan },
        eyes: if daemon.watch { Eyes::Open } else { Eyes::Blind },
        drain: daemon.drain,
        states: Arc::new(left_states),
        former_states,
    }
}

/// The states of actors on disk, with those that a stop has saved with what was queued.
struct LeftStates {
    snapshots: Arc<Snapshots>,
    left: BTreeMap<ActorName, EpochState>,
}

impl StateFiles for LeftStates {
    fn found(&self, actor: &ActorName, epoch: Option<Epoch>) -> Option<EpochState> {
        let on_disk = self.snapshots.found(actor, epoch);
        let wanted = epoch.or_else(|| on_disk.as_ref().map(|found| found.epoch));
        // What was saved with the last queue belongs to it, and is newer than any file of
        // its epoch.
        let saved = self.left.get(actor).filter(|saved| wanted.is_none_or(|e| e == saved.epoch));
        saved.cloned().or(on_disk)
    }

    fn begin(&self, actor: &ActorName, state: &EpochState) -> std::io::Result<()> {
        self.snapshots.begin(actor, state)
    }

    fn settle(&self, actor: &ActorName, epoch: Epoch) {
        self.snapshots.settle(actor, epoch);
    }
}

/// The line that tests, scripts and people wait for.
fn say_ready() {
    let mut out = std::io::stdout().lock();
    // A daemon whose stdout is closed serves all the same.
    _ = writeln!(out, "ready").and_then(|()| out.flush());
}

/// The reconciler, as the admin API asks for it.
struct Disk(Reloader);

impl Reload for Disk {
    fn reload(
        &self,
        options: ReloadOptions,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<Report, ReloadError>> {
        Box::pin(self.0.reload(options, precondition))
    }

    fn roll_back(
        &self,
        actor: ActorName,
        to: Option<u64>,
        precondition: Precondition,
    ) -> BoxFuture<'_, Result<Vec<GoneBack>, RollBackError>> {
        Box::pin(self.0.roll_back(actor, to, precondition))
    }

    fn view(&self) -> View {
        (*self.0.view()).clone()
    }

    fn config_in_force(&self) -> bool {
        self.0.config_in_force()
    }

    fn modules(&self) -> Vec<ModuleView> {
        let file = |module: &reflowd_hot_reload::ModuleFile| ModuleView {
            file: module.place.to_string(),
            digest: module.digest,
            size: module.place.file().and_then(|file| Some(file.metadata().ok()?.len())),
            state: module.state.into(),
            why: module.why.clone(),
            actors: module.actors.clone(),
        };
        self.0.modules().iter().map(file).collect()
    }

    fn passes(&self) -> Option<Passes> {
        self.0.passes()
    }

    fn refusals(&self) -> BTreeMap<String, u64> {
        self.0.refusal_counts().into_iter().map(|(reason, n)| (reason.to_owned(), n)).collect()
    }
}
