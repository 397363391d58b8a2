//! Actors that have no mailbox and put messages out of their own accord.

use std::{
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    ActorName, ActorState, Answer, Digest, ERROR_PORT, Envelope, EventKind, Message, MessageId,
    Metadata, PortName, PortRef, Position, Ready, SetStateError, State, Trace, Type,
    actor::{Command, Identity, NewState, Replaced, Shared, Swapped},
    allowance::Allowance,
    dead_letter::{Ran, Reason},
    envelope::{Moment, Origin},
    panic::Boundary,
    position::Progress,
    supervisor::Supervisor,
    wire::Wire,
};

/// How long a source that puts nothing out must have run to count as recovered.
const RECOVERED: Duration = Duration::from_secs(60);

/// How often it is looked whether a source that had failed has put something out.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A connector that brings messages in from outside.
pub trait Source: Send + Sync {
    /// What identifies the connector and its version.
    fn digest(&self) -> Digest;

    /// Its ports.
    fn metadata(&self) -> &Metadata;

    /// Puts messages out until there are no more. Dropped at any await when the
    /// source is stopped, and called again when it is restarted after an error.
    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>>;
}

/// A source cannot go on. It is run again after a pause.
#[derive(Debug, Error)]
#[error("{why}")]
pub struct SourceError {
    /// What is wrong, and what to do.
    pub why: String,
}

/// An item that a source has read and that is not a valid message.
pub struct UnreadableItem<'a> {
    /// The port by which it would have left.
    pub port: &'a PortName,
    /// The item as text, which the dead letter keeps.
    pub what: &'a str,
    /// The place of the item, and the reason why it is not a valid message.
    pub why: &'a str,
}

/// Where a source puts its messages.
#[derive(Clone)]
pub struct Emitter {
    shared: Arc<Shared>,
    paused: watch::Receiver<bool>,
    /// How many messages wait for room.
    waiting: Arc<AtomicUsize>,
    /// Whether the source ends: it takes nothing in any more.
    leaving: Arc<AtomicBool>,
    /// One offer at a time, so that none takes the room that another has seen.
    offering: Arc<Mutex<()>>,
    /// Told when something was left on a wire by an offer.
    left: Arc<Notify>,
    /// The thing that the source waits for, if it does.
    absent: Arc<Mutex<Option<String>>>,
    /// The number of unreadable items that are kept.
    allowance: Arc<Mutex<Allowance>>,
}

/// A message that a source was offered from outside and that its wires do not take now.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OfferError {
    /// An actor is behind.
    #[error("the mailbox of `{0}` is full")]
    Full(ActorName),
    /// All queues of the system together hold as much as they may.
    #[error("the queues hold {used} bytes and `memory_budget` is {limit}")]
    OverBudget {
        /// Bytes that the queues hold.
        used: u64,
        /// Bytes that they may hold.
        limit: u64,
    },
    /// No wire leaves the port: nobody would ever see the message.
    #[error("nothing is wired to the port `{0}`")]
    Unwired(PortName),
    /// An operator has paused the source.
    #[error("`{0}` is paused")]
    Paused(ActorName),
    /// The source or the daemon is stopping.
    #[error("`{0}` is stopping and takes no more messages")]
    Leaving(ActorName),
}

/// A message that was taken, and what comes out for it where that was asked for.
pub type Taken = (MessageId, Option<oneshot::Receiver<Answer>>);

impl Emitter {
    /// Puts a message on every wire of `port`, and returns when all have taken it.
    ///
    /// A full mailbox makes the source wait: that is how pressure reaches it. A
    /// port without a wire takes everything, and it is counted as unrouted.
    pub async fn emit(&self, port: &PortName, message: Message) {
        self.emit_from(port, message, None).await;
    }

