//! What can change in a running system, and how it does.
//!
//! A change comes as a value, [`Change`], with everything already prepared that
//! could fail. Applying it is a sequence of assignments between turns, so it has
//! no error: what can go wrong has gone wrong before.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{System, past::Left, wiring::Rewiring};
use crate::{
    Actor, ActorLog, ActorName, ActorState, Digest, Engine, EpochState, EventKind, Generation,
    Mailbox, Meters, Overflow, PortRef, Program, Settings, Source, State, Status, Wire,
    actor::{ActorTask, Command, Kind, MAX_COMMANDS, Shared, bounds_of},
    envelope::unix_millis,
    panic::Boundary,
    position::Progress,
    source::SourceTask,
};

/// What an actor is to run, ready to run.
pub enum Ready {
    /// A program with its first engine.
    Engine {
        /// Makes further engines.
        program: Arc<dyn Program>,
        /// The first one.
        engine: Box<dyn Engine>,
        /// The version that the module gives itself.
        version: Option<String>,
        /// Where the guest logs.
        log: ActorLog,
        /// The name by which the module was requested, for the daemon's log: a file's
        /// stem, a path or an address.
        module: String,
    },
    /// A connector that puts messages out.
    Source(Arc<dyn Source>),
}

impl Ready {
    /// Whether it puts messages out of its own accord and has no mailbox.
    fn is_source(&self) -> bool {
        matches!(self, Self::Source(_))
    }

    /// The name of its module.
    fn module(&self) -> &str {
        match self {
            Self::Engine { module, .. } => module,
            // A connector bears one name everywhere.
            Self::Source(source) => &source.metadata().component,
        }
    }
}

/// A new actor.
pub struct Start {
    /// Its name.
    pub name: ActorName,
    /// What it runs.
    pub ready: Ready,
    /// The keys that apply in place.
    pub settings: Settings,
    /// Its first state, where one is known.
    pub state: Option<EpochState>,
    /// The actor whose mailbox and state it takes over, and which ends.
    pub was: Option<ActorName>,
}

/// One wire that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireDef {
    /// The sending port.
    pub from: PortRef,
    /// The receiving port.
    pub to: PortRef,
    /// Its own way with a full mailbox.
    pub overflow: Option<Overflow>,
}

/// Where a wire begins and where it ends. There is one at most between two ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireEnds {
    /// The sending port.
    pub from: PortRef,
    /// The receiving port.
    pub to: PortRef,
}

/// What is to change, everything prepared.
///
/// Wires come as differences, so that changes among different actors can be made side by side.
#[derive(Default)]
pub struct Change {
    /// Actors to start.
    pub start: Vec<Start>,
    /// Actors that run another generation from now on.
    pub swap: Vec<(ActorName, Ready)>,
    /// Actors whose other keys changed.
    pub settings: Vec<(ActorName, Settings)>,
    /// Actors to drain and stop.
    pub stop: Vec<ActorName>,
    /// How long they may take for it.
    pub drain: Duration,
    /// Wires that come. Of one that is there already, its own way with a full mailbox.
    pub connect: Vec<WireDef>,
    /// Wires that go. Those of an actor whose place another takes go by themselves.
    pub cut: Vec<WireEnds>,
    /// What the swaps have to prove.
    pub trialing: Trialing,
    /// States that take the places of the present ones with the swaps: what programs have
    /// made of those, or, going back, what is given back. The actors were
    /// [halted](System::halt) before.
    pub states: BTreeMap<ActorName, EpochState>,
}

/// What the swaps of a change have to prove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trialing {
    /// Nothing: what they put in place stays, and a trial that goes on ends.
    #[default]
    NoTrial,
    /// That they are no worse than what ran before. Where that was on trial itself, its
    /// judge goes on to judge.
    OnTrial,
    /// Nothing: they put former generations back.
    GoingBack,
}

/// What a change has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The generation that each started or swapped actor runs.
    pub generations: BTreeMap<ActorName, Generation>,
    /// Turns whose state is lost, of each actor that was given an earlier state back.
    pub lost_turns: BTreeMap<ActorName, u64>,
}

/// An actor about to start, and whose place it takes.
struct Newcomer {
    name: ActorName,
    ready: Ready,
    settings: Settings,
    /// Its state, where nothing newer is known.
    state: Option<EpochState>,
    seat: Seat,
}

/// What a new actor finds in its place.
enum Seat {
    /// Nothing.
    Free,
    /// The state of a source that has ended and is gone.
    Left(EpochState),
    /// An actor without a task, still counted, whose mailbox and state it takes over.
    Inherited(Arc<Actor>),
}

