//! Random histories of a flow against a simple model.
//!
//! A history is a list of steps: messages, swaps to good, bad and half-bad versions, some of
//! which make their own states of those before, rollbacks, renames, edits, pauses, stops and
//! crashes with a start. The versions are fakes that
//! fail in every way in which an engine fails; mailboxes, wires, turns, trials, the
//! groups that go back together and the bans are the real ones, and the clock is
//! paused, so that a minute of backoff costs nothing.
//!
//! Whatever the steps, in the end each message that was accepted has come out once, or
//! is a dead letter once, or is still the half of a join, or was queued when the process was
//! killed; what came out is in the order
//! of its sender; each actor's state has counted exactly its successful turns, but for those
//! that a rollback was told to cost; no rollback has left a version with the state of
//! another form; the
//! books balance after each step.
//!
//! `REFLOWD_CASES=200000` runs more histories, `REFLOWD_SEED` begins at another one. A
//! history that fails is shortened, and its seed is said.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod flow;
mod step;
mod totals;
mod version;

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
};

use proptest::{
    collection::vec,
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use tokio::runtime::Builder;

use crate::{flow::Flow, step::Step, totals::Totals};

/// Histories of one run.
const CASES: u64 = 2_000;

/// Steps of one history.
const STEPS: std::ops::Range<usize> = 50..90;

#[test]
fn whatever_happens_each_message_is_processed_once_in_order_or_is_a_dead_letter() {
    let first = given("REFLOWD_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let cases = given("REFLOWD_CASES").unwrap_or(CASES);
    println!("REFLOWD_SEED={first}");
    let mut totals = Totals::default();
    for seed in (0..cases).map(|case| first.wrapping_add(case)) {
        totals.add(&history(seed));
    }
    println!("{cases} histories\n{totals}");
    if cases >= CASES {
        assert_eq!(totals.never(), Vec::new(), "it never happened");
    }
}

/// Runs the history of a seed.
#[track_caller]
fn history(seed: u64) -> Totals {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let steps = vec(Step::any(), STEPS).new_tree(&mut runner).unwrap().current();
    attempt(&steps).unwrap_or_else(|_| {
        let steps = shorten(steps);
        let why = attempt(&steps).unwrap_err();
        let list: String = steps.iter().map(|step| format!("    {step:?}\n")).collect();
        panic!("{why}\nREFLOWD_SEED={seed} REFLOWD_CASES=1 repeats this; in short:\n{list}")
    })
}

/// Leaves out whatever a history fails without.
fn shorten(mut steps: Vec<Step>) -> Vec<Step> {
    let mut some = steps.len() / 2;
    while some > 0 {
        let mut at = 0;
        while at < steps.len() {
            let mut without = steps.clone();
            without.drain(at..steps.len().min(at + some));
            if attempt(&without).is_err() {
                steps = without;
            } else {
                at += some;
            }
        }
        some /= 2;
    }
    steps
}

/// Runs a history; a panic is a failure too.
fn attempt(steps: &[Step]) -> Result<Totals, String> {
    match catch_unwind(AssertUnwindSafe(|| run(steps))) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .unwrap_or_else(|| "a panic, said above".to_owned())),
    }
}

/// Takes the steps one after the other, and looks at what is left of them.
fn run(steps: &[Step]) -> Result<Totals, TestCaseError> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut flow = Flow::new().await;
        for step in steps {
            flow.take(step).await;
            flow.check_books()?;
        }
        flow.end().await
    })
}

fn given(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}
