//! Bytes as a module: they are refused by name, or run within their limits.

#![no_main]

#[path = "../../crates/loader/tests/guest/mod.rs"]
mod guest;
#[path = "../../crates/loader/tests/limited/mod.rs"]
mod limited;

use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("threads can be started"));

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.block_on(limited::try_out(&limited::loader(), Bytes::copy_from_slice(bytes)));
});