/// All that an actor's task starts with.
struct Outfit {
    name: ActorName,
    ready: Ready,
    settings: Settings,
    state: EpochState,
    generation: Generation,
    mailbox: Arc<Mailbox>,
    /// Wires that have to be empty before its first turn.
    outbox: Vec<Arc<Wire>>,
}

impl System {
    /// Applies a change. Everything that can fail has been done before.
    ///
    /// Where swaps touch several actors, by themselves or by the wires that come and
    /// go with them, those actors start no turn until all of it is in place, so that
    /// nothing old meets anything new. Sources are not halted: what they put out
    /// meanwhile waits in mailboxes or on wires.
    ///
    /// Changes among different actors may be applied at the same time. The actors that a
    /// change swaps or rewires are no other's until it is applied.
    pub async fn apply(&self, mut change: Change) -> Changed {
        let mut changed = Changed::default();
        // While others are held, it could not work off what it has.
        for actor in self.of_other_kind(&change) {
            actor.drain(Instant::now() + change.drain).await;
            actor.stopped().await;
        }
        let mut held = Vec::new();
        for name in self.to_hold(&change) {
            held.extend(self.hold(&name).await);
        }
        let mut uprooted = Vec::new();

        for (name, settings) in mem::take(&mut change.settings) {
            if let Some(actor) = self.actor(name.as_str()) {
                _ = actor.commands.send(Command::Settings(Box::new(settings))).await;
                self.0.events.record(EventKind::Applied { actor: name });
            }
        }
        for start in mem::take(&mut change.start) {
            let name = start.name.clone();
            let generation = self.start(start, change.drain).await;
            // It takes no turn before its wires are there.
            held.extend(self.actor(name.as_str()));
            changed.generations.insert(name, generation);
        }
        let mut swapped = Vec::new();
        for (name, ready) in mem::take(&mut change.swap) {
            if let Some(actor) = self.actor(name.as_str()) {
                let state = change.states.remove(&name);
                let done = actor.swap(ready, change.trialing, change.drain, state).await;
                swapped.push((actor, done));
            }
        }
        for (actor, done) in swapped {
            let name = actor.name().clone();
            let generation = match done.await {
                Ok(Ok(replaced)) => {
                    if replaced.lost_turns > 0 {
                        changed.lost_turns.insert(name.clone(), replaced.lost_turns);
                    }
                    replaced.generation
                }
                // The actor has ended, or could not become what it is to be: it starts anew.
                Ok(Err(ready)) => {
                    let ends_there =
                        |wire: &Arc<Wire>| wire.from().actor == name || wire.to().actor == name;
                    uprooted.extend(self.wires().into_iter().filter(ends_there));
                    let generation = self.replace(actor, ready).await;
                    held.extend(self.actor(name.as_str()));
                    generation
                }
                // Its task was torn down with the swap in its hands: the process is ending.
                Err(_) => continue,
            };
            changed.generations.insert(name, generation);
        }
        // The ports of the new generations decide what a join waits for.
        let fresh = changed.generations.keys().cloned().collect();
        let Change { connect, cut, .. } = &change;
        self.rewire(Rewiring { connect, cut, stopping: &change.stop, uprooted, fresh });
        self.release(held).await;
        let until = Instant::now() + change.drain;
        for name in change.stop {
            self.stop(&name, until).await;
        }
        changed
    }

    /// The actors that a source takes the place of, or the other way round: they end first.
    pub(super) fn of_other_kind(&self, change: &Change) -> Vec<Arc<Actor>> {
        let swaps = change.swap.iter().map(|(name, ready)| (name, ready));
        let heirs = change.start.iter().filter_map(|s| Some((s.was.as_ref()?, &s.ready)));
        let pairs = swaps.chain(heirs);
        let pairs = pairs.filter_map(|(name, ready)| Some((self.actor(name.as_str())?, ready)));
        pairs
            .filter(|(actor, ready)| actor.is_source() != ready.is_source())
            .map(|(actor, _)| actor)
            .collect()
    }

