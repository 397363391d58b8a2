//! An actor as others see it: its handle, what it shows, and what it is told.
//!
//! What an actor does, it does in its own task. Others hold [`Shared`] in common
//! with that task, where each thing has one writer or a lock of its own, and tell
//! the task the rest as a [`Command`], which it obeys between two turns.

mod task;
mod probation;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub(crate) use task::ActorTask;
pub(crate) use task::NewState;

use crate::{
    ActorLog, ActorName, Bounds, Digest, Direction, Engine, EpochState, EventKind, Events,
    FailureKind, Journal, Mailbox, Message, Metadata, Meters, PortName, PortRef, Precondition,
    Program, Ran, Ready, Routes, Secrets, Setback, Settings, Sighting, State, Tap, TapFilter,
    TooManyTaps, TrialView, Trialing,
    dead_letter::Reason,
    envelope::{Origin, unix_millis},
    onlookers::Onlookers,
    position::Progress,
    source::SourceSwap,
    tap::Offer,
    wire::{Sinks, Wire},
};

/// Commands that may wait for one actor to finish its turn.
pub(crate) const MAX_COMMANDS: usize = 16;

/// The longest error of a guest, in bytes; the rest is left out.
const MAX_ERROR: usize = 64 << 10;

/// The outport that takes a guest's own errors, where it has a wire.
pub const ERROR_PORT: &str = "error";

/// A running actor, as others see it.
pub struct Actor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) kind: Kind,
    /// What its ports are, by the generation that runs.
    pub(crate) metadata: ArcSwap<Metadata>,
    /// Whether it was told to stop, known here before its task hears of it.
    pub(crate) leaving: AtomicBool,
    /// Cancelled when its task is over, whatever ended it.
    pub(crate) ended: CancellationToken,
    /// Milliseconds since the Unix epoch.
    pub(crate) started: u64,
}

/// What an actor's task is.
pub(crate) enum Kind {
    Engine,
    /// Takes its swaps apart from the other commands.
    Source(mpsc::Sender<SourceSwap>),
}

/// What an actor is doing.
///
/// The actors of a [`System`](crate::System) have read, checked modules, so
/// `loading` and `validating` are no states of theirs. They belong to those who
/// bring actors there, for what is configured and not yet running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActorState {
    /// It is configured and does not run: its module has not been read, or not
    /// been accepted. No actor of a system is in this state.
    Loading,
    /// Its module is being held against its configuration. No actor of a system
    /// is in this state.
    Validating,
    /// An engine is being made in place of one that is lost. Its first engine is
    /// made before it is an actor.
    Initializing,
    /// It takes messages.
    Active,
    /// What it put out waits for a full mailbox.
    Blocked,
    /// It waits to try a message again.
    Resting,
    /// It gave up, keeps its mailbox and tries again now and then. Where its task
    /// itself broke, which is an error of this program, it waits for another
    /// generation.
    Failed,
    /// A source whose file or server is not there yet: it goes on by itself once it is.
    Waiting,
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
            Self::Waiting => "waiting",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Counts the modules and keys that an actor has run, under former names too. Only grows,
/// so "is this newer?" is one `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Generation(u64);

impl Generation {
    /// An actor's first.
    pub const FIRST: Self = Self(1);

    /// The one with that number, as an earlier process has counted.
    #[must_use]
    pub fn numbered(number: u64) -> Self {
        Self(number)
    }

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

impl Actor {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ActorName {
        &self.shared.name
    }

    /// Its mailbox.
    #[must_use]
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.shared.mailbox
    }

