//! The engine on wasmtime itself.
//!
//! One compiler serves the process, and the code of a module is shared by all of
//! its actors. A guest's limits belong to its store: memory, tables, and a deadline
//! that the clock's ticks hold it to from its first instruction on. At a tick it
//! also lets others compute, so that a guest that never ends costs its neighbours
//! nothing but their share. A guest that broke is dropped with all that it held.

mod compiler;
mod guest;
mod abi;
mod blocks;
mod gate;
mod wasi;
mod mappings;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, EnginePer, Failure, FailureKind, HOST_MEMORY,
    InstantiateError, LeftState, Metadata, MigrateError, Program, State, Turn, panic::Boundary,
};
use tokio::runtime::Handle;
use tracing::warn;
use wasmtime::{
    FrameInfo, InstancePre, Linker, Module, Store, Trap, TypedFunc, Val, WasmBacktrace,
};

use self::{
    abi::AT_ONCE,
    blocks::Blocks,
    compiler::Running,
    gate::{Gate, Place},
    guest::Guest,
    wasi::{Exit, Wasi},
};
use crate::{
    account::{Account, OverHostMemory},
    binary::Binary,
    code::{self, Ended, Parts, Uncompiled, Unstarted},
    code_cache::CodeCache,
    host::{Host, Surroundings},
    migration,
    turn::{Side, encode_to, encoded_len},
};

/// Compiled code whose imports are resolved. Clones share it.
#[derive(Clone)]
pub(crate) struct Code {
    pre: InstancePre<Guest>,
    /// Whether a new instance runs code of the module before it is asked to.
    runs_at_instantiation: bool,
}

/// The code of the module with that digest, if it is kept there.
pub(crate) fn revive(cache: &CodeCache, digest: &Digest) -> Option<Module> {
    cache.get(compiler::engine(), digest)
}

impl Code {
    /// Code of a checked module.
    ///
    /// # Errors
    /// It does not fit the functions of the host.
    pub(crate) fn new(module: &Module, binary: &Binary) -> Result<Self, String> {
        let pre = linker().instantiate_pre(module).map_err(|e| e.root_cause().to_string())?;
        Ok(Self { pre, runs_at_instantiation: binary.runs_at_instantiation() })
    }

    /// Compiles a checked module. Takes long.
    ///
    /// # Errors
    /// It cannot be compiled, or not in reasonable time.
    pub(crate) fn compile(
        bytes: &[u8],
        binary: &Binary,
        keep: Option<(&CodeCache, &Digest)>,
    ) -> Result<Self, Uncompiled> {
        let module = compiler::compile(bytes, compiler::time_for(binary.code))?;
        if let Some((cache, digest)) = keep
            && let Err(error) = cache.put(compiler::engine(), digest, &module)
        {
            warn!(%digest, %error, "compiled code is not kept");
        }
        Self::new(&module, binary).map_err(Uncompiled::Refused)
    }

    /// A new instance, initialised.
    ///
    /// # Errors
    /// What went wrong in its start function or initialisers, that they take more
    /// than `time`, or that the system has no room for it.
    pub(crate) async fn instantiate(
        &self,
        around: &Arc<Surroundings>,
        memory: u64,
        time: Duration,
    ) -> Result<Instance, Unstarted> {
        let place = Arc::new(Place::new(Gate::of_process()));
        self.instantiate_at(place, around, memory, Instant::now() + time).await
    }

    async fn instantiate_at(
        &self,
        place: Arc<Place>,
        around: &Arc<Surroundings>,
        memory: u64,
        deadline: Instant,
    ) -> Result<Instance, Unstarted> {
        let host = Host::new(around.clone());
        let mut store = Store::new(compiler::engine(), Guest::new(host, memory, place));
        store.limiter(|guest| guest);
        store.epoch_deadline_callback(guest::tick);
        store.data_mut().host.deadline = deadline;
        store.set_epoch_deadline(1);
        let _running = Running::new();
        let started = async {
            let instance = self.pre.instantiate_async(&mut store).await?;
            initialise(&mut store, instance).await?;
            Ok(instance)
        };
        let instance = match started.await {
            Ok(instance) => instance,
            Err(error) => return Err(unstarted(error, store.data_mut())),
        };
        let guest = store.data_mut();
        Wasi::flush(guest);
        guest.blocks.end(&mut guest.host.account);
        Ok(Instance { store, instance })
    }
}

