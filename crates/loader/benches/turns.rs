//! What a turn costs, from one mailbox to the next, beside every other way to have
//! the same work done.
//!
//! The actor is the guest `json`: about 100 bytes in beside its config, a state of
//! three keys that it reads, one output. A batch waits in the mailbox before the
//! clock starts, and its outputs stay in the mailbox of the next actor until it has
//! stopped, so that nothing but turns is measured, and the wire behind them. A second table is of inputs that are large.
//!
//! A word after `--` picks the ways that hold it, and `ROUNDS` says how often, for a
//! profiler.

#[path = "rig/goal.rs"]
mod goal;
#[path = "rig/guest.rs"]
mod guest;
#[path = "rig/lean.rs"]
mod lean;
#[path = "rig/native.rs"]
mod native;
#[path = "rig/rounds.rs"]
mod rounds;
#[path = "rig/written.rs"]
mod written;
#[expect(unreachable_pub, reason = "it belongs to a guest, and is no crate of its own here")]
#[path = "../../../tests/guests/json/src/double.rs"]
mod double;

use std::{
    collections::BTreeMap,
    fmt::Write,
    hint::black_box,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, Wasm};
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{
    Actor, ActorState, Change, Context, Engine, EnginePer, Message, MessageId, PortRef, Program,
    Settings, State, System, TurnLimits, Type, WireDef,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::{Builder, Runtime};

use crate::{
    goal::Goal,
    guest::{actor, file, prepare},
    lean::Lean,
    native::Native,
    rounds::{Rounds, Way},
    written::written,
};

/// Messages that wait before the clock starts.
const BATCH: usize = 2_000;

/// Longer than anything here takes.
const HOUR: Duration = Duration::from_secs(3600);

/// Rounds of each table.
const ROUNDS: usize = 25;

/// The actor's state.
const STATE: &str = r#"{"turns":1234,"name":"doubler","last":{"value":617,"at":1765432100}}"#;

/// The actor's config, as its guest is given it.
const CONFIG: &str =
    r#"{"node_id":"double","component":"Json","resolved_env":{},"config":{},"namespace":null}"#;

/// The engines that are held against each other.
const ENGINES: [EngineKind; 2] = [EngineKind::Extism, EngineKind::Direct];

fn main() -> ExitCode {
    // An error of the SDK carries a backtrace where the environment asks for one,
    // and it makes an error of every call.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none_or(|value| value != "0") {
        let exe = std::env::current_exe().expect("a running program has a path");
        let mut again = Command::new(exe);
        again.args(std::env::args_os().skip(1)).env("RUST_LIB_BACKTRACE", "0");
        // Comes back only when it has failed; then the figures are what they are.
        let error = again.exec();
        tracing::warn!(%error, "cannot start again with RUST_LIB_BACKTRACE=0");
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, guest, turns] = &arguments[..]
        && flag == "--alone"
    {
        return alone(guest, turns);
    }
    // Without `--bench` it is asked for nothing but its going.
    let whole = arguments.iter().any(|arg| arg == "--bench");
    let asked = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds = asked.unwrap_or(if whole { ROUNDS } else { 1 });
    let filter = arguments.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let filter = filter.map_or("", String::as_str);

    let turns = Rounds::take(ways(), rounds, filter);
    turns.print("turn", "mailbox to mailbox, direct");
    let large = Rounds::take(large(), rounds, filter);
    large.print("turn", "1 MiB, direct");
    hold(&turns, &large);
    ExitCode::SUCCESS
}

/// Takes so many turns of the guest `nop` or `json`, for a tool that counts instructions.
fn alone(guest: &str, turns: &str) -> ExitCode {
    let bytes = match guest {
        "nop" => nop(),
        "json" => file("tests/guests/json.wasm"),
        _ => return ExitCode::FAILURE,
    };
    let Ok(turns) = turns.parse() else { return ExitCode::FAILURE };
    Alone::new(&bytes, &numbers(), EngineKind::Direct).turns(turns);
    ExitCode::SUCCESS
}