    /// What it is doing and what it runs.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status.borrow().clone()
    }

    /// The same, to be waited on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// The keys that apply in place.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        self.shared.settings.load_full()
    }

    /// The ports of what it runs.
    #[must_use]
    pub fn metadata(&self) -> Arc<Metadata> {
        self.metadata.load_full()
    }

    /// What it counts of itself.
    #[must_use]
    pub fn meters(&self) -> &Meters {
        &self.shared.meters
    }

    /// Bytes of memory that its engine held after the last turn.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.shared.memory.load(Ordering::Relaxed)
    }

    /// Its state; of a source, how far it has come, where it says so.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// The same, with the epoch that it belongs to.
    #[must_use]
    pub fn epoch_state(&self) -> EpochState {
        self.shared.epoch_state()
    }

    /// The state that a rollback has to give back, where its trial has found that nothing
    /// later will do.
    #[must_use]
    pub fn fallback(&self) -> Option<EpochState> {
        self.shared.fallback.lock().clone()
    }

    /// Milliseconds since the Unix epoch at which it started.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Whether it is a connector that puts messages out and has no mailbox.
    #[must_use]
    pub fn is_source(&self) -> bool {
        matches!(self.kind, Kind::Source(_))
    }

    /// How its trial stands; nothing where what it runs was never put on trial.
    #[must_use]
    pub fn trial(&self) -> Option<TrialView> {
        self.shared.trial.lock().clone()
    }

    /// Ends its trial, if there is one: what it runs stays.
    pub async fn end_trial(&self) {
        _ = self.commands.send(Command::EndTrial).await;
    }

    /// Halts it after the turn in hand.
    pub async fn pause(&self) {
        _ = self.commands.send(Command::Pause).await;
    }

    /// Lets it go on.
    pub async fn resume(&self) {
        _ = self.commands.send(Command::Resume).await;
    }

    /// Lets it try again now, if it rests or has failed.
    pub async fn retry(&self) {
        _ = self.commands.send(Command::Retry).await;
    }

    /// Gives it another state between two turns, and returns when that is done. The turn in
    /// hand, if there is one, ends first, and what it makes of the state is replaced. A source
    /// goes on from where the state says, or begins anew where that is empty. The
    /// precondition is looked at in the same moment.
    ///
    /// # Errors
    /// The state is what it was, and why.
    pub async fn set_state(
        &self,
        state: State,
        precondition: Precondition,
    ) -> Result<StateSet, SetStateError> {
        let (done, set) = oneshot::channel();
        let new = Box::new(NewState { state, precondition, done });
        let sent = self.commands.send(Command::SetState(new)).await;
        sent.map_err(|_| SetStateError::Stopped)?;
        set.await.unwrap_or(Err(SetStateError::Stopped))
    }

    /// Sees its messages from now on, without slowing it down.
    ///
    /// # Errors
    /// There are too many who do.
    pub fn tap(&self, filter: TapFilter) -> Result<Tap, TooManyTaps> {
        self.shared.onlookers.taps.open(filter)
    }

    /// How many taps are open.
    #[must_use]
    pub fn taps(&self) -> usize {
        self.shared.onlookers.taps.len()
    }

    /// The last lines that it has logged, and those to come.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.shared.onlookers.journal
    }

    /// Returns when its task has ended.
    pub(crate) async fn stopped(&self) {
        self.ended.cancelled().await;
    }

    /// Whether its task broke instead of ending: its mailbox is as it was.
    pub(crate) fn broke(&self) -> bool {
        self.ended.is_cancelled() && self.shared.status.borrow().state == ActorState::Failed
    }

    /// Whether it was told to stop.
    pub(crate) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Tells it to work off what it has and to stop, at the latest then.
    pub(crate) async fn drain(&self, until: Instant) {
        self.leaving.store(true, Ordering::Release);
        _ = self.commands.send(Command::Drain { until }).await;
    }

    /// Asks for a swap; the receiver tells when it is done. An actor that would have
    /// to become a source, or a source another actor, has `drain` to end.
    pub(crate) async fn swap(
        &self,
        ready: Ready,
        trialing: Trialing,
        drain: Duration,
        state: Option<EpochState>,
    ) -> oneshot::Receiver<Swapped> {
        let (done, receiver) = oneshot::channel();
        match (ready, &self.kind) {
            (Ready::Engine { program, engine, version, log, module }, Kind::Engine) => {
                self.metadata.store(Arc::new(program.metadata().clone()));
                let swap = Swap { program, version, engine, log, module, trialing, state, done };
                let swap = Box::new(swap);
                if let Err(mpsc::error::SendError(Command::Swap(swap))) =
                    self.commands.send(Command::Swap(swap)).await
                {
                    swap.hand_back();
                }
            }
            (Ready::Source(source), Kind::Source(swaps)) => {
                self.metadata.store(Arc::new(source.metadata().clone()));
                if let Err(mpsc::error::SendError(swap)) =
                    swaps.send(SourceSwap { source, done }).await
                {
                    _ = swap.done.send(Err(Ready::Source(swap.source)));
                }
            }
            // A source in place of an engine, or the other way round: another actor
            // altogether. The old one ends first.
            (ready, _) => {
                self.drain(Instant::now() + drain).await;
                self.stopped().await;
                _ = done.send(Err(ready));
            }
        }
        receiver
    }
}

