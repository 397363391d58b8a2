//! Actors that have no mailbox and put messages out of their own accord.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    ActorState, Digest, EventKind, Generation, Message, Metadata, PortName, Ready,
    actor::{Command, Shared, Swapped},
    dead_letter::Reason,
    wire::Wire,
};

/// The pause before a source that failed is run again; doubled up to a minute.
const FIRST_OUTAGE: Duration = Duration::from_secs(1);

/// The longest such pause.
const LONGEST_OUTAGE: Duration = Duration::from_secs(60);

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

/// Where a source puts its messages.
#[derive(Clone)]
pub struct Emitter {
    shared: Arc<Shared>,
    paused: watch::Receiver<bool>,
}

impl Emitter {
    /// Puts a message on every wire of `port`, and returns when all have taken it.
    ///
    /// A full mailbox makes the source wait: that is how pressure reaches it. A
    /// port without a wire takes everything, and it is counted as unrouted.
    pub async fn emit(&self, port: &PortName, message: Message) {
        let mut paused = self.paused.clone();
        // The sender lives as long as the task that polls this.
        _ = paused.wait_for(|paused| !paused).await;
        let routes = self.shared.routes.load_full();
        let mut waiting: Vec<Arc<Wire>> = Vec::new();
        self.shared.emit(&routes, None, port, &message, &mut waiting);
        self.shared.meters.turns_ok.add(1);
        if !waiting.is_empty() {
            let began = Instant::now();
            self.shared.set_state(ActorState::Blocked, None);
            join_all(waiting.iter().map(|wire| wire.drain())).await;
            self.show();
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.shared.meters.blocked_millis.add(millis);
        }
    }

    /// Shows that the source runs, or that an operator has halted it.
    fn show(&self) {
        let paused = *self.paused.borrow();
        let state = if paused { ActorState::Paused } else { ActorState::Active };
        self.shared.set_state(state, None);
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
#[derive(Clone, Copy)]
enum Phase {
    /// The source runs, or will when the gate opens.
    Running,
    /// It failed and is run again then.
    Resting(Instant),
    /// It has put everything out.
    Finished,
}

impl SourceTask {
    pub(crate) async fn run(mut self) {
        let (pause, paused) = watch::channel(false);
        let emitter = Emitter { shared: Arc::clone(&self.shared), paused };
        let mut outage = FIRST_OUTAGE;
        let mut phase = Phase::Running;
        loop {
            let work = self.work(phase, emitter.clone());
            tokio::pin!(work);
            // Commands that do not end the source's work are obeyed beside it.
            phase = loop {
                tokio::select! {
                    biased;
                    () = self.shared.kill.cancelled() => return self.end(Instant::now()).await,
                    command = self.commands.recv() => match command {
                        None => return self.end(Instant::now()).await,
                        Some(Command::Drain { until }) => return self.end(until).await,
                        // A source that runs must not begin again: it would send all twice.
                        Some(Command::Retry) if self.rests() => break Phase::Running,
                        Some(command) => self.obey(command, &pause),
                    },
                    Some(swap) = self.swaps.recv() => {
                        self.swap(swap);
                        outage = FIRST_OUTAGE;
                        break Phase::Running;
                    }
                    result = &mut work => break match result {
                        Ok(()) => self.finished(),
                        Err(error) => {
                            let until = Instant::now() + outage;
                            outage = (outage * 2).min(LONGEST_OUTAGE);
                            self.failed(&error, until)
                        }
                    },
                }
            };
        }
    }

    /// What is to be done in a phase, holding nothing of the task.
    fn work(
        &self,
        phase: Phase,
        emitter: Emitter,
    ) -> impl Future<Output = Result<(), SourceError>> + use<> {
        let source = Arc::clone(&self.source);
        let (mut gate, wired) = (self.gate.clone(), self.wired.clone());
        async move {
            wired.cancelled().await;
            match phase {
                // A gate without a sender means that the system is going.
                Phase::Running if gate.wait_for(|open| *open).await.is_ok() => {}
                Phase::Running | Phase::Finished => std::future::pending().await,
                Phase::Resting(until) => time::sleep_until(until).await,
            }
            emitter.show();
            source.run(emitter).await
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
            Command::Retry | Command::Swap(_) | Command::Drain { .. } => {}
        }
    }

    /// Whether it has failed and waits to be run again.
    fn rests(&self) -> bool {
        self.shared.status.borrow().state == ActorState::Failed
    }

    fn finished(&self) -> Phase {
        let why = Some("the source has nothing more to send".into());
        self.shared.set_state(ActorState::Active, why);
        info!(actor = %self.shared.name, "source finished");
        Phase::Finished
    }

    fn failed(&self, error: &SourceError, until: Instant) -> Phase {
        warn!(actor = %self.shared.name, %error, "source failed and will be tried again");
        let (actor, why) = (self.shared.name.clone(), error.to_string());
        self.shared.events.record(EventKind::Failed { actor, why });
        self.shared.set_state(ActorState::Failed, Some(error.to_string()));
        Phase::Resting(until)
    }

    fn pause(&self, pause: &watch::Sender<bool>, on: bool) {
        pause.send_replace(on);
        let actor = self.shared.name.clone();
        let (state, event) = if on {
            (ActorState::Paused, EventKind::Paused { actor })
        } else {
            (ActorState::Active, EventKind::Resumed { actor })
        };
        self.shared.set_state(state, None);
        self.shared.events.record(event);
    }

    fn swap(&mut self, swap: SourceSwap) {
        let digest = swap.source.digest();
        self.source = swap.source;
        let mut generation = Generation::FIRST;
        let mut from = digest;
        self.shared.status.send_modify(|status| {
            generation = status.generation.next();
            from = status.digest;
            status.generation = generation;
            status.digest = digest;
        });
        let actor = self.shared.name.clone();
        let generation_number = generation.number();
        self.shared.events.record(EventKind::Swapped {
            actor,
            generation: generation_number,
            from,
            digest,
            queued: 0,
        });
        // The reloader may have stopped waiting; the swap stands all the same.
        _ = swap.done.send(Ok(generation));
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
        self.shared.set_state(ActorState::Stopped, None);
        info!(%actor, "source stopped");
        self.shared.events.record(EventKind::Stopped { actor, dead_lettered: 0 });
    }
}
