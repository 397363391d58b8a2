//! What a turn allocates, counted.
//!
//! An allocation is some tens of nanoseconds, and one that nobody meant is hard to
//! see in a time that varies from run to run. A count does not vary. It is the
//! median of many turns, because a turn in which the clock ticks makes a few more.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "what is counted is printed")]
#![expect(unsafe_code, reason = "there is no other way to be the allocator of a process")]

mod guest;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
};

use bytes::Bytes;
use guest::*;
use reflowd_loader::EngineKind;
use reflowd_runtime::{Context, Message, Type};
use tokio::sync::Mutex;

/// The allocator of the system, how often it was asked for memory, and how much is taken.
struct Counting {
    calls: AtomicU64,
    bytes: AtomicI64,
}

impl Counting {
    fn note(&self, more: usize, less: usize) {
        let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.bytes.fetch_add(bytes(more) - bytes(less), Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on as it comes.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.note(layout.size(), 0);
        // SAFETY: as our caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.note(0, layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.note(size, layout.size());
        // SAFETY: as our caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { calls: AtomicU64::new(0), bytes: AtomicI64::new(0) };

/// What is counted is what the whole process does: one test at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Of the turn of a guest that does nothing: its future, the closure that runs on the
/// guest's own stack, and the guest's answer, which outlives the memory it was in.
const NOP: u64 = 3;

/// Of a turn of the sample filter that puts a record out. Beside those of a turn that
/// does nothing: the parser's stack, the list of the answer's outputs, the name of an
/// output's port, the count of those who share the answer, and the list of effects.
const FILTER: u64 = NOP + 5;

/// Bytes that an engine may hold more than before once its turn is over: what it keeps
/// for the next, and what others in the process do meanwhile.
const IDLE: i64 = 256 << 10;

/// Turns of which the median is taken.
const TURNS: usize = 501;

/// Allocations of a turn, from the call to its effects.
async fn allocations(on: Rig, guest: Bytes, context: Context) -> u64 {
    let mut engine = on.engine(guest).await;
    let mut counts = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        let (context, deadline) = (context.clone(), within(LONG));
        let before = ALLOCATOR.calls.load(Ordering::Relaxed);
        let turn = engine.turn(context, deadline).await;
        counts.push(ALLOCATOR.calls.load(Ordering::Relaxed) - before);
        engine = turn.map_err(|failure| failure.kind).unwrap().0;
    }
    counts.sort_unstable();
    counts[TURNS / 2]
}

fn quake() -> Context {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/sample/earthquakes.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let strong = text.lines().find(|line| line.contains(r#""mag":5"#)).unwrap();
    let mut context = context("null");
    let quake = Message::new(Type::Object, strong.to_owned()).unwrap();
    context.payload = vec![("quake".parse().unwrap(), quake)];
    context
}

#[tokio::test]
async fn a_turn_allocates_only_what_outlives_it() {
    let _alone = ALONE.lock().await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../modules/magnitude-filter.wasm");
    let filter = Bytes::from(std::fs::read(path).unwrap());
    let nop = process(r#"(call $answer <<{"outputs":{}}>>)"#);
    for (name, guest, context, most) in
        [("nop", nop, context("null"), NOP), ("filter", filter, quake(), FILTER)]
    {
        let direct = allocations(Rig(EngineKind::Direct), guest.clone(), context.clone()).await;
        let extism = allocations(Rig(EngineKind::Extism), guest, context).await;
        println!("allocations of a turn, {name}: {direct} on direct, {extism} on extism");
        assert!(direct <= most, "{name}: {direct} allocations, and {most} are accounted for");
    }
}

#[tokio::test]
async fn an_idle_engine_holds_nothing_of_its_last_turn() {
    let _alone = ALONE.lock().await;
    // More than goes on to the next who needs so much.
    let large = format!("\"{}\"", "x".repeat(12 << 20));
    let mut engine = Rig(EngineKind::Direct).engine(process("(call $put_input)")).await;
    engine = turn(engine, context("null")).await.0;
    let before = ALLOCATOR.bytes.load(Ordering::Relaxed);
    for _ in 0..3 {
        engine = turn(engine, context(&large)).await.0;
    }
    let more = ALLOCATOR.bytes.load(Ordering::Relaxed) - before;
    assert!(more < IDLE, "it holds {more} bytes");
    turn(engine, context("null")).await;
}