/// An operator has given an actor another state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StateSet {
    /// The generation that has it.
    pub generation: u64,
    /// Bytes of the state.
    pub bytes: u64,
    /// Bytes of the one that it replaced.
    pub before: u64,
    /// Whether that generation is on trial. A rollback then keeps the new state, unless the
    /// generation has migrated its state.
    pub on_trial: bool,
}

/// The actor keeps the state that it has.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SetStateError {
    /// It is over the actor's limit.
    #[error("the state has {bytes} bytes, and `state_size` allows {limit}; raise it, or set less")]
    TooLarge {
        /// What it has.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// It is for a source, and none that a source can have.
    #[error(
        "a source's state is how far it has come, as `state get` shows it; change that, or `reset` it"
    )]
    NoPosition,
    /// Something has changed that was to be as it was.
    #[error("it has changed meanwhile; look at it again")]
    Changed,
    /// Its task takes nothing any more.
    #[error("the actor has stopped, or is being stopped; try again when it runs")]
    Stopped,
}

/// What an actor's task shares with those who look at the actor and send to it.
pub(crate) struct Shared {
    pub(crate) name: ActorName,
    pub(crate) onlookers: Onlookers,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) routes: ArcSwap<Routes>,
    /// Wires on which outputs wait of a task that has ended, or of a source. Whoever
    /// takes the place puts nothing out before they are empty.
    pub(crate) left_on_wires: Mutex<Vec<Arc<Wire>>>,
    pub(crate) settings: ArcSwap<Settings>,
    pub(crate) max_hops: Arc<AtomicU32>,
    pub(crate) status: watch::Sender<Status>,
    /// A source has left it as it was.
    pub(crate) state: Mutex<EpochState>,
    /// How far a source has come, where it says so: its state then.
    pub(crate) progress: Mutex<Progress>,
    /// Since when it has been `failed` without a success in between, in milliseconds since the
    /// Unix epoch.
    pub(crate) down_since: Mutex<Option<u64>>,
    /// Whether what the actor has is being saved: no turn moves anything any more.
    pub(crate) sealed: Mutex<bool>,
    /// The state that the generation that runs cannot be gone back from without.
    pub(crate) fallback: Mutex<Option<EpochState>>,
    /// How the trial stands.
    pub(crate) trial: Mutex<Option<TrialView>>,
    /// Told when a trial has ended.
    pub(crate) trials: Arc<Notify>,
    pub(crate) meters: Meters,
    pub(crate) memory: AtomicU64,
    pub(crate) kill: CancellationToken,
    /// Ends the turn in hand, and the next turn has another.
    pub(crate) turn: Mutex<CancellationToken>,
    pub(crate) events: Arc<Events>,
    pub(crate) secrets: Secrets,
    pub(crate) sinks: Sinks,
}

/// What tells one generation from another in what an actor shows.
pub(crate) struct Identity {
    pub(crate) digest: Digest,
    pub(crate) version: Option<String>,
    pub(crate) component: String,
    /// What the module is called.
    pub(crate) module: String,
}

impl Shared {
    /// What the actor is to have again when it comes back.
    pub(crate) fn state(&self) -> State {
        self.epoch_state().state
    }

    /// The same, with the epoch that it belongs to.
    pub(crate) fn epoch_state(&self) -> EpochState {
        let progress = self.progress.lock().to_state();
        let held = self.state.lock().clone();
        match progress {
            Some(state) => EpochState { state, ..held },
            None => held,
        }
    }

    /// Tells that an operator has set the state.
    pub(crate) fn state_was_set(&self, before: &State, now: &State, on_trial: bool) -> StateSet {
        let (before, bytes) = (before.text().len() as u64, now.text().len() as u64);
        let (actor, generation) = (self.name.clone(), self.status.borrow().generation.number());
        info!(%actor, bytes, before, on_trial, "an operator set the state");
        self.events.record(EventKind::StateSet { actor, generation, bytes, before, on_trial });
        StateSet { generation, bytes, before, on_trial }
    }

