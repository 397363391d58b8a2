//! What a turn costs, from one mailbox to the next, beside the bare call.
//!
//! The sample filter passes on a week of earthquakes: each turn takes one record
//! of some 200 bytes and puts it out again. A batch waits in the mailbox before
//! the clock starts, so that nothing but turns is measured; all turns, the
//! sink's too, share one thread.
//!
//! The machine may be noisy, so what counts are ratios: the table at the end
//! comes from rounds in which every way has its turn, and its ratios are
//! medians of those within one round.

use std::{
    collections::BTreeMap,
    hint::black_box,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use extism::{Manifest, Plugin, Wasm};
use futures_util::future::BoxFuture;
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{
    ActorLog, ActorName, ActorState, Change, Context, Digest, Effects, Engine, EnginePer,
    InstantiateError, Message, Metadata, Module, Port, PortName, PortRef, Program, ProgramSpec,
    Ready, Settings, Start, State, System, Turn, TurnLimits, Type, WireDef,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};

/// Messages that wait before the clock starts.
const BATCH: usize = 2_000;

/// Longer than anything here takes.
const HOUR: Duration = Duration::from_secs(3600);

/// Rounds of the table.
const ROUNDS: usize = 25;

/// The filter's config: everything passes, so that every turn has an output.
const CONFIG: &str = r#"{"min_magnitude": -10}"#;

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
    let mut criterion = Criterion::default().configure_from_args();
    let mut ways = ways();
    let mut group = criterion.benchmark_group("turn");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    for way in &mut ways {
        group.bench_function(way.name, |b| b.iter_custom(|turns| way.take(turns)));
    }
    group.finish();
    // `cargo test` and a profiler ask for less than the whole.
    let asked = |flag: &str| std::env::args().any(|arg| arg == flag);
    if asked("--bench") && !asked("--profile-time") {
        print_table(&mut ways);
    }
    ExitCode::SUCCESS
}

/// Takes so many turns of the guest `nop` or `filter`, for a tool that counts instructions.
fn alone(guest: &str, turns: &str) -> ExitCode {
    let bytes = match guest {
        "nop" => nop(),
        "filter" => sample(),
        _ => return ExitCode::FAILURE,
    };
    let Ok(turns) = turns.parse() else { return ExitCode::FAILURE };
    Alone::new(&bytes, &quakes(), EngineKind::Direct).turns(turns);
    ExitCode::SUCCESS
}

/// One way to have the same work done.
struct Way {
    name: &'static str,
    /// Turns of one round of the table.
    turns: u64,
    run: Box<dyn FnMut(u64) -> Duration>,
}

impl Way {
    fn take(&mut self, turns: u64) -> Duration {
        (self.run)(turns)
    }
}

fn ways() -> Vec<Way> {
    let (bytes, quakes) = (sample(), quakes());
    let contexts: Vec<String> = quakes.iter().map(context).collect();

    let mut bare = Bare::new(&bytes);
    let bare_contexts = contexts.clone();
    let mut blocking = Some(Bare::new(&bytes));
    let pool = runtime();
    let [mut turns, mut direct_turns] = ENGINES.map(|engine| Alone::new(&bytes, &quakes, engine));
    let nop = nop();
    let [mut nops, mut direct_nops] = ENGINES.map(|engine| Alone::new(&nop, &quakes, engine));
    let [mut kept, mut direct_kept] =
        ENGINES.map(|engine| Flow::of_module(&bytes, &quakes, engine, EnginePer::Actor));
    let [mut anew, mut direct_anew] =
        ENGINES.map(|engine| Flow::of_module(&bytes, &quakes, engine, EnginePer::Message));
    let mut native = Flow::new(&quakes, native("strong"));
    vec![
        Way {
            name: "bare extism call",
            turns: 2_000,
            run: Box::new(move |turns| bare.calls(&bare_contexts, turns)),
        },
        Way {
            name: "bare call in spawn_blocking",
            turns: 2_000,
            run: Box::new(move |turns| {
                pool.block_on(async {
                    let began = Instant::now();
                    for context in contexts.iter().cycle().take(count(turns)) {
                        let (mut plugin, context) =
                            (blocking.take().expect("it comes back"), context.clone());
                        let call = tokio::task::spawn_blocking(move || {
                            plugin.call(&context);
                            plugin
                        });
                        blocking = Some(call.await.expect("the guest does not panic"));
                    }
                    began.elapsed()
                })
            }),
        },
        Way {
            name: "turn alone, extism",
            turns: 2_000,
            run: Box::new(move |count| turns.turns(count)),
        },
        Way {
            name: "turn alone, direct",
            turns: 2_000,
            run: Box::new(move |count| direct_turns.turns(count)),
        },
        Way {
            name: "turn of a nop, extism",
            turns: 2_000,
            run: Box::new(move |count| nops.turns(count)),
        },
        Way {
            name: "turn of a nop, direct",
            turns: 2_000,
            run: Box::new(move |count| direct_nops.turns(count)),
        },
        Way {
            name: "mailbox to mailbox, extism",
            turns: 2_000,
            run: Box::new(move |turns| kept.turns(turns)),
        },
        Way {
            name: "mailbox to mailbox, direct",
            turns: 2_000,
            run: Box::new(move |turns| direct_kept.turns(turns)),
        },
        Way {
            name: "mailbox to mailbox, no guest",
            turns: 2_000,
            run: Box::new(move |turns| native.turns(turns)),
        },
        Way {
            name: "engine per message, extism",
            turns: 100,
            run: Box::new(move |turns| anew.turns(turns)),
        },
        Way {
            name: "engine per message, direct",
            turns: 100,
            run: Box::new(move |turns| direct_anew.turns(turns)),
        },
    ]
}

