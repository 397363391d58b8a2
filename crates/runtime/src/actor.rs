//! The loop that takes messages from a mailbox to an engine.
//!
//! An actor is one task. It owns its mailbox's receiving end for life and at most
//! one engine at a time. The mailbox outlives the engine: swapping or losing an
//! engine is an assignment between two turns, and the queue never notices.
//!
//! Between two turns the task listens; in a turn it does nothing else. So
//! "between two turns" is simply where commands are taken.

use std::{
    collections::HashSet,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    ActorLog, ActorName, Bounds, Context, Digest, Effects, Engine, EventKind, Events, Failure,
    FailureKind, InstantiateError, Mailbox, Message, Metadata, Meters, PortName, PortRef, Program,
    Ready, Routes, SendNow, Settings, State, TurnLimits,
    dead_letter::Reason,
    envelope::{Lineage, unix_millis},
    mailbox::{Outcome, Taken},
    supervisor::{Supervisor, Verdict},
    wire::{Sinks, Wire},
};

/// How long an actor waits for room, or a join for a port, before an event says so.
const WAIT_WORTH_AN_EVENT: Duration = Duration::from_secs(10);

/// Commands that may wait for one actor to finish its turn.
pub(crate) const MAX_COMMANDS: usize = 16;

/// The outport that takes a guest's own errors, where it has a wire.
pub const ERROR_PORT: &str = "error";

/// What an actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorState {
    /// Its module is being read.
    Loading,
    /// Its module and configuration are being checked.
    Validating,
    /// Its first engine is being made.
    Initializing,
    /// It takes messages.
    Active,
    /// What it put out waits for a full mailbox.
    Blocked,
    /// It waits to try a message again.
    Resting,
    /// It gave up, keeps its mailbox and tries again now and then.
    Failed,
    /// An operator halted it.
    Paused,
    /// It was removed and works off its mailbox.
    Draining,
    /// It is gone.
    Stopped,
}

impl ActorState {
    /// One word, as it is serialized.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Validating => "validating",
            Self::Initializing => "initializing",
            Self::Active => "active",
            Self::Blocked => "blocked",
            Self::Resting => "resting",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Counts the modules and keys that have run under one actor's name. Only grows,
/// so "is this newer?" is one `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Generation(u64);

impl Generation {
    /// An actor's first.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What an actor shares with those who look at it and send to it.
pub(crate) struct Shared {
    pub(crate) name: ActorName,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) routes: ArcSwap<Routes>,
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) max_hops: Arc<AtomicU32>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) state: Mutex<State>,
    pub(crate) meters: Meters,
    pub(crate) memory: std::sync::atomic::AtomicU64,
    pub(crate) kill: CancellationToken,
    pub(crate) events: Arc<Events>,
    pub(crate) sinks: Sinks,
}

/// What is known of an actor's life.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it is doing.
    pub state: ActorState,
    /// Milliseconds since the Unix epoch at which it began to do so.
    pub since: u64,
    /// Why, where there is more to say.
    pub why: Option<String>,
    /// What it runs.
    pub generation: Generation,
    /// The module that it runs.
    pub digest: Digest,
    /// The version that the module gives itself.
    pub version: Option<String>,
    /// The name that the module gives itself.
    pub component: String,
}

impl Shared {
    pub(crate) fn set_state(&self, state: ActorState, why: Option<String>) {
        self.status.send_if_modified(|status| {
            if status.state == state && status.why == why {
                return false;
            }
            if status.state != state {
                status.since = unix_millis();
            }
            status.state = state;
            status.why = why;
            true
        });
    }

    pub(crate) fn apply_settings(&self, settings: Settings) {
        self.max_hops.store(settings.max_hops, Ordering::Relaxed);
        self.mailbox.set_bounds(bounds_of(&settings));
        self.settings.store(Arc::new(settings));
    }

