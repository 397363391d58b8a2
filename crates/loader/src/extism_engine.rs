//! The engine on the Extism SDK. The only file that names it.
//!
//! It runs a guest as the ABI's reference does, and blocks the thread that calls
//! it. It is no sandbox. Exempt from the limits, because the SDK gives no hold on
//! them: time spent in start functions and initialisers of an actor's engine
//! (bounded by fuel when the module is loaded), waits inside host calls and WASI,
//! tables, memory growth that fails softly (here it traps), what a guest prints
//! through WASI (discarded), handles whose blocks a guest has forged, and
//! precompiled code on disk.
//!
//! Three rules keep the rest safe:
//! * Plug-ins of one `CompiledPlugin` interrupt each other when one is cancelled,
//!   so every program compiles its own.
//! * While a plug-in is instantiated, the SDK's pointers to its store dangle, and
//!   a host function that touches memory would follow them. So every host
//!   function is ours, and serves only the plug-in that sits in the [`Seat`];
//!   nobody sits there before instantiation is over.
//! * A plug-in that trapped or ran out of time is in no known state: it is dropped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use extism::{
    CompiledPlugin, CurrentPlugin, Error, FromBytes, Manifest, PTR, Plugin, PluginBuilder,
    UserData, Val, ValType, Wasm,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use reflowd_runtime::{
    Context, Digest, Engine, EnginePer, Failure, FailureKind, InstantiateError, LeftState,
    Metadata, MigrateError, Program, State, Turn, panic::Boundary,
};
use tokio::runtime::{Handle, RuntimeFlavor};
use tracing::Level;

use crate::{
    account::Account,
    binary::{Binary, PAGE},
    code::{self, Ended, MAX_FRAMES, Parts},
    deadline,
    host::{self, Host, Surroundings},
    migration,
    signature::{ENV, USER},
    turn::{Side, encode, encoded_len},
};

/// Instructions that initialisers may take when a module is loaded: some seconds.
const INITIALISER_FUEL: u64 = 1_000_000_000;

/// Why a host function refuses a guest that is not being called.
const NOT_SEATED: &str = "calls host functions while it is initialised, which the extism engine cannot serve; call them from exports";

/// Compiled code with the host functions of one program.
pub(crate) struct Code {
    compiled: CompiledPlugin,
    seat: Arc<Seat>,
    /// A name that the module does not export; calling it only instantiates.
    absent: String,
    /// Bytes of linear memory that its instances may have.
    memory: u64,
}

impl Code {
    /// Compiles a module. Takes long.
    ///
    /// # Errors
    /// The compiler's error.
    pub(crate) fn compile(bytes: &[u8], binary: &Binary, memory: u64) -> Result<Self, String> {
        Self::build(bytes, binary, memory, None)
    }

    /// Compiles a module so that it cannot run for ever in initialisers, where
    /// deadlines do not reach. It runs slower.
    pub(crate) fn compile_with_fuel(
        bytes: &[u8],
        binary: &Binary,
        memory: u64,
    ) -> Result<Self, String> {
        Self::build(bytes, binary, memory, Some(INITIALISER_FUEL))
    }

    fn build(
        bytes: &[u8],
        binary: &Binary,
        memory: u64,
        fuel: Option<u64>,
    ) -> Result<Self, String> {
        // The guest's own memory is bounded by its declaration. The SDK's bound is
        // a budget that guest and kernel share for growing; it must cover the
        // initial pages too, since it is held against them at the second of the
        // two instantiations that make a plug-in.
        let pages = u32::try_from(memory / PAGE).unwrap_or(u32::MAX);
        let bytes = Binary::with_memory_limit(bytes, memory);
        let manifest = Manifest::new([Wasm::data(bytes)]).with_memory_max(pages);
        let seat = Arc::new(Seat(Mutex::new(None)));
        let mut builder =
            PluginBuilder::new(manifest).with_cache_disabled().with_wasi(binary.needs_wasi());
        if let Some(fuel) = fuel {
            builder = builder.with_fuel_limit(fuel);
        }
        let compiled =
            with_host_functions(builder, &seat).compile().map_err(|e| innermost(&e, memory))?;
        Ok(Self { compiled, seat, absent: binary.absent_export(), memory })
    }

