//! All actors and wires of a daemon, and the one place where they change.
//!
//! A change comes as a value, [`Change`], with everything already prepared that
//! could fail. Applying it is a sequence of assignments between turns, so it has
//! no error: what can go wrong has gone wrong before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use dashmap::DashMap;
use parking_lot::Mutex;
use serde::Serialize;
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    ActorLog, ActorName, ActorState, Answer, Counts, DeadLetters, Engine, Entry, Envelope,
    EventKind, Events, Generation, Mailbox, Message, MessageId, Metadata, Meters, Overflow,
    PortName, PortRef, Program, Routes, Settings, Source, State, Status, Wire, WireCounts,
    actor::{ActorTask, Command, MAX_COMMANDS, Shared, Swap, Swapped, bounds_of},
    dead_letter::Reason,
    envelope::unix_millis,
    mailbox::{InLine, PushError},
    source::{SourceSwap, SourceTask},
    waits::Waits,
    wire::{Sinks, WireTarget},
};

/// How often a stop looks whether the flow is empty.
const QUIET_CHECK: Duration = Duration::from_millis(2);

/// What sources that stop with the daemon have for what is on their wires: the stop ends it.
const NO_HURRY: Duration = Duration::from_secs(24 * 3600);

/// How long the state of a removed actor is kept.
const STATE_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// All actors and wires of a daemon. Clones are the same system.
#[derive(Clone)]
pub struct System(Arc<Inner>);

struct Inner {
    actors: DashMap<ActorName, Arc<Actor>>,
    /// Where actors' tasks run: not where the control side does.
    turns: Handle,
    tasks: TaskTracker,
    kill: CancellationToken,
    events: Arc<Events>,
    sinks: Sinks,
    /// Opens when the daemon serves.
    gate: watch::Sender<bool>,
    /// Whether messages from outside are refused.
    closed: AtomicBool,
    past: Mutex<Past>,
    /// One change at a time.
    changes: tokio::sync::Mutex<()>,
}

/// What is left of actors and wires that are gone.
///
/// Its lock is held wherever something moves from the present to the past, so
/// that the sum of both never has a gap.
#[derive(Default)]
struct Past {
    books: Books,
    /// What actors that are gone have counted.
    meters: Meters,
    /// Wires that were cut while something waited on them.
    retiring: Vec<Arc<Wire>>,
    /// States of removed actors, taken up if the actor comes back.
    states: BTreeMap<ActorName, (State, Instant)>,
}

impl Past {
    /// Closes the books of cut wires that nobody can use any more: a source that
    /// loaded its routes just before the cut may still put one message on an old wire.
    fn sweep(&mut self) {
        let books = &mut self.books;
        self.retiring.retain(|wire| {
            let in_use = Arc::strong_count(wire) > 1 || wire.pending() > 0;
            if !in_use {
                books.wires.add(&wire.counts());
            }
            in_use
        });
    }
}

/// The books of the whole system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Deliveries to mailboxes.
    pub deliveries: Counts,
    /// What wires took from turns and sources.
    pub wires: WireCounts,
}

impl Books {
    /// Whether nothing is lost or doubled, and every delivery by wire is known at both ends.
    #[must_use]
    pub fn balanced(&self) -> bool {
        let by_wire = self.deliveries.accepted[Entry::Wire as usize]
            + self.deliveries.accepted[Entry::Connector as usize];
        self.deliveries.balanced() && self.wires.balanced() && self.wires.accepted == by_wire
    }
}

/// The books one by one. None of them is missing or twice there, whatever
/// starts and stops meanwhile.
pub struct Ledger {
    /// The actors that are there, by name, with the books of their mailboxes.
    pub actors: Vec<(Arc<Actor>, Counts)>,
    /// The wires that are there, by their ends, with their books.
    pub wires: Vec<(Arc<Wire>, WireCounts)>,
    /// What actors and wires that are gone have left.
    pub gone: Books,
    /// What actors that are gone have counted. With it, no sum over all actors falls.
    pub gone_meters: Meters,
}

impl Ledger {
    /// The books of the whole system.
    #[must_use]
    pub fn total(&self) -> Books {
        let mut books = self.gone;
        self.actors.iter().for_each(|(_, counts)| books.deliveries.add(counts));
        self.wires.iter().for_each(|(_, counts)| books.wires.add(counts));
        books
    }
}

