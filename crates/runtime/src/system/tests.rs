mod budget;
mod halting;
mod telling;
mod trial;

use std::{sync::atomic::AtomicUsize, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::*;
use crate::{
    ActorLog, ActorState, Answer, Context, Digest, Effects, Emitter, Engine, Entry, EventKind,
    Failure, FailureKind, Filter, Generation, InstantiateError, Message, Metadata, Overflow, Port,
    PortRef, Program, SendMode, Settings, Source, SourceError, State, Status, Trigger, Turn, Type,
};

/// What a fake engine does in a turn.
type Act = Arc<dyn Fn(&Context) -> Result<Effects, FailureKind> + Send + Sync>;

/// A program whose engines do what a closure says, and wait for a word first where asked to.
struct Fake {
    digest: u8,
    act: Act,
    gate: Option<watch::Receiver<bool>>,
    /// Whether its turns last until the gate opens, whatever their deadline: as those do that
    /// wait for a core.
    patient: bool,
    /// What the engine says of its memory.
    memory: Option<fn() -> u64>,
    /// Opens for engines to be made.
    made_when: Option<watch::Receiver<bool>>,
    metadata: Metadata,
    broken: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
}

struct FakeEngine {
    act: Act,
    gate: Option<watch::Receiver<bool>>,
    patient: bool,
    memory: Option<fn() -> u64>,
}

impl Program for Fake {
    fn digest(&self) -> Digest {
        Digest::new([self.digest; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        self.made.fetch_add(1, Ordering::Relaxed);
        let made: Result<Box<dyn Engine>, _> = if self.broken.load(Ordering::Relaxed) {
            Err(InstantiateError { why: "broken".into() })
        } else {
            let (act, gate) = (Arc::clone(&self.act), self.gate.clone());
            let (patient, memory) = (self.patient, self.memory);
            Ok(Box::new(FakeEngine { act, gate, patient, memory }))
        };
        let mut when = self.made_when.clone();
        Box::pin(async move {
            if let Some(when) = &mut when {
                when.wait_for(|open| *open).await.unwrap();
            }
            made
        })
    }
}

impl Engine for FakeEngine {
    fn memory_bytes(&self) -> u64 {
        self.memory.map_or(0, |memory| memory())
    }

    fn turn(mut self: Box<Self>, context: Context, deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            if let Some(gate) = self.gate.as_mut().filter(|_| self.patient) {
                if gate.wait_for(|open| *open).await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else if let Some(gate) = &mut self.gate
                && time::timeout_at(deadline, gate.wait_for(|open| *open)).await.is_err()
            {
                let kind = FailureKind::Timeout(Duration::from_secs(30));
                return Err(Failure { kind, engine: None });
            }
            match (self.act)(&context) {
                Ok(effects) => Ok((self as Box<dyn Engine>, effects)),
                Err(kind @ FailureKind::Trap(_)) => Err(Failure { kind, engine: None }),
                Err(kind) => Err(Failure { kind, engine: Some(self) }),
            }
        })
    }
}

fn metadata(inports: &[(&str, bool)]) -> Metadata {
    let port = |name: &str, required| Port {
        name: name.parse().unwrap(),
        description: String::new(),
        port_type: Type::Any,
        required,
    };
    Metadata {
        component: "Fake".into(),
        description: String::new(),
        inports: inports.iter().map(|(name, required)| port(name, *required)).collect(),
        outports: vec![port("out", false)],
        config_schema: None,
        version: None,
    }
}

fn fake(
    digest: u8,
    act: impl Fn(&Context) -> Result<Effects, FailureKind> + Send + Sync + 'static,
) -> Fake {
    Fake {
        digest,
        act: Arc::new(act),
        gate: None,
        patient: false,
        memory: None,
        made_when: None,
        metadata: metadata(&[("in", false)]),
        broken: Arc::default(),
        made: Arc::default(),
    }
}

/// Puts out what comes in, with a mark behind the text.
fn marker(digest: u8, mark: &'static str) -> Fake {
    fake(digest, move |context| Ok(out(&format!("{}{mark}", text(&context.payload[0].1)))))
}

fn out(text: &str) -> Effects {
    Effects { outputs: vec![("out".parse().unwrap(), string(text))], state: None }
}

fn string(text: &str) -> Message {
    Message::new(Type::String, serde_json::to_vec(text).unwrap()).unwrap()
}

fn text(message: &Message) -> String {
    serde_json::from_slice(message.data()).unwrap_or_else(|_| message.encode())
}

/// A system with an actor that keeps what it gets. Its books are checked when it drops.
struct Rig {
    system: System,
    seen: watch::Receiver<Vec<String>>,
    defs: Vec<WireDef>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let books = self.system.books();
            assert!(books.balanced(), "{books:#?}");
        }
    }
}

impl Rig {
    /// `sink` keeps what comes in.
    async fn new() -> Self {
        Self::of(System::new(Handle::current())).await
    }

    /// The same, of a system of its own.
    async fn of(system: System) -> Self {
        let (seen, receiver) = watch::channel(Vec::new());
        let sink = fake(255, move |context| {
            let got = context.payload.iter().map(|(_, message)| text(message));
            seen.send_modify(|seen| seen.extend(got));
            Ok(Effects::default())
        });
        let mut rig = Self { system, seen: receiver, defs: Vec::new() };
        rig.start("sink", sink, Settings::default(), &[]).await;
        rig
    }

    async fn ready(program: Fake) -> Ready {
        let engine = program.instantiate().await.unwrap();
        let log = ActorLog::new("log".parse().unwrap(), 100);
        let module = "fake".into();
        Ready::Engine { program: Arc::new(program), engine, version: None, log, module }
    }

    /// Starts an actor whose `out` goes to the `in` of `to`.
    async fn start(&mut self, name: &str, program: Fake, settings: Settings, to: &[&str]) {
        for to in to {
            self.defs.push(wire(&format!("{name}.out"), &format!("{to}.in")));
        }
        let ready = Self::ready(program).await;
        let name = name.parse().unwrap();
        let start = Start { name, ready, settings, state: None, was: None };
        self.apply(Change { start: vec![start], ..Change::default() }).await;
    }

    /// Applies a change with the rig's wires.
    async fn apply(&self, change: Change) -> Changed {
        let ends = |from: &PortRef, to: &PortRef| WireEnds { from: from.clone(), to: to.clone() };
        let wanted: Vec<_> = self.defs.iter().map(|def| ends(&def.from, &def.to)).collect();
        let wires = self.system.wires();
        let cut = wires.iter().map(|wire| ends(wire.from(), wire.to()));
        let cut = cut.filter(|ends| !wanted.contains(ends)).collect();
        soon(self.system.apply(Change { connect: self.defs.clone(), cut, ..change })).await
    }

    async fn swap(&self, name: &str, program: Fake) -> Generation {
        let name: ActorName = name.parse().unwrap();
        let swap = vec![(name.clone(), Self::ready(program).await)];
        let changed = soon(self.system.apply(Change { swap, ..Change::default() })).await;
        changed.generations[&name]
    }

    async fn stop(&mut self, name: &str, drain: Duration) {
        self.defs.retain(|w| w.from.actor.as_str() != name && w.to.actor.as_str() != name);
        let stop = vec![name.parse().unwrap()];
        self.apply(Change { stop, drain, ..Change::default() }).await;
    }

    #[track_caller]
    fn send(&self, to: &str, text: &str) {
        self.system.send(&to.parse().unwrap(), string(text), None).unwrap();
    }