/// Holds what the rounds gave against its goals.
fn hold(turns: &Rounds, large: &Rounds) {
    const US: &str = "mailbox to mailbox, direct";
    let faster = [
        ("stock call, inline, with care", 5.0),
        ("stock call, spawn_blocking a message", 25.0),
        ("stock plug-in a message, code kept", 150.0),
        ("stock plug-in a message, compiled", 100_000.0),
    ];
    for (way, bound) in faster {
        if let Some(ratio) = turns.ratio(way, US) {
            Goal::AtLeast(bound).hold(&format!("turns: faster than {way}"), ratio, " times");
        }
    }
    for (way, bound) in [("bare call of the same ABI", 1.4), ("the same in Rust", 4.0)] {
        if let Some(ratio) = turns.ratio(US, way) {
            Goal::Below(bound).hold(&format!("turns: price of {way}"), ratio, " times");
        }
    }
    for size in ["64 KiB", "1 MiB"] {
        if let Some(ratio) = large.ratio(&format!("{size}, direct"), &format!("{size}, extism")) {
            let what = format!("{size} in and out: direct against extism");
            // A tenth is what two runs of the same thing may differ by.
            Goal::Below(1.1).hold(&what, ratio, " times");
        }
    }
}

fn ways() -> Vec<Way> {
    let bytes = file("tests/guests/json.wasm");
    let messages = numbers();
    let contexts: Vec<String> = messages.iter().map(context).collect();
    let many = BATCH as u64;

    let mut lean = Lean::new(&bytes);
    let (given, natively) = (contexts.clone(), contexts.clone());
    let mut bare = Careful::new(&bytes);
    let mut careful = Careful::new(&bytes);
    let mut blocking = Some(Careful::new(&bytes));
    let pool = runtime();
    let (by_hand, in_pool) = (messages.clone(), messages.clone());
    let compiled = CompiledPlugin::new(stock(&bytes)).expect("the guest compiles");
    let (anew, again) = (messages.clone(), messages.clone());
    let again_bytes = bytes.clone();

    let mut ways = vec![
        Way::new("the same in Rust", many, move |turns| {
            timed(&natively, turns, |context| {
                black_box(double::double(context.as_bytes()).expect("it takes every number"));
            })
        }),
        Way::new("bare call of the same ABI", many, move |turns| {
            timed(&given, turns, |context| {
                assert!(black_box(lean.call(context.as_bytes())).len() > 20, "it has an output");
            })
        }),
        Way::new("stock call, inline, bare", many, move |turns| {
            timed(&contexts, turns, |context| {
                let output = bare.plugin.call::<&str, &[u8]>("process", context);
                assert!(black_box(output.expect("it takes every number")).len() > 20);
            })
        }),
        Way::new("stock call, inline, with care", many, move |turns| {
            timed(&by_hand, turns, |message| careful.turn(message))
        }),
        Way::new("stock call, spawn_blocking a message", many, move |turns| {
            pool.block_on(async {
                let began = Instant::now();
                for message in in_pool.iter().cycle().take(count(turns)) {
                    let (mut careful, message) =
                        (blocking.take().expect("it comes back"), message.clone());
                    let turn = tokio::task::spawn_blocking(move || {
                        careful.turn(&message);
                        careful
                    });
                    blocking = Some(turn.await.expect("the guest does not panic"));
                }
                began.elapsed()
            })
        }),
        Way::new("stock plug-in a message, code kept", 100, move |turns| {
            timed(&anew, turns, |message| {
                let plugin = Plugin::new_from_compiled(&compiled).expect("there is memory");
                Careful::of(plugin).turn(message);
            })
        }),
        Way::new("stock plug-in a message, compiled", 1, move |turns| {
            timed(&again, turns, |message| {
                let plugin = stock(&again_bytes).build().expect("the guest compiles");
                Careful::of(plugin).turn(message);
            })
        }),
    ];
    let nop = nop();
    for engine in ENGINES {
        let mut nops = Alone::new(&nop, &messages, engine);
        ways.push(Way::new(format!("turn of a nop alone, {engine}"), many, move |turns| {
            nops.turns(turns)
        }));
        let mut alone = Alone::new(&bytes, &messages, engine);
        ways.push(Way::new(format!("turn alone, {engine}"), many, move |turns| alone.turns(turns)));
        let mut kept = Flow::of_guest(&bytes, &messages, engine, EnginePer::Actor);
        ways.push(Way::new(format!("mailbox to mailbox, {engine}"), many, move |turns| {
            kept.turns(turns)
        }));
        let mut anew = Flow::of_guest(&bytes, &messages, engine, EnginePer::Message);
        ways.push(Way::new(format!("engine a message, {engine}"), 100, move |turns| {
            anew.turns(turns)
        }));
    }
    let mut nothing = Flow::new(&messages, Native::program("value", Some("out"), |_| {}));
    ways.push(Way::new("mailbox to mailbox, no guest", many, move |turns| nothing.turns(turns)));
    ways
}