    /// Puts one message on the wires of `port`, and notes those on which it has to wait.
    pub(crate) fn emit(
        &self,
        routes: &Routes,
        lineage: Option<&Lineage>,
        port: &PortName,
        message: &Message,
        waiting: &mut Vec<Arc<Wire>>,
    ) {
        if let Some(lineage) = lineage {
            let from = || PortRef { actor: self.name.clone(), port: port.clone() };
            self.sinks.waits.left_by(from, lineage.correlation, message);
        }
        let wires = routes.of(port);
        if wires.is_empty() {
            self.meters.unrouted.add(1);
            return;
        }
        let time = unix_millis();
        for wire in wires {
            let to = wire.to().port.clone();
            let envelope = match lineage {
                Some(lineage) => lineage.output(to, message.clone(), time),
                None => crate::Envelope::entering(to, message.clone(), None),
            };
            if wire.emit(envelope) && !waiting.iter().any(|w| Arc::ptr_eq(w, wire)) {
                waiting.push(Arc::clone(wire));
            }
        }
    }
}

pub(crate) fn bounds_of(settings: &Settings) -> Bounds {
    Bounds {
        messages: settings.mailbox,
        bytes: settings.mailbox_bytes,
        overflow: settings.overflow,
        trigger: settings.trigger,
    }
}

/// What an actor is told between two turns.
pub(crate) enum Command {
    /// Another generation, ready to run.
    Swap(Box<Swap>),
    /// Keys that apply in place.
    Settings(Box<Settings>),
    /// Start no turn until released; the answer comes when none is running.
    Hold(oneshot::Sender<()>),
    /// Go on after a hold.
    Release,
    Pause,
    Resume,
    /// Try again now, whatever went before.
    Retry,
    /// Work off the mailbox and stop, at the latest then.
    Drain {
        until: Instant,
    },
}

/// Another generation for a running actor.
pub(crate) struct Swap {
    pub(crate) program: Arc<dyn Program>,
    pub(crate) version: Option<String>,
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) log: ActorLog,
    pub(crate) done: oneshot::Sender<Swapped>,
}

/// The generation that runs now, or what was to run, handed back by an actor that has stopped.
pub(crate) type Swapped = Result<Generation, Ready>;

impl Swap {
    /// The actor has stopped: whoever asked starts it anew.
    pub(crate) fn hand_back(self) {
        let Self { program, version, engine, log, done } = self;
        // Whoever asked may be gone, and then nobody wants the engine.
        _ = done.send(Err(Ready::Engine { program, engine, version, log }));
    }
}

/// An actor's task.
pub(crate) struct ActorTask {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    program: Arc<dyn Program>,
    engine: Option<Box<dyn Engine>>,
    log: ActorLog,
    supervisor: Supervisor,
    /// Wires that the last turn's outputs wait on. No turn starts before it is empty.
    outbox: Vec<Arc<Wire>>,
    /// Until when the actor leaves its mailbox alone, and why.
    rest: Option<Rest>,
    held: bool,
    paused: bool,
    draining: Option<Instant>,
    /// Ports already warned about, once per generation.
    warned: HashSet<PortName>,
    /// When the last turn ended, while a swap's pause is being measured.
    swapped: Option<Instant>,
    last_turn: Instant,
}

struct Rest {
    until: Instant,
    state: ActorState,
    why: String,
}

/// What the task does next.
enum Next {
    Command(Option<Command>),
    Flushed,
    Rested,
    Look,
    Tell,
    Stop,
}

