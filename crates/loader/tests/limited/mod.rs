//! Any bytes as a module, under limits that hold.
//!
//! They may be refused, or loaded and given turns. However that ends, it has a
//! name, it ends in time, and nothing is larger than it may be.

#![allow(dead_code, reason = "a fuzz target does not look at how it ended")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use reflowd_loader::{EngineKind, Limits, LoadError, Loader};
use reflowd_runtime::{Context, Module, PrepareError, ProgramSpec, TurnLimits};

use crate::guest::{context, soon, spec};

/// Bytes of linear memory that a guest may have.
const MEMORY: u64 = 1 << 20;
/// Time that a turn may take.
const TURN: Duration = Duration::from_millis(100);
/// Time that may pass until a turn that ran out of it is told so, on a busy machine.
const NOTICE: Duration = Duration::from_secs(10);
/// Bytes of one turn's outputs, and of its state.
const SIZE: u64 = 4 << 10;
/// Turns that are given to one guest.
const TURNS: usize = 2;

/// What takes bytes under those limits.
pub(crate) fn loader() -> Loader {
    let limits = Limits {
        module_size: 1 << 20,
        memory: MEMORY,
        metadata_timeout: TURN,
        compile_timeout: Duration::from_secs(60),
    };
    Loader::new(limits).with_engine(EngineKind::Direct)
}

/// How it went with a module.
#[derive(Debug)]
pub(crate) enum Went {
    /// It was refused.
    Refused(LoadError),
    /// It was loaded, and could not be made ready.
    Unprepared(PrepareError),
    /// It had turns, which ended as those words say.
    Ran(Vec<&'static str>),
}

/// Loads the bytes, and gives turns to what can be loaded.
///
/// # Panics
/// It takes longer or is larger than it may be, or something in the loader panicked.
pub(crate) async fn try_out(loader: &Loader, bytes: Bytes) -> Went {
    let module = match soon(loader.load_bytes("random.wasm", bytes)).await {
        Ok(module) => module,
        Err(error) => {
            assert!(!error.to_string().contains("panicked"), "{error}");
            return Went::Refused(error);
        }
    };
    // Modules are many here, and each is compiled code.
    loader.forget(&module.digest());
    let spec = ProgramSpec { memory: MEMORY, ..spec() };
    let program = match soon(module.prepare(spec)).await {
        Ok(program) => program,
        Err(error) => {
            assert!(!error.to_string().contains("panicked"), "{error}");
            return Went::Unprepared(error);
        }
    };
    let mut ended = Vec::new();
    let mut engine = None;
    for _ in 0..TURNS {
        let ready = match engine.take() {
            Some(ready) => ready,
            None => match soon(program.instantiate()).await {
                Ok(fresh) => fresh,
                // What its initialisers do may depend on the time.
                Err(_) => break,
            },
        };
        let limits = TurnLimits { output: SIZE, state: SIZE, host_memory: MEMORY };
        let context = Context { limits, ..context("null") };
        let begun = Instant::now();
        let turn = soon(ready.turn(context, tokio::time::Instant::now() + TURN)).await;
        assert!(begun.elapsed() < TURN + NOTICE, "a turn took {:?}", begun.elapsed());
        engine = match turn {
            Ok((kept, effects)) => {
                let output = effects.outputs.iter().map(|(_, message)| message.data().len());
                assert!(output.sum::<usize>() as u64 <= SIZE, "{effects:?}");
                let state = effects.state.map_or(0, |state| state.text().len());
                assert!(state as u64 <= SIZE, "a state of {state} bytes");
                ended.push("answer");
                Some(kept)
            }
            Err(failure) => {
                assert!(!failure.kind.to_string().contains("panicked"), "{failure:?}");
                ended.push(failure.kind.class());
                failure.engine
            }
        };
        let memory = engine.as_ref().map_or(0, |engine| engine.memory_bytes());
        assert!(memory <= MEMORY, "a guest has {memory} bytes");
    }
    Went::Ran(ended)
}