/// A guest that looks at nothing and puts out nothing.
fn nop() -> Bytes {
    written("(call $answer (i32.const 256) (i32.const 14)) (i32.const 0)")
}

/// Large messages through a guest that passes them on.
fn large() -> Vec<Way> {
    let bytes = file("tests/guests/relay.wasm");
    let mut ways = Vec::new();
    for (name, size, turns) in [("64 KiB", 64 << 10, 50), ("1 MiB", 1 << 20, 5)] {
        let text = format!("\"{}\"", "x".repeat(size - 2));
        let message = Message::new(Type::String, text).expect("the text is a string");
        for engine in ENGINES {
            let mut alone = Alone::new(&bytes, std::slice::from_ref(&message), engine);
            let run = move |turns| alone.turns(turns);
            ways.push(Way::new(format!("{name}, {engine}"), turns, run));
        }
    }
    ways
}

/// Numbers of the length that numbers have.
fn numbers() -> Vec<Message> {
    let message = |n: u64| Message::new(Type::Integer, (1_700_000 + n * 97).to_string());
    (0..500).map(|n| message(n).expect("it is a number")).collect()
}

/// What the guest is given for one message: the very text that an engine makes.
fn context(message: &Message) -> String {
    let message = message.encode();
    format!(r#"{{"payload":{{"value":{message}}},"config":{CONFIG},"state":{STATE}}}"#)
}

fn timed<T>(items: &[T], turns: u64, mut work: impl FnMut(&T)) -> Duration {
    let began = Instant::now();
    for item in items.iter().cycle().take(count(turns)) {
        work(item);
    }
    began.elapsed()
}

fn count(turns: u64) -> usize {
    usize::try_from(turns).expect("no machine takes that many turns")
}

fn runtime() -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime can be started")
}

fn stock(bytes: &Bytes) -> PluginBuilder<'static> {
    let manifest =
        Manifest::new([Wasm::data(bytes.to_vec())]).with_timeout(Duration::from_secs(30));
    PluginBuilder::new(manifest).with_cache_disabled()
}

/// The loop that a careful programmer writes around the stock plug-in: one plug-in,
/// one buffer for the context, the state kept as text, the result borrowed and
/// looked into no further than it takes to route it.
struct Careful {
    plugin: Plugin,
    context: String,
    state: String,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    outputs: BTreeMap<&'a str, &'a RawValue>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
}

impl Careful {
    fn new(bytes: &Bytes) -> Self {
        Self::of(stock(bytes).build().expect("the guest asks for nothing but the SDK"))
    }

    fn of(plugin: Plugin) -> Self {
        Self { plugin, context: String::new(), state: STATE.into() }
    }

    fn turn(&mut self, message: &Message) {
        self.context.clear();
        let (ty, data) = (message.ty().name(), message.data());
        let data = std::str::from_utf8(data).expect("JSON is text");
        let state = &self.state;
        write!(
            self.context,
            r#"{{"payload":{{"value":{{"type":"{ty}","data":{data}}}}},"config":{CONFIG},"state":{state}}}"#
        )
        .expect("a string takes all text");
        let output = self.plugin.call::<&str, &[u8]>("process", &self.context);
        let answer: Answer<'_> = serde_json::from_slice(output.expect("it takes every number"))
            .expect("the guest's answer is JSON");
        for (port, message) in answer.outputs {
            // What the next actor's mailbox would hold.
            black_box((port.to_owned(), message.get().to_owned()));
        }
        if let Some(state) = answer.state {
            state.get().clone_into(&mut self.state);
        }
    }
}

/// A guest made ready for its actor.
fn program(
    runtime: &Runtime,
    bytes: &Bytes,
    engine: EngineKind,
    engine_per: EnginePer,
) -> Arc<dyn Program> {
    // Whatever slows the machine down, or counts what it does, is no reason to give up.
    let limits = Limits { metadata_timeout: HOUR, compile_timeout: HOUR, ..Limits::default() };
    let loader = Loader::new(limits).with_engine(engine);
    let module = runtime.block_on(loader.load_bytes("double", bytes.clone()));
    let module = module.expect("the guest loads");
    runtime.block_on(prepare(&*module, &actor("double"), engine_per))
}