    /// Waits until the sink has seen so many messages, and gives them.
    async fn seen(&mut self, n: usize) -> Vec<String> {
        soon(self.seen.wait_for(|seen| seen.len() >= n)).await.unwrap().clone()
    }

    async fn state(&self, name: &str, state: ActorState) -> Status {
        let mut watch = self.actor(name).watch();
        soon(watch.wait_for(|status| status.state == state)).await.unwrap().clone()
    }

    fn actor(&self, name: &str) -> Arc<Actor> {
        self.system.actor(name).unwrap()
    }

    /// Waits until nothing moves any more.
    async fn quiet(&self) {
        assert_eq!(self.system.drained(Instant::now() + HOUR).await, 0);
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.system.dead_letters().list().iter().map(|letter| letter.reason.class()).collect()
    }
}

/// Costs nothing, since the clock is paused.
const HOUR: Duration = Duration::from_secs(3600);

/// Turns a hang into a failure. The clock is paused, so an hour costs nothing.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    time::timeout(HOUR, future).await.expect("nothing happened for an hour")
}

fn wire(from: &str, to: &str) -> WireDef {
    WireDef { from: from.parse().unwrap(), to: to.parse().unwrap(), overflow: None }
}

fn small(mailbox: usize) -> Settings {
    Settings { mailbox, ..Settings::default() }
}

#[tokio::test(start_paused = true)]
async fn messages_cross_three_hops_byte_for_byte() {
    let mut rig = Rig::new().await;
    let echo = |n| {
        fake(n, |context| {
            let outputs = vec![("out".parse().unwrap(), context.payload[0].1.clone())];
            Ok(Effects { outputs, state: None })
        })
    };
    rig.start("c", echo(3), Settings::default(), &["sink"]).await;
    rig.start("b", echo(2), Settings::default(), &["c"]).await;
    rig.start("a", echo(1), Settings::default(), &["b"]).await;
    let data = r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#;
    let message = Message::new(Type::Object, data.to_owned()).unwrap();
    rig.system.send(&"a.in".parse().unwrap(), message.clone(), None).unwrap();
    assert_eq!(rig.seen(1).await, [message.encode()]);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn swap_keeps_the_queue() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "one");
    rig.send("a.in", "two");
    assert_eq!(rig.swap("a", marker(2, "-new")).await.number(), 2);
    rig.actor("a").resume().await;
    assert_eq!(rig.seen(2).await, ["one-new", "two-new"]);
    assert_eq!(rig.actor("a").status().digest, Digest::new([2; 32]));
}

#[tokio::test(start_paused = true)]
async fn the_turn_in_hand_finishes_on_the_old_engine() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let old = Fake { gate: Some(gate), ..marker(1, "-old") };
    rig.start("a", old, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.send("a.in", "two");
    let mailbox = Arc::clone(rig.actor("a").mailbox());
    while mailbox.counts().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    {
        let swap = rig.swap("a", marker(2, "-new"));
        tokio::pin!(swap);
        assert!(futures_util::poll!(&mut swap).is_pending());
        open.send(true).unwrap();
        swap.await;
    }
    assert_eq!(rig.seen(2).await, ["one-old", "two-new"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_turn_leaves_everything_as_it_was() {
    let mut rig = Rig::new().await;
    // Counts in its state, and traps at the first attempt at every message.
    let attempts = Arc::new(AtomicUsize::new(0));
    let program = fake(1, move |context| {
        if attempts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(FailureKind::Trap("unreachable".into()));
        }
        let n = context.state.text().len();
        let state = Some(State::new(format!("{}{}", &" ".repeat(n - 1), "{}")).unwrap());
        Ok(Effects { state, ..out(&format!("{}:{n}", text(&context.payload[0].1))) })
    });
    let made = Arc::clone(&program.made);
    rig.start("a", program, Settings::default(), &["sink"]).await;
    for message in ["one", "two", "three"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(3).await, ["one:2", "two:3", "three:4"]);
    // A trapped engine is never used again.
    assert_eq!(made.load(Ordering::Relaxed), 4);
    assert_eq!(rig.actor("a").meters().turns_trap.get(), 3);
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_always_traps_becomes_a_dead_letter_after_its_retries() {
    let mut rig = Rig::new().await;
    let program = fake(1, |context| match text(&context.payload[0].1).as_str() {
        "bad" => Err(FailureKind::Trap("unreachable".into())),
        good => Ok(out(good)),
    });
    rig.start("a", program, Settings::default(), &["sink"]).await;
    for message in ["one", "bad", "two"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(2).await, ["one", "two"]);
    rig.quiet().await;
    let letters = rig.system.dead_letters().list();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].attempts, letters[0].reason.class()), (3, "trap"));
    assert_eq!(rig.actor("a").mailbox().counts().dead_lettered, 1);
}

