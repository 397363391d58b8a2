//! What loading costs: cold, from memory, and preparing and instantiating after it.
//!
//! The module is the sample filter. Cold is dominated by the compiler.

use std::{collections::BTreeMap, hint::black_box};

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use reflowd_loader::{Limits, Loader};
use reflowd_runtime::{ActorLog, ActorName, EnginePer, Module, ProgramSpec};

fn spec() -> ProgramSpec {
    let actor: ActorName = "bench".parse().expect("a plain word names an actor");
    ProgramSpec {
        actor: actor.clone(),
        config: serde_json::Map::new(),
        env: BTreeMap::new(),
        entry_point: None,
        memory: 100 << 20,
        allow_hosts: Vec::new(),
        engine_per: EnginePer::Actor,
        version: None,
        log: ActorLog::new(actor, 100),
    }
}

fn load(criterion: &mut Criterion) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../modules/magnitude-filter.wasm");
    let bytes = Bytes::from(std::fs::read(path).expect("the sample module is committed"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10);

    group.bench_function("cold", |b| {
        b.to_async(&runtime).iter(async || {
            let loader = Loader::new(Limits::default());
            black_box(loader.load_bytes("bench", bytes.clone()).await.expect("it loads"))
        });
    });

    let loader = Loader::new(Limits::default());
    let module = runtime.block_on(loader.load_bytes("bench", bytes.clone())).expect("it loads");
    group.bench_function("from memory", |b| {
        b.to_async(&runtime).iter(async || {
            black_box(loader.load_bytes("bench", bytes.clone()).await.expect("it is loaded"))
        });
    });

    group.bench_function("prepare", |b| {
        b.to_async(&runtime)
            .iter(async || black_box(module.prepare(spec()).await.map_err(|e| e.to_string())));
    });

    let program = runtime.block_on(module.prepare(spec())).map_err(|e| e.to_string());
    let program = program.expect("the sample takes every config");
    group.bench_function("instantiate", |b| {
        b.to_async(&runtime)
            .iter(async || black_box(program.instantiate().await.expect("it instantiates")));
    });
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
