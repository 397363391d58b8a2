//! Whether anything grows with the swaps that were made.
//!
//! An actor with a full mailbox is swapped between two versions of its module. For
//! every swap the module is loaded anew, its code from disk, since the loader
//! forgets what no actor runs. `SWAPS` says how many, in place of ten thousand.

#[path = "rig/goal.rs"]
mod goal;
#[path = "rig/guest.rs"]
mod guest;
#[path = "rig/native.rs"]
mod native;
#[path = "rig/process.rs"]
mod process;

use std::{thread::available_parallelism, time::Instant};

use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{
    Change, EnginePer, Message, Module, PortRef, Settings, System, Type, WireDef,
};
use tempfile::TempDir;
use tokio::{runtime::Builder, task::JoinSet};

use crate::{
    goal::Goal,
    guest::{actor, file, prepare, ready},
    native::Native,
    process::Process,
};

/// Swaps, unless `SWAPS` says how many.
const SWAPS: usize = 10_000;

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let swaps = std::env::var("SWAPS").ok().and_then(|swaps| swaps.parse().ok());
    let swaps = swaps.unwrap_or(if whole { SWAPS } else { 20 });
    let workers = available_parallelism().map_or(2, |cores| cores.get() + 1);
    let turns = Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let turns = turns.expect("a runtime can be started");
    let control = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let control = control.expect("a runtime can be started");
    control.block_on(measure(&System::new(turns.handle().clone()), swaps));
}

#[expect(clippy::print_stdout, reason = "figures are what a benchmark is run for")]
async fn measure(system: &System, swaps: usize) {
    let folder = TempDir::new().expect("a folder can be made");
    let loader = Loader::new(Limits::default()).with_engine(EngineKind::Direct);
    let loader = loader.with_code_cache(folder.path().join("code")).expect("the folder is ours");
    let versions = ["a", "b"].map(|version| file(&format!("tests/guests/stamp-{version}.wasm")));
    let stamp = actor("stamp");
    let next = async |n: usize| {
        let module = loader.load_bytes("stamp", versions[n % 2].clone()).await;
        let module = module.expect("the guest loads");
        let program = prepare(&*module, &stamp, EnginePer::Actor).await;
        loader.forget(&module.digest());
        program
    };

    let sink = Native::program("in", None, |_| {});
    let start = vec![
        guest::start(actor("sink"), sink, Settings::default()).await,
        guest::start(stamp.clone(), next(0).await, Settings::default()).await,
    ];
    let wires = vec![WireDef {
        from: "stamp.out".parse().expect("an actor and its port"),
        to: "sink.in".parse().expect("an actor and its port"),
        overflow: None,
    }];
    system.apply(Change { start, connect: wires, ..Change::default() }).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(load(system.clone()));

    let began = Instant::now();
    println!("{:>10} {:>14} {:>10} {:>10}", "swaps", "resident KiB", "threads", "mappings");
    let mut seen = Vec::new();
    for n in 1..=swaps {
        let swap = vec![(stamp.clone(), ready(next(n).await, &stamp).await)];
        system.apply(Change { swap, ..Change::default() }).await;
        // Before, after a hundredth, a tenth and all of them; the first have made
        // all that is made once.
        if [1, swaps / 100, swaps / 10, swaps / 2, swaps].contains(&n) {
            let now = Process::now();
            let Process { resident, threads, mappings } = now;
            println!("{n:>10} {:>14} {threads:>10} {mappings:>10}", resident / 1024);
            seen.push(now);
        }
    }
    tasks.shutdown().await;
    let actor = system.actor("stamp").expect("it was started");
    assert_eq!(actor.meters().swaps.get(), swaps as u64, "every swap was made");
    println!(
        "{swaps} swaps in {:.1?}, beside {} turns",
        began.elapsed(),
        actor.meters().turns_ok.get()
    );
    system.kill().await;
    assert!(system.books().balanced(), "a message was lost or doubled: {:?}", system.books());

    let [.., tenth, _, all] = seen[..] else { return };
    let grown = |of: fn(Process) -> u64| number(of(all)) / number(of(tenth));
    let from = swaps / 10;
    let hold = |what: &str, figure, bound| {
        Goal::Below(bound).hold(&format!("swaps {from} to {swaps}: {what}"), figure, " times");
    };
    hold("resident memory", grown(|process| process.resident), 1.1);
    hold("threads", grown(|process| process.threads), 1.1);
    hold("mappings", grown(|process| process.mappings), 1.1);
}

/// Keeps the mailbox full.
async fn load(system: System) {
    let to: PortRef = "stamp.in".parse().expect("an actor and its port");
    for seq in 0_u64.. {
        let data = format!(r#"{{"sender":1,"seq":{seq}}}"#);
        let message = Message::new(Type::Object, data).expect("the text is an object");
        system.send_waiting(&to, message, None).await.expect("the actor takes messages");
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is far below 2^52")]
fn number(n: u64) -> f64 {
    n as f64
}
