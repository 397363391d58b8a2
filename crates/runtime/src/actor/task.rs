//! The loop that takes messages from a mailbox to an engine.
//!
//! An actor is one task. It alone takes from the mailbox, and it has at most one
//! engine at a time. The mailbox is not part of either: what becomes of an engine,
//! a swap, a trap, no engine at all, leaves every message where it is and in order.
//!
//! Commands are obeyed between two turns. In a turn the task waits for its end and
//! for nothing else but being killed, so "between two turns" is simply where
//! commands are taken.

mod on_trial;
mod set_state;
mod undeclared;

use std::{
    error::Error,
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::set_state::NewState;

use self::{
    on_trial::{Consulted, Replacing},
    undeclared::Undeclared,
};
use super::{
    ActorState, Command, ERROR_PORT, Identity, Replaced, Shared, Swap,
    probation::{Judge, Probation},
};
use crate::{
    ActorLog, Context, Direction, Effects, Engine, EventKind, Failure, FailureKind,
    InstantiateError, Message, MessageId, PortName, Program, Routes, SendMode, SendNow, Settings,
    Sighting, Span, SpanSink, Spanning, Turn, TurnLimits, TurnTrace,
    dead_letter::Reason,
    envelope::{Calendar, Lineage, Moment, Origin, unix_millis},
    mailbox::{Outcome, Taken},
    panic::{Boundary, Panic},
    span::{Collects, Spanned},
    supervisor::{FRUITLESS, Supervisor, Verdict},
    tap::Offer,
    wire::Wire,
};

/// How long an actor waits for room, or a join for a port, before an event says so.
const WAIT_WORTH_AN_EVENT: Duration = Duration::from_secs(10);

/// How often the task may break over the same message before that becomes a dead letter.
const MAX_BREAKAGES: u32 = 3;

/// An actor's task.
pub(crate) struct ActorTask {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    program: Arc<dyn Program>,
    engine: Option<Box<dyn Engine>>,
    log: ActorLog,
    supervisor: Supervisor,
    /// The trial of the generation that runs.
    probation: Option<Probation>,
    /// A trial that is passed, while what changed together with it is still on trial:
    /// its judge stays.
    passed: Option<Probation>,
    /// Wires that the last turn's outputs wait on. No turn starts before it is empty.
    outbox: Vec<Arc<Wire>>,
    /// Until when the actor leaves its mailbox alone, and why.
    rest: Option<Rest>,
    held: bool,
    paused: bool,
    draining: Option<Instant>,
    /// Outputs already warned about, of this generation.
    undeclared: Undeclared,
    /// Whether a swap has put a pause on messages and no turn has ended it yet.
    swapped: bool,
    /// Since when nothing but a swap can have kept the actor from its next message:
    /// the end of the last turn, or of the last wait for something else.
    free: Instant,
    calendar: Calendar,
    /// Times that this task has broken since the last turn that succeeded.
    breakages: u32,
    /// Ends the turn in hand; the same as others have.
    cut: CancellationToken,
    /// Whether what the turn in hand has come to is being moved. Where that breaks, some of it
    /// may have left, and the message must not be processed again.
    committing: bool,
}

struct Rest {
    until: Instant,
    state: ActorState,
    why: String,
}

/// What a turn is about.
struct About {
    payload: Vec<(PortName, Message)>,
    message: MessageId,
    trace: Option<TurnTrace>,
}

/// What the task does next.
enum Next {
    Command(Option<Command>),
    Flushed,
    Rested,
    Look,
    Tell,
    TrialTime,
    Stop,
}

impl ActorTask {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        program: Arc<dyn Program>,
        engine: Box<dyn Engine>,
        log: ActorLog,
        outbox: Vec<Arc<Wire>>,
    ) -> Self {
        let cut = shared.turn.lock().clone();
        Self {
            shared,
            commands,
            program,
            engine: Some(engine),
            log,
            supervisor: Supervisor::default(),
            probation: None,
            passed: None,
            outbox,
            rest: None,
            // No turn before the wires are in place: whoever starts it releases it.
            held: true,
            paused: false,
            draining: None,
            undeclared: Undeclared::default(),
            swapped: false,
            free: Instant::now(),
            calendar: Calendar::new(),
            breakages: 0,
            cut,
            committing: false,
        }
    }

    /// Runs until the actor is stopped or drained. Where the task itself breaks, it rests and
    /// goes on.
    pub(crate) async fn run(mut self) {
        while let Err(panic) = Boundary::Actor.hold(self.live()).await {
            self.broke(&panic);
        }
        self.end().await;
    }

    async fn live(&mut self) {
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
                        self.free = Instant::now();
                        self.show();
                    }
                    Next::Rested => {
                        self.end_rest();
                        self.show();
                    }
                    Next::Tell => self.tell(),
                    Next::TrialTime => {
                        self.weigh(|trial, rules| trial.time(rules, Instant::now()));
                    }
                    Next::Look => {}
                    Next::Command(None) | Next::Stop => break,
                }
            }
        }
        // Here, where a panic of theirs is caught.
        self.engine = None;
    }

    /// The task broke, which is an error of this program and not of the actor's. What is in
    /// hand stays there to be tried again, unless it may have been processed already, or it
    /// is what breaks the task.
    fn broke(&mut self, panic: &Panic) {
        self.breakages += 1;
        // Nobody knows how far it has come. One that breaks as it goes has gone all the same.
        _ = Boundary::Actor.catch(|| drop(self.engine.take()));
        if mem::take(&mut self.committing) || self.breakages >= MAX_BREAKAGES {
            self.give_up_message(&FailureKind::Trap(panic.to_string()), self.breakages);
            self.breakages = 0;
        }
        let rest = self.supervisor.outage();
        self.outage(rest, panic.to_string());
    }

    /// Whether nothing stands between the actor and its next message.
    fn may_take(&self) -> bool {
        self.outbox.is_empty()
            && !self.held
            && !self.paused
            && self.rest.is_none()
            && !self.is_falling()
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
        let rules = self.shared.settings.load().trial;
        let passes =
            self.probation.as_ref().zip(rules).and_then(|(p, rules)| p.trial.passes_at(&rules));
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
            () = until(passes), if passes.is_some() => Next::TrialTime,
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
        } else if let Some(fall) = self.probation.as_ref().and_then(|p| p.trial.fell()) {
            (ActorState::Resting, Some(format!("is being rolled back: {}", fall.why)))
        } else if let Some(rest) = &self.rest {
            (rest.state, Some(rest.why.clone()))
        } else if !self.outbox.is_empty() {
            (ActorState::Blocked, None)
        } else {
            (ActorState::Active, None)
        };
        self.shared.set_status(state, why);
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
                if settings.trial.is_none() {
                    self.end_trial();
                }
                self.shared.apply_settings(*settings);
            }
            Command::Hold(held) => {
                self.held = true;
                // Whoever asked may have given up; its release comes all the same.
                _ = held.send(());
            }
            Command::Release => self.held = false,
            Command::Pause => {
                if !mem::replace(&mut self.paused, true) {
                    self.show();
                    self.shared.events.record(EventKind::Paused { actor });
                }
            }
            Command::Resume => {
                if mem::take(&mut self.paused) {
                    self.free = Instant::now();
                    self.show();
                    self.shared.events.record(EventKind::Resumed { actor });
                }
            }
            Command::Retry => {
                self.supervisor.forgive();
                self.end_rest();
            }
            Command::EndTrial => self.end_trial(),
            Command::SetState(new) => self.set_state(*new),
            Command::Drain { until } => {
                self.draining = Some(until);
                // It will not be put back, so somebody has to do the work.
                if self.is_falling() {
                    self.end_trial();
                }
                self.show();
                self.shared.events.record(EventKind::Draining { actor });
            }
        }
    }

    /// Puts another generation in place of the present one. Nothing can fail here.
    fn swap(&mut self, swap: Swap) {
        let Swap { program, version, engine, log, module, trialing, state, done } = swap;
        let before = self.shared.status.borrow().generation;
        let queued = self.shared.mailbox.len() as u64;
        let old = self.engine.replace(engine);
        let program = mem::replace(&mut self.program, program);
        log.keep_in(&self.shared.onlookers.journal);
        self.log = log;
        self.supervisor.forgive();
        self.shared.is_up();
        self.end_rest();
        self.draining = None;
        self.undeclared = Undeclared::default();
        // What was in hand had failed on the old engine and is tried anew by the new one.
        self.shared.mailbox.release();
        self.shared.mailbox.reopen();
        self.swapped = queued > 0;
        let component = self.program.metadata().component.clone();
        let identity = Identity { digest: self.program.digest(), version, component, module };
        let generation = self.shared.swapped(identity, queued);
        let judge = Judge { program, generation: before };
        let mut lost_turns = 0;
        let replacing = match state {
            None => Replacing::Nothing,
            Some(state) => {
                let before = mem::replace(&mut *self.shared.state.lock(), state.clone());
                lost_turns = before.turns.saturating_sub(state.turns);
                Replacing::State(before)
            }
        };
        self.begin_trial(trialing, judge, replacing);
        self.show();
        // The reloader may have stopped waiting; the swap stands all the same.
        _ = done.send(Ok(Replaced { generation, lost_turns, _old: old }));
    }

    fn end_rest(&mut self) {
        if self.rest.take().is_some() {
            self.free = Instant::now();
        }
    }

    /// One turn, from the messages in hand to their leaving or staying.
    async fn take_turn(&mut self, taken: Taken) {
        let engine = match self.engine.take() {
            Some(engine) => engine,
            None => match self.instantiate().await {
                Ok(engine) => engine,
                Err(error) => return self.give_up(&error),
            },
        };
        let routes = self.shared.routes.load_full();
        let settings = self.shared.settings.load();
        let (timeout, mode) = (settings.timeout, settings.send);
        if self.shared.onlookers.taps.any() {
            self.show_to_taps(&taken.payload);
        }
        let Taken { payload, first, lineage, arrived, complete } = taken;
        let spans = self.shared.sinks.spans.clone();
        let span = spans.as_deref().and_then(|spans| Spanned::begin(spans, &lineage));
        let onward = span.as_ref().map(|span| Arc::clone(&span.onward));
        let lineage = Lineage { trace: onward.or(lineage.trace), ..lineage };
        let now = (mode == SendMode::Now).then(|| {
            let (shared, routes) = (Arc::clone(&self.shared), Arc::clone(&routes));
            Arc::new(SendAtOnce { shared, routes, lineage: lineage.clone() }) as Arc<dyn SendNow>
        });
        let trace = lineage.trace.clone().map(|trace| {
            let collects = span.as_ref().and(spans.as_ref()).map(|sink| self.collects(sink));
            TurnTrace::new(trace, collects)
        });
        let about = About { payload, message: first, trace };
        let context = self.context(about, &settings, now);
        drop(settings);

        let started = self.begin(arrived, complete);
        // A panic here is an error of this program in this one turn, and as bad for
        // the engine as a trap.
        let turn = Boundary::Turn.hold(engine.turn(context, started + timeout));
        let turn = tokio::select! {
            biased;
            turn = turn => turn,
            // The message stays in hand; only what `send = "now"` let out has left.
            () = self.cut.cancelled(), if !self.program.acts_outside() => return self.was_cut_short(),
        };
        // A turn that fails in a stop is for the next process to take.
        if self.shared.kill.is_cancelled() && !matches!(turn, Ok(Ok(_))) {
            return;
        }
        let ended = Instant::now();
        self.free = ended;
        self.shared.meters.turn_seconds.observe(ended.duration_since(started));

        let at = self.calendar.moment(ended);
        if let (Some(spans), Some(span)) = (spans, span) {
            let took = ended.duration_since(started);
            spans.take(self.span_of(span, first, at, took, &turn));
        }
        let origin = Origin { lineage: Some(lineage), at, judged: false };
        match turn {
            Ok(Ok((engine, effects))) => {
                let shared = Arc::clone(&self.shared);
                let sealed = shared.sealed.lock();
                if *sealed {
                    return;
                }
                shared.memory.store(engine.memory_bytes(), Ordering::Relaxed);
                self.engine = Some(engine);
                self.succeed(effects, &origin, &routes);
            }
            Ok(Err(failure)) => self.fail(failure, &origin, &routes).await,
            Err(panic) => {
                let kind = FailureKind::Trap(panic.to_string());
                let failure = Failure { kind, engine: None };
                self.fail(failure, &origin, &routes).await;
            }
        }
        if mode == SendMode::Now {
            let waiting = routes.all().filter(|wire| wire.pending() > 0).cloned();
            self.outbox = waiting.collect();
        }
    }

    /// The turn in hand was ended from outside: by the end of the actor, or since somebody has
    /// waited for it for as long as it may take. That is no failure of the message.
    #[cold]
    fn was_cut_short(&mut self) {
        if self.shared.kill.is_cancelled() {
            return;
        }
        self.cut = self.shared.kill.child_token();
        self.shared.turn.lock().clone_from(&self.cut);
        self.shared.mailbox.release();
        self.shared.meters.restarts.add(1);
        let actor = self.shared.name.clone();
        info!(%actor, "turn cut short for a change that waited for it; its message is tried again");
    }

    /// Shows what is in hand to those who tap.
    #[cold]
    fn show_to_taps(&self, payload: &[(PortName, Message)]) {
        let shared = &self.shared;
        let wanted = payload.iter().filter(|(port, message)| {
            match shared.onlookers.taps.offer(Direction::In, port, message.encoded_len()) {
                Offer::Wanted => true,
                Offer::Skipped(taps) => {
                    shared.meters.tap_skipped.add(taps);
                    false
                }
            }
        });
        let wanted: Vec<_> = wanted.map(|(port, _)| port).collect();
        if wanted.is_empty() {
            return;
        }
        let generation = shared.status.borrow().generation.number();
        let in_hand = shared.mailbox.in_hand().into_iter();
        for envelope in in_hand.filter(|envelope| wanted.contains(&&envelope.port)) {
            let sighting = Sighting {
                direction: Direction::In,
                generation,
                time: unix_millis(),
                id: Some(envelope.id),
                correlation: Some(envelope.correlation),
                attempt: self.supervisor.attempts() + 1,
                replayed: envelope.replayed,
                judged: envelope.judged,
                to: Vec::new(),
                port: envelope.port,
                message: envelope.message,
            };
            shared.meters.tap_skipped.add(shared.onlookers.taps.show(&sighting));
        }
    }

    /// Another engine of the same generation.
    async fn instantiate(&mut self) -> Result<Box<dyn Engine>, InstantiateError> {
        self.shared.set_status(ActorState::Initializing, None);
        let made = Boundary::Instantiate.hold(self.program.instantiate()).await;
        self.show();
        made.unwrap_or_else(|panic| Err(InstantiateError { why: panic.to_string() }))
    }

    /// How a turn failed, for its span.
    /// Counts what a turn had to wait for that begins now, and tells when that is.
    fn begin(&mut self, arrived: Instant, complete: Instant) -> Instant {
        let (now, meters) = (Instant::now(), &self.shared.meters);
        meters.wait_seconds.observe(now.saturating_duration_since(arrived));
        if mem::take(&mut self.swapped) {
            let possible = self.free.max(complete);
            meters.swap_pause_seconds.observe(now.saturating_duration_since(possible));
        }
        now
    }

    /// What the spans of requests that a turn makes have in common.
    fn collects(&self, sink: &Arc<dyn SpanSink>) -> Collects {
        Collects {
            sink: Arc::clone(sink),
            actor: self.shared.name.clone(),
            generation: self.shared.status.borrow().generation.number(),
            secrets: self.shared.secrets.clone(),
        }
    }

    /// What a collector is told of a turn that ended `at` that moment.
    fn span_of(
        &self,
        Spanned { onward, parent }: Spanned,
        message: MessageId,
        at: Moment,
        took: Duration,
        turn: &Result<Turn, Panic>,
    ) -> Span {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Span {
            context: onward.context,
            state: onward.state.clone(),
            parent,
            actor: self.shared.name.clone(),
            generation: self.shared.status.borrow().generation.number(),
            what: Spanning::Turn { message },
            began: at.unix_nanos().saturating_sub(took),
            ended: at.unix_nanos(),
            failure: self.failure_of(turn),
        }
    }

    fn failure_of(&self, turn: &Result<Turn, Panic>) -> Option<(&'static str, String)> {
        match turn {
            Ok(Ok(_)) => None,
            Ok(Err(failure)) => {
                let kind = self.shared.masked(failure.kind.clone());
                Some((kind.class(), kind.to_string()))
            }
            Err(panic) => Some(("trap", panic.to_string())),
        }
    }

    fn context(&self, about: About, settings: &Settings, now: Option<Arc<dyn SendNow>>) -> Context {
        let meta = || self.shared.mailbox.in_hand().first().map(crate::Envelope::meta);
        let About { payload, message, trace } = about;
        Context {
            payload,
            message,
            trace,
            state: self.shared.state.lock().state.clone(),
            meta: settings.context_meta.then(meta).flatten(),
            state_in_context: settings.context_state,
            limits: TurnLimits {
                output: settings.output,
                state: settings.state_size,
                host_memory: settings.host_memory,
            },
            now,
            host_memory: Some(Arc::clone(&self.shared.meters.host_memory)),
        }
    }

    fn succeed(&mut self, effects: Effects, origin: &Origin, routes: &Routes) {
        self.shared.meters.turns_ok.add(1);
        if let Some(passed) = &mut self.passed {
            passed.trial.went_on();
        }
        self.commit(effects, origin, routes);
        self.weigh(|trial, rules| trial.succeeded(rules, origin.at.instant));
    }

    /// Everything that a successful turn moves, with no wait in between: the
    /// message off the mailbox, the new state in, the outputs onto the wires.
    fn commit(&mut self, effects: Effects, origin: &Origin, routes: &Routes) {
        if self.supervisor.succeeded() {
            self.shared.is_up();
            let actor = self.shared.name.clone();
            self.shared.events.record(EventKind::Recovered { actor });
        }
        self.committing = true;
        if let Some(state) = effects.state {
            let mut held = self.shared.state.lock();
            held.state = state;
            held.turns += 1;
        }
        for (port, message) in effects.outputs {
            if !origin.judged {
                self.undeclared.tell(&self.shared, self.program.metadata(), &port, &message);
            }
            self.shared.emit(routes, origin, &port, message, &mut self.outbox);
        }
        self.complete(origin);
        (self.committing, self.breakages) = (false, 0);
    }

    /// The messages in hand have been processed.
    fn complete(&self, origin: &Origin) {
        self.shared.mailbox.finish(Outcome::Completed);
        let correlations = origin.lineage.iter().flat_map(Lineage::correlations);
        correlations.for_each(|correlation| self.shared.sinks.waits.less(correlation));
    }

    /// A turn failed: only what `send = "now"` let out has left, and the message is
    /// still in hand.
    async fn fail(&mut self, failure: Failure, origin: &Origin, routes: &Routes) {
        let actor = self.shared.name.clone();
        let Failure { kind, engine } = failure;
        let kind = self.shared.masked(kind);
        let meters = &self.shared.meters;
        match &kind {
            FailureKind::Trap(_) => meters.turns_trap.add(1),
            FailureKind::Timeout(_) => meters.turns_timeout.add(1),
            FailureKind::Turn(_) => meters.turns_error.add(1),
            FailureKind::Guest(_) => meters.turns_guest_error.add(1),
            FailureKind::Refused(_) => meters.turns_refused.add(1),
            FailureKind::Unavailable(_) | FailureKind::Remote(_) => {
                meters.turns_unavailable.add(1);
            }
        }
        self.engine = engine;
        if self.engine.is_none() {
            meters.restarts.add(1);
            let why = kind.to_string();
            self.shared.events.record(EventKind::Restarted { actor: actor.clone(), why });
        }
        if let Some(probation) = &mut self.probation {
            probation.trial.attempt_failed();
        }
        let error_port: PortName = ERROR_PORT.parse().expect("the port has a name");
        let answered = !routes.of(&error_port).is_empty();
        let settings = self.shared.settings.load_full();
        match self.supervisor.judge(&kind, &settings, answered) {
            Verdict::Retry { after } => {
                warn!(%actor, error = %kind, attempt = self.supervisor.attempts(), "turn failed and will be tried again");
                self.rest(after, ActorState::Resting, kind.to_string());
            }
            Verdict::Keep { rest } => {
                warn!(%actor, error = %kind, "turn failed; the message is kept");
                self.shared.mailbox.release();
                self.outage(rest, kind.to_string());
                if let (Some(rest), Some(pause)) = (&mut self.rest, kind.pause()) {
                    // Only shown: the outage is no other one because the pause is.
                    rest.why.push_str(&format!("; it asks to wait for {pause:?}"));
                }
            }
            Verdict::Answer => {
                debug!(%actor, error = %kind, "turn ended with an error for the error port");
                let text = match &kind {
                    FailureKind::Guest(text) | FailureKind::Refused(text) => Message::error(text),
                    other => Message::error(&other.to_string()),
                };
                self.shared.emit(routes, origin, &error_port, text, &mut self.outbox);
                self.complete(origin);
                self.message_left();
            }
            Verdict::GiveUp { attempts, rest } => {
                if self.consult(&kind, &settings, origin, routes).await == Consulted::Settled {
                    return;
                }
                self.give_up_message(&kind, attempts);
                self.message_left();
                if let Some(rest) = rest {
                    let why = format!(
                        "none of the last {FRUITLESS} messages succeeded; the last one {kind}"
                    );
                    warn!(%actor, "actor failed; its mailbox is kept");
                    self.outage(rest, why);
                }
            }
        }
    }

    /// What is in hand becomes a dead letter.
    fn give_up_message(&self, kind: &FailureKind, attempts: u32) {
        let in_hand = self.shared.mailbox.in_hand();
        if in_hand.is_empty() {
            return;
        }
        let actor = &self.shared.name;
        warn!(%actor, error = %kind, attempts, "message became a dead letter");
        let ran = Some(self.shared.ran());
        for envelope in &in_hand {
            let reason = Reason::Failed(kind.clone());
            self.shared.sinks.waits.died(envelope.correlation, &reason);
            self.shared.sinks.dead.put(actor, envelope, reason, ran, attempts);
        }
        self.shared.mailbox.finish(Outcome::DeadLettered);
    }

    /// No engine can be made: the mailbox is kept, and it is tried again later.
    fn give_up(&mut self, error: &InstantiateError) {
        let actor = self.shared.name.clone();
        warn!(%actor, error = error as &dyn Error, "no engine can be made; the mailbox is kept");
        // A message that is to be tried again stays in hand: no newer one pushes it out.
        if self.supervisor.attempts() == 0 {
            self.shared.mailbox.release();
        }
        let rest = self.supervisor.outage();
        self.outage(rest, error.to_string());
    }

    /// The actor has given up until it tries again.
    fn outage(&mut self, rest: Duration, why: String) {
        if self.supervisor.is_news(&why) {
            let actor = self.shared.name.clone();
            self.shared.events.record(EventKind::Failed { actor, why: why.clone() });
        }
        self.rest(rest, ActorState::Failed, why);
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
        let mut dead_lettered = 0;
        if self.shared.kill.is_cancelled() {
            self.shared.mailbox.release();
            *self.shared.left_on_wires.lock() = self.outbox;
        } else {
            dead_lettered = self.shared.close_mailbox();
            for wire in &self.outbox {
                wire.abandon(Reason::Removed);
            }
        }
        let actor = self.shared.name.clone();
        self.shared.set_status(ActorState::Stopped, None);
        info!(%actor, dead_lettered, "actor stopped");
        self.shared.events.record(EventKind::Stopped { actor, dead_lettered });
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

impl SendNow for SendAtOnce {
    fn send(&self, port: PortName, message: Message) {
        // Nobody empties the wires any more of a turn that could not be cancelled.
        if self.shared.kill.is_cancelled() {
            return;
        }
        let lineage = Some(self.lineage.clone());
        let origin = Origin { lineage, at: Moment::now(), judged: false };
        // The actor finds what waits by looking at the wires when the turn is over.
        self.shared.emit(&self.routes, &origin, &port, message, &mut Vec::new());
    }
}