/// A running actor, as others see it.
pub struct Actor {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    kind: Kind,
    /// What its ports are, by the generation that runs.
    metadata: ArcSwap<Metadata>,
    /// Whether it was told to stop, known here before its task hears of it.
    leaving: AtomicBool,
    /// Cancelled when its task is over, whatever ended it.
    ended: CancellationToken,
    started: u64,
}

enum Kind {
    Engine,
    Source(mpsc::Sender<SourceSwap>),
}

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
    },
    /// A connector that puts messages out.
    Source(Arc<dyn Source>),
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
    pub state: Option<State>,
    /// The actor whose mailbox and state it takes over.
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

/// What is to change, everything prepared.
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
    /// All wires of the system after the change, where they change.
    pub wires: Option<Vec<WireDef>>,
}

/// What a change has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The generation that each started or swapped actor runs.
    pub generations: BTreeMap<ActorName, Generation>,
}

/// A message from outside was not taken; it is handed back.
#[derive(Debug, Error)]
pub enum SendError {
    /// The actor is behind. Wait, shed or fail: the sender knows which is right.
    #[error("the mailbox of `{actor}` is full")]
    Full {
        /// The actor.
        actor: ActorName,
        /// The message.
        message: Message,
    },
    /// There is no such actor.
    #[error("there is no actor `{actor}`")]
    NoActor {
        /// The name.
        actor: ActorName,
        /// The message.
        message: Message,
    },
    /// The actor has no such port.
    #[error("the actor `{actor}` has no inport `{port}`; it has {has}")]
    NoPort {
        /// The actor.
        actor: ActorName,
        /// The port.
        port: PortName,
        /// The ports that it has.
        has: String,
        /// The message.
        message: Message,
    },
    /// The message's type can never fit the port.
    #[error("`{actor}.{port}` takes {wants}, and the message is of type {found}")]
    Type {
        /// The actor.
        actor: ActorName,
        /// The port.
        port: PortName,
        /// The declared type.
        wants: crate::Type,
        /// The message's.
        found: crate::Type,
    },
    /// The daemon or the actor is stopping.
    #[error("`{actor}` is stopping and takes no more messages")]
    Draining {
        /// The actor.
        actor: ActorName,
        /// The message.
        message: Message,
    },
}

impl System {
    /// A system without actors, whose actors will run on `turns`.
    #[must_use]
    pub fn new(turns: Handle) -> Self {
        let sinks = Sinks { dead: Arc::default(), waits: Arc::new(Waits::default()) };
        Self(Arc::new(Inner {
            actors: DashMap::new(),
            turns,
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
            events: Arc::default(),
            sinks,
            gate: watch::channel(false).0,
            closed: AtomicBool::new(false),
            past: Mutex::default(),
            changes: tokio::sync::Mutex::new(()),
        }))
    }

    /// Lets the sources begin: the daemon serves.
    pub fn open(&self) {
        self.0.gate.send_replace(true);
    }

