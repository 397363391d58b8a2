//! The compiler of the process, and the clock that its code looks at.
//!
//! There is one: code of one module is compiled once and shared by all who run it.
//! It works on threads of its own, which yield to everything else in the process, and
//! gives up a module that takes more of the processors than its size explains.
//! Compiled code looks at the clock at every loop and call, and asks what to do
//! when it has ticked.

use std::{
    any::Any,
    cell::Cell,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use cranelift_codegen::timing::{Pass, Profiler, set_thread_profiler};
use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};
use reflowd_runtime::panic::Boundary;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Config, Engine, Module};

use crate::code::{MAX_FRAMES, Uncompiled};

/// The time between two ticks: how long a guest computes before it must let others.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// Ticks for which nothing ran before the clock stops.
const IDLE_TICKS: u32 = 100;

/// Bytes of stack that a guest has; the host's functions have as much again and more.
const GUEST_STACK: usize = 512 << 10;
/// Bytes of address space for both. What is not touched takes no memory.
const WHOLE_STACK: usize = 2 << 20;

/// How much the compiler's threads stand back: most of the way to the lowest priority.
const NICE: i32 = 10;

/// Time on processors for a module's code, however little it is.
const LEAST_TIME: Duration = Duration::from_secs(2);
/// Time on processors for each MiB of code: several times what the code of real languages
/// takes, on a machine that is several times slower than most.
const TIME_PER_MIB: Duration = Duration::from_secs(3);

/// How long the compiler may compute for so many bytes of code.
pub(crate) fn time_for(code: u64) -> Duration {
    let per_mib = u64::try_from(TIME_PER_MIB.as_nanos()).expect("it is some seconds");
    LEAST_TIME + Duration::from_nanos(code.saturating_mul(per_mib) >> 20)
}

/// The engine that all code of the process is compiled for.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(&config()).expect("the settings agree with each other"))
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        .async_stack_size(WHOLE_STACK)
        // Nothing here awaits within a store but one call.
        .concurrency_support(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(MAX_FRAMES))
        // What would void a limit: second, shared and 64-bit memories.
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_custom_page_sizes(false);
    config
}

/// The threads on which modules are compiled.
fn pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        ThreadPoolBuilder::new()
            .thread_name(|_| "compiler".into())
            .start_handler(|_| {
                set_thread_profiler(Box::new(Accountant));
                // Where it is forbidden, compiling disturbs others somewhat more.
                _ = rustix::process::nice(NICE);
            })
            .build()
            .expect("a thread can be started")
    })
}

/// Compiles a module, one after the other. Takes long, and leaves the calling thread waiting.
///
/// # Errors
/// It cannot be compiled, or not in reasonable time.
pub(crate) fn compile(bytes: &[u8], time: Duration) -> Result<Module, Uncompiled> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    LEFT.store(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    let compiling = || pool().install(|| Module::new(engine(), bytes));
    match catch_unwind(AssertUnwindSafe(compiling)) {
        Ok(Ok(module)) => Ok(module),
        Ok(Err(error)) => Err(Uncompiled::Refused(error.root_cause().to_string())),
        Err(panic) if panic.is::<TimeSpent>() => Err(Uncompiled::Costly(time)),
        Err(panic) => resume_unwind(panic),
    }
}

/// Nanoseconds on processors that are left for the module being compiled.
static LEFT: AtomicU64 = AtomicU64::new(0);

/// What the compiler unwinds with when its time is used up.
struct TimeSpent;

/// Takes the time of the compiler's passes, of which every function goes through some dozen.
///
/// The compiler has no way to be stopped. But it tells its profiler of each pass, and a
/// profiler may unwind: nothing that it has made by then outlives it.
struct Accountant;

