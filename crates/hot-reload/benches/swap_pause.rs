//! The pause that a swap puts on a mailbox, made by files and under load.
//!
//! Two versions of a module take turns in the watched folder, by rename. A sender
//! keeps the mailbox full meanwhile. The pause is what the actor itself measures:
//! from the end of the old engine's last turn to the beginning of the new one's
//! first. The code of both is on disk from the beginning, so that no compiler
//! works beside it. `SWAPS` says how many, in place of a thousand, and `ENGINE`
//! which engine; on `extism` each swap compiles.

#[path = "../../loader/benches/rig/goal.rs"]
mod goal;

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use futures_util::future::BoxFuture;
use reflowd_hot_reload::{
    ActorSpec, Blueprint, Checked, ConfigFiles, Draft, Eyes, Flow, FormerStates, Found,
    GenerationKeys, History, Kept, ModuleRef, Pace, Parts, Reconciler, ScanOptions, StateFiles,
    Texts, WireSpec,
};
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{
    Actor, ActorLog, ActorName, Context, Digest, Effects, Engine, Epoch, EpochState, EventKind,
    InstantiateError, Message, Metadata, Module, Port, PortRef, Program, Ready, Settings, System,
    Turn, Type,
};
use tempfile::TempDir;
use tokio::{
    runtime::Builder,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::goal::Goal;

/// Swaps, unless `SWAPS` says how many.
const SWAPS: usize = 1_000;

/// How long one swap may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often to look whether the first turn has begun.
const LOOK: Duration = Duration::from_millis(1);

/// How long a file must have stood still.
const QUIET: Duration = Duration::from_millis(10);

fn main() {
    // `cargo test` runs benchmarks too, and asks for nothing but their going.
    let whole = std::env::args().any(|arg| arg == "--bench");
    let swaps = std::env::var("SWAPS").ok().and_then(|swaps| swaps.parse().ok());
    let swaps = swaps.unwrap_or(if whole { SWAPS } else { 2 });
    // As in the daemon: actors on a runtime of their own.
    let workers = available_parallelism().map_or(2, NonZeroUsize::get) + 1;
    let turns = Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let turns = turns.expect("a runtime can be started");
    let control = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let control = control.expect("a runtime can be started");
    let system = System::new(turns.handle().clone());
    let pauses = control.block_on(measure(system, swaps));
    print(pauses, swaps);
}

/// Nothing is written of states, and nothing is found.
struct NoStates;

impl StateFiles for NoStates {
    fn found(&self, _: &ActorName, _: Option<Epoch>) -> Option<EpochState> {
        None
    }

    fn begin(&self, _: &ActorName, _: &EpochState) -> std::io::Result<()> {
        Ok(())
    }

    fn settle(&self, _: &ActorName, _: Epoch) {}
}

/// Swaps, and the pauses of those that found something in the mailbox.
async fn measure(system: System, swaps: usize) -> Vec<Duration> {
    let root = TempDir::new().expect("a folder can be made");
    let modules = root.path().join("modules");
    fs::create_dir(&modules).expect("a folder can be made");
    let config = root.path().join("flow");
    fs::write(&config, "stamp to sink").expect("a file can be written");
    let versions = ["a", "b"].map(|version| {
        let path =
            format!("{}/../../tests/guests/stamp-{version}.wasm", env!("CARGO_MANIFEST_DIR"));
        fs::read(path).expect("the guest is committed")
    });
    put(&modules, &versions[0]);
    let engine = std::env::var("ENGINE").map_or(Ok(EngineKind::Direct), |word| word.parse());
    let engine = engine.expect("ENGINE is `direct` or `extism`");
    let loader = Loader::new(Limits::default()).with_engine(engine);
    let loader = loader.with_code_cache(root.path().join("code")).expect("the folder is ours");
    for version in &versions {
        let module = loader.load_bytes("stamp", version.clone().into()).await;
        loader.forget(&module.expect("the guest loads").digest());
    }

    let parts = Parts {
        system: system.clone(),
        loader,
        blueprint: Arc::new(Fixed { config }),
        kept: Kept::open(root.path(), 1 << 30).expect("the folder can be written to"),
        history: History::open(root.path()).0,
        generations: 10,
        modules: modules.clone(),
        autostart: None,
        scan: ScanOptions { quiet: QUIET, ..ScanOptions::default() },
        pace: Pace { quiet: QUIET, rescan: Duration::from_secs(5) },
        eyes: Eyes::Open,
        drain: Duration::from_secs(1),
        states: Arc::new(NoStates),
        former_states: FormerStates::open(root.path()).expect("the folder can be written to"),
    };
    let (mut reconciler, _reloader) = Reconciler::new(parts);
    let report = reconciler.begin(Duration::from_secs(60)).await;
    assert!(report.is_clean(), "the first pass refused something: {report:?}");
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(reconciler.run(stop.clone()));
    tasks.spawn(load(system.clone(), stop.clone()));

    let stamp = system.actor("stamp").expect("the flow has it");
    let mut pauses = Vec::new();
    for n in 1..=swaps {
        let swapped = timeout(PATIENCE, swap(&system, &stamp, &modules, &versions[n % 2])).await;
        pauses.extend(swapped.expect("a swap takes less than half a minute"));
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    system.kill().await;
    assert!(system.books().balanced(), "a message was lost or doubled: {:?}", system.books());
    pauses
}

/// Writes beside the module and renames over it.
fn put(modules: &Path, bytes: &[u8]) {
    let temporary = modules.join(".stamp.new");
    fs::write(&temporary, bytes).expect("the folder can be written to");
    fs::rename(temporary, modules.join("stamp.wasm")).expect("the folder can be written to");
}

/// Keeps the mailbox full.
async fn load(system: System, stop: CancellationToken) {
    let to: PortRef = "stamp.in".parse().expect("an actor and its port");
    let mut seq = 0_u64;
    while !stop.is_cancelled() {
        let data = format!(r#"{{"sender":1,"seq":{seq}}}"#);
        let message = Message::new(Type::Object, data).expect("the text is an object");
        system.send_waiting(&to, message, None).await.expect("the actor takes messages");
        seq += 1;
    }
}

/// Makes one swap and waits for it. Gives its pause, where messages waited.
async fn swap(system: &System, stamp: &Actor, modules: &Path, bytes: &[u8]) -> Option<Duration> {
    let meter = &stamp.meters().swap_pause_seconds;
    let before = meter.sum();
    let (_, mut events) = system.events().since(u64::MAX);
    put(modules, bytes);
    loop {
        match events.recv().await.expect("events are few").kind {
            EventKind::Swapped { queued: 0, .. } => return None,
            EventKind::Swapped { .. } => break,
            _ => {}
        }
    }
    // Messages waited, so the first turn is on its way. It is not to be raced for a
    // core by whoever looks.
    while meter.sum() <= before {
        tokio::time::sleep(LOOK).await;
    }
    Some(Duration::from_secs_f64(meter.sum() - before))
}

#[expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]
fn print(mut pauses: Vec<Duration>, swaps: usize) {
    pauses.sort();
    let Some(max) = pauses.last() else {
        println!("{swaps} swaps, and the mailbox was empty at each");
        return;
    };
    let share = |percent: usize| pauses[(pauses.len() * percent).div_ceil(100).max(1) - 1];
    println!("{swaps} swaps by files, {} of them with messages waiting", pauses.len());
    println!("pause: p50 {:?}, p99 {:?}, max {max:?}", share(50), share(99));
    Goal::Below(1.0).hold("pause of a swap by files: p99", share(99).as_secs_f64() * 1e3, " ms");
}

/// One flow, whatever the configuration says: a stamp wired to a sink.
struct Fixed {
    config: PathBuf,
}

impl Blueprint for Fixed {
    fn files(&self, _texts: &Texts) -> ConfigFiles {
        ConfigFiles { configs: vec![self.config.clone()], includes: Vec::new() }
    }

    fn draft(&self, _texts: &Texts) -> Result<Box<dyn Draft>, String> {
        let actor = |module| ActorSpec {
            module,
            keys: GenerationKeys::default(),
            settings: Settings::default(),
            version: None,
            was: None,
            origin: "flow:1".into(),
        };
        let stem = ModuleRef::Stem { stem: "stamp".into(), pin: None };
        let actors = [("stamp", stem), ("sink", ModuleRef::Builtin { name: "sink".into() })];
        let name = |name: &str| name.parse().expect("a plain word names an actor");
        let flow = Flow {
            actors: actors.map(|(word, module)| (name(word), actor(module))).into(),
            wires: vec![WireSpec {
                from: "stamp.out".parse().expect("an actor and its port"),
                to: "sink.in".parse().expect("an actor and its port"),
                overflow: None,
                origin: "flow:1".into(),
            }],
            waits: Vec::new(),
        };
        Ok(Box::new(FixedDraft(flow)))
    }

    fn connector(&self, actor: &ActorName, _: &str, spec: &ActorSpec) -> Result<Ready, String> {
        Ok(Ready::Engine {
            program: Arc::new(Sink(sink_metadata())),
            engine: Box::new(Sink(sink_metadata())),
            version: None,
            log: ActorLog::new(actor.clone(), spec.settings.log_rate),
            module: spec.module.to_string(),
        })
    }

    fn connector_metadata(&self, _: &str, _: Option<&GenerationKeys>) -> Option<Metadata> {
        Some(sink_metadata())
    }
}

struct FixedDraft(Flow);

impl Draft for FixedDraft {
    fn flow(&self) -> &Flow {
        &self.0
    }

    fn check(&self, _lookup: &dyn Fn(&ModuleRef) -> Found) -> Result<Checked, String> {
        Ok(Checked::default())
    }

    fn adopted(&self) {}
}

fn sink_metadata() -> Metadata {
    let inport = Port {
        name: "in".parse().expect("a plain word names a port"),
        description: String::new(),
        port_type: Type::Any,
        required: true,
    };
    Metadata {
        component: "Sink".into(),
        description: String::new(),
        inports: vec![inport],
        outports: Vec::new(),
        config_schema: None,
        version: None,
    }
}

/// Takes everything and does nothing.
struct Sink(Metadata);

impl Program for Sink {
    fn digest(&self) -> Digest {
        Digest::new([0; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.0
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine: Box<dyn Engine> = Box::new(Self(self.0.clone()));
        Box::pin(async { Ok(engine) })
    }
}

impl Engine for Sink {
    fn turn(self: Box<Self>, _context: Context, _deadline: Instant) -> BoxFuture<'static, Turn> {
        Box::pin(async { Ok((self as Box<dyn Engine>, Effects::default())) })
    }
}