    /// The same, and notes how far the source has come with it: both or none.
    pub async fn emit_from(&self, port: &PortName, message: Message, come: Option<Position>) {
        let mut paused = self.paused.clone();
        // The sender lives as long as the task that polls this.
        _ = paused.wait_for(|paused| !paused).await;
        // The source that ran before may have left something on wires that are cut by now.
        let left = self.shared.left_on_wires.lock().clone();
        self.flush(&left).await;
        self.room().await;
        let routes = self.shared.routes.load_full();
        let mut wires: Vec<Arc<Wire>> = Vec::new();
        let origin = Origin { lineage: None, at: Moment::now(), judged: false };
        self.shared.emit(&routes, &origin, port, message, &mut wires);
        if come.is_some() {
            self.come_to(come);
        }
        self.shared.meters.turns_ok.add(1);
        self.shared.left_on_wires.lock().extend(wires.iter().cloned());
        self.flush(&wires).await;
    }

    /// Puts a message from outside on every wire of `port`, or on none of them. Never waits.
    ///
    /// What is taken is in the mailboxes, under the id that is given as its correlation; where
    /// another sender has taken a mailbox's last place in between, it waits on the wire, next
    /// in line, for as long as somebody [settles](Self::settle) it. With `answer`, what comes
    /// out of that port for it is told; whoever no longer wants it
    /// [forgets](crate::System::forget) it.
    ///
    /// # Errors
    /// The message was not taken, and why. Nothing of it is anywhere.
    pub fn offer(
        &self,
        port: &PortName,
        message: Message,
        trace: Option<Arc<Trace>>,
        answer: Option<PortRef>,
    ) -> Result<Taken, OfferError> {
        let shared = &self.shared;
        let _one_at_a_time = self.offering.lock();
        if self.leaving.load(Ordering::Acquire) {
            return Err(OfferError::Leaving(shared.name.clone()));
        }
        if *self.paused.borrow() {
            return Err(OfferError::Paused(shared.name.clone()));
        }
        let budget = &shared.sinks.budget;
        if budget.is_over() {
            let (used, limit) = (budget.used(), budget.limit());
            return Err(OfferError::OverBudget { used, limit });
        }
        let routes = shared.routes.load_full();
        let wires = routes.of(port);
        if wires.is_empty() {
            return Err(OfferError::Unwired(port.clone()));
        }
        let bytes = message.encoded_len();
        if let Some(full) = wires.iter().find(|wire| !wire.would_keep(bytes)) {
            return Err(OfferError::Full(full.to().actor.clone()));
        }
        let id = MessageId::new();
        let waits = &shared.sinks.waits;
        let receiver = answer.map(|answer| waits.open(id, answer));
        let now = Instant::now();
        let mut sighting = None;
        if shared.onlookers.taps.any() {
            let origin = Origin { lineage: None, at: Moment::now(), judged: false };
            sighting = shared.sighting(&origin, port, &message);
        }
        let mut is_first = true;
        for wire in wires {
            let entering =
                Envelope::entering(wire.to().port.clone(), message.clone(), trace.clone());
            let own = if is_first { id } else { entering.id };
            is_first = false;
            if let Some(sighting) = &mut sighting {
                sighting.to.push((wire.to().clone(), own));
            }
            if wire.emit(Envelope { id: own, correlation: id, ..entering }, now) {
                shared.left_on_wires.lock().push(Arc::clone(wire));
                self.left.notify_one();
            }
        }
        // The wait counts the entry itself as well, so that it does not end before all is out.
        waits.less(id);
        shared.show(sighting);
        shared.meters.turns_ok.add(1);
        Ok((id, receiver))
    }

    /// Brings on its way what offers have left on wires, for ever.
    pub async fn settle(&self) {
        loop {
            let left = self.shared.left_on_wires.lock().clone();
            self.flush(&left).await;
            self.left.notified().await;
        }
    }

    /// The actor that the source is.
    #[must_use]
    pub fn actor(&self) -> &ActorName {
        &self.shared.name
    }

