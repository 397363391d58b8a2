//! The compiler of the process, and the clock that its code looks at.
//!
//! There is one: code of one module is compiled once and shared by all who run it.
//! It works on threads of its own, which yield to everything else in the process.
//! Compiled code looks at the clock at every loop and call, and asks what to do
//! when it has ticked.

use std::{
    num::NonZeroUsize,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rayon::{ThreadPool, ThreadPoolBuilder};
use wasmtime::{Config, Engine, Module};

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
        // Only an error's first cause is shown, and each frame costs time.
        .wasm_backtrace_max_frames(None::<NonZeroUsize>)
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
                // Where it is forbidden, compiling disturbs others somewhat more.
                _ = rustix::process::nice(NICE);
            })
            .build()
            .expect("a thread can be started")
    })
}

/// Compiles a module. Takes long, and leaves the calling thread waiting.
///
/// # Errors
/// What the compiler said.
pub(crate) fn compile(bytes: &[u8]) -> Result<Module, String> {
    pool().install(|| Module::new(engine(), bytes)).map_err(|error| error.root_cause().to_string())
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
                .spawn(|| self.run())
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
