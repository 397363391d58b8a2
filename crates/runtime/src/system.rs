//! All actors and wires of a daemon, and the one place where they change.
//!
//! The present is a registry of actors; each actor has the wires that leave it. What
//! is gone has left its books in the past, so that the sum of both never falls.

mod change;
mod halt;
mod spawn;
mod wiring;
mod intake;
mod replay;
mod remains;
mod ledger;
mod past;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

pub use change::{Change, Changed, Ready, Start, Trialing, WireDef, WireEnds};
pub use halt::Halted;
pub use intake::SendError;
pub use ledger::{Books, Ledger};
pub use remains::{PutBack, Remains};
pub use replay::{Replayed, Stayed, Staying};
pub use spawn::SpawnError;

use crate::{
    Actor, ActorName, ActorState, Budget, DeadLetters, EpochState, EventKind, Events, Generation,
    Meters, Secrets, SpanSink, Wire,
    actor::{Command, Kind},
    onlookers::Gallery,
    panic::Boundary,
    system::past::Past,
    waits::Waits,
    wire::Sinks,
};

/// How often a stop looks whether the flow is empty.
const QUIET_CHECK: Duration = Duration::from_millis(2);

/// What sources that stop with the daemon have for what is on their wires: the stop ends it.
const NO_HURRY: Duration = Duration::from_secs(24 * 3600);

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
    secrets: Secrets,
    /// Opens when the daemon serves.
    gate: watch::Sender<bool>,
    /// Whether messages from outside are refused.
    closed: AtomicBool,
    past: Mutex<Past>,
    /// Actors that take no turn before what an earlier process left is back; none where
    /// nobody waits for that.
    held_back: Mutex<Option<Vec<Arc<Actor>>>>,
    /// Told when a trial has ended.
    trials: Arc<Notify>,
    gallery: Gallery,
    /// One difference to the wires at a time.
    wiring: Mutex<()>,
    /// One program that starts its own actors at a time.
    spawning: tokio::sync::Mutex<()>,
}

impl System {
    /// A system without actors, whose actors will run on `turns`.
    #[must_use]
    pub fn new(turns: Handle) -> Self {
        Self::traced(turns, None)
    }

    /// The same, and `spans` is told of each turn.
    #[must_use]
    pub fn traced(turns: Handle, spans: Option<Arc<dyn SpanSink>>) -> Self {
        let events: Arc<Events> = Arc::default();
        let sinks = Sinks {
            dead: Arc::new(DeadLetters::telling(Arc::clone(&events))),
            waits: Arc::new(Waits::default()),
            budget: Arc::default(),
            spans,
        };
        Self(Arc::new(Inner {
            actors: DashMap::new(),
            turns,
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
            events,
            sinks,
            secrets: Secrets::default(),
            gate: watch::channel(false).0,
            closed: AtomicBool::new(false),
            past: Mutex::default(),
            held_back: Mutex::default(),
            trials: Arc::default(),
            gallery: Gallery::default(),
            wiring: Mutex::default(),
            spawning: tokio::sync::Mutex::new(()),
        }))
    }

    /// Lets the sources begin: the daemon serves.
    pub fn open(&self) {
        self.0.gate.send_replace(true);
        let system = self.clone();
        let telling = async move { Boundary::Budget.keep(|| system.tell_of_budget()).await };
        self.0.tasks.spawn_on(telling, &self.0.turns);
    }

    /// Says in an event when the queues hold too much, and when they no longer do.
    async fn tell_of_budget(&self) {
        let budget = &self.0.sinks.budget;
        let mut over = budget.watch();
        // A daemon can have come over it before anybody was there to tell.
        let mut told = false;
        loop {
            Boundary::Budget.works();
            let is_over = *over.borrow_and_update();
            if is_over == told {
                tokio::select! {
                    () = self.0.kill.cancelled() => return,
                    // The sender lives as long as the budget.
                    _ = over.changed() => continue,
                }
            }
            told = is_over;
            let (used, limit) = (budget.used(), budget.limit());
            if is_over {
                warn!(
                    used,
                    limit, "queues hold more than `memory_budget`; sources and senders wait"
                );
                self.0.events.record(EventKind::OverBudget { used, limit });
            } else {
                info!(used, limit, "queues hold less than `memory_budget` again");
                self.0.events.record(EventKind::WithinBudget { used, limit });
            }
        }
    }

    /// Who collects spans of turns, if anybody does.
    #[must_use]
    pub fn spans(&self) -> Option<&Arc<dyn SpanSink>> {
        self.0.sinks.spans.as_ref()
    }

    /// What all queues together may hold.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0.sinks.budget
    }

    /// Values that no log, error or event shows.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// Returns when a trial has ended since it last returned, or was asked for. It says
    /// so to one who waits; [`Actor::trial`] has how each stands.
    pub async fn trial_ended(&self) {
        self.0.trials.notified().await;
    }

    /// Has an actor end its trial, if there is one: what it runs stays. It hears of that after
    /// the turn in hand, which nobody waits for.
    pub fn end_trial(&self, actor: &ActorName) {
        let Some(actor) = self.actor(actor.as_str()) else { return };
        self.0.tasks.spawn_on(async move { actor.end_trial().await }, &self.0.turns);
    }

    /// An earlier process has run an actor of that name: the generation that starts next
    /// follows on this one.
    pub fn follow_on(&self, actor: ActorName, last: Generation) {
        self.0.past.lock().recall(actor, last, Instant::now());
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

    /// What removed actors have left that persist their state, by name; nothing, where an
    /// actor that was renamed has taken it along.
    #[must_use]
    pub fn left_states(&self) -> Vec<(ActorName, Option<EpochState>)> {
        self.0.past.lock().left()
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

    /// Turns of all actors that have ended, well or not. May fall where an actor goes.
    #[must_use]
    pub fn turns_ended(&self) -> u64 {
        let ended = |actor: &Arc<Actor>| actor.meters().turns_ok.get() + actor.meters().failures();
        self.0.actors.iter().map(|actor| ended(&actor)).sum()
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

    /// Waits until nothing moves any more by itself, at the latest until then. Returns how
    /// many messages are left.
    ///
    /// What waits for an actor that is paused, rests or has failed does not move, and
    /// neither does half a join.
    pub async fn settled(&self, until: Instant) -> u64 {
        loop {
            let before = self.books();
            let moves = self.moves();
            let after = self.books();
            let left = after.deliveries.queued + after.deliveries.in_flight + after.wires.pending;
            // Nothing moved while it was looked at, so all of it was seen at one moment.
            let still = before.ever() == after.ever();
            if (still && !moves) || left == 0 || Instant::now() >= until {
                return left;
            }
            time::sleep(QUIET_CHECK.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Whether a message could go on without anybody's help.
    fn moves(&self) -> bool {
        let wires = self.wires();
        let takes = |actor: &Arc<Actor>| {
            let idle = matches!(
                actor.status().state,
                ActorState::Paused | ActorState::Resting | ActorState::Failed | ActorState::Stopped
            );
            let blocked = wires.iter().any(|w| w.from().actor == *actor.name() && w.pending() > 0);
            !idle && !blocked && actor.mailbox().can_take()
        };
        let retiring = self.0.past.lock().retiring.clone();
        wires.iter().chain(&retiring).any(|wire| wire.can_move()) || self.actors().iter().any(takes)
    }

    /// Stops every actor where it is. What is queued stays queued.
    pub async fn kill(&self) {
        self.0.kill.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