/// Runs what toolchains leave to the host: the constructors of a reactor, once.
async fn initialise(
    store: &mut Store<Guest>,
    instance: wasmtime::Instance,
) -> wasmtime::Result<()> {
    let plain = |store: &mut Store<Guest>, name| {
        let function = instance.get_func(&mut *store, name);
        function.map(|function| function.typed::<(), ()>(&*store).ok())
    };
    if let Some(haskell) = instance.get_func(&mut *store, "hs_init") {
        if let Some(Some(function)) = plain(store, "_initialize") {
            function.call_async(&mut *store, ()).await?;
        }
        // It is given no arguments, as a count and a list.
        let mut results = vec![Val::I32(0); haskell.ty(&*store).results().len()];
        return haskell.call_async(store, &[Val::I32(0), Val::I32(0)], &mut results).await;
    }
    // The first of that name counts, even where its type shows that it is another thing.
    let first = match plain(store, "__wasm_call_ctors") {
        Some(first) => Some(first),
        None => plain(store, "_initialize"),
    };
    match first.flatten() {
        Some(function) => function.call_async(store, ()).await,
        None => Ok(()),
    }
}

/// The functions of the host, for every module.
fn linker() -> &'static Linker<Guest> {
    static LINKER: OnceLock<Linker<Guest>> = OnceLock::new();
    LINKER.get_or_init(|| {
        let mut linker = Linker::new(compiler::engine());
        let linked = abi::link(&mut linker).and_then(|()| wasi::link(&mut linker));
        linked.expect("each function has a name of its own");
        linker
    })
}

/// A store with a module's only instance.
pub(crate) struct Instance {
    store: Store<Guest>,
    instance: wasmtime::Instance,
}

impl Instance {
    /// Calls an export that is asked about the module, outside of turns and of the
    /// gate: on a thread of its own.
    pub(crate) async fn ask(&mut self, export: &str, input: &[u8], deadline: Instant) -> Ended {
        let function = match self.function(export) {
            Ok(function) => function,
            Err(ended) => return ended,
        };
        let guest = self.store.data_mut();
        let Guest { host, blocks, .. } = guest;
        host.deadline = deadline;
        host.begin(HOST_MEMORY, 0);
        let given = |arena: &mut Vec<u8>| arena.extend_from_slice(input);
        if let Err(over) = blocks.begin(input.len(), &mut host.account, given) {
            return Ended::Bad(format!("no answer; with its input {over}"));
        }
        call(&mut self.store, &function).await
    }

    fn function(&mut self, export: &str) -> Result<TypedFunc<(), i32>, Ended> {
        let function = self.instance.get_typed_func(&mut self.store, export);
        function.map_err(|error| Ended::Trap(format!("`{export}`: {error}")))
    }
}

/// Calls a function of the store's instance whose input is in its blocks.
async fn call(store: &mut Store<Guest>, function: &TypedFunc<(), i32>) -> Ended {
    let running = Running::new();
    store.set_epoch_deadline(1);
    store.data_mut().room.begin();
    let code = function.call_async(&mut *store, ()).await;
    drop(running);
    let guest = store.data_mut();
    Wasi::flush(guest);
    let calls = code.as_ref().err().map(calls).unwrap_or_default();
    let ended = ended(code, guest);
    ended.log(&guest.host, &calls);
    guest.blocks.end(&mut guest.host.account);
    ended
}

/// The calls that a guest was in when it broke, with their names where the module has them.
fn calls(error: &wasmtime::Error) -> Vec<String> {
    let trace = error.downcast_ref::<WasmBacktrace>();
    let call = |frame: &FrameInfo| match frame.func_name() {
        Some(name) => code::readable_call(name),
        None => format!("function {}", frame.func_index()),
    };
    trace.into_iter().flat_map(WasmBacktrace::frames).map(call).collect()
}