impl Profiler for Accountant {
    fn start_pass(&self, _: Pass) -> Box<dyn Any> {
        thread_local! {
            /// The thread's own time when it was last asked.
            static ASKED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        }
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let now: Duration = now.try_into().expect("a thread has not run for less than nothing");
        let spent = now.saturating_sub(ASKED.replace(now)).as_nanos();
        let spent = u64::try_from(spent).unwrap_or(u64::MAX);
        let before = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(spent))
        });
        if before.is_ok_and(|left| left <= spent) {
            // No panic: nothing is wrong with this program, so no hook need hear of it.
            resume_unwind(Box::new(TimeSpent));
        }
        Box::new(())
    }
}

/// Makes the engine's clock tick for as long as some guest runs.
struct Clock {
    running: AtomicUsize,
    stopped: AtomicBool,
    thread: OnceLock<thread::Thread>,
}

static CLOCK: Clock =
    Clock { running: AtomicUsize::new(0), stopped: AtomicBool::new(true), thread: OnceLock::new() };

/// A guest that runs. The clock ticks while there is one.
pub(super) struct Running(());

impl Running {
    pub(super) fn new() -> Self {
        // The clock's thread stops in the opposite order: it says so, and then
        // looks whether someone runs.
        CLOCK.running.fetch_add(1, Ordering::SeqCst);
        if CLOCK.stopped.load(Ordering::SeqCst) {
            CLOCK.start();
        }
        Self(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CLOCK.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Clock {
    #[cold]
    fn start(&'static self) {
        let thread = self.thread.get_or_init(|| {
            thread::Builder::new()
                .name("ticks".into())
                // Guests that nothing interrupts would hold all threads.
                .spawn(|| -> () { Boundary::Clock.keep_thread(|| self.run()) })
                .expect("a thread can be started")
                .thread()
                .clone()
        });
        self.stopped.store(false, Ordering::SeqCst);
        thread.unpark();
    }

    fn run(&self) {
        let mut idle = 0;
        loop {
            thread::park_timeout(TICK);
            engine().increment_epoch();
            Boundary::Clock.works();
            if self.running.load(Ordering::SeqCst) > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle < IDLE_TICKS {
                continue;
            }
            idle = 0;
            self.stopped.store(true, Ordering::SeqCst);
            while self.stopped.load(Ordering::SeqCst) && self.running.load(Ordering::SeqCst) == 0 {
                thread::park();
            }
            self.stopped.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn compiling_stands_back_behind_all_else() {
        let nice = || rustix::process::nice(0).expect("it may be asked");
        let (own, theirs) = (nice(), pool().broadcast(|_| nice()));
        assert!(theirs.iter().all(|theirs| *theirs == (own + NICE).min(19)), "{own}: {theirs:?}");
    }

    #[test]
    fn a_module_that_costs_more_than_its_time_is_given_up_and_the_next_one_is_compiled() {
        let function =
            format!("(func (result i32) (i32.const 1) {})", "(i32.const 3) i32.mul ".repeat(2_000));
        let module = wat::parse_str(format!("(module {})", function.repeat(50))).unwrap();
        let little = Duration::from_millis(1);
        assert_eq!(compile(&module, little).err(), Some(Uncompiled::Costly(little)));
        assert!(compile(&module, Duration::from_secs(600)).is_ok());
    }

    #[test]
    fn time_goes_by_the_size_of_the_code() {
        assert_eq!(time_for(0), LEAST_TIME);
        assert_eq!(time_for(3 << 20), LEAST_TIME + 3 * TIME_PER_MIB);
        assert!(time_for(u64::MAX) > time_for(1 << 30));
    }

    #[test]
    fn the_clock_ticks_while_someone_runs_and_then_stops() {
        for _ in 0..2 {
            let running = Running::new();
            assert!(!CLOCK.stopped.load(Ordering::SeqCst));
            drop(running);
            let patience = Instant::now() + Duration::from_secs(30);
            while !CLOCK.stopped.load(Ordering::SeqCst) {
                assert!(Instant::now() < patience, "the clock goes on");
                thread::yield_now();
            }
        }
    }
}