/// The engines that are held against each other.
const ENGINES: [EngineKind; 2] = [EngineKind::Extism, EngineKind::Direct];

/// The sample filter.
fn sample() -> Bytes {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../modules/magnitude-filter.wasm");
    std::fs::read(path).expect("the sample module is committed").into()
}

/// A week of earthquakes, as messages.
fn quakes() -> Vec<Message> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/sample/earthquakes.jsonl");
    let text = std::fs::read_to_string(path).expect("the sample data is committed");
    text.lines()
        .map(|line| Message::new(Type::Object, line.to_owned()).expect("a line is an object"))
        .collect()
}

/// What the filter is given for one message: the very text that an engine makes.
fn context(quake: &Message) -> String {
    let config = format!(
        r#"{{"component":"MagnitudeFilter","config":{CONFIG},"namespace":null,"node_id":"filter","resolved_env":{{}}}}"#
    );
    format!(r#"{{"payload":{{"quake":{}}},"config":{config},"state":{{}}}}"#, quake.encode())
}

fn count(turns: u64) -> usize {
    usize::try_from(turns).expect("no machine takes that many turns")
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be started")
}

/// A plug-in as the SDK gives it, called in a loop.
struct Bare(Plugin);

impl Bare {
    fn new(bytes: &Bytes) -> Self {
        let manifest = Manifest::new([Wasm::data(bytes.to_vec())]);
        Self(Plugin::new(manifest, [], false).expect("the sample asks for nothing but the SDK"))
    }

    fn call(&mut self, context: &str) {
        let output = self.0.call::<&str, &[u8]>("process", context).expect("it takes every quake");
        assert!(black_box(output).len() > 100, "everything passes");
    }

    fn calls(&mut self, contexts: &[String], turns: u64) -> Duration {
        let began = Instant::now();
        for context in contexts.iter().cycle().take(count(turns)) {
            self.call(context);
        }
        began.elapsed()
    }
}

/// A guest that looks at nothing and puts out nothing.
fn nop() -> Bytes {
    const METADATA: &str = r#"{"component":"Nop","inports":[],"outports":[]}"#;
    let escaped: String = METADATA.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let text = format!(
        r#"(module
          (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
          (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
          (import "extism:host/env" "output_set" (func $output (param i64 i64)))
          (memory 1)
          (data (i32.const 0) "{escaped}")
          (data (i32.const 256) "{{\22outputs\22:{{}}}}")
          (func $answer (param $at i32) (param $length i32)
            (local $block i64) (local $i i32)
            (local.set $block (call $alloc (i64.const 64)))
            (loop $next
              (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
                (i64.load (i32.add (local.get $at) (local.get $i))))
              (local.set $i (i32.add (local.get $i) (i32.const 8)))
              (br_if $next (i32.lt_u (local.get $i) (local.get $length))))
            (call $output (local.get $block) (i64.extend_i32_u (local.get $length))))
          (func (export "get_metadata") (result i32)
            (call $answer (i32.const 0) (i32.const {length})) (i32.const 0))
          (func (export "process") (result i32)
            (call $answer (i32.const 256) (i32.const 14)) (i32.const 0)))"#,
        length = METADATA.len(),
    );
    wat::parse_str(&text).expect("it is WebAssembly").into()
}

/// The filter made ready for its actor.
fn filter(
    runtime: &Runtime,
    bytes: &Bytes,
    engine: EngineKind,
    engine_per: EnginePer,
) -> Arc<dyn Program> {
    // Whatever slows the machine down, or counts what it does, is no reason to give up.
    let limits = Limits { metadata_timeout: HOUR, compile_timeout: HOUR, ..Limits::default() };
    let loader = Loader::new(limits).with_engine(engine);
    let module = runtime.block_on(loader.load_bytes("filter", bytes.clone()));
    let module = module.expect("the sample loads");
    let actor: ActorName = "filter".parse().expect("a plain word names an actor");
    let spec = ProgramSpec {
        actor: actor.clone(),
        config: serde_json::from_str(CONFIG).expect("the config is an object"),
        env: BTreeMap::new(),
        entry_point: None,
        memory: 100 << 20,
        allow_hosts: Vec::new(),
        engine_per,
        version: None,
        log: ActorLog::new(actor, 100),
    };
    runtime.block_on(module.prepare(spec)).expect("it takes the config")
}

/// An engine whose turns are taken one after the other, without an actor.
struct Alone {
    engine: Option<Box<dyn Engine>>,
    contexts: Vec<Context>,
    runtime: Runtime,
}

impl Alone {
    fn new(bytes: &Bytes, quakes: &[Message], engine: EngineKind) -> Self {
        let runtime = runtime();
        let program = filter(&runtime, bytes, engine, EnginePer::Actor);
        let engine = runtime.block_on(program.instantiate()).expect("it instantiates");
        let context = |quake: &Message| Context {
            payload: vec![("quake".parse().expect("a plain word names a port"), quake.clone())],
            state: State::default(),
            meta: None,
            state_in_context: true,
            limits: TurnLimits { output: 1 << 20, state: 1 << 20 },
            now: None,
        };
        Self { engine: Some(engine), contexts: quakes.iter().map(context).collect(), runtime }
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

/// What a sink has taken. Changes are told when all that is awaited is there,
/// so that no turn pays for waking the one who waits.
#[derive(Default)]
struct Tally {
    taken: usize,
    awaited: usize,
}

/// A filter wired to a sink, in a system of its own with one thread for turns.
struct Flow {
    system: System,
    quakes: Vec<Message>,
    sent: usize,
    sink: watch::Sender<Tally>,
    control: Runtime,
    /// Dropped last: the actors run on it.
    _turns: Runtime,
}

impl Flow {
    fn of_module(
        bytes: &Bytes,
        quakes: &[Message],
        engine: EngineKind,
        engine_per: EnginePer,
    ) -> Self {
        Self::new(quakes, filter(&runtime(), bytes, engine, engine_per))
    }

    fn new(quakes: &[Message], filter: Arc<dyn Program>) -> Self {
        let turns = runtime();
        let control = Builder::new_current_thread().enable_all().build();
        let control = control.expect("a runtime can be started");
        let system = System::new(turns.handle().clone());
        let tally = watch::Sender::<Tally>::default();
        let sink: Arc<dyn Program> =
            Arc::new(Native { out: None, tally: tally.clone(), metadata: ports("in") });
        let wire = WireDef {
            from: "filter.strong".parse().expect("an actor and its port"),
            to: "sink.in".parse().expect("an actor and its port"),
            overflow: None,
        };
        let mut start = Vec::new();
        for (name, program) in [("filter", filter), ("sink", sink)] {
            let name: ActorName = name.parse().expect("a plain word names an actor");
            let engine = control.block_on(program.instantiate()).expect("it instantiates");
            let log = ActorLog::new(name.clone(), 100);
            let ready = Ready::Engine { program, engine, version: None, log };
            let settings =
                Settings { mailbox: BATCH, mailbox_bytes: 1 << 30, ..Settings::default() };
            start.push(Start { name, ready, settings, state: None, was: None });
        }
        let change = Change { start, wires: Some(vec![wire]), ..Change::default() };
        control.block_on(system.apply(change));
        Self { system, quakes: quakes.to_vec(), sent: 0, sink: tally, control, _turns: turns }
    }

    /// The time from the first turn of a full mailbox to the last message's
    /// arrival at the sink, over as many batches as it takes.
    fn turns(&mut self, turns: u64) -> Duration {
        let mut left = count(turns);
        let mut took = Duration::ZERO;
        while left > 0 {
            let batch = left.min(BATCH);
            took += self.batch(batch);
            left -= batch;
        }
        took
    }

    fn batch(&mut self, batch: usize) -> Duration {
        let to: PortRef = "filter.quake".parse().expect("an actor and its port");
        let filter = self.system.actor("filter").expect("it was started");
        let Self { system, quakes, sent, sink, control, .. } = self;
        control.block_on(async {
            let mut status = filter.watch();
            filter.pause().await;
            let paused = status.wait_for(|status| status.state == ActorState::Paused).await;
            drop(paused.expect("the actor runs"));
            for _ in 0..batch {
                let quake = quakes[*sent % quakes.len()].clone();
                system.send(&to, quake, None).expect("there is room for a batch");
                *sent += 1;
            }
            let mut arrived = sink.subscribe();
            sink.send_modify(|tally| tally.awaited = *sent);
            let began = Instant::now();
            filter.resume().await;
            arrived.wait_for(|tally| tally.taken == *sent).await.expect("the sink runs");
            began.elapsed()
        })
    }
}

/// The filter without a guest: puts out what it takes.
fn native(out: &str) -> Arc<dyn Program> {
    let out = out.parse().expect("a plain word names a port");
    Arc::new(Native { out: Some(out), tally: watch::Sender::default(), metadata: ports("quake") })
}

fn ports(inport: &str) -> Metadata {
    let port = |name: &str| Port {
        name: name.parse().expect("a plain word names a port"),
        description: String::new(),
        port_type: Type::Any,
        required: true,
    };
    Metadata {
        component: "Native".into(),
        description: String::new(),
        inports: vec![port(inport)],
        outports: vec![port("strong")],
        config_schema: None,
        version: None,
    }
}

/// Counts what it takes, and passes it on where it has an outport.
#[derive(Clone)]
struct Native {
    out: Option<PortName>,
    tally: watch::Sender<Tally>,
    metadata: Metadata,
}

impl Program for Native {
    fn digest(&self) -> Digest {
        Digest::new([0; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine: Box<dyn Engine> = Box::new(self.clone());
        Box::pin(async { Ok(engine) })
    }
}

impl Engine for Native {
    fn turn(
        self: Box<Self>,
        mut context: Context,
        _deadline: tokio::time::Instant,
    ) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            self.tally.send_if_modified(|tally| {
                tally.taken += 1;
                tally.taken == tally.awaited
            });
            let mut effects = Effects::default();
            if let (Some(out), Some((_, message))) = (&self.out, context.payload.pop()) {
                effects.outputs.push((out.clone(), message));
            }
            Ok((self as Box<dyn Engine>, effects))
        })
    }
}

/// Takes the rounds and prints what they gave.
#[expect(clippy::print_stdout, reason = "a benchmark's table is what it is run for")]
fn print_table(ways: &mut [Way]) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let round: Vec<f64> = ways
            .iter_mut()
            .map(|way| {
                let turns = u32::try_from(way.turns).expect("a round is short");
                way.take(way.turns).as_secs_f64() * 1e6 / f64::from(turns)
            })
            .collect();
        rounds.push(round);
    }
    let median = |of: &dyn Fn(&[f64]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| of(round)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!("{:30} {:>10} {:>12} {:>14}", "", "µs/turn", "turns/s/core", "of the bare");
    for (index, way) in ways.iter().enumerate() {
        let micros = median(&|round| round[index]);
        let ratio = median(&|round| round[0] / round[index]);
        println!("{:30} {micros:>10.2} {:>12.0} {ratio:>14.3}", way.name, 1e6 / micros);
    }
}