/// What it means that a guest ended with that code, or did not end by itself.
fn ended(code: wasmtime::Result<i32>, guest: &mut Guest) -> Ended {
    let said = guest.blocks.error().map(code::error_text);
    let code = match code {
        Err(error) if error.downcast_ref() == Some(&Exit(0)) => Ok(0),
        code => code,
    };
    match code {
        Ok(code) => match (said, code) {
            (Some(error), _) => Ended::guest(error),
            (None, 0) => {
                let output = guest.blocks.take_output(&mut guest.host.account);
                output.map_or_else(Ended::Bad, Ended::Answer)
            }
            (None, code) => Ended::Guest(format!("exit code {code}, and no text")),
        },
        Err(error) if error.downcast_ref() == Some(&Trap::Interrupt) => Ended::Timeout,
        Err(error) => {
            let why = said.unwrap_or_else(|| error.root_cause().to_string());
            Ended::trap(match guest.room.refused() {
                Some(limit) => format!("{}: {why}", code::memory_limit_reached(limit)),
                None => why,
            })
        }
    }
}

/// Why it did not come to an instance.
fn unstarted(error: wasmtime::Error, guest: &mut Guest) -> Unstarted {
    if let Some(why) = mappings::refusal(&error) {
        return Unstarted::NoRoom(why);
    }
    match ended(Err(error), guest) {
        Ended::Timeout => Unstarted::Late,
        Ended::Trap(why) | Ended::Bad(why) | Ended::Guest(why) => Unstarted::Broke(why),
        Ended::Answer(_) => Unstarted::Broke("it exits while it is initialised".into()),
    }
}

/// A module made ready for one actor.
pub(crate) struct DirectProgram(Arc<Made>);

/// What a program and its engines share.
struct Made {
    parts: Parts,
    code: Code,
    /// The instance that proved the program; it becomes the first engine.
    proven: Mutex<Option<Instance>>,
}

impl DirectProgram {
    pub(crate) fn new(parts: Parts, code: Code, proven: Instance) -> Self {
        Self(Arc::new(Made { parts, code, proven: Mutex::new(Some(proven)) }))
    }
}

impl Made {
    async fn instantiate(&self) -> Result<Instance, String> {
        let Parts { around, memory, patience, .. } = &self.parts;
        let made = self.code.instantiate(around, *memory, *patience).await;
        made.map_err(|unstarted| unstarted.to_string())
    }
}

impl Program for DirectProgram {
    fn digest(&self) -> Digest {
        self.0.parts.digest
    }

    fn migrates_state(&self) -> bool {
        self.0.parts.migrates
    }

    fn migrate_state(&self, left: LeftState) -> BoxFuture<'_, Result<State, MigrateError>> {
        let made = self.0.clone();
        Box::pin(migration::aside(move || {
            let Parts { around, memory, patience, .. } = &made.parts;
            let instance = made.code.instantiate(around, *memory, *patience);
            let instance = Handle::current().block_on(instance);
            migration::migrate(instance.map(|i| code::Instance::Direct(Box::new(i))), &left)
        }))
    }

    fn metadata(&self) -> &Metadata {
        &self.0.parts.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        Box::pin(async move {
            let proven = self.0.proven.lock().take();
            let instance = if let Some(proven) = proven {
                Ok(proven)
            } else if self.0.code.runs_at_instantiation {
                let made = self.0.clone();
                let runtime = Handle::current();
                let work = move || runtime.block_on(made.instantiate());
                let done = Boundary::Instantiate.aside(work).await;
                done.unwrap_or_else(|panic| Err(panic.to_string()))
            } else {
                self.0.instantiate().await
            };
            let ready = instance.and_then(|instance| Ready::new(instance, &self.0.parts));
            let ready = ready.map_err(|why| InstantiateError { why })?;
            let place = ready.instance.store.data().place.clone();
            Ok(Box::new(DirectEngine { made: self.0.clone(), place, ready: Some(ready) })
                as Box<dyn Engine>)
        })
    }
}

/// An instance and its export that takes turns.
struct Ready {
    instance: Instance,
    entry: TypedFunc<(), i32>,
}

impl Ready {
    fn new(mut instance: Instance, parts: &Parts) -> Result<Self, String> {
        let entry = instance.instance.get_typed_func(&mut instance.store, &parts.entry_point);
        let entry = entry.map_err(|error| format!("`{}`: {error}", parts.entry_point))?;
        Ok(Self { instance, entry })
    }
}

/// One running instance, or for engines that last a message, the place for one.
struct DirectEngine {
    made: Arc<Made>,
    place: Arc<Place>,
    ready: Option<Ready>,
}