    /// Starts an actor, or takes one up again that is being drained.
    async fn start(&self, start: Start, drain: Duration) -> Generation {
        let Start { name, mut ready, settings, state, was } = start;
        let (mut seat, mut paused) = (Seat::Free, false);
        if let Some(actor) = self.actor(name.as_str()) {
            _ = actor.commands.send(Command::Settings(Box::new(settings.clone()))).await;
            match actor.swap(ready, Trialing::NoTrial, drain, None).await.await {
                Ok(Ok(replaced)) => {
                    actor.leaving.store(false, Ordering::Release);
                    return replaced.generation;
                }
                Ok(Err(back)) => ready = back,
                // Its task was torn down with the swap in its hands: the process is ending.
                Err(_) => return actor.status().generation,
            }
            actor.stopped().await;
            seat = self.vacate(actor, &ready);
        }
        if let (Seat::Free, Some(was)) = (&seat, was)
            && let Some(actor) = self.actor(was.as_str())
        {
            // A source has nothing to do with a mailbox; another source goes on where it was.
            if actor.is_source() || ready.is_source() {
                let heir = actor.is_source() && ready.is_source();
                paused = heir && actor.status().state == ActorState::Paused;
                actor.drain(Instant::now() + drain).await;
                actor.stopped().await;
                if heir {
                    seat = Seat::Left(actor.epoch_state());
                    self.bury_leaving(&actor, None);
                } else {
                    self.bury(&actor);
                }
            } else {
                paused = actor.status().state == ActorState::Paused;
                actor.leaving.store(true, Ordering::Release);
                actor.shared.kill.cancel();
                actor.stopped().await;
                seat = Seat::Inherited(actor);
            }
        }
        let generation = self.place(Newcomer { name: name.clone(), ready, settings, state, seat });
        if paused && let Some(heir) = self.actor(name.as_str()) {
            heir.pause().await;
        }
        generation
    }

    /// Starts another actor in the place of one that has ended.
    async fn replace(&self, actor: Arc<Actor>, ready: Ready) -> Generation {
        let (name, settings) = (actor.name().clone(), (*actor.settings()).clone());
        actor.stopped().await;
        let seat = self.vacate(actor, &ready);
        self.place(Newcomer { name, ready, settings, state: None, seat })
    }

    /// Sees an actor out that has ended. One whose task broke has not emptied its
    /// mailbox, and leaves that to who comes next.
    fn vacate(&self, actor: Arc<Actor>, next: &Ready) -> Seat {
        if actor.broke() && !actor.is_source() && !next.is_source() {
            return Seat::Inherited(actor);
        }
        self.bury(&actor);
        Seat::Free
    }

    /// Puts a new actor in its place, all at once: what it inherits is never counted
    /// twice and never missing.
    fn place(&self, newcomer: Newcomer) -> Generation {
        let Newcomer { name, ready, settings, state, seat } = newcomer;
        let mut past = self.0.past.lock();
        let left = past.comes_back(&name);
        let mut generation = left.as_ref().map(|left| left.generation.next());
        // What a removed actor left in memory is newer than anything on disk.
        let found = state.as_ref().map(|state| state.epoch);
        let mut state = match left {
            // An heir has it, and what lies on disk under that name is not its own.
            Some(Left { moved: true, .. }) => {
                state.map(|on_disk| on_disk.followed_by(State::default(), 0))
            }
            left => left.and_then(|left| left.state).or(state),
        };
        if let Seat::Left(taken) = &seat {
            state = Some(taken.clone());
        }
        let bounds = bounds_of(&settings);
        let mailbox = match &seat {
            Seat::Free | Seat::Left(_) => Arc::new(Mailbox::new(bounds).within(self.budget())),
            Seat::Inherited(from) => {
                from.mailbox().set_bounds(bounds);
                let mut taken = from.epoch_state();
                // A file on disk under the new name belongs to another actor.
                if let Some(found) = found.filter(|_| *from.name() != name) {
                    taken.epoch = taken.epoch.max(found.next());
                }
                state = Some(taken);
                // Numbers grow along the way of the mailbox as under a name.
                generation = generation.max(Some(from.status().generation.next()));
                Arc::clone(from.mailbox())
            }
        };
        let generation = generation.unwrap_or(Generation::FIRST);
        let outbox = match &seat {
            Seat::Free | Seat::Left(_) => Vec::new(),
            Seat::Inherited(from) => from.shared.waiting_outputs(),
        };
        let module = ready.module().to_owned();
        let (actor, digest) = self.run(Outfit {
            name: name.clone(),
            ready,
            settings,
            state: state.unwrap_or_default(),
            generation,
            mailbox,
            outbox,
        });
        if let Seat::Inherited(from) = seat {
            self.0.actors.remove(from.name());
            from.shared.routes.load().all().for_each(|wire| self.finish_wire(wire));
            past.take_over(&from);
            if *from.name() != name {
                past.leave(&from, None, Instant::now());
            }
        }
        self.0.actors.insert(name.clone(), Arc::new(actor));
        drop(past);
        info!(actor = %name, %module, generation = generation.number(), digest = %digest.short(), "actor started");
        let number = generation.number();
        self.0.events.record(EventKind::Started { actor: name, generation: number, digest });
        generation
    }