    /// Returns when nothing waits on these wires.
    async fn flush(&self, wires: &[Arc<Wire>]) {
        if wires.is_empty() {
            return;
        }
        let began = Instant::now();
        let waits = Waiting::begin(self);
        join_all(wires.iter().map(|wire| wire.drain())).await;
        drop(waits);
        self.shared.left_on_wires.lock().retain(|wire| wire.pending() > 0);
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shared.meters.blocked_millis.add(millis);
    }

    /// Returns when the system's queues may take more.
    async fn room(&self) {
        let budget = &self.shared.sinks.budget;
        if budget.is_over() {
            let _waits = Waiting::begin(self);
            budget.room().await;
        }
    }

    /// Tells that something the source has read is no message: an `Error` with the reason and
    /// what was read leaves by the port `error` where that is wired, else it becomes a dead
    /// letter, as long as there are not too many. Notes how far the source has come with it.
    pub async fn refuse(&self, refused: &UnreadableItem<'_>, come: Option<Position>) {
        let shared = &self.shared;
        let UnreadableItem { port: _, what, why } = refused;
        shared.meters.unreadable.add(1);
        let error_port = PortName::from_str(ERROR_PORT).expect("the name of a port");
        if !shared.routes.load().of(&error_port).is_empty() {
            let text = format!("{why}: {what}");
            return self.emit_from(&error_port, Message::error(&text), come).await;
        }
        // The sender lives as long as the task that polls this.
        _ = self.paused.clone().wait_for(|paused| !paused).await;
        if self.allowance.lock().take(Instant::now()) {
            self.bury(refused);
        }
        if come.is_some() {
            self.come_to(come);
        }
    }

    /// Makes a dead letter of what the source cannot read.
    fn bury(&self, refused: &UnreadableItem<'_>) {
        let (shared, UnreadableItem { port, what, why }) = (&self.shared, refused);
        let text = serde_json::to_string(what).expect("a string can be encoded");
        let message = Message::new(Type::String, text).expect("it is a string");
        let envelope = Envelope::entering((*port).clone(), message, None);
        let ran = {
            let status = shared.status.borrow();
            Ran { digest: status.digest, generation: status.generation.number() }
        };
        let reason = Reason::Unreadable((*why).to_owned());
        shared.sinks.dead.put(&shared.name, &envelope, reason, Some(ran), 0);
    }

    /// Records something that has happened to what the source reads.
    pub fn record(&self, event: EventKind) {
        self.shared.events.record(event);
    }

    /// Notes how far the source has come where nothing was to be put out.
    pub fn come_to(&self, position: Option<Position>) {
        self.shared.progress.lock().come_to(position);
    }

    /// The source reads the thing of that name from now on. Tells how far it had come in it,
    /// even if it has read others since.
    #[must_use]
    pub fn enter(&self, name: &str) -> Option<Position> {
        self.shared.progress.lock().enter(name)
    }

    /// How far the source had come when it last ran: before an edit, a failure or a restart
    /// of the daemon. After a crash, where it was when states were last written.
    #[must_use]
    pub fn resume(&self) -> Option<Position> {
        self.shared.progress.lock().now()
    }

    /// How far the source had come in what has that number, under whatever name it read it.
    #[must_use]
    pub fn known(&self, of: [u64; 2]) -> Option<Position> {
        self.shared.progress.lock().known(of)
    }

    /// Shows that the source waits for something that is not there yet, until the guard is
    /// dropped, and tells of it.
    #[must_use]
    pub fn waits_for(&self, why: &str) -> Absence<'_> {
        *self.absent.lock() = Some(why.to_owned());
        self.show();
        let actor = self.shared.name.clone();
        info!(%actor, why, "source waits");
        self.shared.events.record(EventKind::Waiting { actor, why: why.to_owned() });
        Absence(self)
    }

    /// Shows what a source does that runs.
    fn show(&self) {
        let state = if *self.paused.borrow() {
            ActorState::Paused
        } else if self.waiting.load(Ordering::Acquire) > 0 {
            ActorState::Blocked
        } else {
            let absent = self.absent.lock().clone();
            let state = if absent.is_some() { ActorState::Waiting } else { ActorState::Active };
            return self.shared.set_status(state, absent);
        };
        self.shared.set_status(state, None);
    }
}