    /// What has happened.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.0.events
    }

    /// Messages that could not be delivered or processed.
    #[must_use]
    pub fn dead_letters(&self) -> &Arc<DeadLetters> {
        &self.0.sinks.dead
    }

    /// The actor of that name.
    #[must_use]
    pub fn actor(&self, name: &str) -> Option<Arc<Actor>> {
        self.0.actors.get(name).map(|actor| Arc::clone(&actor))
    }

    /// All actors, by name.
    #[must_use]
    pub fn actors(&self) -> Vec<Arc<Actor>> {
        let mut actors: Vec<_> = self.0.actors.iter().map(|a| Arc::clone(a.value())).collect();
        actors.sort_by(|a, b| a.name().cmp(b.name()));
        actors
    }

    /// All wires, by their sending actor.
    #[must_use]
    pub fn wires(&self) -> Vec<Arc<Wire>> {
        let mut wires: Vec<_> = Vec::new();
        for actor in self.actors() {
            wires.extend(actor.shared.routes.load().all().cloned());
        }
        wires.sort_by(|a, b| (a.from(), a.to()).cmp(&(b.from(), b.to())));
        wires
    }

    /// The books of all actors and wires, those that are gone included.
    ///
    /// While messages move, one is seen at the end of its wire a moment before
    /// or after it is seen in the mailbox; each mailbox and each wire balances
    /// by itself at every moment.
    #[must_use]
    pub fn books(&self) -> Books {
        self.ledger().total()
    }

    /// The books of each actor and wire, and of what is gone, read together.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let past = self.0.past.lock();
        let gone_meters = Meters::default();
        gone_meters.add(&past.meters);
        let mut gone = past.books;
        for wire in &past.retiring {
            gone.wires.add(&wire.counts());
        }
        let actors = self.actors().into_iter().map(|actor| {
            let counts = actor.mailbox().counts();
            (actor, counts)
        });
        let wires = self.wires().into_iter().map(|wire| {
            let counts = wire.counts();
            (wire, counts)
        });
        Ledger { actors: actors.collect(), wires: wires.collect(), gone, gone_meters }
    }

    /// Sends a message to an actor from outside.
    ///
    /// # Errors
    /// The message was not taken, and why. A full mailbox is an answer.
    pub fn send(
        &self,
        to: &PortRef,
        message: Message,
        traceparent: Option<Arc<str>>,
    ) -> Result<MessageId, SendError> {
        let (actor, envelope) = self.enter(to, message, traceparent)?;
        let id = envelope.id;
        self.deliver(&actor, envelope).map(|()| id)
    }

    /// Sends a message to an actor from outside, and waits for room where its mailbox is full.
    ///
    /// Cancel at will: a message is taken or it is not.
    ///
    /// # Errors
    /// The message was not taken, and why. Full is a mailbox only where its rule is to drop.
    pub async fn send_waiting(
        &self,
        to: &PortRef,
        message: Message,
        traceparent: Option<Arc<str>>,
    ) -> Result<MessageId, SendError> {
        let (actor, mut envelope) = self.enter(to, message, traceparent)?;
        let id = envelope.id;
        while let Some((back, room)) = self.offer(&actor, envelope)? {
            envelope = back;
            let line = InLine { mailbox: actor.mailbox(), port: envelope.port.clone() };
            tokio::select! {
                () = room.notified() => {}
                () = self.0.kill.cancelled() => {}
            }
            drop(line);
            if self.0.closed.load(Ordering::Acquire) || self.0.kill.is_cancelled() {
                let actor = to.actor.clone();
                return Err(SendError::Draining { actor, message: envelope.message });
            }
        }
        Ok(id)
    }

    /// Sends a message and gives a receiver for what comes out of `answer` for it.
    ///
    /// # Errors
    /// The message was not taken, and why.
    pub fn ask(
        &self,
        to: &PortRef,
        message: Message,
        traceparent: Option<Arc<str>>,
        answer: PortRef,
    ) -> Result<(MessageId, oneshot::Receiver<Answer>), SendError> {
        let (actor, envelope) = self.enter(to, message, traceparent)?;
        let id = envelope.id;
        let receiver = self.0.sinks.waits.open(id, answer);
        match self.deliver(&actor, envelope) {
            Ok(()) => Ok((id, receiver)),
            Err(error) => {
                self.0.sinks.waits.close(id);
                Err(error)
            }
        }
    }

    /// Nobody waits for the answer to `id` any more.
    pub fn forget(&self, id: MessageId) {
        self.0.sinks.waits.close(id);
    }

    fn enter(
        &self,
        to: &PortRef,
        message: Message,
        traceparent: Option<Arc<str>>,
    ) -> Result<(Arc<Actor>, Envelope), SendError> {
        let Some(actor) = self.actor(to.actor.as_str()) else {
            return Err(SendError::NoActor { actor: to.actor.clone(), message });
        };
        if actor.leaving() || self.0.closed.load(Ordering::Acquire) {
            return Err(SendError::Draining { actor: to.actor.clone(), message });
        }
        let metadata = actor.metadata();
        match metadata.inport(to.port.as_str()) {
            None => Err(SendError::NoPort {
                actor: to.actor.clone(),
                port: to.port.clone(),
                has: list(metadata.inports.iter().map(|port| port.name.as_str())),
                message,
            }),
            Some(port) if !message.ty().can_fit(port.port_type) => Err(SendError::Type {
                actor: to.actor.clone(),
                port: to.port.clone(),
                wants: port.port_type,
                found: message.ty(),
            }),
            Some(_) => Ok((actor, Envelope::entering(to.port.clone(), message, traceparent))),
        }
    }

    fn deliver(&self, actor: &Actor, envelope: Envelope) -> Result<(), SendError> {
        match self.offer(actor, envelope)? {
            None => Ok(()),
            Some((envelope, _)) => {
                actor.mailbox().unblock(&envelope.port);
                Err(SendError::Full { actor: actor.name().clone(), message: envelope.message })
            }
        }
    }

    /// Gives a message to a mailbox. Where that is full and senders are to wait,
    /// the message comes back with what tells when to try again.
    fn offer(
        &self,
        actor: &Actor,
        envelope: Envelope,
    ) -> Result<Option<(Envelope, Arc<Notify>)>, SendError> {
        let name = actor.name().clone();
        let correlation = envelope.correlation;
        match actor.mailbox().push(envelope, None, Entry::Api) {
            Ok(pushed) => {
                if let Some(dropped) = pushed.dropped {
                    self.0.sinks.dead.dropped(&name, &dropped);
                    self.0.sinks.waits.died(dropped.correlation, &Reason::Overflow);
                }
                Ok(None)
            }
            Err(PushError::Full(envelope, room)) => Ok(Some((envelope, room))),
            Err(PushError::Dropped(envelope)) => {
                self.0.sinks.dead.dropped(&name, &envelope);
                self.0.sinks.waits.died(correlation, &Reason::Overflow);
                Err(SendError::Full { actor: name, message: envelope.message })
            }
            Err(PushError::Closed(envelope)) => {
                Err(SendError::Draining { actor: name, message: envelope.message })
            }
        }
    }

    /// Applies a change. Everything that can fail has been done before.
    ///
    /// Where more than one actor or wire is involved, those actors start no turn
    /// until all of it is in place, so that nothing old meets anything new.
    pub async fn apply(&self, change: Change) -> Changed {
        let _one_at_a_time = self.0.changes.lock().await;
        let mut changed = Changed::default();
        let mut held = Vec::new();
        for name in self.to_hold(&change) {
            held.extend(self.hold(&name).await);
        }

        for (name, settings) in change.settings {
            if let Some(actor) = self.actor(name.as_str()) {
                _ = actor.commands.send(Command::Settings(Box::new(settings))).await;
                self.0.events.record(EventKind::Applied { actor: name });
            }
        }
        for start in change.start {
            let name = start.name.clone();
            let generation = self.start(start, change.drain).await;
            // It takes no turn before its wires are there.
            held.extend(self.actor(name.as_str()));
            changed.generations.insert(name, generation);
        }
        // The ports of the new generations decide what a join waits for.
        let mut swapped = Vec::new();
        for (name, ready) in change.swap {
            if let Some(actor) = self.actor(name.as_str()) {
                let done = actor.swap(ready, change.drain).await;
                swapped.push((actor, done));
            }
        }
        for (actor, done) in swapped {
            let name = actor.name().clone();
            let generation = match done.await {
                Ok(Ok(generation)) => generation,
                // The actor has ended, or could not become what it is to be: it starts anew.
                Ok(Err(ready)) => {
                    let generation = self.replace(&actor, ready).await;
                    held.extend(self.actor(name.as_str()));
                    generation
                }
                // Its task was torn down with the swap in its hands: the process is ending.
                Err(_) => continue,
            };
            changed.generations.insert(name, generation);
        }
        if let Some(wires) = change.wires {
            self.rewire(&wires, &change.stop);
        } else {
            self.rejoin(&self.wires());
        }
        for actor in held {
            _ = actor.commands.send(Command::Release).await;
        }
        let until = Instant::now() + change.drain;
        for name in change.stop {
            self.stop(&name, until).await;
        }
        changed
    }

    /// The actors between which a change must not be seen half done: those that
    /// swap, and those at the ends of wires that come or go with the swap.
    ///
    /// New wires alone need no halt, since a turn goes by the wires that were in
    /// force when it began; nor does one swap alone, since it is one assignment.
    fn to_hold(&self, change: &Change) -> BTreeSet<ActorName> {
        let mut names: BTreeSet<ActorName> =
            change.swap.iter().map(|(name, _)| name.clone()).collect();
        if let Some(after) = &change.wires
            && !names.is_empty()
        {
            let before = self.wires();
            let same =
                |wire: &Wire, def: &WireDef| *wire.from() == def.from && *wire.to() == def.to;
            let new = after.iter().filter(|def| !before.iter().any(|wire| same(wire, def)));
            let cut = before.iter().filter(|wire| !after.iter().any(|def| same(wire, def)));
            let ends = new
                .flat_map(|def| [&def.from, &def.to])
                .chain(cut.flat_map(|wire| [wire.from(), wire.to()]));
            names.extend(ends.map(|end| end.actor.clone()));
        }
        if names.len() < 2 {
            names.clear();
        }
        names
    }

    /// Halts an actor before its next turn.
    async fn hold(&self, name: &ActorName) -> Option<Arc<Actor>> {
        let actor = self.actor(name.as_str())?;
        let (held, is_held) = oneshot::channel();
        actor.commands.send(Command::Hold(held)).await.ok()?;
        // An actor that stops instead of holding takes no turns either.
        _ = is_held.await;
        Some(actor)
    }

    /// Starts an actor, or takes one up again that is being drained.
    async fn start(&self, start: Start, drain: Duration) -> Generation {
        let Start { name, mut ready, settings, mut state, was } = start;
        if let Some(actor) = self.actor(name.as_str()) {
            _ = actor.commands.send(Command::Settings(Box::new(settings.clone()))).await;
            match actor.swap(ready, drain).await.await {
                Ok(Ok(generation)) => {
                    actor.leaving.store(false, Ordering::Release);
                    return generation;
                }
                Ok(Err(back)) => ready = back,
                // Its task was torn down with the swap in its hands: the process is ending.
                Err(_) => return Generation::FIRST,
            }
            actor.stopped().await;
            self.bury(&actor);
        }
        let inherited = match was {
            Some(was) => {
                let is_source = matches!(ready, Ready::Source(_));
                self.inherit(&was, is_source, drain).await
            }
            None => None,
        };
        let mut mailbox = None;
        if let Some((its_mailbox, its_state)) = inherited {
            mailbox = Some(its_mailbox);
            state = Some(its_state);
        } else if let Some((kept, _)) = self.0.past.lock().states.remove(&name) {
            // What a removed actor left in memory is newer than anything on disk.
            state = Some(kept);
        }
        self.spawn(name, ready, settings, state.unwrap_or_default(), mailbox);
        Generation::FIRST
    }

    /// Ends an actor that goes on under another name, and gives what it leaves.
    ///
    /// A source has nothing to inherit and nothing to do with a mailbox: there the
    /// old actor is drained like one that is removed.
    async fn inherit(
        &self,
        was: &ActorName,
        heir_is_source: bool,
        drain: Duration,
    ) -> Option<(Arc<Mailbox>, State)> {
        let actor = self.actor(was.as_str())?;
        if actor.is_source() || heir_is_source {
            actor.drain(Instant::now() + drain).await;
            actor.stopped().await;
            self.bury(&actor);
            return None;
        }
        actor.leaving.store(true, Ordering::Release);
        actor.shared.kill.cancel();
        actor.stopped().await;
        let mut past = self.0.past.lock();
        self.0.actors.remove(was);
        past.meters.add(actor.meters());
        for wire in actor.shared.routes.load().all() {
            past.retiring.push(Arc::clone(wire));
            self.finish_wire(wire);
        }
        Some((Arc::clone(actor.mailbox()), actor.state()))
    }

    /// Starts another actor in the place of one that has ended.
    async fn replace(&self, actor: &Arc<Actor>, ready: Ready) -> Generation {
        actor.stopped().await;
        self.bury(actor);
        let state = self.0.past.lock().states.remove(actor.name());
        let state = state.map(|(state, _)| state).unwrap_or_default();
        self.spawn(actor.name().clone(), ready, (*actor.settings()).clone(), state, None);
        Generation::FIRST
    }

    fn spawn(
        &self,
        name: ActorName,
        ready: Ready,
        settings: Settings,
        state: State,
        mailbox: Option<Arc<Mailbox>>,
    ) {
        let bounds = bounds_of(&settings);
        let mailbox = match mailbox {
            Some(mailbox) => {
                mailbox.set_bounds(bounds);
                mailbox
            }
            None => Arc::new(Mailbox::new(bounds)),
        };
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
            generation: Generation::FIRST,
            digest,
            version,
            component: metadata.component.clone(),
        };
        let shared = Arc::new(Shared {
            name: name.clone(),
            mailbox,
            routes: ArcSwap::default(),
            max_hops: Arc::new(AtomicU32::new(settings.max_hops)),
            settings: ArcSwap::from_pointee(settings),
            status: watch::channel(status).0,
            state: Mutex::new(state),
            meters: Meters::default(),
            memory: AtomicU64::new(0),
            kill: self.0.kill.child_token(),
            events: Arc::clone(&self.0.events),
            sinks: self.0.sinks.clone(),
        });
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let kind = match ready {
            Ready::Engine { program, engine, log, .. } => {
                let task = ActorTask::new(Arc::clone(&shared), receiver, program, engine, log);
                let run = async move {
                    let _end = end;
                    task.run().await;
                };
                self.0.tasks.spawn_on(run, &self.0.turns);
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
                let run = async move {
                    let _end = end;
                    task.run().await;
                };
                self.0.tasks.spawn_on(run, &self.0.turns);
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
        self.0.actors.insert(name.clone(), Arc::new(actor));
        info!(actor = %name, digest = %digest.short(), "actor started");
        self.0.events.record(EventKind::Started {
            actor: name,
            generation: Generation::FIRST.number(),
            digest,
        });
    }

    /// Drains an actor in the background; what is left of it goes into the past books.
    async fn stop(&self, name: &ActorName, until: Instant) {
        let Some(actor) = self.actor(name.as_str()) else { return };
        actor.drain(until).await;
        let system = self.clone();
        self.0.tasks.spawn(async move {
            actor.stopped().await;
            system.bury(&actor);
        });
    }

    /// Takes a stopped actor off the registry and keeps its books and state.
    fn bury(&self, actor: &Arc<Actor>) {
        let mut past = self.0.past.lock();
        let same = |_: &ActorName, a: &Arc<Actor>| Arc::ptr_eq(a, actor);
        if self.0.kill.is_cancelled() || self.0.actors.remove_if(actor.name(), same).is_none() {
            return;
        }
        past.books.deliveries.add(&actor.mailbox().counts());
        past.meters.add(actor.meters());
        past.retiring.extend(actor.shared.routes.load().all().cloned());
        past.sweep();
        let now = Instant::now();
        past.states.retain(|_, (_, since)| now.duration_since(*since) < STATE_KEPT);
        past.states.insert(actor.name().clone(), (actor.state(), now));
    }

    /// Makes the wires what `wires` says. Wires that stay are the same objects, so
    /// their books and what waits on them stay too.
    fn rewire(&self, wires: &[WireDef], stopping: &[ActorName]) {
        let before = self.wires();
        let mut after: Vec<Arc<Wire>> = Vec::new();
        for def in wires {
            let Some(target) = self.actor(def.to.actor.as_str()) else { continue };
            let old = before.iter().find(|wire| {
                *wire.from() == def.from && *wire.to() == def.to && wire.ends_at(target.mailbox())
            });
            match old {
                Some(wire) => {
                    wire.set_overflow(def.overflow);
                    after.push(Arc::clone(wire));
                }
                None => {
                    let Some(sender) = self.actor(def.from.actor.as_str()) else { continue };
                    let entry = match sender.kind {
                        Kind::Engine => Entry::Wire,
                        Kind::Source(_) => Entry::Connector,
                    };
                    after.push(Arc::new(Wire::new(
                        def.from.clone(),
                        def.to.clone(),
                        WireTarget {
                            mailbox: Arc::clone(target.mailbox()),
                            max_hops: Arc::clone(&target.shared.max_hops),
                        },
                        def.overflow,
                        entry,
                        self.0.sinks.clone(),
                    )));
                }
            }
        }
        // An actor that is on its way out keeps its outgoing wires until it is empty,
        // and works off what its own mailbox holds.
        let leaving = |name: &ActorName| {
            stopping.contains(name) || self.actor(name.as_str()).is_none_or(|actor| actor.leaving())
        };
        let stays = |wire: &Arc<Wire>| after.iter().any(|w| Arc::ptr_eq(w, wire));
        let cut: Vec<&Arc<Wire>> =
            before.iter().filter(|wire| !stays(wire) && !leaving(&wire.from().actor)).collect();
        {
            let mut past = self.0.past.lock();
            for actor in self.actors().iter().filter(|actor| !leaving(actor.name())) {
                let mine = after.iter().filter(|wire| wire.from().actor == *actor.name()).cloned();
                actor.shared.routes.store(Arc::new(Routes::new(mine)));
            }
            past.retiring.extend(cut.iter().map(|wire| Arc::clone(wire)));
            past.sweep();
        }
        cut.iter().for_each(|wire| self.finish_wire(wire));
        let lost: BTreeSet<&PortRef> = cut.iter().map(|wire| wire.to()).collect();
        for port in lost {
            if !leaving(&port.actor) && !after.iter().any(|wire| wire.to() == port) {
                self.expel(port);
            }
        }
        self.rejoin(&after);
    }

    /// Sees in the background to it that what waits on a cut wire arrives.
    fn finish_wire(&self, wire: &Arc<Wire>) {
        let (kill, wire) = (self.0.kill.clone(), Arc::clone(wire));
        let finished = async move {
            tokio::select! {
                () = wire.drain() => {}
                // What is left stays where it is, to be counted.
                () = kill.cancelled() => {}
            }
        };
        self.0.tasks.spawn_on(finished, &self.0.turns);
    }

    /// A port lost its last wire: what waits for it are dead letters.
    fn expel(&self, port: &PortRef) {
        let Some(actor) = self.actor(port.actor.as_str()) else { return };
        for envelope in actor.mailbox().expel(Some(&port.port)) {
            self.0.sinks.waits.died(envelope.correlation, &Reason::Unwired);
            let digest = Some(actor.status().digest);
            self.0.sinks.dead.put(&port.actor, &envelope, Reason::Unwired, digest, 0);
        }
    }

    /// Tells every join which inports it waits for: the required ones that have a
    /// wire, or every one that has a wire where none is required.
    fn rejoin(&self, wires: &[Arc<Wire>]) {
        // Also where a message is a turn by itself: the actor may be about to hear
        // that it is to join.
        for actor in self.actors() {
            let metadata = actor.metadata();
            let wired = |name: &PortName| {
                wires.iter().any(|w| w.to().actor == *actor.name() && w.to().port == *name)
            };
            let ports = metadata.inports.iter().filter(|port| wired(&port.name));
            let (required, optional): (Vec<_>, Vec<_>) = ports.partition(|port| port.required);
            let join = if required.is_empty() { optional } else { required };
            actor.mailbox().set_join(join.into_iter().map(|port| port.name.clone()).collect());
        }
    }

    /// Refuses messages from outside and stops the sources: the flow can only empty.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        // No source begins any more, and what those that run have put out is
        // delivered for as long as the stop allows.
        self.0.gate.send_replace(false);
        let until = Instant::now() + NO_HURRY;
        for actor in self.actors() {
            if matches!(actor.kind, Kind::Source(_)) {
                _ = actor.commands.send(Command::Drain { until }).await;
            }
        }
    }

    /// Waits until no message is queued, in hand or on a wire, at the latest until then.
    /// Returns how many are left.
    pub async fn drained(&self, until: Instant) -> u64 {
        loop {
            let books = self.books();
            let left = books.deliveries.queued + books.deliveries.in_flight + books.wires.pending;
            if left == 0 || Instant::now() >= until {
                return left;
            }
            time::sleep(QUIET_CHECK.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Stops every actor where it is. What is queued stays queued.
    pub async fn kill(&self) {
        self.0.kill.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
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

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state.lock().clone()
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

    /// Returns when its task has ended.
    async fn stopped(&self) {
        self.ended.cancelled().await;
    }

    /// Whether it was told to stop.
    fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Tells it to work off what it has and to stop, at the latest then.
    async fn drain(&self, until: Instant) {
        self.leaving.store(true, Ordering::Release);
        _ = self.commands.send(Command::Drain { until }).await;
    }

    /// Asks for a swap; the receiver tells when it is done. An actor that would have
    /// to become a source, or a source another actor, has `drain` to end.
    async fn swap(&self, ready: Ready, drain: Duration) -> oneshot::Receiver<Swapped> {
        let (done, receiver) = oneshot::channel();
        match (ready, &self.kind) {
            (Ready::Engine { program, engine, version, log }, Kind::Engine) => {
                self.metadata.store(Arc::new(program.metadata().clone()));
                let swap = Box::new(Swap { program, version, engine, log, done });
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

/// Names for an error message, or `none`.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