    /// Starts an actor's task. It takes no turn before it is released.
    fn run(&self, outfit: Outfit) -> (Actor, Digest) {
        let Outfit { name, ready, settings, state, generation, mailbox, outbox } = outfit;
        let (digest, metadata, version) = match &ready {
            Ready::Engine { program, version, .. } => {
                (program.digest(), program.metadata().clone(), version.clone())
            }
            Ready::Source(source) => (source.digest(), source.metadata().clone(), None),
        };
        let status = Status {
            state: ActorState::Active,
            since: unix_millis(),
            why: None,
            generation,
            digest,
            version,
            component: metadata.component.clone(),
        };
        let onlookers = self.0.gallery.of(&name);
        let is_source = matches!(ready, Ready::Source(_));
        let progress = is_source.then(|| Progress::of_state(&state.state)).flatten();
        let text = if progress.is_some() { State::default() } else { state.state };
        let state = EpochState { state: text, ..state };
        let kill = self.0.kill.child_token();
        let shared = Arc::new(Shared {
            name,
            onlookers,
            mailbox,
            routes: ArcSwap::default(),
            left_on_wires: Mutex::default(),
            max_hops: Arc::new(AtomicU32::new(settings.max_hops)),
            settings: ArcSwap::from_pointee(settings),
            status: watch::channel(status).0,
            state: Mutex::new(state),
            progress: Mutex::new(progress.unwrap_or_default()),
            down_since: Mutex::default(),
            sealed: Mutex::new(false),
            fallback: Mutex::new(None),
            trial: Mutex::new(None),
            trials: Arc::clone(&self.0.trials),
            meters: Meters::default(),
            memory: AtomicU64::new(0),
            turn: Mutex::new(kill.child_token()),
            kill,
            events: Arc::clone(&self.0.events),
            secrets: self.0.secrets.clone(),
            sinks: self.0.sinks.clone(),
        });
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let ended = CancellationToken::new();
        let kind = match ready {
            Ready::Engine { program, engine, log, .. } => {
                log.keep_in(&shared.onlookers.journal);
                let task =
                    ActorTask::new(Arc::clone(&shared), receiver, program, engine, log, outbox);
                self.track(&shared, &ended, task.run());
                Kind::Engine
            }
            Ready::Source(source) => {
                let (swap, swaps) = mpsc::channel(1);
                let task = SourceTask {
                    shared: Arc::clone(&shared),
                    commands: receiver,
                    swaps,
                    source,
                    gate: self.0.gate.subscribe(),
                    wired: CancellationToken::new(),
                };
                self.track(&shared, &ended, task.run());
                Kind::Source(swap)
            }
        };
        let actor = Actor {
            shared,
            commands,
            kind,
            metadata: ArcSwap::from_pointee(metadata),
            leaving: AtomicBool::new(false),
            ended,
            started: unix_millis(),
        };
        (actor, digest)
    }

    /// Runs an actor's task where turns run, and notes its end, whatever ends it.
    fn track(
        &self,
        shared: &Arc<Shared>,
        ended: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (shared, end) = (Arc::clone(shared), ended.clone().drop_guard());
        let run = async move {
            let _end = end;
            if let Err(panic) = Boundary::Burial.hold(task).await {
                shared.broke(&panic.to_string());
            }
        };
        self.0.tasks.spawn_on(run, &self.0.turns);
    }

    /// Drains an actor in the background; what is left of it goes into the past books.
    async fn stop(&self, name: &ActorName, until: Instant) {
        let Some(actor) = self.actor(name.as_str()) else { return };
        actor.drain(until).await;
        let system = self.clone();
        let burial = async move {
            actor.stopped().await;
            // It may have been taken up again meanwhile, and left its seat to another.
            if actor.leaving() && !actor.shared.kill.is_cancelled() {
                system.bury(&actor);
            }
        };
        self.0.tasks.spawn(async { _ = Boundary::Burial.hold(burial).await });
    }

    /// Takes a stopped actor off the registry and keeps its books and state.
    fn bury(&self, actor: &Arc<Actor>) {
        self.bury_leaving(actor, Some(actor.epoch_state()));
    }

    /// The same, leaving that state; none, where an heir has it.
    fn bury_leaving(&self, actor: &Arc<Actor>, state: Option<EpochState>) {
        let mut past = self.0.past.lock();
        let same = |_: &ActorName, a: &Arc<Actor>| Arc::ptr_eq(a, actor);
        if self.0.kill.is_cancelled() || self.0.actors.remove_if(actor.name(), same).is_none() {
            return;
        }
        // Empty already, unless the actor's task broke.
        actor.shared.close_mailbox();
        past.books.deliveries.add(&actor.mailbox().counts());
        past.take_over(actor);
        past.leave(actor, state, Instant::now());
    }
}