/// A source's wait for something that is not there yet.
pub struct Absence<'a>(&'a Emitter);

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        *self.0.absent.lock() = None;
        self.0.show();
    }
}

/// One message's wait for room, which ends also where the source is dropped in it.
struct Waiting<'a>(&'a Emitter);

impl<'a> Waiting<'a> {
    fn begin(emitter: &'a Emitter) -> Self {
        emitter.waiting.fetch_add(1, Ordering::AcqRel);
        emitter.show();
        Self(emitter)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.show();
    }
}

/// A source's task.
pub(crate) struct SourceTask {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) swaps: mpsc::Receiver<SourceSwap>,
    pub(crate) source: Arc<dyn Source>,
    /// Opens when the daemon serves: no source starts before.
    pub(crate) gate: watch::Receiver<bool>,
    /// Comes when its wires are in place: what it put out before would go nowhere.
    pub(crate) wired: CancellationToken,
}

/// Another source in place of a running one.
pub(crate) struct SourceSwap {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) done: oneshot::Sender<Swapped>,
}

/// What a source's task is about.
#[derive(Clone)]
enum Phase {
    /// The source runs, or will when the gate opens.
    Running,
    /// It failed, for that reason, and is run again then.
    Resting { until: Instant, why: String },
    /// It has put everything out.
    Finished,
}

/// The state of a source's task.
struct Life {
    emitter: Emitter,
    pause: watch::Sender<bool>,
    supervisor: Supervisor,
    phase: Phase,
}

/// Whether a source that had failed runs again, and it is not known yet whether it will last.
fn is_on_its_way(phase: &Phase, supervisor: &Supervisor) -> bool {
    matches!(phase, Phase::Running) && supervisor.has_given_up()
}

/// Returns when a source that runs from now on has put something out, or has run for so long
/// that it need not.
async fn proven(shared: Arc<Shared>) {
    let (began, before) = (Instant::now(), shared.meters.turns_ok.get());
    while began.elapsed() < RECOVERED && shared.meters.turns_ok.get() == before {
        time::sleep(LOOK_AGAIN).await;
    }
}

/// How a phase ended by itself.
enum Ended {
    /// The rest is over.
    Rested,
    /// The source has put everything out.
    Finished,
    /// It failed, after it had shown that it works or not.
    Failed { error: SourceError, worked: bool },
}

impl SourceTask {
    pub(crate) async fn run(mut self) {
        let (pause, paused) = watch::channel(false);
        let emitter = Emitter {
            shared: Arc::clone(&self.shared),
            paused,
            waiting: Arc::default(),
            leaving: Arc::default(),
            offering: Arc::default(),
            left: Arc::default(),
            absent: Arc::default(),
            allowance: Arc::default(),
        };
        let mut life =
            Life { emitter, pause, supervisor: Supervisor::default(), phase: Phase::Running };
        let until = loop {
            match Boundary::SourceTask.hold(self.live(&mut life)).await {
                Ok(until) => break until,
                // An error of this program, and not the source's.
                Err(panic) => {
                    let error = SourceError { why: panic.to_string() };
                    life.phase = self.failed(&error, &mut life.supervisor);
                }
            }
        };
        let Life { emitter, .. } = life;
        {
            // An offer that has begun is done before the wires are looked at.
            let _no_offer = emitter.offering.lock();
            emitter.leaving.store(true, Ordering::Release);
        }
        self.end(until).await;
    }

