//! Bytes from which a scenario is made: it ends alike on every engine.

#![no_main]

#[path = "../../crates/loader/tests/generated/mod.rs"]
mod generated;
#[path = "../../crates/loader/tests/guest/mod.rs"]
mod guest;
#[path = "../../crates/loader/tests/random/mod.rs"]
mod random;
#[path = "../../crates/loader/tests/scenario/mod.rs"]
mod scenario;

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};
use reflowd_loader::Loader;
use scenario::{Scenario, alike, engines, see};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("threads can be started"));
static ENGINES: LazyLock<Vec<(&'static str, Loader)>> = LazyLock::new(engines);

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(Some(scenario)) = make(&mut Unstructured::new(bytes)) else {
        return Corpus::Reject;
    };
    let all = RUNTIME.block_on(see(&ENGINES, &scenario));
    alike(&ENGINES, &scenario, all);
    Corpus::Keep
});

/// A context, host calls or a generated actor; none where the engines may differ.
fn make(u: &mut Unstructured<'_>) -> Result<Option<Scenario>> {
    Ok(match u.int_in_range(0..=2)? {
        0 => Some(random::contexts(u)?),
        1 => Some(random::calls(u)?),
        _ => generated::comparable(generated::predictable_actor(u)?)
            .map(|module| Scenario::new("generated", module)),
    })
}