fn state() -> State {
    State::new(STATE).expect("the state is an object")
}

/// An engine whose turns are taken one after the other, without an actor.
struct Alone {
    engine: Option<Box<dyn Engine>>,
    contexts: Vec<Context>,
    runtime: Runtime,
}

impl Alone {
    fn new(bytes: &Bytes, messages: &[Message], engine: EngineKind) -> Self {
        let runtime = runtime();
        let program = program(&runtime, bytes, engine, EnginePer::Actor);
        let inport = program.metadata().inports[0].name.clone();
        let engine = runtime.block_on(program.instantiate()).expect("it instantiates");
        let context = |message: &Message| Context {
            payload: vec![(inport.clone(), message.clone())],
            state: state(),
            message: MessageId::new(),
            trace: None,
            meta: None,
            state_in_context: true,
            limits: TurnLimits::default(),
            now: None,
            host_memory: None,
        };
        Self { engine: Some(engine), contexts: messages.iter().map(context).collect(), runtime }
    }

    fn turns(&mut self, turns: u64) -> Duration {
        let Self { engine, contexts, runtime } = self;
        runtime.block_on(async {
            let deadline = tokio::time::Instant::now() + HOUR;
            let mut ready = engine.take().expect("it comes back");
            let began = Instant::now();
            for context in contexts.iter().cycle().take(count(turns)) {
                let (next, effects) = ready.turn(context.clone(), deadline).await.expect("a turn");
                black_box(effects);
                ready = next;
            }
            let took = began.elapsed();
            *engine = Some(ready);
            took
        })
    }
}

/// An actor wired to a sink, in a system of its own with one thread for turns.
struct Flow {
    system: System,
    messages: Vec<Message>,
    sent: usize,
    control: Runtime,
    /// Dropped last: the actors run on it.
    _turns: Runtime,
}

impl Flow {
    fn of_guest(
        bytes: &Bytes,
        messages: &[Message],
        engine: EngineKind,
        engine_per: EnginePer,
    ) -> Self {
        Self::new(messages, program(&runtime(), bytes, engine, engine_per))
    }

    fn new(messages: &[Message], double: Arc<dyn Program>) -> Self {
        let turns = runtime();
        let control = Builder::new_current_thread().enable_all().build();
        let control = control.expect("a runtime can be started");
        let system = System::new(turns.handle().clone());
        let sink = Native::program("in", None, |_| {});
        let wire = WireDef {
            from: "double.out".parse().expect("an actor and its port"),
            to: "sink.in".parse().expect("an actor and its port"),
            overflow: None,
        };
        let mut start = Vec::new();
        for (name, program) in [("double", double), ("sink", sink)] {
            let settings =
                Settings { mailbox: BATCH, mailbox_bytes: 1 << 30, ..Settings::default() };
            let mut actor = control.block_on(guest::start(actor(name), program, settings));
            actor.state = Some(state().into());
            start.push(actor);
        }
        let change = Change { start, connect: vec![wire], ..Change::default() };
        control.block_on(system.apply(change));
        Self { system, messages: messages.to_vec(), sent: 0, control, _turns: turns }
    }

    /// The time from the first turn of a full mailbox until all of its outputs are
    /// in the next one.
    fn turns(&mut self, turns: u64) -> Duration {
        let to: PortRef = "double.value".parse().expect("an actor and its port");
        let double = self.system.actor("double").expect("it was started");
        let sink = self.system.actor("sink").expect("it was started");
        let Self { system, messages, sent, control, .. } = self;
        control.block_on(async {
            for actor in [&double, &sink] {
                let mut status = actor.watch();
                actor.pause().await;
                let paused = status.wait_for(|status| status.state == ActorState::Paused).await;
                drop(paused.expect("the actor runs"));
            }
            for _ in 0..turns {
                let message = messages[*sent % messages.len()].clone();
                system.send(&to, message, None).expect("there is room for a batch");
                *sent += 1;
            }
            let began = Instant::now();
            double.resume().await;
            // Looking takes less from the turns than being woken by them.
            until(&double, *sent);
            let took = began.elapsed();
            sink.resume().await;
            until(&sink, *sent);
            took
        })
    }
}

/// Waits until the actor has taken so many turns.
fn until(actor: &Actor, turns: usize) {
    while actor.meters().turns_ok.get() < turns as u64 {
        std::thread::yield_now();
    }
}