impl Engine for DirectEngine {
    fn turn(
        mut self: Box<Self>,
        context: Context,
        deadline: tokio::time::Instant,
    ) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            match self.run(context, deadline.into_std()).await {
                Ok(effects) => Ok((self as Box<dyn Engine>, effects)),
                Err(kind @ (FailureKind::Trap(_) | FailureKind::Timeout(_))) => {
                    Err(Failure { kind, engine: None })
                }
                Err(kind) => Err(Failure { kind, engine: Some(self) }),
            }
        })
    }

    fn memory_bytes(&self) -> u64 {
        self.ready.as_ref().map_or(0, |ready| ready.instance.store.data().room.taken() as u64)
    }
}

impl DirectEngine {
    async fn run(
        &mut self,
        mut context: Context,
        deadline: Instant,
    ) -> Result<Effects, FailureKind> {
        let Self { made, place, ready } = self;
        let _entered = place.enter();
        let begun = Instant::now();
        if deadline <= begun {
            return Err(FailureKind::Timeout(Duration::ZERO));
        }
        let parts = &made.parts;
        let mut anew = None;
        let ready = match ready {
            Some(ready) => ready,
            None => {
                // Boxed, so that the turns of engines that last need no room for it.
                let instance = Box::pin(made.code.instantiate_at(
                    place.clone(),
                    &parts.around,
                    parts.memory,
                    deadline,
                ));
                let instance = instance.await.map_err(|unstarted| match unstarted {
                    Unstarted::Late => FailureKind::Timeout(begun.elapsed()),
                    broken => FailureKind::Trap(broken.to_string()),
                })?;
                anew.insert(Ready::new(instance, parts).map_err(FailureKind::Trap)?)
            }
        };
        let store = &mut ready.instance.store;
        let limit = context.limits.host_memory;
        let held = context.state.held_bytes();
        let guest = store.data_mut();
        guest.host.begin(limit, held);
        guest.host.deadline = deadline;
        let meter = context.host_memory.take();
        if let Err(over) = begin(guest, context, &parts.around).await {
            guest.host.account.tell(meter.as_deref());
            return Err(FailureKind::Turn(format!("the turn's input has no room: {over}")));
        }
        let ended = call(store, &ready.entry).await;
        let guest = store.data_mut();
        let (side, mut account) = (guest.host.side.take(), guest.host.account);
        let deadline = guest.deadline();
        let side = side.expect("it is put there before each call");
        if parts.engine_per == EnginePer::Message {
            self.ready = None;
        }
        let work = match &ended {
            Ended::Answer(result) => side.finishing(result.len()),
            _ => 0,
        };
        let outcome = match ended {
            Ended::Answer(result) => {
                let finish = move || (side.finish(result, &mut account), account);
                let is_long = work > AT_ONCE;
                let finished = if is_long { place.aside(finish).await } else { finish() };
                account = finished.1;
                if is_long && Instant::now() >= deadline {
                    Err(FailureKind::Timeout(begun.elapsed()))
                } else {
                    finished.0.map_err(FailureKind::Turn)
                }
            }
            Ended::Bad(why) => Err(FailureKind::Turn(format!("the guest gave {why}"))),
            Ended::Guest(error) => Err(FailureKind::Guest(error)),
            Ended::Trap(why) => Err(FailureKind::Trap(why)),
            Ended::Timeout => Err(FailureKind::Timeout(begun.elapsed())),
        };
        account.tell(meter.as_deref());
        outcome
    }
}