    /// A new instance, initialised. Blocks.
    ///
    /// # Errors
    /// What went wrong in its start function or initialisers.
    pub(crate) fn instantiate(&self, around: &Arc<Surroundings>) -> Result<Instance, String> {
        let failed = |error: &Error| innermost(error, self.memory);
        let mut plugin = Plugin::new_from_compiled(&self.compiled).map_err(|e| failed(&e))?;
        match plugin.call::<&[u8], Output>(&self.absent, &[]) {
            Err(error) if error.to_string().starts_with("Function not found") => {}
            Err(error) => return Err(failed(&error)),
            Ok(_) => return Err(format!("answers a call of `{}`", self.absent)),
        }
        let host = Some(Host::new(around.clone()));
        Ok(Instance { plugin, seat: self.seat.clone(), host, memory: self.memory })
    }
}

/// A plug-in and its host.
pub(crate) struct Instance {
    plugin: Plugin,
    seat: Arc<Seat>,
    /// Absent only while it is in the seat.
    host: Option<Host>,
    /// Bytes of linear memory that it may have.
    memory: u64,
}

/// The earliest that a deadline strikes, counted from the beginning of a call.
///
/// The SDK takes one cancel for each call. One that comes before the guest runs,
/// but after the SDK's own timer has heard of the call, is taken and has no
/// effect, and the call would never end. By this time the guest runs.
const FIRST_STROKE: Duration = Duration::from_millis(20);

impl Instance {
    /// Calls an export that is asked about the module, outside of turns. Blocks.
    pub(crate) fn ask(&mut self, export: &str, input: &[u8], deadline: Instant) -> Ended {
        self.call(export, input, None, deadline).1
    }

    /// Calls an export. Blocks until it ends or, at the latest, `deadline`.
    fn call(
        &mut self,
        export: &str,
        input: &[u8],
        side: Option<Side>,
        deadline: Instant,
    ) -> (Option<Side>, Ended) {
        let now = Instant::now();
        if deadline <= now {
            return (side, Ended::Timeout);
        }
        let mut host = self.host.take().expect("the host comes back from every call");
        host.side = side;
        host.deadline = deadline;
        *self.seat.0.lock() = Some(Seated { plugin: self.plugin.id.as_u128(), host });
        let cancel = self.plugin.cancel_handle();
        // An error means that the SDK's timer is gone, with the process.
        let strike = deadline.max(now + FIRST_STROKE);
        let armed = deadline::arm(strike, Box::new(move || _ = cancel.cancel()));
        let answer = self.plugin.call::<&[u8], Output>(export, input);
        let struck = armed.disarm();
        let seated = self.seat.0.lock().take();
        let mut host = seated.expect("only the call that took the seat leaves it").host;
        let side = host.side.take();
        let calls = answer.as_ref().err().map(calls).unwrap_or_default();
        let ended = match answer {
            _ if struck => Ended::Timeout,
            Ok(Output(Ok(bytes))) => Ended::Answer(bytes),
            Ok(Output(Err(size))) => Ended::Bad(format!("an output of {size} bytes")),
            Err(error) => classify(&error, self.memory),
        };
        ended.log(&host, &calls);
        self.host = Some(host);
        (side, ended)
    }
}

/// Tells a guest's own error from a guest that broke.
///
/// The SDK wraps what went wrong while WebAssembly ran into a backtrace, and
/// hands out the guest's own message alone. What it says itself, alone as well,
/// is known by its words; a guest that uses the same words is taken for broken,
/// which costs it an engine and a retry.
fn classify(error: &Error, memory: u64) -> Ended {
    let cause = error.root_cause().to_string();
    let sdk = ["oom", "timeout", "plugin ran out of fuel"].contains(&cause.as_str())
        || ["unable to ", "Function ", "wasm trap: ", "instance lock "]
            .iter()
            .any(|start| cause.starts_with(start))
        || cause.ends_with(" out of memory");
    if error.chain().count() == 1 && !sdk {
        Ended::guest(cause)
    } else {
        Ended::trap(innermost(error, memory))
    }
}

/// The calls that a guest was in when it broke. The SDK gives them as text alone, a line
/// for each: `  0: 0x1f - module!name`.
fn calls(error: &Error) -> Vec<String> {
    let text = error.chain().map(ToString::to_string).find(|text| text.contains(BACKTRACE));
    let text = text.unwrap_or_default();
    let lines = text.lines().skip_while(|line| !line.contains(BACKTRACE)).skip(1);
    let call = |line: &str| {
        let name = line.rsplit_once('!').map_or(line, |(_, name)| name).trim();
        match name.strip_prefix("<wasm function ").and_then(|number| number.strip_suffix('>')) {
            Some(number) => format!("function {number}"),
            None => code::readable_call(name),
        }
    };
    lines.take(MAX_FRAMES).map(call).collect()
}