    pub(crate) fn set_status(&self, state: ActorState, why: Option<String>) {
        self.status.send_if_modified(|status| {
            if status.state == state && status.why == why {
                return false;
            }
            if status.state != state {
                status.since = unix_millis();
            }
            // One that has tried again and failed again has been down all the while.
            if state == ActorState::Failed {
                status.since = *self.down_since.lock().get_or_insert(status.since);
            }
            status.state = state;
            status.why = why;
            true
        });
    }

    /// Ends the turn in hand, if one is: its message is first in line again, as if it had not
    /// begun. A connector's turn, which acts outside, is not cut short.
    pub(crate) fn cut_short(&self) {
        self.turn.lock().cancel();
    }

    /// The actor works again, or has a fresh start: when it is down next, that is another time.
    pub(crate) fn is_up(&self) {
        *self.down_since.lock() = None;
    }

    /// The same failure, which nobody is shown a secret by.
    pub(crate) fn masked(&self, kind: FailureKind) -> FailureKind {
        let mask = |text: String| self.secrets.mask_start(&text, MAX_ERROR).into_owned();
        let masked = |Setback { why, pause }| Setback { why: mask(why), pause };
        match kind {
            FailureKind::Trap(text) => FailureKind::Trap(mask(text)),
            FailureKind::Timeout(limit) => FailureKind::Timeout(limit),
            FailureKind::Turn(text) => FailureKind::Turn(mask(text)),
            FailureKind::Guest(text) => FailureKind::Guest(mask(text)),
            FailureKind::Unavailable(setback) => FailureKind::Unavailable(masked(setback)),
            FailureKind::Remote(setback) => FailureKind::Remote(masked(setback)),
            FailureKind::Refused(text) => FailureKind::Refused(mask(text)),
        }
    }

    /// Another generation is in place: shows it, counts it and says so.
    pub(crate) fn swapped(&self, new: Identity, queued: u64) -> Generation {
        let Identity { digest, version, component, module } = new;
        let (mut generation, mut from) = (Generation::FIRST, digest);
        self.status.send_modify(|status| {
            generation = status.generation.next();
            from = std::mem::replace(&mut status.digest, digest);
            status.generation = generation;
            status.version = version;
            status.component = component;
        });
        self.meters.swaps.add(1);
        let (actor, generation_number) = (self.name.clone(), generation.number());
        info!(%actor, %module, generation = generation_number, digest = %digest.short(), queued, "engine swapped");
        self.events.record(EventKind::Swapped {
            actor,
            generation: generation_number,
            from,
            digest,
            queued,
        });
        generation
    }

    /// The actor's task broke, which is an error of this program. The mailbox keeps
    /// what it has, for the generation that takes the actor's place.
    pub(crate) fn broke(&self, panic: &str) {
        let actor = self.name.clone();
        error!(%actor, panic, "the actor's task broke; its mailbox is kept for another generation");
        let why =
            format!("the actor's task broke, and another generation starts it again: {panic}");
        self.mailbox.release();
        self.events.record(EventKind::Failed { actor, why: why.clone() });
        self.set_status(ActorState::Failed, Some(why));
    }

    pub(crate) fn apply_settings(&self, settings: Settings) {
        self.max_hops.store(settings.max_hops, Ordering::Relaxed);
        self.mailbox.set_bounds(bounds_of(&settings));
        self.settings.store(Arc::new(settings));
    }

    /// The wires on which outputs of an actor wait whose task has ended.
    pub(crate) fn waiting_outputs(&self) -> Vec<Arc<Wire>> {
        let mut waiting = std::mem::take(&mut *self.left_on_wires.lock());
        // A turn that was cut short, or a task that broke, has told nobody of its own.
        waiting.extend(self.routes.load().all().cloned());
        waiting.retain(|wire| wire.pending() > 0);
        waiting
    }