impl ActorTask {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        program: Arc<dyn Program>,
        engine: Box<dyn Engine>,
        log: ActorLog,
    ) -> Self {
        Self {
            shared,
            commands,
            program,
            engine: Some(engine),
            log,
            supervisor: Supervisor::default(),
            outbox: Vec::new(),
            rest: None,
            // No turn before the wires are in place: whoever starts it releases it.
            held: true,
            paused: false,
            draining: None,
            warned: HashSet::new(),
            swapped: None,
            last_turn: Instant::now(),
        }
    }

    /// Runs until the actor is stopped or drained.
    pub(crate) async fn run(mut self) {
        while !self.shared.kill.is_cancelled() {
            if let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            } else if self.draining.is_some_and(|until| Instant::now() >= until) {
                break;
            } else if self.may_take()
                && let Some(taken) = self.shared.mailbox.take()
            {
                self.take_turn(taken).await;
                tokio::task::coop::consume_budget().await;
            } else {
                match self.listen().await {
                    Next::Command(Some(command)) => self.obey(command),
                    Next::Flushed => {
                        self.outbox.clear();
                        self.show();
                    }
                    Next::Rested => {
                        self.rest = None;
                        self.show();
                    }
                    Next::Tell => self.tell(),
                    Next::Look => {}
                    Next::Command(None) | Next::Stop => break,
                }
            }
        }
        self.end().await;
    }

    /// Whether nothing stands between the actor and its next message.
    fn may_take(&self) -> bool {
        self.outbox.is_empty() && !self.held && !self.paused && self.rest.is_none()
    }

    /// Waits for whatever may happen between two turns.
    async fn listen(&mut self) -> Next {
        self.show();
        let shared = Arc::clone(&self.shared);
        let idle = self.may_take();
        let flushing = !self.outbox.is_empty();
        if idle && self.draining.is_some() {
            return Next::Stop;
        }
        let began = Instant::now();
        let rest = self.rest.as_ref().map(|rest| rest.until);
        let draining = self.draining;
        // A join that waits with a full inport, or an outbox, may have to be told about.
        let tell = flushing || (idle && shared.mailbox.stalled().is_some());
        let next = tokio::select! {
            biased;
            () = shared.kill.cancelled() => Next::Stop,
            command = self.commands.recv() => Next::Command(command),
            _ = join_all(self.outbox.iter().map(|wire| wire.drain())), if flushing => Next::Flushed,
            () = shared.mailbox.ready(), if idle => Next::Look,
            () = until(rest), if rest.is_some() && !self.held && !self.paused => Next::Rested,
            () = until(draining), if draining.is_some() => Next::Stop,
            () = time::sleep(WAIT_WORTH_AN_EVENT), if tell => Next::Tell,
        };
        if flushing {
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            shared.meters.blocked_millis.add(millis);
        }
        next
    }

    /// Shows what the actor is doing.
    fn show(&self) {
        let (state, why) = if self.draining.is_some() {
            (ActorState::Draining, None)
        } else if self.paused {
            (ActorState::Paused, None)
        } else if let Some(rest) = &self.rest {
            (rest.state, Some(rest.why.clone()))
        } else if !self.outbox.is_empty() {
            (ActorState::Blocked, None)
        } else {
            (ActorState::Active, None)
        };
        self.shared.set_state(state, why);
    }

    /// Says in an event what has taken long.
    fn tell(&self) {
        let actor = self.shared.name.clone();
        if self.outbox.is_empty() {
            if let Some((full, empty)) = self.shared.mailbox.stalled() {
                warn!(%actor, %full, %empty, "join waits for an empty inport beside a full one");
                let (full, empty) = (full.to_string(), empty.to_string());
                self.shared.events.record(EventKind::Stalled { actor, full, empty });
            }
        } else {
            let by: Vec<_> = self.outbox.iter().map(|wire| wire.to().actor.clone()).collect();
            warn!(%actor, ?by, "outputs wait for full mailboxes");
            self.shared.events.record(EventKind::Blocked { actor, by });
        }
    }

    fn obey(&mut self, command: Command) {
        let actor = self.shared.name.clone();
        match command {
            Command::Swap(swap) => self.swap(*swap),
            Command::Settings(settings) => {
                if settings.trigger != self.shared.settings.load().trigger {
                    self.supervisor.forgive();
                }
                self.log.set_rate(settings.log_rate);
                self.shared.apply_settings(*settings);
            }
            Command::Hold(held) => {
                self.held = true;
                // Whoever asked may have given up; its release comes all the same.
                _ = held.send(());
            }
            Command::Release => self.held = false,
            Command::Pause => {
                self.paused = true;
                self.show();
                self.shared.events.record(EventKind::Paused { actor });
            }
            Command::Resume => {
                self.paused = false;
                self.show();
                self.shared.events.record(EventKind::Resumed { actor });
            }
            Command::Retry => {
                self.supervisor.forgive();
                self.rest = None;
            }
            Command::Drain { until } => {
                self.draining = Some(until);
                self.show();
                self.shared.events.record(EventKind::Draining { actor });
            }
        }
    }

    /// Puts another generation in place of the present one. Nothing can fail here.
    fn swap(&mut self, swap: Swap) {
        let queued = self.shared.mailbox.len() as u64;
        let from = self.program.digest();
        let digest = swap.program.digest();
        self.program = swap.program;
        self.log = swap.log;
        self.supervisor.forgive();
        self.rest = None;
        self.draining = None;
        self.warned.clear();
        // What was in hand had failed on the old engine and is tried anew by the new one.
        self.shared.mailbox.release();
        self.shared.mailbox.reopen();
        let old = self.engine.replace(swap.engine);
        self.swapped = (queued > 0).then_some(self.last_turn);
        let mut generation = Generation::FIRST;
        let metadata = self.program.metadata();
        self.shared.status.send_modify(|status| {
            generation = status.generation.next();
            status.generation = generation;
            status.digest = digest;
            status.version.clone_from(&swap.version);
            status.component.clone_from(&metadata.component);
        });
        self.shared.meters.swaps.add(1);
        let actor = self.shared.name.clone();
        info!(%actor, generation = generation.number(), digest = %digest.short(), queued, "engine swapped");
        let generation_number = generation.number();
        self.shared.events.record(EventKind::Swapped {
            actor,
            generation: generation_number,
            from,
            digest,
            queued,
        });
        drop(old);
        self.show();
        // The reloader may have stopped waiting; the swap stands all the same.
        _ = swap.done.send(Ok(generation));
    }

    /// One turn, from the messages in hand to their leaving or staying.
    async fn take_turn(&mut self, taken: Taken) {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => match self.program.instantiate().await {
                Ok(engine) => engine,
                Err(error) => return self.give_up(&error),
            },
        };
        let routes = self.shared.routes.load_full();
        let settings = self.shared.settings.load_full();
        let now = (settings.send == crate::Send::Now)
            .then(|| SendAtOnce::new(Arc::clone(&self.shared), Arc::clone(&routes), &taken));
        let context = self.context(&taken, &settings, now.clone());

        let started = Instant::now();
        self.shared.meters.wait_seconds.observe(started.duration_since(taken.arrived));
        if let Some(last) = self.swapped.take() {
            self.shared.meters.swap_pause_seconds.observe(started.duration_since(last));
        }
        let turn = engine.turn(context, started + settings.timeout);
        let turn = tokio::select! {
            biased;
            turn = turn => turn,
            // The message stays in hand: nothing of the turn has left.
            () = self.shared.kill.cancelled() => return,
        };
        let ended = Instant::now();
        self.last_turn = ended;
        self.shared.meters.turn_seconds.observe(ended.duration_since(started));

        match turn {
            Ok((engine, effects)) => {
                self.shared.memory.store(engine.memory_bytes(), Ordering::Relaxed);
                self.engine = Some(engine);
                self.commit(&taken, effects, &routes);
            }
            Err(failure) => self.fail(&taken, failure, &routes, &settings),
        }
        if now.is_some() {
            let waiting = routes.all().filter(|wire| wire.pending() > 0).cloned();
            self.outbox = waiting.collect();
        }
    }

    fn context(&self, taken: &Taken, settings: &Settings, now: Option<Arc<SendAtOnce>>) -> Context {
        let message = |e: &crate::Envelope| (e.port.clone(), e.message.clone());
        Context {
            payload: taken.envelopes.iter().map(message).collect(),
            state: self.shared.state.lock().clone(),
            meta: settings.context_meta.then(|| taken.envelopes[0].meta()),
            state_in_context: settings.context_state,
            limits: TurnLimits { output: settings.output, state: settings.state_size },
            now: now.map(|now| now as Arc<dyn SendNow>),
        }
    }

    /// Everything that a successful turn moves, with no wait in between: the
    /// message off the mailbox, the new state in, the outputs onto the wires.
    fn commit(&mut self, taken: &Taken, effects: Effects, routes: &Routes) {
        self.supervisor.succeeded();
        self.shared.meters.turns_ok.add(1);
        if let Some(state) = effects.state {
            *self.shared.state.lock() = state;
        }
        if !effects.outputs.is_empty() {
            let lineage = Lineage::of(&taken.envelopes);
            for (port, message) in &effects.outputs {
                self.warn_undeclared(port, message);
                self.shared.emit(routes, Some(&lineage), port, message, &mut self.outbox);
            }
        }
        self.shared.mailbox.finish(Outcome::Completed);
        for envelope in &taken.envelopes {
            self.shared.sinks.waits.less(envelope.correlation);
        }
    }

    /// Real modules put out on ports that they do not declare; that is delivered, and said once.
    fn warn_undeclared(&mut self, port: &PortName, message: &Message) {
        let Some(found) = undeclared(self.program.metadata(), port, message) else { return };
        if self.warned.insert(port.clone()) {
            warn!(actor = %self.shared.name, %port, "{found}; it is delivered where it is wired");
        }
    }

    /// A turn failed: nothing of it has left, and the message is still in hand.
    fn fail(&mut self, taken: &Taken, failure: Failure, routes: &Routes, settings: &Settings) {
        let actor = self.shared.name.clone();
        let Failure { kind, engine } = failure;
        let meters = &self.shared.meters;
        match &kind {
            FailureKind::Trap(_) => meters.turns_trap.add(1),
            FailureKind::Timeout(_) => meters.turns_timeout.add(1),
            FailureKind::Turn(_) => meters.turns_error.add(1),
            FailureKind::Guest(_) => meters.turns_guest_error.add(1),
            FailureKind::Unavailable(_) => meters.turns_unavailable.add(1),
        }
        self.engine = engine;
        if self.engine.is_none() {
            meters.restarts.add(1);
            let why = kind.to_string();
            self.shared.events.record(EventKind::Restarted { actor: actor.clone(), why });
        }
        let error_port: PortName = ERROR_PORT.parse().expect("the port has a name");
        let answered = !routes.of(&error_port).is_empty();
        match self.supervisor.judge(&kind, settings, answered) {
            Verdict::Retry { after } => {
                warn!(%actor, error = %kind, attempt = self.supervisor.attempts(), "turn failed and will be tried again");
                self.rest(after, ActorState::Resting, kind.to_string());
            }
            Verdict::Keep { rest } => {
                warn!(%actor, error = %kind, "turn failed; the message is kept");
                self.shared.events.record(EventKind::Failed { actor, why: kind.to_string() });
                self.shared.mailbox.release();
                self.rest(rest, ActorState::Failed, kind.to_string());
            }
            Verdict::Answer { .. } => {
                debug!(%actor, error = %kind, "the guest returned an error");
                let text = match &kind {
                    FailureKind::Guest(text) => Message::error(text),
                    other => Message::error(&other.to_string()),
                };
                let lineage = Lineage::of(&taken.envelopes);
                self.shared.emit(routes, Some(&lineage), &error_port, &text, &mut self.outbox);
                self.shared.mailbox.finish(Outcome::Completed);
                for envelope in &taken.envelopes {
                    self.shared.sinks.waits.less(envelope.correlation);
                }
            }
            Verdict::GiveUp { attempts, rest } => {
                warn!(%actor, error = %kind, attempts, "message became a dead letter");
                let digest = Some(self.program.digest());
                for envelope in &taken.envelopes {
                    let reason = Reason::Failed(kind.clone());
                    self.shared.sinks.waits.died(envelope.correlation, &reason);
                    self.shared.sinks.dead.put(&actor, envelope, reason, digest, attempts);
                }
                self.shared.mailbox.finish(Outcome::DeadLettered);
                if let Some(rest) = rest {
                    let why = format!("no message of the last ten succeeded; the last one {kind}");
                    warn!(%actor, "actor failed; its mailbox is kept");
                    self.shared.events.record(EventKind::Failed { actor, why: why.clone() });
                    self.rest(rest, ActorState::Failed, why);
                }
            }
        }
    }

    /// No engine can be made: the mailbox is kept, and it is tried again later.
    fn give_up(&mut self, error: &InstantiateError) {
        let actor = self.shared.name.clone();
        warn!(%actor, error = error as &dyn Error, "no engine can be made; the mailbox is kept");
        self.shared.mailbox.release();
        self.shared.events.record(EventKind::Failed { actor, why: error.to_string() });
        let rest = self.supervisor.outage();
        self.rest(rest, ActorState::Failed, error.to_string());
    }

    fn rest(&mut self, pause: Duration, state: ActorState, why: String) {
        self.rest = Some(Rest { until: Instant::now() + pause, state, why });
    }

    /// The actor is gone. After a drain, what it could not do goes to the dead
    /// letters; when it was killed, it stays where it is, to be saved.
    async fn end(mut self) {
        self.commands.close();
        while let Some(command) = self.commands.recv().await {
            if let Command::Swap(swap) = command {
                swap.hand_back();
            }
        }
        let actor = self.shared.name.clone();
        let mut dead_lettered = 0;
        self.shared.mailbox.release();
        if !self.shared.kill.is_cancelled() {
            self.shared.mailbox.close();
            let digest = Some(self.program.digest());
            for envelope in self.shared.mailbox.expel(None) {
                self.shared.sinks.waits.died(envelope.correlation, &Reason::Removed);
                self.shared.sinks.dead.put(&actor, &envelope, Reason::Removed, digest, 0);
                dead_lettered += 1;
            }
            for wire in &self.outbox {
                wire.abandon(Reason::Removed);
            }
        }
        self.shared.set_state(ActorState::Stopped, None);
        info!(%actor, dead_lettered, "actor stopped");
        self.shared.events.record(EventKind::Stopped { actor, dead_lettered });
    }
}