/// The beginning of the SDK's text.
const BACKTRACE: &str = "wasm backtrace:";

fn innermost(error: &Error, memory: u64) -> String {
    match error.root_cause().to_string().as_str() {
        "oom" => code::memory_limit_reached(memory),
        "plugin ran out of fuel" | "wasm trap: all fuel consumed by WebAssembly" => {
            "its initialisers do not end".into()
        }
        text => text.into(),
    }
}

/// Output of a guest, copied once. An impossible length is not looked at.
struct Output(Result<Bytes, usize>);

impl FromBytes<'_> for Output {
    fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        // The guest may have given any length; nothing longer than an address
        // space of 32 bits can be in the kernel's memory.
        let fits = u32::try_from(bytes.len()).is_ok();
        Ok(Self(if fits { Ok(Bytes::copy_from_slice(bytes)) } else { Err(bytes.len()) }))
    }
}

/// Where the host sits for the plug-in that is being called.
struct Seat(Mutex<Option<Seated>>);

struct Seated {
    plugin: u128,
    host: Host,
}

/// One host function: what it asks of the host, through the plug-in's memory.
type Serve = fn(&mut CurrentPlugin, &mut Host, &[Val]) -> Result<Option<Val>, Error>;

fn with_host_functions<'a>(builder: PluginBuilder<'a>, seat: &Arc<Seat>) -> PluginBuilder<'a> {
    let functions: [(&str, &str, usize, Option<ValType>, Serve); 15] = [
        (USER, "__send_output", 1, None, send_output),
        (USER, "__get_state", 1, Some(PTR), get_state),
        (USER, "__set_state", 2, None, set_state),
        (ENV, "config_get", 1, Some(PTR), config_get),
        (ENV, "var_get", 1, Some(PTR), var_get),
        (ENV, "var_set", 2, None, var_set),
        (ENV, "http_request", 2, Some(PTR), http_request),
        (ENV, "http_status_code", 0, Some(ValType::I32), |_, host, _| {
            Ok(Some(Val::I32(host.http_status.into())))
        }),
        (ENV, "http_headers", 0, Some(PTR), |plugin, host, _| {
            give(plugin, Some(&host.http_headers))
        }),
        (ENV, "log_trace", 1, None, |plugin, host, args| log(plugin, host, args, Level::TRACE)),
        (ENV, "log_debug", 1, None, |plugin, host, args| log(plugin, host, args, Level::DEBUG)),
        (ENV, "log_info", 1, None, |plugin, host, args| log(plugin, host, args, Level::INFO)),
        (ENV, "log_warn", 1, None, |plugin, host, args| log(plugin, host, args, Level::WARN)),
        (ENV, "log_error", 1, None, |plugin, host, args| log(plugin, host, args, Level::ERROR)),
        (ENV, "get_log_level", 0, Some(ValType::I32), |_, _, _| {
            Ok(Some(Val::I32(host::log_level())))
        }),
    ];
    functions.into_iter().fold(builder, |builder, (namespace, name, params, result, serve)| {
        let seat = seat.clone();
        builder.with_function_in_namespace(
            namespace,
            name,
            vec![PTR; params],
            result,
            UserData::new(()),
            move |plugin, args, results, _| {
                let mut seated = seat.0.lock();
                let id = plugin.id().as_u128();
                let Some(seated) = seated.as_mut().filter(|seated| seated.plugin == id) else {
                    return Err(Error::msg(NOT_SEATED));
                };
                if let (Some(value), Some(result)) =
                    (serve(plugin, &mut seated.host, args)?, results.first_mut())
                {
                    *result = value;
                }
                Ok(())
            },
        )
    })
}

fn send_output(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let (side, account) = side(host)?;
    side.send_output(taken(plugin, args, 0)?, account);
    Ok(None)
}

fn get_state(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let (side, account) = side(host)?;
    let value = side.get_state(taken(plugin, args, 0)?, account);
    give(plugin, Some(&value))
}

fn set_state(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let (side, account) = side(host)?;
    let key = copied(plugin, args, account)?;
    side.set_state(&key, taken(plugin, args, 1)?, account);
    account.give_back(key.len() as u64);
    Ok(None)
}

fn config_get(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let value = host.config(taken(plugin, args, 0)?);
    free(plugin, args);
    give(plugin, value.map(str::as_bytes))
}

fn var_get(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let value = host.var(taken(plugin, args, 0)?);
    free(plugin, args);
    give(plugin, value.as_deref())
}

