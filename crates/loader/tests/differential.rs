//! Random scenarios end alike on every engine.
//!
//! `REFLOWD_CASES` says how many of each kind, `REFLOWD_SEED` from which seed on;
//! each case has the next seed. A failure names its own, and
//! `REFLOWD_SEED=… REFLOWD_CASES=1` runs it alone.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![expect(clippy::print_stdout, reason = "seeds and counts are printed")]

mod guest;
mod random;
mod scenario;

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use scenario::{Scenario, alike, engines, see};

/// A number that the environment may set.
fn setting(name: &str, otherwise: impl FnOnce() -> u64) -> u64 {
    std::env::var(name).map_or_else(|_| otherwise(), |n| n.parse().unwrap())
}

/// As many cases as are asked for, each made by `make` from `length` random bytes.
async fn cases(
    kind: &str,
    count: u64,
    length: usize,
    make: fn(&mut Unstructured<'_>) -> arbitrary::Result<Scenario>,
) {
    let engines = engines();
    let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() << 16;
    let (first, count) = (setting("REFLOWD_SEED", clock), setting("REFLOWD_CASES", || count));
    println!("{kind}: {count} cases from seed {first}");
    let mut ends = BTreeMap::<String, u64>::new();
    for seed in first..first + count {
        let bytes = random::bytes(seed, length);
        let mut scenario = make(&mut Unstructured::new(&bytes)).unwrap();
        let classes = {
            scenario.name = format!("{kind}, REFLOWD_SEED={seed}\n{}", scenario.name);
            let all = see(&engines, &scenario).await;
            alike(&engines, &scenario, all).classes()
        };
        for class in classes {
            *ends.entry(class).or_default() += 1;
        }
    }
    println!("{kind}: alike on {} engines; they ended as {ends:?}", engines.len());
    let done = |class: &str| ends.get(class).copied().unwrap_or_default();
    let turns: u64 = ends.values().sum();
    assert!(done("refused") + done("not") < turns, "nothing was run at all: {ends:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_contexts_arrive_alike() {
    cases("contexts", 100, 4000, random::contexts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_host_calls_are_answered_alike() {
    cases("host calls", 200, 2000, random::calls).await;
}