    /// Puts one message on the wires of `port`, and notes those on which it has to wait.
    pub(crate) fn emit(
        &self,
        routes: &Routes,
        origin: &Origin,
        port: &PortName,
        message: Message,
        waiting: &mut Vec<Arc<Wire>>,
    ) {
        if let Some(lineage) = &origin.lineage {
            let from = || PortRef { actor: self.name.clone(), port: port.clone() };
            self.sinks.waits.left_by(from, lineage.correlation, &message);
        }
        let mut sighting = None;
        if self.onlookers.taps.any() {
            sighting = self.sighting(origin, port, &message);
        }
        let Some((last, others)) = routes.of(port).split_last() else {
            self.meters.unrouted.add(1);
            return self.show(sighting);
        };
        let mut put = |wire: &Arc<Wire>, message| {
            let envelope = origin.envelope(wire.to().port.clone(), message);
            if let Some(sighting) = &mut sighting {
                sighting.to.push((wire.to().clone(), envelope.id));
            }
            if wire.emit(envelope, origin.at.instant)
                && !waiting.iter().any(|w| Arc::ptr_eq(w, wire))
            {
                waiting.push(Arc::clone(wire));
            }
        };
        others.iter().for_each(|wire| put(wire, message.clone()));
        put(last, message);
        self.show(sighting);
    }

    /// What those who tap are to see of a message that leaves, if any has room for it.
    #[cold]
    pub(crate) fn sighting(
        &self,
        origin: &Origin,
        port: &PortName,
        message: &Message,
    ) -> Option<Sighting> {
        match self.onlookers.taps.offer(Direction::Out, port, message.encoded_len()) {
            Offer::Skipped(taps) => {
                self.meters.tap_skipped.add(taps);
                None
            }
            Offer::Wanted => Some(Sighting {
                direction: Direction::Out,
                port: port.clone(),
                generation: self.status.borrow().generation.number(),
                time: origin.at.unix_millis(),
                id: None,
                correlation: origin.lineage.as_ref().map(|lineage| lineage.correlation),
                attempt: 0,
                replayed: false,
                judged: origin.judged,
                to: Vec::new(),
                message: message.clone(),
            }),
        }
    }

    /// Shows it to those who tap.
    pub(crate) fn show(&self, sighting: Option<Sighting>) {
        if let Some(sighting) = sighting {
            self.meters.tap_skipped.add(self.onlookers.taps.show(&sighting));
        }
    }

    /// What it runs, for the dead letters.
    pub(crate) fn ran(&self) -> Ran {
        let status = self.status.borrow();
        Ran { digest: status.digest, generation: status.generation.number() }
    }

    /// Closes the mailbox for good; what it holds are dead letters. Gives how many.
    pub(crate) fn close_mailbox(&self) -> u64 {
        self.mailbox.release();
        self.mailbox.close();
        let ran = Some(self.ran());
        let mut dead_lettered = 0;
        for envelope in self.mailbox.expel(None) {
            self.sinks.waits.died(envelope.correlation, &Reason::Removed);
            self.sinks.dead.put(&self.name, &envelope, Reason::Removed, ran, 0);
            dead_lettered += 1;
        }
        dead_lettered
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
    /// What runs stays, whatever a trial would have said.
    EndTrial,
    /// Have another state.
    SetState(Box<NewState>),
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
    /// What the module is called.
    pub(crate) module: String,
    pub(crate) trialing: Trialing,
    /// The state that takes the place of the present one: what the program has made of
    /// it, or what is given back.
    pub(crate) state: Option<EpochState>,
    pub(crate) done: oneshot::Sender<Swapped>,
}

/// What became of a swap; or what was to run, handed back by an actor that has stopped.
pub(crate) type Swapped = Result<Replaced, Ready>;

/// Another generation is in place.
pub(crate) struct Replaced {
    pub(crate) generation: Generation,
    /// Turns whose state is lost, where the state went back too.
    pub(crate) lost_turns: u64,
    /// The old engine, for whoever asked to drop: that gives memory back to the system,
    /// which may take longer than all else, and the next message does not wait for it.
    pub(crate) _old: Option<Box<dyn Engine>>,
}

impl Swap {
    /// The actor has stopped: whoever asked starts it anew.
    pub(crate) fn hand_back(self) {
        let Self { program, version, engine, log, module, trialing: _, state: _, done } = self;
        // Whoever asked may be gone, and then nobody wants the engine.
        _ = done.send(Err(Ready::Engine { program, engine, version, log, module }));
    }
}
