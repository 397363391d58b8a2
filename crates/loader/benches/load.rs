//! What loading costs: compiled, from disk, from memory; and making engines after it.
//!
//! Loading is all that stands between bytes and a module that actors can be made
//! of: reading the binary, its code, and asking it about itself. Loaders that are
//! to find code on disk are new each time, so that they find it nowhere else.

#[path = "rig/goal.rs"]
mod goal;
#[path = "rig/guest.rs"]
mod guest;
#[path = "rig/rounds.rs"]
mod rounds;

use std::{
    hint::black_box,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reflowd_loader::{EngineKind, Limits, Loader};
use reflowd_runtime::{EnginePer, Settings};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    goal::Goal,
    guest::{actor, file, prepare},
    rounds::{Rounds, Way},
};

fn main() {
    let whole = std::env::args().any(|arg| arg == "--bench");
    let folder = TempDir::new().expect("a folder can be made");
    let runtime = Arc::new(Runtime::new().expect("a runtime can be started"));
    for (name, rounds) in [("json", 9), ("tally-go", 3)] {
        let bytes = file(&format!("tests/guests/{name}.wasm"));
        let size = bytes.len() >> 10;
        let ways = ways(&runtime, &bytes, folder.path());
        let rounds = Rounds::take(ways, if whole { rounds } else { 1 }, "");
        rounds.print("load", "from disk, direct");
        let disk = rounds.micros("from disk, direct").expect("it took part");
        let ratio = rounds.ratio("compiled, direct", "from disk, direct");
        Goal::Below(5.0).hold(&format!("load of {size} KiB from disk"), disk / 1e3, " ms");
        let what = format!("load of {size} KiB from disk: faster than compiling");
        Goal::AtLeast(100.0).hold(&what, ratio.expect("both took part"), " times");
    }
}

fn ways(runtime: &Arc<Runtime>, bytes: &Bytes, folder: &Path) -> Vec<Way> {
    let mut ways = Vec::new();
    for engine in [EngineKind::Direct, EngineKind::Extism] {
        let loading =
            repeat(runtime, bytes, move || Loader::new(Limits::default()).with_engine(engine));
        ways.push(Way::new(format!("compiled, {engine}"), 1, loading));
    }
    let code = folder.join("code");
    let loading = repeat(runtime, bytes, move || {
        let loader = Loader::new(Limits::default()).with_engine(EngineKind::Direct);
        loader.with_code_cache(&code).expect("the folder is ours")
    });
    ways.push(Way::new("from disk, direct", 10, loading));

    let loader = Loader::new(Limits::default()).with_engine(EngineKind::Direct);
    let module = runtime.block_on(loader.load_bytes("bench", bytes.clone())).expect("it loads");
    ways.push(Way::new("from memory, direct", 10, repeat(runtime, bytes, move || loader.clone())));

    let (prepared, on) = (module.clone(), runtime.clone());
    ways.push(Way::new("made ready for an actor, direct", 10, move |times| {
        let began = Instant::now();
        for _ in 0..times {
            let name = actor("bench");
            black_box(on.block_on(async {
                let program = prepare(&*prepared, &name, EnginePer::Actor).await;
                guest::start(name, program, Settings::default()).await
            }));
        }
        began.elapsed()
    }));

    let on = runtime.clone();
    let program = on.block_on(prepare(&*module, &actor("bench"), EnginePer::Actor));
    ways.push(Way::new("one more engine, direct", 10, move |times| {
        let began = Instant::now();
        for _ in 0..times {
            black_box(on.block_on(guest::ready(program.clone(), &actor("bench"))));
        }
        began.elapsed()
    }));
    ways
}

/// Loads with a loader made for it. Making it is no part of the time.
fn repeat(
    runtime: &Arc<Runtime>,
    bytes: &Bytes,
    loader: impl Fn() -> Loader + 'static,
) -> impl FnMut(u64) -> Duration + 'static {
    let (runtime, bytes) = (runtime.clone(), bytes.clone());
    move |times| {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let (loader, bytes) = (loader(), bytes.clone());
            let began = Instant::now();
            let module = runtime.block_on(loader.load_bytes("bench", bytes));
            took += began.elapsed();
            drop(black_box(module.expect("it loads")));
        }
        took
    }
}