    /// Runs the source until the task is to end; gives until when it may take for that.
    async fn live(&mut self, life: &mut Life) -> Instant {
        let Life { emitter, pause, supervisor, phase } = life;
        loop {
            self.show(phase, emitter);
            let work = self.work(phase.clone(), emitter.clone());
            let proven = proven(Arc::clone(&self.shared));
            tokio::pin!(work, proven);
            // Commands that do not end the source's work are obeyed beside it.
            let next = loop {
                tokio::select! {
                    biased;
                    () = self.shared.kill.cancelled() => return Instant::now(),
                    command = self.commands.recv() => match command {
                        None => return Instant::now(),
                        Some(Command::Drain { until }) => return until,
                        // A source that runs must not begin again: it would send all twice.
                        Some(Command::Retry) if matches!(phase, Phase::Resting { .. }) => {
                            supervisor.forgive();
                            break Phase::Running;
                        }
                        Some(Command::SetState(new)) => {
                            if self.set_state(*new) {
                                break Phase::Running;
                            }
                        }
                        Some(command) => {
                            self.obey(command, pause);
                            self.show(phase, emitter);
                        }
                    },
                    Some(swap) = self.swaps.recv() => {
                        self.swap(swap);
                        supervisor.forgive();
                        self.shared.is_up();
                        break Phase::Running;
                    }
                    () = &mut proven, if is_on_its_way(phase, supervisor) => {
                        self.succeeded(supervisor);
                    }
                    ended = &mut work => break match ended {
                        Ended::Rested => Phase::Running,
                        Ended::Finished => self.finished(),
                        Ended::Failed { error, worked } => {
                            if worked {
                                self.succeeded(supervisor);
                            }
                            self.failed(&error, supervisor)
                        }
                    },
                }
            };
            *phase = next;
        }
    }

    /// What is to be done in a phase, holding nothing of the task.
    fn work(&self, phase: Phase, emitter: Emitter) -> impl Future<Output = Ended> + use<> {
        let source = Arc::clone(&self.source);
        let (mut gate, wired) = (self.gate.clone(), self.wired.clone());
        async move {
            wired.cancelled().await;
            match phase {
                // A gate without a sender means that the system is going.
                Phase::Running if gate.wait_for(|open| *open).await.is_ok() => {}
                Phase::Running | Phase::Finished => return std::future::pending().await,
                Phase::Resting { until, .. } => {
                    time::sleep_until(until).await;
                    return Ended::Rested;
                }
            }
            let (shared, began) = (Arc::clone(&emitter.shared), Instant::now());
            let before = shared.meters.turns_ok.get();
            // A panic here is an error of this program; the source is not the worse for it.
            let run = Boundary::Source.hold(source.run(emitter)).await;
            let run = run.unwrap_or_else(|panic| Err(SourceError { why: panic.to_string() }));
            match run {
                Ok(()) => Ended::Finished,
                Err(error) => {
                    let put_out = shared.meters.turns_ok.get() > before;
                    Ended::Failed { error, worked: put_out || began.elapsed() >= RECOVERED }
                }
            }
        }
    }

    fn obey(&self, command: Command, pause: &watch::Sender<bool>) {
        match command {
            Command::Pause => self.pause(pause, true),
            Command::Resume => self.pause(pause, false),
            Command::Settings(settings) => self.shared.apply_settings(*settings),
            // Whoever asked may have given up; then nobody misses the answer.
            Command::Hold(held) => _ = held.send(()),
            Command::Release => self.wired.cancel(),
            Command::Retry
            | Command::EndTrial
            | Command::SetState(_)
            | Command::Swap(_)
            | Command::Drain { .. } => {}
        }
    }

