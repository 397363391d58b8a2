//! The least that a host of the plug-in ABI can do: the floor for a turn's price.
//!
//! The guest's function is looked up once and called synchronously; epochs are on;
//! the blocks of memory that it hands over lie in one vector of the host. There are
//! no limits, no time-outs, no configuration and no turn around it.

use std::ops::Range;

use wasmtime::{Caller, Config, Engine, Linker, Module, Result, Store, TypedFunc};

const ENV: &str = "extism:host/env";

/// An instance of a guest.
pub(crate) struct Lean {
    store: Store<Arena>,
    process: TypedFunc<(), i32>,
}

/// What both sides can reach.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
    input: usize,
    output: Range<usize>,
}

impl Lean {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut config = Config::new();
        config.epoch_interruption(true).concurrency_support(false);
        let engine = Engine::new(&config).expect("the settings agree with each other");
        let mut linker = Linker::new(&engine);
        link(&mut linker).expect("each function has a name of its own");
        let module = Module::new(&engine, bytes).expect("the guest is committed");
        let mut store = Store::new(&engine, Arena::default());
        // Nothing ticks, but the code looks all the same.
        store.set_epoch_deadline(1);
        let instance = linker.instantiate(&mut store, &module);
        let instance = instance.expect("the guest asks for no other functions");
        let process = instance.get_typed_func(&mut store, "process");
        Self { process: process.expect("the guest takes turns"), store }
    }

    /// One call: the context in, the result out.
    pub(crate) fn call(&mut self, context: &[u8]) -> &[u8] {
        let arena = self.store.data_mut();
        arena.bytes.clear();
        arena.bytes.extend_from_slice(context);
        (arena.input, arena.output) = (context.len(), 0..0);
        let code = self.process.call(&mut self.store, ()).expect("the guest does not trap");
        assert_eq!(code, 0, "the guest takes every context");
        let arena = self.store.data();
        &arena.bytes[arena.output.clone()]
    }
}

impl Arena {
    fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let bytes = self.bytes.get(index(at)..).and_then(<[u8]>::first_chunk);
        bytes.copied().unwrap_or([0; N])
    }

    fn store(&mut self, at: u64, value: &[u8]) {
        let at = index(at);
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("this machine has 64 bits")
}

/// What a guest of the plug-in crate imports for its input, output and error.
fn link(linker: &mut Linker<Arena>) -> Result<()> {
    linker.func_wrap(ENV, "alloc", |mut caller: Caller<'_, Arena>, size: u64| {
        let bytes = &mut caller.data_mut().bytes;
        let start = bytes.len().next_multiple_of(8).max(8);
        bytes.resize(start + index(size), 0);
        start as u64
    })?;
    linker.func_wrap(ENV, "store_u64", |mut caller: Caller<'_, Arena>, at: u64, value: u64| {
        caller.data_mut().store(at, &value.to_le_bytes());
    })?;
    linker.func_wrap(ENV, "store_u8", |mut caller: Caller<'_, Arena>, at: u64, value: u32| {
        caller.data_mut().store(at, &value.to_le_bytes()[..1]);
    })?;
    linker.func_wrap(ENV, "output_set", |mut caller: Caller<'_, Arena>, at: u64, size: u64| {
        caller.data_mut().output = index(at)..index(at) + index(size);
    })?;
    linker
        .func_wrap(ENV, "input_length", |caller: Caller<'_, Arena>| caller.data().input as u64)?;
    linker.func_wrap(ENV, "input_load_u64", |caller: Caller<'_, Arena>, at: u64| {
        u64::from_le_bytes(caller.data().load(at))
    })?;
    linker.func_wrap(ENV, "input_load_u8", |caller: Caller<'_, Arena>, at: u64| {
        u32::from(caller.data().load::<1>(at)[0])
    })?;
    linker.func_wrap(ENV, "error_set", |_: Caller<'_, Arena>, _: u64| {})?;
    Ok(())
}