fn var_set(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let key = copied(plugin, args, &mut host.account)?;
    let removes = args.get(1).and_then(Val::i64) == Some(0);
    let value = if removes { None } else { Some(taken(plugin, args, 1)?) };
    host.account.give_back(key.len() as u64);
    host.set_var(&key, value)?;
    free(plugin, args);
    Ok(None)
}

fn http_request(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
) -> Result<Option<Val>, Error> {
    let request = copied(plugin, args, &mut host.account)?;
    let body = taken(plugin, args, 1)?;
    let answer = host.http(&request, body);
    host.account.give_back(request.len() as u64);
    free(plugin, args);
    give(plugin, Some(&answer))
}

fn log(
    plugin: &mut CurrentPlugin,
    host: &mut Host,
    args: &[Val],
    level: Level,
) -> Result<Option<Val>, Error> {
    host.log(level, taken(plugin, args, 0)?);
    free(plugin, args);
    Ok(None)
}

fn side(host: &mut Host) -> Result<(&mut Side, &mut Account), Error> {
    let Host { side, account, .. } = host;
    let side = side.as_mut().ok_or_else(|| Error::msg(host::NO_TURN))?;
    Ok((side, account))
}

/// A copy of the bytes of the first argument's block, so that another can be looked at.
fn copied(
    plugin: &mut CurrentPlugin,
    args: &[Val],
    account: &mut Account,
) -> Result<Vec<u8>, Error> {
    let bytes = taken(plugin, args, 0)?;
    account.take(bytes.len() as u64).map_err(Error::new)?;
    Ok(bytes.to_vec())
}

/// The bytes of the block that argument `index` is the handle of.
fn taken<'p>(plugin: &'p mut CurrentPlugin, args: &[Val], index: usize) -> Result<&'p [u8], Error> {
    let offset = args.get(index).and_then(Val::i64).unwrap_or(0).cast_unsigned();
    // The kernel looks for a block that begins right there, so that neither an
    // offset beyond its memory nor one inside a block finds any.
    let handle = plugin.memory_handle(offset).ok_or_else(|| {
        Error::msg(format!("a host function was given {offset}, which is no block of memory"))
    })?;
    if handle.is_empty() { Ok(&[]) } else { plugin.memory_bytes(handle) }
}

/// A handle of a new block; 0 for nothing.
fn give(plugin: &mut CurrentPlugin, bytes: Option<&[u8]>) -> Result<Option<Val>, Error> {
    let offset = match bytes {
        Some(bytes) => plugin.memory_new(bytes)?.offset(),
        None => 0,
    };
    Ok(Some(Val::I64(offset.cast_signed())))
}

/// Gives back the blocks of the arguments: these functions own what they are given.
fn free(plugin: &mut CurrentPlugin, args: &[Val]) {
    for offset in args.iter().filter_map(Val::i64) {
        if let Some(handle) = plugin.memory_handle(offset.cast_unsigned()) {
            // The kernel ignores what it does not know.
            _ = plugin.memory_free(handle);
        }
    }
}

/// A module made ready for one actor.
pub(crate) struct ExtismProgram(Arc<Made>);

/// What a program and its engines share.
struct Made {
    parts: Parts,
    code: Code,
    /// The instance that proved the program; it becomes the first engine.
    proven: Mutex<Option<Instance>>,
}

impl ExtismProgram {
    pub(crate) fn new(parts: Parts, code: Code, proven: Instance) -> Self {
        Self(Arc::new(Made { parts, code, proven: Mutex::new(Some(proven)) }))
    }
}

impl Program for ExtismProgram {
    fn digest(&self) -> Digest {
        self.0.parts.digest
    }

    fn migrates_state(&self) -> bool {
        self.0.parts.migrates
    }

    fn migrate_state(&self, left: LeftState) -> BoxFuture<'_, Result<State, MigrateError>> {
        let made = self.0.clone();
        Box::pin(migration::aside(move || {
            let instance = made.code.instantiate(&made.parts.around);
            let instance = instance.map_err(code::Unstarted::Broke);
            migration::migrate(instance.map(|i| code::Instance::Extism(Box::new(i))), &left)
        }))
    }

    fn metadata(&self) -> &Metadata {
        &self.0.parts.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        Box::pin(async move {
            let engine = |instance| -> Box<dyn Engine> {
                let made = self.0.clone();
                Box::new(ExtismEngine { made, instance: Some(instance), pace: Pace::default() })
            };
            if let Some(instance) = self.0.proven.lock().take() {
                return Ok(engine(instance));
            }
            let made = self.0.clone();
            let work =
                Boundary::Instantiate.aside(move || made.code.instantiate(&made.parts.around));
            let failed = |why: String| InstantiateError { why };
            match tokio::time::timeout(self.0.parts.patience, work).await {
                Ok(Ok(instance)) => instance.map(engine).map_err(failed),
                Ok(Err(panic)) => Err(failed(panic.to_string())),
                Err(_) => Err(failed(format!("it takes more than {:?}", self.0.parts.patience))),
            }
        })
    }
}

