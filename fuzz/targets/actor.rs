//! Bytes from which an actor is generated: it runs within its limits, and may call
//! every host function with any arguments.

#![no_main]

#[path = "../../crates/loader/tests/generated/mod.rs"]
mod generated;
#[path = "../../crates/loader/tests/guest/mod.rs"]
mod guest;
#[path = "../../crates/loader/tests/limited/mod.rs"]
mod limited;

use std::sync::LazyLock;

use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("threads can be started"));

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(module) = generated::actor(&mut Unstructured::new(bytes)) else {
        return Corpus::Reject;
    };
    RUNTIME.block_on(limited::try_out(&limited::loader(), module));
    Corpus::Keep
});