/// Gives a turn its input: at once, or aside where others would have to wait for it.
async fn begin(
    guest: &mut Guest,
    context: Context,
    around: &Arc<Surroundings>,
) -> Result<(), OverHostMemory> {
    let config = &around.context_config;
    let hint = encoded_len(&context, config);
    let encode =
        move |context: &Context, config: &[u8], blocks: &mut Blocks, account: &mut Account| {
            blocks.begin(hint, account, |arena| encode_to(arena, context, config))
        };
    if hint as u64 <= AT_ONCE {
        encode(&context, config, &mut guest.blocks, &mut guest.host.account)?;
        guest.host.side = Some(Side::new(context));
        return Ok(());
    }
    let side = Side::new(context.clone());
    guest.host.side = Some(side);
    let mut desk = guest.lend().expect("its side was just put there");
    let (config, place) = (config.clone(), guest.place.clone());
    let encoding = place.aside(move || {
        let encoded = encode(&context, &config, &mut desk.blocks, &mut desk.account);
        (desk, encoded)
    });
    let (desk, encoded) = encoding.await;
    guest.take_back(desk);
    encoded
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};
    use reflowd_runtime::{ActorLog, ActorName, MessageId, Module, ProgramSpec, State, TurnLimits};

    use super::*;
    use crate::{Limits, Loader};

    const GUEST: &str = r#"(module
      (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
      (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
      (import "extism:host/env" "output_set" (func $output (param i64 i64)))
      (memory 1)
      (data (i32.const 0) "{\22component\22:\22Guest\22,\22inports\22:[],\22outports\22:[],\22outputs\22:{}}")
      (func (export "process") (result i32)
        (local $left i32)
        ;; Longer than a tick, and much shorter than its deadline.
        (local.set $left (i32.const 20000000))
        (loop $again
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $again (local.get $left)))
        (call $answer))
      (func $answer (export "get_metadata") (result i32)
        (local $block i64) (local $at i32)
        (local.set $block (call $alloc (i64.const 61)))
        (loop $next
          (call $store (i64.add (local.get $block) (i64.extend_i32_u (local.get $at)))
            (i32.load8_u (local.get $at)))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $next (i32.lt_u (local.get $at) (i32.const 61))))
        (call $output (local.get $block) (i64.const 61))
        (i32.const 0)))"#;

    /// A guest whose turn does that, and which is quick about it.
    fn quick(process: &str) -> String {
        let imports = r#"(module
          (import "extism:host/env" "output_set" (func $output (param i64 i64)))
          (import "extism:host/user" "__send_output" (func $send (param i64)))
          (import "extism:host/user" "__get_state" (func $get (param i64) (result i64)))
          (import "extism:host/user" "__set_state" (func $set (param i64 i64)))"#;
        let rest = GUEST.split_once("(module").expect("it is a module").1;
        let rest = rest.replacen(
            r#"(import "extism:host/env" "output_set" (func $output (param i64 i64)))"#,
            "",
            1,
        );
        let (before, after) = rest.split_once(r#"(func (export "process")"#).expect("it has one");
        let (_, after) = after.split_once("(func $answer").expect("it answers");
        format!(
            r#"{imports} {before}
            (func $block (param $byte i32) (result i64)
              (local $at i64)
              (local.set $at (call $alloc (i64.const 1)))
              (call $store (local.get $at) (local.get $byte))
              (local.get $at))
            (func (export "process") (result i32) {process})
            (func $answer{after}"#
        )
    }

    async fn engine(guest: &str) -> Box<dyn Engine> {
        let bytes = wat::parse_str(guest).expect("it is WebAssembly");
        let module = Loader::new(Limits::default()).load_bytes("guest", bytes.into()).await;
        let actor: ActorName = "actor".parse().expect("a plain word names an actor");
        let spec = ProgramSpec {
            actor: actor.clone(),
            config: serde_json::Map::new(),
            env: std::collections::BTreeMap::new(),
            entry_point: None,
            memory: 1 << 20,
            allow_hosts: Vec::new(),
            engine_per: EnginePer::Actor,
            version: None,
            log: ActorLog::new(actor, 100),
        };
        let program = module.expect("it loads").prepare(spec).await.expect("it has no config");
        program.instantiate().await.expect("it is proven")
    }

    fn context() -> Context {
        Context {
            payload: Vec::new(),
            state: State::default(),
            message: MessageId::new(),
            trace: None,
            meta: None,
            state_in_context: true,
            limits: TurnLimits::default(),
            now: None,
            host_memory: None,
        }
    }

    /// Places at the gate, as many as there are.
    fn all_places() -> Vec<Place> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).map(|_| Place::new(Gate::of_process())).collect()
    }

    /// Who has all of them. Two who had some would wait for each other.
    static ALL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// Takes them.
    async fn take(places: &[Place]) -> Vec<gate::Entered<'_>> {
        let taken = places.iter().map(async |place| {
            let entered = place.enter();
            place.give_way().await;
            entered
        });
        join_all(taken).await
    }

    /// A state of so many bytes or some more.
    fn large_state(bytes: usize) -> State {
        let entry = format!("\"{}\":1,", "k".repeat(100));
        let text = format!("{{{}\"z\":1}}", entry.repeat(bytes / entry.len() + 1));
        State::new(text).expect("it is an object")
    }

    /// What the host does for a turn that is more than can be done at once: a turn of each
    /// kind, and what it is given.
    fn long_work() -> [(&'static str, &'static str, Context); 5] {
        const LARGE: usize = 1 << 20;
        let unseen = || Context { state: large_state(LARGE), state_in_context: false, ..context() };
        let seen = || Context { state: large_state(LARGE), ..context() };
        [
            ("its input", "(call $answer)", seen()),
            (
                "__get_state",
                "(drop (call $get (call $block (i32.const 122)))) (call $answer)",
                unseen(),
            ),
            (
                "__set_state",
                "(call $set (call $block (i32.const 122)) (call $block (i32.const 55))) (call $answer)",
                unseen(),
            ),
            // Zeros are no JSON, but that has to be seen first.
            (
                "__send_output",
                "(call $send (call $alloc (i64.const 1048576))) (call $answer)",
                context(),
            ),
            (
                "its result",
                "(call $output (call $alloc (i64.const 1048576)) (i64.const 1048576)) (i32.const 0)",
                context(),
            ),
        ]
    }

    #[tokio::test]
    async fn long_work_of_the_host_for_a_turn_waits_for_a_place_and_short_work_does_not() {
        for (what, process, context) in long_work() {
            let engine = engine(&quick(process)).await;
            let _all = ALL.lock().await;
            let places = all_places();
            let taken = take(&places).await;
            let mut turn = engine.turn(context, (Instant::now() + Duration::from_secs(60)).into());
            assert!((&mut turn).now_or_never().is_none(), "{what} is done at once");
            drop(taken);
            let kind = turn.await.err().map(|failure| failure.kind);
            assert!(matches!(kind, None | Some(FailureKind::Turn(_))), "{what}: {kind:?}");
        }
        // On a busy machine the clock may tick meanwhile: then another is taken.
        loop {
            let engine = engine(&quick("(call $answer)")).await;
            let _all = ALL.lock().await;
            let places = all_places();
            let _taken = take(&places).await;
            let turn = engine.turn(context(), (Instant::now() + Duration::from_secs(60)).into());
            if turn.now_or_never().is_some() {
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_turn_whose_time_is_over_when_the_host_has_done_its_work_has_timed_out() {
        const LARGE: usize = 40 << 20;
        let context = || Context {
            state: large_state(LARGE),
            state_in_context: false,
            limits: TurnLimits { state: 64 << 20, host_memory: 256 << 20, ..TurnLimits::default() },
            ..context()
        };
        let indexed = context();
        indexed.state.index();
        for (what, process, context) in [
            // Nothing follows at which the clock would be looked at.
            (
                "__get_state",
                "(drop (call $get (call $block (i32.const 122)))) (i32.const 0)",
                context(),
            ),
            (
                "its end",
                "(call $set (call $block (i32.const 122)) (call $block (i32.const 55))) (call $answer)",
                indexed,
            ),
        ] {
            let engine = engine(&quick(process)).await;
            let millisecond = Instant::now() + Duration::from_millis(1);
            let ended = engine.turn(context, millisecond.into()).await;
            let kind = ended.err().map(|failure| failure.kind);
            assert!(matches!(kind, Some(FailureKind::Timeout(_))), "{what}: {kind:?}");
        }
    }

    #[tokio::test]
    async fn a_turn_that_had_to_wait_for_its_place_still_has_all_of_its_time() {
        let mut engine = engine(GUEST).await;
        let _all = ALL.lock().await;
        let places = all_places();
        let taken = take(&places).await;
        let time = Duration::from_secs(1);
        // On a busy machine the clock may tick too late to see a turn: then another is taken.
        let (begun, mut turn) = loop {
            let begun = Instant::now();
            let mut turn = engine.turn(context(), (begun + time).into());
            match (&mut turn).now_or_never() {
                None => break (begun, turn),
                Some(Ok((back, _))) => engine = back,
                Some(Err(failure)) => panic!("{:?}", failure.kind),
            }
        };
        while begun.elapsed() <= time {
            assert!((&mut turn).now_or_never().is_none(), "all places are taken");
            tokio::task::yield_now().await;
        }
        drop(taken);
        let ended = turn.await.map_err(|failure| failure.kind);
        assert!(ended.is_ok(), "{:?}", ended.err());
    }
}