/// What is odd about an output, if anything: real modules do both.
fn undeclared(metadata: &Metadata, port: &PortName, message: &Message) -> Option<String> {
    match metadata.outport(port.as_str()) {
        None if port.as_str() == ERROR_PORT => None,
        None => {
            Some(format!("the module put out on `{port}`, which its metadata does not declare"))
        }
        Some(declared) if message.ty().can_fit(declared.port_type) => None,
        Some(declared) => Some(format!(
            "the module put out a {} on `{port}`, which its metadata declares as {}",
            message.ty(),
            declared.port_type
        )),
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Lets messages out of a turn that has not ended. What a full mailbox does not
/// take waits on the wire until the turn is over.
struct SendAtOnce {
    shared: Arc<Shared>,
    routes: Arc<Routes>,
    lineage: Lineage,
}

impl SendAtOnce {
    fn new(shared: Arc<Shared>, routes: Arc<Routes>, taken: &Taken) -> Arc<Self> {
        Arc::new(Self { shared, routes, lineage: Lineage::of(&taken.envelopes) })
    }
}

impl SendNow for SendAtOnce {
    fn send(&self, port: PortName, message: Message) {
        // The actor finds what waits by looking at the wires when the turn is over.
        self.shared.emit(&self.routes, Some(&self.lineage), &port, &message, &mut Vec::new());
    }
}