#[tokio::test(start_paused = true)]
async fn a_time_out_is_not_retried() {
    let mut rig = Rig::new().await;
    let (_open, gate) = watch::channel(false);
    let program = Fake { gate: Some(gate), ..marker(1, "") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["timeout"]);
    assert_eq!(rig.actor("a").meters().turns_timeout.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guest_error_goes_to_the_error_port_where_that_is_wired() {
    let mut rig = Rig::new().await;
    let guest = || fake(1, |_| Err(FailureKind::Guest("no such region".into())));
    rig.start("a", guest(), Settings::default(), &[]).await;
    rig.send("a.in", "one");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["guest-error"]);
    rig.defs.push(wire("a.error", "sink.in"));
    rig.apply(Change::default()).await;
    rig.send("a.in", "two");
    assert_eq!(rig.seen(1).await, ["no such region"]);
    assert_eq!(rig.reasons().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_gives_up_keeps_its_mailbox_and_tries_again() {
    let mut rig = Rig::new().await;
    let works = Arc::new(AtomicBool::new(false));
    let now_works = Arc::clone(&works);
    let program = fake(1, move |context| {
        if works.load(Ordering::Relaxed) {
            Ok(out(&text(&context.payload[0].1)))
        } else {
            Err(FailureKind::Turn("no result".into()))
        }
    });
    rig.start("a", program, Settings::default(), &["sink"]).await;
    for n in 0..12 {
        rig.send("a.in", &n.to_string());
    }
    let status = rig.state("a", ActorState::Failed).await;
    assert!(status.why.unwrap().contains("no result"));
    assert_eq!(rig.actor("a").mailbox().len(), 2);
    now_works.store(true, Ordering::Relaxed);
    assert_eq!(rig.seen(2).await, ["10", "11"]);
    assert_eq!(rig.reasons().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_cannot_be_made_loses_no_message() {
    let mut rig = Rig::new().await;
    let first = AtomicBool::new(true);
    let program = fake(1, move |context| {
        if first.swap(false, Ordering::Relaxed) {
            return Err(FailureKind::Trap("unreachable".into()));
        }
        Ok(out(&text(&context.payload[0].1)))
    });
    let broken = Arc::clone(&program.broken);
    rig.start("a", program, Settings::default(), &["sink"]).await;
    broken.store(true, Ordering::Relaxed);
    rig.send("a.in", "one");
    rig.state("a", ActorState::Failed).await;
    // It is to be tried again, so nothing newer may push it out.
    assert_eq!(rig.actor("a").mailbox().counts().in_flight, 1);
    broken.store(false, Ordering::Relaxed);
    rig.actor("a").retry().await;
    assert_eq!(rig.seen(1).await, ["one"]);
}

#[tokio::test(start_paused = true)]
async fn who_pauses_twice_has_paused_once() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.system.open();
    let actor = rig.actor("a");
    actor.resume().await;
    actor.pause().await;
    actor.pause().await;
    rig.state("a", ActorState::Paused).await;
    actor.resume().await;
    actor.resume().await;
    rig.send("a.in", "one");
    assert_eq!(rig.seen(1).await, ["one"]);
    assert_eq!(told(&rig, "a"), ["started", "paused", "resumed"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_connector_cannot_deliver_is_kept() {
    let mut rig = Rig::new().await;
    let there = Arc::new(AtomicBool::new(false));
    let now_there = Arc::clone(&there);
    let program = fake(1, move |context| {
        if there.load(Ordering::Relaxed) {
            return Ok(out(&text(&context.payload[0].1)));
        }
        Err(FailureKind::Unavailable("the disk is full".into()))
    });
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    let status = rig.state("a", ActorState::Failed).await;
    assert_eq!(status.why.unwrap(), "the disk is full");
    let failed = || rig.actor("a").meters().turns_unavailable.get();
    while failed() < 5 {
        time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    now_there.store(true, Ordering::Relaxed);
    assert_eq!(rig.seen(1).await, ["one"]);
    assert!(rig.reasons().is_empty());
    // An outage is told when it begins and when it ends, not each time that it is tried.
    assert_eq!(told(&rig, "a"), ["started", "failed", "recovered"]);
}

#[tokio::test(start_paused = true)]
async fn a_full_branch_does_not_hold_up_its_sibling_within_a_turn() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &[]).await;
    let twice = fake(1, |_| {
        let both = ["one", "two"].map(|text| ("out".parse().unwrap(), string(text)));
        Ok(Effects { outputs: both.to_vec(), state: None })
    });
    rig.start("a", twice, Settings::default(), &["slow", "sink"]).await;
    rig.send("a.in", "x");
    assert_eq!(rig.seen(2).await, ["one", "two"]);
    // The next turn waits until the outbox is empty.
    rig.send("a.in", "y");
    rig.state("a", ActorState::Blocked).await;
    assert_eq!(rig.actor("a").mailbox().counts().queued, 1);
    assert_eq!(rig.system.books().wires.pending, 1);
    open.send(true).unwrap();
    rig.seen(4).await;
    rig.quiet().await;
    assert_eq!(rig.actor("slow").mailbox().counts().completed, 4);
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_a_wire_keeps_its_order() {
    let mut rig = Rig::new().await;
    rig.start("slow", marker(9, ""), small(1), &["sink"]).await;
    let four = fake(1, |_| {
        let all = ["1", "2", "3", "4"].map(|text| ("out".parse().unwrap(), string(text)));
        Ok(Effects { outputs: all.to_vec(), state: None })
    });
    rig.start("a", four, Settings::default(), &["slow"]).await;
    rig.send("a.in", "x");
    assert_eq!(rig.seen(4).await, ["1", "2", "3", "4"]);
}

#[tokio::test(start_paused = true)]
async fn a_swap_goes_through_while_the_outbox_waits() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &["sink"]).await;
    rig.start("a", marker(1, "-old"), Settings::default(), &["slow"]).await;
    for message in ["1", "2", "3"] {
        rig.send("a.in", message);
    }
    rig.state("a", ActorState::Blocked).await;
    rig.swap("a", marker(2, "-new")).await;
    open.send(true).unwrap();
    assert_eq!(rig.seen(3).await, ["1-old", "2-old", "3-new"]);
}

#[tokio::test(start_paused = true)]
async fn overflow_drops_and_counts() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    let settings = Settings { overflow: Overflow::DropOldest, ..small(2) };
    rig.start("slow", slow, settings, &["sink"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["slow"]).await;
    for n in 0..5 {
        rig.send("a.in", &n.to_string());
        while rig.actor("a").mailbox().counts().completed <= n {
            tokio::task::yield_now().await;
        }
        // The first is in hand before the second comes.
        while rig.actor("slow").mailbox().counts().in_flight == 0 {
            tokio::task::yield_now().await;
        }
    }
    open.send(true).unwrap();
    assert_eq!(rig.seen(2).await, ["0", "4"]);
    rig.quiet().await;
    assert_eq!(rig.actor("slow").mailbox().counts().dropped, 3);
    // One dropped message a second is kept, the others are only counted.
    assert_eq!(rig.reasons(), ["overflow"]);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_loses_its_last_wire_gives_up_what_waits_for_it() {
    let mut rig = Rig::new().await;
    rig.start("b", marker(2, ""), Settings::default(), &["sink"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["b"]).await;
    rig.actor("b").pause().await;
    rig.state("b", ActorState::Paused).await;
    rig.send("a.in", "one");
    while rig.actor("b").mailbox().is_empty() {
        tokio::task::yield_now().await;
    }
    rig.defs.retain(|wire| wire.to.actor.as_str() != "b");
    rig.apply(Change::default()).await;
    assert_eq!(rig.reasons(), ["unwired"]);
    rig.send("a.in", "two");
    rig.actor("b").resume().await;
    rig.quiet().await;
    assert_eq!(rig.actor("a").meters().unrouted.get(), 1);
    assert!(rig.seen.borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removed_actor_works_off_its_mailbox_by_its_old_wires() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    for message in ["1", "2", "3"] {
        rig.send("a.in", message);
    }
    rig.actor("a").resume().await;
    rig.stop("a", HOUR).await;
    assert_eq!(rig.seen(3).await, ["1", "2", "3"]);
    while rig.system.actor("a").is_some() {
        tokio::task::yield_now().await;
    }
    rig.quiet().await;
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_removed_actor_cannot_work_off_in_time_is_kept_as_dead_letters() {
    let mut rig = Rig::new().await;
    let (_open, gate) = watch::channel(false);
    let program = Fake { gate: Some(gate), ..marker(1, "") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "one");
    rig.send("a.in", "two");
    rig.stop("a", Duration::from_secs(1)).await;
    while rig.system.actor("a").is_some() {
        time::advance(Duration::from_millis(100)).await;
    }
    assert_eq!(rig.reasons(), ["removed", "removed"]);
}

#[tokio::test(start_paused = true)]
async fn adding_a_removed_actor_again_cancels_its_drain() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, "-old"), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "one");
    rig.stop("a", HOUR).await;
    rig.state("a", ActorState::Draining).await;
    let refused = rig.system.send(&"a.in".parse().unwrap(), string("no"), None);
    assert!(matches!(refused, Err(SendError::Draining { .. })));
    rig.start("a", marker(2, "-new"), Settings::default(), &["sink"]).await;
    rig.actor("a").resume().await;
    rig.send("a.in", "two");
    assert_eq!(rig.seen(2).await, ["one-new", "two-new"]);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_removed_actor_is_taken_up_again() {
    let mut rig = Rig::new().await;
    let keeper = |n| {
        fake(n, |context| {
            let state = Some(State::new(r#"{"n":1}"#).unwrap());
            Ok(Effects { state, ..out(&format!("{:?}", context.state)) })
        })
    };
    rig.start("a", keeper(1), Settings::default(), &["sink"]).await;
    rig.send("a.in", "x");
    rig.quiet().await;
    rig.stop("a", HOUR).await;
    while rig.system.actor("a").is_some() {
        tokio::task::yield_now().await;
    }
    rig.start("a", keeper(1), Settings::default(), &["sink"]).await;
    rig.send("a.in", "x");
    assert_eq!(rig.seen(2).await, ["{}", r#"{"n":1}"#]);
}

#[tokio::test(start_paused = true)]
async fn an_actor_under_another_name_keeps_mailbox_and_state() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "one");
    let ready = Rig::ready(marker(2, "-b")).await;
    rig.defs = vec![wire("b.out", "sink.in")];
    let start = Start {
        name: "b".parse().unwrap(),
        ready,
        settings: Settings::default(),
        state: None,
        was: Some("a".parse().unwrap()),
    };
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    assert!(rig.system.actor("a").is_none());
    rig.actor("b").resume().await;
    assert_eq!(rig.seen(1).await, ["one-b"]);
    rig.quiet().await;
}

/// Puts out each word of what comes in.
fn words() -> Fake {
    fake(5, |context| {
        let words = text(&context.payload[0].1);
        let words = words.split(' ').map(|word| ("out".parse().unwrap(), string(word)));
        Ok(Effects { outputs: words.collect(), state: None })
    })
}

#[tokio::test(start_paused = true)]
async fn an_heir_puts_nothing_out_before_what_its_predecessor_left_on_wires() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &["sink"]).await;
    rig.start("a", words(), Settings::default(), &["slow"]).await;
    rig.send("a.in", "1 2 3 4");
    rig.send("a.in", "5 6");
    rig.state("a", ActorState::Blocked).await;
    for (was, name) in [("a", "b"), ("b", "c")] {
        rig.defs = vec![wire("slow.out", "sink.in"), wire(&format!("{name}.out"), "slow.in")];
        let start = vec![heir(name, Rig::ready(words()).await, was)];
        rig.apply(Change { start, ..Change::default() }).await;
    }
    open.send(true).unwrap();
    assert_eq!(rig.seen(6).await, ["1", "2", "3", "4", "5", "6"]);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_was_taken_up_again_can_be_renamed() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "one");
    rig.stop("a", HOUR).await;
    rig.start("a", marker(2, ""), Settings::default(), &["sink"]).await;
    rig.state("a", ActorState::Paused).await;
    rig.defs = vec![wire("b.out", "sink.in")];
    let start = vec![heir("b", Rig::ready(marker(3, "-b")).await, "a")];
    rig.apply(Change { start, ..Change::default() }).await;
    // It was paused, and is.
    rig.state("b", ActorState::Paused).await;
    rig.send("b.in", "two");
    assert_eq!(rig.actor("b").mailbox().len(), 2);
    rig.actor("b").resume().await;
    assert_eq!(rig.seen(2).await, ["one-b", "two-b"]);
    assert_eq!(rig.reasons(), Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_becomes_a_source_works_off_its_mailbox_before_others_are_held() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(1, "") };
    rig.start("a", slow, Settings::default(), &["sink"]).await;
    rig.start("b", marker(2, ""), Settings::default(), &["sink"]).await;
    for message in ["1", "2"] {
        rig.send("a.in", message);
    }
    rig.defs = vec![wire("a.out", "b.in"), wire("b.out", "sink.in")];
    let source = Ready::Source(Arc::new(CountTo(1, metadata(&[]))));
    let swap = vec![("a".parse().unwrap(), source)];
    let drain = Duration::from_secs(10);
    {
        let change = rig.apply(Change { swap, drain, ..Change::default() });
        tokio::pin!(change);
        assert!(futures_util::poll!(&mut change).is_pending());
        open.send(true).unwrap();
        change.await;
    }
    assert_eq!(rig.seen(2).await, ["1", "2"]);
    assert_eq!(rig.reasons(), Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn what_waits_on_a_cut_wire_to_a_port_without_another_is_unwired() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &["sink"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["slow"]).await;
    for message in ["1", "2"] {
        rig.send("a.in", message);
    }
    rig.state("a", ActorState::Blocked).await;
    rig.defs.retain(|wire| wire.from.actor.as_str() != "a");
    rig.apply(Change::default()).await;
    open.send(true).unwrap();
    assert_eq!(rig.seen(1).await, ["1"]);
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["unwired"]);
}

#[tokio::test(start_paused = true)]
async fn a_wire_that_stays_keeps_what_waits_on_it() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &["sink"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["slow"]).await;
    for message in ["1", "2", "3"] {
        rig.send("a.in", message);
    }
    rig.state("a", ActorState::Blocked).await;
    rig.start("other", marker(3, ""), Settings::default(), &["slow"]).await;
    assert_eq!(rig.system.books().wires.pending, 1);
    open.send(true).unwrap();
    assert_eq!(rig.seen(3).await, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_cut_wire_still_delivers_what_it_took() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(1), &["sink"]).await;
    rig.start("keep", marker(4, ""), Settings::default(), &["slow"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["slow"]).await;
    rig.send("a.in", "1");
    rig.send("a.in", "2");
    rig.state("a", ActorState::Blocked).await;
    rig.defs.retain(|wire| wire.from.actor.as_str() != "a");
    rig.apply(Change::default()).await;
    open.send(true).unwrap();
    assert_eq!(rig.seen(2).await, ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_join_takes_one_message_of_every_required_port() {
    let mut rig = Rig::new().await;
    let program = Fake {
        metadata: metadata(&[("left", true), ("right", true)]),
        ..fake(1, |context| {
            let all: Vec<_> = context.payload.iter().map(|(_, m)| text(m)).collect();
            Ok(out(&all.join("+")))
        })
    };
    let settings = Settings { trigger: Trigger::All, ..Settings::default() };
    rig.start("join", program, settings, &["sink"]).await;
    rig.start("l", marker(2, ""), Settings::default(), &[]).await;
    rig.start("r", marker(3, ""), Settings::default(), &[]).await;
    rig.defs.extend([wire("l.out", "join.left"), wire("r.out", "join.right")]);
    rig.apply(Change::default()).await;
    rig.send("l.in", "1");
    rig.send("l.in", "2");
    rig.send("r.in", "a");
    rig.send("r.in", "b");
    assert_eq!(rig.seen(2).await, ["1+a", "2+b"]);
    rig.quiet().await;
    assert_eq!(rig.actor("join").mailbox().counts().completed, 4);
}

#[tokio::test(start_paused = true)]
async fn a_runaway_loop_ends_as_a_dead_letter() {
    let mut rig = Rig::new().await;
    let settings = Settings { max_hops: 20, ..Settings::default() };
    rig.start("a", marker(1, ""), settings, &["a"]).await;
    rig.send("a.in", "x");
    rig.quiet().await;
    assert_eq!(rig.reasons(), ["max-hops"]);
    assert_eq!(rig.actor("a").meters().turns_ok.get(), 21);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_now_leaves_before_the_turn_ends() {
    let mut rig = Rig::new().await;
    let sent = Arc::new(AtomicBool::new(false));
    let program = fake(1, move |context| {
        if let Some(now) = &context.now {
            now.send("out".parse().unwrap(), string("progress"));
        }
        match sent.swap(true, Ordering::Relaxed) {
            false => Err(FailureKind::Trap("unreachable".into())),
            true => Ok(out("result")),
        }
    });
    let settings = Settings { send: SendMode::Now, ..Settings::default() };
    rig.start("a", program, settings, &["sink"]).await;
    rig.send("a.in", "x");
    // At least once across retries: that is what its name says.
    assert_eq!(rig.seen(3).await, ["progress", "progress", "result"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_the_first_message_of_the_same_correlation() {
    let mut rig = Rig::new().await;
    let program = fake(1, |context| match text(&context.payload[0].1).as_str() {
        "nothing" => Ok(Effects::default()),
        "bad" => Err(FailureKind::Turn("no result".into())),
        other => Ok(out(other)),
    });
    rig.start("b", marker(2, "!"), Settings::default(), &[]).await;
    rig.start("a", program, Settings::default(), &["b"]).await;
    let ask = |text: &str| {
        let (to, answer) = ("a.in".parse().unwrap(), "b.out".parse().unwrap());
        let (_, receiver) = rig.system.ask(&to, string(text), None, answer).unwrap();
        async move { soon(receiver).await.unwrap() }
    };
    assert!(matches!(ask("hello").await, Answer::Message(m) if text(&m) == "hello!"));
    assert!(matches!(ask("nothing").await, Answer::Nothing));
    assert!(matches!(ask("bad").await, Answer::Died(why) if why == "no result"));
    rig.quiet().await;
}

/// Counts up to a bound.
struct CountTo(u32, Metadata);

impl Source for CountTo {
    fn digest(&self) -> Digest {
        Digest::new([7; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.1
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            for n in 0..self.0 {
                out.emit(&"out".parse().unwrap(), string(&n.to_string())).await;
            }
            Ok(())
        })
    }
}

/// Says some words, after a while.
struct Says(&'static [&'static str], Metadata);

impl Says {
    const DELAY: Duration = Duration::from_millis(100);
}

impl Source for Says {
    fn digest(&self) -> Digest {
        Digest::new([8; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.1
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            time::sleep(Self::DELAY).await;
            for word in self.0 {
                out.emit(&"out".parse().unwrap(), string(word)).await;
            }
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_waits_for_the_gate_and_for_room() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(9, "") };
    rig.start("slow", slow, small(2), &["sink"]).await;
    rig.defs.push(wire("count.out", "slow.in"));
    let start = Start {
        name: "count".parse().unwrap(),
        ready: Ready::Source(Arc::new(CountTo(50, metadata(&[])))),
        settings: Settings::default(),
        state: None,
        was: None,
    };
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    tokio::task::yield_now().await;
    assert_eq!(rig.actor("slow").mailbox().len(), 0);
    rig.system.open();
    rig.state("count", ActorState::Blocked).await;
    assert_eq!(rig.actor("slow").mailbox().len(), 2);
    open.send(true).unwrap();
    let expected: Vec<_> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(rig.seen(50).await, expected);
    assert_eq!(rig.system.books().deliveries.accepted[Entry::Connector as usize], 50);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_drains_the_flow() {
    let mut rig = Rig::new().await;
    rig.start("b", marker(2, "b"), small(3), &["sink"]).await;
    rig.start("a", marker(1, "a"), Settings::default(), &["b"]).await;
    for n in 0..100 {
        rig.send("a.in", &n.to_string());
    }
    rig.system.close().await;
    let refused = rig.system.send(&"a.in".parse().unwrap(), string("no"), None);
    assert!(matches!(refused, Err(SendError::Draining { .. })));
    rig.quiet().await;
    assert_eq!(rig.seen(100).await.len(), 100);
    rig.system.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_leaves_what_is_queued_where_it_is() {
    let mut rig = Rig::new().await;
    let (_open, gate) = watch::channel(false);
    let program = Fake { gate: Some(gate), ..marker(1, "") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.send("a.in", "two");
    while rig.actor("a").mailbox().counts().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    rig.system.kill().await;
    let counts = rig.actor("a").mailbox().counts();
    assert_eq!((counts.queued, counts.in_flight, counts.completed), (2, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_message_for_nobody_is_handed_back() {
    let rig = Rig::new().await;
    let send = |to: &str| rig.system.send(&to.parse().unwrap(), string("x"), None);
    assert!(matches!(send("nobody.in"), Err(SendError::NoActor { .. })));
    let no_port = send("sink.other").unwrap_err();
    assert!(no_port.to_string().contains("it has `in`"), "{no_port}");
}

/// A source that counts, ready to start.
fn counter(name: &str, to: u32, was: Option<&str>) -> Start {
    Start {
        name: name.parse().unwrap(),
        ready: Ready::Source(Arc::new(CountTo(to, metadata(&[])))),
        settings: Settings::default(),
        state: None,
        was: was.map(|was| was.parse().unwrap()),
    }
}

fn numbers(to: u32) -> Vec<String> {
    (0..to).map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_in_time_though_messages_wait() {
    let mut rig = Rig::new().await;
    let (_open, gate) = watch::channel(false);
    let program = Fake { gate: Some(gate), ..marker(1, "") };
    let settings = Settings { timeout: Duration::from_secs(1), ..Settings::default() };
    rig.start("a", program, settings, &["sink"]).await;
    for n in 0..8 {
        rig.send("a.in", &n.to_string());
    }
    rig.stop("a", Duration::from_millis(2_500)).await;
    soon(async {
        while rig.system.actor("a").is_some() {
            time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let of = |class| rig.reasons().iter().filter(|reason| **reason == class).count();
    assert_eq!((of("timeout"), of("removed")), (3, 5));
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_actor_keeps_its_wires_through_further_changes() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let program = Fake { gate: Some(gate), ..marker(1, "") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    for message in ["1", "2", "3"] {
        rig.send("a.in", message);
    }
    while rig.actor("a").mailbox().counts().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    rig.stop("a", HOUR).await;
    // It has not even heard of its drain when the next change comes.
    rig.start("other", marker(2, ""), Settings::default(), &["sink"]).await;
    let refused = rig.system.send(&"a.in".parse().unwrap(), string("no"), None);
    assert!(matches!(refused, Err(SendError::Draining { .. })));
    open.send(true).unwrap();
    assert_eq!(rig.seen(3).await, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_starts_with_a_swap_waits_for_its_wires() {
    let mut rig = Rig::new().await;
    rig.system.open();
    rig.start("a", marker(1, "-old"), Settings::default(), &["sink"]).await;
    rig.defs.push(wire("count.out", "a.in"));
    let swap = vec![("a".parse().unwrap(), Rig::ready(marker(2, "-new")).await)];
    let start = vec![counter("count", 3, None)];
    rig.apply(Change { start, swap, ..Change::default() }).await;
    assert_eq!(rig.seen(3).await, ["0-new", "1-new", "2-new"]);
    assert_eq!(rig.actor("count").meters().unrouted.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_actor_becomes_a_source_and_an_actor_again() {
    let mut rig = Rig::new().await;
    rig.system.open();
    rig.start("a", marker(1, "-one"), Settings::default(), &["sink"]).await;
    rig.send("a.in", "x");
    let drain = HOUR;
    let swap = vec![("a".parse().unwrap(), counter("a", 3, None).ready)];
    rig.apply(Change { swap, drain, ..Change::default() }).await;
    assert_eq!(rig.seen(4).await, ["x-one", "0", "1", "2"]);
    let swap = vec![("a".parse().unwrap(), Rig::ready(marker(2, "-two")).await)];
    rig.apply(Change { swap, drain, ..Change::default() }).await;
    rig.send("a.in", "y");
    assert_eq!(rig.seen(5).await[4], "y-two");
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_removed_source_ends_in_time_though_nobody_takes_its_messages() {
    let mut rig = Rig::new().await;
    rig.system.open();
    rig.start("slow", marker(9, ""), small(2), &["sink"]).await;
    rig.actor("slow").pause().await;
    rig.state("slow", ActorState::Paused).await;
    rig.defs.push(wire("count.out", "slow.in"));
    rig.apply(Change { start: vec![counter("count", 50, None)], ..Change::default() }).await;
    rig.state("count", ActorState::Blocked).await;
    rig.stop("count", Duration::from_secs(1)).await;
    soon(async {
        while rig.system.actor("count").is_some() {
            time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(rig.reasons(), ["removed"]);
}

#[tokio::test(start_paused = true)]
async fn a_running_source_does_not_begin_again_when_told_to_retry() {
    let mut rig = Rig::new().await;
    rig.system.open();
    rig.start("slow", marker(9, ""), small(2), &["sink"]).await;
    rig.actor("slow").pause().await;
    rig.defs.push(wire("count.out", "slow.in"));
    rig.apply(Change { start: vec![counter("count", 50, None)], ..Change::default() }).await;
    rig.state("count", ActorState::Blocked).await;
    rig.actor("count").retry().await;
    tokio::task::yield_now().await;
    rig.actor("slow").resume().await;
    rig.seen(50).await;
    rig.actor("count").retry().await;
    tokio::task::yield_now().await;
    rig.quiet().await;
    assert_eq!(*rig.seen.borrow(), numbers(50));
}

#[tokio::test(start_paused = true)]
async fn a_source_under_another_name_leaves_nothing_behind() {
    let mut rig = Rig::new().await;
    rig.system.open();
    rig.defs = vec![wire("old.out", "sink.in")];
    rig.apply(Change { start: vec![counter("old", 2, None)], ..Change::default() }).await;
    rig.seen(2).await;
    rig.defs = vec![wire("new.out", "sink.in")];
    let start = vec![counter("new", 2, Some("old"))];
    rig.apply(Change { start, drain: HOUR, ..Change::default() }).await;
    assert_eq!(rig.seen(4).await, ["0", "1", "0", "1"]);
    assert!(rig.system.actor("old").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_source_in_place_of_another_puts_nothing_out_before_what_that_has_left() {
    let mut rig = Rig::new().await;
    // Room for two short words or a long one.
    let few = Settings { mailbox_bytes: 60, ..Settings::default() };
    rig.start("slow", marker(9, ""), few.clone(), &["sink"]).await;
    rig.actor("slow").pause().await;
    rig.defs.push(wire("words.out", "slow.in"));
    let name: ActorName = "words".parse().unwrap();
    let says = |words| Ready::Source(Arc::new(Says(words, metadata(&[]))));
    let start = Start {
        name: name.clone(),
        ready: says(&["1", "a long word", "never"]),
        settings: Settings::default(),
        state: None,
        was: None,
    };
    rig.system.open();
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    rig.state("words", ActorState::Blocked).await;
    // From now on its way leads to an heir, whose mailbox has room for a short one.
    let (open, gate) = watch::channel(false);
    let ready = Rig::ready(Fake { gate: Some(gate), ..marker(9, "") }).await;
    rig.defs = vec![wire("words.out", "heir.in"), wire("heir.out", "sink.in")];
    let start = vec![Start { settings: few, ..heir("heir", ready, "slow") }];
    rig.apply(Change { start, swap: vec![(name, says(&["2"]))], ..Change::default() }).await;
    rig.actor("heir").resume().await;
    time::sleep(2 * Says::DELAY).await;
    open.send(true).unwrap();
    assert_eq!(rig.seen(3).await, ["1", "a long word", "2"]);
    rig.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_join_that_is_configured_while_the_actor_runs_joins() {
    let mut rig = Rig::new().await;
    let program = Fake {
        metadata: metadata(&[("left", true), ("right", true)]),
        ..fake(1, |context| {
            let all: Vec<_> = context.payload.iter().map(|(_, m)| text(m)).collect();
            Ok(out(&all.join("+")))
        })
    };
    rig.start("join", program, Settings::default(), &["sink"]).await;
    rig.start("l", marker(2, ""), Settings::default(), &[]).await;
    rig.start("r", marker(3, ""), Settings::default(), &[]).await;
    rig.defs.extend([wire("l.out", "join.left"), wire("r.out", "join.right")]);
    rig.apply(Change::default()).await;
    let settings = Settings { trigger: Trigger::All, ..Settings::default() };
    let settings = vec![("join".parse().unwrap(), settings)];
    rig.apply(Change { settings, ..Change::default() }).await;
    rig.send("l.in", "1");
    // A half is no turn, however long it is alone.
    while rig.system.books().deliveries.completed == 0 {
        tokio::task::yield_now().await;
    }
    time::sleep(Duration::from_secs(1)).await;
    rig.send("l.in", "2");
    rig.send("r.in", "a");
    rig.send("r.in", "b");
    assert_eq!(rig.seen(2).await, ["1+a", "2+b"]);
}

/// An actor that takes over from `was`.
fn heir(name: &str, ready: Ready, was: &str) -> Start {
    Start {
        name: name.parse().unwrap(),
        ready,
        settings: Settings::default(),
        state: None,
        was: Some(was.parse().unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_an_heir_takes_over_is_in_the_books_at_every_moment() {
    let mut rig = Rig::new().await;
    let (_open, gate) = watch::channel(false);
    let stuck = || Fake { gate: Some(gate.clone()), ..marker(1, "") };
    rig.start("a", stuck(), Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    let (system, stop) = (rig.system.clone(), CancellationToken::new());
    let stopped = stop.clone();
    let reader = std::thread::spawn(move || {
        let mut looks = 0;
        while !stopped.is_cancelled() {
            let books = system.books();
            assert_eq!(books.deliveries.queued + books.deliveries.in_flight, 1, "{books:?}");
            assert!(books.balanced(), "{books:?}");
            looks += 1;
        }
        looks
    });
    let (mut from, mut to) = ("a", "b");
    for _ in 0..2_000 {
        rig.defs = vec![wire(&format!("{to}.out"), "sink.in")];
        let start = vec![heir(to, Rig::ready(stuck()).await, from)];
        rig.apply(Change { start, ..Change::default() }).await;
        (from, to) = (to, from);
        if reader.is_finished() {
            break;
        }
    }
    stop.cancel();
    assert!(reader.join().expect("the books had a gap") > 0);
    rig.system.kill().await;
}

#[tokio::test(start_paused = true)]
async fn generations_grow_under_a_name_whatever_becomes_of_the_actor() {
    let mut rig = Rig::new().await;
    rig.system.open();
    let generation = |rig: &Rig, name: &str| rig.actor(name).status().generation.number();
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.swap("a", marker(2, "")).await;
    assert_eq!(generation(&rig, "a"), 2);

    // Removed and added again.
    rig.stop("a", HOUR).await;
    while rig.system.actor("a").is_some() {
        tokio::task::yield_now().await;
    }
    rig.start("a", marker(3, ""), Settings::default(), &["sink"]).await;
    assert_eq!(generation(&rig, "a"), 3);

    // Another kind of actor in its place.
    let swap = vec![("a".parse().unwrap(), counter("a", 1, None).ready)];
    let changed = rig.apply(Change { swap, drain: HOUR, ..Change::default() }).await;
    assert_eq!(changed.generations[&"a".parse::<ActorName>().unwrap()].number(), 4);
    let swap = vec![("a".parse().unwrap(), Rig::ready(marker(5, "")).await)];
    rig.apply(Change { swap, drain: HOUR, ..Change::default() }).await;
    assert_eq!(generation(&rig, "a"), 5);

    // Given to an heir, which counts on, and back.
    let start = vec![heir("b", Rig::ready(marker(6, "")).await, "a")];
    rig.apply(Change { start, ..Change::default() }).await;
    assert_eq!(generation(&rig, "b"), 6);
    let start = vec![heir("a", Rig::ready(marker(7, "")).await, "b")];
    rig.apply(Change { start, ..Change::default() }).await;
    assert_eq!(generation(&rig, "a"), 7);
}

/// What a source's runs are to do, one after another: put out so many messages, then fail.
struct Moody {
    runs: Arc<AtomicUsize>,
    good: fn(usize) -> u32,
    began: mpsc::Sender<Instant>,
    metadata: Metadata,
}

impl Source for Moody {
    fn digest(&self) -> Digest {
        Digest::new([8; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn run(&self, out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let run = self.runs.fetch_add(1, Ordering::Relaxed);
            _ = self.began.send(Instant::now()).await;
            for n in 0..(self.good)(run) {
                out.emit(&"out".parse().unwrap(), string(&n.to_string())).await;
            }
            assert_ne!(run, PANICS, "the run that panics");
            Err(SourceError { why: format!("run {run} failed") })
        })
    }
}

/// The run in which a [`Moody`] source panics.
const PANICS: usize = 6;

/// Starts a source named `moody`, wired to the sink; gives when its runs begin.
async fn moody(rig: &mut Rig, good: fn(usize) -> u32) -> mpsc::Receiver<Instant> {
    let (began, runs) = mpsc::channel(16);
    let moody = Moody { runs: Arc::default(), good, began, metadata: metadata(&[]) };
    let start = Start { ready: Ready::Source(Arc::new(moody)), ..counter("moody", 0, None) };
    rig.defs.push(wire("moody.out", "sink.in"));
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    rig.system.open();
    runs
}

#[tokio::test(start_paused = true)]
async fn a_source_that_recovered_starts_its_backoff_anew() {
    let mut rig = Rig::new().await;
    let mut runs = moody(&mut rig, |run| u32::from(run == 3)).await;
    let mut last = soon(runs.recv()).await.unwrap();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let began = soon(runs.recv()).await.unwrap();
        pauses.push(began.duration_since(last).as_secs());
        last = began;
    }
    // The fourth run put something out, and the seventh panicked.
    assert_eq!(pauses, [1, 2, 4, 1, 2, 4, 8]);
    let why = rig.state("moody", ActorState::Failed).await.why.unwrap();
    assert_eq!(why, "run 7 failed");
    let names = told(&rig, "moody");
    assert_eq!(names.iter().position(|name| *name == "recovered"), Some(4), "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_lasts_has_recovered_though_it_puts_nothing_out() {
    struct Late(AtomicUsize, Metadata);
    impl Source for Late {
        fn digest(&self) -> Digest {
            Digest::new([8; 32])
        }

        fn metadata(&self) -> &Metadata {
            &self.1
        }

        fn run(&self, _out: Emitter) -> BoxFuture<'_, Result<(), SourceError>> {
            Box::pin(async move {
                if self.0.fetch_add(1, Ordering::Relaxed) < 3 {
                    return Err(SourceError { why: "not yet".into() });
                }
                std::future::pending().await
            })
        }
    }
    let rig = Rig::new().await;
    let late = Late(AtomicUsize::new(0), metadata(&[]));
    let start = Start { ready: Ready::Source(Arc::new(late)), ..counter("late", 0, None) };
    rig.apply(Change { start: vec![start], ..Change::default() }).await;
    rig.system.open();
    while told(&rig, "late").last() != Some(&"recovered") {
        time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(told(&rig, "late"), ["started", "failed", "recovered"]);
}

/// Returns when the wall clock shows another millisecond.
fn tick() {
    let now = crate::unix_millis();
    while crate::unix_millis() == now {
        std::hint::spin_loop();
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_for_long_counts_that_and_has_failed_since_the_first_time() {
    let mut rig = Rig::new().await;
    let mut runs = moody(&mut rig, |run| u32::from(run == 4)).await;
    soon(runs.recv()).await.unwrap();
    let since = rig.state("moody", ActorState::Failed).await.since;
    for run in 1..=3 {
        tick();
        soon(runs.recv()).await.unwrap();
        let status = rig.state("moody", ActorState::Failed).await;
        assert_eq!(status.why.unwrap(), format!("run {run} failed"));
        assert_eq!(status.since, since, "after {run} runs more");
        assert_eq!(rig.actor("moody").meters().failures(), run + 1);
    }
    // It has put something out in between: this is another outage.
    tick();
    soon(runs.recv()).await.unwrap();
    rig.seen(1).await;
    let status = rig.state("moody", ActorState::Failed).await;
    assert_eq!(status.why.unwrap(), "run 4 failed");
    assert!(status.since > since);
}

/// What has happened to an actor.
fn told(rig: &Rig, actor: &str) -> Vec<&'static str> {
    let (events, _) = rig.system.events().since(0);
    let of_it = |event: &&crate::Event| event.kind.actor().is_some_and(|of| of.as_str() == actor);
    events.iter().filter(of_it).map(|event| event.kind.name()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pause_hides_that_a_source_has_failed_and_does_not_heal_it() {
    let mut rig = Rig::new().await;
    let mut runs = moody(&mut rig, |run| u32::from(run == 1)).await;
    soon(runs.recv()).await.unwrap();
    rig.state("moody", ActorState::Failed).await;
    let moody = rig.actor("moody");
    moody.pause().await;
    rig.state("moody", ActorState::Paused).await;
    moody.resume().await;
    let status = rig.state("moody", ActorState::Failed).await;
    assert_eq!(status.why.unwrap(), "run 0 failed");
    moody.pause().await;
    rig.state("moody", ActorState::Paused).await;
    let told = Instant::now();
    moody.retry().await;
    assert_eq!(soon(runs.recv()).await.unwrap(), told);
    // What it has for the wire waits for the operator.
    assert_eq!(rig.actor("moody").status().state, ActorState::Paused);
    assert!(rig.seen.borrow().is_empty());
    moody.resume().await;
    rig.seen(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_pause_of_a_swap_is_only_what_the_swap_put_there() {
    let mut rig = Rig::new().await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.seen(1).await;
    // Idle for an hour, and then halted by an operator for another.
    time::advance(HOUR).await;
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "two");
    time::advance(HOUR).await;
    rig.swap("a", marker(2, "")).await;
    time::advance(HOUR).await;
    rig.actor("a").resume().await;
    rig.seen(2).await;
    let actor = rig.actor("a");
    let pauses = &actor.meters().swap_pause_seconds;
    assert_eq!((pauses.count(), pauses.sum()), (1, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_pause_of_a_swap_counts_what_a_change_holds_up() {
    let mut rig = Rig::new().await;
    let (open, gate) = watch::channel(false);
    let slow = Fake { gate: Some(gate), ..marker(1, "") };
    let settings = Settings { timeout: HOUR, ..Settings::default() };
    rig.start("slow", slow, settings, &["sink"]).await;
    rig.start("a", marker(1, ""), Settings::default(), &["sink"]).await;
    rig.send("slow.in", "x");
    while rig.actor("slow").mailbox().counts().in_flight == 0 {
        tokio::task::yield_now().await;
    }
    let mut swap = Vec::new();
    for name in ["a", "slow"] {
        swap.push((name.parse().unwrap(), Rig::ready(marker(2, "")).await));
    }
    let system = rig.system.clone();
    let change = system.apply(Change { swap, ..Change::default() });
    tokio::pin!(change);
    // `a` is held as soon as it hears of the change; `slow` is in its turn.
    for _ in 0..10 {
        assert!(futures_util::poll!(&mut change).is_pending());
        tokio::task::yield_now().await;
    }
    time::advance(HOUR / 4).await;
    rig.send("a.in", "y");
    time::advance(HOUR / 2).await;
    open.send(true).unwrap();
    soon(change).await;
    rig.seen(2).await;
    assert_eq!(rig.actor("a").meters().swap_pause_seconds.sum(), (HOUR / 2).as_secs_f64());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_turn_is_a_trap() {
    let mut rig = Rig::new().await;
    let program = fake(1, |context| match text(&context.payload[0].1).as_str() {
        "bad" => panic!("an index is out of bounds"),
        good => Ok(out(good)),
    });
    let made = Arc::clone(&program.made);
    rig.start("a", program, Settings::default(), &["sink"]).await;
    for message in ["one", "bad", "two"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(2).await, ["one", "two"]);
    rig.quiet().await;
    let letters = rig.system.dead_letters().list();
    let why = letters[0].reason.to_string();
    let broke = "reflowd itself broke, which is a bug in it: an index is out of bounds";
    assert_eq!(why, format!("trapped: {broke}"));
    // Nobody calls an engine again that a panic has gone through.
    assert_eq!((rig.actor("a").meters().turns_trap.get(), made.load(Ordering::Relaxed)), (3, 4));
}

#[tokio::test(start_paused = true)]
async fn an_actor_whose_engine_is_being_made_anew_is_initializing() {
    let mut rig = Rig::new().await;
    let (open, slow) = watch::channel(true);
    let first = AtomicBool::new(true);
    let program = fake(1, move |context| {
        if first.swap(false, Ordering::Relaxed) {
            return Err(FailureKind::Trap("unreachable".into()));
        }
        Ok(out(&text(&context.payload[0].1)))
    });
    rig.start("a", Fake { made_when: Some(slow), ..program }, Settings::default(), &["sink"]).await;
    open.send(false).unwrap();
    rig.send("a.in", "one");
    rig.state("a", ActorState::Initializing).await;
    open.send(true).unwrap();
    rig.seen(1).await;
    rig.state("a", ActorState::Active).await;
}

#[tokio::test(start_paused = true)]
async fn an_actor_whose_task_broke_is_failed_and_keeps_its_mailbox_also_for_the_next_generation() {
    let mut rig = Rig::new().await;
    // The runtime calls it outside of a turn, where nothing catches what it does.
    let program = Fake { memory: Some(|| panic!("no such page")), ..marker(1, "-old") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.send("a.in", "two");
    let status = rig.state("a", ActorState::Failed).await;
    assert!(status.why.unwrap().ends_with("no such page"));
    let counts = rig.actor("a").mailbox().counts();
    assert_eq!((counts.queued, counts.in_flight), (1, 1));
    rig.send("a.in", "three");
    let (events, _) = rig.system.events().since(0);
    assert!(events.iter().any(|event| matches!(event.kind, EventKind::Failed { .. })));

    assert_eq!(rig.swap("a", marker(2, "-new")).await.number(), 2);
    rig.apply(Change::default()).await;
    rig.send("a.in", "four");
    let all = ["one-new", "two-new", "three-new", "four-new"];
    rig.quiet().await;
    assert!(rig.seen.borrow().iter().all(|seen| all.contains(&seen.as_str())));
    assert_eq!(rig.actor("a").mailbox().counts().completed, 4);
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_actor_holds_whose_task_breaks_is_a_dead_letter_when_it_is_removed() {
    let mut rig = Rig::new().await;
    let program = Fake { memory: Some(|| panic!("no such page")), ..marker(1, "") };
    rig.start("a", program, Settings::default(), &["sink"]).await;
    rig.send("a.in", "one");
    rig.state("a", ActorState::Failed).await;
    rig.stop("a", HOUR).await;
    while rig.system.actor("a").is_some() {
        time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(rig.reasons(), ["trap"]);
}

#[tokio::test(start_paused = true)]
async fn an_actor_whose_task_broke_goes_on_by_itself_and_loses_nothing() {
    static BROKE: AtomicBool = AtomicBool::new(false);
    let mut rig = Rig::new().await;
    let once = || {
        assert!(BROKE.swap(true, Ordering::Relaxed), "no such page");
        0
    };
    rig.start("a", Fake { memory: Some(once), ..marker(1, "!") }, Settings::default(), &["sink"])
        .await;
    for message in ["one", "two"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(2).await, ["one!", "two!"]);
    rig.quiet().await;
    let (events, _) = rig.system.events().since(0);
    let has = |name| events.iter().any(|event| event.kind.name() == name);
    assert!(has("failed") && has("recovered"), "{events:?}");
    assert!(rig.reasons().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_over_which_the_task_breaks_again_and_again_holds_up_no_other() {
    static TURNS: AtomicUsize = AtomicUsize::new(0);
    let mut rig = Rig::new().await;
    // The first message three times, and then no more.
    let thrice = || {
        assert!(TURNS.fetch_add(1, Ordering::Relaxed) >= 3, "no such page");
        0
    };
    rig.start("a", Fake { memory: Some(thrice), ..marker(1, "!") }, Settings::default(), &["sink"])
        .await;
    for message in ["one", "two"] {
        rig.send("a.in", message);
    }
    assert_eq!(rig.seen(1).await, ["two!"]);
    rig.quiet().await;
    let letters = rig.system.dead_letters().list();
    assert_eq!((letters.len(), letters[0].attempts), (1, 3));
    assert_eq!(rig.reasons(), ["trap"]);
}

#[tokio::test(start_paused = true)]
async fn replayed_letters_go_to_the_tail_in_their_order_and_push_nothing_out() {
    let mut rig = Rig::new().await;
    let whole = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&whole);
    let program = fake(1, move |context| match mended.load(Ordering::Relaxed) {
        false => Err(FailureKind::Guest("not yet".into())),
        true => Ok(out(&text(&context.payload[0].1))),
    });
    let settings = Settings { overflow: Overflow::DropOldest, ..small(3) };
    rig.start("a", program, settings, &["sink"]).await;
    for message in ["one", "two", "three"] {
        rig.send("a.in", message);
        rig.quiet().await;
    }
    whole.store(true, Ordering::Relaxed);
    rig.actor("a").pause().await;
    rig.state("a", ActorState::Paused).await;
    rig.send("a.in", "waits");
    let replayed = rig.system.replay(Filter::default());
    assert_eq!((replayed.replayed, replayed.stayed.len()), (2, 1));
    let stayed = &replayed.stayed[0];
    assert_eq!((stayed.reason, stayed.letters, stayed.first), (Staying::Full, 1, 3));
    assert_eq!(rig.system.dead_letters().list().len(), 1);
    let counts = rig.actor("a").mailbox().counts();
    assert_eq!((counts.accepted[Entry::Replay as usize], counts.dropped), (2, 0));
    rig.actor("a").resume().await;
    assert_eq!(rig.seen(3).await, ["waits", "one", "two"]);
    assert_eq!(rig.system.replay(Filter::default()).replayed, 1);
    assert_eq!(rig.seen(4).await[3], "three");
    assert_eq!(rig.system.replay(Filter::default()).replayed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_letter_that_an_earlier_version_took_and_no_reader_takes_stays() {
    let mut rig = Rig::new().await;
    let program = fake(1, |_| Err(FailureKind::Guest("what is this?".into())));
    rig.start("a", program, Settings::default(), &["sink"]).await;
    let kept = bytes::Bytes::from_static(br#"{"type":"Float","data":1e400}"#);
    let message = Message::kept(&kept, &kept).unwrap();
    rig.system.send(&"a.in".parse().unwrap(), message, None).unwrap();
    rig.quiet().await;
    let replayed = rig.system.replay(Filter::default());
    assert_eq!((replayed.replayed, replayed.stayed.len()), (0, 1));
    let stayed = &replayed.stayed[0];
    assert_eq!((stayed.reason, stayed.letters), (Staying::Unfit, 1));
    assert!(stayed.why.starts_with("the number 1e400 fits neither"), "{}", stayed.why);
    assert_eq!(rig.system.dead_letters().list().len(), 1);
}