    /// Has the source go on from elsewhere: whether it is to run anew for that.
    fn set_state(&self, new: NewState) -> bool {
        let NewState { state, precondition, done } = new;
        let progress = Progress::of_state(&state);
        if progress.is_none() && state != State::default() {
            // Whoever asked may have given up; nothing has happened.
            _ = done.send(Err(SetStateError::NoPosition));
            return false;
        }
        if !precondition.holds() {
            _ = done.send(Err(SetStateError::Changed));
            return false;
        }
        let sealed = self.shared.sealed.lock();
        if *sealed {
            _ = done.send(Err(SetStateError::Stopped));
            return false;
        }
        let before = self.shared.state();
        let progress = progress.unwrap_or_default();
        let moved = {
            let mut place = self.shared.progress.lock();
            let moved = *place != progress;
            *place = progress;
            moved
        };
        self.shared.state.lock().state = State::default();
        drop(sealed);
        let set = self.shared.state_was_set(&before, &state, false);
        _ = done.send(Ok(set));
        moved
    }

    /// Shows what the source is doing. That it is paused hides the rest, and undoes nothing of it.
    fn show(&self, phase: &Phase, emitter: &Emitter) {
        let paused = *emitter.paused.borrow();
        match phase {
            Phase::Resting { why, .. } if !paused => {
                self.shared.set_status(ActorState::Failed, Some(why.clone()));
            }
            Phase::Finished if !paused => {
                let why = "the source has nothing more to send".into();
                self.shared.set_status(ActorState::Active, Some(why));
            }
            _ => emitter.show(),
        }
    }

    fn finished(&self) -> Phase {
        info!(actor = %self.shared.name, "source finished");
        Phase::Finished
    }

    fn failed(&self, error: &SourceError, supervisor: &mut Supervisor) -> Phase {
        warn!(actor = %self.shared.name, %error, "source failed and will be tried again");
        self.shared.meters.turns_unavailable.add(1);
        let (actor, why) = (self.shared.name.clone(), error.to_string());
        if supervisor.is_news(&why) {
            self.shared.events.record(EventKind::Failed { actor, why: why.clone() });
        }
        Phase::Resting { until: Instant::now() + supervisor.outage(), why }
    }

    /// The source works, and if it had failed before, that is told.
    fn succeeded(&self, supervisor: &mut Supervisor) {
        if supervisor.succeeded() {
            self.shared.is_up();
            let actor = self.shared.name.clone();
            self.shared.events.record(EventKind::Recovered { actor });
        }
    }

    fn pause(&self, pause: &watch::Sender<bool>, on: bool) {
        if pause.send_replace(on) == on {
            return;
        }
        let actor = self.shared.name.clone();
        let event = if on { EventKind::Paused { actor } } else { EventKind::Resumed { actor } };
        self.shared.events.record(event);
    }

    fn swap(&mut self, swap: SourceSwap) {
        let SourceSwap { source, done } = swap;
        self.source = source;
        let component = self.source.metadata().component.clone();
        let module = component.clone();
        let identity = Identity { digest: self.source.digest(), version: None, component, module };
        // The reloader may have stopped waiting; the swap stands all the same.
        let generation = self.shared.swapped(identity, 0);
        _ = done.send(Ok(Replaced { generation, lost_turns: 0, _old: None }));
    }

    /// What was already put out is delivered, as far as there is time, unless
    /// the system is being killed.
    async fn end(mut self, until: Instant) {
        self.commands.close();
        self.swaps.close();
        while let Some(swap) = self.swaps.recv().await {
            // Whoever asked starts the actor anew.
            _ = swap.done.send(Err(Ready::Source(swap.source)));
        }
        let routes = self.shared.routes.load_full();
        let flush = join_all(routes.all().map(|wire| wire.drain()));
        let killed = tokio::select! {
            biased;
            () = self.shared.kill.cancelled() => true,
            _ = time::timeout_at(until, flush) => false,
        };
        if !killed {
            routes.all().for_each(|wire| wire.abandon(Reason::Removed));
        }
        let actor = self.shared.name.clone();
        self.shared.set_status(ActorState::Stopped, None);
        info!(%actor, "source stopped");
        self.shared.events.record(EventKind::Stopped { actor, dead_lettered: 0 });
    }
}
