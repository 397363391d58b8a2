//! Tables count as memory.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;

use guest::*;
use reflowd_loader::{EngineKind, LoadErrorKind};
use reflowd_runtime::{PrepareError, ProgramSpec};

/// Tables of one module, and their elements, at most.
const TABLES: usize = 16;
const ELEMENTS: u64 = 1 << 20;

/// A guest with so many tables of that size, which grows each of them to the most that
/// there can be and puts out how many it could.
fn tables(count: usize, from: u64) -> bytes::Bytes {
    let tables: String = (0..count).map(|n| format!("(table $t{n} {from} funcref) ")).collect();
    let grown: String = (0..count)
        .map(|n| {
            let more = ELEMENTS - from;
            format!(
                "(if (i32.ne (table.grow $t{n} (ref.null func) (i32.const {more})) (i32.const -1))
                   (then (global.set $n (i32.add (global.get $n) (i32.const 1)))))"
            )
        })
        .collect();
    guest(&format!(
        r#"{tables} (global $n (mut i32) (i32.const 0))
        (func (export "process") (result i32)
          {grown}
          (i32.store8 (i32.const 0) (i32.add (i32.const 48) (global.get $n)))
          (call $put_block (call $block (i32.const 0) (i32.const 1))))"#
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_linear_memory_have_one_limit() {
    let on = Rig(EngineKind::Direct);
    let grown = async |memory: u64| {
        let spec = ProgramSpec { memory, ..spec() };
        let program = on.prepare(tables(TABLES, 0), spec).await.map_err(|e| e.to_string());
        let (engine, effects) = turn(engine_of(&program.unwrap()).await, context("null")).await;
        assert!(engine.memory_bytes() <= memory, "{} of {memory}", engine.memory_bytes());
        data(&effects)
    };
    let table = ELEMENTS * 8;
    assert_eq!(grown(1 << 20).await, "0");
    assert_eq!(grown(2 * table + (1 << 20)).await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_there_from_the_start_must_fit_too() {
    const FROM: u64 = 200_000;
    let pages = 2 << 16;
    let needed = pages + TABLES as u64 * FROM * 8;
    for on in [Rig(EngineKind::Direct), Rig(EngineKind::Extism)] {
        let spec = |memory| ProgramSpec { memory, ..spec() };
        let limit = needed - 1;
        match on.prepare(tables(TABLES, FROM), spec(limit)).await.err().unwrap() {
            PrepareError::MemoryTooSmall { needed: found, limit: of } => {
                assert_eq!((found, of), (needed, limit));
            }
            other => panic!("{other}"),
        }
        assert!(on.prepare(tables(TABLES, FROM), spec(needed)).await.is_ok());
    }
    let memory = reflowd_loader::Limits { memory: needed - 1, ..Default::default() };
    let loader = reflowd_loader::Loader::new(memory);
    let refused = soon(loader.load_bytes("tables", tables(TABLES, FROM))).await;
    let kind = refused.map(drop).unwrap_err().kind;
    assert_eq!(kind, LoadErrorKind::MemoryTooSmall { needed, limit: needed - 1 });
}