/// One running plug-in.
struct ExtismEngine {
    made: Arc<Made>,
    /// Absent between two turns of an actor with an engine per message.
    instance: Option<Instance>,
    pace: Pace,
}

impl Engine for ExtismEngine {
    fn turn(
        mut self: Box<Self>,
        context: Context,
        deadline: tokio::time::Instant,
    ) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let begun = Instant::now();
            let turn = if self.pace.hands_over() {
                tokio::task::block_in_place(|| self.run(context, deadline.into_std()))
            } else {
                self.run(context, deadline.into_std())
            };
            self.pace.note(begun.elapsed());
            let fail = |kind, engine: Option<Box<Self>>| {
                Err(Failure { kind, engine: engine.map(|engine| engine as Box<dyn Engine>) })
            };
            match turn {
                Ok(effects) => Ok((self as Box<dyn Engine>, effects)),
                Err(kind @ (FailureKind::Trap(_) | FailureKind::Timeout(_))) => fail(kind, None),
                Err(kind) => fail(kind, Some(self)),
            }
        })
    }
}

impl ExtismEngine {
    fn run(
        &mut self,
        mut context: Context,
        deadline: Instant,
    ) -> Result<reflowd_runtime::Effects, FailureKind> {
        let begun = Instant::now();
        let config = self.made.parts.around.context_config.clone();
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => {
                self.made.code.instantiate(&self.made.parts.around).map_err(FailureKind::Trap)?
            }
        };
        let host = instance.host.as_mut().expect("nobody sits there between two calls");
        let meter = context.host_memory.take();
        host.begin(context.limits.host_memory, context.state.held_bytes());
        if let Err(over) = host.account.take(encoded_len(&context, &config) as u64) {
            host.account.tell(meter.as_deref());
            self.instance = Some(instance);
            return Err(FailureKind::Turn(format!("the turn's input has no room: {over}")));
        }
        let input = encode(&context, &config);
        let side = Side::new(context);
        let (side, ended) =
            instance.call(&self.made.parts.entry_point, &input, Some(side), deadline);
        drop(input);
        let host = instance.host.as_ref().expect("the host comes back from every call");
        let mut account = host.account;
        if self.made.parts.engine_per == EnginePer::Actor {
            self.instance = Some(instance);
        }
        let side = side.expect("a turn's side comes back from the call");
        let outcome = match ended {
            Ended::Answer(result) => account
                .take(result.len() as u64)
                .map_err(|over| over.to_string())
                .and_then(|()| side.finish(result, &mut account))
                .map_err(FailureKind::Turn),
            Ended::Bad(why) => Err(FailureKind::Turn(format!("the guest gave {why}"))),
            Ended::Guest(error) => Err(FailureKind::Guest(error)),
            Ended::Trap(why) => Err(FailureKind::Trap(why)),
            Ended::Timeout => Err(FailureKind::Timeout(begun.elapsed())),
        };
        account.tell(meter.as_deref());
        outcome
    }
}

/// Decides whether a turn lets the runtime put another thread in its place.
///
/// That costs more than a short turn itself, and is needed for long ones, during
/// which nothing else would run on this thread.
struct Pace {
    wary: u32,
}

/// Turns for which a new engine is taken for slow.
const WARY_AT_FIRST: u32 = 8;
/// Turns for which an engine is taken for slow after a slow one.
const WARY_AFTER_SLOW: u32 = 64;
/// What makes a turn slow: many times what handing over costs.
const SLOW: Duration = Duration::from_millis(1);

impl Default for Pace {
    fn default() -> Self {
        Self { wary: WARY_AT_FIRST }
    }
}

impl Pace {
    fn hands_over(&self) -> bool {
        self.wary > 0
            && Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread)
    }

    fn note(&mut self, took: Duration) {
        self.wary = if took > SLOW { WARY_AFTER_SLOW } else { self.wary.saturating_sub(1) };
    }
}
